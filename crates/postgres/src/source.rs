//! The source side of a PostgreSQL migration: sessions and statements behind the engine's [`Source`] port.

use crate::birth::StreamIdentity;
use crate::catalog::SourceRelation;
use crate::connect::Endpoint;
use crate::copy::{PgReader, Relations, places};
use crate::error::fault_of;
use crate::stream::{PgStream, RelationPlan, StreamPlan, StreamSource};
use segue_engine::fault::Fault;
use segue_engine::ports::{Outcome, Source};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::seam::Seam;
use segue_model::table::{Table, TableId, UnitId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

/// The source of one stream, under one token.
pub struct PgSource {
    endpoint: Endpoint,
    identity: StreamIdentity,
    token: i64,
    plan: watch::Sender<Arc<StreamPlan>>,
    units: Arc<UnitRelations>,
    /// One session for short questions and signals, opened when first needed.
    session: Mutex<Option<Arc<Client>>>,
}

impl PgSource {
    /// The source behind `endpoint`, of which `relations` migrate as parts of `tables`.
    pub async fn open(
        endpoint: Endpoint,
        identity: StreamIdentity,
        token: i64,
        tables: &[Arc<Table>],
        relations: &[SourceRelation],
    ) -> Outcome<PgSource> {
        let client = endpoint.connect("source").await?;
        let signal = client.query_one("SELECT 'segue.signal'::regclass::oid", &[]);
        let signal: u32 = signal.await.map_err(|e| fault_of(&e).during("looking for segue.signal"))?.get(0);
        let plan = StreamPlan {
            migration: identity.migration.clone(),
            signal,
            relations: relation_plans(tables, relations)?,
            ignored: HashSet::new(),
            own_origin: None,
        };
        let partitioned = relations.iter().filter(|r| r.leaf.is_some()).map(|r| r.unit).collect();
        let units = UnitRelations { partitioned, leaves: BTreeMap::new() };
        Ok(PgSource {
            endpoint,
            identity,
            token,
            plan: watch::Sender::new(Arc::new(plan)),
            units: Arc::new(units),
            session: Mutex::new(Some(Arc::new(client))),
        })
    }

    /// The shared session, opened anew if it was lost.
    async fn session(&self) -> Outcome<Arc<Client>> {
        let mut session = self.session.lock().await;
        match &*session {
            Some(client) if !client.is_closed() => Ok(client.clone()),
            _ => {
                let client = Arc::new(self.endpoint.connect("source").await?);
                *session = Some(client.clone());
                Ok(client)
            }
        }
    }
}

fn relation_plans(
    tables: &[Arc<Table>],
    relations: &[SourceRelation],
) -> Outcome<HashMap<u32, Arc<RelationPlan>>> {
    let by_id: HashMap<TableId, &Arc<Table>> = tables.iter().map(|t| (t.id, t)).collect();
    let plan = |relation: &SourceRelation| {
        let unknown = || Fault::bug("SEGUE-PLAN", format!("{} belongs to no planned table", relation.name));
        let table = by_id.get(&TableId(relation.unit.0)).ok_or_else(unknown)?;
        let plan = RelationPlan {
            table: Arc::clone(table),
            unit: relation.unit,
            leaf: relation.leaf.clone(),
            expected: Vec::new(),
        };
        Ok((relation.oid, Arc::new(plan)))
    };
    relations.iter().map(plan).collect()
}

/// Where the rows of each unit are read.
struct UnitRelations {
    /// Units whose table is partitioned: read through the root.
    partitioned: HashSet<UnitId>,
    /// Units that are one leaf.
    leaves: BTreeMap<UnitId, QualifiedName>,
}

impl Relations for UnitRelations {
    fn relation(&self, table: &Table, unit: UnitId) -> String {
        match self.leaves.get(&unit) {
            Some(leaf) => format!("ONLY {}", leaf.sql()),
            None if self.partitioned.contains(&unit) => table.source.sql(),
            None => format!("ONLY {}", table.source.sql()),
        }
    }
}

impl Source for PgSource {
    type Stream = PgStream;
    type Reader = PgReader;

    async fn stream(&self, from: Position) -> Outcome<PgStream> {
        let source = StreamSource {
            endpoint: self.endpoint.clone(),
            slot: self.identity.slot.clone(),
            publications: vec![self.identity.publication.clone()],
        };
        PgStream::open(&source, self.plan.subscribe(), from).await
    }

    async fn reader(&self) -> Outcome<PgReader> {
        PgReader::open(&self.endpoint, self.units.clone()).await
    }

    async fn seam(&self) -> Outcome<Seam> {
        let client = self.session().await?;
        // The text form is the same before PostgreSQL 13, under another name.
        let sql = "SELECT CASE WHEN current_setting('server_version_num')::int >= 130000 \
                   THEN 'pg_current_snapshot()' ELSE 'txid_current_snapshot()' END";
        let function: String = client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0);
        let row =
            client.query_one(&format!("SELECT {function}::text"), &[]).await.map_err(|e| fault_of(&e))?;
        let seam: String = row.get(0);
        seam.parse().map_err(|e| Fault::bug("SEGUE-SNAPSHOT", format!("{e}")))
    }

    async fn signal(&self) -> Outcome<u64> {
        let client = self.session().await?;
        // One message, so one implicit transaction that an error ends. `local`: a signal says where the log is; it need not be on a standby, and must not wait for one.
        let sql = format!(
            "SET LOCAL synchronous_commit = local; SELECT segue.enter({migration}, {token}); \
             INSERT INTO segue.signal AS s VALUES ({migration}, 1, clock_timestamp()) \
             ON CONFLICT (migration) DO UPDATE SET id = s.id + 1, at = excluded.at RETURNING id",
            migration = segue_model::sqltext::quote_literal(&self.identity.migration),
            token = self.token,
        );
        let answers =
            client.simple_query(&sql).await.map_err(|e| fault_of(&e).during("emitting a signal"))?;
        let id = answers.iter().find_map(|answer| match answer {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                row.try_get("id").ok().flatten().and_then(|id| id.parse().ok())
            }
            _ => None,
        });
        id.ok_or_else(|| Fault::bug("SEGUE-SIGNAL", "a signal was emitted without a number"))
    }

    async fn places(&self, table: &Table, bounds: &[KeyText], keys: &[KeyText]) -> Outcome<Vec<usize>> {
        places(&*self.session().await?, table, bounds, keys).await
    }

    async fn log_end(&self) -> Outcome<Position> {
        let client = self.session().await?;
        let row = client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await;
        let end: PgLsn = row.map_err(|e| fault_of(&e))?.get(0);
        Ok(Position(end.into()))
    }
}
