//! Clients of a router that remember what was acknowledged to them, and connect again when they have to.

use super::PATIENCE;
use segue_testkit::Cluster;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, NoTls};

/// Between two statements of a client, and between two tries to connect.
const PAUSE: Duration = Duration::from_millis(10);

/// What they were told.
#[derive(Debug, Default)]
struct Told {
    acknowledged: Vec<(i32, i64)>,
    at: Vec<Instant>,
    /// Statements that failed, in the server's or the client's words.
    failed: Vec<String>,
}

/// Clients at work.
pub struct Callers {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    /// Clients numbered from `first` on, who insert row after row.
    pub fn start(url: &str, first: i32, count: i32) -> Callers {
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Told>>::default());
        let tasks = (first..first + count)
            .map(|number| tokio::spawn(call(url.to_owned(), number, stop.clone(), told.clone())))
            .collect();
        Callers { stop, told, tasks }
    }

    /// How many statements failed so far, the last words about them.
    pub fn failed(&self) -> Vec<String> {
        self.told.lock().unwrap().failed.clone()
    }

    pub fn acknowledged(&self) -> usize {
        self.told.lock().unwrap().at.len()
    }

    /// Waits until so many more statements are acknowledged; returns how long that took.
    pub async fn go_on(&self, more: usize, what: &str) -> Duration {
        let (began, until) = (Instant::now(), self.acknowledged() + more);
        while self.acknowledged() < until {
            assert!(
                began.elapsed() < PATIENCE,
                "{what}: the clients stand still: {:?}",
                self.failed().last()
            );
            sleep(PAUSE).await;
        }
        began.elapsed()
    }

    /// The longest time since `since` in which nothing was acknowledged.
    pub fn longest_gap(&self, since: Instant) -> Duration {
        let told = self.told.lock().unwrap();
        let mut at: Vec<Instant> = told.at.iter().copied().filter(|at| *at >= since).collect();
        at.sort_unstable();
        at.insert(0, since);
        at.push(Instant::now());
        at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Stops them; whatever was acknowledged is on `owner`.
    pub async fn finish(self, owner: &Cluster) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            timeout(PATIENCE, task).await.expect("a client's end").unwrap();
        }
        let client = owner.connect("postgres").await;
        let rows =
            client.query("SELECT client, said FROM app.entry WHERE said IS NOT NULL", &[]).await.unwrap();
        let told = self.told.lock().unwrap();
        let there: BTreeSet<(i32, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let lost: Vec<_> = told.acknowledged.iter().filter(|said| !there.contains(said)).collect();
        assert!(lost.is_empty(), "acknowledged, and not on the owner: {lost:?}");
        told.failed.clone()
    }
}

async fn call(url: String, number: i32, stop: Arc<AtomicBool>, told: Arc<Mutex<Told>>) {
    let mut said = 0;
    let is_over = || stop.load(Ordering::Relaxed);
    while !is_over() {
        let Some(client) = connect(&url).await else {
            sleep(PAUSE).await;
            continue;
        };
        while !is_over() && !client.is_closed() {
            said += 1;
            let sql = "INSERT INTO app.entry (client, account, said) VALUES ($1, 0, $2)";
            let done = timeout(PATIENCE, client.execute(sql, &[&number, &said])).await.expect("an answer");
            {
                let mut told = told.lock().unwrap();
                match done {
                    Ok(_) => {
                        told.acknowledged.push((number, said));
                        told.at.push(Instant::now());
                    }
                    Err(error) => {
                        let words =
                            error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
                        told.failed.push(words);
                    }
                }
            }
            sleep(PAUSE).await;
        }
    }
}

async fn connect(url: &str) -> Option<Client> {
    let (client, connection) = timeout(PATIENCE, tokio_postgres::connect(url, NoTls)).await.ok()?.ok()?;
    tokio::spawn(connection);
    Some(client)
}
