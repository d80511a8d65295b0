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
    /// Until then whoever is served has a connection opened on the other side, too.
    pub leaves_until: Option<Instant>,
}

impl Heard {
    /// A route that is heard now.
    pub fn now(revision: i64, route: Route) -> Heard {
        let now = Instant::now();
        let until = |ms_max: Option<u64>| ms_max.map(|ms| now + Duration::from_millis(ms));
        let (held_until, leaves_until) = (until(route.hold_ms_max), until(route.leaves_ms_max));
        Heard { revision, route, held_until, leaves_until }
    }

    /// What decides where a transaction goes, and when: a route that is the same in this is no other one to whoever waits.
    pub(crate) fn way(&self) -> (Side, Epoch, Option<Instant>) {
        (self.route.owner, self.route.epoch, self.held_until)
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
