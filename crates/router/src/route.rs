//! Where transactions go: the route that was heard last, and what the router says of it.
//!
//! It is given by whoever embeds the router, and served as it was last given if nothing more comes.

use segue_model::switch::Side;
use segue_model::switch::ownership::Epoch;
use segue_model::switch::route::Route;
use std::ops::Deref;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A route, and when it was heard: only so is it known how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Which one: a later one has a higher number, but for one that its embedder found out by itself.
    pub revision: i64,
    /// What it says.
    pub route: Route,
    /// New transactions wait for another route until then; past it they go to the owner of this one, where the fence
    /// judges them.
    pub held_until: Option<Instant>,
}

impl Heard {
    /// A route that is heard now.
    pub fn now(revision: i64, route: Route) -> Heard {
        let held_until = route.hold_ms_max.map(|ms| Instant::now() + Duration::from_millis(ms));
        Heard { revision, route, held_until }
    }
}

impl Deref for Heard {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.route
    }
}

/// The routes, as they change.
pub type Routes = watch::Receiver<Heard>;

/// What a router says of the route that it has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Which one.
    pub revision: i64,
    /// The route's epoch.
    pub epoch: Epoch,
    /// The route's owner.
    pub owner: Side,
    /// Whether the route holds.
    pub held: bool,
    /// Transactions that run on this route or an older one where they had not to begin: with a hold all of them,
    /// without one those on a side that is not the owner.
    pub running: usize,
}

impl Taken {
    /// Whether nothing is left that began before the hold: the router's acknowledgement, good until its end.
    pub fn is_quiet(&self) -> bool {
        self.held && self.running == 0
    }
}
