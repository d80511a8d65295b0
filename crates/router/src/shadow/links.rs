//! The server connections of shadow reads: few, idle ones closed soon, and no more tries than a server can bear.
//!
//! They are apart from the clients' pools: a shadow read takes no client's place.

use super::Sample;
use crate::settings::Settings;
use crate::upstream::{self, ConnectError, Identity, NotReady, Server};
use segue_model::switch::Side;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A connection that nobody needed for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Idle connections in all: a router with a thousand users must not hold a thousand of them.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Users and databases that are remembered as not to be reached; of others every sample tries anew.
const FAILING_MAX: usize = 1_000;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Whose connections may stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    side: Side,
    user: Arc<str>,
    database: Box<str>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoServer {
    #[error("the {0} could not be reached a moment ago")]
    NotYet(Side),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    // What a server says of a setting may quote it.
    #[error("the {0} does not take the settings of the session")]
    NotReady(Side, #[source] NotReady),
}

#[derive(Debug)]
struct Idle {
    key: Key,
    server: Server,
    since: Instant,
}

/// A server that could not be reached.
#[derive(Debug, Clone, Copy)]
struct Failing {
    backoff: Duration,
    until: Instant,
}

#[derive(Debug, Default)]
struct Kept {
    /// Who became idle last is last.
    idle: Vec<Idle>,
    failing: HashMap<Key, Failing>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Links {
    kept: Mutex<Kept>,
    per_key_max: usize,
}

impl Links {
    pub(super) fn new(per_key_max: usize) -> Links {
        Links { kept: Mutex::default(), per_key_max }
    }

    /// A server on `side`, set as the sample's session was.
    pub(super) async fn take(&self, side: Side, sample: &Sample) -> Result<(Key, Server), NoServer> {
        let database = sample.config.database(side, &sample.database);
        let key = Key { side, user: Arc::clone(&sample.user), database: database.into() };
        let mut server = match self.idle(&key, sample.config.limits.age_max) {
            Some(server) => server,
            None => self.connect(&key, sample).await?,
        };
        let (wanted, limit) = (wanted(sample), sample.config.limits.connect_max);
        let readying = async {
            let outcome = server.make_ready(&wanted).await;
            if matches!(outcome, Err(NotReady::Refused(_))) {
                // Some of the settings may have been taken: they are taken back, and the server is good for others.
                server.settings = wanted;
                server.make_ready(&Arc::default()).await.map_err(|error| NoServer::NotReady(side, error))?;
            }
            Ok::<_, NoServer>(outcome)
        };
        match tokio::time::timeout(limit, readying).await {
            Ok(Ok(Ok(()))) => Ok((key, server)),
            Ok(Ok(Err(refused @ NotReady::Refused(_)))) => {
                self.give_back(key, server);
                Err(NoServer::NotReady(side, refused))
            }
            Ok(Ok(Err(error))) => Err(NoServer::NotReady(side, error)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ConnectError::Timeout(limit).into()),
        }
    }

    async fn connect(&self, key: &Key, sample: &Sample) -> Result<Server, NoServer> {
        if self.kept().failing.get(key).is_some_and(|failing| Instant::now() < failing.until) {
            return Err(NoServer::NotYet(key.side));
        }
        let identity =
            Identity { user: &key.user, database: &key.database, login: &sample.login, settings: &[] };
        let upstream = sample.config.upstream(key.side);
        let limit = sample.config.limits.connect_max;
        match upstream::connect(key.side, upstream, &identity, limit).await {
            Ok(server) => {
                if self.kept().failing.remove(key).is_some() {
                    tracing::info!(side = %key.side, user = %key.user, "shadow reads reach the database again");
                }
                Ok(server)
            }
            Err(error) => {
                self.note_failure(key, &error);
                Err(error.into())
            }
        }
    }

    /// Says so once, and lets the server be for a while that grows.
    fn note_failure(&self, key: &Key, error: &ConnectError) {
        let mut kept = self.kept();
        let before = kept.failing.get(key).copied();
        if before.is_none() {
            tracing::warn!(side = %key.side, user = %key.user, %error, "shadow reads do not reach the database");
        }
        let backoff = before.map_or(BACKOFF_MIN, |failing| (failing.backoff * 2).min(BACKOFF_MAX));
        if before.is_some() || kept.failing.len() < FAILING_MAX {
            kept.failing.insert(key.clone(), Failing { backoff, until: Instant::now() + backoff });
        }
    }

    fn idle(&self, key: &Key, age_max: Duration) -> Option<Server> {
        let mut kept = self.kept();
        loop {
            let at = kept.idle.iter().rposition(|idle| idle.key == *key)?;
            let mut server = kept.idle.remove(at).server;
            // A server that says something to nobody is closing.
            if server.opened.elapsed() < age_max && server.is_quiet() {
                return Some(server);
            }
        }
    }

    /// Keeps a server that is in no transaction.
    pub(super) fn give_back(&self, key: Key, server: Server) {
        let closed = {
            let mut kept = self.kept();
            if kept.idle.iter().filter(|idle| idle.key == key).count() >= self.per_key_max {
                Some(server)
            } else {
                kept.idle.push(Idle { key, server, since: Instant::now() });
                (kept.idle.len() > IDLE_CONNECTIONS_MAX).then(|| kept.idle.remove(0).server)
            }
        };
        if let Some(server) = closed {
            drop(tokio::spawn(server.close()));
        }
    }

    /// Closes what nobody needed for a while, and forgets failures that nobody has met again.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        let mut kept = self.kept();
        kept.failing.retain(|_, failing| now < failing.until + IDLE_MAX);
        let old: Vec<Idle> = kept.idle.extract_if(.., |idle| idle.since.elapsed() >= IDLE_MAX).collect();
        drop(kept);
        old.into_iter().for_each(|idle| drop(tokio::spawn(idle.server.close())));
    }

    /// Connections to this side that wait for somebody.
    #[cfg(test)]
    pub(super) fn idle_count(&self, side: Side) -> usize {
        self.kept().idle.iter().filter(|idle| idle.key.side == side).count()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The settings under which the statement was answered. Channels and SQL's prepared statements are nothing to a read.
fn wanted(sample: &Sample) -> Arc<Settings> {
    if sample.startup.is_empty() && !sample.settings.pins() {
        return Arc::clone(&sample.settings);
    }
    Arc::new(sample.settings.for_reads().over(Settings::at_start(&sample.startup)))
}
