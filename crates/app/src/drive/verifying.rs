//! Verification inside the driver: what the command asks for, and the live comparison of rows that were just applied.

use super::Driver;
use crate::report::LiveVerification;
use segue_engine::fault::Fault;
use segue_engine::follow::repair::StreamRepairer;
use segue_engine::migration::Handles;
use segue_engine::moving::Frozen;
use segue_engine::ports::Outcome;
use segue_engine::throttle::{Left, Limits, Throttle};
use segue_engine::verify::at_rest::{AtRest, Unsettled};
use segue_engine::verify::differences::Differences;
use segue_engine::verify::live::{Live, LiveQueue};
use segue_engine::verify::passage::StreamPassage;
use segue_engine::verify::ports::Passage;
use segue_engine::verify::report::{Report, Request};
use segue_engine::verify::{Parts, Verifier};
use segue_model::name::QualifiedName;
use segue_model::table::{Table, TableId};
use segue_postgres::birth::Direction;
use segue_postgres::source::PgSource;
use segue_postgres::verify::{PgComparable, PgSides, PgStore};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
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
    /// Keys applied lately.
    recent: Arc<LiveQueue>,
    by_id: BTreeMap<TableId, Arc<Table>>,
    tables: Vec<Arc<Table>>,
    /// Why live verification has ended, if it has.
    ended: Arc<OnceLock<String>>,
    runs: Arc<Runs>,
}

/// Comparisons that were asked for, since the attempt began: whoever counts reads of the tables leaves them out.
#[derive(Default)]
struct Runs {
    begun: AtomicU64,
    running: AtomicU64,
}

/// One of them, for as long as it runs.
struct Running(Arc<Runs>);

impl Running {
    fn begin(runs: &Arc<Runs>) -> Running {
        runs.running.fetch_add(1, Ordering::SeqCst);
        runs.begun.fetch_add(1, Ordering::SeqCst);
        Running(runs.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Looks at both servers and settles how each table is compared. The owner is the side that the stream comes from.
pub(super) async fn sides(driver: &Driver, direction: Direction, tables: &[Arc<Table>]) -> Outcome<PgSides> {
    let (from, to) = match direction {
        Direction::Forward => (&driver.sides.source, &driver.sides.target),
        Direction::Reverse => (&driver.sides.target, &driver.sides.source),
    };
    PgSides::open(from, to, tables).await
}

impl Verifying {
    /// Nothing is compared yet; `sides` are those of [`sides`].
    pub(super) fn new(
        driver: &Driver,
        direction: Direction,
        handles: Handles<PgSource>,
        sides: PgSides,
    ) -> Verifying {
        let tables: Vec<Arc<Table>> = handles.tables.values().cloned().collect();
        let store =
            PgStore::new(driver.sides.control.clone(), driver.spec.name.as_str().to_owned(), direction);
        let parts = Arc::new(Parts {
            owner: sides.source,
            other: sides.target,
            passage: handles.passage,
            store: Arc::new(store),
            repairer: handles.repairer,
            throttle: Arc::new(Throttle::new(Limits::default())),
            progress: handles.progress,
            unsettled: Unsettled::default(),
            differences: Differences::default(),
        });
        let rate = if driver.spec.verify.live { driver.spec.verify.live_keys_per_second_max } else { 0 };
        let (recent, by_id) = (handles.live.clone(), handles.tables.clone());
        let live = Arc::new(Live::new(parts.clone(), handles.live, handles.tables, rate));
        Verifying { parts, live, recent, by_id, tables, ended: Arc::default(), runs: Arc::default() }
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

    /// Lets it compare nothing any more, for this reason, or go on.
    pub(super) fn hold(&self, why: Option<String>) {
        self.parts.throttle.change(|limits| limits.paused = why);
    }

    /// Lets it take no more than what is left by others.
    pub(super) fn leave(&self, left: Left) {
        self.parts.throttle.change(|limits| limits.pieces = left);
    }

    /// Returns when everything that the owner shows now has been applied on the other side.
    pub(super) async fn passed(&self) -> Outcome<()> {
        self.parts.passage.passed().await
    }

    /// Gives the owner a number by which it is seen to have been restored, once it has been applied on the other side.
    /// Returns it.
    pub(super) async fn number(&self) -> Outcome<u64> {
        self.parts.passage.number().await
    }

    /// Has no part of a table moved as long as the answer lives; `None`: one is on its way.
    pub(super) async fn freeze(&self, patience: Duration) -> Option<Frozen> {
        self.parts.passage.freeze(patience).await
    }

    /// A table that is not made of the same parts on both sides.
    pub(super) async fn in_pieces(&self) -> Outcome<Option<QualifiedName>> {
        self.parts.passage.in_pieces(&self.tables).await
    }

    /// How many comparisons were begun on order, and whether one runs.
    pub(super) fn runs(&self) -> (u64, bool) {
        (self.runs.begun.load(Ordering::SeqCst), self.runs.running.load(Ordering::SeqCst) > 0)
    }

    /// Has ready what [`Verifying::compare_at_rest`] needs, before anybody waits for it.
    pub(super) async fn be_ready(&self) -> Outcome<()> {
        tokio::try_join!(self.parts.owner.be_ready(), self.parts.other.be_ready()).map(drop)
    }

    /// Compares, while nobody writes, what has never been at rest.
    pub(super) async fn compare_at_rest(&self) -> Outcome<AtRest> {
        let _running = Running::begin(&self.runs);
        self.parts.compare_at_rest(&self.by_id, &self.recent).await
    }

    /// Carries out an order; `report` follows it range by range.
    pub(super) async fn verify(
        &self,
        order: &VerifyOrder,
        report: &watch::Sender<Report>,
    ) -> Outcome<Report> {
        let _running = Running::begin(&self.runs);
        // A table keeps its names whichever side owns the writes.
        let is = |t: &Table, name: &String| t.source.to_string() == *name || t.target.to_string() == *name;
        let wanted = |t: &&Arc<Table>| order.tables.is_empty() || order.tables.iter().any(|name| is(t, name));
        let tables: Vec<Arc<Table>> = self.tables.iter().filter(wanted).cloned().collect();
        for name in &order.tables {
            if !tables.iter().any(|t| is(t, name)) {
                return Err(Fault::operator(
                    "SEGUE-NO-TABLE",
                    format!("{name} is not a table of this migration"),
                    "name it as `segue plan` does, with its schema; partitions go by the table that they belong to",
                ));
            }
        }
        Verifier::new(self.parts.clone()).run(&tables, &order.request, report).await
    }
}
