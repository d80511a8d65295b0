//! What of its side's log a stream may apply, given both ownership rows.
//!
//! A stream comes from one side. While that side does not own the writes, whatever an application wrote there (as a
//! superuser under the replica role, past a disabled trigger) is a **stray write**: applied to the owner, it would
//! overwrite good rows. Both streams run all the time, so each asks before it applies.
//!
//! The rows are facts of one moment, and a log is read later than it was written. So an answer stays right only while
//! nobody hands over: see [`admission`] for what has to be done around a hand-over.

use super::ownership::{Epoch, Ownership};
use crate::position::Position;
use serde::{Deserialize, Serialize};

/// What of its side's log a stream may apply. It is about changes; signals always count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// Everything.
    All,
    /// Transactions whose commit record lies at or after this place; earlier ones are strays.
    From(Position),
    /// Nothing: the other side owns the writes, every change is a stray.
    Nothing,
    /// It is being decided: a transaction with changes waits.
    Undecided,
}

/// What becomes of one transaction with changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Judgement {
    /// It is applied.
    Apply,
    /// It is not: it was written where nobody but the streams may write.
    Stray,
    /// Nobody knows yet.
    Wait,
}

impl Admission {
    /// Judges a transaction by the place of its commit record.
    pub fn judge(self, commit: Position) -> Judgement {
        match self {
            Admission::All => Judgement::Apply,
            Admission::From(first) if commit >= first => Judgement::Apply,
            Admission::From(_) | Admission::Nothing => Judgement::Stray,
            Admission::Undecided => Judgement::Wait,
        }
    }

    /// Whether the side that the stream comes from owns the writes: its rows are the right ones.
    pub const fn is_owner(self) -> bool {
        match self {
            Admission::All | Admission::From(_) => true,
            Admission::Nothing | Admission::Undecided => false,
        }
    }
}

/// Two ownership rows that were never true at one moment: they were read at different ones, or one of them was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unclear {
    /// The row of the side that the stream comes from.
    pub side: Option<Ownership>,
    /// The other side's.
    pub other: Option<Ownership>,
}

impl std::fmt::Display for Unclear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let said = |row: Option<Ownership>| row.map_or_else(|| "no row".to_owned(), |row| row.to_string());
        write!(
            f,
            "it cannot be told which writes count: the side that the stream comes from says `{}`, the other `{}`; read \
             both again, and if they stay so, one of them was restored or changed by hand",
            said(self.side),
            said(self.other)
        )
    }
}

impl std::error::Error for Unclear {}

/// What the stream that comes from a side may apply. `side` is that side's row, `other` the other side's; `opened_at` is
/// a place in this side's log from when it opened the epoch of `side`, not after the commit that did, and does not matter
/// for the first epoch, which nobody opened.
///
/// | this side | the other | then |
/// |---|---|---|
/// | owner or fenced | an earlier epoch, or no row | its own epoch |
/// | handed over | an earlier epoch: it has not opened yet, the stream drains | its own epoch |
/// | handed over or follower | owner, fenced or handed over, of a later epoch | nothing |
/// | follower that never owned | no row | nothing |
/// | no row | no row, or a follower that never owned | everything: nobody can have handed over |
/// | no row | first owner | nothing: this side is to follow |
///
/// Anything else is [`Unclear`]. *Its own epoch* is everything in epoch 1, and later everything from the opening on:
/// what was written here before it was written while the other side was the owner. The old owner's log up to the
/// fence's marker is thus always admitted until the new owner has opened, which has applied that marker by then.
///
/// Around a hand-over from this side to the other one the answers change, and the streams are told in this order:
/// 1. Before `flip`: nothing changes. A fence can be taken back, and then this side's writes count.
/// 2. After `flip`, before `open`: *this* side's stream is told [`Admission::Nothing`] once it has applied the marker; then
///    a signal is sent through it. When it has passed, nothing that was admitted is still on its way to the new owner.
///    The *other* side's stream is told [`Admission::Undecided`]: what the application writes from `open` on must not be
///    judged by the rows from before.
/// 3. After `open`: the other side's stream is told the answer for the new rows.
pub fn admission(
    side: Option<Ownership>,
    other: Option<Ownership>,
    opened_at: Position,
) -> Result<Admission, Unclear> {
    let unclear = Err(Unclear { side, other });
    let Some(row) = side else {
        return match other {
            None => Ok(Admission::All),
            Some(other) if never_owned(other) => Ok(Admission::All),
            Some(Ownership::Owner { epoch: Epoch(1), .. }) => Ok(Admission::Nothing),
            Some(_) => unclear,
        };
    };
    let epoch = row.epoch();
    let own = if epoch <= Epoch(1) { Admission::All } else { Admission::From(opened_at) };
    match (row, other) {
        (Ownership::Owner { .. } | Ownership::Fenced { .. }, None) => Ok(own),
        (Ownership::Owner { .. } | Ownership::Fenced { .. }, Some(other)) if other.epoch() < epoch => Ok(own),
        (Ownership::HandedOver { .. }, Some(other)) if has_not_opened(other, epoch) => Ok(own),
        (Ownership::HandedOver { .. } | Ownership::Follower { .. }, Some(other))
            if has_succeeded(other, epoch) =>
        {
            Ok(Admission::Nothing)
        }
        (Ownership::Follower { .. }, None) if never_owned(row) => Ok(Admission::Nothing),
        (
            Ownership::Owner { .. }
            | Ownership::Fenced { .. }
            | Ownership::HandedOver { .. }
            | Ownership::Follower { .. },
            _,
        ) => unclear,
    }
}

fn never_owned(row: Ownership) -> bool {
    matches!(row, Ownership::Follower { epoch: Epoch(0) })
}

/// It waits for the epoch after `ended`, which this side has handed over.
fn has_not_opened(row: Ownership, ended: Epoch) -> bool {
    match row {
        Ownership::HandedOver { epoch, .. } | Ownership::Follower { epoch } => epoch < ended,
        Ownership::Owner { .. } | Ownership::Fenced { .. } => false,
    }
}

/// It has opened an epoch after `last`.
fn has_succeeded(row: Ownership, last: Epoch) -> bool {
    match row {
        Ownership::Owner { epoch, .. }
        | Ownership::Fenced { epoch, .. }
        | Ownership::HandedOver { epoch, .. } => epoch > last,
        Ownership::Follower { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ownership::{Attempt, FenceId, become_follower, fence, flip, open};
    use super::*;

    const AT: Position = Position(700);
    const FROM: Admission = Admission::From(AT);
    const ATTEMPT: Attempt = Attempt(9);

    fn owner(epoch: u64) -> Option<Ownership> {
        Some(Ownership::Owner { epoch: Epoch(epoch), attempt: ATTEMPT })
    }
    fn fenced(epoch: u64) -> Option<Ownership> {
        Some(Ownership::Fenced { epoch: Epoch(epoch), attempt: ATTEMPT, deadline_us: 5 })
    }
    fn gone(epoch: u64) -> Option<Ownership> {
        Some(Ownership::HandedOver { epoch: Epoch(epoch), attempt: ATTEMPT })
    }
    fn follower(epoch: u64) -> Option<Ownership> {
        Some(Ownership::Follower { epoch: Epoch(epoch) })
    }

    #[test]
    fn every_pair_of_rows_of_a_migrations_life_has_an_answer() {
        use Admission::{All, Nothing};
        for (side, other, expected) in [
            // No hand-over has been possible yet.
            (None, None, All),
            (None, follower(0), All),
            (follower(0), None, Nothing),
            (owner(1), None, All),
            (None, owner(1), Nothing),
            // The first owner and its follower.
            (owner(1), follower(0), All),
            (fenced(1), follower(0), All),
            (follower(0), owner(1), Nothing),
            (follower(0), fenced(1), Nothing),
            // Handed over, not opened: what was written before the fence still drains.
            (gone(1), follower(0), All),
            (follower(0), gone(1), Nothing),
            // Opened; the old owner does not follow yet, and then does.
            (gone(1), owner(2), Nothing),
            (gone(1), fenced(2), Nothing),
            (gone(1), gone(2), Nothing),
            (follower(1), owner(2), Nothing),
            (follower(1), fenced(2), Nothing),
            (owner(2), gone(1), FROM),
            (fenced(2), gone(1), FROM),
            (owner(2), follower(1), FROM),
            (fenced(2), follower(1), FROM),
            // On its way back.
            (gone(2), gone(1), FROM),
            (gone(2), follower(1), FROM),
            (follower(1), gone(2), Nothing),
            (owner(3), gone(2), FROM),
            (gone(2), owner(3), Nothing),
            (owner(3), follower(2), FROM),
            (follower(2), owner(3), Nothing),
            // The other side's row is lost: this one owns the writes all the same.
            (owner(2), None, FROM),
            (fenced(2), None, FROM),
        ] {
            assert_eq!(admission(side, other, AT), Ok(expected), "{side:?} {other:?}");
        }
    }

    #[test]
    fn rows_that_were_never_true_together_are_not_judged_by() {
        for (side, other) in [
            // Whoever read this side first missed a hand-over.
            (owner(1), owner(2)),
            (fenced(1), owner(2)),
            (owner(1), gone(2)),
            (owner(2), follower(2)),
            (follower(1), follower(2)),
            (gone(1), follower(2)),
            // Whoever read the other side first did.
            (gone(2), owner(1)),
            (gone(2), fenced(1)),
            (follower(3), owner(2)),
            (follower(2), gone(1)),
            // One epoch has one owner.
            (owner(1), owner(1)),
            (gone(1), gone(1)),
            (gone(1), follower(1)),
            (follower(1), owner(1)),
            (follower(0), follower(0)),
            // A row is lost.
            (gone(1), None),
            (follower(1), None),
            (None, owner(2)),
            (None, fenced(1)),
            (None, gone(1)),
            (None, follower(1)),
        ] {
            let unclear = Unclear { side, other };
            assert_eq!(admission(side, other, AT), Err(unclear), "{side:?} {other:?}");
        }
        let said = Unclear { side: follower(1), other: None }.to_string();
        assert!(said.contains("follower (last owned epoch: 1)") && said.contains("no row"), "{said}");
    }

    /// Hand-overs by the real transitions, there and back: the old owner's stream is admitted until the new one has
    /// opened, the new one's only from then on, and there is an answer at every moment.
    #[test]
    fn one_stream_at_a_time_is_admitted_through_hand_overs_there_and_back() {
        let mut rows = [Ownership::FIRST_OWNER, Ownership::FIRST_FOLLOWER];
        let mut old = 0;
        let stream = |rows: &[Ownership; 2], from: usize| {
            admission(Some(rows[from]), Some(rows[1 - from]), AT).unwrap()
        };
        for number in 1..8 {
            let own = if number == 1 { Admission::All } else { FROM };
            let last = rows[old].fence_id().unwrap();
            let this = FenceId { epoch: last.epoch, attempt: Attempt(number) };
            for _ in 0..2 {
                assert_eq!((stream(&rows, old), stream(&rows, 1 - old)), (own, Admission::Nothing));
                rows[old] = match rows[old] {
                    row @ Ownership::Owner { .. } => fence(row, last, this.attempt, 100).unwrap(),
                    row => flip(row, this, 10, 5).unwrap(),
                };
            }
            assert_eq!((stream(&rows, old), stream(&rows, 1 - old)), (own, Admission::Nothing));
            let new = 1 - old;
            rows[new] = open(rows[new], this, Some(this)).unwrap();
            assert_eq!((stream(&rows, old), stream(&rows, new)), (Admission::Nothing, FROM));
            if number % 2 == 0 {
                rows[old] = become_follower(rows[old], rows[new].epoch()).unwrap();
                assert_eq!((stream(&rows, old), stream(&rows, new)), (Admission::Nothing, FROM));
            }
            old = new;
        }
    }

    #[test]
    fn a_transaction_is_judged_by_the_place_of_its_commit_record() {
        use Judgement::{Apply, Stray, Wait};
        for (admission, before, at, after) in [
            (Admission::All, Apply, Apply, Apply),
            (FROM, Stray, Apply, Apply),
            (Admission::Nothing, Stray, Stray, Stray),
            (Admission::Undecided, Wait, Wait, Wait),
        ] {
            let judged = [699, 700, 701].map(|at| admission.judge(Position(at)));
            assert_eq!(judged, [before, at, after], "{admission:?}");
        }
        let owners =
            [Admission::All, FROM, Admission::Nothing, Admission::Undecided].map(Admission::is_owner);
        assert_eq!(owners, [true, true, false, false]);
    }
}
