//! DDL that a stream cannot follow is refused where it would be run, on whichever side owns the writes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::Cluster;
use std::time::{Duration, Instant};
use support::{PATIENCE, Pair};

const TABLES: &str = "CREATE TABLE public.t (id int PRIMARY KEY, v text);
    CREATE TABLE public.p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (1000)";
const CHANGE: &str = "ALTER TABLE public.t ADD COLUMN more int";

/// The change is refused, and what is said names the migration, the table and the change.
async fn refused(side: &Cluster) {
    let client = side.connect("postgres").await;
    let error = client.batch_execute(CHANGE).await.expect_err("it is refused");
    let said = error.as_db_error().expect("an answer");
    let all = format!("{} {}", said.message(), said.hint().unwrap_or_default());
    for part in ["test", "public.t", "column more", "segue_guard_test"] {
        assert!(all.contains(part), "{part} in {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_cannot_follow_is_refused_until_the_migration_is_over() {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(TABLES).await;
    pair.source.execute("INSERT INTO public.t VALUES (1, 'x'); INSERT INTO public.p VALUES (1, 'x')").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    refused(&pair.source).await;
    pair.source.execute("INSERT INTO public.t VALUES (2, 'y'); CREATE INDEX ON public.t (v)").await;
    pair.target.execute("CREATE INDEX ON public.t (v)").await;
    // A part goes, becomes anybody's, and comes back.
    pair.source
        .execute(
            "ALTER TABLE public.p DETACH PARTITION public.p1; ALTER TABLE public.p1 ADD COLUMN other int;
             ALTER TABLE public.p1 DROP COLUMN other; ALTER TABLE public.p ATTACH PARTITION public.p1 FOR VALUES FROM (0) TO (1000)",
        )
        .await;
    let late = "CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (1000) TO (2000)";
    pair.target.execute(late).await;
    pair.source.execute(late).await;
    pair.source.execute("INSERT INTO public.p VALUES (1500, 'late')").await;
    pair.caught_up().await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes"], 0);
    refused(&pair.target).await;
    pair.target.execute("INSERT INTO public.t VALUES (3, 'z')").await;
    pair.segue(&["reverse"], 0);
    pair.segue(&["cancel"], 0);
    for side in [&pair.source, &pair.target] {
        side.execute(CHANGE).await;
        let left = "SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_proc WHERE proname LIKE 'guard%')
            + (SELECT count(*) FROM pg_namespace WHERE nspname = 'segue')";
        assert_eq!(side.scalar(left).await.as_deref(), Some("0"));
    }
}

/// Waits until `status` warns with these words, or does not any more.
async fn warned(pair: &Pair, words: &str, is_so: bool) {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = pair.segue(&["status"], 0);
        if status.contains(words) == is_so {
            return;
        }
        assert!(Instant::now() < until, "{words}: {is_so}\n{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const TRIGGERS: &str = "SELECT count(*) FROM pg_event_trigger";

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_in_the_guards_way_keeps_nothing_from_starting() {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(TABLES).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    run.terminate();
    run.wait(PATIENCE).await.unwrap();
    // As DDL does that has detached a part, until it is committed.
    let held = pair.source.connect("postgres").await;
    held.batch_execute("BEGIN; SELECT FROM segue.guarded FOR UPDATE").await.unwrap();
    let run = pair.run();
    pair.source.execute("INSERT INTO public.t VALUES (1, 'meanwhile')").await;
    pair.caught_up().await;
    warned(&pair, "the guard of the source against changes of the tables (DDL) is not up to date yet", true)
        .await;
    refused(&pair.source).await;
    held.batch_execute("COMMIT").await.unwrap();
    warned(&pair, "is not up to date yet", false).await;
    // Nor does taking it away wait.
    run.terminate();
    run.wait(PATIENCE).await.unwrap();
    held.batch_execute("BEGIN; SELECT FROM segue.guarded FOR UPDATE").await.unwrap();
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.*"], "guard: { ddl: false }\n");
    let _run = pair.run();
    pair.source.execute("INSERT INTO public.t VALUES (2, 'again')").await;
    pair.caught_up().await;
    warned(&pair, "is not removed yet", true).await;
    held.batch_execute("COMMIT").await.unwrap();
    warned(&pair, "is not removed yet", false).await;
    assert_eq!(pair.source.scalar(TRIGGERS).await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_the_hand_over_wait_for_the_targets_guard() {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(TABLES).await;
    pair.source.execute("INSERT INTO public.t VALUES (1, 'on the source')").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    let held = pair.target.connect("postgres").await;
    held.batch_execute("BEGIN; LOCK TABLE segue.guarded IN SHARE MODE").await.unwrap();
    pair.segue(&["switch", "writes"], 0);
    pair.target.execute("INSERT INTO public.t VALUES (2, 'on the target')").await;
    warned(&pair, "the guard of the target against changes of the tables (DDL) is not up to date yet", true)
        .await;
    held.batch_execute("COMMIT").await.unwrap();
    warned(&pair, "is not up to date yet", false).await;
    refused(&pair.target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_privilege_it_is_a_warning() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both(TABLES).await;
    pair.source
        .execute(
            "CREATE ROLE mover LOGIN REPLICATION PASSWORD 'secret'; GRANT CREATE ON DATABASE postgres TO mover;
             ALTER TABLE public.t OWNER TO mover",
        )
        .await;
    let source = format!("postgres://mover:secret@127.0.0.1:{}/postgres", pair.source.port());
    pair.write_spec(&source, &pair.target.url("postgres"), &["public.t"], "");
    let run = pair.run();
    pair.reaches(&run, "following").await;
    warned(&pair, "changes of the tables on the source (DDL) are not refused", true).await;
    let status = pair.segue(&["status"], 0);
    assert_eq!(status.matches("(DDL) are not refused").count(), 1, "{status}");
    assert_eq!(pair.source.scalar(TRIGGERS).await.as_deref(), Some("0"));
    pair.source.execute(CHANGE).await;
    run.wait_for("SEGUE-DDL-DRIFT", PATIENCE).await.unwrap();
}

/// Changes that were made past the guard, used, and taken back: the log still has rows of that form, and what a plan by name
/// would make of them is not what the source has. A new stream compares.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_came_and_went_or_took_anothers_place_is_no_dead_end() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'old' FROM generate_series(1, 100) n").await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.t"], "guard: { ddl: false }\n");
    let mut run = pair.run();
    pair.reaches(&run, "following").await;
    let gone = "ALTER TABLE public.t ADD COLUMN z int; INSERT INTO public.t VALUES (101, 'x', 7);
        ALTER TABLE public.t DROP COLUMN z";
    let swapped = "ALTER TABLE public.t ADD COLUMN v2 text; UPDATE public.t SET v2 = 'new' WHERE id % 2 = 0;
        ALTER TABLE public.t DROP COLUMN v; ALTER TABLE public.t RENAME v2 TO v";
    for change in [gone, swapped] {
        pair.stop(&run).await;
        pair.source.execute(change).await;
        for _ in 0..2 {
            let said = pair.refused(&pair.run(), "SEGUE-DDL-DRIFT").await;
            assert!(said.contains("then `segue run --new-stream`"), "{said}");
        }
        (run, _) = pair.renewed().await;
        pair.source.execute("INSERT INTO public.t SELECT max(id) + 1, 'after' FROM public.t").await;
        pair.caught_up().await;
        pair.assert_equal(&["public"]).await;
    }
    let new = pair.target.scalar("SELECT count(*) FROM public.t WHERE v = 'new'").await;
    assert_eq!(new.as_deref(), Some("51"));
}
