//! What one client knows: the rows it owns, as its acknowledged transactions left them. Pure.
//!
//! Each row is written by one client only (its *owner*), so what must be there follows from that client's own
//! acknowledgements, without a word about the order of different clients' commits. A transaction whose COMMIT got no
//! answer is kept with its changes, and its rows are *retired*: nobody writes them again, so that they are in
//! exactly one of two states for good, and the ledger row of the same transaction says in which.

use super::schema::{SCRATCH, SHAPES, Seeded};
use std::collections::{HashMap, HashSet};

/// A shape's index and a row's number.
pub(super) type RowId = (usize, u64);

/// What a transaction does to what must be there.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// The row's new state; `None`: it is gone.
    Row(RowId, Option<String>),
    /// TRUNCATE.
    Clear(usize),
}

#[derive(Debug, Clone)]
pub(super) struct Unresolved {
    pub(super) seq: u64,
    pub(super) changes: Vec<Change>,
}

#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) client: u32,
    pub(super) clients: u32,
    pub(super) seeded: Seeded,
    /// Rows ever written by this client; all others are as seeded.
    pub(super) rows: HashMap<RowId, Option<String>>,
    pub(super) cleared: HashSet<usize>,
    pub(super) acked: Vec<u64>,
    pub(super) unresolved: Vec<Unresolved>,
    retired: HashSet<RowId>,
    retired_shapes: HashSet<usize>,
    /// Rows that this client inserted and that may still be there: where to look for one to write.
    candidates: Vec<Vec<u64>>,
    next_number: u64,
}

/// Room for the numbers of one client's own rows.
const NUMBERS_PER_CLIENT: u64 = 10_000_000_000;

impl Memory {
    pub(super) fn new(client: u32, clients: u32, seeded: Seeded) -> Memory {
        Memory {
            client,
            clients,
            seeded,
            rows: HashMap::new(),
            cleared: HashSet::new(),
            acked: Vec::new(),
            unresolved: Vec::new(),
            retired: HashSet::new(),
            retired_shapes: HashSet::new(),
            candidates: vec![Vec::new(); SHAPES.len()],
            next_number: NUMBERS_PER_CLIENT * (u64::from(client) + 1),
        }
    }

    /// The first of `count` numbers never used before.
    pub(super) fn fresh(&mut self, count: u64) -> u64 {
        self.next_number += count;
        self.next_number - count
    }

    /// The state of a row, `None` when it must not be there.
    pub(super) fn state(&self, row: RowId) -> Option<String> {
        match self.rows.get(&row) {
            Some(state) => state.clone(),
            None if self.cleared.contains(&row.0) || !self.seeded.contains(row.0, row.1) => None,
            None => Some(SHAPES[row.0].inserted(row.1, 0)),
        }
    }

    pub(super) fn is_writable(&self, row: RowId) -> bool {
        !self.retired_shapes.contains(&row.0) && !self.retired.contains(&row)
    }

    pub(super) fn is_shape_writable(&self, shape: usize) -> bool {
        !self.retired_shapes.contains(&shape)
    }

    /// A number that may be a row of this client's; the caller asks for its state. `seed` is a random number.
    pub(super) fn candidate(&self, shape: usize, seed: u64) -> Option<u64> {
        let (lo, hi) = self.seeded.ranges[shape];
        let own = &self.candidates[shape];
        let clients = u64::from(self.clients);
        if (seed.is_multiple_of(2) || own.is_empty()) && hi > lo + clients {
            let number = lo + (seed / 2) % (hi - lo + 1 - clients);
            return Some(number - number % clients + u64::from(self.client)).filter(|number| *number >= lo);
        }
        if own.is_empty() { None } else { own.get((seed / 2) as usize % own.len()).copied() }
    }

    /// The transaction is committed: the server said so.
    pub(super) fn acknowledge(&mut self, seq: u64, changes: Vec<Change>) {
        self.acked.push(seq);
        for change in changes {
            self.apply(change);
        }
    }

    /// The answer to COMMIT was lost.
    pub(super) fn leave_open(&mut self, seq: u64, changes: Vec<Change>) {
        for change in &changes {
            match change {
                // A later TRUNCATE would hide what became of the row.
                Change::Row((SCRATCH, _), _) => drop(self.retired_shapes.insert(SCRATCH)),
                Change::Row(row, _) => drop(self.retired.insert(*row)),
                Change::Clear(shape) => drop(self.retired_shapes.insert(*shape)),
            }
        }
        self.unresolved.push(Unresolved { seq, changes });
    }

    /// Also used by the oracle, once it knows what became of an open transaction.
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Row(row, state) => {
                let candidates = &mut self.candidates[row.0];
                let known = self.rows.insert(row, state.clone());
                if state.is_some() && known.is_none() && !self.seeded.contains(row.0, row.1) {
                    candidates.push(row.1);
                } else if state.is_none() && candidates.len() > 64 {
                    // Newest rows are deleted most; a row that is not found here is dropped when it is looked for.
                    if let Some(at) = candidates.iter().rev().take(64).position(|n| *n == row.1) {
                        candidates.swap_remove(candidates.len() - 1 - at);
                    }
                }
            }
            Change::Clear(shape) => {
                self.rows.retain(|row, _| row.0 != shape);
                self.candidates[shape].clear();
                self.cleared.insert(shape);
            }
        }
    }
}
