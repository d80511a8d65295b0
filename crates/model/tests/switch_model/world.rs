//! The world around the protocol: what may happen next in a state. Everything that decides is the product's own code.

use super::state::*;
use segue_model::switch::decide::{Asked, Decision, Facts, Seen, decide};
use segue_model::switch::guard::{Answer, Guard, Literal, late};
use segue_model::switch::ownership::{
    Attempt, Epoch, Ownership, become_follower, fence, flip, open, take_back, unfence,
};
use segue_model::switch::steps::Step;
use segue_model::switch::token::{self, Token};
use stateright::{Model, Property};
use std::time::Duration;

/// Rules that a configuration leaves out, each to show that the checker notices.
#[derive(Clone, Copy, Debug, Default)]
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
    /// Late writers pass unless the row says `handed_over`, and do not write down that they took the tables back.
    pub late_writers_take_back: bool,
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
        hasty: false,
        two_drivers: false,
        without: Without {
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
        },
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
    /// What a writer is told past the literal.
    fn late(&self, row: Ownership, now_us: i64) -> Answer {
        if !self.without.late_writers_take_back {
            return late(Some(row), now_us);
        }
        match row {
            Ownership::HandedOver { .. } => Answer::Refuse,
            Ownership::Fenced { deadline_us, .. } if now_us < deadline_us => Answer::Refuse,
            Ownership::Fenced { .. } | Ownership::Owner { .. } | Ownership::Follower { .. } => Answer::Accept,
        }
    }

    pub(crate) fn accepts(&self, db: &Db) -> bool {
        match db.guard.literal(db.now_us()) {
            Literal::Passes => true,
            Literal::Refuses => false,
            Literal::AsksRow => self.late(db.row, db.now_us()) != Answer::Refuse,
        }
    }

    /// The follower's guard.
    fn followers_guard(&self) -> Guard {
        if self.without.follower_is_fenced_forever { Guard::Until(DEADLINE_US) } else { Guard::Forever }
    }

    /// Everything that a driver may send now, whatever was asked and whatever it remembers: more than any real driver.
    fn sends(&self, state: &State, driver: usize, events: &mut Vec<Event>) {
        let reached = state.drivers[driver].reached;
        let silences: &[[bool; 2]] =
            if self.silence { &[[false, false], [true, false], [false, true]] } else { &[[false, false]] };
        let mut sent: Vec<(Op, usize, bool)> = Vec::new();
        for silent in silences {
            let known = SIDES.map(|i| reached[i] && !silent[i]);
            let seen = SIDES.map(|i| if known[i] { Seen::Known(state.dbs[i].row) } else { Seen::Unknown });
            // The side that had the writes last, as far as this driver can see.
            let old =
                usize::from(!known[0] || known[1] && state.dbs[1].row.epoch() > state.dbs[0].row.epoch());
            let row = state.dbs[old].row;
            let applied = if self.hasty {
                row.fence_id()
            } else {
                state.dbs[1 - old].applied.filter(|_| known[1 - old])
            };
            let leftover = known[old] && state.dbs[old].guard != Guard::Off;
            for asked in [Asked::Nothing, Asked::Switch, Asked::Reverse, Asked::Rehearse] {
                for begun in [None, row.fence_id()] {
                    // Arming, holding and settling touch no row and no stream; a time-out decides as `Nothing` does.
                    let decision = decide(&Facts {
                        source: seen[0],
                        target: seen[1],
                        asked,
                        armed: true,
                        held: true,
                        begun,
                        leftover,
                        applied,
                        settled: begun,
                        elapsed: Duration::ZERO,
                        max_write_hold: Duration::from_secs(2),
                    });
                    if let Some((op, side)) = self.request_of(state, decision)
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

    fn request_of(&self, state: &State, decision: Decision) -> Option<(Op, usize)> {
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
                        let new = state.dbs[1 - from].row.epoch();
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

    /// The server goes on with a request; `None` while it has to wait for a lock.
    fn run(&self, state: &mut State, of: Option<usize>, mut request: Request) -> Option<()> {
        let side = request.side;
        let row_is_free = !state.row_locked(side) && !state.row_held(side, true);
        let db = &state.dbs[side];
        match request.stage {
            Stage::Sent => {
                let unchecked = (self.without.token_on_target && side == 1)
                    || (self.without.unfence_compares && matches!(request.op, Op::Unfence(_)));
                if !unchecked && token::admit(request.token, db.token).is_err() {
                    state.set_request(of, None);
                    if let Some(driver) = of {
                        shut_out(&mut state.drivers[driver]);
                    }
                    return Some(());
                }
                request.stage = Stage::Admitted;
            }
            Stage::Admitted => match request.op {
                Op::Flip(fence) if self.without.clock_after_lock && !request.checked => {
                    if flip(db.row, fence, db.now_us(), MARGIN_US).is_err() {
                        state.set_request(of, None);
                        return Some(());
                    }
                    request.checked = true;
                }
                Op::Flip(_) | Op::Follow(_) => {
                    row_is_free.then_some(())?;
                    request.stage = Stage::Row;
                }
                Op::Fence { .. } if self.without.refence_locks && db.guard != Guard::Off => {
                    request.stage = Stage::Tables;
                }
                Op::Fence { .. } | Op::Unfence(_) | Op::Open(_) => {
                    (!state.written(side) && !state.tables_locked(side)).then_some(())?;
                    (request.stage, request.tables) = (Stage::Tables, true);
                }
            },
            Stage::Tables => {
                row_is_free.then_some(())?;
                request.stage = Stage::Row;
            }
            Stage::Row => {
                self.commit(&mut state.dbs[side], request);
                state.set_request(of, None);
                return Some(());
            }
        }
        state.set_request(of, Some(request));
        Some(())
    }

    /// The checks under the row's lock, and the commit; a refusal changes nothing.
    fn commit(&self, db: &mut Db, request: Request) {
        match request.op {
            Op::Fence { last, new } => {
                if let Ok(row) = fence(db.row, last, Attempt(u64::from(new)), DEADLINE_US) {
                    (db.row, db.guard, db.late) = (row, Guard::Until(DEADLINE_US), false);
                    db.log.extend(row.fence_id().map(Entry::Marker));
                }
            }
            Op::Unfence(id) => {
                let blind = Ownership::Owner { epoch: id.epoch, attempt: id.attempt };
                let row = if self.without.unfence_compares { Ok(blind) } else { unfence(db.row, id) };
                if let Ok(row) = row {
                    (db.row, db.guard, db.late) = (row, Guard::Off, false);
                }
            }
            Op::Flip(id) => {
                let now_us = if request.checked { EARLY } else { db.now_us() };
                let pretended =
                    Ownership::Fenced { epoch: id.epoch, attempt: id.attempt, deadline_us: DEADLINE_US };
                let same_epoch = self.without.flip_compares && db.row.epoch() == id.epoch;
                let row = if same_epoch { pretended } else { db.row };
                if let Ok(row) = flip(row, id, now_us, MARGIN_US) {
                    db.durable = self.without.flip_is_synchronous.then_some(db.row);
                    db.row = row;
                }
            }
            Op::Open(id) => {
                let applied = if self.without.open_looks_for_marker { Some(id) } else { db.applied };
                let lowest = Ownership::Follower { epoch: Epoch(0) };
                let row = if self.without.open_compares { lowest } else { db.row };
                if let Ok(row) = open(row, id, applied) {
                    (db.row, db.guard, db.late) = (row, Guard::Off, false);
                }
            }
            Op::Follow(successor) => {
                if let Ok(row) = become_follower(db.row, Epoch(successor)) {
                    (db.row, db.guard) = (row, self.followers_guard());
                    db.late = db.late && db.guard != Guard::Forever;
                }
            }
        }
    }

    /// A writer's statement takes the tables' lock and meets the trigger.
    fn begin(&self, state: &mut State, writer: usize, side: usize) -> Option<()> {
        let owner = match state.writers[writer].at {
            At::Away => None,
            At::Snapshot { side: at, owner } if at == side => Some(owner),
            At::Snapshot { .. } | At::Asking { .. } | At::Writing { .. } => return None,
        };
        if state.tables_locked(side) {
            return None;
        }
        let db = &state.dbs[side];
        state.writers[writer].at = match (db.guard.literal(db.now_us()), owner) {
            (Literal::Passes, _) => At::Writing { side, lock: Lock::None },
            (Literal::AsksRow, owner) => At::Asking { side, owner },
            (Literal::Refuses, Some(_)) => At::Away,
            (Literal::Refuses, None) => return None,
        };
        Some(())
    }

    /// A writer past the literal reads the row.
    fn ask(&self, state: &mut State, writer: usize) -> Option<()> {
        let At::Asking { side, owner } = state.writers[writer].at else { return None };
        let db = &state.dbs[side];
        let mut row = db.row;
        let is_owner = matches!(row, Ownership::Owner { .. });
        let plain = self.without.trigger_locks_row;
        if plain && owner == Some(true) {
            row = Ownership::FIRST_OWNER;
        }
        let answer = self.late(row, db.now_us());
        let lock = match answer {
            Answer::Accept if plain => Lock::None,
            Answer::Accept | Answer::Refuse => Lock::Share,
            Answer::TakeBack(_) => Lock::Update,
        };
        let waits = match lock {
            Lock::None => false,
            Lock::Share => !plain && (state.row_locked(side) || state.row_held(side, false)),
            Lock::Update => state.row_locked(side) || state.row_held(side, true),
        };
        if waits {
            return None;
        }
        // A row that has changed since the snapshot cannot be locked in it.
        let too_old = !plain && owner.is_some_and(|was| was != is_owner);
        let refused = too_old || answer == Answer::Refuse;
        state.writers[writer].at = if refused { At::Away } else { At::Writing { side, lock } };
        Some(())
    }

    fn end_of_writer(state: &mut State, writer: usize, commits: bool) -> Option<()> {
        let At::Writing { side, lock } = state.writers[writer].at else { return None };
        state.writers[writer].at = At::Away;
        if commits {
            state.writers[writer].left -= 1;
            let db = &mut state.dbs[side];
            if lock == Lock::Update {
                db.row = take_back(db.row, db.now_us().max(DEADLINE_US)).ok()?;
            }
            db.log.push(Entry::Write);
            db.rows += 1;
            state.acknowledged += 1;
        }
        Some(())
    }

    fn raise(&self, state: &mut State, driver: usize, side: usize) -> Option<()> {
        let presented = state.drivers[driver].token?;
        let half = self.without.token_on_target && side == 1;
        if !half {
            for (of, request) in state.requests().collect::<Vec<_>>() {
                if request.side == side && request.stage != Stage::Sent {
                    // The taker waits for the shared locks, and ends what outlasts it.
                    (!self.without.idle_time_out).then_some(())?;
                    end(state, of);
                }
            }
            match token::raise(presented, state.dbs[side].token) {
                Ok(token) => state.dbs[side].token = token,
                Err(_) => {
                    shut_out(&mut state.drivers[driver]);
                    return Some(());
                }
            }
        }
        state.drivers[driver].reached[side] = true;
        Some(())
    }

    fn apply(state: &mut State, from: usize) -> Option<()> {
        if state.dbs[from].log.is_empty() {
            return None;
        }
        match state.dbs[from].log.remove(0) {
            Entry::Write => state.dbs[1 - from].rows += 1,
            Entry::Marker(id) => state.dbs[1 - from].applied = Some(id),
        }
        Some(())
    }

    fn crash(state: &mut State, side: usize) {
        state.crashes_left -= 1;
        if let Some(row) = state.dbs[side].durable.take() {
            state.dbs[side].row = row;
        }
        for writer in &mut state.writers {
            match writer.at {
                At::Snapshot { side: at, .. }
                | At::Asking { side: at, .. }
                | At::Writing { side: at, .. }
                    if at == side =>
                {
                    writer.at = At::Away;
                }
                _ => {}
            }
        }
        for (of, request) in state.requests().collect::<Vec<_>>() {
            if request.side == side {
                end(state, of);
            }
        }
    }

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

/// The driver does not know what became of its request, or was superseded: it may do nothing without a new token.
fn shut_out(driver: &mut Driver) {
    driver.token = None;
    driver.reached = [false; 2];
}

fn end(state: &mut State, of: Option<usize>) {
    state.set_request(of, None);
    if let Some(driver) = of {
        shut_out(&mut state.drivers[driver]);
    }
}

fn tokens(state: &mut State) -> impl Iterator<Item = &mut Token> {
    let State { dbs, drivers, stray, .. } = state;
    let of_drivers =
        drivers.iter_mut().flat_map(|d| d.token.iter_mut().chain(d.request.as_mut().map(|r| &mut r.token)));
    dbs.iter_mut().map(|db| &mut db.token).chain(of_drivers).chain(stray.as_mut().map(|r| &mut r.token))
}

fn newest_token(state: &mut State) -> u64 {
    tokens(state).map(|t| t.0).max().unwrap_or(0)
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
        let driver = Driver { token: None, reached: [false; 2], request: None };
        vec![State {
            dbs: [
                db(Ownership::FIRST_OWNER, Guard::Off),
                db(Ownership::FIRST_FOLLOWER, self.followers_guard()),
            ],
            writers: self.writers.iter().map(|left| Writer { left: *left, at: At::Away }).collect(),
            drivers: [Driver { token: Some(Token(1)), reached: [true; 2], request: None }, driver],
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
            Property::always("at most one side accepts writes", |world: &World, state: &State| {
                !state.dbs.iter().all(|db| world.accepts(db))
            }),
            Property::always(
                "who accepts writes has every acknowledged one",
                |world: &World, state: &State| {
                    state.dbs.iter().all(|db| !world.accepts(db) || db.rows == state.acknowledged)
                },
            ),
            Property::always("both sides are equal when drained", |_: &World, state: &State| {
                let [source, target] = &state.dbs;
                !(source.log.is_empty() && target.log.is_empty()) || source.rows == target.rows
            }),
            Property::sometimes("the last epoch is reached", |world: &World, state: &State| {
                state
                    .dbs
                    .iter()
                    .any(|db| matches!(db.row, Ownership::Owner { .. }) && db.row.epoch().0 == world.epochs)
            }),
        ]
    }
}

impl World {
    fn writer_events(&self, state: &State, events: &mut Vec<Event>) {
        for (i, writer) in state.writers.iter().enumerate() {
            // Of writers in the same place, one stands for all.
            if writer.left == 0 || (i > 0 && state.writers[i - 1] == *writer) {
                continue;
            }
            match writer.at {
                At::Away => {
                    for side in SIDES {
                        events.push(Event::Begin(i, side));
                        if self.snapshots {
                            events.push(Event::Snapshot(i, side));
                        }
                    }
                }
                At::Snapshot { side, .. } => events.push(Event::Begin(i, side)),
                At::Asking { .. } => events.push(Event::Ask(i)),
                At::Writing { .. } => events.extend([Event::Commit(i), Event::Rollback(i)]),
            }
        }
    }

    fn driver_events(&self, state: &State, driver: usize, events: &mut Vec<Event>) {
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
            }
        }
        self.sends(state, driver, events);
    }
}
