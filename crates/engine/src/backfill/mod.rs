//! Backfill: copying all regions of all units with several workers, each in a unit of its own while there are enough, biggest
//! tables first.
//!
//! A region is there with its seam or not at all. Nothing here knows what a snapshot is made of, or which
//! events the stream drops; it only marks regions in the shared map at the right moments.

mod pick;
mod region;

pub use region::copy_region;

use crate::admission::Admissions;
use crate::fault::Fault;
use crate::ports::{Onto, Outcome, RegionReader, Source, Target};
use crate::progress::Progress;
use crate::regions::Regions;
use crate::throttle::Throttle;
use pick::{Picked, pick};
use region::Copied;
use segue_model::region::{Extent, RegionId};
use segue_model::table::{Table, UnitId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Rows of the first region of a table at most, before its speed is known …
const FIRST_REGION_ROWS: u64 = 20_000;
/// … and about how many bytes: a few rows can be large.
const FIRST_REGION_BYTES: u64 = 4 << 20;
/// A region never has more rows than this, however fast the table is.
const REGION_ROWS_MAX: u64 = 5_000_000;
/// Rows are on their way for no longer than so many times the target time, however long a region takes before they come.
const FIXED_SHARE_MAX: u64 = 4;
/// A worker that finds no gap but incomplete units looks again after this long.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A unit to be copied.
#[derive(Debug)]
pub struct Work {
    /// The unit.
    pub unit: UnitId,
    /// Its table.
    pub table: Arc<Table>,
    /// What its rows find on the target. Those of a leaf that was attached later are replaced by the whole unit's
    /// condition, so that the unit is one region.
    pub onto: Onto,
    /// Of a single row: the version that it must still have under the snapshot, if it is there.
    pub steady: Option<String>,
    /// So many workers are at it.
    workers: AtomicUsize,
    /// Held while a bound is looked up, so that two workers do not cut the same gap.
    cutting: tokio::sync::Mutex<()>,
    /// Rows of the next region.
    region_rows: AtomicU64,
    /// No fewer rows: of smaller regions only the overhead would be measured.
    rows_min: u64,
}

impl Work {
    /// Work for one unit.
    pub fn new(unit: UnitId, table: Arc<Table>, onto: Onto) -> Work {
        let rows = (FIRST_REGION_BYTES / row_bytes(&table)).clamp(1, FIRST_REGION_ROWS);
        Work {
            unit,
            table,
            onto,
            steady: None,
            workers: AtomicUsize::new(0),
            cutting: tokio::sync::Mutex::default(),
            region_rows: AtomicU64::new(rows),
            rows_min: rows.min(100),
        }
    }

    /// Whether its rows must be copied under one snapshot: in several regions, rows of one could be in another's way, or
    /// be taken for another's where the two servers order keys differently.
    fn is_one_region(&self) -> bool {
        match self.onto {
            Onto::Nothing | Onto::Replaced => self.table.one_region.is_some(),
            Onto::Compared => self.table.one_region.is_some() || !self.table.orders_alike(),
        }
    }

    /// Steers the size of the next region towards the target time.
    fn steer(&self, copied: &Copied, target: Duration) {
        let next = steered(self.region_rows.load(Ordering::Relaxed), copied, target);
        self.region_rows.store(next.clamp(self.rows_min, REGION_ROWS_MAX), Ordering::Relaxed);
    }
}

/// Rows of the next region, of which there were meant to be `now`, after one that came to `copied`.
fn steered(now: u64, copied: &Copied, target: Duration) -> u64 {
    let target_ms = u64::try_from(target.as_millis()).unwrap_or(u64::MAX);
    // Where a region takes long before its first row comes (a server that is far away, or busy) it has to be worth it: by its
    // whole time regions would become ever smaller there, and the copy ever slower.
    let target_ms = copied.fixed_ms.clamp(target_ms, target_ms.saturating_mul(FIXED_SHARE_MAX));
    let ideal = copied.rows.saturating_mul(target_ms) / copied.streamed_ms.max(1);
    // At most doubled or halved at a time: one odd region must not make the next one huge.
    ideal.clamp(now / 2, now.saturating_mul(2))
}

/// What the backfill shares with the rest of the migration.
pub struct Shared<S, T> {
    /// Where rows come from.
    pub source: Arc<S>,
    /// Where rows go.
    pub target: Arc<T>,
    /// What of the source's log may be applied.
    pub admissions: Arc<Admissions>,
    /// The map.
    pub regions: Arc<Regions>,
    /// Counters.
    pub progress: Arc<Progress>,
    /// Pause, workers and rate.
    pub throttle: Arc<Throttle>,
    /// How long the copy of a region should take.
    pub region_target: Duration,
}

/// Copies everything in `work`. Ends when every region is committed, or with the first fault.
pub async fn run<S: Source, T: Target>(
    shared: Arc<Shared<S, T>>,
    mut work: Vec<Work>,
    workers: usize,
) -> Outcome<()> {
    work.sort_by_key(|w| std::cmp::Reverse(w.table.estimate.bytes));
    let work: Arc<[Work]> = work.into();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..workers {
        tasks.spawn(worker(shared.clone(), work.clone(), number));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|e| Fault::bug("SEGUE-TASK", format!("a copy worker ended unexpectedly: {e}")))??;
    }
    Ok(())
}

async fn worker<S: Source, T: Target>(
    shared: Arc<Shared<S, T>>,
    work: Arc<[Work]>,
    number: usize,
) -> Outcome<()> {
    let mut reader = shared.source.reader().await?;
    let mut writer = shared.target.writer().await?;
    let mut worked = Duration::ZERO;
    loop {
        let admitted = async {
            shared.throttle.rest(worked).await;
            shared.throttle.admit(number, &shared.progress).await;
        };
        tokio::select! {
            () = admitted => {}
            () = complete(&shared.regions, &work) => return Ok(()),
        }
        let Some((task, id, extent)) = take(&shared, &work, &mut reader).await? else {
            if work.iter().all(|w| shared.regions.is_complete(w.unit)) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        };
        crate::killpoint::pass("region.marked");
        let began = Instant::now();
        let copy = copy_region(&shared, &mut reader, &mut writer, &task, id, &extent);
        let copied = shared
            .throttle
            .unless_contained(copy)
            .await
            .flatten()
            .map_err(|f| f.during(format_args!("copying {}", task.table.source)))?;
        worked = began.elapsed();
        let Some(copied) = copied else { continue };
        task.steer(&copied, shared.region_target);
        if shared.regions.is_complete(task.unit) {
            shared.progress.table_complete(task.table.id);
        }
    }
}

/// Ends when every unit of `work` has been copied.
async fn complete(regions: &Regions, work: &[Work]) {
    let mut changed = regions.watch();
    while !work.iter().all(|w| regions.is_complete(w.unit)) && changed.changed().await.is_ok() {}
}

/// Marks the next region to copy: the first gap of the unit that is picked.
async fn take<'w, S: Source, T: Target>(
    shared: &Shared<S, T>,
    work: &'w [Work],
    reader: &mut S::Reader,
) -> Outcome<Option<(Picked<'w>, RegionId, Extent)>> {
    while let Some(task) = pick(&shared.regions, work) {
        let cutting = task.cutting.lock().await;
        // Another worker may have taken the last gap meanwhile.
        let Some((gap, within)) = shared.regions.next_gap(task.unit) else { continue };
        let upper = match task.onto {
            Onto::Replaced => None,
            Onto::Nothing | Onto::Compared if task.is_one_region() => None,
            Onto::Nothing | Onto::Compared => {
                let rows = task.region_rows.load(Ordering::Relaxed);
                let rows =
                    shared.throttle.of_rows(rows).max(task.rows_min).min(affordable(shared, &task.table));
                let bound = reader.bound_after(&task.table, task.unit, &within, rows).await;
                bound.map_err(|f| f.during(format_args!("cutting a region of {}", task.table.source)))?
            }
        };
        if let Some((id, extent)) = shared.regions.begin(task.unit, gap, upper) {
            drop(cutting);
            return Ok(Some((task, id, extent)));
        }
    }
    Ok(None)
}

/// Rows that the throttle's rate lets through in a region's time: what is copied at once and paid for afterwards is no
/// burst.
fn affordable<S, T>(shared: &Shared<S, T>, table: &Table) -> u64 {
    let Some(rate) = shared.throttle.bytes_per_s() else { return REGION_ROWS_MAX };
    let bytes = rate.saturating_mul(shared.region_target.as_millis() as u64) / 1000;
    (bytes / row_bytes(table)).max(1)
}

/// Size of a row, as far as the catalog knows.
fn row_bytes(table: &Table) -> u64 {
    (table.estimate.bytes / table.estimate.rows.max(1)).clamp(16, 1 << 30)
}

/// Milliseconds since `start`, at least 1.
fn elapsed_ms(start: Instant) -> u64 {
    (start.elapsed().as_millis() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(1000);

    fn after(rows: u64, fixed_ms: u64, streamed_ms: u64) -> u64 {
        steered(rows, &Copied { rows, fixed_ms, streamed_ms }, TARGET)
    }

    #[test]
    fn regions_grow_or_shrink_to_their_time_and_not_at_once() {
        assert_eq!(after(1000, 5, 100), 2000);
        assert_eq!(after(1000, 5, 800), 1250);
        assert_eq!(after(1000, 5, 1250), 800);
        assert_eq!(after(1000, 5, 60_000), 500);
        assert_eq!(after(1000, 5, 0), 2000);
    }

    #[test]
    fn a_server_that_is_far_away_is_asked_for_more_and_not_for_less() {
        assert_eq!(after(1000, 3_000, 1_000), 2000, "three of four seconds were no row's");
        assert_eq!(after(1000, 3_000, 3_000), 1000);
        assert_eq!(after(1000, 60_000, 4_000), 1000, "a snapshot is not held for a minute");
    }
}
