//! The emergency order, with the real binary between two real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::kill::Process;
use serde_json::Value;
use std::time::{Duration, Instant};
use support::{PATIENCE, Pair, orders, slow};

async fn following() -> (Pair, Process) {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)").await;
    pair.source.execute("INSERT INTO public.t (v) SELECT 'seed' FROM generate_series(1, 1000)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    (pair, run)
}

async fn rows(pair: &Pair) -> String {
    pair.target.scalar("SELECT count(*) FROM public.t").await.unwrap()
}

async fn status(pair: &Pair, wanted: &str) {
    let until = Instant::now() + PATIENCE;
    while !pair.segue(&["status"], 0).contains(wanted) {
        assert!(Instant::now() < until, "`{wanted}` is not in\n{}", pair.segue(&["status"], 0));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_contained_writes_nothing_until_it_may_go_on_again() {
    let (pair, run) = following().await;
    let answer: Value = serde_json::from_str(&pair.segue(&["contain", "--json"], 0)).unwrap();
    assert!(answer["took_ms"].as_f64().unwrap() < 1000.0, "{answer:#}");
    assert_eq!((answer["owner"].as_str(), answer["resume"].as_str()), (Some("source"), Some("segue resume")));
    pair.source.execute("INSERT INTO public.t (v) VALUES ('meanwhile')").await;
    status(&pair, "contained by").await;
    assert_eq!(rows(&pair).await, "1000");
    // Whoever takes over is as contained.
    run.kill9();
    let run = pair.run();
    status(&pair, "contained by").await;
    assert_eq!(rows(&pair).await, "1000");
    // Nothing would arrive: writes cannot be handed over now.
    pair.segue(&["switch", "writes"], 1);
    pair.segue(&["resume"], 0);
    pair.caught_up().await;
    assert_eq!(rows(&pair).await, "1001");
    run.kill9();
    let run = pair.run();
    pair.source.execute("INSERT INTO public.t (v) VALUES ('after')").await;
    pair.caught_up().await;
    assert_eq!(rows(&pair).await, "1002", "{}", run.lines().join("\n"));
    // So is whoever takes over from one that was paused.
    pair.segue(&["pause", "--reason", "lunch"], 0);
    run.kill9();
    let run = pair.run();
    pair.source.execute("INSERT INTO public.t (v) VALUES ('at lunch')").await;
    status(&pair, ": lunch").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rows(&pair).await, "1002");
    pair.segue(&["resume"], 0);
    pair.caught_up().await;
    assert_eq!(rows(&pair).await, "1003", "{}", run.lines().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_is_under_way_is_undone() {
    let (pair, _run) = following().await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let culprit = pair.source.connect("postgres").await;
    culprit.batch_execute("BEGIN; INSERT INTO public.t (v) VALUES ('held')").await.unwrap();
    let order = orders::order(&pair.target, "switch", &orders::for_real()).await;
    let begun = "SELECT count(*) FROM segue.journal WHERE kind = 'switch-begun'";
    let until = Instant::now() + PATIENCE;
    while pair.target.scalar(begun).await.as_deref() != Some("2") {
        assert!(Instant::now() < until, "it does not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pair.segue(&["contain"], 0);
    let answer = orders::answer(&pair.target, order).await;
    assert_eq!(
        (answer["outcome"].as_str(), answer["owner"].as_str()),
        (Some("undone"), Some("source")),
        "{answer:#}"
    );
    culprit.batch_execute("COMMIT").await.unwrap();
    pair.source.execute("INSERT INTO public.t (v) VALUES ('goes on')").await;
    let off =
        "SELECT count(*) FROM pg_class WHERE array_to_string(reloptions, ',') LIKE '%autovacuum_enabled%'";
    assert_eq!(pair.source.scalar(off).await.as_deref(), Some("0"));
    pair.segue(&["resume"], 0);
    pair.segue(&["switch", "writes"], 0);
}

/// Also where it has not begun, since a lock keeps the way back from being made.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_waits_for_its_way_back_is_given_up() {
    let (pair, _run) = following().await;
    pair.segue(&["verify"], 0);
    let culprit = pair.source.connect("postgres").await;
    culprit.batch_execute("BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let order = orders::order(&pair.target, "switch", &orders::rehearsal()).await;
    status(&pair, "being armed").await;
    pair.segue(&["contain"], 0);
    let answer = orders::answer(&pair.target, order).await;
    assert_eq!(answer["code"], "SEGUE-GIVEN-UP", "{answer:#}");
    culprit.batch_execute("COMMIT").await.unwrap();
    pair.segue(&["resume"], 0);
    pair.segue(&["switch", "writes", "--dry-run"], 0);
}

#[cfg(feature = "killpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_on_their_way_do_not_arrive_after_it() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)").await;
    pair.source.execute("INSERT INTO public.t (v) SELECT 'seed' FROM generate_series(1, 1000)").await;
    pair.fenced().await;
    // The copy has begun a region, and can only commit it when this lock is gone.
    let held = slow::locked(&pair.target, "public.t", "SHARE").await;
    let run = pair.run();
    pair.reaches(&run, "backfilling").await;
    let copying = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'public.t'::regclass AND NOT granted";
    slow::until("a region is on its way", async || pair.target.scalar(copying).await.as_deref() == Some("t"))
        .await;
    let began = Instant::now();
    let answer = orders::ask(&pair.target, "contain", Value::Null).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(answer["stopped"][0].as_str().unwrap().contains("the copy of rows"), "{answer:#}");
    run.wait_for("SEGUE-CONTAINED", PATIENCE).await.unwrap();
    held.batch_execute("COMMIT").await.unwrap();
    // The next attempt of the same process knows of it; so does another process.
    status(&pair, "contained by").await;
    assert_eq!(rows(&pair).await, "0");
    run.kill9();
    let run = pair.run();
    run.wait_for("contained by", PATIENCE).await.unwrap();
    assert_eq!(rows(&pair).await, "0");
    pair.segue(&["resume"], 0);
    pair.reaches(&run, "following").await;
    assert_eq!(rows(&pair).await, "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_the_target_owns_the_writes_it_is_the_way_back_that_stops() {
    let (pair, run) = following().await;
    pair.segue(&["verify"], 0);
    let switched = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(switched["outcome"], "switched", "{switched:#}");
    let answer = orders::ask(&pair.target, "contain", Value::Null).await;
    assert_eq!(answer["owner"], "target", "{answer:#}");
    assert!(answer["stopped"].to_string().contains("from the target to the source"), "{answer:#}");
    assert!(answer["watch"].to_string().contains("the target keeps its log"), "{answer:#}");
    // Its owner takes writes as before; the copy of them does not move, whoever drives.
    pair.target.execute("INSERT INTO public.t (v) VALUES ('meanwhile')").await;
    run.kill9();
    let _run = pair.run();
    status(&pair, "contained by").await;
    let on_source = "SELECT count(*) FROM public.t";
    assert_eq!(pair.source.scalar(on_source).await.as_deref(), Some("1000"));
    let answer = orders::ask(&pair.target, "complete", serde_json::json!({})).await;
    assert_eq!(
        (answer["outcome"].as_str(), answer["blockers"][0]["gate"].as_str()),
        (Some("refused"), Some("way-back"))
    );
    pair.segue(&["resume"], 0);
    slow::until("the way back goes on", async || {
        pair.source.scalar(on_source).await.as_deref() == Some("1001")
    })
    .await;
}
