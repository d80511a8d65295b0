//! The fence can be taken away, and nothing of it is left.

use crate::world::*;
use segue_engine::fault::Fault;
use segue_postgres::birth::{drop_objects, forget};
use segue_postgres::fence::{Removed, autovacuum, remove};
use segue_testkit::Options;

const LEFT: &str = "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal) + (SELECT count(*) FROM pg_proc WHERE proname LIKE 'fence\\_m%')
     + (SELECT count(*) FROM segue.owner) + (SELECT count(*) FROM segue.autovacuum)
     + (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL)";

#[tokio::test]
async fn removing_the_fence_leaves_nothing_and_can_be_repeated() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    autovacuum::turn_off(&world.client, ("m", 3)).await.unwrap();
    world.fenced(0, 1).await;
    let mut removed = Removed::default();
    remove(&world.client, "m", &mut removed).await.unwrap();
    assert_eq!(removed, Removed { fences: 8, autovacuum: 6 });
    assert_eq!(world.cluster.scalar(LEFT).await.as_deref(), Some("0"));
    removed = Removed::default();
    remove(&world.client, "m", &mut removed).await.unwrap();
    assert_eq!(removed, Removed::default());
    world.app().await.batch_execute("TRUNCATE plain, parts, heirs").await.unwrap();
}

#[tokio::test]
async fn cancelling_takes_the_fence_along_and_a_reader_in_the_way_is_named() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let reader = world.app().await;
    reader.batch_execute("SET application_name = 'report'; BEGIN; SELECT * FROM plain").await.unwrap();
    let (over, mut is_over) = tokio::sync::mpsc::unbounded_channel();
    let report = |fault: &Fault| over.send(fault.clone()).unwrap();
    let control = world.cluster.connect("postgres").await;
    let (removed, ()) = tokio::join!(drop_objects(&world.client, &control, "m", report), async {
        let fault = is_over.recv().await.unwrap();
        assert!(fault.code == "SEGUE-LOCKED" && fault.what.contains("report"), "{fault}");
        reader.batch_execute("COMMIT").await.unwrap();
    });
    let removed = removed.unwrap();
    // Both sides are one database here, and the target's turn is first.
    let all = removed.contains(&"target: fence of 8 tables".to_owned());
    assert!(all, "also those that were removed before the reader was met: {removed:?}");
    assert_eq!(forget(&world.client, "m").await.unwrap().as_deref(), Some("the schema segue"));
    let left = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(world.cluster.scalar(left).await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_dropped_schema_takes_the_triggers_with_it() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    world.fenced(0, 1).await;
    world.client.batch_execute("DROP SCHEMA segue CASCADE").await.unwrap();
    world.app().await.batch_execute("UPDATE plain SET v = 'free'; TRUNCATE parts").await.unwrap();
}
