//! Gates: what has to hold before reads or writes are moved, as data, and the answer to whether it does.
//!
//! Whoever measures hands [`Evidence`] in; here it is compared with the [`Bounds`]: those of the profile, or of the spec. What
//! was not measured is red: a gate never passes for want of evidence.

mod asks;
mod bounds;
mod evidence;
mod judge;

pub use asks::{asks, not_asked};
pub use bounds::Bounds;
pub use evidence::{
    Difference, Evidence, Headroom, Mirrored, Opposite, Replica, Sample, Series, Share, Verified,
};
pub use judge::judge;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// The 99th percentile of the stream's lag is within its bound over a window.
    Lag,
    /// The share of compared rows that diverged is below its bound over a window.
    Drift,
    /// The share of repeated reads that answered alike is at its bound over a window. Green where no router repeats any.
    Matches,
    /// No more of the reads that routers compare now differ than are allowed. Green where none are compared.
    Mirror,
    /// Every table was compared in full, recently.
    Verified,
    /// No divergence is open.
    Divergences,
    /// The opposite stream is armed and caught up.
    WayBack,
    /// Every sequence can be set on the new side.
    Sequences,
    /// A rehearsal has succeeded recently.
    Rehearsal,
    /// The tables on both sides are those of the plan.
    Ddl,
    /// The new side's tables have all that the old side's have: indexes, constraints, triggers, privileges and the rest.
    ///
    /// It may be overridden. A constraint that is missing loses no row by itself, but once applications write there, rows
    /// can come that the old side refuses: those could not go back. So constraints are named first; and yet there are
    /// targets that are meant to be otherwise (without foreign keys, with other owners), and only a person can know that.
    Parity,
    /// No transaction on the owner is so old that the fence would wait for it.
    LongTransactions,
    /// The new side's replicas are in step.
    Replicas,
    /// The new side has connections to spare.
    Connections,
    /// No vacuum that prevents wraparound is running on the tables: nothing cancels it for the fence's lock.
    Wraparound,
    /// No session of the application holds what cannot move with it: advisory locks, temporary tables, cursors WITH
    /// HOLD, LISTEN.
    Sessions,
    /// Nothing is known that writes past the fence: it would go on where the writes were, and reach nobody.
    Fence,
}

/// What is to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Move {
    /// The first share of reads.
    FirstReads,
    /// A further share.
    MoreReads,
    /// The writes to the target.
    Writes,
    /// The writes back to the source.
    Reverse,
}

/// A line of the table of gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Which gate.
    pub gate: Gate,
    /// Its name on the command line and in the journal.
    pub name: &'static str,
    /// Without it data could be lost or the way back closed: it is never overridden.
    pub protects_data: bool,
    /// Which moves ask for it. The way back asks for what data depends on, not for what makes it advisable: who goes back
    /// does so in trouble, and what would keep the steps from succeeding undoes them and is named.
    pub asked_by: &'static [Move],
}

use Move::{FirstReads, MoreReads, Reverse, Writes};
const FORWARD: &[Move] = &[FirstReads, MoreReads, Writes];
const FURTHER: &[Move] = &[MoreReads, Writes];
const WRITES: &[Move] = &[Writes, Reverse];

const fn line(gate: Gate, name: &'static str, protects_data: bool, asked_by: &'static [Move]) -> Line {
    Line { gate, name, protects_data, asked_by }
}

/// Every gate, in the order in which they are shown.
pub const TABLE: [Line; 17] = [
    line(Gate::Verified, "verified", true, FORWARD),
    line(Gate::WayBack, "way-back", true, WRITES),
    line(Gate::Divergences, "divergences", false, FORWARD),
    line(Gate::Drift, "drift", false, FORWARD),
    line(Gate::Matches, "matches", false, FURTHER),
    line(Gate::Mirror, "mirror", false, FURTHER),
    line(Gate::Lag, "lag", false, FORWARD),
    line(Gate::Ddl, "ddl", false, FORWARD),
    line(Gate::Parity, "parity", false, &[Writes]),
    line(Gate::Sequences, "sequences", false, WRITES),
    line(Gate::Rehearsal, "rehearsal", false, &[Writes]),
    line(Gate::LongTransactions, "long-transactions", false, &[Writes]),
    line(Gate::Wraparound, "wraparound", false, &[Writes]),
    line(Gate::Sessions, "sessions", false, &[Writes]),
    line(Gate::Replicas, "replicas", false, FORWARD),
    line(Gate::Connections, "connections", false, FORWARD),
    line(Gate::Fence, "fence", false, &[Writes]),
];

impl Gate {
    /// Its line of the table.
    pub const fn line(self) -> &'static Line {
        &TABLE[match self {
            Gate::Verified => 0,
            Gate::WayBack => 1,
            Gate::Divergences => 2,
            Gate::Drift => 3,
            Gate::Matches => 4,
            Gate::Mirror => 5,
            Gate::Lag => 6,
            Gate::Ddl => 7,
            Gate::Parity => 8,
            Gate::Sequences => 9,
            Gate::Rehearsal => 10,
            Gate::LongTransactions => 11,
            Gate::Wraparound => 12,
            Gate::Sessions => 13,
            Gate::Replicas => 14,
            Gate::Connections => 15,
            Gate::Fence => 16,
        }]
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.line().name)
    }
}

/// No gate has this name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a gate")]
pub struct NotAGate(pub String);

impl FromStr for Gate {
    type Err = NotAGate;
    fn from_str(text: &str) -> Result<Gate, NotAGate> {
        let found = TABLE.iter().find(|line| line.name == text);
        found.map(|line| line.gate).ok_or_else(|| NotAGate(text.to_owned()))
    }
}

/// Why a gate is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Red {
    /// What was found, with the measured value and the bound.
    pub why: String,
    /// What the operator can do, or what will happen by itself.
    pub next: String,
}

/// A gate's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is open.
    Green {
        /// Since when, in microseconds since 1970: the time of the evidence of the first answer in an unbroken row.
        since_us: i64,
    },
    /// It is closed.
    Red(Red),
}

impl Verdict {
    /// This answer, given the one before: a gate that stays green keeps the moment since when it has been.
    #[must_use]
    pub fn after(self, previous: Option<&Verdict>) -> Verdict {
        match (self, previous) {
            (Verdict::Green { since_us }, Some(Verdict::Green { since_us: earlier })) => {
                Verdict::Green { since_us: since_us.min(*earlier) }
            }
            (verdict, _) => verdict,
        }
    }
}

/// An operator's decision to go through a red gate, as it is journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Which gate.
    pub gate: Gate,
    /// Who decided.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// An override that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverrideRefused {
    /// The gate protects data.
    #[error("the gate `{0}` protects data and cannot be overridden: make it green")]
    ProtectsData(Gate),
    /// Nobody, or no reason, is named.
    #[error("overriding the gate `{0}` needs a name and a reason: both go into the journal")]
    Unexplained(Gate),
}

impl Override {
    /// Checks an override. One that was read from the journal is checked again where it is used.
    pub fn new(gate: Gate, actor: &str, reason: &str) -> Result<Override, OverrideRefused> {
        if gate.line().protects_data {
            return Err(OverrideRefused::ProtectsData(gate));
        }
        let (actor, reason) = (actor.trim(), reason.trim());
        if actor.is_empty() || reason.is_empty() {
            return Err(OverrideRefused::Unexplained(gate));
        }
        Ok(Override { gate, actor: actor.to_owned(), reason: reason.to_owned() })
    }

    fn opens(&self, gate: Gate) -> bool {
        self.gate == gate && Override::new(self.gate, &self.actor, &self.reason).is_ok()
    }
}

/// A gate that keeps a move from beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocker {
    /// Which gate.
    pub gate: Gate,
    /// Why, and what to do.
    pub red: Red,
    /// Whether an operator may go through it, with a reason.
    pub may_be_overridden: bool,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.gate, self.red.why, self.red.next)?;
        if self.may_be_overridden {
            f.write_str(" (may be overridden with a reason)")?;
        }
        Ok(())
    }
}

/// Every gate that `what` asks for, with its answer.
pub fn verdicts(what: Move, bounds: &Bounds, evidence: &Evidence) -> Vec<(Gate, Verdict)> {
    let asked = TABLE.iter().filter(|line| line.asked_by.contains(&what));
    asked.map(|line| (line.gate, judge(line.gate, bounds, evidence))).collect()
}

/// What keeps `what` from beginning; a refused switch prints these. Empty: it may begin.
pub fn blockers(what: Move, bounds: &Bounds, evidence: &Evidence, overrides: &[Override]) -> Vec<Blocker> {
    let closed = verdicts(what, bounds, evidence).into_iter().filter_map(|(gate, verdict)| match verdict {
        Verdict::Green { .. } => None,
        Verdict::Red(red) => Some((gate, red)),
    });
    closed
        .filter(|(gate, _)| !overrides.iter().any(|o| o.opens(*gate)))
        .map(|(gate, red)| Blocker { gate, red, may_be_overridden: !gate.line().protects_data })
        .collect()
}

#[cfg(test)]
mod tests;
