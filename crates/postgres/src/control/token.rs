//! Shutting earlier processes out of a database, whatever state they are in.

use crate::connect::{Endpoint, Warnings, mark_of};
use crate::error::fault_of;
use crate::schema;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use std::fmt;
use std::pin::pin;
use std::time::Duration;
use tokio_postgres::Client;

/// How long transactions of earlier tokens may take to end by themselves.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long they are waited for after they were told to end.
const PATIENCE_AFTER_END: Duration = Duration::from_secs(20);

/// How often sessions that were told to end are looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A session that still holds an earlier token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its server process.
    pub pid: i32,
    /// Role.
    pub user: String,
    /// `application_name`.
    pub application: String,
    /// `active`, `idle in transaction`, …
    pub state: String,
    /// How long its transaction has been open.
    pub age_ms: i64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { pid, user, application, state, age_ms } = self;
        write!(f, "pid {pid} ({user}, '{application}', {state} for {age_ms} ms)")
    }
}

/// Sessions that hold the advisory lock whose key is the hash of `$1`.
const HOLDERS: &str = "
    SELECT a.pid, coalesce(a.usename::text, '') AS usename, coalesce(a.application_name, '') AS application,
           coalesce(a.state, '') AS state,
           coalesce(extract(epoch FROM clock_timestamp() - a.xact_start) * 1000, 0)::bigint AS age_ms
      FROM (SELECT hashtextextended($1, 0) AS key) k
      JOIN pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> $2
                     AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
                     AND l.classid::bigint = (k.key >> 32) & 4294967295 AND l.objid::bigint = k.key & 4294967295
      JOIN pg_stat_activity a ON a.pid = l.pid
     ORDER BY a.xact_start";

/// Raises the migration's token in one database: when this returns, no transaction of an earlier token is open there
/// and none can begin, and what they committed is durable, also what they did not wait for. Makes Segue's schema what it
/// should be before.
///
/// Then ends what earlier processes, and earlier attempts of this one, have left there: a process that is stopped or
/// cut off would otherwise keep the slot, the replication origin, or a snapshot for as long as its sessions live.
/// The caller must not have sessions from [`Endpoint::marked`] open.
///
/// Transactions that do not end by themselves in [`PATIENCE`] are terminated if `may_terminate`, else named in the
/// fault. Returns those that were terminated.
pub async fn shut_out(
    endpoint: &Endpoint,
    migration: &str,
    token: i64,
    may_terminate: bool,
) -> Outcome<Vec<Holder>> {
    let (mut raiser, warnings) = endpoint.connect_heard("token").await?;
    schema::ensure(&mut raiser).await?;
    let ended = raise((&raiser, &warnings), (endpoint, migration), token, may_terminate).await?;
    endpoint.keep(raiser);
    Ok(ended)
}

/// [`shut_out`], in a session whose warnings are counted.
async fn raise(
    (raiser, warnings): (&Client, &Warnings),
    (endpoint, migration): (&Endpoint, &str),
    token: i64,
    may_terminate: bool,
) -> Outcome<Vec<Holder>> {
    let failed = |e| fault_of(&e).during(format_args!("shutting earlier processes out of {endpoint}"));
    let pid: i32 = raiser.query_one("SELECT pg_backend_pid()", &[]).await.map_err(failed)?.get(0);
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&migration, &token];
    let heard_before = warnings.heard();
    let mut raise = pin!(async {
        raiser.execute("SELECT segue.raise_token($1, $2)", &parameters).await.map_err(failed)?;
        if warnings.heard() > heard_before {
            let what = format!("{endpoint} warned while the token was raised: it may not be on its standbys");
            return Err(Fault::retry("SEGUE-TOKEN-STANDBY", what));
        }
        Ok(())
    });
    tokio::select! {
        done = &mut raise => {
            done?;
            end_left_over(raiser, endpoint, migration).await?;
            return Ok(Vec::new());
        }
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let watcher = endpoint.connect("watch").await?;
    // `segue.enter` and `segue.raise_token` take this lock.
    let holders = holders(&watcher, &format!("segue:{migration}"), pid).await?;
    if holders.is_empty() && waits_for_a_standby(&watcher, pid).await? {
        // Nobody is in the way: the commit waits, as everybody's on that server. It ends when they do.
        raise.await?;
        end_left_over(&watcher, endpoint, migration).await?;
        return Ok(Vec::new());
    }
    if !may_terminate {
        return Err(still_held(endpoint, &holders, "they were not to be terminated"));
    }
    for holder in &holders {
        let ended = watcher.execute("SELECT pg_terminate_backend($1)", &[&holder.pid]).await;
        ended.map_err(|e| still_held(endpoint, &holders, &fault_of(&e).what))?;
    }
    match tokio::time::timeout(PATIENCE_AFTER_END, raise).await {
        Ok(done) => done?,
        Err(_) => return Err(still_held(endpoint, &holders, "they did not end when they were terminated")),
    };
    end_left_over(&watcher, endpoint, migration).await?;
    Ok(holders)
}

/// Ends every session of the migration that is left over. They can write nothing any more; what they hold is in the way.
async fn end_left_over(watcher: &Client, endpoint: &Endpoint, migration: &str) -> Outcome<()> {
    let until = tokio::time::Instant::now() + PATIENCE_AFTER_END;
    let pid: i32 = watcher.query_one("SELECT pg_backend_pid()", &[]).await.map_err(|e| fault_of(&e))?.get(0);
    let mut ended: Vec<i32> = Vec::new();
    loop {
        let left = holders(watcher, &mark_of(migration), pid).await?;
        if left.is_empty() {
            return Ok(());
        }
        if tokio::time::Instant::now() > until {
            return Err(still_held(endpoint, &left, "they did not end when they were terminated"));
        }
        for holder in left.iter().filter(|holder| !ended.contains(&holder.pid)) {
            tracing::debug!("ending a session that is left over on {endpoint}: {holder}");
            let end = watcher.execute("SELECT pg_terminate_backend($1)", &[&holder.pid]).await;
            end.map_err(|e| still_held(endpoint, &left, &fault_of(&e).what))?;
        }
        ended = left.iter().map(|holder| holder.pid).collect();
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn waits_for_a_standby(watcher: &Client, pid: i32) -> Outcome<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')";
    Ok(watcher.query_one(sql, &[&pid]).await.map_err(|e| fault_of(&e))?.get(0))
}

async fn holders(watcher: &Client, lock: &str, but: i32) -> Outcome<Vec<Holder>> {
    let rows = watcher.query(HOLDERS, &[&lock, &but]).await.map_err(|e| fault_of(&e))?;
    Ok(rows
        .iter()
        .map(|row| Holder {
            pid: row.get("pid"),
            user: row.get("usename"),
            application: row.get("application"),
            state: row.get("state"),
            age_ms: row.get("age_ms"),
        })
        .collect())
}

fn still_held(endpoint: &Endpoint, holders: &[Holder], why: &str) -> Fault {
    let named: Vec<String> = holders.iter().map(ToString::to_string).collect();
    Fault::operator(
        "SEGUE-STRAGGLER",
        format!("sessions of an earlier process still write to {endpoint}: {} ({why})", named.join(", ")),
        "end them with SELECT pg_terminate_backend(pid), then start again",
    )
}
