//! How much there is to move, how fast it can be read, and how fast the source's log grows: measured, for a plan.
//!
//! Everything here is cheap and bounded: statistics, two looks at the log's end, and one read of a few thousand rows.

use crate::error::fault_of;
use crate::traffic::TREE;
use futures_util::StreamExt;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use std::time::{Duration, Instant};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

/// The read of a sample ends after as many rows …
const SAMPLE_ROWS: u32 = 50_000;
/// … or after this time.
const SAMPLE_TIME: Duration = Duration::from_secs(1);
/// Nobody's lock is waited for.
const LOCK_MS: u32 = 100;
/// Less than this says nothing about a rate.
const SAMPLE_BYTES_MIN: u64 = 1 << 20;

/// Bytes of the indexes of these tables and of all that is below them.
pub async fn index_bytes(client: &Client, tables: &[QualifiedName]) -> Outcome<u64> {
    let sql = format!("{TREE} SELECT coalesce(sum(pg_indexes_size(relation)), 0)::int8 FROM tree");
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let row = client.query_one(&sql, &[&names]).await;
    let bytes: i64 = row.map_err(|e| fault_of(&e).during("measuring the source's indexes"))?.get(0);
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Bytes of log that the server writes in a second, over `window`: all databases of it.
pub async fn log_bytes_per_s(client: &Client, window: Duration) -> Outcome<u64> {
    let end = async || -> Outcome<(u64, Instant)> {
        let row = client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await;
        let position: PgLsn = row.map_err(|e| fault_of(&e).during("looking at the log's end"))?.get(0);
        Ok((u64::from(position), Instant::now()))
    };
    let (first, began) = end().await?;
    tokio::time::sleep(window).await;
    let (last, ended) = end().await?;
    Ok((last.saturating_sub(first) as f64 / (ended - began).as_secs_f64().max(0.001)) as u64)
}

/// Bytes a second at which rows of `table`, one that has rows of its own, come over one connection; `None`: too few of them
/// to tell. At most a second.
pub async fn read_bytes_per_s(client: &Client, table: &QualifiedName) -> Outcome<Option<u64>> {
    let failed = |e: &tokio_postgres::Error| fault_of(e).during(format_args!("reading a sample of {table}"));
    // What is not wanted any more is not sent either: the server ends it.
    let bound =
        format!("SET statement_timeout = {}; SET lock_timeout = {}", SAMPLE_TIME.as_millis(), LOCK_MS);
    client.batch_execute(&bound).await.map_err(|e| failed(&e))?;
    let bytes = sample(client, table).await;
    client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await.map_err(|e| failed(&e))?;
    let (bytes, took) = bytes.map_err(|e| failed(&e))?;
    let rate = (bytes as f64 / took.as_secs_f64().max(0.001)) as u64;
    Ok((bytes >= SAMPLE_BYTES_MIN).then_some(rate))
}

/// Reads rows of `table` alone, not of its partitions, until there are enough or the server ends it; bytes, and the time it took.
async fn sample(client: &Client, table: &QualifiedName) -> Result<(u64, Duration), tokio_postgres::Error> {
    let sql = format!("COPY (SELECT * FROM ONLY {} LIMIT {SAMPLE_ROWS}) TO STDOUT", table.sql());
    let began = Instant::now();
    let is_over = |e: &tokio_postgres::Error| {
        e.code().is_some_and(|code| [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE].contains(code))
    };
    let mut bytes = 0;
    let rows = match client.copy_out(sql.as_str()).await {
        Err(error) if is_over(&error) => return Ok((0, began.elapsed())),
        rows => rows?,
    };
    let mut rows = std::pin::pin!(rows);
    loop {
        match rows.next().await {
            Some(Ok(row)) => bytes += row.len() as u64,
            Some(Err(error)) if is_over(&error) => break,
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    Ok((bytes, began.elapsed()))
}
