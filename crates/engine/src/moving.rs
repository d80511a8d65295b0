//! Parts on their way in or out, for those who would take one for something else: its rows are on one side only until it
//! has arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, RwLockWriteGuard};

/// A look that finds nothing takes far less.
const LOOK_MAX: Duration = Duration::from_millis(100);

/// Whether parts are on their way.
#[derive(Debug, Default)]
pub struct Moving {
    lock: Arc<RwLock<()>>,
    /// One has been begun and is not followed yet; it may have to wait for another.
    pending: AtomicBool,
    /// How many want that none is begun.
    frozen: Arc<AtomicUsize>,
}

/// As long as it lives no part is moved. Nobody queues behind it, as behind a lock: looks for parts are left out.
#[derive(Debug)]
pub struct Frozen(Arc<AtomicUsize>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Moving {
    /// `pending`: an earlier run has begun to bring a part in.
    pub fn new(pending: bool) -> Moving {
        Moving { pending: AtomicBool::new(pending), ..Moving::default() }
    }

    /// Held while parts are looked for and brought in or out; `None`: not now, as somebody wants none to be moved.
    pub async fn moving(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let moving = self.lock.write().await;
        // Asked with the lock held: who freezes waits for it afterwards.
        (self.frozen.load(Ordering::SeqCst) == 0).then_some(moving)
    }

    /// Says whether a part remains on its way after a look.
    pub fn pending(&self, pending: bool) {
        self.pending.store(pending, Ordering::Relaxed);
    }

    /// Waits until no part is being moved, and keeps it so.
    pub async fn still(&self) -> OwnedRwLockReadGuard<()> {
        self.lock.clone().read_owned().await
    }

    /// [`Moving::still`], if no part is on its way.
    pub async fn if_still(&self) -> Option<OwnedRwLockReadGuard<()>> {
        let guard = tokio::time::timeout(LOOK_MAX, self.still()).await.ok()?;
        (!self.pending.load(Ordering::Relaxed)).then_some(guard)
    }

    /// Has no part moved until it is given back, unless one is on its way and has not arrived within `patience`.
    pub async fn freeze(&self, patience: Duration) -> Option<Frozen> {
        self.frozen.fetch_add(1, Ordering::SeqCst);
        let frozen = Frozen(self.frozen.clone());
        let _still = tokio::time::timeout(patience, self.still()).await.ok()?;
        (!self.pending.load(Ordering::Relaxed)).then_some(frozen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_frozen_is_not_moved_and_keeps_nobody_waiting() {
        let moving = Moving::new(false);
        let frozen = moving.freeze(LOOK_MAX).await.expect("nothing is on its way");
        assert!(moving.moving().await.is_none());
        assert!(moving.if_still().await.is_some());
        drop(frozen);
        assert!(moving.moving().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_takes_long_is_waited_for_and_not_taken_for_a_part() {
        let moving = Arc::new(Moving::new(false));
        let look = moving.moving().await.expect("nobody has frozen it");
        let freezing = tokio::spawn({
            let moving = moving.clone();
            async move { moving.freeze(Duration::from_secs(5)).await }
        });
        tokio::time::sleep(Duration::from_secs(4)).await;
        drop(look);
        assert!(freezing.await.expect("it runs").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_on_its_way_is_not_frozen_there() {
        let moving = Moving::new(false);
        let copying = moving.moving().await;
        assert!(moving.freeze(LOOK_MAX).await.is_none());
        drop(copying);
        moving.pending(true);
        assert!(moving.freeze(LOOK_MAX).await.is_none());
        assert!(moving.moving().await.is_some(), "it has let go each time");
    }
}
