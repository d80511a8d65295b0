//! Two clients, one at each of two servers, that try to write all the time; and the proof that one of them at most owned
//! the writes at every instant.
//!
//! A *probe* inserts a row with a number of its own, and in the same transaction, after the insert and so under the
//! table's lock, asks the server whether it calls itself the owner, and of which epoch. What is recorded of an accepted
//! probe is when it was sent and when it was acknowledged, on one clock. See [`History`] for what is concluded.
//!
//! It knows nothing of migrations: by which statement a server is asked is its caller's business.

mod history;

pub use history::{Accepted, History};

use crate::cluster::connect;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Between two probes at one server.
const PAUSE: Duration = Duration::from_millis(10);
/// A server that does not answer within this time is connected to anew; the probe is forgotten.
const ANSWER_LIMIT: Duration = Duration::from_millis(1_500);
/// What a probe waits for locks: it queues behind a fence like every writer, and is not what holds one up.
const LOCK_LIMIT_MS: u32 = 1_000;

/// The table that probes write, to be made on both servers.
pub const DDL: &str = "CREATE SCHEMA probe;
    CREATE TABLE probe.mark (side int, n bigint, PRIMARY KEY (side, n))";

/// One of the two servers.
#[derive(Debug, Clone)]
pub struct Probed {
    /// How to connect.
    pub url: String,
    /// A query for one row: whether the server is the owner (`t`), and the epoch.
    pub owner: String,
}

/// Probes under way; dropping it ends them.
#[derive(Debug)]
pub struct Probes {
    shared: Shared,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug, Clone, Default)]
struct Shared {
    accepted: Arc<Mutex<Vec<Accepted>>>,
    refused: Arc<Mutex<BTreeMap<String, u64>>>,
    /// For each server: when the last probe was sent that it refused.
    last_refused: Arc<Mutex<[Option<Instant>; 2]>>,
    stop: Arc<AtomicBool>,
}

impl Probes {
    /// Starts probing two servers that have the table of [`DDL`].
    pub fn start(servers: [Probed; 2]) -> Probes {
        let shared = Shared::default();
        let tasks = servers
            .into_iter()
            .enumerate()
            .map(|(side, server)| tokio::spawn(probe(side, server, shared.clone())))
            .collect();
        Probes { shared, tasks }
    }

    /// Lets each client finish its probe, and ends.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            task.await.expect("a probing client panicked");
        }
    }

    /// All that was accepted so far.
    pub fn history(&self) -> History {
        History::new(self.shared.accepted.lock().unwrap().clone())
    }

    /// What probes that were not accepted got to hear, and how often.
    pub fn refused(&self) -> BTreeMap<String, u64> {
        self.shared.refused.lock().unwrap().clone()
    }

    /// Waits until `side` accepts a probe that is sent from now on; false if that takes longer than `limit`.
    pub async fn accepts(&self, side: usize, limit: Duration) -> bool {
        let now = Instant::now();
        self.comes(limit, || {
            let accepted = self.shared.accepted.lock().unwrap();
            accepted
                .iter()
                .rev()
                .take_while(|probe| probe.acked > now)
                .any(|p| p.side == side && p.sent > now)
        })
        .await
    }

    /// Waits until `side` refuses a probe that is sent from now on; false if that takes longer than `limit`.
    pub async fn refuses(&self, side: usize, limit: Duration) -> bool {
        let now = Instant::now();
        self.comes(limit, || self.shared.last_refused.lock().unwrap()[side].is_some_and(|sent| sent > now))
            .await
    }

    /// How many probes were accepted that were sent after `since`.
    pub fn accepted_since(&self, since: Instant) -> usize {
        self.shared.accepted.lock().unwrap().iter().filter(|probe| probe.sent > since).count()
    }

    async fn comes(&self, limit: Duration, mut what: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while !what() {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn probe(side: usize, server: Probed, shared: Shared) {
    let mut session: Option<Client> = None;
    for n in 1_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        let sent = Instant::now();
        let heard = match tokio::time::timeout(ANSWER_LIMIT, ask(&mut session, side, n, &server)).await {
            Ok(heard) => heard,
            Err(_) => {
                session = None;
                Heard::Nothing("no answer".to_owned())
            }
        };
        match heard {
            Heard::Accepted { is_owner, epoch } => {
                let acked = Instant::now();
                let accepted = Accepted { side, n, sent, acked, is_owner, epoch };
                shared.accepted.lock().unwrap().push(accepted);
            }
            Heard::Refused(why) => {
                shared.last_refused.lock().unwrap()[side] = Some(sent);
                *shared.refused.lock().unwrap().entry(why).or_default() += 1;
            }
            Heard::Nothing(why) => {
                session = None;
                *shared.refused.lock().unwrap().entry(why).or_default() += 1;
            }
        }
    }
}

enum Heard {
    Accepted { is_owner: bool, epoch: i64 },
    Refused(String),
    Nothing(String),
}

async fn ask(session: &mut Option<Client>, side: usize, n: u64, server: &Probed) -> Heard {
    let client = match session {
        Some(client) => client,
        None => {
            let set = format!("SET lock_timeout = {LOCK_LIMIT_MS}; SET application_name = 'probe'");
            match connect(&server.url).await {
                Ok(client) if client.batch_execute(&set).await.is_ok() => session.insert(client),
                Ok(_) | Err(_) => return Heard::Nothing("no session".to_owned()),
            }
        }
    };
    // One message, so one transaction; the second statement sees what is so under the lock that the first one holds.
    let sql = format!("INSERT INTO probe.mark VALUES ({side}, {n}); {}", server.owner);
    match client.simple_query(&sql).await {
        Ok(messages) => {
            let row = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
            let is_owner = row.and_then(|row| row.get(0)) == Some("t");
            let epoch = row.and_then(|row| row.get(1)?.parse().ok()).unwrap_or(0);
            Heard::Accepted { is_owner, epoch }
        }
        Err(error) => match error.as_db_error() {
            Some(refusal) => Heard::Refused(refusal.code().code().to_owned()),
            None => Heard::Nothing("connection lost".to_owned()),
        },
    }
}
