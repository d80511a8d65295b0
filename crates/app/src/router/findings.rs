//! What the router says of reads: its counters, and what comparing them has found, within a bound.

use crate::report::{Latency, MirrorSeat, MismatchSeat, ReadsSeat};
use segue_model::switch::Side;
use segue_router::{Handle, Histogram, Mismatch, MismatchKind, MismatchSample, Reads, ShadowCounts};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A report is a row in the control database, written every second.
const REPORT_BYTES_MAX: usize = 48 * 1024;
/// A longer statement is cut: it is there to be recognised.
const STATEMENT_CHARS_MAX: usize = 2_000;

/// Of what stands beside others of its kind.
const SHORT_CHARS_MAX: usize = 400;

/// What had been found when comparing was last turned on.
#[derive(Debug, Default)]
struct Before {
    since_us: i64,
    counts: ShadowCounts,
}

/// What is said of reads.
#[derive(Debug, Default)]
pub(super) struct Findings(Mutex<Before>);

impl Findings {
    /// Reads are compared since then, by the rules. Whatever was found before does not count any more.
    pub(super) fn compare_since(&self, since_us: i64, handle: &Handle) {
        let mut before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if before.since_us != since_us {
            *before = Before { since_us, counts: handle.shadow() };
        }
    }

    /// What became of reads.
    pub(super) fn reads(&self, handle: &Handle, rules: &Reads) -> ReadsSeat {
        let (counts, (breaker, opened)) = (handle.counts(), handle.breaker());
        let times = handle.times();
        let selects = |side: Side| {
            let of_side = times.iter().filter(|kind| kind.side == side && kind.kind == "select");
            of_side.map(|kind| kind.times.count()).sum()
        };
        ReadsSeat {
            share_percent: rules.share_percent,
            tenants: rules.tenants.len(),
            contained: rules.contained,
            served: counts.reads,
            too_early: counts.reads_too_early,
            not_admitted: counts.reads_not_admitted,
            failed: counts.reads_failed,
            repeated: counts.reads_repeated,
            breaker: breaker.name().to_owned(),
            opened,
            selects_source: selects(Side::Source),
            selects_target: selects(Side::Target),
        }
    }

    /// What comparing them has come to.
    pub(super) fn mirror(&self, shadow: &ShadowCounts, rules: &Reads) -> MirrorSeat {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since(&before, shadow, rules.mirror_percent)
    }
}

fn since(before: &Before, now: &ShadowCounts, percent: u8) -> MirrorSeat {
    let was = &before.counts;
    let known: HashMap<u64, u64> = was.mismatches.iter().map(|m| (m.fingerprint, m.count)).collect();
    let mut mirror = MirrorSeat {
        percent,
        since_us: before.since_us,
        compared: now.compared - was.compared,
        equal: now.equal - was.equal,
        mismatched: now.mismatched - was.mismatched,
        noise: now.noise - was.noise,
        stale: now.stale - was.stale,
        failed: now.failed - was.failed,
        dropped: (now.queue_full - was.queue_full) + (now.too_large - was.too_large),
        source_ms: latency(&now.source),
        target_ms: latency(&now.target),
        mismatches: Vec::new(),
    };
    let mut bytes = 0;
    let mut new: Vec<(u64, &Mismatch)> = now
        .mismatches
        .iter()
        .map(|m| (m.count - known.get(&m.fingerprint).copied().unwrap_or(0), m))
        .filter(|(count, _)| *count > 0)
        .collect();
    new.sort_by_key(|(count, mismatch)| (std::cmp::Reverse(*count), mismatch.fingerprint));
    for (count, mismatch) in new {
        let seat = explained(count, mismatch);
        // As it is written, quotes and all, is hardly more than twice as long.
        bytes += 2 * (seat.statement.len() + seat.why.len() + seat.next.len()) + 64;
        if bytes > REPORT_BYTES_MAX {
            break;
        }
        mirror.mismatches.push(seat);
    }
    mirror
}

pub(super) fn latency(times: &Histogram) -> Latency {
    Latency { p50: in_ms(times.p50()), p99: in_ms(times.p99()), max: in_ms(times.max()) }
}

pub(super) fn in_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// So much as a person needs to recognise it.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(SHORT_CHARS_MAX).collect()
}

fn explained(count: u64, mismatch: &Mismatch) -> MismatchSeat {
    let statement: String = mismatch.shape.chars().take(STATEMENT_CHARS_MAX).collect();
    // The last one says how things are now.
    let Some(sample) = mismatch.samples.last() else {
        return MismatchSeat { statement, count, ..MismatchSeat::default() };
    };
    let why: String = why(sample).chars().take(STATEMENT_CHARS_MAX).collect();
    MismatchSeat { statement, count, why, next: next(&sample.kind).to_owned() }
}

fn why(sample: &MismatchSample) -> String {
    let (served_by, other) = (sample.served_by, sample.served_by.other());
    let (served_rows, other_rows) = (sample.served_rows, sample.other_rows);
    let mut why = format!(
        "the {other}'s answer, beside the {served_by}'s: {}; {served_rows} rows on the {served_by}, {other_rows} on the {other}",
        sample.kind
    );
    for pair in &sample.columns {
        why.push_str(&format!("; {}: {} / {}", pair.name, pair.served, pair.other));
    }
    for more in sample.note.into_iter().chain(sample.statement.as_deref()) {
        why.push_str("; ");
        why.push_str(more);
    }
    why
}

fn next(kind: &MismatchKind) -> &'static str {
    match kind {
        MismatchKind::RowsMissing(_) | MismatchKind::RowsTooMany(_) | MismatchKind::ValuesDiffer(_) => {
            "compare the tables it reads with `segue verify`, and mend them with `segue verify --repair`; if they are equal, \
             compare the views, functions and settings of both sides"
        }
        MismatchKind::OrderDiffers => {
            "compare the collations of both sides, and the indexes that order the rows"
        }
        MismatchKind::ColumnsDiffer(_) => "compare the views and the search_path of both sides",
        MismatchKind::Larger => "compare the tables it reads with `segue verify`",
        MismatchKind::Error { .. } => {
            "run it on both sides: a function, a view, an extension or a privilege is missing on one"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::switch::Side;

    fn mismatch(fingerprint: u64, count: u64, shape: &str) -> Mismatch {
        let sample = MismatchSample {
            served_by: Side::Source,
            kind: MismatchKind::RowsMissing(1),
            served_rows: 2,
            other_rows: 1,
            columns: Vec::new(),
            note: None,
            statement: None,
        };
        Mismatch { fingerprint, shape: shape.to_owned(), count, samples: vec![sample] }
    }

    #[test]
    fn only_what_was_found_since_it_was_turned_on_counts() {
        let counts = |compared, mismatches: Vec<Mismatch>| ShadowCounts {
            compared,
            mismatched: mismatches.iter().map(|m| m.count).sum(),
            mismatches,
            ..ShadowCounts::default()
        };
        let was = counts(10, vec![mismatch(1, 4, "SELECT a"), mismatch(2, 1, "SELECT b")]);
        let now = counts(30, vec![mismatch(1, 4, "SELECT a"), mismatch(2, 3, "SELECT b")]);
        let mirror = since(&Before { since_us: 7, counts: was }, &now, 5);
        assert_eq!((mirror.compared, mirror.mismatched, mirror.since_us), (20, 2, 7));
        let [only] = &mirror.mismatches[..] else { panic!("{mirror:?}") };
        assert_eq!((only.statement.as_str(), only.count), ("SELECT b", 2));
        assert!(
            only.why.contains("the target's answer") && only.next.contains("verify --repair"),
            "{only:?}"
        );
    }

    #[test]
    fn a_report_has_a_bound_whatever_was_found() {
        let all = (0..100).map(|n| mismatch(n, n + 1, &"\"".repeat(100_000))).collect();
        let now = ShadowCounts { mismatches: all, ..ShadowCounts::default() };
        let mirror = since(&Before::default(), &now, 5);
        assert!(
            !mirror.mismatches.is_empty() && mirror.mismatches[0].count == 100,
            "the most frequent first"
        );
        assert!(serde_json::to_string(&mirror).unwrap().len() < 64 * 1024);
    }
}
