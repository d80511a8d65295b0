//! Large values, large transactions, and transactions of the rarer kinds.

use crate::route;
use crate::support::Pair;
use segue_testkit::Options;
use segue_testkit::kill::Process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What Segue may use, and what it is told that it may use.
const RSS_BYTES_MAX: u64 = 512 << 20;

/// The most memory that the process has held so far.
fn peak_bytes(run: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn assert_bounded(run: &Process, what: &str) {
    let peak = peak_bytes(run);
    println!("{what}: at most {} MiB", peak >> 20);
    assert!(peak <= RSS_BYTES_MAX, "{what}: {} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_200_mb_is_copied_and_streamed_in_bounded_memory() {
    let pair = Pair::start(&["public.huge"]).await;
    route::on_both(&pair, "CREATE TABLE huge (id int PRIMARY KEY, v text, n int); ALTER TABLE huge ALTER v SET STORAGE EXTENDED").await;
    let row =
        |id: u32| format!("INSERT INTO huge VALUES ({id}, repeat('{id} is large ', 200000000 / 12), 0)");
    route::batch(&pair.source, &row(10)).await;
    let run = route::following(&pair).await;
    assert_bounded(&run, "a value of 200 MB copied");
    route::batch(&pair.source, &row(20)).await;
    route::applied(&pair, &run).await;
    assert_bounded(&run, "a value of 200 MB inserted");
    route::batch(&pair.source, "UPDATE huge SET v = v || 'r', n = 1 WHERE id = 10").await;
    route::batch(&pair.source, "UPDATE huge SET id = 30 WHERE id = 20").await;
    route::batch(&pair.source, "UPDATE huge SET n = n + 1").await;
    route::arrives(&pair, &run, &["public"]).await;
    assert_bounded(&run, "a value of 200 MB updated");
}

/// Looks at the target all the time; says whether it ever saw a count other than `before` and `after`.
async fn never_sees_a_part(
    pair: &Pair,
    count: &'static str,
    before: i64,
    after: i64,
) -> (Arc<AtomicBool>, tokio::task::JoinHandle<u64>) {
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let target = pair.target.connect("postgres").await;
    let looking = tokio::spawn(async move {
        let mut looks = 0;
        while !stop.load(Ordering::Relaxed) {
            let seen: i64 = target.query_one(count, &[]).await.unwrap().get(0);
            assert!(seen == before || seen == after, "the target shows a part of the transaction: {seen}");
            looks += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        looks
    });
    (done, looking)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_arrives_whole_or_not_at_all() {
    let pair = Pair::start(&["public.t", "public.u"]).await;
    let more = "limits: { memory_bytes_max: 64MiB }\napply: { batch_bytes_max: 4MiB }\n";
    pair.write_spec(
        &pair.source.url("postgres"),
        &pair.target.url("postgres"),
        &["public.t", "public.u"],
        more,
    );
    route::on_both(
        &pair,
        "CREATE TABLE t (id int PRIMARY KEY, note text, v int); CREATE TABLE u (LIKE t INCLUDING ALL)",
    )
    .await;
    route::batch(&pair.source, "INSERT INTO t SELECT n, repeat('old ', 20), 0 FROM generate_series(1, 50000) n; INSERT INTO u SELECT * FROM t WHERE id <= 100").await;
    let run = route::following(&pair).await;
    route::applied(&pair, &run).await;
    // What the transaction leaves: one new row for each of 300,000, less those it deletes again, and a mark everywhere.
    let count = "SELECT (SELECT count(*) FROM t) + 1000000 * (SELECT count(*) FROM u WHERE v = 7)";
    let (done, looking) = never_sees_a_part(&pair, count, 50_000, 349_000 + 100_000_000).await;
    route::batch(
        &pair.source,
        "BEGIN; INSERT INTO t SELECT n, repeat('new ', 30), n FROM generate_series(100001, 400000) n; UPDATE u SET v = 7; UPDATE t SET note = note || '!' WHERE id % 10 = 0; \
         DELETE FROM t WHERE id BETWEEN 200001 AND 201000; UPDATE t SET id = -id WHERE id <= 100; COMMIT",
    )
    .await;
    route::batch(&pair.source, "INSERT INTO u VALUES (1000, 'after it', 0)").await;
    route::applied(&pair, &run).await;
    done.store(true, Ordering::Relaxed);
    let looks = looking.await.unwrap();
    assert!(looks > 20, "{looks} looks");
    route::arrives(&pair, &run, &["public"]).await;
    assert_bounded(&run, "a transaction of 300,000 rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_whose_net_effect_is_refused_is_written_change_by_change() {
    let pair = Pair::start(&["public.t", "public.w"]).await;
    let more = "limits: { memory_bytes_max: 64MiB }\napply: { batch_bytes_max: 4MiB }\n";
    let urls = [&pair.source, &pair.target].map(|server| server.url("postgres"));
    pair.write_spec(&urls[0], &urls[1], &["public.t", "public.w"], more);
    route::on_both(
        &pair,
        "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE TABLE w (id int PRIMARY KEY, code int UNIQUE)",
    )
    .await;
    route::batch(&pair.source, "INSERT INTO w VALUES (1, 1), (2, 2)").await;
    let run = route::following(&pair).await;
    // Between many rows two codes change places, by way of a third: as a net effect either row meets the other's code.
    route::batch(
        &pair.source,
        "BEGIN; INSERT INTO t SELECT n, repeat('new ', 100) FROM generate_series(1, 40000) n; \
         UPDATE w SET code = 3 WHERE id = 1; UPDATE w SET code = 1 WHERE id = 2; UPDATE w SET code = 2 WHERE id = 1; \
         INSERT INTO t SELECT n, repeat('new ', 100) FROM generate_series(40001, 70000) n; COMMIT",
    )
    .await;
    route::arrives(&pair, &run, &["public"]).await;
    assert_bounded(&run, "a transaction of 70,000 rows, twice");
    assert_eq!(pair.target.scalar("SELECT code FROM w WHERE id = 1").await.as_deref(), Some("2"));
    route::applied(&pair, &run).await;
    let status: serde_json::Value = serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap();
    assert_eq!(status["progress"]["replays"], 1, "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_transaction_kept_arrives() {
    let source = Options::default().with("max_prepared_transactions", "5");
    let pair = Pair::with(source, Options::default(), &["public.t"]).await;
    route::on_both(&pair, "CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    route::batch(&pair.source, "INSERT INTO t SELECT n, 'old' FROM generate_series(1, 100) n").await;
    // Prepared before there is a stream: its birth waits for this one, and its rows are in the copy.
    route::batch(
        &pair.source,
        "BEGIN; UPDATE t SET v = 'prepared before' WHERE id = 1; PREPARE TRANSACTION 'early'",
    )
    .await;
    let run = pair.run();
    run.wait_for("early", crate::support::PATIENCE).await.unwrap();
    route::batch(&pair.source, "COMMIT PREPARED 'early'").await;
    pair.reaches(&run, "following").await;
    let rolled_back = "BEGIN; INSERT INTO t VALUES (200, 'kept'); SAVEPOINT a; INSERT INTO t VALUES (201, 'lost'); UPDATE t SET v = 'lost' WHERE id < 50; SAVEPOINT b; \
        DELETE FROM t WHERE id > 50; ROLLBACK TO b; INSERT INTO t VALUES (202, 'lost'); ROLLBACK TO a; INSERT INTO t VALUES (201, 'kept'); SAVEPOINT c; \
        UPDATE t SET id = id + 1000 WHERE id IN (5, 6); RELEASE c; COMMIT";
    for sql in [
        rolled_back,
        "BEGIN; INSERT INTO t VALUES (300, 'lost'); DELETE FROM t; ROLLBACK",
        "BEGIN; INSERT INTO t VALUES (301, 'prepared'); SAVEPOINT a; DELETE FROM t WHERE id < 4; ROLLBACK TO a; DELETE FROM t WHERE id = 4; PREPARE TRANSACTION 'late'",
        "BEGIN; INSERT INTO t VALUES (302, 'lost'); PREPARE TRANSACTION 'never'",
        "UPDATE t SET v = 'between' WHERE id = 10",
        "ROLLBACK PREPARED 'never'",
    ] {
        route::batch(&pair.source, sql).await;
    }
    // What is prepared is not there yet.
    route::arrives(&pair, &run, &["public"]).await;
    assert_eq!(pair.target.scalar("SELECT count(*) FROM t WHERE id = 301").await.as_deref(), Some("0"));
    route::batch(&pair.source, "COMMIT PREPARED 'late'").await;
    // Thousands of subtransactions, every other one given up.
    route::batch(
        &pair.source,
        "DO $$ BEGIN FOR n IN 1..3000 LOOP BEGIN INSERT INTO t VALUES (10000 + n, 'sub'); IF n % 2 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$",
    )
    .await;
    route::arrives(&pair, &run, &["public"]).await;
    assert_eq!(pair.target.scalar("SELECT count(*) FROM t WHERE id > 10000").await.as_deref(), Some("1500"));
}
