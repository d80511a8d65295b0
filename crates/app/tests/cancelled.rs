//! `segue cancel` removes what it should, however long that takes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::kill::{Process, kill_at, was_killed};
use std::time::Duration;
use support::{PATIENCE, Pair};

#[tokio::test(flavor = "multi_thread")]
async fn tables_in_use_are_dropped_when_their_reader_is_done() {
    let pair = Pair::start(&["public.*"]).await;
    for side in [&pair.source, &pair.target] {
        side.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").await;
    }
    pair.source.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let reader = pair.target.connect("postgres").await;
    reader.batch_execute("BEGIN; SELECT * FROM a").await.unwrap();
    let cancel = Process::start(pair.command(&["cancel", "--drop-target-tables"]));
    // Longer than several beats of the lease.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(cancel.status().is_none(), "it waits for the reader\n{}", cancel.lines().join("\n"));
    reader.batch_execute("COMMIT").await.unwrap();
    let ended = cancel.wait(PATIENCE).await.unwrap();
    assert!(ended.success(), "{}", cancel.lines().join("\n"));
    let left = "SELECT concat(to_regclass('a'), to_regclass('b'), to_regnamespace('segue'))";
    assert_eq!(pair.target.scalar(left).await.as_deref(), Some(""));
    assert_eq!(pair.source.scalar(left).await.as_deref(), Some("ab"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_on_either_side_it_can_be_repeated_after_writes_have_come_back() {
    let pair = Pair::start(&["public.a"]).await;
    pair.both("CREATE TABLE public.a (id int PRIMARY KEY)").await;
    pair.source.execute("INSERT INTO public.a SELECT generate_series(1, 10)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes"], 0);
    pair.segue(&["verify"], 0);
    pair.segue(&["reverse"], 0);
    for side in [&pair.target, &pair.source] {
        let reader = side.connect("postgres").await;
        reader.batch_execute("BEGIN; SELECT * FROM public.a").await.unwrap();
        let cancel = Process::start(pair.command(&["cancel"]));
        cancel.wait_for("it goes on when that is over", PATIENCE).await.unwrap();
        cancel.kill9();
        reader.batch_execute("COMMIT").await.unwrap();
    }
    pair.segue(&["cancel"], 0);
    for side in [&pair.source, &pair.target] {
        let schema = side.scalar("SELECT to_regnamespace('segue') IS NULL").await;
        assert_eq!(schema.as_deref(), Some("t"));
    }
}

/// Whoever has swapped a table of the target has made another one: its rows are nobody's to drop.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_only_has_the_name_of_one_is_not_dropped() {
    let pair = Pair::start(&["public.a", "public.b"]).await;
    pair.both("CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int PRIMARY KEY)").await;
    pair.source.execute("INSERT INTO public.b VALUES (1)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.stop(&run).await;
    pair.target.execute("ALTER TABLE a RENAME TO filled; CREATE TABLE a AS SELECT 'mine' AS v").await;
    let said = pair.segue(&["cancel", "--drop-target-tables", "--json"], 1);
    assert!(said.contains("SEGUE-DROP-TARGET") && said.contains("a is not what was moved"), "{said}");
    assert_eq!(pair.target.scalar("SELECT v FROM a").await.as_deref(), Some("mine"));
    assert_eq!(
        pair.target.scalar("SELECT count(*) FROM b").await.as_deref(),
        Some("1"),
        "nothing was removed"
    );
    pair.target.execute("ALTER TABLE a RENAME TO mine; ALTER TABLE filled RENAME TO a").await;

    // The tables go first, while their fence tells whose they are; whoever is killed then cancels again.
    let mut cancel = pair.command(&["cancel", "--drop-target-tables"]);
    kill_at(&mut cancel, "cancel.dropped", 1);
    let ended = Process::start(cancel).wait(PATIENCE).await.unwrap();
    assert!(was_killed(ended));
    let left =
        "SELECT concat(to_regclass('a'), to_regclass('b'), to_regnamespace('segue'), to_regclass('mine'))";
    assert_eq!(pair.target.scalar(left).await.as_deref(), Some("seguemine"));
    // One that was made since is somebody else's.
    pair.target.execute("CREATE TABLE b AS SELECT 'mine' AS v").await;
    pair.segue(&["cancel", "--drop-target-tables"], 1);
    pair.target.execute("ALTER TABLE b RENAME TO mine_too").await;
    pair.segue(&["cancel", "--drop-target-tables"], 0);
    assert_eq!(pair.target.scalar(left).await.as_deref(), Some("mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_there_is_not_said_to_be_removed() {
    let pair = Pair::start(&["public.a"]).await;
    assert_eq!(pair.segue(&["cancel"], 0), "nothing was left of it on either side\n");
    for side in [&pair.source, &pair.target] {
        let schema = side.scalar("SELECT to_regnamespace('segue') IS NULL").await;
        assert_eq!(schema.as_deref(), Some("t"), "nothing is made for it");
    }
    pair.both("CREATE TABLE public.a (id int PRIMARY KEY)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.stop(&run).await;
    // Somebody tidies up by hand, and leaves what keeps the source's log.
    for side in [&pair.source, &pair.target] {
        side.execute("DROP SCHEMA segue CASCADE").await;
    }
    let said = pair.segue(&["cancel"], 0);
    assert!(said.starts_with("removed:\n") && said.contains("replication slot"), "{said}");
    let slots = pair.source.scalar("SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(slots.as_deref(), Some("0"));
    assert_eq!(pair.segue(&["cancel"], 0), "nothing was left of it on either side\n");
}
