//! Rollback triggers on real servers: what trips one is written down, and the writes go back by themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use serde_json::Value;
use support::moving::Driving;
use support::orders::{ask, for_real};
use support::slow::until;
use support::{PATIENCE, Pair};

const TABLES: [&str; 1] = ["public.t"];

/// A pair in which the target owns the writes, and one trigger looks at the target's own table of errors.
async fn switched(then: &str) -> (Pair, Driving) {
    let pair = Pair::start(&TABLES).await;
    pair.both("CREATE TABLE t (id int PRIMARY KEY)").await;
    pair.source.execute("INSERT INTO t SELECT generate_series(1, 100)").await;
    pair.target.execute("CREATE TABLE errors (n int)").await;
    let more = format!(
        "rollback:\n  triggers:\n    - drift_ppm_above: 10\n      then: {then}\n    - query: SELECT sum(n) FROM errors\n      \
         name: checkout errors\n      above: 50\n      for: 3\n      every_ms: 500\n      then: {then}\n"
    );
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &TABLES, &more);
    let run = Driving::start(&pair);
    pair.reaches(&run.process, "following").await;
    pair.segue(&["verify"], 0);
    hands_over(&pair).await;
    (pair, run)
}

async fn hands_over(pair: &Pair) {
    let answer = ask(&pair.target, "switch", for_real()).await;
    assert_eq!(answer["outcome"], "switched", "{answer:#}");
}

/// The owner's rows say so.
async fn owner(pair: &Pair) -> &'static str {
    let sql = "SELECT state FROM segue.owner WHERE migration = 'test'";
    match (pair.source.scalar(sql).await.as_deref(), pair.target.scalar(sql).await.as_deref()) {
        (Some("owner"), Some("follower")) => "source",
        (_, Some("owner")) => "target",
        _ => "nobody",
    }
}

/// The bodies of all records of a kind.
async fn records(pair: &Pair, kind: &str) -> Vec<Value> {
    let sql = "SELECT body::text FROM segue.journal WHERE migration = 'test' AND kind = $1 ORDER BY seq";
    let rows = pair.target.connect("postgres").await.query(sql, &[&kind]).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
}

fn status(pair: &Pair) -> Value {
    serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap()
}

/// The query's trigger, as `status` shows it, once it is shown so.
async fn shows(pair: &Pair, why: &str, what: impl Fn(&Value) -> bool) {
    until(why, async || status(pair)["rollback"].as_array().is_some_and(|all| all.iter().any(&what))).await;
}

async fn goes_back(pair: &Pair) {
    until("the source owns the writes", async || owner(pair).await == "source").await;
    // The application writes there, and nowhere else.
    pair.source.execute("INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t").await;
    let late = pair.target.connect("postgres").await.batch_execute("INSERT INTO t VALUES (-1)").await;
    assert!(late.is_err(), "the target takes writes");
    // Written beside the hand-over.
    until("the reversal is in the journal", async || !records(pair, "reversed").await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_beyond_its_limit_takes_the_switch_back_once_and_leaves_its_evidence() {
    let (pair, run) = switched("reverse").await;
    // Without a row it returns NULL, which trips nothing.
    shows(&pair, "no sample", |one| one["missing"] == "it returns NULL").await;
    pair.target.execute("INSERT INTO errors VALUES (50)").await;
    shows(&pair, "a value at the limit", |one| one["value"] == 50.0 && one["beyond"] == 0).await;
    let text = pair.segue(&["status"], 0);
    assert!(text.contains("rollback  checkout errors: 50; reverses above 50, 0 of 3 in a row"), "{text}");
    assert_eq!(owner(&pair).await, "target");

    pair.target.execute("INSERT INTO errors VALUES (10)").await;
    goes_back(&pair).await;
    let fired = records(&pair, "rollback-triggered").await;
    assert_eq!(fired.len(), 1, "{fired:#?}");
    assert_eq!(fired[0]["trigger"], "checkout errors");
    assert_eq!((&fired[0]["epoch"], &fired[0]["limit"]), (&2.into(), &"above 50".into()));
    assert_eq!(fired[0]["values"], serde_json::json!([60.0, 60.0, 60.0]));
    assert_eq!(fired[0]["measured"]["query"], "SELECT sum(n) FROM errors");
    let begun = records(&pair, "switch-begun").await;
    assert_eq!(begun.last().unwrap()["by"], "rollback trigger checkout errors");
    until("nothing is armed", async || status(&pair)["rollback"] == serde_json::json!([])).await;

    // The next switch is watched anew.
    pair.target.execute("DELETE FROM errors").await;
    hands_over(&pair).await;
    shows(&pair, "armed again", |one| one["missing"] == "it returns NULL").await;
    pair.target.execute("INSERT INTO errors VALUES (60)").await;
    until("it fires again", async || records(&pair, "rollback-triggered").await.len() == 2).await;
    goes_back(&pair).await;
    pair.stop(&run.process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_only_tells_people_once_until_it_has_recovered() {
    let (pair, run) = switched("alert").await;
    pair.target.execute("INSERT INTO errors VALUES (60)").await;
    run.process
        .wait_for("rollback trigger checkout errors: alert: 3 in a row above 50: 60, 60, 60", PATIENCE)
        .await
        .unwrap();
    until("status warns of it", async || {
        status(&pair)["warnings"]
            .to_string()
            .contains("the rollback trigger checkout errors alerts: 60, above 50")
    })
    .await;
    // A later process knows that people were told, and what it sees is still so.
    pair.stop(&run.process).await;
    let run = Driving::start(&pair);
    shows(&pair, "still beyond the limit", |one| one["beyond"] == 3 && one["alerting"] == true).await;
    pair.target.execute("UPDATE errors SET n = 0").await;
    run.process.wait_for("rollback trigger checkout errors: it has recovered", PATIENCE).await.unwrap();
    assert_eq!(records(&pair, "rollback-alert").await.len(), 1);
    pair.target.execute("UPDATE errors SET n = 70").await;
    until("it is told again", async || records(&pair, "rollback-alert").await.len() == 2).await;
    assert_eq!((owner(&pair).await, records(&pair, "rollback-triggered").await.len()), ("target", 0));
    pair.stop(&run.process).await;
}

/// The target's rows differ from what comes back to the source: drift since the switch, found by verification.
#[tokio::test(flavor = "multi_thread")]
async fn drift_that_has_grown_since_the_switch_takes_it_back() {
    let (pair, run) = switched("reverse").await;
    shows(&pair, "nothing was compared yet", |one| one["missing"] == "no row was compared since the switch")
        .await;
    // Equal rows are a sample that trips nothing.
    for looks in 1..=3 {
        pair.segue(&["verify"], 0);
        eprintln!("compared {looks} times");
    }
    shows(&pair, "no drift", |one| one["name"] == "drift above 10 ppm" && one["value"] == 0.0).await;
    let client = pair.source.connect("postgres").await;
    client.batch_execute("SET session_replication_role = replica; DELETE FROM t WHERE id = 7").await.unwrap();
    until("it has been compared often enough", async || {
        pair.command(&["verify"]).output().unwrap();
        !records(&pair, "rollback-triggered").await.is_empty()
    })
    .await;
    goes_back(&pair).await;
    let fired = records(&pair, "rollback-triggered").await;
    assert_eq!(fired[0]["trigger"], "drift above 10 ppm");
    assert_eq!(fired[0]["values"].as_array().unwrap().len(), 3);
    pair.stop(&run.process).await;
}

#[cfg(feature = "killpoints")]
mod killed {
    use super::*;
    use segue_testkit::kill::{self, Process};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_killed_before_its_order_is_followed_by_one_that_goes_on_and_fires_once() {
        let (pair, run) = switched("reverse").await;
        pair.stop(&run.process).await;
        let mut command = pair.command(&["run"]);
        kill::kill_at(&mut command, "rollback.triggered", 1);
        let run = Process::start(command);
        pair.target.execute("INSERT INTO errors VALUES (60)").await;
        let status = run.wait(PATIENCE).await.unwrap();
        assert!(kill::was_killed(status), "{}", run.lines().join("\n"));
        assert_eq!((owner(&pair).await, records(&pair, "rollback-triggered").await.len()), ("target", 1));

        // Nothing is beyond the limit any more: what was triggered is carried out all the same.
        pair.target.execute("DELETE FROM errors").await;
        let run = Driving::start(&pair);
        goes_back(&pair).await;
        hands_over(&pair).await;
        shows(&pair, "the new switch is watched", |one| one["missing"] == "it returns NULL").await;
        // Another start reads the whole journal.
        pair.stop(&run.process).await;
        let run = Driving::start(&pair);
        let at = run.process.mark();
        shows(&pair, "watched still", |one| one["missing"] == "it returns NULL").await;
        pair.target.execute("INSERT INTO errors VALUES (1)").await;
        shows(&pair, "a sample of the new process", |one| one["value"] == 1.0).await;
        assert!(!run.process.lines()[at..].iter().any(|line| line.contains("go back to the source")));
        assert_eq!((owner(&pair).await, records(&pair, "rollback-triggered").await.len()), ("target", 1));
        pair.stop(&run.process).await;
    }
}

/// What fired while nobody ran is hours old when somebody does: people decide what it still means.
#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_fired_long_ago_takes_nothing_back() {
    let (pair, run) = switched("reverse").await;
    pair.stop(&run.process).await;
    pair.target
        .execute(
            "INSERT INTO segue.journal (migration, seq, version, at, actor, kind, body)
             SELECT 'test', max(seq) + 1, 1, clock_timestamp() - interval '11 min', 'a', 'rollback-triggered',
                    '{\"epoch\": 2, \"trigger\": \"checkout errors\"}' FROM segue.journal",
        )
        .await;
    let run = Driving::start(&pair);
    until("it is left to people", async || !records(&pair, "rollback-given-up").await.is_empty()).await;
    shows(&pair, "the triggers are looked at", |one| one["missing"] == "it returns NULL").await;
    assert_eq!((owner(&pair).await, records(&pair, "rollback-ordered").await.len()), ("target", 0));
    pair.stop(&run.process).await;
}

/// A reversal that is refused is tried again, and comes about when what was in its way is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_reversal_that_is_undone_is_tried_again() {
    let (pair, run) = switched("reverse").await;
    let lock = support::slow::locked(&pair.target, "t", "ROW EXCLUSIVE").await;
    pair.target.execute("INSERT INTO errors VALUES (60)").await;
    until("it was held up", async || !records(&pair, "rollback-refused").await.is_empty()).await;
    assert_eq!(owner(&pair).await, "target");
    drop(lock);
    goes_back(&pair).await;
    assert_eq!(records(&pair, "rollback-triggered").await.len(), 1);
    pair.stop(&run.process).await;
}

/// What cannot be taken back after many tries is left to people, for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_reversal_that_never_comes_about_is_given_up_and_told() {
    let (pair, run) = switched("reverse").await;
    let lock = support::slow::locked(&pair.target, "t", "ROW EXCLUSIVE").await;
    pair.target.execute("INSERT INTO errors VALUES (60)").await;
    until("it was held up", async || !records(&pair, "rollback-refused").await.is_empty()).await;
    pair.stop(&run.process).await;
    // As if ten more tries had gone by.
    pair.target
        .execute(
            "INSERT INTO segue.journal (migration, seq, version, at, actor, kind, body)
             SELECT j.migration, m.last + n, 1, clock_timestamp(), j.actor, j.kind, j.body
               FROM (SELECT * FROM segue.journal WHERE kind = 'rollback-refused' LIMIT 1) j,
                    (SELECT max(seq) AS last FROM segue.journal) m, generate_series(1, 10) n",
        )
        .await;
    let run = Driving::start(&pair);
    until("it is given up", async || !records(&pair, "rollback-given-up").await.is_empty()).await;
    until("status says what is to be done", async || {
        status(&pair)["warnings"].to_string().contains("still owns the writes, after 12 tries")
    })
    .await;
    // What is beyond the limit still is told, and nothing more.
    drop(lock);
    until("it alerts", async || records(&pair, "rollback-alert").await.len() == 1).await;
    assert_eq!((owner(&pair).await, records(&pair, "rollback-triggered").await.len()), ("target", 1));
    pair.segue(&["reverse"], 0);
    goes_back(&pair).await;
    pair.stop(&run.process).await;
}
