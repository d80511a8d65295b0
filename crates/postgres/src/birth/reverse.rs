//! The birth of the way back: a stream whose rows are all on the other side already.
//!
//! Its steps are those of every birth, and each can be the last one before a crash. The one difference is that it is
//! claimed as a stream whose backfill is done: it copies nothing.

use super::wait::WaitReport;
use super::{Authority, Direction, StreamIdentity, birth, claimed, known, resume, stream_row, under_token};
use crate::catalog::SourceRelation;
use crate::connect::Endpoint;
use crate::leaves;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use tokio_postgres::Client;

/// Makes the stream from the target back to the source, or finds the one that is there and checks that nothing of it was
/// lost. To be repeated after a crash at any point.
///
/// The schema is there on both sides, and the token was raised on both. `relations` are the target's, as
/// [`crate::catalog::read_reverse`] gives them. The forward stream has done its backfill, and whatever the application
/// writes on the target comes after this returns.
pub async fn reverse(
    source: &Client,
    target: &Endpoint,
    (migration, token): Authority<'_>,
    relations: &[SourceRelation],
    report: impl FnMut(WaitReport) + Send,
) -> Outcome<StreamIdentity> {
    if let Some((identity, checkpoint)) = known(source, migration, Direction::Reverse).await? {
        return resume(target, source, token, &identity, checkpoint).await;
    }
    let identity = birth(target, migration, Direction::Reverse, token, relations, report).await?;
    leaves::remember_born(source, &identity, token, relations).await?;
    claim_filled(source, token, &identity).await?;
    killpoint::pass("birth.claimed");
    Ok(identity)
}

/// Binds the side where the rows land to a stream, as [`super::claim`] does, when that side has all rows already: its
/// backfill is done from the first moment on.
async fn claim_filled(landing: &Client, token: i64, identity: &StreamIdentity) -> Outcome<()> {
    let row = stream_row(identity, "clock_timestamp()");
    claimed(under_token(landing, (&identity.migration, token), &row).await, identity)
}
