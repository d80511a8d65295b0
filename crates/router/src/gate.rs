//! Who is inside a transaction, on which side: what a hold waits for. And by which key a client's statement is cancelled.
//!
//! A session says that it enters, and looks for a new route after that; the gate takes a route over, and looks at the
//! sessions after that. Whichever is first, one of them sees the other.

use crate::route::{Heard, Taken};
use crate::upstream::CancelKey;
use futures_util::task::AtomicWaker;
use segue_model::switch::Side;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use subtle::ConstantTimeEq;
use tokio::sync::{Notify, watch};

/// The session is to end at its next boundary.
pub(crate) const DRAIN: u8 = 1;
/// What waits in the router is to be given up.
pub(crate) const CANCEL: u8 = 2;
/// The session is to end now.
pub(crate) const END: u8 = 4;

/// Of [`Cell::inside`].
const READING: u64 = 4;

/// What others may know and ask of one session.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    /// 0: outside; 1 and 3: inside, on the source and on the target; 4: reading on a follower, which no hold waits for.
    inside: AtomicU64,
    flags: AtomicU8,
    waker: AtomicWaker,
    /// What its server connection is cancelled with.
    cancel: Mutex<Option<CancelKey>>,
    secret: Vec<u8>,
}

impl Cell {
    pub(crate) fn enter(&self, side: Side) {
        // The fence alone orders this: one barrier is enough.
        self.inside.store(1 + 2 * u64::from(side == Side::Target), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// As [`enter`](Cell::enter), for what can write nothing.
    pub(crate) fn enter_reading(&self) {
        self.inside.store(READING, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn side(&self) -> Option<Side> {
        match self.inside.load(Ordering::SeqCst) {
            0 | READING => None,
            1 => Some(Side::Source),
            _ => Some(Side::Target),
        }
    }

    fn is_inside(&self) -> bool {
        self.inside.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn ask(&self, flag: u8) {
        self.flags.fetch_or(flag, Ordering::SeqCst);
        self.waker.wake();
    }

    pub(crate) fn flags(&self) -> u8 {
        self.flags.load(Ordering::Relaxed)
    }

    pub(crate) fn clear(&self, flag: u8) {
        self.flags.fetch_and(!flag, Ordering::SeqCst);
    }

    /// Whoever asks something of the session wakes this task.
    pub(crate) fn register(&self, cx: &std::task::Context<'_>) {
        self.waker.register(cx.waker());
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &self.secret
    }

    pub(crate) fn set_cancel(&self, key: Option<CancelKey>) {
        *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// No cancel request reaches the server from here on; `false`: one may still be on its way, and who is served next by
    /// that connection must not be hit by it.
    pub(crate) fn end_cancel(&self) -> bool {
        let key = self.cancel.lock().unwrap_or_else(PoisonError::into_inner).take();
        key.is_none_or(|key| !key.is_on_its_way())
    }
}

/// All sessions.
pub(crate) struct Gate {
    cells: Mutex<HashMap<u32, Arc<Cell>>>,
    /// What everybody was asked, and who comes later is asked too. Changed and read under the lock of `cells`.
    of_all: AtomicU8,
    next_process: AtomicU64,
    /// Whether somebody waits for sessions to leave.
    watched: AtomicBool,
    left: Notify,
    taken: watch::Sender<Taken>,
    pub(crate) parked: AtomicUsize,
}

impl Gate {
    pub(crate) fn new(route: &Heard) -> Gate {
        let Heard { revision, route, .. } = route;
        let taken =
            Taken { revision: *revision, epoch: route.epoch, owner: route.owner, held: false, running: 0 };
        Gate {
            cells: Mutex::default(),
            of_all: AtomicU8::new(0),
            next_process: AtomicU64::new(1),
            watched: AtomicBool::new(true),
            left: Notify::new(),
            taken: watch::Sender::new(taken),
            parked: AtomicUsize::new(0),
        }
    }

    pub(crate) fn taken(&self) -> watch::Receiver<Taken> {
        self.taken.subscribe()
    }

    /// Adds a session, under a number that its client cancels it by.
    pub(crate) fn add(&self, secret: Vec<u8>) -> (u32, Arc<Cell>) {
        let cell = Arc::new(Cell { secret, ..Cell::default() });
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cell.flags.store(self.of_all.load(Ordering::SeqCst), Ordering::SeqCst);
        loop {
            // Process numbers are positive and 31 bits long, for clients that read them as signed ones.
            let next = self.next_process.fetch_add(1, Ordering::Relaxed) % 0x7fff_ffff;
            let process = u32::try_from(next).unwrap_or(0) + 1;
            if let std::collections::hash_map::Entry::Vacant(free) = cells.entry(process) {
                free.insert(Arc::clone(&cell));
                return (process, cell);
            }
        }
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn remove(&self, process: u32) {
        let removed = self.cells.lock().unwrap_or_else(PoisonError::into_inner).remove(&process);
        if let Some(cell) = removed {
            self.leave(&cell);
        }
    }

    pub(crate) fn leave(&self, cell: &Cell) {
        cell.inside.store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.watched.load(Ordering::Relaxed) {
            self.left.notify_one();
        }
    }

    pub(crate) fn ask_all(&self, flag: u8) {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        self.of_all.fetch_or(flag, Ordering::SeqCst);
        for cell in cells.values() {
            cell.ask(flag);
        }
    }

    /// Relays a client's wish to cancel. A wrong key is not told from a right one.
    pub(crate) async fn cancel(&self, process: u32, secret: &[u8], limit: std::time::Duration) {
        let cell = self.cells.lock().unwrap_or_else(PoisonError::into_inner).get(&process).cloned();
        let Some(cell) = cell.filter(|cell| bool::from(cell.secret.ct_eq(secret))) else { return };
        let key = {
            let key = cell.cancel.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever is outside of a transaction waits in the router, if for anything.
            let key = key.clone().filter(|_| cell.is_inside());
            if let Some(key) = &key {
                key.begin();
            }
            key
        };
        match key {
            Some(key) => {
                if let Err(error) = key.send(limit).await {
                    tracing::warn!(%error, "a cancel request did not get through");
                }
            }
            None => cell.ask(CANCEL),
        }
    }

    /// Takes every route over as it comes, and says who is still inside. Ends when nobody gives routes any more.
    pub(crate) async fn follow(&self, mut routes: crate::route::Routes) {
        loop {
            let route = routes.borrow_and_update().clone();
            self.watched.store(true, Ordering::SeqCst);
            self.say(&route);
            loop {
                tokio::select! {
                    changed = routes.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    () = self.left.notified() => self.say(&route),
                }
            }
        }
    }

    fn say(&self, route: &Heard) {
        fence(Ordering::SeqCst);
        let held = route.held_until.is_some();
        let running = {
            let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
            let sides = cells.values().filter_map(|cell| cell.side());
            sides.filter(|side| held || *side != route.owner).count()
        };
        if running == 0 {
            self.watched.store(false, Ordering::SeqCst);
        }
        let Heard { revision, route, .. } = route;
        self.taken.send_replace(Taken {
            revision: *revision,
            epoch: route.epoch,
            owner: route.owner,
            held,
            running,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::switch::ownership::Epoch;
    use segue_model::switch::route::Route;

    #[tokio::test]
    async fn a_hold_is_quiet_when_the_last_transaction_has_left() {
        let open = Heard::now(1, Route::to(Side::Source, Epoch(1)));
        let (sender, routes) = watch::channel(open.clone());
        let gate = Arc::new(Gate::new(&open));
        let (_, inside) = gate.add(vec![1; 4]);
        let (other, ended) = gate.add(vec![2; 4]);
        inside.enter(Side::Source);
        ended.enter(Side::Source);
        let following = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.follow(routes).await }
        });
        let mut taken = gate.taken();
        let until = std::time::Instant::now();
        sender.send_replace(Heard { held_until: Some(until), ..open });
        assert_eq!(taken.wait_for(|t| t.held).await.unwrap().running, 2);
        gate.remove(other);
        gate.leave(&inside);
        assert!(taken.wait_for(Taken::is_quiet).await.is_ok());
        drop(sender);
        following.await.unwrap();
    }

    #[tokio::test]
    async fn only_the_right_key_cancels() {
        let gate = Gate::new(&Heard::now(1, Route::to(Side::Source, Epoch(1))));
        let (process, cell) = gate.add(vec![1, 2, 3, 4]);
        let limit = std::time::Duration::from_secs(1);
        for (process, key) in
            [(process, &[1, 2, 3][..]), (process, &[1, 2, 3, 5]), (process + 1, &[1, 2, 3, 4])]
        {
            gate.cancel(process, key, limit).await;
            assert_eq!(cell.flags(), 0);
        }
        gate.cancel(process, &[1, 2, 3, 4], limit).await;
        assert_eq!(cell.flags(), CANCEL);
    }
}
