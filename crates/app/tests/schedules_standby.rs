//! Segue never becomes a standby that the application's commits wait for.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::{Cluster, Options};
use std::time::{Duration, Instant};
use support::slow::{STANDBY, locked, standby, synchronous, until};
use support::{PATIENCE, Pair};
use tokio::task::JoinHandle;

const T: &str = "CREATE TABLE public.t (id int PRIMARY KEY, v text)";

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_would_count_segue_as_a_standby_is_refused_without_a_stall() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both(T).await;
    // Nobody is there to confirm anything: whatever Segue commits on this source hangs.
    pair.source.set("synchronous_standby_names", "*").await;
    let began = Instant::now();
    let said = pair.refused(&pair.run(), "SEGUE-SYNC-STANDBY").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(said.contains("synchronous_standby_names = '*'") && said.contains("next: "), "{said}");
}

/// Writes one row after the other until it is stopped; returns the longest time a commit took, and how many there were.
fn writer(source: &Cluster) -> (JoinHandle<(Duration, i32)>, tokio::sync::oneshot::Sender<()>) {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let url = source.url("postgres");
    let task = tokio::spawn(async move {
        let client = segue_testkit::cluster::connect(&url).await.unwrap();
        let (mut longest, mut id) = (Duration::ZERO, 0);
        while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            id += 1;
            let began = Instant::now();
            client.execute("INSERT INTO public.t VALUES ($1, 'x')", &[&id]).await.unwrap();
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (longest, id)
    });
    (task, stop)
}

/// The setting changes by a reload while Segue streams, and Segue's confirmations are slow: a lock holds up the apply.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_comes_to_be_a_standby_is_stopped_before_commits_stall() {
    let pair = Pair::with(Options::default(), Options::default(), &["public.t"]).await;
    pair.both(T).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    // Later than Segue, so that `*` finds Segue first.
    let standby = standby(&pair.source).await;
    let (written, stop) = writer(&pair.source);
    let held = locked(&pair.target, "public.t", "SHARE").await;
    pair.source.set("synchronous_standby_names", "*").await;
    let said = pair.refused(&run, "SEGUE-SYNC-STANDBY").await;
    for part in ["counts as a sync standby", "synchronous_standby_names = '*'", "next: "] {
        assert!(said.contains(part), "{part} is not said:\n{said}");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    held.batch_execute("COMMIT").await.unwrap();
    stop.send(()).unwrap();
    let (longest, commits) = written.await.unwrap();
    assert!(longest < Duration::from_secs(6), "a commit took {longest:?}");
    assert!(commits > 20, "{commits} commits");
    println!("the longest of {commits} commits took {longest:?}");

    pair.source.set("synchronous_standby_names", STANDBY).await;
    let run = pair.run();
    let streams = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical' AND active";
    until("it streams again", async || pair.source.scalar(streams).await.as_deref() == Some("1")).await;
    pair.source.execute("INSERT INTO public.t VALUES (0, 'mended')").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    drop((run, standby));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_while_the_real_standby_does_not_answer_waits_and_says_so() {
    let pair = Pair::with(synchronous(), Options::default(), &["public.t"]).await;
    let standby = standby(&pair.source).await;
    pair.both(T).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    run.kill9();
    standby.pause().await;
    pair.expire_lease().await;
    let run = pair.run();
    run.wait_for("on the source a commit waits for a synchronous standby that does not answer", PATIENCE)
        .await
        .unwrap();
    // Longer than anything else that a start waits for by itself.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(run.status(), None, "{:?}", run.lines());
    standby.unpause();
    pair.source.execute("INSERT INTO public.t VALUES (1, 'x')").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}
