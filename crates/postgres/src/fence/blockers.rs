//! Who holds a lock on a fenced table that we would wait for.

use crate::birth::{Blocker, QUERY_CHARS_MAX, blocker};
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use tokio_postgres::Client;

/// Sessions, autovacuum workers and prepared transactions with a lock on one of the relations `$1` that conflicts with
/// SHARE ROW EXCLUSIVE or, if `$4`, with ACCESS EXCLUSIVE. A prepared transaction has no process, and its locks carry the
/// virtual number of the session that prepared it (its own only after a restart): what it is called stands in the lock on
/// its own number.
const HOLDERS: &str = "
    SELECT a.pid, coalesce(a.usename::text, p.owner::text, '') AS usename,
           coalesce(a.datname::text, p.database::text, '') AS datname,
           CASE WHEN a.backend_type = 'client backend' THEN coalesce(a.application_name, '')
                ELSE coalesce(a.backend_type, '') END AS application,
           coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)) * 1000, 0)::bigint AS age_ms,
           CASE WHEN p.gid IS NULL THEN coalesce(a.state, '') ELSE 'prepared' END AS state,
           left(coalesce(a.query, p.gid, ''), $2) AS query
      FROM (SELECT DISTINCT l.pid, CASE WHEN l.pid IS NULL THEN l.virtualtransaction END AS prepared
              FROM pg_locks l
             WHERE l.granted AND l.locktype = 'relation' AND l.relation = ANY ($1::oid[])
               AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
               AND (l.pid IS NULL OR l.pid NOT IN ($3, pg_backend_pid()))
               AND ($4 OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))) l
      LEFT JOIN pg_stat_activity a ON a.pid = l.pid
      LEFT JOIN pg_locks t ON t.virtualtransaction = l.prepared AND t.pid IS NULL AND t.locktype = 'transactionid'
      LEFT JOIN pg_prepared_xacts p ON p.transaction = t.transactionid
     WHERE a.pid IS NOT NULL OR p.gid IS NOT NULL
     ORDER BY age_ms DESC";

/// Who holds such a lock now, but for the session with process number `but`; the oldest first.
pub(super) async fn holders(
    client: &Client,
    relations: &[u32],
    but: i32,
    readers_too: bool,
) -> Outcome<Vec<Blocker>> {
    let rows = client.query(HOLDERS, &[&relations, &QUERY_CHARS_MAX, &but, &readers_too]).await;
    Ok(rows.map_err(|e| fault_of(&e))?.iter().map(blocker).collect())
}

/// Who holds a lock that a fence of `migration` would wait for, but for the session with process number `but`.
pub async fn blockers(client: &Client, migration: &str, but: i32) -> Outcome<Vec<Blocker>> {
    let sql = "SELECT coalesce(array_agg(c.relation), '{}') FROM segue.fence_carriers($1) c";
    let relations: Vec<u32> = client.query_one(sql, &[&migration]).await.map_err(|e| fault_of(&e))?.get(0);
    holders(client, &relations, but, false).await
}
