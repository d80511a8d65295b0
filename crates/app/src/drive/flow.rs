//! The streams of one attempt: how one is opened from what is stored about it, and which of the two follows the owner.
//!
//! Both run at the same time once the way back is armed. The one that comes from the owner carries the application's
//! writes; the other one stands ready, and applies nothing until its side is the owner.

use super::back::{BackState, WayBack};
use super::switch::rows::Rows;
use super::verifying::{self, Verifying};
use super::{Driver, target_schema};
use segue_engine::admission::Admissions;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::follow::{self, build::BatchLimits};
use segue_engine::migration::{Run, Settings};
use segue_engine::ports::Outcome;
use segue_engine::progress::Progress;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::table::Table;
use segue_postgres::authority::Authority;
use segue_postgres::birth::{Direction, StreamIdentity};
use segue_postgres::catalog::Catalog;
use segue_postgres::catalog::server::SYNC_STANDBY;
use segue_postgres::connect::Endpoint;
use segue_postgres::leaves;
use segue_postgres::source::PgSource;
use segue_postgres::stream::Opening;
use segue_postgres::target::PgTarget;
use segue_postgres::target_schema::is_unfinished;
use std::sync::Arc;
use tokio::sync::watch;

/// Transactions in one batch at most: it bounds how much is replayed row by row after a conflict.
const BATCH_TRANSACTIONS_MAX: usize = 5_000;

/// The run of one stream between two PostgreSQL servers.
pub(super) type PgRun = Run<PgSource, PgTarget>;

/// What may be asked of a stream that runs.
pub(super) struct Flow {
    /// Which way.
    pub(super) direction: Direction,
    /// Its slot, on the side it comes from.
    pub(super) slot: String,
    /// Its counters.
    pub(super) progress: Arc<Progress>,
    /// Backfilling or following.
    pub(super) stage: watch::Receiver<Stage>,
    /// What of its side's log it may apply.
    pub(super) admissions: Arc<Admissions>,
    /// Compares what it has brought.
    pub(super) verifying: Verifying,
    /// Its tables; `source` and `target` in them mean where rows come from and where they land.
    pub(super) tables: Vec<Arc<Table>>,
}

/// Where a stream comes from, and where its rows land; sessions are marked as this migration's.
pub(super) fn ends(driver: &Driver, direction: Direction) -> (Endpoint, Endpoint) {
    let mark = driver.spec.name.as_str();
    let (source, target) = (driver.sides.source.marked(mark), driver.sides.target.marked(mark));
    match direction {
        Direction::Forward => (source, target),
        Direction::Reverse => (target, source),
    }
}

/// Opens a stream that was born: its leaves settled, its stored state read. Nothing runs yet.
pub(super) async fn open(
    driver: &Driver,
    token: i64,
    catalog: Catalog,
    (identity, opening): (StreamIdentity, Option<Opening>),
    admissions: Arc<Admissions>,
) -> Outcome<(PgRun, Arc<Flow>)> {
    let Driver { spec, throttle, warnings, .. } = driver;
    let tables: Vec<_> = catalog.tables.into_iter().map(Arc::new).collect();
    let (direction, slot) = (identity.direction, identity.slot.clone());
    let authority = Authority {
        migration: identity.migration.clone(),
        direction,
        token,
        incarnation: identity.incarnation,
    };
    let (from, to) = ends(driver, direction);
    let book = async {
        let (on_from, on_to) = tokio::try_join!(from.connect("leaves"), to.connect("leaves"))?;
        let known =
            leaves::settle(&on_from, &on_to, &identity, token, tables.len(), &catalog.relations).await?;
        from.keep(on_from);
        to.keep(on_to);
        PgSource::open(from.clone(), identity.clone(), token, &tables, known, opening).await
    };
    let unfinished = async {
        if direction == Direction::Reverse {
            return Ok(None);
        }
        let target = to.connect("schema").await?;
        let unfinished = is_unfinished(&target, &identity.migration).await?;
        to.keep(target);
        Ok(unfinished.then(|| (from.clone(), to.clone())))
    };
    let compared = verifying::sides(driver, direction, &tables);
    let (source, unfinished, compared) = tokio::try_join!(book, unfinished, compared)?;
    let (source, target) = (Arc::new(source), Arc::new(PgTarget::new(to, authority)));
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let settings = Settings {
        workers: spec.copy.workers,
        region_target: spec.copy.region_target,
        follow: follow::Limits {
            memory_bytes_max: bytes(spec.limits.memory_bytes_max),
            batch: BatchLimits {
                bytes_max: bytes(spec.apply.batch_bytes_max),
                transactions_max: BATCH_TRANSACTIONS_MAX,
            },
        },
    };
    let mut run = Run::prepare(
        source,
        target,
        admissions.clone(),
        tables.clone(),
        throttle.clone(),
        warnings.clone(),
        settings,
    )
    .await?;
    if let Some(ends) = unfinished {
        run.finish_with(target_schema::finishing(driver, token, ends, &tables, run.progress()));
    }
    let verifying = Verifying::new(driver, direction, run.handles(), compared);
    let (progress, stage) = (run.progress(), run.stage());
    Ok((run, Arc::new(Flow { direction, slot, progress, stage, admissions, verifying, tables })))
}

/// The streams of an attempt, and who owns the writes.
pub(super) struct Flows {
    /// From the source to the target.
    pub(super) forward: Arc<Flow>,
    /// The way back, once it is armed.
    pub(super) reverse: watch::Sender<Option<Arc<Flow>>>,
    /// Who owns the writes; `None` while that is not known, or nobody does.
    pub(super) owner: watch::Sender<Option<Side>>,
    /// The side that has handed the writes over to one that has not taken them yet.
    pub(super) giving: watch::Sender<Option<Side>>,
    /// Why the stream to the target has ended for good. It ends the attempt unless the target has the newest writes.
    pub(super) lost: watch::Sender<Option<Fault>>,
}

/// What ends the stream to the target for a person, as it is said while the target owns the writes: its tables are the only
/// ones with the newest rows, and no stream may write over them. `None`: it may pass.
pub(super) fn lost_while_idle(fault: &Fault) -> Option<Fault> {
    match fault.recovery {
        Recovery::Operator | Recovery::Bug if fault.code != SYNC_STANDBY => {
            let next = "nothing that was written depends on it: `segue reverse` hands the writes back to the source, from where \
                        they can be moved again once `segue run --new-stream` has made a new stream; `segue complete` ends the \
                        migration on the target";
            Some(Fault { next_step: next.to_owned(), ..fault.clone() })
        }
        Recovery::Operator | Recovery::Bug | Recovery::Retry | Recovery::Ambiguous => None,
    }
}

impl Flows {
    /// The stream whose rows land on `side`, if there is one.
    pub(super) fn landing_on(&self, side: Side) -> Option<Arc<Flow>> {
        match side {
            Side::Target if self.has_lost(side) => None,
            Side::Target => Some(self.forward.clone()),
            Side::Source => self.reverse.borrow().clone(),
        }
    }

    /// Whether there will be no stream any more whose rows land on `side`, and the migration goes on without.
    pub(super) fn has_lost(&self, side: Side) -> bool {
        side == Side::Target && self.lost.borrow().is_some()
    }

    /// The stream whose rows land on `side`, once there is one: after a start it is made while the switch reads the rows.
    /// Whatever keeps it from being made ends the attempt, or is said by `back`: then there is none.
    pub(super) async fn when_landing_on(&self, side: Side, back: &WayBack<'_>) -> Outcome<Option<Arc<Flow>>> {
        let (mut reverse, mut state) = (self.reverse.subscribe(), back.watch());
        loop {
            if let Some(flow) = self.landing_on(side) {
                return Ok(Some(flow));
            }
            if matches!(&*state.borrow_and_update(), BackState::Lost(_)) || self.has_lost(side) {
                return Ok(None);
            }
            let changed = tokio::select! {
                changed = reverse.changed() => changed,
                changed = state.changed() => changed,
            };
            changed.map_err(|_| Fault::retry("SEGUE-SWITCH-OVER", "a stream has ended"))?;
        }
    }

    /// Takes note of what the rows say.
    pub(super) fn note(&self, rows: &Rows) {
        let set = |whose: &watch::Sender<Option<Side>>, side: Option<Side>| {
            whose.send_if_modified(|now| std::mem::replace(now, side) != side);
        };
        set(&self.giving, rows.giving());
        set(&self.owner, rows.owner());
    }

    /// Whether all that the application has written last is in the log of `side`: the stream from the other one is needed
    /// for nothing that was acknowledged.
    pub(super) fn has_the_newest(&self, side: Side) -> bool {
        *self.owner.borrow() == Some(side) || *self.giving.borrow() == Some(side)
    }

    /// The stream that comes from the owner: what people mean by *the* stream.
    pub(super) fn active(&self) -> Arc<Flow> {
        let owner = self.owner.borrow().or(*self.giving.borrow());
        owner.and_then(|owner| self.landing_on(owner.other())).unwrap_or_else(|| self.forward.clone())
    }

    /// Where the migration is in its life.
    pub(super) fn stage(&self) -> Stage {
        match *self.owner.borrow() {
            Some(Side::Target) => Stage::Switched,
            Some(Side::Source) | None => *self.forward.stage.borrow(),
        }
    }
}
