//! Digest: proving two tables equal, beside the bare statements that hash them.

use super::Options;
use super::copy::{TABLES, empty_target, fill};
use super::measure::{Sample, Turn};
use super::pair::{DATABASE, Pair, must};
use super::report::{Contest, verdict};

/// The cheapest hash that the server has and that is exact to how values are represented (PostgreSQL 14 and later).
pub(super) const HASHED: &str =
    "SELECT concat(count(*), ' ', sum(hash_record_extended(ROW(record_send(t)), 0))) FROM {table} t";
/// What people write by hand.
const MD5: &str =
    "SELECT concat(count(*), ' ', sum(('x' || substr(md5(t::text), 1, 16))::bit(64)::bigint)) FROM {table} t";

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    let (accounts, wide) = fill(&pair, options).await;
    empty_target(&pair, options).await;
    let process = pair.segue(&["run"]);
    pair.segue_to_end(&["wait", "following"]).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    must(target.batch_execute("VACUUM (ANALYZE, FREEZE)").await, "vacuum");
    let mut contest = Contest::new(&["record_send, hashed", "md5 of the text", "segue verify"]);
    for round in 0..options.rounds {
        for contestant in contest.order(round) {
            pair.settle().await;
            let sample = match contestant {
                0 => bare(&pair, HASHED).await,
                1 => bare(&pair, MD5).await,
                _ => verified(&pair).await,
            };
            contest.add(contestant, sample);
        }
    }
    pair.end_segue(process).await;
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
    text.push_str(&verdict("\nPeak memory of segue, MiB", pair.peak_mib(), 512.0, false));
    text
}

/// One statement for each table, on both servers at once.
async fn bare(pair: &Pair, statement: &str) -> Sample {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    let turn = Turn::begin(pair);
    for table in TABLES {
        let statement = statement.replace("{table}", table);
        let (here, there) =
            tokio::join!(source.query_one(&statement, &[]), target.query_one(&statement, &[]));
        let (here, there) = (must(here, "hash the source"), must(there, "hash the target"));
        assert_eq!(here.get::<_, String>(0), there.get::<_, String>(0), "{table} is equal");
    }
    turn.end(pair)
}

async fn verified(pair: &Pair) -> Sample {
    let turn = Turn::begin(pair);
    pair.segue_to_end(&["verify", "--mode", "digest"]).await;
    turn.end(pair)
}
