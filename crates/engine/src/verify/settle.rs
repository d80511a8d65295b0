//! Settling: is an unequal row a difference, or only in flight?
//!
//! Readings of one item alternate: owner `a1`, other side `x1`, owner `a2`, other side `x2`, …
//! Before each `x` a signal emitted after the `a` before it has been applied ([`Passage::passed`]), so the other side
//! has everything that `a` saw: `a1 ⊆ x1`, `a2 ⊆ x2` as sets of transactions. Before each `a` the owner shows
//! everything the other side had applied at the `x` before it ([`Passage::shown`]): `x1 ⊆ a2`.
//!
//! *If `a1` and `a2` saw the same row versions, and `x1` and `x2` did, then `x1` must equal `a2`.* Take a right copy:
//! a row version that `a2` saw was there at `a1`, hence its maker is in `x1`; its end is not in `a2`, hence not in
//! `x1`: `x1` has it. A version that `x1` saw and `a2` did not was made in `x1 ⊆ a2`, so `a2` saw its end, so `x2` has
//! it too, and `x1` and `x2` differ, against the premise. Comparing versions and not values matters: a row that goes
//! A → B → A, or comes and goes between `a1` and `a2`, has been away however equal the readings look.
//!
//! All of this is about rows that the stream carries. Rows of a partition that was attached or detached come or go with
//! it outside the stream; so both sides must be made of the same parts from before `a1` until after `x2`
//! ([`Passage::parts`]).
//!
//! So an unequal item with all four versions unchanged is a **divergence**. A row that is equal in any comparison of
//! neighbours is equal: the copy then had what the owner had at that reading. Of rows without a key only their number
//! is compared, so they are equal only with all four versions unchanged. What keeps changing is **hot**.

use super::ports::{Comparable, Cost, FullRow, Item, Passage, RangeCounts, Reading, Repairer, Store};
use super::{Parts, metered};
use crate::ports::Outcome;
use segue_model::change::Row;
use segue_model::divergence::{Class, Difference, Divergence, classify, excerpts};
use segue_model::key::KeyText;
use segue_model::table::Table;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

/// Items settled by one row of signals.
const BATCH_ITEMS_MAX: usize = 256;
/// Readings of an item before it is called hot.
const ROUNDS_MAX: u32 = 8;
/// The first pause between rounds; it doubles.
const ROUND_PAUSE: Duration = Duration::from_millis(4);
/// Rounds in which the owner did not show what had been applied, before the batch is left as hot.
const UNSHOWN_ROUNDS_MAX: u32 = 2;
/// How often a part on its way is asked for.
const PARTS_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of rows read in full at a time.
pub(super) const FULL_ROWS_BYTES_MAX: u64 = 16 << 20;
/// A statement that would mend a difference is not printed above this size.
const REMEDY_BYTES_MAX: usize = 1 << 20;

/// What settling came to.
#[derive(Debug, Default)]
pub struct Settled {
    /// Items that are equal.
    pub equal: u64,
    /// Items that changed too often to tell.
    pub hot: Vec<Item>,
    /// Confirmed differences and the items they are about.
    pub divergent: Vec<(Item, Divergence)>,
}

/// An item that is not settled yet.
struct Open {
    item: Item,
    /// The owner's latest reading.
    owner: Reading,
    /// The other side's reading before it, if the owner's readings around that one saw the same versions and the later
    /// one was taken after the owner showed everything the other side had.
    between: Option<Reading>,
}

impl Open {
    /// One row, and not a number of equal ones: equal numbers at different moments can be a coincidence.
    fn is_one_row(&self) -> bool {
        matches!(self.item, Item::Key(_))
    }
}

impl<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer> Parts<O, X, P, S, R> {
    /// Settles every item. With `remedies`, each difference carries the statement that would mend it.
    pub async fn settle(
        &self,
        table: &Table,
        items: Vec<Item>,
        remedies: bool,
        counts: &mut RangeCounts,
    ) -> Outcome<Settled> {
        let mut settled = Settled::default();
        for batch in items.chunks(BATCH_ITEMS_MAX) {
            self.settle_batch(table, batch, remedies, counts, &mut settled).await?;
        }
        // Where equal keys can be written differently, both spellings were suspects, and both led to the same row.
        let mut met = BTreeSet::new();
        // What differs stays remembered, if it was, until whoever asked has it stored.
        let differing: BTreeSet<&Item> = settled.divergent.iter().map(|(item, _)| item).collect();
        let known: Vec<Item> = items.iter().filter(|item| !differing.contains(item)).cloned().collect();
        counts.forgotten += self.unsettled.settled(table.id, &known, &settled.hot);
        settled.divergent.retain(|(_, d)| d.key.as_ref().is_none_or(|key| met.insert(key.clone())));
        Ok(settled)
    }

    /// [`Passage::passed`], saying so.
    pub(super) async fn passed(&self) -> Outcome<()> {
        let why = "the stream must apply what the owner showed before rows are compared again";
        self.progress.waiting("verify", Some(why.into()));
        let passed = self.passage.passed().await;
        self.progress.waiting("verify", None);
        passed
    }

    /// [`Passage::shown`], saying so.
    pub(super) async fn shown(&self) -> Outcome<bool> {
        let why = "the owner must show what was applied before rows are compared again; a commit may be waiting \
                   for a synchronous standby";
        self.progress.waiting("verify", Some(why.into()));
        let shown = self.passage.shown().await;
        self.progress.waiting("verify", None);
        shown
    }

    async fn settle_batch(
        &self,
        table: &Table,
        batch: &[Item],
        remedies: bool,
        counts: &mut RangeCounts,
        settled: &mut Settled,
    ) -> Outcome<()> {
        let mut made_of = self.parts(table).await?;
        let readings = metered(&mut counts.owner, self.owner.read(table, batch), |r| cost_of(r)).await?;
        let mut open: Vec<Open> = batch
            .iter()
            .cloned()
            .zip(readings)
            .map(|(item, owner)| Open { item, owner, between: None })
            .collect();
        let mut unshown = 0;
        for round in 0..ROUNDS_MAX {
            self.passed().await?;
            let items: Vec<Item> = open.iter().map(|o| o.item.clone()).collect();
            let others = metered(&mut counts.other, self.other.read(table, &items), |r| cost_of(r)).await?;
            let mut proven = Vec::new();
            let mut rest = Vec::new();
            for (o, other) in open.into_iter().zip(others) {
                let steady = o.between.as_ref().is_some_and(|b| b.version == other.version);
                if other.same(&o.owner) && o.is_one_row() {
                    settled.equal += 1;
                } else if steady {
                    proven.push((o, other));
                } else {
                    rest.push((o, other));
                }
            }
            let mut moved = false;
            if !proven.is_empty() {
                let now_made_of = self.parts(table).await?;
                moved = now_made_of != made_of;
                made_of = now_made_of;
            }
            if moved {
                // Nothing read so far counts: the next reading of the owner is the first again.
                rest.append(&mut proven);
            }
            // That several rows are alike on both sides is a proof, too.
            let (alike, proven): (Vec<_>, Vec<_>) = proven.into_iter().partition(|(o, x)| x.same(&o.owner));
            settled.equal += alike.len() as u64;
            rest.extend(self.confirm(table, proven, remedies, counts, settled).await?);
            if rest.is_empty() {
                return Ok(());
            }
            let shown = self.shown().await?;
            open = self.owner_again(table, rest, shown && !moved, counts, settled).await?;
            unshown += u32::from(!shown);
            if open.is_empty() || unshown >= UNSHOWN_ROUNDS_MAX {
                break;
            }
            tokio::time::sleep(ROUND_PAUSE * 2_u32.pow(round)).await;
        }
        settled.hot.extend(open.into_iter().map(|o| o.item));
        Ok(())
    }

    /// What the table is made of, as soon as both sides are made of the same.
    async fn parts(&self, table: &Table) -> Outcome<String> {
        let why = "a partition that was attached or detached is on its way; then rows are compared again";
        loop {
            if let Some(parts) = self.passage.parts(table).await? {
                self.progress.waiting("verify", None);
                return Ok(parts);
            }
            self.progress.waiting("verify", Some(why.into()));
            tokio::time::sleep(PARTS_PAUSE).await;
        }
    }

    /// Reads the owner again after the other side was read; returns what is still open. `comparable`: the owner showed
    /// before what the other side had, and no part has come or gone, as far as is known.
    async fn owner_again(
        &self,
        table: &Table,
        rest: Vec<(Open, Reading)>,
        comparable: bool,
        counts: &mut RangeCounts,
        settled: &mut Settled,
    ) -> Outcome<Vec<Open>> {
        let items: Vec<Item> = rest.iter().map(|(o, _)| o.item.clone()).collect();
        let owners = metered(&mut counts.owner, self.owner.read(table, &items), |r| cost_of(r)).await?;
        let mut open = Vec::with_capacity(rest.len());
        for ((before, other), owner) in rest.into_iter().zip(owners) {
            if owner.same(&other) && before.is_one_row() {
                settled.equal += 1;
                continue;
            }
            let steady = comparable && before.owner.version == owner.version;
            open.push(Open { item: before.item, owner, between: steady.then_some(other) });
        }
        Ok(open)
    }

    /// Reads the rows of proven differences in full, still in the proven versions, and compares their text; hashes may
    /// differ where texts do not. Returns what has changed meanwhile, open again.
    async fn confirm(
        &self,
        table: &Table,
        proven: Vec<(Open, Reading)>,
        remedies: bool,
        counts: &mut RangeCounts,
        settled: &mut Settled,
    ) -> Outcome<Vec<(Open, Reading)>> {
        let mut changed = Vec::new();
        let mut proven = proven.into_iter().peekable();
        while proven.peek().is_some() {
            let mut bytes = 0;
            let mut part = Vec::new();
            while let Some((o, other)) = proven
                .next_if(|(o, x)| part.is_empty() || bytes + o.owner.bytes + x.bytes <= FULL_ROWS_BYTES_MAX)
            {
                bytes += o.owner.bytes + other.bytes;
                part.push((o, other));
            }
            let items: Vec<Item> = part.iter().map(|(o, _)| o.item.clone()).collect();
            let owners = metered(&mut counts.owner, self.owner.rows(table, &items), |r| full_cost(r)).await?;
            let others = metered(&mut counts.other, self.other.rows(table, &items), |r| full_cost(r)).await?;
            let positions = (self.owner.position().await?, self.other.position().await?);
            for (((o, reading), owner), other) in part.into_iter().zip(owners).zip(others) {
                if version(&owner) != o.owner.version || version(&other) != reading.version {
                    changed.push((Open { between: None, ..o }, reading));
                    continue;
                }
                let (owner, other) = (owner.map(|f| f.row), other.map(|f| f.row));
                match difference(table, &o, &reading, owner.as_ref(), other.as_ref()) {
                    None => settled.equal += 1,
                    Some(difference) => {
                        let rows = match (&o.item, difference.class) {
                            // Of equal rows, one is lacking or one is too many.
                            (Item::Image(_), Class::Missing) => (owner.as_ref(), None),
                            (Item::Image(_), _) => (None, other.as_ref()),
                            (Item::Key(_), _) => (owner.as_ref(), other.as_ref()),
                        };
                        let mut d = divergence(table, &o, &reading, difference, rows);
                        (d.owner_position, d.other_position) = positions;
                        // Of several with one key all have to go, whatever the one that was read is like.
                        let here =
                            if o.is_one_row() && reading.rows > 1 { rows.0.or(rows.1) } else { rows.1 };
                        d.remedy = remedies.then(|| short(self.other.remedy(table, rows.0, here)));
                        settled.divergent.push((o.item, d));
                    }
                }
            }
        }
        Ok(changed)
    }
}

fn version(row: &Option<FullRow>) -> &str {
    row.as_ref().map_or("", |f| &f.version)
}

fn difference(
    table: &Table,
    open: &Open,
    other: &Reading,
    owner_row: Option<&Row>,
    other_row: Option<&Row>,
) -> Option<Difference> {
    let more_often = |class| Some(Difference { class, columns: Vec::new() });
    match open.item {
        Item::Key(_) if open.owner.rows.max(other.rows) <= 1 => classify(table, owner_row, other_row),
        // One image, or one key, on one side more often than on the other: that one of them is equal says nothing.
        Item::Key(_) | Item::Image(_) => match open.owner.rows.cmp(&other.rows) {
            Ordering::Greater => more_often(Class::Missing),
            Ordering::Less => more_often(Class::Extra),
            Ordering::Equal => more_often(Class::Changed),
        },
    }
}

fn divergence(
    table: &Table,
    open: &Open,
    other: &Reading,
    difference: Difference,
    rows: (Option<&Row>, Option<&Row>),
) -> Divergence {
    let spelt = |row: Option<&Row>| KeyText::of(table.key()?, row?).ok();
    let key = match &open.item {
        Item::Key(key) => spelt(rows.0).or_else(|| spelt(rows.1)).or_else(|| Some(key.clone())),
        Item::Image(_) => None,
    };
    Divergence {
        table_id: table.id,
        table: table.source.to_string(),
        key,
        difference,
        owner_row: rows.0.map(excerpts),
        other_row: rows.1.map(excerpts),
        owner_rows: open.owner.rows,
        other_rows: other.rows,
        owner_hash: open.owner.hash,
        other_hash: other.hash,
        owner_position: Default::default(),
        other_position: Default::default(),
        remedy: None,
        repaired: false,
        refused: None,
    }
}

fn short(remedy: String) -> String {
    let bytes = remedy.len();
    if bytes <= REMEDY_BYTES_MAX {
        remedy
    } else {
        format!("-- a statement of {bytes} bytes, too long to print")
    }
}

pub(super) fn cost_of(readings: &[Reading]) -> Cost {
    let rows = readings.iter().map(|r| r.rows).sum();
    Cost { ms: 0, rows, bytes: readings.iter().map(|r| r.bytes * r.rows.min(1)).sum() }
}

pub(super) fn full_cost(rows: &[Option<FullRow>]) -> Cost {
    let size = |f: &FullRow| f.row.iter().map(|v| v.len_bytes() as u64).sum::<u64>();
    let there = || rows.iter().flatten();
    Cost { ms: 0, rows: there().count() as u64, bytes: there().map(size).sum() }
}
