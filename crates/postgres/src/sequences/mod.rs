//! Sequences and identity columns, carried to the new owner when the writes are handed over, in both directions.
//!
//! A sequence is in no stream: the new side's stands where it always stood. So it is set, under the fence and after the
//! last row has arrived, past everything that the old side has given. [`Sequences::pair`] does beforehand all that can be
//! done beforehand; [`Sequences::carry`] is one round trip to each side, however many sequences there are.
//!
//! * A sequence is never moved back, in the direction in which it counts. In a circle (CYCLE) there is no back: there the
//!   new side follows the old one exactly, since the values longest ago are the ones that are free.
//! * To carry once more is harmless: where nothing was taken on the old side since, nothing moves. Once the new side has
//!   opened nothing is set: its sequences are the application's, and a circle would be turned back.
//! * `setval` is not transactional. What [`Sequences::carry`] leaves behind when the switch is undone is a gap.
//! * The fence does not stop `nextval`. Values that are taken on the old side after it was read are covered by a margin;
//!   see [`lift`] for its size, and for the cases in which there is none.
//! * Sessions on the new side that have values in their cache (CACHE above 1) keep them. They come from the last time at
//!   which that side gave values: the other side was set past them then, or none has given any.
//!
//! It does not know when to carry, and does not look at rows other than those that stand ahead of their sequence.
//!
//! # Rights
//!
//! SELECT on the old side's sequences, SELECT and UPDATE on the new side's, and SELECT on the old side's tables. On the
//! new side the schema `segue`.

mod lift;
mod pairing;
mod read;

pub use lift::Stand;
pub use pairing::Pair;

use crate::birth::{Authority, Direction, enter};
use crate::error::fault_of;
use lift::{Lift, RowsAhead};
use read::Count;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::table::Table;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::error::Severity;
use tokio_postgres::{Client, Error, SimpleQueryMessage, SimpleQueryRow};

/// Steps that the new side is ahead of the old one, where there is room for it: more than what applications take in the
/// moment between the fence and the switch, and nothing beside the range of an `integer`, switched daily for years.
pub const MARGIN: u64 = 1000;

/// A sequence is locked against us only by whoever alters or drops it.
const LOCK_MS: u32 = 300;
/// The same before the switch, when only we wait.
const PATIENT_LOCK_MS: u32 = 5_000;
/// Past this, an answer is not waited for any longer.
const ANSWER: Duration = Duration::from_secs(10);
/// Sequences in one statement. All statements are in one message; PostgreSQL works through a UNION by recursion.
const STATEMENT: usize = 100;

/// The sequences of a migration's tables, ready to be carried in one direction.
#[derive(Clone, Debug)]
pub struct Sequences {
    direction: Direction,
    pairs: Vec<Pair>,
    unready: Vec<String>,
    remarks: Vec<String>,
}

/// What became of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// On the old side.
    pub from: QualifiedName,
    /// On the new side.
    pub to: QualifiedName,
    /// The old side's, under the fence.
    pub old: Stand,
    /// The new side's, before.
    pub before: Stand,
    /// The new side's, now: as before, if it was far enough ahead.
    pub after: Stand,
    /// Steps from the old side's to where the new side has to stand at least.
    pub margin: u64,
}

impl Sequences {
    /// Pairs the sequences of the side that owns the writes with those of the side that will, before the switch.
    ///
    /// `tables` are those of the plan in this direction: [`crate::catalog::read()`] for the way there,
    /// [`crate::catalog::read_reverse`] for the way back. `old` is a session on the side that their rows come from.
    pub async fn pair(
        old: &Client,
        new: &Client,
        tables: &[Table],
        direction: Direction,
    ) -> Outcome<Sequences> {
        let sources: Vec<&QualifiedName> = tables.iter().map(|table| &table.source).collect();
        let targets: Vec<&QualifiedName> = tables.iter().map(|table| &table.target).collect();
        let (there, here) = tokio::join!(read::read(new, &targets, true), read::read(old, &sources, false));
        let during = |side| move |f: Fault| f.during(format_args!("reading the sequences of the {side}"));
        let here = here.map_err(during(direction.from_side()))?;
        let there = there.map_err(during(direction.to_side()))?;
        let pairing::Paired { pairs, unready, remarks } = pairing::pair(&here, &there, tables, direction);
        let mut sequences = Sequences { direction, pairs, unready, remarks };
        let stands = sequences.stands(old, PATIENT_LOCK_MS).await?;
        let stands = sequences.judge(&stands);
        sequences.look_for_rows_ahead(old, &stands).await?;
        Ok(sequences)
    }

    /// In words, the sequences that cannot be set on the new side, or have nothing left to give, and columns without one.
    /// They are not carried. Anything here is a reason not to switch.
    pub fn unready(&self) -> &[String] {
        &self.unready
    }

    /// In words, what is left alone and should be known.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// What will be carried.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Has the new side's session read of the catalog what [`Sequences::carry`] needs of it, before anybody is held: most
    /// of what a new session's first statement takes. Sets nothing, and may be left undone.
    pub async fn get_ready(&self, new: &Client) -> Outcome<()> {
        let somewhere = |pair: &'_ Pair| Stand { last_value: pair.counts.1.min, is_called: false };
        let wanted: Vec<(&Pair, Stand)> = self.pairs.iter().map(|pair| (pair, somewhere(pair))).collect();
        let plans: Vec<String> =
            wanted.chunks(STATEMENT).map(|chunk| format!("; EXPLAIN {}", setting(chunk))).collect();
        let sql = format!("SET LOCAL lock_timeout = {LOCK_MS}{}", plans.concat());
        let step = format!("looking at the sequences of the {}", self.direction.to_side());
        transaction(new, &sql).await.map(drop).map_err(|e| e.read().during(step))
    }

    /// Sets the new side's sequences past what the old side has given, `margin` steps ahead where there is room for it
    /// ([`MARGIN`]). One round trip to each side. The new side's is a writing transaction under the token: an earlier
    /// process is shut out.
    ///
    /// An ambiguous fault means that the new side did not answer.
    pub async fn carry(
        &self,
        old: &Client,
        new: &Client,
        authority: Authority<'_>,
        margin: u64,
    ) -> Outcome<Vec<Carried>> {
        if self.pairs.is_empty() {
            return Ok(Vec::new());
        }
        let stands = self.stands(old, LOCK_MS).await?;
        let lifts: Vec<Lift> = self
            .pairs
            .iter()
            .zip(&stands)
            .map(|(pair, stand)| pair.rule.lift(*stand, margin, pair.rows))
            .collect();
        let set = self.set(new, authority, &self.farthest(&lifts)).await?;
        let carried = self.pairs.iter().zip(stands).zip(lifts).map(|((pair, old), lift)| {
            let (before, after) = *set.get(&pair.to_oid).ok_or_else(no_answer)?;
            let (from, to) = (pair.from.clone(), pair.to.clone());
            Ok(Carried { from, to, old, before, after, margin: lift.margin })
        });
        carried.collect()
    }

    /// Where each sequence of the new side has to stand; the farthest, if it goes on for several.
    fn farthest(&self, lifts: &[Lift]) -> Vec<(&Pair, Stand)> {
        let mut wanted: BTreeMap<u32, (&Pair, Stand)> = BTreeMap::new();
        for (pair, lift) in self.pairs.iter().zip(lifts) {
            let known = wanted.entry(pair.to_oid).or_insert((pair, lift.stand));
            if pair.rule.is_farther(lift.stand, known.1) {
                *known = (pair, lift.stand);
            }
        }
        wanted.into_values().collect()
    }

    /// Where the old side's sequences stand, in the order of the pairs. One round trip.
    async fn stands(&self, old: &Client, lock_ms: u32) -> Outcome<Vec<Stand>> {
        if self.pairs.is_empty() {
            return Ok(Vec::new());
        }
        let side = self.direction.from_side();
        let statements: Vec<String> = self.pairs.chunks(STATEMENT).enumerate().map(reading).collect();
        let sql = format!("SET LOCAL lock_timeout = {lock_ms}; {}", statements.join("; "));
        let rows = transaction(old, &sql).await;
        let rows = rows
            .map_err(|e| e.read().during(format_args!("reading where the sequences of the {side} stand")))?;
        let mut found: Vec<Option<Stand>> = vec![None; self.pairs.len()];
        for row in &rows {
            let no: usize = parsed(row, 0)?;
            let pair = self.pairs.get(no).ok_or_else(no_answer)?;
            let count = Count {
                increment: parsed(row, 4)?,
                min: parsed(row, 5)?,
                max: parsed(row, 6)?,
                cache: parsed(row, 7)?,
                cycle: flag(row, 8)?,
            };
            if parsed::<u32>(row, 3)? != pair.from_oid || count != pair.counts.0 {
                return Err(changed(&pair.from, side));
            }
            found[no] = Some(Stand { last_value: parsed(row, 1)?, is_called: flag(row, 2)? });
        }
        found.into_iter().map(|stand| stand.ok_or_else(no_answer)).collect()
    }

    /// Sets what is behind. Returns where each sequence stood and stands, by its number. One round trip.
    async fn set(
        &self,
        new: &Client,
        authority: Authority<'_>,
        wanted: &[(&Pair, Stand)],
    ) -> Outcome<BTreeMap<u32, (Stand, Stand)>> {
        let side = self.direction.to_side();
        let step = format!("setting the sequences of the {side}");
        let statements: Vec<String> = wanted.chunks(STATEMENT).map(setting).collect();
        // The bound is also for whoever takes the migration over just now.
        let sql = format!(
            "SET LOCAL lock_timeout = {LOCK_MS}; {}; SELECT segue.before_it_opens({}); {}",
            enter(authority),
            quote_literal(authority.0),
            statements.join("; ")
        );
        let rows = transaction(new, &sql).await.map_err(|e| e.write().during(&step))?;
        let mut found = BTreeMap::new();
        // The first ones are the answers of the functions.
        for row in rows.iter().filter(|row| row.len() == 5) {
            let oid: u32 = parsed(row, 0)?;
            let (pair, stand) = wanted.iter().find(|(pair, _)| pair.to_oid == oid).ok_or_else(no_answer)?;
            let before = Stand { last_value: parsed(row, 1)?, is_called: flag(row, 2)? };
            if !flag(row, 3)? {
                return Err(changed(&pair.to, side));
            }
            found.insert(oid, (before, if row.get(4).is_some() { *stand } else { before }));
        }
        match wanted.iter().find(|(pair, _)| !found.contains_key(&pair.to_oid)) {
            // There is a sequence of this name, which is another one.
            Some((pair, _)) => Err(changed(&pair.to, side)),
            None => Ok(found),
        }
    }

    /// What only the values can tell. Drops the pairs that could not be set, and returns where the others stand.
    fn judge(&mut self, stands: &[Stand]) -> Vec<Stand> {
        let (here, there) = (self.direction.from_side(), self.direction.to_side());
        let mut kept = Vec::new();
        for (pair, stand) in std::mem::take(&mut self.pairs).into_iter().zip(stands) {
            let (rule, new) = (&pair.rule, &pair.counts.1);
            let left = rule.left(*stand);
            let holds = left == 0 || (new.min..=new.max).contains(&stand.last_value);
            let what = if !holds {
                format!(
                    "the sequence {} stands at {} on the {here}, and {} on the {there} gives values from {} to {}",
                    pair.from, stand.last_value, pair.to, new.min, new.max
                )
            } else if left == 0 && !rule.cycle {
                format!(
                    "the sequence {} has given its last value on the {here}, and there is none for {} to go on with",
                    pair.from, pair.to
                )
            } else {
                kept.push(*stand);
                self.pairs.push(pair);
                continue;
            };
            if pair.used_by.is_empty() { self.remarks.push(what) } else { self.unready.push(what) }
        }
        kept
    }

    /// Where a margin could end among rows that were put there by hand. Before the switch: it reads the tables' indexes.
    async fn look_for_rows_ahead(&mut self, old: &Client, stands: &[Stand]) -> Outcome<()> {
        let mut statements = Vec::new();
        for (no, (pair, stand)) in
            self.pairs.iter().zip(stands).enumerate().filter(|(_, (p, _))| !p.rule.cycle)
        {
            let (beyond, near, far) =
                if pair.rule.increment > 0 { (">", "min", "max") } else { ("<", "max", "min") };
            for (table, column) in &pair.unique {
                let (table, column, from) = (table.sql(), quote_ident(column), stand.last_value);
                let rows = format!("FROM {table} WHERE {column} {beyond} '{from}'::bigint");
                statements.push(format!(
                    "SELECT {no}, (SELECT {near}({column}) {rows}), (SELECT {far}({column}) {rows})"
                ));
            }
        }
        for chunk in statements.chunks(STATEMENT) {
            // Each in a transaction of its own: one keeps the locks of all of a table's partitions until its end.
            let bound = format!("SET LOCAL lock_timeout = {PATIENT_LOCK_MS}");
            let sql = format!("{bound}; {}", chunk.join(&format!("; COMMIT; BEGIN; {bound}; ")));
            let rows = transaction(old, &sql).await;
            let during = "looking for rows that stand ahead of their sequence";
            for row in rows.map_err(|e| e.read().during(during))? {
                if row.get(1).is_none() {
                    continue;
                }
                let no: usize = parsed(&row, 0)?;
                let pair = self.pairs.get_mut(no).ok_or_else(no_answer)?;
                let new = RowsAhead { nearest: parsed(&row, 1)?, farthest: parsed(&row, 2)? };
                let known = *pair.rows.get_or_insert(new);
                let nearer = pair.rule.past(new.nearest, known.nearest) > 0;
                let farther = pair.rule.past(known.farthest, new.farthest) > 0;
                pair.rows = Some(RowsAhead {
                    nearest: if nearer { new.nearest } else { known.nearest },
                    farthest: if farther { new.farthest } else { known.farthest },
                });
            }
        }
        Ok(())
    }
}

/// One statement that reads where sequences stand, and what they are by now.
fn reading((chunk, pairs): (usize, &[Pair])) -> String {
    let each = pairs.iter().enumerate().map(|(at, pair)| {
        let no = chunk * STATEMENT + at;
        format!("SELECT {no} AS no, s.tableoid, s.last_value, s.is_called FROM {} s", pair.from.sql())
    });
    format!(
        "SELECT r.no, r.last_value, r.is_called, d.seqrelid, d.seqincrement, d.seqmin, d.seqmax, d.seqcache, d.seqcycle
           FROM ({}) r JOIN pg_sequence d ON d.seqrelid = r.tableoid",
        each.collect::<Vec<_>>().join(" UNION ALL ")
    )
}

/// One statement that sets sequences that are behind. The comparison and the setting are one statement on the server, and
/// what a sequence is by now is compared first: a number or a range that has changed since sets nothing.
fn setting(wanted: &[(&Pair, Stand)]) -> String {
    let (values, each): (Vec<String>, Vec<String>) = wanted
        .iter()
        .enumerate()
        .map(|(no, (pair, stand))| {
            let Count { increment, min, max, cycle, .. } = pair.counts.1;
            let Stand { last_value, is_called } = stand;
            let value = format!(
                "({no}, {}::oid, '{last_value}'::bigint, {is_called}, '{increment}'::bigint, '{min}'::bigint,
                  '{max}'::bigint, {cycle})",
                pair.to_oid
            );
            let read =
                format!("SELECT {no} AS no, s.tableoid, s.last_value, s.is_called FROM {} s", pair.to.sql());
            (value, read)
        })
        .unzip();
    format!(
        "SELECT c.oid, c.last_value, c.is_called, c.same,
                CASE WHEN c.same AND c.behind THEN setval(c.oid::regclass, c.to_value, c.to_called) END
           FROM (SELECT w.oid, n.last_value, n.is_called, w.to_value, w.to_called,
                        w.increment = d.seqincrement AND w.min = d.seqmin AND w.max = d.seqmax AND w.cycle = d.seqcycle AS same,
                        CASE WHEN w.cycle THEN (n.last_value, n.is_called) IS DISTINCT FROM (w.to_value, w.to_called)
                             ELSE sign(w.increment::numeric) * (w.to_value - n.last_value::numeric
                                      + (w.to_called::int - n.is_called::int) * w.increment::numeric) > 0 END AS behind
                   FROM (VALUES {}) w(no, oid, to_value, to_called, increment, min, max, cycle)
                   JOIN ({}) n ON n.no = w.no AND n.tableoid = w.oid
                   JOIN pg_sequence d ON d.seqrelid = w.oid) c",
        values.join(", "),
        each.join(" UNION ALL ")
    )
}

/// What became of a transaction.
enum Failure {
    /// It was refused, and is undone.
    Refused(Fault),
    /// It was not answered.
    Unanswered(String),
}

impl Failure {
    /// Of a transaction that changes nothing.
    fn read(self) -> Fault {
        match self {
            Failure::Refused(fault) => fault,
            Failure::Unanswered(what) => Fault::retry("SEGUE-CONNECTION", what),
        }
    }

    /// Of one that may have set sequences, and may still be at it.
    fn write(self) -> Fault {
        match self {
            Failure::Refused(fault) => fault,
            Failure::Unanswered(what) => Fault::ambiguous("SEGUE-SEQUENCES-UNKNOWN", what),
        }
    }
}

/// A whole transaction in one message.
async fn transaction(client: &Client, sql: &str) -> Result<Vec<SimpleQueryRow>, Failure> {
    let sql = format!("BEGIN ISOLATION LEVEL READ COMMITTED; {sql}; COMMIT");
    let messages = match tokio::time::timeout(ANSWER, client.simple_query(&sql)).await {
        Ok(Ok(messages)) => messages,
        Ok(Err(error)) if is_lost(&error) => return Err(Failure::Unanswered(fault_of(&error).what)),
        Ok(Err(error)) => {
            let undone = client.batch_execute("ROLLBACK").await;
            undone.map_err(|e| Failure::Unanswered(fault_of(&e).what))?;
            return Err(Failure::Refused(fault_of(&error)));
        }
        Err(_) => return Err(Failure::Unanswered(format!("no answer within {} s", ANSWER.as_secs()))),
    };
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(rows.collect())
}

/// The session ended before, or while, the transaction did.
fn is_lost(error: &Error) -> bool {
    error
        .as_db_error()
        .is_none_or(|db| matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic)))
}

fn changed(sequence: &QualifiedName, side: &str) -> Fault {
    Fault::operator(
        "SEGUE-SEQUENCE-CHANGED",
        format!("the sequence {sequence} on the {side} was altered since the switch was prepared"),
        "switch again: the sequences are looked at anew",
    )
}

fn no_answer() -> Fault {
    Fault::bug("SEGUE-SEQUENCES", "a server did not answer what it was asked about sequences")
}

fn parsed<T: std::str::FromStr>(row: &SimpleQueryRow, at: usize) -> Outcome<T> {
    row.get(at).and_then(|text| text.parse().ok()).ok_or_else(no_answer)
}

fn flag(row: &SimpleQueryRow, at: usize) -> Outcome<bool> {
    match row.get(at) {
        Some("t") => Ok(true),
        Some("f") => Ok(false),
        Some(_) | None => Err(no_answer()),
    }
}
