//! Each gate alone, on real servers: it is red, nothing else is, and `segue switch writes` is refused with its name.
//!
//! That `matches` and the windows of staging are red for want of time is part of it: there the others are overridden. Reads are
//! repeated where a router is; without one nobody is asked for them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_model::switch::gates::{Gate, TABLE};
use segue_testkit::cluster::StandbyOptions;
use segue_testkit::kill::Process;
use segue_testkit::{Cluster, Options};
use serde_json::{Value, json};
use support::orders::ask;
use support::slow::{locked, until};
use support::{PATIENCE, Pair};

const TABLES: [&str; 2] = ["public.t", "public.numbered"];
/// So many that one row among them is no drift, and a few are.
const ROWS: u32 = 250_000;

const DDL: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE numbered (id serial PRIMARY KEY, v int)";

/// A pair that follows, of one of two sizes.
async fn following(rows: u32, profile: &str) -> (Pair, Process) {
    let pair = Pair::start(&TABLES).await;
    pair.both(DDL).await;
    pair.source.execute(&format!("INSERT INTO t SELECT n, 0 FROM generate_series(1, {rows}) n")).await;
    let spec = std::fs::read_to_string(pair.spec()).unwrap();
    // What is refused cannot differ: here it may.
    let spec = spec.replace("profile: dev", &format!("profile: {profile}\nguard: {{ ddl: false }}"));
    std::fs::write(pair.spec(), spec).unwrap();
    let run = pair.run();
    pair.reaches(&run, "following").await;
    (pair, run)
}

/// Asks for the switch as a user does; the gates that refuse it. None: it went on.
fn refused_by(pair: &Pair, more: &[&str]) -> Vec<String> {
    let output = pair.command(&[&["switch", "writes", "--json"], more].concat()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    if output.status.code() != Some(3) {
        return Vec::new();
    }
    let answer: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"));
    assert_eq!(answer["outcome"], "refused", "{answer:#}");
    let blockers = answer["blockers"].as_array().unwrap();
    for blocker in blockers {
        let gate: Gate = blocker["gate"].as_str().unwrap().parse().unwrap();
        assert_eq!(blocker["may_be_overridden"], !gate.line().protects_data);
        assert!(blocker["why"] != "" && blocker["next"] != "", "{blocker:#}");
    }
    blockers.iter().map(|blocker| blocker["gate"].as_str().unwrap().to_owned()).collect()
}

/// The red gates of the switch, as status shows them.
fn red(pair: &Pair) -> Vec<String> {
    let status: Value = serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap();
    let gates = status["gates"].as_array().unwrap().iter().filter(|gate| gate["green"] == false);
    gates.map(|gate| gate["gate"].as_str().unwrap().to_owned()).collect()
}

/// Only `gate` is red, and the switch is refused with exactly its name; with an override that is journalled it is not.
async fn only(pair: &Pair, gate: Gate) {
    let name = gate.line().name;
    until(&format!("{name} is the only red gate: {:?}", red(pair)), async || red(pair) == [name]).await;
    assert_eq!(refused_by(pair, &[]), [name]);
    let text = pair.segue(&["switch", "writes"], 3);
    assert!(text.contains(&format!("\n  {name}: ")), "{text}");
    let owner = pair.target.scalar("SELECT count(*) FROM segue.owner WHERE state = 'owner'").await;
    assert_eq!(owner.as_deref(), Some("0"), "the writes have moved");
    let why = format!("the test of {name}");
    if gate.line().protects_data {
        let line = ["switch", "writes", "--override", name, "--reason", &why];
        assert_eq!(pair.command(&line).output().unwrap().status.code(), Some(2));
        // Whoever does not ask by way of the command is refused by the driver.
        let order = json!({ "rehearse": false, "overrides": [{ "gate": name, "reason": why }] });
        let answer = ask(&pair.target, "switch", order).await;
        assert_eq!(answer["code"], "SEGUE-OVERRIDE", "{answer:#}");
        return;
    }
    // What makes the gate red may undo the rehearsal, too; it is not what refuses it.
    let line = ["--dry-run", "--override", name, "--reason", &why];
    assert_eq!(refused_by(pair, &line), [""; 0], "{name}");
    let journalled = format!(
        "SELECT count(*) FROM segue.journal, jsonb_array_elements(body -> 'overrides') o
          WHERE kind = 'switch-begun' AND o ->> 'gate' = '{name}' AND o ->> 'reason' = '{why}' AND o ->> 'actor' <> ''"
    );
    until("the override is in the journal", async || {
        pair.target.scalar(&journalled).await.as_deref() == Some("1")
    })
    .await;
}

/// Plants a difference as somebody does who writes past the target's fence, and waits until that is told: a verification
/// that began before does not count.
async fn stray(pair: &Pair, sql: &str) {
    let told = "SELECT count(*) FROM segue.journal WHERE kind = 'stray'";
    let before = pair.target.scalar(told).await;
    pair.plant(sql).await;
    until("the stray write is told", async || pair.target.scalar(told).await != before).await;
}

async fn green(pair: &Pair) {
    until(&format!("every gate is green: {:?}", red(pair)), async || red(pair).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_of_the_data() {
    let (pair, run) = following(ROWS, "dev").await;
    // Not verified: live comparison has found no drift, but nobody has looked at every row.
    until("rows were compared as they came", async || {
        pair.source.execute("UPDATE t SET v = v + 1 WHERE id <= 50").await;
        !red(&pair).contains(&"drift".to_owned())
    })
    .await;
    // The first order arms the way back.
    assert_eq!(refused_by(&pair, &[]), ["verified"]);
    only(&pair, Gate::Verified).await;
    pair.segue(&["verify"], 0);
    green(&pair).await;

    // One row among so many is no drift, but it is a difference.
    stray(&pair, "UPDATE t SET v = -1 WHERE id = 100000").await;
    pair.segue(&["verify"], 4);
    only(&pair, Gate::Divergences).await;

    // Repaired, ten rows were too many all the same, until all has been compared again.
    stray(&pair, "UPDATE t SET v = -1 WHERE id BETWEEN 100001 AND 100010").await;
    pair.command(&["verify", "--repair"]).output().unwrap();
    only(&pair, Gate::Drift).await;
    pair.segue(&["verify"], 0);
    green(&pair).await;

    // Somebody on the target is in the stream's way.
    let held = pair.target.connect("postgres").await;
    held.batch_execute("BEGIN; LOCK TABLE t IN SHARE MODE").await.unwrap();
    pair.source.execute("UPDATE t SET v = v + 1 WHERE id <= 10").await;
    only(&pair, Gate::Lag).await;
    drop(held);
    green(&pair).await;

    // The way back cannot put down how far it is, and falls behind: two changes have arrived, with much between them.
    let sql = "BEGIN; SELECT FROM segue.stream WHERE direction = 'reverse' FOR UPDATE";
    let held = pair.source.connect("postgres").await;
    held.batch_execute(sql).await.unwrap();
    // Of another migration, so that nobody has written past a fence.
    let mark = "INSERT INTO segue.signal VALUES ('other', 1, now(), NULL) \
         ON CONFLICT (migration) DO UPDATE SET id = signal.id + 1";
    pair.target.execute(mark).await;
    pair.target
        .execute("CREATE TABLE noise AS SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n")
        .await;
    pair.target.execute(mark).await;
    only(&pair, Gate::WayBack).await;
    drop(held);
    green(&pair).await;

    // A write past the target's fence: what was compared before says nothing about it.
    stray(&pair, "UPDATE t SET v = v WHERE id = 1").await;
    only(&pair, Gate::Verified).await;
    pair.segue(&["verify"], 0);
    green(&pair).await;
    pair.stop(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gates_of_the_servers() {
    let (pair, run) = following(100, "dev").await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    green(&pair).await;

    pair.target.execute("ALTER TABLE t ADD COLUMN more int").await;
    only(&pair, Gate::Ddl).await;
    pair.target.execute("ALTER TABLE t DROP COLUMN more").await;
    green(&pair).await;

    // Asked at once by an order, and by itself about once a minute.
    pair.source.execute("CREATE INDEX t_by_v ON t (v)").await;
    assert_eq!(refused_by(&pair, &[]), ["parity"]);
    let text = pair.segue(&["switch", "writes"], 3);
    assert!(text.contains("CREATE INDEX CONCURRENTLY \"t_by_v\" ON public.t USING btree (v);"), "{text}");
    only(&pair, Gate::Parity).await;
    pair.target.execute("CREATE INDEX another_name ON t (v)").await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    green(&pair).await;

    // Whoever disables a trigger of the fence opens a way past it.
    pair.target.execute("ALTER TABLE t DISABLE TRIGGER segue_fence_test").await;
    only(&pair, Gate::Fence).await;
    pair.target.execute("ALTER TABLE t ENABLE TRIGGER segue_fence_test").await;
    green(&pair).await;

    let application = pair.source.connect("postgres").await;
    application.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    only(&pair, Gate::Sessions).await;
    application.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    green(&pair).await;

    // The application has a session, and the target has room for none.
    pair.target.execute("ALTER DATABASE postgres CONNECTION LIMIT 0").await;
    only(&pair, Gate::Connections).await;
    pair.target.execute("ALTER DATABASE postgres CONNECTION LIMIT -1").await;
    drop(application);
    green(&pair).await;

    // Due within so few transactions, a vacuum against wraparound may come at any moment.
    pair.source.execute("ALTER TABLE t SET (autovacuum_freeze_max_age = 100000)").await;
    only(&pair, Gate::Wraparound).await;
    pair.source.execute("ALTER TABLE t RESET (autovacuum_freeze_max_age)").await;
    green(&pair).await;

    let standby = Cluster::standby_of(&pair.target, StandbyOptions::named("replica1")).await;
    green(&pair).await;
    standby.pause().await;
    only(&pair, Gate::Replicas).await;
    standby.unpause();
    green(&pair).await;
    drop(standby);
    green(&pair).await;

    // The column has no sequence on the target that could be set. An order looks at once, and a new start.
    pair.target.execute("ALTER TABLE numbered ALTER id DROP DEFAULT; DROP SEQUENCE numbered_id_seq").await;
    assert_eq!(refused_by(&pair, &[]), ["ddl", "sequences"]);
    pair.stop(&run).await;
    let run = pair.run();
    only(&pair, Gate::Sequences).await;
    pair.stop(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gate_of_long_transactions() {
    let (pair, run) = following(100, "dev").await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let report = locked(&pair.source, "t", "ROW EXCLUSIVE").await;
    // Younger than a minute, it is for the fence to wait for.
    green(&pair).await;
    only(&pair, Gate::LongTransactions).await;
    drop(report);
    green(&pair).await;
    pair.stop(&run).await;
}

/// What dev does not ask for.
#[tokio::test(flavor = "multi_thread")]
async fn gates_that_only_stricter_profiles_ask_for() {
    let with_router = "staging\nrouter: { listen: \"127.0.0.1:0\", auth: trust }";
    let (pair, run) = following(100, with_router).await;
    pair.segue(&["verify"], 0);
    let order = ["--override", "drift", "--override", "lag", "--reason", "no hour has passed"];
    let refused = |more: &[&str]| refused_by(&pair, &[&order[..], more].concat());
    // The windows that have to pass, and the rehearsal that nobody has made.
    assert_eq!(refused_by(&pair, &[]), ["drift", "matches", "lag", "rehearsal"]);
    assert_eq!(refused(&["--override", "matches"]), ["rehearsal"]);
    // A rehearsal does not ask for one.
    let rehearsed = refused(&["--override", "matches", "--dry-run"]);
    assert_eq!(rehearsed, [""; 0]);
    assert_eq!(refused(&[]), ["matches"]);
    let line = [&["switch", "writes"], &order[..], &["--override", "matches"]].concat();
    pair.segue(&line, 0);
    let journalled = "SELECT string_agg(o ->> 'gate', ' ' ORDER BY o ->> 'gate') FROM (SELECT body FROM segue.journal
         WHERE kind = 'switch-begun' ORDER BY seq DESC LIMIT 1) j, jsonb_array_elements(body -> 'overrides') o";
    until("the overrides are in the journal", async || {
        pair.target.scalar(journalled).await.as_deref() == Some("drift lag matches")
    })
    .await;
    pair.stop(&run).await;
}

/// What a spec says of the windows counts, and without a router nobody is asked for repeated reads.
#[tokio::test(flavor = "multi_thread")]
async fn gates_ask_for_what_the_spec_says() {
    let gates = "staging\nswitch: { gates: { lag_ms_max: 5s, lag_window_ms: 0, drift_window_ms: 0 } }";
    let (pair, run) = following(100, gates).await;
    pair.segue(&["verify"], 0);
    // The order arms the way back.
    assert_eq!(refused_by(&pair, &[]), ["rehearsal"]);
    until("the rehearsal is all that is missing", async || red(&pair) == ["rehearsal"]).await;
    let status: Value = serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap();
    let of = |name: &str| {
        let mut gates = status["gates"].as_array().unwrap().iter();
        gates.find(|gate| gate["gate"] == name).unwrap().clone()
    };
    assert_eq!(of("lag")["asks"], "a lag of at most 5000 ms");
    assert!(of("matches")["not_asked"].as_str().unwrap().contains("no `router`"), "{status:#}");
    let text = pair.segue(&["status"], 0);
    assert!(text.contains("\n  gate matches           not asked for: the spec has no `router`"), "{text}");
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    green(&pair).await;
    pair.stop(&run).await;
}

/// A target that cannot send its log: the way back cannot be armed, and the writes stay where they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_cannot_be_armed_keeps_the_writes_where_they_are() {
    let target = Options::default().with("wal_level", "replica");
    let pair = Pair::with(Options::default(), target, &TABLES).await;
    pair.both(DDL).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    let output = pair.command(&["switch", "writes"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the way back cannot be armed") && said.contains("wal_level"), "{said}");
    pair.source.execute("INSERT INTO t VALUES (1, 1)").await;
    until("status says so", async || pair.segue(&["status"], 0).contains("way back  LOST")).await;
    run.wait_for("the way back is lost, nothing else is", PATIENCE).await.unwrap();
    pair.stop(&run).await;
}

/// No gate is forgotten here.
#[test]
fn every_gate_is_tested_alone() {
    // What only routers can tell is tried where they are.
    let text = concat!(include_str!("gates.rs"), include_str!("reads.rs"));
    for line in TABLE {
        let by_name = format!("[\"{}\"]", line.name);
        let by_gate = format!("only(&pair, Gate::{:?})", line.gate);
        assert!(text.contains(&by_name) || text.contains(&by_gate), "{}", line.name);
    }
}
