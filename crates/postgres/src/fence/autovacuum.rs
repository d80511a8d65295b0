//! Keeping autovacuum away from the tables while their locks are needed.
//!
//! The fence's lock conflicts with VACUUM and ANALYZE, and a lock that is waited for more briefly than `deadlock_timeout`
//! never makes the server cancel an autovacuum. So it is turned off for the tables before the switch, the ones that run
//! are waited for, and what was set is remembered beside the ownership and put back: after the switch, when it is undone,
//! and at a start after a crash. A vacuum against wraparound comes whatever is set: it is named, for a gate.

use super::prepare::bounded;
use crate::asking::Asked;
use crate::birth::{Authority, Blocker};
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How often running vacuums are looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Longer than `deadlock_timeout` usually is, so that an autovacuum in the way is cancelled by the server. Nobody waits
/// behind us: the lock conflicts neither with readers' nor with writers'.
const LOCK_MS: u32 = 3_000;

/// A vacuum or analyze that runs on one of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Running {
    /// Whose, and what it says it does.
    pub by: Blocker,
    /// An autovacuum's that is not cancelled for anybody's lock.
    pub against_wraparound: bool,
}

/// Turns autovacuum off for every table that carries the fence, and remembers what was set. Can be repeated. Returns the
/// tables for which it was not off yet.
///
/// Takes SHARE UPDATE EXCLUSIVE, which neither readers nor writers notice.
pub async fn turn_off(client: &Client, authority: Authority<'_>) -> Outcome<Vec<String>> {
    let sql =
        "SELECT c.relation, c.sql_name FROM segue.fence_carriers($1) c JOIN pg_class k ON k.oid = c.relation
          WHERE k.relkind = 'r'";
    let rows = client.query(sql, &[&authority.0]).await.map_err(|e| fault_of(&e))?;
    let mut done = Vec::new();
    for row in &rows {
        let (relation, table): (u32, &str) = (row.get(0), row.get(1));
        let name = segue_model::sqltext::quote_literal(authority.0);
        let call = format!("SELECT segue.autovacuum_off({name}, {relation})");
        let off = bounded(client, authority, &call, (&[relation], LOCK_MS)).await;
        if off.map_err(|f| f.during(format_args!("turning autovacuum off for {table}")))? {
            done.push(table.to_owned());
        }
    }
    Ok(done)
}

/// Puts back what was set, exactly, except where somebody has set something else since. Can be repeated, and needs no
/// token: whoever turned it off is over. Returns the tables.
pub async fn put_back(client: &Client, migration: &str) -> Outcome<Vec<String>> {
    let sql = "SELECT a.relation, coalesce(a.relation::regclass::text, '') FROM segue.autovacuum a
          WHERE a.migration = $1 ORDER BY a.relation";
    let rows = client.query(sql, &[&migration]).await.map_err(|e| fault_of(&e))?;
    let mut done = Vec::new();
    for row in &rows {
        let (relation, table): (u32, &str) = (row.get(0), row.get(1));
        let name = segue_model::sqltext::quote_literal(migration);
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = {LOCK_MS}; SELECT segue.autovacuum_back({name}, {relation}); COMMIT"
        );
        let back = crate::birth::bounded_lock(client, &sql).await;
        back.map_err(|f| f.during(format_args!("putting autovacuum's settings of {table} back")))?;
        done.push(table.to_owned());
    }
    Ok(done)
}

/// Vacuums and analyzes that run on the tables or their TOAST tables now, the oldest first. What an autovacuum does is
/// only shown to members of `pg_read_all_stats`.
pub async fn running(client: &impl Asked, migration: &str) -> Outcome<Vec<Running>> {
    let sql =
        "SELECT a.pid, coalesce(a.usename::text, '') AS usename, coalesce(a.datname::text, '') AS datname,
                coalesce(nullif(a.application_name, ''), a.backend_type, '') AS application,
                coalesce(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000, 0)::bigint AS age_ms,
                coalesce(a.state, '') AS state, left(coalesce(a.query, ''), $2) AS query,
                coalesce(a.query LIKE 'autovacuum:%(to prevent wraparound)', false) AS against_wraparound
           FROM pg_stat_activity a
          WHERE (a.backend_type = 'autovacuum worker' OR a.query ~* '^\\s*(vacuum|analyze)')
            AND a.datname = current_database() AND a.pid <> pg_backend_pid()
            AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.locktype = 'relation'
                  AND l.mode = 'ShareUpdateExclusiveLock'
                  AND l.relation IN (SELECT unnest(ARRAY[k.oid, k.reltoastrelid])
                        FROM segue.fence_carriers($1) c JOIN pg_class k ON k.oid = c.relation))
          ORDER BY age_ms DESC";
    let rows = client.rows(sql, &[&migration, &crate::birth::QUERY_CHARS_MAX]).await;
    let running =
        |row| Running { by: crate::birth::blocker(row), against_wraparound: row.get("against_wraparound") };
    Ok(rows.map_err(|e| fault_of(&e))?.iter().map(running).collect())
}

/// Waits until nothing of that runs, but no longer than `limit`. Returns what still does then.
pub async fn wait_for_running(client: &Client, migration: &str, limit: Duration) -> Outcome<Vec<Running>> {
    let began = Instant::now();
    loop {
        let running = running(client, migration).await?;
        if running.is_empty() || began.elapsed() >= limit {
            return Ok(running);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Tables for which a vacuum against wraparound is due once `transactions` more have run, or is due now: turning
/// autovacuum off does not keep it away.
pub async fn due_against_wraparound(
    client: &impl Asked,
    migration: &str,
    transactions: i64,
) -> Outcome<Vec<String>> {
    let sql = "SELECT DISTINCT c.sql_name
           FROM segue.fence_carriers($1) c JOIN pg_class m ON m.oid = c.relation
           JOIN pg_class k ON k.oid IN (m.oid, m.reltoastrelid) AND k.relkind IN ('r', 't')
           CROSS JOIN LATERAL (SELECT
                min(CASE split_part(o, '=', 1) WHEN 'autovacuum_freeze_max_age' THEN split_part(o, '=', 2)::bigint END),
                min(CASE split_part(o, '=', 1) WHEN 'autovacuum_multixact_freeze_max_age' THEN split_part(o, '=', 2)::bigint END)
                FROM unnest(k.reloptions) o) set_for(xids, multixacts)
          WHERE age(k.relfrozenxid) + $2::bigint >
                    least(current_setting('autovacuum_freeze_max_age')::bigint, set_for.xids)
             OR mxid_age(k.relminmxid) + $2::bigint >
                    least(current_setting('autovacuum_multixact_freeze_max_age')::bigint, set_for.multixacts)
          ORDER BY c.sql_name";
    let rows = client.rows(sql, &[&migration, &transactions]).await.map_err(|e| fault_of(&e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
