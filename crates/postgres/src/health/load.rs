//! How busy a server is with others than Segue, in one look that may be taken twice a second.

use super::OURS;
use super::replicas::{Standing, standings};
use super::sessions::IS_CLIENT;
use crate::asking::Asked;
use crate::error::fault_of;
use segue_engine::ports::Outcome;

/// How busy a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The server's clock, in microseconds since 1970.
    pub clock_us: u64,
    /// Sessions of others that are doing something, in all databases of the server.
    pub active_sessions: u64,
    /// Of them, those that wait for a lock.
    pub lock_waits: u64,
    /// There are sessions of which this role is not shown what they do: both counts lack them.
    pub is_partly_hidden: bool,
    /// Up to where the server's log can be sent to standbys, in bytes from its beginning.
    pub flushed: Option<u64>,
    /// Its standbys, by name.
    pub standbys: Vec<Standing>,
}

/// Takes the look.
pub async fn load(client: &impl Asked) -> Outcome<Load> {
    let sql = format!(
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
                count(*) FILTER (WHERE a.state = 'active'),
                count(*) FILTER (WHERE a.state = 'active' AND a.wait_event_type = 'Lock'),
                -- One that has just begun has no state either.
                NOT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AND count(*) FILTER (WHERE a.state IS NULL) > 0,
                pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn()
                                     ELSE pg_current_wal_flush_lsn() END, '0/0')::bigint
           FROM pg_stat_activity a WHERE {IS_CLIENT} AND NOT {OURS}"
    );
    let counts = async { client.row(&sql, &[]).await.map_err(|e| fault_of(&e)) };
    // Sent together, answered one after the other.
    let (row, standbys) = tokio::try_join!(counts, standings(client))?;
    let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
    Ok(Load {
        clock_us: count(0),
        active_sessions: count(1),
        lock_waits: count(2),
        is_partly_hidden: row.get(3),
        flushed: row.get::<_, Option<i64>>(4).and_then(|at| u64::try_from(at).ok()),
        standbys,
    })
}
