//! A server for a session: its own or one of the pool's, opened when it is needed or, before the writes move, ahead of that.

use super::{End, Link, Session};
use crate::frames::{self, Refusal};
use crate::upstream::{self, ConnectError, Identity, Server};
use segue_model::switch::Side;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Between two tries to reach a server that is not to be reached just now.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What was opened ahead for longer was opened for a hand-over that did not come: nobody knows what has become of it.
const AHEAD_AGE_MAX: Duration = Duration::from_secs(90);

/// A server that is opened before it is needed.
pub(super) struct Ahead {
    side: Side,
    opened: oneshot::Receiver<Box<Server>>,
    has_failed: Arc<AtomicBool>,
}

impl Ahead {
    /// Whether it is of this side, and there or on its way.
    pub(super) fn is_of_use(&self, side: Side) -> bool {
        self.side == side && !self.has_failed.load(Ordering::Relaxed)
    }
}

impl Drop for Ahead {
    /// It was not needed.
    fn drop(&mut self) {
        self.opened.close();
        if let Ok(unwanted) = self.opened.try_recv() {
            tokio::spawn(unwanted.close());
        }
    }
}

impl Session {
    /// A server of this side; `None`: another route came meanwhile.
    pub(super) async fn open(&mut self, side: Side) -> Result<Option<Link>, End> {
        if self.is_shared() { self.borrow_server(side).await } else { self.own_server(side).await }
    }

    /// Until when an unreachable side is tried again: for reads there is another one.
    fn patience(&self, side: Side) -> Instant {
        let now = Instant::now();
        if side == self.route.owner { now + self.config.limits.queue_max } else { now }
    }

    /// A server of the session's own, as its client asked for it.
    async fn own_server(&mut self, side: Side) -> Result<Option<Link>, End> {
        let link = |server| Some(Link { server, out: Default::default(), place: None, reads: false });
        if let Some(mut ahead) = self.ahead.take().filter(|ahead| ahead.side == side) {
            let opened = async move { (&mut ahead.opened).await.ok() };
            let Some(opened) = self.in_queue(opened).await? else { return Ok(None) };
            if let Some(mut server) = opened {
                if is_good(&mut server) {
                    return Ok(link(server));
                }
                drop(tokio::spawn(server.close()));
            }
        }
        let opening = self.opening(side, self.startup.settings.clone(), self.patience(side));
        let Some(server) = self.in_queue(opening).await? else { return Ok(None) };
        Ok(link(server?))
    }

    /// Before the writes leave their owner, or while a transaction waits for another route: a server on the side that it most
    /// likely leads to. Without it every session would begin with a login at once, when the writes are taken again.
    pub(super) fn open_ahead(&mut self) {
        let side = self.route.owner.other();
        if self.is_shared() {
            return self.fill_ahead(side);
        }
        let has_one =
            self.ahead.is_some() || self.aside.as_ref().is_some_and(|link| link.server.side == side);
        if has_one || self.pin.is_some_and(|pin| pin != crate::Pin::Session) {
            return;
        }
        let opening = self.opening(side, self.startup.settings.clone(), Instant::now());
        let (send, opened) = oneshot::channel();
        let has_failed = Arc::new(AtomicBool::new(false));
        let failed = Arc::clone(&has_failed);
        tokio::spawn(async move {
            // Who cannot be reached now is tried again when it is needed, and refuses then.
            let Ok(server) = opening.await else {
                return failed.store(true, Ordering::Relaxed);
            };
            if let Err(unwanted) = send.send(server) {
                unwanted.close().await;
            }
        });
        self.ahead = Some(Box::new(Ahead { side, opened, has_failed }));
    }

    /// One more server in the pool of this side, unless it has as many as the session's own pool.
    fn fill_ahead(&self, side: Side) {
        let Some((_, wanted)) = self.pool.as_ref().filter(|(known, _)| *known != side) else { return };
        let database = self.config.database(side, &self.startup.database);
        let most = self.config.limits.connections_max;
        let pool = self.shared.pools.of(side, &self.startup.user, database, most);
        let wanted = wanted.connections().min(most);
        if pool.connections() >= wanted || !pool.may_fill() {
            return;
        }
        let Some(place) = pool.place_now() else { return };
        // Others may have thought the same.
        if pool.connections() > wanted {
            return;
        }
        let opening = self.opening(side, Vec::new(), Instant::now());
        tokio::spawn(async move {
            match opening.await {
                Ok(server) => place.give_back(server),
                Err(_) => pool.could_not_fill(),
            }
        });
    }

    /// A server of the pool, where one is idle and may be taken: nothing is waited for then, which is how nearly every
    /// transaction begins.
    pub(super) fn borrow_now(&self, side: Side) -> Option<Link> {
        let (_, pool) = self.pool.as_ref().filter(|(known, _)| self.is_shared() && *known == side)?;
        let place = pool.place_now()?;
        let server = place.take(&self.settings, self.config.limits.age_max)?;
        Some(Link { server, out: Default::default(), place: Some(place), reads: false })
    }

    /// A server of the pool.
    async fn borrow_server(&mut self, side: Side) -> Result<Option<Link>, End> {
        let config = Arc::clone(&self.config);
        let limits = &config.limits;
        let deadline = self.patience(side);
        let pool = match &self.pool {
            Some((known, pool)) if *known == side => Arc::clone(pool),
            _ => {
                let database = config.database(side, &self.startup.database);
                let (user, most) = (self.startup.user.as_str(), limits.connections_max);
                let pool = self.shared.pools.of(side, user, database, most);
                self.pool = Some((side, Arc::clone(&pool)));
                pool
            }
        };
        let Some(turn) = self.in_queue(pool.place(limits.queue_max)).await? else { return Ok(None) };
        let Some(place) = turn else {
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
            None => match self.in_queue(self.opening(side, Vec::new(), deadline)).await? {
                Some(opened) => opened?,
                None => return Ok(None),
            },
        };
        Ok(Some(Link { server, out: Default::default(), place: Some(place), reads: false }))
    }

    /// Opens a connection; one that cannot be reached is tried again until `deadline`.
    fn opening(
        &self,
        side: Side,
        settings: Vec<(String, String)>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Box<Server>, End>> + Send + use<> {
        let (shared, config) = (Arc::clone(&self.shared), Arc::clone(&self.config));
        let (user, login) = (self.startup.user.clone(), self.login.clone());
        let database = config.database(side, &self.startup.database).to_owned();
        async move {
            let identity = Identity { user: &user, database: &database, login: &login, settings: &settings };
            loop {
                let opened =
                    upstream::connect(side, config.upstream(side), &identity, config.limits.connect_max)
                        .await;
                let error = match opened {
                    Ok(server) => {
                        shared.counters.connects.add_one();
                        return Ok(Box::new(server));
                    }
                    // Its own words: the database is not there, there are too many connections, …
                    Err(ConnectError::Told(frame)) if !is_starting(&frame) => return Err(End::Told(frame)),
                    Err(error @ (ConnectError::Io(_) | ConnectError::Told(_)))
                        if Instant::now() < deadline =>
                    {
                        error
                    }
                    Err(error) => {
                        tracing::warn!(%error, user, "no connection to the database");
                        return Err(End::Refused(Refusal::fatal("08006", error.to_string())));
                    }
                };
                tracing::debug!(%error, "trying the database again");
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}

/// Whether what was opened ahead can be used still.
fn is_good(server: &mut Server) -> bool {
    server.opened.elapsed() < AHEAD_AGE_MAX && server.is_quiet()
}

/// A server that is starting, stopping or recovering will let clients in in a moment.
fn is_starting(frame: &[u8]) -> bool {
    frames::error_field(frame, b'C').is_ok_and(|code| code == b"57P03")
}
