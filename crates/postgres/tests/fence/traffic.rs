//! Whoever still uses a side that is closed is seen, and when it is closed for good, it says so.

use crate::world::*;
use segue_model::name::QualifiedName;
use segue_model::traffic::Look;
use segue_postgres::birth::{close_source, dependents, drop_source_tables, listed};
use segue_postgres::fence::{Role, retire};
use segue_postgres::traffic::look;
use segue_testkit::Options;
use std::time::{Duration, Instant};

async fn seen(world: &World) -> Look {
    look(&world.client, "m", &tables()).await.unwrap()
}

/// Looks until the server has counted what is waited for.
async fn seen_until(world: &World, is_so: impl Fn(&Look) -> bool) -> Look {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = seen(world).await;
        if is_so(&seen) {
            return seen;
        }
        assert!(Instant::now() < until, "never seen: {seen:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn uses_are_seen(major: u16) {
    let world = World::start(Options::major(major), limits(60_000), Role::Follower).await;
    let before = seen(&world).await;
    assert_eq!((before.refused, before.refused_at_us), (0, None), "{major}");
    let names: Vec<&str> = before.tables.keys().map(String::as_str).collect();
    assert!(names.contains(&"public.parts_high_1") && !names.contains(&"public.outside"), "{names:?}");

    let app = world.app().await;
    for sql in ["INSERT INTO plain VALUES (2, 'b')", "DELETE FROM parts_low"] {
        told(&app, sql).await;
    }
    // In a transaction that is given up, too.
    app.batch_execute("BEGIN; SAVEPOINT s").await.unwrap();
    told(&app, "TRUNCATE plain").await;
    app.batch_execute("ROLLBACK").await.unwrap();
    let refused = seen(&world).await;
    assert_eq!(refused.refused, 3, "{major}");
    let at = refused.refused_at_us.unwrap();
    assert!(at >= before.at_us && at <= refused.at_us, "{before:?} {refused:?}");

    app.batch_execute("SET application_name = 'old report'; SELECT * FROM parts").await.unwrap();
    let session = |look: &Look| look.sessions.iter().find(|s| s.who.contains("old report")).cloned();
    let reader = session(&seen(&world).await).unwrap();
    assert!(reader.names.contains("public.parts") && reader.holds.is_empty(), "{reader:?}");
    assert!(reader.who.starts_with("app (old report) at "), "{reader:?}");
    app.batch_execute("BEGIN; SELECT * FROM plain; SELECT 1").await.unwrap();
    let holder = session(&seen(&world).await).unwrap();
    assert!(holder.holds.contains("public.plain"), "{holder:?}");
    app.batch_execute("COMMIT").await.unwrap();
    // A session that ends is counted at once.
    drop(app);
    let scans = |look: &Look| look.tables["public.parts_low"].scans;
    seen_until(&world, |look| scans(look) > scans(&before)).await;
}

#[tokio::test]
async fn refused_writes_reads_and_sessions_are_seen_on_the_oldest_server() {
    uses_are_seen(12).await;
}

#[tokio::test]
async fn refused_writes_reads_and_sessions_are_seen_on_the_newest_server() {
    uses_are_seen(18).await;
}

#[tokio::test]
async fn who_holds_a_table_is_seen_by_a_role_that_sees_no_statements_too() {
    let options = Options::default().with("max_prepared_transactions", "3");
    let world = World::start(options, limits(60_000), Role::Follower).await;
    world
        .cluster
        .execute("CREATE ROLE mover LOGIN; GRANT USAGE ON SCHEMA segue TO mover; SET ROLE mover; SELECT 1")
        .await;
    let app = world.app().await;
    app.batch_execute("SET application_name = 'old batch'; BEGIN; SELECT * FROM plain; SELECT 1")
        .await
        .unwrap();
    let other = world.app().await;
    other.batch_execute("BEGIN; SELECT * FROM child; PREPARE TRANSACTION 'half done'").await.unwrap();
    world.client.batch_execute("SET ROLE mover").await.unwrap();
    let look = seen(&world).await;
    let holds = |who: &str| {
        let session = look.sessions.iter().find(|s| s.who.contains(who));
        session.map(|s| s.holds.iter().cloned().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(holds("(old batch)").as_deref(), Some("public.plain"), "{look:#?}");
    assert_eq!(holds("`half done` of app").as_deref(), Some("public.child"), "{look:#?}");
}

async fn a_crash_is_seen(major: u16) {
    let world = World::start(Options::major(major), limits(60_000), Role::Follower).await;
    let reset = async || {
        let client = world.cluster.connect("postgres").await;
        look(&client, "m", &tables()).await.unwrap().reset_at_us
    };
    // By then older servers have begun to count.
    world.cluster.restart().await;
    let before = reset().await;
    world.cluster.restart().await;
    assert_eq!(reset().await, before, "{major}: a server that is stopped keeps its statistics");
    world.cluster.stop_immediate().await;
    world.cluster.start_again().await;
    assert_ne!(reset().await, before, "{major}: one that crashes loses them");
}

#[tokio::test]
async fn statistics_that_a_crash_has_lost_are_known_to_be_on_the_oldest_server() {
    a_crash_is_seen(12).await;
}

#[tokio::test]
async fn statistics_that_a_crash_has_lost_are_known_to_be_on_the_newest_server() {
    a_crash_is_seen(18).await;
}

#[tokio::test]
async fn a_side_that_is_closed_for_good_refuses_and_says_where_to_write_whatever_its_row_says() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    world.fenced(0, 1).await;
    assert_eq!(retire(&world.client, "m").await, Ok(8));
    assert_eq!(retire(&world.client, "m").await, Ok(8), "it can be repeated");
    world.cluster.execute("UPDATE segue.owner SET state = 'owner', deadline = NULL").await;
    let said = told(&world.app().await, "INSERT INTO parts VALUES (2, 'b')").await;
    assert!(said.message().starts_with("segue: migration m is completed, and public.parts here"), "{said:?}");
    assert!(said.hint().unwrap().contains("write to db.example.org/shop"), "{said:?}");
}

#[tokio::test]
async fn tables_are_dropped_together_and_never_what_depends_on_them() {
    let world = World::start(Options::default(), limits(60_000), Role::Follower).await;
    let roots = tables();
    let found = dependents(&world.client, &roots).await.unwrap();
    assert_eq!(
        found.len(),
        1,
        "what they refer to themselves, and partitions, are in nobody's way: {found:?}"
    );
    assert!(found[0].ends_with("heirs, and its rows were not moved"), "{found:?}");
    world
        .cluster
        .execute(
            "CREATE TABLE bound (p int REFERENCES plain); CREATE MATERIALIZED VIEW sums AS SELECT count(v) FROM parts_low",
        )
        .await;
    let found = dependents(&world.client, &roots).await.unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("the foreign key bound_p_fkey of "), "{found:?}");
    assert!(found[1].starts_with("the materialized view "), "{found:?}");
    let refused = drop_source_tables(&world.client, ("m", 3), &roots, |_| {}).await.unwrap_err();
    assert_eq!(refused.code, "SEGUE-DROP-SOURCE", "{refused}");
    let there = "SELECT to_regclass('public.child') IS NOT NULL";
    assert_eq!(
        world.cluster.scalar(there).await.as_deref(),
        Some("t"),
        "none is dropped where one cannot be"
    );
    world.cluster.execute("DROP TABLE bound, heirs_1; DROP MATERIALIZED VIEW sums").await;

    // A table of the same name is not the one that was moved.
    world.cluster.execute("ALTER TABLE plain RENAME TO moved; CREATE TABLE plain (id int)").await;
    let refused = drop_source_tables(&world.client, ("m", 3), &roots, |_| {}).await.unwrap_err();
    assert!(refused.what.contains("plain is not what was moved"), "{refused}");
    world.cluster.execute("DROP TABLE plain; ALTER TABLE moved RENAME TO plain").await;
    // Nor was a partition that came to one since: it would go with it, with its rows.
    world
        .cluster
        .execute("CREATE TABLE parts_since PARTITION OF parts FOR VALUES FROM (100000) TO (100001)")
        .await;
    let refused = drop_source_tables(&world.client, ("m", 3), &roots, |_| {}).await.unwrap_err();
    assert!(refused.what.contains("parts_since is not what was moved"), "{refused}");
    world.cluster.execute("DROP TABLE parts_since").await;

    let reader = world.app().await;
    reader.batch_execute("BEGIN; SELECT * FROM heirs").await.unwrap();
    let (over, mut is_over) = tokio::sync::mpsc::unbounded_channel();
    let report = |fault: &segue_engine::fault::Fault| over.send(fault.clone()).unwrap();
    let (dropped, ()) = tokio::join!(drop_source_tables(&world.client, ("m", 3), &roots, report), async {
        assert_eq!(is_over.recv().await.unwrap().code, "SEGUE-LOCKED");
        reader.batch_execute("COMMIT").await.unwrap();
    });
    dropped.unwrap();
    // Nor is one that was made since: a driver that comes too late leaves it alone.
    world.cluster.execute("CREATE TABLE plain (id int)").await;
    drop_source_tables(&world.client, ("m", 3), &roots, |_| {}).await.unwrap();
    world.cluster.execute("DROP TABLE plain").await;
    let left = "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') OR c.relname LIKE 'refused%'";
    assert_eq!(world.cluster.scalar(left).await.as_deref(), Some("1"), "only `outside`");
}

#[tokio::test]
async fn what_is_listed_is_what_goes_but_for_the_fence_of_the_source() {
    let world = World::start(Options::default(), limits(60_000), Role::Follower).await;
    world.cluster.execute("CREATE PUBLICATION segue_m_fwd").await;
    world.cluster.execute("SELECT pg_create_logical_replication_slot('segue_m_fwd', 'pgoutput')").await;
    let found = listed(&world.client, "m", "source").await.unwrap();
    assert_eq!(
        found,
        [
            "source: fence of 8 tables",
            "source: replication slot segue_m_fwd",
            "source: publication segue_m_fwd"
        ]
    );
    assert_eq!(close_source(&world.client, "m", |_| {}).await.unwrap(), found[1..]);
    assert_eq!(listed(&world.client, "m", "source").await.unwrap(), found[..1]);
    let unknown = look(&world.client, "other", &[QualifiedName::new("public", "gone")]).await.unwrap();
    assert!(unknown.tables.is_empty() && unknown.refused == 0, "{unknown:?}");
}
