//! Repair: the owner's rows copied anew over what is there, through the stream's own machinery.
//!
//! The stream stands while a row is copied, so nothing it has applied or is about to apply can fall between the row's
//! snapshot and its seam. Afterwards the seam decides about later events, as it does for any copied region.
//!
//! A stream whose side does not own the writes refuses: its rows are not the ones that are right.

use super::build::{Batch, Builder, gone};
use crate::admission::Admissions;
use crate::backfill::{Work, copy_region};
use crate::fault::Fault;
use crate::moving::Moving;
use crate::ports::{Onto, Outcome, Source, Target};
use crate::verify::passage::StreamPassage;
use crate::verify::ports::{Passage, Repairer};
use segue_model::region::{Extent, UnitRegions};
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
    done: oneshot::Sender<Outcome<()>>,
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
    async fn repair(&self, table: &Table, extent: &Extent) -> Outcome<()> {
        // Also here: a stream that waits for the decision does not hear of requests.
        self.admissions.owner_only(&what(table))?;
        // Where equal keys can have different text, an event could not be matched to a single row's seam.
        let by_key = table.key().is_some_and(|key| key.bytewise);
        let extent = if by_key { extent.clone() } else { Extent::ALL };
        let still = self.moving.still().await;
        let (done, answer) = oneshot::channel();
        let request = RepairRequest { table: table.id, extent, done, _still: still };
        self.requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn what(table: &Table) -> String {
    format!("rows of {} cannot be repaired", table.source)
}

impl<S: Source, T: Target> Builder<S, T> {
    /// Repairs what is asked for. Only a fault that ends the stream is returned; the asker hears of any other.
    pub(super) async fn repair(&mut self, batch: &mut Batch, request: RepairRequest) -> Outcome<()> {
        let RepairRequest { table, extent, done, _still } = request;
        self.flush(batch).await?;
        let what = what(&*self.table(table)?);
        let allowed = allowed(self.shared.admissions.clone(), &self.passage, &what).await?;
        if allowed.is_ok() {
            self.copy_again(table, extent).await?;
        }
        let _ = done.send(allowed);
        Ok(())
    }

    async fn copy_again(&mut self, id: TableId, extent: Extent) -> Outcome<()> {
        let table = self.table(id)?;
        let unit = UnitId::from(id);
        let order = table.key().map_or_else(Vec::new, |key| key.order.clone());
        let (mut reader, mut writer) = self.sessions().await?;
        let work = Work::new(unit, table, Onto::Replaced);
        loop {
            let marked = match &extent {
                Extent::Key(key) => {
                    self.regions().ensure(unit, || UnitRegions::followed(order.clone()));
                    self.regions().begin_shown_key(unit, key.clone())
                }
                Extent::Range { .. } => {
                    self.regions().add(unit, UnitRegions::new(order.clone()));
                    let gap = self.regions().next_gap(unit);
                    gap.and_then(|(id, _)| self.regions().begin(unit, id, None)).map(|(id, _)| id)
                }
            };
            let Some(id) = marked else {
                return Err(Fault::bug(
                    "SEGUE-REPAIR",
                    format!("{} cannot be marked for a copy", work.table.source),
                ));
            };
            if copy_region(&self.shared, &mut reader, &mut writer, &work, id, &extent).await?.is_some() {
                break;
            }
        }
        self.sessions = Some((reader, writer));
        Ok(())
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
