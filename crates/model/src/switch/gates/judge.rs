//! One gate, judged by what was measured.

use super::evidence::{Difference, Evidence, Mirrored, Sample, Series, Share, micros};
use super::{Bounds, Gate, Red, Verdict};
use std::time::Duration;

/// Judges one gate. A green answer is green since the moment of this evidence; see [`Verdict::after`].
pub fn judge(gate: Gate, bounds: &Bounds, evidence: &Evidence) -> Verdict {
    let closed = match gate {
        Gate::Lag => lag(bounds, evidence),
        Gate::Drift => drift(bounds, evidence),
        Gate::Matches => matches(bounds, evidence),
        Gate::Mirror => mirror(evidence),
        Gate::Verified => verified(bounds, evidence),
        Gate::Divergences => divergences(evidence),
        Gate::WayBack => way_back(bounds, evidence),
        Gate::Sequences => none_of(
            evidence.sequences_unready.as_deref(),
            "sequences cannot be set on the new side",
            "create them there, or grant UPDATE on them",
        ),
        Gate::Rehearsal => rehearsal(bounds, evidence),
        Gate::Ddl => none_of(
            evidence.ddl_differences.as_deref(),
            "the tables are not those of the plan",
            "take the change back on the one side or make it on the other, then plan again",
        ),
        Gate::Parity => parity(evidence),
        Gate::LongTransactions => transactions(bounds, evidence),
        Gate::Replicas => replicas(bounds, evidence),
        Gate::Connections => connections(bounds, evidence),
        Gate::Wraparound => none_of(
            evidence.wraparound_vacuums.as_deref(),
            "a vacuum that prevents wraparound is running",
            "let it finish; it is not cancelled for the fence's lock",
        ),
        Gate::Sessions => none_of(
            evidence.sessions_with_state.as_deref(),
            "sessions hold state that cannot move",
            "end it in the application, or accept it in the spec",
        ),
        Gate::Fence => none_of(
            evidence.ways_past_fence.as_deref(),
            "writes are let past the fence",
            "disable the subscription (ALTER SUBSCRIPTION … DISABLE), or enable the trigger again",
        ),
    };
    closed.map_or(Verdict::Green { since_us: evidence.now_us }, Verdict::Red)
}

fn red(why: String, next: &str) -> Option<Red> {
    Some(Red { why, next: next.to_owned() })
}

fn unmeasured() -> Option<Red> {
    red("it has not been measured".to_owned(), "let `segue run` run until it has")
}

/// The samples of a window, if they cover it.
fn covered<'a, T>(
    series: &'a Series<T>,
    window: Duration,
    bounds: &Bounds,
    evidence: &Evidence,
) -> Result<&'a [Sample<T>], Option<Red>> {
    let (samples, covers) = series.within(window, bounds.gap_max, evidence.now_us);
    if samples.is_empty() {
        Err(unmeasured())
    } else if covers < window {
        let why = format!("measured without a gap for {} of {}", words(covers), words(window));
        Err(red(why, &format!("wait another {}, with `segue run` running", words(window - covers))))
    } else {
        Ok(samples)
    }
}

fn lag(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let samples = match covered(&evidence.lag_ms, bounds.lag_window, bounds, evidence) {
        Ok(samples) => samples,
        Err(red) => return red,
    };
    let mut sorted: Vec<u64> = samples.iter().map(|sample| sample.value).collect();
    sorted.sort_unstable();
    // Nearest rank: the smallest value that at least 99 of 100 do not exceed.
    let p99 = sorted[(sorted.len() * 99).div_ceil(100) - 1];
    if p99 <= bounds.lag_ms_max {
        return None;
    }
    let what = if bounds.lag_window.is_zero() {
        "the lag".to_owned()
    } else {
        format!("the 99th percentile of the lag over {}", words(bounds.lag_window))
    };
    red(
        format!("{what} is {p99} ms, of {} ms allowed", bounds.lag_ms_max),
        "see in `segue status` what holds the stream back",
    )
}

fn sum(samples: &[Sample<Share>]) -> Share {
    samples.iter().fold(Share::default(), |sum, sample| Share {
        part: sum.part + sample.value.part,
        whole: sum.whole + sample.value.whole,
    })
}

/// `part` of `whole` in parts per million, exact enough to compare and never beyond what was counted.
fn is_below(share: Share, ppm: u64) -> bool {
    u128::from(share.part) * 1_000_000 < u128::from(ppm) * u128::from(share.whole)
}

fn percent(share: Share) -> String {
    format!("{:.4} %", share.part as f64 * 100.0 / share.whole as f64)
}

pub(super) fn percent_of_ppm(ppm: u64) -> String {
    format!("{} %", ppm as f64 / 10_000.0)
}

fn drift(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let share = match covered(&evidence.drift, bounds.drift_window, bounds, evidence) {
        Ok(samples) => sum(samples),
        Err(red) => return red,
    };
    if share.whole == 0 {
        return red("no row was compared in the window".to_owned(), "run `segue verify`");
    }
    if is_below(share, bounds.drift_ppm_below) {
        return None;
    }
    let (is, below) = (percent(share), percent_of_ppm(bounds.drift_ppm_below));
    red(
        format!("{} of {} compared rows diverged ({is}), it must be below {below}", share.part, share.whole),
        "find the cause with `segue verify`, then repair; the window has to pass without them",
    )
}

fn matches(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let window = bounds.matches_asked()?;
    let share = match covered(&evidence.matches, window, bounds, evidence) {
        Ok(samples) => sum(samples),
        Err(red) => return red,
    };
    if share.whole == 0 {
        return red(
            "no read was repeated in the window".to_owned(),
            "repeat a share of them: `segue mirror PERCENT`",
        );
    }
    if !is_below(share, bounds.matches_ppm_min) {
        return None;
    }
    let (is, min) = (percent(share), percent_of_ppm(bounds.matches_ppm_min));
    red(
        format!("{is} of {} repeated reads answered alike, it must be {min}", share.whole),
        "look at the mismatches; the window has to pass without them",
    )
}

/// Judged by what routers say now, not over a window: whoever compares nothing is not asked for it here.
fn mirror(evidence: &Evidence) -> Option<Red> {
    let Some(mirrored) = &evidence.mirrored else { return unmeasured() };
    if mirrored.is_unreadable {
        let next = "use one version of segue for `segue router` and for `segue run`";
        return red("what a router has found cannot be read".to_owned(), next);
    }
    let Mirrored { differ, differ_ppm_max, worst, .. } = mirrored;
    let is_within =
        u128::from(differ.part) * 1_000_000 <= u128::from(*differ_ppm_max) * u128::from(differ.whole);
    if is_within {
        return None;
    }
    let (part, whole, is, max) =
        (differ.part, differ.whole, percent(*differ), percent_of_ppm(*differ_ppm_max));
    let worst = if worst.is_empty() { String::new() } else { format!("; most often: {worst}") };
    red(
        format!("{part} of {whole} compared reads differ ({is}), {max} may{worst}"),
        "see the statements in `segue status` and do what it says of each; then begin to count anew: `segue mirror 0`, and \
         `segue mirror PERCENT` again",
    )
}

fn verified(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let Some(verified) = evidence.verified else { return unmeasured() };
    if verified.tables_left > 0 {
        let why = format!("{} table(s) have not been compared in full", verified.tables_left);
        return red(
            why,
            "run `segue verify`, or wait for the one that is running; one from before a write past a fence does not count, \
             nor one that left hot rows to a process that has ended",
        );
    }
    too_old(
        "the last full verification",
        verified.oldest_us,
        bounds.verified_age_max,
        evidence.now_us,
        "run `segue verify`",
    )
}

/// What lies further than this after the moment of the evidence was measured by another clock, or before it was put back.
const AHEAD_MAX: Duration = Duration::from_secs(60);

fn too_old(what: &str, at_us: i64, age_max: Duration, now_us: i64, next: &str) -> Option<Red> {
    let age_us = now_us.saturating_sub(at_us);
    if age_us < -micros(AHEAD_MAX) {
        let ahead = Duration::from_micros(age_us.unsigned_abs());
        return red(format!("{what} lies {} in the future: the clock was put back", words(ahead)), next);
    }
    if age_us <= micros(age_max) {
        return None;
    }
    let age = Duration::from_micros(u64::try_from(age_us).unwrap_or(0));
    red(format!("{what} is {} old, of {} allowed", words(age), words(age_max)), next)
}

fn divergences(evidence: &Evidence) -> Option<Red> {
    match evidence.divergences_open {
        None => unmeasured(),
        Some(0) => None,
        Some(n) => red(
            format!("{n} divergence(s) are open"),
            "look at them with `segue verify --repair --dry-run`, then repair them with `segue verify --repair`",
        ),
    }
}

fn way_back(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let Some(opposite) = evidence.opposite else { return unmeasured() };
    if opposite.stands_still {
        return red(
            "the stream to where the writes would go stands still: what was written since is missing there"
                .to_owned(),
            "do what `segue status` says of the way back: it is tried again by itself",
        );
    }
    if opposite.is_lost {
        return red(
            "the opposite stream is lost: after this, writes could not be moved again".to_owned(),
            "`segue reverse` goes without it",
        );
    }
    if !opposite.is_armed {
        return red(
            "the opposite stream is not armed".to_owned(),
            "wait until it has passed its barrier, or see in `segue status` why it has ended",
        );
    }
    let (behind, max) = (opposite.behind_bytes, bounds.way_back_bytes_max);
    if behind <= max {
        return None;
    }
    red(
        format!("the opposite stream is {behind} bytes behind, of {max} allowed"),
        "wait until it has caught up",
    )
}

fn rehearsal(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let age_max = bounds.rehearsal_age_max?;
    let next = "run `segue switch writes --dry-run`";
    match evidence.rehearsed_us {
        None => red("no rehearsal has succeeded".to_owned(), next),
        Some(at_us) => too_old("the last rehearsal", at_us, age_max, evidence.now_us, next),
    }
}

fn transactions(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let Some(all) = &evidence.transactions else { return unmeasured() };
    let old = all.iter().filter(|(age, _)| *age > bounds.transaction_age_max);
    let named: Vec<String> = old
        .map(|(age, who)| match *age {
            Duration::MAX => who.clone(),
            age => format!("{who} for {}", words(age)),
        })
        .collect();
    let what = format!("transactions are older than {}", words(bounds.transaction_age_max));
    none_of(Some(&named), &what, "wait for them, or end them")
}

fn replicas(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let Some(all) = &evidence.replicas else { return unmeasured() };
    let behind = all.iter().filter(|replica| replica.lag_ms >= bounds.replica_lag_ms_max);
    let named: Vec<String> = behind
        .map(|r| match r.lag_ms {
            u64::MAX => format!("{} by what is shown to pg_read_all_stats only", r.name),
            lag_ms => format!("{} by {lag_ms} ms", r.name),
        })
        .collect();
    let what = format!("replicas of the new side are {} ms or more behind", bounds.replica_lag_ms_max);
    none_of(Some(&named), &what, "wait until they have caught up, or take them out of use")
}

fn connections(bounds: &Bounds, evidence: &Evidence) -> Option<Red> {
    let Some(it) = evidence.connections else { return unmeasured() };
    let spare = bounds.spare_connections_percent_min;
    if u128::from(it.free) * 100 >= u128::from(it.needed) * u128::from(100 + spare) {
        return None;
    }
    red(
        format!(
            "{} connections are free on the new side, {} and {spare} % to spare are needed",
            it.free, it.needed
        ),
        "raise its max_connections, or lower the routers' pools",
    )
}

/// What concerns rows is named first, and mended first.
fn parity(evidence: &Evidence) -> Option<Red> {
    let Some(all) = &evidence.parity else { return unmeasured() };
    let (mut first, rest): (Vec<&Difference>, Vec<&Difference>) = all.iter().partition(|one| one.of_rows);
    first.extend(rest);
    let names: Vec<String> = first.iter().map(|one| one.what.clone()).collect();
    let remedies: Vec<&str> = first.iter().take(NAMES_MAX).map(|one| one.remedy.as_str()).collect();
    none_of(
        Some(&names),
        "the new side's tables have not what the old side's have",
        &format!("make them equal, or accept it: {}", remedies.join(" ")),
    )
}

/// At most so many names are printed.
const NAMES_MAX: usize = 5;

fn none_of(names: Option<&[String]>, what: &str, next: &str) -> Option<Red> {
    let Some(names) = names else { return unmeasured() };
    if names.is_empty() {
        return None;
    }
    let mut why = format!("{what}: {}", names[..names.len().min(NAMES_MAX)].join(", "));
    if names.len() > NAMES_MAX {
        why.push_str(&format!(" and {} more", names.len() - NAMES_MAX));
    }
    red(why, next)
}

/// A duration in its greatest whole unit, rounded up, so that "wait another" is never too short.
pub(super) fn words(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit_ms, unit) in [(3_600_000, "h"), (60_000, "min"), (1000, "s")] {
        if ms >= 2 * unit_ms {
            return format!("{} {unit}", ms.div_ceil(unit_ms));
        }
    }
    format!("{ms} ms")
}
