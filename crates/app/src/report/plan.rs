//! What a migration would do, as people and machines see it before anything is touched. Pure.

use super::bytes_text;
use segue_model::switch::gates::Bounds;
use segue_postgres::changes::{Change, On, Step};
use segue_postgres::preflight::{Checked, Verdict};
use serde::Serialize;
use std::fmt::Write;

/// The plan object, as `plan --json` prints it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    /// The migration.
    pub(crate) migration: String,
    /// Where the tables are, without a password.
    pub(crate) source: String,
    /// Where they go.
    pub(crate) target: String,
    /// Where journal and commands are.
    pub(crate) control: String,
    /// No check refuses.
    pub(crate) may_begin: bool,
    /// What was checked, and what was found.
    pub(crate) checks: Vec<Checked>,
    /// The tables.
    pub(crate) tables: Vec<PlannedTable>,
    /// Tables of the same schemas that do not move.
    pub(crate) left_out: Vec<String>,
    /// What it takes.
    pub(crate) estimate: Estimate,
    /// The life of the migration.
    pub(crate) steps: Vec<LifeStep>,
    /// Every statement that changes something.
    pub(crate) changes: Vec<Change>,
    /// Until when it can be taken back, and how.
    pub(crate) way_back: WayBack,
}

/// A table that moves.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PlannedTable {
    /// On the source.
    pub(crate) source: String,
    /// On the target.
    pub(crate) target: String,
    /// Rows, by the source's statistics.
    pub(crate) rows: u64,
    /// Bytes on disk without indexes.
    pub(crate) bytes: u64,
    /// Why it is copied in one piece; empty: region by region.
    pub(crate) one_region: String,
}

/// What it takes, as far as it can be known before.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Estimate {
    /// Rows, by the source's statistics.
    pub(crate) rows: u64,
    /// Bytes of the tables on disk, without indexes.
    pub(crate) bytes: u64,
    /// Bytes of their indexes.
    pub(crate) index_bytes: u64,
    /// Regions that are copied at a time.
    pub(crate) copy_workers: usize,
    /// What one connection read from the largest table, in bytes a second; 0: there was too little to tell.
    pub(crate) read_bytes_per_s: u64,
    /// The shortest time in which all of it can be read at that rate, in seconds; writing it may take longer.
    pub(crate) copy_s_min: u64,
    /// Log that the source writes in a second now, all of its databases.
    pub(crate) log_bytes_per_s: u64,
    /// Log that the source may have to keep: as much as it writes in that time, but no more than the bound.
    pub(crate) retained_log_bytes: u64,
    /// The bound of the spec, at which the copy waits for the stream.
    pub(crate) retained_log_bytes_max: u64,
    /// Room that the target's tables and indexes will take, and as much again for the log that it writes of them meanwhile.
    pub(crate) target_bytes: u64,
}

impl Estimate {
    /// Fills in what follows from what was measured.
    pub(crate) fn conclude(mut self) -> Estimate {
        let rate = self.read_bytes_per_s.saturating_mul(self.copy_workers as u64);
        self.copy_s_min = self.bytes.div_ceil(rate.max(1)) * u64::from(rate > 0);
        let written = self.log_bytes_per_s.saturating_mul(self.copy_s_min.max(1));
        self.retained_log_bytes = written.min(self.retained_log_bytes_max);
        self.target_bytes = 2 * (self.bytes + self.index_bytes);
        self
    }
}

/// A step of a migration's life.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LifeStep {
    /// What is done by whom: a command.
    pub(crate) command: &'static str,
    /// What it does.
    pub(crate) what: String,
    /// When the statements of `changes` are run that belong to it; none belong to some.
    pub(crate) step: Option<Step>,
}

/// Until when a migration can be taken back.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WayBack {
    /// Writes can go back after a switch.
    pub(crate) is_possible: bool,
    /// In words.
    pub(crate) sentence: String,
}

/// Findings of checks, and statements of one kind, that are shown without `--all`.
const SHOWN_MAX: usize = 6;
/// Names on one line that are shown without `--all`.
const NAMED_MAX: usize = 10;

/// The plan as text.
pub(crate) fn render(plan: &Plan, all: bool) -> String {
    let mut text = format!("migration {}\n  {} -> {}\n", plan.migration, plan.source, plan.target);
    if plan.control != plan.target {
        let _ = writeln!(text, "  journal and commands: {}", plan.control);
    }
    let most = if all { usize::MAX } else { SHOWN_MAX };
    checks(plan, most, &mut text);
    tables(plan, most, &mut text);
    estimate(&plan.estimate, &mut text);
    text.push_str("\nThe way\n");
    for (at, step) in plan.steps.iter().enumerate() {
        let _ = writeln!(text, "  {}. {:<29} {}", at + 1, step.command, step.what);
    }
    changes(plan, all, &mut text);
    let _ = writeln!(text, "\nThe way back\n  {}", plan.way_back.sentence);
    text.push('\n');
    text.push_str(&verdict(plan));
    text
}

/// How many findings there are of a kind.
fn count(plan: &Plan, verdict: Verdict) -> usize {
    plan.checks.iter().flat_map(|check| &check.findings).filter(|finding| finding.verdict == verdict).count()
}

fn verdict(plan: &Plan) -> String {
    let (refused, warned) = (count(plan, Verdict::Refuse), count(plan, Verdict::Warn));
    let warnings = match warned {
        0 => String::new(),
        1 => "; 1 warning".to_owned(),
        n => format!("; {n} warnings"),
    };
    if plan.may_begin {
        return format!("nothing refuses{warnings}; nothing was changed. Begin with `segue run`\n");
    }
    let things = if refused == 1 { "1 thing stands".to_owned() } else { format!("{refused} things stand") };
    format!(
        "{things} in the way{warnings}; nothing was changed. Mend what is marked `refuse`, then plan again\n"
    )
}

fn checks(plan: &Plan, most: usize, text: &mut String) {
    text.push_str("\nChecks\n");
    for (verdict, label) in [(Verdict::Refuse, "refuse"), (Verdict::Warn, "warn"), (Verdict::Pass, "note")] {
        for check in &plan.checks {
            let found: Vec<_> = check.findings.iter().filter(|f| f.verdict == verdict).collect();
            for finding in found.iter().take(most) {
                let _ = writeln!(text, "  {label:<7} {}: {}", check.check, finding.what);
                if !finding.remedy.is_empty() {
                    let place =
                        finding.side.map_or(String::new(), |side| format!("on the {}: ", side.name()));
                    let _ =
                        writeln!(text, "          {place}{}", finding.remedy.replace('\n', "\n          "));
                }
            }
            more(found.len(), most, "          ", text);
        }
    }
    let passed: Vec<&str> = plan
        .checks
        .iter()
        .filter(|check| check.verdict() == Verdict::Pass)
        .map(|check| check.check)
        .collect();
    let _ =
        writeln!(text, "  pass    {} of {} checks: {}", passed.len(), plan.checks.len(), passed.join(", "));
}

fn tables(plan: &Plan, most: usize, text: &mut String) {
    let _ = writeln!(text, "\nTables ({})", plan.tables.len());
    for table in plan.tables.iter().take(most) {
        let name = if table.source == table.target {
            table.source.clone()
        } else {
            format!("{} -> {}", table.source, table.target)
        };
        let how = if table.one_region.is_empty() {
            String::new()
        } else {
            format!("  in one piece: {}", table.one_region)
        };
        let _ = writeln!(text, "  {name:<40} {:>12} rows {:>10}{how}", table.rows, bytes_text(table.bytes));
    }
    more(plan.tables.len(), most, "  ", text);
    left_out(&plan.left_out, most.max(NAMED_MAX), text);
}

/// What a pattern has not found, or nobody has listed: it stays where it is, and is easily forgotten.
fn left_out(names: &[String], most: usize, text: &mut String) {
    let count = match names.len() {
        0 => return,
        1 => "1 table".to_owned(),
        n => format!("{n} tables"),
    };
    let _ = writeln!(
        text,
        "  left out: {count} of the same schemas: {}",
        names[..names.len().min(most)].join(", ")
    );
    more(names.len(), most, "  ", text);
}

fn estimate(estimate: &Estimate, text: &mut String) {
    let Estimate { rows, bytes, index_bytes, copy_workers, read_bytes_per_s, .. } = estimate;
    let _ = writeln!(
        text,
        "\nEstimate (by the source's statistics)\n  rows    {rows}, {}, and {} of indexes",
        bytes_text(*bytes),
        bytes_text(*index_bytes)
    );
    if *read_bytes_per_s > 0 {
        let _ = writeln!(
            text,
            "  time    {} at least: {copy_workers} connections, each reads {}/s (measured just now); the target may be slower",
            duration_text(estimate.copy_s_min),
            bytes_text(*read_bytes_per_s)
        );
    } else {
        text.push_str("  time    too few rows to measure a rate\n");
    }
    let _ = writeln!(
        text,
        "  log     the source writes {}/s now; it keeps about {} for this, and the copy waits where it would keep more than {}",
        bytes_text(estimate.log_bytes_per_s),
        bytes_text(estimate.retained_log_bytes),
        bytes_text(estimate.retained_log_bytes_max)
    );
    let _ = writeln!(
        text,
        "  disk    {} on the target: tables, indexes, and as much again for its log meanwhile",
        bytes_text(estimate.target_bytes)
    );
}

fn changes(plan: &Plan, all: bool, text: &mut String) {
    text.push_str("\nWhat is changed, and when\n");
    let steps = [
        (Step::Prepare, "at the first `segue run`"),
        (Step::Copy, "while it copies and follows"),
        (Step::Arm, "at the first `segue switch writes`, a rehearsal too"),
        (Step::Switch, "at a switch; `segue reverse` does the same with the sides exchanged"),
        (Step::Complete, "at `segue complete`"),
        (Step::Cancel, "at `segue cancel`, instead of all that"),
    ];
    for (step, when) in steps {
        let of_step: Vec<&Change> = plan.changes.iter().filter(|change| change.step == step).collect();
        if of_step.is_empty() {
            continue;
        }
        let _ = writeln!(text, "  {when}");
        if all {
            for group in of_step.chunk_by(|a, b| a.on == b.on && a.what == b.what) {
                let _ = writeln!(text, "    {:<8} {}", group[0].on.name(), group[0].what);
                for change in group {
                    let _ = writeln!(text, "      {};", change.sql.replace('\n', "\n      "));
                }
            }
            continue;
        }
        // Statements of one kind alternate with others', table by table.
        let mut kinds: Vec<(On, &str, usize)> = Vec::new();
        for change in of_step {
            match kinds.iter_mut().find(|(on, what, _)| *on == change.on && *what == change.what) {
                Some((_, _, count)) => *count += 1,
                None => kinds.push((change.on, change.what, 1)),
            }
        }
        for (on, what, count) in kinds {
            let s = if count == 1 { "" } else { "s" };
            let _ = writeln!(text, "    {:<8} {what} ({count} statement{s})", on.name());
        }
    }
    if !all {
        text.push_str("  --all shows every statement, --json too\n");
    }
}

fn more(all: usize, shown: usize, indent: &str, text: &mut String) {
    if all > shown {
        let _ = writeln!(text, "{indent}… and {} more (--all shows them)", all - shown);
    }
}

/// Seconds, to be read.
fn duration_text(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The life of a migration.
pub(crate) fn life(bounds: &Bounds) -> Vec<LifeStep> {
    let step = |command, step, what: &str| LifeStep { command, step, what: what.to_owned() };
    let watched = bounds.lag_window.max(bounds.drift_window).max(bounds.matches_asked().unwrap_or_default());
    let watched = if watched.is_zero() {
        String::new()
    } else {
        format!(
            ". The gates ask for {} of watching before (`switch: {{ gates: … }}` in the spec; docs/cli.md, Gates); --override goes \
             without, with a reason",
            duration_text(watched.as_secs())
        )
    };
    let mut life = vec![
        step(
            "segue run",
            Some(Step::Prepare),
            "makes the change stream; no table is locked for longer than a moment",
        ),
        step(
            "",
            Some(Step::Copy),
            "copies all rows in regions, while every change follows; the application goes on",
        ),
        step("segue verify", None, "compares both sides while they change; shows and mends what differs"),
    ];
    if bounds.has_router {
        life.push(step(
            "segue mirror",
            None,
            "repeats a share of the reads on the target, and compares the answers",
        ));
        life.push(step(
            "segue switch reads",
            None,
            "has the target serve a share of the reads, 1 to 100 percent",
        ));
    }
    life.extend([
        step(
            "segue switch writes --dry-run",
            Some(Step::Arm),
            &format!("rehearses the switch and undoes it; from here on there is a way back{watched}"),
        ),
        step(
            "segue switch writes",
            Some(Step::Switch),
            "makes the target the owner of the writes, within the bound of the spec, or not at all",
        ),
        step(
            "segue reverse",
            Some(Step::Switch),
            "takes the writes back to the source, as often as it is wanted",
        ),
        step(
            "segue complete",
            Some(Step::Complete),
            "gives the way back up, for good, once nobody uses the source any more",
        ),
    ]);
    life
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_follows_from_what_was_measured() {
        let measured = Estimate {
            bytes: 1_000,
            index_bytes: 500,
            copy_workers: 2,
            read_bytes_per_s: 50,
            log_bytes_per_s: 10,
            retained_log_bytes_max: 60,
            ..Estimate::default()
        };
        let estimate = measured.clone().conclude();
        assert_eq!(
            (estimate.copy_s_min, estimate.retained_log_bytes, estimate.target_bytes),
            (10, 60, 3_000)
        );
        let estimate = Estimate { read_bytes_per_s: 0, ..measured }.conclude();
        assert_eq!((estimate.copy_s_min, estimate.retained_log_bytes), (0, 10), "no rate, no time");
    }

    #[test]
    fn what_is_left_out_is_named_as_far_as_there_is_room() {
        let said = |names: &[&str], most| {
            let mut text = String::new();
            left_out(&names.iter().map(ToString::to_string).collect::<Vec<_>>(), most, &mut text);
            text
        };
        assert_eq!(said(&[], 2), "");
        assert_eq!(said(&["a.b"], 2), "  left out: 1 table of the same schemas: a.b\n");
        assert_eq!(
            said(&["a.b", "a.c", "a.d"], 2),
            "  left out: 3 tables of the same schemas: a.b, a.c\n  … and 1 more (--all shows them)\n"
        );
    }

    #[test]
    fn times_read_well() {
        let shown = [59, 61, 3_599, 7_260].map(duration_text);
        assert_eq!(shown, ["59 s", "1 min 1 s", "59 min 59 s", "2 h 1 min"]);
    }
}
