//! What is left of a process that was killed or stood still: it must not take effect behind the next one's back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]
#![cfg(feature = "killpoints")]

mod support;

use segue_testkit::kill::Process;
use segue_testkit::proxy::Proxy;
use std::time::Duration;
use support::{PATIENCE, Pair};

/// Without a key nothing but the token keeps rows from being there twice.
const KEYLESS: &str = "CREATE TABLE public.t (id int, v text); ALTER TABLE public.t REPLICA IDENTITY FULL";

/// The first process stands still with a region copied and not committed. The next one reads which regions there are, and
/// copies this one too. Then the first one wakes up.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_of_a_process_that_stood_still_is_not_committed_behind_the_next_one() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both(KEYLESS).await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'early' FROM generate_series(1, 100) n").await;
    let (first, _) = pair.run_stopping("region.stored");
    first.stopped_at("region.stored", PATIENCE).await.unwrap();
    pair.expire_lease().await;
    let second = pair.run();
    pair.reaches(&second, "following").await;
    first.thaw();
    pair.refused(&first, "SEGUE-SUPERSEDED").await;
    pair.source.execute("UPDATE public.t SET v = 'late' WHERE id = 7").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    second.wait_for("ended a transaction of an earlier process", Duration::ZERO).await.expect("it is named");
}

/// A target that only a process of the past reaches through this proxy.
async fn past(pair: &Pair) -> Proxy {
    let proxy = Proxy::start(pair.target.port()).await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url_through(proxy.port(), "postgres"));
    pair.write_spec(&source, &target, &["public.t"], "");
    proxy
}

/// Kills the stopped `first` when what it does next is on the wire, runs the next process until it follows, and only
/// then lets the wire deliver.
async fn delivered_late(pair: &Pair, proxy: Proxy, first: &Process) {
    proxy.freeze();
    first.thaw();
    tokio::time::sleep(Duration::from_millis(500)).await;
    first.kill9();
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &["public.t"], "");
    pair.expire_lease().await;
    let second = pair.run();
    second.wait_for("test following", PATIENCE).await.unwrap();
    proxy.thaw();
    pair.source.execute("INSERT INTO public.t VALUES (1000, 'after')").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    assert_eq!(second.status(), None, "the second process goes on");
    second.wait_for("ended a transaction of an earlier process", Duration::ZERO).await.expect("it is named");
}

/// The first process is killed when its COMMIT is on the wire; the wire delivers it when the next process is at work.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_of_a_killed_process_whose_commit_arrives_late_is_refused() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both(KEYLESS).await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'early' FROM generate_series(1, 100) n").await;
    let proxy = past(&pair).await;
    let (first, _) = pair.run_stopping("region.stored");
    first.stopped_at("region.stored", PATIENCE).await.unwrap();
    delivered_late(&pair, proxy, &first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_a_killed_process_whose_commit_arrives_late_is_refused() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    let proxy = past(&pair).await;
    let (first, stops) = pair.run_stopping("none");
    pair.reaches(&first, "following").await;
    // Its statements are prepared with this one, so that the next one's end is a single message.
    pair.source.execute("INSERT INTO public.t VALUES (1, 'before')").await;
    pair.caught_up().await;
    stops.at("batch.written");
    pair.source.execute("INSERT INTO public.t VALUES (2, 'late')").await;
    let written =
        "SELECT count(*) FROM pg_locks WHERE relation = 'public.t'::regclass AND mode = 'RowExclusiveLock'";
    loop {
        first.stopped_at("batch.written", PATIENCE).await.unwrap();
        if pair.target.scalar(written).await.as_deref() == Some("1") {
            break;
        }
        // It was a batch that only moves the checkpoint.
        stops.at("batch.written");
        first.thaw();
    }
    delivered_late(&pair, proxy, &first).await;
}
