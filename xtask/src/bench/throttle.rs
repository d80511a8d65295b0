//! Throttle: what the users of the source wait while Segue copies, and while it yields to a replica that is late.

use super::Options;
use super::copy::{TABLES, empty_target, fill};
use super::measure::{median, percentile};
use super::pair::{DATABASE, Pair, must, until_true};
use super::report::verdict;
use segue_testkit::Cluster;
use segue_testkit::cluster::StandbyOptions;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Users of the source, each of whom changes a row at a time …
const USERS: u64 = 4;
/// … and rests in between.
const REST: Duration = Duration::from_millis(5);
/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(8);
/// A copy that does nothing for so long has yielded all: it is less and less at first.
const STANDS: Duration = Duration::from_secs(2);
/// Between two looks at what has been copied.
const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);
/// How much longer users may wait than without Segue.
const SLOWER_MAX: f64 = 1.5;
/// How soon after the replica has stopped the copy must be less.
const YIELDS_SECONDS_MAX: f64 = 2.0;

const SPEC: &str = "copy: { workers: 2 }\nthrottle: { replica_lag_ms_max: 1s }\n";

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    fill(&pair, options).await;
    pair.write_spec_with("prod", DATABASE, &TABLES, SPEC);
    let accounts =
        format!("CREATE TABLE account AS SELECT i AS id, 0 AS balance FROM generate_series(1, {USERS}) i");
    must(Pair::connect(&pair.source, DATABASE).await.batch_execute(&accounts).await, "make the users' table");
    let standby = Cluster::standby_of(&pair.source, StandbyOptions::named("replica")).await;
    let mut found = Found::default();
    for round in 0..options.rounds {
        empty_target(&pair, options).await;
        let turn = turn(&pair, &standby).await;
        eprintln!("bench: round {round}: {turn:?}");
        found.add(turn);
        pair.forget_migration().await;
    }
    found.told()
}

/// What one round found; 99th percentiles in milliseconds.
#[derive(Debug)]
struct Turn {
    alone: f64,
    copying: f64,
    yielding: f64,
    yielded_after_s: f64,
    went_on_after_s: f64,
}

#[derive(Debug, Default)]
struct Found {
    turns: Vec<Turn>,
}

impl Found {
    fn add(&mut self, turn: Turn) {
        self.turns.push(turn);
    }

    fn of(&self, figure: impl Fn(&Turn) -> f64) -> f64 {
        median(&self.turns.iter().map(figure).collect::<Vec<_>>())
    }

    fn told(&self) -> String {
        let mut text = format!(
            "{USERS} users change one row each on the source, with {} ms between two changes, while `segue run` copies beside \
             them as fast as it can; then the source's standby is stopped until it is late, and goes on. Users, source, \
             standby, target and segue share the machine's processors. The 99th percentile of what users wait, watched for \
             {} s each; medians of the rounds, ratios within a round.\n\n\
             | users | p99 ms | ÷ alone |\n|---|---:|---:|\n",
            REST.as_millis(),
            WATCHED.as_secs()
        );
        let mut row = |name: &str, figure: fn(&Turn) -> f64| {
            let ratio = self.of(|turn| figure(turn) / turn.alone);
            text.push_str(&format!("| {name} | {:.2} | {ratio:.2} |\n", self.of(figure)));
        };
        row("alone", |turn| turn.alone);
        row("beside the copy", |turn| turn.copying);
        row("while the copy yields to the standby", |turn| turn.yielding);
        text.push_str(&format!(
            "\nThe copy goes on {:.1} s after the standby does.\n\n",
            self.of(|turn| turn.went_on_after_s)
        ));
        let slower = self.of(|turn| turn.yielding / turn.alone);
        text.push_str(&verdict("users' p99 while it yields ÷ alone", slower, SLOWER_MAX, false));
        let yields = self.of(|turn| turn.yielded_after_s);
        text.push('\n');
        text.push_str(&verdict("yields after the standby has stopped, s", yields, YIELDS_SECONDS_MAX, false));
        text
    }
}

async fn turn(pair: &Pair, standby: &Cluster) -> Turn {
    let users = Users::start(&pair.source).await;
    let alone = users.p99_ms().await;
    let run = pair.segue(&["run", "-v"]);
    let target = Pair::connect(&pair.target, DATABASE).await;
    until_true(&target, "SELECT EXISTS (SELECT FROM pgbench_accounts)").await;
    let copying = users.p99_ms().await;

    standby.pause().await;
    let stopped = Instant::now();
    must(run.wait_for("Segue yields: replica_lag", PATIENCE).await, "the copy yields");
    let yielded_after_s = stopped.elapsed().as_secs_f64();
    let before = stands(&target).await;
    let yielding = users.p99_ms().await;
    assert_eq!(copied(&target).await, before, "nothing is copied meanwhile");

    standby.unpause();
    let goes_on = Instant::now();
    while copied(&target).await == before {
        assert!(goes_on.elapsed() < PATIENCE, "the copy does not go on");
        tokio::time::sleep(LOOK).await;
    }
    let went_on_after_s = goes_on.elapsed().as_secs_f64();
    users.stop().await;
    pair.end_segue(run).await;
    Turn { alone, copying, yielding, yielded_after_s, went_on_after_s }
}

/// How much of the tables is there.
async fn copied(target: &Client) -> i64 {
    let sql = "SELECT pg_relation_size('pgbench_accounts') + pg_relation_size('wide')";
    must(target.query_one(sql, &[]).await, "look at the copy").get(0)
}

/// Waits until the copy stands still; returns how much is there.
async fn stands(target: &Client) -> i64 {
    let began = Instant::now();
    loop {
        let before = copied(target).await;
        tokio::time::sleep(STANDS).await;
        if copied(target).await == before {
            return before;
        }
        assert!(began.elapsed() < PATIENCE, "the copy does not stand still");
    }
}

/// Users, who note when each change ended and how long it took.
struct Users {
    stop: Arc<AtomicBool>,
    took: Arc<Mutex<Vec<(Instant, f64)>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Users {
    async fn start(source: &Cluster) -> Users {
        let (stop, took): (Arc<AtomicBool>, Arc<Mutex<Vec<_>>>) = Default::default();
        let mut clients = Vec::new();
        for id in 1..=USERS {
            let client = Pair::connect(source, DATABASE).await;
            let change = format!("UPDATE account SET balance = balance + 1 WHERE id = {id}");
            let (stop, took) = (stop.clone(), took.clone());
            clients.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    must(client.batch_execute(&change).await, "change a row");
                    let ms = began.elapsed().as_secs_f64() * 1_000.0;
                    must(took.lock(), "note it").push((Instant::now(), ms));
                    tokio::time::sleep(REST).await;
                }
            }));
        }
        Users { stop, took, clients }
    }

    /// The 99th percentile of what they wait from now on.
    async fn p99_ms(&self) -> f64 {
        let began = Instant::now();
        tokio::time::sleep(WATCHED).await;
        let took = must(self.took.lock(), "read the notes");
        let since: Vec<f64> = took.iter().filter(|(at, _)| *at >= began).map(|(_, ms)| *ms).collect();
        percentile(&since, 0.99)
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            must(client.await, "a user");
        }
    }
}
