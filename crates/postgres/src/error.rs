//! From PostgreSQL's errors to faults: one table, no catch-all that hides a new kind.

use segue_engine::fault::{Fault, Recovery};
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

/// The fault behind an error of a session.
pub fn fault_of(error: &Error) -> Fault {
    match error.as_db_error() {
        Some(db) => fault_of_db(db),
        None if error.is_closed() => Fault::retry("SEGUE-CONNECTION", "the connection was lost"),
        None => {
            let what = describe(error);
            // The client library does not tell these kinds apart in any other way.
            let of_ours = [
                "error serializing",
                "error deserializing",
                "invalid column",
                "error encoding",
                "error parsing",
                "query returned",
            ];
            if of_ours.iter().any(|start| what.starts_with(start)) {
                Fault::bug("SEGUE-STATEMENT", what)
            } else {
                Fault::retry("SEGUE-CONNECTION", what)
            }
        }
    }
}

/// The error with all its causes; tokio-postgres shows only the outermost one.
pub(crate) fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Whether the error is one of Segue's own functions saying that a newer token, checkpoint or decision is there.
///
/// PostgreSQL uses the same SQLSTATE for slots and databases in use; the message tells them apart.
pub fn is_superseded(db: &DbError) -> bool {
    says_superseded(db.code(), db.message())
}

fn says_superseded(code: &SqlState, message: &str) -> bool {
    *code == SqlState::OBJECT_IN_USE && message.starts_with("segue: ")
}

/// Whether something was dropped or detached while a catalog function looked at it. PostgreSQL has no SQLSTATE for this:
/// its functions take it for a defect of theirs.
fn is_gone_meanwhile(code: &SqlState, message: &str) -> bool {
    let of_catalogs =
        ["cache lookup failed for ", "could not find tuple for ", "could not open relation with OID "];
    *code == SqlState::INTERNAL_ERROR && of_catalogs.iter().any(|start| message.starts_with(start))
}

/// The code of a stream whose server has removed the log that it needs.
pub const LOG_REMOVED: &str = "SEGUE-LOG-REMOVED";

/// Whether a walsender says that the log it was asked for is gone. Nothing that can be asked before tells.
fn is_log_removed(code: &SqlState, message: &str) -> bool {
    *code == SqlState::UNDEFINED_FILE
        && message.starts_with("requested WAL segment ")
        && message.ends_with(" has already been removed")
}

/// What a server said when it refused something, however it reached us.
pub(crate) struct Report<'a> {
    pub(crate) severity: &'a str,
    pub(crate) code: &'a SqlState,
    pub(crate) message: &'a str,
    pub(crate) detail: Option<&'a str>,
    pub(crate) context: Option<&'a str>,
    pub(crate) hint: Option<&'a str>,
}

/// The fault behind an error that a server reported.
pub fn fault_of_db(db: &DbError) -> Fault {
    fault_of_report(&Report {
        severity: db.severity(),
        code: db.code(),
        message: db.message(),
        detail: db.detail(),
        context: db.where_(),
        hint: db.hint(),
    })
}

/// The fault behind a server's report.
pub(crate) fn fault_of_report(report: &Report<'_>) -> Fault {
    let state = report.code.code();
    let mut what = format!("{}: {} (SQLSTATE {state})", report.severity.to_lowercase(), report.message);
    for more in [report.detail, report.context.filter(|_| state.starts_with("22"))].into_iter().flatten() {
        what = format!("{what}; {more}");
    }
    let (recovery, code, next_step) = if says_superseded(report.code, report.message) {
        let next_step = "another segue process has taken this migration over: let it work, and stop this one";
        (Recovery::Operator, "SEGUE-SUPERSEDED", next_step)
    } else if is_log_removed(report.code, report.message) {
        let next_step = "the stream is lost: `segue run --new-stream` makes a new one, compares every row, and writes those \
                         that differ";
        (Recovery::Operator, LOG_REMOVED, next_step)
    } else if is_gone_meanwhile(report.code, report.message) {
        (Recovery::Retry, "SEGUE-GONE", "nothing: it is asked again")
    } else {
        known(report.code)
    };
    let hint = report.hint.unwrap_or_default();
    let next_step = match (next_step, hint) {
        ("", hint) => hint.to_owned(),
        (next_step, "") => next_step.to_owned(),
        (next_step, hint) => format!("{next_step} ({hint})"),
    };
    Fault { recovery, code, what, next_step }
}

/// What each SQLSTATE means for a migration. Retry: it passes, or mends itself after a reconnect.
fn known(state: &SqlState) -> (Recovery, &'static str, &'static str) {
    use Recovery::{Operator, Retry};
    match state.code() {
        "28P01" | "28000" => (
            Operator,
            "SEGUE-LOGIN",
            "check user and password in the connection string, and pg_hba.conf on the server",
        ),
        "3D000" => (
            Operator,
            "SEGUE-NO-DATABASE",
            "create the database, or correct its name in the connection string",
        ),
        "42501" => {
            (Operator, "SEGUE-PRIVILEGE", "grant what the message names to the role that Segue logs in with")
        }
        "25006" => (
            Operator,
            "SEGUE-READ-ONLY",
            "the server or the session is read-only: name the primary in the connection string, or lift the block",
        ),
        "53100" => {
            (Operator, "SEGUE-DISK-FULL", "free space on that server, then start again; nothing was lost")
        }
        "53300" => (
            Retry,
            "SEGUE-CONNECTIONS",
            "free connections on the server, raise max_connections or the role's limit, or give Segue fewer workers",
        ),
        "53400" => (
            Operator,
            "SEGUE-LIMIT",
            "raise the limit that the message names (max_replication_slots, max_wal_senders, temp_file_limit, …)",
        ),
        "25P03" | "25P04" => (
            Retry,
            "SEGUE-SESSION-ENDED",
            "the server ended a session that had said nothing for too long within a transaction",
        ),
        "57014" => (Retry, "SEGUE-CANCELLED", "someone cancelled the statement, or a time limit did"),
        "57P01" | "57P02" | "57P03" | "57P05" => (Retry, "SEGUE-SERVER-DOWN", ""),
        "55P03" => (Retry, "SEGUE-LOCKED", "a lock could not be had in time; see who holds it in pg_locks"),
        "55006" => (
            Retry,
            "SEGUE-IN-USE",
            "something else uses the object; see pg_stat_activity and pg_replication_slots",
        ),
        "55000" => (Operator, "SEGUE-STATE", "check wal_level, the slot's state and the server's log"),
        "58030" | "58P01" | "58P02" => {
            (Operator, "SEGUE-STORAGE", "the server cannot use its storage: see its log")
        }
        "XX001" | "XX002" => {
            (Operator, "SEGUE-CORRUPT", "the server reports damaged data: see its log before anything else")
        }
        "42P01" | "42703" | "3F000" => (
            Operator,
            "SEGUE-SCHEMA-CHANGED",
            "a table, column or schema that was there is gone: put it back, or cancel the migration",
        ),
        _ => match state.code().get(..2).unwrap_or_default() {
            // Connection exceptions, rolled back for another's sake, out of resources, operator intervention.
            "08" | "40" | "53" | "57" => (Retry, "SEGUE-SQL-PASSING", ""),
            // Everything else is about one statement and would fail again: data, constraints, syntax, internal.
            _ => (Operator, "SEGUE-SQL", ""),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: &str, message: &str) -> Fault {
        let code = &SqlState::from_code(code);
        fault_of_report(&Report { severity: "ERROR", code, message, detail: None, context: None, hint: None })
    }

    #[test]
    fn each_answer_of_a_server_is_a_fault_of_its_kind() {
        use Recovery::{Operator, Retry};
        for (state, message, recovery, code) in [
            ("28P01", "password authentication failed", Operator, "SEGUE-LOGIN"),
            ("28000", "no pg_hba.conf entry", Operator, "SEGUE-LOGIN"),
            ("3D000", "database \"x\" does not exist", Operator, "SEGUE-NO-DATABASE"),
            ("42501", "permission denied", Operator, "SEGUE-PRIVILEGE"),
            ("25006", "cannot execute INSERT in a read-only transaction", Operator, "SEGUE-READ-ONLY"),
            ("53100", "could not extend file", Operator, "SEGUE-DISK-FULL"),
            ("53300", "sorry, too many clients already", Retry, "SEGUE-CONNECTIONS"),
            ("53400", "all replication slots are in use", Operator, "SEGUE-LIMIT"),
            ("25P03", "idle-in-transaction timeout", Retry, "SEGUE-SESSION-ENDED"),
            ("57014", "canceling statement due to user request", Retry, "SEGUE-CANCELLED"),
            ("57P01", "terminating connection", Retry, "SEGUE-SERVER-DOWN"),
            ("57P03", "the database system is starting up", Retry, "SEGUE-SERVER-DOWN"),
            ("55P03", "canceling statement due to lock timeout", Retry, "SEGUE-LOCKED"),
            ("55006", "replication slot \"s\" is active for PID 1", Retry, "SEGUE-IN-USE"),
            ("55006", "segue: a newer token is there", Operator, "SEGUE-SUPERSEDED"),
            ("55000", "logical decoding requires wal_level >= logical", Operator, "SEGUE-STATE"),
            ("58030", "could not read block 0", Operator, "SEGUE-STORAGE"),
            ("XX001", "invalid page in block 0", Operator, "SEGUE-CORRUPT"),
            ("XX000", "cache lookup failed for relation 1", Retry, "SEGUE-GONE"),
            ("42P01", "relation \"t\" does not exist", Operator, "SEGUE-SCHEMA-CHANGED"),
            ("40P01", "deadlock detected", Retry, "SEGUE-SQL-PASSING"),
            ("53200", "out of memory", Retry, "SEGUE-SQL-PASSING"),
            ("22012", "division by zero", Operator, "SEGUE-SQL"),
            ("23505", "duplicate key value", Operator, "SEGUE-SQL"),
        ] {
            let fault = fault(state, message);
            assert_eq!((fault.recovery, fault.code), (recovery, code), "{state} {message}");
            assert!(fault.what.contains(message) && fault.what.contains(state), "{fault}");
        }
    }

    #[test]
    fn a_log_that_is_gone_is_a_lost_stream_and_another_missing_file_is_not() {
        let code_of = |message: &str| {
            let code = &SqlState::UNDEFINED_FILE;
            let report = Report { severity: "ERROR", code, message, detail: None, context: None, hint: None };
            fault_of_report(&report).code
        };
        let gone = "requested WAL segment 000000010000000000000003 has already been removed";
        assert_eq!(code_of(gone), LOG_REMOVED);
        assert_eq!(code_of("could not open file \"base/5/16384\""), "SEGUE-STORAGE");
    }

    #[test]
    fn what_was_dropped_while_a_catalog_function_looked_at_it_is_asked_again() {
        for (code, message, recovery) in [
            (SqlState::INTERNAL_ERROR, "could not find tuple for parent of relation 16656", Recovery::Retry),
            (SqlState::INTERNAL_ERROR, "cache lookup failed for relation 16656", Recovery::Retry),
            (SqlState::INTERNAL_ERROR, "could not open relation with OID 16656", Recovery::Retry),
            (SqlState::INTERNAL_ERROR, "unexpected chunk number 3", Recovery::Operator),
            (SqlState::SYNTAX_ERROR, "cache lookup failed for relation 16656", Recovery::Operator),
        ] {
            let report =
                Report { severity: "ERROR", code: &code, message, detail: None, context: None, hint: None };
            assert_eq!(fault_of_report(&report).recovery, recovery, "{message}");
        }
    }
}
