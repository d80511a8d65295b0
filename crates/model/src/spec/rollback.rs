//! The section `rollback`: what takes a switch back, or alerts, when it is measured after the switch.

use super::bounds;
use super::problem::{Place, Problems};
use super::raw::{RawRollback, RawTrigger};
use super::read::{At, Number};
use crate::switch::rollback::{Limit, Rule};
use std::collections::HashMap;
use std::time::Duration;

const WATCH_MS: u64 = 3_600_000;
const SAMPLES: u64 = 3;
const EVERY_MS: u64 = 5_000;

/// What takes a switch back, or alerts. By default nothing does.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Rollback {
    /// How long after a switch the triggers are armed.
    pub watch: Duration,
    /// The triggers; no two have the same name.
    pub triggers: Vec<RollbackTrigger>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RollbackTrigger {
    /// What people call it.
    pub name: String,
    /// What is measured.
    pub measure: Measure,
    /// How often.
    pub every: Duration,
    /// When it trips, and what it does.
    pub rule: Rule,
}

/// What a trigger measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measure {
    /// Divergent rows among those compared since the switch, in parts per million.
    Drift,
    /// A query that returns one number.
    Query {
        /// The statement.
        sql: String,
        /// Which database is asked.
        on: Database,
    },
}

/// One of the databases that a spec names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// Where the tables were at first.
    Source,
    /// Where they go.
    Target,
    /// Where the journal is.
    Control,
}

impl Database {
    pub(crate) const ALL: [Database; 3] = [Database::Source, Database::Target, Database::Control];

    /// As a spec spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Database::Source => "source",
            Database::Target => "target",
            Database::Control => "control",
        }
    }
}

/// Checks the section. Where it adds problems, the spec is refused, whatever it returns.
pub(super) fn validate(raw: RawRollback, problems: &mut Problems<'_>) -> Rollback {
    let watch_ms = bounds::ROLLBACK_WATCH.settle(raw.watch_ms, WATCH_MS, problems);
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut triggers = Vec::new();
    if let Some(list) = raw.triggers {
        if list.value.is_empty() {
            let help = "leave `rollback` out, or add a trigger";
            problems.add_with_help(list.key_place, "`triggers` names no trigger", help);
        }
        for At { value, place, .. } in list.value {
            let Some((trigger, place)) = trigger(value, place, problems) else { continue };
            if let Some(first) = names.get(&trigger.name) {
                let message = format!("two triggers are called `{}`", trigger.name);
                problems.add_with_help(place, message, format!("the other is on line {first}"));
            }
            names.insert(trigger.name.clone(), place.line);
            triggers.push(trigger);
        }
    }
    Rollback { watch: Duration::from_millis(watch_ms), triggers }
}

/// A trigger, and the place of what it is called by.
fn trigger(raw: RawTrigger, place: Place, problems: &mut Problems<'_>) -> Option<(RollbackTrigger, Place)> {
    let samples = bounds::ROLLBACK_SAMPLES.settle(raw.r#for, SAMPLES, problems);
    let every_ms = bounds::ROLLBACK_EVERY.settle(raw.every_ms, EVERY_MS, problems);
    let limit = limit(&raw, place, problems);
    let name_place = raw.name.as_ref().map_or(place, |name| name.place);
    if let Some(name) = raw.name.as_ref().filter(|name| name.value.trim().is_empty()) {
        problems.add(name.place, "a trigger's name cannot be empty");
    }
    let drift = raw.drift_ppm_above;
    let (measure, default) = match (raw.query, drift) {
        (Some(query), _) => {
            if query.value.trim().is_empty() {
                problems.add(query.place, "a trigger's query cannot be empty");
            }
            if raw.name.is_none() {
                let message = "a trigger with a `query` lacks `name`";
                problems.add_with_help(
                    query.key_place,
                    message,
                    "say what it measures: `name: checkout errors`",
                );
            }
            let on = raw.on.map_or(Database::Target, |on| on.value);
            (Measure::Query { sql: query.value, on }, String::new())
        }
        (None, drift) => {
            if let Some(on) = raw.on {
                problems.add_with_help(on.key_place, "`on` belongs to a `query`", "leave it out");
            }
            let ppm = drift.and_then(|ppm| ppm.value.0).unwrap_or_default();
            (Measure::Drift, format!("drift above {ppm} ppm"))
        }
    };
    let name = raw.name.map_or(default, |name| name.value.trim().to_owned());
    let rule = Rule { limit: limit?, samples: u32::try_from(samples).ok()?, then: raw.then?.value };
    Some((RollbackTrigger { name, measure, every: Duration::from_millis(every_ms), rule }, name_place))
}

/// The one limit that a trigger has.
fn limit(raw: &RawTrigger, place: Place, problems: &mut Problems<'_>) -> Option<Limit> {
    match (&raw.drift_ppm_above, &raw.query) {
        (Some(drift), Some(_)) => {
            let message = "a trigger measures either drift or a query";
            problems.add_with_help(drift.key_place, message, "make two of it");
            None
        }
        (None, None) => {
            let message = "a trigger lacks what it measures";
            problems.add_with_help(
                place,
                message,
                "add `drift_ppm_above`, or `query` with `above` or `below`",
            );
            None
        }
        (Some(drift), None) => {
            if let Some(other) = raw.above.as_ref().or(raw.below.as_ref()) {
                let message = "`above` and `below` belong to a `query`";
                problems.add_with_help(other.key_place, message, "`drift_ppm_above` is the limit already");
            }
            if drift.value.0.is_some_and(|ppm| ppm < 0.0) {
                problems.add(drift.place, "`drift_ppm_above` cannot be below 0");
            }
            drift.value.0.map(Limit::Above)
        }
        (None, Some(query)) => query_limit("a trigger", query.key_place, raw.above, raw.below, problems),
    }
}

/// The one limit of a number that a statement returns; `whose` it is.
pub(super) fn query_limit(
    whose: &str,
    place: Place,
    above: Option<At<Number>>,
    below: Option<At<Number>>,
    problems: &mut Problems<'_>,
) -> Option<Limit> {
    match (above, below) {
        (Some(above), None) => above.value.0.map(Limit::Above),
        (None, Some(below)) => below.value.0.map(Limit::Below),
        (Some(_), Some(below)) => {
            let message = format!("{whose} has `above` or `below`, not both");
            problems.add_with_help(below.key_place, message, "make two of it");
            None
        }
        (None, None) => {
            let message = format!("{whose} with a `query` lacks a limit");
            problems.add_with_help(place, message, "add `above: NUMBER` or `below: NUMBER`");
            None
        }
    }
}
