//! What two ownership rows, as far as they are known, say together.

use super::super::Side;
use super::super::ownership::{FenceId, Ownership};
use super::{Seen, Silent};

/// Who owns the writes.
///
/// A row `owner` or `fenced` is proof by itself: the other side cannot have become owner without a `handed_over` here.
/// A row `handed_over` is proof that its epoch has ended. A row `follower` proves nothing about the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Situation {
    /// One side owns the writes.
    Owned {
        /// Which.
        owner: Side,
        /// Its epoch, with the last fence.
        last: FenceId,
        /// The fence under which the other side has handed over to this one, if its row still says so.
        opened_from: Option<FenceId>,
        /// The other side's row is known.
        other_answers: bool,
    },
    /// One side owns the writes and is fenced.
    Fenced {
        /// Which.
        owner: Side,
        /// The fence.
        fence: FenceId,
        /// The other side's row is known.
        other_answers: bool,
    },
    /// One side has handed over, and the other one is not known to have opened.
    HandedOver {
        /// The one that has.
        from: Side,
        /// Under which fence.
        fence: FenceId,
        /// The other side's row is known, so it has not opened; otherwise it may have, and even handed back.
        other_answers: bool,
    },
    /// What is known does not say who owns the writes.
    Ambiguous(Silent),
    /// No history leads to these two rows at one moment.
    Contradictory {
        /// The source's row.
        source: Ownership,
        /// The target's row.
        target: Ownership,
    },
}

/// Puts two rows together.
pub fn situation(source: Seen, target: Seen) -> Situation {
    match (source, target) {
        (Seen::Unknown, Seen::Unknown) => Situation::Ambiguous(Silent::Both),
        (Seen::Known(row), Seen::Unknown) => alone(Side::Source, row),
        (Seen::Unknown, Seen::Known(row)) => alone(Side::Target, row),
        (Seen::Known(source), Seen::Known(target)) => together(Side::Source, source, target)
            .or_else(|| together(Side::Target, target, source))
            .unwrap_or(Situation::Contradictory { source, target }),
    }
}

/// One row is known.
fn alone(side: Side, row: Ownership) -> Situation {
    let other_answers = false;
    match row {
        Ownership::Owner { epoch, attempt } => Situation::Owned {
            owner: side,
            last: FenceId { epoch, attempt },
            opened_from: None,
            other_answers,
        },
        Ownership::Fenced { epoch, attempt, .. } => {
            Situation::Fenced { owner: side, fence: FenceId { epoch, attempt }, other_answers }
        }
        Ownership::HandedOver { epoch, attempt } => {
            Situation::HandedOver { from: side, fence: FenceId { epoch, attempt }, other_answers }
        }
        Ownership::Follower { .. } => Situation::Ambiguous(Silent::One(side.other())),
    }
}

/// Both rows are known, and `side` has had the writes last; `None` if that cannot be.
fn together(side: Side, row: Ownership, other: Ownership) -> Option<Situation> {
    let opened_from = match other {
        Ownership::HandedOver { epoch, attempt } if epoch < row.epoch() => Some(FenceId { epoch, attempt }),
        Ownership::Follower { epoch } if epoch < row.epoch() => None,
        Ownership::Owner { .. }
        | Ownership::Fenced { .. }
        | Ownership::HandedOver { .. }
        | Ownership::Follower { .. } => return None,
    };
    match alone(side, row) {
        Situation::Owned { owner, last, .. } => {
            Some(Situation::Owned { owner, last, opened_from, other_answers: true })
        }
        Situation::Fenced { owner, fence, .. } => {
            Some(Situation::Fenced { owner, fence, other_answers: true })
        }
        Situation::HandedOver { from, fence, .. } => {
            Some(Situation::HandedOver { from, fence, other_answers: true })
        }
        Situation::Ambiguous(_) | Situation::Contradictory { .. } => None,
    }
}
