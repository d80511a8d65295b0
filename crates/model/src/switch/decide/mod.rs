//! What comes next in a switch, given what is known: one pure function for the first run, for the resumption after a
//! crash, and for the way back.
//!
//! It keeps nothing between two calls. The rows say how far it has come; what happened in this process adds only why
//! it should stop. An answer [`Decision::Undo`] ends the attempt: from then on, and likewise after a step that failed,
//! a cancellation or a restart, the driver asks with [`Asked::Nothing`], which undoes in reverse order what lies before
//! the point of no return and completes what lies after it.

mod situation;

use super::Side;
use super::ownership::{FenceId, Ownership};
use super::steps::Step;
use serde::{Deserialize, Serialize};
pub use situation::{Situation, situation};
use std::time::Duration;

/// What a database was found to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// Its row, read after the token had been raised there.
    Known(Ownership),
    /// It did not answer, or the token could not be raised there yet.
    Unknown,
}

/// What the operator has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// Writes to the target.
    Switch,
    /// Writes back to the source.
    Reverse,
    /// Everything up to `settle` from whichever side owns the writes, then back: `switch writes --dry-run`.
    Rehearse,
    /// Nothing, or nothing any more.
    Nothing,
}

impl Asked {
    /// The side to hand the writes to, given which side owns them; `None` if that is done.
    const fn towards(self, owner: Side) -> Option<Side> {
        match (self, owner) {
            (Asked::Switch, Side::Source) => Some(Side::Target),
            (Asked::Reverse, Side::Target) => Some(Side::Source),
            (Asked::Rehearse, owner) => Some(owner.other()),
            (Asked::Switch, Side::Target) | (Asked::Reverse, Side::Source) | (Asked::Nothing, _) => None,
        }
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The source's row.
    pub source: Seen,
    /// The target's row.
    pub target: Seen,
    /// What is to happen.
    pub asked: Asked,
    /// `arm` is done for a hand-over from the present owner, and not undone.
    pub armed: bool,
    /// Routers may be holding writes: a hold was sent and its release has not been acknowledged by all of them.
    pub held: bool,
    /// The fence that this process has made for this command. `None` after a restart: what it finds is not its own.
    pub begun: Option<FenceId>,
    /// The fence triggers of the present owner may be enabled although it owns the writes.
    pub leftover: bool,
    /// The newest marker that has been applied on the side that does not own the writes, or is about to.
    pub applied: Option<FenceId>,
    /// The fence under which `settle` is done.
    pub settled: Option<FenceId>,
    /// How long writes have been held, by a monotonic clock.
    pub elapsed: Duration,
    /// How long they may be.
    pub max_write_hold: Duration,
}

/// A step in a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Which step.
    pub step: Step,
    /// The old owner; the other side is the new one.
    pub from: Side,
    /// The fence that it is about. For a step up to `fence`: the last one in the owner's row, above which the next is
    /// numbered.
    pub fence: FenceId,
}

/// Why nothing can be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitFor {
    /// The new side has to apply the marker of this fence.
    Marker(FenceId),
    /// The new side has to answer.
    NewSide(Side),
}

/// The sides whose rows have to be read before anything may be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Silent {
    /// One of them.
    One(Side),
    /// Neither answers.
    Both,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Do this step; it is idempotent, so it does not matter whether it was done in part.
    Act(Turn),
    /// Take this step back, and ask with [`Asked::Nothing`] from now on.
    Undo(Turn),
    /// Wait until a fact changes, or until the time is up.
    Wait(WaitFor),
    /// What was asked is so, and nothing of an attempt is left.
    Done,
    /// It cannot be known who owns the writes: release nothing, undo nothing, until the silent side has answered.
    AskOldOwner(Silent),
    /// The two rows cannot both be true now. They were read one after the other, so read again; if they stay, somebody
    /// has changed them by hand, and an operator is needed. Release nothing.
    Contradiction {
        /// The source's row.
        source: Ownership,
        /// The target's row.
        target: Ownership,
    },
}

/// Decides what comes next.
pub fn decide(facts: &Facts) -> Decision {
    match situation(facts.source, facts.target) {
        Situation::Owned { owner, last, opened_from, other_answers } => {
            if let Some(fence) = opened_from {
                return Decision::Act(Turn { step: Step::Open, from: owner.other(), fence });
            }
            owned(facts, owner, last, other_answers)
        }
        Situation::Fenced { owner, fence, other_answers } => fenced(facts, owner, fence, other_answers),
        Situation::HandedOver { from, fence, other_answers: true } => {
            if fence.is_applied(facts.applied) {
                Decision::Act(Turn { step: Step::Open, from, fence })
            } else {
                Decision::Wait(WaitFor::Marker(fence))
            }
        }
        Situation::HandedOver { from, fence: _, other_answers: false } => {
            Decision::Wait(WaitFor::NewSide(from.other()))
        }
        Situation::Ambiguous(silent) => Decision::AskOldOwner(silent),
        Situation::Contradictory { source, target } => Decision::Contradiction { source, target },
    }
}

/// Writes have been held for as long as they may.
fn is_over(facts: &Facts) -> bool {
    facts.held && facts.elapsed >= facts.max_write_hold
}

/// One side owns the writes and is not fenced.
fn owned(facts: &Facts, owner: Side, last: FenceId, other_answers: bool) -> Decision {
    let turn = |step| Turn { step, from: owner, fence: last };
    // A fence of this attempt that the row no longer shows was taken back by a late writer.
    let lost = facts.begun.is_some();
    if facts.asked.towards(owner).is_none() || lost || is_over(facts) {
        return if facts.leftover {
            Decision::Undo(turn(Step::Fence))
        } else if facts.held {
            Decision::Undo(turn(Step::Hold))
        } else if facts.armed {
            Decision::Undo(turn(Step::Arm))
        } else {
            Decision::Done
        };
    }
    if !other_answers {
        Decision::Wait(WaitFor::NewSide(owner.other()))
    } else if !facts.armed {
        Decision::Act(turn(Step::Arm))
    } else if !facts.held {
        Decision::Act(turn(Step::Hold))
    } else {
        Decision::Act(turn(Step::Fence))
    }
}

/// One side is fenced, and has not handed over.
fn fenced(facts: &Facts, owner: Side, fence: FenceId, other_answers: bool) -> Decision {
    let turn = |step| Turn { step, from: owner, fence };
    let wanted = facts.asked.towards(owner).is_some() && facts.armed && facts.held;
    if !wanted || is_over(facts) {
        return Decision::Undo(turn(Step::Fence));
    }
    if !other_answers {
        return Decision::Wait(WaitFor::NewSide(owner.other()));
    }
    match facts.begun {
        // Left by an earlier process: what it had drained and settled is not known here.
        None => Decision::Act(turn(Step::Fence)),
        Some(mine) if mine != fence => Decision::Undo(turn(Step::Fence)),
        Some(_) if !fence.is_applied(facts.applied) => Decision::Wait(WaitFor::Marker(fence)),
        Some(_) if facts.settled != Some(fence) => Decision::Act(turn(Step::Settle)),
        Some(_) if facts.asked == Asked::Rehearse => Decision::Undo(turn(Step::Fence)),
        Some(_) => Decision::Act(turn(Step::Flip)),
    }
}

#[cfg(test)]
mod tests;
