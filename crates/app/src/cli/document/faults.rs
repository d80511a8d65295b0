//! The catalogue of faults: what each code means, and what follows.
//!
//! Here are those that an operator is most likely to meet, and that `docs/cli.md` has; the others are below, by what they
//! are about. `docs/errors.md` has all. An entry is made by the function that is called as its kind is: [`known`] needs a
//! person. The tests hold the catalogue against the places where faults are made.

mod defects;
mod plan;
mod servers;
mod stream;
mod switch;
mod verify;

use segue_engine::fault::Recovery;
use std::fmt::Write;

/// A fault, in general; its message has the particulars.
pub(super) struct Known {
    /// What Segue does after it.
    pub(super) recovery: Recovery,
    /// Its code.
    pub(super) code: &'static str,
    /// What happened, and to what.
    pub(super) what: &'static str,
    /// What to do.
    pub(super) next: &'static str,
}

/// A person is needed.
const fn known(code: &'static str, what: &'static str, next: &'static str) -> Known {
    Known { recovery: Recovery::Operator, code, what, next }
}

/// Segue goes on by itself; `next` is for when it does not get better.
const fn retry(code: &'static str, what: &'static str, next: &'static str) -> Known {
    Known { recovery: Recovery::Retry, code, what, next }
}

/// Segue does not know, and finds out.
const fn ambiguous(code: &'static str, what: &'static str) -> Known {
    let next = "nothing: under a new token, Segue reads what is stored, and goes on from there";
    Known { recovery: Recovery::Ambiguous, code, what, next }
}

/// Segue is wrong.
const fn bug(code: &'static str, what: &'static str) -> Known {
    let next = "keep the log and report it; start again to see whether it lasts. Nothing was skipped";
    Known { recovery: Recovery::Bug, code, what, next }
}

/// All of them, in the order of the alphabet.
pub(super) fn all() -> Vec<&'static Known> {
    let others =
        [defects::FAULTS, plan::FAULTS, servers::FAULTS, stream::FAULTS, switch::FAULTS, verify::FAULTS];
    let mut all: Vec<&Known> = FAULTS.iter().chain(others.into_iter().flatten()).collect();
    all.sort_by_key(|known| known.code);
    all
}

const HEAD: &str = "\
# Faults

Made from the program by `segue document-errors > docs/errors.md`; a test fails when it is stale.

Every fault has a code that does not change. Its message says what happened to which object, and names the next step; that
step is always the more exact one. With `--json`, a fault is an object ([the command line](cli.md#objects)). What follows:

| kind | what Segue does |
|---|---|
";

/// What follows a fault of each kind, in the order of the alphabet of their names.
const KINDS: [Recovery; 4] = [Recovery::Retry, Recovery::Operator, Recovery::Ambiguous, Recovery::Bug];

const fn follows(kind: Recovery) -> (&'static str, &'static str) {
    match kind {
        Recovery::Retry => (
            "goes on",
            "`segue run` connects anew with back-off and goes on from what is stored, by itself. Other commands end with it, and can be given again",
        ),
        Recovery::Operator => {
            ("needs a person", "stops there, and keeps everything as it is; do what the message says")
        }
        Recovery::Ambiguous => (
            "not known",
            "it cannot be known whether a request took effect: `segue run` takes a new token, reads what is stored, and goes on from there",
        ),
        Recovery::Bug => ("defect", "stops, because Segue itself is wrong; nothing was skipped"),
    }
}

/// The text of `docs/errors.md`.
pub(crate) fn errors() -> String {
    let mut text = HEAD.to_owned();
    for kind in KINDS {
        let (name, what) = follows(kind);
        let _ = writeln!(text, "| {name} | {what} |");
    }
    for known in all() {
        let (kind, _) = follows(known.recovery);
        let _ =
            write!(text, "\n## {}\n\n{kind}: {}.\n\nWhat to do: {}.\n", known.code, known.what, known.next);
    }
    text
}

/// The common ones, in the order of the alphabet.
pub(super) const FAULTS: &[Known] = &[
    known(
        "SEGUE-ANSWER",
        "the driver answered with something that this program cannot read",
        "use one version of segue for the command and for `segue run`; what was asked was carried out all the same",
    ),
    known(
        "SEGUE-ARCHIVE",
        "the archive of the source's tables cannot be written",
        "do what the message says, then `segue run`: nothing of the source is removed before the archive is complete",
    ),
    known(
        "SEGUE-CHECKPOINT-BEHIND",
        "the side that is written to was restored to an older state: changes in between are gone",
        "`segue run --new-stream`: every row is compared with the source's, and those that differ are written",
    ),
    known(
        "SEGUE-COMPLETED",
        "the migration is completed, so that writes cannot be moved any more",
        "nothing is left to be done; to move the tables again, begin another migration",
    ),
    known(
        "SEGUE-COMPLETING",
        "the migration is being completed, and only goes forward",
        "`segue run` finishes it",
    ),
    retry(
        "SEGUE-CONNECTION",
        "a server cannot be reached, or a connection was lost",
        "`segue run` goes on by itself when it is back; at a start, check address and network",
    ),
    known(
        "SEGUE-DDL-DRIFT",
        "a table was changed while it moved, in a way that cannot be followed",
        "do what the message says: mostly to make the same change on the other side, or to take it back; where rows of that form \
         are in the log already, `segue run --new-stream` then compares everything. Where it is the way back that met the change, \
         neither is for it: the message says what is",
    ),
    known(
        "SEGUE-DISK-FULL",
        "a server's disk is full",
        "free space there, then start again; nothing was lost",
    ),
    known(
        "SEGUE-DRIVER-DIED",
        "the driver that took the order died before it answered",
        "`segue status` says what became of it; then ask again",
    ),
    known(
        "SEGUE-DROP-SOURCE",
        "the source's tables cannot be dropped",
        "see what depends on them, or who owns them; then `segue run` goes on",
    ),
    known(
        "SEGUE-DROP-TARGET",
        "the target's tables cannot be dropped: something depends on one, or one is not what was filled",
        "do what the message says, then cancel again; or `segue cancel` without --drop-target-tables",
    ),
    known(
        "SEGUE-EMPTIED",
        "a table was emptied on the source while it was copied in ranges, and its keys (text) may be ordered otherwise on the target",
        "cancel, and start again with empty tables on the target; nothing may empty that table before the stage `following`",
    ),
    known(
        "SEGUE-FAILED",
        "the driver ended with a fault, which is in the message",
        "mend that, then `segue run`",
    ),
    known(
        "SEGUE-LEASE",
        "another process drives the migration",
        "stop every `segue run` of this migration, then ask again",
    ),
    known("SEGUE-LISTEN", "the router cannot listen there", "use another port, or end whoever listens there"),
    retry(
        "SEGUE-LOCKED",
        "a lock could not be had in time",
        "wait for, or end, the transactions that the message names",
    ),
    known(
        "SEGUE-LOG-REMOVED",
        "the source has removed the log that the stream needs",
        "`segue run --new-stream`: every row is compared with the source's, and those that differ are written",
    ),
    known(
        "SEGUE-LOGIN",
        "a server refuses the user or the password",
        "check the connection string in the spec, and pg_hba.conf on the server",
    ),
    known(
        "SEGUE-NEVER-RUN",
        "nothing is known of this migration: nobody has run it yet, or it was cancelled",
        "`segue run`, or correct the spec's `migration` and `control`",
    ),
    known(
        "SEGUE-NO-ANSWER",
        "the driver lives, but has been silent for long",
        "the order goes on all the same: see `segue status`",
    ),
    known("SEGUE-NO-DRIVER", "no `segue run` of this migration is alive", "start it, on any machine"),
    known(
        "SEGUE-NO-KEY",
        "a table has nothing that identifies its rows",
        "make a primary key, or a unique index on NOT NULL columns, as the message says",
    ),
    known(
        "SEGUE-NO-ROUTE",
        "a router cannot find out who owns the writes",
        "see that source, target and control database can be reached, then start it again",
    ),
    known(
        "SEGUE-NO-ROUTER",
        "the spec has no router, by which alone reads are moved and compared",
        "add `router` to the spec, have applications connect there, then ask again",
    ),
    known(
        "SEGUE-NO-STREAM",
        "a new stream was asked for, and the target knows of none that could be lost",
        "`segue run` without --new-stream",
    ),
    known(
        "SEGUE-NO-TABLE",
        "the migration has no table of that name",
        "name it as `segue plan` does, with its schema; partitions go by the table that they belong to",
    ),
    known(
        "SEGUE-NOT-AWAITED",
        "the command was interrupted before the driver answered",
        "the order goes on all the same: see `segue status`",
    ),
    known(
        "SEGUE-NOT-EMPTY",
        "a table on the target has rows before anything was copied",
        "empty it, if nobody needs them",
    ),
    known("SEGUE-NOT-FOLLOWING", "not everything is copied yet", "`segue wait following`, then ask again"),
    known(
        "SEGUE-NOTHING-FILLED",
        "the migration has never filled a table, so there is none to drop",
        "`segue cancel` without --drop-target-tables",
    ),
    known(
        "SEGUE-ORDER-UNKNOWN",
        "the connection was lost while an order was given: it may be there",
        "see `segue status` and `segue journal` before it is given again",
    ),
    known(
        "SEGUE-OTHER-SERVER",
        "the source is another server than the one the stream came from",
        "correct the address in the spec; only if the server was really replaced, `segue run --new-stream`",
    ),
    known(
        "SEGUE-OTHER-SOURCE",
        "the target gets the rows of the migration of this name from another source than the spec's",
        "correct the source in the spec; the message says what to do if that one is gone for good",
    ),
    known(
        "SEGUE-OTHER-TARGET",
        "what is on the source is another target's, to which the migration of this name goes already",
        "correct the target in the spec, or give the migration another name; or `segue cancel` with the other target first",
    ),
    known(
        "SEGUE-PAUSED",
        "the migration is paused or contained, so that the side that follows falls behind",
        "`segue resume`, then ask again",
    ),
    known(
        "SEGUE-PG-DUMP",
        "no pg_dump of the source's version, or later, is on the machine of `segue run`, or it has failed",
        "install the client programs of that version there, or mend what it says; or complete without --archive, or create the \
         target's tables yourself",
    ),
    known(
        "SEGUE-PLAN",
        "several things stand in the way of a start; each is listed with its own code",
        "mend them, then start again; nothing has been changed",
    ),
    known(
        "SEGUE-PLAN-CHANGED",
        "the spec or a table is no longer what the migration was begun with",
        "put it back as it was; or `segue cancel` and begin anew",
    ),
    known("SEGUE-PRIVILEGE", "a role may not do what is needed", "give it what the message names"),
    known(
        "SEGUE-PUBLICATION-LOST",
        "the publication is gone: what was written since is in no stream",
        "`segue run --new-stream`: every row is compared with the source's, and those that differ are written",
    ),
    known(
        "SEGUE-READS",
        "a router does not understand what the driver tells it of reads",
        "use one version of segue for `segue router` and for `segue run`; every read is the owner's meanwhile",
    ),
    known(
        "SEGUE-READS-MOVED",
        "the target owns the writes, and serves every read",
        "nothing is left to be moved",
    ),
    known(
        "SEGUE-ROUTE",
        "a router does not understand what the driver tells it",
        "use one version of segue for `segue router` and for `segue run`; it serves the last route meanwhile",
    ),
    known(
        "SEGUE-ROUTER",
        "the spec has no router, or one that cannot serve both sides",
        "correct `router`, `source` or `target` in the spec as the message says",
    ),
    known(
        "SEGUE-ROUTER-TLS",
        "the router's certificate or its key cannot be used",
        "check the files that `router.tls` names",
    ),
    known(
        "SEGUE-ROUTER-USERS",
        "the file of users cannot be used",
        "correct the line that the message names, in the file of `router.users`",
    ),
    known(
        "SEGUE-ROW",
        "a row cannot be applied: something else has changed the side that follows, or a constraint there forbids it",
        "mend the row or the constraint, then `segue resume`; the stream stands there, and nothing was skipped",
    ),
    known(
        "SEGUE-SELECTION",
        "the spec's `tables` name no table of the source, or name one in two ways",
        "correct `tables` in the spec, as the message says",
    ),
    known(
        "SEGUE-SLOT-LOST",
        "the replication slot is gone, or its log: changes are missing for good",
        "`segue run --new-stream`: every row is compared with the source's, and those that differ are written",
    ),
    known(
        "SEGUE-SLOT-REMADE",
        "the slot was made anew by somebody else, or the source was restored: changes in between are gone",
        "`segue run --new-stream`: every row is compared with the source's, and those that differ are written",
    ),
    known(
        "SEGUE-SOURCE-BEHIND",
        "the source was restored to an older state than the target has",
        "`segue run --new-stream`: every row is compared with the source's, and those that differ are written",
    ),
    known(
        "SEGUE-SPEC",
        "the spec says something that cannot be meant",
        "correct it at the place that is named; nothing was done",
    ),
    known(
        "SEGUE-SPEC-FILE",
        "the spec cannot be read, or cannot be written there",
        "name another file with -f; one that exists is never overwritten",
    ),
    known("SEGUE-STATUS", "the stored status cannot be read", "use one version of segue everywhere"),
    known(
        "SEGUE-STREAM-INTACT",
        "a new stream was asked for, and the one there is neither lost nor unreadable",
        "`segue run` without --new-stream; `segue verify --repair` compares rows; of a way back that stands still see `segue status`",
    ),
    known("SEGUE-SUPERSEDED", "another process has taken the migration over", "nothing: let it work"),
    known(
        "SEGUE-SWITCHED",
        "the target takes the writes, so the migration cannot be cancelled",
        "`segue reverse` first, then cancel; or end it with `segue complete`",
    ),
    known(
        "SEGUE-TARGET-OWNS",
        "a new stream was asked for while the target owns the writes: its rows are the right ones",
        "`segue run` without --new-stream; after `segue reverse` it can be made",
    ),
    known(
        "SEGUE-TARGET-SCHEMA",
        "tables cannot be created on the target as the source has them",
        "do what the message says of each; before the copy nothing has been changed, after it `segue run` goes on",
    ),
    known(
        "SEGUE-TIMELINE",
        "the source was promoted or restored, and its log is not the one that was applied",
        "`segue run --new-stream`: every row is compared with the source's, and those that differ are written",
    ),
    known("SEGUE-TIMEOUT", "the stage was not reached in time", "`segue status` says what is waited for"),
    known(
        "SEGUE-USAGE",
        "the command line is not understood",
        "write it as `segue help COMMAND` says; nothing was done",
    ),
    known(
        "SEGUE-VERB",
        "the driver does not know the order",
        "use one version of segue for the command and for `segue run`",
    ),
    known(
        "SEGUE-WAL-LEVEL",
        "a server does not write what a stream needs",
        "set `wal_level = logical` there, and restart it",
    ),
    known(
        "SEGUE-WAY-BACK-LOST",
        "the way back was lost before the target took the writes, so nothing leads back to the source",
        "`segue complete`, when it is time",
    ),
    known(
        "SEGUE-WITHDRAWN",
        "nobody took the order while it was waited for: nothing was begun, and it is withdrawn",
        "see `segue status`; where nobody drives, start `segue run`; then ask again",
    ),
];

#[cfg(test)]
mod tests;
