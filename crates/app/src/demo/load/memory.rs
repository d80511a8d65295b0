//! What one client of the load knows: every row it wrote, as its acknowledged transactions left it. Pure.
//!
//! Each row is written by one client only, so what must be there follows from that client's own acknowledgements,
//! whatever the order of different clients' commits. Money is the exception: all clients move it between all accounts,
//! and the ledger, of which each row has one writer, says what the balances must be.

use std::collections::{HashMap, HashSet};

/// A kind of row that is remembered one by one, besides the ledger's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Customers,
    Orders,
    Documents,
    Events,
    Sessions,
    Tags,
    Audit,
    Sizes,
}

impl Place {
    pub(super) const ALL: [Self; 8] = [
        Self::Customers,
        Self::Orders,
        Self::Documents,
        Self::Events,
        Self::Sessions,
        Self::Tags,
        Self::Audit,
        Self::Sizes,
    ];
}

/// A row: where it is, and its key as text.
pub(super) type Row = (Place, String);

/// What a row is after a transaction; `None`: gone.
pub(super) type Fact = (Row, Option<String>);

/// A row of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: i64,
    pub(super) from: i32,
    pub(super) to: i32,
    pub(super) cents: i64,
}

/// What a transaction leaves behind if it commits.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub(super) entry: Option<Entry>,
    pub(super) facts: Vec<Fact>,
}

impl Draft {
    pub(super) fn with(
        mut self,
        place: Place,
        key: impl Into<String>,
        state: impl Into<Option<String>>,
    ) -> Self {
        self.facts.push(((place, key.into()), state.into()));
        self
    }
}

/// Enough for hours; beyond, a client goes on with money alone. The ledger needs no bound: a client writes a few dozen
/// rows a second, for a day at most, and remembers each in 32 bytes.
const ROWS_MAX: usize = 200_000;

/// One client's knowledge.
#[derive(Debug)]
pub(super) struct Memory {
    /// The client's number, from 1, in the ledger too.
    pub(super) writer: i32,
    pub(super) writers: i32,
    /// Acknowledged, by ascending number.
    pub(super) entries: Vec<Entry>,
    pub(super) rows: HashMap<Row, Option<String>>,
    /// Whose COMMIT got no answer: they may be there or not.
    pub(super) open_entries: HashSet<i64>,
    pub(super) open_rows: HashSet<Row>,
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
    own: HashMap<Place, Vec<String>>,
    next_number: i64,
}

impl Memory {
    pub(super) fn new(writer: i32, writers: i32) -> Self {
        Self {
            writer,
            writers,
            entries: Vec::new(),
            rows: HashMap::new(),
            open_entries: HashSet::new(),
            open_rows: HashSet::new(),
            acknowledged: 0,
            unknown: 0,
            own: HashMap::new(),
            next_number: 0,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= ROWS_MAX
    }

    /// A number that this client never used before.
    pub(super) fn fresh(&mut self) -> i64 {
        self.next_number += 1;
        self.next_number
    }

    /// As [`Memory::fresh`], for tables whose keys all clients share, beyond what they are filled with.
    pub(super) fn fresh_key(&mut self) -> i64 {
        i64::from(self.writer) * 1_000_000_000_000 + self.fresh()
    }

    /// One of the rows `1..=rows` that are there from the start and that only this client writes, by a random number.
    pub(super) fn seeded(&self, random: u64, rows: u64) -> u64 {
        let [writer, writers] = [self.writer, self.writers].map(|number| u64::from(number.unsigned_abs()));
        let stripes = (rows / writers).max(1);
        (random % stripes * writers + writer).min(rows)
    }

    /// A row that this client made and that is there, by a random number.
    pub(super) fn own(&self, random: u64, place: Place) -> Option<&str> {
        let keys = self.own.get(&place).filter(|keys| !keys.is_empty())?;
        let key = keys.get(usize::try_from(random % keys.len() as u64).ok()?)?;
        Some(key.as_str())
    }

    /// The state of a row, which is `seeded` unless it was written; `None` if it is gone, or nobody can know.
    pub(super) fn state(&self, place: Place, key: &str, seeded: Option<String>) -> Option<String> {
        let row = (place, key.to_owned());
        if self.open_rows.contains(&row) {
            return None;
        }
        self.rows.get(&row).cloned().unwrap_or(seeded)
    }

    /// The server said that it is committed.
    pub(super) fn acknowledge(&mut self, draft: Draft) {
        self.acknowledged += 1;
        self.entries.extend(draft.entry);
        for (row, state) in draft.facts {
            let own = self.own.entry(row.0).or_default();
            let known = self.rows.get(&row).is_some_and(Option::is_some);
            match &state {
                Some(_) if !known => own.push(row.1.clone()),
                None => own.retain(|key| *key != row.1),
                Some(_) => {}
            }
            self.rows.insert(row, state);
        }
    }

    /// The answer to COMMIT was lost: from now on nobody writes these rows.
    pub(super) fn leave_open(&mut self, draft: Draft) {
        self.unknown += 1;
        self.open_entries.extend(draft.entry.map(|entry| entry.number));
        for (row, _) in draft.facts {
            if let Some(own) = self.own.get_mut(&row.0) {
                own.retain(|key| *key != row.1);
            }
            self.open_rows.insert(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(key: &str, state: Option<&str>) -> Draft {
        Draft::default().with(Place::Tags, key, state.map(str::to_owned))
    }

    #[test]
    fn clients_never_share_a_seeded_row() {
        let owners: Vec<HashSet<u64>> = (1..=3)
            .map(|writer| (0..100).map(|random| Memory::new(writer, 3).seeded(random, 90)).collect())
            .collect();
        assert_eq!(owners.iter().map(HashSet::len).sum::<usize>(), 90);
        assert_eq!(owners.iter().flatten().collect::<HashSet<_>>().len(), 90);
        assert!(owners.iter().flatten().all(|row| (1..=90).contains(row)));
    }

    #[test]
    fn a_row_is_what_was_acknowledged_last() {
        let mut memory = Memory::new(1, 1);
        assert_eq!(memory.state(Place::Tags, "a", Some("0".to_owned())).as_deref(), Some("0"));
        memory.acknowledge(wrote("a", Some("1")));
        assert_eq!(memory.state(Place::Tags, "a", None).as_deref(), Some("1"));
        assert_eq!(memory.own(7, Place::Tags), Some("a"));
        memory.acknowledge(wrote("a", None));
        assert_eq!(memory.state(Place::Tags, "a", Some("0".to_owned())), None);
        assert_eq!(memory.own(7, Place::Tags), None);
    }

    #[test]
    fn a_row_left_open_is_never_written_again() {
        let mut memory = Memory::new(1, 1);
        memory.acknowledge(wrote("a", Some("1")));
        memory.leave_open(wrote("a", Some("2")));
        assert_eq!(memory.state(Place::Tags, "a", None), None);
        assert_eq!(memory.own(0, Place::Tags), None);
        assert_eq!((memory.acknowledged, memory.unknown), (1, 1));
    }
}
