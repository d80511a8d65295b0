//! Both streams at once.

use crate::world::{World, log_end};
use segue_postgres::birth::Direction;
use segue_testkit::Options;
use segue_testkit::cluster::available_majors;
use std::time::Duration;

/// What an application does on one side, to keys that belong to that side; each statement a transaction of its own.
fn writes(from: i32) -> Vec<String> {
    let big = "repeat('y', 9000)";
    [
        format!("INSERT INTO t SELECT i, 'new', {big} FROM generate_series({from}, {from} + 9) i"),
        // Its large value is not touched.
        format!("UPDATE t SET a = 'changed' WHERE id BETWEEN {from} AND {from} + 4"),
        format!("UPDATE t SET id = id + 100 WHERE id = {from}"),
        format!("DELETE FROM t WHERE id = {from} + 9"),
        format!("INSERT INTO auto (id, a) OVERRIDING SYSTEM VALUE VALUES ({from}, 'own'), ({from} + 1, 'own')"),
        format!("UPDATE auto SET a = 'changed' WHERE id = {from}"),
        format!("INSERT INTO whole VALUES ({from}, 'new'), ({from}, 'new')"),
        format!("UPDATE whole SET b = 'changed' WHERE ctid = (SELECT min(ctid) FROM whole WHERE a = {from})"),
        format!("INSERT INTO r VALUES (-{from}, 'low'), ({from}, 'high')"),
        // To the other partition and back.
        format!("UPDATE r SET id = {from} + 50 WHERE id = -{from}"),
        format!("UPDATE r SET id = -{from} - 50 WHERE id = {from} + 50"),
        format!("BEGIN; INSERT INTO r VALUES ({from} + 60, 'x'); SAVEPOINT a; DELETE FROM r WHERE id = {from}; ROLLBACK TO a; COMMIT"),
    ]
    .into()
}

/// Row changes that [`writes`] makes: a move between partitions is two.
const CHANGES: u64 = 10 + 5 + 1 + 1 + 2 + 1 + 2 + 1 + 2 + 2 + 2 + 1;

async fn travel_both_ways(source: Options, target: Options) {
    let world = World::start(source, target).await;
    let (forward, reverse) = world.both().await;
    for (there, here) in writes(20_000).iter().zip(&writes(40_000)) {
        world.target.execute(there).await;
        world.source.execute(here).await;
    }
    reverse.caught_up().await;
    forward.caught_up().await;
    // Whatever came back by mistake would be on its way now.
    reverse.caught_up().await;
    forward.caught_up().await;
    assert_eq!((forward.changes(), reverse.changes()), (CHANGES, CHANGES));
    world.assert_equal().await;
    // Both ways write checkpoints, which the other one reads: that must not keep them busy.
    let (before, ends) = ((forward.transactions(), reverse.transactions()), log_end(&world.target).await);
    world.source.execute("INSERT INTO t VALUES (1000000, 'marker')").await;
    forward.caught_up().await;
    reverse.reaches(ends).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let marker = "SELECT count(*) FROM t WHERE a = 'marker'";
    assert_eq!(world.target.scalar(marker).await.as_deref(), Some("1"));
    assert_eq!((forward.changes(), reverse.changes()), (CHANGES + 1, CHANGES));
    // The marker and the signal; nothing in answer to them.
    let after = (forward.transactions() - before.0, reverse.transactions() - before.1);
    assert!(after.0 <= 4 && after.1 <= 4, "the streams keep each other busy: {after:?}");
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_travel_both_ways_and_none_comes_back() {
    travel_both_ways(Options::default(), Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_travel_between_the_oldest_and_the_newest_server() {
    let majors = available_majors();
    let (oldest, newest) = (majors[0], majors[majors.len() - 1]);
    travel_both_ways(Options::major(oldest), Options::major(newest)).await;
}

/// Before 15, a transaction that has nothing for a stream is sent to it all the same, and each way writes checkpoints.
#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_not_answered_by_checkpoints() {
    let majors = available_majors();
    let target = *majors.iter().find(|major| **major >= 14).unwrap();
    travel_both_ways(Options::major(majors[0]), Options::major(target)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_either_way_doubles_nothing() {
    let world = World::start(Options::default(), Options::default()).await;
    let (mut forward, mut reverse) = world.both().await;
    for round in 0..3 {
        let mut statements = writes(20_000 + round * 1_000).into_iter().zip(writes(40_000 + round * 1_000));
        for (there, here) in statements.by_ref().take(6) {
            world.target.execute(&there).await;
            world.source.execute(&here).await;
        }
        // In the middle of it, whatever is on its way.
        forward.kill().await;
        reverse.kill().await;
        for (there, here) in statements {
            world.target.execute(&there).await;
            world.source.execute(&here).await;
        }
        reverse = world.run(Direction::Reverse).await;
        forward = world.run(Direction::Forward).await;
    }
    reverse.caught_up().await;
    forward.caught_up().await;
    world.assert_equal().await;
    let rows = "SELECT count(*) FROM whole WHERE a >= 20000";
    assert_eq!(world.source.scalar(rows).await.as_deref(), Some("12"));
}

/// What the forward stream does about partitions on its target would empty them on the source, which owns the rows.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_or_go_on_the_target_stop_the_way_back_and_touch_no_row() {
    for change in [
        "ALTER TABLE r DETACH PARTITION r_low",
        "ALTER TABLE r DETACH PARTITION r_low; ALTER TABLE r_low RENAME TO gone; DELETE FROM gone",
        "CREATE TABLE r_top (LIKE r INCLUDING ALL); ALTER TABLE r DETACH PARTITION r_high;
         ALTER TABLE r ATTACH PARTITION r_top FOR VALUES FROM (1000) TO (MAXVALUE)",
    ] {
        let world = World::start(Options::default(), Options::default()).await;
        let (_forward, reverse) = world.both().await;
        world.target.execute(change).await;
        let fault = reverse.fault().await;
        assert_eq!(fault.code, "SEGUE-DDL-DRIFT");
        assert!(fault.what.contains("on the target: the way back"), "{fault}");
        let rows = "SELECT count(*) FROM r";
        assert_eq!(world.source.scalar(rows).await.as_deref(), Some("201"));
        // Nor when it is tried again.
        let again = match world.try_run(Direction::Reverse).await {
            Ok(reverse) => reverse.fault().await,
            Err(fault) => fault,
        };
        assert_eq!(again.code, "SEGUE-DDL-DRIFT");
        assert_eq!(world.source.scalar(rows).await.as_deref(), Some("201"));
    }
}

/// A row copied anew holds what the source had a moment before: if it travelled back, it would undo what came since.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_copied_anew_do_not_travel_back() {
    let world = World::start(Options::default(), Options::default()).await;
    let (forward, reverse) = world.both().await;
    // A difference, made by somebody whom the way back does not listen to.
    let lost = world.target.connect("postgres").await;
    for function in ["pg_replication_origin_create", "pg_replication_origin_session_setup"] {
        let origin = "segue_orders-move_forward_copy_1";
        lost.execute(&format!("SELECT {function}($1)"), &[&origin]).await.unwrap();
    }
    lost.batch_execute("DELETE FROM t WHERE id <= 10; UPDATE t SET a = 'wrong' WHERE id = 11").await.unwrap();
    forward.repair(0).await;
    world.target.execute("INSERT INTO t VALUES (6000, 'back')").await;
    reverse.caught_up().await;
    assert_eq!(reverse.changes(), 1);
    world.assert_equal().await;
    forward.kill().await;
    reverse.kill().await;
    drop(lost);
    let (source, target) = world.clients().await;
    segue_postgres::birth::drop_objects(&source, &target, crate::world::MIGRATION, |_| {}).await.unwrap();
    let origins = "SELECT count(*) FROM pg_replication_origin";
    assert_eq!(world.target.scalar(origins).await.as_deref(), Some("0"));
}
