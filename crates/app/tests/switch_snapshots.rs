//! Old snapshots and other things that a transaction may hold when the writes change hands: none of them writes past the
//! fence, and none of them keeps traffic out for longer than it may.
#![cfg(feature = "killpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::Cluster;
use serde_json::Value;
use std::time::{Duration, Instant};
use support::moving::{Driving, MAX_WRITE_HOLD, Moving, SLACK, SOURCE, Setup, TARGET};
use support::orders::answer;
use support::{PATIENCE, slow::until};
use tokio_postgres::Client;

/// Little traffic: what is looked at is one transaction.
async fn quiet() -> (Moving, Driving) {
    let setup = Setup {
        rows: 500,
        per_second: 20,
        more: "switch: { accept_session_state: true }\n",
        ..Setup::default()
    };
    Moving::start(setup).await
}

async fn session(cluster: &Cluster, sql: &str) -> Client {
    let client = cluster.connect("postgres").await;
    client.batch_execute(sql).await.unwrap();
    client
}

/// The SQLSTATE with which a statement fails.
async fn refusal(client: &Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.expect_err("it was to be refused");
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

/// A write that no writer of the workload and no probe makes.
fn write(n: u32) -> String {
    format!("INSERT INTO probe.mark VALUES (9, {n})")
}

async fn count(cluster: &Cluster) -> String {
    cluster.scalar("SELECT count(*) FROM probe.mark WHERE side = 9").await.unwrap()
}

/// Asks for a hand-over, and lets `meddle` happen right before the fence: after everything that is looked at before.
async fn meddled(
    moving: &Moving,
    run: &Driving,
    meddle: impl Future<Output = Client>,
) -> (Client, Value, Duration) {
    let order = moving.frozen_at(run, "switch.fence.before", SOURCE).await;
    let client = meddle.await;
    let began = Instant::now();
    run.process.thaw();
    let told = answer(moving.control(), order).await;
    moving.assert_accepts(SOURCE, SLACK, "undone").await;
    let gap = moving.assert_gap(began, MAX_WRITE_HOLD, "in the way");
    (client, told, gap)
}

/// It was undone because of somebody who is named.
fn assert_undone(told: &Value, culprit: &str) {
    assert_eq!(told["outcome"], "undone", "{told:#}");
    let holders = told["blockers_of_lock"].as_array().unwrap();
    assert!(holders.iter().any(|holder| holder.as_str().unwrap().contains(culprit)), "{culprit}: {told:#}");
}

async fn pid(client: &Client) -> String {
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
    format!("pid {} ", row.get::<_, i32>(0))
}

/// Transactions whose snapshots were taken when the source owned the writes, of which none has written yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_does_not_write_past_the_fence() {
    let (moving, run) = quiet().await;
    let begin = |level: &str| format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM probe.mark");
    let source = &moving.pair.source;
    let mut old = Vec::new();
    for level in ["REPEATABLE READ", "SERIALIZABLE", "READ COMMITTED"] {
        for _ in 0..3 {
            old.push(session(source, &begin(level)).await);
        }
    }
    let on_target = session(&moving.pair.target, &begin("REPEATABLE READ")).await;
    moving.frozen_at(&run, "switch.settle.before", SOURCE).await;
    for (n, client) in (0..).zip(old.iter().step_by(3)) {
        assert_eq!(refusal(client, &write(n)).await, "25006", "under the fence");
    }
    run.process.thaw();
    moving.assert_accepts(TARGET, PATIENCE, "switched").await;
    for (n, client) in (10..).zip(old.iter().skip(1).step_by(3)) {
        assert_eq!(refusal(client, &write(n)).await, "25006", "on the old owner, after the switch");
    }
    // On the new owner it may write, or fail; it does not write what is lost.
    let wrote = on_target.batch_execute(&format!("{}; COMMIT", write(20))).await.is_ok();
    moving.moves_away_from(TARGET, &run).await;
    moving.assert_accepts(SOURCE, PATIENCE, "and back").await;
    // The source is the owner again: so are they allowed to, by PostgreSQL's own rules.
    let mut written = u32::from(wrote);
    for (n, client) in (30..).zip(old.iter().skip(2).step_by(3)) {
        written += u32::from(client.batch_execute(&format!("{}; COMMIT", write(n))).await.is_ok());
    }
    moving.caught_up(SOURCE).await;
    for side in [SOURCE, TARGET] {
        assert_eq!(count(moving.server(side)).await, written.to_string(), "on side {side}");
    }
    moving.settle(SOURCE, &run).await;
}

/// A transaction that goes on to update a row which the new owner has changed meanwhile does not overwrite that.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_snapshot_does_not_overwrite_what_came_back() {
    let (moving, run) = quiet().await;
    moving.pair.source.execute(&write(1)).await;
    let old = session(
        &moving.pair.source,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM probe.mark",
    )
    .await;
    moving.moves_away_from(SOURCE, &run).await;
    moving.pair.target.execute("UPDATE probe.mark SET n = 2 WHERE side = 9").await;
    moving.moves_away_from(TARGET, &run).await;
    let changed = "UPDATE probe.mark SET n = n + 10 WHERE side = 9";
    assert_eq!(refusal(&old, changed).await, "40001");
    let n = moving.pair.source.scalar("SELECT n FROM probe.mark WHERE side = 9").await;
    assert_eq!(n.as_deref(), Some("2"));
    moving.settle(SOURCE, &run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn someone_idle_in_a_transaction_is_named_and_traffic_flows_again() {
    let (moving, run) = quiet().await;
    let source = &moving.pair.source;
    let (culprit, told, gap) = meddled(&moving, &run, session(source, &format!("BEGIN; {}", write(1)))).await;
    assert_undone(&told, &pid(&culprit).await);
    // Behind each try for the locks.
    let stall_ms = told["stall_ms"].as_f64().unwrap();
    assert!(stall_ms > 100.0 && stall_ms < MAX_WRITE_HOLD.as_millis() as f64, "{told:#}");
    eprintln!("traffic stood still for {} ms: {told:#}", gap.as_millis());
    culprit.batch_execute("COMMIT").await.unwrap();
    moving.moves_away_from(SOURCE, &run).await;
    assert_eq!(count(&moving.pair.target).await, "1", "it was acknowledged before the switch");
    moving.settle(TARGET, &run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_named_and_goes_with_the_next_switch() {
    let (moving, run) = quiet().await;
    let source = &moving.pair.source;
    let prepared = format!("BEGIN; {}; PREPARE TRANSACTION 'left over'", write(1));
    let (client, told, _) = meddled(&moving, &run, session(source, &prepared)).await;
    assert_undone(&told, "left over");
    client.batch_execute("COMMIT PREPARED 'left over'").await.unwrap();
    moving.moves_away_from(SOURCE, &run).await;
    assert_eq!(count(&moving.pair.target).await, "1", "it was acknowledged before the switch");
    moving.settle(TARGET, &run).await;
}

/// A transaction that has written nothing yet, and whose writes come only with its COMMIT, by a deferred trigger on a table
/// that is not migrated: it holds no lock that the fence would wait for.
const DEFERRED: &str = "
    CREATE TABLE public.outside (n int);
    CREATE FUNCTION public.writes() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO probe.mark VALUES (9, NEW.n); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.outside DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.writes()";

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_deferred_to_the_commit_meets_the_fence() {
    let (moving, run) = quiet().await;
    let source = &moving.pair.source;
    source.execute(DEFERRED).await;
    let insert = |n: u32| format!("BEGIN; INSERT INTO public.outside VALUES ({n})");
    let [under, after] = [session(source, &insert(1)).await, session(source, &insert(2)).await];
    moving.frozen_at(&run, "switch.settle.before", SOURCE).await;
    assert_eq!(refusal(&under, "COMMIT").await, "25006", "under the fence");
    run.process.thaw();
    moving.assert_accepts(TARGET, PATIENCE, "switched").await;
    assert_eq!(refusal(&after, "COMMIT").await, "25006", "after the switch");
    // Not in part either: what it wrote outside is gone with the rest.
    assert_eq!(source.scalar("SELECT count(*) FROM public.outside").await.as_deref(), Some("0"));
    moving.settle(TARGET, &run).await;
}

/// A deferred constraint that is still to be checked belongs to a transaction that has written: it is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_deferred_constraint_is_checked_before_the_fence_or_not_at_all() {
    let (moving, run) = quiet().await;
    let source = &moving.pair.source;
    let deferred =
        "ALTER TABLE shop.order_item ALTER CONSTRAINT order_item_order_id_fkey DEFERRABLE INITIALLY DEFERRED";
    moving.pair.both(deferred).await;
    // Its order does not exist: COMMIT will fail.
    let bad = "BEGIN; INSERT INTO shop.order_item (order_id, line, n, version, quantity, price)
               VALUES (-1, 1, 1, 1, 1, 1)";
    let (culprit, told, _) = meddled(&moving, &run, session(source, bad)).await;
    assert_undone(&told, &pid(&culprit).await);
    assert_eq!(refusal(&culprit, "COMMIT").await, "23503");
    moving.moves_away_from(SOURCE, &run).await;
    moving.settle(TARGET, &run).await;
}

/// What a session holds without a transaction does not stop the fence: a gate lists it, and was accepted here.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_holds_outside_transactions_does_not_stop_the_fence() {
    let (moving, run) = quiet().await;
    let source = &moving.pair.source;
    let holder = session(
        source,
        "SELECT pg_advisory_lock(42); CREATE TEMP TABLE mine (n int); LISTEN something;
         BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT n FROM probe.mark WHERE side = 9; COMMIT",
    )
    .await;
    moving.frozen_at(&run, "switch.settle.before", SOURCE).await;
    // What is not migrated is not fenced.
    holder.batch_execute("INSERT INTO mine VALUES (1); FETCH ALL FROM held").await.unwrap();
    assert_eq!(refusal(&holder, &write(1)).await, "25006");
    run.process.thaw();
    moving.assert_accepts(TARGET, PATIENCE, "switched").await;
    assert_eq!(refusal(&holder, &write(1)).await, "25006");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND granted";
    assert_eq!(source.scalar(locks).await.as_deref(), Some("1"), "the session keeps what it holds");
    drop(holder);
    until("the lock is gone", async || source.scalar(locks).await.as_deref() == Some("0")).await;
    moving.settle(TARGET, &run).await;
}
