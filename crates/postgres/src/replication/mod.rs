//! The replication transport: a session in walsender mode, and the copy-both stream it becomes.
//!
//! Owns login, framing, back-pressure and the status messages that keep the session alive and tell the source what
//! is durable. It knows nothing of what the payload means.
//!
//! A background task reads ahead up to a bound in bytes. It answers for the consumer however slow that is, but never
//! with more than the position last given to [`Replication::acknowledger`]: that one promise keeps the log on the source.

mod dial;
mod frame;
mod login;
mod pump;

pub use frame::Frame;

use crate::connect::Endpoint;
use dial::Io;
use frame::Backend;
use login::Session;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::{Acknowledger, Outcome};
use segue_model::position::Position;
use segue_model::sqltext::{quote_ident, quote_literal};
use std::collections::VecDeque;
use tokio::sync::{mpsc, watch};

/// A source's identity, as its replication protocol tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// The system identifier: the same on a primary and its standbys.
    pub id: String,
    /// The timeline the server is on.
    pub timeline: u32,
    /// Where its log is flushed up to.
    pub flushed: Position,
}

/// A logged-in walsender session that has not started to stream.
pub struct Connection {
    session: Session<Box<dyn Io>>,
    server: String,
}

impl Connection {
    /// Connects and logs in, trying the hosts and encryption modes of `endpoint` in their order.
    pub async fn open(endpoint: &Endpoint) -> Outcome<Connection> {
        let during = |fault: Fault| fault.during(format_args!("connecting to {endpoint} for replication"));
        let mut session = login::open(endpoint).await.map_err(during)?;
        if let Some(mark) = endpoint.mark_sql() {
            session.query(&mark).await.map_err(during)?;
        }
        Ok(Connection { session, server: endpoint.to_string() })
    }

    /// Asks the server who it is.
    pub async fn identify(&mut self) -> Outcome<System> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let field = |i: usize| rows.first().and_then(|row| row.get(i)).and_then(|v| v.as_deref());
        let parsed = || {
            Some(System {
                id: field(0)?.to_owned(),
                timeline: field(1)?.parse().ok()?,
                flushed: field(2)?.parse().ok()?,
            })
        };
        parsed().ok_or_else(|| frame::broken("the answer to IDENTIFY_SYSTEM is not as the protocol has it"))
    }

    /// Runs one statement by the simple protocol; values as text.
    pub async fn query(&mut self, sql: &str) -> Outcome<Vec<Vec<Option<String>>>> {
        self.session.query(sql).await
    }

    /// Starts streaming from `slot` after `from`, which must be durable on the other side: it is acknowledged at once.
    pub async fn start(self, slot: &str, from: Position, publications: &[String]) -> Outcome<Replication> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if slot.is_empty() || !slot.bytes().all(valid) {
            return Err(Fault::bug("SEGUE-SLOT-NAME", format!("`{slot}` cannot be the name of a slot")));
        }
        let names = publications.iter().map(|p| quote_ident(p)).collect::<Vec<_>>().join(",");
        // The replication grammar of older servers knows no E'…', so a backslash stays as it is.
        let names = if names.contains('\\') {
            format!("'{}'", names.replace('\'', "''"))
        } else {
            quote_literal(&names)
        };
        let start = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names {names})",
            quote_ident(slot)
        );
        let (io, rest) = self.session.start(&start).await.map_err(|mut fault| {
            if fault.what.contains("is active for PID") {
                // Our own earlier session: the server has not noticed yet that it is gone.
                fault.recovery = Recovery::Retry;
                fault.code = "SEGUE-SLOT-BUSY";
            }
            fault.during(format_args!("starting to stream from slot {slot} at {from}"))
        })?;
        let (acknowledged, acknowledgements) = watch::channel(from);
        let (frames, received) = mpsc::unbounded_channel();
        let pump = pump::Pump::new(io, rest, frames, acknowledgements, self.server.clone());
        tokio::spawn(pump.run());
        Ok(Replication { received, pending: VecDeque::new(), acknowledged, server: self.server })
    }
}

/// A running stream. Dropping it ends the session, after a last status message.
pub struct Replication {
    received: mpsc::UnboundedReceiver<Outcome<pump::Batch>>,
    pending: VecDeque<Frame>,
    acknowledged: watch::Sender<Position>,
    server: String,
}

impl Replication {
    /// The next frame. After a fault there is none.
    pub async fn next(&mut self) -> Outcome<Frame> {
        loop {
            if let Some(frame) = self.pending.pop_front() {
                return Ok(frame);
            }
            match self.received.recv().await {
                Some(Ok(batch)) => self.pending = batch.frames,
                Some(Err(fault)) => return Err(fault),
                None => {
                    return Err(Fault::retry(
                        "SEGUE-CONNECTION",
                        format!("the stream from {} has ended", self.server),
                    ));
                }
            }
        }
    }

    /// The way to tell the source up to where it need not keep its log. Never goes back.
    pub fn acknowledger(&self) -> Acknowledger {
        let acknowledged = self.acknowledged.clone();
        Acknowledger::new(move |position| {
            acknowledged.send_if_modified(|held| {
                let further = position > *held;
                if further {
                    *held = position;
                }
                further
            });
        })
    }
}

impl Backend {
    /// The fault for a message that has no place where it came.
    fn out_of_place(&self) -> Fault {
        match self {
            Backend::Error(fault) => fault.clone(),
            other => frame::broken(&format!("a message out of place: {}", other.name())),
        }
    }
}
