//! What people read when writes are moved.

use super::*;
use crate::drive::switch::answer::StepTook;
use segue_model::switch::gates::Gate;
use segue_model::switch::ownership::Epoch;
use segue_model::switch::steps::Step;
use std::time::Duration;

fn moved(owner: Side) -> Moved {
    Moved {
        steps: vec![
            StepTook::new(Step::Arm, Duration::from_millis(1230)),
            StepTook::new(Step::Fence, Duration::from_micros(3100)),
        ],
        sequences: 4,
        compared_under_fence: 10,
        ..Moved::to(owner, Epoch(2)).stalled(Duration::from_micros(12_300))
    }
}

#[test]
fn a_switch_says_who_owns_the_writes_what_it_cost_and_both_ways_on() {
    assert_eq!(
        render(&Answer::Switched(moved(Side::Target))),
        "the target owns the writes now (epoch 2); no side took writes for 12.3 ms\n  \
           steps: arm 1.2 s, fence 3.1 ms\n  \
           sequences set: 4; rows compared while nobody could write: 10, none differs\n\
         to go back: `segue reverse`\nto finish, and give the way back up: `segue complete`\n"
    );
    let back = render(&Answer::Switched(moved(Side::Source)));
    assert!(
        back.starts_with("the source owns the writes now") && back.contains("`segue switch writes`"),
        "{back}"
    );
    assert!(
        !back.contains("`segue complete`"),
        "a source that owns the writes cannot be done without: {back}"
    );
}

#[test]
fn a_rehearsal_says_what_is_as_before_what_is_not_and_what_a_switch_would_cost() {
    let text = render(&Answer::Rehearsed(moved(Side::Source)));
    for part in [
        "undone: the source owns the writes as before",
        "stall writes for about 12.3 ms",
        "\nnext: `segue switch",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert!(!text.contains("the way back was armed"), "it was there before: {text}");
    let first = render(&Answer::Rehearsed(moved(Side::Source)).arming(true));
    assert!(first.contains("\nthe way back was armed for this, and stays so: "), "{first}");
}

#[test]
fn what_was_unusual_is_said_first() {
    let unlike_baseline = vec!["source: 9.2 % of all transactions fail".to_owned()];
    let text = render(&Answer::Rehearsed(Moved { unlike_baseline, ..moved(Side::Source) }));
    assert!(
        text.contains("as this one did\n  unusual: source: 9.2 % of all transactions fail\n  steps:"),
        "{text}"
    );
}

#[test]
fn a_standby_that_does_not_know_of_the_hand_over_is_named_with_its_side() {
    let standbys_without = vec!["east".to_owned()];
    let text = render(&Answer::Switched(Moved { standbys_without, ..moved(Side::Target) }));
    let line =
        "  attention: east, which follows the source, is not known to have the hand-over: do not promote it";
    assert!(text.contains(line), "{text}");
}

#[test]
fn what_was_done_before_is_not_called_done_now() {
    let text = render(&Answer::already(Side::Target, Epoch(2)));
    assert!(text.starts_with("the target owns the writes already (epoch 2); nothing was done\n"), "{text}");
}

#[test]
fn a_refusal_has_a_line_for_each_gate_and_offers_only_what_is_possible() {
    let blocked = |gate: &str, may_be_overridden| Blocked {
        gate: gate.into(),
        why: "why".into(),
        next: "do this".into(),
        may_be_overridden,
    };
    assert_eq!(
        refused(&[blocked("verified", false), blocked("lag", true)], "all is well"),
        "refused: 2 gates are red; all is well\n  \
           verified: why; next: do this\n  \
           lag: why; next: do this (or, with your name to it: --override lag --reason TEXT)\n"
    );
    let blockers = vec![blocked("lag", true)];
    let text = render(&Answer::Refused { blockers, way_back_armed: true });
    assert!(text.starts_with("refused: 1 gate is red; no write was moved, or kept waiting\n"), "{text}");
    assert!(text.contains("\nthe way back was armed for this, and stays so: "), "{text}");
}

#[test]
fn an_undone_switch_says_who_takes_writes_how_long_nobody_did_and_who_was_in_the_way() {
    let held = vec!["pid 7 (app)".to_owned(), "pid 8 (report)".to_owned()];
    let undone = Answer::undone(
        Side::Source,
        "public.t is locked",
        held,
        Duration::from_millis(400),
        "wait for pid 7",
    );
    assert_eq!(
        render(&undone),
        "undone: the source takes writes again, after 400 ms without: public.t is locked\n  \
           lock held by pid 7 (app)\n  lock held by pid 8 (report)\nnext: wait for pid 7\n"
    );
}

#[test]
fn each_step_is_shown_once_also_when_it_was_begun_anew() {
    let step = |step, ms| StepTook::new(step, Duration::from_millis(ms));
    let first = Progress { steps: vec![step(Step::Arm, 5)], ..Progress::default() };
    let second = Progress { steps: vec![step(Step::Arm, 5), step(Step::Hold, 1)], ..Progress::default() };
    assert_eq!(done_since(&Progress::default(), &first).len(), 1);
    let news = done_since(&first, &second);
    assert_eq!(news, ["hold        1.0 ms  parks new writes and new transactions in the routers"]);
    assert_eq!(done_since(&second, &second).len(), 0);
    let anew = Progress { steps: vec![step(Step::Arm, 2)], ..Progress::default() };
    assert_eq!(done_since(&second, &anew).len(), 1);
}

#[test]
fn what_is_under_way_says_what_it_does_or_what_it_waits_for() {
    let arming = Progress { doing: Some(Step::Arm), ..Progress::default() };
    assert!(under_way(&arming).contains("makes the opposite stream"), "{}", under_way(&arming));
    assert!(
        under_way(&arming).chars().count() <= 80,
        "a line that wraps cannot be erased: {}",
        under_way(&arming)
    );
    let waiting = Progress { waits_for: "pid 7 (app), open for 3 min".into(), ..arming };
    assert!(
        under_way(&waiting).ends_with("waits for pid 7 (app), open for 3 min"),
        "{}",
        under_way(&waiting)
    );
}

#[test]
fn one_reason_goes_with_every_override_and_data_is_never_overridden() {
    let asked = |gates: &[Gate]| Overriding { gates: gates.to_vec(), reason: Some("agreed".into()) };
    let made = order(true, &asked(&[Gate::Lag, Gate::Drift])).unwrap();
    assert!(
        made.rehearse && made.overrides.iter().all(|o| o.reason == "agreed") && made.overrides.len() == 2
    );
    assert_eq!(order(false, &asked(&[Gate::WayBack])), Err(OverrideRefused::ProtectsData(Gate::WayBack)));
}
