//! The source server: transactions, their log, what snapshots show, and a crash that loses what was not flushed.
//!
//! It knows nothing of Segue but the slot. Everything a server may do in any order is one step here: a commit
//! record gets into the log, the log is flushed, and the transaction becomes visible, each when it pleases. So a
//! transaction that waits for a synchronous standby (recorded, flushed, not visible) and one that commits
//! asynchronously (visible, not flushed) are both among the schedules.

use segue_model::seam::{Seam, Xid};

/// Rows by key: the value each holds.
pub(crate) type Rows = [Option<u8>; 2];

/// The first transaction number: a little below an epoch, so that the stream's 32 bits wrap within the model.
const FIRST: u64 = (1 << 32) - 2;

/// What a transaction does, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Insert the row of this key, or update it if it is there.
    Put(u8),
    /// The same, or delete the row.
    PutOrDelete(u8),
    /// Move the row of this key to the other key; if that is impossible, as `Put`.
    Rekey(u8),
}

/// One change of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Write {
    Insert(u8, u8),
    Update(u8, u8),
    Delete(u8),
    Rekey { from: u8, to: u8, value: u8 },
}

impl Write {
    fn keys(self) -> [u8; 2] {
        match self {
            Write::Insert(key, _) | Write::Update(key, _) | Write::Delete(key) => [key, key],
            Write::Rekey { from, to, .. } => [from, to],
        }
    }

    /// Writes to `rows`; whether every row was there that had to be, and none that must not.
    pub(crate) fn apply(self, rows: &mut Rows) -> bool {
        let mut put = |key: u8, value: Option<u8>, there: bool| {
            let before = std::mem::replace(&mut rows[usize::from(key)], value);
            before.is_some() == there
        };
        match self {
            Write::Insert(key, value) => put(key, Some(value), false),
            Write::Update(key, value) => put(key, Some(value), true),
            Write::Delete(key) => put(key, None, true),
            Write::Rekey { from, to, value } => put(from, None, true) & put(to, Some(value), false),
        }
    }

    /// The keys it touches, each once.
    pub(crate) fn touches(self, key: u8) -> bool {
        self.keys().contains(&key)
    }
}

/// How far a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    Running,
    /// Its commit record is in the log; snapshots do not show it yet.
    Recorded,
    Visible,
    /// Aborted, or undone by a crash.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Transaction {
    pub(crate) phase: Phase,
    xid: u64,
    pub(crate) writes: Vec<Write>,
}

/// A record of the log. The log holds no others: a running transaction's changes count as lost in a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) xid: u64,
    /// The transaction that commits; `None` for an abort (the barrier's, too) or a signal.
    pub(crate) commits: Option<u8>,
}

/// A snapshot as the server reports it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shot {
    pub(crate) xmin: u64,
    pub(crate) xmax: u64,
    pub(crate) in_progress: Vec<u64>,
}

impl Shot {
    pub(crate) fn seam(&self) -> Seam {
        Seam::new(Xid(self.xmin), Xid(self.xmax), self.in_progress.iter().copied().map(Xid).collect())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) transactions: Vec<Transaction>,
    next_xid: u64,
    /// The highest number that has ended: `xmax` of a snapshot is the one after it.
    last_done: u64,
    pub(crate) log: Vec<Record>,
    pub(crate) flushed: usize,
    initial: Rows,
    /// What a new snapshot shows …
    pub(crate) rows: Rows,
    /// … and of which transactions, one bit each. The truth that seams are judged by.
    pub(crate) shown: u8,
}

impl Source {
    pub(crate) fn new(transactions: usize, rows: Rows) -> Source {
        let idle = Transaction { phase: Phase::Idle, xid: 0, writes: Vec::new() };
        Source {
            transactions: vec![idle; transactions],
            next_xid: FIRST,
            last_done: FIRST - 1,
            log: Vec::new(),
            flushed: 0,
            initial: rows,
            rows,
            shown: 0,
        }
    }

    /// The changes that transaction `at` may make as its next `step`; none while another one holds the row's lock.
    pub(crate) fn choices(&self, at: usize, step: Step) -> Vec<Write> {
        let mut rows = self.rows;
        for write in &self.transactions[at].writes {
            write.apply(&mut rows);
        }
        let value = at as u8 + 1;
        let put = |key: u8| match rows[usize::from(key)] {
            Some(_) => Write::Update(key, value),
            None => Write::Insert(key, value),
        };
        let mut choices = match step {
            Step::Put(key) => vec![put(key)],
            Step::PutOrDelete(key) if rows[usize::from(key)].is_some() => vec![put(key), Write::Delete(key)],
            Step::PutOrDelete(key) => vec![put(key)],
            Step::Rekey(key) if rows[usize::from(key)].is_some() && rows[usize::from(1 - key)].is_none() => {
                vec![Write::Rekey { from: key, to: 1 - key, value }]
            }
            Step::Rekey(key) => vec![put(key)],
        };
        let locked = |key: u8| {
            let holds = |t: &Transaction| {
                matches!(t.phase, Phase::Running | Phase::Recorded) && t.writes.iter().any(|w| w.touches(key))
            };
            self.transactions.iter().enumerate().any(|(other, t)| other != at && holds(t))
        };
        choices.retain(|write| !write.keys().into_iter().any(locked));
        choices
    }

    pub(crate) fn write(&mut self, at: usize, write: Write) {
        if self.transactions[at].phase == Phase::Idle {
            self.transactions[at].phase = Phase::Running;
            self.transactions[at].xid = self.take_xid();
        }
        self.transactions[at].writes.push(write);
    }

    pub(crate) fn record(&mut self, at: usize) {
        let transaction = &mut self.transactions[at];
        transaction.phase = Phase::Recorded;
        self.log.push(Record { xid: transaction.xid, commits: Some(at as u8) });
    }

    /// An abort is visible at once and waits for no flush.
    pub(crate) fn abort(&mut self, at: usize) {
        let transaction = &mut self.transactions[at];
        transaction.phase = Phase::Gone;
        transaction.writes.clear();
        let xid = std::mem::take(&mut transaction.xid);
        self.end_without_trace(xid);
    }

    pub(crate) fn show(&mut self, at: usize) {
        let transaction = &mut self.transactions[at];
        transaction.phase = Phase::Visible;
        self.last_done = self.last_done.max(transaction.xid);
        for write in &transaction.writes {
            write.apply(&mut self.rows);
        }
        self.shown |= 1 << at;
    }

    pub(crate) fn flush(&mut self) {
        self.flushed = self.log.len();
    }

    fn take_xid(&mut self) -> u64 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    fn end_without_trace(&mut self, xid: u64) {
        self.log.push(Record { xid, commits: None });
        self.last_done = self.last_done.max(xid);
    }

    /// A transaction that takes a number and rolls back.
    pub(crate) fn take_and_roll_back(&mut self) -> u64 {
        let xid = self.take_xid();
        self.end_without_trace(xid);
        xid
    }

    /// A transaction of Segue that the stream will meet again, committed and flushed. Its number is never judged.
    pub(crate) fn signal(&mut self) -> usize {
        let xid = self.take_xid();
        self.end_without_trace(xid);
        self.flush();
        self.log.len()
    }

    /// Whether some transaction holds a number and has not ended.
    pub(crate) fn is_busy(&self, recorded_too: bool) -> bool {
        let busy =
            |t: &Transaction| t.phase == Phase::Running || (recorded_too && t.phase == Phase::Recorded);
        self.transactions.iter().any(busy)
    }

    /// `pg_current_snapshot()`.
    pub(crate) fn snapshot(&self) -> Shot {
        let xmax = self.last_done + 1;
        let holds = |t: &&Transaction| matches!(t.phase, Phase::Running | Phase::Recorded) && t.xid < xmax;
        let mut in_progress: Vec<u64> = self.transactions.iter().filter(holds).map(|t| t.xid).collect();
        in_progress.sort_unstable();
        Shot { xmin: in_progress.first().copied().unwrap_or(xmax), xmax, in_progress }
    }

    /// Where the log holds the commit of transaction `at`.
    pub(crate) fn recorded_at(&self, at: usize) -> Option<usize> {
        self.log.iter().position(|r| r.commits == Some(at as u8))
    }

    /// Power fails. What was not flushed has never been, and its transaction numbers are given out again.
    pub(crate) fn crash(&mut self) {
        self.log.truncate(self.flushed);
        self.last_done = self.log.iter().map(|r| r.xid).max().unwrap_or(FIRST - 1);
        self.next_xid = self.last_done + 1;
        self.rows = self.initial;
        self.shown = 0;
        for transaction in self.transactions.iter_mut().filter(|t| t.phase != Phase::Idle) {
            transaction.phase = Phase::Gone;
        }
        for record in &self.log {
            let Some(at) = record.commits else { continue };
            let transaction = &mut self.transactions[usize::from(at)];
            transaction.phase = Phase::Visible;
            transaction.writes.iter().for_each(|w| _ = w.apply(&mut self.rows));
            self.shown |= 1 << at;
        }
        for transaction in self.transactions.iter_mut().filter(|t| t.phase == Phase::Gone) {
            transaction.writes.clear();
            transaction.xid = 0;
        }
    }
}
