//! What cannot be moved safely is refused by name, and what turns up while moving is a fault: never a partial copy.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::kill::Process;
use std::time::Duration;
use support::slow::{locked, until};
use support::{PATIENCE, Pair};

/// Publishing such a table would make the application's own updates fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_deferrable_key_on_the_source_is_refused_before_anything_is_touched() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY DEFERRABLE, v text)").await;
    pair.source.execute("INSERT INTO public.t VALUES (1, 'x')").await;
    let said = pair.refused(&pair.run(), "SEGUE-DEFERRABLE-KEY").await;
    assert!(said.contains("t_pkey") && said.contains("next: "), "{said}");
    let publications = pair.source.scalar("SELECT count(*) FROM pg_publication").await;
    assert_eq!(publications.as_deref(), Some("0"));
    pair.source.execute("UPDATE public.t SET v = 'y'").await;
}

/// Under the replica role PostgreSQL does not check a deferrable key.
#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_under_a_deferrable_key_of_the_target_is_a_fault() {
    let pair = Pair::start(&["public.t"]).await;
    pair.source.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    pair.target.execute("CREATE TABLE public.t (id int PRIMARY KEY DEFERRABLE, v text)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    // Somebody else writes to the target.
    pair.plant("INSERT INTO public.t VALUES (1, 'planted')").await;
    pair.source.execute("INSERT INTO public.t VALUES (2, 'fine')").await;
    pair.caught_up().await;
    pair.source.execute("INSERT INTO public.t VALUES (1, 'streamed')").await;
    let said = pair.refused(&run, "SEGUE-ROW").await;
    for part in ["public.t", "already there", "planted", "streamed"] {
        assert!(said.contains(part), "{part} is not said:\n{said}");
    }
    let rows = pair.target.scalar("SELECT string_agg(v, ',' ORDER BY id) FROM public.t").await;
    assert_eq!(rows.as_deref(), Some("planted,fine"));
}

/// The row is not to be seen when the tables are looked at first, and the fence comes too late for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_committed_on_the_target_before_the_fence_is_up_is_not_copied_over() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    let writer = pair.target.connect("postgres").await;
    writer.batch_execute("BEGIN; INSERT INTO public.t VALUES (1, 'late')").await.unwrap();
    let run = pair.run();
    let waits = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 'public.t'::regclass AND NOT granted";
    until("the fence waits", async || pair.target.scalar(waits).await.as_deref() == Some("t")).await;
    writer.batch_execute("COMMIT").await.unwrap();
    pair.refused(&run, "SEGUE-NOT-EMPTY").await;
    let slots = pair.source.scalar("SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(slots.as_deref(), Some("0"), "no slot keeps log meanwhile");
    // What is advised can be done.
    pair.target.execute("TRUNCATE public.t").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.assert_equal(&["public"]).await;
}

/// A role that may do everything Segue needs, but is bound by policies.
const BOUND: &str =
    "CREATE ROLE mover LOGIN REPLICATION PASSWORD 'secret'; GRANT CREATE ON DATABASE postgres TO mover;
    ALTER TABLE public.t OWNER TO mover; CREATE POLICY half ON public.t USING (id % 2 = 0);
    INSERT INTO public.t SELECT n, 'x' FROM generate_series(1, 100) n;";
const BIND: &str =
    "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY; ALTER TABLE public.t FORCE ROW LEVEL SECURITY;";

async fn bound(tables: &[&str]) -> Pair {
    let pair = Pair::start(tables).await;
    pair.both("CREATE TABLE public.first (id int PRIMARY KEY, v text); CREATE TABLE public.t (LIKE public.first INCLUDING ALL)")
        .await;
    pair.source.execute(BOUND).await;
    pair.source.execute("ALTER TABLE public.first OWNER TO mover").await;
    let source = format!("postgres://mover:secret@127.0.0.1:{}/postgres", pair.source.port());
    pair.write_spec(&source, &pair.target.url("postgres"), tables, "copy: { workers: 1 }\n");
    pair
}

async fn nothing_is_copied(pair: &Pair, run: &Process) {
    assert!(run.status().is_some(), "it has ended");
    let rows = pair.target.scalar("SELECT count(*) FROM public.t").await;
    assert_eq!(rows.as_deref(), Some("0"), "half of the rows would be worse than none");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_on_the_source_is_refused() {
    let pair = bound(&["public.t"]).await;
    pair.source.execute(BIND).await;
    let run = pair.run();
    let said = pair.refused(&run, "SEGUE-ROW-SECURITY").await;
    assert!(said.contains("public.t has row-level security") && said.contains("BYPASSRLS"), "{said}");
    nothing_is_copied(&pair, &run).await;
}

/// The policy is put in force behind the plan's back, while another table is being copied.
#[cfg(feature = "killpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn row_security_that_comes_later_fails_loudly() {
    let pair = bound(&["public.first", "public.t"]).await;
    pair.source
        .execute("INSERT INTO public.first SELECT n, repeat('x', 500) FROM generate_series(1, 1000) n")
        .await;
    pair.fenced().await;
    let held = locked(&pair.target, "public.first", "SHARE").await;
    let run = pair.run();
    pair.reaches(&run, "backfilling").await;
    pair.source.execute(BIND).await;
    held.batch_execute("COMMIT").await.unwrap();
    let status = run.wait(PATIENCE).await.unwrap();
    let said = run.lines().join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("row-level security") && said.contains("public.t"), "{said}");
    nothing_is_copied(&pair, &run).await;
    // Nothing is lost by it: mended, it goes on.
    pair.source.execute("ALTER TABLE public.t NO FORCE ROW LEVEL SECURITY").await;
    let run = pair.run();
    run.wait_for("test following", PATIENCE).await.unwrap();
    pair.assert_equal(&["public"]).await;
    assert!(run.wait(Duration::ZERO).await.is_err(), "it runs");
}
