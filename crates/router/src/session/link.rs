//! The boundary of a transaction: which route it takes, whether it waits, and a server connection made ready for it.

use super::{End, Link, Session, WAITING_BYTES_MAX};
use crate::frames::{self, Fields, Refusal, put_query, put_ready};
use crate::gate::{CANCEL, DRAIN, END};
use crate::pipeline::Pipeline;
use crate::settings::Parameters;
use crate::upstream::{self, ConnectError, Identity, Server};
use bytes::BytesMut;
use segue_model::switch::ownership::Epoch;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// No route has it.
const NO_EPOCH: Epoch = Epoch(u64::MAX);
/// Between two tries to reach a server that is not to be reached just now.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How a wait ended that is not the client's fault.
enum Waited {
    Over,
    /// The client asked for an end.
    Cancelled,
}

impl Session {
    /// A transaction is about to begin: on the route as it is now, with a server that is ready.
    pub(super) async fn begin(&mut self) -> Result<(), End> {
        self.lone.armed = false;
        loop {
            if self.routes.has_changed().unwrap_or(false) {
                self.route = self.routes.borrow_and_update().clone();
            }
            if let Some(until) = self.waits_until() {
                self.leave_link();
                if !Box::pin(self.park(until)).await? {
                    return Ok(());
                }
                continue;
            }
            // Whoever waits for a connection is not inside yet: a hold would wait for it.
            match self.link().await {
                Ok(()) => {}
                Err(End::Refused(refusal)) if !refusal.fatal => {
                    self.answer_group(&refusal);
                    return Ok(());
                }
                Err(end) => return Err(end),
            }
            self.cell.enter(self.route.owner);
            if !self.routes.has_changed().unwrap_or(false) {
                (self.active, self.lone.first) = (true, true);
                return Ok(());
            }
            self.shared.gate.leave(&self.cell);
        }
    }

    fn waits_until(&self) -> Option<Instant> {
        let held = self.route.held_until;
        let refused =
            self.lone.refused.filter(|(epoch, _)| *epoch == self.route.epoch).map(|(_, until)| until);
        held.max(refused).filter(|until| *until > Instant::now())
    }

    /// Waits for another route; `false`: the client's group was answered instead.
    async fn park(&mut self, until: Instant) -> Result<bool, End> {
        let parked = self.shared.gate.parked.fetch_add(1, Ordering::SeqCst);
        if parked >= self.config.limits.parked_max {
            self.shared.gate.parked.fetch_sub(1, Ordering::SeqCst);
            self.answer_group(
                &Refusal::error("53400", "too many transactions wait while writes are being moved")
                    .hint("Try again in a moment."),
            );
            return Ok(false);
        }
        self.shared.counters.parked.add_one();
        let waited = self.wait_for_route(until).await;
        self.shared.gate.parked.fetch_sub(1, Ordering::SeqCst);
        match waited? {
            Waited::Over => {
                // Whatever the refusing owner's route has become, it is another one: nothing is waited for twice.
                if self.routes.has_changed().unwrap_or(false)
                    && let Some((epoch, _)) = &mut self.lone.refused
                {
                    *epoch = NO_EPOCH;
                }
                Ok(true)
            }
            Waited::Cancelled => {
                self.answer_group(&Refusal::error("57014", "canceling statement due to user request"));
                Ok(false)
            }
        }
    }

    async fn wait_for_route(&mut self, until: Instant) -> Result<Waited, End> {
        let mut routes = self.routes.clone();
        let mut changed = pin!(routes.changed());
        let mut late = pin!(tokio::time::sleep_until(until.into()));
        let mut routes_end = false;
        poll_fn(|cx| {
            self.cell.register(cx);
            if self.cell.flags() & CANCEL != 0 {
                self.cell.clear(CANCEL);
                return Poll::Ready(Ok(Waited::Cancelled));
            }
            if self.cell.flags() & (DRAIN | END) != 0 {
                return Poll::Ready(Err(End::Refused(Refusal::fatal(
                    "57P01",
                    "terminating connection: the router is shutting down",
                ))));
            }
            if !routes_end {
                match changed.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(Waited::Over)),
                    Poll::Ready(Err(_)) => routes_end = true,
                    Poll::Pending => {}
                }
            }
            if late.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(Waited::Over));
            }
            // Answers before this one leave meanwhile, and a client that goes is noticed.
            self.poll_send(cx)?;
            while self.input.len() < WAITING_BYTES_MAX && self.poll_client(cx)? {}
            Poll::Pending
        })
        .await
    }

    /// The router answers a group itself: an error, and what the client waits for after it.
    pub(super) fn answer_group(&mut self, refusal: &Refusal) {
        refusal.put(self.to_client.buffer());
        if self.input.first() == Some(&b'Q') || self.input.first() == Some(&b'F') {
            // The frame is whole in the buffer, or would not have begun anything.
            if let Ok(Some(head)) = frames::head(&self.input) {
                self.client_rest = head.bytes;
            }
            put_ready(self.to_client.buffer(), b'I');
        } else {
            self.discarding = true;
        }
        self.lone.is_answered();
    }

    /// Sees to it that there is a server of the route's owner, with the session's settings.
    pub(super) async fn link(&mut self) -> Result<(), End> {
        let owner = self.route.owner;
        if let Some(link) = self.link.take() {
            if link.server.side == owner {
                return self.keep(link).await;
            }
            self.end_link(link, true);
            if let Some(pin) = self.pin.filter(|pin| *pin != crate::Pin::Session) {
                let why = format!("terminating connection: the writes were moved, and {pin} cannot be");
                return Err(End::Refused(Refusal::fatal("57P01", why).hint("Connect again.")));
            }
            self.shared.counters.exchanges.add_one();
        }
        let link = if self.is_shared() { self.borrow_server().await? } else { self.own_server().await? };
        self.keep(link).await
    }

    async fn keep(&mut self, link: Link) -> Result<(), End> {
        let mut server = link.server;
        if !Arc::ptr_eq(&server.settings, &self.settings) {
            Box::pin(self.make_ready(&mut server)).await?;
        }
        if !Arc::ptr_eq(&self.told, &server.parameters) {
            let mut differences = BytesMut::new();
            server.parameters = self.shared.parameters.one(&server.parameters);
            server.parameters.put_differences(&self.told, &mut differences);
            if !differences.is_empty() {
                self.to_client.buffer().extend_from_slice(&differences);
            }
            self.told = Arc::clone(&server.parameters);
        }
        self.cell.set_cancel(server.cancel.clone());
        self.link = Some(Link { server, ..link });
        Ok(())
    }

    /// A server of the session's own, as its client asked for it.
    async fn own_server(&self) -> Result<Link, End> {
        let server = self.connect(&self.startup.settings, self.queue_deadline()).await?;
        Ok(Link { server, out: Default::default(), place: None })
    }

    /// A server of the pool.
    async fn borrow_server(&mut self) -> Result<Link, End> {
        let config = Arc::clone(&self.config);
        let limits = &config.limits;
        let deadline = self.queue_deadline();
        let owner = self.route.owner;
        let pool = match &self.pool {
            Some((side, pool)) if *side == owner => Arc::clone(pool),
            _ => {
                let database = config.database(owner, &self.startup.database);
                let (user, most) = (self.startup.user.as_str(), limits.connections_max);
                let pool = self.shared.pools.of(owner, user, database, most);
                self.pool = Some((owner, Arc::clone(&pool)));
                pool
            }
        };
        let Some(place) = self.in_queue(pool.place(limits.queue_max)).await? else {
            self.shared.counters.queue_timeouts.add_one();
            let message = format!(
                "no connection to the database became free within {} ms",
                limits.queue_max.as_millis()
            );
            return Err(End::Refused(
                Refusal::error("53300", message).hint("Transactions are too long, or the pool is too small."),
            ));
        };
        let server = match place.take(&self.settings, limits.age_max) {
            Some(server) => server,
            None => self.connect(&[], deadline).await?,
        };
        Ok(Link { server, out: Default::default(), place: Some(place) })
    }

    /// Waits in a queue; who leaves, or gives up, takes nobody's turn.
    async fn in_queue<T>(&mut self, turn: impl Future<Output = T>) -> Result<T, End> {
        let mut turn = pin!(turn);
        poll_fn(|cx| {
            if let Poll::Ready(turn) = turn.as_mut().poll(cx) {
                return Poll::Ready(Ok(turn));
            }
            self.cell.register(cx);
            if self.cell.flags() & CANCEL != 0 {
                self.cell.clear(CANCEL);
                let refusal = Refusal::error("57014", "canceling statement due to user request");
                return Poll::Ready(Err(End::Refused(refusal)));
            }
            self.poll_send(cx)?;
            while self.input.len() < WAITING_BYTES_MAX && self.poll_client(cx)? {}
            Poll::Pending
        })
        .await
    }

    /// Opens a connection; one that cannot be reached is tried again until `deadline`.
    async fn connect(&self, settings: &[(String, String)], deadline: Instant) -> Result<Box<Server>, End> {
        let side = self.route.owner;
        let identity = Identity {
            user: &self.startup.user,
            database: self.config.database(side, &self.startup.database),
            login: &self.login,
            settings,
        };
        loop {
            let upstream = self.config.upstream(side);
            let limit = self.config.limits.connect_max;
            let result = Box::pin(upstream::connect(side, upstream, &identity, limit)).await;
            let error = match result {
                Ok(server) => {
                    self.shared.counters.connects.add_one();
                    return Ok(Box::new(server));
                }
                // Its own words: the database is not there, there are too many connections, …
                Err(ConnectError::Told(frame)) if !is_starting(&frame) => return Err(End::Told(frame)),
                Err(error @ (ConnectError::Io(_) | ConnectError::Told(_))) if Instant::now() < deadline => {
                    error
                }
                Err(error) => {
                    tracing::warn!(%error, user = %self.startup.user, "no connection to the database");
                    return Err(End::Refused(Refusal::fatal("08006", error.to_string())));
                }
            };
            tracing::debug!(%error, "trying the database again");
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Says on `server` what the session has set, and takes back what somebody else had.
    async fn make_ready(&mut self, server: &mut Server) -> Result<(), End> {
        let differ = server.settings != self.settings;
        let statements = if differ { self.settings.statements(&server.settings) } else { Vec::new() };
        if !statements.is_empty() {
            let mut out = BytesMut::new();
            // One by one: a RESET ALL and a role do not belong into one transaction with what may fail.
            statements.iter().for_each(|sql| put_query(&mut out, sql.as_bytes()));
            server.stream.write_all(&out).await.map_err(End::Server)?;
            server.stream.flush().await.map_err(End::Server)?;
            for _ in &statements {
                let refusal = await_ready(server).await?;
                if let Some(why) = refusal {
                    let message = format!("a setting of this session is not taken by the database: {why}");
                    return Err(End::Refused(Refusal::fatal("57P01", message).hint("Connect again.")));
                }
            }
            server.statements.drop_unnamed();
        }
        server.settings = Arc::clone(&self.settings);
        Ok(())
    }

    /// Nothing is owed, and no transaction is open.
    pub(super) async fn at_boundary(&mut self) -> Result<(), End> {
        if self.leaving {
            // The server was told good-bye as well: it is nobody's any more.
            self.link = None;
            return Err(End::Left);
        }
        self.settle();
        self.active = false;
        self.last_bound = None;
        if !self.portals.is_empty() {
            self.portals.clear();
        }
        self.lone.is_answered();
        self.shared.gate.leave(&self.cell);
        if self.is_shared() {
            // The answer first: what was read of the server is its memory.
            self.send_now().await?;
            self.leave_link();
        }
        Ok(())
    }

    /// Gives a shared server back, unless the session needs it still.
    pub(super) fn leave_link(&mut self) {
        if !self.is_shared() || self.pin.is_some() {
            return;
        }
        if let Some(link) = self.link.take() {
            self.end_link(link, true);
        }
    }

    /// `may_reuse`: nothing is owed by the server.
    pub(super) fn end_link(&self, link: Link, may_reuse: bool) {
        let not_cancelled = self.cell.end_cancel();
        let Link { server, out, place } = link;
        if !may_reuse || !out.is_empty() {
            // Closing it ends its transaction.
            return;
        }
        let is_carried = self.pin.is_none() && !self.settings.pins();
        match place {
            Some(place) if not_cancelled && is_carried => place.give_back(server),
            _ => drop(tokio::spawn(server.close())),
        }
    }

    /// The fence refused a lone statement: it is put back to where it came from.
    pub(super) fn park_refused(&mut self) {
        self.shared.counters.repeated.add_one();
        self.shared.met_fence.notify_one();
        let epoch = self.route.epoch;
        let until = self
            .lone
            .refused
            .map_or_else(|| Instant::now() + self.config.limits.refused_max, |(_, until)| until);
        self.lone.refused = Some((epoch, until));
        self.lone.armed = false;
        let mut again = std::mem::take(&mut self.lone.bytes);
        again.extend_from_slice(&self.input);
        self.input = again;
        self.pipeline = Pipeline::default();
        self.pending.clear();
        self.last_bound = None;
        self.portals.clear();
        self.active = false;
        self.shared.gate.leave(&self.cell);
        self.leave_link();
        if !self.lone.parsed.is_empty() && self.pin.is_none() {
            // A server that has the names already would refuse them.
            self.link = None;
        }
        for serial in self.lone.parsed.drain(..) {
            self.statements.forget(serial);
        }
    }
}

/// A server that is starting, stopping or recovering will let clients in in a moment.
fn is_starting(frame: &[u8]) -> bool {
    frames::error_field(frame, b'C').is_ok_and(|code| code == b"57P03")
}

/// Reads up to the next ReadyForQuery; returns what the server refused.
async fn await_ready(server: &mut Server) -> Result<Option<String>, End> {
    let mut refused = None;
    loop {
        let frame = server.stream.frame(&mut server.input).await.map_err(|_| End::ServerGone)?;
        match frame[0] {
            b'Z' => return Ok(refused),
            b'E' => refused = Some(frames::describe_error(&frame)),
            b'S' => note_parameter(&mut server.parameters, &frame)?,
            _ => {}
        }
    }
}

/// Remembers what a ParameterStatus says.
pub(super) fn note_parameter(parameters: &mut Arc<Parameters>, frame: &[u8]) -> Result<(), End> {
    let mut fields = Fields::of(frame);
    let name = fields.string().map_err(End::Garbled)?;
    let value = fields.string().map_err(End::Garbled)?;
    Arc::make_mut(parameters).set(name, value);
    Ok(())
}
