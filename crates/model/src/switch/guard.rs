//! What a fenced table answers a writer. The fence is a trigger that is enabled, with a deadline as a literal in its
//! function: catalog state, which a writer sees however old its snapshot is.
//!
//! The function has two parts. The literal is compared first ([`Guard::literal`]). Only past it the ownership row is
//! read, **with a lock** (`FOR UPDATE` where it is to be changed, at least `FOR SHARE` where it already says owner): a
//! plain read by a writer of an older snapshot would find the owner of long ago. Then [`late`] answers.

use super::ownership::{Ownership, take_back};
use serde::{Deserialize, Serialize};

/// The fence triggers of one side. All tables have the same: they are changed under all their locks at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Disabled: writers pass.
    Off,
    /// Enabled by a fence with this deadline, in microseconds since 1970 by the database's clock.
    Until(i64),
    /// Enabled without an end: the fence of a follower.
    Forever,
}

/// What the literal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Literal {
    /// The trigger does not fire.
    Passes,
    /// Before the deadline.
    Refuses,
    /// Past it: the row decides.
    AsksRow,
}

/// What a writer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The write goes through.
    Accept,
    /// It fails with SQLSTATE 25006, which names the migration and the owner.
    Refuse,
    /// The row becomes this one, in the writer's transaction, and the write goes through. The row stays locked until
    /// the writer has ended: a hand-over waits for it, and then finds another row than it asked for.
    TakeBack(Ownership),
}

impl Guard {
    /// Compares the literal with the database's clock.
    pub const fn literal(self, now_us: i64) -> Literal {
        match self {
            Guard::Off => Literal::Passes,
            Guard::Until(deadline_us) if now_us >= deadline_us => Literal::AsksRow,
            Guard::Until(_) | Guard::Forever => Literal::Refuses,
        }
    }

    /// The whole answer, for a row that cannot change meanwhile.
    pub fn answer(self, row: Option<Ownership>, now_us: i64) -> Answer {
        match self.literal(now_us) {
            Literal::Passes => Answer::Accept,
            Literal::Refuses => Answer::Refuse,
            Literal::AsksRow => late(row, now_us),
        }
    }
}

/// Answers a writer past the literal, from the row as it was read under its lock; `None` if there is no row.
pub fn late(row: Option<Ownership>, now_us: i64) -> Answer {
    match row {
        Some(Ownership::Owner { .. }) => Answer::Accept,
        Some(fenced @ Ownership::Fenced { .. }) => {
            take_back(fenced, now_us).map_or(Answer::Refuse, Answer::TakeBack)
        }
        Some(Ownership::HandedOver { .. } | Ownership::Follower { .. }) | None => Answer::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ownership::{Attempt, Epoch};
    use super::*;

    const EPOCH: Epoch = Epoch(1);
    const ATTEMPT: Attempt = Attempt(3);
    const OWNER: Ownership = Ownership::Owner { epoch: EPOCH, attempt: ATTEMPT };
    const FENCED: Ownership = Ownership::Fenced { epoch: EPOCH, attempt: ATTEMPT, deadline_us: 100 };
    const GONE: Ownership = Ownership::HandedOver { epoch: EPOCH, attempt: ATTEMPT };

    #[test]
    fn what_a_writer_is_told() {
        let until = Guard::Until(100);
        for (guard, row, now_us, answer) in [
            (Guard::Off, Some(OWNER), 0, Answer::Accept),
            (until, Some(FENCED), 99, Answer::Refuse),
            (until, Some(FENCED), 100, Answer::TakeBack(OWNER)),
            (until, Some(OWNER), 99, Answer::Refuse),
            (until, Some(OWNER), 100, Answer::Accept),
            (until, Some(GONE), 100, Answer::Refuse),
            (until, Some(Ownership::FIRST_FOLLOWER), 100, Answer::Refuse),
            (until, None, 100, Answer::Refuse),
            (Guard::Forever, Some(FENCED), i64::MAX, Answer::Refuse),
            (Guard::Forever, Some(OWNER), i64::MAX, Answer::Refuse),
        ] {
            assert_eq!(guard.answer(row, now_us), answer, "{guard:?} {row:?} at {now_us}");
        }
    }

    #[test]
    fn a_writer_past_an_old_literal_is_refused_by_the_deadline_of_a_new_fence() {
        let refenced = Ownership::Fenced { epoch: EPOCH, attempt: Attempt(4), deadline_us: 200 };
        assert_eq!(Guard::Until(100).answer(Some(refenced), 150), Answer::Refuse);
    }
}
