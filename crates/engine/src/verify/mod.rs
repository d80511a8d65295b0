//! Verify: are both sides equal, while both of them change?
//!
//! Three modes of one verification ([`Verifier::run`]): counts, digests of key ranges halved down to rows, random rows;
//! and one that never ends: rows touched by the stream ([`live`]). Whatever looks unequal is settled ([`settle`])
//! before it is called a difference, so nothing in flight is ever reported. A verification is stored range by range
//! and goes on after a kill where it was.
//!
//! Reads only. It knows no SQL, does not decide who owns the data, and mends nothing itself ([`ports::Repairer`]).

pub mod at_rest;
pub mod differences;
mod digest;
pub mod live;
pub mod passage;
pub mod ports;
mod repair;
pub mod report;
mod sample;
mod settle;
#[cfg(test)]
mod tests;

pub use settle::Settled;

use crate::fault::Fault;
use crate::ports::Outcome;
use crate::progress::Progress;
use crate::throttle::Throttle;
use at_rest::Unsettled;
use differences::Differences;
use ports::{Comparable, Cost, Item, Passage, RangeCounts, Repairer, Store, VerificationId, VerifiedRange};
use report::{DIVERGENCES_MAX, HOT_KEYS_MAX, Mode, Repair, Report, Request, TableReport};
use segue_model::divergence::Divergence;
use segue_model::key::KeyText;
use segue_model::region::Extent;
use segue_model::table::{Identity, Table, TableId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long the digest of a range should take: no snapshot is held for longer.
const RANGE_TARGET: Duration = Duration::from_millis(500);
/// Rows of a table's first range, before its speed is known …
const FIRST_RANGE_ROWS: u64 = 20_000;
/// … or fewer, so that about this much is read.
const FIRST_RANGE_BYTES: u64 = 32 << 20;
/// A range never has fewer rows than this, however slow the table is.
const RANGE_ROWS_MIN: u64 = 256;

/// Keys of differing rows that are remembered, so that no row is counted twice.
const MET_KEYS_MAX: usize = 200_000;

/// What comparing needs.
pub struct Parts<O, X, P, S, R> {
    /// The side that takes writes.
    pub owner: Arc<O>,
    /// The side that follows it.
    pub other: Arc<X>,
    /// The stream between them.
    pub passage: Arc<P>,
    /// Where results are kept.
    pub store: Arc<S>,
    /// Writes the owner's rows over differences.
    pub repairer: Arc<R>,
    /// Pause and rate; not shared with the backfill's.
    pub throttle: Arc<Throttle>,
    /// Says what is waited for.
    pub progress: Arc<Progress>,
    /// Rows that changed too often to be compared.
    pub unsettled: Unsettled,
    /// Differences found outside of a verification.
    pub differences: Differences,
}

/// Compares tables on request.
pub struct Verifier<O, X, P, S, R> {
    parts: Arc<Parts<O, X, P, S, R>>,
}

impl<O, X, P, S, R> Clone for Verifier<O, X, P, S, R> {
    fn clone(&self) -> Self {
        Verifier { parts: self.parts.clone() }
    }
}

/// A compared range on its way to the store.
struct Done {
    range: VerifiedRange,
    divergences: Vec<Divergence>,
    hot_keys: Vec<String>,
}

impl Done {
    /// Leaves out differences of rows that were met in another range: where the sides order keys differently, a row of
    /// the other side can lie in several ranges.
    fn forget_known(&mut self, met: &mut HashSet<KeyText>) {
        let before = self.divergences.len();
        let repaired = |ds: &[Divergence]| ds.iter().filter(|d| d.repaired).count() as u64;
        let repaired_before = repaired(&self.divergences);
        self.divergences.retain(|d| match &d.key {
            Some(key) if met.contains(key) => false,
            Some(key) => {
                if met.len() < MET_KEYS_MAX {
                    met.insert(key.clone());
                }
                true
            }
            None => true,
        });
        let counts = &mut self.range.counts;
        counts.divergent -= (before - self.divergences.len()) as u64;
        counts.repaired -= repaired_before - repaired(&self.divergences);
    }
}

/// The place of one table in a running verification.
struct Run<'a> {
    id: VerificationId,
    request: &'a Request,
    report: &'a watch::Sender<Report>,
}

impl<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer> Verifier<O, X, P, S, R> {
    /// A verifier over these parts.
    pub fn new(parts: Arc<Parts<O, X, P, S, R>>) -> Self {
        Verifier { parts }
    }

    /// Compares `tables`, all of which must have been copied wholly. `report` is kept up to date range by range; the
    /// final one is returned. A fault leaves what was stored, to be resumed.
    pub async fn run(
        &self,
        tables: &[Arc<Table>],
        request: &Request,
        report: &watch::Sender<Report>,
    ) -> Outcome<Report> {
        let start = Instant::now();
        let ids: Vec<TableId> = tables.iter().map(|t| t.id).collect();
        // What a count came to is in nothing that is stored of it: tables are counted again.
        let resume = request.resume && request.mode != Mode::Aggregate;
        let mut begun = self.parts.store.begin(&Request { resume, ..request.clone() }, &ids).await?;
        let divergences = std::mem::take(&mut begun.divergences);
        let empty = |t: &Arc<Table>| TableReport {
            table_id: t.id.0,
            table: t.source.to_string(),
            rows_estimated: t.estimate.rows,
            columns_not_compared: self.parts.uncompared(t),
            ..TableReport::default()
        };
        let tables_empty = tables.iter().map(empty).collect();
        report.send_replace(Report {
            mode: request.mode,
            tables: tables_empty,
            divergences,
            ..Report::default()
        });
        let run = Run { id: begun.id, request, report };
        for table in tables {
            let (done, next) = chain(begun.ranges.remove(&table.id).unwrap_or_default());
            report.send_modify(|report| {
                let Some(t) = report.table(table.id) else { return };
                done.iter().for_each(|range| t.counts.add(&range.counts));
                (t.ranges, t.ranges_resumed) = (done.len() as u64, done.len() as u64);
                t.complete = matches!(next, Next::Nothing);
                report.total();
            });
            let Next::From(lower) = next else { continue };
            let compared = self.table(&run, table, lower).await;
            compared.map_err(|fault| fault.during(format_args!("comparing {}", table.source)))?;
        }
        report.send_modify(|report| {
            report.complete = report.tables.iter().all(|t| t.complete);
            report.took_ms = start.elapsed().as_millis() as u64;
        });
        let report = report.borrow().clone();
        self.parts.store.end(begun.id, &report).await?;
        Ok(report)
    }

    async fn table(&self, run: &Run<'_>, table: &Arc<Table>, lower: Option<KeyText>) -> Outcome<()> {
        match (run.request.mode, &table.identity) {
            (Mode::Digest, Identity::Key(_)) => self.by_ranges(run, table, lower).await?,
            (Mode::Digest, Identity::WholeRow) => {
                let done = whole(&self.parts, table, run.request).await?;
                self.store(run, table, done).await?;
            }
            (Mode::Sample, _) => {
                let done = sample::sampled(&self.parts, table, run.request).await?;
                self.store(run, table, done).await?;
            }
            (Mode::Aggregate, _) => {
                let (counted, done) = sample::counted(&self.parts, table).await?;
                run.report.send_modify(|report| {
                    if let Some(t) = report.table(table.id) {
                        t.counted = Some(counted);
                    }
                });
                self.store(run, table, done).await?;
            }
        }
        run.report.send_modify(|report| {
            if let Some(t) = report.table(table.id) {
                t.complete = true;
            }
        });
        Ok(())
    }

    /// Cuts the table along the owner's key and compares several ranges at a time; stores them in the order of the cuts,
    /// so that what is stored is always the table's beginning.
    async fn by_ranges(&self, run: &Run<'_>, table: &Arc<Table>, mut lower: Option<KeyText>) -> Outcome<()> {
        let mut rows = first_range_rows(table, run.request);
        let mut tasks = JoinSet::new();
        let (mut cut, mut stored) = (0_u64, 0_u64);
        let mut waiting = BTreeMap::new();
        let mut met = HashSet::new();
        let mut all_cut = false;
        loop {
            while !all_cut && tasks.len() < run.request.ranges_at_once.max(1) {
                self.parts.throttle.admit(0, &self.parts.progress).await;
                let rest = Extent::Range { lower: lower.clone(), upper: None };
                let upper = self.parts.owner.bound_after(table, &rest, rows).await?;
                all_cut = upper.is_none();
                let range =
                    range(self.parts.clone(), table.clone(), lower, upper.clone(), run.request.clone());
                tasks.spawn(async move { (cut, range.await) });
                cut += 1;
                lower = upper;
            }
            let Some(ended) = tasks.join_next().await else { return Ok(()) };
            let (number, done) = ended.map_err(|e| {
                Fault::bug("SEGUE-TASK", format!("the comparison of a range ended unexpectedly: {e}"))
            })?;
            let (done, took) = done?;
            rows = steered(rows, &done.range.counts, took).min(run.request.range_rows_max.max(1));
            waiting.insert(number, done);
            while let Some(mut done) = waiting.remove(&stored) {
                done.forget_known(&mut met);
                self.store(run, table, done).await?;
                stored += 1;
            }
        }
    }

    async fn store(&self, run: &Run<'_>, table: &Table, done: Done) -> Outcome<()> {
        self.parts.store.verified(run.id, table.id, &done.range, &done.divergences).await?;
        // They are the verification's now: they stay open until another one finds none, and need no fence to be found.
        let keys = done.divergences.iter().filter_map(|d| d.key.clone());
        self.parts.unsettled.forget(table.id, &keys.map(Item::Key).collect::<Vec<_>>());
        run.report.send_modify(|report| {
            let room = DIVERGENCES_MAX.saturating_sub(report.divergences.len());
            report.divergences.extend(done.divergences.into_iter().take(room));
            if let Some(t) = report.table(table.id) {
                t.ranges += 1;
                t.counts.add(&done.range.counts);
                let room = HOT_KEYS_MAX.saturating_sub(t.hot_keys.len());
                t.hot_keys.extend(done.hot_keys.into_iter().take(room));
            }
            report.total();
        });
        Ok(())
    }
}

impl<O: Comparable, X: Comparable, P, S, R> Parts<O, X, P, S, R> {
    /// Columns of either side that no comparison sees.
    fn uncompared(&self, table: &Table) -> Vec<String> {
        let both = self.owner.uncompared(table).into_iter().chain(self.other.uncompared(table));
        both.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Where a table's comparison goes on.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    From(Option<KeyText>),
    Nothing,
}

/// The stored ranges that follow each other from the table's beginning, and what comes after them.
fn chain(ranges: Vec<VerifiedRange>) -> (Vec<VerifiedRange>, Next) {
    let mut by_lower: HashMap<Option<KeyText>, VerifiedRange> =
        ranges.into_iter().map(|r| (r.lower.clone(), r)).collect();
    let mut done = Vec::new();
    let mut lower = None;
    while let Some(range) = by_lower.remove(&lower) {
        lower = range.upper.clone();
        done.push(range);
        if lower.is_none() {
            return (done, Next::Nothing);
        }
    }
    (done, Next::From(lower))
}

fn first_range_rows(table: &Table, request: &Request) -> u64 {
    let row_bytes = table.estimate.bytes / table.estimate.rows.max(1);
    let rows = FIRST_RANGE_BYTES / row_bytes.max(1);
    rows.clamp(RANGE_ROWS_MIN, FIRST_RANGE_ROWS).min(request.range_rows_max.max(1))
}

/// Rows of the next range, so that its digest takes about [`RANGE_TARGET`].
fn steered(rows: u64, counts: &RangeCounts, took: Duration) -> u64 {
    let took_ms = (took.as_millis() as u64).max(1);
    let ideal = counts.rows.max(1).saturating_mul(RANGE_TARGET.as_millis() as u64) / took_ms;
    // At most doubled or halved at a time: one odd range must not make the next one huge.
    ideal.clamp(rows / 2, rows * 2).max(RANGE_ROWS_MIN)
}

/// Compares one range, settles what is unequal in it, repairs if asked to. Also returns how long its first digest took.
async fn range<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: Arc<Parts<O, X, P, S, R>>,
    table: Arc<Table>,
    lower: Option<KeyText>,
    upper: Option<KeyText>,
    request: Request,
) -> Outcome<(Done, Duration)> {
    let mut counts = RangeCounts::default();
    let within = Extent::Range { lower: lower.clone(), upper: upper.clone() };
    let suspects = parts.suspects(&table, within, &mut counts).await?;
    let (divergences, hot_keys) = conclude(&parts, &table, suspects.items, &request, &mut counts).await?;
    let range = VerifiedRange { lower, upper, counts };
    Ok((Done { range, divergences, hot_keys }, suspects.first_digest_took))
}

/// Compares a table without a key.
async fn whole<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: &Parts<O, X, P, S, R>,
    table: &Table,
    request: &Request,
) -> Outcome<Done> {
    let mut counts = RangeCounts::default();
    parts.throttle.admit(0, &parts.progress).await;
    let mut items = parts.image_suspects(table, &mut counts).await?;
    if !items.is_empty() {
        // Rows in flight have had their time.
        items = parts.image_suspects(table, &mut RangeCounts::default()).await?;
    }
    let (divergences, hot_keys) = conclude(parts, table, items, request, &mut counts).await?;
    Ok(Done { range: VerifiedRange { lower: None, upper: None, counts }, divergences, hot_keys })
}

/// Settles suspects and, if asked to, repairs what is confirmed.
async fn conclude<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: &Parts<O, X, P, S, R>,
    table: &Table,
    items: Vec<Item>,
    request: &Request,
    counts: &mut RangeCounts,
) -> Outcome<(Vec<Divergence>, Vec<String>)> {
    counts.unsettled += items.len() as u64;
    let mut settled = parts.settle(table, items, request.repair == Repair::DryRun, counts).await?;
    counts.hot += settled.hot.len() as u64;
    counts.divergent += settled.divergent.len() as u64;
    if request.repair == Repair::Write && !settled.divergent.is_empty() {
        repair::repair(parts, table, &mut settled, counts).await?;
        counts.repaired += settled.divergent.iter().filter(|(_, d)| d.repaired).count() as u64;
    }
    let name = |item: &Item| match item {
        Item::Key(key) => key.to_string(),
        Item::Image(hash) => format!("rows with hash {hash}"),
    };
    let hot_keys = settled.hot.iter().take(HOT_KEYS_MAX).map(name).collect();
    Ok((settled.divergent.into_iter().map(|(_, d)| d).collect(), hot_keys))
}

/// Awaits `call` and adds what it cost.
async fn metered<T>(
    cost: &mut Cost,
    call: impl Future<Output = Outcome<T>>,
    of: impl FnOnce(&T) -> Cost,
) -> Outcome<T> {
    let start = Instant::now();
    let out = call.await;
    cost.ms += start.elapsed().as_millis() as u64;
    if let Ok(out) = &out {
        cost.add(of(out));
    }
    out
}
