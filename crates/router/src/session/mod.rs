//! One client, from its first byte to its last.
//!
//! * [`login`]: the first packets, TLS, who it is
//! * [`forward`]: what the client sends, to the server
//! * [`prepare`]: what of that names a prepared statement
//! * [`back`]: what the server answers, to the client
//! * [`lone`]: a statement that may be sent again
//! * [`pending`]: what that changes, until it is answered
//! * [`link`]: at the boundary of a transaction: the route, the hold, a server connection made ready
//! * [`open`]: where that connection comes from
//! * [`group`]: whether a group of messages is proved to read
//! * [`read`]: reads that the follower serves
//! * [`sample`]: reads that are compared
//! * [`tally`]: what was served, counted
//!
//! The task owns the client's socket and, while it is linked, the server's. Nothing is handed to another task.

mod back;
mod forward;
mod group;
mod link;
mod login;
mod lone;
mod open;
mod pending;
mod prepare;
mod read;
mod sample;
mod tally;

use crate::auth::Login;
use crate::effects::Pin;
use crate::frames::{Malformed, Refusal};
use crate::gate::{CANCEL, Cell, DRAIN, END};
use crate::pipeline::{Pipeline, Unasked};
use crate::pool::{Place, Pool};
use crate::reads::Named;
use crate::route::{Heard, Routes};
use crate::serve::{Config, PoolMode, Shared};
use crate::settings::{Parameters, Settings};
use crate::startup::Startup;
use crate::statements::{OfClient, OnServer, Statement};
use crate::stream::{FIRST_BYTES, Out, READ_BYTES, Stream};
use crate::upstream::{NotReady, Server};
#[cfg(any(test, fuzzing))]
pub(crate) use lone::is_lone;

use back::Back;
use bytes::{Bytes, BytesMut};
use forward::Forward;
use pending::Pending;
use read::Failure;
use segue_model::switch::Side;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// So much waits for a slow reader before the other side is not read any more.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// How long a last word may take to be sent.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client has gone")]
    ClientGone,
    #[error("the client has said good-bye")]
    Left,
    #[error("the client: {0}")]
    Client(io::Error),
    /// The client is told why.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The client is told what the server said.
    #[error("the server refused")]
    Told(Bytes),
    #[error("the server has closed the connection")]
    ServerGone,
    #[error("the server: {0}")]
    Server(io::Error),
    /// The server does not keep to the protocol; what it says is not to be trusted any more.
    #[error("the server: {0}")]
    Broken(#[from] Unasked),
    #[error("the server: {0}")]
    Garbled(Malformed),
    /// A setting of the session is refused.
    #[error("a setting of this session is not taken by the database: {0}")]
    NotTaken(String),
    /// Nothing of the answer was passed on: somebody else is asked.
    #[error("the follower has not answered in time")]
    Late,
}

impl End {
    /// The client does not keep to the protocol.
    fn client(error: Malformed) -> End {
        End::Refused(Refusal::fatal("08P01", error.to_string()))
    }
}

impl From<NotReady> for End {
    fn from(error: NotReady) -> End {
        match error {
            NotReady::Io(error) => End::Server(error),
            NotReady::Gone(_) => End::ServerGone,
            NotReady::Garbled(error) => End::Garbled(error),
            NotReady::Refused(why) => End::NotTaken(why),
        }
    }
}

/// A server connection while it is the session's.
struct Link {
    server: Box<Server>,
    /// Bytes on their way to the server.
    out: Out,
    /// The right to it, where it is shared.
    place: Option<Place>,
    /// It was opened for reads, on a side that did not own the writes.
    reads: bool,
}

/// By which settings texts are parsed, as hashes.
struct ParsedBy {
    /// Between transactions.
    settled: u64,
    /// By what is being set as well.
    now: u64,
}

/// Prepared statements that SQL throws away, until it is known that it did.
struct Dropped {
    /// So many ReadyForQuery are to come, and the last one tells.
    boundaries: usize,
    named: OfClient,
    on_server: OnServer,
}

/// One client.
struct Session {
    shared: Arc<Shared>,
    config: Arc<Config>,
    startup: Startup,
    login: Login,
    process: u32,
    cell: Arc<Cell>,
    client: Stream,
    input: BytesMut,
    to_client: Out,
    /// The client sent what waits for an answer.
    kept_back: bool,
    /// What is to be read of the client before it can be gone on with.
    wanted_bytes: usize,
    link: Option<Link>,
    /// The session's own server on the other side, where both are used.
    aside: Option<Box<Link>>,
    ahead: Option<Box<open::Ahead>>,
    /// The transaction that is running is the follower's.
    reading: Option<Box<read::Reading>>,
    tally: Box<tally::Tally>,
    /// The read that is being answered is to be compared.
    sampling: Option<Box<sample::Sampling>>,
    /// Its next transaction is the owner's, whatever it is: the follower could not answer it.
    stays: bool,
    /// The owner answers what the follower refused.
    suspects: bool,
    /// The sides write values in different ways.
    unlike: bool,
    /// It has had servers of its own on both sides: either may have a name that the client has closed on the other.
    uses_both: bool,
    /// Whom what is under way is for, as comments and settings in it say.
    named: Named,
    /// What the client wished at its start makes what it reads depend on the server.
    differs_at_start: bool,
    /// What the owner is asked is proved to be a read, up to so many ReadyForQuery that are not sent for yet.
    reads_owner: Option<usize>,
    /// Something was executed in what is under way.
    executes: bool,
    /// Its last transaction on an owner was more than a read, or may have been.
    has_written: bool,
    /// Whom the client said at its start that it works for.
    tenant_at_start: Option<String>,
    /// What decides whether this session is among those whose reads the target serves.
    lot: u32,
    /// Its last transaction on an owner had ended by then.
    seen: Option<Instant>,
    pipeline: Pipeline,
    routes: Routes,
    route: Box<Heard>,
    /// A transaction is running, or a message outside of one is being answered.
    active: bool,
    /// What of a long frame is still to come, from the client and from the server.
    client_rest: usize,
    server_rest: usize,
    /// Everything is answered, and the server waits for the rest of a frame.
    boundary_waits: bool,
    /// A group of messages was answered by the router itself: the rest of it is dropped.
    discarding: bool,
    /// What the client was told.
    told: Arc<Parameters>,
    settings: Arc<Settings>,
    parsed_by: ParsedBy,
    /// Where its servers come from, on the side that it was linked to last.
    pool: Option<(Side, Arc<Pool>)>,
    /// What holds once the transaction has succeeded.
    pending: Pending,
    transaction_failed: bool,
    /// The server has told the client why it closes the connection.
    server_said_why: bool,
    /// The client has said good-bye behind something that is not answered yet.
    leaving: bool,
    pin: Option<Pin>,
    statements: OfClient,
    /// What SQL is throwing away and has not thrown away yet.
    dropped: Option<Dropped>,
    last_bound: Option<Arc<Statement>>,
    /// Portals that were named in this transaction.
    portals: HashMap<Box<[u8]>, Option<Arc<Statement>>>,
    lone: lone::Lone,
}

/// Serves one client.
pub(crate) async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let limit = shared.config().limits.login_max;
    // What seldom happens is in a box while it happens: an idle client is as large as the largest of what is not.
    let login = Box::pin(tokio::time::timeout(limit, login::accept(client, &shared)));
    let mut session = match login.await {
        Ok(Ok(Some(session))) => session,
        Ok(Ok(None)) => return,
        Ok(Err(())) | Err(_) => return shared.counters.refused_logins.add_one(),
    };
    shared.counters.sessions.add_one();
    let end = session.run().await;
    Box::pin(session.finish(end)).await;
}

/// Tells a client that there are too many.
pub(crate) fn turn_away(client: TcpStream) {
    let mut out = BytesMut::new();
    Refusal::fatal("53300", "the router has as many clients as it may have").put(&mut out);
    // It is small enough for an empty socket's buffer; a client for whom it is not learns it from the end.
    let _ = client.try_write(&out);
}

impl Drop for Session {
    /// However it ends: nobody waits for it any more.
    fn drop(&mut self) {
        self.shared.gate.remove(self.process);
    }
}

impl Session {
    fn is_shared(&self) -> bool {
        self.config.pool == PoolMode::Transaction
    }

    async fn run(&mut self) -> End {
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(End::ServerGone | End::Server(_)) if self.leaving => return End::Left,
                Err(end) => return end,
            }
        }
    }

    /// Goes on for a while; what the follower does not do the owner does.
    async fn turn(&mut self) -> Result<(), End> {
        match self.relay().await {
            Err(End::Late) => Box::pin(self.fall_back(Failure::Late)).await?,
            Err(End::ServerGone | End::Server(_)) if self.reading.is_some() && self.lone.armed => {
                Box::pin(self.fall_back(Failure::Lost)).await?;
            }
            // For a client that has said good-bye nothing is resumed: that the follower closes is the answer.
            Err(End::ServerGone | End::Server(_)) if self.rests_reading() && !self.leaving => {
                Box::pin(self.resume_after_loss()).await?;
            }
            relayed => relayed?,
        }
        self.heed_flags()
    }

    /// Relays what there is in both directions, and waits for more.
    async fn relay(&mut self) -> Result<(), End> {
        loop {
            match self.forward()? {
                Forward::Wait if self.boundary_waits && self.client_rest == 0 => {
                    self.boundary_waits = false;
                    if self.pipeline.is_idle() {
                        self.at_boundary().await?;
                        continue;
                    }
                }
                Forward::Wait => {}
                Forward::Begin => {
                    self.begin().await?;
                    continue;
                }
                Forward::Return => {
                    Box::pin(self.return_to_owner()).await?;
                    continue;
                }
            }
            match self.back()? {
                // What was kept back for an answer goes on with it: nothing else may ever come to wake this.
                Back::Wait if self.kept_back && !self.must_wait(0) => {}
                Back::Wait => break,
                // The rest of a frame that owes nothing, as of a stray CopyData, belongs to the server that has its beginning.
                Back::Idle if self.client_rest > 0 => self.boundary_waits = true,
                Back::Idle => self.at_boundary().await?,
                Back::Refused => self.park_refused(),
                Back::Unread(failure) => Box::pin(self.fall_back(failure)).await?,
            }
        }
        poll_fn(|cx| self.poll_relay(cx)).await
    }

    fn heed_flags(&mut self) -> Result<(), End> {
        let flags = self.cell.flags();
        if flags & END != 0 || (flags & DRAIN != 0 && !self.active) {
            return Err(End::Refused(link::shutting_down()));
        }
        if flags & CANCEL != 0 {
            // Nothing of this session waited in the router: the statement had ended, as it may with any server.
            self.cell.clear(CANCEL);
        }
        Ok(())
    }

    /// Sends what waits, then reads. `Ready` when there is something new to look at.
    fn poll_relay(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.cell.register(cx);
        let mut progress = self.cell.flags() != 0 && self.heed_now();
        progress |= self.poll_send(cx)?;
        if let Some(link) = &mut self.link
            && self.to_client.len() < WAITING_BYTES_MAX
        {
            match link.server.stream.poll_receive(cx, &mut link.server.input, READ_BYTES) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(End::ServerGone)),
                Poll::Ready(Ok(_)) => progress = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Server(error))),
                Poll::Pending => {}
            }
        }
        progress |= self.poll_client(cx)?;
        // Only a follower that is listened to can be late.
        if !progress && self.to_client.len() < WAITING_BYTES_MAX && self.is_late(cx) {
            return Poll::Ready(Err(End::Late));
        }
        if progress { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn heed_now(&self) -> bool {
        let flags = self.cell.flags();
        flags & (END | CANCEL) != 0 || (flags & DRAIN != 0 && !self.active)
    }

    /// Reads the client, as far as it may be ahead.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.leaving || self.input.len() >= WAITING_BYTES_MAX.max(self.wanted_bytes) {
            return Ok(false);
        }
        match self.client.poll_receive(cx, &mut self.input, FIRST_BYTES) {
            Poll::Ready(Ok(0)) => Err(End::ClientGone),
            Poll::Ready(Ok(_)) => Ok(true),
            Poll::Ready(Err(error)) => Err(End::Client(error)),
            Poll::Pending => Ok(false),
        }
    }

    /// Sends in both directions; `true`: something left that others may have waited for.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut freed = false;
        if !self.to_client.is_empty() || self.client.is_tls() {
            let was_blocking = self.to_client.len() >= WAITING_BYTES_MAX;
            match self.client.poll_send(cx, &mut self.to_client) {
                Poll::Ready(Err(error)) => return Err(End::Client(error)),
                _ => freed |= was_blocking && self.to_client.len() < WAITING_BYTES_MAX,
            }
        }
        if let Some(link) = &mut self.link
            && (!link.out.is_empty() || link.server.stream.is_tls())
        {
            let was_blocking = link.out.len() >= WAITING_BYTES_MAX;
            match link.server.stream.poll_send(cx, &mut link.out) {
                Poll::Ready(Err(error)) => return Err(End::Server(error)),
                _ => freed |= was_blocking && link.out.len() < WAITING_BYTES_MAX,
            }
        }
        Ok(freed)
    }

    /// Sends to the client what it takes without waiting.
    async fn send_now(&mut self) -> Result<(), End> {
        poll_fn(|cx| {
            Poll::Ready(match self.client.poll_send(cx, &mut self.to_client) {
                Poll::Ready(Err(error)) => Err(End::Client(error)),
                _ => Ok(()),
            })
        })
        .await
    }

    /// Something is not carried from server to server.
    fn pin(&mut self, pin: Pin) {
        if self.pin.is_none() {
            tracing::debug!(user = %self.startup.user, ?pin, "a session is bound to its server connection");
            self.shared.counters.pins.add_one();
            self.pin = Some(pin);
        } else if self.pin == Some(Pin::Session) {
            // That one may end, and this one must stay.
            self.pin = Some(pin);
        }
    }

    async fn finish(mut self, end: End) {
        self.shared.gate.remove(self.process);
        tracing::debug!(user = %self.startup.user, why = %end, "a session is over");
        match &end {
            End::ClientGone | End::Left | End::Client(_) => {}
            End::ServerGone | End::Server(_) if self.server_said_why => {}
            End::Refused(refusal) => refusal.put(self.to_client.buffer()),
            End::NotTaken(_) => {
                let refusal = Refusal::fatal("57P01", end.to_string()).hint("Connect again.");
                refusal.put(self.to_client.buffer());
            }
            End::Told(frame) => self.to_client.buffer().extend_from_slice(frame),
            End::ServerGone | End::Server(_) | End::Broken(_) | End::Garbled(_) | End::Late => {
                Refusal::fatal("08006", format!("the connection to the database is lost: {end}"))
                    .put(self.to_client.buffer());
            }
        }
        let may_reuse = matches!(end, End::ClientGone | End::Left | End::Client(_) | End::Refused(_));
        if let Some(link) = self.link.take() {
            self.end_link(link, may_reuse && !self.active);
        }
        if let Some(aside) = self.aside.take() {
            self.end_link(*aside, true);
        }
        let farewell = async {
            poll_fn(|cx| self.client.poll_send(cx, &mut self.to_client)).await?;
            self.client.shutdown().await
        };
        // A client that does not listen misses it.
        let _ = tokio::time::timeout(FAREWELL_MAX, farewell).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod hot_loop;

    fn bytes_of<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn an_idle_client_is_small() {
        let bytes = bytes_of(serve);
        assert!(bytes <= 2_048, "{bytes} bytes, session {} link {}", size_of::<Session>(), size_of::<Link>());
    }
}
