//! A lost stream, made anew over the rows that it has brought.
//!
//! What happened between the two streams is in no log that can be read. So nothing of what the first one has copied counts:
//! the map of its regions goes, and all rows are copied under new seams, onto those that are there
//! ([`Onto::Compared`](segue_engine::ports::Onto::Compared)).
//!
//! [`clear`] on the side that rows come from, a birth as any other, [`succeed`] on the side where they land. Up to that last
//! commit the old stream is what is stored, so that it can be seen that it has to be made anew; from then on the new one
//! is resumed like any other.

use super::{Authority, Direction, StreamIdentity, claimed, enter, under_token};
use crate::authority;
use crate::catalog::SourceRelation;
use crate::error::fault_of;
use crate::leaves;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::sqltext::quote_literal;
use serde::Serialize;
use tokio_postgres::Client;

/// What was found where rows were copied onto those of a lost stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Rows copied and compared.
    pub rows: u64,
    /// Of them, rows that were not there.
    pub missing: u64,
    /// Rows that were there with other values.
    pub changed: u64,
    /// Rows that were there and are not where they come from.
    pub extra: u64,
}

fn whose(stream: &StreamIdentity) -> String {
    format!(
        "migration = {} AND direction = {}",
        quote_literal(&stream.migration),
        quote_literal(stream.direction.as_str())
    )
}

/// Forgets, on the side that rows come from, what belonged to `lost`: which leaves have left it. The next incarnation will be
/// a later one, also on a server that was restored to before `lost` was made. Can be repeated.
pub async fn clear(from: &Client, token: i64, lost: &StreamIdentity) -> Outcome<()> {
    let StreamIdentity { migration, direction, slot, incarnation, .. } = lost;
    let sql = format!(
        "DELETE FROM segue.unit WHERE {};
         INSERT INTO segue.slot AS s (migration, direction, slot, incarnation, made_at)
         VALUES ({}, {}, {}, {incarnation}, clock_timestamp())
         ON CONFLICT (migration, direction) DO UPDATE SET incarnation = greatest(s.incarnation, excluded.incarnation)",
        whose(lost),
        quote_literal(migration),
        quote_literal(direction.as_str()),
        quote_literal(slot),
    );
    let done = under_token(from, (migration, token), &sql).await;
    done.map(drop).map_err(|f| f.during("giving the lost stream up"))
}

/// Binds the side where rows land to `new` in place of `lost`, in one transaction with all that follows from it: nothing
/// counts as copied.
pub async fn succeed(
    landing: &Client,
    token: i64,
    (lost, new): (&StreamIdentity, &StreamIdentity),
    relations: &[SourceRelation],
) -> Outcome<()> {
    let authority = (new.migration.as_str(), token);
    let bound = bind(landing, authority, (lost, new), relations).await;
    let end = if matches!(bound, Ok(Some(_))) { "COMMIT" } else { "ROLLBACK" };
    let ended = landing.batch_execute(end).await.map_err(|e| fault_of(&e));
    // What has failed is said, and not that it cannot be rolled back any more.
    let bound = bound.and_then(|bound| ended.map(|()| bound));
    claimed(bound, new)?;
    killpoint::pass("renew.succeeded");
    Ok(())
}

/// Everything up to the commit. `None`: another stream than `lost` is there.
async fn bind(
    landing: &Client,
    authority: Authority<'_>,
    (lost, new): (&StreamIdentity, &StreamIdentity),
    relations: &[SourceRelation],
) -> Outcome<Option<String>> {
    let failed = |e| fault_of(&e);
    let begin = format!("BEGIN; {}; SET LOCAL synchronous_commit = on", enter(authority));
    landing.batch_execute(&begin).await.map_err(failed)?;
    let StreamIdentity { slot, system_id, timeline, incarnation, start, .. } = new;
    let sql = format!(
        "UPDATE segue.stream SET slot = {}, system_id = {}, timeline = {timeline}, incarnation = {incarnation},
             position = '{start}', skipped = '{{}}', backfilled_at = NULL, updated_at = clock_timestamp()
          WHERE {} AND incarnation = {} RETURNING 'claimed'",
        quote_literal(slot),
        quote_literal(system_id),
        whose(new),
        lost.incarnation
    );
    let Some(row) = landing.query_opt(&sql, &[]).await.map_err(failed)? else { return Ok(None) };
    let mut all = leaves::born_sql(new, relations);
    all.push(format!("DELETE FROM segue.region WHERE {}", whose(new)));
    all.push(format!("DELETE FROM segue.renewal WHERE {}", whose(new)));
    all.push(format!(
        "INSERT INTO segue.renewal (migration, direction, incarnation, at) VALUES ({}, {}, {incarnation}, clock_timestamp())",
        quote_literal(&new.migration),
        quote_literal(new.direction.as_str())
    ));
    landing.batch_execute(&all.join("; ")).await.map_err(failed)?;
    Ok(Some(row.get(0)))
}

/// Adds to what was found, in the transaction of the region that it was found in.
pub(crate) async fn found(
    landing: &Client,
    authority: &authority::Authority,
    more: Differences,
) -> Outcome<()> {
    let sql = "UPDATE segue.renewal SET rows = rows + $4, missing = missing + $5, changed = changed + $6, extra = extra + $7
          WHERE migration = $1 AND direction = $2 AND incarnation = $3";
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let counts = [more.rows, more.missing, more.changed, more.extra].map(number);
    let authority::Authority { migration, direction, incarnation, .. } = authority;
    let [rows, missing, changed, extra] = &counts;
    let done = landing
        .execute(sql, &[migration, &direction.as_str(), incarnation, rows, missing, changed, extra])
        .await;
    done.map(drop).map_err(|e| fault_of(&e).during("counting what differs"))
}

/// What was found so far by the stream of this incarnation; `None`: it was not made over another one's rows.
pub async fn differences(
    landing: &Client,
    migration: &str,
    direction: Direction,
    incarnation: i64,
) -> Outcome<Option<Differences>> {
    let sql = "SELECT rows, missing, changed, extra FROM segue.renewal
          WHERE migration = $1 AND direction = $2 AND incarnation = $3";
    let row = landing.query_opt(sql, &[&migration, &direction.as_str(), &incarnation]).await;
    let row = row.map_err(|e| fault_of(&e).during("reading what differed"))?;
    Ok(row.map(|row| {
        let count = |i| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
        Differences { rows: count(0), missing: count(1), changed: count(2), extra: count(3) }
    }))
}

/// When a stream's checkpoint was last moved, as the server where its rows land says it.
pub async fn last_applied(landing: &Client, stream: &StreamIdentity) -> Outcome<String> {
    let sql =
        "SELECT to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' FROM segue.stream
          WHERE migration = $1 AND direction = $2";
    let row = landing.query_one(sql, &[&stream.migration, &stream.direction.as_str()]).await;
    Ok(row.map_err(|e| fault_of(&e).during("reading the stream's checkpoint"))?.get(0))
}
