//! The end of a process that needs a person: shown, stored, and the lease given back.
//!
//! It may come before anybody was shut out, and before anything was found out about the migration. Whoever looks afterwards is
//! told all the same; but only by a process that holds the lease, so that nobody who drives is disturbed.

use super::switch::rows;
use super::{Driver, PATIENCE_AT_END, throttle};
use crate::exit::Exit;
use crate::report::{LiveVerification, Owner, RunState, SlotState, Status, WayBackState};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::progress::Snapshot;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_postgres::control::{Lease, shut_out};
use serde_json::json;
use std::sync::atomic::Ordering;
use tokio::time::timeout;

impl Driver {
    /// Ends with a fault: shows it, stores it, gives the lease back.
    pub(super) async fn give_up(&self, lease: Option<&Lease>, fault: &Fault) -> Exit {
        self.screen.fault(fault);
        if let Some(lease) = lease {
            self.tell_end(lease, fault).await;
            let _ = self.control.release(lease).await;
        }
        if self.begun.load(Ordering::Relaxed) { Exit::Fault } else { Exit::of(fault) }
    }

    /// Reports and journals how it ends.
    async fn tell_end(&self, lease: &Lease, fault: &Fault) {
        let Fault { code, what, next_step, .. } = fault;
        let failed =
            RunState::Failed { code: (*code).to_owned(), fault: what.clone(), next_step: next_step.clone() };
        match self.control.read_status().await {
            Ok(None) => self.tell_first(lease, failed).await,
            Ok(Some(_)) | Err(_) => self.tell_run(lease, |_| Some(failed)).await,
        }
        let body = json!({ "code": code, "fault": what, "next_step": next_step });
        let told = self.record(lease, "fault", body.clone()).await;
        // The journal takes the word of the highest token that was raised there. One that has ended early has not raised its own.
        let is_early = told.is_err_and(|refused| refused.code == "SEGUE-SUPERSEDED");
        let is_of_here = is_early && self.control.is_of_here().await.unwrap_or(false);
        if is_of_here && *code != "SEGUE-SUPERSEDED" && self.superseded(lease).await.is_none() {
            let again = async {
                shut_out(&self.sides.control, self.spec.name.as_str(), lease.token, true).await?;
                self.record(lease, "fault", body).await
            };
            let _ = timeout(PATIENCE_AT_END, again).await;
        }
    }

    /// That another process has taken over, if it has: whatever this one then ran into is that one's doing, and no fault of
    /// the migration.
    pub(super) async fn superseded(&self, lease: &Lease) -> Option<Fault> {
        let beat = timeout(PATIENCE_AT_END, self.control.beat(lease)).await;
        beat.ok()?.err().filter(|fault| fault.code == "SEGUE-SUPERSEDED")
    }

    /// Reports again what was reported last, with what has become of the run since. A fault is that of the next attempt.
    pub(super) async fn tell_run(&self, lease: &Lease, now: impl FnOnce(RunState) -> Option<RunState>) {
        if let Ok(Some((body, _))) = self.control.read_status().await
            && let Ok(mut status) = serde_json::from_value::<Status>(body)
            && let Some(run) = now(status.run.clone())
        {
            status.run = run;
            let _ = self.control.publish_status(lease, &json!(status)).await;
        }
    }

    /// Reports for the first time: it ends before there was anything to report.
    async fn tell_first(&self, lease: &Lease, run: RunState) {
        let stage = if self.begun.load(Ordering::Relaxed) { Stage::Preparing } else { Stage::Planned };
        let owner = timeout(PATIENCE_AT_END, self.owner_now()).await;
        let owner = owner.ok().and_then(Result::ok).flatten().map_or(Owner::Ambiguous, Owner::from);
        // None was raised on the source; a later run that finds a smaller one there would take it for restored.
        let status = Status { owner, ..self.early_status(stage, 0, run) };
        let _ = self.control.publish_status(lease, &json!(status)).await;
    }

    /// Who owns the writes, as far as both sides can be asked.
    async fn owner_now(&self) -> Outcome<Option<Side>> {
        let Driver { spec, sides, .. } = self;
        let (source, target) =
            tokio::try_join!(sides.source.connect("status"), sides.target.connect("status"))?;
        Ok(rows::both(&source, &target, spec.name.as_str()).await?.owner())
    }

    /// The report of a migration that has no stream yet.
    pub(super) fn early_status(&self, stage: Stage, token: i64, run: RunState) -> Status {
        let Driver { spec, sides, holder, .. } = self;
        Status {
            migration: spec.name.as_str().to_owned(),
            stage,
            owner: Owner::Source,
            run,
            source: sides.source.to_string(),
            target: sides.target.to_string(),
            driver: holder.clone(),
            token,
            progress: Snapshot::default(),
            slot: SlotState::default(),
            live: LiveVerification::default(),
            warnings: Vec::new(),
            way_back: WayBackState::default(),
            gates: Vec::new(),
            trouble: Vec::new(),
            rollback: Vec::new(),
            throttle: throttle::state(self),
        }
    }
}
