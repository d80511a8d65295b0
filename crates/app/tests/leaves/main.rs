//! Leaves of a partitioned table come and go while its rows are copied and followed, under load: attached, created,
//! detached, dropped, swapped, beside a default partition that takes what has no other place. Afterwards both sides are
//! equal, though the target is partitioned otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod hands;
mod load;
#[path = "../support/mod.rs"]
mod support;

use load::Load;
use segue_testkit::Options;
use segue_testkit::cluster::available_majors;
use segue_testkit::kill::{Process, kill_at, was_killed};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{PATIENCE, Pair};

const SOURCE: &str = "
    CREATE TABLE events (id int, day int, body text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE e0 PARTITION OF events FOR VALUES FROM (0) TO (100);
    CREATE TABLE e1 PARTITION OF events FOR VALUES FROM (100) TO (200);
    CREATE TABLE e2 PARTITION OF events FOR VALUES FROM (200) TO (300);
    CREATE TABLE e3 PARTITION OF events FOR VALUES FROM (300) TO (400);
    CREATE TABLE rest PARTITION OF events DEFAULT";
const TARGET: &str = "
    CREATE TABLE events (id int, day int, body text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE low PARTITION OF events FOR VALUES FROM (0) TO (250);
    CREATE TABLE others PARTITION OF events DEFAULT";

/// Compares both sides without a pause, until it is stopped; nothing is ever different.
struct Checks {
    stop: Arc<AtomicBool>,
    checks: tokio::task::JoinHandle<u32>,
}

impl Checks {
    fn start(pair: &Pair) -> Checks {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, spec) = (stop.clone(), pair.spec().to_owned());
        let checks = tokio::task::spawn_blocking(move || {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut verify = std::process::Command::new(env!("CARGO_BIN_EXE_segue"));
                let output = verify.args(["verify", "-f"]).arg(&spec).output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
                count += 1;
            }
            count
        });
        Checks { stop, checks }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.checks.await.unwrap() > 0, "nothing was compared");
    }
}

async fn start(rows: u32) -> Pair {
    start_on(Options::default(), rows).await
}

/// What the source lets happen where Segue may not refuse it.
fn unguarded(pair: &Pair) {
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.events"], "guard: { ddl: false }\n");
}

async fn start_on(source: Options, rows: u32) -> Pair {
    let pair = Pair::with(source, Options::default(), &["public.events"]).await;
    pair.source.execute(SOURCE).await;
    pair.target.execute(TARGET).await;
    let fill = format!(
        "INSERT INTO events SELECT i, (i * 7) % 800, repeat(md5(i::text), 4) FROM generate_series(1000, {}) i",
        1000 + rows
    );
    pair.source.execute(&fill).await;
    pair
}

/// DDL as an application does it: again when it lost a deadlock against the load.
async fn ddl(pair: &Pair, sql: &str) {
    let client = pair.source.connect("postgres").await;
    for _ in 0..40 {
        match client.batch_execute(sql).await {
            Ok(()) => return,
            Err(error) => {
                let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
                assert!(matches!(code.as_str(), "40P01" | "55P03" | "23514"), "{sql}: {error:?}");
                client.batch_execute("ROLLBACK").await.unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never done: {sql}");
}

/// A leaf for `from..to`, with what the default partition has of it, and `more` rows.
fn attach(name: &str, from: i32, to: i32, more: i32) -> String {
    format!(
        "BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE events IN ACCESS EXCLUSIVE MODE;
         CREATE TABLE {name} (body text, id int NOT NULL, day int NOT NULL, PRIMARY KEY (id, day));
         WITH moved AS (DELETE FROM ONLY rest WHERE day >= {from} AND day < {to} RETURNING *)
         INSERT INTO {name} (id, day, body) SELECT id, day, body FROM moved;
         INSERT INTO {name} (id, day, body) SELECT -i, {from} + i % ({to} - {from}), 'of {name}' FROM generate_series(1, {more}) i;
         ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to}); COMMIT"
    )
}

fn detach(name: &str) -> String {
    format!("SET lock_timeout = '5s'; ALTER TABLE events DETACH PARTITION {name}")
}

fn drop_leaf(name: &str) -> String {
    format!("SET lock_timeout = '5s'; DROP TABLE {name}")
}

/// Gone and replaced in one transaction; what was in it stays outside.
fn swap(old: &str, new: &str, from: i32, to: i32) -> String {
    let attach = attach(new, from, to, 300);
    attach.replacen(
        "IN ACCESS EXCLUSIVE MODE;",
        &format!("IN ACCESS EXCLUSIVE MODE; ALTER TABLE events DETACH PARTITION {old};"),
        1,
    )
}

/// Waits until the stream has exactly the leaves that the table has, all of them followed.
async fn settled(pair: &Pair, run: &Process) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tree = "SELECT string_agg(relid::oid::text, ',' ORDER BY relid::oid) FROM pg_partition_tree('events') WHERE isleaf";
        let published = "SELECT string_agg(prrelid::text, ',' ORDER BY prrelid) FROM pg_publication_rel WHERE prrelid <> 'segue.signal'::regclass";
        let followed = "SELECT string_agg(relation_oid::text, ',' ORDER BY relation_oid) FROM segue.unit \
            WHERE left_at IS NULL AND (unit = table_id OR backfilled_at IS NOT NULL)";
        let pending = "SELECT count(*)::text FROM segue.unit WHERE left_at IS NULL AND unit <> table_id AND backfilled_at IS NULL";
        let tree = pair.source.scalar(tree).await;
        let published = pair.source.scalar(published).await;
        let followed = pair.target.scalar(followed).await;
        let pending = pair.target.scalar(pending).await;
        if tree == published && tree == followed && pending.as_deref() == Some("0") {
            return;
        }
        let said = || run.lines().join("\n");
        assert!(run.status().is_none(), "segue has ended\n{}", said());
        assert!(
            Instant::now() < deadline,
            "never settled: {tree:?} {published:?} {followed:?} {pending:?}\n{}",
            said()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What became of a leaf on the target is asked only where nothing else can have its rows: the whole table counts.
async fn equal_in_the_end(pair: &Pair, load: Load, run: Process) {
    load.progress(100).await;
    settled(pair, &run).await;
    load.stop().await;
    pair.caught_up().await;
    let source = pair.source.connect("postgres").await;
    let target = pair.target.connect("postgres").await;
    let events = segue_testkit::compare::Table::new("public", "events");
    let report = segue_testkit::compare::tables(&source, &target, &[(events.clone(), events)]).await.unwrap();
    assert!(report.is_equal(), "{report}\n{}", run.lines().join("\n"));
    assert!(report.rows() > 100, "{report}");
    run.kill9();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_come_and_go_while_following() {
    let pair = start(2_000).await;
    let load = Load::start(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    load.progress(50).await;
    let checks = Checks::start(&pair);
    ddl(&pair, &attach("filled", 400, 450, 500)).await;
    ddl(&pair, &attach("empty", 450, 500, 0)).await;
    load.progress(200).await;
    ddl(&pair, &detach("e0")).await;
    ddl(&pair, &drop_leaf("e1")).await;
    load.progress(200).await;
    settled(&pair, &run).await;
    // At the same place at once, and back again.
    ddl(&pair, &swap("e2", "e2_new", 200, 300)).await;
    load.progress(200).await;
    ddl(&pair, &detach("filled")).await;
    ddl(&pair, "DELETE FROM filled WHERE id % 2 = 0; INSERT INTO filled (id, day, body) VALUES (7, 9999, 'not of the table')").await;
    load.progress(100).await;
    ddl(&pair, &attach("in_its_place", 400, 450, 10)).await;
    settled(&pair, &run).await;
    checks.stop().await;
    equal_in_the_end(&pair, load, run).await;
}

/// The stream still has to remove the default partition's rows of the range when the leaf that has them is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_comes_while_the_stream_is_held_up_keeps_its_rows() {
    let pair = start(2_000).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let held = pair.target.connect("postgres").await;
    held.batch_execute("BEGIN; SELECT FROM events WHERE id = 1000 FOR UPDATE").await.unwrap();
    ddl(&pair, "UPDATE events SET body = 'held up' WHERE id = 1000").await;
    ddl(&pair, &attach("filled", 400, 450, 500)).await;
    // Longer than two looks.
    tokio::time::sleep(Duration::from_secs(5)).await;
    held.batch_execute("ROLLBACK").await.unwrap();
    settled(&pair, &run).await;
    pair.caught_up().await;
    let (source, target) = (pair.source.connect("postgres").await, pair.target.connect("postgres").await);
    let events = segue_testkit::compare::Table::new("public", "events");
    let report = segue_testkit::compare::tables(&source, &target, &[(events.clone(), events)]).await.unwrap();
    assert!(report.is_equal(), "{report}\n{}", run.lines().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_come_and_go_within_one_look() {
    within_one_look(start(2_000).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_come_and_go_within_one_look_on_the_oldest_source() {
    let oldest = available_majors().into_iter().min().unwrap();
    within_one_look(start_on(Options::major(oldest), 2_000).await).await;
}

async fn within_one_look(pair: Pair) {
    let load = Load::start(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    for round in 0..4 {
        ddl(&pair, &detach("e0")).await;
        load.progress(30).await;
        // A table that is no part any more is anybody's: emptied, altered, filled with what never was the table's.
        ddl(&pair, "TRUNCATE e0; ALTER TABLE e0 ADD COLUMN more int; INSERT INTO e0 (id, day) SELECT i, 5000 FROM generate_series(1, 50) i").await;
        ddl(&pair, "DROP TABLE e0").await;
        load.progress(30).await;
        ddl(&pair, &attach("e0", 0, 100, 50)).await;
        ddl(&pair, &swap("e1", &format!("e1_{round}"), 100, 200)).await;
        ddl(&pair, &format!("DROP TABLE e1; ALTER TABLE e1_{round} RENAME TO e1")).await;
    }
    equal_in_the_end(&pair, load, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_come_and_go_during_the_backfill() {
    let pair = start(150_000).await;
    let spec = std::fs::read_to_string(pair.spec()).unwrap();
    std::fs::write(pair.spec(), format!("{spec}copy: {{ workers: 2, region_target_ms: 50 }}\n")).unwrap();
    let load = Load::start(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "backfilling").await;
    pair.segue(&["throttle", "--rate", "2MB"], 0);
    ddl(&pair, &detach("e0")).await;
    ddl(&pair, &attach("early", 400, 500, 500)).await;
    load.progress(100).await;
    ddl(&pair, &swap("e1", "e1_new", 100, 200)).await;
    load.progress(500).await;
    ddl(&pair, &drop_leaf("e2")).await;
    ddl(&pair, &drop_leaf("early")).await;
    load.progress(300).await;
    let backfilled = pair.target.scalar("SELECT backfilled_at FROM segue.stream").await;
    assert_eq!(backfilled, None, "the backfill was over before all of this");
    pair.segue(&["throttle", "--off"], 0);
    pair.reaches(&run, "following").await;
    equal_in_the_end(&pair, load, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_come_and_go_while_nobody_looks() {
    let pair = start(2_000).await;
    let load = Load::start(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    ddl(&pair, &attach("late", 400, 450, 500)).await;
    settled(&pair, &run).await;
    run.kill9();
    ddl(&pair, &detach("late")).await;
    ddl(&pair, &drop_leaf("e0")).await;
    ddl(&pair, &swap("e1", "e1_new", 100, 200)).await;
    ddl(&pair, &drop_leaf("rest")).await;
    load.progress(100).await;
    ddl(&pair, "CREATE TABLE rest PARTITION OF events DEFAULT").await;
    ddl(&pair, &attach("again", 0, 100, 100)).await;
    load.progress(100).await;
    let run = pair.run();
    equal_in_the_end(&pair, load, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_of_a_detached_range_are_copied_again() {
    let pair = start(2_000).await;
    let load = Load::start(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    run.kill9();
    ddl(&pair, &detach("e0")).await;
    // More than one signal carries; some with keys that the detached leaf has, too.
    ddl(&pair, "INSERT INTO events SELECT i, i % 100, 'came back' FROM generate_series(1000, 40000) i ON CONFLICT DO NOTHING").await;
    let run = pair.run();
    equal_in_the_end(&pair, load, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_does_not_travel_is_noticed_without_a_write() {
    let pair = start(100).await;
    unguarded(&pair);
    let run = pair.run();
    pair.reaches(&run, "following").await;
    ddl(&pair, "ALTER TABLE events ADD COLUMN more text DEFAULT 'x'").await;
    let said = run.wait_for("SEGUE-DDL-DRIFT", Duration::from_secs(20)).await.unwrap();
    assert!(said.contains("was altered on the source"), "{said}");
    assert!(run.wait(PATIENCE).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_is_being_detached_concurrently_is_not_reported() {
    let pair = start(2_000).await;
    pair.source.execute("DROP TABLE rest").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    // Somebody's old snapshot holds the second half of the DETACH up: e0 is out of sight and still in the catalog.
    let old = pair.source.connect("postgres").await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM events").await.unwrap();
    let detaching = pair.source.connect("postgres").await;
    let detach = detaching.batch_execute("ALTER TABLE events DETACH PARTITION e0 CONCURRENTLY");
    let meanwhile = async {
        let gone = "SELECT bool_or(to_jsonb(i) -> 'inhdetachpending' = 'true')::text FROM pg_inherits i";
        while pair.source.scalar(gone).await.as_deref() != Some("true") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let verify = Process::start(pair.command(&["verify"]));
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(verify.status().is_none(), "it waits\n{}", verify.lines().join("\n"));
        old.batch_execute("COMMIT").await.unwrap();
        let ended = verify.wait(PATIENCE).await.unwrap();
        assert!(ended.success(), "{}", verify.lines().join("\n"));
    };
    let (detached, ()) = tokio::join!(detach, meanwhile);
    detached.unwrap();
    settled(&pair, &run).await;
    pair.caught_up().await;
    let source = pair.source.connect("postgres").await;
    let target = pair.target.connect("postgres").await;
    let events = segue_testkit::compare::Table::new("public", "events");
    let report = segue_testkit::compare::tables(&source, &target, &[(events.clone(), events)]).await.unwrap();
    assert!(report.is_equal(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_changed_by_a_rewrite_are_warned_of_and_mended() {
    let pair = start(100).await;
    unguarded(&pair);
    let run = pair.run();
    pair.reaches(&run, "following").await;
    ddl(&pair, "VACUUM FULL rest").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!pair.segue(&["status"], 0).contains("rewritten"), "VACUUM FULL changes no value");
    ddl(&pair, "ALTER TABLE events ALTER COLUMN body TYPE text USING upper(body)").await;
    let deadline = Instant::now() + PATIENCE;
    while !pair.segue(&["status"], 0).contains("rewritten") {
        assert!(Instant::now() < deadline, "nobody said so\n{}", run.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    pair.segue(&["verify", "--repair"], 0);
    pair.assert_equal(&["public"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_cannot_be_followed_is_refused_with_a_remedy() {
    let pair = start(100).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let attach = attach("odd", 400, 500, 0);
    let odd = "PRIMARY KEY (id, day)); ALTER TABLE odd REPLICA IDENTITY NOTHING;";
    ddl(&pair, &attach.replacen("PRIMARY KEY (id, day));", odd, 1)).await;
    run.wait_for("SEGUE-DDL-DRIFT", Duration::from_secs(20)).await.unwrap();
    run.wait_for("REPLICA IDENTITY FULL", Duration::from_secs(5)).await.unwrap();
    run.wait(PATIENCE).await.unwrap();
    ddl(&pair, "ALTER TABLE odd REPLICA IDENTITY FULL; INSERT INTO odd (id, day) VALUES (1, 400)").await;
    let run = pair.run();
    settled(&pair, &run).await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}

/// Runs until the point kills it; what happens meanwhile is `sql`.
#[cfg(feature = "killpoints")]
async fn dies_at(pair: &Pair, load: &Load, point: &str, sql: &[String]) {
    let mut command = pair.command(&["run"]);
    kill_at(&mut command, point, 1);
    let run = Process::start(command);
    // Or it dies before, of what the last one left.
    let _ = run.wait_for("following", PATIENCE).await;
    for sql in sql {
        ddl(pair, sql).await;
    }
    let status = run.wait(PATIENCE).await.unwrap();
    assert!(was_killed(status), "{point}: {status:?}\n{}", run.lines().join("\n"));
    load.progress(50).await;
}

#[cfg(feature = "killpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn campaign_killed_at_every_point_of_a_leaf() {
    let pair = start(2_000).await;
    let load = Load::start(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    run.kill9();
    let mut name = "e0".to_owned();
    let points = segue_engine::killpoint::ALL
        .iter()
        .filter(|point| point.starts_with("leaf.") || point.starts_with("backfill."));
    for (n, point) in points.enumerate() {
        let new = format!("p{n}");
        // Killed on the way of the new leaf, or of the old one; each start finds what the last one left.
        dies_at(&pair, &load, point, &[swap(&name, &new, 0, 100)]).await;
        name = new;
    }
    let run = pair.run();
    settled(&pair, &run).await;
    run.kill9();
    // The leaf that was on its way is gone before anybody goes on.
    dies_at(&pair, &load, "leaf.published", &[attach("short", 600, 650, 100)]).await;
    ddl(&pair, &drop_leaf("short")).await;
    dies_at(&pair, &load, "leaf.detached", &[]).await;
    dies_at(&pair, &load, "leaf.stored", &[attach("shorter", 650, 700, 100)]).await;
    ddl(&pair, &swap("shorter", "longer", 650, 700)).await;
    dies_at(&pair, &load, "region.committed", &[]).await;
    let run = pair.run();
    equal_in_the_end(&pair, load, run).await;
}
