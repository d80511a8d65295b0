//! Parts on their way in or out, for those who would take one for something else: its rows are on one side only until it
//! has arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
}

impl Moving {
    /// `pending`: an earlier run has begun to bring a part in.
    pub fn new(pending: bool) -> Moving {
        Moving { lock: Arc::default(), pending: AtomicBool::new(pending) }
    }

    /// Held while parts are looked for and brought in or out.
    pub async fn moving(&self) -> RwLockWriteGuard<'_, ()> {
        self.lock.write().await
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
}
