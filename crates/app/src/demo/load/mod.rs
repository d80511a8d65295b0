//! The shop's customers: clients that write all the time, remember what was acknowledged, and browse in between.
//!
//! The pace is fixed and far below what a server can take, because the load stands for an application, not for a
//! benchmark. All that it knows of a migration is another connection string, and a second address for when a server
//! says that writes go elsewhere.

mod browse;
mod measure;
mod memory;
mod oracle;
mod session;
mod transactions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

pub(super) use measure::{Browsing, Errors, Noticed, Tally};
pub(super) use oracle::{Oracle, Verdict};

use super::shop::Size;
use browse::{Browser, Visitor};
use measure::Window;
use memory::Memory;
use session::Session;
use transactions::{End, Kind, Work};

/// Between the two servers while one is out of reach: that shows in the report as errors, and hammering would not mend it.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// Between the two servers while neither takes writes.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(10);
/// How the refusals of a side that does not own the writes are counted, whatever the table.
const ELSEWHERE: &str = "told to write to the other server (SQLSTATE 25006)";

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
    urls: watch::Sender<[String; 2]>,
    clients: Vec<JoinHandle<(Memory, Tally)>>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    window: Window,
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
        let urls = watch::Sender::new(urls);
        let clients = (1..=pace.clients)
            .map(|number| {
                let client = Client {
                    urls: urls.subscribe(),
                    at: 0,
                    retry: None,
                    size,
                    memory: Memory::new(number.into(), pace.clients.into()),
                    browser: Browser::default(),
                    tally: Tally::default(),
                    rng: StdRng::from_os_rng(),
                    shared: Arc::clone(&shared),
                };
                let every = Duration::from_secs(1) * pace.clients.into() / pace.per_second.max(1);
                tokio::spawn(client.work(every))
            })
            .collect();
        Self { shared, urls, clients, started: Instant::now() }
    }

    /// Has every client connect to `url` and nowhere else, from its next transaction on.
    pub(super) fn connect_to(&self, url: &str) {
        self.urls.send_replace([url.to_owned(), url.to_owned()]);
    }

    /// From now on what clients notice is also counted by itself.
    pub(super) fn watch(&self) {
        self.shared.window.open();
    }

    /// What clients noticed since [`Load::watch`].
    pub(super) fn noticed(&self) -> Noticed {
        self.shared.window.close()
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
                Err(error) => tally.count(&format!("a client of the load broke down: {error}")),
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

/// A transaction that a client means to do.
struct Try {
    /// When it was tried first.
    begun: Instant,
    kind: Kind,
    visitor: Visitor,
}

struct Client {
    urls: watch::Receiver<[String; 2]>,
    /// Which of them takes the writes, as far as the client knows.
    at: usize,
    /// A transaction that certainly did not happen and is tried again.
    retry: Option<Try>,
    size: Size,
    memory: Memory,
    browser: Browser,
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
            let url = self.urls.borrow_and_update()[self.at].clone();
            let pause = match Session::open(&url).await {
                Ok(mut session) => self.stay(&mut session, &mut tick).await,
                Err(error) => {
                    self.count(&error.to_string());
                    RECONNECT_PAUSE
                }
            };
            if !self.is_stopped() {
                self.at = 1 - self.at;
                tokio::time::sleep(pause).await;
            }
        }
        (self.memory, self.tally)
    }

    /// Writes until there is a reason to go to the other server, and how long to wait before that.
    async fn stay(&mut self, session: &mut Session, tick: &mut Interval) -> Duration {
        while !self.is_stopped() && !session.is_closed() {
            if self.retry.is_none() {
                tick.tick().await;
            }
            // The application starts again with another connection string.
            if self.urls.has_changed().unwrap_or(false) {
                return Duration::ZERO;
            }
            if self.transaction(session).await {
                return ELSEWHERE_PAUSE;
            }
            self.browse().await;
        }
        RECONNECT_PAUSE
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn count(&mut self, kind: &str) {
        self.tally.count(kind);
        self.shared.window.failed(kind);
    }

    /// Returns whether the server said that writes go elsewhere.
    async fn transaction(&mut self, session: &mut Session) -> bool {
        let fresh = || Try {
            begun: Instant::now(),
            kind: Kind::draw(&mut self.rng, &self.memory),
            visitor: Visitor::draw(&mut self.rng),
        };
        let meant = self.retry.take().unwrap_or_else(fresh);
        let (begun, kind) = (meant.begun, meant.kind);
        let end = match session.control(&meant.visitor.says("BEGIN")).await {
            Ok(()) => {
                let (memory, rng) = (&mut self.memory, &mut self.rng);
                Work { session: &mut *session, memory, rng, size: self.size }.body(kind).await
            }
            Err(error) => Err(error),
        };
        match end {
            Ok(End::Commit(draft)) => match session.control("COMMIT").await {
                Ok(()) => {
                    self.browser.has_written(meant.visitor, &draft);
                    self.memory.acknowledge(draft);
                    self.tally.durations.add(begun.elapsed());
                    self.shared.window.acknowledged(begun.elapsed());
                    self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                // Even a server that answers with an error may have committed before it: this is not tried again.
                Err(error) => {
                    self.memory.leave_open(draft);
                    self.count(&format!("outcome unknown: {error}"));
                }
            },
            Ok(End::Rollback) => self.roll_back(session).await,
            Err(error) if error.is_elsewhere() => {
                self.count(ELSEWHERE);
                self.retry = Some(meant);
                self.roll_back(session).await;
                return true;
            }
            Err(error) => {
                self.count(&error.to_string());
                if session.is_closed() {
                    self.retry = Some(meant);
                }
                self.roll_back(session).await;
            }
        }
        false
    }

    async fn roll_back(&mut self, session: &Session) {
        if !session.is_closed()
            && let Err(error) = session.control("ROLLBACK").await
        {
            self.count(&error.to_string());
        }
    }
}
