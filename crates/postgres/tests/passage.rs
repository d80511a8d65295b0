//! How far a follower shows its owner, on real servers.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says with it what it relies on")]

use segue_model::switch::Side;
use segue_postgres::connect::Endpoint;
use segue_postgres::passage::{Passage, published, renumbered};
use segue_testkit::cluster::{Cluster, Options};

/// What a stream at `position` has stored, as far as it is asked here.
fn stored(position: &str, more: &str) -> String {
    format!(
        "DELETE FROM segue.stream; INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, \
         position, skipped, backfilled_at, updated_at) VALUES ('m', 'forward', 's', '1', 1, 1, '{position}', {more}, now())"
    )
}

#[tokio::test]
async fn a_checkpoint_shows_what_was_in_the_log_before_and_nothing_while_a_copy_is_under_way() {
    let (source, target) =
        tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
    let [from, to] = [&source, &target].map(|server| Endpoint::parse(&server.url("postgres")).unwrap());
    segue_postgres::schema::ensure(&mut to.connect("test").await.unwrap()).await.unwrap();
    source.execute("CREATE TABLE t (id int)").await;
    let passage = Passage::open(&from, &to, "m", Side::Source).await.unwrap();
    assert_eq!(passage.applied().await.unwrap(), None, "there is no stream");
    let before = passage.log_end().await.unwrap();
    source.execute("INSERT INTO t VALUES (1)").await;
    let end = passage.log_end().await.unwrap();
    assert!(end.position > before.position);
    target.execute(&stored(&before.position.to_string(), "'{}', now()")).await;
    let applied = passage.applied().await.unwrap().unwrap();
    assert!(applied.shows(before) && !applied.shows(end));
    target.execute(&stored(&end.position.to_string(), "'{}', now()")).await;
    assert!(passage.applied().await.unwrap().unwrap().shows(end));
    for incomplete in ["'{}', NULL", r#"'{"1": [7]}', now()"#] {
        target.execute(&stored(&end.position.to_string(), incomplete)).await;
        assert_eq!(passage.applied().await.unwrap(), None, "{incomplete}");
    }
    target.execute(&stored(&end.position.to_string(), "'{}', now()")).await;
    let late = "INSERT INTO segue.unit (migration, direction, unit, table_id, relation_oid, schema, name, condition) \
         VALUES ('m', 'forward', 9, 1, 1, 'public', 'leaf', '')";
    target.execute(late).await;
    assert_eq!(passage.applied().await.unwrap(), None, "the copy of a leaf that came late is under way");
    target.execute("UPDATE segue.unit SET backfilled_at = now()").await;
    assert!(passage.applied().await.unwrap().is_some());
}

#[tokio::test]
async fn a_partitioned_table_is_whole_as_long_as_all_its_leaves_travel() {
    let source = Cluster::start(Options::default()).await;
    let endpoint = Endpoint::parse(&source.url("postgres")).unwrap();
    source
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY);
             CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (10);
             CREATE PUBLICATION segue_m_fwd FOR TABLE ONLY t, ONLY p1",
        )
        .await;
    let client = endpoint.connect("test").await.unwrap();
    let names = async || {
        let (parts, tables) = published(&client, "m", Side::Source).await.unwrap();
        (parts, tables.into_iter().map(|(schema, name)| format!("{schema}.{name}")).collect::<Vec<_>>())
    };
    let (before, tables) = names().await;
    assert_eq!(tables, ["public.p", "public.p1", "public.t"]);
    source.execute("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)").await;
    let (after, tables) = names().await;
    assert_eq!(tables, ["public.p1", "public.t"], "the new leaf does not travel yet");
    assert_ne!(before, after, "whoever goes by the old list notices");
    source.execute("ALTER PUBLICATION segue_m_fwd ADD TABLE ONLY p2").await;
    assert_eq!(names().await.1, ["public.p", "public.p1", "public.p2", "public.t"]);
}

#[tokio::test]
async fn tables_whose_types_have_another_number_are_found() {
    let (owner, follower) =
        tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
    let both = "CREATE TYPE same AS ENUM ('x'); CREATE DOMAIN positive AS int CHECK (VALUE > 0)";
    for server in [&owner, &follower] {
        server.execute(both).await;
    }
    follower.execute("CREATE TYPE first AS ENUM ('x')").await;
    for server in [&owner, &follower] {
        server.execute("CREATE TYPE mood AS ENUM ('sad')").await;
    }
    owner
        .execute(
            "CREATE TYPE only_here AS (a int);
             CREATE TABLE plain (a int, b positive, c same);
             CREATE TABLE moody (a int, b mood);
             CREATE TABLE moods (a mood[]);
             CREATE TABLE lonely (a only_here);
             CREATE TABLE gone (a mood); ALTER TABLE gone DROP COLUMN a",
        )
        .await;
    let (at_owner, at_follower) = (owner.connect("postgres").await, follower.connect("postgres").await);
    let found = renumbered(&at_owner, &at_follower).await.unwrap();
    let tables: Vec<&str> = found.keys().map(|(_, table)| table.as_str()).collect();
    assert_eq!(tables, ["lonely", "moods", "moody"], "{found:?}");
    assert_eq!(found[&("public".to_owned(), "moody".to_owned())], "public.mood");
}
