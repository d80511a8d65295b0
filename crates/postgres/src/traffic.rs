//! Looking at who uses the tables of the side that does not own the writes, and remembering what was seen.
//!
//! A look is a few short statements on catalogs; it reads no table. What it means is [`segue_model::traffic`]'s. The
//! record is a row in the control database, so that it outlives the driver.
//!
//! Other sessions' statements, and even of what kind they are, are shown to members of `pg_read_all_stats` only; without
//! it a session is known by what it holds, and its statement counts as naming nothing.

use crate::control::Lease;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::traffic::{Counters, Look, Record, Session, named_in};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::{Client, Row};

/// As much of a statement as is searched for tables' names.
const STATEMENT_CHARS_MAX: i32 = 4_000;

/// The roots and all that is below them; what is gone is left out.
pub(crate) const TREE: &str = "WITH RECURSIVE tree(relation) AS (
        SELECT to_regclass(t)::oid FROM unnest($1::text[]) t WHERE to_regclass(t) IS NOT NULL
        UNION SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relation)";

/// Looks at `tables`, by their names on this side, and all that is below them.
pub async fn look(client: &Client, migration: &str, tables: &[QualifiedName]) -> Outcome<Look> {
    let failed = |e| fault_of(&e).during("looking who uses the tables");
    let roots: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "{TREE} SELECT c.oid, n.nspname, c.relname,
            coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0) AS scans,
            coalesce(s.n_tup_ins, 0) + coalesce(s.n_tup_upd, 0) + coalesce(s.n_tup_del, 0) AS changes
         FROM tree t JOIN pg_class c ON c.oid = t.relation JOIN pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid"
    );
    let mut look = Look::default();
    let mut by_oid = BTreeMap::new();
    for row in client.query(&sql, &[&roots]).await.map_err(failed)? {
        let name = QualifiedName::new(row.get::<_, &str>(1), row.get::<_, &str>(2)).to_string();
        by_oid.insert(row.get::<_, u32>(0), name.clone());
        look.tables.insert(name, Counters { scans: row.get("scans"), changes: row.get("changes") });
    }
    (look.refused, look.refused_at_us) = refused(client, migration).await?;
    let names: BTreeSet<String> = look.tables.keys().cloned().collect();
    let oids: Vec<u32> = by_oid.keys().copied().collect();
    let sql = "SELECT a.pid, coalesce(a.usename::text, '') AS usename, coalesce(a.application_name, '') AS application,
            coalesce(host(a.client_addr), 'a local socket') AS address,
            coalesce((extract(epoch FROM CASE WHEN a.state = 'idle' THEN a.state_change ELSE clock_timestamp() END)
                 * 1000000)::bigint, 0) AS busy_at_us,
            left(coalesce(a.query, ''), $1) AS statement,
            ARRAY(SELECT DISTINCT l.relation FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'relation'
                     AND l.relation = ANY ($2::oid[])
                     AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) AS holds
         FROM pg_stat_activity a
         WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
           AND (a.backend_type = 'client backend' OR a.backend_type IS NULL AND a.usesysid IS NOT NULL)
           AND coalesce(a.application_name, '') NOT LIKE 'segue %'
         ORDER BY a.backend_start, a.pid";
    let rows = client.query(sql, &[&STATEMENT_CHARS_MAX, &oids]).await.map_err(failed)?;
    look.sessions = rows.iter().map(|row| session(row, &by_oid, &names)).collect();
    look.sessions.extend(prepared(client, &by_oid).await.map_err(failed)?);
    // A crash throws all statistics away, and shows in those of the whole server only.
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
            (extract(epoch FROM greatest(d.stats_reset, b.stats_reset)) * 1000000)::bigint
         FROM pg_stat_database d, pg_stat_bgwriter b WHERE d.datname = current_database()";
    let row = client.query_one(sql, &[]).await.map_err(failed)?;
    (look.at_us, look.reset_at_us) = (row.get(0), row.get(1));
    Ok(look)
}

/// The roots and all that is below them, as they are now.
pub async fn relations(client: &Client, tables: &[QualifiedName]) -> Outcome<Vec<QualifiedName>> {
    let roots: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "{TREE} SELECT n.nspname, c.relname FROM tree t JOIN pg_class c ON c.oid = t.relation
           JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 1, 2"
    );
    let rows = client.query(&sql, &[&roots]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking for the parts of the tables"))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect())
}

/// Prepared transactions that hold a lock on a table. They have no session any more.
async fn prepared(
    client: &Client,
    by_oid: &BTreeMap<u32, String>,
) -> Result<Vec<Session>, tokio_postgres::Error> {
    let oids: Vec<u32> = by_oid.keys().copied().collect();
    // Their locks belong to no process. Which are whose is told by the lock on the transaction's own number.
    let sql = "SELECT p.gid, p.owner::text, array_agg(DISTINCT l.relation) FROM pg_prepared_xacts p
         JOIN pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL
         JOIN pg_locks l ON l.pid IS NULL AND l.virtualtransaction = x.virtualtransaction
              AND l.locktype = 'relation' AND l.relation = ANY ($1::oid[])
        WHERE p.database = current_database()
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) GROUP BY 1, 2 ORDER BY 1";
    let rows = client.query(sql, &[&oids]).await?;
    let session = |row: &Row| Session {
        who: format!("the prepared transaction `{}` of {}", row.get::<_, &str>(0), row.get::<_, &str>(1)),
        holds: row.get::<_, Vec<u32>>(2).iter().filter_map(|oid| by_oid.get(oid).cloned()).collect(),
        ..Session::default()
    };
    Ok(rows.iter().map(session).collect())
}

/// What the server does not count or show of anybody: with it nothing proves that no reads took place.
pub async fn uncounted(client: &Client) -> Outcome<Option<&'static str>> {
    let sql = "SELECT current_setting('track_counts')::bool, current_setting('track_activities')::bool";
    let row = client.query_one(sql, &[]).await;
    let row = row.map_err(|e| fault_of(&e).during("looking what the server counts"))?;
    Ok(match (row.get(0), row.get(1)) {
        (false, _) => Some("track_counts"),
        (true, false) => Some("track_activities"),
        (true, true) => None,
    })
}

fn session(row: &Row, by_oid: &BTreeMap<u32, String>, names: &BTreeSet<String>) -> Session {
    let application: &str = row.get("application");
    let who = format!(
        "{} ({}) at {}, process {}",
        row.get::<_, &str>("usename"),
        if application.is_empty() { "no application name" } else { application },
        row.get::<_, &str>("address"),
        row.get::<_, i32>("pid"),
    );
    let holds = row.get::<_, Vec<u32>>("holds").iter().filter_map(|oid| by_oid.get(oid).cloned()).collect();
    let names = named_in(row.get("statement"), names);
    Session { who, busy_at_us: row.get("busy_at_us"), holds, names }
}

/// How many writes the fence has refused, and when it did the last time. Sequences are not rolled back with the statement.
async fn refused(client: &Client, migration: &str) -> Outcome<(i64, Option<i64>)> {
    let failed = |e| fault_of(&e).during("looking what the fence has refused");
    let mut values = [None, None];
    let names = [format!("refused_{migration}"), format!("refused_at_{migration}")];
    for (value, name) in values.iter_mut().zip(names) {
        // A sequence that was never used has no last value.
        let sql = "SELECT last_value FROM pg_sequences WHERE schemaname = 'segue' AND sequencename = $1";
        let row = client.query_opt(sql, &[&name]).await.map_err(failed)?;
        *value = row.and_then(|row| row.get::<_, Option<i64>>(0));
    }
    Ok((values[0].unwrap_or(0), values[1]))
}

/// What was remembered; `None`: nothing, or nothing that this build can read.
pub async fn remembered(control: &Client, migration: &str) -> Outcome<Option<Record>> {
    let sql = "SELECT body::text FROM segue.traffic WHERE migration = $1";
    let row = control.query_opt(sql, &[&migration]).await.map_err(|e| fault_of(&e))?;
    // A record that cannot be read proves nothing: watching begins anew.
    Ok(row.and_then(|row| serde_json::from_str(row.get(0)).ok()))
}

/// Remembers it, unless a later driver has.
pub async fn remember(control: &Client, migration: &str, lease: &Lease, record: &Record) -> Outcome<()> {
    let body = serde_json::to_string(record)
        .map_err(|e| Fault::bug("SEGUE-TRAFFIC", format!("what was seen cannot be stored: {e}")))?;
    let sql = "INSERT INTO segue.traffic AS t (migration, token, at, body)
         VALUES ($1, $2, clock_timestamp(), $3::text::jsonb)
         ON CONFLICT (migration) DO UPDATE SET token = excluded.token, at = excluded.at, body = excluded.body
          WHERE t.token <= excluded.token";
    control.execute(sql, &[&migration, &lease.token, &body]).await.map_err(|e| fault_of(&e))?;
    Ok(())
}
