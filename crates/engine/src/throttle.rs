//! How much the backfill may take: paused or not, how many workers, how many bytes a second.
//!
//! A region is paid for after it was copied, before the next one begins: who slowed it down while it is copied would make
//! its snapshot older.

use crate::fault::Fault;
use crate::ports::Outcome;
use crate::progress::Progress;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What is under way may end by itself for as long, before it is broken off.
const BROKEN_OFF_AFTER: Duration = Duration::from_millis(500);

/// Limits that the operator can change while the backfill runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Why and by whom the migration is paused: copy and stream.
    pub paused: Option<String>,
    /// While it is paused, what is under way is broken off, too.
    pub contained: bool,
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

    /// Does `work`, which writes, to its end; breaks it off if the migration is contained meanwhile and stays so. Nobody
    /// knows then what it has come to, so the fault has to end the attempt.
    pub async fn unless_contained<T>(&self, work: impl Future<Output = T>) -> Outcome<T> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.contained() => Err(Fault::retry(
                "SEGUE-CONTAINED",
                "the migration was contained: what was under way is broken off",
            )),
        }
    }

    async fn contained(&self) {
        let mut watch = self.limits.subscribe();
        loop {
            let is = |limits: &Limits| limits.contained && limits.paused.is_some();
            if watch.wait_for(is).await.is_err() {
                return std::future::pending().await;
            }
            tokio::time::sleep(BROKEN_OFF_AFTER).await;
            if is(&watch.borrow_and_update()) {
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

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_is_broken_off_only_while_it_is_contained() {
        let throttle = Throttle::new(Limits { paused: Some("by ann".into()), ..Limits::default() });
        let long = || tokio::time::sleep(Duration::from_secs(60));
        assert_eq!(throttle.unless_contained(long()).await, Ok(()), "a pause lets it end");
        throttle.set(Limits { paused: Some("by ann".into()), contained: true, ..Limits::default() });
        let short = tokio::time::sleep(BROKEN_OFF_AFTER / 2);
        assert_eq!(throttle.unless_contained(short).await, Ok(()), "it had nearly ended");
        let cut = throttle.unless_contained(long()).await;
        assert_eq!(cut.map_err(|fault| fault.code), Err("SEGUE-CONTAINED"));
        throttle.set(Limits { contained: true, ..Limits::default() });
        assert_eq!(
            throttle.unless_contained(long()).await,
            Ok(()),
            "a hand-over past its flip has to arrive"
        );
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
