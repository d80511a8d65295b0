//! A state of the modelled world: two databases, writers, drivers, and requests on their way.

use segue_model::switch::Side;
use segue_model::switch::guard::Guard;
use segue_model::switch::ownership::{FenceId, Ownership};
use segue_model::switch::token::Token;

/// Every fence's deadline, by the clock of its database, which stands at [`EARLY`] whenever a fence is made.
///
/// Only whether the deadline has passed matters, so a clock has two readings. That is exact as long as a row and a
/// literal carry the deadline of the same, last fence, which [`Db::now_us`] is relative to.
pub(crate) const DEADLINE_US: i64 = 10;
pub(crate) const MARGIN_US: i64 = 1;
pub(crate) const EARLY: i64 = 0;

/// What was committed and is on its way to the other side, in the order of commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    Write,
    Marker(FenceId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Db {
    pub row: Ownership,
    pub guard: Guard,
    /// Its clock has passed the deadline of the last fence.
    pub late: bool,
    pub token: Token,
    pub log: Vec<Entry>,
    /// The newest marker of the other side that was applied here.
    pub applied: Option<FenceId>,
    /// How many writes are here, its own and applied ones.
    pub rows: u8,
    /// The row that a crash would bring back, if the last commit is not durable yet.
    pub durable: Option<Ownership>,
}

impl Db {
    pub(crate) fn now_us(&self) -> i64 {
        if self.late { DEADLINE_US } else { EARLY }
    }

    pub(crate) fn view(&self) -> View {
        View { row: self.row, applied: self.applied, guarded: self.guard != Guard::Off }
    }
}

/// What a driver reads of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct View {
    pub row: Ownership,
    pub applied: Option<FenceId>,
    pub guarded: bool,
}

/// Where a writer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum At {
    Away,
    /// Its transaction has a snapshot (REPEATABLE READ) that shows that `owner` was or was not this side's state; it has
    /// no lock on the tables yet.
    Snapshot {
        side: usize,
        owner: bool,
    },
    /// It holds the tables' lock and has passed the literal; next it reads the row. `owner` is what an old snapshot shows.
    Asking {
        side: usize,
        owner: Option<bool>,
    },
    /// It was let through and has not committed. `lock` is what it holds on the ownership row.
    Writing {
        side: usize,
        lock: Lock,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Lock {
    None,
    Share,
    /// It has taken the tables back.
    Update,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Writer {
    /// Writes that it still wants to make.
    pub left: u8,
    pub at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Fence { last: FenceId, new: u8 },
    Unfence(FenceId),
    Flip(FenceId),
    Open(FenceId),
    Follow(u64),
}

/// How far the server has got with a request. Locks are held from here to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Sent; the server has not begun.
    Sent,
    /// The shared advisory lock is held and the token was checked.
    Admitted,
    /// The tables' locks are held.
    Tables,
    /// The row's lock is held, next come the checks and the commit.
    Row,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub op: Op,
    pub side: usize,
    pub token: Token,
    pub stage: Stage,
    /// It holds the tables' locks.
    pub tables: bool,
    /// The clock was checked before the wait for the row's lock (a seeded bug).
    pub checked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Driver {
    /// `None` before it has taken over, and after it was shut out.
    pub token: Option<Token>,
    /// Where it has raised its token; it reads and writes nowhere else.
    pub reached: [bool; 2],
    /// What it has read, where it decides by what it has read.
    pub seen: [Option<View>; 2],
    pub request: Option<Request>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub dbs: [Db; 2],
    /// Sorted: writers are alike, so their order is one of many equal states.
    pub writers: Vec<Writer>,
    pub drivers: [Driver; 2],
    /// A request whose connection was given up, and which the server still runs.
    pub stray: Option<Request>,
    pub acknowledged: u8,
    pub next_attempt: u8,
    /// How often the first driver may still take a new token; the second one always may.
    pub renewals_left: u8,
    pub crashes_left: u8,
    pub clock_steps_left: u8,
    pub give_ups_left: u8,
}

pub(crate) const SIDES: [usize; 2] = [0, 1];

/// The model counts sides, the protocol names them.
pub(crate) fn index_of(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Target => 1,
    }
}

impl State {
    /// Every request that a server may run, with the driver that waits for it; `None` for the stray one.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (Option<usize>, Request)> + '_ {
        let waited = self.drivers.iter().enumerate().filter_map(|(i, d)| d.request.map(|r| (Some(i), r)));
        waited.chain(self.stray.map(|r| (None, r)))
    }

    pub(crate) fn set_request(&mut self, of: Option<usize>, request: Option<Request>) {
        match of {
            Some(driver) => self.drivers[driver].request = request,
            None => self.stray = request,
        }
    }

    /// Whether a request holds the tables' locks of this side.
    pub(crate) fn tables_locked(&self, side: usize) -> bool {
        self.requests().any(|(_, r)| r.side == side && r.tables)
    }

    /// Whether a request holds the row's lock of this side.
    pub(crate) fn row_locked(&self, side: usize) -> bool {
        self.requests().any(|(_, r)| r.side == side && r.stage == Stage::Row)
    }

    /// Whether a writer holds a lock on the row of this side, of any kind or an exclusive one only.
    pub(crate) fn row_held(&self, side: usize, any: bool) -> bool {
        self.writers.iter().any(|w| match w.at {
            At::Writing { side: at, lock: Lock::Update } => at == side,
            At::Writing { side: at, lock: Lock::Share } => at == side && any,
            At::Writing { lock: Lock::None, .. } | At::Away | At::Snapshot { .. } | At::Asking { .. } => {
                false
            }
        })
    }

    /// Whether a writer holds a lock on the tables of this side.
    pub(crate) fn written(&self, side: usize) -> bool {
        self.writers.iter().any(|w| match w.at {
            At::Asking { side: at, .. } | At::Writing { side: at, .. } => at == side,
            At::Away | At::Snapshot { .. } => false,
        })
    }
}
