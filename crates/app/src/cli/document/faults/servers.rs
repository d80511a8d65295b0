//! Faults that come from a server, or from the way to it.

use super::{Known, known, retry};

/// In the order of the alphabet.
pub(super) const FAULTS: &[Known] = &[
    retry(
        "SEGUE-CANCELLED",
        "a server cancelled a statement of Segue",
        "it is asked again; if it happens again and again, see in the server's log who cancels (pg_cancel_backend, a pooler)",
    ),
    retry(
        "SEGUE-CONNECTIONS",
        "a server, or the role, has no connection left",
        "it is tried again; free connections there, raise max_connections or the role's limit, or give Segue fewer workers",
    ),
    known(
        "SEGUE-CORRUPT",
        "a server reports damaged data",
        "see the server's log before anything else; nothing was skipped",
    ),
    retry(
        "SEGUE-GONE",
        "something was dropped or detached while the catalog was read",
        "it is asked again, and then there is no trace of it",
    ),
    retry(
        "SEGUE-IN-USE",
        "something else uses an object that is needed: a slot, a database",
        "it is tried again; see pg_stat_activity and pg_replication_slots for who has it",
    ),
    retry(
        "SEGUE-LATE",
        "a server did not answer in time when a gate was looked at",
        "it is asked again, and the gate stays red meanwhile; see whether the server is overloaded",
    ),
    known(
        "SEGUE-LIMIT",
        "a server has no replication slot, WAL sender, origin or temporary space left",
        "raise the limit that the message names, or drop what nobody needs; then start again",
    ),
    known(
        "SEGUE-NO-DATABASE",
        "the server has no database of that name",
        "create it, or correct the name in the connection string",
    ),
    retry(
        "SEGUE-PROTOCOL",
        "a replication session got bytes that the protocol does not have",
        "Segue connects anew; if it lasts, see what stands between: a pooler or proxy cannot carry replication",
    ),
    known(
        "SEGUE-READ-ONLY",
        "the server or the session is read-only",
        "name the primary in the connection string, or lift default_transaction_read_only",
    ),
    retry(
        "SEGUE-SERVER-DOWN",
        "a server is shutting down, starting, or has ended the session",
        "Segue connects anew, and goes on when the server is back",
    ),
    retry(
        "SEGUE-SESSION-ENDED",
        "a server ended a session that said nothing for too long within a transaction",
        "Segue connects anew; if it happens again, raise idle_in_transaction_session_timeout for its role",
    ),
    known(
        "SEGUE-SQL",
        "a server refused a statement; the message has its words and its SQLSTATE",
        "see what the message names: mostly data, a constraint, or a trigger of the side that is written",
    ),
    retry(
        "SEGUE-SQL-PASSING",
        "a server refused a statement for a reason that passes: a deadlock, a serialization failure, memory",
        "it is tried again; if it lasts, see the server's log",
    ),
    known(
        "SEGUE-STATE",
        "an object is not in the state that a statement needs",
        "check wal_level, the slot's state and the server's log",
    ),
    known("SEGUE-STORAGE", "a server cannot use its storage", "see its log; start again when it is mended"),
    known(
        "SEGUE-TLS",
        "TLS could not be set up as sslmode asks",
        "as the message says: turn TLS on at the server, or correct sslmode, sslrootcert and the certificate",
    ),
    known(
        "SEGUE-URL",
        "a connection string cannot be used",
        "correct the part that the message names, in the spec or in the variable that it comes from",
    ),
];
