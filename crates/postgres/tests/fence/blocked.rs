//! A fence that cannot have its locks says who holds them, in time, and leaves everything as it was; undoing and opening
//! never wait for anybody.

use crate::world::*;
use segue_engine::fault::Recovery;
use segue_model::switch::ownership::Attempt;
use segue_postgres::birth::{Blocker, Direction};
use segue_postgres::fence::{Answer, Applied, Limits, Role, Side, prepare};
use segue_testkit::Options;
use std::time::{Duration, Instant};

fn blocked(answer: Answer) -> Vec<Blocker> {
    match answer {
        Answer::Blocked { by, .. } => by,
        other => panic!("not blocked: {other:?}"),
    }
}

#[tokio::test]
async fn an_idle_transaction_is_named_within_the_budget_and_nothing_is_changed() {
    let world = World::owner(Options::default(), limits(2_000)).await;
    let app = world.app().await;
    app.batch_execute(
        "SET application_name = 'forgetful'; BEGIN; UPDATE parts SET v = 'secret' WHERE id = 200",
    )
    .await
    .unwrap();
    let began = Instant::now();
    let by = blocked(world.side.fence(id(1, 0), Attempt(1)).await.unwrap());
    assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    let [culprit] = &by[..] else { panic!("{by:?}") };
    assert_eq!((culprit.application.as_str(), culprit.user.as_str()), ("forgetful", "app"));
    assert_eq!(culprit.state, "idle in transaction");
    assert!(culprit.query.contains("UPDATE parts SET v = ? WHERE id = ?"), "{culprit}");
    assert_eq!(world.ownership().await, owner(1, 0));
    assert_eq!(world.triggers("O").await, 0);
    assert_eq!(world.cluster.scalar("SELECT count(*) FROM segue.signal").await.as_deref(), Some("0"));
    let other = world.app().await;
    other.batch_execute("SET lock_timeout = '1s'; UPDATE plain SET v = 'goes on'").await.unwrap();
    app.batch_execute("COMMIT").await.unwrap();
    world.fenced(0, 1).await;
}

async fn a_prepared_transaction_is_named_on(options: Options) {
    let world = World::owner(options.with("max_prepared_transactions", "5"), limits(2_000)).await;
    let app = world.app().await;
    app.batch_execute("BEGIN; INSERT INTO plain VALUES (2, 'b'); PREPARE TRANSACTION 'left over'")
        .await
        .unwrap();
    let by = blocked(world.side.fence(id(1, 0), Attempt(1)).await.unwrap());
    let [culprit] = &by[..] else { panic!("{by:?}") };
    assert_eq!((culprit.pid, culprit.state.as_str(), culprit.user.as_str()), (None, "prepared", "app"));
    assert_eq!(culprit.query, "left over");
    app.batch_execute("COMMIT PREPARED 'left over'").await.unwrap();
    assert_eq!(world.side.blockers().await.unwrap(), []);
    world.fenced(0, 1).await;
}

#[tokio::test]
async fn a_prepared_transaction_is_named() {
    a_prepared_transaction_is_named_on(Options::default()).await;
}

#[tokio::test]
async fn a_prepared_transaction_is_named_on_the_oldest_server() {
    a_prepared_transaction_is_named_on(Options::major(12)).await;
}

#[tokio::test]
async fn a_prepared_transaction_is_named_on_the_newest_server() {
    a_prepared_transaction_is_named_on(Options::major(18)).await;
}

#[tokio::test]
async fn a_fence_in_a_cycle_of_waits_gives_up_before_a_writer_is_picked() {
    // Longer than `deadlock_timeout`, which bounds it.
    let limits = Limits { lock: Duration::from_secs(4), ..limits(5_000) };
    let world = World::owner(Options::default(), limits).await;
    let app = world.app().await;
    // It holds what the fence wants last, and wants what the fence has by then.
    app.batch_execute("BEGIN; UPDATE heirs_1 SET v = 'x'").await.unwrap();
    let (fence, write) = tokio::join!(world.side.fence(id(1, 0), Attempt(1)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.batch_execute("INSERT INTO plain VALUES (2, 'b'); COMMIT").await
    });
    write.expect("the writer was not to suffer");
    let answer = fence.unwrap();
    match answer {
        Answer::Done(_) => {}
        Answer::Blocked { what, .. } => assert!(!what.contains("deadlock"), "{what}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn lifting_a_fence_does_not_wait_for_a_lock() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let app = world.app().await;
    world.fenced(0, 1).await;
    // As VACUUM or an index built concurrently would.
    let holder = world.cluster.connect("postgres").await;
    holder.batch_execute("BEGIN; LOCK TABLE plain IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    done(world.side.unfence(id(1, 1)).await.unwrap());
    assert_eq!(world.triggers("O").await, 8);
    app.batch_execute("INSERT INTO plain VALUES (2, 'b'); TRUNCATE parts").await.unwrap();
    refused(world.side.flip(id(1, 1)).await.unwrap());
    let left = world.side.rest(id(1, 1)).await.unwrap();
    assert_eq!(left.iter().map(ToString::to_string).collect::<Vec<_>>(), ["public.plain"]);
    assert_eq!(world.triggers("O").await, 1);
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.side.rest(id(1, 1)).await.unwrap(), []);
    assert_eq!(world.triggers("O").await, 0);
    // A rest that comes late does not open a fence that was made since.
    world.fenced(1, 2).await;
    world.side.rest(id(1, 1)).await.unwrap();
    assert_eq!(world.triggers("O").await, 8);
    told(&app, "INSERT INTO plain VALUES (3, 'c')").await;
}

#[tokio::test]
async fn opening_does_not_wait_for_a_lock() {
    let world = World::start(Options::default(), limits(60_000), Role::Follower).await;
    stream_to(&world.client, Direction::Forward).await;
    let holder = world.cluster.connect("postgres").await;
    holder.batch_execute("BEGIN; LOCK TABLE plain IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let applied = Applied { signal: 9, position: STREAM_AT };
    done(world.side.open(id(1, 5), 9, Direction::Forward, applied).await.unwrap());
    world.app().await.batch_execute("INSERT INTO plain VALUES (2, 'b')").await.unwrap();
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.side.rest(id(2, 5)).await.unwrap(), []);
    assert_eq!(world.triggers("D").await, 8);
}

#[tokio::test]
async fn a_call_whose_session_ends_has_an_unknown_outcome() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let app = world.app().await;
    app.batch_execute("BEGIN; UPDATE plain SET v = 'x'").await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'segue fence' AND wait_event_type = 'Lock'";
    let (fence, ()) = tokio::join!(world.side.fence(id(1, 0), Attempt(1)), async {
        while world.client.query(end, &[]).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let fault = fence.expect_err("its session is gone");
    assert_eq!((fault.recovery, fault.code), (Recovery::Ambiguous, "SEGUE-FENCE-UNKNOWN"), "{fault}");
    let again = Side::open_sessions(&world.endpoint, ("m", 3), tables(), limits(60_000)).await.unwrap();
    app.batch_execute("COMMIT").await.unwrap();
    done(again.fence(id(1, 0), Attempt(1)).await.unwrap());
}

#[tokio::test]
async fn hundreds_of_leaves_are_fenced_well_within_the_hold() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let sql = "DO $$ BEGIN FOR i IN 10..309 LOOP
         EXECUTE format('CREATE TABLE parts_%s PARTITION OF parts FOR VALUES FROM (%s) TO (%s)', i, i * 1000, (i + 1) * 1000);
         END LOOP; END $$";
    world.client.batch_execute(sql).await.unwrap();
    prepare(&world.client, ("m", 3), &tables(), Role::Owner, "there").await.unwrap();
    let began = Instant::now();
    world.fenced(0, 1).await;
    let fence = began.elapsed();
    done(world.side.unfence(id(1, 1)).await.unwrap());
    let both = began.elapsed();
    assert_eq!(world.triggers("D").await, 308);
    // A tenth of this where nothing else runs; it grows with the number of leaves, not with its square.
    assert!(both < Duration::from_secs(2), "{fence:?} {both:?}");
    println!("fence {fence:?}, and unfence {both:?}");
}

#[tokio::test]
async fn a_fence_that_waits_for_a_root_holds_none_of_its_leaves() {
    let limits = Limits { lock: Duration::from_secs(5), ..limits(10_000) };
    let world = World::owner(Options::default(), limits).await;
    let app = world.app().await;
    app.batch_execute("BEGIN; INSERT INTO parts VALUES (2, 'b')").await.unwrap();
    let (answer, took) = tokio::join!(world.side.fence(id(1, 0), Attempt(1)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        let sql = "INSERT INTO parts VALUES (300, 'c'); UPDATE heirs SET v = 'x'; INSERT INTO plain VALUES (2, 'b')";
        app.batch_execute(sql).await.unwrap();
        began.elapsed()
    });
    assert!(matches!(answer.unwrap(), Answer::Blocked { .. }));
    // The fence gives up after nine tenths of the second that `deadlock_timeout` is.
    assert!(took < Duration::from_millis(600), "it had to wait until the fence gave up: {took:?}");
}
