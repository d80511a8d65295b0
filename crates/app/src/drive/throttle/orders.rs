//! The operator's limits: `segue throttle`, and what is left of it after a restart.

use crate::drive::Driver;
use segue_engine::throttle::Limits;
use segue_model::throttle::Governor;
use segue_postgres::control::Entry;
use serde_json::Value;

/// What `segue throttle` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    workers_max: Option<usize>,
    bytes_per_s_max: Option<u64>,
    /// Automatic limits count, or do not; `None`: as before.
    automatic: Option<bool>,
    /// What was set before is lifted.
    lifted: bool,
}

impl Wanted {
    fn of(arguments: &Value) -> Wanted {
        let number = |name: &str| arguments.get(name).and_then(Value::as_u64);
        let is = |name: &str| arguments.get(name).and_then(Value::as_bool).unwrap_or(false);
        let automatic = match (is("off"), is("auto")) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        };
        Wanted {
            workers_max: number("workers").and_then(|workers| usize::try_from(workers).ok()),
            bytes_per_s_max: number("rate"),
            automatic,
            lifted: is("off"),
        }
    }

    fn apply(self, limits: &mut Limits, governor: &mut Governor) {
        if self.lifted {
            (limits.workers_max, limits.bytes_per_s_max) = (None, None);
        }
        limits.workers_max = self.workers_max.or(limits.workers_max);
        limits.bytes_per_s_max = self.bytes_per_s_max.or(limits.bytes_per_s_max);
        if let Some(automatic) = self.automatic {
            governor.set_automatic(automatic);
        }
    }

    fn done(self) -> &'static str {
        match self.automatic {
            Some(false) => {
                "nothing is throttled: limits set here are lifted, and automatic ones are off until `segue throttle --auto`; \
                 the bound of the log that is kept (`limits.retained_wal_bytes_max`) still holds the copy back"
            }
            Some(true) => "automatic limits count again, under those that were set here",
            None => "the copy is throttled as asked; automatic limits may lower it further",
        }
    }
}

/// Carries an order out, and says what it has done.
pub(in crate::drive) fn obey(driver: &Driver, arguments: &Value) -> &'static str {
    let wanted = Wanted::of(arguments);
    driver.throttle.change(|limits| driver.governing.with(|governor, _| wanted.apply(limits, governor)));
    wanted.done()
}

/// A process that starts is limited as the one before it was.
pub(in crate::drive) fn restore(driver: &Driver, journal: &[Entry]) {
    let is_order =
        |entry: &&Entry| entry.entry.kind == "command" && entry.entry.body["command"] == "throttle";
    let orders = journal.iter().filter(is_order).map(|entry| Wanted::of(&entry.entry.body["arguments"]));
    driver.throttle.change(|limits| {
        driver.governing.with(|governor, _| orders.for_each(|order| order.apply(limits, governor)));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn orders_add_up_until_they_are_lifted() {
        let (mut limits, mut governor) = (Limits::default(), Governor::default());
        for (arguments, workers, rate, automatic) in [
            (json!({ "workers": 2, "rate": null, "off": false }), Some(2), None, true),
            (json!({ "workers": null, "rate": 1024 }), Some(2), Some(1024), true),
            (json!({ "off": true }), None, None, false),
            (json!({ "workers": 1 }), Some(1), None, false),
            (json!({ "auto": true }), Some(1), None, true),
            (json!({ "auto": true, "rate": 7 }), Some(1), Some(7), true),
        ] {
            Wanted::of(&arguments).apply(&mut limits, &mut governor);
            let now = (limits.workers_max, limits.bytes_per_s_max, governor.is_automatic());
            assert_eq!(now, (workers, rate, automatic), "{arguments}");
        }
    }
}
