//! The demo's end: one screen for people, or one object for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::load::{Tally, Verdict};
use super::narrator::{Narrator, Tone, count, millis, of, time};
use super::segue::{Status, Verified};

/// A time that the writes changed hands.
#[derive(Debug, Clone)]
pub(super) struct Move {
    /// In which direction, in words.
    pub(super) what: String,
    /// How long no side took writes, by Segue's account.
    pub(super) stall_ms: f64,
    /// The longest time around it in which no client's write was acknowledged.
    pub(super) gap: Duration,
}

/// All that the demo has measured.
#[derive(Debug)]
pub(super) struct Report {
    /// From the start of `run` until the target followed.
    pub(super) copied_in: Duration,
    pub(super) status: Status,
    /// While the load went on, and after it.
    pub(super) verified: [Verified; 2],
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
    pub(super) verdict: Verdict,
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
            && self.verdict.lost == 0
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
            verified: [verified; 2],
            acknowledged: 14_974,
            unknown: 0,
            verdict: Verdict { checked: 12_798, ..Verdict::default() },
            moves: vec![Move {
                what: "to the target".into(),
                stall_ms: 22.1,
                gap: Duration::from_millis(38),
            }],
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
            },
            "hand_overs": self.moves.iter().map(|m| json!({
                "what": m.what, "stall_ms": m.stall_ms, "gap_ms": m.gap.as_secs_f64() * 1_000.0,
            })).collect::<Vec<_>>(),
            "hand_over_latency_ms": ([0.5, 0.99, 1.0].map(|share| {
                self.tally.moving.percentile(share).map(|latency| latency.as_secs_f64() * 1_000.0)
            })),
            "left_behind": self.left_behind,
            "seconds": self.took.as_secs_f64(),
        })
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
        for lost in &self.verdict.shown {
            lines.push(format!("   {}", narrator.paint(Tone::Bad, &lost.to_string())));
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
        let [under_load, at_rest] = self.verified;
        let hot = if under_load.hot > 0 {
            format!(", {} too busy to compare", count(under_load.hot))
        } else {
            String::new()
        };
        vec![
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
                    "{} transactions, {} changes",
                    number(self.status.transactions),
                    number(self.status.changes)
                ),
            ),
            ("lag", format!("{lag}   (the last write: {})", time(self.last_write_after))),
            (
                "compared",
                format!(
                    "{} under load{hot}, {} after it",
                    of(under_load.rows_compared, "row", "rows"),
                    count(at_rest.rows_compared)
                ),
            ),
            (
                "drift",
                verdict(
                    self.divergences(),
                    format!("{} of {} rows", count(self.divergences()), count(self.compared())),
                ),
            ),
            ("hand-overs", self.hand_overs()),
            ("acknowledged", self.writes()),
            ("lost", verdict(self.verdict.lost, of(self.verdict.lost, "write", "writes"))),
            ("errors", errors(&self.tally.errors)),
            ("took", time(self.took)),
        ]
    }

    /// What clients noticed of the writes' changing hands.
    fn hand_overs(&self) -> String {
        let longest = self.moves.iter().map(|m| m.gap).max().unwrap_or_default();
        let latency = |share| self.tally.moving.percentile(share).map_or_else(|| "?".to_owned(), time);
        format!(
            "{}: at most {} without a write; latency p50 {} p99 {} max {}",
            self.moves.len(),
            time(longest),
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

/// What the shop's clients noticed of the migration.
fn errors(kinds: &BTreeMap<String, u64>) -> String {
    if kinds.is_empty() {
        return "none: the shop's clients noticed nothing".to_owned();
    }
    let all: Vec<String> = kinds.iter().map(|(kind, times)| format!("{} × {kind}", count(*times))).collect();
    all.join("; ")
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
            verified: [verified; 2],
            acknowledged: 20_000,
            unknown: 0,
            verdict: Verdict { checked: 31_000, ..Verdict::default() },
            moves: vec![Move {
                what: "to the target".into(),
                stall_ms: 22.1,
                gap: Duration::from_millis(38),
            }],
            tally: Tally::default(),
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
    }

    #[test]
    fn only_a_kept_promise_is_clean() {
        assert!(report().is_clean());
        let mut drift = report();
        drift.verified[0].divergences = 1;
        let mut lost = report();
        lost.verdict.lost = 2;
        let mut dirty = report();
        dirty.left_behind = Some(vec!["schema segue on the source".to_owned()]);
        for (report, word) in [(drift, "1 row differs"), (lost, "2 acknowledged"), (dirty, "left behind")] {
            assert!(!report.is_clean());
            assert_eq!(report.json()["clean"], false);
            let text = report.text(&Narrator::new(false));
            assert!(text.contains("went wrong") && text.contains(word), "{text}");
        }
    }
}
