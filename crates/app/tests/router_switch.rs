//! Applications behind a router do not notice that the writes change hands: nothing fails, nothing is lost, nobody is dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::kill::Process;
use support::fire::soak;
use support::routed::{Bench, Routed, now_us, port_of, report};
use support::slow::until;

/// How long pgbench runs at a time.
const ROUND_S: u64 = 10;

/// How often the writes move.
fn switches() -> usize {
    let wanted = std::env::var("SEGUE_SWITCHES").ok().and_then(|count| count.parse().ok());
    wanted.unwrap_or(if soak() { 100 } else { 4 })
}

/// Rounds of pgbench and of switches, until there were enough of these.
#[derive(Default)]
struct Rounds {
    owner: usize,
    transactions: u64,
    latencies: Vec<(u32, u128, u64)>,
    /// When each switch was asked for, and when it was answered.
    times: Vec<(u128, u128)>,
    stalls_ms: Vec<f64>,
}

impl Rounds {
    /// Clients on both routers, and switches as long as they run.
    async fn round(
        &mut self,
        routed: &Routed,
        run: &Process,
        ports: [u16; 2],
        protocols: [&str; 2],
        switches: usize,
    ) {
        let clients = ports.into_iter().zip(protocols);
        let mut benches: Vec<_> =
            clients.map(|(port, protocol)| routed.pgbench(port, protocol, 3, ROUND_S, 60)).collect();
        while self.times.len() < switches && benches.iter_mut().all(Bench::runs) {
            let from = now_us();
            let (_, answer) = routed.moves_away_from(self.owner, run).await;
            self.times.push((from, now_us()));
            self.stalls_ms.push(answer["stall_ms"].as_f64().unwrap_or_default());
            self.owner = 1 - self.owner;
            // The new owner takes transactions of both routers before the next one.
            let wanted = routed.entries(self.owner).await + 6;
            until("the new owner takes writes", async || {
                routed.entries(self.owner).await > wanted || !benches.iter_mut().all(Bench::runs)
            })
            .await;
        }
        for (number, bench) in benches.into_iter().enumerate() {
            let done = bench.finish().await;
            self.transactions += done.transactions;
            let number = number as u32 * 100;
            self.latencies.extend(done.latencies.into_iter().map(|(c, at, took)| (number + c, at, took)));
        }
    }
}

/// Moves the writes back and forth under pgbench, through the router of `segue run` and through one of its own.
async fn to_and_fro(pool: &str, protocols: [&str; 2], switches: usize) {
    let (routed, run) = Routed::start(pool, "", None).await;
    let router = routed.router();
    let ports = [port_of(&run.process).await, port_of(&router).await];
    let mut rounds = Rounds::default();
    while rounds.times.len() < switches {
        rounds.round(&routed, &run.process, ports, protocols, switches).await;
    }
    report(&format!("pool {pool}, {protocols:?}"), &rounds.latencies, &rounds.times);
    rounds.stalls_ms.sort_by(f64::total_cmp);
    let stall = |part: usize| rounds.stalls_ms[(rounds.stalls_ms.len() - 1) * part / 100];
    eprintln!("stalls by the driver's clock: p50 {:.0} ms, p99 {:.0} ms", stall(50), stall(99));
    routed.assert_kept(rounds.owner, rounds.transactions).await;
    routed.assert_equal(rounds.owner).await;
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
