//! Every change of ownership compares state, epoch and attempt, can be repeated, and is refused to a straggler.

use crate::world::*;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_postgres::fence::{Answer, Applied, Ownership, Role, Side, autovacuum, prepare};
use segue_testkit::{Cluster, Options};
use std::time::Duration;

const STREAM: &str = "INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, position, updated_at)";

#[tokio::test]
async fn wrong_numbers_are_refused_and_the_right_ones_can_be_repeated() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let side = &world.side;
    let owner = Some(Ownership::Owner { epoch: 1, attempt: 0 });
    for (epoch, expected, attempt) in [(2, 0, 1), (0, 0, 1), (1, 1, 2), (1, 0, 0)] {
        assert_eq!(refused(side.fence(epoch, expected, attempt).await.unwrap()), owner);
    }
    for answer in [side.unfence(1, 1).await, side.flip(1, 0).await, side.become_follower(1).await] {
        assert_eq!(refused(answer.unwrap()), owner);
    }
    assert_eq!(world.triggers("D").await, 8, "nothing was touched");

    let fenced = world.fenced(0, 1).await;
    assert!(matches!(fenced, Ownership::Fenced { epoch: 1, attempt: 1, marker: 1, .. }), "{fenced:?}");
    assert_eq!(side.fence(1, 0, 1).await.unwrap(), Answer::AlreadyDone(fenced.clone()));
    for (epoch, attempt) in [(1, 0), (1, 2), (2, 1), (0, 1)] {
        assert_eq!(refused(side.unfence(epoch, attempt).await.unwrap()), Some(fenced.clone()));
        assert_eq!(refused(side.flip(epoch, attempt).await.unwrap()), Some(fenced.clone()));
    }
    assert_eq!(refused(side.fence(1, 0, 5).await.unwrap()), Some(fenced));
    // A later attempt over a fence that stands.
    let again = world.fenced(1, 2).await;
    assert!(matches!(again, Ownership::Fenced { attempt: 2, marker: 2, .. }), "{again:?}");
    refused(side.unfence(1, 1).await.unwrap());
    done(side.unfence(1, 2).await.unwrap());
    let owner = Ownership::Owner { epoch: 1, attempt: 2 };
    assert_eq!(side.unfence(1, 2).await.unwrap(), Answer::AlreadyDone(owner));

    world.fenced(2, 3).await;
    let handed = done(side.flip(1, 3).await.unwrap());
    assert_eq!(handed, Ownership::HandedOver { epoch: 1, attempt: 3, marker: 3 });
    assert_eq!(side.flip(1, 3).await.unwrap(), Answer::AlreadyDone(handed.clone()));
    for answer in [side.unfence(1, 3).await, side.fence(1, 3, 4).await, side.flip(1, 2).await] {
        assert_eq!(refused(answer.unwrap()), Some(handed.clone()));
    }
    world.client.batch_execute("DELETE FROM segue.owner").await.unwrap();
    for answer in [side.unfence(1, 3).await, side.fence(1, 3, 4).await, side.flip(1, 3).await] {
        assert_eq!(refused(answer.unwrap()), None);
    }
    told(&world.app().await, "DELETE FROM plain").await;
}

#[tokio::test]
async fn an_earlier_process_changes_nothing() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    world.fenced(0, 1).await;
    world.client.batch_execute("UPDATE segue.token SET token = 4").await.unwrap();
    for answer in
        [world.side.unfence(1, 1).await, world.side.flip(1, 1).await, world.side.fence(1, 1, 2).await]
    {
        assert_eq!(answer.expect_err("superseded").code, "SEGUE-SUPERSEDED");
    }
    assert!(matches!(world.side.ownership().await.unwrap(), Some(Ownership::Fenced { attempt: 1, .. })));
}

struct Pair {
    cluster: Cluster,
    sides: [Side; 2],
}

async fn pair(options: Options) -> Pair {
    let cluster = Cluster::start(options).await;
    cluster.execute("CREATE DATABASE other").await;
    let (one, _) = equip(&cluster, "postgres", Role::Owner).await;
    cluster.execute("DROP OWNED BY app; DROP ROLE app").await;
    let (two, _) = equip(&cluster, "other", Role::Follower).await;
    let open =
        async |endpoint| Side::open_sessions(endpoint, ("m", 3), tables(), limits(60_000)).await.unwrap();
    let sides = [open(&one).await, open(&two).await];
    Pair { cluster, sides }
}

/// The writes move there, and back.
async fn there_and_back_on(options: Options) {
    let pair = pair(options).await;
    for (database, direction) in [("other", "forward"), ("postgres", "reverse")] {
        let sql = format!("{STREAM} VALUES ('m', '{direction}', 's', '1', 1, 1, '0/100', now())");
        pair.cluster.connect(database).await.batch_execute(&sql).await.unwrap();
    }
    let mut from = 0;
    for epoch in 1..=4 {
        let (old, new) = (&pair.sides[from], &pair.sides[1 - from]);
        let direction = if from == 0 { Direction::Forward } else { Direction::Reverse };
        let attempt = old.ownership().await.unwrap().unwrap().attempt();
        let Ownership::Fenced { marker, .. } = done(old.fence(epoch, attempt, attempt + 1).await.unwrap())
        else {
            panic!("fenced")
        };
        let applied = Applied { signal: marker, position: Position(0x100) };
        let early = Applied { signal: marker - 1, ..applied };
        refused(new.open(epoch + 1, marker, direction, early).await.unwrap());
        let ahead = Applied { position: Position(0x101), ..applied };
        refused(new.open(epoch + 1, marker, direction, ahead).await.unwrap());
        refused(
            new.open(new.ownership().await.unwrap().unwrap().epoch(), marker, direction, applied)
                .await
                .unwrap(),
        );
        done(old.flip(epoch, attempt + 1).await.unwrap());
        done(new.open(epoch + 1, marker, direction, applied).await.unwrap());
        let answer = new.open(epoch + 1, marker, direction, applied).await.unwrap();
        assert!(matches!(answer, Answer::AlreadyDone(Ownership::Owner { .. })), "{answer:?}");
        old.become_follower(epoch).await.unwrap().made().expect("closed for good");
        let databases = if from == 0 { ["postgres", "other"] } else { ["other", "postgres"] };
        let [closed, open] =
            [pair.cluster.connect(databases[0]).await, pair.cluster.connect(databases[1]).await];
        told(&closed, "INSERT INTO parts VALUES (7, 'x')").await;
        open.batch_execute("INSERT INTO parts VALUES (7, 'x'); DELETE FROM parts WHERE id = 7")
            .await
            .unwrap();
        let enabled = "SELECT count(*) FROM pg_trigger WHERE tgname = 'segue_fence_m' AND tgenabled = 'O'";
        let at = |client: tokio_postgres::Client| async move {
            client.query_one(enabled, &[]).await.unwrap().get::<_, i64>(0)
        };
        assert_eq!((at(closed).await, at(open).await), (8, 0));
        from = 1 - from;
    }
}

#[tokio::test]
async fn the_writes_move_there_and_back() {
    there_and_back_on(Options::default()).await;
}

#[tokio::test]
async fn the_writes_move_there_and_back_on_the_oldest_server() {
    there_and_back_on(Options::major(12)).await;
}

#[tokio::test]
async fn the_writes_move_there_and_back_on_the_newest_server() {
    there_and_back_on(Options::major(18)).await;
}

#[tokio::test]
async fn a_table_without_a_fence_is_not_left_behind() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    world
        .client
        .batch_execute("CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM (1000) TO (2000)")
        .await
        .unwrap();
    let fault = world.side.fence(1, 0, 1).await.expect_err("a leaf without a fence");
    assert!(fault.code == "SEGUE-NOT-FENCED" && fault.what.contains("parts_new"), "{fault}");
    assert_eq!(world.triggers("O").await, 0, "nothing is left of it");
    let prepared = segue_postgres::fence::prepare(&world.client, ("m", 3), &tables(), Role::Owner, "there")
        .await
        .unwrap();
    assert_eq!(prepared.1, [QualifiedName::new("public", "parts_new")]);
    world.fenced(0, 1).await;
    let app = world.cluster.connect("postgres").await;
    told(&app, "INSERT INTO parts_new VALUES (1500, 'x')").await;
    // One that is attached while the fence stands is closed from the moment on at which it is prepared; through its root
    // it was never open.
    world
        .client
        .batch_execute("CREATE TABLE parts_newer PARTITION OF parts FOR VALUES FROM (2000) TO (3000)")
        .await
        .unwrap();
    told(&app, "INSERT INTO parts VALUES (2500, 'x')").await;
    segue_postgres::fence::prepare(&world.client, ("m", 3), &tables(), Role::Owner, "there").await.unwrap();
    told(&app, "INSERT INTO parts_newer VALUES (2500, 'x')").await;
}

#[tokio::test]
async fn a_flip_whose_wait_for_the_standby_was_cut_short_is_not_called_durable() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    world.fenced(0, 1).await;
    assert!(world.side.is_durable().await.unwrap() && !world.side.was_warned());
    world.cluster.set("synchronous_standby_names", "gone").await;
    let waits = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'segue fence%' AND wait_event = 'SyncRep'";
    let cancel = async {
        for _ in 0..200 {
            if world
                .cluster
                .scalar(&format!("SELECT pg_cancel_backend(pid) FROM ({waits}) w"))
                .await
                .is_some()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not wait for the standby");
    };
    let (flip, ()) = tokio::join!(world.side.flip(1, 1), cancel);
    done(flip.unwrap());
    assert!(world.side.was_warned());
    let cancel = async {
        while world.cluster.scalar(&format!("SELECT pg_cancel_backend(pid) FROM ({waits}) w")).await.is_none()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (durable, ()) = tokio::join!(world.side.is_durable(), cancel);
    assert!(!durable.unwrap());
    world.cluster.set("synchronous_standby_names", "").await;
    assert!(world.side.is_durable().await.unwrap());
}

/// The rights that the module's page names are enough: no superuser, and the tables are somebody else's.
#[tokio::test]
async fn membership_in_the_owner_of_the_tables_is_enough() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.execute(DDL).await;
    cluster
        .execute(
            "CREATE ROLE boss; CREATE ROLE mover LOGIN PASSWORD 'mover' IN ROLE boss; GRANT CREATE ON DATABASE postgres TO mover;
             GRANT USAGE, CREATE ON SCHEMA public TO boss;
             DO $$ DECLARE t text; BEGIN FOR t IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
                 EXECUTE format('ALTER TABLE %I OWNER TO boss', t); END LOOP; END $$",
        )
        .await;
    let url = cluster.url("postgres");
    let as_role = |role: &str| format!("postgres://{role}:{role}{}", &url[url.find('@').unwrap()..]);
    let endpoint = Endpoint::parse(&as_role("mover")).unwrap();
    let mut mover = endpoint.connect("test").await.unwrap();
    segue_postgres::schema::ensure(&mut mover).await.unwrap();
    mover.batch_execute("INSERT INTO segue.token VALUES ('m', 3)").await.unwrap();
    prepare(&mover, ("m", 3), &tables(), Role::Owner, "there").await.unwrap();
    autovacuum::turn_off(&mover, ("m", 3)).await.unwrap();
    let side = Side::open_sessions(&endpoint, ("m", 3), tables(), limits(300)).await.unwrap();
    let app = segue_testkit::cluster::connect(&as_role("app")).await.unwrap();
    done(side.fence(1, 0, 1).await.unwrap());
    told(&app, "INSERT INTO parts VALUES (9, 'x')").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    app.batch_execute("INSERT INTO parts VALUES (9, 'x')")
        .await
        .expect("it takes the tables back, without a right to them");
    side.unfence(1, 1).await.unwrap().made().expect("at rest");
    app.batch_execute("SELECT * FROM segue.owner").await.expect_err("none of its business");
    segue_postgres::fence::remove(&mover, "m", &mut Default::default()).await.unwrap();
}
