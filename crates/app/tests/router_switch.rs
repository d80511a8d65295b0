//! Applications behind a router do not notice that the writes change hands: nothing fails, nothing is lost, nobody is dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use support::fire::soak;
use support::routed::{Routed, now_us, port_of, report};

/// How often the writes move.
fn switches() -> usize {
    let wanted = std::env::var("SEGUE_SWITCHES").ok().and_then(|count| count.parse().ok());
    wanted.unwrap_or(if soak() { 100 } else { 4 })
}

/// On a machine that is busy with other tests a transaction takes longer than a hold of the default length waits for it. What
/// the switches add is measured with that one, alone.
fn hold() -> String {
    if soak() { String::new() } else { "switch: { max_write_hold_ms: 16s }\n".to_owned() }
}

/// Moves the writes back and forth under pgbench, through the router of `segue run` and through one of its own.
async fn to_and_fro(pool: &str, protocols: [&str; 2], switches: usize) {
    let (routed, run) = Routed::start(pool, &hold(), None).await;
    let router = routed.router();
    let ports = [port_of(&run.process).await, port_of(&router).await];
    let benches: Vec<_> = ports
        .into_iter()
        .zip(protocols)
        .map(|(port, protocol)| routed.pgbench(port, protocol, 3, 60))
        .collect();
    let (mut owner, mut times, mut stalls) = (0, Vec::new(), Vec::new());
    for _ in 0..switches {
        let from = now_us();
        let (_, answer) = routed.moves_away_from(owner, &run.process).await;
        times.push((from, now_us()));
        stalls.push(answer["stall_ms"].as_f64().unwrap_or_default());
        owner = 1 - owner;
        // The new owner takes transactions of both routers before the next one.
        let before = routed.entries(owner).await;
        support::slow::until("the new owner takes writes", async || routed.entries(owner).await > before + 4)
            .await;
        benches.iter().for_each(support::routed::Bench::assert_alive);
    }
    let (mut transactions, mut latencies) = (0, Vec::new());
    for (number, bench) in benches.into_iter().enumerate() {
        let done = bench.finish().await;
        transactions += done.transactions;
        let number = number as u32 * 100;
        latencies.extend(done.latencies.into_iter().map(|(client, at, took)| (number + client, at, took)));
    }
    report(&format!("pool {pool}, {protocols:?}"), &latencies, &times);
    stalls.sort_by(f64::total_cmp);
    let stall = |part: usize| stalls[(stalls.len() - 1) * part / 100];
    eprintln!("stalls by the driver's own clock: p50 {:.0} ms, p99 {:.0} ms", stall(50), stall(99));
    routed.assert_kept(owner, transactions).await;
    routed.assert_equal(owner).await;
    assert_eq!(run.process.status(), None, "{}", run.process.lines().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_do_not_notice_switches() {
    to_and_fro("session", ["prepared", "simple"], switches()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_do_not_notice_switches() {
    to_and_fro("transaction", ["prepared", "extended"], switches()).await;
}
