//! Parts of tables that come and go while the stream runs: adopted and let go one after the other.
//!
//! The order is the point. What is gone leaves first, at one place of the stream, and the stream has passed that place
//! before anything new is copied: a new part may hold the very range that an old one had. A part that has been begun is
//! finished before the next look, so that no two of them are ever on their way together.

use crate::backfill::{self, Shared, Work};
use crate::fault::{Fault, Recovery};
use crate::killpoint;
use crate::ports::{Drift, Onto, Outcome, Part, Source, Target};
use crate::progress::Warnings;
use segue_model::region::UnitRegions;
use segue_model::table::{Table, TableId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often the source is asked what has changed.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// What the source says when a lock could not be had in time.
const LOCKED: &str = "SEGUE-LOCKED";

/// The parts of one run.
pub(crate) struct Leaves<S, T> {
    pub(crate) shared: Arc<Shared<S, T>>,
    pub(crate) tables: BTreeMap<TableId, Arc<Table>>,
    /// Parts that an earlier run has stored and not finished.
    pub(crate) pending: Vec<Part>,
    /// Where an operator hears of what no event says.
    pub(crate) warnings: Arc<Warnings>,
}

impl<S: Source, T: Target> Leaves<S, T> {
    /// Deals with everything that has changed. New parts wait until `adopting`: while the backfill runs there is
    /// enough to copy. Returns a part that is copied and only has to be handed over; then look again.
    pub(crate) async fn look(&mut self, adopting: bool) -> Outcome<Option<Part>> {
        let mut attached = Vec::new();
        let mut all_left = true;
        for drift in self.shared.source.drift().await? {
            match drift {
                Drift::Fault(fault) => return Err(fault),
                Drift::Rewritten(name) => self.warnings.say(format!(
                    "{name} was rewritten by a change of its definition on the source: values that it changed are in no \
                     event; `segue verify --repair` compares and mends them"
                )),
                Drift::Rebound(part) => self.shared.target.store_part(&part).await?,
                Drift::Detached(part) => all_left &= self.leave(&part).await?,
                Drift::Attached(part) => attached.push(part),
            }
        }
        if !adopting || !all_left {
            return Ok(None);
        }
        let Some(part) = self.pending.first().cloned().or(attached.into_iter().next()) else {
            return Ok(None);
        };
        let adopted =
            self.adopt(&part).await.map_err(|f| f.during(format_args!("adopting {}", part.name)))?;
        self.pending.retain(|pending| !adopted || pending.unit != part.unit);
        Ok(adopted.then_some(part))
    }

    /// Waits until everything that is committed on the source by now has been applied.
    async fn passed(&self, signal: u64) -> Outcome<()> {
        self.shared.progress.passed(signal).await;
        Ok(())
    }

    /// `false`: a lock could not be had; the next look tries again.
    async fn leave(&mut self, part: &Part) -> Outcome<bool> {
        let Shared { source, target, regions, admissions, .. } = &*self.shared;
        let Some(signal) = self.unless_locked(part, source.leave(part).await)? else { return Ok(false) };
        killpoint::pass("leaf.detached");
        self.passed(signal).await?;
        if !admissions.get().is_owner() {
            // What removes its rows came with the signal, and may have been passed over as a stray. It is not remembered as
            // gone, so it leaves again when this side is the owner again.
            let what = format!("the writes were handed over while {} left", part.name);
            return Err(Fault::retry("SEGUE-LEAF-GONE", what));
        }
        if part.is_late() {
            regions.forget(part.unit);
        }
        self.pending.retain(|pending| pending.unit != part.unit);
        target.part_left(part).await?;
        Ok(true)
    }

    /// `false`: it is no part any more, and the next look says so.
    async fn adopt(&mut self, part: &Part) -> Outcome<bool> {
        let Shared { source, target, regions, .. } = &*self.shared;
        let unknown = || Fault::bug("SEGUE-TABLE", format!("{} belongs to no table of the plan", part.name));
        let table = self.tables.get(&part.table).ok_or_else(unknown)?.clone();
        // Whatever left, or was emptied, before this part came has then been removed from the target. Were the copy
        // there first, removing the rows of an old part with the same range would remove the copy.
        self.passed(source.signal().await?).await?;
        target.store_part(part).await?;
        killpoint::pass("leaf.stored");
        let order = table.key().map_or_else(Vec::new, |key| key.order.clone());
        regions.ensure(part.unit, || UnitRegions::new(order));
        let is_part = loop {
            match self.unless_locked(part, source.adopt(part).await)? {
                Some(is_part) => break is_part,
                None => tokio::time::sleep(LOOK_PAUSE).await,
            }
        };
        if !is_part {
            return Ok(false);
        }
        killpoint::pass("leaf.published");
        let work = Work::new(part.unit, table, Onto::Replaced);
        if let Err(fault) = backfill::run(self.shared.clone(), vec![work], 1).await {
            return Err(self.gone_meanwhile(part, fault).await);
        }
        killpoint::pass("leaf.copied");
        Ok(true)
    }

    /// The stream has passed the part's copy: it is followed like any other.
    pub(crate) async fn followed(&self, part: &Part) -> Outcome<()> {
        self.shared.target.part_followed(part).await
    }

    /// What could not be read because it is gone is no matter for a person.
    async fn gone_meanwhile(&self, part: &Part, fault: Fault) -> Fault {
        match fault.recovery {
            Recovery::Retry | Recovery::Ambiguous | Recovery::Bug => return fault,
            Recovery::Operator => {}
        }
        let drift = self.shared.source.drift().await.unwrap_or_default();
        let gone = |drift: &Drift| matches!(drift, Drift::Detached(gone) if gone.unit == part.unit);
        if drift.iter().any(gone) { Fault::retry("SEGUE-LEAF-GONE", fault.what) } else { fault }
    }

    /// `None`: a lock could not be had. That is said, not failed at.
    fn unless_locked<A>(&self, part: &Part, outcome: Outcome<A>) -> Outcome<Option<A>> {
        let progress = &self.shared.progress;
        match outcome {
            Ok(done) => {
                progress.waiting("leaves", None);
                Ok(Some(done))
            }
            Err(fault) if fault.code == LOCKED => {
                progress.waiting("leaves", Some(format!("{}: {}", part.name, fault.what)));
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }
}
