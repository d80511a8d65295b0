//! Every change of ownership compares state, epoch and attempt, can be repeated, and is refused to a straggler.

use crate::world::*;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::switch::ownership::{Attempt, Epoch, Ownership};
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_postgres::fence::{Answer, Applied, Role, Side, autovacuum, prepare};
use segue_testkit::cluster::StandbyOptions;
use segue_testkit::{Cluster, Options};
use std::time::Duration;
use tokio_postgres::Client;

#[tokio::test]
async fn wrong_numbers_are_refused_and_the_right_ones_can_be_repeated() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let side = &world.side;
    for (epoch, expected, attempt) in [(2, 0, 1), (0, 0, 1), (1, 1, 2), (1, 0, 0)] {
        let answer = side.fence(id(epoch, expected), Attempt(attempt)).await;
        assert_eq!(refused(answer.unwrap()), Some(owner(1, 0)));
    }
    for answer in [
        side.unfence(id(1, 1)).await,
        side.flip(id(1, 0)).await,
        side.become_follower(Epoch(1)).await,
        side.become_follower(Epoch(2)).await,
    ] {
        assert_eq!(refused(answer.unwrap()), Some(owner(1, 0)));
    }
    assert_eq!(world.triggers("D").await, 8, "nothing was touched");

    let fenced = world.fenced(0, 1).await;
    assert_eq!((fenced.ownership.fence_id(), fenced.marker), (Some(id(1, 1)), Some(1)));
    assert!(matches!(fenced.ownership, Ownership::Fenced { .. }), "{fenced:?}");
    assert_eq!(already(side.fence(id(1, 0), Attempt(1)).await.unwrap()), fenced);
    refused(side.fence(id(1, 1), Attempt(1)).await.unwrap());
    for (epoch, attempt) in [(1, 0), (1, 2), (2, 1), (0, 1)] {
        assert_eq!(refused(side.unfence(id(epoch, attempt)).await.unwrap()), Some(fenced.ownership));
        assert_eq!(refused(side.flip(id(epoch, attempt)).await.unwrap()), Some(fenced.ownership));
    }
    assert_eq!(refused(side.fence(id(1, 0), Attempt(5)).await.unwrap()), Some(fenced.ownership));
    // A later attempt over a fence that stands.
    let again = world.fenced(1, 2).await;
    assert_eq!((again.ownership.fence_id(), again.marker), (Some(id(1, 2)), Some(2)));
    refused(side.unfence(id(1, 1)).await.unwrap());
    assert_eq!(done(side.unfence(id(1, 2)).await.unwrap()).marker, None);
    assert_eq!(already(side.unfence(id(1, 2)).await.unwrap()).ownership, owner(1, 2));

    world.fenced(2, 3).await;
    let handed = done(side.flip(id(1, 3)).await.unwrap());
    assert_eq!(handed.ownership, Ownership::HandedOver { epoch: Epoch(1), attempt: Attempt(3) });
    assert_eq!((handed.marker, handed.opened_at), (Some(3), Position(0)));
    assert_eq!(already(side.flip(id(1, 3)).await.unwrap()), handed);
    for answer in
        [side.unfence(id(1, 3)).await, side.fence(id(1, 3), Attempt(4)).await, side.flip(id(1, 2)).await]
    {
        assert_eq!(refused(answer.unwrap()), Some(handed.ownership));
    }
    world.client.batch_execute("DELETE FROM segue.owner").await.unwrap();
    for answer in [
        side.unfence(id(1, 3)).await,
        side.fence(id(1, 3), Attempt(4)).await,
        side.flip(id(1, 3)).await,
        side.become_follower(Epoch(2)).await,
    ] {
        assert_eq!(refused(answer.unwrap()), None);
    }
    told(&world.app().await, "DELETE FROM plain").await;
}

#[tokio::test]
async fn an_earlier_process_changes_nothing() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    world.fenced(0, 1).await;
    world.client.batch_execute("UPDATE segue.token SET token = 4").await.unwrap();
    for answer in [
        world.side.unfence(id(1, 1)).await,
        world.side.flip(id(1, 1)).await,
        world.side.fence(id(1, 1), Attempt(2)).await,
    ] {
        assert_eq!(answer.expect_err("superseded").code, "SEGUE-SUPERSEDED");
    }
    assert!(matches!(world.ownership().await, Ownership::Fenced { attempt: Attempt(1), .. }));
}

/// The writes move there, and back.
async fn there_and_back_on(options: Options) {
    let pair = pair(options).await;
    let mut from = 0;
    for epoch in 1..=4 {
        let (old, new) = (&pair.ends[from].side, &pair.ends[1 - from].side);
        let direction = if from == 0 { Direction::Forward } else { Direction::Reverse };
        let last = old.row().await.unwrap().unwrap().ownership.fence_id().expect("the owner's");
        let attempt = Attempt(last.attempt.0 + 1);
        let fenced = done(old.fence(last, attempt).await.unwrap());
        let (fence, marker) = (fenced.ownership.fence_id().unwrap(), fenced.marker.unwrap());
        let applied = Applied { signal: marker, position: STREAM_AT };
        let early = Applied { signal: marker - 1, ..applied };
        refused(new.open(fence, marker, direction, early).await.unwrap());
        let ahead = Applied { position: Position(0x101), ..applied };
        refused(new.open(fence, marker, direction, ahead).await.unwrap());
        done(old.flip(fence).await.unwrap());
        let opened = done(new.open(fence, marker, direction, applied).await.unwrap());
        assert_eq!(opened.ownership, owner(epoch + 1, epoch), "attempts grow over both sides");
        assert_eq!(already(new.open(fence, marker, direction, applied).await.unwrap()), opened);
        let closed = done(old.become_follower(Epoch(epoch + 1)).await.unwrap());
        assert_eq!(closed.ownership, Ownership::Follower { epoch: Epoch(epoch) });
        assert_eq!(already(old.become_follower(Epoch(epoch + 1)).await.unwrap()), closed);
        let (closed, open) = (&pair.ends[from].client, &pair.ends[1 - from].client);
        told(closed, "INSERT INTO parts VALUES (7, 'x')").await;
        open.batch_execute("INSERT INTO parts VALUES (7, 'x'); DELETE FROM parts WHERE id = 7")
            .await
            .unwrap();
        let enabled = "SELECT count(*) FROM pg_trigger WHERE tgname = 'segue_fence_m' AND tgenabled = 'O'";
        let at = async |client: &Client| client.query_one(enabled, &[]).await.unwrap().get::<_, i64>(0);
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
    let fault = world.side.get_ready().await.expect_err("a leaf without a fence");
    assert!(fault.code == "SEGUE-NOT-FENCED" && fault.what.contains("parts_new"), "{fault}");
    let fault = world.side.fence(id(1, 0), Attempt(1)).await.expect_err("a leaf without a fence");
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
    // Whoever set up the server wants to hear of errors only; that a commit is on no standby is a warning.
    let quiet = Options::default().with("client_min_messages", "error");
    let world = World::owner(quiet, limits(60_000)).await;
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
    let (flip, ()) = tokio::join!(world.side.flip(id(1, 1)), cancel);
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

/// A commit waits for no standby that is not synchronous, and a failover may all the same go to it.
#[tokio::test]
async fn standbys_are_waited_for_until_they_have_what_was_committed() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    assert!(!world.side.has_standbys().await.unwrap());
    let standby = Cluster::standby_of(&world.cluster, StandbyOptions::named("east")).await;
    assert!(world.side.has_standbys().await.unwrap());
    let patience = Duration::from_secs(60);
    assert_eq!(world.side.standbys_without(patience).await.unwrap(), [""; 0]);
    standby.pause().await;
    world.fenced(0, 1).await;
    done(world.side.flip(id(1, 1)).await.unwrap());
    assert_eq!(world.side.standbys_without(Duration::from_millis(50)).await.unwrap(), ["east"]);
    let go_on = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        standby.unpause();
    };
    let (without, ()) = tokio::join!(world.side.standbys_without(patience), go_on);
    assert_eq!(without.unwrap(), [""; 0]);
    standby.promote().await;
    assert_eq!(standby.scalar("SELECT state FROM segue.owner").await.as_deref(), Some("handed_over"));
}

/// Its slot tells that it will come back, from where it was.
#[tokio::test]
async fn a_standby_that_is_away_is_named_by_its_slot() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let standby = Cluster::standby_of(&world.cluster, StandbyOptions::named("east")).await;
    drop(standby);
    let left = async || world.cluster.scalar("SELECT 1 FROM pg_replication_slots WHERE active").await;
    while left().await.is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(world.side.has_standbys().await.unwrap());
    let without = world.side.standbys_without(Duration::from_secs(60)).await.unwrap();
    assert_eq!(without, ["whoever has the slot east"]);
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
    done(side.fence(id(1, 0), Attempt(1)).await.unwrap());
    told(&app, "INSERT INTO parts VALUES (9, 'x')").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    app.batch_execute("INSERT INTO parts VALUES (9, 'x')")
        .await
        .expect("it takes the tables back, without a right to them");
    side.unfence(id(1, 1)).await.unwrap().made().expect("at rest");
    app.batch_execute("SELECT * FROM segue.owner").await.expect_err("none of its business");
    segue_postgres::fence::remove(&mover, "m", &mut Default::default()).await.unwrap();
}

/// What was attached under the fence has rows of its own, which the stream never brings to the other side.
#[tokio::test]
async fn nothing_is_handed_over_once_a_table_was_attached_under_the_fence() {
    let world = World::owner(Options::default(), limits(5_000)).await;
    world.fenced(0, 1).await;
    let admin = world.cluster.connect("postgres").await;
    let attach =
        "CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1001, 'acknowledged');
        ALTER TABLE parts ATTACH PARTITION late FOR VALUES FROM (1000) TO (2000)";
    admin.batch_execute(attach).await.unwrap();
    let Answer::Refused { why, .. } = world.side.flip(id(1, 1)).await.unwrap() else {
        panic!("handed over without the rows of a partition");
    };
    assert!(why.contains("public.late was made or attached under the fence"), "{why}");
    done(world.side.unfence(id(1, 1)).await.unwrap());
    admin.batch_execute("ALTER TABLE parts DETACH PARTITION late").await.unwrap();
    world.fenced(1, 2).await;
    done(world.side.flip(id(1, 2)).await.unwrap());
}
