//! The guard is made where that is allowed, under the newest token, as often as one likes.

use crate::world::{MOVED, World, names};
use segue_engine::fault::Recovery;
use segue_postgres::ddl_guard::{Guarded, install, remove};
use segue_postgres::schema;
use segue_testkit::{Cluster, Options};
use std::time::Duration;

fn why(guarded: Guarded) -> String {
    match guarded {
        Guarded::NotAllowed(why) => why,
        Guarded::Installed => panic!("it is in place"),
    }
}

async fn without_superuser(major: u16) {
    let cluster = Cluster::start(Options::major(major)).await;
    cluster
        .execute("CREATE ROLE mover LOGIN PASSWORD 'mover'; GRANT ALL ON DATABASE postgres TO mover; GRANT ALL ON SCHEMA public TO mover")
        .await;
    let url = cluster.url("postgres");
    let at = url.find('@').unwrap();
    let mut mover =
        segue_testkit::cluster::connect(&format!("postgres://mover:mover{}", &url[at..])).await.unwrap();
    mover.batch_execute("CREATE TABLE plain (id int PRIMARY KEY)").await.unwrap();
    schema::ensure(&mut mover).await.unwrap();
    mover.batch_execute("INSERT INTO segue.token VALUES ('m', 3)").await.unwrap();
    let tables = names(&["public.plain"]);
    let why = why(install(&mover, ("m", 3), &tables).await.unwrap());
    assert!(why.contains("superuser") && why.contains("permission denied to create event trigger"), "{why}");
    let left = "SELECT (SELECT count(*) FROM pg_proc WHERE proname LIKE 'guard%') + (SELECT count(*) FROM segue.guarded)";
    assert_eq!(cluster.scalar(left).await.as_deref(), Some("0"), "half a guard is none");
    mover.batch_execute("ALTER TABLE plain ADD COLUMN more int").await.unwrap();
    // Once the role may, the table of fingerprints is its own, whoever has made it.
    let admin = cluster.connect("postgres").await;
    assert_eq!(install(&admin, ("m", 3), &tables).await.unwrap(), Guarded::Installed);
    mover.batch_execute("ALTER TABLE plain ADD COLUMN again int").await.unwrap_err();
}

#[tokio::test]
async fn a_role_that_is_no_superuser_is_told_so_on_15() {
    without_superuser(15).await;
}

#[tokio::test]
async fn a_role_that_is_no_superuser_is_told_so_on_18() {
    without_superuser(18).await;
}

#[tokio::test]
async fn a_server_that_runs_no_event_triggers_is_told() {
    let cluster = Cluster::start(Options::major(18).with("event_triggers", "off")).await;
    let mut client = cluster.connect("postgres").await;
    client.batch_execute("CREATE TABLE plain (id int PRIMARY KEY)").await.unwrap();
    schema::ensure(&mut client).await.unwrap();
    client.batch_execute("INSERT INTO segue.token VALUES ('m', 3)").await.unwrap();
    let why = why(install(&client, ("m", 3), &names(&["public.plain"])).await.unwrap());
    assert!(why.contains("event_triggers"), "{why}");
}

#[tokio::test]
async fn what_was_changed_by_agreement_is_guarded_after_the_next_install() {
    let world = World::guarded(15).await;
    let add = "ALTER EVENT TRIGGER segue_guard_m DISABLE; ALTER TABLE plain ADD COLUMN more int;
        DROP INDEX by_index_key; ALTER TABLE other.moved ALTER id TYPE bigint; ALTER EVENT TRIGGER segue_guard_m ENABLE";
    world.client.batch_execute(add).await.unwrap();
    let stale = world.refused("ALTER TABLE plain ALTER v SET STORAGE EXTERNAL").await;
    assert!(stale.message().contains("column more would be added"), "until then it is a change: {stale:?}");
    // Also without a table that moves no longer.
    let fewer: Vec<&str> = MOVED.into_iter().filter(|name| *name != "public.whole").collect();
    for _ in 0..2 {
        assert_eq!(install(&world.client, ("m", 3), &names(&fewer)).await.unwrap(), Guarded::Installed);
    }
    world
        .passes("ALTER TABLE plain ALTER v SET STORAGE EXTERNAL; ALTER TABLE whole ADD COLUMN more int")
        .await;
    let said = world.refused("ALTER TABLE plain DROP COLUMN more").await;
    assert!(said.message().contains("column more would be dropped"), "{said:?}");
    assert_eq!(world.count("SELECT count(*) FROM pg_event_trigger").await, 4);
}

#[tokio::test]
async fn a_guard_that_somebody_has_disabled_stays_so() {
    let world = World::guarded(15).await;
    world.client.batch_execute("ALTER EVENT TRIGGER segue_guard_m DISABLE").await.unwrap();
    let why = why(install(&world.client, ("m", 3), &names(&MOVED)).await.unwrap());
    assert!(why.contains("ALTER EVENT TRIGGER segue_guard_m ENABLE"), "{why}");
    world.passes("ALTER TABLE plain ADD COLUMN more float DEFAULT random(); DROP TABLE other.moved; DROP INDEX CONCURRENTLY by_index_key").await;
}

#[tokio::test]
async fn an_earlier_process_is_shut_out() {
    let world = World::start(15).await;
    let fault = install(&world.client, ("m", 2), &names(&MOVED)).await.unwrap_err();
    assert_eq!(fault.code, "SEGUE-SUPERSEDED");
    assert_eq!(world.count("SELECT count(*) FROM pg_event_trigger").await, 0);
    let fault = install(&world.client, ("m", 3), &names(&["public.nothing"])).await.unwrap_err();
    assert!(fault.code == "SEGUE-SCHEMA-CHANGED" && fault.what.contains("nothing"), "{fault}");
}

#[tokio::test]
async fn ddl_that_is_not_committed_is_not_waited_for_and_leaves_the_guard_as_it_was() {
    let world = World::guarded(15).await;
    let app = world.cluster.connect("postgres").await;
    app.batch_execute("BEGIN; ALTER TABLE ev DETACH PARTITION ev_1").await.unwrap();
    let tries = std::time::Instant::now();
    for fault in [
        install(&world.client, ("m", 3), &names(&MOVED)).await.unwrap_err(),
        remove(&world.client, "m").await.unwrap_err(),
    ] {
        assert_eq!((fault.code, fault.recovery), ("SEGUE-LOCKED", Recovery::Retry), "{fault}");
    }
    assert!(tries.elapsed() < Duration::from_secs(10), "each tries once: {:?}", tries.elapsed());
    world.refused("ALTER TABLE plain ADD COLUMN more int").await;
    app.batch_execute("COMMIT").await.unwrap();
    assert_eq!(install(&world.client, ("m", 3), &names(&MOVED)).await.unwrap(), Guarded::Installed);
    world.passes("ALTER TABLE ev_1 ADD COLUMN more int").await;
}

#[tokio::test]
async fn two_migrations_guard_their_own_tables() {
    let world = World::guarded(15).await;
    world.client.batch_execute("CREATE TABLE second (id int PRIMARY KEY)").await.unwrap();
    let tables = names(&["public.second", "public.plain"]);
    assert_eq!(install(&world.client, ("n", 5), &tables).await.unwrap(), Guarded::Installed);
    let add = |table: &str| format!("ALTER TABLE {table} ADD COLUMN more int");
    for (table, migration, off) in
        [("gen", "m", "n"), ("second", "n", "m"), ("plain", "m", "n"), ("plain", "n", "m")]
    {
        let switch = |verb: &str| format!("ALTER EVENT TRIGGER segue_guard_{off} {verb}");
        world.client.batch_execute(&switch("DISABLE")).await.unwrap();
        let said = world.refused(&add(table)).await;
        assert!(
            said.message().contains(&format!("while migration {migration} moves it")),
            "{table}: {said:?}"
        );
        world.client.batch_execute(&switch("ENABLE")).await.unwrap();
    }
    world.passes("ALTER TABLE outside ADD COLUMN more int").await;
}
