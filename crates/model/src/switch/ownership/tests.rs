//! The transitions as a table of statements, and what no sequence of them may do.

use super::*;
use proptest::prelude::*;

const fn id(epoch: u64, attempt: u64) -> FenceId {
    FenceId { epoch: Epoch(epoch), attempt: Attempt(attempt) }
}
const fn owner(epoch: u64, attempt: u64) -> Ownership {
    Ownership::Owner { epoch: Epoch(epoch), attempt: Attempt(attempt) }
}
const fn fenced(epoch: u64, attempt: u64) -> Ownership {
    Ownership::Fenced { epoch: Epoch(epoch), attempt: Attempt(attempt), deadline_us: 100 }
}
const fn handed_over(epoch: u64, attempt: u64) -> Ownership {
    Ownership::HandedOver { epoch: Epoch(epoch), attempt: Attempt(attempt) }
}
const fn follower(epoch: u64) -> Ownership {
    Ownership::Follower { epoch: Epoch(epoch) }
}

#[test]
fn a_switch_and_its_reverse_pass_the_ownership_to_and_fro() {
    let (source, target) = (Ownership::FIRST_OWNER, Ownership::FIRST_FOLLOWER);
    let source = fence(source, id(1, 0), Attempt(1), 100).unwrap();
    let source = flip(source, id(1, 1), 50, 10).unwrap();
    let target = open(target, id(1, 1), Some(id(1, 1))).unwrap();
    assert_eq!((source, target), (handed_over(1, 1), owner(2, 1)));
    let source = become_follower(source, target.epoch()).unwrap();
    let target = fence(target, id(2, 1), Attempt(2), 100).unwrap();
    let target = flip(target, id(2, 2), 50, 10).unwrap();
    let source = open(source, id(2, 2), Some(id(2, 2))).unwrap();
    assert_eq!((source, target), (owner(3, 2), handed_over(2, 2)));
}

#[test]
fn a_fence_needs_the_row_that_was_read_and_a_number_above_it() {
    assert_eq!(fence(owner(1, 2), id(1, 2), Attempt(3), 100), Ok(fenced(1, 3)));
    assert_eq!(fence(fenced(1, 2), id(1, 2), Attempt(3), 100), Ok(fenced(1, 3)), "over an earlier fence");
    let used = Refusal::AttemptUsed { asked: Attempt(2), last: Attempt(2) };
    assert_eq!(fence(owner(1, 2), id(1, 2), Attempt(2), 100), Err(used));
    for found in [owner(1, 3), owner(2, 2), fenced(1, 3), handed_over(1, 2), follower(1)] {
        let wanted = id(1, 2);
        assert_eq!(fence(found, wanted, Attempt(9), 100), Err(Refusal::Changed { wanted, found }));
    }
}

#[test]
fn unfencing_touches_its_own_fence_only_and_may_be_repeated() {
    let wanted = id(1, 2);
    assert_eq!(unfence(fenced(1, 2), wanted), Ok(owner(1, 2)));
    assert_eq!(unfence(owner(1, 2), wanted), Ok(owner(1, 2)));
    for found in [fenced(1, 3), fenced(2, 2), owner(1, 3), handed_over(1, 2), follower(1)] {
        assert_eq!(unfence(found, wanted), Err(Refusal::Changed { wanted, found }));
    }
}

#[test]
fn a_fence_is_taken_back_from_its_deadline_on() {
    assert_eq!(
        take_back(fenced(1, 2), 99),
        Err(Refusal::NotExpired { fence: id(1, 2), left_us: 1 }),
        "a microsecond before"
    );
    assert_eq!(take_back(fenced(1, 2), 100), Ok(owner(1, 2)));
    for row in [owner(1, 2), handed_over(1, 2), follower(1)] {
        assert!(take_back(row, i64::MAX).is_err());
    }
}

#[test]
fn a_hand_over_needs_this_very_fence_and_time_left() {
    let wanted = id(1, 2);
    assert_eq!(flip(fenced(1, 2), wanted, 89, 10), Ok(handed_over(1, 2)));
    assert_eq!(flip(fenced(1, 2), wanted, 90, 10), Err(Refusal::TooLate { fence: wanted, late_us: 0 }));
    for found in [fenced(1, 3), fenced(2, 2), owner(1, 2), handed_over(1, 2), follower(1)] {
        assert_eq!(flip(found, wanted, 0, 10), Err(Refusal::Changed { wanted, found }));
    }
}

#[test]
fn opening_needs_the_marker_of_this_very_fence() {
    let wanted = id(1, 2);
    for applied in [None, Some(id(1, 1)), Some(id(2, 2)), Some(id(0, 2))] {
        assert_eq!(open(follower(0), wanted, applied), Err(Refusal::MarkerNotApplied { wanted, applied }));
    }
    assert_eq!(open(follower(0), wanted, Some(wanted)), Ok(owner(2, 2)));
    assert_eq!(open(handed_over(0, 1), wanted, Some(wanted)), Ok(owner(2, 2)));
}

#[test]
fn an_epoch_is_opened_once() {
    for found in [owner(2, 2), fenced(2, 3), handed_over(2, 3), follower(2), owner(4, 9), owner(1, 1)] {
        let refusal = Refusal::NotBelow { asked: Epoch(2), found };
        assert_eq!(open(found, id(1, 2), Some(id(1, 2))), Err(refusal));
    }
}

#[test]
fn only_a_side_that_has_handed_over_follows_and_only_a_later_owner() {
    assert_eq!(become_follower(handed_over(1, 2), Epoch(2)), Ok(follower(1)));
    assert_eq!(become_follower(follower(1), Epoch(2)), Ok(follower(1)));
    for found in [owner(1, 2), fenced(1, 2), handed_over(2, 2)] {
        let successor = Epoch(2);
        assert_eq!(become_follower(found, successor), Err(Refusal::NotHandedOver { successor, found }));
    }
}

#[test]
fn the_stored_form_is_fixed() {
    let text = r#"{"version":1,"state":"fenced","epoch":1,"attempt":2,"deadline_us":100}"#;
    assert_eq!(fenced(1, 2).to_text(), text);
    assert_eq!(text.parse(), Ok(fenced(1, 2)));
    assert_eq!(
        text.replace(r#""version":1"#, r#""version":2"#).parse::<Ownership>(),
        Err(Unreadable::Version(2))
    );
    for bad in ["", "{}", "null", r#"{"version":1,"state":"owner"}"#, r#"{"state":"follower","epoch":1}"#] {
        assert_eq!(bad.parse::<Ownership>(), Err(Unreadable::Form(bad.to_owned())), "{bad}");
    }
}

fn any_row() -> impl Strategy<Value = Ownership> {
    let numbers = (0u64..4, 0u64..5, -9i64..9);
    (0..4, numbers).prop_map(|(state, (epoch, attempt, deadline_us))| {
        let (epoch, attempt) = (Epoch(epoch), Attempt(attempt));
        match state {
            0 => Ownership::Owner { epoch, attempt },
            1 => Ownership::Fenced { epoch, attempt, deadline_us },
            2 => Ownership::HandedOver { epoch, attempt },
            _ => Ownership::Follower { epoch },
        }
    })
}

proptest! {
    #[test]
    fn every_row_can_be_stored_and_read(row in any_row()) {
        prop_assert_eq!(row.to_text().parse(), Ok(row));
    }

    #[test]
    fn no_transition_lowers_the_epoch_and_only_opening_raises_it(
        row in any_row(), epoch in 0u64..4, attempt in 0u64..5, now_us in -9i64..9,
    ) {
        let it = id(epoch, attempt);
        for new in [
            fence(row, it, Attempt(attempt + 1), now_us),
            unfence(row, it),
            take_back(row, now_us),
            flip(row, it, now_us, 1),
            become_follower(row, Epoch(epoch)),
        ].into_iter().flatten() {
            prop_assert_eq!(new.epoch(), row.epoch());
        }
        if let Ok(new) = open(row, it, Some(it)) {
            prop_assert!(new.epoch() > row.epoch());
        }
    }

    #[test]
    fn what_was_handed_over_comes_back_by_opening_only(epoch in 0u64..4, attempt in 0u64..5, asked in 0u64..4, now_us in any::<i64>()) {
        let row = handed_over(epoch, attempt);
        let it = id(asked, attempt);
        prop_assert!(fence(row, it, Attempt(9), now_us).is_err());
        prop_assert!(unfence(row, it).is_err());
        prop_assert!(take_back(row, now_us).is_err());
        prop_assert!(flip(row, it, now_us, 0).is_err());
    }

    #[test]
    fn no_moment_serves_both_a_hand_over_and_a_late_writer(now_us in any::<i64>(), deadline_us in any::<i64>(), margin_us in 0i64..1_000_000) {
        let row = Ownership::Fenced { epoch: Epoch(1), attempt: Attempt(1), deadline_us };
        prop_assert!(flip(row, id(1, 1), now_us, margin_us).is_err() || take_back(row, now_us).is_err());
    }
}
