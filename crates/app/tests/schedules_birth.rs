//! The birth of a stream and what it is bound to, in the schedules in which a simpler rule loses rows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::Options;
use std::time::Duration;
use support::slow::{hang, standby, synchronous, transaction, until};
use support::{PATIENCE, Pair};

const T: &str = "CREATE TABLE public.t (id int PRIMARY KEY, v text)";

/// T102 begins while the slot is being made, so the slot may begin behind its commit; and its commit is in the log but
/// not visible while it waits for a standby, so a snapshot taken too early lacks it as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_lies_before_the_slot_and_is_not_yet_visible_is_not_lost() {
    let pair = Pair::with(synchronous(), Options::default(), &["public.t"]).await;
    let standby = standby(&pair.source).await;
    pair.both(T).await;
    let (t100, _) = transaction(&pair.source).await;
    let run = pair.run();
    run.wait_for("making the replication slot: waits for pid", PATIENCE).await.unwrap();
    let (t101, _) = transaction(&pair.source).await;
    let mark = run.mark();
    t100.batch_execute("ROLLBACK").await.unwrap();
    run.wait_for_since(mark, "making the replication slot: waits for pid", PATIENCE).await.unwrap();
    let (t102, _) = transaction(&pair.source).await;
    t102.batch_execute("INSERT INTO public.t VALUES (102, 'slow')").await.unwrap();
    let pid: i32 = t102.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let commit = hang(&pair.source, &standby, t102).await;
    t101.batch_execute("ROLLBACK").await.unwrap();
    // Segue waits now, and would have copied the empty table and reached the end if it did not.
    let slot = "SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL";
    until("the slot", async || pair.source.scalar(slot).await.as_deref() == Some("1")).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!commit.is_finished(), "the standby does not answer");
    standby.unpause();
    commit.await.unwrap().unwrap();
    pair.reaches(&run, "following").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    let named = format!("waiting for transactions older than the slot: waits for pid {pid} ");
    run.wait_for(&named, Duration::ZERO).await.expect("who is waited for is named");
}

/// Waits until the slot is confirmed up to what the target has.
async fn confirmed(pair: &Pair) {
    let position = pair.target.scalar("SELECT position FROM segue.stream").await.unwrap();
    let confirmed = format!("SELECT bool_and(confirmed_flush_lsn >= '{position}') FROM pg_replication_slots");
    until("the slot is confirmed", async || pair.source.scalar(&confirmed).await.as_deref() == Some("t"))
        .await;
}

/// A server that is asked for changes before its slot's position skips ahead without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_restored_to_an_older_state_than_the_slot_is_refused() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both(T).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.source.execute("INSERT INTO public.t VALUES (1, 'saved')").await;
    pair.caught_up().await;
    pair.stop(&run).await;
    pair.target.stop_fast().await;
    let saved = pair.target.save();
    pair.target.start_again().await;

    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.source.execute("INSERT INTO public.t VALUES (2, 'confirmed')").await;
    pair.caught_up().await;
    confirmed(&pair).await;
    pair.stop(&run).await;
    pair.target.stop_immediate().await;
    pair.target.restore(&saved);
    pair.target.start_again().await;

    pair.source.execute("INSERT INTO public.t VALUES (3, 'later')").await;
    let run = pair.run();
    let said = pair.refused(&run, "SEGUE-CHECKPOINT-BEHIND").await;
    assert!(said.contains("the target was restored to an older state") && said.contains("next: "), "{said}");
    let rows = pair.target.scalar("SELECT string_agg(id::text, ',') FROM public.t").await;
    assert_eq!(rows.as_deref(), Some("1"), "nothing is applied behind a gap");
}

/// The restore happens under a running process, as a failover to a lagging replica would.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_restored_under_a_running_process_is_refused() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both(T).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.target.stop_fast().await;
    let saved = pair.target.save();
    pair.target.start_again().await;
    // Each loss of the connection takes a new token: the one that is restored is far behind.
    pair.source.execute("INSERT INTO public.t VALUES (1, 'applied')").await;
    pair.caught_up().await;
    pair.target.restart().await;
    pair.source.execute("INSERT INTO public.t VALUES (2, 'confirmed')").await;
    pair.caught_up().await;
    confirmed(&pair).await;
    pair.target.stop_immediate().await;
    pair.target.restore(&saved);
    pair.target.start_again().await;
    pair.source.execute("INSERT INTO public.t VALUES (3, 'later')").await;
    pair.refused(&run, "SEGUE-CHECKPOINT-BEHIND").await;
    let rows = pair.target.scalar("SELECT count(*) FROM public.t").await;
    assert_eq!(rows.as_deref(), Some("0"), "nothing is applied behind a gap");
}
