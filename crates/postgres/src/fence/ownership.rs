//! The ownership row as it is stored, and what a call that was to change it came to.

use crate::birth::Blocker;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::switch::ownership::Ownership;
use serde::Deserialize;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The ownership row of one database, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Who takes the writes, as this side knows it.
    pub ownership: Ownership,
    /// The signal in the stream after which nothing comes from this side: of the fence that stands, or under which it has
    /// handed over. `None` in every other state.
    pub marker: Option<u64>,
    /// Where this side's log was when it became the owner the last time: what the application writes as this owner's client
    /// is committed above it. Position(0) for a first owner, and for a side that has never been one.
    ///
    /// Whoever wrote here before that, past the fence, has committed below it, unless the tables' locks could not be had
    /// when it was opened: then such a writer may have been under way, and committed later.
    pub opened_at: Position,
}

/// The ownership row of a migration; `None` without a row, and without the schema.
pub async fn row(client: &Client, migration: &str) -> Outcome<Option<Row>> {
    let there = "SELECT to_regclass('segue.owner') IS NOT NULL";
    if !client.query_one(there, &[]).await.map_err(|e| fault_of(&e))?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_one("SELECT segue.ownership($1)::text", &[&migration]).await;
    let text: Option<String> = row.map_err(|e| fault_of(&e))?.get(0);
    text.map(|text| Row::parse(&text)).transpose()
}

/// The row in the answer to a message that asked for one.
pub(super) fn read(messages: &[SimpleQueryMessage]) -> Outcome<Option<Row>> {
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.map(Row::parse).transpose()
}

impl Row {
    fn parse(text: &str) -> Outcome<Row> {
        let stored: Stored = serde_json::from_str(text).map_err(|e| unreadable(text, &e))?;
        stored.read().ok_or_else(|| Fault::bug("SEGUE-FENCE", format!("a fence without a marker: {text}")))
    }
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The row was changed to this.
    Done(Row),
    /// It was this already, by an earlier call with the same numbers.
    AlreadyDone(Row),
    /// It is something else, and was left alone.
    Refused {
        /// What it is; `None` without a row.
        found: Option<Row>,
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
    /// The row, if it is what the call was to make it.
    pub fn made(&self) -> Option<&Row> {
        match self {
            Answer::Done(row) | Answer::AlreadyDone(row) => Some(row),
            Answer::Refused { .. } | Answer::Blocked { .. } => None,
        }
    }

    pub(super) fn parse(text: &str) -> Outcome<Answer> {
        let answer: AnswerRow = serde_json::from_str(text).map_err(|e| unreadable(text, &e))?;
        let bug = |what| Fault::bug("SEGUE-FENCE", format!("an answer {what}: {text}"));
        let found = match answer.found {
            Some(stored) => Some(stored.read().ok_or_else(|| bug("without its fence's marker"))?),
            None => None,
        };
        match (answer.is, found) {
            (AnswerIs::Done, Some(now)) => Ok(Answer::Done(now)),
            (AnswerIs::AlreadyDone, Some(now)) => Ok(Answer::AlreadyDone(now)),
            (AnswerIs::Refused, found) => Ok(Answer::Refused { found, why: answer.why.unwrap_or_default() }),
            (AnswerIs::Done | AnswerIs::AlreadyDone, None) => Err(bug("without an ownership")),
        }
    }
}

fn unreadable(text: &str, error: &serde_json::Error) -> Fault {
    Fault::bug("SEGUE-FENCE", format!("an answer that cannot be read ({error}): {text}"))
}

#[derive(Deserialize)]
struct AnswerRow {
    is: AnswerIs,
    found: Option<Stored>,
    why: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum AnswerIs {
    Done,
    AlreadyDone,
    Refused,
}

/// What `segue.ownership` returns.
#[derive(Deserialize)]
struct Stored {
    #[serde(flatten)]
    ownership: Ownership,
    marker: Option<u64>,
    /// Where the schema is still an earlier build's, no side has become the owner yet.
    #[serde(default)]
    opened_at: Position,
}

impl Stored {
    fn read(self) -> Option<Row> {
        let Stored { ownership, marker, opened_at } = self;
        let marker = match ownership {
            Ownership::Fenced { .. } | Ownership::HandedOver { .. } => Some(marker?),
            Ownership::Owner { .. } | Ownership::Follower { .. } => None,
        };
        Some(Row { ownership, marker, opened_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::switch::ownership::{Attempt, Epoch};

    #[test]
    fn rows_are_read_with_their_marker_where_it_means_something() {
        let (epoch, attempt) = (Epoch(1), Attempt(2));
        for (state, deadline_us, ownership, marker) in [
            ("owner", "null", Ownership::Owner { epoch, attempt }, None),
            ("fenced", "-5", Ownership::Fenced { epoch, attempt, deadline_us: -5 }, Some(7)),
            ("handed_over", "null", Ownership::HandedOver { epoch, attempt }, Some(7)),
            ("follower", "null", Ownership::Follower { epoch }, None),
        ] {
            let text = format!(
                r#"{{"state":"{state}","epoch":1,"attempt":2,"marker":7,"deadline_us":{deadline_us},"opened_at":{}}}"#,
                u64::MAX
            );
            assert_eq!(Row::parse(&text), Ok(Row { ownership, marker, opened_at: Position(u64::MAX) }));
        }
        let earlier = r#"{"state":"owner","epoch":1,"attempt":0,"marker":null,"deadline_us":null}"#;
        assert_eq!(Row::parse(earlier).unwrap().opened_at, Position(0));
        for broken in [
            r#"{"state":"retired","epoch":1,"attempt":0,"opened_at":0}"#,
            r#"{"state":"owner","epoch":-1,"attempt":0,"opened_at":0}"#,
            r#"{"state":"fenced","epoch":1,"attempt":1,"marker":7,"deadline_us":null,"opened_at":0}"#,
            r#"{"state":"handed_over","epoch":1,"attempt":1,"marker":null,"opened_at":0}"#,
        ] {
            assert_eq!(Row::parse(broken).map_err(|fault| fault.code), Err("SEGUE-FENCE"), "{broken}");
        }
    }

    #[test]
    fn answers_are_read_with_the_ownership_they_found() {
        let ownership = Ownership::Fenced { epoch: Epoch(1), attempt: Attempt(2), deadline_us: 1_500_000 };
        let fenced = Row { ownership, marker: Some(7), opened_at: Position(16) };
        let row =
            r#"{"state":"fenced","epoch":1,"attempt":2,"marker":7,"deadline_us":1500000,"opened_at":16}"#;
        for (text, answer) in [
            (format!(r#"{{"is":"done","found":{row},"why":null}}"#), Answer::Done(fenced)),
            (format!(r#"{{"is":"already_done","found":{row},"why":null}}"#), Answer::AlreadyDone(fenced)),
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
            r#"{"is":"done","found":{"state":"fenced","epoch":1,"attempt":2,"marker":null,"deadline_us":1}}"#,
        ] {
            assert_eq!(Answer::parse(broken).map_err(|fault| fault.code), Err("SEGUE-FENCE"), "{broken}");
        }
    }
}
