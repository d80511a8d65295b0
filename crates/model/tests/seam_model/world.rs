//! The world: one source, one target, one Segue at a time; every order of their steps that the bounds leave.

use crate::segue::{Committed, Durable, HandOver, Open, Process, Work, Wrong};
use crate::source::{Phase, Rows, Source, Step, Write};
use stateright::{Model, Property};
use std::sync::Arc;

/// No change is applied to a region whose copy shows its transaction.
pub(crate) const ONCE: &str = "no change is applied to a copy that shows it";
/// No update or delete misses its row; no insert and no copy finds one.
pub(crate) const FITS: &str = "every change and every copy fits the rows it meets";
/// No row is lost, none comes back.
pub(crate) const EQUAL: &str = "when all is quiet the target equals the source";
/// The bounds leave room for a run that ends.
pub(crate) const ENDS: &str = "all is quiet after every transaction";

/// A rule that is left out, to show that the checker notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A region's snapshot is taken as it comes, whatever has been skipped for the region before.
    NoFrozenSet,
    /// The checkpoint holds a position only.
    SkippedNotStored,
    /// The barrier waits for what a snapshot's `xmax` says, not for a transaction number of its own.
    BarrierByXmax,
    /// There is no barrier.
    NoBarrier,
    /// A region commits without waiting for the source to be durable.
    CommittedBeforeFlushed,
    /// Whether the source is durable is asked in whatever session there is.
    PositionInAnotherSession,
    /// The position is read when the region is marked, before there is a snapshot.
    PositionBeforeSeam,
    /// Everything below `xmax` counts as contained.
    InProgressIgnored,
    /// Nothing from `xmin` on counts as contained.
    OnlyBelowXmin,
    /// A new process does not shut out the transactions of the one before.
    NoFence,
    /// The map is dropped as soon as everything is copied.
    RetiredWithoutSignal,
    /// A region whose snapshots do not serve waits for one that does.
    NeverPutBack,
}

/// Bounds, and which rule is broken.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// What each transaction of the application does.
    pub(crate) scripts: Vec<Vec<Step>>,
    /// The rows that are there before anything happens.
    pub(crate) rows: Rows,
    /// The application's transactions may abort.
    pub(crate) aborts: bool,
    /// How often Segue is killed, at most.
    pub(crate) kills: u8,
    /// How often the source crashes, at most.
    pub(crate) crashes: u8,
    /// The map is dropped in the end.
    pub(crate) hand_over: bool,
    /// Commits become visible only once Segue has passed them: the slowest standby there can be.
    pub(crate) standby_follows_segue: bool,
    pub(crate) bug: Option<Bug>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Barrier {
    Not,
    Waits(u64),
    Passed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) source: Arc<Source>,
    /// Where the stream begins, once there is a slot.
    slot: Option<usize>,
    barrier: Barrier,
    pub(crate) durable: Durable,
    /// `None`: not born, or killed.
    pub(crate) process: Option<Process>,
    /// Transactions of killed processes that the target still holds.
    stragglers: Vec<Open>,
    kills: u8,
    crashes: u8,
    pub(crate) wrong: Option<Wrong>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Write(usize, Write),
    Record(usize),
    Abort(usize),
    Show(usize),
    Flush,
    Crash,
    CreateSlot,
    TakeBarrier,
    Begin,
    Snapshot(usize),
    GiveUp(usize),
    CommitRegion(usize),
    Route,
    CommitBatch,
    Signal,
    Retire,
    Forget,
    /// The sessions on the source are gone: the run ends, and the next one begins in the same process.
    StartAgain,
    Kill,
    TakeOver,
    StragglerCommits(usize),
    StragglerVanishes(usize),
}

impl World {
    fn source_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let source = &state.source;
        for (at, transaction) in source.transactions.iter().enumerate() {
            let twin = |other: usize| {
                self.scripts[other] == self.scripts[at] && source.transactions[other].phase == Phase::Idle
            };
            match transaction.phase {
                // Of transactions that do the same, the first begins first: the others' turn would look the same.
                Phase::Idle if (0..at).any(twin) => {}
                Phase::Idle | Phase::Running => {
                    let running = transaction.phase == Phase::Running;
                    match self.scripts[at].get(transaction.writes.len()) {
                        Some(&step) => {
                            actions.extend(source.choices(at, step).into_iter().map(|w| Action::Write(at, w)))
                        }
                        None if running => actions.push(Action::Record(at)),
                        None => {}
                    }
                    if running && self.aborts {
                        actions.push(Action::Abort(at));
                    }
                }
                Phase::Recorded if self.standby_lets(state, at) => actions.push(Action::Show(at)),
                Phase::Recorded | Phase::Visible | Phase::Gone => {}
            }
        }
        if source.flushed < source.log.len() {
            actions.push(Action::Flush);
        }
        if state.crashes < self.crashes {
            actions.push(Action::Crash);
        }
    }

    fn standby_lets(&self, state: &State, at: usize) -> bool {
        let passed =
            || state.source.recorded_at(at) < Some(state.durable.checkpoint) || state.process.is_none();
        !self.standby_follows_segue || passed()
    }

    fn process_actions(&self, process: &Process, actions: &mut Vec<Action>) {
        if process.out.is_some() {
            actions.push(Action::CommitBatch);
        }
        for at in [0, 1] {
            let Some(work) = &process.works[at] else { continue };
            if work.copy.is_some() {
                actions.push(Action::CommitRegion(at));
            } else if process.connected {
                actions.push(Action::Snapshot(at));
                if self.bug != Some(Bug::NeverPutBack) {
                    actions.push(Action::GiveUp(at));
                }
            }
        }
        if !process.connected {
            actions.push(Action::StartAgain);
            return;
        }
        if process.works.contains(&None) {
            actions.push(Action::Begin);
        }
        actions.push(Action::Route);
        if self.hand_over {
            actions.extend([Action::Signal, Action::Retire, Action::Forget]);
        }
    }

    /// The birth: a slot, then the barrier. It is not interrupted here but by a crash of the source.
    fn birth(&self, state: &mut State, action: Action) -> Option<()> {
        let source = Arc::make_mut(&mut state.source);
        match action {
            // Slot creation waits for whoever runs; it may overlook who only waits for a standby.
            Action::CreateSlot if state.slot.is_none() => {
                let may = !source.is_busy(false) && source.flushed == source.log.len();
                state.slot = may.then_some(source.log.len());
                may.then_some(())
            }
            Action::TakeBarrier if state.slot.is_some() && state.barrier == Barrier::Not => {
                state.barrier = match self.bug {
                    Some(Bug::NoBarrier) => Barrier::Waits(0),
                    Some(Bug::BarrierByXmax) => Barrier::Waits(source.snapshot().xmax),
                    _ => Barrier::Waits(source.take_and_roll_back()),
                };
                Some(())
            }
            _ => None,
        }
    }

    fn source_step(&self, state: &mut State, action: Action) -> Option<()> {
        let source = Arc::make_mut(&mut state.source);
        match action {
            Action::Write(at, write) => source.write(at, write),
            Action::Record(at) => source.record(at),
            Action::Abort(at) => source.abort(at),
            Action::Show(at) => source.show(at),
            Action::Flush => source.flush(),
            Action::Crash => {
                source.crash();
                state.crashes += 1;
                if let Barrier::Waits(_) = state.barrier {
                    state.barrier = Barrier::Not;
                }
                if let Some(process) = &mut state.process {
                    process.connected = false;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn process_step(&self, state: &mut State, action: Action) -> Option<()> {
        let process = state.process.as_mut()?;
        match action {
            Action::Begin => _ = process.begin(&state.source, self.bug)?,
            Action::Snapshot(at) => {
                let before = process.map.clone();
                let serves = process.snapshot(at, &state.source, self.bug);
                return (serves || process.map != before).then_some(());
            }
            Action::GiveUp(at) => {
                let refused = |work: &Work| {
                    work.copy.is_none() && !process.clone().snapshot(at, &state.source, self.bug)
                };
                process.works[at].as_ref().filter(|work| refused(work))?;
                process.give_up(at);
            }
            Action::CommitRegion(at) => {
                let open = process.open_region(at)?;
                self.commit(state, &open, |process| process.copied(at));
            }
            Action::CommitBatch => {
                let open = Open::Batch(process.out.take()?);
                self.commit(state, &open, |_| ());
            }
            Action::Route => return process.route(&state.source).then_some(()),
            Action::Signal if process.hand_over == HandOver::Not && process.map.is_complete() => {
                process.hand_over = match self.bug {
                    Some(Bug::RetiredWithoutSignal) => HandOver::Retired,
                    _ => HandOver::Signalled(Arc::make_mut(&mut state.source).signal()),
                };
            }
            Action::Retire => match process.hand_over {
                HandOver::Signalled(signal) if process.has_passed(signal) => {
                    process.hand_over = HandOver::Retired;
                }
                _ => return None,
            },
            Action::Forget if process.hand_over == HandOver::Retired && !state.durable.forgotten => {
                state.durable.forgotten = true;
            }
            _ => return None,
        }
        Some(())
    }

    /// Commits on the target; the process goes on with `then`, or starts anew where the target refuses it.
    fn commit(&self, state: &mut State, open: &Open, then: impl FnMut(&mut Process)) {
        match state.durable.commit(open) {
            Committed::Done => state.process.iter_mut().for_each(then),
            Committed::Refused => state.process = Some(Process::start(&state.durable, self.bug)),
            Committed::Wrong(wrong) => state.wrong = Some(wrong),
        }
    }

    /// Kills, take-overs and what killed processes leave behind.
    fn life_step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Kill => {
                let process = state.process.take()?;
                state.kills += 1;
                state.stragglers.extend([0, 1].into_iter().filter_map(|at| process.open_region(at)));
                state.stragglers.extend(process.out.map(Open::Batch));
                if state.stragglers.is_empty() {
                    state.process = Some(Process::start(&state.durable, self.bug));
                }
            }
            Action::StartAgain => {
                state.process = Some(Process::start(&state.durable, self.bug));
            }
            Action::TakeOver => {
                let fenced = self.bug != Some(Bug::NoFence);
                let born = state.barrier == Barrier::Passed;
                // The lock on the token is got when every transaction that holds it has ended.
                if state.process.is_some() || !born || (fenced && !state.stragglers.is_empty()) {
                    return None;
                }
                state.process = Some(Process::start(&state.durable, self.bug));
            }
            Action::StragglerVanishes(at) => _ = state.stragglers.remove(at),
            Action::StragglerCommits(at) => {
                let open = state.stragglers.remove(at);
                if let Committed::Wrong(wrong) = state.durable.commit(&open) {
                    state.wrong = Some(wrong);
                }
            }
            _ => return None,
        }
        Some(())
    }
}

impl State {
    /// What becomes true by itself, whenever it can.
    fn settle(&mut self, bug: Option<Bug>) {
        if let (Barrier::Waits(x0), Some(slot)) = (self.barrier, self.slot)
            && self.source.snapshot().xmin >= x0
        {
            self.barrier = Barrier::Passed;
            self.durable = Durable::born(slot);
            self.process = Some(Process::start(&self.durable, bug));
        }
        if let Some(process) = &mut self.process {
            process.settle(&self.source, bug);
        }
    }

    /// Nothing is left to do, but what the application has not begun.
    pub(crate) fn is_quiet(&self) -> bool {
        let quiet = |process: &Process| process.is_quiet(&self.source);
        self.process.as_ref().is_some_and(quiet) && !self.source.is_busy(true) && self.stragglers.is_empty()
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            source: Arc::new(Source::new(self.scripts.len(), self.rows)),
            slot: None,
            barrier: Barrier::Not,
            durable: Durable::born(0),
            process: None,
            stragglers: Vec::new(),
            kills: 0,
            crashes: 0,
            wrong: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        self.source_actions(state, actions);
        match &state.process {
            Some(process) => {
                self.process_actions(process, actions);
                if state.kills < self.kills {
                    actions.push(Action::Kill);
                }
            }
            None if state.barrier == Barrier::Passed => actions.push(Action::TakeOver),
            None => actions.extend([Action::CreateSlot, Action::TakeBarrier]),
        }
        for at in 0..state.stragglers.len() {
            actions.extend([Action::StragglerCommits(at), Action::StragglerVanishes(at)]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        use Action::*;
        let mut state = last.clone();
        match action {
            Write(..) | Record(_) | Abort(_) | Show(_) | Flush | Crash => {
                self.source_step(&mut state, action)?
            }
            CreateSlot | TakeBarrier => self.birth(&mut state, action)?,
            Kill | StartAgain | TakeOver | StragglerCommits(_) | StragglerVanishes(_) => {
                self.life_step(&mut state, action)?;
            }
            _ => self.process_step(&mut state, action)?,
        }
        state.settle(self.bug);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<World>> {
        vec![
            Property::always(ONCE, |_, state: &State| !matches!(state.wrong, Some(Wrong::Twice(_)))),
            Property::always(FITS, |_, state: &State| {
                !matches!(state.wrong, Some(Wrong::DoesNotFit(_) | Wrong::InTheWay(_)))
            }),
            Property::always(EQUAL, |_, state: &State| {
                !state.is_quiet() || state.durable.rows == state.source.rows
            }),
            Property::sometimes(ENDS, |world: &World, state: &State| {
                world.is_over(state) && state.source.transactions.iter().all(|t| t.phase != Phase::Idle)
            }),
        ]
    }
}

impl World {
    /// Where every run must be able to get.
    pub(crate) fn is_over(&self, state: &State) -> bool {
        state.is_quiet() && (!self.hand_over || state.durable.forgotten)
    }
}
