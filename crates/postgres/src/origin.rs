//! The replication origins under which a stream's rows are written, by which the opposite stream knows them.
//!
//! An origin belongs to one session at a time. The applier has the stream's own; sessions that copy have numbered ones.

use crate::error::fault_of;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

/// An origin is let go when the server has noticed that its earlier session is gone.
const WAIT_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Sessions of one stream that copy at once, at most: a few, once its backfill is done.
const COPIES_MAX: u32 = 16;
/// Between the stream's origin and the number.
pub(crate) const COPY: &str = "_copy_";

/// Whether what was written under `name` is of the stream whose origin is `stream`.
pub(crate) fn is_of(name: &str, stream: &str) -> bool {
    let Some(rest) = name.strip_prefix(stream) else { return false };
    let number = rest.strip_prefix(COPY);
    rest.is_empty() || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Marks everything this session writes as coming from `origin`, so that the opposite stream can tell.
pub(crate) async fn take(client: &Client, origin: &str) -> Outcome<()> {
    let until = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        match attempt(client, origin).await? {
            None => return Ok(()),
            Some(busy) if tokio::time::Instant::now() > until => return Err(busy),
            Some(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// As [`take`], with the first of the stream's numbered origins that nobody has.
pub(crate) async fn take_for_copy(client: &Client, stream: &str) -> Outcome<()> {
    let mut last = None;
    for number in 1..=COPIES_MAX {
        last = attempt(client, &format!("{stream}{COPY}{number}")).await?;
        if last.is_none() {
            break;
        }
    }
    last.map_or(Ok(()), Err)
}

/// Makes the origin if it is not there, and takes it; the fault if another session has it.
///
/// In two transactions: the first one to be written under an origin must find it in the catalog, or it is nameless.
async fn attempt(client: &Client, origin: &str) -> Outcome<Option<Fault>> {
    let during = |e: &Error| fault_of(e).during(format_args!("taking the replication origin {origin}"));
    let create = "SELECT pg_replication_origin_create($1) WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = $1)";
    match client.execute(create, &[&origin]).await {
        Ok(_) => {}
        // Made by another session in this very moment.
        Err(e) if matches!(e.code(), Some(c) if *c == SqlState::DUPLICATE_OBJECT || *c == SqlState::UNIQUE_VIOLATION) =>
            {}
        Err(e) => return Err(during(&e)),
    }
    match client.execute("SELECT pg_replication_origin_session_setup($1)", &[&origin]).await {
        Ok(_) => Ok(None),
        // The server names the process that holds it.
        Err(e) if e.code() == Some(&SqlState::OBJECT_IN_USE) => {
            Ok(Some(Fault { recovery: Recovery::Retry, code: "SEGUE-ORIGIN-BUSY", ..during(&e) }))
        }
        Err(e) => Err(during(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_knows_its_own_names_and_no_others() {
        for (name, own) in [
            ("segue_m_forward", true),
            ("segue_m_forward_copy_1", true),
            ("segue_m_forward_copy_12", true),
            ("segue_m_forward_copy_", false),
            ("segue_m_forward_copy_1x", false),
            ("segue_m_forward_1", false),
            ("segue_m_forwards", false),
            ("segue_m_reverse", false),
            ("segue_m", false),
            ("", false),
        ] {
            assert_eq!(is_of(name, "segue_m_forward"), own, "{name}");
        }
    }
}
