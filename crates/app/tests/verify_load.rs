//! `segue verify` while the source is written to as fast as it can be: every planted difference is found and named, and
//! nothing else ever is. `SEGUE_SOAK=1` takes two million rows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segue_testkit::kill::Process;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::Pair;

const LEDGER: &str =
    "CREATE TABLE ledger (id bigint PRIMARY KEY, name text, amount numeric, note text, at timestamptz,
    body bytea, flag bool, doc jsonb, weight float8)";
/// Of every thousand rows the load leaves one alone; the differences are planted there.
const QUIET: &str = "id % 1000 = 7";
/// A statement for the target, and the row it makes different.
const PLANTED: [(&str, i64, &str); 12] = [
    ("DELETE FROM ledger WHERE id = 1007", 1007, "missing"),
    ("INSERT INTO ledger (id, name) VALUES (-993, 'nobody wrote this')", -993, "extra"),
    ("UPDATE ledger SET name = overlay(name PLACING '!' FROM 5) WHERE id = 2007", 2007, "changed"),
    ("UPDATE ledger SET amount = amount * 1.0 WHERE id = 3007", 3007, ""),
    ("UPDATE ledger SET note = '' WHERE id = 4007", 4007, ""),
    ("UPDATE ledger SET name = name || ' ' WHERE id = 5007", 5007, ""),
    ("UPDATE ledger SET at = at + interval '2 hours' WHERE id = 6007", 6007, ""),
    ("UPDATE ledger SET body = substr(body, 1, 20) WHERE id = 7007", 7007, ""),
    ("UPDATE ledger SET doc = '{\"n\": 1.0}' WHERE id = 8007", 8007, ""),
    ("UPDATE ledger SET flag = NOT flag WHERE id = 9007", 9007, ""),
    ("UPDATE ledger SET weight = '-0' WHERE id = 10007", 10007, ""),
    ("UPDATE ledger SET id = -10 WHERE id = 11007", 11007, "missing"),
];

fn soak() -> bool {
    std::env::var_os("SEGUE_SOAK").is_some()
}

async fn start(rows: u64) -> Pair {
    let pair = Pair::start(&["public.ledger"]).await;
    pair.source.execute(LEDGER).await;
    pair.target.execute(LEDGER).await;
    let fill = format!(
        "INSERT INTO ledger SELECT i, md5(i::text), (i % 977)::numeric / 10, CASE WHEN i % 1000 <> 7 THEN 'x' END,
            '2026-01-01'::timestamptz + i * interval '1 second', sha256(i::text::bytea), i % 2 = 0, '{{\"n\": 1}}', 0
           FROM generate_series(1, {rows}) i; VACUUM (ANALYZE, FREEZE) ledger"
    );
    for statement in fill.split("; ") {
        pair.source.execute(statement).await;
    }
    pair
}

/// Clients that change rows, single ones and many at a time, remove them, put them back, and give them other keys.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    async fn start(pair: &Pair, rows: u64) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for seed in 0..3 {
            let client = pair.source.connect("postgres").await;
            let (stop, done) = (stop.clone(), done.clone());
            clients.push(tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed);
                while !stop.load(Ordering::Relaxed) {
                    // A tenth of the table is busy, and a few rows of it are very busy.
                    let busy = if rng.random_ratio(1, 3) { 50 } else { rows / 10 };
                    let id = rng.random_range(1..=busy);
                    let write = match rng.random_range(0..10) {
                        0..=4 => format!("UPDATE ledger SET amount = amount + 1, note = md5(random()::text) WHERE id = {id} AND NOT {QUIET}"),
                        5 => format!("DELETE FROM ledger WHERE id = {id} AND NOT {QUIET}"),
                        6 => format!("INSERT INTO ledger (id, name) SELECT {id}, 'back' WHERE NOT {id} % 1000 = 7 ON CONFLICT DO NOTHING"),
                        7 => format!("UPDATE ledger SET id = id + 100000000 WHERE id = {id} AND NOT {QUIET}"),
                        8 => format!("UPDATE ledger SET weight = weight + 1 WHERE id BETWEEN {id} AND {id} + 60 AND NOT {QUIET}"),
                        _ => format!("DELETE FROM ledger WHERE id = {id} + 100000000 AND NOT {QUIET}"),
                    };
                    // Deadlocks and keys that are taken are part of it.
                    if client.batch_execute(&write).await.is_ok() {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }));
        }
        Load { stop, done, clients }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        self.done.load(Ordering::Relaxed)
    }
}

/// What a comparison said, as JSON.
async fn verify(pair: &Pair, code: i32) -> Value {
    let mut command = pair.command(&["verify", "--json"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_difference_is_found_under_load() {
    let rows = if soak() { 2_000_000 } else { 200_000 };
    let pair = start(rows).await;
    let load = Load::start(&pair, rows).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    for (statement, id, _) in PLANTED {
        assert_eq!(pair.plant(statement).await, 1, "{id}: {statement}");
    }
    let report = verify(&pair, 4).await;
    let found: BTreeMap<i64, &Value> = report["divergences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["key"][0].as_str().unwrap().parse().unwrap(), d))
        .collect();
    let planted = PLANTED.iter().map(|(_, id, _)| *id).chain([-10]);
    let mut planted: Vec<i64> = planted.collect();
    planted.sort_unstable();
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), planted, "{report:#}");
    for (_, id, class) in PLANTED.into_iter().filter(|(_, _, class)| !class.is_empty()) {
        assert_eq!(found[&id]["class"], class, "{id}");
    }
    assert!(report["rows_compared"].as_u64().unwrap() >= rows * 9 / 10);
    let written = load.stop().await;
    println!("{rows} rows, {written} statements meanwhile, {} differences found", found.len());
    assert!(written > 100, "there was load: {written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ever_reported_that_is_only_in_flight() {
    let rows = if soak() { 500_000 } else { 30_000 };
    let pair = start(rows).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let load = Load::start(&pair, rows).await;
    let (mut in_flight, runs) = (0, 20);
    for _ in 0..runs {
        let report = verify(&pair, 0).await;
        assert_eq!(report["divergent"], 0, "{report:#}");
        let table = &report["tables"][0];
        in_flight += table["counts"]["digests"].as_u64().unwrap() - table["ranges"].as_u64().unwrap();
    }
    let written = load.stop().await;
    println!(
        "{runs} runs over {rows} rows, {written} statements meanwhile, {in_flight} digests of ranges unequal at first"
    );
    assert!(in_flight > 0, "what was in flight was met");
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}

/// Parents and children of an inheritance tree are tables of their own, not partitions on their way.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_with_children_is_compared_and_mended() {
    let pair = Pair::start(&["public.*"]).await;
    let ddl = "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (w int, PRIMARY KEY (id)) INHERITS (parent)";
    for side in [&pair.source, &pair.target] {
        side.execute(ddl).await;
    }
    pair.source.execute("INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (2, 'c', 3)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.plant("UPDATE ONLY parent SET v = 'other'").await;
    pair.plant("DELETE FROM child").await;
    let verify = Process::start(pair.command(&["verify", "--repair"]));
    let ended = verify.wait(Duration::from_secs(30)).await.expect("it comes to an end");
    assert!(ended.success(), "{}", verify.lines().join("\n"));
    pair.assert_equal(&["public"]).await;
}
