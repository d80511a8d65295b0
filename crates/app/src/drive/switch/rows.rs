//! The two ownership rows, read for a decision.

use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::switch::Side;
use segue_model::switch::admission::{Admission, admission as admission_of};
use segue_model::switch::decide::{Seen, Situation, situation};
use segue_model::switch::ownership::Ownership;
use segue_postgres::birth::Direction;
use segue_postgres::fence::{self, Row};
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::Client;

/// A side that has not answered within this time counts as silent for the decision at hand.
const ANSWER_PATIENCE: Duration = Duration::from_millis(300);

/// What both rows were found to say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// The source's.
    pub(super) source: Option<Row>,
    /// The target's.
    pub(super) target: Option<Row>,
}

impl Rows {
    /// Reads both at once. A side that does not answer in time, or at all, is unknown.
    pub(super) async fn read(source: &fence::Side, target: &fence::Side) -> Outcome<Rows> {
        let (source, target) =
            tokio::join!(timeout(ANSWER_PATIENCE, source.row()), timeout(ANSWER_PATIENCE, target.row()));
        match (source, target) {
            (Ok(Ok(source)), Ok(Ok(target))) => Ok(Rows { source, target }),
            (Ok(Ok(source)), _) => Ok(Rows { source, target: None }),
            (_, Ok(Ok(target))) => Ok(Rows { source: None, target }),
            (Ok(Err(fault)), _) | (_, Ok(Err(fault))) => Err(fault),
            (Err(_), Err(_)) => Ok(Rows { source: None, target: None }),
        }
    }

    /// The row of one side.
    pub(super) fn of(&self, side: Side) -> Option<Row> {
        match side {
            Side::Source => self.source,
            Side::Target => self.target,
        }
    }

    /// As the decision takes it.
    pub(super) fn seen(&self, side: Side) -> Seen {
        self.of(side).map_or(Seen::Unknown, |row| Seen::Known(row.ownership))
    }

    /// What they say together.
    pub(crate) fn situation(&self) -> Situation {
        situation(self.seen(Side::Source), self.seen(Side::Target))
    }

    /// The side that takes writes, or would if it were not fenced; `None`: neither, or it is not known.
    pub(crate) fn owner(&self) -> Option<Side> {
        match self.situation() {
            Situation::Owned { owner, .. } | Situation::Fenced { owner, .. } => Some(owner),
            Situation::HandedOver { .. } | Situation::Ambiguous(_) | Situation::Contradictory { .. } => None,
        }
    }

    /// The side that has handed the writes over to one that has not taken them yet.
    pub(crate) fn giving(&self) -> Option<Side> {
        match self.situation() {
            Situation::HandedOver { from, .. } => Some(from),
            Situation::Owned { .. }
            | Situation::Fenced { .. }
            | Situation::Ambiguous(_)
            | Situation::Contradictory { .. } => None,
        }
    }
}

/// Two rows that cannot both be true: for a person.
pub(in crate::drive) fn contradiction(what: &str) -> Fault {
    Fault::operator(
        "SEGUE-OWNERSHIP",
        what,
        "somebody has changed segue.owner by hand, or one side was restored from a backup: find out which side has \
         the newest writes before anything else",
    )
}

/// Both rows at the start of an attempt. Before the first hand-over was ever wanted the source's is not there, and it owns
/// the writes.
pub(crate) async fn both(source: &Client, target: &Client, migration: &str) -> Outcome<Rows> {
    let (source, target) = tokio::try_join!(fence::row(source, migration), fence::row(target, migration))?;
    let first = || Row { ownership: Ownership::FIRST_OWNER, marker: None, opened_at: Position(0) };
    Ok(Rows { source: Some(source.unwrap_or_else(first)), target })
}

/// What a stream may apply of its side's log, by what both databases say.
pub(crate) async fn admission(
    source: &Client,
    target: &Client,
    migration: &str,
    direction: Direction,
) -> Outcome<Admission> {
    let (source, target) = tokio::try_join!(fence::row(source, migration), fence::row(target, migration))?;
    let (from, to) = match direction {
        Direction::Forward => (source, target),
        Direction::Reverse => (target, source),
    };
    let opened_at = from.map_or(Position(0), |row| row.opened_at);
    admission_of(from.map(|row| row.ownership), to.map(|row| row.ownership), opened_at)
        .map_err(|unclear| contradiction(&unclear.to_string()))
}
