//! Drivers: what they may send, which is whatever [`decide`] says to anyone who asks it anything.

use super::state::*;
use super::world::{Event, World};
use segue_model::switch::decide::{Asked, Decision, Facts, Seen, decide};
use segue_model::switch::steps::Step;
use segue_model::switch::token::Token;
use std::time::Duration;

impl World {
    pub(crate) fn driver_events(&self, state: &State, driver: usize, events: &mut Vec<Event>) {
        let it = &state.drivers[driver];
        if it.request.is_some() {
            if state.stray.is_none() && state.give_ups_left > 0 {
                events.push(Event::GiveUp(driver));
            }
            return;
        }
        if it.token.is_none() {
            if driver == 1 || state.renewals_left > 0 {
                events.push(Event::TakeOver(driver));
            }
            return;
        }
        for side in SIDES {
            if !it.reached[side] {
                events.push(Event::Raise(driver, side));
            } else if self.looks {
                events.push(Event::Look(driver, side));
            }
        }
        self.sends(state, driver, events);
    }

    /// Everything that a driver may send now, whatever was asked and whatever it remembers: more than any real driver.
    fn sends(&self, state: &State, driver: usize, events: &mut Vec<Event>) {
        let it = &state.drivers[driver];
        let now = SIDES.map(|side| Some(state.dbs[side].view()).filter(|_| it.reached[side]));
        let views = if self.looks { it.seen } else { now };
        let [source, target] = views;
        let silences = [[source, target], [None, target], [source, None]];
        let mut sent: Vec<(Op, usize, bool)> = Vec::new();
        for views in &silences[..if self.silence { 3 } else { 1 }] {
            let epoch = |side: usize| views[side].map(|view| view.row.epoch());
            // The side that had the writes last, as far as this driver can see.
            let old = usize::from(epoch(1) > epoch(0));
            let Some(view) = views[old] else { continue };
            let seen = views.map(|view| view.map_or(Seen::Unknown, |view| Seen::Known(view.row)));
            let last = view.row.fence_id();
            let applied = if self.hasty { last } else { views[1 - old].and_then(|new| new.applied) };
            for asked in [Asked::Nothing, Asked::Switch, Asked::Reverse, Asked::Rehearse] {
                for begun in [None, last] {
                    // Arming, holding and settling touch no row and no stream; a time-out decides as `Nothing` does.
                    let decision = decide(&Facts {
                        source: seen[0],
                        target: seen[1],
                        asked,
                        armed: true,
                        held: true,
                        begun,
                        leftover: view.guarded,
                        applied,
                        settled: begun,
                        elapsed: Duration::ZERO,
                        max_write_hold: Duration::from_secs(2),
                    });
                    if let Some((op, side)) = self.request_of(state, views, decision)
                        && !sent.iter().any(|s| (s.0, s.1) == (op, side))
                    {
                        sent.push((op, side, asked == Asked::Nothing));
                    }
                }
            }
        }
        let events_of = |(op, side, recovering)| Event::Send { driver, op, side, recovering };
        events.extend(sent.into_iter().map(events_of));
    }

    fn request_of(
        &self,
        state: &State,
        views: &[Option<View>; 2],
        decision: Decision,
    ) -> Option<(Op, usize)> {
        match decision {
            Decision::Act(turn) => {
                let from = index_of(turn.from);
                match turn.step {
                    Step::Fence => {
                        let bounded = turn.fence.epoch.0 < self.epochs && state.next_attempt <= self.attempts;
                        bounded.then_some((Op::Fence { last: turn.fence, new: state.next_attempt }, from))
                    }
                    Step::Flip => Some((Op::Flip(turn.fence), from)),
                    Step::Open => {
                        let new = views[1 - from]?.row.epoch();
                        let opened = new > turn.fence.epoch;
                        Some(if opened {
                            (Op::Follow(new.0), from)
                        } else {
                            (Op::Open(turn.fence), 1 - from)
                        })
                    }
                    Step::Arm | Step::Hold | Step::Drain | Step::Settle => None,
                }
            }
            Decision::Undo(turn) => {
                (turn.step == Step::Fence).then_some((Op::Unfence(turn.fence), index_of(turn.from)))
            }
            Decision::Wait(_)
            | Decision::Done
            | Decision::AskOldOwner(_)
            | Decision::Contradiction { .. } => None,
        }
    }
}

pub(crate) fn tokens(state: &mut State) -> impl Iterator<Item = &mut Token> {
    let State { dbs, drivers, stray, .. } = state;
    let of_drivers =
        drivers.iter_mut().flat_map(|d| d.token.iter_mut().chain(d.request.as_mut().map(|r| &mut r.token)));
    dbs.iter_mut().map(|db| &mut db.token).chain(of_drivers).chain(stray.as_mut().map(|r| &mut r.token))
}

pub(crate) fn newest_token(state: &mut State) -> u64 {
    tokens(state).map(|t| t.0).max().unwrap_or(0)
}
