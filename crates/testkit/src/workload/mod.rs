//! Concurrent writers that remember every acknowledged write, and the oracle that asks for them afterwards.
//!
//! [`schema`] makes and fills the tables; [`Workload::start`] lets clients loose on them; [`Handle::stop`] ends it
//! and returns a [`Report`] with the [`Oracle`]. The clients reconnect for as long as it takes, so servers may be
//! killed under them. One workload per database: its numbers and sequences start over in the next.
//!
//! With [`Workload::start_between`] they write to whichever of several servers takes their writes: each goes on where
//! it last succeeded, and looks elsewhere when it is refused as read-only (SQLSTATE 25006) or loses its connection.
//!
//! It knows nothing of migrations: the oracle judges any server that claims to have the data.

mod client;
mod draft;
mod memory;
mod oracle;
pub mod schema;

pub use oracle::{Lost, Oracle};

use memory::Memory;
use schema::Seeded;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How to write; `Options::default()` is four clients as fast as they can.
#[derive(Debug, Clone)]
pub struct Options {
    /// Concurrent clients, at least one; each on a connection of its own.
    pub clients: u32,
    /// Drafts the transactions; `SEGUE_SEED` in the environment goes before it, and without either one is chosen.
    pub seed: Option<u64>,
    /// Transactions per second of all clients together.
    pub rate_limit: Option<u32>,
    /// Rows of the occasional large transaction, about one in 400; 0 for none.
    pub large_rows: u64,
    /// Whether the table `scratch` is truncated now and then.
    pub truncate: bool,
    /// A request without an answer for so long counts as a lost connection. Bounds [`Handle::stop`] as well.
    pub request_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            clients: 4,
            seed: None,
            rate_limit: None,
            large_rows: 2_000,
            truncate: true,
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// What the clients of one workload have in common.
#[derive(Debug, Clone)]
struct Shared {
    options: Options,
    seed: u64,
    /// Where a client may write, in the order in which it tries.
    urls: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    rolled_back: Arc<AtomicU64>,
    slowest_us: Arc<AtomicU64>,
    errors: Arc<Mutex<BTreeMap<String, u64>>>,
    anomalies: Arc<Mutex<Vec<String>>>,
}

fn tally(shared: &Shared, error: String) {
    *shared.errors.lock().unwrap().entry(error).or_insert(0) += 1;
}

/// Starts workloads.
#[derive(Debug)]
pub struct Workload;

/// A running workload. Dropping it stops the clients at once and forgets what they know.
#[derive(Debug)]
pub struct Handle {
    shared: Shared,
    clients: Vec<JoinHandle<Memory>>,
}

/// How a workload went.
#[derive(Debug, Clone)]
pub struct Report {
    /// Replays the drafts, as `SEGUE_SEED`.
    pub seed: u64,
    /// Transactions whose COMMIT was answered.
    pub acked: u64,
    /// Transactions whose COMMIT was not answered.
    pub unknown: u64,
    /// Transactions rolled back on purpose.
    pub rolled_back: u64,
    /// The longest that an acknowledged transaction took, from BEGIN.
    pub slowest: Duration,
    /// Refusals and lost connections, by what was said, and how often.
    pub errors: BTreeMap<String, u64>,
    /// Statements that affected another number of rows than they must have, on the server written to.
    pub anomalies: Vec<String>,
    /// Knows what has to be where.
    pub oracle: Oracle,
}

impl Workload {
    /// Starts clients on a database that has the [`schema`]. The seed is printed.
    ///
    /// # Panics
    /// If the database cannot be reached, or has no such schema.
    pub async fn start(url: &str, options: Options) -> Handle {
        Workload::start_between(&[url], options).await
    }

    /// As [`Workload::start`], with several servers of which one takes the writes, not always the same; at the beginning
    /// it is the first.
    ///
    /// # Panics
    /// As [`Workload::start`], of the first one.
    pub async fn start_between(urls: &[&str], options: Options) -> Handle {
        let url = urls.first().expect("somewhere to write");
        let reader = crate::cluster::connect(url).await.unwrap_or_else(|error| panic!("connect: {error:?}"));
        let seeded =
            Seeded::read(&reader).await.unwrap_or_else(|error| panic!("read shop.seeded: {error:?}"));
        let from_environment = std::env::var("SEGUE_SEED").ok().map(|seed| seed.parse().expect("a number"));
        let seed = from_environment.or(options.seed).unwrap_or_else(rand::random);
        eprintln!("workload: SEGUE_SEED={seed}");
        let shared = Shared {
            options,
            seed,
            urls: Arc::new(Mutex::new(urls.iter().map(|url| (*url).to_owned()).collect())),
            stop: Arc::default(),
            acked: Arc::default(),
            rolled_back: Arc::default(),
            slowest_us: Arc::default(),
            errors: Arc::default(),
            anomalies: Arc::default(),
        };
        let count = shared.options.clients.max(1);
        let clients = (0..count)
            .map(|client| {
                tokio::spawn(client::run(Memory::new(client, count, seeded.clone()), shared.clone()))
            })
            .collect();
        Handle { shared, clients }
    }
}

impl Handle {
    /// Transactions acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions are acknowledged; false if that takes longer than `limit`.
    pub async fn progress(&self, more: u64, limit: Duration) -> bool {
        let (goal, deadline) = (self.acked() + more, Instant::now() + limit);
        while self.acked() < goal {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Sends the clients elsewhere, each after the transaction it is in.
    pub fn redirect(&self, url: &str) {
        *self.shared.urls.lock().unwrap() = vec![url.to_owned()];
    }

    /// Lets each client finish its transaction, and ends.
    pub async fn stop(mut self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut memories = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            memories.push(client.await.expect("a client of the workload panicked"));
        }
        let shared = &self.shared;
        Report {
            seed: shared.seed,
            acked: self.acked(),
            unknown: memories.iter().map(|memory| memory.unresolved.len() as u64).sum(),
            rolled_back: shared.rolled_back.load(Ordering::Relaxed),
            slowest: Duration::from_micros(shared.slowest_us.load(Ordering::Relaxed)),
            errors: shared.errors.lock().unwrap().clone(),
            anomalies: shared.anomalies.lock().unwrap().clone(),
            oracle: Oracle { memories },
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}
