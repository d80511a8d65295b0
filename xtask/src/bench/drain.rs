//! Draining: a backlog that was written while nobody consumed, until the target has its last row.

use super::Options;
use super::measure::{Sample, Turn};
use super::pair::{DATABASE, Pair, must, pgbench, program, shell, until_true};
use super::report::{Contest, verdict};
use tokio_postgres::Client;

pub(super) const TABLES: [&str; 5] =
    ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "mark"];
const TRANSACTIONS: u64 = 50_000;
/// Five million accounts, as the copy's benchmark has.
const PGBENCH_SCALE: u64 = 50;
const CLIENTS: u64 = 4;
/// The peer's database on the target.
pub(super) const PEER: &str = "peer";

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    both_follow(&pair).await;
    let source = Pair::connect(&pair.source, DATABASE).await;
    let each = (options.scaled(TRANSACTIONS) / CLIENTS).max(1);
    let mut contest = Contest::new(&["PostgreSQL's subscription", "segue"]);
    for round in 0..options.rounds {
        eprintln!("bench: making a backlog of {} transactions", each * CLIENTS);
        // How fast the backlog is made does not matter: without waiting for the disk.
        let load = pgbench(&pair.source, DATABASE, &format!("-n -b tpcb-like -c {CLIENTS} -j 2 -t {each}"));
        shell(&format!("PGOPTIONS='-c synchronous_commit=off' {load}")).await;
        let mark = format!("INSERT INTO mark VALUES ({round})");
        must(source.batch_execute(&mark).await, "mark the end of the backlog");
        for contestant in contest.order(round) {
            pair.settle().await;
            let sample = match contestant {
                0 => subscribed(&pair, round).await,
                _ => migrated(&pair, round).await,
            };
            contest.add(contestant, sample);
        }
        assert_alike(&pair).await;
    }
    let transactions = each * CLIENTS;
    let mut text = format!(
        "{transactions} transactions of `pgbench -b tpcb-like` (scale {PGBENCH_SCALE}, {CLIENTS} clients), written while \
         neither consumed; from the start of the subscription, or of `segue run`, to the last row on the target. The \
         subscription commits without waiting for the disk (its default); segue waits about once a second and at the end, and \
         acknowledges nothing that is not durable.\n\n"
    );
    text.push_str(&contest.table(transactions as f64, "transactions", 0));
    text.push('\n');
    text.push_str(&verdict("segue ÷ subscription", contest.ratio(1, 0), 1.2, true));
    text.push_str(&verdict("\nPeak memory of segue, MiB", pair.peak_mib(), 512.0, false));
    text
}

/// Fills the source, and brings both followers to where the backlog will begin; then both stand still.
pub(super) async fn both_follow(pair: &Pair) {
    pair.target.execute(&format!("CREATE DATABASE {PEER}")).await;
    shell(&pgbench(&pair.source, DATABASE, &format!("-i -q -I dtGp -s {PGBENCH_SCALE}"))).await;
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
    pair.write_spec(DATABASE, &TABLES);
    pair.segue_to_end(&["run", "--until", "following"]).await;
    // How often the subscription tells the source where it is: for `needs_nothing_older`, not for its speed.
    pair.target.execute("ALTER SYSTEM SET wal_receiver_status_interval = '1s'").await;
    pair.target.execute("SELECT pg_reload_conf()").await;
    let publish = format!("CREATE PUBLICATION peer FOR TABLE {}", TABLES.join(", "));
    must(source.batch_execute(&publish).await, "publish");
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
        (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT concat(count(*), ' ', sum(delta)) FROM pgbench_history))";
    let sum = async |server, database| {
        let client = Pair::connect(server, database).await;
        must(client.query_one(sums, &[]).await, "sum up").get::<_, String>(0)
    };
    let source = sum(&pair.source, DATABASE).await;
    assert_eq!(sum(&pair.target, DATABASE).await, source, "segue's target");
    assert_eq!(sum(&pair.target, PEER).await, source, "the peer's target");
}
