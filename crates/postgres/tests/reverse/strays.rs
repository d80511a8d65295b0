//! What somebody writes past the fence of the side that follows does not reach the owner, and is told.

use crate::world::{MIGRATION, Running, TABLES, TOKEN, World};
use segue_engine::admission::Admission;
use segue_engine::ports::Source;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::switch::ownership::{Attempt, Epoch, FenceId};
use segue_postgres::birth::Direction;
use segue_postgres::fence::{Answer, Applied, Limits, Role, Row, Side, prepare};
use segue_testkit::cluster::available_majors;
use segue_testkit::{Cluster, Options};
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// A session that no fence stops.
async fn bypassing(cluster: &Cluster) -> Client {
    let client = cluster.connect("postgres").await;
    client.batch_execute("SET session_replication_role = replica").await.unwrap();
    client
}

/// Fences one side for the first time, and opens the sessions that change its ownership.
async fn side(world: &World, name: &str, role: Role) -> Side {
    let at = world.at(name);
    let tables: Vec<_> = TABLES.iter().map(|table| QualifiedName::parse(table).unwrap()).collect();
    let client = at.connect("fence").await.unwrap();
    prepare(&client, (MIGRATION, TOKEN), &tables, role, "elsewhere").await.unwrap();
    // So long that no slow machine meets the end of it.
    let limits = Limits { hold: Duration::from_secs(60), ..Limits::default() };
    Side::open_sessions(&at, (MIGRATION, TOKEN), tables, limits).await.unwrap()
}

fn done(answer: Answer) -> Row {
    match answer {
        Answer::Done(now) => now,
        other => panic!("not done: {other:?}"),
    }
}

/// The next `count` transactions that are passed over: tables, numbers of changes and keys of each. Each is told before
/// the stream goes on.
async fn told(running: &Running, count: usize) -> Vec<Vec<(String, u64, Vec<String>)>> {
    let strays = running.admissions.strays();
    let mut met = strays.subscribe();
    let mut told = Vec::new();
    while told.len() < count {
        met.mark_unchanged();
        let Some(new) = strays.untold() else {
            running.until(met.changed()).await.unwrap();
            continue;
        };
        assert_eq!(new.counts.transactions, new.strays.len() as u64);
        assert_eq!(strays.untold().as_ref(), Some(&new), "untold until that is said");
        strays.told(&new);
        let tables = new.strays.into_iter().map(|stray| stray.tables);
        told.extend(
            tables.map(|tables| tables.into_iter().map(|t| (t.table, t.changes, t.keys)).collect::<Vec<_>>()),
        );
    }
    told
}

fn of(table: &str, changes: u64, keys: &[&str]) -> (String, u64, Vec<String>) {
    (table.to_owned(), changes, keys.iter().map(|&key| key.to_owned()).collect())
}

async fn rows(cluster: &Cluster, table: &str, which: &str) -> String {
    cluster.scalar(&format!("SELECT count(*) FROM {table} WHERE {which}")).await.unwrap()
}

/// From the source to the target, as the steps of a switch do it.
async fn hand_over(world: &World, sides: [&Side; 2], forward: &Running, reverse: &Running) {
    let [source, target] = sides;
    let fence = |attempt| FenceId { epoch: Epoch(1), attempt: Attempt(attempt) };
    let marker = done(source.fence(fence(0), Attempt(1)).await.unwrap()).marker.unwrap();
    forward.until(forward.progress.passed(marker)).await;
    done(source.flip(fence(1)).await.unwrap());
    forward.admissions.set(Admission::Nothing);
    forward.caught_up().await;
    reverse.admissions.set(Admission::Undecided);
    let applied = *forward.progress.watch_applied().borrow();
    let applied = Applied { signal: applied.signal, position: applied.position };
    let opened = target.open(fence(1), marker, Direction::Forward, applied).await.unwrap();
    let opened_at = done(opened).opened_at;
    // Written before the stream was told what counts.
    world.target.execute("INSERT INTO t VALUES (7000, 'early')").await;
    reverse.admissions.set(Admission::From(opened_at));
}

async fn strays_stay_where_they_are(source: Options, target: Options) {
    let world = World::start(source, target).await;
    let forward = world.run(Direction::Forward).await;
    forward.follows().await;
    let reverse = world.run_admitting(Direction::Reverse, Admission::Nothing).await;
    let sides = [side(&world, "source", Role::Owner).await, side(&world, "target", Role::Follower).await];
    let app = world.target.connect("postgres").await;
    let refused = app.batch_execute("INSERT INTO t VALUES (6000, 'lost')").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));

    let past = bypassing(&world.target).await;
    past.batch_execute("INSERT INTO t VALUES (6000, 'stray'), (6001, 'stray')").await.unwrap();
    past.batch_execute("BEGIN; UPDATE t SET a = 'stray' WHERE id = 1; DELETE FROM r WHERE id = 950; COMMIT")
        .await
        .unwrap();
    let passed = reverse.sender.signal().await.unwrap();
    assert_eq!(
        told(&reverse, 2).await,
        [
            vec![of("public.t", 2, &["(6000)", "(6001)"])],
            vec![of("public.t", 1, &["(1)"]), of("public.r", 1, &["(950)"])],
        ]
    );
    reverse.until(reverse.progress.passed(passed)).await;
    assert_eq!(reverse.changes(), 0);
    assert_eq!(rows(&world.source, "t", "a = 'stray'").await, "0");
    assert_eq!(rows(&world.source, "r", "id = 950").await, "1");

    hand_over(&world, [&sides[0], &sides[1]], &forward, &reverse).await;
    app.batch_execute("INSERT INTO t VALUES (7001, 'back')").await.unwrap();
    reverse.caught_up().await;
    assert_eq!(rows(&world.source, "t", "a IN ('early', 'back')").await, "2");
    assert_eq!(rows(&world.source, "t", "a = 'stray'").await, "0");
    assert_eq!(reverse.admissions.strays().untold(), None);

    // Now it is the source whose writes do not count.
    let past = bypassing(&world.source).await;
    past.batch_execute("UPDATE t SET a = 'stray' WHERE id = 7001; TRUNCATE whole").await.unwrap();
    let written = world.source.scalar("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    let written = written.parse::<Position>().unwrap();
    forward.until(forward.admissions.strays().subscribe().wait_for(|met| met.changes == 2)).await.unwrap();
    // Nothing that comes later passes them before they are told.
    let passed = forward.sender.signal().await.unwrap();
    let overtaken = tokio::time::timeout(Duration::from_millis(500), forward.progress.passed(passed)).await;
    assert!(overtaken.is_err(), "the stream did not wait until the stray was told");
    // What was handed on before the stray may still be written while it waits; the stray itself is not.
    assert!(forward.progress.watch_applied().borrow().position < written);
    assert_eq!(
        told(&forward, 1).await,
        [vec![of("public.t", 1, &["(7001)"]), of("public.whole", 1, &["all rows"])]]
    );
    forward.until(forward.progress.passed(passed)).await;
    assert_eq!((forward.changes(), reverse.changes()), (0, 2));
    assert_eq!(rows(&world.target, "t", "id = 7001 AND a = 'back'").await, "1");
    assert_eq!(rows(&world.target, "whole", "true").await, "20");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_past_a_fence_does_not_reach_the_owner() {
    strays_stay_where_they_are(Options::default(), Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_past_a_fence_does_not_reach_the_owner_on_the_oldest_and_the_newest_server() {
    let majors = available_majors();
    let (oldest, newest) = (majors[0], majors[majors.len() - 1]);
    strays_stay_where_they_are(Options::major(oldest), Options::major(newest)).await;
}
