//! Counters, for people and for gates. Nothing in the router decides by them.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened since the router began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sessions: Counter,
    pub(crate) refused_logins: Counter,
    pub(crate) connects: Counter,
    pub(crate) exchanges: Counter,
    pub(crate) pins: Counter,
    pub(crate) parked: Counter,
    pub(crate) repeated: Counter,
    pub(crate) queue_timeouts: Counter,
}

/// [`Counters`], read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Clients that logged in.
    pub sessions: u64,
    /// Clients that did not get in.
    pub refused_logins: u64,
    /// Server connections that were opened.
    pub connects: u64,
    /// Sessions whose server connection was exchanged for one on another owner.
    pub exchanges: u64,
    /// Sessions that were bound to their server connection.
    pub pins: u64,
    /// Transactions that waited in a hold.
    pub parked: u64,
    /// Statements that the fence refused and that were sent again.
    pub repeated: u64,
    /// Transactions that got no server connection in time.
    pub queue_timeouts: u64,
}

impl Counters {
    pub(crate) fn read(&self) -> Counts {
        Counts {
            sessions: self.sessions.get(),
            refused_logins: self.refused_logins.get(),
            connects: self.connects.get(),
            exchanges: self.exchanges.get(),
            pins: self.pins.get(),
            parked: self.parked.get(),
            repeated: self.repeated.get(),
            queue_timeouts: self.queue_timeouts.get(),
        }
    }
}
