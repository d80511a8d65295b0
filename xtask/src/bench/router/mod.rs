//! Router: pgbench's select-only through the router, beside a bare relay, PgBouncer and no proxy at all; and the memory
//! of idle clients.

mod contestant;
mod found;
mod proxy;

use super::Options;
use super::measure::{median, percentile};
use super::pair::{self, DATABASE, must, pgbench, shell};
use super::pgbouncer;
use super::report::verdict;
use contestant::{Contestant, Kind, Mode};
use found::{Found, Taken, verdicts};
pub(super) use proxy::serve;
use segue_testkit::Cluster;
use segue_testkit::cluster::{self, client_program};
use std::path::Path;
use tokio::task::JoinSet;

/// A million accounts, all in memory.
const PGBENCH_SCALE: u64 = 10;
/// As pgbench calls them.
const PROTOCOLS: [&str; 3] = ["simple", "extended", "prepared"];
/// At once, where throughput is measured.
const CLIENTS: usize = 8;
/// Of each turn: once with all clients, once with one.
const SECONDS: u64 = 3;
/// Clients that are logged in and do nothing.
const IDLE: u64 = 2_000;
/// Logins at once.
const LOGINS: usize = 50;
/// What an idle client may take of the router's memory.
const IDLE_KIB_MAX: f64 = 16.0;

pub(super) async fn measure(options: &Options) -> String {
    let busy = load();
    let server = Cluster::start(pair::options()).await;
    server.execute(&format!("CREATE DATABASE {DATABASE}")).await;
    shell(&pgbench(&server, DATABASE, &format!("-i -q -s {PGBENCH_SCALE}"))).await;
    let mut contestants = Vec::new();
    for kind in Kind::ALL {
        contestants.push(Contestant::start(kind, &server).await);
    }
    let seconds = options.scaled(SECONDS);
    let mut found = PROTOCOLS.map(Found::new);
    for round in 0..options.rounds {
        for found in &mut found {
            for turn in 0..contestants.len() {
                let contestant = &contestants[(turn + round) % contestants.len()];
                if can_speak(contestant.kind, found.protocol) {
                    found.add(contestant.kind, turn_of(contestant, &server, found.protocol, seconds).await);
                }
            }
        }
    }
    let mut text = format!(
        "`pgbench -S` (scale {PGBENCH_SCALE}), {seconds} s with {CLIENTS} clients for the rate and the processor time of the \
         proxy's process, {seconds} s with one client for the latency; everything on one machine, over TCP, with SCRAM. The \
         relay is tokio's `copy_bidirectional` in the router's runtime. The router is its crate in a process of its own, in \
         the runtime that `segue router` has, on a route that does not change. {}, with {} connections in a pool, as the \
         router has{}. Medians of the rounds, ratios within a round. The machine's load before: \
         {busy}; latencies and rates are worth little where that is not near 0.\n",
        pgbouncer::version(),
        proxy::POOL_SIZE,
        if pgbouncer::knows_statements() {
            ""
        } else {
            "; it knows no prepared statements in transaction mode"
        },
    );
    text.push_str(&repeated(&contestants));
    drop(contestants);
    for found in &found {
        text.push_str(&format!("\n### {}\n\n{}", found.protocol, found.table()));
    }
    text.push_str(&format!("\n### beside PgBouncer\n\n{}", verdicts(&found)));
    text.push_str(&idle(&server, options.scaled(IDLE)).await);
    text
}

/// What the router that repeats reads has come to: figures of one that repeats nothing are worth nothing.
fn repeated(contestants: &[Contestant]) -> String {
    let mirror = contestants.iter().find(|contestant| contestant.kind == Kind::Mirror);
    let Some((compared, equal)) = mirror.and_then(Contestant::compared) else {
        panic!("no read was repeated")
    };
    assert_eq!(compared, equal, "the server differs from itself");
    format!(
        "One of the routers tells reads from writes, repeats {} % of them on the same server, and compares: {compared} in all.\n",
        proxy::MIRROR_PERCENT
    )
}

/// What others do on the machine: its load of the last minute.
fn load() -> String {
    let text = must(std::fs::read_to_string("/proc/loadavg"), "read the machine's load");
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// PgBouncer has learnt of prepared statements late.
fn can_speak(kind: Kind, protocol: &str) -> bool {
    kind != Kind::PgBouncer(Mode::Transaction) || protocol != "prepared" || pgbouncer::knows_statements()
}

async fn turn_of(contestant: &Contestant, server: &Cluster, protocol: &str, seconds: u64) -> Taken {
    let before = contestant.cpu_seconds();
    let said =
        run_pgbench(contestant, server, &format!("-S -n -M {protocol} -c {CLIENTS} -j 1 -T {seconds}")).await;
    let cpu = contestant.cpu_seconds() - before;
    let queries = figure(&said, "number of transactions actually processed: ");
    // One file for each thread of pgbench, of which there is one.
    let log = server.socket_dir().join("latencies");
    let logged = format!("-S -n -M {protocol} -c 1 -T {seconds} -l --log-prefix='{}'", log.display());
    run_pgbench(contestant, server, &logged).await;
    let latencies = take_latencies(server.socket_dir(), "latencies.");
    Taken {
        queries_per_second: figure(&said, "tps = "),
        cpu_us: cpu / queries * 1e6,
        p50_us: median(&latencies),
        p99_us: percentile(&latencies, 0.99),
    }
}

async fn run_pgbench(contestant: &Contestant, server: &Cluster, arguments: &str) -> String {
    let words = arguments.replace('\'', "");
    let output = tokio::process::Command::new(client_program("pgbench"))
        .args(words.split(' '))
        .args(["-h", "127.0.0.1", "-p", &contestant.port.to_string(), "-U", "postgres", DATABASE])
        .env(proxy::PASSWORD, server.password())
        .output()
        .await;
    let output = must(output, "run pgbench");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let failed = figure(&said, "number of failed transactions: ");
    assert!(output.status.success() && failed == 0.0, "{}: {said}\n{errors}", contestant.kind.name());
    said.into_owned()
}

/// The number behind `words`; infinite where it is not there.
fn figure(said: &str, words: &str) -> f64 {
    let line = said.lines().find_map(|line| line.strip_prefix(words));
    line.and_then(|line| line.split([' ', '/']).next()?.parse().ok()).unwrap_or(f64::INFINITY)
}

/// The third word of each line of pgbench's log; the log is removed.
fn take_latencies(dir: &Path, prefix: &str) -> Vec<f64> {
    let mut latencies = Vec::new();
    for entry in must(std::fs::read_dir(dir), "look for pgbench's log") {
        let path = must(entry, "look for pgbench's log").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
            let text = must(std::fs::read_to_string(&path), "read pgbench's log");
            latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok()));
            must(std::fs::remove_file(&path), "remove pgbench's log");
        }
    }
    assert!(!latencies.is_empty(), "pgbench has logged its transactions");
    latencies
}

/// Memory for clients that are logged in and do nothing, in transaction mode.
async fn idle(server: &Cluster, clients: u64) -> String {
    let mut text = format!(
        "\n### idle clients\n\n{clients} clients, logged in with SCRAM, transaction mode: the process's resident memory.\n\n\
         | contestant | MiB before | MiB with them | KiB for each |\n|---|---:|---:|---:|\n"
    );
    let mut of_router = 0.0;
    for kind in [Kind::PgBouncer(Mode::Transaction), Kind::Router(Mode::Transaction)] {
        // One that has served nobody yet: what was freed before is no part of it.
        let contestant = Contestant::start(kind, server).await;
        let before = contestant.memory_kib();
        let connected = log_in(&server.url_through(contestant.port, DATABASE), clients).await;
        let with = contestant.memory_kib();
        drop(connected);
        let each = with.saturating_sub(before) as f64 / clients as f64;
        of_router = each;
        let mib = |kib: u64| kib as f64 / 1024.0;
        text.push_str(&format!("| {} | {:.1} | {:.1} | {each:.1} |\n", kind.name(), mib(before), mib(with)));
    }
    text.push_str(&verdict("\nThe router's memory for an idle client, KiB", of_router, IDLE_KIB_MAX, false));
    text
}

async fn log_in(url: &str, clients: u64) -> Vec<tokio_postgres::Client> {
    let (mut connected, mut logins) = (Vec::new(), JoinSet::new());
    for _ in 0..clients {
        if logins.len() >= LOGINS
            && let Some(client) = logins.join_next().await
        {
            connected.push(must(must(client, "log in"), "log in"));
        }
        let url = url.to_owned();
        logins.spawn(async move { cluster::connect(&url).await });
    }
    for client in logins.join_all().await {
        connected.push(must(client, "log in"));
    }
    connected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_pgbench_are_read() {
        let said = "number of transactions actually processed: 51/51\nlatency average = 0.2 ms\ntps = 17.25 (without x)\n";
        assert_eq!(figure(said, "number of transactions actually processed: "), 51.0);
        assert_eq!(figure(said, "tps = "), 17.25);
        assert_eq!(figure(said, "failed: "), f64::INFINITY);
    }

    #[test]
    fn latencies_are_taken_from_the_log_and_the_log_is_removed() {
        let dir = std::env::temp_dir().join(format!("segue-latencies-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("l.1"), "0 1 250 0 1 2\n0 2 300 0 1 2\n").unwrap();
        assert_eq!(take_latencies(&dir, "l."), [250.0, 300.0]);
        std::fs::remove_dir(&dir).unwrap();
    }
}
