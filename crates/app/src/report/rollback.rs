//! A rollback trigger that is armed, as an object and as a line.

use segue_model::switch::rollback::Then;
use serde::{Deserialize, Serialize};

/// A rollback trigger that is armed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RollbackState {
    /// Its name.
    pub(crate) name: String,
    /// What it does when it trips.
    pub(crate) then: Then,
    /// Beyond which value it trips, in words.
    pub(crate) limit: String,
    /// The last sample.
    pub(crate) value: Option<f64>,
    /// Why the last look had no sample; empty if it had one.
    pub(crate) missing: String,
    /// How many samples in a row were beyond the limit.
    pub(crate) beyond: u64,
    /// How many trip it.
    pub(crate) samples: u64,
    /// It has told people, and has not recovered since.
    pub(crate) alerting: bool,
    /// For how long it is armed from now on.
    pub(crate) armed_ms: u64,
}

impl RollbackState {
    /// For people.
    pub(super) fn line(&self) -> String {
        let value = match (self.missing.as_str(), self.value) {
            ("", Some(value)) => value.to_string(),
            ("", None) => "no sample yet".to_owned(),
            (missing, _) => format!("no sample: {missing}"),
        };
        let does = match self.then {
            Then::Alert => "alerts",
            Then::Reverse => "reverses",
        };
        let RollbackState { name, limit, beyond, samples, .. } = self;
        let left_s = self.armed_ms / 1000;
        format!(
            "  rollback  {name}: {value}; {does} {limit}, {beyond} of {samples} in a row; armed for {left_s} s"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trigger_says_what_it_measured_what_it_would_do_and_for_how_long() {
        let trigger = RollbackState {
            name: "errors".into(),
            then: Then::Reverse,
            limit: "above 50".into(),
            value: Some(12.5),
            missing: String::new(),
            beyond: 0,
            samples: 3,
            alerting: false,
            armed_ms: 60_000,
        };
        let first = "  rollback  errors: 12.5; reverses above 50, 0 of 3 in a row; armed for 60 s";
        assert_eq!(trigger.line(), first);
        let missing = RollbackState { missing: "it returns NULL".into(), then: Then::Alert, ..trigger };
        let second = "  rollback  errors: no sample: it returns NULL; alerts above 50, 0 of 3 in a row; armed for 60 s";
        assert_eq!(missing.line(), second);
    }
}
