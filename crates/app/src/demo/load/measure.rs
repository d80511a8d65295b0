//! What the shop's clients measure: how long transactions took, errors by kind, and what was noticed around a hand-over.
//!
//! It counts and does not judge; what a hand-over is, it does not know.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// More kinds of errors than this fill no report.
const ERROR_KINDS_MAX: usize = 50;
/// Acknowledgements that an open window remembers one by one: some minutes of the demo's load.
const WINDOW_MAX: usize = 200_000;

/// Errors by kind; each is a transaction that did not happen, or a connection that could not be made.
pub(in crate::demo) type Errors = BTreeMap<String, u64>;

fn count(errors: &mut Errors, kind: &str) {
    if let Some(times) = errors.get_mut(kind) {
        *times += 1;
    } else if errors.len() < ERROR_KINDS_MAX {
        errors.insert(kind.to_owned(), 1);
    }
}

/// Stale reads that are told one by one.
const STALE_SHOWN_MAX: usize = 5;

/// What came of the reads that are transactions of their own.
#[derive(Debug, Default, Clone)]
pub(in crate::demo) struct Browsing {
    /// Reads that were answered, those for what was written among them.
    pub(in crate::demo) reads: u64,
    /// Reads of a row that the same visitor had changed before.
    pub(in crate::demo) read_back: u64,
    /// How many of them did not show that.
    pub(in crate::demo) stale: u64,
    /// The first of those, in words.
    pub(in crate::demo) stale_shown: Vec<String>,
    /// How long they all took.
    pub(in crate::demo) durations: Durations,
}

impl Browsing {
    fn add(&mut self, took: Duration, found: Found) {
        self.reads += 1;
        self.durations.add(took);
        self.read_back += u64::from(found != Found::Page);
        if let Found::Stale(what) = found {
            self.stale += 1;
            self.show(what);
        }
    }

    fn show(&mut self, what: String) {
        if self.stale_shown.len() < STALE_SHOWN_MAX {
            self.stale_shown.push(what);
        }
    }

    fn merge(&mut self, other: Self) {
        self.reads += other.reads;
        self.read_back += other.read_back;
        self.stale += other.stale;
        self.durations.merge(&other.durations);
        other.stale_shown.into_iter().for_each(|what| self.show(what));
    }
}

/// What a read came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A page of the shop.
    Page,
    /// The visitor's own change.
    Written,
    /// Not the visitor's own change: which one, and what was there.
    Stale(String),
}

/// What the load went through, as its clients saw it.
#[derive(Debug, Default, Clone)]
pub(in crate::demo) struct Tally {
    /// How long acknowledged transactions took.
    pub(in crate::demo) durations: Durations,
    /// What was read besides.
    pub(in crate::demo) browsing: Browsing,
    /// What went wrong.
    pub(in crate::demo) errors: Errors,
}

impl Tally {
    pub(super) fn count(&mut self, kind: &str) {
        count(&mut self.errors, kind);
    }

    pub(super) fn browsed(&mut self, took: Duration, found: Found) {
        self.browsing.add(took, found);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.durations.merge(&other.durations);
        self.browsing.merge(other.browsing);
        for (kind, times) in other.errors {
            *self.errors.entry(kind).or_default() += times;
        }
    }
}

/// What all clients notice from one moment to another.
#[derive(Debug, Default)]
pub(super) struct Window {
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    opened: Instant,
    /// When each transaction was acknowledged, and how long after its first try.
    acknowledged: Vec<(Instant, Duration)>,
    reads: Vec<Duration>,
    stale: u64,
    errors: Errors,
}

impl Window {
    pub(super) fn open(&self) {
        let seen = Seen::from(Instant::now());
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }

    pub(super) fn acknowledged(&self, took: Duration) {
        if let Some(seen) = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
            && seen.acknowledged.len() < WINDOW_MAX
        {
            seen.acknowledged.push((Instant::now(), took));
        }
    }

    pub(super) fn browsed(&self, took: Duration, found: &Found) {
        if let Some(seen) = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
            && seen.reads.len() < WINDOW_MAX
        {
            seen.reads.push(took);
            seen.stale += u64::from(matches!(found, Found::Stale(_)));
        }
    }

    pub(super) fn failed(&self, kind: &str) {
        if let Some(seen) = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
            count(&mut seen.errors, kind);
        }
    }

    /// Closes it; what was noticed meanwhile.
    pub(super) fn close(&self) -> Noticed {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        seen.map(|seen| seen.noticed(Instant::now())).unwrap_or_default()
    }
}

impl Seen {
    fn from(opened: Instant) -> Seen {
        Seen { opened, acknowledged: Vec::new(), reads: Vec::new(), stale: 0, errors: Errors::new() }
    }

    fn noticed(self, closed: Instant) -> Noticed {
        // The ends count: clients who never write again have noticed most of all.
        let mut moments = vec![self.opened, closed];
        moments.extend(self.acknowledged.iter().map(|(at, _)| *at));
        moments.sort_unstable();
        let gaps = moments.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0]));
        let mut latencies: Vec<Duration> = self.acknowledged.iter().map(|(_, took)| *took).collect();
        latencies.sort_unstable();
        let mut reads = self.reads;
        reads.sort_unstable();
        let (gap, stale, errors) = (gaps.max().unwrap_or_default(), self.stale, self.errors);
        Noticed { gap, latencies, reads, stale, errors }
    }
}

/// What clients noticed while something happened.
#[derive(Debug, Default, Clone)]
pub(in crate::demo) struct Noticed {
    /// The longest time in which no client's write was acknowledged.
    pub(in crate::demo) gap: Duration,
    /// Ascending; each from the first try of a transaction until it was acknowledged, wherever that was.
    latencies: Vec<Duration>,
    /// Ascending: how long reads took that are transactions of their own.
    reads: Vec<Duration>,
    /// Of these, the ones that did not show what their visitor had written.
    pub(in crate::demo) stale: u64,
    /// What went wrong meanwhile.
    pub(in crate::demo) errors: Errors,
}

impl Noticed {
    /// All of them as one; its gap is the longest.
    pub(in crate::demo) fn together<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for one in all {
            sum.gap = sum.gap.max(one.gap);
            sum.latencies.extend(&one.latencies);
            sum.reads.extend(&one.reads);
            sum.stale += one.stale;
            for (kind, times) in &one.errors {
                *sum.errors.entry(kind.clone()).or_default() += times;
            }
        }
        sum.latencies.sort_unstable();
        sum.reads.sort_unstable();
        sum
    }

    /// The latency that `share` (0 to 1) of all transactions do not exceed; `None` without any.
    pub(in crate::demo) fn latency(&self, share: f64) -> Option<Duration> {
        nearest_rank(&self.latencies, share)
    }

    /// As [`Noticed::latency`], of reads that are transactions of their own.
    pub(in crate::demo) fn read_latency(&self, share: f64) -> Option<Duration> {
        nearest_rank(&self.reads, share)
    }

    /// As a hand-over of the documentation's demo is noticed.
    pub(in crate::demo) fn example() -> Self {
        let latencies = (1..=1_000).map(|n| Duration::from_micros(if n < 995 { 1_800 } else { 61_000 }));
        let told = ("told to write to the other server (SQLSTATE 25006)".to_owned(), 16);
        let reads = (1..=200).map(|n| Duration::from_micros(if n < 198 { 900 } else { 4_100 }));
        Self {
            gap: Duration::from_millis(38),
            latencies: latencies.collect(),
            reads: reads.collect(),
            stale: 0,
            errors: Errors::from([told]),
        }
    }
}

fn nearest_rank(ascending: &[Duration], share: f64) -> Option<Duration> {
    let rank = (ascending.len() as f64 * share).ceil() as usize;
    ascending.get(rank.max(1) - 1).copied()
}

/// Durations, counted by their number of bits in microseconds and three bits below: precise to an eighth.
#[derive(Debug, Clone)]
pub(in crate::demo) struct Durations {
    buckets: Vec<u64>,
}

/// Up to 2^40 µs, which is twelve days.
const BUCKETS: usize = 40 * 8;

impl Default for Durations {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS] }
    }
}

impl Durations {
    pub(super) fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(8);
        let bits = micros.ilog2();
        let bucket = (bits as usize) * 8 + ((micros >> (bits - 3)) as usize & 7);
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        for (mine, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += more;
        }
    }

    /// The duration that `share` (0 to 1) of all stay below; `None` without any.
    pub(in crate::demo) fn percentile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.buckets.iter().sum();
        let rank = ((all as f64 * share).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        // The bucket's upper end.
        let (bits, eighth) = (bucket / 8, bucket as u64 % 8);
        Some(Duration::from_micros((8 + eighth + 1) << bits.saturating_sub(3)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_precise_to_an_eighth() {
        let mut durations = Durations::default();
        assert_eq!(durations.percentile(0.5), None);
        (1..=1_000).for_each(|ms| durations.add(Duration::from_millis(ms)));
        for (share, ms) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let found = durations.percentile(share).unwrap().as_secs_f64() * 1_000.0;
            assert!(found >= ms && found <= ms * 1.13, "{share}: {found}");
        }
    }

    #[test]
    fn of_stale_reads_each_is_counted_and_the_first_are_told() {
        let mut tally = Tally::default();
        let ms = Duration::from_millis(1);
        tally.browsed(ms, Found::Page);
        tally.browsed(ms, Found::Written);
        (0..STALE_SHOWN_MAX).for_each(|n| tally.browsed(ms, Found::Stale(n.to_string())));
        let mut all = tally.clone();
        all.add(tally);
        let Browsing { reads, read_back, stale, stale_shown, .. } = all.browsing;
        assert_eq!((reads, read_back, stale, stale_shown.len()), (14, 12, 10, STALE_SHOWN_MAX));
    }

    #[test]
    fn a_window_knows_the_longest_time_without_an_acknowledgement_also_at_its_ends() {
        let opened = Instant::now();
        let ms = Duration::from_millis;
        let noticed = |acknowledged: &[u64], closed| {
            let acknowledged = acknowledged.iter().map(|at| (opened + ms(*at), ms(2))).collect();
            Seen { acknowledged, ..Seen::from(opened) }.noticed(opened + ms(closed))
        };
        assert_eq!(noticed(&[10, 50, 60], 70).gap, ms(40));
        // Clients do not come in their order.
        assert_eq!(noticed(&[60, 10, 50], 70).gap, ms(40));
        assert_eq!(noticed(&[10, 20], 500).gap, ms(480), "nobody wrote again");
        assert_eq!(noticed(&[], 500).gap, ms(500), "nobody wrote at all");
        assert_eq!(noticed(&[], 500).latency(0.5), None);
    }

    #[test]
    fn a_window_tells_only_what_happened_while_it_was_open() {
        let window = Window::default();
        window.acknowledged(Duration::from_secs(9));
        window.failed("before");
        window.browsed(Duration::from_secs(9), &Found::Page);
        window.open();
        for ms in 1..=100 {
            window.acknowledged(Duration::from_millis(ms));
        }
        window.failed("meanwhile");
        window.failed("meanwhile");
        window.browsed(Duration::from_millis(3), &Found::Stale("order 7".into()));
        window.browsed(Duration::from_millis(2), &Found::Written);
        let noticed = window.close();
        window.failed("after");
        let latency = [0.0, 0.5, 0.99, 1.0].map(|share| noticed.latency(share).unwrap().as_millis());
        assert_eq!(latency, [1, 50, 99, 100]);
        assert_eq!(noticed.errors, Errors::from([("meanwhile".to_owned(), 2)]));
        let both = Noticed::together([&noticed, &noticed]);
        assert_eq!((both.latencies.len(), both.errors["meanwhile"]), (200, 4));
        assert_eq!((both.reads.len(), both.stale), (4, 2));
        assert_eq!(noticed.read_latency(1.0), Some(Duration::from_millis(3)));
        assert_eq!(window.close().latency(1.0), None, "it is closed");
    }
}
