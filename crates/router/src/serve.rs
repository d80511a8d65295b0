//! The listener: who gets in, how many, how long a login may take; and how the router ends.

use crate::auth::{ClientAuth, Users};
use crate::breaker::{Breaker, BreakerState};
use crate::classify::Classifier;
use crate::gate::{DRAIN, END, Gate};
use crate::pool::{PoolUse, Pools};
use crate::reads::{Feeds, ReadLimits, Tenants};
use crate::route::{Routes, Taken};
use crate::served::{self, KindTimes, Served};
use crate::session;
use crate::settings::{self, Parameters, Settings};
use crate::shadow::{Shadow, ShadowConfig, ShadowCounts};
use crate::statements::Texts;
use crate::stats::{Counters, Counts, Histogram};
use crate::upstream::Upstream;
use segue_model::switch::Side;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};

/// Everything that is configured. It was validated where it was read.
#[derive(Debug, Clone)]
pub struct Config {
    /// How clients prove who they are.
    pub auth: ClientAuth,
    /// Users and their secrets; servers are logged in to with them too.
    pub users: Users,
    /// TLS towards clients.
    pub tls: Option<Tls>,
    /// How server connections are shared.
    pub pool: PoolMode,
    /// The source's server.
    pub source: Arc<Upstream>,
    /// The target's server.
    pub target: Arc<Upstream>,
    /// The one database that is served, by its name on each side; `None`: whichever the client names.
    pub databases: Option<Databases>,
    /// Every bound.
    pub limits: Limits,
    /// Bounds of reads that the follower serves.
    pub reads: ReadLimits,
    /// How reads are compared.
    pub shadow: ShadowConfig,
}

/// What a database is called on each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Databases {
    /// On the source.
    pub source: String,
    /// On the target.
    pub target: String,
}

impl Config {
    /// Whether clients that name this database are served.
    pub(crate) fn serves(&self, database: &str) -> bool {
        self.databases.as_ref().is_none_or(|both| both.source == database || both.target == database)
    }

    /// What the database that the client names is called on a side.
    pub(crate) fn database<'a>(&'a self, side: Side, named: &'a str) -> &'a str {
        match (&self.databases, side) {
            (None, _) => named,
            (Some(both), Side::Source) => &both.source,
            (Some(both), Side::Target) => &both.target,
        }
    }

    pub(crate) fn upstream(&self, side: Side) -> &Arc<Upstream> {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

/// TLS towards clients.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificate and key.
    pub config: Arc<rustls::ServerConfig>,
    /// Whether clients without TLS are refused.
    pub required: bool,
}

/// How server connections are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// A client has one of its own, from its login to its end.
    Session,
    /// A client has one for each transaction.
    Transaction,
}

/// Every bound, with what it protects.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Clients at once: sockets and memory.
    pub clients_max: usize,
    /// Server connections of one user to one database of one side, in transaction mode.
    pub connections_max: usize,
    /// A login, from the first byte to the last: clients that dawdle.
    pub login_max: Duration,
    /// Opening a server connection.
    pub connect_max: Duration,
    /// Waiting for a server connection.
    pub queue_max: Duration,
    /// The age of a server connection: memory that servers do not give back otherwise.
    pub age_max: Duration,
    /// Transactions that wait in a hold at once.
    pub parked_max: usize,
    /// Waiting for the new owner after the fence refused a statement.
    pub refused_max: Duration,
    /// A statement's text: it is read as a whole.
    pub statement_bytes_max: usize,
    /// Waiting for transactions when the router ends.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            clients_max: 10_000,
            connections_max: 20,
            login_max: Duration::from_secs(15),
            connect_max: Duration::from_secs(10),
            queue_max: Duration::from_secs(30),
            age_max: Duration::from_secs(3600),
            parked_max: 10_000,
            refused_max: Duration::from_secs(10),
            statement_bytes_max: 64 << 20,
            drain_max: Duration::from_secs(30),
        }
    }
}

/// Why there is no router.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is not to be had.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
}

/// What all sessions share.
pub(crate) struct Shared {
    config: RwLock<Arc<Config>>,
    pub(crate) gate: Gate,
    pub(crate) pools: Pools,
    pub(crate) texts: Texts,
    pub(crate) settings: settings::Shared<Settings>,
    pub(crate) parameters: settings::Shared<Parameters>,
    pub(crate) counters: Counters,
    pub(crate) routes: Routes,
    pub(crate) feeds: Feeds,
    pub(crate) classifier: Classifier,
    pub(crate) breaker: Breaker,
    pub(crate) tenants: Tenants,
    pub(crate) shadow: Shadow,
    pub(crate) served: served::Ledger,
    /// A statement has met a fence.
    pub(crate) met_fence: Notify,
    /// What mock verifiers are made from; another one after each start.
    pub(crate) mock_secret: [u8; 32],
}

impl Shared {
    fn tidy(&self, age_max: Duration) {
        self.pools.tidy(age_max);
        self.settings.tidy();
        self.parameters.tidy();
    }

    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A router that listens.
pub struct Router {
    listener: TcpListener,
    shared: Arc<Shared>,
    draining: watch::Receiver<bool>,
    handle: Handle,
}

/// Asks things of a running router.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    drain: Arc<watch::Sender<bool>>,
    address: SocketAddr,
}

impl Handle {
    /// Where the router listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the router says of the routes it was given: a hold is acknowledged when it [is quiet](Taken::is_quiet).
    pub fn taken(&self) -> watch::Receiver<Taken> {
        self.shared.gate.taken()
    }

    /// Waits until a statement has met the fence of the side that the route calls the owner, unless one has since this
    /// was last waited for: there may be another route.
    pub async fn met_fence(&self) {
        self.shared.met_fence.notified().await;
    }

    /// Clients that are logged in now.
    pub fn clients(&self) -> usize {
        self.shared.gate.sessions()
    }

    /// Transactions that wait for another route now.
    pub fn parked(&self) -> usize {
        self.shared.gate.parked.load(Ordering::Relaxed)
    }

    /// How long transactions have waited in holds.
    pub fn parked_times(&self) -> Histogram {
        self.shared.counters.parked_times.read()
    }

    /// How much of the shared server connections is used now; nothing where each client has one of its own.
    pub fn pools(&self) -> Vec<PoolUse> {
        self.shared.pools.uses()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    /// Whether reads go to the follower, and how often it was found that they must not.
    pub fn breaker(&self) -> (BreakerState, u64) {
        self.shared.breaker.state()
    }

    /// Who used which side with what, so much at most: what the source served last comes first.
    pub fn served(&self, most: usize) -> Vec<Served> {
        self.shared.served.read(most)
    }

    /// Why statements that look like reads were the owner's, and how many, while the follower was to serve some.
    pub fn kept(&self) -> Vec<(&'static str, u64)> {
        self.shared.served.read_kept()
    }

    /// How long the sides take, by kind of statement.
    pub fn times(&self) -> Vec<KindTimes> {
        self.shared.served.read_times()
    }

    /// What the comparing of reads has found.
    pub fn shadow(&self) -> ShadowCounts {
        self.shared.shadow.snapshot()
    }

    /// Takes another configuration, for clients that come from now on. Nobody is dropped. How many clients and server
    /// connections there may be stays as it was.
    pub fn reload(&self, mut config: Config) {
        if config.auth == ClientAuth::Scram {
            config.users.stretch(&self.shared.mock_secret, Some(&self.shared.config().users));
        }
        *self.shared.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// Lets nobody in any more, and ends every session at its next boundary.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }
}

impl Router {
    /// Listens, and serves the route that there is now; every read is the owner's.
    pub async fn bind(listen: SocketAddr, config: Config, routes: Routes) -> Result<Router, ServeError> {
        Router::bind_reading(listen, config, routes, Feeds::none()).await
    }

    /// As [`bind`](Router::bind), with reads that go elsewhere as these say.
    pub async fn bind_reading(
        listen: SocketAddr,
        mut config: Config,
        routes: Routes,
        feeds: Feeds,
    ) -> Result<Router, ServeError> {
        let listener = TcpListener::bind(listen).await.map_err(|error| ServeError::Listen(listen, error))?;
        let address = listener.local_addr().map_err(|error| ServeError::Listen(listen, error))?;
        let route = routes.borrow().clone();
        let mock_secret = rand::random();
        if config.auth == ClientAuth::Scram {
            config.users.stretch(&mock_secret, None);
        }
        let shadow = Shadow::start(config.shadow.clone(), feeds.fresh.clone());
        let shared = Arc::new(Shared {
            config: RwLock::new(Arc::new(config)),
            gate: Gate::new(&route),
            pools: Pools::default(),
            texts: Texts::default(),
            settings: settings::Shared::default(),
            parameters: settings::Shared::default(),
            counters: Counters::default(),
            routes,
            feeds,
            classifier: Classifier::new(),
            breaker: Breaker::default(),
            tenants: Tenants::default(),
            shadow,
            served: served::Ledger::default(),
            met_fence: Notify::new(),
            mock_secret,
        });
        let (drain, draining) = watch::channel(false);
        let handle = Handle { shared: Arc::clone(&shared), drain: Arc::new(drain), address };
        Ok(Router { listener, shared, draining, handle })
    }

    /// For tests of one session.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Asks things of it while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until it is drained.
    pub async fn run(mut self) {
        let limits = self.shared.config().limits.clone();
        let clients = Arc::new(Semaphore::new(limits.clients_max));
        let following = tokio::spawn({
            let shared = Arc::clone(&self.shared);
            async move { shared.gate.follow(shared.routes.clone()).await }
        });
        let learning = tokio::spawn({
            let shared = Arc::clone(&self.shared);
            async move { learn(&shared).await }
        });
        let mut tidy = tokio::time::interval(Duration::from_secs(10));
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((client, _)) => self.admit(client, &clients),
                    Err(error) => {
                        // Out of descriptors, most likely: others will be closed.
                        tracing::warn!(%error, "a client could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                _ = tidy.tick() => self.shared.tidy(limits.age_max),
                changed = self.draining.changed() => if changed.is_err() || *self.draining.borrow() { break },
            }
        }
        drop(self.listener);
        self.shared.gate.ask_all(DRAIN);
        let everybody = u32::try_from(limits.clients_max).unwrap_or(u32::MAX);
        if tokio::time::timeout(limits.drain_max, clients.acquire_many(everybody)).await.is_err() {
            tracing::warn!("transactions are cut off: they did not end in time");
            self.shared.gate.ask_all(END);
            // Each has nothing left to do but to say so.
            let _ = tokio::time::timeout(Duration::from_secs(2), clients.acquire_many(everybody)).await;
        }
        following.abort();
        learning.abort();
    }

    fn admit(&self, client: TcpStream, clients: &Arc<Semaphore>) {
        let shared = Arc::clone(&self.shared);
        match Arc::clone(clients).try_acquire_owned() {
            Ok(place) => drop(tokio::spawn(async move {
                session::serve(client, shared).await;
                drop(place);
            })),
            Err(_) => {
                shared.counters.refused_logins.add_one();
                session::turn_away(client);
            }
        }
    }
}

/// Takes every catalog as it comes. Ends when nobody gives any more.
async fn learn(shared: &Shared) {
    let mut catalogs = shared.feeds.catalog.clone();
    loop {
        shared.classifier.set_catalog(catalogs.borrow_and_update().clone());
        if catalogs.changed().await.is_err() {
            return;
        }
    }
}
