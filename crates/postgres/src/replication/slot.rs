//! How a slot stands, before it is streamed from.

use super::Connection;
use super::backlog::WORTH_BYTES;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::sqltext::quote_literal;

/// A slot, and what has piled up behind it.
pub struct Standing {
    /// Where the server's log is flushed up to, where that can be asked.
    flushed: Option<Position>,
    /// Standbys have to have what is sent from it (`synchronized_standby_slots`), of which a copy of it knows nothing.
    waits_for_standbys: bool,
}

impl Standing {
    /// Whether so much has piled up after `from` that it is to be read by SQL ([`super::Replication::with_backlog`]).
    pub fn is_worth_reading(&self, from: Position) -> bool {
        let behind = |flushed: Position| flushed.0.saturating_sub(from.0);
        !self.waits_for_standbys && self.flushed.is_some_and(|flushed| behind(flushed) >= WORTH_BYTES)
    }
}

impl Connection {
    /// Looks at the slot, before it is streamed from after `from`.
    ///
    /// A server that is asked for changes before the slot's confirmed position skips ahead without a word: refused here.
    pub async fn standing(&mut self, slot: &str, from: Position) -> Outcome<Standing> {
        let sql = format!(
            "SELECT s.confirmed_flush_lsn, pg_catalog.to_jsonb(s) ->> 'wal_status', \
             pg_catalog.to_jsonb(s) ->> 'invalidation_reason', pg_catalog.to_jsonb(s) ->> 'failover', \
             pg_catalog.current_setting('synchronized_standby_slots', true), \
             CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE pg_catalog.pg_current_wal_flush_lsn() END FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = {}",
            quote_literal(slot)
        );
        let rows = self.query(&sql).await?;
        let again = "`segue run` says what is lost, and `segue run --new-stream` makes the stream anew: every row is then compared";
        let lost = |what: String| Err(Fault::operator("SEGUE-SLOT-LOST", what, again));
        let Some(row) = rows.into_iter().next() else {
            return lost(format!("the slot {slot} does not exist any more"));
        };
        let field = |i: usize| row.get(i).and_then(Option::as_deref);
        if let Some(reason) = field(2) {
            return lost(format!("the server has invalidated the slot {slot}: {reason}"));
        }
        if field(1) == Some("lost") {
            return lost(format!("the log that the slot {slot} needs has been removed"));
        }
        match field(0).map(str::parse::<Position>) {
            Some(Ok(confirmed)) if confirmed <= from => Ok(Standing {
                flushed: field(5).and_then(|at| at.parse().ok()),
                waits_for_standbys: field(3) == Some("true")
                    && field(4).is_some_and(|slots| !slots.is_empty()),
            }),
            Some(Ok(confirmed)) => lost(format!(
                "the slot {slot} has been confirmed up to {confirmed}, but only changes up to {from} are on the other side"
            )),
            _ => lost(format!("the slot {slot} has no confirmed position")),
        }
    }
}
