//! Who is at work on the servers now, and for how long.

use super::{Finding, Looks};
use crate::birth::{QUERY_CHARS_MAX, blocker};
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::sqltext::quote_literal;
use segue_model::switch::Side;

/// A transaction this old is not one of many short ones.
const AGE_MS_MAX: i64 = 60_000;

/// The stream cannot be made before every transaction has ended that is open then, in any database of the server; a fence
/// waits for those on its tables. A prepared one ends only by somebody's hand.
pub(super) async fn transactions(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT a.pid, coalesce(a.usename::text, '') AS usename, coalesce(a.datname::text, '') AS datname,
                coalesce(a.application_name, '') AS application,
                (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint AS age_ms,
                coalesce(a.state, '') AS state, left(coalesce(a.query, ''), $1) AS query
           FROM pg_stat_activity a
          WHERE a.xact_start IS NOT NULL AND a.backend_type = 'client backend' AND coalesce(a.application_name, '') NOT LIKE 'segue %'
            AND clock_timestamp() - a.xact_start > $2::bigint * interval '1 millisecond'
         UNION ALL
         SELECT NULL, p.owner::text, p.database::text, '',
                (extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint, 'prepared', left(p.gid, $1)
           FROM pg_prepared_xacts p
          ORDER BY age_ms DESC";
    let mut found = Vec::new();
    for side in Side::ALL {
        let rows = looks.client(side).query(sql, &[&QUERY_CHARS_MAX, &AGE_MS_MAX]).await;
        for row in rows.map_err(|e| fault_of(&e).during(format_args!("asking the {side}")))? {
            let by = blocker(&row);
            let what = format!(
                "{side}: {by}, open for {} s: making the stream, and a switch, wait until it has ended",
                by.age_ms / 1000
            );
            let remedy = match by.pid {
                Some(pid) => format!("SELECT pg_terminate_backend({pid}); -- if it does not end by itself"),
                None => format!(
                    "ROLLBACK PREPARED {}; -- or COMMIT PREPARED, as its transaction manager says, in the database {}",
                    quote_literal(&by.query),
                    by.database
                ),
            };
            found.push(Finding::warn(side, what, remedy));
        }
    }
    Ok(found)
}
