//! From PostgreSQL's errors to faults: one table, no catch-all that hides a new kind.

use segue_engine::fault::{Fault, Recovery};
use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

/// The fault behind an error of a session.
pub fn fault_of(error: &Error) -> Fault {
    match error.as_db_error() {
        Some(db) => fault_of_db(db),
        None if error.is_closed() => Fault::retry("SEGUE-CONNECTION", "the connection was lost"),
        None => Fault::retry("SEGUE-CONNECTION", describe(error)),
    }
}

/// The error with all its causes; tokio-postgres shows only the outermost one.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The fault behind an error that a server reported.
pub fn fault_of_db(db: &DbError) -> Fault {
    let code = db.code();
    let class = &code.code()[..2];
    let recovery = match class {
        // connection exceptions, shutdowns, cannot_connect_now, deadlocks, serialization, out of resources
        "08" | "57" | "40" | "53" => Recovery::Retry,
        _ if *code == SqlState::LOCK_NOT_AVAILABLE => Recovery::Retry,
        _ => Recovery::Operator,
    };
    let mut what = format!("{}: {} (SQLSTATE {})", db.severity().to_lowercase(), db.message(), code.code());
    if let Some(detail) = db.detail() {
        what = format!("{what}; {detail}");
    }
    Fault { recovery, code: "SEGUE-SQL", what, next_step: db.hint().unwrap_or_default().to_owned() }
}
