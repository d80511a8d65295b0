//! Faults of the copy and of the stream.

use super::{Known, ambiguous, known, retry};

/// In the order of the alphabet.
pub(super) const FAULTS: &[Known] = &[
    ambiguous(
        "SEGUE-COMMIT-UNKNOWN",
        "the answer to a commit was lost, or a warning came with it: it may have taken effect",
    ),
    retry(
        "SEGUE-CONTAINED",
        "the migration was contained: what was under way was broken off",
        "`segue resume` when it may go on",
    ),
    known(
        "SEGUE-HASH-LEAF",
        "a partition was emptied by itself, or came or left, and which rows are its own cannot be told on the other side: each \
         server hashes its key to another number",
        "`segue run --new-stream`: every row is compared with the source's, those that are gone are removed, and those that \
         differ written. `segue plan` warns of such tables beforehand",
    ),
    ambiguous("SEGUE-JOURNAL-MOVED", "somebody else has written a record of the journal meanwhile"),
    ambiguous("SEGUE-JOURNAL-UNKNOWN", "the answer to a record of the journal was lost: it may be there"),
    retry(
        "SEGUE-LEAF-GONE",
        "a partition left while it was taken in or let go",
        "the next look, seconds later, sees it as it is",
    ),
    known(
        "SEGUE-ORIGIN-ACTIVE",
        "the migration's replication origin is still in use when it is to be dropped",
        "stop the process that applies this migration's changes, then ask again",
    ),
    retry(
        "SEGUE-ORIGIN-BUSY",
        "another session still holds the migration's replication origin",
        "it is tried again; mostly it is an earlier session that the server has not given up yet",
    ),
    retry(
        "SEGUE-PIPELINE",
        "one half of the stream has ended because the other did",
        "the fault beside it says why; Segue begins anew from what is stored",
    ),
    known(
        "SEGUE-SCHEMA-CHANGED",
        "a table, column or schema that was there is gone",
        "put it back, or `segue cancel` and begin anew",
    ),
    retry(
        "SEGUE-SLOT-BUSY",
        "the server still believes in an earlier session that streams from the slot",
        "it is tried again, until the server notices (wal_sender_timeout)",
    ),
    known(
        "SEGUE-SPOOL-DISK",
        "a large transaction could not be spilled to the temporary directory",
        "make room there, or point TMPDIR at a larger disk, and start again; nothing is lost",
    ),
    known(
        "SEGUE-STRAGGLER",
        "sessions of an earlier process still write, and could not be ended",
        "end them with SELECT pg_terminate_backend(pid), then start again",
    ),
    retry(
        "SEGUE-TOKEN-STANDBY",
        "a server warned while the new token was raised: it may not be on its standbys",
        "it is raised again; see whether the synchronous standbys are alive",
    ),
    known(
        "SEGUE-UNKNOWN-RELATION",
        "the stream has rows of a table that the migration does not know",
        "take that table out of the migration's publication, or plan the migration again with it",
    ),
];
