//! Copying: from empty tables with their primary keys in place to everything there.
//!
//! * [`turns`]: what each contestant does
//! * [`shapes`]: other keys, other sizes, and a source that is written to meanwhile

mod shapes;
mod turns;

use super::Options;
use super::pair::{DATABASE, Pair, must, pgbench, shell};
use super::report::{Contest, verdict};
use turns::{Part, cloned, migrated, piped, subscribed};

pub(super) const TABLES: [&str; 2] = ["pgbench_accounts", "wide"];
const PGBENCH_SCALE: u64 = 50;
const WIDE_ROWS: u64 = 2_000_000;

const WIDE: &str = "CREATE TABLE wide (id bigint PRIMARY KEY, tenant int NOT NULL, kind smallint, owner bigint,
    amount numeric(12,2), rate double precision, weight real, active boolean, name text, note text,
    code varchar(40), flag char(8), born date, made timestamp, seen timestamptz, ref uuid, doc jsonb, raw bytea,
    tags int[], host inet)";
const WIDE_FILL: &str = "INSERT INTO wide SELECT i, i % 1000, i % 7, i * 37, (i % 100000) / 100.0, i / 7.0, i / 3.0,
    i % 3 = 0, CASE WHEN i % 10 > 0 THEN 'name of ' || i END, repeat(md5(i::text), 1 + (i % 3)::int), 'code-' || i % 5000,
    'f' || i % 9, date '2020-01-01' + (i % 2000)::int, timestamp '2020-01-01' + i * interval '1 s',
    timestamptz '2020-01-01' + i * interval '1 min', md5(i::text)::uuid,
    jsonb_build_object('id', i, 'of', i % 17), decode(md5(i::text), 'hex'), ARRAY[i % 10, i % 100]::int[],
    ('10.0.' || i % 256 || '.' || i % 199)::inet FROM generate_series(1, {rows}) AS i";

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    let (accounts, wide) = fill(&pair, options).await;
    let parts = [
        Part::new(TABLES[0], format!("aid <= {}", accounts / 2)),
        Part::new(TABLES[1], format!("id <= {}", wide / 2)),
    ];
    let mut contest = Contest::new(&[
        "psql, one stream",
        "psql, two ranges at once",
        "psql, both tables at once",
        "PostgreSQL's initial sync",
        "pgcopydb clone",
        "segue",
    ]);
    let segue = contest.len() - 1;
    for round in 0..options.rounds {
        for contestant in contest.order(round) {
            empty_target(&pair, options).await;
            let sample = match contestant {
                0 => piped(&pair, &parts, 1, 1).await,
                1 => piped(&pair, &parts, 2, 1).await,
                2 => piped(&pair, &parts, 1, 2).await,
                3 => subscribed(&pair, &parts).await,
                4 => cloned(&pair).await,
                _ => migrated(&pair, &TABLES).await,
            };
            assert_eq!(
                count(&pair, &TABLES).await,
                accounts + wide,
                "contestant {contestant} has copied every row"
            );
            contest.add(contestant, sample);
        }
    }
    let rows = (accounts + wide) as f64;
    let mut text = format!(
        "{accounts} rows of `pgbench_accounts` and {wide} rows of 20 columns of mixed types into empty tables with their \
         primary keys; pgcopydb makes the tables itself, and the keys when their rows are there, then it analyzes them (its defaults). For segue: the whole of \
         `segue run --until following`, from its start to its end.\n\n"
    );
    text.push_str(&contest.table(rows, "rows", 0));
    text.push('\n');
    let best = contest.best_ratio(segue);
    text.push_str(&verdict("segue ÷ the best of the others in each round", best, 1.0, true));
    text.push_str(&shapes::beside_writes(&pair, options, &contest, segue, accounts + wide).await);
    text.push_str(&shapes::keys(&pair, options).await);
    text.push_str(&shapes::sizes(&pair, options).await);
    text.push_str(&verdict("\nPeak memory of segue in all of these, MiB", pair.peak_mib(), 256.0, false));
    text
}

/// Fills the source's tables; returns how many rows each has.
pub(super) async fn fill(pair: &Pair, options: &Options) -> (u64, u64) {
    let scale = options.scaled(PGBENCH_SCALE);
    let (accounts, wide) = (scale * 100_000, options.scaled(WIDE_ROWS));
    eprintln!("bench: filling the source: {accounts} rows of pgbench_accounts, {wide} of wide");
    shell(&pgbench(&pair.source, DATABASE, &format!("-i -q -I dtGp -s {scale}"))).await;
    let source = Pair::connect(&pair.source, DATABASE).await;
    must(source.batch_execute(WIDE).await, "make the wide table");
    must(source.batch_execute(&WIDE_FILL.replace("{rows}", &wide.to_string())).await, "fill the wide table");
    must(source.batch_execute("VACUUM (ANALYZE, FREEZE)").await, "vacuum");
    write_spec(pair, &TABLES);
    (accounts, wide)
}

fn write_spec(pair: &Pair, tables: &[&str]) {
    // As many as there are processors for the target and the source together: more of them only meet in the index.
    pair.write_spec_with("prod", DATABASE, tables, "copy: { workers: 2 }\n");
}

/// Makes the target's tables anew, without rows.
pub(super) async fn empty_target(pair: &Pair, options: &Options) {
    let scale = options.scaled(PGBENCH_SCALE);
    pair.fresh_target().await;
    shell(&pgbench(&pair.target, DATABASE, &format!("-i -q -I dtp -s {scale}"))).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    must(target.batch_execute(WIDE).await, "make the wide table");
    pair.settle().await;
}

/// How many rows the target's tables have.
async fn count(pair: &Pair, tables: &[&str]) -> u64 {
    let target = Pair::connect(&pair.target, DATABASE).await;
    let counts: Vec<String> = tables.iter().map(|table| format!("(SELECT count(*) FROM {table})")).collect();
    let sql = format!("SELECT {}", counts.join(" + "));
    let rows: i64 = must(target.query_one(&sql, &[]).await, "count the rows").get(0);
    u64::try_from(rows).unwrap_or_default()
}
