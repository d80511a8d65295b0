//! The guard goes without a trace, and never outlives what it guards.

use crate::world::{MOVED, World, names};
use segue_engine::fault::Fault;
use segue_postgres::birth::{drop_objects, forget};
use segue_postgres::ddl_guard::{Guarded, install, remove};

const LEFT: &str = "SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_proc WHERE proname LIKE 'guard%')
    + (SELECT count(*) FROM segue.guarded)";
const CHANGE: &str = "ALTER TABLE plain ADD COLUMN more float DEFAULT random(); ALTER TABLE ev_1 REPLICA IDENTITY FULL; DROP TABLE ev";

#[tokio::test]
async fn removing_leaves_nothing_and_can_be_repeated() {
    let world = World::guarded(15).await;
    install(&world.client, ("n", 5), &names(&["other.moved"])).await.unwrap();
    assert!(remove(&world.client, "m").await.unwrap());
    world.passes(CHANGE).await;
    let other = world.refused("DROP TABLE other.moved").await;
    assert!(other.message().contains("migration n"), "the other migration's stays: {other:?}");
    assert!(remove(&world.client, "n").await.unwrap());
    assert!(!remove(&world.client, "n").await.unwrap());
    assert_eq!(world.count(LEFT).await, 0);
    assert_eq!(install(&world.client, ("m", 3), &names(&["public.gen"])).await.unwrap(), Guarded::Installed);
    world.refused("DROP TABLE gen").await;
}

#[tokio::test]
async fn cancelling_takes_the_guard_along() {
    let world = World::guarded(15).await;
    world.cluster.execute("CREATE DATABASE target").await;
    let target = world.cluster.connect("target").await;
    let removed = drop_objects(&world.client, &target, "m", |_| {}).await.unwrap();
    assert!(removed.contains(&"source: guard against DDL".to_owned()), "{removed:?}");
    assert_eq!(world.count(LEFT).await, 0);
    forget(&world.client, "n").await.unwrap();
    assert_eq!(forget(&world.client, "m").await.unwrap().as_deref(), Some("the schema segue"));
    world.passes(CHANGE).await;
}

#[tokio::test]
async fn cancelling_waits_for_ddl_that_is_not_committed_and_says_so() {
    let world = World::guarded(15).await;
    world.cluster.execute("CREATE DATABASE target").await;
    let target = world.cluster.connect("target").await;
    let app = world.cluster.connect("postgres").await;
    app.batch_execute("BEGIN; ALTER TABLE ev DETACH PARTITION ev_1").await.unwrap();
    let told = tokio::sync::Notify::new();
    let report = |fault: &Fault| {
        assert_eq!(fault.code, "SEGUE-LOCKED", "{fault}");
        told.notify_one();
    };
    let (removed, ()) = tokio::join!(drop_objects(&world.client, &target, "m", report), async {
        told.notified().await;
        app.batch_execute("COMMIT").await.unwrap();
    });
    let removed = removed.unwrap();
    assert!(removed.contains(&"source: guard against DDL".to_owned()), "{removed:?}");
    assert_eq!(world.count(LEFT).await, 0);
}

#[tokio::test]
async fn fingerprints_are_rows_that_keep_the_schema() {
    let world = World::guarded(15).await;
    forget(&world.client, "n").await.unwrap();
    world.client.batch_execute("TRUNCATE segue.token").await.unwrap();
    assert_eq!(forget(&world.client, "n").await.unwrap(), None, "the schema is not empty");
    world.refused("ALTER TABLE plain ADD COLUMN more int").await;
}

#[tokio::test]
async fn without_its_table_or_its_schema_it_lets_everything_pass() {
    let world = World::guarded(15).await;
    world.client.batch_execute("ALTER TABLE segue.guarded RENAME TO away").await.unwrap();
    world
        .passes(
            "ALTER TABLE gen ADD COLUMN more float DEFAULT random(); DROP INDEX CONCURRENTLY by_index_key",
        )
        .await;
    // Nor does it read what somebody has put in its place.
    world.client.batch_execute("CREATE VIEW segue.guarded AS SELECT * FROM segue.away").await.unwrap();
    world.passes("ALTER TABLE gen ADD COLUMN again int").await;
    world.client.batch_execute("DROP SCHEMA segue CASCADE").await.unwrap();
    world.passes(CHANGE).await;
    assert_eq!(world.count("SELECT count(*) FROM pg_event_trigger").await, 0);
}

#[tokio::test]
async fn a_copy_of_the_database_is_not_guarded() {
    let World { cluster, client } = World::guarded(15).await;
    drop(client);
    let admin = cluster.connect("template1").await;
    let ended = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres'";
    while admin.query_one(ended, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::task::yield_now().await;
    }
    admin.batch_execute("CREATE DATABASE copy TEMPLATE postgres").await.unwrap();
    let copy = cluster.connect("copy").await;
    for sql in CHANGE.split(';') {
        copy.batch_execute(sql).await.unwrap();
    }
    copy.batch_execute("DROP TABLE other.moved").await.unwrap();
    let original = cluster.connect("postgres").await;
    original.batch_execute("DROP TABLE other.moved").await.unwrap_err();
    assert_eq!(install(&original, ("m", 3), &names(&MOVED)).await.unwrap(), Guarded::Installed);
}
