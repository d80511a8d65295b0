//! Changes of the session that were sent, until the server has answered what they were sent in.
//!
//! A client may send group upon group without waiting. Each change waits for the ReadyForQuery of its own group.

use super::Session;
use crate::effects::Change;
use crate::settings::{Settings, outlives_rollback};
use std::sync::Arc;

/// A transaction that changes more is not carried from server to server.
const PENDING_MAX: usize = 1_024;

/// Everything that waits, in the order in which it was sent.
#[derive(Debug, Default)]
pub(super) struct Pending {
    changes: Vec<(u64, Change)>,
    /// How many ReadyForQuery came.
    answered: u64,
    /// What belongs to this one, or one before it, is answered.
    due: u64,
}

impl Pending {
    /// Notes changes that are sent behind `owed` ReadyForQuery that are still to come; `false`: there are too many.
    #[must_use]
    pub(super) fn note(&mut self, changes: &[Change], owed: usize) -> bool {
        let group = self.answered + owed as u64 + 1;
        self.changes.extend(changes.iter().map(|change| (group, change.clone())));
        if self.changes.len() <= PENDING_MAX {
            return true;
        }
        self.changes.clear();
        false
    }

    /// A ReadyForQuery came; `is_last`: and nothing more is owed.
    pub(super) fn answered(&mut self, is_last: bool) {
        self.answered += 1;
        self.due = if is_last { u64::MAX } else { self.answered };
    }

    /// What was answered, and is taken out.
    pub(super) fn take_due(&mut self) -> Vec<Change> {
        self.take(|_| true)
    }

    /// As [`take_due`](Pending::take_due), of what holds however its transaction ends.
    pub(super) fn take_lasting(&mut self) -> Vec<Change> {
        self.take(outlives_rollback)
    }

    fn take(&mut self, wanted: impl Fn(&Change) -> bool) -> Vec<Change> {
        if self.changes.is_empty() {
            return Vec::new();
        }
        let due = self.due;
        let taken = self.changes.extract_if(.., |(group, change)| *group <= due && wanted(change));
        taken.map(|(_, change)| change).collect()
    }

    /// A rollback is sent; returns whether it takes something back.
    pub(super) fn roll_back(&mut self) -> bool {
        let before = self.changes.len();
        self.changes.retain(|(_, change)| outlives_rollback(change));
        self.changes.len() < before
    }

    /// Nothing of it came to be.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
    }
}

impl Session {
    /// Makes the changes of a finished transaction the session's.
    pub(super) fn settle(&mut self) {
        let due = self.pending.take_due();
        self.apply(due);
    }

    fn apply(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.unlike = false;
        // What was done before this was for whoever is named so far.
        self.tenants_in_text.extend(self.tenant());
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

    #[test]
    fn a_change_waits_for_its_own_group() {
        let mut pending = Pending::default();
        assert!(pending.note(&[set("a")], 0) && pending.note(&[set("b")], 1));
        pending.answered(false);
        assert_eq!(pending.take_due(), [set("a")]);
        pending.answered(false);
        assert_eq!(pending.take_due(), [set("b")]);
    }

    #[test]
    fn what_is_left_when_nothing_is_owed_is_answered() {
        let mut pending = Pending::default();
        assert!(pending.note(&[set("a")], 5));
        pending.answered(false);
        assert_eq!(pending.take_due(), []);
        pending.answered(true);
        assert_eq!(pending.take_due(), [set("a")]);
    }

    #[test]
    fn what_outlives_a_rollback_stays() {
        let mut pending = Pending::default();
        let prepare = Change::Prepare { name: "p".into(), sql: String::new() };
        assert!(pending.note(&[set("a"), prepare.clone()], 0));
        assert!(pending.roll_back() && !pending.roll_back());
        pending.answered(true);
        assert_eq!(pending.take_lasting(), [prepare]);
    }

    #[test]
    fn there_is_a_bound() {
        let mut pending = Pending::default();
        assert!((0..PENDING_MAX).all(|_| pending.note(&[set("a")], 0)));
        assert!(!pending.note(&[set("a")], 0));
        assert_eq!(pending.changes.len(), 0);
    }
}
