//! How much of the servers is taken: paused or not, how many workers, how many bytes a second, and what share is left by
//! those who are served first. Who decides that, and from what, is not known here.
//!
//! A region is paid for after it was copied, before the next one begins: who slowed it down while it is copied would make
//! its snapshot older.

use crate::fault::Fault;
use crate::ports::Outcome;
use crate::progress::Progress;
use segue_model::throttle::Share;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What is under way may end by itself for as long, before it is broken off.
const BROKEN_OFF_AFTER: Duration = Duration::from_millis(500);
/// The longest rest after one piece of work: what it was measured by is past by then.
const REST_MAX: Duration = Duration::from_secs(5);
/// The longest rest in the middle of something. What a stream has committed last is told, and made durable, by the next batch;
/// and a snapshot grows old.
const SHORT_REST_MAX: Duration = Duration::from_millis(500);
/// A table that cannot be cut is not slowed down to less than this part: its snapshot would grow too old.
const UNCUT_PART_MIN: u32 = 4;

/// What is left of something, by those who are served before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Of all that it could do …
    pub share: Share,
    /// … with so many workers.
    pub workers: usize,
    /// Why it is not everything; empty if it is.
    pub why: String,
}

impl Default for Left {
    fn default() -> Left {
        Left { share: Share::FULL, workers: 1, why: String::new() }
    }
}

/// Limits that change while it runs: the operator's, and what else is left within them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Why and by whom the migration is paused: copy and stream.
    pub paused: Option<String>,
    /// Why it will be paused again once a hand-over that has to arrive has arrived.
    pub suspended: Option<String>,
    /// While it is paused, what is under way is broken off, too.
    pub contained: bool,
    /// At most so many workers copy.
    pub workers_max: Option<usize>,
    /// At most so many bytes a second, all workers together.
    pub bytes_per_s_max: Option<u64>,
    /// What is left of what begins piece by piece: the copy's regions, a comparison's ranges.
    pub pieces: Left,
    /// What is left of the stream.
    pub stream: Share,
}

impl Limits {
    /// Nothing is paused or contained any more, nor will be once a hand-over has arrived.
    pub fn resume(&mut self) {
        (self.paused, self.suspended, self.contained) = (None, None, false);
    }

    /// The workers that the share is counted by: the operator's limit is above it.
    fn workers(&self) -> usize {
        self.workers_max.unwrap_or(usize::MAX).min(self.pieces.workers)
    }

    /// The bytes a second that the share leaves of the operator's; what may not begin is paid for at the whole rate.
    fn bytes_per_s(&self) -> Option<u64> {
        let share = self.pieces.share;
        self.bytes_per_s_max.map(|rate| if share.is_nothing() { rate } else { share.of(rate) }.max(1))
    }

    /// Why worker `number` may not begin anything now. `Some(None)`: others may, it waits silently.
    fn refuses(&self, number: usize) -> Option<Option<String>> {
        if let Some(why) = &self.paused {
            return Some(Some(format!("paused: {why}")));
        }
        if self.pieces.share.is_nothing() {
            return Some(Some(self.pieces.why.clone()));
        }
        if self.workers_max == Some(0) {
            return Some(Some("throttled to 0 workers".to_owned()));
        }
        let max = if self.pieces.share.is_full() {
            self.workers_max.unwrap_or(usize::MAX)
        } else {
            self.pieces.share.workers(self.workers())
        };
        (number >= max).then_some(None)
    }
}

/// Applies [`Limits`] to the copy workers.
#[derive(Debug)]
pub struct Throttle {
    limits: watch::Sender<Limits>,
    /// When the bytes spent so far will have been paid for.
    paid_until: Mutex<Option<Instant>>,
    /// How many cannot wait for a stream that rests.
    hurried: watch::Sender<usize>,
}

/// As long as it is there no stream rests: somebody waits for it.
#[derive(Debug)]
pub struct Hurry(watch::Sender<usize>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Throttle {
    /// A throttle with these limits.
    pub fn new(limits: Limits) -> Self {
        let (limits, hurried) = (watch::Sender::new(limits), watch::Sender::new(0));
        Throttle { limits, paid_until: Mutex::default(), hurried }
    }

    /// The limits now.
    pub fn limits(&self) -> Limits {
        self.limits.borrow().clone()
    }

    /// Changes some of the limits; workers notice at once. What another task changes at the same time stays changed.
    pub fn change(&self, change: impl FnOnce(&mut Limits)) {
        // Locked over both: a worker that charges meanwhile goes by one rate or by the other.
        let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        self.limits.send_if_modified(|limits| {
            let before = limits.clone();
            change(limits);
            if (limits.bytes_per_s_max, &limits.paused) != (before.bytes_per_s_max, &before.paused) {
                *paid = None;
            }
            *limits != before
        });
    }

    /// Lets no stream rest as long as the answer lives.
    pub fn hurry(&self) -> Hurry {
        self.hurried.send_modify(|count| *count += 1);
        Hurry(self.hurried.clone())
    }

    /// Changes all limits.
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
            let Some(why) = limits.refuses(number) else {
                progress.waiting("throttle", None);
                let paid = *self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(until) = paid.filter(|until| *until > Instant::now()) else { return };
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    changed = watch.changed() => if changed.is_err() { return },
                }
                continue;
            };
            // A worker above the limit waits silently as long as others may work.
            if why.is_some() {
                progress.waiting("throttle", why);
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// Rests after a piece of work that took so long, as the share that is left demands; not any longer once that share is
    /// another.
    pub async fn rest(&self, worked: Duration) {
        let mut watch = self.limits.subscribe();
        let began = Instant::now();
        loop {
            let limits = watch.borrow_and_update().clone();
            let rest = limits.pieces.share.rest(limits.workers(), worked).min(REST_MAX);
            let Some(left) = rest.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else { return };
            tokio::select! {
                () = tokio::time::sleep(left) => return,
                changed = watch.changed() => if changed.is_err() { return },
            }
        }
    }

    /// As [`Throttle::rest`], in the middle of a table that cannot be cut, and bounded for that.
    pub async fn rest_uncut(&self, worked: Duration) {
        let share = self.limits.borrow().pieces.share;
        let most = worked * (UNCUT_PART_MIN - 1);
        let rest = if share.is_nothing() { most } else { share.rest(1, worked).min(most) };
        if !rest.is_zero() {
            tokio::time::sleep(rest.min(SHORT_REST_MAX)).await;
        }
    }

    /// Lets a stream rest after a batch that took so long, as the share that is left to it demands, unless somebody waits for
    /// it.
    pub async fn rest_of_stream(&self, worked: Duration) {
        let rest = self.limits.borrow().stream.rest(1, worked).min(SHORT_REST_MAX);
        if rest.is_zero() {
            return;
        }
        let mut hurried = self.hurried.subscribe();
        tokio::select! {
            // Never an error: the sender is ours.
            _ = hurried.wait_for(|count| *count > 0) => {}
            () = tokio::time::sleep(rest) => {}
        }
    }

    /// At most so many bytes a second, all workers together, as it is left now.
    pub fn bytes_per_s(&self) -> Option<u64> {
        self.limits.borrow().bytes_per_s()
    }

    /// How many rows a region may have, of those that it would have if nobody were served first: what is smaller ends sooner.
    pub fn of_rows(&self, rows: u64) -> u64 {
        self.limits.borrow().pieces.share.of(rows)
    }

    /// Notes that `bytes` were copied: nothing new is admitted until they are paid for. Returns when that will be.
    pub fn charge(&self, bytes: usize) -> Option<Instant> {
        let rate = self.limits.borrow().bytes_per_s()?;
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = paid.map_or_else(Instant::now, |p| p.max(Instant::now())) + cost;
        *paid = Some(until);
        Some(until)
    }

    /// Pays for `bytes` now: sleeps as long as the rate demands. For tables that cannot be cut.
    pub async fn spend(&self, bytes: usize) {
        let mut watch = self.limits.subscribe();
        self.charge(bytes);
        loop {
            watch.borrow_and_update();
            let paid = *self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(until) = paid.filter(|until| *until > Instant::now()) else { return };
            // Whoever lifts the rate does not wait for what it would have cost.
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return,
                changed = watch.changed() => if changed.is_err() { return },
            }
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
    async fn who_pays_does_not_wait_for_a_rate_that_is_lifted() {
        let throttle = Throttle::new(Limits { bytes_per_s_max: Some(1), ..Limits::default() });
        let lift = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            throttle.change(|limits| limits.bytes_per_s_max = None);
        };
        let both = async { tokio::join!(throttle.spend(100_000), lift) };
        assert!(tokio::time::timeout(Duration::from_secs(10), both).await.is_ok(), "it was a day");
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

    fn left(share: Share, workers: usize) -> Limits {
        let pieces = Left { share, workers, why: "replica_lag".into() };
        Limits { pieces, ..Limits::default() }
    }

    async fn admitted(throttle: &Throttle, number: usize, progress: &Progress) -> bool {
        tokio::select! {
            biased;
            () = throttle.admit(number, progress) => true,
            () = tokio::time::sleep(Duration::from_millis(1)) => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_kept_by_fewer_workers_and_the_operators_limit_is_above_it() {
        let throttle = Throttle::new(left(Share::FULL.halved(), 4));
        let progress = Progress::new([], segue_model::position::Position(0));
        for (number, may) in [(0, true), (1, true), (2, false), (3, false)] {
            assert_eq!(admitted(&throttle, number, &progress).await, may, "{number} of 4 at a half");
        }
        throttle.change(|limits| limits.workers_max = Some(2));
        for (number, may) in [(0, true), (1, false)] {
            assert_eq!(admitted(&throttle, number, &progress).await, may, "{number} of 2 at a half");
        }
        assert!(progress.snapshot().waits.is_empty(), "as long as one works nobody waits");
        throttle.change(|limits| limits.pieces.share = Share::NOTHING);
        assert!(!admitted(&throttle, 0, &progress).await);
        assert_eq!(progress.snapshot().waits[0].reason, "replica_lag");
        throttle.change(|limits| limits.pieces.share = Share::FULL);
        assert!(admitted(&throttle, 1, &progress).await && !admitted(&throttle, 2, &progress).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_follows_the_share_and_ends_with_it() {
        let throttle = Throttle::new(left(Share::FULL.halved(), 1));
        let (began, second) = (tokio::time::Instant::now(), Duration::from_secs(1));
        throttle.rest(second).await;
        assert_eq!(began.elapsed().as_secs(), 1, "as long as it has worked");
        throttle.change(|limits| limits.pieces.share = Share::LEAST);
        let given_back = async {
            tokio::time::sleep(second).await;
            throttle.change(|limits| limits.pieces.share = Share::FULL);
        };
        tokio::join!(throttle.rest(second), given_back);
        assert_eq!(began.elapsed().as_secs(), 2);
        throttle.rest(second).await;
        assert_eq!(began.elapsed().as_secs(), 2, "nothing has to be left to anybody");
        throttle.change(|limits| limits.pieces.share = Share::NOTHING);
        throttle.rest_uncut(Duration::from_millis(100)).await;
        assert_eq!(began.elapsed().as_millis() / 10, 230, "a snapshot that grows old hurts, too");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_rests_for_a_bounded_time_and_not_while_somebody_waits_for_it() {
        let throttle = Throttle::new(Limits { stream: Share::FULL.halved(), ..Limits::default() });
        let began = tokio::time::Instant::now();
        throttle.rest_of_stream(Duration::from_secs(60)).await;
        assert_eq!(began.elapsed(), SHORT_REST_MAX);
        let hurry = throttle.hurry();
        throttle.rest_of_stream(Duration::from_secs(60)).await;
        assert_eq!(began.elapsed(), SHORT_REST_MAX);
        drop(hurry);
        let resting = throttle.rest_of_stream(Duration::from_secs(60));
        let hurried = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            throttle.hurry()
        };
        tokio::join!(resting, hurried);
        assert_eq!(began.elapsed(), SHORT_REST_MAX + Duration::from_millis(100));
    }

    #[test]
    fn a_share_is_one_of_the_operators_rate_too() {
        let throttle =
            Throttle::new(Limits { bytes_per_s_max: Some(1_000), ..left(Share::FULL.halved(), 4) });
        let until = throttle.charge(1_000).unwrap();
        assert_eq!(until.duration_since(Instant::now()).as_secs_f64().round(), 2.0);
        assert_eq!(throttle.bytes_per_s(), Some(500));
    }

    #[test]
    fn what_is_paid_for_stays_so_when_only_the_share_changes() {
        let throttle = Throttle::new(Limits { bytes_per_s_max: Some(1), ..Limits::default() });
        let debt = throttle.charge(100);
        throttle.change(|limits| limits.pieces.share = Share::LEAST);
        assert!(*throttle.paid_until.lock().unwrap() == debt && debt.is_some());
        throttle.change(|limits| limits.bytes_per_s_max = Some(2));
        assert_eq!(*throttle.paid_until.lock().unwrap(), None, "another rate begins anew");
    }
}
