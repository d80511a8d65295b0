//! What is left to Segue of servers that others use, and why, as an object and as lines.

use super::bytes_text;
use segue_model::throttle::{Reason, Signal};
use serde::{Deserialize, Serialize};

/// What is left to Segue, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ThrottleState {
    /// Automatic limits count.
    pub(crate) automatic: bool,
    /// The operator's limit of workers.
    pub(crate) workers_max: Option<u64>,
    /// The operator's limit of bytes a second.
    pub(crate) bytes_per_s_max: Option<u64>,
    /// What is left to the copy by automatic limits …
    pub(crate) backfill_percent: u8,
    /// … to comparisons …
    pub(crate) verify_percent: u8,
    /// … and to the stream.
    pub(crate) stream_percent: u8,
    /// Signals that are on.
    pub(crate) reasons: Vec<ReasonState>,
    /// Signals that are not shown to Segue's role.
    pub(crate) unwatched: Vec<String>,
}

impl Default for ThrottleState {
    fn default() -> ThrottleState {
        ThrottleState {
            automatic: true,
            workers_max: None,
            bytes_per_s_max: None,
            backfill_percent: 100,
            verify_percent: 100,
            stream_percent: 100,
            reasons: Vec::new(),
            unwatched: Vec::new(),
        }
    }
}

/// A signal that is on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReasonState {
    /// Which.
    pub(crate) signal: Signal,
    /// Where it is measured.
    pub(crate) on: String,
    /// Its last value.
    pub(crate) value: Option<f64>,
    /// How far it may go.
    pub(crate) limit: f64,
    /// For how long it has been on, in milliseconds.
    pub(crate) for_ms: u64,
    /// It is beyond its limit now.
    pub(crate) exceeded: bool,
    /// Why it cannot be measured; empty if it can.
    pub(crate) missing: String,
    /// All of it in words.
    pub(crate) text: String,
}

impl ReasonState {
    /// As people see it.
    pub(crate) fn of(reason: &Reason) -> ReasonState {
        ReasonState {
            signal: reason.watched.signal,
            on: reason.watched.place(),
            value: reason.value,
            limit: reason.bound.number(),
            for_ms: u64::try_from(reason.lasts.as_millis()).unwrap_or(u64::MAX),
            exceeded: reason.is_beyond,
            missing: reason.missing.clone().unwrap_or_default(),
            text: reason.to_string(),
        }
    }
}

impl ThrottleState {
    /// For people; nothing if nothing yields.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let shares = [self.backfill_percent, self.verify_percent, self.stream_percent];
        if shares != [100; 3] {
            let [backfill, verify, stream] = shares;
            let note = match (self.reasons.is_empty(), backfill) {
                (true, _) => "; coming back step by step",
                (false, 0) => "; `segue throttle --off` goes on whoever else needs the servers",
                (false, _) => "",
            };
            lines.push(format!(
                "  throttle  copy at {backfill} %, comparisons at {verify} %, stream at {stream} %{note}"
            ));
        }
        lines.extend(self.reasons.iter().map(|reason| format!("  throttle  {}", reason.text)));
        let workers = self.workers_max.map(|workers| format!("{workers} worker(s)"));
        let rate = self.bytes_per_s_max.map(|bytes| format!("{}/s", bytes_text(bytes)));
        let ordered: Vec<String> = workers.into_iter().chain(rate).collect();
        if !ordered.is_empty() {
            lines.push(format!("  throttle  by order at most {}", ordered.join(" and ")));
        }
        if !self.automatic {
            lines.push("  throttle  automatic limits are off until `segue throttle --auto`".to_owned());
        }
        lines.extend(self.unwatched.iter().map(|what| format!("  throttle  {what}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::switch::Side;
    use segue_model::throttle::{Bound, Watched};
    use std::time::Duration;

    #[test]
    fn what_yields_says_why_since_when_and_by_how_much() {
        assert!(ThrottleState::default().lines().is_empty());
        let reason = Reason {
            watched: Watched {
                signal: Signal::ReplicaLag,
                side: Some(Side::Source),
                name: "replica-2".into(),
            },
            value: Some(1_800.0),
            bound: Bound::From(1_000.0),
            lasts: Duration::from_millis(14_300),
            missing: None,
            is_beyond: true,
        };
        let state = ThrottleState {
            backfill_percent: 13,
            reasons: vec![ReasonState::of(&reason)],
            workers_max: Some(2),
            bytes_per_s_max: Some(20 << 20),
            ..ThrottleState::default()
        };
        assert_eq!(
            state.lines(),
            [
                "  throttle  copy at 13 %, comparisons at 100 %, stream at 100 %",
                "  throttle  replica_lag 1.8 s >= 1 s on replica-2 (source) for 14 s",
                "  throttle  by order at most 2 worker(s) and 20.0 MiB/s",
            ]
        );
        let stopped = ThrottleState { backfill_percent: 0, ..state.clone() };
        assert!(
            stopped.lines()[0].ends_with("; `segue throttle --off` goes on whoever else needs the servers")
        );
        let off = ThrottleState { automatic: false, ..ThrottleState::default() };
        assert_eq!(off.lines(), ["  throttle  automatic limits are off until `segue throttle --auto`"]);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<ThrottleState>(&text).unwrap(), state);
    }
}
