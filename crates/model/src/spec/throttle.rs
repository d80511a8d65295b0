//! The section `throttle`: how far the servers may be loaded before Segue yields by itself.

use super::bounds::{self, ThrottleDefaults};
use super::problem::{Place, Problems};
use super::raw::{RawThrottle, RawThrottleQuery};
use super::rollback::{Database, query_limit};
use crate::switch::rollback::Limit;
use std::collections::HashMap;
use std::time::Duration;

const EVERY_MS: u64 = 1_000;

/// How far the servers may be loaded before Segue yields by itself. The log that is kept has its bound in
/// [`Limits`](super::Limits).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Throttle {
    /// How far a standby of either side may be behind.
    pub replica_lag_max: Duration,
    /// Standbys that may be as far behind as they like, by name.
    pub replicas_ignored: Vec<String>,
    /// How old the oldest change may be that is not applied.
    pub apply_lag_max: Duration,
    /// How many sessions of others may be doing something on either side.
    pub active_sessions_max: u64,
    /// How many of them may wait for locks.
    pub lock_waits_max: u64,
    /// How long a side may take to answer a look.
    pub answer_max: Duration,
    /// Whether a row of Segue's own is written to see how long commits take.
    pub probe_write: bool,
    /// How long that may take.
    pub probe_write_max: Duration,
    /// Statements of the operator's; no two have the same name.
    pub queries: Vec<ThrottleQuery>,
}

/// A number of the operator's, and how far it may go.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ThrottleQuery {
    /// What people call it.
    pub name: String,
    /// The statement.
    pub sql: String,
    /// Which database is asked.
    pub on: Database,
    /// How far its number may go.
    pub limit: Limit,
    /// How often it is asked.
    pub every: Duration,
}

/// Checks the section. Where it adds problems, the spec is refused, whatever it returns.
pub(super) fn validate(
    raw: RawThrottle,
    standard: &ThrottleDefaults,
    problems: &mut Problems<'_>,
) -> Throttle {
    let ms = Duration::from_millis;
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut queries = Vec::new();
    for item in raw.queries.map(|list| list.value).unwrap_or_default() {
        let name_place = item.value.name.as_ref().map_or(item.place, |name| name.place);
        let Some(query) = query(item.value, item.key_place, problems) else { continue };
        if let Some(first) = names.get(&query.name) {
            let message = format!("two queries are called `{}`", query.name);
            problems.add_with_help(name_place, message, format!("the other is on line {first}"));
        }
        names.insert(query.name.clone(), name_place.line);
        queries.push(query);
    }
    let mut replicas_ignored = Vec::new();
    for name in raw.replicas_ignored.map(|list| list.value).unwrap_or_default() {
        if name.value.trim().is_empty() {
            problems.add(name.place, "a standby's name cannot be empty");
        }
        replicas_ignored.push(name.value.trim().to_owned());
    }
    Throttle {
        replicas_ignored,
        replica_lag_max: ms(bounds::REPLICA_LAG.settle(
            raw.replica_lag_ms_max,
            standard.replica_lag_ms,
            problems,
        )),
        apply_lag_max: ms(bounds::APPLY_LAG.settle(raw.apply_lag_ms_max, standard.apply_lag_ms, problems)),
        active_sessions_max: bounds::ACTIVE_SESSIONS.settle(
            raw.active_sessions_max,
            standard.active_sessions,
            problems,
        ),
        lock_waits_max: bounds::LOCK_WAITS.settle(raw.lock_waits_max, standard.lock_waits, problems),
        answer_max: ms(bounds::ANSWER.settle(raw.answer_ms_max, standard.answer_ms, problems)),
        probe_write: raw.probe_write.map_or(standard.probe_write, |written| written.value),
        probe_write_max: ms(bounds::PROBE_WRITE.settle(
            raw.probe_write_ms_max,
            standard.probe_write_ms,
            problems,
        )),
        queries,
    }
}

fn query(raw: RawThrottleQuery, place: Place, problems: &mut Problems<'_>) -> Option<ThrottleQuery> {
    let every_ms = bounds::THROTTLE_EVERY.settle(raw.every_ms, EVERY_MS, problems);
    for (text, what) in [(&raw.name, "name"), (&raw.query, "statement")] {
        if let Some(text) = text.as_ref().filter(|text| text.value.trim().is_empty()) {
            problems.add(text.place, format!("a query's {what} cannot be empty"));
        }
    }
    let place = raw.query.as_ref().map_or(place, |query| query.key_place);
    let limit = query_limit("an item", place, raw.above, raw.below, problems);
    Some(ThrottleQuery {
        name: raw.name?.value.trim().to_owned(),
        sql: raw.query?.value,
        on: raw.on.map_or(Database::Source, |on| on.value),
        limit: limit?,
        every: Duration::from_millis(every_ms),
    })
}
