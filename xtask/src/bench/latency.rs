//! Latency: from a commit on the source to the row's being visible on the target, on a nearly idle pair and beside other writes.

use super::Options;
use super::drain::{PEER, both_follow, disable};
use super::measure::{median, percentile};
use super::pair::{DATABASE, Pair, Writers, must, until_true};
use super::report::verdict;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Rows in each round, for each contestant.
const ROWS: u64 = 200;
/// Between two rows.
const PAUSE: Duration = Duration::from_millis(50);
/// Rows before it counts: the sessions are new, the caches cold.
const WARM_UP: u64 = 20;
/// What others write meanwhile, in transactions a second.
const LOADS_PER_S: [u64; 2] = [0, 200];

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    both_follow(&pair).await;
    let rows = options.scaled(ROWS).max(20);
    let mut next = 1_000_000;
    let mut text = format!(
        "{rows} rows in each round, one committed every {} ms; from the commit's return on the source to the moment a \
         session that asks without pause sees the row on the target. The subscription commits without waiting for the disk \
         (its default), segue's commits are durable. Medians of the rounds. What is written beside them is `pgbench -b tpcb-like`.\n\n\
         | contestant | transactions/s beside | p50 ms | p99 ms |\n|---|---:|---:|---:|\n",
        PAUSE.as_millis()
    );
    let mut segue = (0.0, 0.0);
    for per_s in LOADS_PER_S {
        let (p50, p99) = beside(options, &pair, &mut next, rows, per_s).await;
        for (i, name) in ["PostgreSQL's subscription", "segue"].into_iter().enumerate() {
            text.push_str(&format!(
                "| {name} | {per_s} | {:.2} | {:.2} |\n",
                median(&p50[i]),
                median(&p99[i])
            ));
        }
        segue = (median(&p50[1]), median(&p99[1]));
    }
    text.push('\n');
    let [.., beside] = LOADS_PER_S;
    text.push_str(&verdict(&format!("segue's p50 beside {beside} transactions/s, ms"), segue.0, 2.0, false));
    text.push_str(&verdict(
        &format!("\nsegue's p99 beside {beside} transactions/s, ms"),
        segue.1,
        10.0,
        false,
    ));
    text
}

/// The rounds' medians and 99th percentiles of both contestants.
async fn beside(
    options: &Options,
    pair: &Pair,
    next: &mut i64,
    rows: u64,
    per_s: u64,
) -> ([Vec<f64>; 2], [Vec<f64>; 2]) {
    let mut p50: [Vec<f64>; 2] = Default::default();
    let mut p99: [Vec<f64>; 2] = Default::default();
    for round in 0..options.rounds {
        for turn in 0..2 {
            let contestant = (round + turn) % 2;
            let writers = match per_s {
                0 => None,
                _ => Some(Writers::start(pair, per_s).await),
            };
            let taken = match contestant {
                0 => subscribed(pair, next, rows).await,
                _ => migrated(pair, next, rows).await,
            };
            if let Some(writers) = writers {
                let reached = writers.end(pair).await;
                assert!(reached > 0.9 * per_s as f64, "pgbench has reached {reached} transactions/s only");
            }
            p50[contestant].push(median(&taken));
            p99[contestant].push(percentile(&taken, 0.99));
            eprintln!(
                "bench: contestant {contestant} beside {per_s} transactions/s: p50 {:.2} ms, p99 {:.2} ms",
                median(&taken),
                percentile(&taken, 0.99)
            );
        }
    }
    (p50, p99)
}

async fn subscribed(pair: &Pair, next: &mut i64, rows: u64) -> Vec<f64> {
    let target = Pair::connect(&pair.target, PEER).await;
    must(target.batch_execute("ALTER SUBSCRIPTION peer ENABLE").await, "enable the subscription");
    let taken = ticks(pair, &target, next, rows).await;
    disable(pair, &target).await;
    taken
}

async fn migrated(pair: &Pair, next: &mut i64, rows: u64) -> Vec<f64> {
    let target = Pair::connect(&pair.target, DATABASE).await;
    let process = pair.segue(&["run"]);
    let taken = ticks(pair, &target, next, rows).await;
    pair.end_segue(process).await;
    taken
}

/// Milliseconds for each row.
async fn ticks(pair: &Pair, target: &Client, next: &mut i64, rows: u64) -> Vec<f64> {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let insert = must(source.prepare("INSERT INTO mark VALUES ($1)").await, "prepare");
    let look = must(target.prepare("SELECT EXISTS (SELECT FROM mark WHERE id = $1)").await, "prepare");
    // The follower is there once the first row has come.
    *next += 1;
    must(source.execute(&insert, &[next]).await, "insert");
    until_true(target, &format!("SELECT EXISTS (SELECT FROM mark WHERE id = {next})")).await;
    let mut taken = Vec::new();
    for row in 0..rows + WARM_UP {
        tokio::time::sleep(PAUSE).await;
        *next += 1;
        must(source.execute(&insert, &[next]).await, "insert");
        let committed = Instant::now();
        while !must(target.query_one(&look, &[next]).await, "look").get::<_, bool>(0) {}
        if row >= WARM_UP {
            taken.push(committed.elapsed().as_secs_f64() * 1000.0);
        }
    }
    taken
}
