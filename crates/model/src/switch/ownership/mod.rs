//! The ownership row: who takes the writes, stored once in each of the two databases, and every change it may undergo.
//!
//! A transition takes the row as it was read *under its row lock* and returns the new row, or says why it refuses and
//! what it found. Nothing else may change the row, and nothing is decided by the order of the states. The ownership of
//! an epoch is passed like a token: `owner(n)` → `fenced(n)` → `handed_over(n)` here, and only then `owner(n + 1)` there.

use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt;
use std::str::FromStr;

/// Counts hand-overs of a migration's writes: the first owner has epoch 1. One epoch has one owner for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Numbers the fences of a migration; never used twice, so it comes from a counter that is raised durably before use.
/// Zero stands for "never fenced".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u64);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One fence: attempt `attempt` to end epoch `epoch`. It also names the marker that the fence's transaction puts into
/// the stream: what a side has applied up to this marker is all that was written before the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FenceId {
    /// The epoch that it is to end.
    pub epoch: Epoch,
    /// Which attempt.
    pub attempt: Attempt,
}

impl FenceId {
    /// Whether a side whose newest applied marker is `applied` has applied everything before this fence.
    ///
    /// Within an epoch, fences commit in the order of their numbers ([`fence`] demands it, under the row's lock), and
    /// the stream keeps the order of commits.
    pub fn is_applied(self, applied: Option<FenceId>) -> bool {
        applied.is_some_and(|a| a.epoch == self.epoch && a.attempt >= self.attempt)
    }
}

impl fmt::Display for FenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {} to end epoch {}", self.attempt, self.epoch)
    }
}

/// What the ownership row of one database says. Moments are microseconds since 1970, by that database's own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Ownership {
    /// It takes the writes.
    Owner {
        /// Since which hand-over.
        epoch: Epoch,
        /// The last fence that this side, or the one it took over from, has seen: the next one has a higher number.
        attempt: Attempt,
    },
    /// It took the writes until a fence; it takes them back by itself at the first late writer past the deadline.
    Fenced {
        /// The epoch that the fence is to end.
        epoch: Epoch,
        /// Which fence.
        attempt: Attempt,
        /// When late writers may take the tables back.
        deadline_us: i64,
    },
    /// It has given the writes away, for good: nothing but the other side's hand-over can give them back.
    HandedOver {
        /// The epoch that it ended.
        epoch: Epoch,
        /// The fence under which it did; the new owner must have applied its marker before it opens.
        attempt: Attempt,
    },
    /// It follows the owner.
    Follower {
        /// The last epoch that it owned; 0 if it never owned one.
        epoch: Epoch,
    },
}

impl Ownership {
    /// The row of the side that owns the writes when a migration is prepared.
    pub const FIRST_OWNER: Ownership = Ownership::Owner { epoch: Epoch(1), attempt: Attempt(0) };
    /// The row of the other side when a migration is prepared.
    pub const FIRST_FOLLOWER: Ownership = Ownership::Follower { epoch: Epoch(0) };

    /// The last epoch that this side owned or owns.
    pub const fn epoch(self) -> Epoch {
        match self {
            Ownership::Owner { epoch, .. }
            | Ownership::Fenced { epoch, .. }
            | Ownership::HandedOver { epoch, .. }
            | Ownership::Follower { epoch } => epoch,
        }
    }

    /// The last fence of this side's epoch, unless it follows.
    pub const fn fence_id(self) -> Option<FenceId> {
        match self {
            Ownership::Owner { epoch, attempt }
            | Ownership::Fenced { epoch, attempt, .. }
            | Ownership::HandedOver { epoch, attempt } => Some(FenceId { epoch, attempt }),
            Ownership::Follower { .. } => None,
        }
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ownership::Owner { epoch, .. } => write!(f, "owner of epoch {epoch}"),
            Ownership::Fenced { epoch, attempt, .. } => {
                write!(f, "fenced by attempt {attempt} to end epoch {epoch}")
            }
            Ownership::HandedOver { epoch, .. } => write!(f, "epoch {epoch} handed over"),
            Ownership::Follower { epoch } => write!(f, "follower (last owned epoch: {epoch})"),
        }
    }
}

/// A transition that was refused; the row stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The row is in another state, epoch or attempt than the one that was asked about.
    #[error("{wanted} was expected, but the row says: {found}; read both rows again and decide anew")]
    Changed {
        /// The fence that was asked about.
        wanted: FenceId,
        /// What the row says.
        found: Ownership,
    },
    /// The number of a new fence is not above the last one.
    #[error("fence number {asked} is not new, the last one was {last}; take a new number")]
    AttemptUsed {
        /// The number that was asked for.
        asked: Attempt,
        /// The last one.
        last: Attempt,
    },
    /// The hand-over came too close to the moment from which late writers may take the tables back.
    #[error("{} ms too late to hand over under {fence}; undo, and try again", .late_us.div_euclid(1000))]
    TooLate {
        /// The fence.
        fence: FenceId,
        /// How long the last moment has passed, in microseconds; 0 at that moment itself.
        late_us: i64,
    },
    /// There is no fence to take back.
    #[error("there is no fence to take back, the row says: {found}")]
    NotFenced {
        /// What the row says.
        found: Ownership,
    },
    /// The fence's own deadline has not passed.
    #[error("{fence} holds for another {} ms", .left_us.div_euclid(1000))]
    NotExpired {
        /// The fence.
        fence: FenceId,
        /// How long it still holds, in microseconds; above 0.
        left_us: i64,
    },
    /// Not everything that was written before the fence has arrived here.
    #[error("the marker of {wanted} has not been applied here; wait for the stream to reach it")]
    MarkerNotApplied {
        /// The fence whose marker is missing.
        wanted: FenceId,
        /// The newest marker that has been applied.
        applied: Option<FenceId>,
    },
    /// This side owns the epoch already, or a later one.
    #[error("epoch {asked} cannot be opened here any more, the row says: {found}; read both rows again")]
    NotBelow {
        /// The epoch that was to be opened.
        asked: Epoch,
        /// What the row says.
        found: Ownership,
    },
    /// This side has not handed its writes over to a later owner.
    #[error("it cannot follow epoch {successor}, the row says: {found}")]
    NotHandedOver {
        /// The epoch of the owner to follow.
        successor: Epoch,
        /// What the row says.
        found: Ownership,
    },
}

/// Fences the owner, over an earlier fence too. `last` is the row as the caller read it before: its epoch, and the
/// number of the last fence.
///
/// In the same transaction, in this order: the tables' locks (also where the triggers are enabled already: a late writer
/// may be on its way through them), this row's lock, this function, the triggers, the marker.
pub fn fence(row: Ownership, last: FenceId, new: Attempt, deadline_us: i64) -> Result<Ownership, Refusal> {
    match row {
        Ownership::Owner { epoch, attempt } | Ownership::Fenced { epoch, attempt, .. }
            if (FenceId { epoch, attempt }) == last =>
        {
            if new <= attempt {
                return Err(Refusal::AttemptUsed { asked: new, last: attempt });
            }
            Ok(Ownership::Fenced { epoch, attempt: new, deadline_us })
        }
        found @ (Ownership::Owner { .. }
        | Ownership::Fenced { .. }
        | Ownership::HandedOver { .. }
        | Ownership::Follower { .. }) => Err(Refusal::Changed { wanted: last, found }),
    }
}

/// Undoes the fence `fence`. Repeating it is allowed, and so is undoing a fence that late writers have taken back: the
/// triggers are still enabled then and are to be disabled in the same transaction.
pub fn unfence(row: Ownership, fence: FenceId) -> Result<Ownership, Refusal> {
    match row {
        Ownership::Owner { epoch, attempt } | Ownership::Fenced { epoch, attempt, .. }
            if (FenceId { epoch, attempt }) == fence =>
        {
            Ok(Ownership::Owner { epoch, attempt })
        }
        found @ (Ownership::Owner { .. }
        | Ownership::Fenced { .. }
        | Ownership::HandedOver { .. }
        | Ownership::Follower { .. }) => Err(Refusal::Changed { wanted: fence, found }),
    }
}

/// Takes a fenced side back for a late writer, if the deadline *in the row* has passed.
///
/// The trigger does this, in the writer's transaction: see [`crate::switch::guard`].
pub fn take_back(row: Ownership, now_us: i64) -> Result<Ownership, Refusal> {
    match row {
        Ownership::Fenced { epoch, attempt, deadline_us } => {
            let left_us = deadline_us.saturating_sub(now_us);
            if left_us > 0 {
                return Err(Refusal::NotExpired { fence: FenceId { epoch, attempt }, left_us });
            }
            Ok(Ownership::Owner { epoch, attempt })
        }
        found @ (Ownership::Owner { .. } | Ownership::HandedOver { .. } | Ownership::Follower { .. }) => {
            Err(Refusal::NotFenced { found })
        }
    }
}

/// Hands the writes over: **the point of no return**.
///
/// Two statements: one locks the row, the next one reads the clock and evaluates this. In a single one the clock would be
/// read before the wait for the lock. The commit must be synchronous, on every standby that could be promoted.
pub fn flip(row: Ownership, fence: FenceId, now_us: i64, margin_us: i64) -> Result<Ownership, Refusal> {
    match row {
        Ownership::Fenced { epoch, attempt, deadline_us } if (FenceId { epoch, attempt }) == fence => {
            let late_us = now_us.saturating_sub(deadline_us.saturating_sub(margin_us));
            if late_us >= 0 {
                return Err(Refusal::TooLate { fence, late_us });
            }
            Ok(Ownership::HandedOver { epoch, attempt })
        }
        found @ (Ownership::Owner { .. }
        | Ownership::Fenced { .. }
        | Ownership::HandedOver { .. }
        | Ownership::Follower { .. }) => Err(Refusal::Changed { wanted: fence, found }),
    }
}

/// Makes this side the owner after the other one has handed over under `fence`; `applied` is the newest marker of the
/// other side that has been applied here, read in the same transaction, which also disables the triggers.
pub fn open(row: Ownership, fence: FenceId, applied: Option<FenceId>) -> Result<Ownership, Refusal> {
    let next = fence.epoch.next();
    match row {
        Ownership::HandedOver { epoch, .. } | Ownership::Follower { epoch } if epoch < next => {
            if !fence.is_applied(applied) {
                return Err(Refusal::MarkerNotApplied { wanted: fence, applied });
            }
            Ok(Ownership::Owner { epoch: next, attempt: fence.attempt })
        }
        found @ (Ownership::Owner { .. }
        | Ownership::Fenced { .. }
        | Ownership::HandedOver { .. }
        | Ownership::Follower { .. }) => Err(Refusal::NotBelow { asked: next, found }),
    }
}

/// Makes a side that has handed over a follower of the owner of epoch `successor`, as read from the other side. Repeating
/// it is allowed. In the same transaction, under the tables' locks, the fence's deadline becomes infinite: a late writer that has
/// passed the old one still meets `handed_over`.
pub fn become_follower(row: Ownership, successor: Epoch) -> Result<Ownership, Refusal> {
    match row {
        Ownership::HandedOver { epoch, .. } | Ownership::Follower { epoch } if epoch < successor => {
            Ok(Ownership::Follower { epoch })
        }
        found @ (Ownership::Owner { .. }
        | Ownership::Fenced { .. }
        | Ownership::HandedOver { .. }
        | Ownership::Follower { .. }) => Err(Refusal::NotHandedOver { successor, found }),
    }
}

/// The version of [`Ownership::to_text`]. A new one keeps a reader for the last, with a test.
const TEXT_VERSION: u64 = 1;

/// A stored ownership row cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A later program wrote it.
    #[error(
        "the ownership row has version {0}, and this program knows up to {TEXT_VERSION}: use a newer `segue`"
    )]
    Version(u64),
    /// It is not an ownership row.
    #[error("`{0}` is not an ownership row: it was changed by hand, or damaged")]
    Form(String),
}

impl Ownership {
    /// The form in which the row is stored: a JSON object with a version.
    pub fn to_text(self) -> String {
        let version = TEXT_VERSION;
        let value = match self {
            Ownership::Owner { epoch, attempt } => {
                json!({"version": version, "state": "owner", "epoch": epoch, "attempt": attempt})
            }
            Ownership::Fenced { epoch, attempt, deadline_us } => {
                json!({"version": version, "state": "fenced", "epoch": epoch, "attempt": attempt, "deadline_us": deadline_us})
            }
            Ownership::HandedOver { epoch, attempt } => {
                json!({"version": version, "state": "handed_over", "epoch": epoch, "attempt": attempt})
            }
            Ownership::Follower { epoch } => {
                json!({"version": version, "state": "follower", "epoch": epoch})
            }
        };
        value.to_string()
    }
}

impl FromStr for Ownership {
    type Err = Unreadable;
    fn from_str(text: &str) -> Result<Ownership, Unreadable> {
        let form = || Unreadable::Form(text.to_owned());
        let value: serde_json::Value = serde_json::from_str(text).map_err(|_| form())?;
        match value["version"].as_u64() {
            Some(TEXT_VERSION) => serde_json::from_value(value).map_err(|_| form()),
            Some(later) => Err(Unreadable::Version(later)),
            None => Err(form()),
        }
    }
}

#[cfg(test)]
mod tests;
