//! What a record of the journal says, on one line: the fields that matter, whatever kind of record it is. Pure.
//!
//! A record of another version is shown as far as it has the same fields; `--json` has all of every record.

use serde_json::Value;
use std::collections::BTreeSet;

/// So many names of a list are shown.
const NAMES_MAX: usize = 5;
/// A line is cut here: a screen of it is no line any more.
const CHARS_MAX: usize = 400;

/// Fields with a value of their own, in the order in which they are said, with what stands before and behind it.
const FIELDS: &[(&str, &str, &str)] = &[
    ("asked", "", ""),
    ("outcome", "", ""),
    ("owner", "owner ", ""),
    ("epoch", "epoch ", ""),
    ("stall_ms", "no side took writes for ", " ms"),
    ("side", "on the ", ""),
    ("trigger", "trigger ", ""),
    ("limit", "", ""),
    ("attempt", "attempt ", ""),
    ("attempts", "attempts: ", ""),
    ("table", "", ""),
    ("slot", "slot ", ""),
    ("fault", "", ""),
    ("code", "", ""),
    ("why", "because: ", ""),
    ("next_step", "next: ", ""),
    ("in_words", "", ""),
];

/// Fields with a list of names.
const LISTS: &[(&str, &str)] = &[
    ("created", "created "),
    ("triggers", "triggers "),
    ("stopped", "stopped "),
    ("standbys", "standbys without it: "),
    ("files", "files "),
    ("tables", "tables "),
    ("removed", "removed "),
    ("archived", "archived "),
    ("dropped", "dropped "),
];

/// A record's body in words; empty if it has nothing to be said.
pub(super) fn said(body: &Value) -> String {
    let mut parts: Vec<String> = plain(&body["command"]).into_iter().collect();
    parts.extend(scalars(&body["arguments"]));
    parts.extend(FIELDS.iter().filter_map(|(name, before, behind)| {
        plain(&body[*name]).map(|value| format!("{before}{value}{behind}"))
    }));
    parts.extend(planned(body));
    parts.extend(reads(&body["from"], &body["to"]));
    parts.extend(strays(&body["strays"]));
    parts.extend(scalars(&body["found"]));
    parts.extend(
        LISTS.iter().filter_map(|(name, before)| names(&body[*name]).map(|all| format!("{before}{all}"))),
    );
    parts.extend(blockers(&body["blockers"]));
    parts.extend(overrides(body));
    parts.extend(plain(&body["by"]).map(|by| format!("by {by}")));
    cut(&on_one_line(&parts.join(", ")))
}

/// A fault has a line for each step.
fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}… (--json has all)", &line[..at]),
        None => line.to_owned(),
    }
}

/// A text or a number.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The fields of an object that are no objects or lists; what is not so is not said.
fn scalars(object: &Value) -> Vec<String> {
    let said = |(name, value): (&String, &Value)| match value {
        Value::Bool(true) => Some(name.clone()),
        other => plain(other).map(|value| format!("{name} {value}")),
    };
    object.as_object().into_iter().flatten().filter_map(said).collect()
}

fn names(list: &Value) -> Option<String> {
    let all: Vec<&str> = list.as_array()?.iter().filter_map(Value::as_str).collect();
    let shown = all[..all.len().min(NAMES_MAX)].join(", ");
    match all.len() {
        0 => None,
        1..=NAMES_MAX => Some(shown),
        n => Some(format!("{shown} and {} more", n - NAMES_MAX)),
    }
}

/// What a stream was planned for, and its slot.
fn planned(body: &Value) -> Vec<String> {
    let tables = body["plan"]["tables"].as_array().map(|tables| format!("{} table(s)", tables.len()));
    let slot = plain(&body["stream"]["slot"]).map(|slot| format!("slot {slot}"));
    tables.into_iter().chain(slot).collect()
}

/// Rules for reads that have changed.
fn reads(from: &Value, to: &Value) -> Vec<String> {
    let shares = [("share_percent", "served by the target"), ("mirror_percent", "compared on both sides")];
    let changed = shares.into_iter().filter(|(name, _)| from[*name] != to[*name]);
    let mut parts: Vec<String> =
        changed.map(|(name, what)| format!("{what}: {} % -> {} %", from[name], to[name])).collect();
    if from["tenants"] != to["tenants"] {
        let tenants = scalars(&to["tenants"]);
        let tenants = if tenants.is_empty() { "none".to_owned() } else { tenants.join("; ") };
        parts.push(format!("tenants with rules: {tenants}"));
    }
    match (from["contained"].as_bool(), to["contained"].as_bool()) {
        (Some(false), Some(true)) => parts.push("contained".to_owned()),
        (Some(true), Some(false)) => parts.push("not contained any more".to_owned()),
        _ => {}
    }
    parts
}

fn strays(strays: &Value) -> Option<String> {
    let changes = strays["counts"]["changes"].as_u64()?;
    let tables = strays["strays"].as_array()?.iter().filter_map(|stray| stray["tables"].as_array()).flatten();
    let tables: BTreeSet<&str> = tables.filter_map(|table| table["table"].as_str()).collect();
    let tables: Vec<&str> = tables.into_iter().collect();
    Some(format!("{changes} change(s) past the fence, in {}", tables.join(", ")))
}

fn blockers(blockers: &Value) -> Option<String> {
    let all = blockers.as_array().filter(|all| !all.is_empty())?;
    let one = |blocker: &Value| {
        let why = blocker["why"].as_str().or(blocker["red"]["why"].as_str()).unwrap_or_default();
        format!("{}: {why}", blocker["gate"].as_str().unwrap_or_default())
    };
    Some(format!("refused: {}", all.iter().map(one).collect::<Vec<_>>().join("; ")))
}

fn overrides(body: &Value) -> Option<String> {
    let lists = [&body["overrides"], &body["arguments"]["overrides"]];
    let one = |one: &Value| {
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        format!("{} ({})", text("gate"), text("reason"))
    };
    let all: Vec<String> = lists.into_iter().filter_map(Value::as_array).flatten().map(one).collect();
    (!all.is_empty()).then(|| format!("overridden: {}", all.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_record_says_what_matters_of_it() {
        let blocked = json!({ "gate": "lag", "red": { "why": "it is high", "next": "wait" }, "may_be_overridden": true });
        for (body, line) in [
            (
                json!({ "command": "pause", "arguments": { "reason": "lunch" }, "by": "ada@db1" }),
                "pause, reason lunch, by ada@db1",
            ),
            (
                json!({ "command": "throttle", "arguments": { "workers": 2, "rate": null, "off": false }, "by": "a" }),
                "throttle, workers 2, by a",
            ),
            (
                json!({ "command": "switch", "by": "ada",
                    "arguments": { "rehearse": true, "overrides": [{ "gate": "lag", "reason": "agreed" }] } }),
                "switch, rehearse, overridden: lag (agreed), by ada",
            ),
            (
                json!({ "asked": "switch", "by": "ada", "blockers": [blocked] }),
                "switch, refused: lag: it is high, by ada",
            ),
            (
                json!({ "outcome": "switched", "owner": "target", "epoch": 2, "stall_ms": 12.3, "steps": [{ "step": "arm" }] }),
                "switched, owner target, epoch 2, no side took writes for 12.3 ms",
            ),
            (
                json!({ "code": "SEGUE-ROW", "fault": "a row\n  cannot be applied", "next_step": "mend it" }),
                "a row cannot be applied, SEGUE-ROW, next: mend it",
            ),
            (
                json!({ "plan": { "tables": [{ "id": 0 }, { "id": 1 }] }, "stream": { "slot": "segue_m_fwd" } }),
                "2 table(s), slot segue_m_fwd",
            ),
            (
                json!({ "from": { "share_percent": 0, "mirror_percent": 5 }, "to": { "share_percent": 10, "mirror_percent": 5 } }),
                "served by the target: 0 % -> 10 %",
            ),
            (
                json!({ "side": "target", "strays": { "counts": { "changes": 3 }, "strays": [{ "tables": [{ "table": "public.t" }] }] } }),
                "on the target, 3 change(s) past the fence, in public.t",
            ),
            (json!({ "created": ["a", "b", "c", "d", "e", "f"] }), "created a, b, c, d, e and 1 more"),
            (json!({ "incarnation": 7, "found": { "rows": 5, "missing": 1 } }), "rows 5, missing 1"),
            (json!({ "token": 1_700_000_000_000_i64 }), ""),
            (json!([1]), ""),
        ] {
            assert_eq!(said(&body), line);
        }
    }

    #[test]
    fn a_record_that_is_too_long_is_cut_and_says_so() {
        let line = said(&json!({ "why": "ü".repeat(1000) }));
        assert!(line.ends_with("… (--json has all)") && line.chars().count() < 430, "{line}");
    }
}
