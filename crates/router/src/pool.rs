//! Server connections that nobody uses just now, by side, user and database: how many there may be, and how old.
//!
//! It opens none, and does not know for whom one was opened before; what it hands out is checked.

use crate::settings::Settings;
use crate::upstream::Server;
use segue_model::switch::Side;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many are looked at for one that is set as it is wanted; a SET costs less than more of them.
const LOOKED_AT_MAX: usize = 16;

/// Before a server that could not be logged in to is tried again for nobody.
const FILL_AGAIN: Duration = Duration::from_secs(1);

#[allow(clippy::vec_box, reason = "each transaction takes one and gives it back: their bytes need not move")]
type Idle = Vec<Box<Server>>;

/// Connections of one user to one database of one side.
#[derive(Debug)]
pub(crate) struct Pool {
    connections_max: usize,
    idle: Mutex<Idle>,
    /// When a connection that nobody waited for could not be opened.
    not_filled: Mutex<Option<Instant>>,
    permits: Arc<Semaphore>,
}

/// How much of a pool is used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolUse {
    /// Of which side.
    pub side: Side,
    /// As whom its connections are logged in.
    pub user: String,
    /// What the database is called there.
    pub database: String,
    /// Connections that serve a transaction, or are being opened for one.
    pub used: usize,
    /// Connections that nobody uses just now.
    pub idle: usize,
    /// So many there may be at once.
    pub connections_max: usize,
}

/// The right to have one connection.
pub(crate) struct Place {
    pub(crate) pool: Arc<Pool>,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    fn new(connections_max: usize) -> Pool {
        Pool {
            connections_max,
            idle: Mutex::default(),
            not_filled: Mutex::default(),
            permits: Arc::new(Semaphore::new(connections_max)),
        }
    }

    /// The right to a connection, if nobody waits for one.
    pub(crate) fn place_now(self: &Arc<Pool>) -> Option<Place> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(Place { pool: Arc::clone(self), permit })
    }

    /// Waits for the right to a connection, in the order of asking.
    pub(crate) async fn place(self: &Arc<Pool>, limit: Duration) -> Option<Place> {
        if let Some(place) = self.place_now() {
            return Some(place);
        }
        let turn = Arc::clone(&self.permits).acquire_owned();
        let permit = tokio::time::timeout(limit, turn).await.ok()?.ok()?;
        Some(Place { pool: Arc::clone(self), permit })
    }

    fn used(&self) -> usize {
        self.connections_max.saturating_sub(self.permits.available_permits())
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many it has, used or idle, those that are being opened among them.
    pub(crate) fn connections(&self) -> usize {
        self.used() + self.idle().len()
    }

    /// Whether it may be filled ahead: not again at once where that has failed, by whoever begins a transaction.
    pub(crate) fn may_fill(&self) -> bool {
        let failed = *self.not_filled.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_none_or(|at| at.elapsed() >= FILL_AGAIN)
    }

    /// It could not be filled ahead just now.
    pub(crate) fn could_not_fill(&self) {
        *self.not_filled.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn take(&self, wanted: &Arc<Settings>, age_max: Duration) -> Option<Box<Server>> {
        let mut idle = self.idle();
        loop {
            let is_set =
                |server: &Server| Arc::ptr_eq(&server.settings, wanted) || server.settings == *wanted;
            let mut last = idle.iter().rev().take(LOOKED_AT_MAX);
            let near = last.position(|server| is_set(server)).unwrap_or(0);
            let at = idle.len().checked_sub(near + 1)?;
            let mut server = idle.remove(at);
            // A server that says something to nobody is closing, or has a message that no client waits for.
            if server.opened.elapsed() < age_max && server.is_quiet() {
                return Some(server);
            }
        }
    }

    /// Closes every idle connection that is older than it may be; returns how many are left.
    fn close_old(&self, age_max: Duration) -> usize {
        let mut idle = self.idle();
        idle.retain_mut(|server| server.opened.elapsed() < age_max && server.is_quiet());
        idle.len()
    }
}

impl Place {
    /// An idle connection, best one that is set as wanted.
    pub(crate) fn take(&self, wanted: &Arc<Settings>, age_max: Duration) -> Option<Box<Server>> {
        self.pool.take(wanted, age_max)
    }

    /// Gives a connection back, and the right to it.
    pub(crate) fn give_back(self, server: Box<Server>) {
        self.pool.idle().push(server);
        drop(self.permit);
    }
}

type Key = (Side, Box<str>, Box<str>);

/// All pools.
#[derive(Debug, Default)]
pub(crate) struct Pools(Mutex<HashMap<Key, Arc<Pool>>>);

impl Pools {
    /// The pool of one user and database on one side.
    pub(crate) fn of(&self, side: Side, user: &str, database: &str, connections_max: usize) -> Arc<Pool> {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (side, user.into(), database.into());
        Arc::clone(pools.entry(key).or_insert_with(|| Arc::new(Pool::new(connections_max))))
    }

    /// How much of each is used, in an order that stays the same.
    pub(crate) fn uses(&self) -> Vec<PoolUse> {
        let pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |((side, user, database), pool): (&Key, &Arc<Pool>)| PoolUse {
            side: *side,
            user: user.clone().into(),
            database: database.clone().into(),
            used: pool.used(),
            idle: pool.idle().len(),
            connections_max: pool.connections_max,
        };
        let mut uses: Vec<PoolUse> = pools.iter().map(of).collect();
        uses.sort_by(|a, b| {
            (a.side.name(), &a.user, &a.database).cmp(&(b.side.name(), &b.user, &b.database))
        });
        uses
    }

    /// Closes what is too old, and forgets pools that nobody uses.
    pub(crate) fn tidy(&self, age_max: Duration) {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| pool.close_old(age_max) > 0 || Arc::strong_count(pool) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_could_not_be_filled_ahead_is_left_alone_for_a_while() {
        let pool = Pool::new(2);
        assert!(pool.may_fill());
        pool.could_not_fill();
        assert!(!pool.may_fill());
        *pool.not_filled.lock().unwrap() = Instant::now().checked_sub(FILL_AGAIN);
        assert!(pool.may_fill());
    }

    #[test]
    fn what_is_being_opened_counts_as_a_connection() {
        let pool = Arc::new(Pool::new(2));
        assert_eq!(pool.connections(), 0);
        let place = pool.place_now();
        assert!(place.is_some() && pool.connections() == 1);
        drop(place);
        assert_eq!(pool.connections(), 0);
    }
}
