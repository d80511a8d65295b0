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
    pub(crate) reads: Counter,
    pub(crate) reads_too_early: Counter,
    pub(crate) reads_not_admitted: Counter,
    pub(crate) reads_failed: Counter,
    pub(crate) reads_repeated: Counter,
    pub(crate) reads_returned: Counter,
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
    /// Transactions that the follower was asked to serve.
    pub reads: u64,
    /// Reads that the owner served because the follower did not show yet what their session had seen.
    pub reads_too_early: u64,
    /// Reads that the owner served because the follower had failed before.
    pub reads_not_admitted: u64,
    /// Times that the follower did not answer, not in time, or refused what the owner answered.
    pub reads_failed: u64,
    /// Reads that the owner answered after the follower did not.
    pub reads_repeated: u64,
    /// Transactions of reads that went on with the owner, at a statement that may be more than a read.
    pub reads_returned: u64,
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
            reads: self.reads.get(),
            reads_too_early: self.reads_too_early.get(),
            reads_not_admitted: self.reads_not_admitted.get(),
            reads_failed: self.reads_failed.get(),
            reads_repeated: self.reads_repeated.get(),
            reads_returned: self.reads_returned.get(),
        }
    }
}
