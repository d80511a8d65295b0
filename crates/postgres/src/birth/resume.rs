//! After a restart: is the slot still the one that the checkpoint was made from?
//!
//! A server silently skips ahead to `confirmed_flush_lsn` when it is asked for older changes; so whatever does not
//! fit exactly is refused, with what was lost.

use super::{Direction, StreamIdentity, confirmed, promoted, server_identity};
use crate::connect::Endpoint;
use crate::error::{LOG_REMOVED, fault_of};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::sqltext::quote_literal;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

/// The one safe way after a stream is lost.
fn start_again(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => {
            "`segue run --new-stream` makes a new stream, compares every row copied so far with the source's, and writes \
             those that differ: nothing is lost that the source still has. What a failed server had acknowledged and this \
             one does not have is lost with it; where the target has it, it is removed, and counted"
        }
        // Never to drop anything: the target may be where the only newest rows are.
        Direction::Reverse => {
            "what was written on the target since then has not reached the source: while the target owns the writes they stay \
             there; while the source does, the next `segue switch writes` makes the way back anew"
        }
    }
}

/// Whether there is one, also where Segue has never been.
pub async fn is_known(landing: &Client, migration: &str, direction: Direction) -> Outcome<bool> {
    let there = "SELECT to_regclass('segue.stream') IS NOT NULL";
    let there: bool = landing.query_one(there, &[]).await.map_err(|e| fault_of(&e))?.get(0);
    Ok(there && known(landing, migration, direction).await?.is_some())
}

/// The stream that the side where the rows land is bound to, with its checkpoint; `None`: [`super::birth`] is to be run.
pub async fn known(
    landing: &Client,
    migration: &str,
    direction: Direction,
) -> Outcome<Option<(StreamIdentity, Position)>> {
    let sql = "SELECT slot, system_id, timeline, incarnation, position FROM segue.stream
          WHERE migration = $1 AND direction = $2";
    let row = landing.query_opt(sql, &[&migration, &direction.as_str()]).await;
    let row = row.map_err(|e| fault_of(&e).during("reading the stream's checkpoint"))?;
    Ok(row.map(|row| {
        let position = Position(u64::from(row.get::<_, PgLsn>("position")));
        let slot: String = row.get("slot");
        let identity = StreamIdentity {
            migration: migration.to_owned(),
            direction,
            publication: slot.clone(),
            slot,
            system_id: row.get("system_id"),
            timeline: row.get("timeline"),
            incarnation: row.get("incarnation"),
            start: position,
        };
        (identity, position)
    }))
}

/// The code of a server on another timeline.
pub(super) const TIMELINE: &str = "SEGUE-TIMELINE";

/// What says that a stream is lost for good, and can only be made anew.
const LOST: &[&str] = &[
    LOG_REMOVED,
    "SEGUE-CHECKPOINT-BEHIND",
    "SEGUE-OTHER-SERVER",
    "SEGUE-PUBLICATION-LOST",
    "SEGUE-SLOT-LOST",
    "SEGUE-SLOT-REMADE",
    "SEGUE-SOURCE-BEHIND",
    TIMELINE,
];

/// Whether `fault`, of [`resume`] or of the stream itself, says that the stream is lost for good.
pub fn is_lost(fault: &Fault) -> bool {
    LOST.contains(&fault.code)
}

/// What the source was last told, as it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The token that was raised there last.
    pub token: i64,
    /// The number of the last signal that was emitted there.
    pub signal: u64,
}

/// What a side was last told by this migration; `None`: it knows nothing of it. Both numbers only grow, and what is applied
/// elsewhere of them was durable there: where one is smaller than it was, the server was restored.
pub async fn told(from: &Client, migration: &str) -> Outcome<Option<Told>> {
    let failed = |e| fault_of(&e).during("asking the source what it was told last");
    let there = "SELECT to_regclass('segue.token') IS NOT NULL";
    if !from.query_one(there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT t.token, coalesce((SELECT s.id FROM segue.signal s WHERE s.migration = t.migration), 0)
          FROM segue.token t WHERE t.migration = $1";
    let row = from.query_opt(sql, &[&migration]).await.map_err(failed)?;
    Ok(row.map(|row| Told { token: row.get(0), signal: u64::try_from(row.get::<_, i64>(1)).unwrap_or(0) }))
}

/// Finds out whether `stream` can go on from `checkpoint`, and what it is called from now on: a server that was promoted
/// has another timeline, and can have all that the stream needs. That is stored on the side where rows land before
/// anything is read. The fault says what was lost.
pub async fn resume(
    from: &Endpoint,
    landing: &Client,
    token: i64,
    stream: &StreamIdentity,
    checkpoint: Position,
) -> Outcome<StreamIdentity> {
    let client = from.connect("stream").await?;
    match resume_check(&client, stream, checkpoint).await {
        Ok(()) => return Ok(stream.clone()),
        Err(fault) if fault.code == TIMELINE => {}
        Err(fault) => return Err(fault),
    }
    let promoted = promoted::promoted(from, &client, stream).await?;
    let Some(at) = promoted.branched_at.filter(|at| checkpoint <= *at) else {
        return Err(promoted::lost(stream, &promoted, checkpoint));
    };
    let renamed = StreamIdentity { timeline: promoted.timeline, ..stream.clone() };
    resume_check(&client, &renamed, checkpoint).await?;
    promoted::never_carried(&client, stream, promoted.timeline).await?;
    promoted::follow(landing, token, (stream, &renamed), at).await?;
    Ok(renamed)
}

pub(super) fn lost(stream: &StreamIdentity, code: &'static str, what: String) -> Fault {
    Fault::operator(code, what, start_again(stream.direction))
}

/// Whether `stream` can go on from `checkpoint`: same server, same slot, nothing skipped. The fault says what was lost.
pub async fn resume_check(source: &Client, stream: &StreamIdentity, checkpoint: Position) -> Outcome<()> {
    let during = |fault: Fault| fault.during("checking that the change stream can be resumed");
    let (from, to) = (stream.direction.from_side(), stream.direction.to_side());
    let sql = "SELECT pg_is_in_recovery() AS standby";
    if source.query_one(sql, &[]).await.map_err(|e| during(fault_of(&e)))?.get("standby") {
        let what = format!("the {from} has become a standby");
        return Err(Fault::operator("SEGUE-STANDBY", what, format!("name the primary in the {from}'s URL")));
    }
    let (system_id, timeline) = server_identity(source).await.map_err(during)?;
    if system_id != stream.system_id {
        return Err(Fault::operator(
            "SEGUE-OTHER-SERVER",
            format!(
                "the {from} is another server (system identifier {system_id}) than the one the stream came from ({})",
                stream.system_id
            ),
            format!(
                "correct the {from}'s URL; if the server was really replaced, this stream is lost: {}",
                start_again(stream.direction)
            ),
        ));
    }
    if timeline != stream.timeline {
        return Err(lost(
            stream,
            TIMELINE,
            format!(
                "the {from} was promoted or restored: its timeline is {timeline}, the stream came from {}; its log is not the one that was applied",
                stream.timeline
            ),
        ));
    }
    check_number(source, stream).await?;
    check_slot(source, stream).await?;
    check_publication(source, stream).await?;
    let confirmed = confirmed(source, &stream.slot).await.map_err(during)?;
    if confirmed > checkpoint {
        return Err(lost(
            stream,
            "SEGUE-CHECKPOINT-BEHIND",
            format!(
                "the {to} is at {checkpoint}, but the slot {} was confirmed up to {confirmed}: the {to} was restored to an older state, and {} bytes of changes in between are gone",
                stream.slot,
                confirmed.bytes_since(checkpoint)
            ),
        ));
    }
    let sql = "SELECT pg_current_wal_flush_lsn()";
    let end: PgLsn = source.query_one(sql, &[]).await.map_err(|e| during(fault_of(&e)))?.get(0);
    let end = Position(u64::from(end));
    if end < checkpoint {
        return Err(lost(
            stream,
            "SEGUE-SOURCE-BEHIND",
            format!(
                "the {from}'s log ends at {end}, before the {to}'s checkpoint {checkpoint}: the {from} was restored to an older state"
            ),
        ));
    }
    Ok(())
}

async fn check_number(source: &Client, stream: &StreamIdentity) -> Outcome<()> {
    let failed = |e| fault_of(&e).during("reading the slot's incarnation");
    // A source without the schema has lost its side of the identity altogether.
    let sql = "SELECT to_regclass('segue.slot') IS NOT NULL";
    let there: bool = source.query_one(sql, &[]).await.map_err(failed)?.get(0);
    let mut found: Option<i64> = None;
    if there {
        let sql = "SELECT incarnation FROM segue.slot WHERE migration = $1 AND direction = $2";
        let row = source.query_opt(sql, &[&stream.migration, &stream.direction.as_str()]).await;
        found = row.map_err(failed)?.map(|row| row.get(0));
    }
    if found == Some(stream.incarnation) {
        return Ok(());
    }
    let shown = found.map_or("no number".to_owned(), |number| number.to_string());
    let what = format!(
        "the slot {} was made anew since the checkpoint was written (incarnation {shown}, the checkpoint belongs to {}): changes in between are gone",
        stream.slot, stream.incarnation
    );
    Err(lost(stream, "SEGUE-SLOT-REMADE", what))
}

async fn check_slot(source: &Client, stream: &StreamIdentity) -> Outcome<()> {
    // The whole row as JSON: wal_status came with 13, invalidation_reason with 17.
    let sql = "SELECT to_jsonb(s) AS slot, current_database()::text AS here FROM pg_replication_slots s WHERE slot_name = $1";
    let sql = sql.replace("to_jsonb(s)", "to_jsonb(s)::text");
    let row: Option<Row> =
        source.query_opt(&sql, &[&stream.slot]).await.map_err(|e| fault_of(&e).during("reading the slot"))?;
    let Some(row) = row else {
        return Err(lost(
            stream,
            "SEGUE-SLOT-LOST",
            format!(
                "the replication slot {} is gone: it was dropped, or the {} failed over without it",
                stream.slot,
                stream.direction.from_side()
            ),
        ));
    };
    let slot: serde_json::Value = serde_json::from_str(row.get("slot"))
        .map_err(|e| Fault::bug("SEGUE-SLOT", format!("the slot's row is not JSON: {e}")))?;
    let field =
        |name: &str| slot.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let here: &str = row.get("here");
    if field("plugin") != "pgoutput" || field("database") != here {
        let what = format!(
            "the replication slot {} is not the one Segue made: plugin {}, database {}",
            stream.slot,
            field("plugin"),
            field("database")
        );
        let next = format!(
            "if nothing uses it, drop it on the {}: SELECT pg_drop_replication_slot({}); then: {}",
            stream.direction.from_side(),
            quote_literal(&stream.slot),
            start_again(stream.direction)
        );
        return Err(Fault::operator("SEGUE-SLOT-FOREIGN", what, next));
    }
    let reason = field("invalidation_reason");
    if field("wal_status") == "lost" || !reason.is_empty() {
        let why = if reason.is_empty() { "max_slot_wal_keep_size was exceeded".to_owned() } else { reason };
        return Err(lost(
            stream,
            "SEGUE-SLOT-LOST",
            format!(
                "the {} has invalidated the replication slot {} ({why}): the log it needs is removed",
                stream.direction.from_side(),
                stream.slot
            ),
        ));
    }
    Ok(())
}

async fn check_publication(source: &Client, stream: &StreamIdentity) -> Outcome<()> {
    let sql = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
    let row = source.query_one(sql, &[&stream.publication]).await;
    let there: bool = row.map_err(|e| fault_of(&e).during("reading the publication"))?.get(0);
    if there {
        return Ok(());
    }
    Err(lost(
        stream,
        "SEGUE-PUBLICATION-LOST",
        format!("the publication {} is gone: changes made since then cannot be decoded", stream.publication),
    ))
}
