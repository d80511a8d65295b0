//! The switch protocol, explored exhaustively.
#[path = "switch_model/state.rs"]
mod state;
#[path = "switch_model/world.rs"]
mod world;
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;
use world::*;

fn check(name: &str, world: World) {
    let begun = Instant::now();
    let checker = world.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    eprintln!(
        "{name}: {} states, {} edges, depth {}, {:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    for (what, path) in checker.discoveries() {
        eprintln!("  {what}");
        if !what.starts_with("the last") {
            for a in path.into_actions() {
                eprintln!("      {a:?}");
            }
        }
    }
}
#[test]
fn sizes() {
    check("small", World::SMALL);
    check("two", World { two_drivers: true, ..World::SMALL });
    check("two+giveup", World { two_drivers: true, give_ups: 1, renewals: 1, ..World::SMALL });
    check("one, 2 att, reverse", World { attempts: 2, epochs: 3, ..World::SMALL });
    check("two, 2 att", World { attempts: 2, two_drivers: true, ..World::SMALL });
}
