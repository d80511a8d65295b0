//! Sessions with state, over many looks. Pure.

use segue_postgres::health::StatefulSession;
use std::collections::BTreeSet;

/// Sessions that were once sure to hold something beyond their transactions.
///
/// An advisory lock of a session in a transaction may be the transaction's own. One that was seen outside of any is the
/// session's, and its holder counts for as long as it is seen with a lock at all.
#[derive(Debug, Default)]
pub(super) struct Remembered(BTreeSet<(i32, Option<i64>)>);

impl Remembered {
    /// Of what was found, who is known to hold it, in words.
    pub(super) fn known(&mut self, found: Vec<StatefulSession>) -> Vec<String> {
        let seen: BTreeSet<_> = found.iter().filter_map(|session| session.session).collect();
        self.0.retain(|session| seen.contains(session));
        let certain = found.iter().filter(|session| session.is_certain);
        self.0.extend(certain.filter_map(|session| session.session));
        let known = |session: &StatefulSession| {
            session.is_certain || session.session.is_some_and(|session| self.0.contains(&session))
        };
        found.into_iter().filter(known).map(|session| session.words).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(pid: i32, is_certain: bool) -> StatefulSession {
        StatefulSession { session: Some((pid, Some(7))), is_certain, words: format!("pid {pid}") }
    }

    #[test]
    fn a_holder_is_known_from_the_first_moment_outside_of_a_transaction_on() {
        let mut remembered = Remembered::default();
        assert_eq!(remembered.known(vec![session(1, false), session(2, true)]), ["pid 2"]);
        assert_eq!(remembered.known(vec![session(1, true), session(2, false)]), ["pid 1", "pid 2"]);
        assert_eq!(remembered.known(vec![session(1, false)]), ["pid 1"], "in its next transaction, too");
        assert_eq!(remembered.known(vec![]), [""; 0]);
        assert_eq!(remembered.known(vec![session(1, false)]), [""; 0], "it had let go in between");
    }

    #[test]
    fn what_is_certain_needs_no_session() {
        let left = StatefulSession { session: None, is_certain: true, words: "tables".into() };
        assert_eq!(Remembered::default().known(vec![left]), ["tables"]);
    }
}
