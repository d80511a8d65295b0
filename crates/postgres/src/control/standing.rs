//! What verifications have left behind: when each table was last compared in full, and which differences are open.

use super::Control;
use segue_engine::ports::Outcome;
use segue_engine::verify::at_rest::UNSETTLED_MAX;
use segue_model::table::TableId;
use std::collections::BTreeMap;

/// So many open differences are counted; more are as good as these.
const OPEN_MAX: u64 = 10_000;

/// When a table was last compared in full, in microseconds since 1970 by the database's clock.
pub type Verified = BTreeMap<TableId, i64>;

/// Where the comparison of both sides stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The moment of this answer, in microseconds since 1970 by the database's clock.
    pub now_us: i64,
    /// The last digest verification of each table that has gone all through it.
    pub verified: Verified,
    /// Differences that verifications, live comparison and comparisons at rest have found and that are open.
    pub open: u64,
}

impl Control {
    /// Looks where the comparison stands. Verifications that began before `born_us` were of another copy of the rows.
    ///
    /// A difference is open until it is repaired, its row is found equal by whoever found it, or its table was compared in
    /// full since without a row left unsettled. What that verification found again has a row of its own.
    ///
    /// A verification does not count if something was written past a fence after it began, nor if it left more rows
    /// unsettled than are remembered, or began before `live_us`, when this process did: it remembers none of them then.
    /// One that was cut off is as old as what is oldest in it.
    pub async fn standing(&self, born_us: i64, live_us: i64) -> Outcome<Standing> {
        let since_live = "to_timestamp($2::bigint / 1000000.0)";
        let sql = format!(
            "WITH compared AS (
                 SELECT (t ->> 'table_id')::int AS table_id, v.started_at,
                        CASE WHEN coalesce((t ->> 'ranges_resumed')::bigint, 0) = 0 THEN v.ended_at
                             ELSE (SELECT min(r.at) FROM segue.verified_range r
                                    WHERE r.verification = v.id AND r.table_id = (t ->> 'table_id')::int) END AS as_of,
                        coalesce(t #>> '{{counts,hot}}' = '0', false) AS settled,
                        coalesce((v.body #>> '{{report,hot}}')::bigint, 0) <= {UNSETTLED_MAX}
                            AND coalesce((t #>> '{{counts,forgotten}}')::bigint, 0) = 0
                            AND v.started_at >= {since_live} AS remembered
                   FROM segue.verification v CROSS JOIN LATERAL jsonb_array_elements(v.body #> '{{report,tables}}') t
                  WHERE v.migration = $1 AND v.mode = 'digest' AND v.ended_at IS NOT NULL
                    AND coalesce(t ->> 'complete' = 'true', false)
                    AND v.started_at >= to_timestamp($3::bigint / 1000000.0)),
             counting AS (SELECT c.table_id, max(c.as_of) AS as_of FROM compared c
                  WHERE (c.settled OR c.remembered) AND c.started_at > coalesce((SELECT max(j.at) FROM segue.journal j
                            WHERE j.migration = $1 AND j.kind = 'stray'), '-infinity')
                  GROUP BY c.table_id)
             SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us,
                    coalesce((SELECT array_agg(x.table_id ORDER BY x.table_id) FROM counting x), '{{}}') AS tables,
                    coalesce((SELECT array_agg((extract(epoch FROM x.as_of) * 1000000)::bigint ORDER BY x.table_id)
                                FROM counting x), '{{}}') AS ended,
                    (SELECT count(DISTINCT (o.table_id, o.key)) FROM (
                         SELECT d.table_id, coalesce(d.key::text, d.no::text) AS key FROM segue.divergence d
                          WHERE d.migration = $1 AND NOT d.repaired AND d.equal_at IS NULL
                            AND NOT EXISTS (SELECT FROM compared c WHERE c.table_id = d.table_id AND c.settled
                                               AND c.started_at > d.found_at)
                          LIMIT {OPEN_MAX}) o) AS open"
        );
        let session = self.session().await?;
        let row = session.query_one(&sql, &[&self.migration, &live_us, &born_us]).await;
        let row = row.map_err(|e| self.failed(&e))?;
        let (tables, ended): (Vec<i32>, Vec<i64>) = (row.get("tables"), row.get("ended"));
        let verified = tables.into_iter().map(|table| TableId(table.unsigned_abs())).zip(ended).collect();
        let open = u64::try_from(row.get::<_, i64>("open")).unwrap_or(0);
        Ok(Standing { now_us: row.get("now_us"), verified, open })
    }
}
