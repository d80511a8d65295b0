//! What the driver is asked when reads are moved or compared, and what it answers: the objects in the rows of commands.

use crate::drive::switch::answer::{Blocked, Overridden};
use crate::exit::Exit;
use segue_model::switch::Side;
use segue_model::switch::gates::{self, Override, OverrideRefused};
use segue_model::switch::reads::ReadRules;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The arguments of the verb `reads`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadsOrder {
    /// The share that the target is to serve.
    pub(crate) percent: u8,
    /// Tenants whose rule is to be another one; null: none.
    #[serde(default)]
    pub(crate) tenants: BTreeMap<String, Option<Side>>,
    /// Gates to go through although they are red.
    #[serde(default)]
    pub(crate) overrides: Vec<Overridden>,
}

/// The arguments of the verb `mirror`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MirrorOrder {
    /// The share that is to be compared.
    pub(crate) percent: u8,
}

impl ReadsOrder {
    /// The overrides as they are judged and journaled; refuses one of a gate that protects data.
    pub(crate) fn overrides(&self, actor: &str) -> Result<Vec<Override>, OverrideRefused> {
        self.overrides.iter().map(|o| Override::new(o.gate, actor, &o.reason)).collect()
    }
}

/// How both end, but for faults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(crate) enum ReadsAnswer {
    /// These rules are in force.
    Set(RulesSet),
    /// They are as they were: gates are red.
    Refused {
        /// Which, why, and what to do.
        blockers: Vec<Blocked>,
    },
}

/// Rules that are in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RulesSet {
    /// The rules as they were.
    pub(crate) before: ReadRules,
    /// The rules as they are.
    pub(crate) now: ReadRules,
    /// Routers that were heard of lately.
    pub(crate) routers: usize,
}

impl ReadsAnswer {
    pub(super) fn set(before: &ReadRules, now: &ReadRules, routers: usize) -> ReadsAnswer {
        ReadsAnswer::Set(RulesSet { before: before.clone(), now: now.clone(), routers })
    }

    pub(super) fn refused(blockers: &[gates::Blocker]) -> ReadsAnswer {
        ReadsAnswer::Refused { blockers: blockers.iter().map(Blocked::from).collect() }
    }

    /// How a command that was answered so ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            ReadsAnswer::Set(_) => Exit::Done,
            ReadsAnswer::Refused { .. } => Exit::GateRefused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_order_that_holds_something_unknown_is_refused() {
        let order: ReadsOrder =
            serde_json::from_value(json!({ "percent": 5, "tenants": { "a": "target", "b": null } })).unwrap();
        assert_eq!(order.tenants, [("a".into(), Some(Side::Target)), ("b".into(), None)].into());
        assert!(serde_json::from_value::<ReadsOrder>(json!({ "percent": 5, "only": "a" })).is_err());
        assert!(serde_json::from_value::<MirrorOrder>(json!({ "percent": 500 })).is_err());
    }
}
