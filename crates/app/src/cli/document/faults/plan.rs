//! Faults that stand in the way of a start.

use super::{Known, known};

/// In the order of the alphabet.
pub(super) const FAULTS: &[Known] = &[
    known(
        "SEGUE-COLUMN",
        "a column does not fit between the sides: it is missing, of another type, or cannot be written",
        "change it as the message says, or leave its table out of the spec",
    ),
    known(
        "SEGUE-DEFERRABLE-KEY",
        "a table is identified by a deferrable key, with which PostgreSQL refuses updates of published tables",
        "make the key anew without DEFERRABLE, or choose another index as the message says",
    ),
    known(
        "SEGUE-ENCODING",
        "the target's encoding cannot hold all text of the source",
        "make the target's database anew with ENCODING 'UTF8'",
    ),
    known(
        "SEGUE-FORMAT",
        "what is stored in the schema segue was written by another version of Segue",
        "use the version that wrote it; nothing was changed",
    ),
    known(
        "SEGUE-NAME",
        "the migration's name cannot be part of a replication slot's name",
        "use up to 50 lower-case letters, digits and dashes",
    ),
    known(
        "SEGUE-NOT-A-TABLE",
        "what the spec lists is a view, a foreign, unlogged or temporary table: its changes are in no log",
        "leave it out of the spec, or make an ordinary table of it as the message says",
    ),
    known(
        "SEGUE-PUBLICATION-FOREIGN",
        "there is a publication of the migration's name that something else has made",
        "drop it if nothing uses it, or give the migration another name",
    ),
    known(
        "SEGUE-ROW-SECURITY",
        "row-level security hides rows of a table from Segue's role",
        "give the role BYPASSRLS, as the message says",
    ),
    known(
        "SEGUE-SLOT-ACTIVE",
        "the migration's replication slot is in use by another session",
        "let that `segue run` work, or stop it: pg_replication_slots.active_pid names the session",
    ),
    known(
        "SEGUE-SLOT-FOREIGN",
        "there is a replication slot of the migration's name that something else has made",
        "drop that slot if nobody needs it, or give the migration another name",
    ),
    known(
        "SEGUE-SOURCE-CLOSED",
        "the source has given the writes away, and the target knows of no stream: a copy would be of rows that are old",
        "keep the rows that are on the owner; the message says how the source is opened again if they are given up for good",
    ),
    known("SEGUE-STANDBY", "a server is a standby, or has become one", "name the primary in the spec"),
    known(
        "SEGUE-SYNC-STANDBY",
        "synchronous_standby_names counts Segue's own session as a standby: commits would wait for it",
        "name the real standbys there, then SELECT pg_reload_conf()",
    ),
    known(
        "SEGUE-TARGET-KEY",
        "the target's table has no unique index on what identifies the rows",
        "make one, with the statement in the message",
    ),
    known("SEGUE-TWICE", "a table is listed twice, or is the target of two", "list it once"),
    known(
        "SEGUE-VERSION",
        "a server is of a version of PostgreSQL that Segue does not move",
        "sources can be 12 to 18, targets 14 to 18",
    ),
];
