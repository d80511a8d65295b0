//! Verification inside the driver: what the command asks for, and the live comparison of rows that were just applied.

use super::Driver;
use crate::report::LiveVerification;
use segue_engine::fault::Fault;
use segue_engine::follow::repair::StreamRepairer;
use segue_engine::migration::Handles;
use segue_engine::ports::Outcome;
use segue_engine::throttle::{Limits, Throttle};
use segue_engine::verify::live::Live;
use segue_engine::verify::passage::StreamPassage;
use segue_engine::verify::report::{Report, Request};
use segue_engine::verify::{Parts, Verifier};
use segue_model::table::Table;
use segue_postgres::source::PgSource;
use segue_postgres::verify::{PgComparable, PgSides, PgStore};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

type PgParts = Parts<PgComparable, PgComparable, StreamPassage<PgSource>, PgStore, StreamRepairer>;
type PgLive = Live<PgComparable, PgComparable, StreamPassage<PgSource>, PgStore, StreamRepairer>;

/// What `segue verify` asks the driver for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct VerifyOrder {
    /// Source names; empty: all tables.
    pub(crate) tables: Vec<String>,
    /// How to compare and what to do about differences.
    pub(crate) request: Request,
}

/// Compares both sides during one attempt.
#[derive(Clone)]
pub(super) struct Verifying {
    parts: Arc<PgParts>,
    live: Arc<PgLive>,
    tables: Vec<Arc<Table>>,
    /// Why live verification has ended, if it has.
    ended: Arc<OnceLock<String>>,
}

impl Verifying {
    /// Looks at both servers and settles how each table is compared.
    pub(super) async fn open(driver: &Driver, handles: Handles<PgSource>) -> Outcome<Verifying> {
        let tables: Vec<Arc<Table>> = handles.tables.values().cloned().collect();
        let sides = PgSides::open(&driver.sides.source, &driver.sides.target, &tables).await?;
        let store = PgStore::new(driver.sides.control.clone(), driver.spec.name.as_str().to_owned());
        let parts = Arc::new(Parts {
            owner: sides.source,
            other: sides.target,
            passage: handles.passage,
            store: Arc::new(store),
            repairer: handles.repairer,
            throttle: Arc::new(Throttle::new(Limits::default())),
            progress: handles.progress,
        });
        let rate = if driver.spec.verify.live { driver.spec.verify.live_keys_per_second_max } else { 0 };
        let live = Arc::new(Live::new(parts.clone(), handles.live, handles.tables, rate));
        Ok(Verifying { parts, live, tables, ended: Arc::default() })
    }

    /// Compares rows that were just applied, for ever. A fault of the comparison is no fault of the migration.
    pub(super) async fn run_live(&self) {
        if let Err(fault) = self.live.run().await {
            tracing::warn!("live verification has ended: {fault}");
            let _ = self.ended.set(format!("live verification has ended: {fault}"));
        }
        std::future::pending().await
    }

    /// Why live verification has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        self.ended.get().cloned()
    }

    /// What the live comparison has found.
    pub(super) fn live(&self) -> LiveVerification {
        let counts = self.live.counts();
        LiveVerification {
            compared: counts.compared,
            hot: counts.hot,
            divergent: counts.divergent,
            open: counts.open,
        }
    }

    /// Keeps the memory of what was applied small; to be called about once a second.
    pub(super) async fn make_room(&self) -> Outcome<()> {
        self.parts.passage.make_room().await
    }

    /// Carries out an order; `report` follows it range by range.
    pub(super) async fn verify(
        &self,
        order: &VerifyOrder,
        report: &watch::Sender<Report>,
    ) -> Outcome<Report> {
        let wanted =
            |t: &&Arc<Table>| order.tables.is_empty() || order.tables.contains(&t.source.to_string());
        let tables: Vec<Arc<Table>> = self.tables.iter().filter(wanted).cloned().collect();
        for name in &order.tables {
            if !tables.iter().any(|t| t.source.to_string() == *name) {
                return Err(Fault::operator(
                    "SEGUE-NO-TABLE",
                    format!("{name} is not a table of this migration"),
                    "name it as `segue status` does",
                ));
            }
        }
        Verifier::new(self.parts.clone()).run(&tables, &order.request, report).await
    }
}
