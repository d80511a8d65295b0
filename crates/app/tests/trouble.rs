//! What is wrong is said before it is waited for, and not any more once it is mended.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::kill::Process;
use serde_json::Value;
use support::slow::until;
use support::{PATIENCE, Pair};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_open_is_said_before_the_stream_is_born_and_shown_by_status() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE elsewhere (id int)").await;
    // A slot cannot be made before it ends, and nobody sees it in a list of sessions.
    pair.source.execute("BEGIN; INSERT INTO elsewhere VALUES (1); PREPARE TRANSACTION 'forgotten'").await;
    pair.target.execute("SELECT pg_create_physical_replication_slot('left_behind', true)").await;
    let run = pair.run();
    let said = run.wait_for("warning: source: ", PATIENCE).await.unwrap();
    assert!(said.contains("prepared") && said.contains("forgotten"), "{said}");
    let said = run.wait_for("warning: target: ", PATIENCE).await.unwrap();
    assert!(said.contains("the slot left_behind is read by nobody and keeps"), "{said}");
    let none =
        pair.source.scalar("SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL");
    assert_eq!(none.await.as_deref(), Some("0"), "the stream is not born yet");

    pair.source.execute("COMMIT PREPARED 'forgotten'").await;
    pair.reaches(&run, "following").await;
    support::slow::until("status shows what is left", async || {
        let status: serde_json::Value = serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap();
        let trouble = status["trouble"].to_string();
        trouble.contains("target: the slot left_behind is read by nobody") && !trouble.contains("forgotten")
    })
    .await;
    let warned = run.lines().iter().filter(|line| line.contains("segue: warning: ")).count();
    assert_eq!(warned, 2, "{:#?}", run.lines());
    pair.stop(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_of_the_fault_that_comes_and_not_of_one_that_was_mended() {
    let pair = Pair::start(&["public.t"]).await;
    pair.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (-1)").await;
    pair.target.execute("CREATE TABLE t (id int PRIMARY KEY, CONSTRAINT positive CHECK (id > 0))").await;
    let run = pair.run();
    assert!(!run.wait(PATIENCE).await.unwrap().success());
    pair.target.execute("ALTER TABLE t DROP CONSTRAINT positive").await;
    let waiting = Process::start(pair.command(&["wait", "following"]));
    let run = pair.run();
    let status = waiting.wait(PATIENCE).await.unwrap();
    assert!(status.success(), "{:#?}\n{:#?}", waiting.lines(), run.lines());

    let waiting = Process::start(pair.command(&["wait", "completed"]));
    // It has seen who drives.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    pair.target.execute("ALTER TABLE t ADD CONSTRAINT low CHECK (id < 10)").await;
    pair.source.execute("INSERT INTO t VALUES (11)").await;
    let said = waiting.wait_for("SEGUE-FAILED", PATIENCE).await.unwrap();
    assert!(said.contains("low"), "{said}");
    assert_eq!(waiting.wait(PATIENCE).await.unwrap().code(), Some(1));
}

/// A source that sends nothing is not one that has nothing to send: the stream would look as if it had caught up.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_sent_is_seen_to_be_behind() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE t (id int PRIMARY KEY)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let lag_ms = || {
        let status: Value = serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap();
        status["progress"]["lag_ms"].as_u64().unwrap()
    };
    pair.source.pause_senders();
    pair.source.execute("INSERT INTO t VALUES (1)").await;
    until("the stream is behind", async || lag_ms() > 3_000).await;
    pair.source.unpause_senders();
    until("it has caught up", async || lag_ms() < 1_000).await;
    assert_eq!(pair.target.scalar("SELECT count(*) FROM t").await.as_deref(), Some("1"));
    // The way back, too.
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes"], 0);
    pair.target.pause_senders();
    until("the way back is behind", async || lag_ms() > 3_000).await;
    pair.target.unpause_senders();
    until("it has caught up as well", async || lag_ms() < 1_000).await;
}

/// The last good report is an hour old by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_tries_again_says_so_in_the_status() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE t (id int PRIMARY KEY)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let is = || {
        let status: Value = serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap();
        status["run"]["is"].clone()
    };
    pair.source.stop_immediate().await;
    until("it tries again", async || is() == "retrying").await;
    pair.source.start_again().await;
    until("it runs", async || is() == "running").await;
}
