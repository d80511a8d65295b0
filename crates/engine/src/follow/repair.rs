//! Repair: the owner's rows copied anew over what is there, through the stream's own machinery.
//!
//! The stream stands while a row is copied, so nothing it has applied or is about to apply can fall between the row's
//! snapshot and its seam. Afterwards the seam decides about later events, as it does for any copied region.
//!
//! The row comes from a moment that the stream has not reached, to other rows that are still as they were. Where one row can
//! keep another one out, that would stop the stream: an event of the time between, which gives another row a value that this
//! one has now, and may have got only later. So there a row is copied only if the owner has shown this very version of it
//! before something that was applied since. It has then stood still all the time between, and what it holds nobody else had:
//! the other side is what the owner was where the stream stands.
//!
//! A stream whose side does not own the writes refuses: its rows are not the ones that are right.

use super::build::{Batch, Builder, gone};
use crate::admission::Admissions;
use crate::backfill::{Shared, Work, copy_region};
use crate::fault::{Fault, Recovery};
use crate::killpoint;
use crate::moving::Moving;
use crate::ports::{Onto, Outcome, RegionReader, RegionWriter, Source, Target};
use crate::regions::Regions;
use crate::verify::passage::StreamPassage;
use crate::verify::ports::{Passage, Repaired, Repairer};
use segue_model::region::{Extent, RegionId, UnitRegions};
use segue_model::table::{Table, TableId, UnitId};
use std::sync::Arc;
use tokio::sync::{OwnedRwLockReadGuard, mpsc, oneshot};

/// Requests that may wait.
const REQUESTS_MAX: usize = 16;

/// Rows to be copied anew.
#[derive(Debug)]
pub struct RepairRequest {
    table: TableId,
    extent: Extent,
    /// The version that the owner's row had before something that has been applied since.
    seen: Option<String>,
    done: oneshot::Sender<Outcome<Repaired>>,
    /// No part is moved while this is repaired, whether or not anybody still waits for it.
    _still: OwnedRwLockReadGuard<()>,
}

/// Asks the running stream for repairs.
#[derive(Clone, Debug)]
pub struct StreamRepairer {
    requests: mpsc::Sender<RepairRequest>,
    moving: Arc<Moving>,
    admissions: Arc<Admissions>,
}

impl StreamRepairer {
    /// A repairer, and where the stream hears of its requests. It waits while `moving` is held by parts on their way, and
    /// refuses while `admissions` does not let the stream's side own the writes.
    pub fn new(
        moving: Arc<Moving>,
        admissions: Arc<Admissions>,
    ) -> (StreamRepairer, mpsc::Receiver<RepairRequest>) {
        let (requests, heard) = mpsc::channel(REQUESTS_MAX);
        (StreamRepairer { requests, moving, admissions }, heard)
    }
}

impl Repairer for StreamRepairer {
    async fn repair(&self, table: &Table, extent: &Extent, seen: Option<&str>) -> Outcome<Repaired> {
        // Also here: a stream that waits for the decision does not hear of requests.
        self.admissions.owner_only(&what(table))?;
        // Where equal keys can have different text, an event could not be matched to a single row's seam.
        let by_key = table.key().is_some_and(|key| key.bytewise);
        let extent = if by_key { extent.clone() } else { Extent::ALL };
        let still = self.moving.still().await;
        let (done, answer) = oneshot::channel();
        let seen = seen.map(str::to_owned);
        let request = RepairRequest { table: table.id, extent, seen, done, _still: still };
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn what(table: &Table) -> String {
    format!("rows of {} cannot be repaired", table.source)
}

impl<S: Source, T: Target> Builder<S, T> {
    /// Repairs what is asked for. Only a fault that ends the stream is returned; the asker hears of any other. Whatever a
    /// server says before the commit was asked for is of the second kind: the rows are as they were.
    pub(super) async fn repair(&mut self, batch: &mut Batch, request: RepairRequest) -> Outcome<()> {
        let RepairRequest { table, extent, seen, done, _still } = request;
        self.flush(batch).await?;
        let what = what(&*self.table(table)?);
        let answer = match allowed(self.shared.admissions.clone(), &self.passage, &what).await? {
            Ok(()) => self.copy_again(table, extent, seen).await?,
            Err(refused) => Err(refused),
        };
        let _ = done.send(answer);
        Ok(())
    }

    async fn copy_again(
        &mut self,
        id: TableId,
        extent: Extent,
        seen: Option<String>,
    ) -> Outcome<Outcome<Repaired>> {
        let mut work = Work::new(UnitId::from(id), self.table(id)?, Onto::Replaced);
        let (mut reader, mut writer) = match self.sessions().await {
            Ok(sessions) => sessions,
            Err(fault) => return answer(fault),
        };
        if seen.is_some() {
            match writer.has_rivals(&work.table).await {
                Ok(has_rivals) => work.steady = seen.filter(|_| has_rivals),
                Err(fault) => return answer(fault),
            }
        }
        killpoint::pass("repair.begun");
        let before = self.regions().before(work.unit, &extent);
        let copied = copy_marked(&self.shared, (&mut reader, &mut writer), &work, &extent).await;
        let Err(fault) = copied else {
            self.sessions = Some((reader, writer));
            return Ok(Ok(Repaired::Copied));
        };
        let answer = answer(fault)?;
        // Not given up: its events would be taken for those of a row that is copied later.
        self.regions().put_back(work.unit, before);
        if writer.abandon().await.is_ok() && reader.end().await.is_ok() {
            self.sessions = Some((reader, writer));
        }
        Ok(answer)
    }
}

/// Marks the rows, and copies them.
async fn copy_marked<S: Source, T: Target>(
    shared: &Shared<S, T>,
    (reader, writer): (&mut S::Reader, &mut T::Writer),
    work: &Work,
    extent: &Extent,
) -> Outcome<()> {
    loop {
        let Some(id) = mark(&shared.regions, work, extent) else {
            let what = format!("{} cannot be marked for a copy", work.table.source);
            return Err(Fault::bug("SEGUE-REPAIR", what));
        };
        if copy_region(shared, reader, writer, work, id, extent).await?.is_some() {
            return Ok(());
        }
    }
}

/// Marks rows as being copied anew.
fn mark(regions: &Regions, work: &Work, extent: &Extent) -> Option<RegionId> {
    let (unit, order) = (work.unit, work.table.key().map_or_else(Vec::new, |key| key.order.clone()));
    match extent {
        Extent::Key(key) => {
            regions.ensure(unit, || UnitRegions::followed(order));
            regions.begin_shown_key(unit, key.clone())
        }
        Extent::Range { .. } => {
            regions.add(unit, UnitRegions::new(order));
            let (id, _) = regions.next_gap(unit)?;
            regions.begin(unit, id, None).map(|(id, _)| id)
        }
    }
}

/// What the asker hears of a copy that has failed; or the fault that ends the stream, because it cannot be known whether the
/// rows were committed, or because Segue is wrong.
fn answer(fault: Fault) -> Outcome<Outcome<Repaired>> {
    match fault.recovery {
        Recovery::Operator => Ok(Ok(Repaired::Refused(fault))),
        Recovery::Retry => Ok(Err(fault.during("copying the owner's row"))),
        Recovery::Ambiguous | Recovery::Bug => Err(fault),
    }
}

/// Whether rows may be copied anew now: they are the owner's, and show what was applied last.
async fn allowed<S: Source>(
    admissions: Arc<Admissions>,
    passage: &StreamPassage<S>,
    what: &str,
) -> Outcome<Outcome<()>> {
    if let Err(fault) = admissions.owner_only(what) {
        return Ok(Err(fault));
    }
    match passage.shown().await {
        // The last thing before it reads: it has waited since it was asked.
        Ok(true) => Ok(admissions.owner_only(what)),
        Ok(false) => {
            let what = "the side that the rows come from does not show yet what was applied last: a commit waits for a \
                        synchronous standby";
            Ok(Err(Fault::retry("SEGUE-NOT-SHOWN", what)))
        }
        Err(fault) => match admissions.owner_only(what) {
            Err(refused) => Ok(Err(refused)),
            Ok(()) => Err(fault),
        },
    }
}
