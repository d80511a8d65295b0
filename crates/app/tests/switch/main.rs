//! Handing the writes over, and back, with the real binary between two real servers, by its commands.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]
#![cfg(feature = "killpoints")]

mod faults;
mod repairs;
#[path = "../support/mod.rs"]
mod support;
mod way_back;

use segue_testkit::Cluster;
use segue_testkit::kill::{Process, kill_at, was_killed};
use serde_json::Value;
use std::time::{Duration, Instant};
use support::moving::Driving;
use support::{PATIENCE, Pair, orders};

const TABLES: &str = "CREATE TABLE public.t (id bigserial PRIMARY KEY, v text);
    CREATE TABLE public.p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (1000)";

async fn following() -> (Pair, Process) {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(TABLES).await;
    pair.source
        .execute(
            "INSERT INTO public.t (v) SELECT 'seed' FROM generate_series(1, 1000);
             INSERT INTO public.p SELECT i, 'seed' FROM generate_series(1, 500) i",
        )
        .await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    (pair, run)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect(text)
}

/// A driver that is asked to move the writes to the target, and dies at a point of that. Returns the order, which the next
/// driver has to answer.
async fn dies_switching(pair: &Pair, point: &str) -> i64 {
    let mut dying = pair.command(&["run"]);
    kill_at(&mut dying, point, 1);
    let dying = Process::start(dying);
    // It waits until the driver is there.
    let order = orders::order(&pair.target, "switch", &orders::for_real()).await;
    assert!(was_killed(dying.wait(PATIENCE).await.expect("it dies")), "{}", dying.lines().join("\n"));
    order
}

async fn takes(side: &Cluster, value: &str) {
    let client = side.connect("postgres").await;
    client.execute("INSERT INTO public.t (v) VALUES ($1)", &[&value]).await.expect(value);
}

async fn refuses(side: &Cluster, other: &Cluster) {
    let client = side.connect("postgres").await;
    let refused = client.execute("INSERT INTO public.t (v) VALUES ('lost')", &[]).await.unwrap_err();
    let refused = refused.as_db_error().expect("an answer");
    assert_eq!(refused.code().code(), "25006", "{refused}");
    let hint = refused.hint().unwrap_or_default();
    assert!(hint.contains(&other.port().to_string()), "it is not said where to write: {hint}");
}

async fn row(side: &Cluster, value: &str) {
    let sql = format!("SELECT count(*) FROM public.t WHERE v = '{value}'");
    let until = Instant::now() + PATIENCE;
    while side.scalar(&sql).await.as_deref() != Some("1") {
        assert!(Instant::now() < until, "`{value}` does not arrive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_go_there_and_back_any_number_of_times() {
    let (pair, _run) = following().await;
    let rehearsed = json(&pair.segue(&["switch", "writes", "--dry-run", "--json"], 0));
    assert_eq!(
        (rehearsed["outcome"].as_str(), rehearsed["owner"].as_str()),
        (Some("rehearsed"), Some("source"))
    );
    assert!(rehearsed["stall_ms"].as_f64().unwrap() > 0.0);
    takes(&pair.source, "after the rehearsal").await;
    for round in 0..3 {
        let said = pair.segue(&["switch", "writes"], 0);
        assert!(said.contains("target"), "{said}");
        refuses(&pair.source, &pair.target).await;
        takes(&pair.target, &format!("target {round}")).await;
        row(&pair.source, &format!("target {round}")).await;
        let said = pair.segue(&["switch", "writes"], 0);
        assert!(said.contains("already"), "{said}");
        let answer = json(&pair.segue(&["reverse", "--json"], 0));
        assert_eq!(
            (answer["outcome"].as_str(), answer["owner"].as_str()),
            (Some("switched"), Some("source"))
        );
        refuses(&pair.target, &pair.source).await;
        takes(&pair.source, &format!("source {round}")).await;
        row(&pair.target, &format!("source {round}")).await;
    }
    pair.segue(&["verify"], 0);
    pair.assert_equal(&["public"]).await;
    let journal = pair.segue(&["journal"], 0);
    for kind in ["way-back-armed", "rehearsed", "switch-begun", "switched", "reversed"] {
        assert!(journal.contains(kind), "{kind} in\n{journal}");
    }
    let compared =
        "SELECT bool_and(body -> 'environment' ? 'baseline') FROM segue.journal WHERE kind = 'switch-begun'";
    assert_eq!(pair.target.scalar(compared).await.as_deref(), Some("t"), "before each hand-over");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_target_owns_the_writes_it_is_what_rows_are_compared_with() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes"], 0);
    pair.reaches(&run, "switched").await;
    takes(&pair.target, "newest").await;
    pair.segue(&["verify"], 0);
    // The source's row is wrong, the target's is the owner's.
    let past = pair.source.connect("postgres").await;
    past.batch_execute(
        "SET session_replication_role = replica; UPDATE public.t SET v = 'stray' WHERE id = 7",
    )
    .await
    .unwrap();
    let found = json(&pair.segue(&["verify", "--json"], 4));
    assert_eq!(found["divergent"], 1, "{found:#}");
    pair.segue(&["verify", "--repair"], 0);
    for side in [&pair.source, &pair.target] {
        assert_eq!(side.scalar("SELECT v FROM public.t WHERE id = 7").await.as_deref(), Some("seed"));
    }
    let until = Instant::now() + PATIENCE;
    while !pair.segue(&["status"], 0).contains("past its fence") {
        assert!(Instant::now() < until, "the stray write is not told");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(pair.segue(&["journal"], 0).contains("stray"));
}

/// Killed between meeting a write past the fence and having told it: the next driver meets it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_past_the_fence_is_told_also_when_its_driver_dies_over_it() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes"], 0);
    pair.reaches(&run, "switched").await;
    run.kill9();
    let past = pair.source.connect("postgres").await;
    past.batch_execute("SET session_replication_role = replica").await.unwrap();
    for (count, point) in ["stray.met", "stray.told"].into_iter().enumerate() {
        let id = count + 1;
        past.batch_execute(&format!("UPDATE public.t SET v = 'stray' WHERE id = {id}")).await.unwrap();
        let mut dying = pair.command(&["run"]);
        kill_at(&mut dying, point, 1);
        let dying = Process::start(dying);
        let status = dying.wait(PATIENCE).await.unwrap();
        assert!(was_killed(status), "{point}: {}", dying.lines().join("\n"));
    }
    let run = pair.run();
    run.wait_for("past its fence", PATIENCE).await.unwrap();
    let keys = "SELECT count(DISTINCT t.value) FROM segue.journal j,
        jsonb_path_query(j.body, '$.strays.strays[*].tables[*].keys[*]') AS t(value) WHERE j.kind = 'stray'";
    assert_eq!(pair.target.scalar(keys).await.as_deref(), Some("2"), "{}", pair.segue(&["journal"], 0));
    takes(&pair.target, "goes on").await;
    row(&pair.source, "goes on").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_starts_finds_who_owns_the_writes() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes"], 0);
    takes(&pair.target, "before").await;
    // Without its fence the source would take writes, too.
    let refused = pair.command(&["cancel"]).output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && why.contains("SEGUE-SWITCHED"), "{why}");
    run.kill9();
    pair.segue(&["cancel"], 1);
    refuses(&pair.source, &pair.target).await;
    takes(&pair.target, "meanwhile").await;
    let run = pair.run();
    pair.reaches(&run, "switched").await;
    takes(&pair.target, "after").await;
    for value in ["before", "meanwhile", "after"] {
        row(&pair.source, value).await;
    }
    assert_eq!(json(&pair.segue(&["status", "--json"], 0))["owner"], "target");
    pair.segue(&["reverse"], 0);
    takes(&pair.source, "home").await;
    row(&pair.target, "home").await;
    pair.assert_equal(&["public"]).await;
}

/// The values of a sequence go over with a margin, so that no key is given twice.
#[tokio::test(flavor = "multi_thread")]
async fn keys_go_on_where_they_were() {
    let (pair, _run) = following().await;
    pair.segue(&["switch", "writes"], 0);
    takes(&pair.target, "first there").await;
    let there = pair.target.scalar("SELECT id FROM public.t WHERE v = 'first there'").await.unwrap();
    assert!(there.parse::<i64>().unwrap() > 1000, "{there}");
    row(&pair.source, "first there").await;
    pair.segue(&["reverse"], 0);
    takes(&pair.source, "first back").await;
    let back = pair.source.scalar("SELECT id FROM public.t WHERE v = 'first back'").await.unwrap();
    assert!(back.parse::<i64>().unwrap() > there.parse::<i64>().unwrap(), "{back} after {there}");
}

/// A session of the side where the writes would go is ended by somebody else: the attempt begins anew, with another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_ended_does_not_keep_an_order_waiting_for_ever() {
    let (pair, run) = following().await;
    let ended = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE application_name LIKE '%fence watch%') t";
    assert_eq!(pair.target.scalar(ended).await.as_deref(), Some("1"));
    let order = orders::order(&pair.target, "switch", &orders::for_real()).await;
    let told = orders::answer(&pair.target, order).await;
    if told["outcome"] != "switched" {
        run.wait_for("the target, where the writes would go, is silent", PATIENCE).await.unwrap();
        pair.segue(&["switch", "writes"], 0);
    }
    takes(&pair.target, "taken").await;
    refuses(&pair.source, &pair.target).await;
}

/// Who keeps the fence from its locks is named, also where the time for the hand-over is up before the tries are.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_in_the_way_is_named_when_the_time_is_up() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    drop(run);
    let urls = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&urls.0, &urls.1, &["public.*"], "switch: { max_write_hold_ms: 500 }\n");
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let client = pair.source.connect("postgres").await;
    client.batch_execute("BEGIN; INSERT INTO public.t (v) VALUES ('open')").await.unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let arguments = serde_json::json!({ "overrides": [{ "gate": "long-transactions", "reason": "a test" }] });
    let told = orders::ask(&pair.target, "switch", arguments).await;
    assert_eq!(told["outcome"], "undone", "{told:#}");
    let why = told["why"].as_str().unwrap();
    assert!(why.contains("could not be locked"), "{told:#}");
    assert!(told["blockers_of_lock"].to_string().contains(&format!("pid {pid} ")), "{told:#}");
}

/// Somebody's CREATE INDEX CONCURRENTLY, say, holds a lock that arming needs: it is named, and the streams go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_in_the_way_of_arming_is_named_and_disturbs_no_stream() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let client = pair.source.connect("postgres").await;
    client.batch_execute("BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let told = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(told["outcome"], "undone", "{told:#}");
    assert!(told["why"].as_str().unwrap().contains(&format!("pid {pid} ")), "{told:#}");
    let said = run.lines().join("\n");
    assert!(!said.contains("trying again in"), "the attempt ended: {said}");
    client.batch_execute("COMMIT").await.unwrap();
    pair.segue(&["switch", "writes"], 0);
    takes(&pair.target, "taken").await;
}

/// A driver that can be frozen, of a migration that follows and was rehearsed.
async fn rehearsed() -> (Pair, Driving) {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    drop(run);
    let run = Driving::start(&pair);
    (pair, run)
}

/// The tables are taken back by a transaction that goes on: it is waited for, and no stream is disturbed by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_transaction_that_takes_the_tables_back_ends_no_attempt() {
    let (pair, run) = rehearsed().await;
    let for_real = orders::for_real();
    let (asked, ()) = tokio::join!(
        orders::order(&pair.target, "switch", &for_real),
        run.thawed_until("switch.flip.before")
    );
    let late = "SELECT clock_timestamp() > deadline FROM segue.owner";
    while pair.source.scalar(late).await.as_deref() != Some("t") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let client = pair.source.connect("postgres").await;
    client.batch_execute("BEGIN; INSERT INTO public.t (v) VALUES ('late')").await.unwrap();
    // Once for each try to lift the fence.
    for _ in 0..3 {
        run.thawed_until("switch.undo").await;
    }
    client.batch_execute("COMMIT").await.unwrap();
    run.process.thaw();
    let told = orders::answer(&pair.target, asked).await;
    assert_eq!(told["outcome"], "undone", "{told:#}");
    let said = run.process.lines().join("\n");
    assert!(!said.contains("trying again in"), "the attempt ended: {said}");
    takes(&pair.source, "goes on").await;
    row(&pair.target, "late").await;
}

/// Somebody locks a table before autovacuum's settings are put back: whoever has asked is answered, no stream is disturbed,
/// and they are put back later.
#[tokio::test(flavor = "multi_thread")]
async fn autovacuum_is_put_back_later_where_a_lock_is_in_the_way() {
    let (pair, run) = rehearsed().await;
    let for_real = orders::for_real();
    let (asked, ()) = tokio::join!(
        orders::order(&pair.target, "switch", &for_real),
        run.thawed_until("switch.fence.before")
    );
    let client = pair.source.connect("postgres").await;
    client.batch_execute("BEGIN; LOCK TABLE public.t IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    run.process.thaw();
    let told = orders::answer(&pair.target, asked).await;
    assert_eq!(told["outcome"], "undone", "{told:#}");
    run.process.wait_for("cannot be put back yet", PATIENCE).await.unwrap();
    let said = run.process.lines().join("\n");
    assert!(!said.contains("trying again in"), "the attempt ended: {said}");
    client.batch_execute("COMMIT").await.unwrap();
    run.process.wait_for("autovacuum's settings are as they were before", PATIENCE).await.unwrap();
    let set = "SELECT count(*) FROM pg_class WHERE reloptions::text LIKE '%autovacuum%'";
    assert_eq!(pair.source.scalar(set).await.as_deref(), Some("0"));
}
