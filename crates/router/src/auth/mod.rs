//! Who a client is, and with what its server connections log in.
//!
//! * [`scram`]: SCRAM-SHA-256, both ends, without I/O
//! * [`users`]: the file of users and their secrets
//!
//! It sends and receives nothing, and knows no database.

pub(crate) mod scram;
pub(crate) mod users;

pub use users::{Users, UsersError};

use scram::Keys;
use std::fmt;

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// SCRAM-SHA-256 against the file of users.
    Scram,
    /// Nobody proves anything; only clients from this machine are let in.
    Trust,
}

/// What the router knows of one user's password.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The password itself.
    Password(String),
    /// PostgreSQL's verifier, and what a login of this user left behind.
    Verifier(Verifier),
}

// A secret must not get into a log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Password(_) => "Password(..)",
            Secret::Verifier(_) => "Verifier(..)",
        })
    }
}

/// What `pg_authid.rolpassword` holds: enough to check a password, and not enough to log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: u32,
    pub(crate) stored_key: Keys,
    pub(crate) server_key: Keys,
}

// As a secret: it can be guessed against.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

/// What a server connection logs in with.
#[derive(Clone)]
pub(crate) enum Login {
    Password(String),
    /// A client's key, as its own login proved it: good where the server holds the same verifier.
    Key {
        verifier: Verifier,
        client_key: Keys,
    },
    /// Nothing: the server must trust this machine.
    Nothing,
}

/// PostgreSQL's MD5 answer, for servers whose passwords were never set anew.
pub(crate) fn md5_answer(user: &str, password: &str, salt: [u8; 4]) -> String {
    use md5::{Digest, Md5};
    let hex = |parts: &[&[u8]]| {
        let mut digest = Md5::new();
        parts.iter().for_each(|part| digest.update(part));
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let inner = hex(&[password.as_bytes(), user.as_bytes()]);
    format!("md5{}", hex(&[inner.as_bytes(), &salt]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_md5_answer_is_the_one_that_servers_expect() {
        // From postgres-protocol's own tests.
        let answer = md5_answer("md5_user", "password", [0x2a, 0x3d, 0x8f, 0xe0]);
        assert_eq!(answer, "md562af4dd09bbb41884907a838a3233294");
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", Secret::Password("hush".into())).contains("hush"));
    }
}
