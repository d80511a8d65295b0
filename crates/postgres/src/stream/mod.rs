//! The change stream of one slot, as the engine reads it.
//!
//! Owns the order of transactions, the rule which of them are skipped, and the strict reading of rows against the plan:
//! a row is delivered, or it belongs to what the plan says is not ours, or the stream ends with a fault.

mod note;
mod relations;

pub use note::{Gone, Left, Note};
pub use relations::{Departed, Expectation, RelationPlan, StreamPlan};

use crate::birth::StreamIdentity;
use crate::connect::Endpoint;
use crate::origin;
use crate::pgoutput::{self, Message, Old};
use crate::replication::{Connection, Frame, Replication};
use relations::{Found, Relations, Shape};
use segue_engine::fault::Fault;
use segue_engine::ports::{Acknowledger, ChangeStream, Outcome, StreamEvent};
use segue_model::change::{Action, Change, Row, TransactionHead, Value};
use segue_model::position::Position;
use segue_model::seam::Xid32;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub struct StreamSource {
    /// The source database.
    pub endpoint: Endpoint,
    /// The logical slot.
    pub slot: String,
    /// The publications that the slot's stream is limited to.
    pub publications: Vec<String>,
}

impl StreamSource {
    /// The source of a stream that was born.
    pub fn of(endpoint: Endpoint, stream: &StreamIdentity) -> StreamSource {
        let (slot, publications) = (stream.slot.clone(), vec![stream.publication.clone()]);
        StreamSource { endpoint, slot, publications }
    }
}

/// A stream that is being opened: the server looks for its beginning in the log, which can take a while, and sends ahead
/// within a bound. Dropping it ends the session.
pub struct Opening {
    from: Position,
    session: JoinHandle<Outcome<Replication>>,
}

impl Opening {
    /// Begins to open the stream after `from`, which must be the stored checkpoint: the source is told at once that
    /// everything before it is durable.
    pub fn begin(source: StreamSource, from: Position) -> Opening {
        let session = tokio::spawn(async move {
            let mut connection = Connection::open(&source.endpoint).await?;
            let standing = connection.standing(&source.slot, from).await?;
            if standing.is_worth_reading(from) {
                let StreamSource { endpoint, slot, publications } = source;
                return Ok(Replication::with_backlog(endpoint, slot, from, &publications));
            }
            connection.start(&source.slot, from, &source.publications).await
        });
        Opening { from, session }
    }

    /// The stream, read by `plan`, which may change while it runs.
    pub async fn stream(mut self, plan: watch::Receiver<Arc<StreamPlan>>) -> Outcome<PgStream> {
        let ended = |e| Fault::bug("SEGUE-TASK", format!("opening the stream ended unexpectedly: {e}"));
        let replication = (&mut self.session).await.map_err(ended)??;
        let reader = Reader::new(plan, self.from);
        Ok(PgStream { replication, reader, ready: VecDeque::new(), leaves: None })
    }

    /// Where it begins.
    pub fn from(&self) -> Position {
        self.from
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.session.abort();
    }
}

/// Hears when the stream is about to describe a relation anew.
///
/// A server does so before the next row after the relation, or what its partition constraint depends on, was altered: in
/// particular before the first row that was written to a leaf after it was detached, and before the first row of its range
/// that was written to the default partition instead. What is gone by now is therefore found before any such row is read.
pub trait LeafWatch: Send + Sync {
    /// The relation is described; the plan may change before this ends.
    ///
    /// `arrived`: when the description did. What was looked at since then need not be looked at again.
    fn described(&self, oid: u32, arrived: Instant)
    -> Pin<Box<dyn Future<Output = Outcome<()>> + Send + '_>>;
}

/// A running change stream.
pub struct PgStream {
    replication: Replication,
    reader: Reader,
    ready: VecDeque<StreamEvent>,
    leaves: Option<Arc<dyn LeafWatch>>,
}

impl PgStream {
    /// Tells `leaves` of descriptions before it reads on.
    #[must_use]
    pub fn watched_by(self, leaves: Arc<dyn LeafWatch>) -> PgStream {
        PgStream { leaves: Some(leaves), ..self }
    }
}

impl ChangeStream for PgStream {
    async fn next(&mut self) -> Outcome<StreamEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            match self.replication.next().await? {
                Frame::Data { payload } if payload.is_empty() => self.reader.nameless(&mut self.ready)?,
                Frame::Data { payload } => {
                    let message = pgoutput::decode(payload).map_err(|e| {
                        Fault::bug(
                            "SEGUE-PGOUTPUT",
                            format!("a message of the change stream cannot be read: {e}"),
                        )
                    })?;
                    if let (Message::Relation(relation), Some(leaves)) = (&message, &self.leaves) {
                        leaves.described(relation.oid, self.replication.arrived()).await?;
                    }
                    self.reader.read(message, &mut self.ready)?;
                }
                Frame::Keepalive { log_end, .. } => self.ready.extend(self.reader.idle(log_end)),
            }
        }
    }

    fn acknowledger(&self) -> Acknowledger {
        self.replication.acknowledger()
    }
}

/// Which transaction the stream is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// Between transactions.
    None,
    /// In one that has been applied already.
    Applied,
    /// In one of the opposite stream: it came from the other side, and does not go back there.
    Own,
    /// In one that is delivered.
    Delivered,
}

/// From messages to events. No I/O.
struct Reader {
    relations: Relations,
    from: Position,
    within: Within,
    /// Set until the next message: whose transaction it is, is said first or not at all.
    begun: Option<TransactionHead>,
}

fn out_of_order(what: &str) -> Fault {
    Fault::bug("SEGUE-PGOUTPUT", format!("the change stream is out of order: {what}"))
}

impl Reader {
    fn new(plan: watch::Receiver<Arc<StreamPlan>>, from: Position) -> Reader {
        Reader { relations: Relations::new(plan), from, within: Within::None, begun: None }
    }

    fn idle(&self, log_end: Position) -> Option<StreamEvent> {
        (self.within == Within::None && log_end >= self.from)
            .then_some(StreamEvent::Idle { position: log_end })
    }

    fn read(&mut self, message: Message, out: &mut VecDeque<StreamEvent>) -> Outcome<()> {
        let begun = self.begun.take();
        if let (Some(begun), Within::Delivered) = (&begun, self.within)
            && !matches!(message, Message::Origin { .. })
        {
            out.push_back(StreamEvent::Begin(*begun));
        }
        match message {
            Message::Begin { commit_at, committed_at_us, xid } => {
                self.begin(TransactionHead { xid: Xid32(xid), committed_at_us, commit: commit_at })
            }
            Message::Commit { end, .. } => self.commit(end, out),
            Message::Origin { name, .. } => self.origin(Some(&name), begun, out),
            Message::Relation(relation) => {
                self.relations.describe(relation);
                Ok(())
            }
            // Values are text: their types' names are not needed.
            Message::Type { .. } => Ok(()),
            Message::Message { .. } => Err(out_of_order("a logical message that was not asked for")),
            Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate { .. } => match self.within {
                Within::None => Err(out_of_order("a change outside a transaction")),
                Within::Applied | Within::Own => Ok(()),
                Within::Delivered => self.change(message, out),
            },
        }
    }

    /// `from` lies between records, so a commit record that starts before it ends at or before it.
    /// The end is what counts, and it is checked when it is known.
    fn begin(&mut self, head: TransactionHead) -> Outcome<()> {
        if self.within != Within::None {
            return Err(out_of_order("a transaction within another"));
        }
        self.within = if head.commit < self.from { Within::Applied } else { Within::Delivered };
        self.begun = Some(head);
        Ok(())
    }

    /// A message without content: PostgreSQL 12 to 14 send it where they find no name for a transaction's origin, and later
    /// ones send none.
    fn nameless(&mut self, out: &mut VecDeque<StreamEvent>) -> Outcome<()> {
        let begun = self.begun.take();
        self.origin(None, begun, out)
    }

    /// Whose transaction it is. Other subscriptions' are delivered: their rows are nowhere but here.
    ///
    /// The server finds the name in its catalog as it was when the transaction began. So it is the opposite stream's even
    /// if the number of that origin belonged, or belongs by now, to somebody else.
    fn origin(
        &mut self,
        name: Option<&str>,
        begun: Option<TransactionHead>,
        out: &mut VecDeque<StreamEvent>,
    ) -> Outcome<()> {
        let Some(head) = begun else {
            return Err(out_of_order("the origin of a transaction that is not at its beginning"));
        };
        if self.within == Within::Applied {
            return Ok(());
        }
        let own = self.relations.plan().own_origin.as_deref();
        if name.zip(own).is_some_and(|(name, own)| origin::is_of(name, own)) {
            self.within = Within::Own;
        } else {
            out.push_back(StreamEvent::Begin(head));
        }
        Ok(())
    }

    fn commit(&mut self, end: Position, out: &mut VecDeque<StreamEvent>) -> Outcome<()> {
        let within = std::mem::replace(&mut self.within, Within::None);
        match within {
            Within::None => Err(out_of_order("the end of a transaction that had not begun")),
            Within::Applied if end <= self.from => Ok(()),
            Within::Delivered if end > self.from => {
                out.push_back(StreamEvent::Commit { end });
                Ok(())
            }
            // As a position in an idle stream, of which checkpoints are made now and then. Were each transaction answered by
            // a checkpoint, two streams would answer each other's for ever.
            Within::Own if end > self.from => {
                out.push_back(StreamEvent::Idle { position: end });
                Ok(())
            }
            Within::Applied | Within::Own | Within::Delivered => Err(out_of_order(&format!(
                "a transaction ends at {end} and lies across the checkpoint {}",
                self.from
            ))),
        }
    }

    fn change(&mut self, message: Message, out: &mut VecDeque<StreamEvent>) -> Outcome<()> {
        let (relation, rows) = match message {
            Message::Insert { relation, new } => (relation, Rows::Insert { new }),
            Message::Update { relation, old, new } => (relation, Rows::Update { old, new }),
            Message::Delete { relation, old } => (relation, Rows::Delete { old }),
            Message::Truncate { relations, .. } => {
                return self.truncate(&relations, out);
            }
            _ => return Err(out_of_order("not a change")),
        };
        match self.relations.find(relation)? {
            Found::Ignored => {}
            Found::Signal => self.signal(relation, &rows, out)?,
            Found::Table(shape) => {
                let action = action(&shape, rows)?;
                let (table, unit) = (shape.plan.table.id, shape.plan.unit);
                if shape.plan.loose {
                    out.extend(self.relations.make_room(&shape.plan, &action)?.map(StreamEvent::Change));
                }
                out.push_back(StreamEvent::Change(Change { table, unit, action }));
            }
        }
        Ok(())
    }

    fn signal(&mut self, relation: u32, rows: &Rows, out: &mut VecDeque<StreamEvent>) -> Outcome<()> {
        let Some((id, note)) = self.relations.signal(relation, rows)? else { return Ok(()) };
        match note {
            Some(Note::Left(left)) => {
                self.relations.has_left(left.relation, left.unit);
                out.push_back(StreamEvent::Change(left.change()));
            }
            Some(Note::HasLeft(gone)) => self.relations.has_left(gone.relation, gone.unit),
            None => {}
        }
        out.push_back(StreamEvent::Signal(id));
        Ok(())
    }

    /// One change for each relation, but for a partitioned table of which no leaf is left out: that is emptied as a whole,
    /// however its rows are spread over there.
    fn truncate(&mut self, relations: &[u32], out: &mut VecDeque<StreamEvent>) -> Outcome<()> {
        let mut whole = Vec::new();
        for relation in relations {
            let Some(plan) = self.relations.truncated(*relation)? else { continue };
            let table = plan.table.id;
            if whole.contains(&table) {
                continue;
            }
            let is_whole = plan.leaf.is_some() && self.relations.is_all_of(table, relations);
            whole.extend(is_whole.then_some(table));
            let leaf = if is_whole { None } else { self.relations.emptied(&plan) };
            let action = Action::Truncate { leaf, within: None };
            out.push_back(StreamEvent::Change(Change { table, unit: plan.unit, action }));
        }
        Ok(())
    }
}

/// The rows of a change, as the source orders their values.
enum Rows {
    Insert { new: Row },
    Update { old: Option<Old>, new: Row },
    Delete { old: Old },
}

/// Puts the values of a change in the order of the table's columns.
fn action(shape: &Shape, rows: Rows) -> Outcome<Action> {
    Ok(match rows {
        Rows::Insert { new } => Action::Insert { new: shape.arrange(new)? },
        Rows::Delete { old } => Action::Delete { old: old_row(shape, old)?.0 },
        Rows::Update { old: None, .. } if shape.plan.table.key().is_none() => {
            return Err(shape.identity_changed("an update came without its old row"));
        }
        Rows::Update { old, new } => {
            let old = old.map(|old| old_row(shape, old)).transpose()?;
            let mut new = shape.arrange(new)?;
            if let Some((old, _)) = &old {
                fill(&mut new, old);
            }
            Action::Update { old: old.map(|(old, _)| old), new }
        }
    })
}

/// The old row, and whether it is the whole image.
fn old_row(shape: &Shape, old: Old) -> Outcome<(Row, bool)> {
    match old {
        Old::Full(row) => Ok((shape.arrange(row)?, true)),
        Old::Key(_) if shape.plan.table.key().is_none() => {
            Err(shape.identity_changed("a change came with the key of its old row only"))
        }
        Old::Key(row) => Ok((shape.arrange(row)?, false)),
    }
}

/// What an update did not touch is in the whole old image; a large value that is part of the key is in the old key.
fn fill(new: &mut Row, old: &Row) {
    if !new.contains(&Value::Unchanged) {
        return;
    }
    for (new, old) in Arc::make_mut(new).iter_mut().zip(old.iter()) {
        if *new == Value::Unchanged && old.text().is_some() {
            new.clone_from(old);
        }
    }
}

#[cfg(test)]
mod tests;
