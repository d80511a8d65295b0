//! Waiting for what was written before the fence, or before the hand-over, to be applied on the other side.

use super::rows::Rows;
use super::walk::Walk;
use super::{LOOK_AGAIN, PASSED_PATIENCE, Switch};
use segue_engine::fault::Fault;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::switch::decide::Situation;
use segue_model::switch::ownership::FenceId;
use segue_model::switch::steps::Step;
use tokio::time::{sleep, timeout};

impl Switch<'_> {
    /// The fence whose marker has been applied on the other side.
    pub(super) fn applied(&self, rows: &Rows) -> Option<FenceId> {
        let owned = |side: Side| {
            let row = rows.of(side)?;
            let (fence, marker) = (row.ownership.fence_id()?, row.marker?);
            let flow = self.flows.landing_on(side.other())?;
            // A stream that was made anew compares rows first: over writes of the new side it would put the old ones back.
            if !flow.stage.borrow().has_reached(Stage::Following) {
                return None;
            }
            (flow.progress.watch_applied().borrow().signal >= marker).then_some(fence)
        };
        // The side whose fence is the newer one: the other one's has long been passed.
        Side::ALL.into_iter().filter_map(owned).max_by_key(|fence| (fence.epoch, fence.attempt))
    }

    /// Waits until the marker has been applied, but no longer than writes may be held.
    pub(super) async fn drain(&self, rows: &Rows, walk: &mut Walk) -> Outcome<()> {
        walk.begins(Step::Drain);
        killpoint::pass("switch.drain.before");
        let (from, is_past) = match rows.situation() {
            Situation::Fenced { owner, .. } => (owner, false),
            Situation::HandedOver { from, .. } => (from, true),
            Situation::Owned { .. } | Situation::Ambiguous(_) | Situation::Contradictory { .. } => {
                return Err(Fault::bug("SEGUE-SWITCH", "there is no fence to drain"));
            }
        };
        let Some(flow) = self.flows.landing_on(from.other()) else {
            sleep(LOOK_AGAIN).await;
            return Ok(());
        };
        if is_past {
            // The marker itself may lie before the place where this process began to read: a new signal lies behind it.
            // Not for long at a time: somebody may pause the stream meanwhile.
            if let Ok(passed) = timeout(PASSED_PATIENCE, flow.verifying.passed()).await {
                passed?;
            }
            if !flow.stage.borrow().has_reached(Stage::Following) {
                sleep(LOOK_AGAIN).await;
            }
        } else {
            let marker = rows.of(from).and_then(|row| row.marker).unwrap_or(u64::MAX);
            let left = self.driver.spec.switch.max_write_hold.saturating_sub(walk.elapsed());
            // Too late is for the decision to see.
            let mut given_up = self.given_up.subscribe();
            tokio::select! {
                _ = timeout(left, flow.progress.passed(marker)) => {}
                _ = given_up.wait_for(Option::is_some) => {}
            }
        }
        killpoint::pass("switch.drain.after");
        Ok(())
    }
}
