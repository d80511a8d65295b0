//! The shop's customers: clients that write all the time, and remember what was acknowledged.
//!
//! The pace is fixed and far below what a server can take, because the load stands for an application, not for a
//! benchmark. All that it knows of a migration is a second address, for when a server says that writes go elsewhere.

mod memory;
mod oracle;
mod session;
mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

pub(super) use oracle::{Oracle, Verdict};

use super::shop::Size;
use memory::Memory;
use session::Session;
use transactions::{End, Work};

/// A stand-still of the source shows in the report as errors; hammering it would not mend it.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// Between the two servers while neither takes writes.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(10);
/// More kinds of errors than this fill no report.
const ERROR_KINDS_MAX: usize = 50;

/// How many clients there are, and how many transactions a second all of them start together, at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) clients: u16,
    pub(super) per_second: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { clients: 8, per_second: 600 }
    }
}

/// A load that is going on; dropping it ends it without an answer.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<(Memory, Tally)>>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    gap: Gap,
    /// Whether the writes are changing hands: what clients notice of it is counted by itself.
    is_moving: AtomicBool,
}

/// The longest time without an acknowledged write.
#[derive(Debug)]
struct Gap {
    began: Instant,
    last_us: AtomicU64,
    longest_us: AtomicU64,
}

impl Default for Gap {
    fn default() -> Self {
        Gap { began: Instant::now(), last_us: AtomicU64::new(0), longest_us: AtomicU64::new(0) }
    }
}

impl Gap {
    fn acknowledged(&self) {
        let now_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let last_us = self.last_us.fetch_max(now_us, Ordering::Relaxed);
        self.longest_us.fetch_max(now_us.saturating_sub(last_us), Ordering::Relaxed);
    }

    /// The longest since it was last asked for.
    fn take(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }
}

/// What the load went through, as its clients saw it.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    /// How long acknowledged transactions took.
    pub(super) durations: Durations,
    /// The same while the writes changed hands, from the first try on.
    pub(super) moving: Durations,
    /// Errors by kind; each is a transaction that did not happen, or a connection that could not be made.
    pub(super) errors: BTreeMap<String, u64>,
}

/// The answer of a load that was stopped.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) oracle: Oracle,
    pub(super) tally: Tally,
    pub(super) lasted: Duration,
}

impl Load {
    /// Clients that write to the first of `urls` until it tells them to go to the other one.
    pub(super) fn start(urls: [String; 2], size: Size, pace: Pace) -> Self {
        let shared = Arc::<Shared>::default();
        let clients = (1..=pace.clients)
            .map(|number| {
                let client = Client {
                    urls: urls.clone(),
                    at: 0,
                    refused_since: None,
                    size,
                    memory: Memory::new(number.into(), pace.clients.into()),
                    tally: Tally::default(),
                    rng: StdRng::from_os_rng(),
                    shared: Arc::clone(&shared),
                };
                let every = Duration::from_secs(1) * pace.clients.into() / pace.per_second.max(1);
                tokio::spawn(client.work(every))
            })
            .collect();
        Self { shared, clients, started: Instant::now() }
    }

    /// The writes begin to change hands, or have done so. Returns the longest time without an acknowledged write since
    /// the last call.
    pub(super) fn moving(&self, is_moving: bool) -> Duration {
        self.shared.is_moving.store(is_moving, Ordering::Relaxed);
        self.shared.gap.take()
    }

    /// Transactions acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Since the start.
    pub(super) fn per_second(&self) -> u64 {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        (self.acknowledged() as f64 / seconds) as u64
    }

    /// Lets each client end its transaction, and collects what they know.
    pub(super) async fn stop(mut self) -> Loaded {
        self.shared.stop.store(true, Ordering::Relaxed);
        let lasted = self.started.elapsed();
        let mut memories = Vec::new();
        let mut tally = Tally::default();
        for client in std::mem::take(&mut self.clients) {
            match client.await {
                Ok((memory, of_client)) => {
                    memories.push(memory);
                    tally.add(of_client);
                }
                // What it knew is lost with it: that must not look like a clean end.
                Err(error) => tally.count(format!("a client of the load broke down: {error}")),
            }
        }
        Loaded { oracle: Oracle::new(memories), tally, lasted }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

struct Client {
    urls: [String; 2],
    /// Which of them takes the writes, as far as the client knows.
    at: usize,
    /// Since when it has been told to go elsewhere.
    refused_since: Option<Instant>,
    size: Size,
    memory: Memory,
    tally: Tally,
    rng: StdRng,
    shared: Arc<Shared>,
}

impl Client {
    async fn work(mut self, every: Duration) -> (Memory, Tally) {
        let mut tick = tokio::time::interval(every);
        // A slow server is not paid back with a burst.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.is_stopped() {
            let mut goes_elsewhere = false;
            match Session::open(&self.urls[self.at]).await {
                Ok(mut session) => {
                    while !self.is_stopped() && !session.is_closed() && !goes_elsewhere {
                        if self.refused_since.is_none() {
                            tick.tick().await;
                        }
                        goes_elsewhere = self.transaction(&mut session).await;
                    }
                }
                Err(error) => self.tally.count(error.to_string()),
            }
            if goes_elsewhere {
                self.at = 1 - self.at;
                tokio::time::sleep(ELSEWHERE_PAUSE).await;
            } else if !self.is_stopped() {
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
        (self.memory, self.tally)
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// Returns whether the server said that writes go elsewhere.
    async fn transaction(&mut self, session: &mut Session) -> bool {
        let begun = self.refused_since.unwrap_or_else(Instant::now);
        let (memory, rng) = (&mut self.memory, &mut self.rng);
        let end = match session.control("BEGIN").await {
            Ok(()) => {
                let mut work = Work { session: &mut *session, memory, rng, size: self.size };
                let kind = work.draw();
                work.body(kind).await
            }
            Err(error) => Err(error),
        };
        match end {
            Ok(End::Commit(draft)) => match session.control("COMMIT").await {
                Ok(()) => {
                    self.memory.acknowledge(draft);
                    self.tally.durations.add(begun.elapsed());
                    if self.shared.is_moving.load(Ordering::Relaxed) {
                        self.tally.moving.add(begun.elapsed());
                    }
                    self.refused_since = None;
                    self.shared.gap.acknowledged();
                    self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                // Even a server that answers with an error may have committed before it.
                Err(error) => {
                    self.memory.leave_open(draft);
                    self.tally.count(format!("outcome unknown: {error}"));
                }
            },
            Ok(End::Rollback) => self.roll_back(session).await,
            Err(error) if error.is_elsewhere() => {
                self.tally.count("told to write to the other server (SQLSTATE 25006)".to_owned());
                self.refused_since = Some(begun);
                self.roll_back(session).await;
                return true;
            }
            Err(error) => {
                self.tally.count(error.to_string());
                self.roll_back(session).await;
            }
        }
        false
    }

    async fn roll_back(&mut self, session: &Session) {
        if !session.is_closed()
            && let Err(error) = session.control("ROLLBACK").await
        {
            self.tally.count(error.to_string());
        }
    }
}

impl Tally {
    fn count(&mut self, kind: String) {
        if self.errors.len() < ERROR_KINDS_MAX || self.errors.contains_key(&kind) {
            *self.errors.entry(kind).or_default() += 1;
        }
    }

    fn add(&mut self, other: Self) {
        self.durations.merge(&other.durations);
        self.moving.merge(&other.moving);
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
    }
}

/// Durations, counted by their number of bits in microseconds and three bits below: precise to an eighth.
#[derive(Debug, Clone)]
pub(super) struct Durations {
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
    fn add(&mut self, duration: Duration) {
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
    pub(super) fn percentile(&self, share: f64) -> Option<Duration> {
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
}
