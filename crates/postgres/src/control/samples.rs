//! Measurements that outlive the process that made them: what a window of days is judged by.
//!
//! A series is a name and its samples in the order of the database's clock. What they measure is their writer's business.

use super::{Control, Lease, superseded};
use crate::error::is_superseded;
use segue_engine::ports::Outcome;
use std::time::Duration;

/// A sample to be stored: of which series, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSample {
    /// Of which series.
    pub series: &'static str,
    /// Some of many, or the measured value.
    pub part: u64,
    /// How many there were, or 0.
    pub whole: u64,
}

/// A sample as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSample {
    /// When it was stored, in microseconds since 1970 by the database's clock.
    pub at_us: i64,
    /// Some of many, or the measured value.
    pub part: u64,
    /// How many there were, or 0.
    pub whole: u64,
}

/// What is stored is a bigint; a count beyond it is as large as it gets.
fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Control {
    /// Stores samples, all with the same time, and returns it. Refused once another driver has taken over.
    pub async fn append_samples(&self, lease: &Lease, samples: &[NewSample]) -> Outcome<i64> {
        // The function is called before its row is there, and holds its lock until the statement's end.
        let sql = "WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at FROM segue.enter($1, $2)),
             stored AS (INSERT INTO segue.sample (migration, series, at, part, whole)
                 SELECT $1, s.series, now.at, s.part, s.whole
                   FROM now, unnest($3::text[], $4::bigint[], $5::bigint[]) s(series, part, whole))
             SELECT (extract(epoch FROM at) * 1000000)::bigint FROM now";
        let series: Vec<&str> = samples.iter().map(|sample| sample.series).collect();
        let parts: Vec<i64> = samples.iter().map(|sample| stored(sample.part)).collect();
        let wholes: Vec<i64> = samples.iter().map(|sample| stored(sample.whole)).collect();
        let session = self.session().await?;
        let row = session.query_one(sql, &[&self.migration, &lease.token, &series, &parts, &wholes]).await;
        let row = row.map_err(|e| match e.as_db_error() {
            Some(db) if is_superseded(db) => superseded(&self.migration),
            _ => self.failed(&e),
        })?;
        Ok(row.get(0))
    }

    /// The samples of a series within the last `window`, and the one before them, in order.
    pub async fn samples(&self, series: &str, window: Duration) -> Outcome<Vec<StoredSample>> {
        let sql = "SELECT (extract(epoch FROM s.at) * 1000000)::bigint, s.part, s.whole FROM segue.sample s
              WHERE s.migration = $1 AND s.series = $2
                AND s.at >= coalesce((SELECT max(b.at) FROM segue.sample b WHERE b.migration = $1 AND b.series = $2
                        AND b.at <= clock_timestamp() - $3::bigint * interval '1 millisecond'), '-infinity')
              ORDER BY s.at, s.no";
        let rows = self.rows(sql, &[&self.migration, &series, &millis(window)]).await?;
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        let sample = |row: &tokio_postgres::Row| StoredSample {
            at_us: row.get(0),
            part: count(row.get(1)),
            whole: count(row.get(2)),
        };
        Ok(rows.iter().map(sample).collect())
    }

    /// Removes the samples of every series that no window of this length reaches any more. Returns how many.
    pub async fn prune_samples(&self, lease: &Lease, window: Duration) -> Outcome<u64> {
        // The last one before the window still says what was at its begin.
        let sql = "WITH entered AS MATERIALIZED (SELECT FROM segue.enter($1, $2)),
             gone AS (DELETE FROM segue.sample s USING entered WHERE s.migration = $1
                   AND s.at < (SELECT max(b.at) FROM segue.sample b WHERE b.migration = $1 AND b.series = s.series
                        AND b.at <= clock_timestamp() - $3::bigint * interval '1 millisecond') RETURNING 1)
             SELECT count(*) FROM gone";
        let session = self.session().await?;
        let row = session.query_one(sql, &[&self.migration, &lease.token, &millis(window)]).await;
        let row = row.map_err(|e| match e.as_db_error() {
            Some(db) if is_superseded(db) => superseded(&self.migration),
            _ => self.failed(&e),
        })?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
    }

    /// Removes the samples of every series: they were of another copy of the rows.
    pub async fn forget_samples(&self, lease: &Lease) -> Outcome<()> {
        let sql = "WITH entered AS MATERIALIZED (SELECT FROM segue.enter($1, $2)),
             gone AS (DELETE FROM segue.sample s USING entered WHERE s.migration = $1 RETURNING 1)
             SELECT count(*) FROM gone";
        let session = self.session().await?;
        let row = session.query_one(sql, &[&self.migration, &lease.token]).await;
        row.map(drop).map_err(|e| match e.as_db_error() {
            Some(db) if is_superseded(db) => superseded(&self.migration),
            _ => self.failed(&e),
        })
    }
}
