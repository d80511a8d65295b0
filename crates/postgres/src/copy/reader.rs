//! The source's side of a region: a short snapshot, its seam, and the rows under it.

use super::compare;
use super::{CopyForm, Side, column_list, extent_condition, key_literals, key_names};
use crate::connect::Endpoint;
use crate::error::fault_of;
use crate::numbered;
use crate::verify::VERSION;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use segue_engine::fault::Fault;
use segue_engine::ports::{Outcome, RegionDigest, RegionReader};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::seam::Seam;
use segue_model::table::{Table, UnitId};
use std::pin::Pin;
use std::time::Duration;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, CopyOutStream};

/// Rows are gathered into pieces of this size.
const PIECE_BYTES: usize = 128 * 1024;
/// PostgreSQL's page size in the log; an insert position just behind a page header is the page's start when flushed.
const LOG_PAGE: u64 = 8192;
/// Size of the header of a page of the log, and of a segment's first page.
const LOG_PAGE_HEADER: u64 = 24;
const LOG_SEGMENT_HEADER: u64 = 40;
/// How long to wait for the source to flush by itself before asking it to.
const FLUSH_PATIENCE: Duration = Duration::from_millis(20);

/// Where rows are read.
pub enum Place {
    /// What stands behind FROM, `ONLY` included where it belongs; and whose name that has to be, where it is known.
    Named {
        /// As SQL.
        from: String,
        /// Number and name.
        relation: Option<(u32, QualifiedName)>,
    },
    /// The table of this number alone, whatever it is called by then.
    Numbered(u32),
}

/// Where the rows of each unit are read.
pub trait Relations: Send + Sync + 'static {
    /// Where those of `unit` are; `None` if it is gone.
    fn place(&self, table: &Table, unit: UnitId) -> Option<Place>;
    /// A further condition on the rows read from there.
    fn only(&self, _table: &Table, _unit: UnitId) -> Option<String> {
        None
    }
}

/// Reads regions in one session.
pub struct PgReader {
    client: Client,
    relations: std::sync::Arc<dyn Relations>,
    /// `pg_current_snapshot` is called so before PostgreSQL 13.
    snapshot_function: &'static str,
    /// Size of the log's segments.
    segment_bytes: u64,
    /// What stands behind FROM under the snapshot.
    from: String,
    rows: Option<Pin<Box<CopyOutStream>>>,
}

impl PgReader {
    /// Opens the session. Refuses a server in recovery: its snapshots do not list transactions in progress.
    pub async fn open(endpoint: &Endpoint, relations: std::sync::Arc<dyn Relations>) -> Outcome<PgReader> {
        let client = endpoint.connect("copy").await?;
        let row = client
            .query_one("SELECT pg_is_in_recovery(), current_setting('server_version_num')::int, pg_size_bytes(current_setting('wal_segment_size'))", &[])
            .await
            .map_err(|e| fault_of(&e))?;
        if row.get(0) {
            return Err(Fault::operator(
                "SEGUE-STANDBY",
                format!("{endpoint} is a standby in recovery; its snapshots cannot be trusted"),
                "name the primary in the spec",
            ));
        }
        let version: i32 = row.get(1);
        let segment_bytes = u64::try_from(row.get::<_, i64>(2)).unwrap_or(16 << 20).max(LOG_PAGE);
        let snapshot_function =
            if version >= 130_000 { "pg_current_snapshot()" } else { "txid_current_snapshot()" };
        Ok(PgReader { client, relations, snapshot_function, segment_bytes, from: String::new(), rows: None })
    }

    /// What stands behind FROM for `unit` now, and what shows, under a lock of it, that it still does.
    async fn look_up(&self, table: &Table, unit: UnitId) -> Outcome<(String, Option<String>)> {
        let gone = || {
            let what = format!("{}: a partition of it is gone, and its rows cannot be copied", table.source);
            Fault::retry("SEGUE-LEAF-GONE", what)
        };
        match self.relations.place(table, unit).ok_or_else(gone)? {
            Place::Named { from, relation } => {
                Ok((from, relation.map(|(oid, name)| numbered::still_called(oid, &name))))
            }
            Place::Numbered(oid) => {
                let name = numbered::name_of(&self.client, oid).await.map_err(|e| fault_of(&e))?;
                let name = name.ok_or_else(gone)?;
                Ok((format!("ONLY {}", name.sql()), Some(numbered::still_called(oid, &name))))
            }
        }
    }

    /// Begins a transaction that keeps `unit` as it is and under its name, which is then in `from`.
    async fn lock(&mut self, table: &Table, unit: UnitId) -> Outcome<()> {
        let mut tries = 0;
        loop {
            let (from, still_called) = self.look_up(table, unit).await?;
            // Without a limit: the target may have to remove many rows before it takes the first.
            let lock = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL idle_in_transaction_session_timeout = 0; \
                 LOCK TABLE {from} IN ACCESS SHARE MODE; {}",
                still_called.as_deref().unwrap_or_default()
            );
            let Err(error) = self.client.batch_execute(&lock).await else {
                self.from = from;
                return Ok(());
            };
            let fault = fault_of(&error);
            tries += 1;
            if still_called.is_none() || !numbered::has_moved_on(&fault) || tries == numbered::TRIES {
                return Err(fault);
            }
            self.client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
        }
    }

    fn condition(&self, table: &Table, unit: UnitId, extent: &Extent) -> String {
        let within = extent_condition(table, extent, Side::Source);
        match self.relations.only(table, unit) {
            Some(only) => format!("({within}) AND {only}"),
            None => within,
        }
    }
}

impl RegionReader for PgReader {
    async fn bound_after(
        &mut self,
        table: &Table,
        unit: UnitId,
        within: &Extent,
        rows: u64,
    ) -> Outcome<Option<KeyText>> {
        let names = key_names(table, Side::Source);
        let texts: Vec<String> = names.iter().map(|k| format!("{k}::text")).collect();
        let (texts, keys) = (texts.join(", "), names.join(", "));
        // Ordered in a query of its own: beside `id::text`, ORDER BY id would mean that text.
        // Read from another table if the name has moved on by then: a bound is a bound.
        let (from, _) = self.look_up(table, unit).await?;
        let statement = format!(
            "SELECT {texts} FROM (SELECT {keys} FROM {from} WHERE {} ORDER BY {keys} OFFSET {rows} LIMIT 1) AS bound",
            self.condition(table, unit, within),
        );
        let row = self.client.query_opt(&statement, &[]).await.map_err(|e| fault_of(&e))?;
        let bound = row.map(|row| KeyText::from_texts((0..row.len()).map(|i| row.get::<_, String>(i))));
        // A bound that equals the range's own end cuts nothing off.
        Ok(bound.filter(|b| !matches!(within, Extent::Range { upper: Some(upper), .. } if upper == b)))
    }

    async fn begin(&mut self, table: &Table, unit: UnitId) -> Outcome<(Seam, Position)> {
        self.lock(table, unit).await?;
        let seam = format!("SELECT {}::text", self.snapshot_function);
        let seam: String = self.client.query_one(&seam, &[]).await.map_err(|e| fault_of(&e))?.get(0);
        // In a statement of its own, after the snapshot: it must cover the end of every transaction the snapshot shows.
        let end = self.client.query_one("SELECT pg_current_wal_insert_lsn()", &[]);
        let end: PgLsn = end.await.map_err(|e| fault_of(&e))?.get(0);
        let seam = seam.parse().map_err(|e| Fault::bug("SEGUE-SNAPSHOT", format!("{e}")))?;
        Ok((seam, flushable(Position(end.into()), self.segment_bytes)))
    }

    async fn copy(&mut self, table: &Table, unit: UnitId, extent: &Extent) -> Outcome<()> {
        let statement = format!(
            "COPY (SELECT {} FROM {} WHERE {}) TO STDOUT {}",
            column_list(table, Side::Source),
            self.from,
            self.condition(table, unit, extent),
            CopyForm::of(table).sql()
        );
        let rows = self.client.copy_out(&statement).await.map_err(|e| fault_of(&e))?;
        self.rows = Some(Box::pin(rows));
        Ok(())
    }

    async fn digest(&mut self, table: &Table, unit: UnitId, extent: &Extent) -> Outcome<RegionDigest> {
        let sql = compare::digest(table, Side::Source, &self.from, &self.condition(table, unit, extent));
        let row = self.client.query_one(&sql, &[]).await;
        Ok(compare::digest_of(&row.map_err(|e| fault_of(&e))?))
    }

    async fn version(&mut self, table: &Table, unit: UnitId, key: &KeyText) -> Outcome<String> {
        let condition = self.condition(table, unit, &Extent::Key(key.clone()));
        let statement = format!("SELECT {VERSION} FROM {} AS t WHERE {condition}", self.from);
        let rows = self.client.query(&statement, &[]).await.map_err(|e| fault_of(&e))?;
        // As a side whose key was dropped is read for comparison, too.
        let mut versions: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        versions.sort_unstable();
        Ok(versions.join(" "))
    }

    async fn next_piece(&mut self) -> Outcome<Option<Bytes>> {
        let Some(rows) = &mut self.rows else { return Ok(None) };
        let mut piece = BytesMut::new();
        while piece.len() < PIECE_BYTES {
            match rows.next().await {
                Some(Ok(row)) if piece.is_empty() && row.len() >= PIECE_BYTES => return Ok(Some(row)),
                Some(Ok(row)) => piece.extend_from_slice(&row),
                Some(Err(e)) => return Err(fault_of(&e)),
                None => {
                    self.rows = None;
                    break;
                }
            }
        }
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }

    async fn end(&mut self) -> Outcome<()> {
        self.rows = None;
        self.client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))
    }

    async fn durable(&mut self, position: Position) -> Outcome<()> {
        let mut pause = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        loop {
            let flushed = self.client.query_one("SELECT pg_current_wal_flush_lsn()", &[]);
            let flushed: PgLsn = flushed.await.map_err(|e| fault_of(&e))?.get(0);
            if u64::from(flushed) >= position.0 {
                return Ok(());
            }
            if waited >= FLUSH_PATIENCE {
                // Nobody commits, so nobody flushes: commit something of our own. It need not reach a standby.
                let flush = "BEGIN; SET LOCAL synchronous_commit = local; \
                             SELECT pg_logical_emit_message(true, 'segue', ''); COMMIT";
                self.client.batch_execute(flush).await.map_err(|e| fault_of(&e))?;
            }
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// The position that must be flushed so that everything before `inserted` is.
///
/// At a page's beginning the insert position is reported behind the page header, which is written only with
/// the next record; the flush position is reported at the page's start (`XLogBytePosToRecPtr` and `…ToEndRecPtr`).
fn flushable(inserted: Position, segment_bytes: u64) -> Position {
    let header =
        if inserted.0 % segment_bytes == LOG_SEGMENT_HEADER { LOG_SEGMENT_HEADER } else { LOG_PAGE_HEADER };
    if inserted.0 % LOG_PAGE == header { Position(inserted.0 - header) } else { inserted }
}

/// For each key, how many of `bounds` the source orders before it.
pub(crate) async fn places(
    client: &Client,
    table: &Table,
    bounds: &[KeyText],
    keys: &[KeyText],
) -> Outcome<Vec<usize>> {
    if bounds.is_empty() || keys.is_empty() {
        return Ok(vec![0; keys.len()]);
    }
    let key_names = key_names(table, Side::Source);
    let names = (0..key_names.len()).map(|i| format!("k{i}")).collect::<Vec<_>>().join(", ");
    let prefixed =
        |side: &str| (0..key_names.len()).map(|i| format!("{side}.k{i}")).collect::<Vec<_>>().join(", ");
    let bounds: Vec<String> = bounds.iter().map(|b| format!("({})", key_literals(table, b))).collect();
    let asked = keys.iter().enumerate().map(|(i, key)| format!("({i}, {})", key_literals(table, key)));
    // The comparison must use the column's own collation, hence the empty relation that lends its types.
    let statement = format!(
        "WITH b({names}) AS (SELECT {} FROM {} WHERE false UNION ALL VALUES {}) \
         SELECT (SELECT count(*) FROM b WHERE ({}) < ({})) FROM (VALUES {}) AS q(i, {names}) ORDER BY i",
        key_names.join(", "),
        table.source.sql(),
        bounds.join(", "),
        prefixed("b"),
        prefixed("q"),
        asked.collect::<Vec<_>>().join(", "),
    );
    let rows = client.query(&statement, &[]).await.map_err(|e| fault_of(&e))?;
    Ok(rows.iter().map(|row| usize::try_from(row.get::<_, i64>(0)).unwrap_or(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_behind_a_page_header_is_flushed_with_the_page_before() {
        let flushable = |p| flushable(Position(p), 16 << 20).0;
        assert_eq!(flushable(8192 * 5 + 24), 8192 * 5);
        assert_eq!(flushable((16 << 20) + 40), 16 << 20);
        for no_header in [8192 * 5 + 25, 8192 * 5 + 40, 8192 * 5] {
            assert_eq!(flushable(no_header), no_header);
        }
    }
}
