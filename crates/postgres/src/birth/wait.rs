//! Waiting for other people's transactions, and saying whose they are.

use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::sqltext::quote_literal;
use serde::Serialize;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Row};

/// How often the wait is looked at and reported.
const POLL: Duration = Duration::from_millis(250);
/// How much of a blocker's statement is shown, in characters.
pub(crate) const QUERY_CHARS_MAX: i32 = 200;

/// Which step waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitStep {
    /// The slot's creation waits for every transaction that was open, in any database of the server.
    Slot,
    /// The barrier waits until every transaction that began before it has ended.
    Barrier,
}

/// A transaction that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// Server process, if it is a session's.
    pub pid: Option<i32>,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// `application_name`.
    pub application: String,
    /// How long the transaction has been open.
    pub age_ms: i64,
    /// `idle in transaction`, `active`, …; `prepared` for a prepared transaction.
    pub state: String,
    /// Its latest statement, cut short; for a prepared transaction its name.
    pub query: String,
}

/// What a wait is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaitReport {
    /// Which step waits.
    pub step: WaitStep,
    /// For how long.
    pub since_ms: u64,
    /// Whose transactions, the oldest first.
    pub waiting_for: Vec<Blocker>,
}

/// One line, the same as long as the same transactions are waited for; ages are left out of it.
impl fmt::Display for WaitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            WaitStep::Slot => "making the replication slot",
            WaitStep::Barrier => "waiting for transactions older than the slot",
        };
        f.write_str(step)?;
        for (i, blocker) in self.waiting_for.iter().enumerate() {
            write!(f, "{}{blocker}", if i == 0 { ": waits for " } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Blocker { pid, user, database, application, state, query, .. } = self;
        match pid {
            None => write!(f, "the prepared transaction '{query}' of {user} in {database}"),
            Some(pid) => write!(f, "pid {pid} ({user} in {database}, '{application}', {state}: {query})"),
        }
    }
}

/// Transactions with a number below `$1`, sessions' and prepared ones. Numbers are compared on the circle of 2^32, as
/// `age()` does: a transaction is waited for if it is at least as old as the given one.
const BLOCKERS: &str = "
    SELECT a.pid, coalesce(a.usename::text, '') AS usename, coalesce(a.datname::text, '') AS datname,
           coalesce(a.application_name, '') AS application,
           coalesce(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000, 0)::bigint AS age_ms,
           coalesce(a.state, '') AS state, left(coalesce(a.query, ''), $2) AS query
      FROM pg_stat_activity a
     WHERE a.backend_xid IS NOT NULL AND age(a.backend_xid) >= age($1::text::xid) AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT NULL, p.owner::text, p.database::text, '',
           (extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint, 'prepared', left(p.gid, $2)
      FROM pg_prepared_xacts p WHERE age(p.transaction) >= age($1::text::xid)
     ORDER BY age_ms DESC";

/// Transactions that the session `$1` waits for now: slot creation waits for one number after the other.
const WAITED_FOR: &str = "
    SELECT h.pid, coalesce(a.usename::text, '') AS usename, coalesce(a.datname::text, '') AS datname,
           coalesce(a.application_name, '') AS application,
           coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)) * 1000, 0)::bigint AS age_ms,
           coalesce(a.state, 'prepared') AS state, left(coalesce(a.query, p.gid, ''), $2) AS query
      FROM pg_locks w
      JOIN pg_locks h ON h.granted AND h.locktype = w.locktype AND h.transactionid IS NOT DISTINCT FROM w.transactionid
                     AND h.virtualxid IS NOT DISTINCT FROM w.virtualxid
      LEFT JOIN pg_stat_activity a ON a.pid = h.pid
      LEFT JOIN pg_prepared_xacts p ON h.pid IS NULL AND p.transaction = h.transactionid
     WHERE w.pid = $1::text::int AND NOT w.granted AND w.locktype IN ('transactionid', 'virtualxid')
     ORDER BY age_ms DESC";

/// Looks who is waited for.
struct Look<'a> {
    watcher: &'a Client,
    sql: &'static str,
    /// What [`BLOCKERS`] or [`WAITED_FOR`] take as `$1`.
    about: String,
}

impl Look<'_> {
    async fn now(&self) -> Outcome<Vec<Blocker>> {
        let rows = self.watcher.query(self.sql, &[&self.about, &QUERY_CHARS_MAX]).await;
        Ok(rows.map_err(|e| fault_of(&e))?.iter().map(blocker).collect())
    }
}

/// Somebody else's statement without the values in it, which are nobody's business, and without comments. Where it is not
/// plain where a value ends (it was cut off there, or holds a backslash), nothing after it is shown.
fn without_values(sql: &str) -> String {
    let mut shown = String::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        let in_word = shown.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$'));
        let until = |end: &str| rest.find(end).map(|at| at + end.len());
        let (instead, after) = match c {
            '-' if rest.starts_with("--") => (" ", until("\n")),
            '/' if rest.starts_with("/*") => (" ", until("*/")),
            '\'' => ("?", rest[1..].find('\'').map(|end| end + 2).filter(|end| !rest[..*end].contains('\\'))),
            '"' => ("", rest[1..].find('"').map(|end| end + 2)),
            '$' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => ("?", dollar_quoted(rest)),
            '0'..='9' if !in_word => {
                ("?", Some(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())))
            }
            c => {
                shown.push(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        let end = after.unwrap_or(rest.len());
        // A quoted name is no value.
        shown.push_str(if c == '"' { &rest[..end] } else { instead });
        rest = &rest[end..];
    }
    shown
}

/// Where the string that begins with a dollar sign ends.
fn dollar_quoted(sql: &str) -> Option<usize> {
    let tag = &sql[..sql[1..].find('$')? + 2];
    Some(sql[tag.len()..].find(tag)? + 2 * tag.len())
}

/// From a row with the columns that [`BLOCKERS`] has.
pub(crate) fn blocker(row: &Row) -> Blocker {
    let (pid, said): (Option<i32>, &str) = (row.get("pid"), row.get("query"));
    Blocker {
        pid,
        user: row.get("usename"),
        database: row.get("datname"),
        application: row.get("application"),
        age_ms: row.get("age_ms"),
        state: row.get("state"),
        // The name of a prepared transaction is what it is ended by.
        query: if pid.is_some() { without_values(said) } else { said.to_owned() },
    }
}

/// The statement that makes the slot `name` on a server of this major version. From 17 on a standby keeps it in step, if the
/// server is set up so.
pub(crate) fn slot(name: &str, major: i32) -> String {
    let failover = if major >= 17 { ", failover => true" } else { "" };
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput'{failover})", quote_literal(name))
}

/// Makes the permanent logical slot `name` on `maker` while `watcher` looks who is waited for.
///
/// If this future is dropped, the server goes on making the slot: it is a leftover then.
pub(super) async fn make_slot(
    maker: &Client,
    watcher: &Client,
    name: &str,
    report: &mut (impl FnMut(WaitReport) + Send),
) -> Outcome<()> {
    let pid: i32 = maker.query_one("SELECT pg_backend_pid()", &[]).await.map_err(|e| fault_of(&e))?.get(0);
    let make = async {
        let major = "SELECT current_setting('server_version_num')::int / 10000";
        let major: i32 = maker.query_one(major, &[]).await.map_err(|e| fault_of(&e))?.get(0);
        maker.execute(&slot(name, major), &[]).await.map(drop).map_err(|e| fault_of(&e))
    };
    let look = Look { watcher, sql: WAITED_FOR, about: pid.to_string() };
    watched(WaitStep::Slot, make, look, report).await
}

/// Runs `work`, and reports who is waited for as long as it takes.
async fn watched<T>(
    step: WaitStep,
    work: impl Future<Output = Outcome<T>>,
    look: Look<'_>,
    report: &mut (impl FnMut(WaitReport) + Send),
) -> Outcome<T> {
    let began = Instant::now();
    let mut work = pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(POLL) => {}
        }
        let waiting_for = tokio::select! {
            done = &mut work => return done,
            found = look.now() => found?,
        };
        report(WaitReport { step, since_ms: millis(began), waiting_for });
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Waits until every transaction that began before now has ended *and* shows so in new snapshots.
///
/// `xmin` of a snapshot is the right measure: a transaction whose commit is in the log but which still waits for a
/// synchronous standby counts as running, whereas `xmax` may have passed it already.
pub(super) async fn barrier(
    maker: &Client,
    watcher: &Client,
    report: &mut (impl FnMut(WaitReport) + Send),
) -> Outcome<()> {
    let (number, oldest) = functions(maker).await?;
    // In a transaction of its own, which leaves nothing behind.
    maker.batch_execute("BEGIN").await.map_err(|e| fault_of(&e))?;
    let row =
        maker.query_one(&format!("SELECT {number}::text::bigint"), &[]).await.map_err(|e| fault_of(&e))?;
    let mark: i64 = row.get(0);
    maker.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
    let passed = async {
        loop {
            let row = maker
                .query_one(&format!("SELECT {oldest}::text::bigint"), &[])
                .await
                .map_err(|e| fault_of(&e))?;
            if row.get::<_, i64>(0) >= mark {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let look = Look { watcher, sql: BLOCKERS, about: (mark & 0xffff_ffff).to_string() };
    watched(WaitStep::Barrier, passed, look, report).await
}

/// How this version spells "a new transaction number" and "the oldest one running".
async fn functions(client: &Client) -> Outcome<(&'static str, &'static str)> {
    let sql = "SELECT current_setting('server_version_num')::int >= 130000";
    let modern: bool = client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0);
    Ok(if modern {
        ("pg_current_xact_id()", "pg_snapshot_xmin(pg_current_snapshot())")
    } else {
        ("txid_current()", "txid_snapshot_xmin(txid_current_snapshot())")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_kept_in_step_by_standbys_where_they_can() {
        assert_eq!(slot("it's", 16), "SELECT pg_create_logical_replication_slot('it''s', 'pgoutput')");
        let since_17 = "SELECT pg_create_logical_replication_slot('a', 'pgoutput', failover => true)";
        assert_eq!((slot("a", 17).as_str(), slot("a", 18).as_str()), (since_17, since_17));
    }

    #[test]
    fn statements_of_others_are_shown_without_their_values() {
        for (sql, shown) in [
            (
                "UPDATE t1 SET card = '4111', note = 'it''s' WHERE id = 7",
                "UPDATE t1 SET card = ?, note = ?? WHERE id = ?",
            ),
            ("INSERT INTO secrets VALUES ('cut o", "INSERT INTO secrets VALUES (?"),
            ("DO $x$ 'secret' $x$; COMMIT", "DO ?; COMMIT"),
            ("SELECT $$cut off", "SELECT ?"),
            ("EXECUTE p_1(12345)", "EXECUTE p_1(?)"),
            ("/* don't */ UPDATE t SET a = 'secret'", "  UPDATE t SET a = ?"),
            ("SELECT 1 -- it's\n, 'secret'", "SELECT ?  , ?"),
            ("SELECT \"o'clock\" FROM t WHERE a = 'secret'", "SELECT \"o'clock\" FROM t WHERE a = ?"),
            ("SELECT E'it\\'s 4111-x secret', a", "SELECT E?"),
            ("UPDATE t SET a = $1 WHERE b = $12", "UPDATE t SET a = $1 WHERE b = $12"),
            ("UPDATE größe SET ä = 'ü€' || ö", "UPDATE größe SET ä = ? || ö"),
            ("COMMIT", "COMMIT"),
        ] {
            assert_eq!(without_values(sql), shown);
        }
    }
}
