//! Past its deadline a fence opens by itself, once, and a late flip fails.

use crate::world::*;
use segue_model::switch::ownership::{Attempt, Ownership};
use segue_postgres::fence::{Answer, Side};
use segue_testkit::Options;
use std::time::Duration;

#[tokio::test]
async fn the_first_late_writer_takes_the_tables_back_and_a_late_flip_fails() {
    let world = World::owner(Options::default(), limits(400)).await;
    let app = world.app().await;
    world.fenced(0, 1).await;
    told(&app, "INSERT INTO plain VALUES (2, 'early')").await;
    world.until_the_deadline().await;
    assert!(matches!(world.ownership().await, Ownership::Fenced { attempt: Attempt(1), .. }));
    app.batch_execute("INSERT INTO plain VALUES (2, 'late')").await.unwrap();
    assert_eq!(world.ownership().await, owner(1, 1));
    assert_eq!(refused(world.side.flip(id(1, 1)).await.unwrap()), Some(owner(1, 1)));
    app.batch_execute("INSERT INTO parts VALUES (5, 'late'); TRUNCATE heirs").await.unwrap();
    // The undo of a fence that was taken back finds its work done, and puts the triggers to rest.
    assert_eq!(already(world.side.unfence(id(1, 1)).await.unwrap()).ownership, owner(1, 1));
    assert_eq!(world.triggers("D").await, 8);
    world.fenced(1, 2).await;
    told(&app, "INSERT INTO plain VALUES (3, 'again')").await;
}

#[tokio::test]
async fn a_late_writer_that_rolls_back_takes_nothing_and_a_flip_waits_for_it() {
    let world = World::owner(Options::default(), limits(400)).await;
    let app = world.app().await;
    world.fenced(0, 1).await;
    world.until_the_deadline().await;
    app.batch_execute("BEGIN; INSERT INTO plain VALUES (2, 'late')").await.unwrap();
    let other = world.app().await;
    let (flip, second, _) = tokio::join!(
        world.side.flip(id(1, 1)),
        async { other.batch_execute("INSERT INTO plain VALUES (3, 'late')").await },
        async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            app.batch_execute("ROLLBACK").await.unwrap();
        }
    );
    second.expect("the next late writer takes it back");
    refused(flip.unwrap());
    assert_eq!(world.ownership().await, owner(1, 1));
}

#[tokio::test]
async fn a_flip_too_near_to_the_deadline_is_refused_though_nobody_has_written() {
    let world = World::owner(Options::default(), limits(300)).await;
    world.fenced(0, 1).await;
    tokio::time::sleep(Duration::from_millis(270)).await;
    assert!(matches!(refused(world.side.flip(id(1, 1)).await.unwrap()), Some(Ownership::Fenced { .. })));
    // An expired fence that nobody has taken back can be fenced over, by the next attempt.
    world.until_the_deadline().await;
    world.fenced(1, 2).await;
    let app = world.app().await;
    told(&app, "DELETE FROM plain").await;
    refused(world.side.flip(id(1, 1)).await.unwrap());
    done(world.side.flip(id(1, 2)).await.unwrap());
}

#[tokio::test]
async fn late_writers_and_flips_never_both_win() {
    let world = World::owner(Options::default(), limits(220)).await;
    let mut wins = [0, 0];
    let (mut attempt, writers) = (0, [world.app().await, world.app().await]);
    while attempt < 25 {
        world.fenced(attempt, attempt + 1).await;
        attempt += 1;
        // Around the deadline less the margin, which is where both could think they are in time.
        tokio::time::sleep(Duration::from_millis(60 + attempt * 7)).await;
        let write = async |client: &tokio_postgres::Client| {
            let until = tokio::time::Instant::now() + Duration::from_millis(250);
            while tokio::time::Instant::now() < until {
                if client.batch_execute("UPDATE plain SET v = 'w'").await.is_ok() {
                    return true;
                }
            }
            false
        };
        let (flip, one, two) =
            tokio::join!(world.side.flip(id(1, attempt)), write(&writers[0]), write(&writers[1]));
        let flipped = flip.unwrap().made().is_some();
        assert!(flipped != (one || two), "attempt {attempt}: flipped {flipped}, written {one} {two}");
        wins[usize::from(flipped)] += 1;
        if flipped {
            world.client.batch_execute("UPDATE segue.owner SET state = 'owner'").await.unwrap();
        }
    }
    assert!(wins.iter().all(|n| *n > 0), "both were meant to happen: {wins:?}");
}

#[tokio::test]
async fn a_server_that_crashes_under_the_fence_comes_back_fenced_and_opens_at_the_deadline() {
    let world = World::owner(Options::default(), limits(6_000)).await;
    world.fenced(0, 1).await;
    world.cluster.kill9().await;
    world.cluster.start_again().await;
    let app = world.app().await;
    let mut refusals = 0;
    while let Err(error) = app.batch_execute("INSERT INTO plain VALUES (2, 'late')").await {
        assert_eq!(error.code().map(|c| c.code()), Some(REFUSED), "{error:?}");
        refusals += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(refusals > 0, "the server took longer than the fence");
    let side = Side::open_sessions(&world.endpoint, ("m", 3), tables(), limits(60_000)).await.unwrap();
    assert_eq!(side.row().await.unwrap().unwrap().ownership, owner(1, 1));
    done(side.fence(id(1, 1), Attempt(2)).await.unwrap());
    done(side.flip(id(1, 2)).await.unwrap());
    world.cluster.kill9().await;
    world.cluster.start_again().await;
    told(&world.app().await, "DELETE FROM plain").await;
}

#[tokio::test]
async fn a_trigger_that_is_enabled_by_accident_refuses_nothing_on_an_owner() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let app = world.app().await;
    let enable = "ALTER TABLE plain ENABLE TRIGGER ALL; ALTER TABLE parts ENABLE TRIGGER ALL";
    let write = "BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE plain SET v = 'x'; TRUNCATE parts; COMMIT; DELETE FROM plain";
    world.client.batch_execute(enable).await.unwrap();
    app.batch_execute(write).await.unwrap();
    world.fenced(0, 1).await;
    done(world.side.unfence(id(1, 1)).await.unwrap());
    world.client.batch_execute(enable).await.unwrap();
    app.batch_execute(write).await.unwrap();
}

#[tokio::test]
async fn a_late_writer_takes_back_only_the_fence_that_it_met() {
    let world = World::owner(Options::default(), limits(200)).await;
    let app = world.app().await;
    world.fenced(0, 1).await;
    world.until_the_deadline().await;
    // As if its look at the function were older than the row.
    for other in ["attempt = 2", "attempt = 1, epoch = 2", "epoch = 1, deadline = now() + interval '1 h'"] {
        world.client.batch_execute(&format!("UPDATE segue.owner SET {other}")).await.unwrap();
        told(&app, "INSERT INTO plain VALUES (2, 'late')").await;
    }
    world.client.batch_execute("UPDATE segue.owner SET deadline = now()").await.unwrap();
    app.batch_execute("INSERT INTO plain VALUES (2, 'late')").await.unwrap();
}

#[tokio::test]
async fn a_flip_compares_what_is_there_after_it_has_waited() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    world.fenced(0, 1).await;
    let other = world.cluster.connect("postgres").await;
    other.batch_execute("BEGIN; UPDATE segue.owner SET state = 'owner', deadline = NULL").await.unwrap();
    let (flip, ()) = tokio::join!(world.side.flip(id(1, 1)), async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        other.batch_execute("COMMIT").await.unwrap();
    });
    assert_eq!(refused(flip.unwrap()), Some(owner(1, 1)));
}

#[tokio::test]
async fn a_fence_over_an_expired_one_waits_for_those_who_passed_it() {
    let world = World::owner(Options::default(), limits(300)).await;
    let app = world.app().await;
    world.fenced(0, 1).await;
    world.until_the_deadline().await;
    app.batch_execute("INSERT INTO plain VALUES (2, 'late')").await.unwrap();
    app.batch_execute("BEGIN; INSERT INTO plain VALUES (3, 'passed')").await.unwrap();
    let answer = world.side.fence(id(1, 1), Attempt(2)).await.unwrap();
    assert!(matches!(answer, Answer::Blocked { .. }), "its write would come after the marker: {answer:?}");
    app.batch_execute("COMMIT").await.unwrap();
    world.fenced(1, 2).await;
}
