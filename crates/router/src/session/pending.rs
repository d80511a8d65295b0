//! Changes of the session that were sent, until the server has answered what they were sent in.
//!
//! A client may send group upon group without waiting. Each change waits for the ReadyForQuery of its own group.

use super::Session;
use crate::effects::{Change, Effects, Ending};
use crate::pipeline::Status;
use crate::settings::{Settings, outlives_rollback};
use std::sync::Arc;

/// A transaction that changes more is not carried from server to server.
const PENDING_MAX: usize = 1_024;

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Change(Change),
    Ending(Ending),
}

/// Everything that waits, in the order in which it was sent, each with the number of its group.
#[derive(Debug, Default)]
pub(super) struct Pending {
    entries: Vec<(u64, Entry)>,
    /// The last ending, while there is no change that it would have to be told apart from.
    ending: Option<(u64, Ending)>,
    /// How many ReadyForQuery came.
    answered: u64,
    /// What belongs to this one, or one before it, is answered.
    due: u64,
}

impl Pending {
    /// Notes what is sent behind `owed` ReadyForQuery that are still to come; `false`: there is too much.
    #[must_use]
    pub(super) fn note(&mut self, effects: &Effects, owed: usize) -> bool {
        if effects.changes.is_empty() && effects.endings.is_empty() {
            return true;
        }
        let group = self.answered + owed as u64 + 1;
        let mut endings = effects.endings.iter().peekable();
        for (index, change) in effects.changes.iter().enumerate() {
            while let Some((_, ending)) = endings.next_if(|(before, _)| *before <= index) {
                self.note_ending(group, *ending);
            }
            if let Some((of, ending)) = self.ending.take_if(|(of, _)| *of == group) {
                self.entries.push((of, Entry::Ending(ending)));
            }
            self.entries.push((group, Entry::Change(change.clone())));
        }
        endings.for_each(|(_, ending)| self.note_ending(group, *ending));
        if self.entries.len() <= PENDING_MAX {
            return true;
        }
        self.clear();
        false
    }

    /// Only what stands between changes is kept: transactions that change nothing have no bound.
    fn note_ending(&mut self, group: u64, ending: Ending) {
        if let Some((_, Entry::Change(_))) = self.entries.last() {
            self.entries.push((group, Entry::Ending(ending)));
            self.ending = None;
        } else {
            self.ending = Some((group, ending));
        }
    }

    /// A ReadyForQuery came; `is_last`: and nothing more is owed.
    pub(super) fn answered(&mut self, is_last: bool) {
        self.answered += 1;
        self.due = if is_last { u64::MAX } else { self.answered };
    }

    /// Takes out of what was answered all that holds, whether or not its transaction has `failed`, or `had_failed` before its
    /// last group; what is open still stays. `None`: what holds is the server's knowledge.
    pub(super) fn settle(&mut self, status: Status, failed: bool, had_failed: bool) -> Option<Vec<Change>> {
        let due = self.due;
        let (mut open, mut holds, mut is_known) = (Vec::new(), Vec::new(), true);
        // The first end of a transaction that has failed is a rollback, whatever it says.
        let mut is_lost = had_failed;
        for (group, entry) in self.entries.extract_if(.., |(group, _)| *group <= due) {
            let ending = match entry {
                Entry::Change(change) => {
                    open.push((group, change));
                    continue;
                }
                Entry::Ending(ending) => ending,
            };
            let commits = ending == Ending::Commit && !is_lost;
            is_lost = false;
            if ending == Ending::RollbackTo {
                continue;
            }
            // It may have failed before this end, or behind it.
            is_known &= !failed || open.is_empty() || !commits && status == Status::Idle;
            let ended = open.drain(..).map(|(_, change)| change);
            holds.extend(ended.filter(|change| commits || outlives_rollback(change)));
        }
        match status {
            Status::Idle if failed || is_lost => {}
            Status::Idle => holds.extend(open.into_iter().map(|(_, change)| change)),
            Status::InTransaction | Status::Failed => {
                let open = open.into_iter().map(|(group, change)| (group, Entry::Change(change)));
                drop(self.entries.splice(0..0, open));
            }
        }
        is_known.then_some(holds)
    }

    /// What was answered and holds however its transaction ends is taken out.
    pub(super) fn take_lasting(&mut self) -> Vec<Change> {
        let due = self.due;
        let lasts = |entry: &Entry| matches!(entry, Entry::Change(change) if outlives_rollback(change));
        let taken = self.entries.extract_if(.., |(group, entry)| *group <= due && lasts(entry));
        let changes = taken.filter_map(|(_, entry)| match entry {
            Entry::Change(change) => Some(change),
            Entry::Ending(_) => None,
        });
        changes.collect()
    }

    /// A rollback to a savepoint is sent; returns whether it may take something back.
    pub(super) fn roll_back(&mut self) -> bool {
        let before = self.entries.len();
        self.entries.retain(|(_, entry)| match entry {
            Entry::Change(change) => outlives_rollback(change),
            Entry::Ending(_) => true,
        });
        self.entries.len() < before
    }

    /// Nothing of it came to be.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.ending = None;
    }
}

impl Session {
    /// Makes the changes that hold, by a ReadyForQuery that has come, the session's.
    pub(super) fn settle(&mut self, status: Status, failed: bool, had_failed: bool) {
        match self.pending.settle(status, failed, had_failed) {
            Some(holds) => self.apply(holds),
            None => self.pin(crate::Pin::Setting),
        }
    }

    fn apply(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.unlike = false;
        // What was done before this was for whoever is named so far.
        if let Some(tenant) = self.tenant() {
            self.named.insert(&tenant);
        }
        let settings = Arc::make_mut(&mut self.settings);
        let (mut too_many, mut starts_anew) = (false, false);
        for change in changes {
            starts_anew |= matches!(change, Change::Reset { .. } | Change::ResetAll | Change::DiscardAll);
            too_many |= settings.apply(change).is_err();
        }
        self.settings = self.shared.settings.one(&self.settings);
        if let Some(link) = &mut self.link {
            link.server.settings = Arc::clone(&self.settings);
        }
        if starts_anew && self.is_shared() {
            // A shared server falls back to nobody's settings, and the client expects its own.
            let wishes = Settings::at_start(&self.startup.settings);
            self.settings = self.shared.settings.one(&Arc::new(self.settings.over(wishes)));
        }
        self.parsed_by.settled = self.settings.parsed_by();
        if too_many {
            self.pin(crate::Pin::Size);
        }
        if self.is_shared() && self.settings.pins() {
            self.pin(crate::Pin::Session);
        } else if self.pin == Some(crate::Pin::Session) {
            self.pin = None;
        }
    }

    /// Within a transaction: what SQL has prepared there stays, however the transaction ends.
    pub(super) fn settle_prepared(&mut self, failed: bool) {
        let lasting = self.pending.take_lasting();
        if failed && !lasting.is_empty() {
            // Whether it was this that failed, or something beside it, is the server's knowledge.
            self.pin(crate::Pin::Setting);
        } else {
            self.apply(lasting);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> Change {
        Change::Set { name: name.into(), sql: String::new() }
    }

    fn changes(changes: &[Change]) -> Effects {
        Effects { changes: changes.to_vec(), ..Effects::default() }
    }

    fn settled(pending: &mut Pending) -> Vec<Change> {
        pending.settle(Status::Idle, false, false).unwrap()
    }

    #[test]
    fn a_change_waits_for_its_own_group() {
        let mut pending = Pending::default();
        assert!(pending.note(&changes(&[set("a")]), 0) && pending.note(&changes(&[set("b")]), 1));
        pending.answered(false);
        assert_eq!(settled(&mut pending), [set("a")]);
        pending.answered(false);
        assert_eq!(settled(&mut pending), [set("b")]);
    }

    #[test]
    fn what_is_left_when_nothing_is_owed_is_answered() {
        let mut pending = Pending::default();
        assert!(pending.note(&changes(&[set("a")]), 5));
        pending.answered(false);
        assert_eq!(settled(&mut pending), []);
        pending.answered(true);
        assert_eq!(settled(&mut pending), [set("a")]);
    }

    #[test]
    fn what_outlives_a_rollback_stays() {
        let mut pending = Pending::default();
        let prepare = Change::Prepare { name: "p".into(), sql: String::new() };
        assert!(pending.note(&changes(&[set("a"), prepare.clone()]), 0));
        assert!(pending.roll_back() && !pending.roll_back());
        pending.answered(true);
        assert_eq!(pending.take_lasting(), [prepare]);
    }

    #[test]
    fn there_is_a_bound() {
        let mut pending = Pending::default();
        assert!((0..PENDING_MAX).all(|_| pending.note(&changes(&[set("a")]), 0)));
        assert!(!pending.note(&changes(&[set("a")]), 0));
        assert_eq!(pending.entries.len(), 0);
    }

    #[test]
    fn transactions_that_change_nothing_are_not_counted() {
        let mut pending = Pending::default();
        let commit = Effects { endings: vec![(0, Ending::Commit)], ..Effects::default() };
        assert!(pending.note(&changes(&[set("a")]), 0));
        assert!((0..2 * PENDING_MAX).all(|owed| pending.note(&commit, owed)));
        pending.answered(true);
        assert_eq!(settled(&mut pending), [set("a")]);
    }

    /// Groups, one after the other, each with what the server says of it, and what holds once it has; `None`: it is not known.
    #[test]
    fn what_ends_a_transaction_decides_on_what_was_set_before_it() {
        use Status::{Failed, Idle, InTransaction};
        type Groups<'a> = &'a [(&'a str, Status, bool, Option<&'a [&'a str]>)];
        let cases: &[Groups] = &[
            &[("SET a = 1", InTransaction, false, Some(&[])), ("COMMIT", Idle, false, Some(&["a"]))],
            &[("SET a = 1", InTransaction, false, Some(&[])), ("ROLLBACK", Idle, false, Some(&[]))],
            // It was the commit that failed, or something behind it.
            &[("SET a = 1", InTransaction, false, Some(&[])), ("COMMIT", Idle, true, None)],
            &[("ROLLBACK; SET a = 1", Idle, false, Some(&["a"]))],
            &[("SET a = 1; ROLLBACK; SET b = 1; COMMIT; SET c = 1", Idle, false, Some(&["b", "c"]))],
            &[("SET a = 1; COMMIT; SELECT 1/0", Idle, true, None)],
            &[("SET a = 1; ROLLBACK; SELECT 1/0", Idle, true, Some(&[]))],
            &[("SET a = 1", InTransaction, false, Some(&[])), ("COMMIT; SELECT 1/0", Idle, true, None)],
            &[
                ("SET a = 1", InTransaction, false, Some(&[])),
                ("ROLLBACK; BEGIN; SELECT 1/0", Failed, true, None),
            ],
            &[("SELECT 1/0", Failed, true, Some(&[])), ("COMMIT; SET a = 1", Idle, false, Some(&["a"]))],
            &[
                ("SET a = 1", InTransaction, false, Some(&[])),
                ("SELECT 1/0", Failed, true, Some(&[])),
                ("COMMIT", Idle, false, Some(&[])),
            ],
            &[
                ("SET a = 1", InTransaction, false, Some(&[])),
                ("COMMIT AND CHAIN", InTransaction, false, Some(&["a"])),
                ("SET b = 1", InTransaction, false, Some(&[])),
                ("ROLLBACK", Idle, false, Some(&[])),
            ],
            &[
                ("SELECT 1/0", Failed, true, Some(&[])),
                ("ROLLBACK TO s; SET a = 1; COMMIT", Idle, false, Some(&["a"])),
            ],
        ];
        for groups in cases {
            // Sent one after the other, and all at once.
            for is_pipelined in [false, true] {
                let (mut pending, mut had_failed) = (Pending::default(), false);
                let note = |pending: &mut Pending, sql: &str, owed| {
                    assert!(pending.note(&crate::effects::read(sql.as_bytes()), owed));
                };
                if is_pipelined {
                    groups.iter().enumerate().for_each(|(owed, (sql, ..))| note(&mut pending, sql, owed));
                }
                for (at, (sql, status, failed, holds)) in groups.iter().enumerate() {
                    if !is_pipelined {
                        note(&mut pending, sql, 0);
                    }
                    pending.answered(!is_pipelined || at + 1 == groups.len());
                    let settled = pending.settle(*status, *failed, had_failed);
                    had_failed = *status == Failed;
                    let names = settled.map(|changes| changes.into_iter().map(name).collect::<Vec<_>>());
                    let expected = holds.map(|holds| holds.iter().map(|name| (*name).to_owned()).collect());
                    assert_eq!(names, expected, "{groups:?}, at {sql}");
                }
            }
        }
    }

    fn name(change: Change) -> String {
        match change {
            Change::Set { name, .. } => name,
            other => format!("{other:?}"),
        }
    }
}
