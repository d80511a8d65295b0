//! The way back is made, killed while it is made, made again, and removed.

use crate::world::{MIGRATION, TOKEN, World, log_end};
use segue_postgres::birth::{self, Direction, drop_objects, drop_reverse, forget};
use segue_testkit::Options;

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_is_there_is_found_and_not_made_again() {
    let world = World::start(Options::default(), Options::default()).await;
    let forward = world.run(Direction::Forward).await;
    forward.follows().await;
    let first = world.arm().await.unwrap();
    assert_eq!((first.slot.as_str(), first.direction), ("segue_orders_move_rev", Direction::Reverse));
    let again = world.arm().await.unwrap();
    assert_eq!((again.incarnation, &again.slot), (first.incarnation, &first.slot));
    let done = "SELECT backfilled_at IS NOT NULL FROM segue.stream WHERE direction = 'reverse'";
    assert_eq!(world.source.scalar(done).await.as_deref(), Some("t"));
    let published = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(world.target.scalar(published).await.as_deref(), Some("auto r_high r_low signal t whole"));
    // Its loss is the way back's, and nobody is told to drop the tables that the application may write to by then.
    world.target.execute("SELECT pg_drop_replication_slot('segue_orders_move_rev')").await;
    let lost = world.arm().await.unwrap_err();
    assert_eq!(lost.code, "SEGUE-SLOT-LOST");
    assert!(lost.what.contains("or the target failed over"), "{}", lost.what);
    assert!(!lost.next_step.contains("drop"), "{}", lost.next_step);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_taken_over_makes_no_way_back() {
    let world = World::start(Options::default(), Options::default()).await;
    let raise = format!("SELECT segue.raise_token('{MIGRATION}', {})", TOKEN + 1);
    world.target.execute(&raise).await;
    assert_eq!(world.arm().await.unwrap_err().code, "SEGUE-SUPERSEDED");
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_leaves_nothing_on_either_side() {
    let world = World::start(Options::default(), Options::default()).await;
    let (forward, reverse) = world.both().await;
    world.target.execute("INSERT INTO t VALUES (6000, 'back')").await;
    reverse.caught_up().await;
    forward.reaches(log_end(&world.source).await).await;
    forward.kill().await;
    reverse.kill().await;
    let (source, target) = world.clients().await;
    let removed = drop_objects(&source, &target, MIGRATION, |_| {}).await.unwrap();
    for line in [
        "target: replication slot segue_orders_move_rev",
        "target: publication segue_orders_move_rev",
        "source: replication origin segue_orders-move_reverse",
    ] {
        assert!(removed.iter().any(|r| r == line), "{line}: {removed:#?}");
    }
    for client in [&source, &target] {
        forget(client, MIGRATION).await.unwrap();
        let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)
            + (SELECT count(*) FROM pg_replication_origin) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'segue')";
        assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0);
    }
    assert!(drop_objects(&source, &target, MIGRATION, |_| {}).await.unwrap().is_empty(), "nothing is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_was_given_up_is_made_anew() {
    let world = World::start(Options::default(), Options::default()).await;
    let (forward, reverse) = world.both().await;
    world.target.execute("INSERT INTO t VALUES (6000, 'back')").await;
    reverse.caught_up().await;
    let first = world.arm().await.unwrap();
    let (source, target) = world.clients().await;
    let late = drop_reverse(&source, &target, (MIGRATION, TOKEN - 1)).await.unwrap_err();
    assert_eq!(late.code, "SEGUE-SUPERSEDED");
    // While it runs: its sessions are ended, and it can store nothing any more.
    for _ in 0..2 {
        drop_reverse(&source, &target, (MIGRATION, TOKEN)).await.unwrap();
    }
    reverse.fault().await;
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)
        + (SELECT count(*) FROM segue.stream WHERE direction = 'reverse')";
    assert_eq!(world.target.scalar(left).await.as_deref(), Some("0"));
    reverse.kill().await;
    let reverse = world.run(Direction::Reverse).await;
    assert!(world.arm().await.unwrap().incarnation > first.incarnation);
    world.target.execute("INSERT INTO t VALUES (6001, 'back')").await;
    world.source.execute("INSERT INTO t VALUES (5001, 'there')").await;
    reverse.caught_up().await;
    forward.caught_up().await;
    assert_eq!((forward.changes(), reverse.changes()), (1, 1));
    world.assert_equal().await;
}

/// A process that makes the way back between the servers that [`SERVERS`] names, and may die of it.
const SERVERS: &str = "SEGUE_TEST_REVERSE_SERVERS";

#[tokio::test]
async fn child_that_makes_the_way_back() {
    let Ok(servers) = std::env::var(SERVERS) else { return };
    let (source, target) = servers.split_once(' ').unwrap();
    let mut client = segue_testkit::cluster::connect(source).await.unwrap();
    let mut there = segue_testkit::cluster::connect(target).await.unwrap();
    let catalog = crate::world::plan_between(&mut client, &mut there, Direction::Reverse).await;
    let to = segue_postgres::connect::Endpoint::parse(target).unwrap();
    birth::reverse(&client, &to, (MIGRATION, TOKEN), &catalog.relations, |_| {}).await.unwrap();
}

#[cfg(feature = "killpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_point_of_its_birth_it_is_made_all_the_same() {
    let world = World::start(Options::default(), Options::default()).await;
    let forward = world.run(Direction::Forward).await;
    forward.follows().await;
    // Those of the birth of a stream; what else there is belongs to the birth of the forward one.
    for point in ["birth.incarnation", "birth.slot", "birth.barrier", "birth.claimed"] {
        assert!(segue_engine::killpoint::ALL.contains(&point));
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "born::child_that_makes_the_way_back"]);
        child.env(SERVERS, format!("{} {}", world.source.url("postgres"), world.target.url("postgres")));
        segue_testkit::kill::kill_at(&mut child, point, 1);
        let output = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert_eq!(signal, Some(9), "{point}: {}", String::from_utf8_lossy(&output.stdout));
    }
    // The last one had claimed it.
    let reverse = world.run(Direction::Reverse).await;
    world.target.execute("INSERT INTO t VALUES (6000, 'back')").await;
    reverse.caught_up().await;
    assert_eq!(reverse.changes(), 1);
    world.assert_equal().await;
    drop(forward);
}
