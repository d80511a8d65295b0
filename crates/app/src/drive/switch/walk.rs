//! What one hand-over has come to so far: the facts that are not in any database, and what is told about it.

use super::answer::{Answer, Moved, Progress, StepTook};
use super::rows::Rows;
use segue_engine::moving::Frozen;
use segue_engine::throttle::Throttle;
use segue_model::switch::Side;
use segue_model::switch::decide::{Asked, Facts};
use segue_model::switch::ownership::{Epoch, FenceId};
use segue_model::switch::steps::Step;
use segue_postgres::sequences::Sequences;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_postgres::Client;

/// Sessions of one hand-over beside those of the fence, opened when it is armed.
pub(super) struct Hands {
    /// On the old owner.
    pub(super) old: Client,
    /// On the new one.
    pub(super) new: Client,
    /// The sequences of both, paired.
    pub(super) sequences: Sequences,
}

/// Streams that were paused go on as long as this lives, and are paused again however it ends.
pub(super) struct Unpaused {
    throttle: Arc<Throttle>,
}

impl Unpaused {
    /// Lets them go on; `why` they were paused.
    pub(super) fn begin(throttle: Arc<Throttle>, why: String) -> Unpaused {
        let mut unpaused = Unpaused { throttle };
        unpaused.go_on(why);
        unpaused
    }

    /// Somebody has paused them meanwhile, too.
    pub(super) fn go_on(&mut self, why: String) {
        self.throttle.change(|limits| (limits.paused, limits.suspended) = (None, Some(why)));
    }
}

impl Drop for Unpaused {
    fn drop(&mut self) {
        // Nothing is left of it if somebody has said `resume` meanwhile.
        self.throttle.change(|limits| {
            if let Some(why) = limits.suspended.take() {
                limits.paused.get_or_insert(why);
            }
        });
    }
}

/// One hand-over, or what a start finds of one.
pub(super) struct Walk {
    pub(super) asked: Asked,
    pub(super) armed: bool,
    pub(super) held_since: Option<Instant>,
    /// Routers take part.
    pub(super) has_routers: bool,
    pub(super) begun: Option<FenceId>,
    pub(super) leftover: bool,
    pub(super) settled: Option<FenceId>,
    pub(super) hands: Option<Hands>,
    /// Sequences that cannot be set, and that the gates were gone through with.
    pub(super) unready: Vec<String>,
    /// What was unusual about the owner when it began.
    pub(super) unlike: Vec<String>,
    /// As long as it is here no part of a table is moved.
    pub(super) still: Option<Frozen>,
    /// When the fence that stands was asked for: from then on writers wait.
    pub(super) stall_since: Option<Instant>,
    /// How long writers waited at most, from the fence to whoever let them in again.
    pub(super) stall: Option<Duration>,
    /// Fences that could not have their locks.
    pub(super) blocked: u32,
    /// Who held locks that the last of them did not get.
    pub(super) in_the_way: Vec<String>,
    /// How often the fence could not be lifted for a lock.
    pub(super) not_lifted: u32,
    /// All that was committed on the old owner, the hand-over too, is where it must be.
    pub(super) durable: bool,
    /// Somebody follows the old owner's server, or nobody has looked.
    pub(super) has_standbys: bool,
    /// Standbys of the old owner that do not have the hand-over yet, and were not waited for any longer.
    pub(super) standbys_without: Option<Vec<String>>,
    /// Nothing that was written on the old owner past its fence is on its way to the new one.
    pub(super) passed: bool,
    /// The streams were paused, and had to go on for this.
    pub(super) paused: Option<Unpaused>,
    /// Why it was given up.
    pub(super) why: Option<String>,
    /// Who was in the way.
    pub(super) holders: Vec<String>,
    pub(super) steps: Vec<StepTook>,
    pub(super) sequences: u64,
    pub(super) compared: u64,
    /// The step under way: when it began.
    step: Option<(Step, Instant)>,
    progress: Option<watch::Sender<Progress>>,
}

impl Walk {
    /// What a start does: completes or undoes what it finds.
    pub(super) fn at_start(leftover: bool) -> Walk {
        Walk { armed: true, leftover, ..Walk::new(Asked::Nothing, None) }
    }

    /// With the sequences that cannot be set, and what was unusual about the owner.
    pub(super) fn knowing(self, unready: Vec<String>, unlike: Vec<String>) -> Walk {
        Walk { unready, unlike, ..self }
    }

    /// A hand-over that was asked for; `progress` hears of each step.
    pub(super) fn new(asked: Asked, progress: Option<watch::Sender<Progress>>) -> Walk {
        Walk {
            asked,
            armed: false,
            held_since: None,
            has_routers: false,
            begun: None,
            leftover: false,
            settled: None,
            hands: None,
            unready: Vec::new(),
            unlike: Vec::new(),
            still: None,
            stall_since: None,
            stall: None,
            blocked: 0,
            in_the_way: Vec::new(),
            not_lifted: 0,
            durable: false,
            has_standbys: true,
            standbys_without: None,
            passed: false,
            paused: None,
            why: None,
            holders: Vec::new(),
            steps: Vec::new(),
            sequences: 0,
            compared: 0,
            step: None,
            progress,
        }
    }

    /// Everything that the next decision depends on.
    pub(super) fn facts(&self, rows: &Rows, applied: Option<FenceId>, max_write_hold: Duration) -> Facts {
        Facts {
            source: rows.seen(Side::Source),
            target: rows.seen(Side::Target),
            asked: self.asked,
            armed: self.armed,
            held: self.held_since.is_some(),
            begun: self.begun,
            leftover: self.leftover,
            applied,
            settled: self.settled,
            elapsed: self.elapsed(),
            max_write_hold,
        }
    }

    /// How long writes have been held.
    pub(super) fn elapsed(&self) -> Duration {
        self.held_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Gives it up: from now on it is undone. The first reason counts.
    pub(super) fn give_up(&mut self, why: String, holders: Vec<String>) {
        self.asked = Asked::Nothing;
        if self.why.is_none() {
            self.why = Some(why);
            self.holders = holders;
        }
    }

    /// A step begins, unless it is under way already; the one before has ended with it.
    pub(super) fn begins(&mut self, step: Step) {
        if self.step.is_some_and(|(now, _)| now == step) {
            return;
        }
        self.ends();
        self.step = Some((step, Instant::now()));
        self.tell();
    }

    /// The step under way has ended.
    pub(super) fn ends(&mut self) {
        let Some((step, since)) = self.step.take() else { return };
        self.steps.push(StepTook::new(step, since.elapsed()));
        self.tell();
    }

    /// Writers are let in again.
    pub(super) fn stall_ends(&mut self) {
        if let Some(since) = self.stall_since.take() {
            self.stalled_for(since.elapsed());
        }
    }

    /// Writers waited for so long, behind a fence or behind one that waited for its locks. The longest time counts.
    pub(super) fn stalled_for(&mut self, stall: Duration) {
        self.stall = self.stall.max(Some(stall));
    }

    /// Tells whoever asked.
    fn tell(&self) {
        if let Some(progress) = &self.progress {
            let doing = self.step.map(|(step, _)| step);
            progress.send_replace(Progress { steps: self.steps.clone(), doing, waits_for: String::new() });
        }
    }

    /// What came of it: `before` owned the writes, and `now` does.
    pub(super) fn answer(self, before: Side, now: Side, epoch: Epoch) -> Answer {
        let stall = self.stall.unwrap_or_default();
        let moved = Moved {
            steps: self.steps,
            sequences: self.sequences,
            unlike_baseline: self.unlike,
            standbys_without: self.standbys_without.unwrap_or_default(),
            compared_under_fence: self.compared,
            ..Moved::to(now, epoch).stalled(stall)
        };
        match self.why {
            _ if now != before => Answer::Switched(moved),
            None => Answer::Rehearsed(moved),
            Some(why) => {
                Answer::undone(now, why, self.holders, stall, "see what was in the way, then ask again")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_engine::throttle::Limits;

    #[test]
    fn what_was_paused_is_paused_again_however_the_hand_over_ends() {
        let throttle = Arc::new(Throttle::new(Limits { paused: Some("by ada".into()), ..Limits::default() }));
        let mut walk = Walk::at_start(false);
        walk.paused = Some(Unpaused::begin(throttle.clone(), "by ada".into()));
        assert_eq!(throttle.limits().paused, None);
        throttle.set(Limits { paused: Some("by bob".into()), ..Limits::default() });
        walk.paused.as_mut().unwrap().go_on("by bob".into());
        assert_eq!(throttle.limits().paused, None);
        drop(walk);
        assert_eq!(throttle.limits().paused.as_deref(), Some("by bob"));
    }

    #[test]
    fn what_was_resumed_during_a_hand_over_stays_so() {
        let throttle = Arc::new(Throttle::new(Limits { paused: Some("by ada".into()), ..Limits::default() }));
        let unpaused = Unpaused::begin(throttle.clone(), "by ada".into());
        throttle.change(Limits::resume);
        drop(unpaused);
        assert_eq!(throttle.limits().paused, None);
    }
}
