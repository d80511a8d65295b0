//! Between the flip and the new owner: what a failover of the old one would bring back.

use super::Switch;
use super::act::{AFTERWARDS_TRIES, PAUSE};
use super::walk::Walk;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::switch::decide::Turn;
use serde_json::json;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long standbys that no commit waits for are waited for, at most: nobody may write meanwhile …
const STANDBYS_PATIENCE: Duration = Duration::from_millis(500);
/// … and so much longer for the answers …
const ASKED_MAX: Duration = Duration::from_millis(200);
/// … and no longer than this part of what the spec allows.
const STANDBYS_SHARE: u32 = 4;

impl Switch<'_> {
    /// The hand-over is where it must be before anybody relies on it: on the standbys that commits wait for, and, if they
    /// keep up, on all others that could be promoted.
    pub(super) async fn make_durable(&self, turn: Turn, walk: &mut Walk) -> Outcome<()> {
        let old = self.side(turn.from);
        for _ in 0..AFTERWARDS_TRIES {
            if walk.durable {
                if walk.has_standbys && walk.standbys_without.is_none() {
                    let hold_max = self.driver.spec.switch.max_write_hold;
                    let patience = STANDBYS_PATIENCE.min(hold_max / STANDBYS_SHARE);
                    // The old side may be dying: that no longer keeps the new one closed.
                    let asked = timeout(patience + ASKED_MAX, old.standbys_without(patience)).await;
                    let unasked =
                        || vec!["somebody, for all that is known (the server did not answer)".to_owned()];
                    let without =
                        asked.map_or_else(|_| unasked(), |asked| asked.unwrap_or_else(|_| unasked()));
                    for standby in &without {
                        self.driver.screen.say(&unaware(turn, standby));
                    }
                    if !without.is_empty() {
                        self.journal
                            .note("standbys-without", json!({ "side": turn.from, "standbys": without }));
                    }
                    walk.standbys_without = Some(without);
                }
                return Ok(());
            }
            walk.durable = old.is_durable().await?;
            if !walk.durable {
                sleep(PAUSE).await;
            }
        }
        let what = "the hand-over is not on the old owner's standbys yet, so the new owner is not opened";
        Err(Fault::retry("SEGUE-FLIP-STANDBY", what))
    }
}

/// What is told of a standby that has not received the hand-over.
fn unaware(turn: Turn, standby: &str) -> String {
    format!(
        "{standby} follows the {from}, and is not known to have received that the writes were handed over when the {to} was opened: promoted \
         before it has, it would take writes again",
        from = turn.from,
        to = turn.from.other()
    )
}
