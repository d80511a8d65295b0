//! `segue switch writes` and `segue reverse`: ask the driver to hand the writes over, and show how it goes and ends.

use super::{asker, fault, order, print, print_json, unreadable};
use crate::cli::Overriding;
use crate::drive::switch::answer::{Answer, Blocked, Moved, Overridden, Progress, SwitchOrder, Undone};
use crate::exit::Exit;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_model::switch::Side;
use segue_model::switch::gates::OverrideRefused;
use serde_json::{Value, json};
use std::io::IsTerminal;

/// What is to be done, and the verb for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// The writes to the target.
    Switch,
    /// The writes back to the source.
    Reverse,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Switch => "switch",
            Verb::Reverse => "reverse",
        }
    }
}

/// What follows from a driver that died over an order, or is not waited for any longer.
const AFTER: &str = "A driver that takes over undoes what was before the hand-over and finishes what was after it; \
    `segue status` says who owns the writes, and giving the order again is harmless";

/// Hands the writes over, or rehearses it.
pub(crate) async fn run(spec: &Spec, verb: Verb, rehearse: bool, asked: &Overriding, json: bool) -> Exit {
    let order = match order(rehearse, asked) {
        Ok(order) => order,
        Err(refused) => return fault(&not_overridden(&refused), json),
    };
    match ask(spec, verb, &order, json).await {
        Ok(answer) => {
            if json {
                print_json(&json!(answer));
            } else {
                print(&render(&answer));
            }
            answer.exit()
        }
        Err(f) => fault(&f, json),
    }
}

/// Nobody goes through that gate.
pub(super) fn not_overridden(refused: &OverrideRefused) -> Fault {
    let next = "ask again without it, and mend what the gate measures";
    Fault::operator("SEGUE-OVERRIDE", refused.to_string(), next)
}

/// The order as it goes to the driver. The driver checks the overrides again.
fn order(rehearse: bool, asked: &Overriding) -> Result<SwitchOrder, OverrideRefused> {
    let reason = asked.reason.clone().unwrap_or_default();
    let overrides =
        asked.gates.iter().map(|gate| Overridden { gate: *gate, reason: reason.clone() }).collect();
    let order = SwitchOrder { rehearse, overrides };
    order.overrides(&asker())?;
    Ok(order)
}

async fn ask(spec: &Spec, verb: Verb, order: &SwitchOrder, json: bool) -> Outcome<Answer> {
    let mut steps = Steps::new(json);
    let answer = order::follow(spec, verb.name(), &json!(order), AFTER, |body| steps.show(body)).await;
    steps.end();
    serde_json::from_value(answer?).map_err(|e| unreadable(&e))
}

/// The steps on a terminal, each with a line of its own when it is done.
pub(super) struct Steps {
    is_shown: bool,
    before: Progress,
}

impl Steps {
    pub(super) fn new(json: bool) -> Steps {
        Steps { is_shown: !json && std::io::stderr().is_terminal(), before: Progress::default() }
    }

    pub(super) fn show(&mut self, body: &Value) {
        // From a driver of another version: its answer is what counts.
        let Ok(now) = serde_json::from_value::<Progress>(body.clone()) else { return };
        if self.is_shown {
            let lines: String =
                done_since(&self.before, &now).iter().map(|line| format!("{line}\n")).collect();
            eprint!("\r\x1b[K{lines}{}", under_way(&now));
        }
        self.before = now;
    }

    pub(super) fn end(&self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// A line for each step that is new in `now`.
fn done_since(before: &Progress, now: &Progress) -> Vec<String> {
    // Fewer steps than before: it was begun anew.
    let known = if now.steps.starts_with(&before.steps) { before.steps.len() } else { 0 };
    let line = |t: &crate::drive::switch::answer::StepTook| {
        format!("{:<7} {:>10}  {}", t.step.name(), took(t.took_ms), t.step.line().does)
    };
    now.steps[known..].iter().map(line).collect()
}

/// A line that is erased again must not be broken by the terminal.
const LINE_CHARS_MAX: usize = 79;

/// What happens now, and what it waits for, on one line.
fn under_way(now: &Progress) -> String {
    let why = if now.waits_for.is_empty() { String::new() } else { format!("waits for {}", now.waits_for) };
    let line = match now.doing {
        Some(step) if why.is_empty() => format!("{:<7} {:>10}  {}", step.name(), "…", step.line().does),
        Some(step) => format!("{:<7} {:>10}  {why}", step.name(), "…"),
        None => why,
    };
    match line.char_indices().nth(LINE_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

/// What the answer says to people.
pub(crate) fn render(answer: &Answer) -> String {
    match answer {
        Answer::Switched(moved) => format!(
            "the {} owns the writes now (epoch {}); no side took writes for {}\n{}{}",
            moved.owner,
            moved.epoch,
            took(moved.stall_ms),
            details(moved),
            next(moved.owner)
        ),
        Answer::Rehearsed(moved) => format!(
            "rehearsed, and undone: the {} owns the writes as before\n\
             a real switch would stall writes for about {}, as this one did\n{}{}next: `{}`\n",
            moved.owner,
            took(moved.stall_ms),
            details(moved),
            stays(moved.way_back_armed),
            if moved.owner == Side::Source { "segue switch writes" } else { "segue reverse" }
        ),
        Answer::Already(moved) => format!(
            "the {} owns the writes already (epoch {}); nothing was done\n{}",
            moved.owner,
            moved.epoch,
            next(moved.owner)
        ),
        Answer::Refused { blockers, way_back_armed } => {
            format!("{}{}", refused(blockers, "no write was moved, or kept waiting"), stays(*way_back_armed))
        }
        Answer::Undone(undone) => undone_text(undone),
    }
}

/// What an order has left behind that moved nothing.
fn stays(way_back_armed: bool) -> &'static str {
    if way_back_armed {
        "the way back was armed for this, and stays so: the target keeps log for it until `segue complete` or `segue cancel`\n"
    } else {
        ""
    }
}

/// How to go back from here, and how to finish.
fn next(owner: Side) -> &'static str {
    match owner {
        Side::Target => {
            "to go back: `segue reverse`\nto finish, and give the way back up: `segue complete`\n"
        }
        Side::Source => {
            "to move them to the target again: `segue switch writes`\nto give the migration up: `segue cancel`\n"
        }
    }
}

fn details(moved: &Moved) -> String {
    let steps: Vec<String> = moved.steps.iter().map(|t| format!("{} {}", t.step, took(t.took_ms))).collect();
    let steps = if steps.is_empty() { String::new() } else { format!("  steps: {}\n", steps.join(", ")) };
    let verdict = match moved.divergences.len() {
        0 => "none differs".to_owned(),
        n => format!("{n} of them differ:"),
    };
    let differing: String = moved.divergences.iter().map(|d| format!("    {d}\n")).collect();
    let unlike: String = moved.unlike_baseline.iter().map(|what| format!("  unusual: {what}\n")).collect();
    let unaware = |standby: &String| {
        format!(
            "  attention: {standby}, which follows the {}, is not known to have the hand-over: do not promote it before it has \
             caught up, or it takes writes again\n",
            moved.owner.other()
        )
    };
    let unaware: String = moved.standbys_without.iter().map(unaware).collect();
    format!(
        "{unlike}{unaware}{steps}  sequences set: {}; rows compared while nobody could write: {}, {verdict}\n{differing}",
        moved.sequences, moved.compared_under_fence
    )
}

/// One line for each blocker, with the next step, behind what is as it was.
pub(super) fn refused(blockers: &[Blocked], as_before: &str) -> String {
    let line = |b: &Blocked| {
        let way = if b.may_be_overridden {
            format!(" (or, with your name to it: --override {} --reason TEXT)", b.gate)
        } else {
            String::new()
        };
        format!("  {}: {}; next: {}{way}\n", b.gate, b.why, b.next)
    };
    let count = match blockers.len() {
        1 => "1 gate is red".to_owned(),
        n => format!("{n} gates are red"),
    };
    format!("refused: {count}; {as_before}\n{}", blockers.iter().map(line).collect::<String>())
}

fn undone_text(undone: &Undone) -> String {
    let holders: String =
        undone.blockers_of_lock.iter().map(|who| format!("  lock held by {who}\n")).collect();
    format!(
        "undone: the {} takes writes again, after {} without: {}\n{holders}next: {}\n",
        undone.owner,
        took(undone.stall_ms),
        undone.why,
        undone.next_step
    )
}

/// Milliseconds for people.
pub(super) fn took(ms: f64) -> String {
    match ms {
        ..100.0 => format!("{ms:.1} ms"),
        ..1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1000.0),
    }
}

#[cfg(test)]
mod tests;
