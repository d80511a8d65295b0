//! What each contestant does to copy tables, and how long it takes.

use super::super::measure::{Sample, Turn};
use super::super::pair::{DATABASE, Pair, must, program, psql, shell, until_true};
use super::write_spec;

/// A table, and what its first half is.
pub(super) struct Part {
    pub(super) table: &'static str,
    first_half: String,
}

impl Part {
    pub(super) fn new(table: &'static str, first_half: impl Into<String>) -> Part {
        Part { table, first_half: first_half.into() }
    }
}

/// The floor: `COPY … TO STDOUT` into `COPY … FROM STDIN`, each table in `ranges` and so many tables at once.
pub(super) async fn piped(pair: &Pair, parts: &[Part], ranges: usize, tables: usize) -> Sample {
    let mut script = String::new();
    for together in parts.chunks(tables) {
        for Part { table, first_half } in together {
            for range in 0..ranges {
                let from = match (ranges, range) {
                    (1, _) => (*table).to_owned(),
                    (_, 0) => format!("(SELECT * FROM {table} WHERE {first_half})"),
                    _ => format!("(SELECT * FROM {table} WHERE NOT ({first_half}))"),
                };
                script.push_str(&format!(
                    "{} | {} & pids=\"$pids $!\"\n",
                    psql(&pair.source, DATABASE, &format!("COPY {from} TO STDOUT (FORMAT binary)")),
                    psql(&pair.target, DATABASE, &format!("COPY {table} FROM STDIN (FORMAT binary)"))
                ));
            }
        }
        script.push_str("for p in $pids; do wait $p; done; pids=\n");
    }
    let turn = Turn::begin(pair);
    shell(&script).await;
    turn.end(pair)
}

/// PostgreSQL's own way: a subscription that copies.
pub(super) async fn subscribed(pair: &Pair, parts: &[Part]) -> Sample {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let tables: Vec<&str> = parts.iter().map(|part| part.table).collect();
    let publish = format!("CREATE PUBLICATION peer FOR TABLE {}", tables.join(", "));
    must(source.batch_execute(&publish).await, "publish");
    let target = Pair::connect(&pair.target, DATABASE).await;
    let subscribe = format!(
        "CREATE SUBSCRIPTION peer CONNECTION '{}' PUBLICATION peer",
        Pair::conninfo(&pair.source, DATABASE)
    );
    let all =
        format!("SELECT count(*) = {} AND bool_and(srsubstate = 'r') FROM pg_subscription_rel", tables.len());
    let mut turn = Turn::begin(pair);
    must(target.batch_execute(&subscribe).await, "subscribe");
    until_true(&target, &all).await;
    turn.reached();
    must(target.batch_execute("DROP SUBSCRIPTION peer").await, "unsubscribe");
    let sample = turn.end(pair);
    must(source.batch_execute("DROP PUBLICATION peer").await, "unpublish");
    sample
}

/// `pgcopydb clone` into a database without tables: it makes them, and their keys when the rows are there.
pub(super) async fn cloned(pair: &Pair) -> Sample {
    pair.fresh_target().await;
    pair.settle().await;
    let programs = program("pg_dump");
    let clone = format!(
        "export PATH=$(dirname {programs}):$PATH; DIR=$(mktemp -d); pgcopydb clone --restart --no-owner --no-acl --table-jobs 2 --index-jobs 2 \
         --dir \"$DIR\" --source '{}' --target '{}' >/dev/null; rm -r \"$DIR\"",
        Pair::conninfo(&pair.source, DATABASE),
        Pair::conninfo(&pair.target, DATABASE)
    );
    let turn = Turn::begin(pair);
    shell(&clone).await;
    turn.end(pair)
}

/// The whole of `segue run --until following`.
pub(super) async fn migrated(pair: &Pair, tables: &[&str]) -> Sample {
    write_spec(pair, tables);
    let turn = Turn::begin(pair);
    pair.segue_to_end(&["run", "--until", "following"]).await;
    let sample = turn.end(pair);
    pair.forget_migration().await;
    sample
}
