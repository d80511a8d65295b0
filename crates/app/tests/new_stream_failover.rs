//! The source fails over under a workload: with its slot the stream goes on exactly once, without it a new one is made; what
//! the failed server had acknowledged and the promoted one does not have is removed from the target, and counted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![cfg(feature = "killpoints")]

mod support;

use segue_testkit::cluster::{Cluster, StandbyOptions};
use segue_testkit::proxy::Proxy;
use support::{PATIENCE, Pair, fire, fire::Fire, slow::until};

const STANDBY: &str = "standby1";

/// A standby that every commit on the source waits for, so that a failover loses nothing.
async fn synchronous_standby(source: &Cluster) -> Cluster {
    let mut options = StandbyOptions::named(STANDBY);
    options.settings.push(("synchronous_standby_names".into(), String::new()));
    let standby = Cluster::standby_of(source, options).await;
    source.set("synchronous_standby_names", STANDBY).await;
    standby
}

/// The source dies, the standby takes its place, and the application goes there; so does Segue's spec.
async fn fail_over(fire: &mut Fire, standby: Cluster) {
    fire.pair.source.stop_immediate().await;
    standby.promote().await;
    fire.pair.source = standby;
    fire.moved();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_without_the_slot_is_mended_while_rows_are_copied_and_while_they_are_followed() {
    let mut fire = Fire::start(20_000, fire::seed(), 100).await;
    let standby = synchronous_standby(&fire.pair.source).await;
    fire.dies_at("region.committed", 8).await;
    fire.progress(50).await;
    fail_over(&mut fire, standby).await;
    let run = fire.pair.run();
    run.wait_for("next: `segue run --new-stream`", PATIENCE).await.unwrap();
    assert_eq!(run.wait(PATIENCE).await.unwrap().code(), Some(1));
    let (run, _) = fire.pair.renewed().await;

    // Once more, while it follows, by a standby that somebody has given the slot's files: decoding would begin too late there.
    let standby = synchronous_standby(&fire.pair.source).await;
    fire.progress(50).await;
    fire.pair.caught_up().await;
    fire.pair.stop(&run).await;
    standby.stop_fast().await;
    fire.pair.source.copy_slot("segue_test_fwd", &standby);
    standby.start_again().await;
    fire.progress(50).await;
    fail_over(&mut fire, standby).await;
    let said = fire.pair.refused(&fire.pair.run(), "SEGUE-SLOT-LOST").await;
    assert!(said.contains("was carried over") && said.contains("next: `segue run --new-stream`"), "{said}");
    let (run, _) = fire.pair.renewed().await;
    fire.settle(&run).await;
}

/// The standby lags: the target has what no server has any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failover_lost_is_said_removed_and_counted() {
    let mut pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'kept' FROM generate_series(1, 1000) n").await;
    let line = Proxy::start(pair.source.port()).await;
    let through = StandbyOptions { through_port: Some(line.port()), ..StandbyOptions::named(STANDBY) };
    let standby = Cluster::standby_of(&pair.source, through).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let end = pair.source.scalar("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let has_all = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    until("the standby has all so far", async || standby.scalar(&has_all).await.as_deref() == Some("t"))
        .await;
    line.freeze();
    pair.source
        .execute("INSERT INTO public.t SELECT n, 'lost' FROM generate_series(1001, 1007) n; UPDATE public.t SET v = 'lost' WHERE id < 4; DELETE FROM public.t WHERE id IN (8, 9)")
        .await;
    pair.caught_up().await;
    pair.stop(&run).await;
    pair.source.stop_immediate().await;
    line.cut();
    standby.promote().await;
    pair.source = standby;
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &["public.t"], "");
    let said = pair.refused(&pair.run(), "SEGUE-TIMELINE").await;
    assert!(said.contains("bytes of it are on no server any more"), "{said}");
    let (_run, said) = pair.renewed().await;
    assert!(
        said.contains("1000 rows: 2 were missing on the target, 3 had other values, and 7 were there"),
        "{said}"
    );
    pair.source.execute("INSERT INTO public.t VALUES (2000, 'streamed')").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}
