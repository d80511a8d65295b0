//! A second `segue run` stands by, and takes over from one that is killed and from one that is stopped and wakes up later.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_testkit::kill::Process;
use std::time::{Duration, Instant};
use support::fire::{self, Fire};

/// Waits until `run` drives the migration; how long that took.
async fn drives(fire: &Fire, run: &Process, limit: Duration) -> Duration {
    let began = Instant::now();
    let drives =
        format!("SELECT holder LIKE '%process {}' AND released_at IS NULL FROM segue.lease", run.pid());
    while fire.pair.target.scalar(&drives).await.as_deref() != Some("t") {
        assert!(began.elapsed() < limit, "not taken over within {limit:?}:\n{}", run.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

async fn stands_by(fire: &Fire) -> Process {
    let run = fire.pair.run();
    run.wait_for("standing by", support::PATIENCE).await.expect("a second process stands by");
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_and_from_a_stopped_driver() {
    let fire = Fire::start(20_000, fire::seed(), 100).await;
    let first = fire.pair.run();
    fire.pair.reaches(&first, "following").await;
    let second = stands_by(&fire).await;
    // Shortly after a server's start a lost session proves nothing: everybody has lost his.
    let old = "SELECT clock_timestamp() - pg_postmaster_start_time() > interval '11 s'";
    while fire.pair.target.scalar(old).await.as_deref() != Some("t") {
        fire.progress(10).await;
    }

    first.kill9();
    let took = drives(&fire, &second, Duration::from_secs(3)).await;
    eprintln!("taken over from a killed driver within {} ms", took.as_millis());
    fire.progress(50).await;
    fire.pair.caught_up().await;

    let third = stands_by(&fire).await;
    second.freeze();
    let took = drives(&fire, &third, Duration::from_secs(20)).await;
    eprintln!("taken over from a stopped driver within {} ms", took.as_millis());
    fire.progress(50).await;
    // What the stopped one holds (slot, origin, snapshots) is not waited for.
    let began = Instant::now();
    fire.pair.caught_up().await;
    assert!(began.elapsed() < Duration::from_secs(20), "held up by the stopped driver");

    second.thaw();
    let status = second.wait(Duration::from_secs(30)).await.expect("a superseded driver ends by itself");
    let said = second.lines().join("\n");
    assert!(!status.success() && said.contains("SEGUE-SUPERSEDED"), "{status}\n{said}");
    fire.progress(50).await;
    drives(&fire, &third, Duration::from_millis(1)).await;
    fire.settle(&third).await;
}
