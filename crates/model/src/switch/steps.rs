//! The one table of steps, from `arm` to `open`: in which order, what each needs, what undoes it, and the words for it.
//!
//! `switch writes`, `reverse` and `--dry-run` all walk this table; nothing in it says which side is which.
//! What to do next is [`crate::switch::decide`]'s to say.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A step of handing the writes from the *old* owner to the *new* one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Make everything that could fail or take long, before anything is held up.
    Arm,
    /// The routers park new writes.
    Hold,
    /// The old owner refuses writes, and puts the marker into the stream.
    Fence,
    /// The stream passes the marker.
    Drain,
    /// Sequences and unsettled rows.
    Settle,
    /// The old owner gives the writes away.
    Flip,
    /// The new owner takes them.
    Open,
}

/// What takes a step back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Undo {
    /// There is nothing to take back: the step changes nothing that the old owner depends on.
    Nothing,
    /// The words for what is done.
    By(&'static str),
    /// Nothing takes it back: from here on it only goes forward.
    Never,
}

/// On which side of the point of no return a step lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A failure or a timeout undoes it.
    Before,
    /// It is the point of no return.
    Itself,
    /// It is repeated until it succeeds.
    After,
}

/// What has to be true before a step, whichever way the writes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Needs {
    /// The gates for moving writes are green or were overridden.
    Gates,
    /// `arm` is done, and the new side answers.
    Armed,
    /// Every router has acknowledged the hold.
    Held,
    /// The old owner is fenced under an attempt of this process.
    Fenced,
    /// The new side has applied the marker of this attempt.
    Drained,
    /// Settled under this attempt, and there is time left before the deadline.
    Settled,
    /// The old owner has handed over, and the new side has applied the marker of that attempt.
    HandedOver,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Which step.
    pub step: Step,
    /// What has to be true before it.
    pub needs: Needs,
    /// What takes it back.
    pub undo: Undo,
    /// Before or after the point of no return.
    pub phase: Phase,
    /// What it does, in the words of an operator.
    pub does: &'static str,
    /// Why it may take a while.
    pub waits_because: &'static str,
}

/// The table, in order.
pub const TABLE: [Line; 7] = [
    Line {
        step: Step::Arm,
        needs: Needs::Gates,
        undo: Undo::By("turns autovacuum on again; the opposite stream stays, it is the way back"),
        phase: Phase::Before,
        does: "makes the opposite stream, waits until it is caught up, turns autovacuum off for the tables, and tries the lock that `open` will need",
        waits_because: "a new stream begins when every older transaction has ended, and a running vacuum has to finish",
    },
    Line {
        step: Step::Hold,
        needs: Needs::Armed,
        undo: Undo::By("releases the parked writes to the owner"),
        phase: Phase::Before,
        does: "parks new writes and new transactions in the routers",
        waits_because: "open transactions are let through to their end, and every router has to acknowledge",
    },
    Line {
        step: Step::Fence,
        needs: Needs::Held,
        undo: Undo::By("disables the fence on the old owner"),
        phase: Phase::Before,
        does: "makes the old owner refuse application writes, and puts a marker into the stream",
        waits_because: "the tables' locks wait for transactions that still write to them",
    },
    Line {
        step: Step::Drain,
        needs: Needs::Fenced,
        undo: Undo::Nothing,
        phase: Phase::Before,
        does: "waits until the new side has applied everything that was written before the fence",
        waits_because: "the stream is still on its way to the marker",
    },
    Line {
        step: Step::Settle,
        needs: Needs::Drained,
        undo: Undo::Nothing,
        phase: Phase::Before,
        does: "sets the sequences of the new side and compares the rows that were never at rest",
        waits_because: "hot rows are read on both sides",
    },
    Line {
        step: Step::Flip,
        needs: Needs::Settled,
        undo: Undo::Never,
        phase: Phase::Itself,
        does: "hands the writes over, durably, on the old owner: the point of no return",
        waits_because: "the commit has to reach the standbys that could be promoted",
    },
    Line {
        step: Step::Open,
        needs: Needs::HandedOver,
        undo: Undo::Never,
        phase: Phase::After,
        does: "makes the new side the owner, lets the routers release the parked writes to it, and lets the old side follow",
        waits_because: "the new side has to answer; nothing else can take the writes any more",
    },
];

impl Step {
    /// Its line of the table.
    pub const fn line(self) -> &'static Line {
        &TABLE[match self {
            Step::Arm => 0,
            Step::Hold => 1,
            Step::Fence => 2,
            Step::Drain => 3,
            Step::Settle => 4,
            Step::Flip => 5,
            Step::Open => 6,
        }]
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Step::Arm => "arm",
            Step::Hold => "hold",
            Step::Fence => "fence",
            Step::Drain => "drain",
            Step::Settle => "settle",
            Step::Flip => "flip",
            Step::Open => "open",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_finds_its_own_line() {
        for line in TABLE {
            assert_eq!(line.step.line(), &line);
        }
        let names = TABLE.map(|line| line.step.name());
        assert_eq!(names, ["arm", "hold", "fence", "drain", "settle", "flip", "open"]);
    }

    #[test]
    fn whatever_comes_before_the_point_of_no_return_can_be_undone_and_nothing_else() {
        for Line { step, phase, undo, .. } in TABLE {
            assert_eq!(phase == Phase::Before, undo != Undo::Never, "{step}");
        }
        let at = TABLE.iter().position(|line| line.phase == Phase::Itself).unwrap();
        assert!(TABLE[..at].iter().all(|line| line.phase == Phase::Before));
        assert!(TABLE[at + 1..].iter().all(|line| line.phase == Phase::After));
    }
}
