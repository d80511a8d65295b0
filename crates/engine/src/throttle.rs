//! How much the backfill may take: paused or not, how many workers, how many bytes a second.
//!
//! A region is paid for after it was copied, before the next one begins: who slowed it down while it is copied would make
//! its snapshot older.

use crate::progress::Progress;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Limits that the operator can change while the backfill runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Why and by whom the migration is paused: copy and stream.
    pub paused: Option<String>,
    /// Why the copy is held back by Segue itself.
    pub held: Option<String>,
    /// At most so many workers copy.
    pub workers_max: Option<usize>,
    /// At most so many bytes a second, all workers together.
    pub bytes_per_s_max: Option<u64>,
}

/// Applies [`Limits`] to the copy workers.
#[derive(Debug)]
pub struct Throttle {
    limits: watch::Sender<Limits>,
    /// When the bytes spent so far will have been paid for.
    paid_until: Mutex<Option<Instant>>,
}

impl Throttle {
    /// A throttle with these limits.
    pub fn new(limits: Limits) -> Self {
        Throttle { limits: watch::Sender::new(limits), paid_until: Mutex::default() }
    }

    /// The limits now.
    pub fn limits(&self) -> Limits {
        self.limits.borrow().clone()
    }

    /// Changes the limits; workers notice at once.
    pub fn set(&self, limits: Limits) {
        *self.paid_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.limits.send_replace(limits);
    }

    /// Returns at once unless the migration is paused; else says so and waits.
    pub async fn running(&self, progress: &Progress) {
        if self.limits.borrow().paused.is_none() {
            return;
        }
        let mut watch = self.limits.subscribe();
        loop {
            let why = watch.borrow_and_update().paused.clone();
            progress.waiting("stream", why.as_ref().map(|why| format!("paused: {why}")));
            if why.is_none() || watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// Lets worker `number` begin a region, or makes it wait and says why.
    pub async fn admit(&self, number: usize, progress: &Progress) {
        let mut watch = self.limits.subscribe();
        loop {
            let limits = watch.borrow_and_update().clone();
            let why = match (&limits.paused, &limits.held, limits.workers_max) {
                (Some(why), _, _) => Some(format!("paused: {why}")),
                (None, Some(why), _) => Some(why.clone()),
                // A worker above the limit waits silently as long as others may work.
                (None, None, Some(max)) if number >= max => {
                    (max == 0).then(|| "throttled to 0 workers".to_owned())
                }
                (None, None, _) => {
                    progress.waiting("throttle", None);
                    let paid = *self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(until) = paid.filter(|until| *until > Instant::now()) else { return };
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => {}
                        changed = watch.changed() => if changed.is_err() { return },
                    }
                    continue;
                }
            };
            if why.is_some() {
                progress.waiting("throttle", why);
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// Notes that `bytes` were copied: nothing new is admitted until they are paid for. Returns when that will be.
    pub fn charge(&self, bytes: usize) -> Option<Instant> {
        let rate = self.limits.borrow().bytes_per_s_max?;
        let cost = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = paid.map_or_else(Instant::now, |p| p.max(Instant::now())) + cost;
        *paid = Some(until);
        Some(until)
    }

    /// Pays for `bytes` now: sleeps as long as the rate demands. For tables that cannot be cut.
    pub async fn spend(&self, bytes: usize) {
        if let Some(until) = self.charge(bytes) {
            tokio::time::sleep_until(until.into()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rate_spreads_bytes_over_time() {
        let throttle = Throttle::new(Limits { bytes_per_s_max: Some(100_000), ..Limits::default() });
        let start = Instant::now();
        for _ in 0..5 {
            throttle.spend(1000).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(49), "5 kB at 100 kB/s");
    }

    #[tokio::test]
    async fn a_region_is_paid_for_before_the_next_one_begins() {
        let throttle = Throttle::new(Limits { bytes_per_s_max: Some(100_000), ..Limits::default() });
        let progress = Progress::new([], segue_model::position::Position(0));
        let start = Instant::now();
        throttle.admit(0, &progress).await;
        throttle.charge(5_000);
        assert!(start.elapsed() < Duration::from_millis(40), "what is under way is not slowed down");
        throttle.admit(0, &progress).await;
        assert!(start.elapsed() >= Duration::from_millis(49), "5 kB at 100 kB/s");
    }

    #[tokio::test]
    async fn a_paused_backfill_waits_says_why_and_goes_on() {
        let throttle = Throttle::new(Limits { paused: Some("by ann".into()), ..Limits::default() });
        let progress = Progress::new([], segue_model::position::Position(0));
        tokio::select! {
            () = throttle.admit(0, &progress) => panic!("must wait"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        assert_eq!(progress.snapshot().waits[0].reason, "paused: by ann");
        throttle.set(Limits::default());
        throttle.admit(0, &progress).await;
        assert!(progress.snapshot().waits.is_empty());
    }
}
