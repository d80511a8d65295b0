//! Decisions as statements; and what holds for all of them.

use super::super::ownership::{Attempt, Epoch};
use super::*;
use proptest::prelude::*;

const fn id(epoch: u64, attempt: u64) -> FenceId {
    FenceId { epoch: Epoch(epoch), attempt: Attempt(attempt) }
}
const fn owner(epoch: u64, attempt: u64) -> Seen {
    Seen::Known(Ownership::Owner { epoch: Epoch(epoch), attempt: Attempt(attempt) })
}
const fn fenced(epoch: u64, attempt: u64) -> Seen {
    Seen::Known(Ownership::Fenced { epoch: Epoch(epoch), attempt: Attempt(attempt), deadline_us: 100 })
}
const fn handed_over(epoch: u64, attempt: u64) -> Seen {
    Seen::Known(Ownership::HandedOver { epoch: Epoch(epoch), attempt: Attempt(attempt) })
}
const fn follower(epoch: u64) -> Seen {
    Seen::Known(Ownership::Follower { epoch: Epoch(epoch) })
}

const HOLD: Duration = Duration::from_secs(2);

fn facts(asked: Asked, source: Seen, target: Seen) -> Facts {
    Facts {
        source,
        target,
        asked,
        armed: true,
        held: true,
        begun: None,
        leftover: false,
        applied: None,
        settled: None,
        elapsed: Duration::ZERO,
        max_write_hold: HOLD,
    }
}

fn act(step: Step, from: Side, fence: FenceId) -> Decision {
    Decision::Act(Turn { step, from, fence })
}
fn undo(step: Step, from: Side, fence: FenceId) -> Decision {
    Decision::Undo(Turn { step, from, fence })
}

/// Does what a decision says to the facts, for a driver to which nothing bad happens; `false` when it has ended.
fn obey(facts: &mut Facts, decision: Decision) -> bool {
    let row = |facts: &mut Facts, side: Side, row: Ownership| match side {
        Side::Source => facts.source = Seen::Known(row),
        Side::Target => facts.target = Seen::Known(row),
    };
    match decision {
        Decision::Act(Turn { step, from, fence: FenceId { epoch, attempt } }) => match step {
            Step::Arm => facts.armed = true,
            Step::Hold => facts.held = true,
            Step::Fence => {
                let attempt = Attempt(attempt.0 + 1);
                facts.begun = Some(FenceId { epoch, attempt });
                row(facts, from, Ownership::Fenced { epoch, attempt, deadline_us: 100 });
            }
            Step::Settle => facts.settled = Some(FenceId { epoch, attempt }),
            Step::Flip => row(facts, from, Ownership::HandedOver { epoch, attempt }),
            Step::Open => {
                row(facts, from.other(), Ownership::Owner { epoch: epoch.next(), attempt });
                row(facts, from, Ownership::Follower { epoch });
                (facts.held, facts.begun) = (false, None);
            }
            Step::Drain => panic!("to drain is to wait"),
        },
        Decision::Undo(Turn { step, from, fence: FenceId { epoch, attempt } }) => {
            facts.asked = Asked::Nothing;
            match step {
                Step::Arm => facts.armed = false,
                Step::Hold => facts.held = false,
                Step::Fence => {
                    (facts.leftover, facts.begun) = (false, None);
                    row(facts, from, Ownership::Owner { epoch, attempt });
                }
                Step::Drain | Step::Settle | Step::Flip | Step::Open => panic!("{step} is never undone"),
            }
        }
        Decision::Wait(WaitFor::Marker(fence)) => facts.applied = Some(fence),
        Decision::Wait(WaitFor::NewSide(_))
        | Decision::Done
        | Decision::AskOldOwner(_)
        | Decision::Contradiction { .. } => return false,
    }
    true
}

fn words_until_end(mut facts: Facts) -> (String, Facts) {
    let mut words = Vec::new();
    for _ in 0..20 {
        let decision = decide(&facts);
        words.push(match decision {
            Decision::Act(turn) => turn.step.name().to_owned(),
            Decision::Undo(turn) => format!("undo-{}", turn.step),
            Decision::Wait(WaitFor::Marker(_)) => "drain".to_owned(),
            Decision::Wait(WaitFor::NewSide(_)) => "new-side".to_owned(),
            Decision::Done => "done".to_owned(),
            Decision::AskOldOwner(_) => "ask".to_owned(),
            Decision::Contradiction { .. } => "contradiction".to_owned(),
        });
        if !obey(&mut facts, decision) {
            break;
        }
    }
    (words.join(" "), facts)
}

#[test]
fn a_switch_and_its_reverse_walk_the_same_steps() {
    let fresh = Facts { armed: false, held: false, ..facts(Asked::Switch, owner(1, 0), follower(0)) };
    let steps = "arm hold fence drain settle flip open undo-arm done";
    let (words, mut after) = words_until_end(fresh);
    assert_eq!(words, steps);
    assert_eq!((after.source, after.target), (follower(1), owner(2, 1)));
    after.asked = Asked::Reverse;
    let (words, after) = words_until_end(after);
    assert_eq!(words, steps);
    assert_eq!((after.source, after.target), (owner(3, 2), follower(2)));
}

#[test]
fn a_rehearsal_goes_as_far_as_settle_and_back() {
    for (source, target) in [(owner(1, 0), follower(0)), (follower(1), owner(2, 1))] {
        let fresh = Facts { armed: false, held: false, ..facts(Asked::Rehearse, source, target) };
        let (words, _) = words_until_end(fresh);
        assert_eq!(words, "arm hold fence drain settle undo-fence undo-hold undo-arm done");
    }
}

#[test]
fn a_restart_before_the_point_of_no_return_undoes_and_after_it_goes_on() {
    for (source, words) in [
        (owner(1, 0), "undo-hold undo-arm done"),
        (fenced(1, 1), "undo-fence undo-hold undo-arm done"),
        (handed_over(1, 1), "drain open undo-arm done"),
    ] {
        assert_eq!(words_until_end(facts(Asked::Nothing, source, follower(0))).0, words, "{source:?}");
    }
    let opened = facts(Asked::Nothing, handed_over(1, 1), owner(2, 1));
    assert_eq!(words_until_end(opened).0, "open undo-arm done", "the routers may still hold");
}

#[test]
fn when_the_time_is_up_everything_before_the_point_of_no_return_is_undone() {
    let late = |source| Facts { elapsed: HOLD, ..facts(Asked::Switch, source, follower(0)) };
    assert_eq!(decide(&late(owner(1, 0))), undo(Step::Hold, Side::Source, id(1, 0)));
    assert_eq!(decide(&late(fenced(1, 1))), undo(Step::Fence, Side::Source, id(1, 1)));
    let ready = Facts {
        begun: Some(id(1, 1)),
        applied: Some(id(1, 1)),
        settled: Some(id(1, 1)),
        ..late(fenced(1, 1))
    };
    assert_eq!(decide(&ready), undo(Step::Fence, Side::Source, id(1, 1)));
    let flipped = Facts { source: handed_over(1, 1), ..ready };
    assert_eq!(decide(&flipped), act(Step::Open, Side::Source, id(1, 1)));
}

#[test]
fn undoing_needs_only_the_old_owner() {
    let alone = facts(Asked::Nothing, fenced(1, 1), Seen::Unknown);
    assert_eq!(words_until_end(alone).0, "undo-fence undo-hold undo-arm done");
    let reverse = facts(Asked::Nothing, Seen::Unknown, fenced(2, 4));
    assert_eq!(words_until_end(reverse).0, "undo-fence undo-hold undo-arm done");
}

#[test]
fn nothing_is_released_while_it_cannot_be_known_whether_the_flip_happened() {
    let silent = facts(Asked::Nothing, Seen::Unknown, follower(0));
    assert_eq!(decide(&silent), Decision::AskOldOwner(Silent::One(Side::Source)));
    let reverse = facts(Asked::Nothing, follower(1), Seen::Unknown);
    assert_eq!(decide(&reverse), Decision::AskOldOwner(Silent::One(Side::Target)));
    let both = facts(Asked::Nothing, Seen::Unknown, Seen::Unknown);
    assert_eq!(decide(&both), Decision::AskOldOwner(Silent::Both));
    let flipped = facts(Asked::Nothing, handed_over(1, 1), Seen::Unknown);
    assert_eq!(decide(&flipped), Decision::Wait(WaitFor::NewSide(Side::Target)));
}

#[test]
fn a_fence_that_was_taken_back_ends_the_attempt() {
    let lost =
        Facts { begun: Some(id(1, 1)), leftover: true, ..facts(Asked::Switch, owner(1, 1), follower(0)) };
    assert_eq!(words_until_end(lost).0, "undo-fence undo-hold undo-arm done");
}

#[test]
fn a_fence_of_another_process_is_fenced_over_or_undone_but_never_flipped() {
    let settled = Facts {
        applied: Some(id(1, 1)),
        settled: Some(id(1, 1)),
        ..facts(Asked::Switch, fenced(1, 1), follower(0))
    };
    assert_eq!(decide(&settled), act(Step::Fence, Side::Source, id(1, 1)));
    let replaced = Facts { begun: Some(id(1, 0)), ..settled };
    assert_eq!(decide(&replaced), undo(Step::Fence, Side::Source, id(1, 1)));
}

#[test]
fn the_command_of_the_other_direction_undoes_and_then_is_done() {
    let turned = facts(Asked::Reverse, fenced(1, 1), follower(0));
    assert_eq!(words_until_end(turned).0, "undo-fence undo-hold undo-arm done");
}

#[test]
fn rows_that_no_history_leads_to_stop_everything() {
    for (source, target) in [
        (owner(1, 0), owner(2, 1)),
        (owner(1, 0), fenced(1, 1)),
        (handed_over(1, 1), handed_over(1, 1)),
        (handed_over(2, 1), follower(2)),
        (follower(1), follower(0)),
    ] {
        let facts = facts(Asked::Switch, source, target);
        assert!(matches!(decide(&facts), Decision::Contradiction { .. }), "{source:?} {target:?}");
    }
}

fn any_seen() -> impl Strategy<Value = Seen> {
    (0..5, 0u64..4, 0u64..4).prop_map(|(state, epoch, attempt)| match state {
        0 => owner(epoch, attempt),
        1 => fenced(epoch, attempt),
        2 => handed_over(epoch, attempt),
        3 => follower(epoch),
        _ => Seen::Unknown,
    })
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let asked = prop::sample::select(vec![Asked::Switch, Asked::Reverse, Asked::Rehearse, Asked::Nothing]);
    let fence = || prop::option::of((0u64..4, 0u64..4).prop_map(|(epoch, attempt)| id(epoch, attempt)));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    ((any_seen(), any_seen(), asked), (fence(), fence(), fence()), flags).prop_map(
        |((source, target, asked), (begun, applied, settled), (armed, held, leftover, late))| Facts {
            armed,
            held,
            begun,
            leftover,
            applied,
            settled,
            elapsed: if late { HOLD } else { Duration::ZERO },
            ..facts(asked, source, target)
        },
    )
}

fn seen_of(facts: &Facts, side: Side) -> Seen {
    match side {
        Side::Source => facts.source,
        Side::Target => facts.target,
    }
}

fn mirrored(facts: &Facts) -> Facts {
    let asked = match facts.asked {
        Asked::Switch => Asked::Reverse,
        Asked::Reverse => Asked::Switch,
        same @ (Asked::Rehearse | Asked::Nothing) => same,
    };
    Facts { source: facts.target, target: facts.source, asked, ..facts.clone() }
}

proptest! {
    #[test]
    fn the_way_back_is_the_way_forward_mirrored(facts in any_facts()) {
        let turned = |turn: Turn| Turn { from: turn.from.other(), ..turn };
        let expected = match decide(&facts) {
            Decision::Act(turn) => Decision::Act(turned(turn)),
            Decision::Undo(turn) => Decision::Undo(turned(turn)),
            Decision::Wait(WaitFor::NewSide(side)) => Decision::Wait(WaitFor::NewSide(side.other())),
            Decision::AskOldOwner(Silent::One(side)) => Decision::AskOldOwner(Silent::One(side.other())),
            Decision::Contradiction { source, target } => Decision::Contradiction { source: target, target: source },
            same @ (Decision::Wait(WaitFor::Marker(_)) | Decision::Done | Decision::AskOldOwner(Silent::Both)) => same,
        };
        prop_assert_eq!(decide(&mirrored(&facts)), expected);
    }

    #[test]
    fn a_flip_needs_everything_and_an_undo_needs_a_side_that_still_owns(facts in any_facts()) {
        match decide(&facts) {
            Decision::Act(Turn { step: Step::Flip, from, fence }) => {
                prop_assert_eq!(facts.begun, Some(fence));
                prop_assert_eq!(facts.settled, Some(fence));
                prop_assert!(fence.is_applied(facts.applied));
                prop_assert!(facts.armed && facts.held && facts.elapsed < HOLD);
                prop_assert!(seen_of(&facts, from.other()) != Seen::Unknown);
                prop_assert!(matches!(facts.asked, Asked::Switch | Asked::Reverse));
            }
            Decision::Undo(turn) => {
                let owns = matches!(
                    seen_of(&facts, turn.from),
                    Seen::Known(Ownership::Owner { .. } | Ownership::Fenced { .. })
                );
                prop_assert!(owns);
            }
            _ => {}
        }
    }

    #[test]
    fn a_lone_driver_comes_to_an_end_with_one_owner_or_says_whom_it_waits_for(facts in any_facts()) {
        let (_, end) = words_until_end(facts);
        match decide(&end) {
            Decision::Done => prop_assert!(!end.held && !end.armed),
            Decision::Wait(WaitFor::NewSide(side)) | Decision::AskOldOwner(Silent::One(side)) => {
                prop_assert_eq!(seen_of(&end, side), Seen::Unknown);
            }
            Decision::AskOldOwner(Silent::Both) | Decision::Contradiction { .. } => {}
            unfinished @ (Decision::Act(_) | Decision::Undo(_) | Decision::Wait(WaitFor::Marker(_))) => {
                prop_assert!(false, "still at it: {unfinished:?}");
            }
        }
    }
}
