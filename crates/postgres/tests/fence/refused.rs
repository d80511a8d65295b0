//! Every way to write is refused while the fence stands, on roots and leaves; reading, and Segue's own streams, pass.

use crate::world::*;
use futures_util::SinkExt;
use segue_model::switch::ownership::{Epoch, Ownership};
use segue_postgres::fence::Role;
use segue_testkit::Options;

/// Statements that write, each a transaction of its own.
const WRITES: &[&str] = &[
    "INSERT INTO plain VALUES (2, 'b')",
    "INSERT INTO plain VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET v = excluded.v",
    "INSERT INTO plain VALUES (1, 'b') ON CONFLICT DO NOTHING",
    "UPDATE plain SET v = 'c'",
    "UPDATE plain SET v = 'c' WHERE false",
    "DELETE FROM plain",
    "TRUNCATE plain",
    "TRUNCATE outside CASCADE",
    "TRUNCATE outside, plain CASCADE",
    "WITH gone AS (DELETE FROM plain RETURNING *) SELECT * FROM gone",
    "WITH new AS (INSERT INTO plain VALUES (3, 'c') RETURNING *) INSERT INTO outside SELECT id FROM new",
    "DELETE FROM outside",
    "UPDATE outside SET id = id + 1",
    "INSERT INTO parts VALUES (2, 'b')",
    "UPDATE parts SET id = 300 WHERE id = 1",
    "DELETE FROM parts WHERE id = 200",
    "TRUNCATE parts",
    "INSERT INTO parts_low VALUES (2, 'b')",
    "INSERT INTO parts_high VALUES (201, 'b')",
    "UPDATE parts_high_1 SET v = 'c'",
    "DELETE FROM ONLY parts_high_1",
    "TRUNCATE parts_high_1",
    "TRUNCATE parts_high",
    "INSERT INTO heirs VALUES (5, 'x')",
    "INSERT INTO heirs_1 VALUES (6, 'x')",
    "UPDATE heirs SET v = 'c'",
    "TRUNCATE ONLY heirs",
    "PREPARE w AS INSERT INTO plain VALUES (9, 'p'); EXECUTE w",
    "DO $$ BEGIN INSERT INTO plain VALUES (10, 'd'); END $$",
];

async fn all_are_refused(world: &World) {
    let app = &world.app().await;
    for sql in WRITES {
        let said = told(app, sql).await;
        assert!(said.message().starts_with("segue: migration m does not let public."), "{sql}: {said:?}");
        assert!(said.hint().unwrap().contains("write to db.example.org/shop"), "{sql}: {said:?}");
        assert_eq!((said.schema(), said.constraint()), (Some("public"), Some("segue:m")), "{sql}");
        assert!(said.table().is_some());
        let _ = app.batch_execute("DEALLOCATE ALL").await;
    }
    if world.cluster.major() >= 15 {
        let merge = "MERGE INTO plain p USING outside o ON p.id = o.id WHEN MATCHED THEN UPDATE SET v = 'm'
             WHEN NOT MATCHED THEN INSERT VALUES (o.id, 'm')";
        told(app, merge).await;
    }
    for table in ["plain", "parts", "parts_low"] {
        // A session of its own: the client library loses count when a COPY fails before its end.
        let app = world.app().await;
        let copy = async {
            let sink = app.copy_in(&format!("COPY {table} FROM STDIN")).await?;
            futures_util::pin_mut!(sink);
            sink.send(bytes::Bytes::from_static(b"50\tcopied\n")).await?;
            sink.finish().await
        };
        let error = copy.await.expect_err("COPY");
        assert_eq!(error.code().map(|c| c.code()), Some(REFUSED), "{table}: {error:?}");
    }
    app.batch_execute("BEGIN; SELECT * FROM plain FOR UPDATE; SELECT * FROM parts; COMMIT").await.unwrap();
    // A refused statement spoils nothing but itself.
    let half = "BEGIN; INSERT INTO outside VALUES (77); SAVEPOINT s";
    app.batch_execute(half).await.unwrap();
    told(app, "INSERT INTO plain VALUES (2, 'b')").await;
    app.batch_execute("ROLLBACK TO s; COMMIT; DELETE FROM outside WHERE id = 77")
        .await
        .expect_err("cascades");
    app.batch_execute("ROLLBACK").await.unwrap();
}

async fn every_write_is_refused_on(options: Options) {
    let world = World::owner(options, limits(60_000)).await;
    let app = world.app().await;
    app.batch_execute(
        "UPDATE plain SET v = 'before'; INSERT INTO parts VALUES (3, 'c'); DELETE FROM parts WHERE id = 3",
    )
    .await
    .unwrap();
    let count =
        "SELECT (SELECT count(*) FROM plain) + (SELECT count(*) FROM parts) + (SELECT count(*) FROM heirs)";
    let before = world.cluster.scalar(count).await;
    world.fenced(0, 1).await;
    assert_eq!(world.triggers("O").await, 8);
    all_are_refused(&world).await;
    assert_eq!(world.cluster.scalar(count).await, before);

    let stream = world.cluster.connect("postgres").await;
    stream
        .batch_execute(
            "SET session_replication_role = replica; INSERT INTO plain VALUES (20, 'stream'); UPDATE parts SET v = 'stream';
             TRUNCATE parts_high_1; DELETE FROM plain WHERE id = 20",
        )
        .await
        .unwrap();

    done(world.side.unfence(id(1, 1)).await.unwrap());
    assert_eq!(world.triggers("D").await, 8);
    app.batch_execute("UPDATE plain SET v = 'after'; DELETE FROM outside; TRUNCATE parts").await.unwrap();
}

#[tokio::test]
async fn every_write_is_refused_with_its_reason() {
    every_write_is_refused_on(Options::default()).await;
}

#[tokio::test]
async fn every_write_is_refused_on_the_oldest_server() {
    every_write_is_refused_on(Options::major(12)).await;
}

#[tokio::test]
async fn every_write_is_refused_on_the_newest_server() {
    every_write_is_refused_on(Options::major(18)).await;
}

#[tokio::test]
async fn a_follower_is_closed_from_the_first_moment_and_without_end() {
    let world = World::start(Options::default(), limits(200), Role::Follower).await;
    let app = world.app().await;
    assert_eq!(world.triggers("O").await, 8);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    all_are_refused(&world).await;
    already(world.side.become_follower(Epoch(1)).await.unwrap());
    world.client.batch_execute("ALTER TABLE plain DISABLE TRIGGER ALL").await.unwrap();
    let ways = segue_postgres::fence::bypasses(&world.client, "m").await.unwrap();
    assert!(ways.len() == 1 && ways[0].contains("public.plain"), "{ways:?}");
    world.client.batch_execute("CREATE TABLE bare (id int)").await.unwrap();
    let bare = [segue_model::name::QualifiedName::new("public", "bare")];
    let bare = segue_postgres::fence::bare(&world.client, "m", &bare).await.unwrap();
    assert!(bare.as_ref().is_some_and(|bare| bare.contains("bare")), "{bare:?}");
    done(world.side.become_follower(Epoch(1)).await.unwrap());
    told(&app, "DELETE FROM plain").await;
    let body = "SELECT prosrc LIKE '%timestamptz ''infinity''%' FROM pg_proc WHERE proname = 'fence_m'";
    assert_eq!(world.cluster.scalar(body).await.as_deref(), Some("t"));
}

#[tokio::test]
async fn a_transaction_with_an_older_snapshot_cannot_write_behind_the_fence() {
    let world = World::owner(Options::default(), limits(700)).await;
    for (attempt, level) in [(1, "REPEATABLE READ"), (2, "SERIALIZABLE")] {
        // One that looked before the fence, and writes while it stands, after it was flipped, and after the deadline.
        let mut old = Vec::new();
        for _ in 0..3 {
            let app = world.app().await;
            app.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT * FROM plain")).await.unwrap();
            old.push(app);
        }
        world.fenced(attempt - 1, attempt).await;
        assert_eq!(state_of(&old[0], "INSERT INTO plain VALUES (100, 'old')").await, REFUSED, "{level}");
        world.until_the_deadline().await;
        // Past it the row decides, and this snapshot does not see the row as it is.
        assert_eq!(state_of(&old[1], "INSERT INTO plain VALUES (101, 'old')").await, "40001", "{level}");
        let fresh = world.app().await;
        let write = format!("BEGIN ISOLATION LEVEL {level}; UPDATE plain SET v = 'fresh'; COMMIT");
        assert_eq!(state_of(&fresh, &write).await, "00000", "{level}: takes it back");
        assert_eq!(state_of(&fresh, &write).await, "00000", "{level}: it is taken back");
        assert_eq!(state_of(&old[2], "INSERT INTO plain VALUES (102, 'old')").await, "40001", "{level}");
    }
    assert_eq!(
        world.cluster.scalar("SELECT count(*) FROM plain WHERE v = 'old'").await.as_deref(),
        Some("0")
    );
}

#[tokio::test]
async fn an_older_snapshot_never_writes_to_a_side_that_has_handed_over() {
    let world = World::owner(Options::default(), limits(1_500)).await;
    let mut old = Vec::new();
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let app = world.app().await;
        app.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT * FROM plain")).await.unwrap();
        old.push(app);
    }
    world.fenced(0, 1).await;
    // These have looked while the fence stood.
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let app = world.app().await;
        app.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT * FROM plain")).await.unwrap();
        old.push(app);
    }
    done(world.side.flip(id(1, 1)).await.unwrap());
    tokio::time::sleep(std::time::Duration::from_millis(1_600)).await;
    for (app, state) in old.iter().zip([REFUSED, "40001", "40001", "40001", "40001"]) {
        assert_eq!(state_of(app, "INSERT INTO plain VALUES (100, 'old')").await, state);
    }
    let app = world.app().await;
    assert!(told(&app, "DELETE FROM plain").await.message().contains("have been moved away"));
    let now = done(world.side.become_follower(Epoch(2)).await.unwrap());
    assert_eq!(now.ownership, Ownership::Follower { epoch: Epoch(1) });
    assert!(told(&app, "DELETE FROM plain").await.message().contains("follows the owner"));
}

/// The fence's function runs with its owner's rights: whoever writes may not put types of their own in the place of the
/// server's, whose checks would run so, too.
#[tokio::test]
async fn a_writer_cannot_slip_anything_into_the_fence() {
    let world = World::start(Options::default(), limits(2000), Role::Follower).await;
    let app = world.app().await;
    let traps = "
        CREATE FUNCTION pg_temp.trap() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped as %', current_user; END $$;
        CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.trap());
        CREATE DOMAIN pg_temp.timestamptz AS pg_catalog.timestamptz CHECK (pg_temp.trap())";
    app.batch_execute(traps).await.unwrap();
    let said = told(&app, "INSERT INTO plain VALUES (2, 'b')").await;
    assert!(said.message().starts_with("segue: migration m does not let public."), "{said:?}");
}
