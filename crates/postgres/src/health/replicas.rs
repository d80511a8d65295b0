//! Standbys that stream from a server.

use crate::asking::Asked;
use crate::error::fault_of;
use segue_engine::ports::Outcome;

/// A standby that streams from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its `application_name`, or its address.
    pub name: String,
    /// How far it is behind, in milliseconds; [`u64::MAX`]: this role is not shown.
    pub lag_ms: u64,
}

/// A standby, and the place in the log that it has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which, and how far it is behind by what it has said.
    pub replica: Replica,
    /// Where it is in the log, in bytes from its beginning; `None`: nobody knows.
    pub replayed: Option<u64>,
    /// How much of the log is on its disk, and survives with it; `None`: nobody knows.
    pub flushed: Option<u64>,
}

/// A standby says after everything it has replayed how far it is, and otherwise every `wal_receiver_status_interval`. So
/// one that is at the end of what could be sent is not behind, whatever the last measurement was (an idle one has none);
/// for another it is the last measurement, or, if it has said nothing for more than a second, its silence. A receiver that
/// replays nothing (`pg_receivewal`), a backup and a logical stream are no standbys. To whom the state is not shown nothing else is
/// either, and all but the last may be one.
const REPLICAS: &str =
    "SELECT coalesce(nullif(r.application_name, ''), r.client_addr::text, 'pid ' || r.pid) AS name,
            CASE WHEN r.state IS NULL THEN NULL
                 WHEN r.replay_lsn >= here.flushed THEN 0
                 ELSE greatest(coalesce(extract(epoch FROM r.replay_lag) * 1000, 0),
                               CASE WHEN silence.ms > 1000 THEN silence.ms ELSE 0 END)
            END::bigint AS lag_ms,
            pg_wal_lsn_diff(r.replay_lsn, '0/0')::bigint AS replayed,
            pg_wal_lsn_diff(r.flush_lsn, '0/0')::bigint AS flushed
       FROM pg_stat_replication r
      CROSS JOIN LATERAL (SELECT extract(epoch FROM clock_timestamp() - coalesce(r.reply_time, r.backend_start)) * 1000 AS ms) silence
      CROSS JOIN (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_flush_lsn() END AS flushed) here
      WHERE (r.state IS NULL OR r.state <> 'backup' AND (r.replay_lsn IS NOT NULL OR r.flush_lsn IS NULL))
        AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
      ORDER BY 1";

/// The standbys that stream from this server, by name.
pub async fn replicas(client: &impl Asked) -> Outcome<Vec<Replica>> {
    Ok(standings(client).await?.into_iter().map(|standing| standing.replica).collect())
}

/// As [`replicas`], with their places in the log.
pub async fn standings(client: &impl Asked) -> Outcome<Vec<Standing>> {
    let rows = client.rows(REPLICAS, &[]).await.map_err(|e| fault_of(&e))?;
    let replica = |row: &tokio_postgres::Row| Replica {
        name: row.get(0),
        lag_ms: row.get::<_, Option<i64>>(1).map_or(u64::MAX, |ms| u64::try_from(ms).unwrap_or(0)),
    };
    let place = |row: &tokio_postgres::Row, column: usize| {
        row.get::<_, Option<i64>>(column).and_then(|at| u64::try_from(at).ok())
    };
    let standing = |row: &tokio_postgres::Row| Standing {
        replica: replica(row),
        replayed: place(row, 2),
        flushed: place(row, 3),
    };
    Ok(rows.iter().map(standing).collect())
}
