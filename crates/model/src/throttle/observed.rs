//! What single observations come to over time: how far a standby is behind, and how slow writes are.

use std::collections::VecDeque;
use std::time::Duration;

/// Places of a log that are remembered: for five minutes, at two a second. What is older is at least as late as that.
const PLACES_MAX: usize = 600;
/// Writes that are remembered. At one a second the slowest of them is forgotten after a quarter of a minute.
const WRITES_MAX: usize = 15;

/// Where a server's log ended at which time: a standby's place in it then tells how late it is, whatever it says itself.
#[derive(Clone, Debug, Default)]
pub struct Trail(VecDeque<(Duration, u64)>);

impl Trail {
    /// The log ended at `place` at the time `now`.
    pub fn passed(&mut self, now: Duration, place: u64) {
        match self.0.back() {
            Some((_, last)) if *last == place => return,
            // Another server has taken over; what was noted was of the old one.
            Some((_, last)) if *last > place => self.0.clear(),
            Some(_) | None => {}
        }
        if self.0.len() >= PLACES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, place));
    }

    /// For how long at least the log has been past `place`; zero if it is not.
    pub fn behind(&self, now: Duration, place: u64) -> Duration {
        let first = self.0.partition_point(|(_, passed)| *passed <= place);
        self.0.get(first).map_or(Duration::ZERO, |(at, _)| now.saturating_sub(*at))
    }
}

/// How long the last writes took.
#[derive(Clone, Debug, Default)]
pub struct Probes(VecDeque<Duration>);

impl Probes {
    /// One more has taken so long, or longer.
    pub fn took(&mut self, took: Duration) {
        if self.0.len() >= WRITES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The 99th percentile, by nearest rank; of less than a hundred that is the slowest.
    pub fn p99(&self) -> Option<Duration> {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * 99).div_ceil(100);
        rank.checked_sub(1).and_then(|at| sorted.get(at)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_standby_is_as_late_as_what_it_lacks_is_old() {
        let mut trail = Trail::default();
        assert_eq!(trail.behind(s(9), 5), Duration::ZERO, "nothing is known");
        for (at, place) in [(1, 100), (2, 100), (3, 200), (4, 300)] {
            trail.passed(s(at), place);
        }
        for (place, late) in [(300, 0), (400, 0), (299, 6), (200, 6), (150, 7), (100, 7), (99, 9), (0, 9)] {
            assert_eq!(trail.behind(s(10), place), s(late), "at {place}");
        }
        trail.passed(s(11), 50);
        assert_eq!(trail.behind(s(12), 50), Duration::ZERO, "a log that has begun anew");
        for more in 0..10_000 {
            trail.passed(s(12 + more), 100 + more);
        }
        assert_eq!(trail.behind(s(20_000), 0), s(20_000 - (12 + 10_000 - 600)), "memory is bounded");
    }

    #[test]
    fn a_slow_write_counts_until_enough_others_have_followed() {
        let mut probes = Probes::default();
        assert_eq!(probes.p99(), None);
        probes.took(s(3));
        for _ in 1..WRITES_MAX {
            probes.took(s(1));
            assert_eq!(probes.p99(), Some(s(3)));
        }
        probes.took(s(1));
        assert_eq!(probes.p99(), Some(s(1)));
    }
}
