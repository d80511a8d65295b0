//! One trigger's samples: when the next one is due, and what it is.

use crate::report::RollbackState;
use crate::sides::Sides;
use segue_model::spec::{Database, Measure, RollbackTrigger};
use segue_model::switch::gates::Share;
use segue_model::switch::rollback::{Sample, Trigger};
use segue_postgres::measure::Gauge;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What has diverged since the switch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drift {
    /// Since when rows count, in microseconds since 1970.
    pub(super) armed_us: i64,
    /// What the drift was at the switch.
    pub(super) at_switch: Share,
    /// What earlier attempts have compared since then.
    pub(super) earlier: Share,
    /// What this attempt had compared when it began to watch.
    pub(super) base: Share,
    /// All that was compared since the switch.
    pub(super) now: Share,
}

impl Drift {
    /// This attempt has come to `live`, and verifications since the switch to `verified`.
    pub(super) fn compared(&mut self, live: Share, verified: Share) {
        // Counts that are lower than before have begun anew.
        if live.whole < self.base.whole || live.part < self.base.part {
            self.base = Share::default();
        }
        let more = Share { part: live.part - self.base.part, whole: live.whole - self.base.whole };
        self.now = add(add(self.earlier, more), verified);
    }
}

pub(super) fn add(a: Share, b: Share) -> Share {
    Share { part: a.part.saturating_add(b.part), whole: a.whole.saturating_add(b.whole) }
}

/// A share as it is written down.
pub(super) fn compared(share: Share) -> Value {
    json!({ "divergent": share.part, "compared": share.whole })
}

/// Whom a query is asked of.
pub(super) fn gauge(sides: &Sides, on: Database) -> Gauge {
    Gauge::of(sides.of_database(on).clone(), "rollback")
}

/// A trigger that is measured.
pub(super) struct Measured<'s> {
    spec: &'s RollbackTrigger,
    gauge: Option<Gauge>,
    next: Instant,
    /// Why there is no sample; empty: there is one.
    missing: String,
}

impl<'s> Measured<'s> {
    pub(super) fn new(spec: &'s RollbackTrigger, sides: &Sides) -> Measured<'s> {
        let gauge = match &spec.measure {
            Measure::Drift => None,
            Measure::Query { on, .. } => Some(gauge(sides, *on)),
        };
        Measured { spec, gauge, next: Instant::now(), missing: String::new() }
    }

    pub(super) fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// Takes a sample; the next one is due a while after this one was.
    pub(super) async fn look(&mut self, drift: Drift) -> Sample {
        self.next = Instant::now() + self.spec.every;
        let found = match (&self.spec.measure, &mut self.gauge) {
            (Measure::Query { sql, .. }, Some(gauge)) => gauge.number(sql).await.map(Sample::Value),
            (Measure::Drift | Measure::Query { .. }, _) if drift.now.whole > 0 => {
                Ok(Sample::Drift { since: drift.now, at_switch: drift.at_switch })
            }
            (Measure::Drift | Measure::Query { .. }, _) => {
                Err("no row was compared since the switch".to_owned())
            }
        };
        self.missing.clear();
        found.unwrap_or_else(|why| {
            self.missing = why;
            Sample::Missing
        })
    }

    /// As people see it.
    pub(super) fn state(&self, trigger: &Trigger, left: Duration) -> RollbackState {
        RollbackState {
            name: self.spec.name.clone(),
            then: self.spec.rule.then,
            limit: self.spec.rule.limit.to_string(),
            value: trigger.last(),
            missing: self.missing.clone(),
            beyond: trigger.beyond() as u64,
            samples: u64::from(self.spec.rule.samples),
            alerting: trigger.is_alerting(),
            armed_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_compared_since_the_switch_is_its_drift() {
        let share = |part, whole| Share { part, whole };
        let (at_switch, earlier) = (share(1, 9), share(1, 10));
        let mut drift = Drift { armed_us: 0, at_switch, earlier, base: share(3, 30), now: share(0, 0) };
        drift.compared(share(4, 35), share(2, 100));
        assert_eq!(drift.now, share(4, 115));
        drift.compared(share(0, 2), share(0, 0));
        assert_eq!(drift.now, share(1, 12), "counts that have begun anew");
    }
}
