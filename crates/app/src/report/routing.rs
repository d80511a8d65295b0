//! What a router says of reads, as it is stored with its seat: what `status` shows, and what the gate `mirror` is judged by.

use serde::{Deserialize, Serialize};

/// Mismatches that a screen shows.
const SHOWN_MAX: usize = 5;

/// What became of the reads that the rules give to the target, since the router began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ReadsSeat {
    /// The share that it goes by, in percent.
    pub(crate) share_percent: u8,
    /// Tenants of which it knows a rule.
    pub(crate) tenants: usize,
    /// The follower is asked for nothing.
    pub(crate) contained: bool,
    /// Transactions that the follower was asked to serve.
    pub(crate) served: u64,
    /// Reads that went to the owner, as the follower did not show yet what their session had seen.
    pub(crate) too_early: u64,
    /// Reads that went to the owner, as the follower had failed before.
    pub(crate) not_admitted: u64,
    /// Times that the follower did not answer, or not in time.
    pub(crate) failed: u64,
    /// Reads that the owner answered after the follower did not.
    pub(crate) repeated: u64,
    /// `closed` (reads go to the follower), `open` or `half-open`.
    pub(crate) breaker: String,
    /// How often it has opened.
    pub(crate) opened: u64,
    /// SELECTs that the source has answered, whether or not they could be moved.
    pub(crate) selects_source: u64,
    /// Those of the target.
    pub(crate) selects_target: u64,
}

/// What comparing reads has come to, since it was turned on or the router began, whichever was later.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MirrorSeat {
    /// The share that it goes by, in percent.
    pub(crate) percent: u8,
    /// Since when, in microseconds since 1970; 0 while it is off.
    pub(crate) since_us: i64,
    /// Answers of both sides that were held against each other.
    pub(crate) compared: u64,
    /// Of them, equal ones.
    pub(crate) equal: u64,
    /// Of them, different ones, again and again.
    pub(crate) mismatched: u64,
    /// Reads that did not answer alike twice on the same side.
    pub(crate) noise: u64,
    /// Reads that were not compared: the follower did not catch up in time.
    pub(crate) stale: u64,
    /// Reads that could not be run on the other side.
    pub(crate) failed: u64,
    /// Reads that there was no room for.
    pub(crate) dropped: u64,
    /// What the source took for compared reads, since the router began.
    pub(crate) source_ms: Latency,
    /// What the target took for them.
    pub(crate) target_ms: Latency,
    /// Statements that differ, the most frequent first; as many as there is room for.
    pub(crate) mismatches: Vec<MismatchSeat>,
}

/// Times, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half of them took no longer.
    pub(crate) p50: f64,
    /// All but one in a hundred took no longer.
    pub(crate) p99: f64,
    /// The longest.
    pub(crate) max: f64,
}

/// Statements of one shape that the sides answer differently.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MismatchSeat {
    /// The statement without its constants.
    pub(crate) statement: String,
    /// How often.
    pub(crate) count: u64,
    /// In what the answers differ.
    pub(crate) why: String,
    /// What to do about it.
    pub(crate) next: String,
}

impl ReadsSeat {
    /// In one line, if there is anything to say.
    pub(crate) fn line(&self) -> Option<String> {
        if self.share_percent == 0 && self.tenants == 0 && self.served == 0 {
            return None;
        }
        let ReadsSeat { served, too_early, not_admitted, failed, repeated, breaker, opened, .. } = self;
        let contained = if self.contained { "; contained: every read goes to the owner" } else { "" };
        Some(format!(
            "    reads  {served} to the follower  {too_early} too early  {repeated} repeated on the owner  {failed} failed  \
             breaker {breaker} (opened {opened} times, {not_admitted} kept from it){contained}"
        ))
    }
}

impl MirrorSeat {
    /// As lines, if there is anything to say.
    pub(crate) fn lines(&self) -> Vec<String> {
        if self.percent == 0 && self.compared == 0 {
            return Vec::new();
        }
        let MirrorSeat { percent, compared, equal, mismatched, noise, stale, failed, dropped, .. } = self;
        let took = |times: &Latency| format!("p50 {:.1} p99 {:.1} ms", times.p50, times.p99);
        let nothing = if *compared == 0 { " (nothing was compared)" } else { "" };
        let mut lines = vec![format!(
            "    mirror {percent} %  {compared} compared{nothing}  {equal} equal  {mismatched} differ  {noise} noise  \
             {stale} stale  {failed} failed  {dropped} dropped  source {}  target {}",
            took(&self.source_ms),
            took(&self.target_ms)
        )];
        for mismatch in self.mismatches.iter().take(SHOWN_MAX) {
            let MismatchSeat { statement, count, why, next } = mismatch;
            lines.push(format!("      differs {count} times: {statement}"));
            lines.push(format!("        {why}; next: {next}"));
        }
        let hidden = self.mismatches.len().saturating_sub(SHOWN_MAX);
        if hidden > 0 {
            lines.push(format!("      and {hidden} more statements; `segue status --json` lists them"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_that_serves_no_reads_says_nothing_of_them() {
        assert_eq!(ReadsSeat::default().line(), None);
        assert!(MirrorSeat::default().lines().is_empty());
        let on = MirrorSeat { percent: 5, ..MirrorSeat::default() };
        assert!(on.lines()[0].contains("nothing was compared"), "{:?}", on.lines());
    }

    #[test]
    fn the_worst_statements_are_shown_with_their_explanation_and_the_next_step_and_no_more_than_five() {
        let mismatch = |n: u64| MismatchSeat {
            statement: format!("SELECT {n}"),
            count: 10 - n,
            why: "rows missing (1)".into(),
            next: "`segue verify`".into(),
        };
        let mirror = MirrorSeat {
            percent: 100,
            compared: 10,
            mismatched: 9,
            mismatches: (0..7).map(mismatch).collect(),
            ..MirrorSeat::default()
        };
        let text = mirror.lines().join("\n");
        assert!(
            text.contains("differs 10 times: SELECT 0\n        rows missing (1); next: `segue verify`"),
            "{text}"
        );
        assert!(!text.contains("SELECT 5") && text.contains("and 2 more statements"), "{text}");
    }

    #[test]
    fn what_a_router_of_another_version_says_is_read_as_far_as_it_goes() {
        let older: ReadsSeat = serde_json::from_str(r#"{"served": 3, "later": true}"#).unwrap();
        assert_eq!(older, ReadsSeat { served: 3, ..ReadsSeat::default() });
    }
}
