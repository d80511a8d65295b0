//! The target's side of a region: rows and record in one transaction, behind the token.

use super::{CopyForm, Side, column_list, extent_condition};
use crate::authority::Authority;
use crate::connect::Endpoint;
use crate::error::fault_of;
use crate::origin;
use bytes::Bytes;
use futures_util::SinkExt;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::{Outcome, RegionRecord, RegionWriter};
use segue_model::region::Extent;
use segue_model::table::{Table, UnitId};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_postgres::{Client, CopyInSink};

/// Rows are handed to the session in parts of at most this size.
const SEND_BYTES_MAX: usize = 1 << 20;

/// Writes regions in one session.
pub struct PgWriter {
    client: Client,
    authority: Authority,
    conditions: UnitConditions,
    /// It has an origin of its stream.
    marked: bool,
    sink: Option<Pin<Box<CopyInSink<Bytes>>>>,
    rows: u64,
}

impl PgWriter {
    /// Opens the session: replica role (no triggers, no foreign keys).
    ///
    /// `conditions` tell the rows of units that are one leaf each.
    pub async fn open(
        endpoint: &Endpoint,
        authority: Authority,
        conditions: UnitConditions,
    ) -> Outcome<PgWriter> {
        let client = endpoint.connect("copy").await?;
        client
            .batch_execute("SET session_replication_role = replica; SET synchronous_commit = on")
            .await
            .map_err(|e| fault_of(&e))?;
        Ok(PgWriter { client, authority, conditions, marked: false, sink: None, rows: 0 })
    }
}

/// The condition that the rows of each unit fulfil, of units that are one leaf each.
pub type UnitConditions = Arc<RwLock<HashMap<UnitId, String>>>;

impl PgWriter {
    /// Begins a transaction under the token. If a stream goes the other way, what is written must not travel back with it.
    ///
    /// The way back may be made at any moment. Its slot is made after its number is committed, and waits for transactions
    /// that have begun: this one has, by its own number, before it looks. So it either sees the way back, or is none of
    /// what that will bring.
    async fn enter(&mut self) -> Outcome<()> {
        let failed = |e| fault_of(&e);
        let Authority { migration, direction, token, .. } = &self.authority;
        loop {
            self.client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(failed)?;
            self.client.execute("SELECT segue.enter($1, $2)", &[migration, token]).await.map_err(failed)?;
            if self.marked {
                return Ok(());
            }
            self.client.batch_execute("SELECT txid_current()").await.map_err(failed)?;
            let sql = "SELECT EXISTS (SELECT FROM segue.slot WHERE migration = $1 AND direction = $2)";
            let there = self.client.query_one(sql, &[migration, &direction.opposite().as_str()]).await;
            if !there.map_err(failed)?.get::<_, bool>(0) {
                return Ok(());
            }
            self.client.batch_execute("ROLLBACK").await.map_err(failed)?;
            origin::take_for_copy(&self.client, &self.authority.origin()).await?;
            self.marked = true;
        }
    }

    /// The condition of the rows that a region replaces.
    fn replaced(&self, table: &Table, unit: UnitId, extent: &Extent) -> String {
        let conditions = self.conditions.read().unwrap_or_else(PoisonError::into_inner);
        match (extent, conditions.get(&unit)) {
            (Extent::Range { .. }, Some(leaf)) => {
                format!("({leaf}) AND ({})", extent_condition(table, extent, Side::Target))
            }
            (Extent::Range { .. } | Extent::Key(_), _) => extent_condition(table, extent, Side::Target),
        }
    }
}

impl RegionWriter for PgWriter {
    async fn begin(&mut self, table: &Table, unit: UnitId, extent: &Extent, replace: bool) -> Outcome<()> {
        self.enter().await?;
        if replace {
            let name = table.target.sql();
            let partitioned = "SELECT relkind = 'p' FROM pg_class WHERE oid = $1::text::regclass";
            let row = self.client.query_one(partitioned, &[&name]).await.map_err(|e| fault_of(&e))?;
            // Tables that inherit from it have rows of their own under the same keys.
            let only = if row.get(0) { "" } else { "ONLY " };
            let delete = format!("DELETE FROM {only}{name} WHERE {}", self.replaced(table, unit, extent));
            self.client.batch_execute(&delete).await.map_err(|e| fault_of(&e))?;
        }
        let statement = format!(
            "COPY {} ({}) FROM STDIN {}",
            table.target.sql(),
            column_list(table, Side::Target),
            CopyForm::of(table).sql()
        );
        let sink = self.client.copy_in(&statement).await.map_err(|e| fault_of(&e))?;
        self.sink = Some(Box::pin(sink));
        Ok(())
    }

    async fn write(&mut self, mut piece: Bytes) -> Outcome<()> {
        let Some(sink) = &mut self.sink else {
            return Err(Fault::bug("SEGUE-COPY", "rows written outside a region"));
        };
        // A row with a large value comes as one piece; the session would hold all of it once more.
        while piece.len() > SEND_BYTES_MAX {
            sink.send(piece.split_to(SEND_BYTES_MAX)).await.map_err(|e| fault_of(&e))?;
        }
        sink.send(piece).await.map_err(|e| fault_of(&e))
    }

    async fn finish(&mut self) -> Outcome<u64> {
        let Some(mut sink) = self.sink.take() else {
            return Err(Fault::bug("SEGUE-COPY", "a region ended that was not begun"));
        };
        self.rows = sink.as_mut().finish().await.map_err(|e| fault_of(&e))?;
        Ok(self.rows)
    }

    async fn commit(&mut self, record: &RegionRecord) -> Outcome<()> {
        let extent = serde_json::to_string(&record.extent)
            .map_err(|e| Fault::bug("SEGUE-REGION", format!("a region's bounds cannot be stored: {e}")))?;
        let store = "INSERT INTO segue.region (migration, direction, unit, extent, seam, covered_by, rows, bytes, took_ms, copied_at) \
             VALUES ($1, $2, $3, $4::text::jsonb, $5, $6, $7, $8, $9, clock_timestamp())";
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.client
            .execute(
                store,
                &[
                    &self.authority.migration,
                    &self.authority.direction.as_str(),
                    &i32::try_from(record.unit.0).unwrap_or(i32::MAX),
                    &extent,
                    &record.seam.to_string(),
                    &tokio_postgres::types::PgLsn::from(record.covered_by.0),
                    &number(self.rows),
                    &number(record.bytes),
                    &number(record.took_ms),
                ],
            )
            .await
            .map_err(|e| fault_of(&e))?;
        killpoint::pass("region.stored");
        self.client.batch_execute("COMMIT").await.map_err(|e| commit_fault(fault_of(&e)))
    }

    async fn abandon(&mut self) -> Outcome<()> {
        self.sink = None;
        self.client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))
    }
}

/// A commit whose answer was lost may have taken effect.
fn commit_fault(fault: Fault) -> Fault {
    match fault.recovery {
        Recovery::Retry => Fault::ambiguous("SEGUE-COMMIT-UNKNOWN", fault.what),
        Recovery::Operator | Recovery::Ambiguous | Recovery::Bug => fault,
    }
}
