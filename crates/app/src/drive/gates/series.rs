//! What was measured over time, in memory: the loaded samples, this attempt's, and the ten seconds that are not yet stored.
//! Pure.

use segue_model::switch::gates::{Bounds, Sample, Series, Share};
use segue_postgres::control::StoredSample;
use std::time::Duration;

/// What comes in this time is stored as one sample, so that a window of days stays small.
const STORED_EVERY_US: i64 = 10_000_000;
/// For so long the lag's single samples are kept.
const LAG_KEPT_US: i64 = Bounds::LAG_WINDOW_MAX.as_micros() as i64;

/// What has come since something was last stored.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    since_us: i64,
    now_us: i64,
    lag_ms_max: u64,
    live: Share,
    matches: Share,
}

/// The series behind the gates.
#[derive(Debug, Default)]
pub(super) struct Measurements {
    /// Each look's, and before this attempt the highest of ten seconds.
    lag_ms: Vec<Sample<u64>>,
    /// What live comparison came to, as it is stored.
    live: Vec<Sample<Share>>,
    /// What verifications came to.
    verifications: Vec<Sample<Share>>,
    /// What comparing reads came to, as it is stored: those that answered alike, among all.
    matches: Vec<Sample<Share>>,
    bucket: Option<Bucket>,
    /// The counts of the look before.
    counted: Share,
}

fn share(sample: &StoredSample) -> Sample<Share> {
    Sample { at_us: sample.at_us, value: Share { part: sample.part, whole: sample.whole } }
}

/// Drops what lies before the last sample at or before `begin_us`.
fn trim<T>(samples: &mut Vec<Sample<T>>, begin_us: i64) {
    let after = samples.partition_point(|sample| sample.at_us <= begin_us);
    samples.drain(..after.saturating_sub(1));
}

fn add(sum: Share, more: Share) -> Share {
    Share { part: sum.part.saturating_add(more.part), whole: sum.whole.saturating_add(more.whole) }
}

impl Measurements {
    /// What earlier attempts have stored, each in the order of time.
    pub(super) fn load(lag: &[StoredSample], live: &[StoredSample], verifications: &[StoredSample]) -> Self {
        Measurements {
            lag_ms: lag.iter().map(|sample| Sample { at_us: sample.at_us, value: sample.part }).collect(),
            live: live.iter().map(share).collect(),
            verifications: verifications.iter().map(share).collect(),
            ..Measurements::default()
        }
    }

    /// These, with what earlier attempts have stored of compared reads.
    pub(super) fn with_matches(self, matches: &[StoredSample]) -> Self {
        Measurements { matches: matches.iter().map(share).collect(), ..self }
    }

    /// So many reads were compared since the look before, and answered alike. Behind [`Measurements::measured`].
    pub(super) fn compared(&mut self, more: Share) {
        if let Some(bucket) = &mut self.bucket {
            bucket.matches = add(bucket.matches, more);
        }
    }

    /// A look has measured this lag; `live` are the comparison's counts since the attempt began.
    pub(super) fn measured(&mut self, now_us: i64, lag_ms: u64, live: Share) {
        // Counts that are lower than before have begun anew.
        let begun_anew = live.part < self.counted.part || live.whole < self.counted.whole;
        let before = if begun_anew { Share::default() } else { self.counted };
        self.counted = live;
        let more = Share { part: live.part - before.part, whole: live.whole - before.whole };
        self.lag_ms.push(Sample { at_us: now_us, value: lag_ms });
        trim(&mut self.lag_ms, now_us - LAG_KEPT_US);
        let bucket = self.bucket.get_or_insert(Bucket {
            since_us: now_us,
            now_us,
            lag_ms_max: 0,
            live: Share::default(),
            matches: Share::default(),
        });
        bucket.now_us = now_us;
        bucket.lag_ms_max = bucket.lag_ms_max.max(lag_ms);
        bucket.live = add(bucket.live, more);
    }

    /// What is to be stored now, if it is time: the highest lag, and what was compared.
    pub(super) fn due(&self, now_us: i64) -> Option<(u64, Share)> {
        let bucket = self.bucket.filter(|bucket| now_us - bucket.since_us >= STORED_EVERY_US)?;
        Some((bucket.lag_ms_max, bucket.live))
    }

    /// What is to be stored of compared reads, beside what is [due](Measurements::due).
    pub(super) fn due_matches(&self) -> Share {
        self.bucket.map_or_else(Share::default, |bucket| bucket.matches)
    }

    /// What was due has been stored.
    pub(super) fn stored(&mut self, at_us: i64) {
        if let Some(bucket) = self.bucket.take() {
            self.live.push(Sample { at_us, value: bucket.live });
            self.matches.push(Sample { at_us, value: bucket.matches });
            let (live, matches) = (Share::default(), Share::default());
            self.bucket = Some(Bucket { since_us: at_us, now_us: at_us, lag_ms_max: 0, live, matches });
        }
        let kept_us = i64::try_from(Bounds::WINDOW_MAX.as_micros()).unwrap_or(i64::MAX);
        trim(&mut self.live, at_us.saturating_sub(kept_us));
        trim(&mut self.verifications, at_us.saturating_sub(kept_us));
        trim(&mut self.matches, at_us.saturating_sub(kept_us));
    }

    /// A verification has ended, and came to this.
    pub(super) fn verified(&mut self, came_to: Sample<Share>) {
        self.verifications.push(came_to);
        self.verifications.sort_by_key(|sample| sample.at_us);
    }

    /// The lag.
    pub(super) fn lag_ms(&self) -> Series<u64> {
        Series(self.lag_ms.clone())
    }

    /// Reads that answered alike, among those that were compared.
    pub(super) fn matches(&self) -> Series<Share> {
        let open = self.bucket.map(|bucket| Sample { at_us: bucket.now_us, value: bucket.matches });
        Series(self.matches.iter().chain(&open).copied().collect())
    }

    /// What was compared, live and by verifications. A window of zero has one sample: the last verification, and what was
    /// compared since, however long ago that is.
    pub(super) fn drift(&self, now_us: i64, window: Duration) -> Series<Share> {
        let open = self.bucket.map(|bucket| Sample { at_us: bucket.now_us, value: bucket.live });
        if window.is_zero() {
            let last = self.verifications.last();
            let since = self.live.iter().filter(|sample| last.is_none_or(|last| sample.at_us > last.at_us));
            let value =
                last.into_iter().chain(since).chain(&open).fold(Share::default(), |sum, s| add(sum, s.value));
            return Series(vec![Sample { at_us: now_us, value }]);
        }
        let mut all: Vec<Sample<Share>> =
            self.live.iter().chain(&self.verifications).chain(&open).copied().collect();
        all.sort_by_key(|sample| sample.at_us);
        Series(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::spec::Profile;
    use segue_model::switch::gates::{Evidence, Gate, Verdict, judge};

    const S: i64 = 1_000_000;
    const T0: i64 = 1_000_000 * S;

    fn counts(part: u64, whole: u64) -> Share {
        Share { part, whole }
    }

    fn stored(at_us: i64, part: u64, whole: u64) -> StoredSample {
        StoredSample { at_us, part, whole }
    }

    fn is_green(gate: Gate, profile: Profile, now_us: i64, measurements: &Measurements) -> bool {
        let bounds = Bounds::of(profile);
        let evidence = Evidence {
            now_us,
            lag_ms: measurements.lag_ms(),
            drift: measurements.drift(now_us, bounds.drift_window),
            ..Evidence::default()
        };
        matches!(judge(gate, &bounds, &evidence), Verdict::Green { .. })
    }

    #[test]
    fn ten_seconds_become_one_sample_with_the_highest_lag_and_all_that_was_compared() {
        let mut m = Measurements::default();
        for (second, lag_ms) in [(0, 5), (1, 900), (2, 7)] {
            m.measured(T0 + second * S, lag_ms, counts(0, 100 * (second as u64 + 1)));
            assert_eq!(m.due(T0 + second * S), None);
        }
        m.measured(T0 + 10 * S, 8, counts(2, 450));
        assert_eq!(m.due(T0 + 10 * S), Some((900, counts(2, 450))));
        m.stored(T0 + 10 * S + 5);
        m.measured(T0 + 11 * S, 8, counts(2, 460));
        assert_eq!(m.due(T0 + 11 * S), None);
        let drift = m.drift(T0 + 11 * S, Duration::from_secs(3600));
        let seen: Vec<_> = drift.0.iter().map(|sample| (sample.at_us - T0, sample.value)).collect();
        assert_eq!(seen, [(10 * S + 5, counts(2, 450)), (11 * S, counts(0, 10))], "nothing is counted twice");
    }

    #[test]
    fn counts_that_begin_anew_are_counted_from_nothing() {
        let mut m = Measurements::default();
        m.measured(T0, 0, counts(1, 100));
        m.measured(T0 + S, 0, counts(0, 30));
        m.measured(T0 + 10 * S, 0, counts(0, 30));
        assert_eq!(m.due(T0 + 10 * S), Some((0, counts(1, 130))));
    }

    #[test]
    fn reads_that_answer_alike_open_their_gate_after_a_day_and_over_restarts() {
        let hours = |h: i64| h * 3600 * S;
        let judged = |m: &Measurements, now_us| {
            let evidence = Evidence { now_us, matches: m.matches(), ..Evidence::default() };
            matches!(judge(Gate::Matches, &Bounds::of(Profile::Prod), &evidence), Verdict::Green { .. })
        };
        let kept: Vec<StoredSample> = (0..24 * 360).map(|n| stored(T0 + n * 10 * S, 5, 5)).collect();
        let now = T0 + hours(24);
        let mut m = Measurements::default().with_matches(&kept);
        m.measured(now, 0, counts(0, 0));
        m.compared(counts(7, 7));
        assert!(judged(&m, now), "what was compared by an earlier process counts, too");
        assert_eq!(m.due_matches(), counts(7, 7));
        m.compared(counts(0, 100));
        assert!(!judged(&m, now));
        m.stored(now + S);
        assert_eq!(m.due_matches(), counts(0, 0), "nothing is counted twice");
    }

    #[test]
    fn a_restart_goes_on_with_what_was_stored() {
        let hours = |h: i64| h * 3600 * S;
        let every_ten_seconds = |hours: i64| -> Vec<StoredSample> {
            (0..hours * 360).map(|n| stored(T0 + n * 10 * S, 0, 5)).collect()
        };
        let now = T0 + hours(72) + 60 * S;
        let fresh = |live: &[StoredSample]| {
            let mut m = Measurements::load(&[], live, &[]);
            m.measured(now, 0, counts(0, 0));
            is_green(Gate::Drift, Profile::Prod, now, &m)
        };
        assert!(fresh(&every_ten_seconds(72)), "a minute without the driver is no gap");
        assert!(!fresh(&every_ten_seconds(71)), "an hour is");
        let mut bad = every_ten_seconds(72);
        bad[5].part = 5;
        assert!(fresh(&bad), "what lies before the window is no matter");
        bad[100].part = 100;
        assert!(!fresh(&bad));
    }

    #[test]
    fn a_lag_that_was_high_stays_in_the_window_over_a_restart() {
        let lag =
            |lag_ms| -> Vec<StoredSample> { (0..61).map(|n| stored(T0 + n * 10 * S, lag_ms, 0)).collect() };
        let now = T0 + 605 * S;
        for (lag_ms, green) in [(20, true), (5000, false)] {
            let mut m = Measurements::load(&lag(lag_ms), &[], &[]);
            m.measured(now, 20, counts(0, 0));
            assert_eq!(is_green(Gate::Lag, Profile::Prod, now, &m), green);
        }
    }

    #[test]
    fn one_bad_second_in_ten_minutes_does_not_close_the_gate_of_the_lag() {
        let mut m = Measurements::default();
        for second in 0..=620 {
            m.measured(T0 + second * S, if second == 300 { 5000 } else { 20 }, counts(0, 0));
            if m.due(T0 + second * S).is_some() {
                m.stored(T0 + second * S);
            }
        }
        assert!(is_green(Gate::Lag, Profile::Prod, T0 + 620 * S, &m));
        assert!(m.lag_ms.len() == 621 && m.live.len() == 62);
    }

    #[test]
    fn on_a_developers_machine_the_last_verification_and_what_came_since_are_enough() {
        let week = 7 * 24 * 3600 * S;
        let mut m = Measurements::load(&[], &[stored(T0 - S, 9, 10)], &[stored(T0, 0, 1000)]);
        m.measured(T0 + week, 0, counts(0, 0));
        assert!(
            is_green(Gate::Drift, Profile::Dev, T0 + week, &m),
            "without a write nothing else is compared"
        );
        m.measured(T0 + week, 0, counts(1, 1));
        assert!(!is_green(Gate::Drift, Profile::Dev, T0 + week, &m));
        m.verified(Sample { at_us: T0 + week + S, value: counts(0, 1001) });
        m.stored(T0 + week + 2 * S);
        assert!(!is_green(Gate::Drift, Profile::Dev, T0 + week + 2 * S, &m), "it came while that ran");
        m.verified(Sample { at_us: T0 + week + 3 * S, value: counts(0, 1001) });
        assert!(is_green(Gate::Drift, Profile::Dev, T0 + week + 3 * S, &m));
        assert!(!is_green(Gate::Drift, Profile::Dev, T0, &Measurements::default()), "nothing was compared");
    }

    #[test]
    fn a_verification_counts_in_the_window_of_days_too() {
        let mut m = Measurements::default();
        for n in 0..=400 {
            m.measured(T0 + n * 10 * S, 0, counts(0, 0));
            if m.due(T0 + n * 10 * S).is_some() {
                m.stored(T0 + n * 10 * S);
            }
        }
        let now = T0 + 4000 * S;
        assert!(!is_green(Gate::Drift, Profile::Staging, now, &m), "no row was compared");
        m.verified(Sample { at_us: now - S, value: counts(0, 1_000_000) });
        assert!(is_green(Gate::Drift, Profile::Staging, now, &m));
        m.verified(Sample { at_us: now - S, value: counts(100, 100) });
        assert!(!is_green(Gate::Drift, Profile::Staging, now, &m));
    }
}
