//! Copying beside writes, with other keys, and of other sizes.

use super::super::Options;
use super::super::measure::median;
use super::super::pair::{DATABASE, Pair, Writers, must};
use super::super::report::{Contest, verdict};
use super::turns::{Part, migrated, piped, subscribed};
use super::{TABLES, count, empty_target};

/// What the source's users write meanwhile, in transactions a second.
const WRITES_PER_S: u64 = 500;
const KEYED_ROWS: u64 = 2_000_000;
/// Tables whose keys come in no order, and their first halves.
const KEYED: [(&str, &str, &str); 2] =
    [("by_uuid", "uuid", "id < '80000000-0000-0000-0000-000000000000'"), ("by_text", "text", "id < '8'")];
/// Millions of rows.
const SIZES: [(&str, u64); 3] = [("rows_1", 1_000_000), ("rows_5", 5_000_000), ("rows_20", 20_000_000)];

/// The same two tables while the source is written to, beside the best of the others that had it for themselves.
pub(super) async fn beside_writes(
    pair: &Pair,
    options: &Options,
    alone: &Contest,
    segue_alone: usize,
    rows: u64,
) -> String {
    let parts = [Part::new(TABLES[0], ""), Part::new(TABLES[1], "")];
    let mut contest = Contest::new(&["psql, both tables at once", "segue"]);
    let mut reached = Vec::new();
    for round in 0..options.rounds {
        for contestant in contest.order(round) {
            empty_target(pair, options).await;
            let writers = Writers::start(pair, WRITES_PER_S).await;
            let sample = match contestant {
                0 => piped(pair, &parts, 1, 2).await,
                _ => migrated(pair, &TABLES).await,
            };
            reached.push(writers.end(pair).await);
            assert_eq!(count(pair, &TABLES).await, rows, "contestant {contestant} has copied every row");
            contest.add(contestant, sample);
        }
    }
    let mut text = format!(
        "\n### beside writes\n\nThe same tables, while the source is written to by {WRITES_PER_S} transactions a second \
         (`pgbench -b tpcb-like`, 8 clients; {:.0} were reached), of each of which segue applies the row in `pgbench_accounts`; \
         psql's copy has none of that, and is not consistent. CPU is without pgbench's own.\n\n",
        median(&reached)
    );
    text.push_str(&contest.table(rows as f64, "rows", 0));
    text.push('\n');
    let found = alone.best_seconds(segue_alone) / contest.seconds(1);
    text.push_str(&verdict(
        "segue ÷ the best of the others, of the medians, which had no writes beside them",
        found,
        0.9,
        true,
    ));
    text
}

/// Tables whose rows lie in no order of their keys.
pub(super) async fn keys(pair: &Pair, options: &Options) -> String {
    let rows = options.scaled(KEYED_ROWS);
    let source = Pair::connect(&pair.source, DATABASE).await;
    let mut text = String::new();
    for (table, sql_type, first_half) in KEYED {
        eprintln!("bench: filling the source: {rows} rows of {table}");
        let make = format!("CREATE TABLE {table} (id {sql_type} PRIMARY KEY, n integer, note text)");
        must(source.batch_execute(&make).await, "make a table");
        let fill = format!(
            "INSERT INTO {table} SELECT md5(i::text)::{sql_type}, i, repeat(md5(i::text), 2) FROM generate_series(1, {rows}) i"
        );
        must(source.batch_execute(&fill).await, "fill a table");
        must(source.batch_execute(&format!("VACUUM (ANALYZE, FREEZE) {table}")).await, "vacuum");
        let parts = [Part::new(table, first_half)];
        let mut contest = Contest::new(&[
            "psql, one stream",
            "psql, two ranges at once",
            "PostgreSQL's initial sync",
            "segue",
        ]);
        for round in 0..options.rounds {
            for contestant in contest.order(round) {
                make_anew(pair, table, &make).await;
                let sample = match contestant {
                    0 => piped(pair, &parts, 1, 1).await,
                    1 => piped(pair, &parts, 2, 1).await,
                    2 => subscribed(pair, &parts).await,
                    _ => migrated(pair, &[table]).await,
                };
                assert_eq!(count(pair, &[table]).await, rows, "contestant {contestant} has copied every row");
                contest.add(contestant, sample);
            }
        }
        text.push_str(&format!(
            "\n### a key of type {sql_type}\n\n{rows} rows of some 100 bytes, which lie in no order of their keys.\n\n"
        ));
        text.push_str(&contest.table(rows as f64, "rows", 0));
        text.push('\n');
        let best = contest.best_ratio(3);
        text.push_str(&verdict("segue ÷ the best of the others in each round", best, 0.85, true));
    }
    text
}

/// One table each, as wide as `pgbench_accounts`.
pub(super) async fn sizes(pair: &Pair, options: &Options) -> String {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let make = |table: &str| {
        format!(
            "CREATE TABLE {table} (aid integer PRIMARY KEY, bid integer, abalance integer, filler char(84))"
        )
    };
    for (table, rows) in SIZES {
        let rows = options.scaled(rows);
        eprintln!("bench: filling the source: {rows} rows of {table}");
        must(source.batch_execute(&make(table)).await, "make a table");
        let fill =
            format!("INSERT INTO {table} SELECT i, i / 100000, 0, '' FROM generate_series(1, {rows}) i");
        must(source.batch_execute(&fill).await, "fill a table");
        must(source.batch_execute(&format!("VACUUM (ANALYZE, FREEZE) {table}")).await, "vacuum");
    }
    let names = SIZES.map(|(_, rows)| format!("segue, {} rows", options.scaled(rows)));
    let mut contest = Contest::new(&names.each_ref().map(String::as_str));
    for round in 0..options.rounds {
        for contestant in contest.order(round) {
            let (table, rows) = SIZES[contestant];
            make_anew(pair, table, &make(table)).await;
            let sample = migrated(pair, &[table]).await;
            assert_eq!(count(pair, &[table]).await, options.scaled(rows), "every row of {table} is copied");
            contest.add(contestant, sample);
        }
    }
    let mut text = "\n### sizes\n\nOne table at a time, rows as wide as `pgbench_accounts` has them.\n\n\
         | rows | s | rows/s |\n|---:|---:|---:|\n"
        .to_owned();
    let mut rates = Vec::new();
    for (contestant, (_, rows)) in SIZES.into_iter().enumerate() {
        let (rows, seconds) = (options.scaled(rows), contest.seconds(contestant));
        rates.push(rows as f64 / seconds);
        text.push_str(&format!("| {rows} | {seconds:.2} | {:.0} |\n", rows as f64 / seconds));
    }
    text.push('\n');
    let most = rates.iter().copied().fold(0.0, f64::max);
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    text.push_str(&verdict("the slowest rate ÷ the fastest", least / most, 0.9, true));
    text
}

/// Makes a table of the target anew, without rows.
async fn make_anew(pair: &Pair, table: &str, make: &str) {
    pair.fresh_target().await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    must(target.batch_execute(make).await, &format!("make {table}"));
    pair.settle().await;
}
