//! A share of what there is, in steps that halve and add up exactly.

use std::time::Duration;

/// How much of itself something may use: nothing to everything, in 64 steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u8);

impl Default for Share {
    fn default() -> Share {
        Share::FULL
    }
}

impl Share {
    /// Everything.
    pub const FULL: Share = Share(64);
    /// Nothing: what is under way may end, nothing begins.
    pub const NOTHING: Share = Share(0);
    /// The least that is not nothing. Less would be snapshots and sessions, and hardly a row.
    pub const LEAST: Share = Share(4);
    /// The least that is left to a stream: it never stops, or the log that is kept for it would only grow.
    pub const LEAST_OF_A_STREAM: Share = Share(16);
    /// What is added at a time.
    const STEP: u8 = 4;

    /// Half of it, and nothing below the least.
    #[must_use]
    pub const fn halved(self) -> Share {
        if self.0 / 2 < Self::LEAST.0 { Share::NOTHING } else { Share(self.0 / 2) }
    }

    /// A step more.
    #[must_use]
    pub const fn raised(self) -> Share {
        if self.0 + Self::STEP > Self::FULL.0 { Share::FULL } else { Share(self.0 + Self::STEP) }
    }

    /// Whether it is everything.
    pub const fn is_full(self) -> bool {
        self.0 >= Self::FULL.0
    }

    /// Whether it is nothing.
    pub const fn is_nothing(self) -> bool {
        self.0 == 0
    }

    /// In percent, rounded up: what is not nothing is not shown as 0.
    pub fn percent(self) -> u8 {
        u8::try_from((u32::from(self.0) * 100).div_ceil(u32::from(Self::FULL.0))).unwrap_or(100)
    }

    /// This share of an amount.
    pub fn of(self, amount: u64) -> u64 {
        u64::try_from(u128::from(amount) * u128::from(self.0) / u128::from(Self::FULL.0)).unwrap_or(amount)
    }

    /// How many of so many workers may work: as few as can do this share of what all of them do.
    pub fn workers(self, all: usize) -> usize {
        all.saturating_mul(usize::from(self.0)).div_ceil(usize::from(Self::FULL.0))
    }

    /// How long each of [`Share::workers`] rests after it has worked for so long, so that together they do no more than
    /// this share of what all of them would do.
    pub fn rest(self, all: usize, worked: Duration) -> Duration {
        let does = all.saturating_mul(usize::from(self.0)) as f64;
        let could = (self.workers(all) * usize::from(Self::FULL.0)) as f64;
        if does <= 0.0 { Duration::ZERO } else { worked.mul_f64((could - does) / does) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_share_halves_to_nothing_and_is_back_after_sixteen_steps() {
        let mut share = Share::FULL;
        let mut seen = Vec::new();
        while !share.is_nothing() {
            share = share.halved();
            seen.push(share.percent());
        }
        assert_eq!(seen, [50, 25, 13, 7, 0]);
        let mut steps = 0;
        while !share.is_full() {
            (share, steps) = (share.raised(), steps + 1);
        }
        assert_eq!((steps, share), (16, Share::FULL));
        assert_eq!(share.raised(), Share::FULL);
        assert_eq!(Share::NOTHING.raised(), Share::LEAST);
    }

    #[test]
    fn fewer_workers_first_then_rests() {
        let second = Duration::from_secs(1);
        for (share, workers, rest_ms) in
            [(64, 4, 0), (32, 2, 0), (40, 3, 200), (16, 1, 0), (8, 1, 1000), (4, 1, 3000)]
        {
            let share = Share(share);
            assert_eq!(share.workers(4), workers, "{share:?}");
            assert_eq!(share.rest(4, second), Duration::from_millis(rest_ms), "{share:?}");
        }
        assert_eq!(Share::NOTHING.workers(4), 0);
        assert_eq!(Share(32).of(1001), 500);
    }

    proptest! {
        #[test]
        fn workers_and_rests_together_are_the_share(share in 1u8..=64, all in 1usize..=64) {
            let share = Share(share);
            let (workers, worked) = (share.workers(all), Duration::from_secs(1));
            prop_assert!(workers >= 1 && workers <= all);
            let busy = worked.as_secs_f64() / (worked + share.rest(all, worked)).as_secs_f64();
            let done = workers as f64 * busy / all as f64;
            prop_assert!((done - f64::from(share.0) / 64.0).abs() < 1e-6, "{done}");
        }
    }
}
