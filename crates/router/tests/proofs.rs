//! PostgreSQL's own regression statements against what is proved of them: what is proved to be a read takes no other
//! lock than a read's, no transaction id, and is never refused by a read-only transaction.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_router::Catalog;
use segue_testkit::cluster::client_program;
use segue_testkit::{Cluster, Options};
use std::path::Path;
use std::process::Stdio;
use support::clients::regression_statements;
use tokio::process::Command;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Of a default run; `SEGUE_SOAK` takes all.
const OF_DEFAULT_RUN: &[&str] = &["test_setup", "aggregates", "arrays", "limit", "select", "window"];

/// What makes tables, views, functions and operators, and reads them.
const FILES: &[&str] = &[
    "test_setup",
    "create_index",
    "create_aggregate",
    "create_operator",
    "create_view",
    "aggregates",
    "arrays",
    "case",
    "domain",
    "groupingsets",
    "horology",
    "inherit",
    "join",
    "jsonb",
    "limit",
    "partition_join",
    "plpgsql",
    "rangefuncs",
    "rowsecurity",
    "rowtypes",
    "rules",
    "select",
    "select_distinct",
    "select_distinct_on",
    "select_having",
    "select_into",
    "sequence",
    "strings",
    "subselect",
    "tablesample",
    "tsearch",
    "union",
    "update",
    "window",
    "with",
    "xml",
];

async fn run(cluster: &Cluster, statements: &Path, file: &Path) {
    let status = Command::new(client_program("psql"))
        .args(["-X", "-q", "-f"])
        .arg(file)
        .arg(cluster.url("postgres"))
        .env("PG_ABS_SRCDIR", statements)
        .env("PG_ABS_BUILDDIR", "/nowhere")
        .env("PG_LIBDIR", "/nowhere")
        .env("PG_DLSUFFIX", ".so")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .unwrap();
    assert!(status.code().is_some(), "{}: {status}", file.display());
}

async fn column(client: &Client, sql: &str) -> Vec<(String, String)> {
    let text = |row: &tokio_postgres::SimpleQueryRow, index| row.get(index).unwrap_or_default().to_owned();
    let messages = client.simple_query(sql).await.unwrap();
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((text(row, 0), text(row, 1))),
            _ => None,
        })
        .collect()
}

/// Everything in the schema `public` that is a table counts as migrated.
async fn catalog(cluster: &Cluster, client: &Client) -> Catalog {
    let tables = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relkind IN ('r', 'p') AND n.nspname = 'public'";
    let migrated = column(client, tables).await;
    Catalog::read(&cluster.scalar(Catalog::SQL).await.unwrap(), &migrated).unwrap()
}

/// Whether it ran to its end, as a read.
async fn reads(client: &Client, sql: &str) -> bool {
    client.batch_execute("BEGIN READ ONLY; SET LOCAL statement_timeout = '5s'").await.unwrap();
    let outcome = client.simple_query(sql).await;
    if let Err(error) = &outcome {
        let refused = [SqlState::READ_ONLY_SQL_TRANSACTION, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE];
        assert!(!error.code().is_some_and(|code| refused.contains(code)), "{sql}: {error:?}");
    } else {
        let traces = "SELECT locktype, mode FROM pg_locks WHERE pid = pg_backend_pid()
                      AND (locktype = 'advisory' OR mode NOT IN ('AccessShareLock', 'ExclusiveLock'))
                      UNION ALL SELECT 'xid', x::text FROM (SELECT txid_current_if_assigned()) t(x) WHERE x IS NOT NULL";
        assert_eq!(column(client, traces).await, [], "{sql}");
    }
    client.batch_execute("ROLLBACK").await.unwrap();
    outcome.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_proved_a_read_leaves_no_trace() {
    let cluster = Cluster::start(Options::default().with("autovacuum", "off")).await;
    let statements = regression_statements(cluster.major());
    let client = cluster.connect("postgres").await;
    let (mut proved, mut ran) = (0, 0);
    let soak = std::env::var_os("SEGUE_SOAK").is_some();
    for name in FILES.iter().filter(|name| soak || OF_DEFAULT_RUN.contains(name)) {
        let file = statements.join("sql").join(format!("{name}.sql"));
        let text = std::fs::read_to_string(&file).unwrap();
        run(&cluster, &statements, &file).await;
        let catalog = catalog(&cluster, &client).await;
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('\\')).collect();
        for sql in lines.join("\n").split(";\n") {
            if catalog.reads(sql).is_ok() {
                proved += 1;
                ran += usize::from(reads(&client, sql).await);
            }
        }
        println!("{name}: {proved} proved, of which {ran} ran");
    }
    assert!(ran > if soak { 800 } else { 150 }, "{ran} ran, of {proved}");
}
