//! Draining: a backlog that was written while nobody consumed, until the target has its last row.

use super::Options;
use super::measure::{Sample, Turn};
use super::pair::{DATABASE, Pair, must, pgbench, program, shell, until_true};
use super::report::{Contest, verdict};
use tokio_postgres::Client;

/// Five million accounts, as the copy's benchmark has.
const PGBENCH_SCALE: u64 = 50;
const CLIENTS: u64 = 4;
/// The peer's database on the target.
pub(super) const PEER: &str = "peer";
/// Tables of the mixed workload.
const MIXED: u64 = 100;

/// What is written while nobody consumes.
struct Workload {
    name: &'static str,
    /// What one transaction does, for people.
    what: &'static str,
    /// pgbench's script; its own `tpcb-like` without one.
    script: Option<&'static str>,
    transactions: u64,
    /// Rows that one transaction changes.
    rows: u64,
    /// How many times as fast as the subscription segue is to be.
    wanted: f64,
}

const WORKLOADS: [Workload; 6] = [
    Workload {
        name: "TPC-B",
        what: "`pgbench -b tpcb-like`",
        script: None,
        transactions: 50_000,
        rows: 4,
        wanted: 2.5,
    },
    Workload {
        name: "TPC-B, longer",
        what: "`pgbench -b tpcb-like`",
        script: None,
        transactions: 150_000,
        rows: 4,
        wanted: 6.0,
    },
    Workload {
        name: "inserts",
        what: "one row is inserted",
        script: Some(
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, 1, 1, CURRENT_TIMESTAMP);",
        ),
        transactions: 150_000,
        rows: 1,
        wanted: 1.3,
    },
    Workload {
        name: "random updates",
        what: "one of five million rows is updated",
        script: Some(
            "\\set aid random(1, 5000000)\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;",
        ),
        transactions: 100_000,
        rows: 1,
        wanted: 2.0,
    },
    Workload {
        name: "one transaction",
        what: "a million rows are updated",
        script: Some("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 1000000;"),
        transactions: 1,
        rows: 1_000_000,
        wanted: 1.5,
    },
    Workload {
        name: "100 tables",
        what: "in one of 100 tables a row is inserted and another updated",
        script: Some(
            "\\set t random(1, 100)\n\\set id random(1, 1000)\nBEGIN;\nINSERT INTO mixed_:t (note) VALUES ('new');\n\
             UPDATE mixed_:t SET n = n + 1 WHERE id = :id;\nCOMMIT;",
        ),
        transactions: 50_000,
        rows: 2,
        wanted: 2.0,
    },
];

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    mixed_tables(&pair).await;
    both_follow(&pair).await;
    let source = Pair::connect(&pair.source, DATABASE).await;
    must(
        source.batch_execute("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')").await,
        "a slot",
    );
    let mut text = format!(
        "What was written while nobody consumed (`pgbench`, scale {PGBENCH_SCALE}, {CLIENTS} clients), from the start of the \
         subscription, or of `segue run`, to the last row on the target. The subscription commits without waiting for the disk \
         (its default); segue waits about once a second and at the end, and acknowledges nothing that is not durable. \
         pg_recvlogical reads the same from a slot of its own, and writes it to a file: what decoding takes.\n"
    );
    let mut mark = 0;
    for workload in &WORKLOADS {
        text.push_str(&of_workload(options, &pair, &source, workload, &mut mark).await);
    }
    text.push_str(&live_comparison(options, &pair, &source, &mut mark).await);
    text.push_str(&verdict("\nPeak memory of segue, MiB", pair.peak_mib(), 256.0, false));
    text
}

/// What it costs to compare rows as they are applied: the same backlog with and without.
async fn live_comparison(options: &Options, pair: &Pair, source: &Client, mark: &mut usize) -> String {
    let workload = &WORKLOADS[1];
    let each = (options.scaled(workload.transactions) / CLIENTS).max(1);
    let specs = ["", "verify: { live: false }\n"];
    let mut contest = Contest::new(&["segue", "segue, `verify.live: false`"]);
    for round in 0..options.rounds {
        for contestant in contest.order(round) {
            write_backlog(pair, workload, (CLIENTS, each)).await;
            *mark += 1;
            must(source.batch_execute(&format!("INSERT INTO mark VALUES ({mark})")).await, "mark its end");
            pair.write_spec_with("prod", DATABASE, &["*"], specs[contestant]);
            pair.settle().await;
            contest.add(contestant, migrated(pair, *mark).await);
        }
    }
    let (transactions, rows) = (each * CLIENTS, each * CLIENTS * workload.rows);
    let mut text = format!(
        "\n### comparing what is applied\n\n{transactions} transactions ({rows} rows) of {} for each turn.\n\n",
        workload.what
    );
    text.push_str(&contest.table(rows as f64, "rows", 1));
    text.push_str(&verdict("\nwith ÷ without", contest.ratio(0, 1), 0.95, true));
    text
}

async fn of_workload(
    options: &Options,
    pair: &Pair,
    source: &Client,
    workload: &Workload,
    mark: &mut usize,
) -> String {
    let Workload { name, what, rows, .. } = workload;
    let clients = CLIENTS.min(workload.transactions);
    let each = (options.scaled(workload.transactions) / clients).max(1);
    let mut contest = Contest::new(&["PostgreSQL's subscription", "segue", "pg_recvlogical to a file"]);
    for round in 0..options.rounds {
        eprintln!("bench: {name}: making a backlog of {} transactions", each * clients);
        write_backlog(pair, workload, (clients, each)).await;
        *mark += 1;
        must(source.batch_execute(&format!("INSERT INTO mark VALUES ({mark})")).await, "mark its end");
        for contestant in contest.order(round) {
            pair.settle().await;
            let sample = match contestant {
                0 => subscribed(pair, *mark).await,
                1 => migrated(pair, *mark).await,
                _ => decoded(pair, source).await,
            };
            contest.add(contestant, sample);
        }
        assert_alike(pair).await;
    }
    let transactions = each * clients;
    let mut text = format!(
        "\n### {name}\n\n{transactions} transactions ({} rows): in each, {what}.\n\n",
        transactions * rows
    );
    text.push_str(&contest.table((transactions * rows) as f64, "rows", 0));
    text.push('\n');
    text.push_str(&verdict("segue ÷ subscription", contest.ratio(1, 0), workload.wanted, true));
    text.push_str(&verdict("\nsegue ÷ pg_recvlogical", contest.ratio(1, 2), 0.8, true));
    text
}

async fn write_backlog(pair: &Pair, workload: &Workload, (clients, each): (u64, u64)) {
    let script = pair.source.socket_dir().join("workload.sql");
    let built_in = match workload.script {
        Some(text) => {
            must(std::fs::write(&script, format!("{text}\n")), "write the script");
            format!("-f {}", script.display())
        }
        None => "-b tpcb-like".to_owned(),
    };
    // How fast the backlog is made does not matter: without waiting for the disk.
    let load = pgbench(&pair.source, DATABASE, &format!("-n {built_in} -c {clients} -j 2 -t {each}"));
    shell(&format!("PGOPTIONS='-c synchronous_commit=off' {load}")).await;
}

/// A slot is drained by PostgreSQL's own client.
async fn decoded(pair: &Pair, source: &Client) -> Sample {
    let end =
        must(source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await, "read the position");
    let turn = Turn::begin(pair);
    shell(&format!(
        "{} -d '{}' -S floor --start -o proto_version=1 -o publication_names=peer --endpos={} --no-loop -f {}",
        program("pg_recvlogical"),
        Pair::conninfo(&pair.source, DATABASE),
        end.get::<_, String>(0),
        pair.source.socket_dir().join("decoded").display(),
    ))
    .await;
    let sample = turn.end(pair);
    // The next turn reads its backlog and not this one, too.
    let forward = "CHECKPOINT; SELECT pg_replication_slot_advance('floor', pg_current_wal_insert_lsn())";
    must(source.simple_query(forward).await, "move the slot");
    sample
}

async fn mixed_tables(pair: &Pair) {
    let source = Pair::connect(&pair.source, DATABASE).await;
    for table in 1..=MIXED {
        let sql = format!(
            "CREATE TABLE mixed_{table} (id bigserial PRIMARY KEY, n int NOT NULL DEFAULT 0, note text);
             INSERT INTO mixed_{table} (note) SELECT 'old' FROM generate_series(1, 1000)"
        );
        must(source.batch_execute(&sql).await, "make a table");
    }
}

/// Fills the source, and brings both followers to where the backlog will begin; then both stand still.
pub(super) async fn both_follow(pair: &Pair) {
    both_follow_with(pair, "").await;
}

/// The same with more options of `pgbench -i`.
pub(super) async fn both_follow_with(pair: &Pair, more: &str) {
    pair.target.execute(&format!("CREATE DATABASE {PEER}")).await;
    shell(&pgbench(&pair.source, DATABASE, &format!("-i -q -I dtGp -s {PGBENCH_SCALE} {more}"))).await;
    let source = Pair::connect(&pair.source, DATABASE).await;
    // History has no key; it is only ever inserted into, so this costs neither of the two anything.
    let more = "ALTER TABLE pgbench_history REPLICA IDENTITY FULL; CREATE TABLE mark (id bigint PRIMARY KEY)";
    must(source.batch_execute(more).await, "make the other tables");
    must(source.batch_execute("VACUUM (ANALYZE, FREEZE)").await, "vacuum");
    for database in [DATABASE, PEER] {
        let into = format!(
            "{} -X -q -v ON_ERROR_STOP=1 -d '{}'",
            program("psql"),
            Pair::conninfo(&pair.target, database)
        );
        let from = Pair::conninfo(&pair.source, DATABASE);
        shell(&format!("{} --schema-only -d '{from}' | {into}", program("pg_dump"))).await;
    }
    pair.write_spec(DATABASE, &["*"]);
    pair.segue_to_end(&["run", "--until", "following"]).await;
    // How often the subscription tells the source where it is: for `needs_nothing_older`, not for its speed.
    pair.target.execute("ALTER SYSTEM SET wal_receiver_status_interval = '1s'").await;
    pair.target.execute("SELECT pg_reload_conf()").await;
    must(source.batch_execute("CREATE PUBLICATION peer FOR TABLES IN SCHEMA public").await, "publish");
    let target = Pair::connect(&pair.target, PEER).await;
    let subscribe = format!(
        "CREATE SUBSCRIPTION peer CONNECTION '{}' PUBLICATION peer",
        Pair::conninfo(&pair.source, DATABASE)
    );
    must(target.batch_execute(&subscribe).await, "subscribe");
    until_true(&target, "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel").await;
    disable(pair, &target).await;
}

/// Stops the subscription, and waits until the source has noticed.
pub(super) async fn disable(pair: &Pair, target: &Client) {
    must(target.batch_execute("ALTER SUBSCRIPTION peer DISABLE").await, "disable the subscription");
    let source = Pair::connect(&pair.source, DATABASE).await;
    until_true(&source, "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'peer'").await;
}

/// Waits, while the consumer is there, until its slot needs no log from before now: the next turn then reads its backlog
/// and not the one before it, too.
async fn needs_nothing_older(pair: &Pair, slot: &str) {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let here =
        must(source.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await, "read the position");
    // A checkpoint logs which transactions run: a place from which a slot can begin.
    must(source.batch_execute("CHECKPOINT").await, "checkpoint");
    let here: String = here.get(0);
    let moved =
        format!("SELECT restart_lsn >= '{here}' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    until_true(&source, &moved).await;
}

fn marked(round: usize) -> String {
    format!("SELECT EXISTS (SELECT FROM mark WHERE id = {round})")
}

async fn subscribed(pair: &Pair, round: usize) -> Sample {
    let target = Pair::connect(&pair.target, PEER).await;
    let turn = Turn::begin(pair);
    must(target.batch_execute("ALTER SUBSCRIPTION peer ENABLE").await, "enable the subscription");
    until_true(&target, &marked(round)).await;
    let sample = turn.end(pair);
    needs_nothing_older(pair, "peer").await;
    disable(pair, &target).await;
    sample
}

async fn migrated(pair: &Pair, round: usize) -> Sample {
    let target = Pair::connect(&pair.target, DATABASE).await;
    let turn = Turn::begin(pair);
    let process = pair.segue(&["run"]);
    until_true(&target, &marked(round)).await;
    let sample = turn.end(pair);
    needs_nothing_older(pair, "segue_bench_fwd").await;
    pair.end_segue(process).await;
    sample
}

/// Both have done the same work: the sums of all balances, and the history, agree with the source's.
async fn assert_alike(pair: &Pair) {
    let sums = "SELECT concat_ws(' ', (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
        (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT concat(count(*), ' ', sum(delta)) FROM pgbench_history),
        (SELECT concat(count(*), ' ', sum(n)) FROM mixed_1))";
    let sum = async |server, database| {
        let client = Pair::connect(server, database).await;
        must(client.query_one(sums, &[]).await, "sum up").get::<_, String>(0)
    };
    let source = sum(&pair.source, DATABASE).await;
    assert_eq!(sum(&pair.target, DATABASE).await, source, "segue's target");
    assert_eq!(sum(&pair.target, PEER).await, source, "the peer's target");
}
