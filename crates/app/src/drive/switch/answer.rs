//! What the driver is asked when the writes are moved, and what it answers: the objects in the rows of commands.
//!
//! The commands and the driver use the same types, so neither can drift from the other. An order that holds something
//! unknown is refused, because what is not understood may be what keeps data safe; an answer is only shown. How it looks
//! is the commands' business, what happened is the driver's.

use crate::exit::Exit;
use crate::report::Owner;
use segue_model::divergence::Divergence;
use segue_model::switch::Side;
use segue_model::switch::gates::{self, Gate, Override, OverrideRefused};
use segue_model::switch::ownership::Epoch;
use segue_model::switch::steps::Step;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The arguments of the verbs `switch` and `reverse`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SwitchOrder {
    /// Do everything up to the point of no return, then undo it.
    #[serde(default)]
    pub(crate) rehearse: bool,
    /// Gates to go through although they are red.
    #[serde(default)]
    pub(crate) overrides: Vec<Overridden>,
}

/// A gate that the operator wants to go through. Who that is, the command's row says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Overridden {
    /// Which gate.
    pub(crate) gate: Gate,
    /// Why; goes into the journal.
    pub(crate) reason: String,
}

impl SwitchOrder {
    /// The overrides as they are judged and journalled; refuses one of a gate that protects data.
    pub(crate) fn overrides(&self, actor: &str) -> Result<Vec<Override>, OverrideRefused> {
        self.overrides.iter().map(|o| Override::new(o.gate, actor, &o.reason)).collect()
    }
}

/// The arguments of the verb `complete`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompleteOrder {
    /// Prove what has to be proved and say what would be done; change nothing.
    #[serde(default)]
    pub(crate) rehearse: bool,
    /// A directory on the driver's machine that the source's rows are written to first.
    #[serde(default)]
    pub(crate) archive: Option<PathBuf>,
    /// Drop the source's tables at the end.
    #[serde(default)]
    pub(crate) drop_source: bool,
    /// For how long nothing may have used the source's tables; `None`: as the driver's profile has it.
    #[serde(default)]
    pub(crate) window_ms: Option<u64>,
}

/// A step that is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepTook {
    /// Which.
    pub(crate) step: Step,
    /// How long it took.
    pub(crate) took_ms: f64,
}

impl StepTook {
    /// A step and how long it took.
    pub(crate) fn new(step: Step, took: Duration) -> StepTook {
        StepTook { step, took_ms: millis(took) }
    }
}

/// How far an order has come. Every report holds all that was in the one before: a later one replaces it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Progress {
    /// The steps that are done, in order.
    pub(crate) steps: Vec<StepTook>,
    /// The step that is under way.
    pub(crate) doing: Option<Step>,
    /// What is waited for, in words; empty: nothing in particular.
    pub(crate) waits_for: String,
}

/// How `switch` and `reverse` end. A fault is answered as everywhere, not with one of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The writes have moved.
    Switched(Moved),
    /// Everything up to the point of no return was done, and undone.
    Rehearsed(Moved),
    /// They were there already; nothing was done.
    Already(Moved),
    /// It did not begin: gates are red.
    Refused {
        /// Which, why, and what to do.
        blockers: Vec<Blocked>,
        /// The way back was armed for this, and stays so.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        way_back_armed: bool,
    },
    /// It began, could not go on, and was undone.
    Undone(Undone),
}

/// Who has the writes, and what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moved {
    /// Who owns the writes now.
    pub(crate) owner: Side,
    /// How often they had changed hands, and one.
    pub(crate) epoch: Epoch,
    /// How long no side took writes.
    pub(crate) stall_ms: f64,
    /// The steps, in order.
    pub(crate) steps: Vec<StepTook>,
    /// Sequences that were set on the new side.
    pub(crate) sequences: u64,
    /// Rows that were compared while nobody could write: those that were never at rest before.
    pub(crate) compared_under_fence: u64,
    /// Of them, those that differ.
    pub(crate) divergences: Vec<Divergence>,
    /// What was unusual about the old owner's activity when it began, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) unlike_baseline: Vec<String>,
    /// Standbys of the old owner that had not received the hand-over when the new one was opened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) standbys_without: Vec<String>,
    /// The way back was armed for this, and stays so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) way_back_armed: bool,
}

/// A switch that was undone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Undone {
    /// Who owns the writes, as before.
    pub(crate) owner: Side,
    /// What kept it from going on.
    pub(crate) why: String,
    /// Who held the locks that were waited for, each in words.
    pub(crate) blockers_of_lock: Vec<String>,
    /// How long no side took writes.
    pub(crate) stall_ms: f64,
    /// What the operator can do.
    pub(crate) next_step: String,
}

/// A gate that is red, or another condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blocked {
    /// Its name; for a gate the one that `--override` takes.
    pub(crate) gate: String,
    /// What was found.
    pub(crate) why: String,
    /// What to do, or what will happen by itself.
    pub(crate) next: String,
    /// An operator may go through it, with a reason.
    pub(crate) may_be_overridden: bool,
}

impl From<&gates::Blocker> for Blocked {
    fn from(blocker: &gates::Blocker) -> Blocked {
        Blocked {
            gate: blocker.gate.to_string(),
            why: blocker.red.why.clone(),
            next: blocker.red.next.clone(),
            may_be_overridden: blocker.may_be_overridden,
        }
    }
}

impl Moved {
    /// The owner, and nothing that was done; the rest is filled in by whoever did it.
    pub(crate) fn to(owner: Side, epoch: Epoch) -> Moved {
        Moved {
            owner,
            epoch,
            stall_ms: 0.0,
            steps: Vec::new(),
            sequences: 0,
            compared_under_fence: 0,
            divergences: Vec::new(),
            unlike_baseline: Vec::new(),
            standbys_without: Vec::new(),
            way_back_armed: false,
        }
    }

    /// With the time for which no side took writes.
    #[must_use]
    pub(crate) fn stalled(self, stall: Duration) -> Moved {
        Moved { stall_ms: millis(stall), ..self }
    }
}

impl Answer {
    /// Nothing had to be done.
    pub(crate) fn already(owner: Side, epoch: Epoch) -> Answer {
        Answer::Already(Moved::to(owner, epoch))
    }

    /// These gates are red.
    pub(crate) fn refused<'a>(blockers: impl IntoIterator<Item = &'a gates::Blocker>) -> Answer {
        let blockers = blockers.into_iter().map(Blocked::from).collect();
        Answer::Refused { blockers, way_back_armed: false }
    }

    /// With whether the way back was armed for it. What is undone says by itself what is left of it.
    #[must_use]
    pub(crate) fn arming(self, way_back_armed: bool) -> Answer {
        match self {
            Answer::Switched(moved) => Answer::Switched(Moved { way_back_armed, ..moved }),
            Answer::Rehearsed(moved) => Answer::Rehearsed(Moved { way_back_armed, ..moved }),
            Answer::Refused { blockers, .. } => Answer::Refused { blockers, way_back_armed },
            Answer::Already(_) | Answer::Undone(_) => self,
        }
    }

    /// It was undone: `owner` takes writes again, after `stall` without.
    pub(crate) fn undone(
        owner: Side,
        why: impl Into<String>,
        blockers_of_lock: Vec<String>,
        stall: Duration,
        next_step: impl Into<String>,
    ) -> Answer {
        let (why, next_step) = (why.into(), next_step.into());
        Answer::Undone(Undone { owner, why, blockers_of_lock, stall_ms: millis(stall), next_step })
    }

    /// How a command that was answered so ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Answer::Switched(_) | Answer::Rehearsed(_) | Answer::Already(_) => Exit::Done,
            Answer::Refused { .. } => Exit::GateRefused,
            Answer::Undone(_) => Exit::Fault,
        }
    }
}

/// How `complete` ends, but for faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum Completion {
    /// The way back is given up.
    Completed(Ended),
    /// It could be; nothing was changed.
    Rehearsed(Ended),
    /// It was completed before; nothing was done.
    Already(Ended),
    /// The old side cannot be done without yet.
    Refused {
        /// Why, and what to do.
        blockers: Vec<Blocked>,
    },
}

/// What completing has proved and removed; in a rehearsal, what it would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ended {
    /// What shows that the source is not needed any more.
    pub(crate) proofs: Vec<Proof>,
    /// Segue's own objects that are gone, each with its side.
    pub(crate) removed: Vec<String>,
    /// Files that the source's rows were written to.
    pub(crate) archived: Vec<String>,
    /// The source's tables that are gone.
    pub(crate) dropped: Vec<String>,
    /// What stays, and how it goes.
    pub(crate) kept: Vec<String>,
}

/// Something that was looked at before the way back was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    /// What was asked.
    pub(crate) question: String,
    /// What was found, with the measured value.
    pub(crate) found: String,
}

impl Completion {
    /// How a command that was answered so ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Completion::Completed(_) | Completion::Rehearsed(_) | Completion::Already(_) => Exit::Done,
            Completion::Refused { .. } => Exit::GateRefused,
        }
    }
}

/// What `contain` has stopped. What could not be stopped in time is answered as a fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Contained {
    /// Who owns the writes.
    pub(crate) owner: Owner,
    /// What was stopped, each in words.
    pub(crate) stopped: Vec<String>,
    /// How long that took.
    pub(crate) took_ms: f64,
    /// What goes on meanwhile and has to be watched; empty: nothing.
    #[serde(default)]
    pub(crate) watch: Vec<String>,
    /// The command that makes it go on.
    pub(crate) resume: String,
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn trip<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) -> Value {
        let object = json!(value);
        assert_eq!(&serde_json::from_value::<T>(object.clone()).unwrap(), value);
        object
    }

    #[test]
    fn a_switch_that_happened_round_trips_in_its_documented_shape() {
        let moved = Moved {
            steps: vec![StepTook::new(Step::Fence, Duration::from_micros(3100))],
            sequences: 4,
            compared_under_fence: 10,
            ..Moved::to(Side::Target, Epoch(2)).stalled(Duration::from_micros(12_300))
        };
        let object = trip(&Answer::Switched(moved.clone()));
        let expected = json!({ "outcome": "switched", "owner": "target", "epoch": 2, "stall_ms": 12.3,
            "steps": [{ "step": "fence", "took_ms": 3.1 }], "sequences": 4, "compared_under_fence": 10,
            "divergences": [] });
        assert_eq!(object, expected);
        assert_eq!(trip(&Answer::Rehearsed(moved))["outcome"], "rehearsed");
        assert_eq!(trip(&Answer::already(Side::Target, Epoch(2)))["outcome"], "already");
    }

    #[test]
    fn a_refusal_and_an_undone_switch_round_trip_in_their_documented_shape() {
        let red = gates::Red { why: "no rehearsal".into(), next: "rehearse".into() };
        let blocker = gates::Blocker { gate: Gate::Rehearsal, red, may_be_overridden: true };
        let object = trip(&Answer::refused([&blocker]));
        let blocked = json!({ "gate": "rehearsal", "why": "no rehearsal", "next": "rehearse", "may_be_overridden": true });
        assert_eq!(object, json!({ "outcome": "refused", "blockers": [blocked] }));
        assert_eq!(trip(&Answer::refused([&blocker]).arming(true))["way_back_armed"], true);

        let held = vec!["pid 7".to_owned()];
        let undone = Answer::undone(Side::Source, "a lock", held, Duration::from_millis(400), "wait for it");
        let expected = json!({ "outcome": "undone", "owner": "source", "why": "a lock", "blockers_of_lock": ["pid 7"],
            "stall_ms": 400.0, "next_step": "wait for it" });
        assert_eq!(trip(&undone), expected);
    }

    #[test]
    fn every_outcome_has_its_exit_code() {
        let undone = Answer::undone(Side::Source, "", Vec::new(), Duration::ZERO, "");
        assert_eq!(Answer::already(Side::Target, Epoch(2)).exit(), Exit::Done);
        assert_eq!(Answer::refused([]).exit(), Exit::GateRefused);
        assert_eq!(undone.exit(), Exit::Fault);
        assert_eq!(Completion::Completed(Ended::default()).exit(), Exit::Done);
        assert_eq!(Completion::Refused { blockers: Vec::new() }.exit(), Exit::GateRefused);
    }

    #[test]
    fn completion_containment_and_progress_round_trip() {
        let ended = Ended { dropped: vec!["public.t".into()], ..Ended::default() };
        assert_eq!(trip(&Completion::Completed(ended))["outcome"], "completed");
        trip(&Progress { doing: Some(Step::Arm), waits_for: "pid 7".into(), ..Progress::default() });
        let watch = vec!["the source's log".to_owned()];
        let stopped = vec!["the copy".to_owned()];
        trip(&Contained {
            owner: Owner::Source,
            stopped,
            took_ms: 3.0,
            watch,
            resume: "segue resume".into(),
        });
    }

    #[test]
    fn an_order_that_holds_something_unknown_is_refused() {
        let order = json!({ "rehearse": true, "overrides": [{ "gate": "lag", "reason": "r" }] });
        let order: SwitchOrder = serde_json::from_value(order).unwrap();
        assert_eq!(order.overrides("ada").unwrap(), [Override::new(Gate::Lag, "ada", "r").unwrap()]);
        for unknown in [
            json!({ "rehearse": true, "only": ["t"] }),
            json!({ "overrides": [{ "gate": "moon", "reason": "" }] }),
        ] {
            assert!(serde_json::from_value::<SwitchOrder>(unknown.clone()).is_err(), "{unknown}");
        }
        assert!(serde_json::from_value::<CompleteOrder>(json!({ "drop": true })).is_err());
    }

    #[test]
    fn no_order_goes_through_a_gate_that_protects_data() {
        let overridden = Overridden { gate: Gate::Verified, reason: "in a hurry".into() };
        let order = SwitchOrder { overrides: vec![overridden], ..SwitchOrder::default() };
        assert_eq!(order.overrides("ada"), Err(OverrideRefused::ProtectsData(Gate::Verified)));
    }
}
