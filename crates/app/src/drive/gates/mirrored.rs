//! What routers have found in comparing reads, taken together. Pure.

use crate::report::MirrorSeat;
use segue_model::switch::gates::{Mirrored, Share};
use segue_postgres::control::RouterReport;
use std::collections::HashMap;

/// The series in which is stored what comparing reads came to.
pub(super) const SERIES: &str = "mirror";

/// What each router had compared when it was last looked at, by its name.
#[derive(Debug, Default)]
pub(super) struct Counted(HashMap<String, Share>);

impl Counted {
    /// Reads that routers have compared since the look before, and those of them that answered alike. Of one that is new here
    /// it is not known since when: it counts from the next look on.
    pub(super) fn more(&mut self, routers: &[RouterReport]) -> Share {
        let mut more = Share::default();
        let mut counted = HashMap::new();
        for router in routers {
            let Ok(mirror) = serde_json::from_value::<MirrorSeat>(router.body["mirror"].clone()) else {
                continue;
            };
            let now = Share { part: mirror.equal, whole: mirror.compared };
            // Counts that are lower than before have begun anew.
            let before = self.0.get(&router.id).copied().unwrap_or(now);
            let before = if now.whole < before.whole { Share::default() } else { before };
            more.part += now.part.saturating_sub(before.part);
            more.whole += now.whole - before.whole;
            counted.insert(router.id.clone(), now);
        }
        self.0 = counted;
        more
    }
}

/// A statement that is told with a gate is cut: `status` shows all of it.
const STATEMENT_CHARS_MAX: usize = 120;

/// The evidence, from the routers that live; nothing where none of them compares anything.
pub(super) fn of(routers: &[RouterReport], mismatch_percent_max: f64) -> Mirrored {
    // Whole parts per million: a spec's percent with four digits.
    let differ_ppm_max = (mismatch_percent_max * 10_000.0).round() as u64;
    let mut all = Mirrored { differ_ppm_max, ..Mirrored::default() };
    let mut worst_count = 0;
    // One of an earlier version says nothing of it.
    let found = routers.iter().map(|router| &router.body["mirror"]).filter(|found| !found.is_null());
    for found in found {
        let Ok(mirror) = serde_json::from_value::<MirrorSeat>(found.clone()) else {
            all.is_unreadable = true;
            continue;
        };
        all.differ.part += mirror.mismatched;
        all.differ.whole += mirror.compared;
        if let Some(worst) = mirror.mismatches.first().filter(|worst| worst.count > worst_count) {
            worst_count = worst.count;
            let statement: String = worst.statement.chars().take(STATEMENT_CHARS_MAX).collect();
            all.worst = format!("{statement} ({} times; {})", worst.count, worst.why);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn router(mirror: Value) -> RouterReport {
        RouterReport { id: "r".into(), revision: 1, body: json!({ "mirror": mirror }) }
    }

    fn counts(compared: u64, mismatched: u64, count: u64, statement: &str) -> Value {
        json!({ "percent": 5, "compared": compared, "mismatched": mismatched,
                "mismatches": [{ "statement": statement, "count": count, "why": "rows missing (1)" }] })
    }

    #[test]
    fn all_routers_count_and_the_worst_statement_of_any_is_named() {
        let routers =
            [router(counts(10, 1, 1, "SELECT a")), router(counts(90, 3, 3, "SELECT b")), router(Value::Null)];
        let all = of(&routers, 0.5);
        assert_eq!((all.differ, all.differ_ppm_max), (Share { part: 4, whole: 100 }, 5_000));
        assert_eq!(all.worst, "SELECT b (3 times; rows missing (1))");
        assert!(!all.is_unreadable);
    }

    #[test]
    fn each_read_counts_once_and_counters_that_begin_anew_count_from_nothing() {
        let report = |id: &str, equal: u64, compared: u64| RouterReport {
            id: id.into(),
            revision: 1,
            body: json!({ "mirror": { "equal": equal, "compared": compared } }),
        };
        let share = |part, whole| Share { part, whole };
        let mut counted = Counted::default();
        assert_eq!(counted.more(&[report("a", 5, 5)]), share(0, 0), "it is not known since when");
        assert_eq!(counted.more(&[report("a", 8, 9), report("b", 1, 1)]), share(3, 4));
        assert_eq!(counted.more(&[report("a", 8, 9), report("b", 3, 3)]), share(2, 2));
        assert_eq!(counted.more(&[report("a", 2, 2)]), share(2, 2), "it was turned off and on again");
        assert_eq!(counted.more(&[router(Value::Null)]), share(0, 0));
    }

    #[test]
    fn where_nobody_compares_there_is_no_evidence_and_what_cannot_be_read_is_not_passed_over() {
        assert_eq!(of(&[], 0.0), Mirrored::default());
        assert_eq!(of(&[router(Value::Null), router(json!({ "percent": 0 }))], 0.0), Mirrored::default());
        assert!(of(&[router(json!({ "percent": "many" }))], 0.0).is_unreadable);
    }
}
