//! The stored row: where a side was opened, and what an earlier build has left.

use crate::world::*;
use segue_model::position::Position;
use segue_model::switch::ownership::{Epoch, Ownership};
use segue_postgres::birth::Direction;
use segue_postgres::fence::{Applied, Role, row};
use segue_postgres::schema;
use segue_testkit::{Cluster, Options};
use tokio_postgres::Client;

const APPLIED: Applied = Applied { signal: 9, position: STREAM_AT };
/// Writes in spite of the fence.
const BYPASS: &str = "SET session_replication_role = replica; INSERT INTO plain VALUES (100, 'bypass')";

/// A follower, and a slot from which it is seen where transactions end.
async fn watched() -> World {
    let world = World::start(Options::default(), limits(60_000), Role::Follower).await;
    stream_to(&world.client, Direction::Forward).await;
    world.client.batch_execute("CREATE PUBLICATION seen FOR TABLE plain").await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('seen', 'pgoutput')";
    world.client.batch_execute(slot).await.unwrap();
    world
}

/// Where the transactions that inserted into `plain` end, in their order.
async fn ends(client: &Client) -> Vec<Position> {
    let sql = "WITH seen AS (SELECT * FROM pg_logical_slot_peek_binary_changes('seen', NULL, NULL, 'proto_version', '1', 'publication_names', 'seen'))
         SELECT lsn::text FROM seen WHERE get_byte(data, 0) = ascii('C')
            AND xid IN (SELECT xid FROM seen WHERE get_byte(data, 0) = ascii('I')) ORDER BY lsn";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get::<_, &str>(0).parse().unwrap()).collect()
}

#[tokio::test]
async fn an_owner_is_opened_above_what_went_past_the_fence_and_below_what_its_clients_write() {
    let world = watched().await;
    world.cluster.connect("postgres").await.batch_execute(BYPASS).await.unwrap();
    let opened = done(world.side.open(id(1, 5), 9, Direction::Forward, APPLIED).await.unwrap());
    world.app().await.batch_execute("INSERT INTO plain VALUES (2, 'b')").await.unwrap();
    let again = already(world.side.open(id(1, 5), 9, Direction::Forward, APPLIED).await.unwrap());
    assert_eq!(again, opened, "it stays where it was");
    let ends = ends(&world.client).await;
    let [bypass, legitimate] = ends[..] else { panic!("{ends:?}") };
    assert!(bypass <= opened.opened_at && opened.opened_at < legitimate, "{opened:?} {ends:?}");
}

#[tokio::test]
async fn without_the_locks_a_writer_that_went_past_the_fence_may_end_above_the_opening() {
    let world = watched().await;
    let bypass = world.cluster.connect("postgres").await;
    bypass.batch_execute(&format!("BEGIN; {BYPASS}")).await.unwrap();
    let opened = done(world.side.open(id(1, 5), 9, Direction::Forward, APPLIED).await.unwrap());
    world.app().await.batch_execute("INSERT INTO plain VALUES (2, 'b')").await.unwrap();
    bypass.batch_execute("COMMIT").await.unwrap();
    let ends = ends(&world.client).await;
    let [legitimate, bypass] = ends[..] else { panic!("{ends:?}") };
    assert!(opened.opened_at < legitimate && legitimate < bypass, "{opened:?} {ends:?}");
}

#[tokio::test]
async fn a_database_without_a_row_has_none() {
    let cluster = Cluster::start(Options::default()).await;
    let mut client = cluster.connect("postgres").await;
    assert_eq!(row(&client, "m").await.unwrap(), None);
    schema::ensure(&mut client).await.unwrap();
    assert_eq!(row(&client, "m").await.unwrap(), None);
    client
        .batch_execute("INSERT INTO segue.owner VALUES ('m', 'follower', 2, 7, NULL, 3, '')")
        .await
        .unwrap();
    let found = row(&client, "m").await.unwrap().unwrap();
    assert_eq!((found.ownership, found.marker), (Ownership::Follower { epoch: Epoch(2) }, None));
    assert_eq!(row(&client, "other").await.unwrap(), None);
}

#[tokio::test]
async fn what_an_earlier_build_made_is_brought_up_to_date() {
    let mut world = World::start(Options::default(), limits(60_000), Role::Follower).await;
    stream_to(&world.client, Direction::Forward).await;
    let earlier = "COMMENT ON TABLE segue.format IS NULL; ALTER TABLE segue.owner DROP COLUMN opened_at;
         DROP FUNCTION segue.open; DROP FUNCTION segue.become_follower;
         CREATE FUNCTION segue.open(_migration text, _epoch bigint, _direction text, _position pg_lsn, _lock_ms int)
             RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
         CREATE FUNCTION segue.become_follower(_migration text, _tables text[], _epoch bigint, _lock_ms int)
             RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'";
    world.client.batch_execute(earlier).await.unwrap();
    schema::ensure(&mut world.client).await.unwrap();
    assert_eq!(world.side.row().await.unwrap().unwrap().opened_at, Position(0));
    let functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'segue'::regnamespace AND proname IN ('open', 'become_follower')";
    assert_eq!(world.cluster.scalar(functions).await.as_deref(), Some("2"));
    already(world.side.become_follower(Epoch(1)).await.unwrap());
    done(world.side.open(id(1, 5), 9, Direction::Forward, APPLIED).await.unwrap());
}

#[tokio::test]
async fn what_is_gone_is_made_anew_and_what_is_whole_is_left_alone() {
    let cluster = Cluster::start(Options::default()).await;
    let mut client = cluster.connect("postgres").await;
    schema::ensure(&mut client).await.unwrap();
    let versions =
        "SELECT string_agg(xmin::text, ' ') FROM pg_proc WHERE pronamespace = 'segue'::regnamespace";
    let made = cluster.scalar(versions).await;
    schema::ensure(&mut client).await.unwrap();
    assert_eq!(cluster.scalar(versions).await, made, "nothing is made twice");
    for gone in ["DROP TABLE segue.sample", "DROP FUNCTION segue.advance", "DROP INDEX segue.sample_in_time"]
    {
        client.batch_execute(gone).await.unwrap();
        schema::ensure(&mut client).await.unwrap();
        let there = "SELECT to_regclass('segue.sample_in_time') IS NOT NULL AND to_regproc('segue.advance') IS NOT NULL";
        assert_eq!(cluster.scalar(there).await.as_deref(), Some("t"), "{gone}");
    }
}

#[tokio::test]
async fn a_start_waits_for_no_writer_that_has_taken_the_tables_back() {
    let mut world = World::owner(Options::default(), limits(300)).await;
    let app = world.app().await;
    world.fenced(0, 1).await;
    world.until_the_deadline().await;
    app.batch_execute("BEGIN; INSERT INTO plain VALUES (2, 'late')").await.unwrap();
    let unmade = "SET lock_timeout = '1s'; COMMENT ON TABLE segue.format IS 'made by segue: another build'";
    world.client.batch_execute(unmade).await.unwrap();
    schema::ensure(&mut world.client).await.unwrap();
    app.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.ownership().await, owner(1, 1));
}
