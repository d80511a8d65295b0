//! The birth of the way back: a stream whose rows are all on the other side already.
//!
//! The steps are those of every birth, and each can be the last one before a crash. What is different:
//!
//! * Both streams write on the side that the other one reads. Each passes over what the other has written, which it
//!   knows by the name of the replication origin. Servers keep origins by number, and give the number of a dropped origin
//!   to the next one made: in a log that is read late, transactions of somebody else's former origin would carry our name.
//!   So an origin is made before the slot that passes over it, or it is remembered from where on the name is ours.
//! * The stream is claimed as one whose backfill is done.

use super::wait::WaitReport;
use super::{
    Authority, Direction, StreamIdentity, birth, claimed, known, origin_name, resume_check, stream_row,
    under_token,
};
use crate::catalog::SourceRelation;
use crate::connect::Endpoint;
use crate::error::fault_of;
use crate::leaves;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::sqltext::quote_literal;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

/// Makes the stream from the target back to the source, or finds the one that is there and checks that nothing of it was
/// lost. To be repeated after a crash at any point.
///
/// The schema is there on both sides, and `token` was raised on both. `relations` are the target's, as
/// [`crate::catalog::read_reverse`] gives them. The forward stream has done its backfill.
pub async fn reverse(
    source: &Client,
    target: &Endpoint,
    (migration, token): Authority<'_>,
    relations: &[SourceRelation],
    report: impl FnMut(WaitReport) + Send,
) -> Outcome<StreamIdentity> {
    let sender = target.connect("birth").await?;
    if let Some((identity, checkpoint)) = known(source, migration, Direction::Reverse).await? {
        resume_check(&sender, &identity, checkpoint).await?;
        return Ok(identity);
    }
    reserve_origin(&sender, (migration, token), Direction::Forward).await?;
    let identity = birth(target, migration, Direction::Reverse, token, relations, report).await?;
    leaves::remember_born(source, &identity, token, relations).await?;
    claim_filled(source, token, &identity).await?;
    killpoint::pass("birth.claimed");
    Ok(identity)
}

/// What makes an origin, in a transaction that is open.
fn make_origin(name: &str) -> String {
    let name = quote_literal(name);
    format!(
        "SELECT pg_replication_origin_create({name}) WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = {name})"
    )
}

/// What remembers that transactions of this stream's origin are ours from `since` on.
fn remember_origin((migration, _): Authority<'_>, direction: Direction, since: &str) -> String {
    format!(
        "INSERT INTO segue.origin (migration, direction, since) VALUES ({}, {}, {since}) ON CONFLICT DO NOTHING",
        quote_literal(migration),
        quote_literal(direction.as_str())
    )
}

/// Makes sure that the origin of `direction` is there before a slot that passes over it is made.
async fn reserve_origin(client: &Client, authority: Authority<'_>, direction: Direction) -> Outcome<()> {
    let name = origin_name(authority.0, direction);
    let sql = format!("{}; {}", make_origin(&name), remember_origin(authority, direction, "'0/0'"));
    let reserved = under_token(client, authority, &sql).await.map(drop);
    reserved.map_err(|f| f.during(format_args!("making the replication origin {name}")))
}

/// Binds the side where the rows land to a stream, as [`super::claim`] does, when that side has all rows already: its
/// backfill is done from the first moment on.
///
/// In the same transaction, before the stream can write its first row: its origin, and from where on that name is ours in
/// this side's log.
async fn claim_filled(landing: &Client, token: i64, identity: &StreamIdentity) -> Outcome<()> {
    let authority = (identity.migration.as_str(), token);
    let origin = origin_name(&identity.migration, identity.direction);
    let sql = format!(
        "{}; {}; {}",
        make_origin(&origin),
        remember_origin(authority, identity.direction, "pg_current_wal_insert_lsn()"),
        stream_row(identity, "clock_timestamp()")
    );
    claimed(under_token(landing, authority, &sql).await, identity)
}

/// From where on transactions of the origin of `direction` are this migration's in the log of this database; `None`: it
/// has no such stream.
pub(crate) async fn ours_since(
    client: &Client,
    migration: &str,
    direction: Direction,
) -> Outcome<Option<Position>> {
    let sql = "SELECT since FROM segue.origin WHERE migration = $1 AND direction = $2";
    let row = client.query_opt(sql, &[&migration, &direction.as_str()]).await;
    let row = row.map_err(|e| fault_of(&e).during("looking since when a replication origin is Segue's"))?;
    Ok(row.map(|row| Position(u64::from(row.get::<_, PgLsn>(0)))))
}
