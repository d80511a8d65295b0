//! The target's side of a region: rows and record in one transaction, behind the token.

use super::compare::{self, Comparison};
use super::{CopyForm, Side, column_list, extent_condition};
use crate::authority::Authority;
use crate::birth::{Differences, renew};
use crate::catalog::{columns, hash};
use crate::connect::Endpoint;
use crate::error::fault_of;
use crate::origin;
use bytes::Bytes;
use futures_util::SinkExt;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::{Onto, Outcome, RegionDigest, RegionRecord, RegionWriter};
use segue_model::region::Extent;
use segue_model::table::{Table, UnitId};
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, CopyInSink};

/// Rows are handed to the session in parts of at most this size.
const SEND_BYTES_MAX: usize = 1 << 20;

/// What is left to be done before a region is stored.
enum Settling {
    Nothing,
    /// To count its rows: the target has had exactly them.
    Equal,
    /// To remove, and to write, what differs from the rows that lie beside the table; and whether the differences are counted.
    Beside {
        statements: [String; 2],
        counted: bool,
    },
}

/// Writes regions in one session.
pub struct PgWriter {
    client: Client,
    authority: Authority,
    conditions: UnitConditions,
    /// It has an origin of its stream.
    marked: bool,
    sink: Option<Pin<Box<CopyInSink<Bytes>>>>,
    rows: u64,
    onto: Settling,
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
        Ok(PgWriter {
            client,
            authority,
            conditions,
            marked: false,
            sink: None,
            rows: 0,
            onto: Settling::Nothing,
        })
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

    /// The table as rows are removed from it: tables that inherit from it have rows of their own under the same keys.
    async fn relation(&self, table: &Table) -> Outcome<String> {
        let name = table.target.sql();
        let partitioned = "SELECT relkind = 'p' FROM pg_class WHERE oid = $1::text::regclass";
        let row = self.client.query_one(partitioned, &[&name]).await.map_err(|e| fault_of(&e))?;
        Ok(if row.get(0) { name } else { format!("ONLY {name}") })
    }

    /// Makes room beside the table; returns where, and remembers what is left to be done.
    async fn lay_beside(
        &mut self,
        table: &Table,
        own: &[String],
        condition: &str,
        counted: bool,
    ) -> Outcome<String> {
        let relation = &self.relation(table).await?;
        let mut make = compare::make_beside(table);
        if !own.is_empty() {
            make = format!("{make}; {}", compare::make_kept(table, own));
        }
        let made = self.client.batch_execute(&make).await;
        made.map_err(|e| fault_of(&e).during("making room beside the table"))?;
        let comparison = Comparison { table, relation, condition, own };
        self.onto = Settling::Beside { statements: [comparison.remove(), comparison.write()], counted };
        Ok(compare::beside(table))
    }

    /// Does what is left to be done before the region is stored, and adds to the count of what was found.
    async fn settle(&mut self) -> Outcome<()> {
        let (statements, counted) = match std::mem::replace(&mut self.onto, Settling::Nothing) {
            Settling::Nothing => return Ok(()),
            Settling::Equal => {
                let equal = Differences { rows: self.rows, ..Differences::default() };
                return renew::found(&self.client, &self.authority, equal).await;
            }
            Settling::Beside { statements, counted } => (statements, counted),
        };
        let [remove, write] = &statements;
        let failed = |e| fault_of_rows(&e).during("writing what differs");
        let count = |row: &tokio_postgres::Row, i| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
        self.client.batch_execute(compare::PLANNER).await.map_err(failed)?;
        let gone = self.client.query_one(remove, &[]).await.map_err(failed)?;
        let come = self.client.query_one(write, &[]).await.map_err(failed)?;
        if !counted {
            return Ok(());
        }
        let (removed, changed, written) = (count(&gone, 0), count(&gone, 1), count(&come, 0));
        // A row that has changed was removed, and written anew.
        let missing = written.saturating_sub(changed);
        let found = Differences { rows: self.rows, missing, changed, extra: removed.saturating_sub(changed) };
        renew::found(&self.client, &self.authority, found).await?;
        killpoint::pass("renew.compared");
        Ok(())
    }

    /// The condition of the rows that a region replaces.
    fn replaced(&self, table: &Table, unit: UnitId, extent: &Extent) -> Outcome<String> {
        let conditions = self.conditions.read().unwrap_or_else(PoisonError::into_inner);
        let within = extent_condition(table, extent, Side::Target);
        match (extent, conditions.get(&unit)) {
            (Extent::Range { .. }, Some(leaf)) if hash::is_untold(leaf) => {
                Err(hash::untold(&table.source, "a partition"))
            }
            (Extent::Range { .. }, Some(leaf)) => Ok(format!("({leaf}) AND ({within})")),
            (Extent::Range { .. } | Extent::Key(_), _) => Ok(within),
        }
    }
}

impl PgWriter {
    async fn may_lay_beside(&self) -> Outcome<bool> {
        let sql = "SELECT has_database_privilege(current_database(), 'TEMPORARY')";
        Ok(self.client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0))
    }
}

impl RegionWriter for PgWriter {
    async fn begin(&mut self, table: &Table, unit: UnitId, extent: &Extent, onto: Onto) -> Outcome<()> {
        self.enter().await?;
        self.onto = Settling::Nothing;
        let condition = self.replaced(table, unit, extent)?;
        let own = match onto {
            Onto::Compared if table.key().is_some() => columns::own(&self.client, table).await?,
            // What the target has of its own is kept only by a role that may lay rows beside others.
            Onto::Replaced if table.key().is_some() && self.may_lay_beside().await? => {
                columns::own(&self.client, table).await?
            }
            Onto::Nothing | Onto::Replaced | Onto::Compared => Vec::new(),
        };
        let into = match onto {
            Onto::Nothing => table.target.sql(),
            Onto::Replaced if own.is_empty() => {
                let delete = format!("DELETE FROM {} WHERE {condition}", self.relation(table).await?);
                self.client.batch_execute(&delete).await.map_err(|e| fault_of(&e))?;
                table.target.sql()
            }
            Onto::Replaced | Onto::Compared => {
                self.lay_beside(table, &own, &condition, onto == Onto::Compared).await?
            }
        };
        let statement = format!(
            "COPY {into} ({}) FROM STDIN {}",
            column_list(table, Side::Target),
            CopyForm::of(table).sql()
        );
        let sink = self.client.copy_in(&statement).await.map_err(|e| fault_of(&e))?;
        self.sink = Some(Box::pin(sink));
        Ok(())
    }

    async fn begin_equal(
        &mut self,
        table: &Table,
        unit: UnitId,
        extent: &Extent,
        digest: &RegionDigest,
    ) -> Outcome<bool> {
        self.enter().await?;
        let (relation, condition) = (self.relation(table).await?, self.replaced(table, unit, extent)?);
        let sql = compare::digest(table, Side::Target, &relation, &condition);
        let row = self.client.query_one(&sql, &[]).await;
        let found = compare::digest_of(&row.map_err(|e| fault_of(&e).during("comparing what is there"))?);
        if (found.rows, &found.sum) != (digest.rows, &digest.sum) {
            self.abandon().await?;
            return Ok(false);
        }
        (self.rows, self.onto) = (found.rows, Settling::Equal);
        Ok(true)
    }

    async fn has_rivals(&mut self, table: &Table) -> Outcome<bool> {
        let keys = table.key().map_or(&[][..], |key| &key.columns);
        let keys: Vec<&str> = keys.iter().map(|&c| table.columns[c].target.as_str()).collect();
        let row = self.client.query_one(RIVALS, &[&table.target.sql(), &keys]).await;
        let during = |e| fault_of(&e).during(format_args!("looking at the indexes of {}", table.target));
        Ok(row.map_err(during)?.get(0))
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
        self.rows = sink.as_mut().finish().await.map_err(|e| fault_of_rows(&e))?;
        Ok(self.rows)
    }

    async fn commit(&mut self, record: &RegionRecord) -> Outcome<()> {
        self.settle().await?;
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
        self.client.batch_execute("COMMIT").await.map_err(|e| commit_fault(fault_of_rows(&e)))
    }

    async fn abandon(&mut self) -> Outcome<()> {
        (self.sink, self.onto) = (None, Settling::Nothing);
        self.client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))
    }
}

/// Whether the table `$1`, or a partition of it, has an index that refuses a row at once because of another one that has another key
/// (`$2`, its columns). Of deferrable constraints nothing is checked in a session of the replica role.
const RIVALS: &str = "WITH RECURSIVE tree(oid) AS (
        SELECT $1::text::regclass::oid
         UNION ALL
        SELECT i.inhrelid FROM tree t JOIN pg_class c ON c.oid = t.oid AND c.relkind = 'p' JOIN pg_inherits i ON i.inhparent = t.oid)
    SELECT EXISTS (SELECT FROM tree t JOIN pg_index i ON i.indrelid = t.oid AND i.indislive AND i.indimmediate
       WHERE i.indisexclusion OR i.indisunique AND NOT $2::text[] <@ ARRAY(
             SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY x(attnum, no)
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = x.attnum WHERE x.no <= i.indnkeyatts))";

/// A row that another one of the target keeps out says what to do about that one.
fn fault_of_rows(error: &tokio_postgres::Error) -> Fault {
    let fault = fault_of(error);
    let is_taken = error
        .code()
        .is_some_and(|code| [SqlState::UNIQUE_VIOLATION, SqlState::EXCLUSION_VIOLATION].contains(code));
    if !is_taken {
        return fault;
    }
    let next_step = "another row of the target has what the message names: mend that one first, or delete it there; of rows \
                     that hold each other's values, delete one";
    Fault { next_step: next_step.to_owned(), ..fault }
}

/// A commit whose answer was lost may have taken effect.
fn commit_fault(fault: Fault) -> Fault {
    match fault.recovery {
        Recovery::Retry => Fault::ambiguous("SEGUE-COMMIT-UNKNOWN", fault.what),
        Recovery::Operator | Recovery::Ambiguous | Recovery::Bug => fault,
    }
}
