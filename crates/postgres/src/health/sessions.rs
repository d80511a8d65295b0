//! Sessions of the application: how many there are and may be, and what they hold that cannot move with them.
//!
//! Seen from outside: advisory locks of the session, and temporary tables. Cursors WITH HOLD are shown to their own session
//! only (`pg_cursors`), and so is what a session listens to (`pg_listening_channels`); a session whose latest statement was
//! LISTEN is named as a hint, one that has said something else since is not seen.

use super::OURS;
use crate::asking::Asked;
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use tokio_postgres::Row;

/// A session of somebody's, and not a process of the server. What kind it is, is hidden like the rest.
pub(super) const IS_CLIENT: &str = "coalesce(a.backend_type, CASE WHEN a.datid IS NOT NULL AND a.usesysid IS NOT NULL \
     THEN 'client backend' END, '') = 'client backend'";
/// What the streams' own sessions stage large values in (see `apply/sql.rs`), as a literal.
const OURS_TABLE: &str = "'segue_large'";
/// So many names of locks or tables are listed.
const NAMES_MAX: usize = 5;

/// A session that holds what cannot move with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatefulSession {
    /// Process number, and when it began in microseconds since 1970, which together are never used again; `None` where the
    /// server does not tell whose it is.
    pub session: Option<(i32, Option<i64>)>,
    /// It is sure to hold it beyond its transaction. An advisory lock does not tell whether it is the transaction's: of a
    /// session in a transaction this is not known. Whether it is in one may be hidden: then it is taken for sure.
    pub is_certain: bool,
    /// Who holds what.
    pub words: String,
}

/// Sessions of the application in this database, Segue's own left out.
pub async fn application_sessions(client: &impl Asked) -> Outcome<u64> {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity a
          WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND {IS_CLIENT} AND NOT {OURS}"
    );
    let count: i64 = client.row(&sql, &[]).await.map_err(|e| fault_of(&e))?.get(0);
    Ok(u64::try_from(count).unwrap_or(0))
}

/// How many more sessions an ordinary role can open in this database: what `max_connections` leaves without the reserved
/// ones, or the database's own limit if that is less.
pub async fn free_connections(client: &impl Asked) -> Outcome<u64> {
    let sql = format!(
        "SELECT least(current_setting('max_connections')::bigint
                    - current_setting('superuser_reserved_connections')::bigint
                    - coalesce(current_setting('reserved_connections', true)::bigint, 0) - used.anywhere,
                  CASE WHEN d.datconnlimit >= 0 THEN d.datconnlimit - used.here END)
           FROM pg_database d, (SELECT count(*) AS anywhere, count(*) FILTER (WHERE a.datname = current_database()) AS here
                                  FROM pg_stat_activity a WHERE {IS_CLIENT}) used
          WHERE d.datname = current_database()"
    );
    let free: i64 = client.row(&sql, &[]).await.map_err(|e| fault_of(&e))?.get(0);
    Ok(u64::try_from(free).unwrap_or(0))
}

/// Sessions of the application in this database that hold what cannot move with them. See above for what is not seen.
pub async fn sessions_with_state(client: &impl Asked) -> Outcome<Vec<StatefulSession>> {
    let mut found = advisory_locks(client).await?;
    found.extend(temporary_tables(client).await?);
    found.extend(listeners(client).await?);
    Ok(found)
}

/// What every query below says about a session.
const SESSION: &str =
    "a.pid, (extract(epoch FROM a.backend_start) * 1000000)::bigint AS began_us, coalesce(a.usename::text, '') AS usename,
     coalesce(a.application_name, '') AS application";

fn stateful(row: &Row, is_certain: bool, holds: &str) -> StatefulSession {
    let (pid, user, application): (i32, &str, &str) =
        (row.get("pid"), row.get("usename"), row.get("application"));
    StatefulSession {
        session: Some((pid, row.get("began_us"))),
        is_certain,
        words: format!("pid {pid} ({user}, '{application}') {holds}"),
    }
}

fn names(all: &[String]) -> String {
    let shown = all[..all.len().min(NAMES_MAX)].join(", ");
    if all.len() > NAMES_MAX { format!("{shown} and {} more", all.len() - NAMES_MAX) } else { shown }
}

async fn advisory_locks(client: &impl Asked) -> Outcome<Vec<StatefulSession>> {
    // Of a session that is hidden, or that tells nobody what it does, it is not known whether it is in a transaction: its
    // locks count as its own. Two numbers are stored as such, one as its two halves.
    let sql = format!(
        "SELECT {SESSION}, coalesce(a.state IN ('idle', 'disabled'), true) AS certain,
                array_agg(CASE l.objsubid WHEN 1 THEN (l.classid::bigint << 32 | l.objid::bigint)::text
                          ELSE format('(%s, %s)', l.classid::bigint::bit(32)::int, l.objid::bigint::bit(32)::int) END
                          ORDER BY l.classid, l.objid) AS locks
           FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
          WHERE l.locktype = 'advisory' AND l.granted AND a.datname = current_database()
            AND l.database = a.datid AND {IS_CLIENT} AND NOT {OURS}
          GROUP BY a.pid, a.backend_start, a.usename, a.application_name, a.state ORDER BY a.pid"
    );
    let rows = client.rows(&sql, &[]).await.map_err(|e| fault_of(&e))?;
    let session = |row: &Row| {
        let locks: Vec<String> = row.get("locks");
        let holds =
            format!("holds the advisory lock{} {}", if locks.len() == 1 { "" } else { "s" }, names(&locks));
        stateful(row, row.get("certain"), &holds)
    };
    Ok(rows.iter().map(session).collect())
}

async fn temporary_tables(client: &impl Asked) -> Outcome<Vec<StatefulSession>> {
    let tables = format!(
        "SELECT n.nspname::text AS nspname, substr(n.nspname, 9)::int AS no, min(r.rolname::text) AS owner,
                array_agg(c.relname::text ORDER BY c.relname) AS tables
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname ~ '^pg_temp_[0-9]+$'
           JOIN pg_roles r ON r.oid = c.relowner
          WHERE c.relkind IN ('r', 'p', 'v') AND c.relname <> {OURS_TABLE} GROUP BY n.nspname"
    );
    let version = "SELECT current_setting('server_version_num')::int >= 160000";
    if client.row(version, &[]).await.map_err(|e| fault_of(&e))?.get(0) {
        // From 16 on the schema's number is the session's. A schema without one was left behind by a crash.
        let sql = format!(
            "SELECT {SESSION}, t.tables FROM ({tables}) t JOIN pg_stat_activity a ON a.pid = pg_stat_get_backend_pid(t.no)
              WHERE a.datname = current_database() AND NOT {OURS} ORDER BY a.pid"
        );
        let rows = client.rows(&sql, &[]).await.map_err(|e| fault_of(&e))?;
        let session = |row: &Row| {
            let tables: Vec<String> = row.get("tables");
            stateful(row, true, &format!("has made temporary tables: {}", names(&tables)))
        };
        return Ok(rows.iter().map(session).collect());
    }
    let sql = format!("SELECT t.nspname, t.owner, t.tables FROM ({tables}) t ORDER BY t.no");
    let rows = client.rows(&sql, &[]).await.map_err(|e| fault_of(&e))?;
    let session = |row: &Row| {
        let (schema, owner, tables): (&str, &str, Vec<String>) = (row.get(0), row.get(1), row.get(2));
        let words = format!(
            "a session of {owner} has made temporary tables: {} (or has left them behind in a crash: {schema})",
            names(&tables)
        );
        StatefulSession { session: None, is_certain: true, words }
    };
    Ok(rows.iter().map(session).collect())
}

async fn listeners(client: &impl Asked) -> Outcome<Vec<StatefulSession>> {
    let sql = format!(
        "SELECT {SESSION} FROM pg_stat_activity a
          WHERE a.datname = current_database() AND a.query ~* '^\\s*listen\\M' AND {IS_CLIENT} AND NOT {OURS} ORDER BY a.pid"
    );
    let rows = client.rows(&sql, &[]).await.map_err(|e| fault_of(&e))?;
    Ok(rows.iter().map(|row| stateful(row, true, "listens for notifications")).collect())
}
