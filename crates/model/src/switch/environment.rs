//! Is the owner now as it was when nothing was going on? Its activity over a short time, compared with a baseline.
//!
//! Counters of the database as a whole, Segue's own looks included, about ten transactions in a second. It opens and closes
//! nothing; a person who is about to switch should know that the application fails, is slow, or is at its peak.

use crate::spec::Profile;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A short time that is shorter than this says nothing.
const RECENT_MIN: Duration = Duration::from_secs(5);
/// Looks that are older than this, and not needed for the baseline, are forgotten.
const RECENT_MAX: Duration = Duration::from_secs(60);
/// So many times more or less than in the baseline is worth a word …
const UNUSUAL: f64 = 3.0;
/// … from so many rows in a second on …
const ROWS_PER_S_MIN: f64 = 20.0;
/// … from so much more work in a transaction on, …
const WORK_MS_MIN: f64 = 1.0;
/// … and if so much more of all transactions fail.
const FAILED_SHARE_MIN: f64 = 0.01;
/// A share or a mean of fewer transactions in a second than these is chance, or Segue's own looks; …
const TRANSACTIONS_PER_S_MIN: f64 = 20.0;
/// … and so are fewer failures than these.
const FAILURES_MIN: f64 = 10.0;

/// What a database has counted since its statistics began, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// When, by that server's clock, in microseconds since 1970.
    pub at_us: i64,
    /// Transactions that were committed.
    pub commits: u64,
    /// Transactions that were rolled back.
    pub rollbacks: u64,
    /// Rows that were inserted, updated or deleted.
    pub rows_written: u64,
    /// The time statements have taken, in microseconds; `None`: the server does not count it (before 14).
    pub work_us: Option<u64>,
}

/// Activity over some time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// When it ended, in microseconds since 1970, by the server's clock.
    pub until_us: i64,
    /// How long it was.
    pub over_ms: u64,
    /// Rows written in a second.
    pub rows_per_s: f64,
    /// Transactions in a second, however they ended.
    pub transactions_per_s: f64,
    /// Among them, those that were rolled back, from 0 to 1.
    pub failed_share: f64,
    /// The time that statements take in a transaction, waiting for locks included; `None`: not counted.
    pub work_ms: Option<f64>,
}

impl Rates {
    /// From one moment to a later one; `None` if no time has passed, or the counters were reset between them.
    pub fn between(from: &Activity, to: &Activity) -> Option<Rates> {
        let over_us = u64::try_from(to.at_us.checked_sub(from.at_us)?).ok().filter(|us| *us > 0)?;
        let commits = to.commits.checked_sub(from.commits)?;
        let rollbacks = to.rollbacks.checked_sub(from.rollbacks)?;
        let rows = to.rows_written.checked_sub(from.rows_written)?;
        let work_us = match (from.work_us, to.work_us) {
            (Some(from), Some(to)) => Some(to.checked_sub(from)?),
            _ => None,
        };
        let (seconds, transactions) = (over_us as f64 / 1e6, (commits + rollbacks) as f64);
        Some(Rates {
            until_us: to.at_us,
            over_ms: over_us / 1000,
            rows_per_s: rows as f64 / seconds,
            transactions_per_s: transactions / seconds,
            failed_share: if transactions > 0.0 { rollbacks as f64 / transactions } else { 0.0 },
            work_ms: work_us.filter(|_| transactions > 0.0).map(|us| us as f64 / 1000.0 / transactions),
        })
    }

    /// What is not as in `baseline`, a line each, for people; empty: nothing is.
    pub fn unlike(&self, baseline: &Rates) -> Vec<String> {
        let mut found = Vec::new();
        let (now, before) = (self.rows_per_s, baseline.rows_per_s);
        if now >= ROWS_PER_S_MIN && now > before * UNUSUAL {
            found.push(format!("{now:.0} rows are written in a second, {before:.0} in the baseline: the drain takes longer at a peak"));
        }
        if before >= ROWS_PER_S_MIN && now * UNUSUAL < before {
            found.push(format!("{now:.0} rows are written in a second, {before:.0} in the baseline: is all of the application at work?"));
        }
        if self.transactions_per_s < TRANSACTIONS_PER_S_MIN {
            return found;
        }
        if let (Some(now), Some(before)) = (self.work_ms, baseline.work_ms)
            && now > before * UNUSUAL
            && now - before >= WORK_MS_MIN
        {
            found.push(format!("a transaction takes {now:.1} ms, {before:.1} in the baseline: find what slows them down first"));
        }
        let (now, before) = (self.failed_share, baseline.failed_share);
        let failures = now * self.transactions_per_s * self.over_ms as f64 / 1000.0;
        if failures >= FAILURES_MIN && now - before >= FAILED_SHARE_MIN && now > before * UNUSUAL {
            let (now, before) = (now * 100.0, before * 100.0);
            found.push(format!(
                "{now:.1} % of all transactions fail, {before:.1} % in the baseline: find out why first"
            ));
        }
        found
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rates { rows_per_s, transactions_per_s, failed_share, .. } = self;
        write!(f, "{rows_per_s:.0} rows written and {transactions_per_s:.0} transactions in a second")?;
        if let Some(work_ms) = self.work_ms {
            write!(f, ", {work_ms:.1} ms each")?;
        }
        write!(f, ", {:.1} % failed", failed_share * 100.0)
    }
}

/// The baseline of the source, and what was seen of the owner since.
#[derive(Clone, Debug)]
pub struct Environment {
    window: Duration,
    baseline: Option<Rates>,
    /// In order of time, all of one owner and since its counters began.
    seen: Vec<Activity>,
}

impl Environment {
    /// For a profile; `baseline` as it was kept.
    pub fn new(profile: Profile, baseline: Option<Rates>) -> Environment {
        let window = match profile {
            Profile::Prod => Duration::from_secs(600),
            Profile::Staging => Duration::from_secs(60),
            Profile::Dev => RECENT_MIN,
        };
        Environment { window, baseline, seen: Vec::new() }
    }

    /// Another side owns the writes: its counters are others.
    pub fn begin_anew(&mut self) {
        self.seen.clear();
    }

    /// Takes a look at the owner; a new baseline, to be kept, if this completes one, which only the source's does.
    pub fn look(&mut self, now: Activity, is_source: bool) -> Option<Rates> {
        if self.seen.last().is_some_and(|last| Rates::between(last, &now).is_none()) {
            self.seen.clear();
        }
        self.seen.push(now);
        let keep =
            if self.baseline.is_none() && is_source { self.window.max(RECENT_MAX) } else { RECENT_MAX };
        let old = self.seen.partition_point(|seen| before(seen, &now) > keep);
        // With the one before those that are young enough: a window is at least as long as it is asked to be.
        self.seen.drain(..old.saturating_sub(1));
        if self.baseline.is_some() || !is_source {
            return None;
        }
        let first = self.seen.first().filter(|first| before(first, &now) >= self.window)?;
        self.baseline = Rates::between(first, &now);
        self.baseline
    }

    /// The baseline.
    pub fn baseline(&self) -> Option<&Rates> {
        self.baseline.as_ref()
    }

    /// The owner's activity over the last short time, if it was watched for long enough.
    pub fn now(&self) -> Option<Rates> {
        let last = self.seen.last()?;
        // The longest that is short: what comes in bursts is not taken for a change.
        let from = self.seen.iter().find(|seen| (RECENT_MIN..=RECENT_MAX).contains(&before(seen, last)))?;
        let rates = Rates::between(from, last)?;
        Some(Rates { work_ms: self.usual_work_ms(from.at_us).or(rates.work_ms), ..rates })
    }

    /// The median of the work in a transaction between two looks each: a report of an hour is counted when it ends, and then
    /// as if all of it had been done since the look before.
    fn usual_work_ms(&self, from_us: i64) -> Option<f64> {
        let looks = self.seen.windows(2).filter(|pair| pair[0].at_us >= from_us);
        let mut works: Vec<f64> =
            looks.filter_map(|pair| Rates::between(&pair[0], &pair[1])?.work_ms).collect();
        works.sort_by(f64::total_cmp);
        works.get(works.len().saturating_sub(1) / 2).copied()
    }

    /// What is not as in the baseline, a line each.
    pub fn unlike(&self) -> Vec<String> {
        match (&self.baseline, self.now()) {
            (Some(baseline), Some(now)) => now.unlike(baseline),
            _ => Vec::new(),
        }
    }
}

/// How long before `now` it was seen.
fn before(seen: &Activity, now: &Activity) -> Duration {
    Duration::from_micros(u64::try_from(now.at_us - seen.at_us).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;

    /// After so many seconds of an even load: a hundred transactions in a second that write two rows each.
    fn even(second: u64) -> Activity {
        Activity {
            at_us: second as i64 * S,
            commits: second * 99,
            rollbacks: second,
            rows_written: second * 200,
            work_us: Some(second * 100 * 500),
        }
    }

    fn watched(profile: Profile, seconds: u64) -> (Environment, Vec<u64>) {
        let mut environment = Environment::new(profile, None);
        let kept = (0..=seconds).step_by(5).filter(|s| environment.look(even(*s), true).is_some()).collect();
        (environment, kept)
    }

    #[test]
    fn a_baseline_is_taken_once_over_the_whole_window_of_the_profile() {
        assert_eq!(watched(Profile::Prod, 595).1, [0; 0]);
        let (environment, kept) = watched(Profile::Prod, 2000);
        assert_eq!(kept, [600]);
        let baseline = environment.baseline().unwrap();
        assert_eq!(
            (baseline.over_ms, baseline.rows_per_s, baseline.transactions_per_s),
            (600_000, 200.0, 100.0)
        );
        assert_eq!((baseline.failed_share, baseline.work_ms), (0.01, Some(0.5)));
        assert_eq!(environment.unlike(), [""; 0]);
        assert!(environment.seen.len() < 20, "what is of no more use is forgotten");
        assert_eq!(watched(Profile::Dev, 60).1, [5]);
    }

    #[test]
    fn each_thing_that_is_unlike_the_baseline_is_told() {
        let baseline = Rates::between(&even(0), &even(600)).unwrap();
        let told = |change: fn(&mut Activity)| {
            let mut environment = Environment::new(Profile::Prod, Some(baseline));
            let mut later = even(20);
            change(&mut later);
            assert_eq!(environment.look(even(0), true), None, "there is one already");
            environment.look(later, true);
            environment.unlike()
        };
        assert_eq!(told(|_| ()), [""; 0]);
        for (change, words) in [
            (
                (|later| later.rows_written = 20_000) as fn(&mut Activity),
                "1000 rows are written in a second, 200 in",
            ),
            (
                |later| later.rows_written = 1000,
                "50 rows are written in a second, 200 in the baseline: is all",
            ),
            (|later| later.work_us = Some(6_000_000), "a transaction takes 3.0 ms, 0.5 in the baseline"),
            (|later| later.rollbacks = 200, "9.2 % of all transactions fail, 1.0 % in the baseline"),
        ] {
            let said = told(change);
            assert!(said.len() == 1 && said[0].starts_with(words), "{words:?} in {said:?}");
        }
        assert_eq!(told(|later| later.work_us = None), [""; 0], "what is not counted is not compared");
    }

    #[test]
    fn counters_that_begin_anew_and_too_short_a_time_are_compared_with_nothing() {
        let baseline = Rates::between(&even(0), &even(600)).unwrap();
        let mut environment = Environment::new(Profile::Prod, Some(baseline));
        environment.look(even(1000), true);
        environment.look(Activity { at_us: 1020 * S, ..Activity::default() }, true);
        assert_eq!(environment.now(), None, "the statistics were reset");
        environment.look(Activity { at_us: 1024 * S, ..Activity::default() }, true);
        assert_eq!(environment.now(), None, "four seconds are too short");
        environment.look(Activity { at_us: 1036 * S, ..Activity::default() }, true);
        assert_eq!(environment.unlike().len(), 1, "nobody writes any more");
        environment.begin_anew();
        assert_eq!(environment.unlike(), [""; 0]);
    }

    #[test]
    fn the_target_gives_no_baseline_and_is_compared_with_the_sources() {
        let baseline = Rates::between(&even(0), &even(600)).unwrap();
        for (baseline, lines) in [(None, 0), (Some(baseline), 1)] {
            let mut environment = Environment::new(Profile::Dev, baseline);
            for second in 0..100 {
                let busy = Activity { rows_written: second * 1000, ..even(second) };
                assert_eq!(environment.look(busy, false), None);
            }
            assert_eq!(environment.unlike().len(), lines);
        }
    }

    #[test]
    fn what_comes_in_bursts_and_a_report_that_ends_are_nothing_unusual() {
        let baseline = Rates::between(&even(0), &even(600)).unwrap();
        let mut environment = Environment::new(Profile::Prod, Some(baseline));
        for second in (0..=120).step_by(10) {
            let burst = second / 60 * 60 * 200;
            let report = if second >= 115 { 3_600_000_000 } else { 0 };
            let look = Activity {
                rows_written: burst,
                work_us: even(second).work_us.map(|us| us + report),
                ..even(second)
            };
            environment.look(look, true);
        }
        assert_eq!(environment.unlike(), [""; 0]);
    }
}
