//! Which reads the target serves, and which are compared: durable, beside the stage, and told to routers as routes are.
//!
//! What the rules mean is the model's and the routers' affair; whether they may change is the driver's.

use super::{Control, Lease, NewEntry, RouterSeat, superseded};
use crate::asking::Asked;
use crate::error::{fault_of, is_superseded};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::switch::reads::ReadRules;
use std::sync::atomic::Ordering;
use tokio_postgres::error::SqlState;

/// A control database that was made by an earlier version has no rules.
const THERE: &str = "SELECT to_regclass('segue.reads') IS NOT NULL";
const ROW: &str = "SELECT revision, body::text FROM segue.reads WHERE migration = $1";

/// Rules, and which ones: their number is another one each time they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldReads {
    /// Which ones.
    pub revision: i64,
    /// What they say.
    pub rules: ReadRules,
}

impl Control {
    /// The rules that are in force; none were ever set: those that leave everything with the owner.
    pub async fn reads(&self) -> Outcome<ReadRules> {
        if !self.row(THERE, &[]).await?.is_some_and(|row| row.get(0)) {
            return Ok(ReadRules::default());
        }
        let row = self.row(ROW, &[&self.migration]).await?;
        Ok(row
            .map(|row| told(&self.migration, &row))
            .transpose()?
            .map_or_else(ReadRules::default, |told| told.rules))
    }

    /// Sets the rules, durably, and wakes the routers. Refused once another driver has taken over.
    pub async fn set_reads(&self, lease: &Lease, rules: &ReadRules) -> Outcome<()> {
        // The function is called before the row is written, and holds its lock until the statement's end.
        let sql =
            format!("WITH entered AS MATERIALIZED (SELECT FROM segue.enter($1, $3)) {}", set("FROM entered"));
        let session = self.session().await?;
        let set = session.query_one(&sql, &[&self.migration, &text(rules)?, &lease.token]).await;
        set.map(drop).map_err(|e| match e.as_db_error() {
            Some(db) if is_superseded(db) => superseded(&self.migration),
            _ => self.failed(&e),
        })
    }

    /// As [`set_reads`](Control::set_reads), with the record of the journal that says so, after record number `expected`: neither
    /// is there without the other. Returns the record's number; errors are those of [`append`](Control::append).
    pub async fn append_reads(
        &self,
        lease: &Lease,
        expected: i64,
        entry: &NewEntry,
        rules: &ReadRules,
    ) -> Outcome<i64> {
        self.append_with(lease, expected, entry, Some((&set(""), &text(rules)?))).await
    }
}

/// Sets rules ($2) for a migration ($1), if there is a row `from`.
fn set(from: &str) -> String {
    format!(
        "INSERT INTO segue.reads AS r (migration, revision, at, body)
         SELECT $1, 1, clock_timestamp(), $2::text::jsonb {from}
         ON CONFLICT (migration) DO UPDATE SET revision = r.revision + 1, at = excluded.at, body = excluded.body
         RETURNING pg_notify('segue_route', migration)"
    )
}

fn text(rules: &ReadRules) -> Outcome<String> {
    serde_json::to_string(rules)
        .map_err(|e| Fault::bug("SEGUE-CONTROL", format!("rules for reads are not JSON: {e}")))
}

impl RouterSeat {
    /// The rules for reads that are in force, if any were ever set.
    pub async fn reads(&self) -> Outcome<Option<ToldReads>> {
        let failed = |e| fault_of(&e).during("asking which reads to move");
        let client = self.listener.client();
        // Looked for until it was seen: this is asked whenever a route may have been told, and a hold waits for that.
        if !self.has_reads.load(Ordering::Relaxed) {
            let there: bool = client.row(THERE, &[]).await.map_err(failed)?.get(0);
            if !there {
                return Ok(None);
            }
            self.has_reads.store(true, Ordering::Relaxed);
        }
        let row = match client.row_if_any(ROW, &[&self.migration]).await {
            Err(e) if e.code() == Some(&SqlState::UNDEFINED_TABLE) => {
                self.has_reads.store(false, Ordering::Relaxed);
                return Ok(None);
            }
            row => row.map_err(failed)?,
        };
        row.map(|row| told(&self.migration, &row)).transpose()
    }
}

fn told(migration: &str, row: &tokio_postgres::Row) -> Outcome<ToldReads> {
    let rules = serde_json::from_str(row.get(1)).map_err(|e| {
        let what = format!("the rules for reads of migration {migration} cannot be understood: {e}");
        Fault::operator("SEGUE-READS", what, "use a router of the same version as `segue run`")
    })?;
    Ok(ToldReads { revision: row.get(0), rules })
}
