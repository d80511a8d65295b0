//! Which reads the target serves while the source owns the writes, and which are compared, as the driver tells routers.
//!
//! A wish, not a decision: who owns the writes is in the ownership rows, and whether the follower shows enough for a read is
//! known to each router alone. A router that has heard nothing serves every read from the owner.

use super::Side;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is told of reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadRules {
    /// How much of the reads the target serves, in percent.
    #[serde(default)]
    pub share_percent: u8,
    /// Tenants that one side serves, whatever the share.
    #[serde(default)]
    pub tenants: BTreeMap<String, Side>,
    /// How many of the reads are repeated on the other side and compared, in percent.
    #[serde(default)]
    pub mirror_percent: u8,
    /// Since when reads are compared without a break, in microseconds since 1970; 0 while none are.
    #[serde(default)]
    pub mirror_since_us: i64,
    /// Nothing is asked of the follower, whatever the rest says.
    #[serde(default)]
    pub contained: bool,
}

impl ReadRules {
    /// Whether the target serves any reads, were it not for an emergency.
    pub fn moves_any(&self) -> bool {
        self.share_percent > 0 || self.tenants.values().any(|side| *side == Side::Target)
    }

    /// These with another share, and these tenants' rules changed; `None` removes one.
    #[must_use]
    pub fn with_share(&self, share_percent: u8, tenants: &BTreeMap<String, Option<Side>>) -> ReadRules {
        let mut rules = ReadRules { share_percent, ..self.clone() };
        for (tenant, side) in tenants {
            match side {
                Some(side) => drop(rules.tenants.insert(tenant.clone(), *side)),
                None => drop(rules.tenants.remove(tenant)),
            }
        }
        rules
    }

    /// These with so many reads compared, from `now_us` on if none were before.
    #[must_use]
    pub fn with_mirror(&self, mirror_percent: u8, now_us: i64) -> ReadRules {
        let mirror_since_us = match (mirror_percent, self.mirror_since_us) {
            (0, _) => 0,
            (_, 0) => now_us,
            (_, since) => since,
        };
        ReadRules { mirror_percent, mirror_since_us, ..self.clone() }
    }

    /// Whether these give the target a read that `before` did not: what gates are asked for. On the way down nobody is asked.
    pub fn move_more_than(&self, before: &ReadRules) -> bool {
        let mut tenants = self.tenants.keys().chain(before.tenants.keys());
        self.share_percent > before.share_percent
            || tenants.any(|tenant| self.percent_of(tenant) > before.percent_of(tenant))
    }

    /// How likely the target serves this tenant.
    fn percent_of(&self, tenant: &str) -> u8 {
        match self.tenants.get(tenant) {
            Some(Side::Target) => 100,
            Some(Side::Source) => 0,
            None => self.share_percent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(share_percent: u8, tenants: &[(&str, Side)]) -> ReadRules {
        let tenants = tenants.iter().map(|(name, side)| ((*name).to_owned(), *side)).collect();
        ReadRules { share_percent, tenants, ..ReadRules::default() }
    }

    #[test]
    fn rules_are_told_in_a_form_that_is_kept_and_nothing_else_is_understood() {
        let told = ReadRules { mirror_percent: 5, mirror_since_us: 7, ..rules(10, &[("a", Side::Target)]) };
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(
            text,
            r#"{"share_percent":10,"tenants":{"a":"target"},"mirror_percent":5,"mirror_since_us":7,"contained":false}"#
        );
        assert_eq!(serde_json::from_str::<ReadRules>(&text).unwrap(), told);
        assert_eq!(serde_json::from_str::<ReadRules>("{}").unwrap(), ReadRules::default());
        assert!(serde_json::from_str::<ReadRules>(r#"{"share_percent":10,"canary":true}"#).is_err());
    }

    #[test]
    fn more_is_whatever_the_target_did_not_serve_before() {
        let (a, source, target) = ("a", Side::Source, Side::Target);
        for (before, after, is_more) in [
            (rules(0, &[]), rules(1, &[]), true),
            (rules(50, &[]), rules(49, &[]), false),
            (rules(50, &[]), rules(50, &[]), false),
            (rules(0, &[]), rules(0, &[(a, target)]), true),
            (rules(0, &[(a, target)]), rules(0, &[]), false),
            (rules(10, &[(a, source)]), rules(10, &[]), true),
            (rules(10, &[(a, source)]), rules(0, &[]), false),
            (rules(0, &[(a, target)]), rules(0, &[(a, source)]), false),
            (rules(100, &[(a, source)]), rules(50, &[(a, target)]), true),
            (rules(100, &[]), rules(10, &[(a, target)]), false),
        ] {
            assert_eq!(after.move_more_than(&before), is_more, "{before:?} -> {after:?}");
        }
    }

    #[test]
    fn a_tenants_rule_is_changed_alone_and_removed_by_name() {
        let before = rules(5, &[("a", Side::Target), ("b", Side::Source)]);
        let change = [("a".to_owned(), None), ("c".to_owned(), Some(Side::Target))].into();
        assert_eq!(before.with_share(7, &change), rules(7, &[("b", Side::Source), ("c", Side::Target)]));
        assert!(
            rules(0, &[("c", Side::Target)]).moves_any() && !rules(0, &[("b", Side::Source)]).moves_any()
        );
    }

    #[test]
    fn comparing_begins_when_it_is_turned_on_and_not_again_when_more_is_compared() {
        let on = ReadRules::default().with_mirror(10, 1000);
        assert_eq!(on.mirror_since_us, 1000);
        assert_eq!(on.with_mirror(50, 2000).mirror_since_us, 1000);
        let off = on.with_mirror(0, 3000);
        assert_eq!((off.mirror_since_us, off.with_mirror(1, 4000).mirror_since_us), (0, 4000));
    }
}
