//! Counters, for people and for gates. Nothing in the router decides by them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened since the router began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sessions: Counter,
    pub(crate) refused_logins: Counter,
    pub(crate) connects: Counter,
    pub(crate) exchanges: Counter,
    pub(crate) pins: Counter,
    pub(crate) parked: Counter,
    pub(crate) repeated: Counter,
    pub(crate) queue_timeouts: Counter,
    pub(crate) reads: Counter,
    pub(crate) reads_too_early: Counter,
    pub(crate) reads_not_admitted: Counter,
    pub(crate) reads_failed: Counter,
    pub(crate) reads_repeated: Counter,
    pub(crate) reads_returned: Counter,
}

/// [`Counters`], read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Clients that logged in.
    pub sessions: u64,
    /// Clients that did not get in.
    pub refused_logins: u64,
    /// Server connections that were opened.
    pub connects: u64,
    /// Sessions whose server connection was exchanged for one on another owner.
    pub exchanges: u64,
    /// Sessions that were bound to their server connection.
    pub pins: u64,
    /// Transactions that waited in a hold.
    pub parked: u64,
    /// Statements that the fence refused and that were sent again.
    pub repeated: u64,
    /// Transactions that got no server connection in time.
    pub queue_timeouts: u64,
    /// Transactions that the follower was asked to serve.
    pub reads: u64,
    /// Reads that the owner served because the follower did not show yet what their session had seen.
    pub reads_too_early: u64,
    /// Reads that the owner served because the follower had failed before.
    pub reads_not_admitted: u64,
    /// Times that the follower did not answer, not in time, or refused what the owner answered.
    pub reads_failed: u64,
    /// Reads that the owner answered after the follower did not.
    pub reads_repeated: u64,
    /// Transactions of reads that went on with the owner, at a statement that may be more than a read.
    pub reads_returned: u64,
}

impl Counters {
    pub(crate) fn read(&self) -> Counts {
        Counts {
            sessions: self.sessions.get(),
            refused_logins: self.refused_logins.get(),
            connects: self.connects.get(),
            exchanges: self.exchanges.get(),
            pins: self.pins.get(),
            parked: self.parked.get(),
            repeated: self.repeated.get(),
            queue_timeouts: self.queue_timeouts.get(),
            reads: self.reads.get(),
            reads_too_early: self.reads_too_early.get(),
            reads_not_admitted: self.reads_not_admitted.get(),
            reads_failed: self.reads_failed.get(),
            reads_repeated: self.reads_repeated.get(),
            reads_returned: self.reads_returned.get(),
        }
    }
}

/// Buckets of one power of two: a time is known to an eighth of itself.
const STEPS: usize = 8;
/// Powers of two of microseconds that are told apart: up to 19 hours.
const BUCKETS: usize = STEPS * 34;

/// Times that are measured now; whoever adds one waits for nobody.
#[derive(Debug)]
pub(crate) struct Times {
    buckets: [AtomicU64; BUCKETS],
    max_us: AtomicU64,
}

impl Default for Times {
    fn default() -> Times {
        Times { buckets: std::array::from_fn(|_| AtomicU64::new(0)), max_us: AtomicU64::new(0) }
    }
}

impl Times {
    pub(crate) fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Histogram {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        Histogram { counts, max_us: self.max_us.load(Ordering::Relaxed) }
    }
}

/// Which bucket holds a time; the last one holds everything longer, too.
fn bucket(us: u64) -> usize {
    let Some(power) = us.checked_ilog2().filter(|power| *power >= 3) else {
        return us as usize;
    };
    // The three bits behind the leading one tell the step.
    let step = (us >> (power - 3)) as usize - STEPS;
    ((power as usize - 2) * STEPS + step).min(BUCKETS - 1)
}

/// The longest time that a bucket holds.
fn longest_us(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let (power, step) = (bucket / STEPS + 2, bucket % STEPS);
    (((STEPS + step + 1) as u64) << (power - 3)) - 1
}

/// How long something took, over many times; each is known to an eighth of itself.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    max_us: u64,
}

// Hundreds of buckets tell a reader less than these.
impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, p50, p99, max) = (self.count(), self.p50(), self.p99(), self.max());
        write!(f, "Histogram {{ count: {count}, p50: {p50:?}, p99: {p99:?}, max: {max:?} }}")
    }
}

impl Histogram {
    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// So long took `percent` of them at most; zero where there is none.
    pub fn percentile(&self, percent: u8) -> Duration {
        let rank = (self.count() * u64::from(percent)).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        Duration::from_micros(found.map_or(0, longest_us).min(self.max_us))
    }

    /// Half of them took at most so long.
    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    /// All but one in a hundred took at most so long.
    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    /// The longest, exactly.
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.max_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_times_there_is_nothing_to_tell() {
        let none = Times::default().read();
        assert_eq!((none.count(), none.p50(), none.max()), (0, Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn half_and_nearly_all_are_told_apart() {
        let times = Times::default();
        (0..98).for_each(|_| times.add(Duration::from_micros(100)));
        (0..2).for_each(|_| times.add(Duration::from_millis(70)));
        let read = times.read();
        assert_eq!((read.count(), read.max()), (100, Duration::from_millis(70)));
        assert!((100..=112).contains(&read.p50().as_micros()), "{:?}", read.p50());
        assert_eq!(read.p99(), Duration::from_millis(70), "no bucket reaches beyond the longest");
    }

    #[test]
    fn what_is_longer_than_any_bucket_is_counted_too() {
        let times = Times::default();
        times.add(Duration::from_secs(u64::from(u32::MAX)));
        assert_eq!(times.read().count(), 1);
    }

    proptest! {
        #[test]
        fn a_bucket_holds_a_time_to_an_eighth(us in 0..1u64 << 36) {
            let longest = longest_us(bucket(us));
            prop_assert!(us <= longest && longest - us <= us / 8, "{} is in a bucket up to {}", us, longest);
            prop_assert!(bucket(longest + 1) > bucket(us) || bucket(us) == BUCKETS - 1);
        }
    }
}
