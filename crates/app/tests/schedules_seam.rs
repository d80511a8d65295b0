//! The seam of a region: which transactions a copy has, in the schedules in which a simpler rule loses rows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]
#![cfg(feature = "killpoints")]

mod support;

use segue_testkit::Options;
use segue_testkit::proxy::Proxy;
use std::time::Duration;
use support::slow::{hang, locked, standby, synchronous, transaction, until};
use support::{PATIENCE, Pair};

/// The stream has met the transaction and dropped its events, for a table whose copy had not begun. When the copy
/// begins, no snapshot shows the transaction yet, because its commit still waits for a standby.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_streamed_and_is_not_yet_visible_is_not_lost() {
    let pair = Pair::with(synchronous(), Options::default(), &[]).await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.first", "public.t"], "copy: { workers: 1 }\n");
    let standby = standby(&pair.source).await;
    pair.both("CREATE TABLE public.first (id int PRIMARY KEY, v text); CREATE TABLE public.t (LIKE public.first INCLUDING ALL)")
        .await;
    let rows = "INSERT INTO public.first SELECT n, repeat('x', 500) FROM generate_series(1, 1000) n;
        INSERT INTO public.t VALUES (1, 'early')";
    pair.source.execute(rows).await;
    pair.fenced().await;
    let held = locked(&pair.target, "public.first", "SHARE").await;
    let run = pair.run();
    pair.reaches(&run, "backfilling").await;

    let (slow, xid) = transaction(&pair.source).await;
    let changes = "INSERT INTO public.t VALUES (2, 'slow'); UPDATE public.t SET v = 'slow' WHERE id = 1";
    slow.batch_execute(changes).await.unwrap();
    let commit = hang(&pair.source, &standby, slow).await;
    let skipped = format!("SELECT skipped::text LIKE '%{xid}%' FROM segue.stream");
    until("the stream skips it", async || pair.target.scalar(&skipped).await.as_deref() == Some("t")).await;

    held.batch_execute("COMMIT").await.unwrap();
    let first = "SELECT count(*) > 0 FROM segue.region";
    until("the first table is copied", async || pair.target.scalar(first).await.as_deref() == Some("t"))
        .await;
    let waits =
        "SELECT body::text LIKE '%public.t: the snapshot does not contain 1 skipped%' FROM segue.status";
    let mut named = false;
    for _ in 0..30 {
        named |= pair.target.scalar(waits).await.as_deref() == Some("t");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!commit.is_finished(), "the standby does not answer");
    standby.unpause();
    commit.await.unwrap().unwrap();
    pair.reaches(&run, "following").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    assert!(named, "the wait is named");
}

/// An abort is never waited for, so a seam can know of a transaction that the log on disk does not have. After a crash
/// its number is given to another transaction, which the seam then seems to contain.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_gets_the_number_of_one_lost_in_a_crash_is_not_lost() {
    // Nothing but a commit makes this server flush its log.
    let quiet = [("wal_writer_delay", "10s"), ("autovacuum", "off"), ("checkpoint_timeout", "1h")];
    let quiet =
        quiet.into_iter().fold(Options::default(), |options, (name, value)| options.with(name, value));
    let pair = Pair::with(quiet, Options::default(), &["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'early' FROM generate_series(1, 10) n").await;
    let proxy = Proxy::start(pair.source.port()).await;
    let source = pair.source.url_through(proxy.port(), "postgres");
    pair.write_spec(&source, &pair.target.url("postgres"), &["public.t"], "");
    let (run, stops) = pair.run_stopping("region.marked");
    run.stopped_at("region.marked", PATIENCE).await.unwrap();
    // A segment of its own, so that no page is filled and written before its time.
    pair.source.execute("SELECT pg_switch_wal()").await;
    let (aborted, lost) = transaction(&pair.source).await;
    aborted.batch_execute("INSERT INTO public.t VALUES (11, 'aborted'); ROLLBACK").await.unwrap();

    stops.at("region.copied");
    run.thaw();
    run.stopped_at("region.copied", PATIENCE).await.unwrap();
    // Segue does not hear of the crash: it is on its own with what it has read.
    proxy.half_open();
    let unflushed = "SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()";
    assert_eq!(pair.source.scalar(unflushed).await.as_deref(), Some("t"), "the abort is not flushed");
    pair.source.kill9().await;
    pair.source.start_again().await;

    let client = pair.source.connect("postgres").await;
    let mut again = Vec::new();
    for id in 100..200 {
        let insert = "INSERT INTO public.t VALUES ($1, 'later') RETURNING pg_current_xact_id()::text";
        again.push(client.query_one(insert, &[&id]).await.unwrap().get::<_, String>(0));
    }
    assert!(again.contains(&lost), "the number {lost} is used again: {again:?}");
    run.thaw();
    // Time enough to commit the copy.
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.cut();
    pair.reaches(&run, "following").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}
