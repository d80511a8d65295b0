//! The demo's end: one screen for people, or one object for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::load::{Errors, Noticed, Tally, Verdict};
use super::moves::Move;
use super::narrator::{Narrator, Tone, count, millis, of, time};
use super::reads::ReadsMoved;
use super::segue::{Status, Verified};

/// More kinds of errors than this do not fit on the screen.
const ERROR_KINDS_SHOWN: usize = 4;

/// All that the demo has measured.
#[derive(Debug)]
pub(super) struct Report {
    /// From the start of `run` until the target followed.
    pub(super) copied_in: Duration,
    pub(super) status: Status,
    /// Under load, at first, before any read moved, and while the target owned the writes; and when the load had ended.
    pub(super) verified: [Verified; 4],
    pub(super) reads: ReadsMoved,
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
    /// The owner's answer for everything that was acknowledged; only this one says what is lost.
    pub(super) verdict: Verdict,
    /// The other side's.
    pub(super) elsewhere: Verdict,
    pub(super) moves: Vec<Move>,
    pub(super) tally: Tally,
    pub(super) load_lasted: Duration,
    /// From the load's last commit until it was on the target.
    pub(super) last_write_after: Duration,
    /// What was left behind on the two sides after `cancel`; `None`: the migration was not cancelled.
    pub(super) left_behind: Option<Vec<String>>,
    pub(super) took: Duration,
}

impl Report {
    /// A row that differs under load differs after it as well, and is one row.
    fn divergences(&self) -> u64 {
        self.verified.iter().map(|verified| verified.divergences).max().unwrap_or_default()
    }

    fn compared(&self) -> u64 {
        self.verified.iter().map(|verified| verified.rows_compared).max().unwrap_or_default()
    }

    /// Whether the promise was kept.
    pub(super) fn is_clean(&self) -> bool {
        self.divergences() == 0
            && self.tally.browsing.stale == 0
            && self.reads.is_clean()
            && self.verdict.lost == 0
            && self.elsewhere.lost == 0
            && self.left_behind.as_ref().is_none_or(Vec::is_empty)
    }

    /// A clean report, as the documentation shows it.
    pub(super) fn example() -> Report {
        let verified = Verified { rows_compared: 2_309_896, divergences: 0, hot: 0 };
        let latency_ms = Some([2.9, 387.0, 503.0]);
        Report {
            copied_in: Duration::from_millis(5500),
            status: Status {
                rows: 2_295_011,
                bytes: 196_000_000,
                transactions: Some(14_724),
                changes: Some(26_868),
                latency_ms,
            },
            verified: [verified; 4],
            reads: ReadsMoved::example(),
            acknowledged: 14_974,
            unknown: 0,
            verdict: Verdict { checked: 12_798, ..Verdict::default() },
            elsewhere: Verdict { checked: 12_798, ..Verdict::default() },
            moves: ["rehearsed", "to the target"].map(Move::example).to_vec(),
            tally: Tally::default(),
            load_lasted: Duration::from_secs(25),
            last_write_after: Duration::from_micros(5100),
            left_behind: Some(Vec::new()),
            took: Duration::from_millis(36_300),
        }
    }

    /// One object; its keys are stable.
    pub(super) fn json(&self) -> Value {
        let latency =
            self.status.latency_ms.map(|[p50, p99, max]| json!({"p50": p50, "p99": p99, "max": max}));
        json!({
            "clean": self.is_clean(),
            "copied": {
                "rows": self.status.rows,
                "bytes": self.status.bytes,
                "seconds": self.copied_in.as_secs_f64(),
                "bytes_per_second": self.bytes_per_second(),
            },
            "streamed": {"transactions": self.status.transactions, "changes": self.status.changes},
            "lag_ms": latency,
            "last_write_after_ms": self.last_write_after.as_secs_f64() * 1_000.0,
            "verified": {
                "rows_compared": self.verified.map(|verified| verified.rows_compared),
                "divergences": self.divergences(),
                "hot": self.verified.map(|verified| verified.hot),
            },
            "writes": {
                "acknowledged": self.acknowledged,
                "per_second": self.acknowledged as f64 / self.load_lasted.as_secs_f64().max(0.001),
                "unknown": self.unknown,
                "rows_checked": self.verdict.checked,
                "lost": self.verdict.lost,
                "lost_examples": self.verdict.shown.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "errors": self.tally.errors,
                "differ_on_the_other_side": self.elsewhere.lost,
            },
            "reads": self.reads.json(&self.tally.browsing),
            "hand_overs": self.moves.iter().map(|one| json!({
                "what": one.what,
                "stall_ms": one.stall_ms,
                "gap_ms": in_ms(one.noticed.gap),
                "latency_ms": latency_ms(&one.noticed),
                "errors": one.noticed.errors,
            })).collect::<Vec<_>>(),
            "hand_over_latency_ms": latency_ms(&self.noticed()),
            "left_behind": self.left_behind,
            "seconds": self.took.as_secs_f64(),
        })
    }

    /// By clients, during all hand-overs.
    fn noticed(&self) -> Noticed {
        Noticed::together(self.moves.iter().map(|one| &one.noticed))
    }

    fn bytes_per_second(&self) -> f64 {
        self.status.bytes as f64 / self.copied_in.as_secs_f64().max(0.001)
    }

    /// One screen.
    pub(super) fn text(&self, narrator: &Narrator) -> String {
        let mut lines = vec![String::new(), self.headline(narrator), String::new()];
        for (label, value) in self.facts(narrator) {
            lines.push(format!("   {}  {value}", narrator.paint(Tone::Quiet, &format!("{label:<13}"))));
        }
        let lost = self.verdict.shown.iter().map(ToString::to_string);
        for wrong in lost.chain(self.tally.browsing.stale_shown.iter().cloned()) {
            lines.push(format!("   {}", narrator.paint(Tone::Bad, &wrong)));
        }
        lines.join("\n")
    }

    fn headline(&self, narrator: &Narrator) -> String {
        if self.is_clean() {
            let text = format!(
                "Both sides are equal. {} acknowledged while the shop moved: none is lost.",
                of(self.acknowledged, "write was", "writes were")
            );
            narrator.paint(Tone::Good, &text)
        } else {
            let mut wrong = Vec::new();
            if self.divergences() > 0 {
                wrong.push(of(self.divergences(), "row differs", "rows differ"));
            }
            if self.verdict.lost > 0 {
                wrong.push(
                    of(self.verdict.lost, "acknowledged write is", "acknowledged writes are") + " not there",
                );
            }
            if self.elsewhere.lost > 0 {
                wrong.push(
                    of(self.elsewhere.lost, "acknowledged write has", "acknowledged writes have")
                        + " not come to the source",
                );
            }
            let stale = self.tally.browsing.stale;
            if stale > 0 {
                wrong.push(of(stale, "read did", "reads did") + " not show what its visitor had written");
            }
            wrong.extend(self.reads.wrong());
            wrong.extend(self.left_behind.iter().flatten().map(|what| format!("{what} was left behind")));
            narrator.paint(Tone::Bad, &format!("This went wrong: {}.", wrong.join(", ")))
        }
    }

    fn facts(&self, narrator: &Narrator) -> Vec<(&'static str, String)> {
        let verdict = |number: u64, text: String| {
            narrator.paint(if number == 0 { Tone::Good } else { Tone::Bad }, &text)
        };
        let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), count);
        let lag = self.status.latency_ms.map_or_else(
            || "not measured".to_owned(),
            |[p50, p99, max]| format!("p50 {}   p99 {}   max {}", millis(p50), millis(p99), millis(max)),
        );
        let mut facts = vec![
            (
                "copied",
                format!(
                    "{}, {:.0} MB in {}, {:.0} MB/s",
                    of(self.status.rows, "row", "rows"),
                    self.status.bytes as f64 / 1e6,
                    time(self.copied_in),
                    self.bytes_per_second() / 1e6
                ),
            ),
            (
                "streamed",
                format!(
                    "{} transactions, {} changes, until the writes changed hands",
                    number(self.status.transactions),
                    number(self.status.changes)
                ),
            ),
            ("lag", format!("{lag}   (the last write: {})", time(self.last_write_after))),
            ("compared", self.comparisons()),
            (
                "drift",
                verdict(
                    self.divergences(),
                    format!("{} of {} rows", count(self.divergences()), count(self.compared())),
                ),
            ),
            ("acknowledged", self.writes()),
            ("lost", verdict(self.verdict.lost, of(self.verdict.lost, "write", "writes"))),
            ("browsed", self.browsing()),
            ("stale", verdict(self.tally.browsing.stale, of(self.tally.browsing.stale, "read", "reads"))),
            ("mirror", self.reads.findings()),
            ("by the target", self.reads.served()),
        ];
        facts.extend(listed("hand-overs", self.hand_overs()));
        facts.push(("latency", self.latency()));
        facts.extend(listed("errors", errors(&self.tally.errors)));
        facts.push(("took", time(self.took)));
        facts
    }

    fn comparisons(&self) -> String {
        let [under_load, mended, handed_over, at_rest] = self.verified;
        let hot = match under_load.hot + mended.hot + handed_over.hot {
            0 => String::new(),
            hot => format!(", {} too busy to compare", count(hot)),
        };
        format!(
            "{}, {} and {} rows under load{hot}, {} after it",
            count(under_load.rows_compared),
            count(mended.rows_compared),
            count(handed_over.rows_compared),
            count(at_rest.rows_compared)
        )
    }

    fn browsing(&self) -> String {
        let browsing = &self.tally.browsing;
        let latency = |share| browsing.durations.percentile(share).map_or_else(|| "?".to_owned(), time);
        format!(
            "{}, p50 {} p99 {}; {} of what its visitor had just written",
            of(browsing.reads, "read", "reads"),
            latency(0.5),
            latency(0.99),
            count(browsing.read_back)
        )
    }

    /// What each hand-over cost.
    fn hand_overs(&self) -> Vec<String> {
        let slowest = |one: &Move| one.noticed.latency(1.0).map_or_else(|| "?".to_owned(), time);
        let costs = self.moves.iter().map(|one| {
            format!(
                "{:<19}  stall {:>6}   no write acknowledged {:>6}   slowest {:>6}",
                one.what,
                millis(one.stall_ms),
                time(one.noticed.gap),
                slowest(one)
            )
        });
        costs.collect()
    }

    /// Of clients, during the hand-overs.
    fn latency(&self) -> String {
        let noticed = self.noticed();
        let latency = |share| noticed.latency(share).map_or_else(|| "?".to_owned(), time);
        format!(
            "p50 {}   p99 {}   max {}   (clients, within 1 s of a hand-over)",
            latency(0.5),
            latency(0.99),
            latency(1.0)
        )
    }

    fn writes(&self) -> String {
        let latency = |share| self.tally.durations.percentile(share).map_or_else(|| "?".to_owned(), time);
        let unknown = if self.unknown > 0 {
            format!(", {} of unknown outcome", count(self.unknown))
        } else {
            String::new()
        };
        format!(
            "{}, {:.0}/s, p50 {} p99 {}{unknown}; {} checked",
            of(self.acknowledged, "transaction", "transactions"),
            self.acknowledged as f64 / self.load_lasted.as_secs_f64().max(0.001),
            latency(0.5),
            latency(0.99),
            of(self.verdict.checked, "row", "rows")
        )
    }
}

pub(super) fn in_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// `null` if no transaction was acknowledged.
fn latency_ms(noticed: &Noticed) -> Value {
    three(|share| noticed.latency(share).map(in_ms))
}

/// Median, 99th percentile and longest, in milliseconds; `null` if nothing was measured.
pub(super) fn three(latency: impl Fn(f64) -> Option<f64>) -> Value {
    match (latency(0.5), latency(0.99), latency(1.0)) {
        (Some(p50), Some(p99), Some(max)) => json!({"p50": p50, "p99": p99, "max": max}),
        _ => Value::Null,
    }
}

/// Several values under one label.
fn listed(label: &'static str, values: Vec<String>) -> impl Iterator<Item = (&'static str, String)> {
    values.into_iter().enumerate().map(move |(at, value)| (if at == 0 { label } else { "" }, value))
}

/// What went wrong for the shop's clients, the most frequent first.
fn errors(kinds: &Errors) -> Vec<String> {
    if kinds.is_empty() {
        return vec!["none: the shop's clients noticed nothing".to_owned()];
    }
    let mut kinds: Vec<_> = kinds.iter().collect();
    kinds.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
    let more = kinds.len().saturating_sub(ERROR_KINDS_SHOWN);
    let shown = kinds.iter().take(ERROR_KINDS_SHOWN);
    let mut lines: Vec<String> = shown.map(|(kind, times)| format!("{} × {kind}", count(**times))).collect();
    if more > 0 {
        lines.push(format!("and {more} more kinds: see --json"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let verified = Verified { rows_compared: 2_000_000, divergences: 0, hot: 0 };
        Report {
            copied_in: Duration::from_secs(10),
            status: Status {
                rows: 2_000_000,
                bytes: 400_000_000,
                transactions: Some(20_000),
                changes: Some(60_000),
                latency_ms: Some([2.0, 17.0, 90.0]),
            },
            verified: [verified; 4],
            reads: ReadsMoved::example(),
            acknowledged: 20_000,
            unknown: 0,
            verdict: Verdict { checked: 31_000, ..Verdict::default() },
            elsewhere: Verdict { checked: 31_000, ..Verdict::default() },
            moves: ["rehearsed", "to the target", "back to the source", "to the target again"]
                .map(Move::example)
                .to_vec(),
            tally: Tally {
                errors: Errors::from([
                    ("told to write to the other server (SQLSTATE 25006)".to_owned(), 64),
                    ("the connection was lost".to_owned(), 2),
                ]),
                ..Tally::default()
            },
            load_lasted: Duration::from_secs(40),
            last_write_after: Duration::from_millis(4),
            left_behind: Some(Vec::new()),
            took: Duration::from_secs(80),
        }
    }

    #[test]
    fn a_report_fits_on_one_screen() {
        let text = report().text(&Narrator::new(false));
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("40 MB/s") && text.contains("500/s"), "{text}");
        assert!(text.contains("back to the source   stall  22 ms   no write acknowledged  38 ms"), "{text}");
        let (often, seldom) = (text.find("64 × told").unwrap(), text.find("2 × the connection").unwrap());
        assert!(often < seldom, "{text}");
    }

    #[test]
    fn a_report_says_of_each_hand_over_what_clients_noticed() {
        let report = report().json();
        let there = &report["hand_overs"][1];
        assert_eq!((&there["what"], &there["gap_ms"]), (&json!("to the target"), &json!(38.0)));
        assert_eq!(there["latency_ms"], json!({"p50": 1.8, "p99": 1.8, "max": 61.0}));
        assert_eq!(there["errors"]["told to write to the other server (SQLSTATE 25006)"], 16);
        assert_eq!(report["hand_over_latency_ms"]["max"], 61.0);
        assert_eq!(latency_ms(&Noticed::default()), Value::Null, "no answer is not a fast one");
    }

    #[test]
    fn only_a_kept_promise_is_clean() {
        assert!(report().is_clean());
        let mut drift = report();
        drift.verified[0].divergences = 1;
        let mut lost = report();
        lost.verdict.lost = 2;
        let mut behind = report();
        behind.elsewhere.lost = 3;
        let mut dirty = report();
        dirty.left_behind = Some(vec!["schema segue on the source".to_owned()]);
        let mut stale = report();
        stale.tally.browsing.stale = 1;
        let mut unseen = report();
        unseen.reads.mirrored.differed = 0;
        let mut unmended = report();
        unmended.reads.mirrored.mended = 0;
        let mut differing = report();
        differing.reads.mirrored.differ = 4;
        for (report, word) in [
            (stale, "1 read did not show"),
            (unseen, "was not noticed"),
            (unmended, "0 of 1 change mended"),
            (differing, "4 reads were answered differently"),
            (drift, "1 row differs"),
            (lost, "2 acknowledged writes are not there"),
            (behind, "3 acknowledged writes have not come to the source"),
            (dirty, "left behind"),
        ] {
            assert!(!report.is_clean());
            assert_eq!(report.json()["clean"], false);
            let text = report.text(&Narrator::new(false));
            assert!(text.contains("went wrong") && text.contains(word), "{text}");
        }
    }
}
