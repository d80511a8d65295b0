//! One run of a migration's pipelines, from the stored state to the first fault: restore the map, follow, copy,
//! and hand everything to the stream when the copy is done.
//!
//! A first start, a restart after a crash and a retry after a lost connection all enter here.

use crate::admission::{Admissions, Strays};
use crate::backfill::{self, Shared, Work};
use crate::fault::Fault;
use crate::follow;
use crate::follow::repair::StreamRepairer;
use crate::killpoint;
use crate::leaves::{LOOK_PAUSE, Leaves};
use crate::moving::Moving;
use crate::ports::{Onto, Outcome, Source, Stored, StoredRegion, Target};
use crate::progress::{Progress, Warnings};
use crate::regions::Regions;
use crate::throttle::Throttle;
use crate::verify::live::LiveQueue;
use crate::verify::passage::{StreamPassage, Unseen};
use segue_model::key::{KeyText, compare};
use segue_model::region::{CopiedRegion, Extent, UnitRegions};
use segue_model::seam::Xid;
use segue_model::stage::Stage;
use segue_model::table::{KeyOrder, Table, TableId, UnitId};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Bounds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Copy workers.
    pub workers: usize,
    /// How long the copy of a region should take.
    pub region_target: Duration,
    /// Bounds of the stream's pipeline.
    pub follow: follow::Limits,
}

/// Keys that wait for live verification at most; more are sampled.
const LIVE_KEYS_MAX: usize = 10_000;
/// How often rows that were repaired are looked for, to be forgotten.
const OVERRIDES_PAUSE: Duration = Duration::from_secs(1);

/// What verification needs of a running stream.
pub struct Handles<S> {
    /// Knows what has been applied, and what the source shows of it.
    pub passage: Arc<StreamPassage<S>>,
    /// Rows that were applied lately.
    pub live: Arc<LiveQueue>,
    /// Copies rows anew.
    pub repairer: Arc<StreamRepairer>,
    /// The counters.
    pub progress: Arc<Progress>,
    /// Held while parts are on their way; whoever hands the writes over must not meet one.
    pub moving: Arc<Moving>,
    /// What was not applied, because its side did not own the writes.
    pub strays: Arc<Strays>,
    /// All tables.
    pub tables: BTreeMap<TableId, Arc<Table>>,
}

/// One run. Made from the stored state, used once.
pub struct Run<S, T> {
    shared: Arc<Shared<S, T>>,
    tables: BTreeMap<TableId, Arc<Table>>,
    stored: Stored,
    settings: Settings,
    stage: watch::Sender<Stage>,
    verifying: follow::Verifying,
    repairer: StreamRepairer,
    warnings: Arc<Warnings>,
    finishing: Option<Finishing>,
}

/// What is to be done once everything is copied, beside the stream and before it is said to follow.
pub type Finishing = Pin<Box<dyn Future<Output = Outcome<()>> + Send>>;

impl<S: Source, T: Target> Run<S, T> {
    /// Reads the stored state and rebuilds the region map from it. `admissions` says at any moment what of the source's
    /// log may be applied; it outlives the run, and so does what it has recorded.
    pub async fn prepare(
        source: Arc<S>,
        target: Arc<T>,
        admissions: Arc<Admissions>,
        tables: Vec<Arc<Table>>,
        throttle: Arc<Throttle>,
        warnings: Arc<Warnings>,
        settings: Settings,
    ) -> Outcome<Self> {
        let (stored, seam) = tokio::try_join!(target.stored(), source.seam())?;
        let near = seam.xmax();
        let tables: BTreeMap<TableId, Arc<Table>> = tables.into_iter().map(|t| (t.id, t)).collect();
        let units = restore(&*source, &tables, &stored).await?;
        let progress = Progress::new(tables.values().map(|t| &**t), stored.checkpoint.position);
        for (unit, regions) in &stored.regions {
            let table = TableId(unit.0);
            regions.iter().for_each(|r| progress.region_copied(table, r.rows, r.bytes));
            if units.get(unit).is_none_or(UnitRegions::is_complete) {
                progress.table_complete(table);
            }
        }
        let stage = if stored.backfilled { Stage::Following } else { Stage::Backfilling };
        let shared = Shared {
            source,
            target,
            admissions: admissions.clone(),
            regions: Arc::new(Regions::new(units, near)),
            progress: Arc::new(progress),
            throttle,
            region_target: settings.region_target,
        };
        let moving = Arc::new(Moving::new(!stored.parts.is_empty()));
        let (repairer, repairs) = StreamRepairer::new(moving.clone(), admissions);
        let live = Arc::new(LiveQueue::with_room(LIVE_KEYS_MAX));
        let unseen = Arc::new(Unseen::new(near));
        let verifying = follow::Verifying { unseen, live, repairs, moving };
        let stage = watch::Sender::new(stage);
        Ok(Run {
            shared: Arc::new(shared),
            tables,
            stored,
            settings,
            stage,
            verifying,
            repairer,
            warnings,
            finishing: None,
        })
    }

    /// The stage is `following` only when `finishing` is done, too.
    pub fn finish_with(&mut self, finishing: Finishing) {
        self.stage.send_replace(Stage::Backfilling);
        self.finishing = Some(finishing);
    }

    /// The counters of this run.
    pub fn progress(&self) -> Arc<Progress> {
        self.shared.progress.clone()
    }

    /// The stage, as it changes.
    pub fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// What verification needs of the running stream.
    pub fn handles(&self) -> Handles<S> {
        let Shared { source, progress, admissions, .. } = &*self.shared;
        let follow::Verifying { unseen, moving, .. } = &self.verifying;
        let applied = progress.watch_applied();
        let passage =
            StreamPassage::new(source.clone(), applied, unseen.clone(), moving.clone(), admissions.clone());
        Handles {
            passage: Arc::new(passage),
            live: self.verifying.live.clone(),
            repairer: Arc::new(self.repairer.clone()),
            progress: progress.clone(),
            moving: moving.clone(),
            strays: admissions.strays(),
            tables: self.tables.clone(),
        }
    }

    /// Runs until something fails. Dropping the future stops everything; what is durable stays so.
    pub async fn run(self) -> Fault {
        let Run { shared, tables, stored, settings, stage, verifying, repairer: _held, warnings, finishing } =
            self;
        let moving = verifying.moving.clone();
        let live = live_while_owner(shared.admissions.clone(), verifying.live.clone());
        let from = stored.checkpoint.position;
        let follow = follow::run(shared.clone(), tables.clone(), from, settings.follow, verifying);
        let leaves = Leaves {
            shared: shared.clone(),
            tables: tables.clone(),
            pending: stored.parts.clone(),
            warnings,
        };
        let (backfilled, workers) = (stored.backfilled, settings.workers);
        let onto = if stored.over_rows { Onto::Compared } else { Onto::Nothing };
        let copy = Copying { shared, tables, backfilled, onto, workers, stage, leaves, moving, finishing };
        let ended = tokio::select! {
            ended = follow => ended,
            ended = copy.run() => ended,
            ended = live => ended,
        };
        ended.err().unwrap_or_else(|| Fault::bug("SEGUE-ENDED", "the stream has ended without a fault"))
    }
}

/// Rows that were applied are compared again only while they come from the owner.
async fn live_while_owner(admissions: Arc<Admissions>, live: Arc<LiveQueue>) -> Outcome<()> {
    let mut admission = admissions.subscribe();
    loop {
        let is_owner = admission.borrow_and_update().is_owner();
        if is_owner {
            live.open()
        } else {
            live.shut()
        }
        // Never an error: the sender is ours.
        let _ = admission.changed().await;
    }
}

/// The copy's part of a run.
struct Copying<S, T> {
    shared: Arc<Shared<S, T>>,
    tables: BTreeMap<TableId, Arc<Table>>,
    backfilled: bool,
    /// What the backfill's rows find on the target.
    onto: Onto,
    workers: usize,
    stage: watch::Sender<Stage>,
    leaves: Leaves<S, T>,
    moving: Arc<Moving>,
    finishing: Option<Finishing>,
}

impl<S: Source, T: Target> Copying<S, T> {
    /// Copies everything, then takes care of what is copied later; ends only with a fault.
    async fn run(mut self) -> Outcome<()> {
        if !self.backfilled {
            self.backfill().await?;
        }
        let (finishing, stage) = (self.finishing.take(), self.stage.clone());
        let finish = async {
            if let Some(finishing) = finishing {
                finishing.await?;
            }
            stage.send_if_modified(|now| std::mem::replace(now, Stage::Following) != Stage::Following);
            Ok(())
        };
        tokio::try_join!(finish, self.take_care()).map(drop)
    }

    /// Takes care of what is copied later; ends only with a fault.
    async fn take_care(&mut self) -> Outcome<()> {
        let mut looked: Option<Instant> = None;
        loop {
            if looked.is_none_or(|at| at.elapsed() >= LOOK_PAUSE) {
                let moving = self.moving.moving().await;
                // Asked with the lock held: whoever freezes it while the writes are handed over is not met by a part on its way.
                if moving.is_some() && self.is_owner() {
                    while let Some(part) = self.leaves.look(true).await? {
                        hand_over(&self.shared).await?;
                        self.leaves.followed(&part).await?;
                    }
                    self.moving.pending(!self.leaves.pending.is_empty());
                }
                drop(moving);
                looked = Some(Instant::now());
            }
            // Repaired rows have seams, too; they are forgotten once the stream has passed them.
            tokio::time::sleep(OVERRIDES_PAUSE).await;
            let regions = &self.shared.regions;
            if regions.is_active() && regions.all_complete() {
                hand_over(&self.shared).await?;
            }
        }
    }

    /// Whether the side that rows come from owns the writes. Otherwise its parts are nobody's business.
    fn is_owner(&self) -> bool {
        self.shared.admissions.get().is_owner()
    }

    /// Copies everything. The copy goes on by itself while parts that are gone leave.
    async fn backfill(&mut self) -> Outcome<()> {
        let work = self.tables.values().map(|t| Work::new(t.id.into(), t.clone(), self.onto)).collect();
        let (shared, workers) = (self.shared.clone(), self.workers);
        let (over, mut is_over) = watch::channel(false);
        let copying = async move {
            backfill::run(shared.clone(), work, workers).await?;
            let why = "everything is copied; the stream catches up with the last region";
            shared.progress.waiting("copy", Some(why.into()));
            hand_over(&shared).await?;
            shared.progress.waiting("copy", None);
            over.send_replace(true);
            Ok(())
        };
        let (leaves, moving, admissions) = (&mut self.leaves, &self.moving, &self.shared.admissions);
        let looking = async {
            // Told to end, not dropped: a part that has left on the source must be remembered on the target, too.
            while timeout(LOOK_PAUSE, is_over.wait_for(|over| *over)).await.is_err() {
                let moving = moving.moving().await;
                if moving.is_some() && admissions.get().is_owner() {
                    leaves.look(false).await?;
                }
            }
            Ok(())
        };
        // Side by side: a look can wait for the stream, and the stream for a region whose copy has failed.
        tokio::try_join!(copying, looking)?;
        Ok(())
    }
}

/// Everything is copied: once the stream has passed a signal emitted after the last seam, every event applies
/// and no region needs to be remembered. A single row that the stream had copied meanwhile has a later seam
/// and asks for another signal.
async fn hand_over<S: Source, T: Target>(shared: &Shared<S, T>) -> Outcome<()> {
    let Shared { progress, regions, source, target, .. } = shared;
    let stored = loop {
        let marked = regions.marked();
        let stored = target.last_region().await?;
        let signal = source.signal().await?;
        killpoint::pass("backfill.signalled");
        progress.passed(signal).await;
        if regions.retire(marked) {
            break stored;
        }
    };
    killpoint::pass("backfill.passed");
    // Killed before this line, the next start finds regions whose seams lie before everything still to come.
    target.forget_regions(stored).await?;
    killpoint::pass("backfill.forgotten");
    Ok(())
}

/// The region maps as they are stored.
async fn restore<S: Source>(
    source: &S,
    tables: &BTreeMap<TableId, Arc<Table>>,
    stored: &Stored,
) -> Outcome<BTreeMap<UnitId, UnitRegions>> {
    let mut units = BTreeMap::new();
    for table in tables.values() {
        let unit = UnitId::from(table.id);
        if !stored.backfilled {
            units.insert(unit, copying(source, table, unit, stored).await?);
        } else if let Some(regions) = stored.regions.get(&unit) {
            units.insert(unit, overrides(order_of(table), regions));
        }
    }
    for part in &stored.parts {
        let unknown = || Fault::bug("SEGUE-TABLE", format!("{} belongs to no table of the plan", part.name));
        let table = tables.get(&part.table).ok_or_else(unknown)?;
        units.insert(part.unit, copying(source, table, part.unit, stored).await?);
    }
    Ok(units)
}

fn order_of(table: &Table) -> Vec<KeyOrder> {
    table.key().map_or_else(Vec::new, |key| key.order.clone())
}

/// The map of a unit that is not wholly copied, or not handed over.
async fn copying<S: Source>(
    source: &S,
    table: &Table,
    unit: UnitId,
    stored: &Stored,
) -> Outcome<UnitRegions> {
    let regions = stored.regions.get(&unit).map_or(&[][..], Vec::as_slice);
    let copied = in_key_order(source, table, regions).await?;
    let skipped: BTreeSet<Xid> =
        stored.checkpoint.skipped.get(&unit).into_iter().flatten().copied().collect();
    let inconsistent = |e| Fault::bug("SEGUE-REGIONS", format!("stored regions of {}: {e}", table.source));
    UnitRegions::restore(order_of(table), copied, skipped).map_err(inconsistent)
}

fn overrides(order: Vec<KeyOrder>, regions: &[StoredRegion]) -> UnitRegions {
    let mut unit = UnitRegions::followed(order);
    for region in regions {
        match &region.copied.extent {
            Extent::Key(key) => unit.override_key(key.clone(), region.copied.seam.clone()),
            Extent::Range { .. } => unit.override_all(region.copied.seam.clone()),
        }
    }
    unit
}

/// Stored regions sorted by their lower bounds; the source is asked where only it knows the order.
async fn in_key_order<S: Source>(
    source: &S,
    table: &Table,
    regions: &[StoredRegion],
) -> Outcome<Vec<CopiedRegion>> {
    let lower = |r: &StoredRegion| match &r.copied.extent {
        Extent::Range { lower, .. } => lower.clone(),
        Extent::Key(_) => None,
    };
    let lowers: Vec<KeyText> = regions.iter().filter_map(lower).collect();
    let order = table.key().map_or(&[][..], |k| &k.order);
    let mut places = if order.contains(&KeyOrder::AskSource) {
        source.places(table, &lowers, &lowers).await?
    } else {
        let mut sorted = lowers.clone();
        sorted.sort_by(|a, b| compare(order, a, b).unwrap_or(Ordering::Equal));
        let below = |key| sorted.partition_point(|l| compare(order, l, key) == Some(Ordering::Less));
        lowers.iter().map(below).collect()
    }
    .into_iter();
    let mut placed: Vec<(usize, CopiedRegion)> = Vec::with_capacity(regions.len());
    for region in regions {
        let place = if lower(region).is_some() { places.next().map_or(0, |p| p + 1) } else { 0 };
        placed.push((place, region.copied.clone()));
    }
    placed.sort_by_key(|(place, _)| *place);
    Ok(placed.into_iter().map(|(_, region)| region).collect())
}
