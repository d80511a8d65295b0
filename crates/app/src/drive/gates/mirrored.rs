//! What routers have found in comparing reads, taken together. Pure.

use crate::report::MirrorSeat;
use segue_model::switch::gates::Mirrored;
use segue_postgres::control::RouterReport;

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
    use segue_model::switch::gates::Share;
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
    fn where_nobody_compares_there_is_no_evidence_and_what_cannot_be_read_is_not_passed_over() {
        assert_eq!(of(&[], 0.0), Mirrored::default());
        assert_eq!(of(&[router(Value::Null), router(json!({ "percent": 0 }))], 0.0), Mirrored::default());
        assert!(of(&[router(json!({ "percent": "many" }))], 0.0).is_unreadable);
    }
}
