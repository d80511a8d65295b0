//! The replication transport: a session in walsender mode, and the copy-both stream it becomes; before it, if much has
//! piled up, a session that reads that by SQL ([`backlog`]).
//!
//! Owns login, framing, back-pressure and the status messages that keep the session alive and tell the source what
//! is durable. It knows nothing of what the payload means.
//!
//! A background task reads ahead up to a bound in bytes. It answers for the consumer however slow that is, but never
//! with more than the position last given to [`Replication::acknowledger`]: that one promise keeps the log on the source.

mod backlog;
mod dial;
mod frame;
mod login;
mod pump;
mod slot;

pub use frame::Frame;
pub use slot::Standing;

use crate::connect::Endpoint;
use backlog::Backlog;
use dial::Io;
use frame::Backend;
use login::Session;
use pump::{Batch, Out, Pump};
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::{Acknowledger, Outcome};
use segue_model::position::Position;
use segue_model::sqltext::{quote_ident, quote_literal};
use std::collections::VecDeque;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

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
        let (out, replication) = Replication::channel(from, &self.server);
        let pump = self.pump(slot, from, &names(publications), out).await.map_err(|(fault, _)| fault)?;
        tokio::spawn(pump.run());
        Ok(replication)
    }

    /// What reads the stream, from `from` on. A fault comes with what it would have been handed to.
    async fn pump(
        self,
        slot: &str,
        from: Position,
        publications: &str,
        out: Out,
    ) -> Result<Pump, (Fault, Out)> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if slot.is_empty() || !slot.bytes().all(valid) {
            let fault = Fault::bug("SEGUE-SLOT-NAME", format!("`{slot}` cannot be the name of a slot"));
            return Err((fault, out));
        }
        // The replication grammar of older servers knows no E'…', so a backslash stays as it is.
        let publications = match publications.contains('\\') {
            true => format!("'{}'", publications.replace('\'', "''")),
            false => quote_literal(publications),
        };
        let start = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names {publications})",
            quote_ident(slot)
        );
        match self.session.start(&start).await {
            Ok((io, rest)) => Ok(Pump::new(io, rest, out, self.server)),
            Err(mut fault) => {
                if fault.what.contains("is active for PID") {
                    // Our own earlier session: the server has not noticed yet that it is gone.
                    fault.recovery = Recovery::Retry;
                    fault.code = "SEGUE-SLOT-BUSY";
                }
                Err((fault.during(format_args!("starting to stream from slot {slot} at {from}")), out))
            }
        }
    }
}

/// Publications, as pgoutput reads their names.
fn names(publications: &[String]) -> String {
    publications.iter().map(|name| quote_ident(name)).collect::<Vec<_>>().join(",")
}

/// A running stream. Dropping it ends the session, after a last status message.
pub struct Replication {
    received: mpsc::UnboundedReceiver<Outcome<Batch>>,
    pending: VecDeque<Frame>,
    arrived: Instant,
    acknowledged: watch::Sender<Position>,
    server: String,
}

impl Replication {
    fn channel(from: Position, server: &str) -> (Out, Replication) {
        let (acknowledged, acknowledgements) = watch::channel(from);
        let (frames, received) = mpsc::unbounded_channel();
        let replication = Replication {
            received,
            pending: VecDeque::new(),
            arrived: Instant::now(),
            acknowledged,
            server: server.to_owned(),
        };
        (Out::new(frames, acknowledgements), replication)
    }

    /// The same stream, where much has piled up after `from`: that is read by SQL, and only what comes after it is
    /// streamed. Whether that can be is told by what comes.
    pub fn with_backlog(
        endpoint: Endpoint,
        slot: String,
        from: Position,
        publications: &[String],
    ) -> Replication {
        let (out, replication) = Replication::channel(from, &endpoint.to_string());
        let publications = names(publications);
        tokio::spawn(async move {
            let begun = tokio::select! {
                begun = after_backlog(&endpoint, &slot, from, &publications, &out) => begun,
                () = out.unwanted() => return,
            };
            let begun = match begun {
                Ok((connection, at)) => connection.pump(&slot, at, &publications, out).await,
                Err(fault) => Err((fault, out)),
            };
            match begun {
                Ok(pump) => pump.run().await,
                Err((fault, out)) => out.fail(fault),
            }
        });
        replication
    }

    /// The next frame. After a fault there is none.
    pub async fn next(&mut self) -> Outcome<Frame> {
        loop {
            if let Some(frame) = self.pending.pop_front() {
                return Ok(frame);
            }
            match self.received.recv().await {
                Some(Ok(batch)) => (self.pending, self.arrived) = (batch.frames, batch.arrived),
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

    /// When the last frame arrived, or later.
    pub fn arrived(&self) -> Instant {
        self.arrived
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

/// Delivers what has piled up, as far as that is cheap; returns a session for the rest, and where that begins.
async fn after_backlog(
    endpoint: &Endpoint,
    slot: &str,
    from: Position,
    publications: &str,
    out: &Out,
) -> Outcome<(Connection, Position)> {
    let at = match Backlog::open(endpoint, slot, from, quote_literal(publications)).await? {
        Some(backlog) => backlog.deliver(out).await?,
        None => from,
    };
    let mut connection = Connection::open(endpoint).await?;
    // Nobody held it meanwhile: it may have been moved, or made anew.
    connection.standing(slot, at).await?;
    Ok((connection, at))
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
