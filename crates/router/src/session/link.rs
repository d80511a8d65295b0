//! The boundary of a transaction: which route it takes, whether it waits, and a server connection made ready for it.

use super::{End, Link, Session, WAITING_BYTES_MAX};
use crate::frames::{self, Refusal, put_ready};
use crate::gate::{CANCEL, DRAIN, END};
use crate::pipeline::Pipeline;
use crate::settings::Parameters;
use crate::upstream::{NotReady, Server};
use bytes::BytesMut;
use segue_model::switch::Side;
use segue_model::switch::ownership::Epoch;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

/// No route has it.
const NO_EPOCH: Epoch = Epoch(u64::MAX);

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
        self.parsed_by.now = self.parsed_by.settled;
        self.take_route();
        self.begin_sample();
        let begun = match self.wants_reading() {
            Some(wanted) => Box::pin(self.begin_reading(wanted)).await,
            None => Ok(false),
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(End::Refused(refusal)) if !refusal.fatal => {
                self.answer_group(&refusal);
                return Ok(());
            }
            Err(end) => return Err(end),
        };
        if begun || self.enter_owner().await? {
            (self.active, self.lone.first) = (true, true);
        }
        Ok(())
    }

    fn take_route(&mut self) {
        if self.routes.has_changed().unwrap_or(false) {
            *self.route = self.routes.borrow_and_update().clone();
        }
    }

    /// Goes inside, on the owner's side, once nothing holds; `false`: the client's group was answered instead.
    pub(super) async fn enter_owner(&mut self) -> Result<bool, End> {
        loop {
            self.take_route();
            if let Some(until) = self.waits_until() {
                self.leave_link();
                // Where that has failed before it is tried once more.
                self.ahead = self.ahead.take().filter(|ahead| ahead.is_of_use(self.route.owner.other()));
                self.open_ahead();
                if !Box::pin(self.park(until)).await? {
                    return Ok(false);
                }
                continue;
            }
            // Whoever waits for a connection is not inside yet: a hold would wait for it.
            match self.link(self.route.owner).await {
                Ok(()) => {}
                Err(End::Refused(refusal)) if !refusal.fatal => {
                    self.answer_group(&refusal);
                    return Ok(false);
                }
                Err(end) => return Err(end),
            }
            if self.link.is_none() {
                continue;
            }
            if self.route.leaves_until.is_some_and(|until| until > Instant::now()) {
                self.open_ahead();
            } else {
                self.ahead = None;
            }
            self.cell.enter(self.route.owner);
            if !self.routes.has_changed().unwrap_or(false) {
                return Ok(true);
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
        let since = Instant::now();
        let waited = self.wait_for_route(until).await;
        self.shared.counters.parked_times.add(since.elapsed());
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
                return Poll::Ready(Err(End::Refused(shutting_down())));
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

    /// Sees to it that there is a server of this side, with the session's settings. There is none afterwards where another
    /// route came meanwhile.
    pub(super) async fn link(&mut self, side: Side) -> Result<(), End> {
        let reads = side != self.route.owner;
        if let Some(link) = self.link_now(side)? {
            return self.keep(Link { reads, ..link }).await;
        }
        match Box::pin(self.open(side)).await? {
            Some(link) => self.keep(Link { reads, ..link }).await,
            None => Ok(()),
        }
    }

    /// A server of this side that the session has, or that is idle; one of the other side is laid aside, or left.
    fn link_now(&mut self, side: Side) -> Result<Option<Link>, End> {
        let is_owners = side == self.route.owner;
        let mut left = self.link.take();
        if left.as_ref().is_none_or(|link| link.server.side != side) {
            let former = left.take_if(|link| is_owners && !link.reads);
            let reader = std::mem::replace(&mut self.aside, left.take().map(Box::new));
            if let Some(former) = former {
                self.leave_former_owner(former)?;
            }
            if let Some(mut reader) = reader {
                if reader.server.side == side && reader.server.is_quiet() {
                    left = Some(*reader);
                } else {
                    self.end_link(*reader, true);
                }
            }
        }
        // One on a side that owned the writes once is in the way of whoever wants to be done with that side.
        if let Some(unwanted) = self.aside.take_if(|link| is_owners && !link.reads) {
            self.end_link(*unwanted, true);
        }
        Ok(left.or_else(|| self.borrow_now(side)))
    }

    /// The writes have moved away from the session's own server.
    fn leave_former_owner(&mut self, former: Link) -> Result<(), End> {
        self.end_link(former, true);
        if let Some(pin) = self.pin.filter(|pin| *pin != crate::Pin::Session) {
            let why = format!("terminating connection: the writes were moved, and {pin} cannot be");
            return Err(End::Refused(Refusal::fatal("57P01", why).hint("Connect again.")));
        }
        self.shared.counters.exchanges.add_one();
        Ok(())
    }

    async fn keep(&mut self, link: Link) -> Result<(), End> {
        let mut server = link.server;
        if !Arc::ptr_eq(&server.settings, &self.settings) {
            match Box::pin(self.make_ready(server)).await? {
                Some(ready) => server = ready,
                None => return Ok(()),
            }
        }
        // What is told of a server for reads is compared, and not told: it is another one's with the next statement.
        if !link.reads && !Arc::ptr_eq(&self.told, &server.parameters) {
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

    /// Waits for a turn; who leaves, or gives up, takes nobody's. `None`: there is another route, and it may lead elsewhere.
    pub(super) async fn in_queue<T>(&mut self, turn: impl Future<Output = T>) -> Result<Option<T>, End> {
        let mut turn = pin!(turn);
        let (mut routes, way) = (self.routes.clone(), self.route.way());
        let mut rerouted = pin!(routes.wait_for(|heard| heard.way() != way));
        let mut routes_end = false;
        poll_fn(|cx| {
            if let Poll::Ready(turn) = turn.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(turn)));
            }
            self.cell.register(cx);
            if self.cell.flags() & CANCEL != 0 {
                self.cell.clear(CANCEL);
                let refusal = Refusal::error("57014", "canceling statement due to user request");
                return Poll::Ready(Err(End::Refused(refusal)));
            }
            if self.cell.flags() & (DRAIN | END) != 0 {
                return Poll::Ready(Err(End::Refused(shutting_down())));
            }
            if !routes_end {
                match rerouted.as_mut().poll(cx) {
                    Poll::Ready(Ok(_)) => return Poll::Ready(Ok(None)),
                    Poll::Ready(Err(_)) => routes_end = true,
                    Poll::Pending => {}
                }
            }
            self.poll_send(cx)?;
            while self.input.len() < WAITING_BYTES_MAX && self.poll_client(cx)? {}
            Poll::Pending
        })
        .await
    }

    /// Says on `server` what the session has set, and takes back what somebody else had.
    async fn make_ready(&mut self, mut server: Box<Server>) -> Result<Option<Box<Server>>, End> {
        let (settings, limit) = (Arc::clone(&self.settings), self.config.limits.connect_max);
        let readying = within(limit, async move { server.make_ready(&settings).await.map(|()| server) });
        self.in_queue(readying).await?.transpose()
    }

    /// Nothing is owed, and no transaction is open.
    pub(super) async fn at_boundary(&mut self) -> Result<(), End> {
        if self.leaving {
            // The server was told good-bye as well: it is nobody's any more.
            self.link = None;
            return Err(End::Left);
        }
        self.settle_reading();
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
        let Link { server, out, place, .. } = link;
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
        (self.sampling, self.last_bound) = (None, None);
        self.tally.take_back();
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

/// What is said to a server on the router's own behalf is not waited for longer than a login: one that is stuck would keep a
/// place of the pool, and its client.
pub(super) async fn within<T>(
    limit: Duration,
    said: impl Future<Output = Result<T, NotReady>>,
) -> Result<T, End> {
    let late = || {
        let why = format!("it has not answered the router within {} ms", limit.as_millis());
        End::Server(io::Error::new(io::ErrorKind::TimedOut, why))
    };
    tokio::time::timeout(limit, said).await.map_err(|_| late())?.map_err(End::from)
}

/// What a session is told when the router ends.
pub(super) fn shutting_down() -> Refusal {
    Refusal::fatal("57P01", "terminating connection: the router is shutting down").hint("Connect again.")
}

/// Remembers what a ParameterStatus says.
pub(super) fn note_parameter(parameters: &mut Arc<Parameters>, frame: &[u8]) -> Result<(), End> {
    Parameters::note(parameters, frame).map_err(End::Garbled)
}
