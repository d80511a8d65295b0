//! The seam rule, checked over every order of steps within bounds.
mod map;
mod segue;
mod source;
mod traps;
mod world;

use source::Step::{Put, PutOrDelete, Rekey};
use stateright::{Checker, HasDiscoveries, Model};
use std::time::Instant;
use world::{Bug, World};

fn world(scripts: &[&[source::Step]]) -> World {
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

fn holds(name: &str, world: World) {
    let start = Instant::now();
    let c = world.checker().finish_when(HasDiscoveries::AnyFailures).timeout(std::time::Duration::from_secs(60)).spawn_bfs().join();
    println!("{name}: {} states, depth {}, {:?}", c.unique_state_count(), c.max_depth(), start.elapsed());
    for (n, path) in c.discoveries() {
        if !n.starts_with("all is quiet") { println!("FOUND {n}"); for a in path.into_actions() { println!("   {a:?}"); } }
    }
}

#[test]
fn a() {
    let b = |bug, w: World| (format!("{bug:?}"), World { bug: Some(bug), ..w });
    let abort = |w: World| World { aborts: true, ..w };
    for (n, w) in [
        b(Bug::NoFrozenSet, world(&[&[Put(0)]])),
        b(Bug::SkippedNotStored, World { kills: 1, ..world(&[&[Put(0)]]) }),
        b(Bug::BarrierByXmax, world(&[&[Put(0)]])),
        b(Bug::NoBarrier, world(&[&[Put(0)]])),
        b(Bug::CommittedBeforeFlushed, World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)]]) }),
        b(Bug::CommittedBeforeFlushed, abort(World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)]]) })),
        b(Bug::PositionInAnotherSession, World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)]]) }),
        b(Bug::InProgressIgnored, world(&[&[Put(0)], &[Put(1)]])),
        b(Bug::OnlyBelowXmin, world(&[&[Put(0)], &[Put(1)]])),
        b(Bug::NoFence, World { kills: 1, ..world(&[&[Put(0)], &[Put(1)]]) }),
        b(Bug::RetiredWithoutSignal, World { hand_over: true, ..world(&[&[Put(0)], &[Put(1)]]) }),
        b(Bug::NeverPutBack, world(&[&[Put(0)]])),
    ] {
        holds(&n, w);
    }
}
#[test]
fn b() {
    let abort = |w: World| World { aborts: true, ..w };
    holds("handover", World { hand_over: true, kills: 1, ..world(&[&[Put(0)], &[Put(1)]]) });
    holds("3tx", world(&[&[Put(0)], &[Put(0)], &[Put(0)]]));
    holds("3tx b", world(&[&[Put(0)], &[Put(0)], &[Put(1)]]));
    holds("3tx c", World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)], &[Put(0)]]) });
    holds("aborts crash", abort(World { crashes: 1, ..world(&[&[Put(0)], &[Put(0)]]) }));
    holds("aborts crash kill", abort(World { crashes: 1, kills: 1, ..world(&[&[PutOrDelete(0)], &[PutOrDelete(0)]]) }));
    for (n, w) in [("std", world(&[&[Put(0), Put(1)], &[Put(0)]])), ("std kill", World { kills: 1, ..world(&[&[Put(0), Put(1)], &[Put(0)]]) })] {
        for bug in [None, Some(Bug::NeverPutBack)] {
            for f in [false, true] {
                let w = World { standby_follows_segue: f, bug, ..w.clone() };
                let s = Instant::now();
                let (c, t) = traps::traps(&w);
                println!("{n} {bug:?} follows {f}: {c} states, {} traps {:?}", t.len(), s.elapsed());
                if let Some(s) = t.first() { println!("{s:#?}"); }
            }
        }
    }
}
