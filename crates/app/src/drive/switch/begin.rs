//! What has to be so before writes are handed over: the way back stands, and the gates are open.

use super::answer::Progress;
use super::{PAIRED_FOR, Switch, move_from};
use crate::drive::back::BackState;
use crate::drive::gates::{BASELINE, Measured};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::switch::decide::Asked;
use segue_model::switch::gates::{self, Gate, Override};
use segue_model::table::Table;
use segue_postgres::sequences::Sequences;
use serde_json::{Value, json};
use std::time::Instant;
use tokio::sync::watch;

/// What is known before a hand-over begins.
pub(super) struct Beginning {
    /// The gates that are closed.
    pub(super) blockers: Vec<gates::Blocker>,
    /// Sequences that were found not to be ready.
    pub(super) unready: Vec<String>,
    /// The owner's activity beside its baseline, for the journal …
    pub(super) environment: Value,
    /// … and what is unusual about it, for people.
    pub(super) unlike: Vec<String>,
}

impl Beginning {
    /// The record of a hand-over that begins.
    pub(super) fn begun(&self, asked: Asked, by: &str, overrides: &[Override]) -> Value {
        json!({ "asked": asked, "by": by, "overrides": overrides, "environment": self.environment })
    }
}

impl Switch<'_> {
    /// Refuses what could only wait for ever.
    pub(super) fn can_begin(&self) -> Outcome<()> {
        if let Some(why) = self.driver.throttle.limits().paused {
            let what = format!("the migration is paused ({why}): nothing would arrive on the other side");
            return Err(Fault::operator("SEGUE-PAUSED", what, "`segue resume`, then ask again"));
        }
        let stage = self.flows.stage();
        if !stage.has_reached(Stage::Following) {
            let what = format!("the migration is {stage}: not everything is copied yet");
            return Err(Fault::operator(
                "SEGUE-NOT-FOLLOWING",
                what,
                "`segue wait following`, then ask again",
            ));
        }
        Ok(())
    }

    /// Why nothing leads back to the source any more, if nothing does.
    pub(in crate::drive) fn way_back_lost(&self) -> Option<String> {
        match self.back.state() {
            BackState::Lost(fault) => Some(fault.what),
            BackState::NotArmed | BackState::Arming { .. } | BackState::Armed => None,
        }
    }

    /// Has the way back made, if it is not there or does not have all parts of the tables, and waits for it. Returns whether
    /// that was so.
    pub(super) async fn ensure_way_back(&self, progress: &watch::Sender<Progress>) -> Outcome<bool> {
        let mut state = self.back.want();
        // Once: what is on its way on the target stays so for a while, and is told by the hand-over.
        let mut may_renew = *self.flows.owner.borrow() == Some(Side::Source);
        let mut armed = false;
        loop {
            let now = state.borrow_and_update().clone();
            armed |= now != BackState::Armed;
            match now {
                BackState::Armed => match self.lacking_on_way_back().await? {
                    Some(table) if std::mem::take(&mut may_renew) => {
                        self.back.renew(table);
                        armed = true;
                        continue;
                    }
                    Some(_) | None => return Ok(armed),
                },
                BackState::Lost(fault) => return Err(fault.during("the way back cannot be armed")),
                BackState::NotArmed => {}
                BackState::Arming { waits_for } => {
                    progress.send_modify(|progress| {
                        progress.waits_for =
                            format!("the way back is being made {waits_for}").trim_end().to_owned();
                    });
                }
            }
            let mut given_up = self.given_up.subscribe();
            let changed = tokio::select! {
                changed = state.changed() => changed,
                _ = given_up.wait_for(Option::is_some) => {
                    let what = "the order was given up while the way back was made; making it goes on";
                    return Err(Fault::operator("SEGUE-GIVEN-UP", what, "`segue resume`, then ask again"));
                }
            };
            changed.map_err(|_| Fault::retry("SEGUE-SWITCH-OVER", "the attempt has ended"))?;
        }
    }

    /// Looks at all that has to be known before it begins.
    pub(super) async fn beginning(
        &self,
        asked: Asked,
        owner: Side,
        overrides: &[Override],
    ) -> Outcome<Beginning> {
        // Nothing that somebody looked at earlier.
        *self.paired.lock().await = None;
        let measured = self.measured(owner).await?;
        let unready = measured.sequences_unready.clone().unwrap_or_default();
        let (evidence, (environment, unlike)) = {
            let mut gates = self.gates.lock().await;
            gates.expire();
            let evidence = gates.look(measured).await?;
            if let Some(baseline) = gates.new_baseline() {
                self.journal.note(BASELINE, baseline);
            }
            (evidence, gates.environment())
        };
        let mut blockers =
            gates::blockers(move_from(owner), &self.driver.spec.switch.gates, &evidence, overrides);
        if asked == Asked::Rehearse {
            blockers.retain(|blocker| blocker.gate != Gate::Rehearsal);
        }
        // It stays closed, and says why; but nothing will open it any more, and this is the only way back there is.
        if self.flows.has_lost(owner) {
            blockers.retain(|blocker| blocker.gate != Gate::WayBack);
        }
        Ok(Beginning { blockers, unready, environment, unlike })
    }

    /// What the gates are judged by, as far as it is known here.
    pub(in crate::drive) async fn measured(&self, owner: Side) -> Outcome<Measured> {
        let active = self.flows.active();
        let opposite = self.flows.landing_on(owner);
        let opposite = gates::Opposite {
            is_armed: opposite.is_some(),
            is_lost: self.flows.has_lost(owner),
            behind_bytes: opposite.map_or(0, |flow| flow.progress.snapshot().lag_bytes),
            stands_still: owner == Side::Target && matches!(self.back.state(), BackState::Lost(_)),
        };
        Ok(Measured {
            lag_ms: active.progress.snapshot().lag_ms,
            live: active.verifying.live(),
            opposite: Some(opposite),
            sequences_unready: self.unready_sequences(owner).await?,
            rehearsed_us: self.journal.rehearsed_us(),
            owner,
        })
    }

    /// Sequences that could not be set on the new side, as they were last paired.
    async fn unready_sequences(&self, owner: Side) -> Outcome<Option<Vec<String>>> {
        let mut paired = self.paired.lock().await;
        if paired.as_ref().is_none_or(|(of, at, _)| *of != owner || at.elapsed() > PAIRED_FOR) {
            let Some(flow) = self.flows.landing_on(owner.other()) else { return Ok(None) };
            let tables: Vec<_> = flow.tables.iter().map(|table| Table::clone(table)).collect();
            let pair = async {
                let (old, new) = tokio::try_join!(
                    self.endpoint(owner).connect("sequences"),
                    self.endpoint(owner.other()).connect("sequences")
                )?;
                Sequences::pair(&old, &new, &tables, flow.direction).await
            };
            // What could not be looked at is not measured, and keeps the gate closed; it is no fault of the stream.
            match pair.await {
                Ok(sequences) => *paired = Some((owner, Instant::now(), sequences.unready().to_vec())),
                Err(fault) => {
                    tracing::debug!("the sequences could not be looked at: {fault}");
                    return Ok(None);
                }
            }
        }
        Ok(paired.as_ref().map(|(_, _, unready)| unready.clone()))
    }
}
