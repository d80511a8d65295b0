//! What `segue run` shows: a live display on a terminal, plain lines elsewhere, objects with `--json`.

use crate::commands::{complain, fault_object};
use crate::report::{Rates, ReasonState, Status, render};
use crate::terminal::{columns, erase, rows_of};
use segue_engine::fault::Fault;
use segue_model::stage::Stage;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Without a terminal a line is printed this often, and whenever the stage, the owner or the run state changes.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// The display.
pub(crate) struct Screen {
    manner: Manner,
    state: Mutex<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Live,
    Lines,
    Json,
}

#[derive(Default)]
struct State {
    drawn: usize,
    last: Option<Status>,
    printed: Option<Instant>,
}

impl Screen {
    /// A display fit for standard output.
    pub(crate) fn new(json: bool) -> Screen {
        let manner = match (json, std::io::stdout().is_terminal()) {
            (true, _) => Manner::Json,
            (false, true) => Manner::Live,
            (false, false) => Manner::Lines,
        };
        Screen { manner, state: Mutex::default() }
    }

    /// Says something that stays.
    pub(crate) fn say(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match self.manner {
            Manner::Json => print(&format!("{}\n", message(text))),
            Manner::Lines => print(&format!("segue: {text}\n")),
            Manner::Live => {
                print(&format!("{}{text}\n", erase(state.drawn)));
                state.drawn = 0;
            }
        }
    }

    /// Shows a fault.
    pub(crate) fn fault(&self, fault: &Fault) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.drawn = 0;
        if self.manner == Manner::Json {
            print(&format!("{}\n", fault_object(fault)));
        } else {
            complain(&format!("segue: {fault}\n"));
        }
    }

    /// Shows the status.
    pub(crate) fn show(&self, status: &Status) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Each owner's stream counts for itself.
        let same = state.last.as_ref().filter(|last| last.owner == status.owner);
        let rates = same.map(|last| Rates::between(&last.progress, &status.progress));
        let changed = state
            .last
            .as_ref()
            .is_none_or(|l| (l.stage, l.owner, &l.run) != (status.stage, status.owner, &status.run));
        let due = state.printed.is_none_or(|at| at.elapsed() >= LINE_PAUSE) || changed;
        match self.manner {
            Manner::Live => {
                let lines = render(status, rates);
                print(&format!("{}{}\n", erase(state.drawn), lines.join("\n")));
                state.drawn = rows_of(&lines, columns());
                state.last = Some(status.clone());
            }
            Manner::Lines if due => {
                print(&lines(status, state.last.as_ref(), rates.unwrap_or_default()));
                state.printed = Some(Instant::now());
                state.last = Some(status.clone());
            }
            Manner::Json if due => {
                print(&format!("{}\n", serde_json::json!(status)));
                state.printed = Some(Instant::now());
                state.last = Some(status.clone());
            }
            Manner::Lines | Manner::Json => {}
        }
    }
}

/// Something that is said, as an object.
pub(crate) fn message(text: &str) -> Value {
    serde_json::json!({ "message": text })
}

/// What is new among the warnings, a line each, and one line that says all the rest.
fn lines(status: &Status, last: Option<&Status>, rates: Rates) -> String {
    let is_new = |warning: &&String| last.is_none_or(|last| !last.warnings.contains(*warning));
    let new = status.warnings.iter().filter(is_new);
    let said: String = new.map(|warning| format!("segue: warning: {warning}\n")).collect();
    format!("{said}{}\n", line(status, rates))
}

fn line(status: &Status, rates: Rates) -> String {
    let p = &status.progress;
    let mut text = format!("segue: {} {}  owner {}", status.migration, status.stage, status.owner.name());
    // Later everything is copied, and nobody counts it any more.
    if matches!(status.stage, Stage::Preparing | Stage::Backfilling) {
        let rows: u64 = p.tables.iter().map(|t| t.rows).sum();
        let done = p.tables.iter().filter(|t| t.complete).count();
        let (all, rate) = (p.tables.len(), rates.rows_per_s);
        text = format!("{text}  tables {done}/{all}  rows {rows} ({rate:.0}/s)");
    }
    text = format!(
        "{text}  tx {} ({:.0}/s)  lag {} B {} ms",
        p.transactions, rates.transactions_per_s, p.lag_bytes, p.lag_ms,
    );
    for wait in &p.waits {
        text = format!("{text}  [{} waits: {}]", wait.who, wait.reason);
    }
    // What the copy waits for is said already, with the value of then.
    let is_said = |reason: &ReasonState| {
        let signal = reason.text.split(' ').next().unwrap_or_default();
        p.waits
            .iter()
            .any(|w| w.who == "throttle" && w.reason.starts_with(signal) && w.reason.contains(&reason.on))
    };
    for reason in status.throttle.reasons.iter().filter(|reason| !is_said(reason)) {
        text = format!("{text}  [throttle: {}]", reason.text);
    }
    match status.warnings.len() {
        0 => text,
        1 => format!("{text}  [1 warning: `segue status`]"),
        n => format!("{text}  [{n} warnings: `segue status`]"),
    }
}

fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody reads any more: going on with the migration matters more than the display.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::status;
    use segue_engine::progress::Wait;
    use segue_model::throttle::Signal;

    #[test]
    fn a_warning_is_said_in_full_once_and_counted_from_then_on() {
        let first = status();
        let said = lines(&first, None, Rates::default());
        assert!(said.starts_with("segue: warning: look out\nsegue: m backfilling"), "{said}");
        let mut next = status();
        let said = lines(&next, Some(&first), Rates::default());
        assert!(said.starts_with("segue: m ") && said.ends_with("  [1 warning: `segue status`]\n"), "{said}");
        next.warnings.push("and there".into());
        let said = lines(&next, Some(&first), Rates::default());
        assert!(
            said.starts_with("segue: warning: and there\nsegue: m ") && said.contains("[2 warnings"),
            "{said}"
        );
    }

    #[test]
    fn what_is_copied_is_told_while_it_is_copied() {
        let copying = lines(&status(), None, Rates::default());
        assert!(copying.contains("  tables "), "{copying}");
        let following = Status { stage: Stage::Following, ..status() };
        let following = lines(&following, None, Rates::default());
        assert!(following.contains(" following ") && !following.contains("tables"), "{following}");
    }

    #[test]
    fn what_the_copy_waits_for_is_said_once() {
        let mut status = status();
        let reason = |signal, text: &str| ReasonState {
            signal,
            on: "replica (source)".into(),
            value: None,
            limit: 1.0,
            for_ms: 0,
            exceeded: true,
            missing: String::new(),
            text: text.into(),
        };
        let (lag, locks) = ("replica_lag 3 s on replica (source)", "lock_waits 9 on replica (source)");
        status.throttle.reasons = vec![reason(Signal::ReplicaLag, lag), reason(Signal::LockWaits, locks)];
        let both = lines(&status, None, Rates::default());
        assert!(both.contains(&format!("[throttle: {lag}]  [throttle: {locks}]")), "{both}");
        // As it was a moment before.
        let before = "replica_lag 2 s on replica (source)";
        status.progress.waits = vec![Wait { who: "throttle".into(), reason: before.into(), since_ms: 0 }];
        let once = lines(&status, None, Rates::default());
        assert!(once.contains(&format!("[throttle waits: {before}]  [throttle: {locks}]")), "{once}");
        assert!(!once.contains(lag), "{once}");
    }
}
