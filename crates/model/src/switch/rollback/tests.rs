//! What rows of samples come to.

use super::*;
use proptest::prelude::*;

fn rule(samples: u32, then: Then) -> Rule {
    Rule { limit: Limit::Above(50.0), samples, then }
}

/// One letter a verdict: `.` hold, `a` alert, `r` reverse, `o` over.
fn letter(verdict: &Verdict) -> char {
    match verdict {
        Verdict::Hold => '.',
        Verdict::Alert(_) => 'a',
        Verdict::Recovered => 'o',
        Verdict::Reverse(_) => 'r',
    }
}

/// `+` a sample beyond the limit, `=` one at it, `-` one within it, `?` none.
fn sample(letter: char) -> Sample {
    match letter {
        '+' => Sample::Value(51.0),
        '=' => Sample::Value(50.0),
        '-' => Sample::Value(0.0),
        'n' => Sample::Value(f64::NAN),
        _ => Sample::Missing,
    }
}

fn play(watch: &mut Watch, at: usize, samples: &str) -> String {
    samples.chars().map(|one| letter(&watch.look(at, sample(one)))).collect()
}

#[test]
fn a_row_of_samples_comes_to_this() {
    for (samples, then, looks, verdicts) in [
        // So many in a row, and not one less.
        (3, Then::Reverse, "++-+++", ".....r"),
        (1, Then::Reverse, "-+", ".r"),
        (3, Then::Reverse, "==========", ".........."),
        // No sample neither counts nor breaks a row, and trips nothing.
        (3, Then::Reverse, "??????????", ".........."),
        (3, Then::Reverse, "+?+?n?", "......"),
        (3, Then::Reverse, "+?+?n+", ".....r"),
        // Once for a switch: what would reverse again tells people instead, once.
        (2, Then::Reverse, "+++++", ".ra.."),
        // An alert is said once until as many in a row are within the limit.
        (2, Then::Alert, "++++", ".a.."),
        (2, Then::Alert, "++-+-++", ".a....."),
        (2, Then::Alert, "++-?-++", ".a..o.a"),
        (2, Then::Alert, "--", ".."),
    ] {
        let mut watch = Watch::new([rule(samples, then)], false);
        assert_eq!(play(&mut watch, 0, looks), verdicts, "{samples} {then:?} {looks}");
    }
}

#[test]
fn the_evidence_is_the_row_that_tripped_it() {
    let mut watch = Watch::new([rule(2, Then::Reverse)], false);
    for value in [70.0, 1.0, 60.0] {
        assert_eq!(watch.look(0, Sample::Value(value)), Verdict::Hold);
    }
    let evidence = Evidence { values: vec![60.0, 80.0] };
    assert_eq!(watch.look(0, Sample::Value(80.0)), Verdict::Reverse(evidence));
    assert_eq!((watch.triggers()[0].last(), watch.triggers()[0].beyond()), (Some(80.0), 2));
}

#[test]
fn below_is_the_other_way_round() {
    let below = Rule { limit: Limit::Below(10.0), samples: 1, then: Then::Alert };
    let mut watch = Watch::new([below], false);
    assert_eq!(watch.look(0, Sample::Value(10.0)), Verdict::Hold);
    assert!(matches!(watch.look(0, Sample::Value(9.9)), Verdict::Alert(_)));
}

#[test]
fn after_one_has_fired_another_does_not_reverse_the_same_switch() {
    let mut watch = Watch::new([rule(1, Then::Reverse), rule(1, Then::Reverse)], false);
    assert_eq!(play(&mut watch, 0, "+"), "r");
    assert_eq!(play(&mut watch, 1, "+"), "a");
    let mut later = Watch::new([rule(1, Then::Reverse)], true);
    assert_eq!(play(&mut later, 0, "+"), "a", "an earlier process has fired");
}

#[test]
fn what_people_were_told_by_an_earlier_process_is_not_told_again() {
    let mut watch = Watch::new([rule(1, Then::Alert)], false);
    watch.was_alerting(0);
    assert_eq!(play(&mut watch, 0, "++-+"), "..oa");
}

#[test]
fn drift_counts_only_if_it_has_grown_and_rows_were_compared() {
    let share = |part, whole| Share { part, whole };
    let drift = |since, at_switch| Sample::Drift { since, at_switch };
    let above = Rule { limit: Limit::Above(10.0), samples: 1, then: Then::Reverse };
    for (since, at_switch, expected) in [
        (share(0, 0), share(0, 0), '.'),
        (share(0, 1000), share(0, 0), '.'),
        // 10 ppm is not above 10 ppm.
        (share(1, 100_000), share(0, 0), '.'),
        (share(2, 100_000), share(0, 0), 'r'),
        // As bad as it was before, or better: the switch is not the reason.
        (share(2, 100_000), share(2, 100_000), '.'),
        (share(2, 100_000), share(3, 100_000), '.'),
        (share(2, 100_000), share(1, 100_000), 'r'),
    ] {
        let mut watch = Watch::new([above], false);
        assert_eq!(
            letter(&watch.look(0, drift(since, at_switch))),
            expected,
            "{since:?} after {at_switch:?}"
        );
    }
    let mut watch = Watch::new([Rule { samples: 2, ..above }], false);
    let same = drift(share(5, 100), share(0, 100));
    assert_eq!((0..5).map(|_| letter(&watch.look(0, same))).collect::<String>(), ".....", "one comparison");
    assert_eq!(letter(&watch.look(0, drift(share(5, 101), share(0, 100)))), 'r');
}

proptest! {
    /// Whatever the samples are: at most one reversal, and each after as many samples beyond the limit in a row.
    #[test]
    fn one_switch_is_taken_back_once_and_only_upon_a_row(
        looks in prop::collection::vec((0usize..2, prop::sample::select(vec!['+', '-', '=', '?', 'n'])), 0..60),
        samples in 1u32..5,
    ) {
        let mut watch = Watch::new([rule(samples, Then::Reverse), rule(samples, Then::Alert)], false);
        let mut rows = [0u32, 0];
        let mut reversals = 0;
        let mut alerting = [false, false];
        for (at, one) in looks {
            match one {
                '+' => rows[at] += 1,
                '-' | '=' => rows[at] = 0,
                _ => {}
            }
            match watch.look(at, sample(one)) {
                Verdict::Reverse(evidence) => {
                    reversals += 1;
                    prop_assert_eq!(at, 0);
                    prop_assert!(rows[at] >= samples && one == '+');
                    prop_assert_eq!(evidence.values.len(), samples as usize);
                }
                Verdict::Alert(_) => {
                    prop_assert!(rows[at] >= samples && one == '+' && !alerting[at]);
                    alerting[at] = true;
                }
                Verdict::Recovered => {
                    prop_assert!(alerting[at] && rows[at] == 0);
                    alerting[at] = false;
                }
                Verdict::Hold => prop_assert!(one != '+' || rows[at] < samples || alerting[at]),
            }
        }
        prop_assert!(reversals <= 1);
    }
}
