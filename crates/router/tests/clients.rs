//! Clients as people use them, unmodified: what they do directly they do through the router too, in both pool modes.
//!
//! Their scripts are in `tests/clients`; each runs directly first, so that a failure there is told from the router's.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use std::process::Stdio;
use std::time::Duration;
use support::clients::{Ways, java, node, python, scripts};
use tokio::io::AsyncWriteExt;

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_behaves_as_it_does_directly() {
    let ways = Ways::open().await;
    ways.run(python("psycopg_client.py"), 11).await;
    ways.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlalchemy_behaves_as_it_does_directly() {
    let ways = Ways::open().await;
    ways.run(python("sqlalchemy_client.py"), 4).await;
    ways.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn asyncpg_behaves_as_it_does_directly() {
    let ways = Ways::open().await;
    ways.run(python("asyncpg_client.py"), 7).await;
    ways.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_postgres_behaves_as_it_does_directly() {
    let ways = Ways::open().await;
    ways.run(node("node_client.js"), 9).await;
    ways.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_behaves_as_it_does_directly() {
    let ways = Ways::open().await;
    ways.run(java("JdbcClient.java"), 9).await;
    ways.close().await;
}

/// Replaces what is a connection's own.
fn without_ids(said: &str) -> String {
    let pid = "server process with PID ";
    let mut out = String::new();
    let mut rest = said;
    while let Some((before, after)) = rest.split_once(pid) {
        out.push_str(before);
        out.push_str(pid);
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out + rest
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_says_the_same_as_directly() {
    let ways = Ways::open().await;
    let mut all = Vec::new();
    for (way, port) in ways.ports() {
        let script = std::fs::read(scripts().join("psql_client.sql")).unwrap();
        // From its standard input, as `\copy … from stdin` reads it.
        let mut psql = ways.psql(port);
        psql.args(["-a", "-X"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = psql.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let write = async move { input.write_all(&script).await.unwrap() };
        let (output, ()) = tokio::join!(child.wait_with_output(), write);
        let output = output.unwrap();
        assert!(output.status.success(), "{way}: {output:?}");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        all.push((way, said.map(|said| without_ids(&said))));
    }
    let (_, direct) = &all[0];
    for expected in ["(4 rows)", "psql_t_pkey", "made", "yyyyyyy", "Asynchronous notification"] {
        assert!(direct[0].contains(expected), "{expected}: {direct:?}");
    }
    for expected in ["42703", "LINE 1: SELECT id, nonsense", "22012", "25P02", "CONTEXT:"] {
        assert!(direct[1].contains(expected), "{expected}: {direct:?}");
    }
    for (way, said) in &all[1..] {
        for (said, expected) in said.iter().zip(direct) {
            assert_eq!(differing_lines(said, expected), Vec::<String>::new(), "{way}");
        }
    }
    ways.close().await;
}

/// Lines that differ, for a message that can be read.
fn differing_lines(said: &str, expected: &str) -> Vec<String> {
    let (mut said, mut expected) = (said.lines(), expected.lines());
    let mut differing = Vec::new();
    loop {
        match (said.next(), expected.next()) {
            (None, None) => return differing,
            (a, b) if a == b => {}
            (a, b) => differing.push(format!("{a:?} instead of {b:?}")),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_cancels_what_runs_when_it_is_interrupted() {
    let ways = Ways::open().await;
    let watching = ways.cluster.connect("postgres").await;
    for (way, port) in ways.ports() {
        let query = format!("SELECT pg_sleep(60) /* {way} */");
        let mut psql = ways.psql(port);
        psql.args(["-X", "-c", &query]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = psql.spawn().unwrap();
        let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1";
        while watching.query_one(running, &[&query]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        let pid = child.id().unwrap().to_string();
        let interrupted = std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(interrupted.success());
        let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output())
            .await
            .expect("in time")
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("canceling statement due to user request"), "{way}: {said}");
    }
    ways.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_loses_nothing_in_any_protocol() {
    // Fewer servers than clients: each client is a thread of its own, because pgbench prepares synchronously.
    let ways = Ways::open_with(|config| config.limits.connections_max = 3).await;
    for (way, port) in ways.ports() {
        ways.pgbench(port, &["-i", "-q", "-s", "1"]).await;
        let mut expected = 0;
        for protocol in ["simple", "extended", "prepared"] {
            let said = ways.pgbench(port, &["-M", protocol, "-c", "6", "-j", "6", "-t", "20", "-n"]).await;
            assert!(said.contains("failed transactions: 0 "), "{way} {protocol}: {said}");
            expected += 6 * 20;
            if protocol != "simple" {
                // A pipeline goes by the extended protocol only.
                let file = scripts().join("pgbench_client.sql");
                let options = ["-M", protocol, "-c", "6", "-j", "6", "-t", "20", "-n", "-f"];
                let said = ways.pgbench(port, &[&options[..], &[file.to_str().unwrap()]].concat()).await;
                assert!(said.contains("failed transactions: 0 "), "{way} {protocol}: {said}");
                expected += 6 * 20;
            }
        }
        // A connection for each transaction.
        ways.pgbench(port, &["-C", "-c", "4", "-j", "4", "-t", "5", "-n"]).await;
        expected += 4 * 5;
        let sums = "SELECT (SELECT count(*) FROM pgbench_history), \
                    (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history) AND \
                    (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history)";
        let row = ways.cluster.connect("postgres").await.query_one(sums, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (expected, true), "{way}");
    }
    ways.close().await;
}
