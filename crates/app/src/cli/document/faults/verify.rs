//! Faults of comparing and repairing.

use super::{Known, known, retry};

/// In the order of the alphabet.
pub(super) const FAULTS: &[Known] = &[
    known(
        "SEGUE-NOT-OWNER",
        "the side that the rows come from does not own the writes, or that is being decided",
        "ask again when `segue status` names the owner",
    ),
    retry(
        "SEGUE-NOT-SHOWN",
        "the side that the rows come from does not show yet what was applied: a commit waits for its standby",
        "it is tried again; see that the synchronous standbys answer",
    ),
    known("SEGUE-OWNER-CHANGED", "the writes changed hands while rows were compared", "verify again"),
    known(
        "SEGUE-REPAIR-CHANGED",
        "a row changed while it was to be repaired, and the other side keeps values unique: it could have got into the way of \
         changes that the stream has not brought yet",
        "`segue verify --repair` once more, when the application does not change the row all the time",
    ),
    known(
        "SEGUE-STANDS-STILL",
        "the target owns the writes, and what is written there does not arrive on the source, so that no row can be compared",
        "do what the message, and `segue status`, say of the way back; then verify again",
    ),
    known(
        "SEGUE-VERIFY-HASH",
        "the servers have no hash function that comes to the same result on both",
        "permit md5 on both (FIPS mode forbids it), or use PostgreSQL 14 or later on both",
    ),
    retry(
        "SEGUE-VERIFY-OWNER",
        "the writes were handed over, or it was being decided who owns them, while rows were compared",
        "verify again; the comparison of rows as they are applied goes on by itself",
    ),
    retry(
        "SEGUE-VERIFY-STALLED",
        "the stream applies nothing, so that rows in flight cannot be told from differences",
        "it is compared again; `segue status` says why the stream stands",
    ),
    retry(
        "SEGUE-VERIFY-STREAM",
        "the stream ended while rows were compared",
        "the comparison goes on with the next stream",
    ),
    known(
        "SEGUE-VERIFY-TEXT",
        "a value is no text in UTF-8, and cannot be compared",
        "compare tables of databases in SQL_ASCII by other means",
    ),
];
