//! Copying: from empty tables with their primary keys in place to everything there.

use super::Options;
use super::measure::{Sample, Turn};
use super::pair::{DATABASE, Pair, must, pgbench, psql, shell, until_true};
use super::report::{Contest, verdict};

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
    let mut contest =
        Contest::new(&["psql, one stream", "psql, two ranges at once", "PostgreSQL's initial sync", "segue"]);
    for round in 0..options.rounds {
        for contestant in contest.order(round) {
            empty_target(&pair, options).await;
            let sample = match contestant {
                0 => piped(&pair, accounts, wide, 1).await,
                1 => piped(&pair, accounts, wide, 2).await,
                2 => subscribed(&pair).await,
                _ => migrated(&pair).await,
            };
            let rows = count(&pair).await;
            assert_eq!(rows, accounts + wide, "contestant {contestant} has copied every row");
            contest.add(contestant, sample);
        }
    }
    let rows = (accounts + wide) as f64;
    let mut text = format!(
        "{accounts} rows of `pgbench_accounts` and {wide} rows of 20 columns of mixed types into empty tables with their \
         primary keys. For segue: the whole of `segue run --until following`, from its start to its end.\n\n"
    );
    text.push_str(&contest.table(rows, "rows", 0));
    text.push('\n');
    text.push_str(&verdict("segue ÷ one stream", contest.ratio(3, 0), 0.75, true));
    text.push_str(&verdict("\nPeak memory of segue, MiB", pair.peak_mib(), 512.0, false));
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
    // As many as there are processors for the target and the source together: more of them only meet in the index.
    pair.write_spec_with("prod", DATABASE, &TABLES, "copy: { workers: 2 }\n");
    (accounts, wide)
}

/// Makes the target's tables anew, without rows.
pub(super) async fn empty_target(pair: &Pair, options: &Options) {
    let scale = options.scaled(PGBENCH_SCALE);
    pair.target.execute(&format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")).await;
    pair.target.execute(&format!("CREATE DATABASE {DATABASE}")).await;
    shell(&pgbench(&pair.target, DATABASE, &format!("-i -q -I dtp -s {scale}"))).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    must(target.batch_execute(WIDE).await, "make the wide table");
    pair.settle().await;
}

async fn count(pair: &Pair) -> u64 {
    let target = Pair::connect(&pair.target, DATABASE).await;
    let sql = "SELECT (SELECT count(*) FROM pgbench_accounts) + (SELECT count(*) FROM wide)";
    let rows: i64 = must(target.query_one(sql, &[]).await, "count the rows").get(0);
    u64::try_from(rows).unwrap_or_default()
}

/// The floor: `COPY … TO STDOUT` into `COPY … FROM STDIN`, each table in `ranges` at once.
async fn piped(pair: &Pair, accounts: u64, wide: u64, ranges: u64) -> Sample {
    let mut script = String::new();
    for (table, key, rows) in [(TABLES[0], "aid", accounts), (TABLES[1], "id", wide)] {
        for range in 0..ranges {
            let condition = match (ranges, range) {
                (1, _) => String::new(),
                (_, 0) => format!(" WHERE {key} <= {}", rows / 2),
                _ => format!(" WHERE {key} > {}", rows / 2),
            };
            let from = format!("COPY (SELECT * FROM {table}{condition}) TO STDOUT (FORMAT binary)");
            let from = if ranges == 1 { format!("COPY {table} TO STDOUT (FORMAT binary)") } else { from };
            let into = format!("COPY {table} FROM STDIN (FORMAT binary)");
            script.push_str(&format!(
                "{} | {} & pids=\"$pids $!\"\n",
                psql(&pair.source, DATABASE, &from),
                psql(&pair.target, DATABASE, &into)
            ));
        }
        script.push_str("for p in $pids; do wait $p; done; pids=\n");
    }
    let turn = Turn::begin(pair);
    shell(&script).await;
    turn.end(pair)
}

/// PostgreSQL's own way: a subscription that copies.
async fn subscribed(pair: &Pair) -> Sample {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let publish = format!("CREATE PUBLICATION peer FOR TABLE {}", TABLES.join(", "));
    must(source.batch_execute(&publish).await, "publish");
    let target = Pair::connect(&pair.target, DATABASE).await;
    let subscribe = format!(
        "CREATE SUBSCRIPTION peer CONNECTION '{}' PUBLICATION peer",
        Pair::conninfo(&pair.source, DATABASE)
    );
    let mut turn = Turn::begin(pair);
    must(target.batch_execute(&subscribe).await, "subscribe");
    until_true(&target, "SELECT count(*) = 2 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel").await;
    turn.reached();
    must(target.batch_execute("DROP SUBSCRIPTION peer").await, "unsubscribe");
    let sample = turn.end(pair);
    must(source.batch_execute("DROP PUBLICATION peer").await, "unpublish");
    sample
}

async fn migrated(pair: &Pair) -> Sample {
    let turn = Turn::begin(pair);
    pair.segue_to_end(&["run", "--until", "following"]).await;
    let sample = turn.end(pair);
    pair.forget_migration().await;
    sample
}
