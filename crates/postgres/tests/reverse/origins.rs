//! Whose transactions are passed over: the opposite stream's, and nobody else's.

use crate::world::{World, log_end};
use segue_postgres::birth::Direction;
use segue_testkit::Options;
use segue_testkit::cluster::available_majors;

/// A session that writes as another subscription does.
async fn subscription(cluster: &segue_testkit::Cluster, name: &str) -> tokio_postgres::Client {
    let client = cluster.connect("postgres").await;
    for function in ["pg_replication_origin_create", "pg_replication_origin_session_setup"] {
        client.execute(&format!("SELECT {function}($1)"), &[&name]).await.unwrap();
    }
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_subscriptions_bring_travels_on() {
    let majors = available_majors();
    for major in [majors[0], majors[majors.len() - 1]] {
        let world = World::start(Options::major(major), Options::default()).await;
        let (forward, reverse) = world.both().await;
        for (cluster, id, name) in [(&world.source, 5_000, "other_1"), (&world.target, 6_000, "other_2")] {
            let other = subscription(cluster, name).await;
            other.batch_execute(&format!("INSERT INTO t VALUES ({id}, 'brought')")).await.unwrap();
            let prepared =
                format!("BEGIN; INSERT INTO t VALUES ({id} + 1, 'brought'); PREPARE TRANSACTION 'p'");
            other.batch_execute(&prepared).await.unwrap();
            other.batch_execute("COMMIT PREPARED 'p'").await.unwrap();
        }
        reverse.caught_up().await;
        forward.caught_up().await;
        assert_eq!((forward.changes(), reverse.changes()), (2, 2));
        world.assert_equal().await;
    }
}

/// Servers give the number of a dropped origin to the next one that is made, and the log holds numbers only.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_origin_whose_number_the_way_back_got_are_not_lost() {
    let majors = available_majors();
    for major in [majors[0], majors[majors.len() - 1]] {
        let world = World::start(Options::major(major), Options::default()).await;
        let forward = world.run(Direction::Forward).await;
        forward.follows().await;
        forward.kill().await;
        // What the forward stream has still to read is of an origin that is gone when it does.
        let other = subscription(&world.source, "other_1").await;
        other.batch_execute("INSERT INTO t VALUES (5000, 'brought')").await.unwrap();
        drop(other);
        let number = "SELECT roident FROM pg_replication_origin WHERE roname = ";
        let was = world.source.scalar(&format!("{number}'other_1'")).await;
        dropped(&world.source, "other_1").await;
        let reverse = world.run(Direction::Reverse).await;
        world.target.execute("INSERT INTO t VALUES (6000, 'back')").await;
        reverse.caught_up().await;
        let now = world.source.scalar(&format!("{number}'segue_orders-move_reverse'")).await;
        assert_eq!(was, now, "the schedule this is about");
        let forward = world.run(Direction::Forward).await;
        forward.caught_up().await;
        assert_eq!((forward.changes(), reverse.changes()), (1, 1));
        world.assert_equal().await;
    }
}

async fn dropped(cluster: &segue_testkit::Cluster, origin: &str) {
    let client = cluster.connect("postgres").await;
    let until = std::time::Instant::now() + crate::world::PATIENCE;
    while let Err(error) = client.execute("SELECT pg_replication_origin_drop($1)", &[&origin]).await {
        assert!(std::time::Instant::now() < until, "{error:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_runs_already_passes_over_the_way_back_from_its_first_row_on() {
    let world = World::start(Options::default(), Options::default()).await;
    let forward = world.run(Direction::Forward).await;
    forward.follows().await;
    forward.caught_up().await;
    let reverse = world.run(Direction::Reverse).await;
    world.target.execute("INSERT INTO t VALUES (6000, 'back')").await;
    reverse.caught_up().await;
    let end = log_end(&world.source).await;
    forward.reaches(end).await;
    assert_eq!(forward.changes(), 0);
    world.assert_equal().await;
}

/// Made and taken in one transaction, the origin has no name yet when that transaction is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_origin_has_no_name_travels_on() {
    let majors = available_majors();
    for major in [majors[0], majors[majors.len() - 1]] {
        let world = World::start(Options::major(major), Options::default()).await;
        let forward = world.run(Direction::Forward).await;
        forward.follows().await;
        let other = world.source.connect("postgres").await;
        let sql = "SELECT pg_replication_origin_create('other_1'); SELECT pg_replication_origin_session_setup('other_1');
            INSERT INTO t VALUES (5000, 'brought')";
        other.batch_execute(sql).await.unwrap();
        forward.caught_up().await;
        assert_eq!(forward.changes(), 1);
        world.assert_equal().await;
    }
}
