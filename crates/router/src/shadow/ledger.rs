//! What shadow reads have found, as it grows: counters, times, and a bounded number of examples.
//!
//! It compares nothing; what it is given shows no more of the data than may be shown.

use super::Sample;
use super::report::{Mismatch, MismatchKind, MismatchSample, ShadowCounts, SlowRead};
use crate::stats::{Counter, Times};
use segue_model::switch::Side;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shapes of statements that are kept for their mismatches; more would not be read.
const MISMATCHES_MAX: usize = 100;
/// Samples of each.
const SAMPLES_MAX: usize = 3;
const SLOW_READS_MAX: usize = 10;
/// A closer look at a slow read costs four statements: no more often than this, and each shape less often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_AT_SHAPE_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Kept {
    mismatches: HashMap<u64, Mismatch>,
    not_kept: u64,
    slow_reads: Vec<SlowRead>,
    /// When each shape was looked at, of those that may not be again yet.
    looked: HashMap<u64, Instant>,
    last_look: Option<Instant>,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) equal: Counter,
    mismatched: Counter,
    order_differs: Counter,
    pub(super) order_unproven: Counter,
    pub(super) noise: Counter,
    pub(super) stale: Counter,
    pub(super) failed: Counter,
    pub(super) queue_full: Counter,
    pub(super) too_large: Counter,
    slower: Counter,
    source: Times,
    target: Times,
    kept: Mutex<Kept>,
}

impl Ledger {
    pub(super) fn add_time(&self, side: Side, took: Duration) {
        match side {
            Side::Source => self.source.add(took),
            Side::Target => self.target.add(took),
        }
    }

    pub(super) fn add_mismatch(&self, sample: &Sample, found: MismatchSample) {
        self.mismatched.add_one();
        if found.kind == MismatchKind::OrderDiffers {
            self.order_differs.add_one();
        }
        let mut kept = self.kept();
        let is_new = !kept.mismatches.contains_key(&sample.fingerprint);
        if is_new && kept.mismatches.len() >= MISMATCHES_MAX {
            kept.not_kept += 1;
            return;
        }
        if is_new {
            tracing::warn!(kind = %found.kind, shape = %sample.shape, "the sides answer a read differently");
        }
        let mismatch = kept.mismatches.entry(sample.fingerprint).or_insert_with(|| Mismatch {
            fingerprint: sample.fingerprint,
            shape: sample.shape.to_string(),
            count: 0,
            samples: Vec::new(),
        });
        mismatch.count += 1;
        if mismatch.samples.len() < SAMPLES_MAX {
            mismatch.samples.push(found);
        }
    }

    /// The other side was slow. Whether this is worth a closer look: not if ten others are worse.
    pub(super) fn may_look(&self, sample: &Sample, other: Duration) -> bool {
        self.slower.add_one();
        let lost = other.saturating_sub(sample.took);
        let now = Instant::now();
        let mut kept = self.kept();
        kept.looked.retain(|_, at| now < *at + LOOK_AT_SHAPE_EVERY);
        let is_too_soon = kept.last_look.is_some_and(|at| now < at + LOOK_EVERY)
            || kept.looked.contains_key(&sample.fingerprint);
        let is_among_worst =
            kept.slow_reads.len() < SLOW_READS_MAX || kept.slow_reads.iter().any(|slow| slow.lost() < lost);
        if is_too_soon || !is_among_worst {
            return false;
        }
        kept.last_look = Some(now);
        kept.looked.insert(sample.fingerprint, now);
        true
    }

    /// Keeps the worst ones, and of each shape the worst case.
    pub(super) fn add_slow_read(&self, slow: SlowRead) {
        let mut kept = self.kept();
        let reads = &mut kept.slow_reads;
        match reads.iter_mut().find(|known| known.fingerprint == slow.fingerprint) {
            Some(known) if known.lost() < slow.lost() => *known = slow,
            Some(_) => {}
            None => reads.push(slow),
        }
        reads.sort_by_key(|slow| std::cmp::Reverse(slow.lost()));
        reads.truncate(SLOW_READS_MAX);
    }

    pub(super) fn read(&self) -> ShadowCounts {
        let (equal, mismatched) = (self.equal.get(), self.mismatched.get());
        let kept = self.kept();
        let mut mismatches: Vec<Mismatch> = kept.mismatches.values().cloned().collect();
        mismatches.sort_by_key(|mismatch| (std::cmp::Reverse(mismatch.count), mismatch.fingerprint));
        ShadowCounts {
            compared: equal + mismatched,
            equal,
            mismatched,
            order_differs: self.order_differs.get(),
            order_unproven: self.order_unproven.get(),
            noise: self.noise.get(),
            stale: self.stale.get(),
            failed: self.failed.get(),
            queue_full: self.queue_full.get(),
            too_large: self.too_large.get(),
            slower: self.slower.get(),
            source: self.source.read(),
            target: self.target.read(),
            mismatches,
            not_kept: kept.not_kept,
            slow_reads: kept.slow_reads.clone(),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
