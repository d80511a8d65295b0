//! What a database has done so far, as it counts it itself: one row of the statistics.

use crate::asking::Asked;
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::switch::environment::Activity;

/// The counters of this session's database, of all sessions, Segue's own too.
pub async fn activity(client: &impl Asked) -> Outcome<Activity> {
    // `active_time`, in milliseconds, came with 14.
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, xact_commit, xact_rollback,
                      tup_inserted + tup_updated + tup_deleted,
                      ((to_jsonb(s) ->> 'active_time')::double precision * 1000)::bigint
                 FROM pg_stat_database s WHERE datname = current_database()";
    let row = client.row(sql, &[]).await.map_err(|e| fault_of(&e))?;
    let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
    Ok(Activity {
        at_us: row.get(0),
        commits: count(1),
        rollbacks: count(2),
        rows_written: count(3),
        work_us: row.get::<_, Option<i64>>(4).and_then(|us| u64::try_from(us).ok()),
    })
}
