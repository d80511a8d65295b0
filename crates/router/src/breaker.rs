//! Whether the follower is asked for reads at all: a circuit breaker (M. Nygard, *Release It!*, "Circuit Breaker").
//!
//! Pure but for a lock: what happened goes in with its time, and whether another read may go comes out. It does not know
//! what a read is, nor who serves it instead.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many failures one after the other open it.
const FAILURES_MAX: u32 = 5;
/// It stays open so long before a read is let through as a probe.
const OPEN_FOR: Duration = Duration::from_secs(5);
/// So many probes one after the other must succeed.
const PROBES: u32 = 3;

/// Whether reads go to the follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// They do.
    Closed,
    /// They do not, for a while.
    Open,
    /// One at a time goes, to see whether the others may.
    HalfOpen,
}

impl BreakerState {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        }
    }
}

#[derive(Debug)]
struct Inner {
    state: BreakerState,
    /// Failures in a row while closed, successes in a row while half-open.
    in_a_row: u32,
    since: Instant,
    /// A probe is under way since then; one that is never heard of again does not block the next for ever.
    probing: Option<Instant>,
    opened: u64,
}

/// One breaker, for one router's reads on the follower.
#[derive(Debug)]
pub(crate) struct Breaker(Mutex<Inner>);

impl Default for Breaker {
    fn default() -> Breaker {
        let state = BreakerState::Closed;
        Breaker(Mutex::new(Inner { state, in_a_row: 0, since: Instant::now(), probing: None, opened: 0 }))
    }
}

impl Breaker {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a read may go to the follower now. Whoever is let through says how it ended.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        let mut inner = self.inner();
        if inner.state == BreakerState::Open && now.duration_since(inner.since) >= OPEN_FOR {
            (inner.state, inner.in_a_row, inner.since, inner.probing) =
                (BreakerState::HalfOpen, 0, now, None);
        }
        match inner.state {
            BreakerState::Closed => true,
            BreakerState::Open => false,
            BreakerState::HalfOpen => {
                let may = inner.probing.is_none_or(|since| now.duration_since(since) >= OPEN_FOR);
                if may {
                    inner.probing = Some(now);
                }
                may
            }
        }
    }

    /// A read was answered.
    pub(crate) fn succeeded(&self) {
        let mut inner = self.inner();
        match inner.state {
            BreakerState::Closed => inner.in_a_row = 0,
            // It was under way when the breaker opened, and says nothing of now.
            BreakerState::Open => {}
            BreakerState::HalfOpen => {
                inner.probing = None;
                inner.in_a_row += 1;
                if inner.in_a_row >= PROBES {
                    (inner.state, inner.in_a_row) = (BreakerState::Closed, 0);
                }
            }
        }
    }

    /// A read was not answered, or not in time. Returns whether the breaker opened by it.
    pub(crate) fn failed(&self, now: Instant) -> bool {
        let mut inner = self.inner();
        inner.in_a_row = if inner.state == BreakerState::Closed { inner.in_a_row + 1 } else { 0 };
        let opens = match inner.state {
            BreakerState::Closed => inner.in_a_row >= FAILURES_MAX,
            BreakerState::Open => false,
            BreakerState::HalfOpen => true,
        };
        if opens {
            (inner.state, inner.in_a_row, inner.since) = (BreakerState::Open, 0, now);
            (inner.probing, inner.opened) = (None, inner.opened + 1);
        }
        opens
    }

    /// What it lets through now, and how often it has opened.
    pub(crate) fn state(&self) -> (BreakerState, u64) {
        let inner = self.inner();
        (inner.state, inner.opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        let opens: Vec<bool> = (0..FAILURES_MAX).map(|_| breaker.failed(now)).collect();
        assert!(opens.last() == Some(&true) && !opens[..opens.len() - 1].contains(&true));
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_others_do_not() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..3 * FAILURES_MAX {
            breaker.failed(now);
            breaker.succeeded();
        }
        assert!(breaker.admits(now));
        assert!(!opened(now).admits(now));
    }

    #[test]
    fn after_a_while_one_probe_goes_at_a_time_and_several_close_it() {
        let now = Instant::now();
        let breaker = opened(now);
        assert!(!breaker.admits(now + OPEN_FOR / 2));
        let later = now + OPEN_FOR;
        for _ in 0..PROBES {
            assert!(breaker.admits(later) && !breaker.admits(later));
            assert_eq!(breaker.state().0, BreakerState::HalfOpen);
            breaker.succeeded();
        }
        assert_eq!(breaker.state(), (BreakerState::Closed, 1));
        assert!(breaker.admits(later) && breaker.admits(later));
    }

    #[test]
    fn a_probe_that_fails_opens_it_again() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + OPEN_FOR;
        assert!(breaker.admits(later) && breaker.failed(later));
        assert!(!breaker.admits(later + OPEN_FOR / 2) && breaker.admits(later + OPEN_FOR));
        assert_eq!(breaker.state(), (BreakerState::HalfOpen, 2));
    }

    #[test]
    fn a_probe_that_is_never_heard_of_does_not_block_for_ever() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + OPEN_FOR;
        assert!(breaker.admits(later) && !breaker.admits(later) && breaker.admits(later + OPEN_FOR));
    }

    #[test]
    fn what_was_under_way_when_it_opened_changes_nothing() {
        let now = Instant::now();
        let breaker = opened(now);
        breaker.succeeded();
        assert!(!breaker.failed(now) && !breaker.admits(now));
    }
}
