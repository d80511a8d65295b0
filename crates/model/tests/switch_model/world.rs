//! The world around the protocol: what may happen next in a state. Everything that decides is the product's own code.

use super::drivers::{newest_token, tokens};
use super::servers::{end, shut_out};
use super::state::*;
use segue_model::switch::guard::Guard;
use segue_model::switch::ownership::Ownership;
use segue_model::switch::token::Token;
use stateright::{Model, Property};

pub(crate) const ONE_SIDE: &str = "at most one side accepts writes";
pub(crate) const COMPLETE: &str = "a side that accepts writes has every acknowledged one";
pub(crate) const EQUAL: &str = "both sides are equal when everything is drained";
pub(crate) const LAST_EPOCH: &str = "the last epoch has an owner";

/// Rules that a configuration leaves out, each to show that the checker notices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Without {
    /// The flip's clock is read inside the UPDATE's WHERE, before the wait for the lock.
    pub clock_after_lock: bool,
    /// Unfence compares neither token nor epoch nor attempt.
    pub unfence_compares: bool,
    /// The flip compares the epoch only.
    pub flip_compares: bool,
    /// Open does not look for the marker.
    pub open_looks_for_marker: bool,
    /// Open compares no epoch.
    pub open_compares: bool,
    /// The follower's fence has a deadline.
    pub follower_is_fenced_forever: bool,
    /// A fence over an earlier one does not lock the tables.
    pub refence_locks: bool,
    /// The flip is committed asynchronously.
    pub flip_is_synchronous: bool,
    /// The token is neither raised nor checked on the target.
    pub token_on_target: bool,
    /// A session that stands still inside a transaction is not ended, and a taker does not end it either.
    pub idle_time_out: bool,
    /// The trigger reads the row without a lock.
    pub trigger_locks_row: bool,
    /// Late writers do not write down that they took the tables back; they hold a share lock on the row instead.
    pub late_writers_take_back: bool,
    /// Late writers are not refused by a row that says `follower`.
    pub follower_refuses_late_writers: bool,
}

impl Without {
    pub(crate) const NOTHING: Without = Without {
        clock_after_lock: false,
        unfence_compares: false,
        flip_compares: false,
        open_looks_for_marker: false,
        open_compares: false,
        follower_is_fenced_forever: false,
        refence_locks: false,
        flip_is_synchronous: false,
        token_on_target: false,
        idle_time_out: false,
        trigger_locks_row: false,
        late_writers_take_back: false,
        follower_refuses_late_writers: false,
    };
}

/// How much of everything there is: the bounds of the state space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// For each writer, how many writes it makes.
    pub writers: &'static [u8],
    /// Fences.
    pub attempts: u8,
    /// The last epoch: 2 for a switch, 3 for a switch and its reverse.
    pub epochs: u64,
    /// Requests whose connection is given up.
    pub give_ups: u8,
    /// New tokens for the first driver; the second one takes as many as it needs.
    pub renewals: u8,
    /// Crashes, of either database.
    pub crashes: u8,
    /// Times a clock is set back.
    pub clock_steps: u8,
    /// Writers may have snapshots that are older than a fence.
    pub snapshots: bool,
    /// Either side may fail to answer while a driver decides.
    pub silence: bool,
    /// Drivers read one row at a time and may decide by what they read long ago; otherwise by what is so now.
    pub looks: bool,
    /// Drivers believe that everything is drained.
    pub hasty: bool,
    /// The second driver takes part.
    pub two_drivers: bool,
    pub without: Without,
}

impl World {
    pub(crate) const SMALL: World = World {
        writers: &[1],
        attempts: 1,
        epochs: 2,
        give_ups: 0,
        renewals: 0,
        crashes: 0,
        clock_steps: 0,
        snapshots: false,
        silence: false,
        looks: false,
        hasty: false,
        two_drivers: false,
        without: Without::NOTHING,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The deadline passes on a side.
    Tick(usize),
    StepBack(usize),
    /// The oldest entry of a side's log is applied on the other side.
    Apply(usize),
    /// The last commit becomes durable.
    Durable(usize),
    Crash(usize),
    /// A writer gets an old snapshot.
    Snapshot(usize, usize),
    /// A writer's statement begins on a side.
    Begin(usize, usize),
    Ask(usize),
    Commit(usize),
    /// A writer rolls back.
    Rollback(usize),
    TakeOver(usize),
    Raise(usize, usize),
    /// A driver reads the row of a side.
    Look(usize, usize),
    /// A driver sends a request; `recovering` if it would without any command.
    Send {
        driver: usize,
        op: Op,
        side: usize,
        recovering: bool,
    },
    GiveUp(usize),
    /// The server goes on with a request; `None` is the stray one.
    Run(Option<usize>),
    /// The server ends a request without a commit.
    End(Option<usize>),
}

impl World {
    fn act(&self, state: &mut State, event: Event) -> Option<()> {
        match event {
            Event::Tick(side) => state.dbs[side].late = true,
            Event::StepBack(side) => {
                state.clock_steps_left -= 1;
                state.dbs[side].late = false;
            }
            Event::Apply(from) => Self::apply(state, from)?,
            Event::Durable(side) => state.dbs[side].durable = None,
            Event::Crash(side) => Self::crash(state, side),
            Event::Snapshot(writer, side) => {
                let owner = matches!(state.dbs[side].row, Ownership::Owner { .. });
                state.writers[writer].at = At::Snapshot { side, owner };
            }
            Event::Begin(writer, side) => self.begin(state, writer, side)?,
            Event::Ask(writer) => self.ask(state, writer)?,
            Event::Commit(writer) => Self::end_of_writer(state, writer, true)?,
            Event::Rollback(writer) => Self::end_of_writer(state, writer, false)?,
            Event::TakeOver(driver) => {
                if driver == 0 {
                    state.renewals_left -= 1;
                }
                state.drivers[driver].token = Some(Token(newest_token(state) + 1));
            }
            Event::Raise(driver, side) => self.raise(state, driver, side)?,
            Event::Look(driver, side) => {
                let view = Some(state.dbs[side].view());
                if state.drivers[driver].seen[side] == view {
                    return None;
                }
                state.drivers[driver].seen[side] = view;
            }
            Event::Send { driver, op, side, recovering: _ } => {
                if matches!(op, Op::Fence { .. }) {
                    state.next_attempt += 1;
                }
                let token = state.drivers[driver].token?;
                let request = Request { op, side, token, stage: Stage::Sent, tables: false, checked: false };
                state.drivers[driver].request = Some(request);
            }
            Event::GiveUp(driver) => {
                state.give_ups_left -= 1;
                state.stray = state.drivers[driver].request.take();
                shut_out(&mut state.drivers[driver]);
            }
            Event::Run(of) => {
                let request = state.requests().find(|(whose, _)| *whose == of)?.1;
                self.run(state, of, request)?;
            }
            Event::End(of) => end(state, of),
        }
        Some(())
    }
}

/// The one state that stands for all that differ in the order of writers or in the distance between tokens: nothing
/// depends on either. So drivers may take over as often as they like, and the space stays finite.
fn representative(mut state: State) -> State {
    state.writers.sort_unstable();
    let mut ranks: [u64; 8] = [u64::MAX; 8];
    let mut count = 0;
    for token in tokens(&mut state) {
        if !ranks[..count].contains(&token.0) {
            ranks[count] = token.0;
            count += 1;
        }
    }
    ranks[..count].sort_unstable();
    for token in tokens(&mut state) {
        token.0 = 1 + ranks[..count].iter().filter(|t| **t < token.0).count() as u64;
    }
    state
}

impl Model for World {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        let db = |row, guard| Db {
            row,
            guard,
            late: false,
            token: Token(1),
            log: Vec::new(),
            applied: None,
            rows: 0,
            durable: None,
        };
        let driver = Driver { token: None, reached: [false; 2], seen: [None; 2], request: None };
        vec![State {
            dbs: [
                db(Ownership::FIRST_OWNER, Guard::Off),
                db(Ownership::FIRST_FOLLOWER, self.followers_guard()),
            ],
            writers: self.writers.iter().map(|left| Writer { left: *left, at: At::Away }).collect(),
            drivers: [
                Driver { token: Some(Token(1)), reached: [true; 2], seen: [None; 2], request: None },
                driver,
            ],
            stray: None,
            acknowledged: 0,
            next_attempt: 1,
            renewals_left: self.renewals,
            crashes_left: self.crashes,
            clock_steps_left: self.clock_steps,
            give_ups_left: self.give_ups,
        }]
    }

    fn actions(&self, state: &State, events: &mut Vec<Event>) {
        for side in SIDES {
            let db = &state.dbs[side];
            let has_deadline = matches!(db.guard, Guard::Until(_));
            if has_deadline && !db.late {
                events.push(Event::Tick(side));
            }
            if has_deadline && db.late && state.clock_steps_left > 0 {
                events.push(Event::StepBack(side));
            }
            if !db.log.is_empty() {
                events.push(Event::Apply(side));
            }
            if db.durable.is_some() {
                events.push(Event::Durable(side));
            }
            if state.crashes_left > 0 {
                events.push(Event::Crash(side));
            }
        }
        self.writer_events(state, events);
        for driver in 0..if self.two_drivers { 2 } else { 1 } {
            self.driver_events(state, driver, events);
        }
        for (of, request) in state.requests() {
            events.push(Event::Run(of));
            let ends = of.is_none() || (request.stage != Stage::Sent && !self.without.idle_time_out);
            if ends {
                events.push(Event::End(of));
            }
        }
    }

    fn next_state(&self, state: &State, event: Event) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, event)?;
        Some(representative(next))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_SIDE, |world: &World, state: &State| {
                !state.dbs.iter().all(|db| world.accepts(db))
            }),
            Property::always(COMPLETE, |world: &World, state: &State| {
                state.dbs.iter().all(|db| !world.accepts(db) || db.rows == state.acknowledged)
            }),
            Property::always(EQUAL, |_: &World, state: &State| {
                let [source, target] = &state.dbs;
                !(source.log.is_empty() && target.log.is_empty()) || source.rows == target.rows
            }),
            Property::sometimes(LAST_EPOCH, |world: &World, state: &State| {
                state
                    .dbs
                    .iter()
                    .any(|db| matches!(db.row, Ownership::Owner { .. }) && db.row.epoch().0 == world.epochs)
            }),
        ]
    }
}
