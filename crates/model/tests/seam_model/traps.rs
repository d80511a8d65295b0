//! Whether every run can still end well.

use crate::world::{State, World};
use stateright::Model;
use std::collections::HashMap;

/// All states of `world`: how many there are, and how many of them have no way to the end any more.
///
/// A livelock is a set of states that can only lead into each other, a deadlock one state that leads nowhere; both
/// are found by going backwards from the states in which all is over: what is not reached has no way there.
/// (The checker's own `eventually` does not look at cycles.) A run that could get there, but for ever does something
/// else instead, is no fault of the rule: it is one that takes snapshots and never waits between them.
pub(crate) fn traps(world: &World) -> (usize, Vec<State>) {
    let mut numbers: HashMap<State, usize> = HashMap::new();
    let mut states = world.init_states();
    numbers.extend(states.iter().cloned().zip(0..));
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); states.len()];
    let mut at = 0;
    while let Some(state) = states.get(at) {
        for next in world.next_states(state) {
            let number = *numbers.entry(next).or_insert_with_key(|next| {
                states.push(next.clone());
                before.push(Vec::new());
                before.len() - 1
            });
            before[number].push(at);
        }
        at += 1;
    }
    let mut ends: Vec<bool> = states.iter().map(|state| world.is_over(state)).collect();
    let mut open: Vec<usize> = (0..states.len()).filter(|at| ends[*at]).collect();
    while let Some(at) = open.pop() {
        for &earlier in &before[at] {
            if !std::mem::replace(&mut ends[earlier], true) {
                open.push(earlier);
            }
        }
    }
    let count = states.len();
    (count, states.into_iter().zip(ends).filter(|(_, ends)| !ends).map(|(state, _)| state).collect())
}
