//! Where transactions go: the owner, by epoch, and whether new ones wait.
//!
//! It is given by whoever embeds the router, and served as it was last given if nothing more comes.

use segue_model::switch::Side;
use std::time::Instant;
use tokio::sync::watch;

/// Who takes the transactions, from when on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Counts the owners; a later route has a higher one or, for a hold and its end, the same.
    pub epoch: u64,
    /// The side that owns the writes.
    pub owner: Side,
    /// Whether new transactions wait for the next route.
    pub hold: Option<Hold>,
}

/// New transactions wait, running ones finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Nobody waits longer: past it transactions go to the owner of this route, where the fence judges them.
    pub until: Instant,
}

/// The routes, as they change.
pub type Routes = watch::Receiver<Route>;

/// What a router says of the route that it has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The route's epoch.
    pub epoch: u64,
    /// The route's owner.
    pub owner: Side,
    /// Whether the route holds.
    pub held: bool,
    /// Transactions that run on this route or an older one where they had not to begin: with a hold all of them,
    /// without one those on a side that is not the owner.
    pub running: usize,
}

impl Taken {
    /// Whether nothing is left that began before the hold: the router's acknowledgement, good until the hold's `until`.
    pub fn is_quiet(&self) -> bool {
        self.held && self.running == 0
    }
}
