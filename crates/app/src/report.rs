//! What a migration looks like to people and machines: the status object and its picture in text.
//!
//! The object is stable: `status --json` prints it, the driver stores it every second. Rendering is pure.

pub(crate) mod plan;
mod rollback;
mod routing;
mod served;
mod throttle;

pub(crate) use rollback::RollbackState;
pub(crate) use routing::{Latency, MirrorSeat, MismatchSeat, ReadsSeat};
use segue_engine::progress::Snapshot;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::switch::gates::Gate;
use serde::{Deserialize, Serialize};
pub(crate) use served::{PoolSeat, ServedSeat, SlowSeat, StatsSeat, TimesSeat};
use std::fmt::Write;
pub(crate) use throttle::{ReasonState, ThrottleState};

/// Whether the driver makes progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum RunState {
    /// It does.
    Running,
    /// Someone paused it.
    Paused {
        /// Who, and why.
        why: String,
    },
    /// It lost a connection or a server and tries again by itself.
    Retrying {
        /// What happened.
        fault: String,
    },
    /// It needs a person.
    Failed {
        /// The fault's code; empty in reports of earlier versions.
        #[serde(default)]
        code: String,
        /// What happened.
        fault: String,
        /// What to do.
        next_step: String,
    },
    /// It was stopped.
    Stopped,
}

/// Who takes the writes, as far as the driver knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Owner {
    /// The side where the data was; also what reports from before there was a switch mean.
    #[default]
    Source,
    /// The side where it goes.
    Target,
    /// A hand-over began, and it cannot be known yet whether it happened: nobody is told to write anywhere.
    Ambiguous,
}

impl Owner {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Owner::Source => "source",
            Owner::Target => "target",
            Owner::Ambiguous => "ambiguous",
        }
    }
}

impl From<Side> for Owner {
    fn from(side: Side) -> Owner {
        match side {
            Side::Source => Owner::Source,
            Side::Target => Owner::Target,
        }
    }
}

/// The state of the log that the source keeps for the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotState {
    /// Its name.
    pub(crate) name: String,
    /// Log that the source keeps because of it.
    pub(crate) retained_bytes: u64,
    /// The bound of the spec.
    pub(crate) retained_bytes_max: u64,
    /// `reserved`, `extended`, `unreserved`, `lost`; empty before PostgreSQL 13.
    pub(crate) wal_status: String,
    /// The last of Segue's signals on the source that was applied.
    #[serde(default)]
    pub(crate) signal: u64,
}

/// What live verification has compared since the driver started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveVerification {
    /// Keys compared.
    pub(crate) compared: u64,
    /// Keys that changed too often to be compared.
    pub(crate) hot: u64,
    /// Confirmed differences.
    pub(crate) divergent: u64,
    /// Of them, those that have not been found equal since.
    pub(crate) open: u64,
}

/// The stream that comes from the side which does not own the writes: what makes it possible to go back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WayBackState {
    /// How far it is.
    pub(crate) is: WayBackIs,
    /// What it waits for, or why it was lost; empty otherwise.
    pub(crate) why: String,
    /// Bytes of that side's log that have not been applied.
    pub(crate) lag_bytes: u64,
    /// Age of the oldest change not applied.
    pub(crate) lag_ms: u64,
}

/// How far the way back is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WayBackIs {
    /// The first order to hand writes over, a rehearsal too, makes it.
    #[default]
    NotArmed,
    /// It is being made.
    Arming,
    /// It runs.
    Armed,
    /// It has ended, or could not be made.
    Lost,
}

/// A gate of the next switch, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GateState {
    /// Which.
    pub(crate) gate: Gate,
    /// It is open.
    pub(crate) green: bool,
    /// Since when it is open, or closed, in microseconds since 1970 by the control database's clock.
    pub(crate) since_us: i64,
    /// Why it is closed; empty if it is open.
    pub(crate) why: String,
    /// What to do about that.
    pub(crate) next: String,
    /// Nobody can go through it while it is closed.
    pub(crate) protects_data: bool,
    /// What it asks for, with the bounds that count; empty for one that has none.
    #[serde(default)]
    pub(crate) asks: String,
    /// Why it is open although nothing was measured for it: it is not asked for. Empty if it is.
    #[serde(default)]
    pub(crate) not_asked: String,
}

/// The status object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The migration.
    pub(crate) migration: String,
    /// Where it is in its life.
    pub(crate) stage: Stage,
    /// Who takes the writes.
    #[serde(default)]
    pub(crate) owner: Owner,
    /// Whether it makes progress.
    pub(crate) run: RunState,
    /// Where from, without password.
    pub(crate) source: String,
    /// Where to, without password.
    pub(crate) target: String,
    /// Who drives it.
    pub(crate) driver: String,
    /// The driver's fencing token.
    pub(crate) token: i64,
    /// The copy and the stream.
    pub(crate) progress: Snapshot,
    /// The slot.
    pub(crate) slot: SlotState,
    /// Live verification.
    pub(crate) live: LiveVerification,
    /// Things the operator should know.
    pub(crate) warnings: Vec<String>,
    /// The way back.
    #[serde(default)]
    pub(crate) way_back: WayBackState,
    /// The gates of the next switch.
    #[serde(default)]
    pub(crate) gates: Vec<GateState>,
    /// What is wrong with the servers, whatever Segue does.
    #[serde(default)]
    pub(crate) trouble: Vec<String>,
    /// The rollback triggers, while they are armed.
    #[serde(default)]
    pub(crate) rollback: Vec<RollbackState>,
    /// What is left to Segue of the servers.
    #[serde(default)]
    pub(crate) throttle: ThrottleState,
}

/// Rates between two looks at a migration.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    /// Rows copied a second.
    pub(crate) rows_per_s: f64,
    /// Bytes copied a second.
    pub(crate) bytes_per_s: f64,
    /// Transactions applied a second.
    pub(crate) transactions_per_s: f64,
}

impl Rates {
    /// Rates from `before` to `now`; zero without a distance in time.
    pub(crate) fn between(before: &Snapshot, now: &Snapshot) -> Rates {
        let seconds = now.running_ms.saturating_sub(before.running_ms) as f64 / 1000.0;
        if seconds <= 0.0 {
            return Rates::default();
        }
        let rows = |s: &Snapshot| s.tables.iter().map(|t| t.rows).sum::<u64>();
        let bytes = |s: &Snapshot| s.tables.iter().map(|t| t.bytes).sum::<u64>();
        let rate = |a: u64, b: u64| b.saturating_sub(a) as f64 / seconds;
        Rates {
            rows_per_s: rate(rows(before), rows(now)),
            bytes_per_s: rate(bytes(before), bytes(now)),
            transactions_per_s: rate(before.transactions, now.transactions),
        }
    }
}

/// Tables shown one by one; the rest is summed up.
const TABLES_SHOWN_MAX: usize = 12;

/// The status as lines for a screen of about 100 columns.
pub(crate) fn render(status: &Status, rates: Option<Rates>) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{}  {}  {}  owner {}",
            status.migration,
            status.stage,
            run_text(&status.run),
            status.owner.name()
        ),
        format!("  {} -> {}", status.source, status.target),
    ];
    if status.stage == Stage::Backfilling {
        copy_lines(&status.progress, rates, &mut lines);
    }
    let p = &status.progress;
    if has_stream(status.stage) {
        let [p50, p99, max] = p.latency_ms;
        let lag = format!("lag {} / {} ms", bytes_text(p.lag_bytes), p.lag_ms);
        // What is not applied is not known any more.
        let stands_still = status.owner == Owner::Target && status.way_back.is == WayBackIs::Lost;
        let lag = if stands_still { "stands still".to_owned() } else { lag };
        lines.push(format!(
            "  stream  {lag}{}  {} tx applied  commit-to-durable p50 {p50:.1} p99 {p99:.1} max {max:.1} ms",
            rates.map_or_else(String::new, |rates| format!("  {:.0} tx/s", rates.transactions_per_s)),
            p.transactions,
        ));
        lines.push(format!(
            "  {} keeps {} of log (bound {})",
            keeper(status.owner),
            bytes_text(status.slot.retained_bytes),
            bytes_text(status.slot.retained_bytes_max)
        ));
    }
    if status.live.compared > 0 {
        let live = &status.live;
        lines.push(format!(
            "  live verification  {} compared  {} divergent  {} hot",
            live.compared, live.divergent, live.hot
        ));
    }
    for wait in &p.waits {
        lines.push(format!("  {} waits {:.1} s: {}", wait.who, wait.since_ms as f64 / 1000.0, wait.reason));
    }
    lines.extend(status.throttle.lines());
    if shows_gates(status.stage) {
        lines.push(format!("  way back  {}", way_back_text(&status.way_back)));
        gate_lines(&status.gates, &mut lines);
    }
    lines.extend(status.rollback.iter().map(RollbackState::line));
    lines.extend(status.trouble.iter().map(|what| format!("  trouble: {what}")));
    lines.extend(status.warnings.iter().map(|w| format!("  warning: {w}")));
    if let RunState::Failed { code, fault, next_step } = &status.run {
        let code = if code.is_empty() { String::new() } else { format!(" [{code}]") };
        lines.push(format!("  fault: {fault}{code}"));
        lines.push(format!("  next: {next_step}"));
    }
    lines
}

/// Whether changes stream in this stage. After a switch they do as before, from the target to the source.
fn has_stream(stage: Stage) -> bool {
    match stage {
        Stage::Backfilling | Stage::Following | Stage::Switched => true,
        Stage::Planned | Stage::Preparing | Stage::Completed | Stage::Cancelled => false,
    }
}

/// The side whose log the stream is read from: the owner's.
fn keeper(owner: Owner) -> &'static str {
    match owner {
        Owner::Source | Owner::Ambiguous => "source",
        Owner::Target => "target",
    }
}

/// Whether there is a switch to be thought of.
fn shows_gates(stage: Stage) -> bool {
    match stage {
        Stage::Following | Stage::Switched => true,
        Stage::Planned | Stage::Preparing | Stage::Backfilling | Stage::Completed | Stage::Cancelled => false,
    }
}

fn way_back_text(way_back: &WayBackState) -> String {
    match way_back.is {
        WayBackIs::NotArmed => {
            "not armed; `segue switch writes`, with or without --dry-run, arms it".to_owned()
        }
        WayBackIs::Arming => format!("being armed {}", way_back.why).trim_end().to_owned(),
        WayBackIs::Armed => {
            format!("armed  lag {} / {} ms", bytes_text(way_back.lag_bytes), way_back.lag_ms)
        }
        WayBackIs::Lost => format!("LOST: {}", way_back.why),
    }
}

fn gate_lines(gates: &[GateState], lines: &mut Vec<String>) {
    if gates.is_empty() {
        return;
    }
    let green = gates.iter().filter(|gate| gate.green).count();
    lines.push(format!("  gates  {green} of {} green", gates.len()));
    for gate in gates.iter().filter(|gate| !gate.green) {
        lines.push(format!("  gate {:<17} red: {}; {}", gate.gate.line().name, gate.why, gate.next));
    }
    for gate in gates.iter().filter(|gate| !gate.not_asked.is_empty()) {
        lines.push(format!("  gate {:<17} not asked for: {}", gate.gate.line().name, gate.not_asked));
    }
}

fn run_text(run: &RunState) -> String {
    match run {
        RunState::Running => "running".to_owned(),
        RunState::Paused { why } => format!("paused ({why})"),
        RunState::Retrying { fault } => format!("retrying ({fault})"),
        RunState::Failed { .. } => "failed".to_owned(),
        RunState::Stopped => "stopped".to_owned(),
    }
}

fn copy_lines(progress: &Snapshot, rates: Option<Rates>, lines: &mut Vec<String>) {
    let busy = |t: &&segue_engine::progress::TableProgress| !t.complete;
    let done = progress.tables.iter().filter(|t| t.complete).count();
    let rows: u64 = progress.tables.iter().map(|t| t.rows).sum();
    let promised: u64 = progress.tables.iter().map(|t| t.rows_estimated.max(t.rows)).sum();
    // One look knows no rate.
    let pace = rates.map_or_else(String::new, |rates| {
        let left = (promised - rows) as f64 / rates.rows_per_s;
        let left =
            if left.is_finite() && left > 0.0 { format!("  about {left:.0} s left") } else { String::new() };
        format!("  {:.0} rows/s  {}/s{left}", rates.rows_per_s, bytes_text(rates.bytes_per_s as u64))
    });
    lines.push(format!(
        "  copy    {done} of {} tables  {rows} of about {promised} rows{pace}",
        progress.tables.len(),
    ));
    for t in progress.tables.iter().filter(busy).take(TABLES_SHOWN_MAX) {
        let share =
            if t.rows_estimated == 0 { 0.0 } else { (t.rows as f64 / t.rows_estimated as f64).min(1.0) };
        let mut bar = String::new();
        for i in 0..20 {
            let _ = write!(bar, "{}", if f64::from(i) < share * 20.0 { '#' } else { '.' });
        }
        lines.push(format!(
            "    {:<32} {bar} {:>3.0} %  {} rows  {}",
            t.table,
            share * 100.0,
            t.rows,
            bytes_text(t.bytes)
        ));
    }
    let hidden = progress.tables.iter().filter(busy).count().saturating_sub(TABLES_SHOWN_MAX);
    if hidden > 0 {
        lines.push(format!("    and {hidden} more"));
    }
}

/// Bytes for people.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
pub(crate) mod tests;
