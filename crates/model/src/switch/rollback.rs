//! Rollback triggers: what, measured after a switch, tells people or takes the switch back.
//!
//! Samples go in, a verdict comes out; who measures, and what is done about it, is elsewhere. A sample that could not be
//! had is no sample: it neither counts nor ends a row of those that did, and never trips anything by itself.

use super::gates::Share;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a trigger does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// People are told.
    Alert,
    /// The writes go back to the source.
    Reverse,
}

impl Then {
    /// Both.
    pub const ALL: [Then; 2] = [Then::Alert, Then::Reverse];

    /// As a spec spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Then::Alert => "alert",
            Then::Reverse => "reverse",
        }
    }
}

/// How far a value may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// Beyond it is above it.
    Above(f64),
    /// Beyond it is below it.
    Below(f64),
}

impl Limit {
    /// Whether `value` is beyond it. What equals it, or is no number, is not.
    pub fn is_exceeded(self, value: f64) -> bool {
        match self {
            Limit::Above(limit) => value > limit,
            Limit::Below(limit) => value < limit,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Above(limit) => write!(f, "above {limit}"),
            Limit::Below(limit) => write!(f, "below {limit}"),
        }
    }
}

/// When a trigger trips, and what it does then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Beyond which value.
    pub limit: Limit,
    /// So many samples in a row; so many in a row within the limit are a recovery. At least 1.
    pub samples: u32,
    /// What it does.
    pub then: Then,
}

/// What one look has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// A number.
    Value(f64),
    /// Divergent rows among those compared since the switch, and what that was when it happened. Beyond the limit only if
    /// it has grown, and a sample only if rows were compared since the last one.
    Drift {
        /// Since the switch.
        since: Share,
        /// Before it.
        at_switch: Share,
    },
    /// It could not be had.
    Missing,
}

/// What a look comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing is to be done.
    Hold,
    /// People are told. Not again before it has recovered.
    Alert(Evidence),
    /// What people were told of is over.
    Recovered,
    /// The switch is taken back. Not again for the same switch, by whatever trigger.
    Reverse(Evidence),
}

/// What tripped a trigger.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    /// The samples in a row that were beyond the limit, the oldest first.
    pub values: Vec<f64>,
}

/// One trigger, as its samples have left it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigger {
    rule: Rule,
    /// The last samples in a row beyond the limit, at most as many as trip it.
    beyond: Vec<f64>,
    /// How many in a row were within it.
    within: u32,
    /// People have been told, and it has not recovered.
    alerting: bool,
    last: Option<f64>,
    /// How many rows the last drift was of.
    compared: u64,
}

impl Trigger {
    fn new(rule: Rule) -> Trigger {
        Trigger { rule, beyond: Vec::new(), within: 0, alerting: false, last: None, compared: 0 }
    }

    /// Its rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The last sample's value. Drift is in parts per million.
    pub fn last(&self) -> Option<f64> {
        self.last
    }

    /// How many samples in a row have been beyond the limit, as far as they count.
    pub fn beyond(&self) -> usize {
        self.beyond.len()
    }

    /// People have been told, and it has not recovered since.
    pub fn is_alerting(&self) -> bool {
        self.alerting
    }

    /// The value of a sample, and whether it is beyond the limit.
    fn judge(&mut self, sample: Sample) -> Option<(f64, bool)> {
        match sample {
            Sample::Value(value) => value.is_finite().then(|| (value, self.rule.limit.is_exceeded(value))),
            Sample::Drift { since, .. } if since.whole <= self.compared => None,
            Sample::Drift { since, at_switch } => {
                self.compared = since.whole;
                let ppm = since.part as f64 * 1e6 / since.whole as f64;
                Some((ppm, self.rule.limit.is_exceeded(ppm) && has_grown(since, at_switch)))
            }
            Sample::Missing => None,
        }
    }

    fn look(&mut self, sample: Sample, may_reverse: bool) -> Verdict {
        let Some((value, is_beyond)) = self.judge(sample) else { return Verdict::Hold };
        self.last = Some(value);
        if !is_beyond {
            self.beyond.clear();
            self.within = self.within.saturating_add(1);
            if self.alerting && self.within >= self.rule.samples {
                self.alerting = false;
                return Verdict::Recovered;
            }
            return Verdict::Hold;
        }
        self.within = 0;
        let enough = usize::try_from(self.rule.samples).unwrap_or(usize::MAX);
        if self.beyond.len() >= enough {
            self.beyond.remove(0);
        }
        self.beyond.push(value);
        if self.beyond.len() < enough || self.alerting {
            return Verdict::Hold;
        }
        let evidence = Evidence { values: self.beyond.clone() };
        match self.rule.then {
            Then::Reverse if may_reverse => Verdict::Reverse(evidence),
            Then::Reverse | Then::Alert => {
                self.alerting = true;
                Verdict::Alert(evidence)
            }
        }
    }
}

/// Whether the share has grown. A share of nothing is zero.
fn has_grown(now: Share, before: Share) -> bool {
    u128::from(now.part) * u128::from(before.whole.max(1)) > u128::from(before.part) * u128::from(now.whole)
}

/// The triggers of one switch.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    triggers: Vec<Trigger>,
    fired: bool,
}

impl Watch {
    /// The triggers with these rules. `fired`: one of them has taken this very switch back, or has tried to.
    pub fn new(rules: impl IntoIterator<Item = Rule>, fired: bool) -> Watch {
        Watch { triggers: rules.into_iter().map(Trigger::new).collect(), fired }
    }

    /// The triggers, in the order of their rules.
    pub fn triggers(&self) -> &[Trigger] {
        &self.triggers
    }

    /// People were told of trigger number `at` before, and it had not recovered.
    pub fn was_alerting(&mut self, at: usize) {
        if let Some(trigger) = self.triggers.get_mut(at) {
            trigger.alerting = true;
        }
    }

    /// What a sample of trigger number `at` comes to. Once one has fired, those that would reverse tell people instead.
    pub fn look(&mut self, at: usize, sample: Sample) -> Verdict {
        let may_reverse = !self.fired;
        let Some(trigger) = self.triggers.get_mut(at) else { return Verdict::Hold };
        let verdict = trigger.look(sample, may_reverse);
        self.fired |= matches!(verdict, Verdict::Reverse(_));
        verdict
    }
}

#[cfg(test)]
mod tests;
