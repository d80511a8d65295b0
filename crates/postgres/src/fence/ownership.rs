//! The ownership row as a value, and what a call that was to change it came to.

use crate::birth::Blocker;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use serde::Deserialize;
use std::time::{Duration, SystemTime};

/// Whether a side owns the writes. Epochs count the owners of a migration; attempts count its fences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It takes the application's writes.
    Owner {
        /// Of this ownership.
        epoch: u64,
        /// Of the last fence that was lifted or taken back.
        attempt: u64,
    },
    /// It owns the writes and takes none, until the deadline.
    Fenced {
        /// Of this ownership.
        epoch: u64,
        /// Of this fence.
        attempt: u64,
        /// By this server's clock.
        deadline: SystemTime,
        /// The signal in the stream after which nothing comes from this side.
        marker: u64,
    },
    /// It has given the writes away: the other side is `Owner` of the next epoch, or will be.
    HandedOver {
        /// Of the ownership that was given away.
        epoch: u64,
        /// Of the fence under which.
        attempt: u64,
        /// Its marker, which the other side must have applied before it opens.
        marker: u64,
    },
    /// It has never owned the writes.
    Follower {
        /// 0.
        epoch: u64,
        /// 0.
        attempt: u64,
    },
}

impl Ownership {
    /// Of the row, whatever it says.
    pub fn epoch(&self) -> u64 {
        match self {
            Ownership::Owner { epoch, .. }
            | Ownership::Fenced { epoch, .. }
            | Ownership::HandedOver { epoch, .. }
            | Ownership::Follower { epoch, .. } => *epoch,
        }
    }

    /// The number of the last fence.
    pub fn attempt(&self) -> u64 {
        match self {
            Ownership::Owner { attempt, .. }
            | Ownership::Fenced { attempt, .. }
            | Ownership::HandedOver { attempt, .. }
            | Ownership::Follower { attempt, .. } => *attempt,
        }
    }

    pub(super) fn parse(text: &str) -> Outcome<Ownership> {
        let row: OwnershipRow = serde_json::from_str(text).map_err(|e| unreadable(text, &e))?;
        row.read()
            .ok_or_else(|| Fault::bug("SEGUE-FENCE", format!("an ownership without all its parts: {text}")))
    }
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The ownership was changed to this.
    Done(Ownership),
    /// It was this already, by an earlier call with the same numbers.
    AlreadyDone(Ownership),
    /// It is something else, and was left alone.
    Refused {
        /// What it is; `None` without a row.
        found: Option<Ownership>,
        /// What did not fit.
        why: String,
    },
    /// A lock could not be had in time. Nothing was changed.
    Blocked {
        /// Who held one when it was last looked, the oldest first.
        by: Vec<Blocker>,
        /// What the server said.
        what: String,
    },
}

impl Answer {
    /// The ownership, if it is what the call was to make it.
    pub fn made(&self) -> Option<&Ownership> {
        match self {
            Answer::Done(ownership) | Answer::AlreadyDone(ownership) => Some(ownership),
            Answer::Refused { .. } | Answer::Blocked { .. } => None,
        }
    }

    pub(super) fn parse(text: &str) -> Outcome<Answer> {
        let row: AnswerRow = serde_json::from_str(text).map_err(|e| unreadable(text, &e))?;
        let found = row.found.and_then(OwnershipRow::read);
        match (row.is, found) {
            (AnswerIs::Done, Some(now)) => Ok(Answer::Done(now)),
            (AnswerIs::AlreadyDone, Some(now)) => Ok(Answer::AlreadyDone(now)),
            (AnswerIs::Refused, found) => Ok(Answer::Refused { found, why: row.why.unwrap_or_default() }),
            (AnswerIs::Done | AnswerIs::AlreadyDone, None) => {
                Err(Fault::bug("SEGUE-FENCE", format!("an answer without an ownership: {text}")))
            }
        }
    }
}

fn unreadable(text: &str, error: &serde_json::Error) -> Fault {
    Fault::bug("SEGUE-FENCE", format!("an answer that cannot be read ({error}): {text}"))
}

#[derive(Deserialize)]
struct AnswerRow {
    is: AnswerIs,
    found: Option<OwnershipRow>,
    why: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum AnswerIs {
    Done,
    AlreadyDone,
    Refused,
}

#[derive(Deserialize)]
struct OwnershipRow {
    state: State,
    epoch: u64,
    attempt: u64,
    marker: Option<u64>,
    deadline_us: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Owner,
    Fenced,
    HandedOver,
    Follower,
}

impl OwnershipRow {
    fn read(self) -> Option<Ownership> {
        let OwnershipRow { state, epoch, attempt, marker, deadline_us } = self;
        Some(match state {
            State::Owner => Ownership::Owner { epoch, attempt },
            State::Follower => Ownership::Follower { epoch, attempt },
            State::HandedOver => Ownership::HandedOver { epoch, attempt, marker: marker? },
            State::Fenced => {
                let deadline = SystemTime::UNIX_EPOCH + Duration::from_micros(deadline_us?);
                Ownership::Fenced { epoch, attempt, deadline, marker: marker? }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_with_the_ownership_they_found() {
        let deadline = SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000);
        let fenced = Ownership::Fenced { epoch: 1, attempt: 2, deadline, marker: 7 };
        let row = r#"{"state":"fenced","epoch":1,"attempt":2,"marker":7,"deadline_us":1500000}"#;
        for (text, answer) in [
            (format!(r#"{{"is":"done","found":{row},"why":null}}"#), Answer::Done(fenced.clone())),
            (
                format!(r#"{{"is":"already_done","found":{row},"why":null}}"#),
                Answer::AlreadyDone(fenced.clone()),
            ),
            (
                r#"{"is":"refused","found":null,"why":"gone"}"#.to_owned(),
                Answer::Refused { found: None, why: "gone".to_owned() },
            ),
        ] {
            assert_eq!(Answer::parse(&text), Ok(answer));
        }
        for broken in [
            r#"{"is":"done","found":null,"why":null}"#,
            r#"{"is":"maybe"}"#,
            r#"{"is":"done","found":{"state":"fenced","epoch":1,"attempt":2,"marker":null,"deadline_us":null}}"#,
        ] {
            assert_eq!(Answer::parse(broken).map_err(|fault| fault.code), Err("SEGUE-FENCE"), "{broken}");
        }
    }
}
