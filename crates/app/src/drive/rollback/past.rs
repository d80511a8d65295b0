//! What earlier processes, and this one, have written down about the triggers of one switch. Pure.

use segue_model::switch::gates::Share;
use segue_model::switch::ownership::Epoch;
use segue_postgres::control::Entry;
use serde_json::Value;
use std::collections::BTreeSet;

/// The journal, as far as it is about the triggers of one switch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// When the switch was told, in microseconds since 1970.
    pub(super) switched_us: Option<i64>,
    /// When the triggers were armed, and what the drift was then.
    pub(super) armed: Option<(i64, Share)>,
    /// The trigger that has fired, and when.
    pub(super) triggered: Option<(String, i64)>,
    /// How often the reversal was ordered, whatever came of it: an attempt that ended with it counts, too.
    orders: u32,
    /// How often it came to nothing.
    refusals: u32,
    /// People were told that it cannot be had.
    pub(super) given_up: bool,
    /// Triggers that have alerted, and have not recovered.
    pub(super) alerting: BTreeSet<String>,
}

impl Past {
    /// What the journal says about the switch that made the target the owner of this epoch.
    pub(super) fn of(entries: &[Entry], epoch: Epoch) -> Past {
        let mut past = Past::default();
        for Entry { at_us, entry, .. } in entries.iter().filter(|entry| entry.entry.body["epoch"] == epoch.0)
        {
            let name = || entry.body["trigger"].as_str().unwrap_or_default().to_owned();
            match entry.kind.as_str() {
                "switched" => past.switched_us = Some(*at_us),
                "rollback-armed" => past.armed = Some((*at_us, share(&entry.body["at_switch"]))),
                "rollback-triggered" => past.triggered = Some((name(), *at_us)),
                "rollback-ordered" => past.orders += 1,
                "rollback-refused" => past.refusals += 1,
                "rollback-given-up" => past.given_up = true,
                "rollback-alert" => _ = past.alerting.insert(name()),
                "rollback-recovered" => _ = past.alerting.remove(&name()),
                _ => {}
            }
        }
        past
    }

    /// Since when the triggers are armed: from the switch on. One that a later process finished was not told as such.
    pub(super) fn since_us(&self, armed_us: i64) -> i64 {
        self.switched_us.map_or(armed_us, |switched_us| switched_us.min(armed_us))
    }

    /// The trigger whose reversal has neither come about nor been given up, and when it fired.
    pub(super) fn unfinished(&self) -> Option<(&str, i64)> {
        self.triggered.as_ref().filter(|_| !self.given_up).map(|(name, at_us)| (name.as_str(), *at_us))
    }

    /// How often the reversal was tried.
    pub(super) fn tries(&self) -> u32 {
        // Earlier builds wrote down what came of an order only.
        self.orders.max(self.refusals)
    }
}

fn share(body: &Value) -> Share {
    let number = |name: &str| body[name].as_u64().unwrap_or_default();
    Share { part: number("divergent"), whole: number("compared") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_postgres::control::NewEntry;
    use serde_json::json;

    fn entry(at_us: i64, kind: &str, body: Value) -> Entry {
        let entry = NewEntry { version: 1, actor: String::new(), kind: kind.into(), body };
        Entry { seq: at_us, at_us, entry }
    }

    #[test]
    fn only_what_is_of_this_switch_counts() {
        let at_switch = json!({ "divergent": 1, "compared": 9 });
        let entries = [
            entry(1, "switched", json!({ "outcome": "switched", "epoch": 2 })),
            entry(2, "switched", json!({ "token": 5 })),
            entry(3, "rollback-armed", json!({ "epoch": 2, "at_switch": at_switch })),
            entry(4, "rollback-alert", json!({ "epoch": 2, "trigger": "a" })),
            entry(5, "rollback-alert", json!({ "epoch": 2, "trigger": "b" })),
            entry(6, "rollback-recovered", json!({ "epoch": 2, "trigger": "a" })),
            entry(7, "rollback-triggered", json!({ "epoch": 2, "trigger": "c" })),
            entry(8, "rollback-refused", json!({ "epoch": 2, "trigger": "c" })),
            entry(9, "reversed", json!({ "outcome": "switched", "epoch": 3 })),
        ];
        let past = Past::of(&entries, Epoch(2));
        assert_eq!((past.since_us(3), past.armed), (1, Some((3, Share { part: 1, whole: 9 }))));
        assert_eq!((past.unfinished(), past.tries()), (Some(("c", 7)), 1));
        let ended =
            (10..13).map(|at_us| entry(at_us, "rollback-ordered", json!({ "epoch": 2, "trigger": "c" })));
        let ended: Vec<_> = entries.iter().cloned().chain(ended).collect();
        assert_eq!(Past::of(&ended, Epoch(2)).tries(), 3, "attempts that ended with their order");
        assert_eq!(past.alerting, BTreeSet::from(["b".to_owned()]));
        assert_eq!(Past::of(&entries, Epoch(4)), Past::default(), "the next switch begins anew");
        let given_up = [&entries[..], &[entry(10, "rollback-given-up", json!({ "epoch": 2 }))]].concat();
        let past = Past::of(&given_up, Epoch(2));
        assert_eq!((past.unfinished(), past.triggered.is_some()), (None, true), "it does not fire again");
    }
}
