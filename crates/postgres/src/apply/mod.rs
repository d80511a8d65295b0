//! Writing changes to a target: one transaction at a time, together with its checkpoint.
//!
//! Owns what the rows must be before and after: every statement's row count is checked, and what does not fit is a
//! [`Mismatch`], never a shrug. It knows nothing of regions or of where the changes come from.

mod ahead;
mod facts;
mod net;
mod order;
mod pieces;
mod session;
mod sql;
mod value;

use crate::authority::Authority;
use crate::connect::Endpoint;
use crate::error::fault_of;
pub use ahead::{Ahead, ROW_SLOW};
use facts::Facts;
use net::Held;
pub use pieces::Pieces;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::{Applier, ApplyError, Checkpoint, Durability, Mismatch, Outcome};
use segue_model::change::Change;
use segue_model::net::Net;
use segue_model::position::Position;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::table::Table;
use session::{Refused, Request, Session};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::error::{Severity, SqlState};
use value::Param;

/// Where the transaction stands on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none.
    Idle,
    /// It begins with the next request.
    Wanted,
    /// It has begun.
    Open,
    /// It can only be rolled back.
    Over,
}

/// The session that applies a stream.
pub struct PgApplier {
    session: Session,
    authority: Authority,
    state: State,
    /// What is known of each target table, by its name and key columns.
    facts: HashMap<(String, Vec<String>), Arc<Facts>>,
    /// What of the transaction has not been sent.
    held: Held,
}

impl PgApplier {
    /// Opens the session and takes the stream's replication origin.
    pub async fn open(endpoint: &Endpoint, authority: Authority) -> Outcome<PgApplier> {
        let session = Session::open(endpoint, &authority.origin()).await?;
        Ok(PgApplier { session, authority, state: State::Idle, facts: HashMap::new(), held: Held::default() })
    }

    fn begin_sql(&self) -> String {
        format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT segue.enter({}, {})",
            quote_literal(&self.authority.migration),
            self.authority.token
        )
    }

    /// Sends requests, with the beginning of the transaction before them if it has not begun. Row counts are the caller's to check.
    async fn send(&mut self, requests: &[Request]) -> Result<Vec<u64>, Refused> {
        let begin = (self.state == State::Wanted).then(|| self.begin_sql());
        if begin.is_some() {
            self.state = State::Open;
        }
        match self.session.send(begin.as_deref(), requests, None).await {
            Ok((counts, _)) => Ok(counts),
            Err(refused) => {
                self.state = State::Over;
                Err(refused)
            }
        }
    }

    fn in_transaction(&self) -> Outcome<()> {
        match self.state {
            State::Wanted | State::Open => Ok(()),
            State::Idle | State::Over => {
                Err(Fault::bug("SEGUE-APPLY-STATE", "changes outside a transaction of the applier"))
            }
        }
    }

    /// What must be known of the target table beyond its plan.
    async fn facts(&mut self, table: &Table) -> Outcome<Arc<Facts>> {
        let entry = (qualified(table), facts::key_columns(table));
        if let Some(known) = self.facts.get(&entry) {
            return Ok(known.clone());
        }
        let facts = Arc::new(facts::look_up(&self.session.client, table).await?);
        self.facts.insert(entry, facts.clone());
        Ok(facts)
    }

    async fn commit_with(
        &mut self,
        from: Position,
        to: &Checkpoint,
        durability: Durability,
    ) -> Result<(), ApplyError> {
        self.in_transaction()?;
        self.flush().await?;
        killpoint::pass("batch.written");
        let begin = (self.state == State::Wanted).then(|| self.begin_sql());
        let skipped = serde_json::to_string(&to.skipped)
            .map_err(|e| Fault::bug("SEGUE-CHECKPOINT", format!("the checkpoint cannot be written: {e}")))?;
        let advance = Request {
            sql: "SELECT segue.advance($1, $2, $3, $4, $5, $6)".into(),
            params: vec![
                Param::text(&self.authority.migration),
                Param::text(self.authority.direction.as_str()),
                Param::text(self.authority.incarnation.to_string()),
                Param::text(from.to_string()),
                Param::text(to.position.to_string()),
                Param::text(skipped),
            ],
            rows: None,
            bytes: 0,
            staged: false,
        };
        // A COMMIT of a failed transaction answers ROLLBACK and no error: what counts is what can be read after it.
        let unwaited = match durability {
            Durability::Now => "",
            Durability::Later => "SET LOCAL synchronous_commit = off; ",
        };
        let commit = format!(
            "{unwaited}COMMIT; SELECT s.position FROM segue.stream s WHERE s.migration = {} AND s.direction = {}",
            quote_literal(&self.authority.migration),
            quote_literal(self.authority.direction.as_str())
        );
        self.state = State::Over;
        let warned = self.session.warned();
        match self.session.send(begin.as_deref(), &[advance], Some(&commit)).await {
            Ok(_) if durability == Durability::Now && self.session.warned() > warned => {
                let what = "the server warned while it committed: the commit may not be on its standbys";
                Err(ApplyError::Fault(Fault::ambiguous("SEGUE-COMMIT-UNKNOWN", what)))
            }
            Ok((_, Some(stored))) if stored.parse() == Ok(to.position) => {
                self.state = State::Idle;
                Ok(())
            }
            Ok((_, stored)) => Err(ApplyError::Fault(Fault::ambiguous(
                "SEGUE-COMMIT-UNKNOWN",
                format!(
                    "after the commit the checkpoint is {}, not {}",
                    stored.unwrap_or_else(|| "gone".into()),
                    to.position
                ),
            ))),
            Err(refused) if refused.at == Some(1) || refused.error.as_db_error().is_none() => {
                Err(commit_failed(&refused.error))
            }
            Err(refused) => Err(ApplyError::Fault(fault_of(&refused.error).during("storing the checkpoint"))),
        }
    }
}

/// The COMMIT was sent: unless the server said that it failed, nobody knows.
fn commit_failed(error: &tokio_postgres::Error) -> ApplyError {
    match error.as_db_error() {
        Some(db) if db.parsed_severity() == Some(Severity::Error) => match refused_rows(error) {
            Some(what) => ApplyError::Mismatch(Mismatch {
                table: db.table().unwrap_or("?").to_owned(),
                key: None,
                what,
            }),
            // Cancelled after it had committed, while it waited for a standby or by the query behind it.
            None if fault_of(error).recovery == Recovery::Retry => unknown(error),
            None => ApplyError::Fault(fault_of(error).during("committing")),
        },
        _ => unknown(error),
    }
}

fn unknown(error: &tokio_postgres::Error) -> ApplyError {
    let fault = fault_of(error).during("the answer to a commit was lost");
    ApplyError::Fault(Fault::ambiguous("SEGUE-COMMIT-UNKNOWN", fault.what))
}

/// What the server says when rows are not as the changes require; `None` for every other error.
fn refused_rows(error: &tokio_postgres::Error) -> Option<String> {
    let db = error.as_db_error()?;
    let rows = *db.code() == SqlState::UNIQUE_VIOLATION || *db.code() == SqlState::EXCLUSION_VIOLATION;
    rows.then(|| match db.detail() {
        Some(detail) => format!("{}; {detail}", db.message()),
        None => db.message().to_owned(),
    })
}

/// The target table's name, ready to be put into a statement.
fn qualified(table: &Table) -> String {
    format!("{}.{}", quote_ident(&table.target.schema), quote_ident(&table.target.name))
}

impl Applier for PgApplier {
    async fn begin(&mut self) -> Result<(), ApplyError> {
        match self.state {
            State::Idle => {
                self.state = State::Wanted;
                Ok(())
            }
            State::Wanted | State::Open | State::Over => {
                Err(Fault::bug("SEGUE-APPLY-STATE", "a transaction of the applier within another").into())
            }
        }
    }

    type Encoded = Pieces;

    fn encode(table: &Table, net: Net) -> Outcome<Pieces> {
        Pieces::of(table, net)
    }

    async fn net(&mut self, table: &Table, net: &Pieces) -> Result<(), ApplyError> {
        self.in_transaction()?;
        self.write_net(table, net).await
    }

    async fn in_order(&mut self, table: &Table, changes: &[Change]) -> Result<(), ApplyError> {
        self.in_transaction()?;
        self.flush().await?;
        self.write_in_order(table, changes).await
    }

    async fn commit(
        &mut self,
        from: Position,
        to: &Checkpoint,
        durability: Durability,
    ) -> Result<(), ApplyError> {
        self.commit_with(from, to, durability).await
    }

    async fn rollback(&mut self) -> Outcome<()> {
        self.held = Held::default();
        if matches!(self.state, State::Open | State::Over) {
            self.session
                .client
                .batch_execute("ROLLBACK")
                .await
                .map_err(|e| fault_of(&e).during("rolling back"))?;
        }
        self.state = State::Idle;
        Ok(())
    }
}
