//! What routers are told of a hand-over: to hold what is new before the fence, and where to go afterwards.
//!
//! Nothing depends on it. A router that does not hear, or does not hold in time, meets the fence; so whatever fails here is
//! passed over, and where to go is told again until it could be.

use super::act::Did;
use super::walk::Walk;
use super::{Driver, Switch};
use segue_engine::ports::Outcome;
use segue_model::switch::decide::Turn;
use segue_model::switch::route::Route;
use segue_postgres::control::{Lease, Routing, Told};
use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, sleep_until, timeout};

/// The part of the longest hold for which transactions that routers have under way are waited for before the fence, which
/// waits for them, too, but with everybody else behind.
const HOLD_PART: u32 = 8;
/// A hold is announced so long before it: for connections to be opened on the other side, at no writer's cost.
const ANNOUNCED_AHEAD: Duration = Duration::from_millis(250);
/// After so long without a hold nobody goes by an announcement: whoever made it is gone, or cannot arm.
const LEAVES_MAX: Duration = Duration::from_secs(60);
/// A control database that takes longer to tell them is not waited for.
const TELL_PATIENCE: Duration = Duration::from_millis(500);
/// Before it is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// The routers of a migration.
pub(super) struct Routers<'d> {
    driver: &'d Driver,
    /// The revision that was told last.
    revision: AtomicI64,
    /// Opened when it is needed, and again when it was lost.
    routing: Mutex<Option<Routing>>,
    /// What could not be told.
    untold: watch::Sender<Option<Route>>,
    /// The route that routers may be holding by, or be ready to leave.
    held: Mutex<Option<Route>>,
}

impl<'d> Routers<'d> {
    /// Of this driver's migration, told under its lease.
    pub(super) fn new(driver: &'d Driver, lease: &'d Lease) -> Routers<'d> {
        let revision = AtomicI64::new(lease.revision());
        Routers {
            driver,
            revision,
            routing: Mutex::default(),
            untold: watch::Sender::new(None),
            held: Mutex::default(),
        }
    }

    async fn are_there(&self) -> bool {
        let asked = timeout(TELL_PATIENCE, self.driver.control.routers()).await;
        matches!(asked, Ok(Ok(routers)) if !routers.is_empty())
    }

    /// Lets them know that the writes are about to leave the owner of this route; returns when. `None`: there are no routers.
    async fn announce(&self, route: Route) -> Option<Instant> {
        if !self.are_there().await {
            return None;
        }
        *self.held.lock().await = Some(route);
        self.untold.send_replace(None);
        let leaving = route.leaving(LEAVES_MAX.as_millis() as u64);
        let work = self.with(async |routing| routing.tell(self.next(leaving)).await);
        if let Ok(Err(fault)) = timeout(TELL_PATIENCE, work).await {
            tracing::warn!("routers could not be told that the writes are about to move: {fault}");
        }
        Some(Instant::now())
    }

    /// Has them hold what is new, and waits for what is under way, but not for long.
    pub(super) async fn hold(&self, route: Route) {
        *self.held.lock().await = Some(route);
        let patience = self.driver.spec.switch.max_write_hold / HOLD_PART;
        // An earlier route that could not be told must not end this hold.
        self.untold.send_replace(None);
        let work = self.with(async |routing| {
            let told = self.next(route);
            routing.tell(told).await?;
            routing.wait_for(told.revision, patience).await
        });
        match timeout(patience + TELL_PATIENCE, work).await {
            Ok(Ok(late)) => {
                for router in late {
                    tracing::info!("router {} does not hold in time: the fence is for it", router.id);
                }
            }
            Ok(Err(fault)) => tracing::warn!("routers could not be told to hold: {fault}"),
            Err(_) => tracing::warn!("routers could not be told to hold in time"),
        }
    }

    /// Whoever owned the writes still does: what is held goes there. Nothing is told if nothing may be held.
    pub(super) async fn let_go(&self) {
        let held = *self.held.lock().await;
        if let Some(held) = held {
            self.release(Route::to(held.owner, held.epoch)).await;
        }
    }

    /// Tells them where to go, and that nothing is held any longer.
    pub(super) async fn release(&self, route: Route) {
        *self.held.lock().await = None;
        self.untold.send_replace(Some(route));
        self.tell_untold(route).await;
    }

    /// Goes on telling what could not be told.
    pub(super) async fn run(&self) -> Infallible {
        let mut untold = self.untold.subscribe();
        loop {
            let route = untold.wait_for(Option::is_some).await.map_or(None, |route| *route);
            sleep(TELL_AGAIN).await;
            if let Some(route) = route {
                self.tell_untold(route).await;
            }
        }
    }

    /// Tells them, unless something newer is to be told or was: that is looked at where nothing else is told meanwhile.
    async fn tell_untold(&self, route: Route) {
        let work = self.with(async |routing| {
            if *self.untold.borrow() != Some(route) {
                return Ok(());
            }
            routing.tell(self.next(route)).await?;
            self.untold.send_if_modified(|untold| untold.take_if(|untold| *untold == route).is_some());
            Ok(())
        });
        if let Ok(Err(fault)) = timeout(TELL_PATIENCE, work).await {
            tracing::warn!("routers could not be told where to write: {fault}");
        }
    }

    fn next(&self, route: Route) -> Told {
        Told { revision: self.revision.fetch_add(1, Ordering::Relaxed) + 1, route }
    }

    async fn with<T>(&self, work: impl AsyncFnOnce(&Routing) -> Outcome<T>) -> Outcome<T> {
        let mut slot = self.routing.lock().await;
        // Taken out meanwhile: a session on which a request was given up is not used again.
        let routing = match slot.take() {
            Some(routing) => routing,
            None => self.driver.control.routing().await?,
        };
        let done = work(&routing).await?;
        *slot = Some(routing);
        Ok(done)
    }
}

impl Switch<'_> {
    /// Arms; routers make ready for the other side meanwhile.
    pub(super) async fn arm_announced(&self, turn: Turn, walk: &mut Walk) -> Outcome<Did> {
        let announced = self.routers.announce(Route::to(turn.from, turn.fence.epoch)).await;
        let did = self.arm(turn, walk).await?;
        // One may have come meanwhile.
        walk.has_routers = announced.is_some() || self.routers.are_there().await;
        if let (Did::Done, Some(at)) = (&did, announced) {
            sleep_until((at + ANNOUNCED_AHEAD).into()).await;
        }
        Ok(did)
    }
}
