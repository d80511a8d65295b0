//! Digest: proving two tables equal, beside the bare statements that hash them and the peers that find the rows.
//!
//! * [`peers`]: data-diff and pg_comparator
//! * [`found`]: ten differences, and who finds them

mod found;
mod peers;

use super::Options;
use super::copy::{TABLES, empty_target, fill};
use super::measure::{Sample, Turn};
use super::pair::{DATABASE, Pair, must};
use super::report::{Contest, verdict};
use found::{EXACT, FILL_EXACT, MAKE_EXACT};
use peers::{DATA_DIFF_THREADS, Finder, PG_COMPARATOR_OPTIONS};

/// The cheapest hash that the server has and that is exact to how values are represented (PostgreSQL 14 and later).
pub(super) const HASHED: &str =
    "SELECT concat(count(*), ' ', sum(hash_record_extended(ROW(record_send(t)), 0))) FROM {table} t";
/// What people write by hand.
const MD5: &str =
    "SELECT concat(count(*), ' ', sum(('x' || substr(md5(t::text), 1, 16))::bit(64)::bigint)) FROM {table} t";

/// What is compared, and the keys.
#[derive(Debug, Clone, Copy)]
enum Tables {
    /// The two that the times are of.
    Timed,
    /// With the small one that a difference is planted in.
    All,
}

impl Tables {
    fn with_keys(self) -> &'static [(&'static str, &'static str)] {
        const KEYED: [(&str, &str); 3] = [(TABLES[0], "aid"), (TABLES[1], "id"), (EXACT, "id")];
        match self {
            Tables::Timed => &KEYED[..2],
            Tables::All => &KEYED,
        }
    }
}

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    let (accounts, wide) = prepare(&pair, options).await;
    let process = pair.segue(&["run"]);
    pair.segue_to_end(&["wait", "following"]).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    must(target.batch_execute("VACUUM (ANALYZE, FREEZE)").await, "vacuum");
    let mut text = whether_equal(&pair, options, accounts, wide).await;
    text.push_str(&finders(&pair, options, &[accounts, wide]).await);
    text.push_str(&found::measure(&pair).await);
    pair.end_segue(process).await;
    text.push_str(&verdict("\nPeak memory of segue, MiB", pair.peak_mib(), 512.0, false));
    text
}

/// Fills the source, and makes the tables of the target; returns how many rows the large ones have.
async fn prepare(pair: &Pair, options: &Options) -> (u64, u64) {
    let rows = fill(pair, options).await;
    empty_target(pair, options).await;
    let source = Pair::connect(&pair.source, DATABASE).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    for server in [&source, &target] {
        must(server.batch_execute(MAKE_EXACT).await, "make the small table");
        must(
            server.batch_execute("CREATE EXTENSION pgcmp").await,
            "run scripts/setup --bench: pg_comparator",
        );
    }
    must(source.batch_execute(FILL_EXACT).await, "fill the small table");
    pair.write_spec_with(
        "prod",
        DATABASE,
        &Tables::All.with_keys().iter().map(|(table, _)| *table).collect::<Vec<_>>(),
        "copy: { workers: 2 }\n",
    );
    rows
}

/// Beside the bare statements.
async fn whether_equal(pair: &Pair, options: &Options, accounts: u64, wide: u64) -> String {
    let mut contest = Contest::new(&["record_send, hashed", "md5 of the text", "segue verify"]);
    for round in 0..options.rounds {
        for contestant in contest.order(round) {
            pair.settle().await;
            let sample = match contestant {
                0 => bare(pair, HASHED).await,
                1 => bare(pair, MD5).await,
                _ => verified(pair, &TABLES).await,
            };
            contest.add(contestant, sample);
        }
    }
    let rows = (accounts + wide) as f64;
    let mut text = format!(
        "{accounts} rows of `pgbench_accounts` and {wide} rows of 20 columns of mixed types, equal on both sides and not \
         written to. The bare statements run on both servers at once, a table after the other, and tell only *whether* the \
         tables are equal; `segue verify --mode digest` compares in ranges, beside a running `segue run`, and would have found \
         the rows.\n\n"
    );
    text.push_str(&contest.table(rows, "rows", 0));
    text.push('\n');
    text.push_str(&verdict("segue ÷ record_send, hashed", contest.ratio(2, 0), 0.8, true));
    text
}

/// Beside those that find the rows, a table at a time.
async fn finders(pair: &Pair, options: &Options, rows: &[u64; 2]) -> String {
    let mut text = format!(
        "\n### finding the rows\n\nThe same tables, one at a time, all columns, by tools that name the rows that differ (there \
         are none yet). data-diff 0.11.2 with {DATA_DIFF_THREADS} threads, through its library, with its bisection's defaults; \
         it compares values as it normalizes them. pg_comparator 2.3 with its extension `pgcmp` on both servers and \
         `{PG_COMPARATOR_OPTIONS}`; it writes a temporary table of checksums on either server. Both say what holds while \
         nobody writes.\n"
    );
    let wanted = [("narrow", 3.5), ("wide", 2.0)];
    for (((table, key), rows), (name, than_data_diff)) in
        Tables::Timed.with_keys().iter().zip(rows).zip(wanted)
    {
        let mut contest = Contest::new(&Finder::ALL.map(Finder::name));
        for round in 0..options.rounds {
            for contestant in contest.order(round) {
                pair.settle().await;
                let sample = match Finder::ALL[contestant] {
                    Finder::Segue => verified(pair, &[table]).await,
                    peer => by_peer(pair, peer, table, key).await,
                };
                contest.add(contestant, sample);
            }
        }
        text.push_str(&format!("\n`{table}`, the {name} table: {rows} rows.\n\n"));
        text.push_str(&contest.table(*rows as f64, "rows", 0));
        text.push('\n');
        text.push_str(&verdict(
            &format!("{name}: segue ÷ data-diff"),
            contest.ratio(2, 0),
            than_data_diff,
            true,
        ));
        text.push_str(&verdict(&format!("\n{name}: segue ÷ pg_comparator"), contest.ratio(2, 1), 1.0, true));
    }
    text
}

/// One statement for each table, on both servers at once.
async fn bare(pair: &Pair, statement: &str) -> Sample {
    let turn = Turn::begin(pair);
    assert_same(pair, Tables::Timed, statement).await;
    turn.end(pair)
}

async fn verified(pair: &Pair, tables: &[&str]) -> Sample {
    let tables: Vec<String> = tables.iter().map(|table| format!("public.{table}")).collect();
    let mut arguments = vec!["verify", "--mode", "digest"];
    arguments.extend(tables.iter().flat_map(|table| ["--table", table]));
    let turn = Turn::begin(pair);
    pair.segue_to_end(&arguments).await;
    turn.end(pair)
}

async fn by_peer(pair: &Pair, peer: Finder, table: &str, key: &str) -> Sample {
    let turn = Turn::begin(pair);
    let found = must(peer.keys(pair, table, key).await, peer.name());
    let sample = turn.end(pair);
    assert!(found.is_empty(), "{}: {table} is equal, and not: {found:?}", peer.name());
    sample
}

async fn assert_equal(pair: &Pair, tables: Tables) {
    assert_same(pair, tables, HASHED).await;
}

/// Both servers answer the same, for each table.
async fn assert_same(pair: &Pair, tables: Tables, statement: &str) {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    for (table, _) in tables.with_keys() {
        let statement = statement.replace("{table}", table);
        let (here, there) =
            tokio::join!(source.query_one(&statement, &[]), target.query_one(&statement, &[]));
        let (here, there) = (must(here, "hash the source"), must(there, "hash the target"));
        assert_eq!(here.get::<_, String>(0), there.get::<_, String>(0), "{table} is equal");
    }
}
