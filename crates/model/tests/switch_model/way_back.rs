//! The way back: from every state, can the world come to exactly one accepting side, with the help of some actors only?
//!
//! Checked on the whole graph, backwards from the good states. A checker's `eventually` would not do: it takes a cycle
//! (a driver that takes over again and again) for the end of a path, and it cannot leave the stopped driver out.

use super::state::*;
use super::world::{Event, World};
use segue_model::switch::ownership::Ownership;
use stateright::Model;
use std::collections::HashMap;

/// The whole graph of a world.
pub(crate) struct Graph {
    world: World,
    states: Vec<State>,
    edges: Vec<(u32, u32, Event)>,
    /// The edge by which a state was first found.
    parents: Vec<Option<usize>>,
}

/// Who may still help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Helpers {
    /// The second driver, without any command; the first one is stopped for ever.
    SecondDriver,
    /// No driver: clocks, streams, the servers' own time-outs.
    Nobody,
}

impl Graph {
    pub(crate) fn explore(world: World) -> Graph {
        let mut graph = Graph { world, states: world.init_states(), edges: Vec::new(), parents: vec![None] };
        let mut found: HashMap<State, u32> = graph.states.iter().cloned().zip(0..).collect();
        let mut at = 0;
        while at < graph.states.len() {
            for (event, state) in world.next_steps(&graph.states[at]) {
                let to = *found.entry(state).or_insert_with_key(|state| {
                    graph.states.push(state.clone());
                    graph.parents.push(Some(graph.edges.len()));
                    graph.states.len() as u32 - 1
                });
                graph.edges.push((at as u32, to, event));
            }
            at += 1;
        }
        graph
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// States from which no help leads to exactly one accepting side: how many, and the way to the nearest one.
    pub(crate) fn stuck(&self, helpers: Helpers) -> (usize, Vec<Event>) {
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); self.states.len()];
        for (from, to, event) in &self.edges {
            if helps(*event, helpers) {
                before[*to as usize].push(*from);
            }
        }
        let mut saved: Vec<bool> = self.states.iter().map(|state| self.is_good(state)).collect();
        let mut work: Vec<u32> = (0..).zip(&saved).filter(|(_, good)| **good).map(|(at, _)| at).collect();
        while let Some(at) = work.pop() {
            for from in &before[at as usize] {
                if !std::mem::replace(&mut saved[*from as usize], true) {
                    work.push(*from);
                }
            }
        }
        let is_stuck = |at: &usize| {
            !saved[*at] && (helpers == Helpers::SecondDriver || !is_between_flip_and_open(&self.states[*at]))
        };
        let first = (0..self.states.len()).find(is_stuck);
        ((0..self.states.len()).filter(is_stuck).count(), first.map_or(Vec::new(), |at| self.way_to(at)))
    }

    fn is_good(&self, state: &State) -> bool {
        let accepting = state.dbs.iter().filter(|db| self.world.accepts(db)).count();
        accepting == 1 && SIDES.iter().all(|side| !state.tables_locked(*side) && !state.row_locked(*side))
    }

    fn way_to(&self, mut at: usize) -> Vec<Event> {
        let mut way = Vec::new();
        while let Some(edge) = self.parents[at] {
            let (from, _, event) = self.edges[edge];
            way.push(event);
            at = from as usize;
        }
        way.reverse();
        way
    }
}

/// The old side has handed over and the new one has not opened: only a driver leads out of this.
fn is_between_flip_and_open(state: &State) -> bool {
    SIDES.into_iter().any(|side| {
        matches!(state.dbs[side].row, Ownership::HandedOver { epoch, .. } if state.dbs[1 - side].row.epoch() <= epoch)
    })
}

/// Whether an event is one that can be counted on.
fn helps(event: Event, helpers: Helpers) -> bool {
    let second = helpers == Helpers::SecondDriver;
    match event {
        // A session whose client stands still is ended by the server, whosever it is.
        Event::Tick(_) | Event::Apply(_) | Event::Durable(_) | Event::End(_) => true,
        // Writers that have begun come to an end; that new ones arrive is not counted on.
        Event::Ask(_) | Event::Commit(_) | Event::Rollback(_) => true,
        Event::TakeOver(driver) | Event::Raise(driver, _) | Event::Look(driver, _) => second && driver == 1,
        Event::Send { driver, recovering, .. } => second && driver == 1 && recovering,
        Event::Run(of) => second && of == Some(1),
        Event::StepBack(_) | Event::Crash(_) | Event::GiveUp(_) => false,
        Event::Snapshot(..) | Event::Begin(..) => false,
    }
}
