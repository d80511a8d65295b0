//! The seam rule, checked over every order of steps that small bounds leave.
//!
//! The model's Segue decides with the program's own code: `UnitRegions` (begin, offered seams, judging, giving up,
//! restoring), `route`, `Seam::contains` and `Xid32::widen`. The source, the target and what the engine does around
//! the map are written for the model ([source], [segue]); [world] puts them together and says what must hold.
//! [traps] looks for runs that cannot end well.
//!
//! Each test that removes a rule shows that the checker notices; so the bounds are wide enough for that rule. Bounds
//! and their reasons: two keys, of which each has a region of its own, since regions meet only where a change leaves
//! one for the other; two or three transactions, since one must be skipped, one run while a snapshot is taken, and
//! one reuse the number of another; one kill and one crash of the source, since a second one finds the world in a
//! state that some first one finds, too; one transaction to a batch. What a test leaves out (aborts, kills, crashes),
//! another one has, so that each stays at a few hundred thousand states and all together below a minute.

#![allow(clippy::expect_used, reason = "a model that meets what it cannot mean has to stop")]

mod map;
mod segue;
mod source;
mod traps;
mod world;

use source::Step::{self, Put, PutOrDelete, Rekey};
use stateright::{Checker, HasDiscoveries, Model};
use world::{Action, Bug, EQUAL, FITS, ONCE, World};

/// A world without accidents: one row is there, the other is not.
fn world(scripts: &[&[Step]]) -> World {
    World {
        scripts: scripts.iter().map(|s| s.to_vec()).collect(),
        rows: [Some(9), None],
        aborts: false,
        kills: 0,
        crashes: 0,
        hand_over: false,
        standby_follows_segue: false,
        bug: None,
    }
}

fn holds(world: World) {
    let checker = world.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

/// A shortest run in which `property` does not hold without the rule that `bug` leaves out.
fn breaks(bug: Bug, property: &'static str, world: World) -> Vec<Action> {
    let world = World { bug: Some(bug), ..world };
    let found = HasDiscoveries::AnyOf([property].into());
    let checker = world.checker().finish_when(found).spawn_bfs().join();
    let run = checker.assert_any_discovery(property).into_actions();
    println!("{} states, then {bug:?}: {run:?}", checker.unique_state_count());
    run
}

#[test]
fn transactions_over_both_regions() {
    holds(world(&[&[Put(0), Put(1)], &[Put(0), Put(1)]]));
    holds(world(&[&[Put(0)], &[Rekey(0)], &[Put(0)]]));
}

#[test]
fn wider_bounds() {
    // Takes minutes.
    if std::env::var_os("SEGUE_SOAK").is_none() {
        return;
    }
    let three = world(&[&[Put(0)], &[Put(0)], &[Put(1)]]);
    holds(three.clone());
    holds(World {
        kills: 1,
        crashes: 1,
        aborts: true,
        ..world(&[&[Put(0), PutOrDelete(1)], &[PutOrDelete(0)]])
    });
    holds(World { kills: 1, crashes: 1, ..world(&[&[Put(0)], &[Put(0)], &[Put(0)]]) });
    holds(World { aborts: true, crashes: 1, kills: 1, ..world(&[&[PutOrDelete(0)], &[PutOrDelete(0)]]) });
    holds(World { kills: 2, ..world(&[&[Put(0), Put(1)], &[Put(0)]]) });
    holds(World { kills: 1, ..three });
}

#[test]
fn rows_that_come_and_go_while_segue_is_killed() {
    holds(World { kills: 1, ..world(&[&[PutOrDelete(0), PutOrDelete(1)], &[PutOrDelete(0)]]) });
}

#[test]
fn rows_that_move_between_regions() {
    holds(World { kills: 1, ..world(&[&[Rekey(0)], &[PutOrDelete(0)]]) });
    holds(World { crashes: 1, ..world(&[&[Rekey(0)], &[Rekey(1)]]) });
}

#[test]
fn a_source_that_crashes_gives_numbers_and_places_out_again() {
    holds(World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)], &[Put(0)]]) });
}

#[test]
fn aborts_that_a_crash_undoes_while_segue_is_killed() {
    holds(World { aborts: true, crashes: 1, kills: 1, ..world(&[&[Put(0)], &[Put(0)]]) });
}

#[test]
fn the_map_is_dropped_once_the_stream_has_passed_a_signal() {
    holds(World { hand_over: true, kills: 1, ..world(&[&[Put(0)], &[Put(1)]]) });
    holds(World { hand_over: true, crashes: 1, ..world(&[&[Put(0), PutOrDelete(1)]]) });
}

#[test]
fn every_run_can_still_end_whatever_has_happened() {
    let two = World { kills: 1, ..world(&[&[Put(0), Put(1)], &[Put(0)]]) };
    let accidents = World { crashes: 1, hand_over: true, ..world(&[&[Put(0), Put(1)]]) };
    // A standby that shows a commit only after Segue has passed it is refused at birth (ADR 0006), and still no trap.
    for world in [World { standby_follows_segue: true, ..two.clone() }, two, accidents] {
        let (states, traps) = traps::traps(&world);
        println!("{states} states");
        assert!(traps.is_empty(), "{} of {states} states lead nowhere, such as {:#?}", traps.len(), traps[0]);
    }
}

#[test]
fn a_region_that_is_never_put_back_can_stop_everything() {
    let world = World { standby_follows_segue: true, ..world(&[&[Put(0), Put(1)]]) };
    assert!(traps::traps(&world).1.is_empty());
    // The stream waits for the region, the region for a snapshot that shows what the stream has skipped, and the
    // snapshot for the stream.
    let (states, traps) = traps::traps(&World { bug: Some(Bug::NeverPutBack), ..world });
    println!("{states} states, {} of them lead nowhere", traps.len());
    assert!(!traps.is_empty());
}

#[test]
fn without_the_frozen_set_a_skipped_row_is_lost() {
    // Skipped while its commit is not visible; the copy is then taken under a snapshot that lacks it.
    breaks(Bug::NoFrozenSet, EQUAL, world(&[&[Put(0)]]));
    // Or a later change misses the row.
    breaks(Bug::NoFrozenSet, FITS, world(&[&[Put(1)], &[Put(1)]]));
}

#[test]
fn a_checkpoint_without_the_skipped_transactions_loses_a_row() {
    // The same, with a kill between skipping and marking.
    let run = breaks(Bug::SkippedNotStored, EQUAL, World { kills: 1, ..world(&[&[Put(0)]]) });
    assert!(run.contains(&Action::Kill));
}

#[test]
fn a_barrier_by_xmax_overlooks_a_commit_that_waits_for_a_standby() {
    // Recorded before the slot, hence not streamed; visible only after the copy.
    breaks(Bug::BarrierByXmax, EQUAL, world(&[&[Put(0)]]));
    breaks(Bug::NoBarrier, EQUAL, world(&[&[Put(0)]]));
}

#[test]
fn a_copy_committed_before_the_source_is_durable_keeps_what_never_was() {
    let run =
        breaks(Bug::CommittedBeforeFlushed, EQUAL, World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)]]) });
    assert!(run.contains(&Action::Crash));
}

#[test]
fn a_durable_position_proves_nothing_in_another_session() {
    // After the crash the log grows past the position again, with other transactions under the same numbers.
    let run =
        breaks(Bug::PositionInAnotherSession, EQUAL, World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)]]) });
    assert!(run.contains(&Action::Crash));
}

#[test]
fn a_position_read_before_the_snapshot_does_not_cover_it() {
    let run = breaks(Bug::PositionBeforeSeam, EQUAL, World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)]]) });
    assert!(run.contains(&Action::Crash));
}

#[test]
fn a_seam_is_more_than_one_number() {
    // All below xmax counted as contained: what was in progress is dropped and lost.
    breaks(Bug::InProgressIgnored, EQUAL, world(&[&[Put(0)], &[Put(1)]]));
    // Nothing from xmin on counted as contained: what the copy has is applied again.
    breaks(Bug::OnlyBelowXmin, ONCE, world(&[&[Put(0)], &[Put(1)]]));
}

#[test]
fn a_straggler_that_is_not_shut_out_brings_back_an_old_seam() {
    // Its successor, which took the region for not begun, has dropped events that the straggler's copy lacks.
    breaks(Bug::NoFence, EQUAL, World { kills: 1, ..world(&[&[Put(0)]]) });
}

#[test]
fn a_map_dropped_without_a_signal_applies_what_the_copy_has() {
    breaks(Bug::RetiredWithoutSignal, ONCE, World { hand_over: true, ..world(&[&[Put(0)], &[Put(1)]]) });
}
