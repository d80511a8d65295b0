//! The birth of a change stream, the proof after a restart that it is still the same one, and its end.
//!
//! The order is the point, and every step can be the last one before a crash:
//!
//! 1. publication, committed: made anew from nothing, so that one left behind never hides a table;
//! 2. the incarnation number on the source, before the slot: a slot is never older than its number;
//! 3. the slot: one that is left over from a start that was cut short is dropped first, as no target knows it;
//! 4. the barrier: from here on every transaction that the slot does *not* deliver is visible to new snapshots;
//! 5. [`claim`] on the target: the stream exists once this row does.
//!
//! Whoever starts again asks [`known`] first: with a row there is a stream to resume ([`resume_check`]), without one
//! [`birth`] starts from step 1. Before either, [`pair()`] makes sure that what is on the source is this target's.

mod complete;
mod end;
mod pair;
mod promoted;
pub(crate) mod renew;
mod resume;
mod reverse;
mod tables;
mod wait;

pub use complete::{close_source, close_target, end_streams, forget_all_but_records, has_records, listed};
pub use end::{drop_objects, drop_reverse, forget, is_there};
pub use pair::{Reached, only_each_other, only_target, pair};
pub use renew::{Differences, clear, differences, last_applied, succeed};
pub use resume::{Told, is_known, is_lost, known, resume, resume_check, told};
pub use reverse::reverse;
pub use tables::{
    dependents, drop_source_tables, drop_target_tables, drop_unfilled, may_drop_target, stranger,
    with_all_below,
};
pub use wait::{Blocker, WaitReport, WaitStep};
pub(crate) use wait::{QUERY_CHARS_MAX, blocker, slot};

use crate::catalog::SourceRelation;
use crate::connect::Endpoint;
use crate::error::fault_of;
use crate::fence;
use segue_engine::fault::Fault;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::switch::Side;
use segue_model::switch::ownership::Ownership;
use serde::{Deserialize, Serialize};
use std::fmt;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Which way a stream runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the source to the target.
    Forward,
    /// From the target back to the source.
    Reverse,
}

impl Direction {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
        }
    }

    /// The other one.
    #[must_use]
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Forward => Direction::Reverse,
            Direction::Reverse => Direction::Forward,
        }
    }

    /// The one that leads to this side.
    pub fn leading_to(side: Side) -> Direction {
        match side {
            Side::Target => Direction::Forward,
            Side::Source => Direction::Reverse,
        }
    }

    /// The side that its changes come from. The sides keep their names, whichever takes the writes.
    pub fn from_side(self) -> &'static str {
        match self {
            Direction::Forward => "source",
            Direction::Reverse => "target",
        }
    }

    /// The side that its rows land on.
    pub fn to_side(self) -> &'static str {
        self.opposite().from_side()
    }

    fn suffix(self) -> &'static str {
        match self {
            Direction::Forward => "fwd",
            Direction::Reverse => "rev",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Name of the slot and of the publication of one stream: `segue_<migration>_fwd`, `-` written as `_`.
///
/// Slot names allow only lower case, digits and `_`, and 63 bytes; a longer one would be cut.
pub fn stream_name(migration: &str, direction: Direction) -> Outcome<String> {
    let name = format!("segue_{}_{}", migration.replace('-', "_"), direction.suffix());
    let fits =
        name.len() <= 63 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits {
        return Ok(name);
    }
    Err(Fault::operator(
        "SEGUE-NAME",
        format!("the migration's name `{migration}` cannot be part of a replication slot's name"),
        "use up to 50 lower-case letters, digits and dashes",
    ))
}

/// Name of the replication origin under which one stream's rows are written on the other side.
pub fn origin_name(migration: &str, direction: Direction) -> String {
    format!("segue_{migration}_{direction}")
}

/// What makes a stream this very one; stored beside its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamIdentity {
    /// The migration.
    pub migration: String,
    /// Which way it runs.
    pub direction: Direction,
    /// The logical slot on the side it comes from.
    pub slot: String,
    /// The publication there.
    pub publication: String,
    /// `system_identifier` of that server.
    pub system_id: String,
    /// Its timeline.
    pub timeline: i32,
    /// Grows with every slot of that name.
    pub incarnation: i64,
    /// Where the stream begins.
    pub start: Position,
}

/// Makes publication and slot and passes the barrier; see the module's page. The schema must be there already.
///
/// Everything it writes is under `token`, which must have been raised on the source. `report` is called several times
/// a second while something is waited for.
pub async fn birth(
    source: &Endpoint,
    migration: &str,
    direction: Direction,
    token: i64,
    relations: &[SourceRelation],
    mut report: impl FnMut(WaitReport) + Send,
) -> Outcome<StreamIdentity> {
    let name = stream_name(migration, direction)?;
    let client = source.connect("birth").await?;
    let during = |fault: Fault| fault.during(format_args!("making the change stream {name}"));
    publish(&client, (migration, token), &name, relations).await.map_err(during)?;
    drop_leftover(&client, (migration, token), &name).await.map_err(during)?;
    let incarnation = number(&client, (migration, token), direction, &name).await.map_err(during)?;
    killpoint::pass("birth.incarnation");
    let maker = source.connect("slot").await?;
    let watcher = source.connect("watch").await?;
    wait::make_slot(&maker, &watcher, &name, &mut report).await.map_err(during)?;
    killpoint::pass("birth.slot");
    wait::barrier(&maker, &watcher, &mut report).await.map_err(during)?;
    killpoint::pass("birth.barrier");
    let (system_id, timeline) = server_identity(&client).await.map_err(during)?;
    let start = confirmed(&client, &name).await.map_err(during)?;
    Ok(StreamIdentity {
        migration: migration.to_owned(),
        direction,
        publication: name.clone(),
        slot: name,
        system_id,
        timeline,
        incarnation,
        start,
    })
}

/// A migration and the token it is driven with.
pub type Authority<'a> = (&'a str, i64);

/// The statement that shuts out processes with an older token; for the beginning of a transaction.
pub(crate) fn enter((migration, token): Authority<'_>) -> String {
    format!("SELECT segue.enter({}, {token})", quote_literal(migration))
}

/// Runs `sql`, which returns one value, in a transaction under the token.
async fn under_token(client: &Client, authority: Authority<'_>, sql: &str) -> Outcome<Option<String>> {
    let sql = format!("BEGIN; {}; {sql}; COMMIT", enter(authority));
    match client.simple_query(&sql).await {
        Ok(messages) => Ok(messages
            .iter()
            .rev()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
                _ => None,
            })
            .flatten()),
        Err(error) => {
            client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
            Err(fault_of(&error))
        }
    }
}

/// Step 1. Publishing needs a lock on each table that conflicts with writers' only for a moment, but one that waits
/// would make them wait behind it: bounded, and tried again.
async fn publish(
    client: &Client,
    authority: Authority<'_>,
    name: &str,
    relations: &[SourceRelation],
) -> Outcome<()> {
    let sql = format!(
        "BEGIN; {}; SET LOCAL lock_timeout = '2s'; {}; COMMIT",
        enter(authority),
        publication(name, relations).join("; ")
    );
    bounded_lock(client, &sql).await
}

/// The statements that make the publication `name` of these relations, from nothing.
pub(crate) fn publication(name: &str, relations: &[SourceRelation]) -> [String; 2] {
    let mut tables: Vec<String> = relations.iter().map(|r| format!("ONLY {}", r.name.sql())).collect();
    tables.push("segue.signal".to_owned());
    let quoted = quote_ident(name);
    [
        format!("DROP PUBLICATION IF EXISTS {quoted}"),
        format!(
            "CREATE PUBLICATION {quoted} FOR TABLE {} WITH (publish = 'insert, update, delete, truncate')",
            tables.join(", ")
        ),
    ]
}

/// How often a statement with a `lock_timeout` is tried before the lock's holder becomes the operator's matter.
const LOCK_TRIES: u32 = 10;

/// Runs a transaction that may fail to get a lock in time, and tries it again some times.
pub(crate) async fn bounded_lock(client: &Client, sql: &str) -> Outcome<()> {
    let mut tries = 0;
    loop {
        let error = match client.batch_execute(sql).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        // Nothing to roll back if the connection is gone; the next request says so.
        client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
        tries += 1;
        let passing = error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE)
            || error.code() == Some(&tokio_postgres::error::SqlState::T_R_DEADLOCK_DETECTED);
        if !passing || tries == LOCK_TRIES {
            return Err(fault_of(&error));
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

/// Whether a slot of our name is there that no target knows: only its maker could have claimed it, and did not live to.
/// Fails for one that is not ours to drop.
pub(crate) async fn leftover(client: &Client, name: &str) -> Outcome<bool> {
    let sql =
        "SELECT s.active, s.active_pid, s.database::text, s.plugin::text, current_database()::text AS here
           FROM pg_replication_slots s WHERE s.slot_name = $1";
    let Some(row) = client.query_opt(sql, &[&name]).await.map_err(|e| fault_of(&e))? else {
        return Ok(false);
    };
    let (database, plugin, here): (Option<&str>, Option<&str>, &str) =
        (row.get("database"), row.get("plugin"), row.get("here"));
    if database != Some(here) || plugin != Some("pgoutput") {
        return Err(Fault::operator(
            "SEGUE-SLOT-FOREIGN",
            format!(
                "the replication slot {name} belongs to something else (database {}, plugin {})",
                database.unwrap_or("none"),
                plugin.unwrap_or("none")
            ),
            "give the migration another name, or drop the slot if nothing uses it",
        ));
    }
    if row.get("active") {
        let pid: Option<i32> = row.get("active_pid");
        return Err(Fault::operator(
            "SEGUE-SLOT-ACTIVE",
            format!("the replication slot {name} is in use by pid {}", pid.unwrap_or(0)),
            "another segue may still be starting this migration: let it work or stop it, then start again",
        ));
    }
    Ok(true)
}

/// Fails if something that is not Segue's has the name of a stream that was never made.
pub async fn in_the_way(source: &Client, migration: &str) -> Outcome<()> {
    let name = stream_name(migration, Direction::Forward)?;
    leftover(source, &name).await?;
    // Where Segue has been, one of its name is a start's that was cut short.
    let sql =
        "SELECT to_regnamespace('segue') IS NULL AND EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
    let foreign: bool = source.query_one(sql, &[&name]).await.map_err(|e| fault_of(&e))?.get(0);
    if !foreign {
        return Ok(());
    }
    Err(Fault::operator(
        "SEGUE-PUBLICATION-FOREIGN",
        format!("the publication {name} is there, and Segue has not made it"),
        format!(
            "on the source: DROP PUBLICATION {}; -- if nothing uses it; or give the migration another name",
            quote_ident(&name)
        ),
    ))
}

/// Fails if the source has given the writes away. Where no stream is known a new one would copy rows that are old, over the
/// newest ones, if the target's tables were emptied for it.
pub async fn source_owns(source: &Client, migration: &str) -> Outcome<()> {
    match fence::row(source, migration).await?.map(|row| row.ownership) {
        None | Some(Ownership::Owner { .. } | Ownership::Fenced { .. }) => return Ok(()),
        Some(Ownership::HandedOver { .. } | Ownership::Follower { .. }) => {}
    }
    let sql = "SELECT elsewhere FROM segue.owner WHERE migration = $1";
    let row = source.query_opt(sql, &[&migration]).await.map_err(|e| fault_of(&e))?;
    let elsewhere: String = row.map_or_else(|| "the target".to_owned(), |row| row.get(0));
    Err(Fault::operator(
        "SEGUE-SOURCE-CLOSED",
        format!(
            "the source has given the writes of migration {migration} away, and the newest rows are on {elsewhere}. The target \
             knows of no stream: a new one would copy what is old"
        ),
        format!(
            "keep the rows that are there. Only if they are given up for good, on the source: \
             DELETE FROM segue.owner WHERE migration = {}; then `segue cancel` opens its tables again, as they are",
            quote_literal(migration)
        ),
    ))
}

/// Drops a slot that is left over from a start that was cut short.
async fn drop_leftover(client: &Client, authority: Authority<'_>, name: &str) -> Outcome<()> {
    if leftover(client, name).await? {
        let drop = format!("SELECT pg_drop_replication_slot({})", quote_literal(name));
        under_token(client, authority, &drop).await?;
    }
    Ok(())
}

/// Step 2. The number is never given twice as long as the row lives; `cancel` removes it together with the stream.
async fn number(client: &Client, authority: Authority<'_>, direction: Direction, slot: &str) -> Outcome<i64> {
    // Seconds since 1970 keep it growing when the schema was dropped in between.
    let sql = format!(
        "INSERT INTO segue.slot AS s (migration, direction, slot, incarnation, made_at)
         VALUES ({}, {}, {}, extract(epoch FROM clock_timestamp())::bigint, clock_timestamp())
         ON CONFLICT (migration, direction) DO UPDATE SET slot = excluded.slot, made_at = excluded.made_at,
             incarnation = greatest(s.incarnation + 1, excluded.incarnation)
         RETURNING incarnation",
        quote_literal(authority.0),
        quote_literal(direction.as_str()),
        quote_literal(slot)
    );
    let number = under_token(client, authority, &sql).await?;
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| Fault::bug("SEGUE-SLOT", "the slot got no incarnation number"))
}

/// System identifier and timeline.
async fn server_identity(client: &Client) -> Outcome<(String, i32)> {
    let sql = "SELECT s.system_identifier::text, c.timeline_id FROM pg_control_system() s, pg_control_checkpoint() c";
    let row = client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?;
    // The control file's checkpoint may be older than a promotion; the current file's name is not.
    let now = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
    let walfile: String = client.query_one(now, &[]).await.map_err(|e| fault_of(&e))?.get(0);
    let timeline = i32::from_str_radix(&walfile, 16).unwrap_or_else(|_| row.get(1));
    Ok((row.get(0), timeline))
}

async fn confirmed(client: &Client, slot: &str) -> Outcome<Position> {
    let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_one(sql, &[&slot]).await.map_err(|e| fault_of(&e))?;
    Ok(Position(u64::from(row.get::<_, PgLsn>(0))))
}

/// The statement of step 5; `backfilled_at` is SQL.
fn stream_row(identity: &StreamIdentity, backfilled_at: &str) -> String {
    let StreamIdentity { migration, direction, slot, system_id, timeline, incarnation, start, .. } = identity;
    format!(
        "INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, position, backfilled_at,
             updated_at)
         VALUES ({}, {}, {}, {}, {timeline}, {incarnation}, '{start}', {backfilled_at}, clock_timestamp())
         ON CONFLICT DO NOTHING RETURNING 'claimed'",
        quote_literal(migration),
        quote_literal(direction.as_str()),
        quote_literal(slot),
        quote_literal(system_id),
    )
}

/// Step 5: binds the side where the rows land to this stream, under `token`. From here on the stream is resumed, never
/// born again.
///
/// Fails if another stream of this migration and direction is stored already.
pub async fn claim(landing: &Client, token: i64, identity: &StreamIdentity) -> Outcome<()> {
    let row = stream_row(identity, "NULL");
    claimed(under_token(landing, (&identity.migration, token), &row).await, identity)
}

fn claimed(answer: Outcome<Option<String>>, identity: &StreamIdentity) -> Outcome<()> {
    let StreamIdentity { migration, direction, .. } = identity;
    let side = direction.to_side();
    let answer = answer.map_err(|f| f.during(format_args!("binding the {side} to the change stream")))?;
    if answer.as_deref() == Some("claimed") {
        return Ok(());
    }
    Err(Fault::operator(
        "SEGUE-SUPERSEDED",
        format!("the {side} is bound to another stream of migration {migration} already"),
        "another segue process has taken this migration over: let it work, and stop this one",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_are_valid_slot_names() {
        assert_eq!(stream_name("orders-move", Direction::Forward), Ok("segue_orders_move_fwd".into()));
        assert!(stream_name("Orders", Direction::Forward).is_err());
        assert!(stream_name(&"x".repeat(60), Direction::Reverse).is_err());
    }
}
