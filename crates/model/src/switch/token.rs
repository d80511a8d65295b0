//! The fencing token: which process may still change anything. It is stored in every database that is written.
//!
//! A transaction that changes something takes the shared advisory lock and then, *in its next statement*, reads the
//! stored token and asks [`admit`]. Taking over takes the exclusive lock and stores what [`raise`] returns; so no
//! transaction of an earlier holder is open when the new holder reads its first fact.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Grows with every takeover of the migration, and whenever a process cannot know what became of a request of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A database does not let the holder of a token in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Stale {
    /// A later process has taken over.
    #[error(
        "token {presented} was superseded by {stored}: another `segue run` has taken over, and this one must stop"
    )]
    Superseded {
        /// What the process holds.
        presented: Token,
        /// What the database stores.
        stored: Token,
    },
    /// The takeover has not reached this database yet: requests of the last holder may still be under way in it.
    #[error(
        "token {presented} is not stored here yet (it says {stored}): it must be raised before its first use"
    )]
    NotRaised {
        /// What the process holds.
        presented: Token,
        /// What the database stores.
        stored: Token,
    },
}

/// Whether the holder of `presented` may go on in a database that stores `stored`.
///
/// Only equality admits. A higher token is refused too: until it is stored, nothing shuts the last holder out.
pub fn admit(presented: Token, stored: Token) -> Result<(), Stale> {
    match presented.cmp(&stored) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(Stale::Superseded { presented, stored }),
        std::cmp::Ordering::Greater => Err(Stale::NotRaised { presented, stored }),
    }
}

/// The token to store when the holder of `presented` takes a database over. Evaluated under the exclusive lock.
///
/// Raising to what is stored already is allowed, so that a takeover whose answer was lost can be repeated.
pub fn raise(presented: Token, stored: Token) -> Result<Token, Stale> {
    if presented < stored { Err(Stale::Superseded { presented, stored }) } else { Ok(presented) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stored_token_is_let_in() {
        let (presented, stored) = (Token(2), Token(3));
        assert_eq!(admit(stored, stored), Ok(()));
        assert_eq!(admit(presented, stored), Err(Stale::Superseded { presented, stored }));
        assert_eq!(admit(stored, presented), Err(Stale::NotRaised { presented: stored, stored: presented }));
    }

    #[test]
    fn a_token_is_never_lowered() {
        assert_eq!(raise(Token(4), Token(3)), Ok(Token(4)));
        assert_eq!(raise(Token(3), Token(3)), Ok(Token(3)));
        assert!(raise(Token(2), Token(3)).is_err());
    }
}
