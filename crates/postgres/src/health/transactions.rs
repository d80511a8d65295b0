//! Transactions that are in the way of a fence, or of everybody.

use super::OURS;
use crate::asking::Asked;
use crate::birth::{Blocker, QUERY_CHARS_MAX, blocker};
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use std::fmt;
use std::time::Duration;
use tokio_postgres::Row;

/// A transaction that the fence of some tables would wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Whose.
    pub by: Blocker,
    /// For how long it has been open; `None`: this role is not shown.
    pub age: Option<Duration>,
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocker { pid, user, database, application, .. } = &self.by;
        match (self.age, pid) {
            (None, Some(pid)) => write!(
                f,
                "pid {pid} ({user} in {database}, '{application}'; for how long is shown to pg_read_all_stats only)"
            ),
            (Some(_), _) | (None, None) => write!(f, "{}", self.by),
        }
    }
}

/// Who has, or waits for, a lock on one of the tables `$1` or what is below them that conflicts with SHARE ROW EXCLUSIVE:
/// the fence waits behind both. See `fence/blockers.rs` for how a prepared transaction is found.
fn holders() -> String {
    format!(
        "WITH RECURSIVE tree(relation) AS (
             SELECT to_regclass(t)::oid FROM unnest($1::text[]) t
             UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relation)
         SELECT a.pid, coalesce(a.usename::text, p.owner::text, '') AS usename,
                coalesce(a.datname::text, p.database::text, '') AS datname,
                CASE WHEN coalesce(a.backend_type, 'client backend') = 'client backend' THEN coalesce(a.application_name, '')
                     ELSE a.backend_type END AS application,
                coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)) * 1000, 0)::bigint AS age_ms,
                a.pid IS NOT NULL AND a.xact_start IS NULL AS hidden,
                CASE WHEN p.gid IS NULL THEN coalesce(a.state, '') ELSE 'prepared' END AS state,
                left(coalesce(a.query, p.gid, ''), $2) AS query
           FROM (SELECT DISTINCT l.pid, CASE WHEN l.pid IS NULL THEN l.virtualtransaction END AS prepared
                   FROM pg_locks l JOIN tree t ON t.relation = l.relation
                  WHERE l.locktype = 'relation' AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
                    AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) l
           LEFT JOIN pg_stat_activity a ON a.pid = l.pid
           LEFT JOIN pg_locks t ON t.virtualtransaction = l.prepared AND t.pid IS NULL AND t.locktype = 'transactionid'
           LEFT JOIN pg_prepared_xacts p ON p.transaction = t.transactionid
          WHERE (a.pid IS NOT NULL OR p.gid IS NOT NULL) AND NOT {OURS}
                -- One that is shown, and has no transaction, has ended it just now.
            AND (a.pid IS NULL OR a.xact_start IS NOT NULL OR coalesce(a.state, 'disabled') = 'disabled')
          ORDER BY hidden DESC, coalesce(a.xact_start, p.prepared)"
    )
}

/// Transactions that hold a lock on one of `tables`, or on a table below one, which the fence would wait for, and those
/// that wait for such a lock before it; the oldest first. Prepared transactions hold theirs until somebody ends them.
/// Names of tables that are not there are passed over.
pub async fn transactions(client: &impl Asked, tables: &[QualifiedName]) -> Outcome<Vec<Transaction>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let rows = client.rows(&holders(), &[&names, &QUERY_CHARS_MAX]).await;
    let transaction = |row: &Row| {
        let by = blocker(row);
        let age = Duration::from_millis(u64::try_from(by.age_ms).unwrap_or(0));
        Transaction { by, age: (!row.get::<_, bool>("hidden")).then_some(age) }
    };
    Ok(rows.map_err(|e| fault_of(&e))?.iter().map(transaction).collect())
}

/// Sessions that have been idle in a transaction for longer than `idle_ms`, and prepared transactions, in words.
pub(super) async fn lingering(client: &impl Asked, idle_ms: i64) -> Outcome<Vec<String>> {
    let sql = format!(
        "SELECT a.pid, coalesce(a.usename::text, '') AS usename, coalesce(a.datname::text, '') AS datname,
                coalesce(a.application_name, '') AS application,
                (extract(epoch FROM clock_timestamp() - a.state_change) * 1000)::bigint AS age_ms,
                a.state, left(coalesce(a.query, ''), $1) AS query
           FROM pg_stat_activity a
          WHERE a.state LIKE 'idle in transaction%' AND NOT {OURS}
            AND clock_timestamp() - a.state_change > $2::bigint * interval '1 millisecond'
         UNION ALL
         SELECT NULL, p.owner::text, p.database::text, '',
                (extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint, 'prepared', left(p.gid, $1)
           FROM pg_prepared_xacts p
          ORDER BY age_ms DESC"
    );
    let rows = client.rows(&sql, &[&QUERY_CHARS_MAX, &idle_ms]).await.map_err(|e| fault_of(&e))?;
    let words = |row: &Row| {
        let by = blocker(row);
        format!("{by}, for {} s", by.age_ms / 1000)
    };
    Ok(rows.iter().map(words).collect())
}
