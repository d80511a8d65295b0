//! What is happening, for people and gates: counters that the tasks raise and one snapshot that others read.
//!
//! Nothing here decides anything.

use segue_model::position::Position;
use segue_model::table::{Table, TableId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How far the stream has been applied, durably.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Everything that ends at or before it is durable on the target.
    pub position: Position,
    /// The highest signal among it.
    pub signal: u64,
}

/// Counters of one table's copy.
#[derive(Debug, Default)]
struct TableCounters {
    name: String,
    rows: AtomicU64,
    bytes: AtomicU64,
    regions: AtomicU64,
    complete: std::sync::atomic::AtomicBool,
    rows_estimated: u64,
}

/// Signals that are remembered while none of them arrives; the oldest matters.
const SIGNALS_MAX: usize = 1_000;
/// Keeps at most this many lag samples, one for each transaction.
const LAG_SAMPLES_MAX: usize = 100_000;

/// What an operator should know, over all runs of one process.
#[derive(Debug, Default)]
pub struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// Says it, once.
    pub fn say(&self, what: String) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains(&what) {
            tracing::warn!("{what}");
            said.push(what);
        }
    }

    /// Takes back what does not hold any more.
    pub fn take_back(&self, what: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|said| said != what);
    }

    /// All that was said.
    pub fn said(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counters of one running migration. Shared by its tasks.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    tables: BTreeMap<TableId, TableCounters>,
    transactions: AtomicU64,
    changes: AtomicU64,
    dropped: AtomicU64,
    stream_bytes: AtomicU64,
    replays: AtomicU64,
    received: AtomicU64,
    arrived: AtomicU64,
    /// Received and not yet durable: (end, committed at µs), oldest first.
    pending: Mutex<VecDeque<(Position, u64)>>,
    /// Signals that were committed for this and are not known to be durable yet: (number, when in µs), oldest first.
    signals: Mutex<VecDeque<(u64, u64)>>,
    applied: watch::Sender<Applied>,
    /// (when applied, commit-to-durable in µs)
    lags: Mutex<VecDeque<(Instant, u64)>>,
    waits: Mutex<BTreeMap<&'static str, Wait>>,
}

/// Something that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Who waits: `stream`, `copy`, `birth`…
    pub who: String,
    /// For what, and why.
    pub reason: String,
    /// Since when, in milliseconds before now.
    pub since_ms: u64,
}

/// One table's copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProgress {
    /// Source name.
    pub table: String,
    /// Rows copied and committed.
    pub rows: u64,
    /// Bytes copied and committed.
    pub bytes: u64,
    /// Regions committed.
    pub regions: u64,
    /// Rows the source's statistics promise.
    pub rows_estimated: u64,
    /// Every region has been copied.
    pub complete: bool,
}

/// All counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Since this process took over, in milliseconds.
    pub running_ms: u64,
    /// Copy, by table, biggest first.
    pub tables: Vec<TableProgress>,
    /// Transactions applied.
    pub transactions: u64,
    /// Row changes applied.
    pub changes: u64,
    /// Row changes dropped because a copy has them.
    pub dropped: u64,
    /// Bytes of row images received.
    pub stream_bytes: u64,
    /// Batches replayed row by row.
    pub replays: u64,
    /// Position received.
    pub received: Position,
    /// Position durable on the target.
    pub applied: Position,
    /// Bytes received and not yet durable on the target.
    pub lag_bytes: u64,
    /// Age of the oldest change known not to be durable on the target: the oldest that was received, or that Segue itself
    /// has committed ([`Progress::signalled`]) and that may not have been sent. 0 when there is none.
    pub lag_ms: u64,
    /// Commit on the source to durable on the target over the recent minute: median, 99th percentile, maximum.
    pub latency_ms: [f64; 3],
    /// What is waited for.
    pub waits: Vec<Wait>,
}

/// Microseconds since the Unix epoch, now.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

impl Progress {
    /// Counters at zero for these tables, starting from an applied position.
    pub fn new<'a>(tables: impl IntoIterator<Item = &'a Table>, applied: Position) -> Self {
        let counters = |t: &Table| TableCounters {
            name: t.source.to_string(),
            rows_estimated: t.estimate.rows,
            ..TableCounters::default()
        };
        Progress {
            started: Instant::now(),
            tables: tables.into_iter().map(|t| (t.id, counters(t))).collect(),
            transactions: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            stream_bytes: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            received: AtomicU64::new(applied.0),
            pending: Mutex::default(),
            signals: Mutex::default(),
            applied: watch::Sender::new(Applied { position: applied, signal: 0 }),
            lags: Mutex::default(),
            waits: Mutex::default(),
        }
    }

    /// A region of `table` is committed on the target.
    pub fn region_copied(&self, table: TableId, rows: u64, bytes: u64) {
        if let Some(t) = self.tables.get(&table) {
            t.rows.fetch_add(rows, Ordering::Relaxed);
            t.bytes.fetch_add(bytes, Ordering::Relaxed);
            t.regions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every region of `table` is committed on the target.
    pub fn table_complete(&self, table: TableId) {
        if let Some(t) = self.tables.get(&table) {
            t.complete.store(true, Ordering::Relaxed);
        }
    }

    /// A transaction up to `position` has arrived, committed on the source at `at_us`.
    pub fn received(&self, position: Position, bytes: u64, at_us: u64) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        self.received.fetch_max(position.0, Ordering::Relaxed);
        self.stream_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).push_back((position, at_us));
    }

    /// A signal was committed where the stream comes from. Until it arrives nobody can say that the stream is not behind,
    /// however little of it is known here: the server may not have sent it.
    pub fn signalled(&self, signal: u64) {
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        if signals.len() < SIGNALS_MAX && self.applied.borrow().signal < signal {
            signals.push_back((signal, now_us()));
        }
    }

    /// Row changes were dropped because a copy has them.
    pub fn dropped(&self, changes: u64) {
        self.dropped.fetch_add(changes, Ordering::Relaxed);
    }

    /// A batch had to be replayed row by row.
    pub fn replayed(&self) {
        self.replays.fetch_add(1, Ordering::Relaxed);
    }

    /// A batch is durable: its counts, its place, and when its transactions were committed on the source (µs).
    pub fn applied(&self, place: Applied, changes: u64, committed_at_us: &[u64]) {
        self.transactions.fetch_add(committed_at_us.len() as u64, Ordering::Relaxed);
        self.changes.fetch_add(changes, Ordering::Relaxed);
        let (now, now_us) = (Instant::now(), now_us());
        let mut lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
        for at in committed_at_us {
            if lags.len() >= LAG_SAMPLES_MAX {
                lags.pop_front();
            }
            lags.push_back((now, now_us.saturating_sub(*at)));
        }
        drop(lags);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while pending.front().is_some_and(|(end, _)| *end <= place.position) {
            pending.pop_front();
        }
        drop(pending);
        self.applied.send_modify(|applied| {
            applied.position = applied.position.max(place.position);
            applied.signal = applied.signal.max(place.signal);
        });
        // After that: one that is noted meanwhile is known to have arrived, or is found here.
        let mut signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        while signals.front().is_some_and(|(signal, _)| *signal <= place.signal) {
            signals.pop_front();
        }
    }

    /// When the oldest change that is not durable yet was committed, by its server's clock, in microseconds since the Unix
    /// epoch.
    pub fn oldest_us(&self) -> Option<u64> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).front().map(|(_, at_us)| *at_us)
    }

    /// Grows when a transaction has arrived, and again when it is known to be durable.
    pub fn moved(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed) + self.transactions.load(Ordering::Relaxed)
    }

    /// Watches what is durable on the target.
    pub fn watch_applied(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// Returns when a signal has been applied, durably.
    pub async fn passed(&self, signal: u64) {
        // Never an error: the sender is ours.
        let _ = self.watch_applied().wait_for(|applied| applied.signal >= signal).await;
    }

    /// Says what `who` waits for, or that it no longer waits. The beginning of an unchanged wait is kept.
    pub fn waiting(&self, who: &'static str, reason: Option<String>) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reason) = reason else {
            waits.remove(who);
            return;
        };
        let since_ms = now_us() / 1000;
        let wait =
            waits.entry(who).or_insert_with(|| Wait { who: who.to_owned(), reason: String::new(), since_ms });
        wait.reason = reason;
    }

    /// All counters now.
    pub fn snapshot(&self) -> Snapshot {
        let load = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let applied = *self.applied.borrow();
        let received = Position(load(&self.received)).max(applied.position);
        let now_ms = now_us() / 1000;
        let lag_bytes = received.bytes_since(applied.position);
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest_pending = pending.front().map(|(_, at_us)| *at_us);
        drop(pending);
        let signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest_us = oldest_pending.into_iter().chain(signals.front().map(|(_, at_us)| *at_us)).min();
        drop(signals);
        let lag_ms = oldest_us.map_or(0, |at_us| now_ms.saturating_sub(at_us / 1000));
        let waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tables: Vec<TableProgress> = self
            .tables
            .values()
            .map(|t| TableProgress {
                table: t.name.clone(),
                rows: load(&t.rows),
                bytes: load(&t.bytes),
                regions: load(&t.regions),
                rows_estimated: t.rows_estimated,
                complete: t.complete.load(Ordering::Relaxed),
            })
            .collect();
        tables.sort_by(|a, b| (b.rows_estimated, &a.table).cmp(&(a.rows_estimated, &b.table)));
        Snapshot {
            running_ms: self.started.elapsed().as_millis() as u64,
            tables,
            transactions: load(&self.transactions),
            changes: load(&self.changes),
            dropped: load(&self.dropped),
            stream_bytes: load(&self.stream_bytes),
            replays: load(&self.replays),
            received,
            applied: applied.position,
            lag_bytes,
            lag_ms,
            latency_ms: self.latency_ms(),
            waits: waits
                .values()
                .map(|w| Wait { since_ms: now_ms.saturating_sub(w.since_ms), ..w.clone() })
                .collect(),
        }
    }

    /// Median, 99th percentile and maximum of commit-to-durable over the recent minute, in ms.
    fn latency_ms(&self) -> [f64; 3] {
        let lags = self.lags.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |(at, us): &(Instant, u64)| (at.elapsed() < Duration::from_secs(60)).then_some(*us);
        let mut lags: Vec<u64> = lags.iter().filter_map(recent).collect();
        lags.sort_unstable();
        let at = |share: f64| {
            lags.get(((lags.len() as f64 - 1.0) * share) as usize).map_or(0.0, |us| *us as f64 / 1000.0)
        };
        [at(0.5), at(0.99), at(1.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_has_not_arrived_is_lag_whatever_was_received() {
        let progress = Progress::new([], Position(1));
        progress.signalled(7);
        progress.signalled(8);
        std::thread::sleep(Duration::from_millis(20));
        assert!(progress.snapshot().lag_ms >= 20);
        progress.applied(Applied { position: Position(2), signal: 7 }, 0, &[]);
        assert!(progress.snapshot().lag_ms >= 20, "the later one is still on its way");
        progress.applied(Applied { position: Position(3), signal: 8 }, 0, &[]);
        assert_eq!(progress.snapshot().lag_ms, 0);
        progress.signalled(8);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(progress.snapshot().lag_ms, 0, "it had arrived before it was known here");
    }
}
