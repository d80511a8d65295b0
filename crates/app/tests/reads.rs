//! Reads go to the target before the writes do: by order, never behind what their session has written, and back at once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::kill::Process;
use serde_json::{Value, json};
use std::time::Duration;
use support::routed::{Routed, port_of};
use support::slow::{locked, until};
use support::{PATIENCE, Pair};
use tokio_postgres::{Client, NoTls};

/// The row that differs: whoever reads it knows which side has served it.
const PLANTED: i32 = 1000;

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn balance(client: &Client, id: i32) -> i64 {
    client.query_one("SELECT balance FROM app.account WHERE id = $1", &[&id]).await.unwrap().get(0)
}

/// The next reads of the client are this side's.
async fn served_by(client: &Client, side: &str) {
    let wanted = if side == "target" { -1 } else { 0 };
    until(&format!("the {side} serves reads"), async || balance(client, PLANTED).await == wanted).await;
}

fn status(pair: &Pair) -> Value {
    serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap()
}

/// The sum of a count over all routers.
fn count(pair: &Pair, of: &str, name: &str) -> u64 {
    let status = status(pair);
    status["routers"].as_array().unwrap().iter().map(|router| router[of][name].as_u64().unwrap()).sum()
}

/// Kinds and bodies of the journal's records of rules for reads.
async fn journaled(pair: &Pair) -> Vec<Value> {
    let sql =
        "SELECT coalesce(json_agg(body ORDER BY seq), '[]')::text FROM segue.journal WHERE kind = 'reads'";
    serde_json::from_str(&pair.target.scalar(sql).await.unwrap()).unwrap()
}

/// A session sees what it has written, whoever serves its reads.
async fn reads_its_own_writes(client: &Client) {
    for n in 1..=200 {
        client.execute("UPDATE app.account SET balance = $1 WHERE id = 1", &[&n]).await.unwrap();
        match n {
            // So long that the follower may serve it.
            _ if n % 8 == 0 => tokio::time::sleep(Duration::from_millis(30)).await,
            // So long that it does.
            _ if n == 101 => served_by(client, "target").await,
            _ => {}
        }
        assert_eq!(balance(client, 1).await, n, "its own write is not there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_move_and_come_back_by_order_and_no_session_misses_what_it_has_written() {
    let (routed, run) = Routed::start("session", "", None).await;
    let pair = &routed.pair;
    let client = connect(&routed.url(port_of(&run.process).await)).await;
    let set: Value = serde_json::from_str(&pair.segue(&["switch", "reads", "100", "--json"], 0)).unwrap();
    assert_eq!((&set["outcome"], &set["now"]["share_percent"]), (&json!("set"), &json!(100)), "{set:#}");
    // Once the target owns the writes it serves everything; when they are back, the share is what it was.
    routed.moves_away_from(0, &run.process).await;
    let refused = pair.command(&["switch", "reads", "100", "--tenant", "acme=target"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(0), "what is served by share already is no more: {refused:?}");
    pair.segue(&["switch", "reads", "100", "--tenant", "acme=source"], 0);
    let refused = pair.command(&["switch", "reads", "100", "--tenant", "acme=target"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("serves every read") && said.contains("SEGUE-READS-MOVED"), "{refused:?}");
    assert_eq!(balance(&client, 2).await, 0);
    routed.moves_away_from(1, &run.process).await;
    pair.plant(&format!("UPDATE app.account SET balance = -1 WHERE id = {PLANTED}")).await;
    served_by(&client, "target").await;
    reads_its_own_writes(&client).await;
    served_by(&client, "target").await;

    // A router that starts later goes by the same rules, and a tenant's rule goes before the share.
    let router = routed.router();
    let url = routed.url(port_of(&router).await);
    let other = connect(&url).await;
    served_by(&other, "target").await;
    pair.segue(&["switch", "reads", "100", "--tenant", "acme=source"], 0);
    let acme = connect(&format!("{url} options='-c segue.tenant=acme'")).await;
    served_by(&acme, "source").await;
    served_by(&other, "target").await;
    until("both routers count what was served", async || count(pair, "reads", "served") > 5).await;

    // In an emergency every read is the owner's, until it is over.
    let contained = pair.segue(&["contain"], 0);
    assert!(contained.contains("routers send every read to the source"), "{contained}");
    served_by(&client, "source").await;
    served_by(&other, "source").await;
    let more = pair.command(&["mirror", "1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&more.stderr).contains("SEGUE-PAUSED"), "{more:?}");
    pair.segue(&["resume"], 0);
    served_by(&client, "target").await;

    let text = pair.segue(&["switch", "reads", "0", "--tenant", "acme=default"], 0);
    assert!(text.starts_with("the target serves 0 % of the reads"), "{text}");
    served_by(&client, "source").await;
    served_by(&other, "source").await;
    let shown = status(pair);
    assert_eq!(
        shown["reads"],
        json!({ "share_percent": 0, "tenants": {}, "mirror_percent": 0, "mirror_since_us": 0, "contained": false })
    );
    let records = journaled(pair).await;
    let shares: Vec<_> =
        records.iter().map(|r| [&r["from"], &r["to"]].map(|rules| rules["share_percent"].as_u64())).collect();
    assert_eq!(shares.first(), Some(&[Some(0), Some(100)]), "{records:#?}");
    assert_eq!(shares.last(), Some(&[Some(100), Some(0)]), "{records:#?}");
    assert!(
        records.iter().all(|record| record["by"].as_str().is_some_and(|by| !by.is_empty())),
        "{records:#?}"
    );
}

/// The red gates of the switch, as status shows them.
fn red(pair: &Pair) -> Vec<String> {
    let gates = status(pair)["gates"].as_array().unwrap().clone();
    let red = gates.iter().filter(|gate| gate["green"] == false);
    red.map(|gate| gate["gate"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_found_by_comparing_reads_is_explained_and_closes_a_gate() {
    let (routed, run) = Routed::start("transaction", "", None).await;
    let pair = &routed.pair;
    let client = connect(&routed.url(port_of(&run.process).await)).await;
    pair.segue(&["mirror", "100"], 0);
    until("equal answers are counted", async || {
        balance(&client, 3).await;
        count(pair, "mirror", "equal") > 0
    })
    .await;
    assert_eq!(count(pair, "mirror", "mismatched"), 0);
    let before = red(pair);
    assert!(!before.contains(&"mirror".to_owned()), "{before:?}");

    pair.plant(&format!("UPDATE app.account SET balance = -1 WHERE id = {PLANTED}")).await;
    until("the difference is found", async || {
        assert_eq!(balance(&client, PLANTED).await, 0, "the client's answers are the owner's");
        count(pair, "mirror", "mismatched") > 0
    })
    .await;
    until("this gate is closed, and no other", async || {
        let more: Vec<String> = red(pair).into_iter().filter(|gate| !before.contains(gate)).collect();
        more == ["mirror"]
    })
    .await;
    let refused = pair.segue(&["switch", "writes"], 3);
    assert!(refused.contains("\n  mirror: ") && refused.contains("--override mirror"), "{refused}");
    let shown = pair.segue(&["status"], 0);
    for part in [
        "differs ",
        "SELECT balance FROM app.account",
        "values differ in column balance",
        "segue verify --repair",
    ] {
        assert!(shown.contains(part), "`{part}` is not in\n{shown}");
    }
    assert!(!shown.contains("-1 "), "values are shown only where the spec says so:\n{shown}");

    // Mended, it is counted anew.
    pair.command(&["verify", "--repair"]).output().unwrap();
    pair.segue(&["mirror", "0"], 0);
    until("the gate is open again", async || !red(pair).contains(&"mirror".to_owned())).await;
    pair.segue(&["mirror", "100"], 0);
    until("equal answers are counted", async || {
        assert_eq!(balance(&client, PLANTED).await, 0);
        count(pair, "mirror", "equal") > 3
    })
    .await;
    assert_eq!(count(pair, "mirror", "mismatched"), 0, "{:#}", status(pair)["routers"]);
}

#[cfg(feature = "killpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_there_yet_is_refused_and_less_never_is() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    pair.source.execute("INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n").await;
    let refused = |arguments: &[&str], code: &str| {
        let output = pair.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let ends_with = if code == "SEGUE-NO-ROUTER" { 2 } else { 1 };
        assert!(output.status.code() == Some(ends_with) && said.contains(code), "{arguments:?}: {said}");
    };
    let started = async |more: &str| -> Process {
        let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
        pair.write_spec(&source, &target, &["public.t"], more);
        let run = pair.run();
        // An earlier one may have reported a stage before.
        run.wait_for("segue: test ", PATIENCE).await.unwrap();
        run
    };
    pair.fenced().await;
    // Nothing arrives before this lock is gone.
    let held = locked(&pair.target, "public.t", "SHARE").await;
    let router = "router: { listen: \"127.0.0.1:0\", auth: trust }\n";
    let run = started(router).await;
    pair.reaches(&run, "backfilling").await;
    for arguments in
        [&["switch", "reads", "1"][..], &["switch", "reads", "0", "--tenant", "a=target"], &["mirror", "1"]]
    {
        refused(arguments, "SEGUE-NOT-FOLLOWING");
    }
    pair.segue(&["switch", "reads", "0"], 0);
    pair.segue(&["mirror", "0"], 0);
    held.batch_execute("COMMIT").await.unwrap();
    pair.reaches(&run, "following").await;

    // What nobody has compared is not shown to the application, whoever says so.
    let text = pair.segue(&["switch", "reads", "1"], 3);
    assert!(text.contains("\n  verified: "), "{text}");
    pair.segue(&["switch", "reads", "1", "--override", "verified", "--reason", "x"], 2);
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "reads", "1"], 0);
    // It outlives the driver.
    pair.stop(&run).await;
    let run = started(router).await;
    pair.reaches(&run, "following").await;
    assert_eq!(status(&pair)["reads"]["share_percent"], 1);
    pair.stop(&run).await;

    // Without a router nobody could go by it.
    let run = started("").await;
    pair.reaches(&run, "following").await;
    refused(&["switch", "reads", "2"], "SEGUE-NO-ROUTER");
    refused(&["mirror", "1"], "SEGUE-NO-ROUTER");
    pair.segue(&["switch", "reads", "0"], 0);
    pair.segue(&["cancel"], 0);
    let left = "SELECT to_regclass('segue.reads') IS NULL";
    assert_eq!(pair.target.scalar(left).await.as_deref(), Some("t"));
}
