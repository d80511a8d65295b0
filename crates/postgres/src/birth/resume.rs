//! After a restart: is the slot still the one that the checkpoint was made from?
//!
//! A server silently skips ahead to `confirmed_flush_lsn` when it is asked for older changes; so whatever does not
//! fit exactly is refused, with what was lost.

use super::{Direction, StreamIdentity, confirmed, server_identity};
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

/// The one safe way after a stream is lost.
fn start_again(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => {
            "the rows on the target can no longer be brought up to date from this slot: \
             run `segue cancel --drop-target-tables`, make the target's tables anew, and start again"
        }
        // Never to drop anything: the target may be where the only newest rows are.
        Direction::Reverse => {
            "what was written on the target since then has not reached the source: until the way back is made anew, \
             and the source's rows are verified and repaired, writes can only stay on the target"
        }
    }
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

fn lost(stream: &StreamIdentity, code: &'static str, what: String) -> Fault {
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
            "SEGUE-TIMELINE",
            format!(
                "the {from} was promoted or restored: its timeline is {timeline}, the stream came from {}; commits after the switch may differ from what was applied",
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
        return Err(lost(
            stream,
            "SEGUE-SLOT-FOREIGN",
            format!(
                "the replication slot {} is not the one Segue made: plugin {}, database {}",
                stream.slot,
                field("plugin"),
                field("database")
            ),
        ));
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
