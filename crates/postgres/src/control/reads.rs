//! Which reads the target serves, and which are compared: durable, beside the stage, and told to routers as routes are.
//!
//! What the rules mean is the model's and the routers' affair; whether they may change is the driver's.

use super::{Control, Lease, RouterSeat, superseded};
use crate::error::{fault_of, is_superseded};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::switch::reads::ReadRules;

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
        let sql = "WITH entered AS MATERIALIZED (SELECT FROM segue.enter($1, $2))
             INSERT INTO segue.reads AS r (migration, revision, at, body)
             SELECT $1, 1, clock_timestamp(), $3::text::jsonb FROM entered
             ON CONFLICT (migration) DO UPDATE SET revision = r.revision + 1, at = excluded.at, body = excluded.body
             RETURNING pg_notify('segue_route', migration)";
        let body = serde_json::to_string(rules)
            .map_err(|e| Fault::bug("SEGUE-CONTROL", format!("rules for reads are not JSON: {e}")))?;
        let session = self.session().await?;
        let set = session.query_one(sql, &[&self.migration, &lease.token, &body]).await;
        set.map(drop).map_err(|e| match e.as_db_error() {
            Some(db) if is_superseded(db) => superseded(&self.migration),
            _ => self.failed(&e),
        })
    }
}

impl RouterSeat {
    /// The rules for reads that are in force, if any were ever set.
    pub async fn reads(&self) -> Outcome<Option<ToldReads>> {
        let failed = |e| fault_of(&e).during("asking which reads to move");
        let client = self.listener.client();
        if !client.query_one(THERE, &[]).await.map_err(failed)?.get::<_, bool>(0) {
            return Ok(None);
        }
        let row = client.query_opt(ROW, &[&self.migration]).await.map_err(failed)?;
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
