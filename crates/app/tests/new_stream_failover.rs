//! The source fails over under a workload: with its slot the stream goes on exactly once, without it a new one is made; what
//! the failed server had acknowledged and the promoted one does not have is removed from the target, and counted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![cfg(feature = "killpoints")]

mod support;

use segue_testkit::Options;
use segue_testkit::cluster::{Cluster, StandbyOptions};
use segue_testkit::proxy::Proxy;
use support::{PATIENCE, Pair, fire, fire::Fire, slow::until};

const STANDBY: &str = "standby1";

/// A standby that every commit on the source waits for, so that a failover loses nothing.
async fn synchronous_standby(source: &Cluster) -> Cluster {
    synchronous(source, StandbyOptions::named(STANDBY)).await
}

async fn synchronous(source: &Cluster, mut options: StandbyOptions) -> Cluster {
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

/// A standby that keeps the stream's slot in step, and which the stream waits for.
async fn standby_with_slots(source: &Cluster) -> Cluster {
    let standby = synchronous(source, StandbyOptions::named(STANDBY).with_failover_slots()).await;
    source.set("synchronized_standby_slots", STANDBY).await;
    standby
}

/// Waits until the standby's copy of the slot is there, and would (or would not) outlive a promotion.
async fn slot_synchronised(source: &Cluster, standby: &Cluster, outlives: bool) {
    let slot = format!(
        "SELECT synced AND temporary <> {outlives} FROM pg_replication_slots WHERE slot_name = 'segue_test_fwd'"
    );
    until("the slot is on the standby", async || {
        // What the two servers do now and then by themselves: find a place to decode from, look for slots.
        source.execute("SELECT pg_log_standby_snapshot()").await;
        standby.execute("SELECT pg_reload_conf()").await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        standby.scalar(&slot).await.as_deref() == Some("t")
    })
    .await;
}

/// The server itself has kept the slot: nothing is to be ordered, and nothing is copied or compared again.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_with_a_synchronised_slot_is_followed_and_one_too_early_is_refused() {
    let mut fire = Fire::on(&Options::major(17), 20_000, fire::seed(), 100).await;
    let standby = standby_with_slots(&fire.pair.source).await;
    fire.dies_at("region.committed", 2).await;
    let incarnation = fire.pair.target.scalar("SELECT incarnation FROM segue.stream").await.unwrap();
    // The slot is in step only after a while; the order outlives the process.
    let run = fire.pair.run();
    until("the copy is slow", async || {
        fire.pair.command(&["throttle", "--rate", "64KiB"]).output().unwrap().status.success()
    })
    .await;
    slot_synchronised(&fire.pair.source, &standby, true).await;
    fire.progress(50).await;
    fail_over(&mut fire, standby).await;
    drop(run);
    let unfinished = "SELECT backfilled_at IS NULL FROM segue.stream";
    assert_eq!(fire.pair.target.scalar(unfinished).await.as_deref(), Some("t"), "copied too soon");
    let run = fire.pair.run();
    fire.pair.caught_up().await;
    fire.pair.segue(&["throttle", "--off"], 0);
    fire.pair.reaches(&run, "following").await;

    // While it follows.
    let standby = standby_with_slots(&fire.pair.source).await;
    slot_synchronised(&fire.pair.source, &standby, true).await;
    fire.progress(50).await;
    fail_over(&mut fire, standby).await;
    drop(run);
    let run = fire.pair.run();
    fire.progress(50).await;
    fire.pair.caught_up().await;
    let stream = "SELECT timeline || ' ' || incarnation FROM segue.stream";
    let on_third = fire.pair.target.scalar(stream).await;
    assert_eq!(on_third, Some(format!("3 {incarnation}")), "one stream, on three timelines");
    let orders = "SELECT count(*) FROM segue.journal WHERE kind = 'new-stream'";
    assert_eq!(fire.pair.target.scalar(orders).await.as_deref(), Some("0"));

    // The standby has begun to keep it, and cannot promise anything yet: a promotion drops it.
    fire.pair.stop(&run).await;
    fire.progress(50).await;
    let standby = standby_with_slots(&fire.pair.source).await;
    slot_synchronised(&fire.pair.source, &standby, false).await;
    fail_over(&mut fire, standby).await;
    let said = fire.pair.refused(&fire.pair.run(), "SEGUE-SLOT-LOST").await;
    assert!(said.contains("is gone") && said.contains("next: `segue run --new-stream`"), "{said}");
    let (run, _) = fire.pair.renewed().await;
    fire.settle(&run).await;
}
