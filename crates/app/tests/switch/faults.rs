//! What can come between two steps of a hand-over, put there: the fault says so, and nothing is lost by it.

use super::{dies_switching, following, refuses, takes};
use crate::support::moving::Driving;
use crate::support::slow::{locked, standby, synchronous, until};
use crate::support::{PATIENCE, Pair, orders};
use segue_testkit::cluster::StandbyOptions;
use segue_testkit::kill::Process;
use segue_testkit::proxy::Proxy;
use segue_testkit::{Cluster, Options};
use serde_json::json;

/// A migration that follows, driven by a process that can be frozen at any point.
async fn driven() -> (Pair, Driving) {
    let (pair, run) = following().await;
    pair.stop(&run).await;
    let run = Driving::start(&pair);
    drives(&pair, &run.process).await;
    (pair, run)
}

/// Waits until `run` listens for orders.
async fn drives(pair: &Pair, run: &Process) {
    let pid = run.pid();
    let drives = format!("SELECT holder LIKE '%process {pid}' AND released_at IS NULL FROM segue.lease");
    until("it drives", async || pair.target.scalar(&drives).await.as_deref() == Some("t")).await;
}

/// Orders the switch; returns when `run` is frozen at `point`.
async fn frozen_at(pair: &Pair, run: &Driving, point: &str) -> i64 {
    run.stop_at(point);
    let order = orders::order(&pair.target, "switch", &orders::for_real()).await;
    tokio::select! {
        stopped = run.process.stopped_at(point, PATIENCE) => stopped.unwrap(),
        answer = orders::answer(&pair.target, order) => panic!("{point} is not passed: {answer:#}"),
    }
    order
}

/// Somebody changes what an ownership row says, and nothing else.
async fn epoch_changes(side: &Cluster, by: i32) {
    side.execute(&format!("UPDATE segue.owner SET epoch = epoch + {by}")).await;
}

/// The driver says what it met, then that the rows make no sense, and ends.
async fn gives_up(run: &Process, code: &str) {
    run.wait_for(code, PATIENCE).await.unwrap();
    run.wait_for("SEGUE-OWNERSHIP", PATIENCE).await.unwrap();
    assert_eq!(run.wait(PATIENCE).await.unwrap().code(), Some(1), "{}", run.lines().join("\n"));
}

/// After a fault the next process brings the hand-over to its end.
async fn ends_on_the_target(pair: &Pair) {
    let run = pair.run();
    let owns = "SELECT state FROM segue.owner";
    until("the target owns the writes", async || pair.target.scalar(owns).await.as_deref() == Some("owner"))
        .await;
    until("the source follows", async || pair.source.scalar(owns).await.as_deref() == Some("follower")).await;
    drives(pair, &run).await;
    takes(&pair.target, "newest").await;
    refuses(&pair.source, &pair.target).await;
    let verified = async || pair.command(&["verify"]).output().is_ok_and(|output| output.status.success());
    until("both sides are found equal", verified).await;
    pair.assert_equal(&["public"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_whose_row_was_changed_by_hand_is_not_opened() {
    let (pair, run) = driven().await;
    frozen_at(&pair, &run, "switch.open.before").await;
    epoch_changes(&pair.target, 90).await;
    run.process.thaw();
    gives_up(&run.process, "SEGUE-OPEN-REFUSED").await;
    refuses(&pair.source, &pair.target).await;
    refuses(&pair.target, &pair.source).await;
    epoch_changes(&pair.target, -90).await;
    ends_on_the_target(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_owner_whose_row_was_changed_by_hand_is_left_as_it_is() {
    let (pair, run) = driven().await;
    frozen_at(&pair, &run, "switch.opened").await;
    epoch_changes(&pair.source, 90).await;
    run.process.thaw();
    gives_up(&run.process, "SEGUE-CLOSE-REFUSED").await;
    // It has handed over, all the same.
    refuses(&pair.source, &pair.target).await;
    takes(&pair.target, "meanwhile").await;
    epoch_changes(&pair.source, -90).await;
    ends_on_the_target(&pair).await;
}

/// The new owner would have what a failover of the old one had never seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_is_on_no_standby_does_not_open_the_new_owner() {
    let pair = Pair::with(synchronous(), Options::default(), &["public.t"]).await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.t"], "switch: { max_write_hold_ms: 20000 }\n");
    let standby = standby(&pair.source).await;
    pair.both("CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)").await;
    takes(&pair.source, "oldest").await;
    let run = Driving::start(&pair);
    pair.reaches(&run.process, "following").await;
    pair.segue(&["verify"], 0);
    let order = frozen_at(&pair, &run, "switch.flip.before").await;
    standby.pause().await;
    run.process.thaw();
    // What asks for the standby is sent away each time, as the server's operator may.
    let sent_away = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
                      WHERE wait_event = 'SyncRep'
                        AND (query LIKE '%segue.flip(%' OR query LIKE '%SET changed_at = clock_timestamp() WHERE%')";
    until("it is given up for now", async || {
        pair.source.scalar(sent_away).await;
        run.process.lines().iter().any(|line| line.contains("SEGUE-FLIP-STANDBY"))
    })
    .await;
    refuses(&pair.source, &pair.target).await;
    refuses(&pair.target, &pair.source).await;
    standby.unpause();
    until("the new owner is opened", async || {
        pair.target.scalar("SELECT state FROM segue.owner").await.as_deref() == Some("owner")
    })
    .await;
    takes(&pair.target, "newest").await;
    orders::answer(&pair.target, order).await;
}

/// No commit waits for such a standby, and nobody may write for ever because of one; whoever would promote it has to know.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_has_not_received_the_hand_over_is_named() {
    let pair = Pair::start(&["public.t"]).await;
    let standby = Cluster::standby_of(&pair.source, StandbyOptions::named("east")).await;
    pair.both("CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)").await;
    takes(&pair.source, "oldest").await;
    let run = Driving::start(&pair);
    pair.reaches(&run.process, "following").await;
    pair.segue(&["verify"], 0);
    let order = frozen_at(&pair, &run, "switch.flip.before").await;
    standby.pause().await;
    run.process.thaw();
    let answer = orders::answer(&pair.target, order).await;
    assert_eq!(answer["standbys_without"], json!(["east"]), "{answer}");
    takes(&pair.target, "newest").await;
    run.process.wait_for("east follows the source, and is not known", PATIENCE).await.unwrap();
    standby.unpause();
    until("it knows, and would refuse them", async || {
        standby.scalar("SELECT state FROM segue.owner").await.as_deref() == Some("follower")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_silent_ends_the_attempt_and_keeps_the_writes() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)").await;
    takes(&pair.source, "oldest").await;
    let proxy = Proxy::start(pair.source.port()).await;
    let source = pair.source.url_through(proxy.port(), "postgres");
    pair.write_spec(&source, &pair.target.url("postgres"), &["public.t"], "");
    let run = Driving::start(&pair);
    pair.reaches(&run.process, "following").await;
    pair.segue(&["verify"], 0);
    let order = frozen_at(&pair, &run, "switch.hold.after").await;
    proxy.freeze();
    run.process.thaw();
    run.process.wait_for("SEGUE-NO-OWNER", PATIENCE).await.unwrap();
    takes(&pair.source, "meanwhile").await;
    proxy.thaw();
    orders::answer(&pair.target, order).await;
    until("the next attempt moves them", async || {
        orders::ask(&pair.target, "switch", orders::for_real()).await["outcome"] == "switched"
    })
    .await;
    takes(&pair.target, "newest").await;
    pair.segue(&["verify"], 0);
    pair.assert_equal(&["public"]).await;
}

/// Under another owner it would have to be the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_is_ended_by_a_hand_over() {
    let (pair, _run) = following().await;
    // What it has compared it cannot store.
    let held = locked(&pair.target, "segue.verified_range", "SHARE").await;
    let verify = Process::start(pair.command(&["verify"]));
    let waits =
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'segue.verified_range'::regclass";
    until("it waits", async || pair.target.scalar(waits).await.as_deref() != Some("0")).await;
    let answer = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(answer["outcome"], "switched", "{answer:#}");
    let said = verify.wait_for("SEGUE-OWNER-CHANGED", PATIENCE).await.unwrap();
    assert!(said.contains("changed hands"), "{said}");
    assert_eq!(verify.wait(PATIENCE).await.unwrap().code(), Some(1));
    held.batch_execute("COMMIT").await.unwrap();
    pair.segue(&["verify"], 0);
}

/// What would be said of the other hand-over is not rehearsed in its place: that one stalls the application, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_to_who_owns_the_writes_already_is_not_rehearsed() {
    let (pair, run) = following().await;
    let said = pair.segue(&["reverse", "--dry-run"], 0);
    assert!(
        said.contains("the source owns the writes already") && said.contains("nothing was done"),
        "{said}"
    );
    pair.segue(&["switch", "writes"], 0);
    pair.reaches(&run, "switched").await;
    pair.segue(&["verify"], 0);
    let said = pair.segue(&["switch", "writes", "--dry-run"], 0);
    assert!(
        said.contains("the target owns the writes already") && said.contains("nothing was done"),
        "{said}"
    );
    let said = pair.segue(&["reverse", "--dry-run"], 0);
    assert!(said.contains("the target owns the writes as before"), "{said}");
    assert!(said.trim_end().ends_with("next: `segue reverse`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_compared_while_the_migration_is_paused_and_that_is_said_at_once() {
    let (pair, _run) = following().await;
    pair.segue(&["pause", "--reason", "the night"], 0);
    let refused = pair.command(&["verify", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stdout);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(
        said.contains("SEGUE-PAUSED") && said.contains("the night") && said.contains("segue resume"),
        "{said}"
    );
    pair.segue(&["resume"], 0);
    let counted = pair.segue(&["verify", "--mode", "aggregate"], 0);
    assert!(
        counted.contains("the counts agree: 1500 rows") && counted.contains("no row was compared"),
        "{counted}"
    );
    let counted: serde_json::Value =
        serde_json::from_str(&pair.segue(&["verify", "--mode", "aggregate", "--json"], 0)).unwrap();
    assert_eq!(counted["equal"], false, "a count is no proof");
    let sampled = pair.segue(&["verify", "--mode", "sample"], 0);
    assert!(sampled.contains("\nno difference in a sample: "), "{sampled}");
    let compared = pair.segue(&["verify"], 0);
    assert!(compared.contains("\nequal: 1500 rows compared"), "{compared}");
}

/// Whatever makes partitions every night makes one on the old owner while a hand-over is not over there: it gets its fence, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_to_the_old_owner_before_it_is_closed_is_fenced() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    drop(run);
    dies_switching(&pair, "switch.opened").await;
    let nightly = "CREATE TABLE public.nightly PARTITION OF public.p FOR VALUES FROM (9000) TO (9100)";
    pair.source.execute(nightly).await;
    let run = pair.run();
    pair.reaches(&run, "switched").await;
    until("the source is closed", async || {
        assert_eq!(run.status(), None, "{}", run.lines().join("\n"));
        pair.source.scalar("SELECT state FROM segue.owner").await.as_deref() == Some("follower")
    })
    .await;
    let client = pair.source.connect("postgres").await;
    for into in ["nightly", "p"] {
        let write = format!("INSERT INTO public.{into} VALUES (9001, 'lost')");
        let refused = client.batch_execute(&write).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("25006"), "{into}");
    }
}

/// Who ends the process past the point of no return would leave both sides closed until somebody starts another.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_ended_past_the_point_of_no_return_finishes_the_hand_over() {
    let (pair, run) = driven().await;
    pair.segue(&["verify"], 0);
    let order = frozen_at(&pair, &run, "switch.flip.after").await;
    refuses(&pair.source, &pair.target).await;
    run.process.terminate();
    run.process.thaw();
    let ended = run.process.wait(PATIENCE).await.unwrap();
    assert!(ended.success(), "{}", run.process.lines().join("\n"));
    takes(&pair.target, "newest").await;
    let answer = orders::answer(&pair.target, order).await;
    assert_eq!(answer["outcome"], "switched", "{answer}");
}

/// Where that is not possible it is no success, and says what is to be done at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_leaves_both_sides_closed_ends_with_a_fault() {
    let (pair, run) = driven().await;
    pair.segue(&["verify"], 0);
    frozen_at(&pair, &run, "switch.flip.after").await;
    pair.target.freeze();
    run.process.terminate();
    run.process.thaw();
    let ended = run.process.wait(PATIENCE).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    let said = run.process.lines().join("\n");
    assert!(said.contains("SEGUE-CLOSED") && said.contains("start `segue run` at once"), "{said}");
    pair.target.thaw();
    refuses(&pair.source, &pair.target).await;
    let run = pair.run();
    pair.reaches(&run, "switched").await;
    takes(&pair.target, "newest").await;
}

/// `--until switched` ends when nothing of the hand-over is left to do, and whoever asked for it knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_until_switched_finishes_the_hand_over() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    pair.stop(&run).await;
    let run = Process::start(pair.command(&["run", "--until", "switched"]));
    let moved = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(moved["outcome"], "switched", "{moved:#}");
    let ended = run.wait(PATIENCE).await.expect("it ends");
    assert!(ended.success(), "{}", run.lines().join("\n"));
    for side in [&pair.source, &pair.target] {
        let off = "SELECT (SELECT count(*) FROM segue.autovacuum) + (SELECT count(*) FROM pg_class
                WHERE 'autovacuum_enabled=off' = ANY(reloptions))";
        assert_eq!(side.scalar(off).await.as_deref(), Some("0"), "autovacuum is still off");
    }
    assert_eq!(pair.source.scalar("SELECT state FROM segue.owner").await.as_deref(), Some("follower"));
    let switched = "SELECT count(*) FROM segue.journal WHERE kind = 'switched'";
    assert_eq!(pair.target.scalar(switched).await.as_deref(), Some("1"));
}

/// What is committed and not applied is waited for before anybody is held, whoever overrides the gate that tells of it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_held_for_a_stream_that_has_not_caught_up() {
    let (pair, _run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let in_the_way = pair.target.connect("postgres").await;
    in_the_way.batch_execute("BEGIN; SELECT FROM public.t WHERE id = 1 FOR UPDATE").await.unwrap();
    pair.source.execute("UPDATE public.t SET v = 'on its way' WHERE id = 1").await;
    let mut order = orders::for_real();
    let overridden = |gate| serde_json::json!({ "gate": gate, "reason": "to see what happens" });
    order["overrides"] = serde_json::json!([overridden("lag")]);
    let answer = orders::ask(&pair.target, "switch", order).await;
    assert_eq!(answer["outcome"], "undone", "{answer:#}");
    assert!(
        answer["why"].as_str().is_some_and(|why| why.contains("the stream has not caught up")),
        "{answer:#}"
    );
    assert_eq!(answer["stall_ms"], 0.0, "{answer:#}");
    in_the_way.batch_execute("COMMIT").await.unwrap();
    takes(&pair.source, "the source still owns the writes").await;
}
