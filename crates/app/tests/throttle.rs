//! Segue yields by itself: a standby of the source that falls behind stops the copy, is named, and lets it go on when it has
//! caught up; and the operator's limits stay what they are, also over a restart. `SEGUE_SOAK=1` copies a larger table as fast
//! as it can, and so measures what users are spared.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_testkit::cluster::StandbyOptions;
use segue_testkit::kill::Process;
use segue_testkit::{Cluster, Options};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::Pair;
use tokio::sync::Mutex;

const LIMITS: &str = "copy: { workers: 2, region_target_ms: 200 }
throttle:
  replica_lag_ms_max: 1s
  probe_write: true
  probe_write_ms_max: 10s
  queries:
    - { name: alarm, query: SELECT high FROM ops.alarm, above: 10, every_ms: 500ms }
";
/// What a decision may take beside a second of lag, a look and a report, on a machine that does other things as well.
const YIELDS_WITHIN: Duration = Duration::from_secs(15);

fn soak() -> bool {
    std::env::var_os("SEGUE_SOAK").is_some()
}

/// How long users are watched.
fn measured() -> Duration {
    Duration::from_secs(if soak() { 8 } else { 2 })
}

/// Users: each changes a row at a time, and notes when that ended and how long it took.
struct Users {
    stop: Arc<AtomicBool>,
    took: Arc<Mutex<Vec<(Instant, Duration)>>>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Users {
    async fn start(source: &Cluster) -> Users {
        let (stop, took) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let mut clients = Vec::new();
        for number in 0..4 {
            let client = source.connect("postgres").await;
            let (stop, took): (Arc<AtomicBool>, Arc<Mutex<Vec<_>>>) = (stop.clone(), took.clone());
            clients.push(tokio::spawn(async move {
                let change = format!("UPDATE account SET balance = balance + 1 WHERE id = {number}");
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    client.execute(&change, &[]).await.unwrap();
                    took.lock().await.push((Instant::now(), began.elapsed()));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        Users { stop, took, clients }
    }

    /// The 99th percentile of what they wait over the time to come.
    async fn p99_over(&self, time: Duration) -> Duration {
        let began = Instant::now();
        tokio::time::sleep(time).await;
        let took = self.took.lock().await;
        let mut took: Vec<Duration> =
            took.iter().filter(|(at, _)| *at >= began).map(|(_, took)| *took).collect();
        took.sort_unstable();
        took[(took.len() * 99).div_ceil(100) - 1]
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

fn status(pair: &Pair) -> Value {
    serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap()
}

/// Looks at the status until it is so; how long that took, and what it was then.
async fn until(pair: &Pair, what: &str, limit: Duration, is: impl Fn(&Value) -> bool) -> (Duration, Value) {
    let began = Instant::now();
    loop {
        let now = status(pair);
        if is(&now) {
            return (began.elapsed(), now);
        }
        assert!(began.elapsed() < limit, "{what}: {:#}", now["throttle"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn rows(status: &Value) -> u64 {
    status["progress"]["tables"].as_array().unwrap().iter().map(|table| table["rows"].as_u64().unwrap()).sum()
}

fn is_yielding(status: &Value, to: &str) -> bool {
    let reasons = status["throttle"]["reasons"].as_array().unwrap();
    status["throttle"]["backfill_percent"].as_u64().unwrap() < 100
        && reasons.iter().any(|reason| reason["text"].as_str().unwrap().starts_with(to))
}

async fn start() -> (Pair, Cluster) {
    let pair = Pair::with(Options::default(), Options::default(), &["public.ledger", "public.account"]).await;
    for side in [&pair.source, &pair.target] {
        side.execute("CREATE TABLE ledger (id bigint PRIMARY KEY, filler text)").await;
        side.execute("CREATE TABLE account (id int PRIMARY KEY, balance int)").await;
    }
    let count = if soak() { 4_000_000 } else { 200_000 };
    pair.source
        .execute(&format!(
            "INSERT INTO ledger SELECT i, repeat(md5(i::text), 6) FROM generate_series(1, {count}) i"
        ))
        .await;
    pair.source.execute("INSERT INTO account SELECT i, 0 FROM generate_series(0, 9) i").await;
    pair.source.execute("CREATE SCHEMA ops; CREATE TABLE ops.alarm AS SELECT 1 AS high").await;
    pair.source.execute("VACUUM (ANALYZE) ledger").await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.ledger", "public.account"], LIMITS);
    let standby = Cluster::standby_of(&pair.source, StandbyOptions::named("replica_2")).await;
    (pair, standby)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_yields_to_a_late_standby_and_to_a_query_and_orders_outlive_the_process() {
    let (pair, standby) = start().await;
    let users = Users::start(&pair.source).await;
    let alone = users.p99_over(measured()).await;
    let run = Process::start(pair.command(&["run", "-v"]));
    pair.reaches(&run, "backfilling").await;
    if !soak() {
        pair.segue(&["throttle", "--rate", "2MiB"], 0);
    }
    until(&pair, "the copy has begun", support::PATIENCE, |status| rows(status) > 0).await;
    a_standby_that_falls_behind_makes_the_copy_wait_until_it_has_caught_up(&pair, &standby, &users, alone)
        .await;
    let said = run.lines();
    assert!(said.iter().any(|line| line.contains("Segue yields: replica_lag")), "{said:#?}");
    assert!(said.iter().all(|line| !line.contains('\x1b')), "colours are for terminals: {said:#?}");
    a_query_is_as_good_a_reason_and_the_operator_has_the_last_word(&pair, &run).await;
    users.stop().await;
    let _again = what_was_ordered_holds_for_the_process_after_this_one(&pair, run).await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}

async fn a_standby_that_falls_behind_makes_the_copy_wait_until_it_has_caught_up(
    pair: &Pair,
    standby: &Cluster,
    users: &Users,
    alone: Duration,
) {
    let copying = users.p99_over(measured()).await;

    standby.pause().await;
    let why = "replica_lag ";
    let (took, seen) = until(pair, "it yields", YIELDS_WITHIN, |status| is_yielding(status, why)).await;
    let reason = &seen["throttle"]["reasons"][0];
    eprintln!("yielded {} ms after the standby had stopped: {}", took.as_millis(), reason["text"]);
    assert!(reason["text"].as_str().unwrap().contains(" >= 1 s on replica_2 (source) for "), "{reason}");
    assert!(reason["value"].as_f64() >= Some(1_000.0) && reason["exceeded"] == true, "{reason}");
    let is_held = |status: &Value| status["throttle"]["backfill_percent"] == 0;
    let (_, held) = until(pair, "it yields all", YIELDS_WITHIN, is_held).await;
    let text = pair.segue(&["status"], 0);
    assert!(
        text.contains("  throttle  copy at 0 %, ") && text.contains(" on replica_2 (source) for "),
        "{text}"
    );
    // What was under way may end.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let before = rows(&status(pair));
    let yielded = users.p99_over(measured()).await;
    let now = status(pair);
    assert!(rows(&now) == before && before >= rows(&held) && now["stage"] == "backfilling", "{now:#}");
    eprintln!(
        "users' p99: {alone:?} alone, {copying:?} beside the copy, {yielded:?} when it has yielded: {:.2} of it",
        yielded.as_secs_f64() / copying.as_secs_f64()
    );

    standby.unpause();
    let goes_on =
        |status: &Value| rows(status) > before && status["throttle"]["reasons"] == serde_json::json!([]);
    let (took, _) = until(pair, "it goes on", Duration::from_secs(40), goes_on).await;
    eprintln!("went on {} ms after the standby", took.as_millis());
}

async fn a_query_is_as_good_a_reason_and_the_operator_has_the_last_word(pair: &Pair, run: &Process) {
    pair.source.execute("UPDATE ops.alarm SET high = 11").await;
    let why = "query alarm 11 > 10 on the source";
    until(pair, "it yields to the query", YIELDS_WITHIN, |status| is_yielding(status, why)).await;
    // Whoever wants the copy all the same gets it.
    pair.segue(&["throttle", "--off"], 0);
    pair.reaches(run, "following").await;
    let off =
        until(pair, "it is off", YIELDS_WITHIN, |status| status["throttle"]["automatic"] == false).await.1;
    assert_eq!(
        (&off["throttle"]["backfill_percent"], &off["throttle"]["bytes_per_s_max"]),
        (&100.into(), &Value::Null)
    );
}

async fn what_was_ordered_holds_for_the_process_after_this_one(pair: &Pair, run: Process) -> Process {
    pair.segue(&["throttle", "--workers", "1"], 0);
    run.kill9();
    run.wait(support::PATIENCE).await.unwrap();
    let again = pair.run();
    let is_as_before = |status: &Value| {
        let throttle = &status["throttle"];
        status["alive"] == true && throttle["automatic"] == false && throttle["workers_max"] == 1
    };
    until(pair, "it is as it was", support::PATIENCE, is_as_before).await;
    pair.reaches(&again, "following").await;
    pair.segue(&["throttle", "--auto"], 0);
    let counts = |status: &Value| {
        status["throttle"]["automatic"] == true
            && !status["throttle"]["reasons"].as_array().unwrap().is_empty()
    };
    until(pair, "it counts again", YIELDS_WITHIN, counts).await;
    // The small write is made where the writes are, and no stream carries it.
    let probed = "SELECT count(*) FROM segue.probe WHERE at > now() - interval '1 min'";
    assert_eq!(pair.source.scalar(probed).await.as_deref(), Some("1"));
    assert_eq!(pair.target.scalar(probed).await.as_deref(), Some("0"));
    again
}
