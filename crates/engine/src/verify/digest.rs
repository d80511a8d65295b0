//! Comparing a range: digests of both sides, halved until a few rows are left to be listed.
//!
//! A range is `lower < key <= upper` in each side's *own* order, whatever its collation. Take ascending bounds
//! b₁ … bₙ of the owner's order. On the owner the ranges part the rows. On the other side, for any order and any key k,
//! take the last bound below k in the list of bounds (none: the first range): k is not above the one after it, so k is
//! in the range between them. So every row of either side is in at least one range, and rows of the owner in exactly
//! one. If the digests of all ranges are equal, each range has the same rows on both sides: no row of the other side
//! is unknown to the owner, and none of the owner's is lacking. Bounds that the other side orders differently only
//! make ranges unequal that need not be, and rows are then settled by key. Halving only adds bounds to the list, always
//! keys of the owner in its order: a bound of the other side's order could make the owner's range grow.

use super::ports::{Comparable, Cost, Digest, Hashed, Item, Passage, RangeCounts, Repairer, Store};
use super::{Parts, metered};
use crate::fault::Fault;
use crate::ports::Outcome;
use segue_model::region::Extent;
use segue_model::table::Table;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Rows of a range that are listed instead of halved.
const LISTED_ROWS_MAX: u64 = 256;
/// Rows of the other side that are listed by one statement.
const PAGE_ROWS: u64 = 5_000;
/// How often a range that could not be halved is read again before it is listed whatever its size.
const UNSPLIT_MAX: u32 = 3;
/// Into how many parts the rows of a table without a key are divided by hash.
const BUCKETS: u32 = 4096;
/// Buckets whose images are listed by one statement.
const BUCKETS_AT_ONCE: usize = 64;

/// A range still to be compared.
struct Task {
    within: Extent,
    /// It was unequal once already; rows in flight have had their time.
    again: bool,
    unsplit: u32,
}

/// What a range's digests came to.
pub(super) struct Suspects {
    /// Items that are unequal at first sight.
    pub(super) items: Vec<Item>,
    /// How long reading the range's own digest took on both sides.
    pub(super) first_digest_took: Duration,
}

impl<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer> Parts<O, X, P, S, R> {
    /// The items of a range that are unequal at first sight.
    pub(super) async fn suspects(
        &self,
        table: &Table,
        within: Extent,
        counts: &mut RangeCounts,
    ) -> Outcome<Suspects> {
        let mut items = BTreeSet::new();
        let mut first_digest_took = None;
        let mut tasks = vec![Task { within, again: false, unsplit: 0 }];
        while let Some(task) = tasks.pop() {
            let start = Instant::now();
            let (owner, other) = self.digests(table, &task.within, counts).await?;
            let worked = start.elapsed();
            if first_digest_took.is_none() {
                first_digest_took = Some(start.elapsed());
                counts.rows += owner.rows.max(other.rows);
            }
            self.throttle.spend(usize::try_from(owner.bytes.max(other.bytes)).unwrap_or(usize::MAX)).await;
            self.throttle.rest(worked).await;
            if owner.same(&other) {
                continue;
            }
            if !task.again {
                tasks.push(Task { again: true, ..task });
                continue;
            }
            if owner.rows <= LISTED_ROWS_MAX || task.unsplit >= UNSPLIT_MAX {
                items.extend(self.listed(table, task.within, counts).await?);
                continue;
            }
            let middle = self.owner.bound_after(table, &task.within, owner.rows / 2).await?;
            let Extent::Range { lower, upper } = task.within else {
                return Err(Fault::bug("SEGUE-VERIFY-RANGE", "only ranges are halved"));
            };
            match middle {
                Some(middle) if upper.as_ref() != Some(&middle) => {
                    let high = Extent::Range { lower: Some(middle.clone()), upper };
                    let low = Extent::Range { lower, upper: Some(middle) };
                    tasks.extend([high, low].map(|within| Task { within, again: false, unsplit: 0 }));
                }
                _ => {
                    let within = Extent::Range { lower, upper };
                    tasks.push(Task { within, again: true, unsplit: task.unsplit + 1 });
                }
            }
            self.throttle.admit(0, &self.progress).await;
        }
        let first_digest_took = first_digest_took.unwrap_or_default();
        Ok(Suspects { items: items.into_iter().collect(), first_digest_took })
    }

    async fn digests(
        &self,
        table: &Table,
        within: &Extent,
        counts: &mut RangeCounts,
    ) -> Outcome<(Digest, Digest)> {
        counts.digests += 1;
        let cost = |d: &Digest| Cost { ms: 0, rows: d.rows, bytes: d.bytes };
        let (owner, other) = tokio::try_join!(
            metered(&mut counts.owner, self.owner.digest(table, within), cost),
            metered(&mut counts.other, self.other.digest(table, within), cost),
        )?;
        Ok((owner, other))
    }

    /// Lists the owner's rows, and page by page the other side's, which can be many more: rows that the owner lacks, or
    /// that the two sides order differently. The pages are cut by the other side's own keys, in its own order.
    async fn listed(&self, table: &Table, within: Extent, counts: &mut RangeCounts) -> Outcome<Vec<Item>> {
        let owner = metered(&mut counts.owner, self.owner.hashes(table, &within), |l| hashed_cost(l)).await?;
        let mut owner: HashMap<Item, (u64, i64)> = by_item(owner);
        let mut items = Vec::new();
        let Extent::Range { mut lower, upper } = within else {
            return Err(Fault::bug("SEGUE-VERIFY-RANGE", "only ranges are listed"));
        };
        loop {
            let rest = Extent::Range { lower: lower.clone(), upper: upper.clone() };
            let end = self.other.bound_after(table, &rest, PAGE_ROWS).await?;
            let page = Extent::Range { lower, upper: end.clone().or_else(|| upper.clone()) };
            let other =
                metered(&mut counts.other, self.other.hashes(table, &page), |l| hashed_cost(l)).await?;
            for h in other {
                if owner.remove(&h.item) != Some((h.rows, h.hash)) {
                    items.push(h.item);
                }
            }
            if end.is_none() {
                items.extend(owner.into_keys());
                return Ok(items);
            }
            lower = end;
        }
    }

    /// The images of a table without a key that do not occur equally often at first sight.
    pub(super) async fn image_suspects(&self, table: &Table, counts: &mut RangeCounts) -> Outcome<Vec<Item>> {
        let cost = |found: &std::collections::BTreeMap<u32, Digest>| Cost {
            ms: 0,
            rows: found.values().map(|d| d.rows).sum(),
            bytes: found.values().map(|d| d.bytes).sum(),
        };
        counts.digests += 1;
        let began = Instant::now();
        let (owner, other) = tokio::try_join!(
            metered(&mut counts.owner, self.owner.buckets(table, BUCKETS), cost),
            metered(&mut counts.other, self.other.buckets(table, BUCKETS), cost),
        )?;
        let worked = began.elapsed();
        counts.rows += cost(&owner).rows.max(cost(&other).rows);
        self.throttle.spend(usize::try_from(cost(&owner).bytes).unwrap_or(usize::MAX)).await;
        self.throttle.rest(worked).await;
        let none = Digest::default();
        let same = |b: &u32| owner.get(b).unwrap_or(&none).same(other.get(b).unwrap_or(&none));
        let all: BTreeSet<u32> = owner.keys().chain(other.keys()).copied().collect();
        let differing: Vec<u32> = all.into_iter().filter(|b| !same(b)).collect();
        let mut items = BTreeSet::new();
        for wanted in differing.chunks(BUCKETS_AT_ONCE) {
            let (owner, other) = tokio::try_join!(
                metered(&mut counts.owner, self.owner.images(table, BUCKETS, wanted), |l| hashed_cost(l)),
                metered(&mut counts.other, self.other.images(table, BUCKETS, wanted), |l| hashed_cost(l)),
            )?;
            items.extend(unequal(owner, other));
        }
        Ok(items.into_iter().collect())
    }
}

/// Items that only one list has, or that differ.
fn unequal(owner: Vec<Hashed>, other: Vec<Hashed>) -> Vec<Item> {
    let mut theirs = by_item(other);
    let mut items: Vec<Item> = owner
        .into_iter()
        .filter(|h| theirs.remove(&h.item) != Some((h.rows, h.hash)))
        .map(|h| h.item)
        .collect();
    items.extend(theirs.into_keys());
    items
}

fn by_item(list: Vec<Hashed>) -> HashMap<Item, (u64, i64)> {
    list.into_iter().map(|h| (h.item, (h.rows, h.hash))).collect()
}

fn hashed_cost(list: &[Hashed]) -> Cost {
    let bytes = list.iter().map(|h| h.bytes).sum();
    Cost { ms: 0, rows: list.iter().map(|h| h.rows).sum(), bytes }
}
