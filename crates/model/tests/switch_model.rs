//! The switch protocol, explored exhaustively: every interleaving of drivers, servers, writers, crashes and clocks, on
//! the very functions that run (`segue_model::switch`).
//!
//! One space with everything in it would be too large, so several spaces cover the list together; each bound is in its
//! configuration, and what never changes is in [`World::SMALL`]. Two sides and two drivers are all that there can be
//! (a third driver is like the second one, who takes over as often as it needs); two writers are needed for one to
//! hold a lock on a row that the other one waits for. A second write by one writer, a fourth attempt and a second reverse
//! repeat what is there. At most one request is astray at a time: each takes a token of its own away from its driver.
//!
//! For each rule of the protocol there is a world without it, and a test that the checker finds what goes wrong there.
//! Where two rules guard the same thing, the test shows that either of them suffices and that without both it goes wrong.
//!
//! Not modelled: what routers hold, arming, settling and sequences (they touch neither row nor stream); standbys and
//! failover, so neither a flip that a promoted standby does not have nor a marker that a restored side has lost; several
//! tables (all their locks are one); waits for locks that end in a time-out (they end a request, as any end does).

#[path = "switch_model/drivers.rs"]
mod drivers;
#[path = "switch_model/servers.rs"]
mod servers;
#[path = "switch_model/state.rs"]
mod state;
#[path = "switch_model/way_back.rs"]
mod way_back;
#[path = "switch_model/world.rs"]
mod world;
#[path = "switch_model/writers.rs"]
mod writers;

use stateright::{Checker, HasDiscoveries, Model};
use way_back::{Graph, Helpers};
use world::{COMPLETE, EQUAL, LAST_EPOCH, ONE_SIDE, Without, World};

/// A switch, with everything of which there must be two.
const SWITCH: World = World { attempts: 2, two_drivers: true, ..World::SMALL };
const REVERSE: World = World { epochs: 3, ..SWITCH };
const NOTHING: Without = Without::NOTHING;

/// Explores a world and expects that its invariants hold, and that they do so on a way that leads somewhere.
fn holds(world: World) {
    let checker = world.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    eprintln!("{} states, {} transitions", checker.unique_state_count(), checker.state_count());
    for name in [ONE_SIDE, COMPLETE, EQUAL] {
        if let Some(path) = checker.discovery(name) {
            panic!("not so: {name}\n{:#?}", path.into_actions());
        }
    }
    assert!(checker.discovery(LAST_EPOCH).is_some(), "no run gets to the last epoch");
}

/// Explores a world and expects that one of `wrong` does not hold in it.
fn fails(world: World, wrong: &[&'static str]) {
    let checker = world.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = wrong.iter().find_map(|name| checker.discovery(name));
    let events = found.map(|path| path.into_actions().len());
    eprintln!("{} states, a counterexample of {} events", checker.unique_state_count(), events.unwrap_or(0));
    assert!(events.is_some(), "the checker does not notice that the rule is missing");
}

/// Explores a world and expects a way back from each of its states, whoever is left to help.
fn leads_back(world: World) {
    let graph = Graph::explore(world);
    for helpers in [Helpers::SecondDriver, Helpers::Nobody] {
        let (count, way) = graph.stuck(helpers);
        eprintln!("{} states, {count} without a way back for {helpers:?}", graph.len());
        assert_eq!(count, 0, "no way back for {helpers:?} after\n{way:#?}");
    }
}

// What holds.

#[test]
fn late_writers_and_clocks_that_step_back_do_no_harm() {
    holds(World { writers: &[1, 1], clock_steps: 1, snapshots: true, ..SWITCH });
}

#[test]
fn a_third_attempt_and_a_reverse_do_no_harm() {
    holds(World { attempts: 3, epochs: 3, clock_steps: 1, ..SWITCH });
}

#[test]
fn a_request_that_runs_long_after_it_was_given_up_does_no_harm() {
    holds(World { give_ups: 1, ..SWITCH });
    // With both, the first driver back under a new token and a second attempt, the space is five times as large.
    holds(World { give_ups: 1, renewals: 1, attempts: 1, ..SWITCH });
}

#[test]
fn a_request_that_runs_after_a_reverse_does_no_harm() {
    holds(World { give_ups: 1, ..REVERSE });
}

#[test]
fn crashes_and_silent_sides_do_no_harm() {
    holds(World { crashes: 2, renewals: 1, silence: true, ..REVERSE });
}

#[test]
fn a_driver_that_decides_by_what_was_so_long_ago_does_no_harm() {
    holds(World { looks: true, ..REVERSE });
}

#[test]
fn from_everywhere_there_is_a_way_back() {
    leads_back(World { clock_steps: 1, crashes: 1, ..SWITCH });
    leads_back(REVERSE);
}

#[test]
fn a_lost_request_leaves_a_way_back() {
    leads_back(World { give_ups: 1, ..SWITCH });
}

#[test]
fn a_driver_that_decides_by_what_was_so_long_ago_leaves_a_way_back() {
    leads_back(World { looks: true, attempts: 1, ..SWITCH });
}

// What does not hold without its rule.

#[test]
fn a_flip_whose_clock_is_read_before_the_lock_loses_a_write_that_the_row_does_not_show() {
    let blind = Without { late_writers_take_back: true, ..NOTHING };
    holds(World { without: blind, ..SWITCH });
    holds(World { without: Without { clock_after_lock: true, ..NOTHING }, ..SWITCH });
    fails(World { without: Without { clock_after_lock: true, ..blind }, ..SWITCH }, &[COMPLETE]);
}

#[test]
fn late_writers_that_do_not_take_back_are_lost_when_a_clock_steps_back() {
    let without = Without { late_writers_take_back: true, ..NOTHING };
    fails(World { clock_steps: 1, without, ..SWITCH }, &[COMPLETE]);
}

#[test]
fn an_unfence_that_compares_nothing_opens_a_side_that_has_handed_over() {
    let without = Without { unfence_compares: true, ..NOTHING };
    fails(World { without, ..SWITCH }, &[ONE_SIDE, COMPLETE]);
}

#[test]
fn a_flip_that_compares_the_epoch_only_hands_over_what_was_taken_back() {
    let without = Without { flip_compares: true, ..NOTHING };
    fails(World { clock_steps: 1, without, ..SWITCH }, &[COMPLETE]);
}

#[test]
fn opening_without_the_marker_trusts_a_driver_that_believes_too_early() {
    let hasty = World { hasty: true, ..SWITCH };
    holds(hasty);
    fails(World { without: Without { open_looks_for_marker: true, ..NOTHING }, ..hasty }, &[COMPLETE]);
}

#[test]
fn a_follower_whose_fence_has_a_deadline_is_kept_by_its_row_alone() {
    let finite = Without { follower_is_fenced_forever: true, ..NOTHING };
    holds(World { without: finite, ..SWITCH });
    let careless = Without { follower_refuses_late_writers: true, ..NOTHING };
    holds(World { without: careless, ..SWITCH });
    let both = Without { follower_refuses_late_writers: true, ..finite };
    fails(World { without: both, ..SWITCH }, &[ONE_SIDE, COMPLETE]);
}

#[test]
fn a_second_fence_without_table_locks_misses_a_writer_on_its_way() {
    let two = World { writers: &[1, 1], ..SWITCH };
    let unlocked = Without { refence_locks: true, ..NOTHING };
    holds(World { without: unlocked, ..two });
    holds(World { without: Without { trigger_locks_row: true, ..NOTHING }, ..two });
    fails(World { without: Without { trigger_locks_row: true, ..unlocked }, ..two }, &[COMPLETE]);
}

#[test]
fn a_trigger_that_reads_the_row_without_a_lock_believes_an_old_snapshot() {
    let without = Without { trigger_locks_row: true, ..NOTHING };
    fails(World { snapshots: true, without, ..SWITCH }, &[COMPLETE]);
}

#[test]
fn a_flip_that_is_not_durable_is_undone_by_a_crash() {
    let without = Without { flip_is_synchronous: true, ..NOTHING };
    fails(World { crashes: 1, without, ..SWITCH }, &[ONE_SIDE, COMPLETE]);
}

#[test]
fn a_token_in_one_database_leaves_the_other_to_the_comparisons() {
    let half = Without { token_on_target: true, ..NOTHING };
    holds(World { without: half, ..REVERSE });
    holds(World { without: Without { open_compares: true, ..NOTHING }, ..REVERSE });
    fails(World { without: Without { open_compares: true, ..half }, ..REVERSE }, &[ONE_SIDE, COMPLETE]);
}

#[test]
fn a_driver_that_stops_inside_the_fence_stops_the_application_unless_its_session_is_ended() {
    let graph = Graph::explore(World { without: Without { idle_time_out: true, ..NOTHING }, ..SWITCH });
    for helpers in [Helpers::SecondDriver, Helpers::Nobody] {
        assert!(graph.stuck(helpers).0 > 0, "{helpers:?}");
    }
}
