//! The two cheap modes: random rows compared field by field, and counts.

use super::ports::{Comparable, Item, Passage, RangeCounts, Repairer, Store, VerifiedRange};
use super::report::{Counted, Request};
use super::settle::{FULL_ROWS_BYTES_MAX, cost_of, full_cost};
use super::{Done, Parts, conclude, metered};
use crate::ports::Outcome;
use segue_model::table::Table;
use std::time::Instant;

/// Rows compared by one pair of statements.
const CHUNK_ITEMS_MAX: usize = 256;
/// How often tables are counted in search of a quiet moment.
const COUNTS_MAX: u32 = 3;

/// Compares random rows of the owner.
pub(super) async fn sampled<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: &Parts<O, X, P, S, R>,
    table: &Table,
    request: &Request,
) -> Outcome<Done> {
    let mut counts = RangeCounts::default();
    parts.throttle.admit(0, &parts.progress).await;
    let items = parts.owner.sample(table, request.sample_rows).await?;
    counts.rows = items.len() as u64;
    let mut suspects = Vec::new();
    for chunk in items.chunks(CHUNK_ITEMS_MAX) {
        // Sizes first, so that only so much is held in memory at a time.
        let sizes = metered(&mut counts.owner, parts.owner.read(table, chunk), |r| cost_of(r)).await?;
        let mut rest: &[Item] = chunk;
        let mut sizes = sizes.iter().map(|r| r.bytes);
        while !rest.is_empty() {
            let mut bytes = sizes.next().unwrap_or(0);
            let mut len = 1;
            while len < rest.len() {
                let next = sizes.clone().next().unwrap_or(0);
                if bytes + next > FULL_ROWS_BYTES_MAX {
                    break;
                }
                (bytes, len) = (bytes + next, len + 1);
                sizes.next();
            }
            let (part, after) = rest.split_at(len);
            rest = after;
            let began = Instant::now();
            suspects.extend(unequal(parts, table, part, &mut counts).await?);
            let worked = began.elapsed();
            parts.throttle.spend(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
            parts.throttle.rest(worked).await;
        }
    }
    let (divergences, hot_keys) = conclude(parts, table, suspects, request, &mut counts).await?;
    Ok(Done { range: VerifiedRange { lower: None, upper: None, counts }, divergences, hot_keys })
}

/// The items whose fields are not all equal.
async fn unequal<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: &Parts<O, X, P, S, R>,
    table: &Table,
    items: &[Item],
    counts: &mut RangeCounts,
) -> Outcome<Vec<Item>> {
    if table.key().is_none() {
        // How often an image occurs is as much part of it as its fields; settling compares both.
        return Ok(items.to_vec());
    }
    let (owner, other) = tokio::try_join!(
        metered(&mut counts.owner, parts.owner.rows(table, items), |r| full_cost(r)),
        metered(&mut counts.other, parts.other.rows(table, items), |r| full_cost(r)),
    )?;
    let row = |found: Option<super::ports::FullRow>| found.map(|f| f.row);
    let pairs = items.iter().zip(owner.into_iter().map(row).zip(other.into_iter().map(row)));
    Ok(pairs.filter(|(_, (owner, other))| owner != other).map(|(item, _)| item.clone()).collect())
}

/// Counts the table on both sides. Equal counts prove little, unequal ones nothing while the owner changes.
pub(super) async fn counted<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: &Parts<O, X, P, S, R>,
    table: &Table,
) -> Outcome<(Counted, Done)> {
    let mut before = parts.owner.count(table).await?;
    let mut tries = 0;
    let (owner, other, settled) = loop {
        tries += 1;
        parts.throttle.admit(0, &parts.progress).await;
        parts.passed().await?;
        let other = parts.other.count(table).await?;
        let shown = parts.shown().await?;
        let owner = parts.owner.count(table).await?;
        let settled = shown && owner == before && owner == other;
        if settled || tries >= COUNTS_MAX {
            break (owner, other, settled);
        }
        before = owner;
    };
    let advice = match (settled, owner == other) {
        (true, _) => String::new(),
        (false, true) => {
            "the counts are equal, but the table changed while it was counted; `--mode digest` compares rows"
                .into()
        }
        (false, false) => {
            "unequal counts of a table in use prove nothing; `--mode digest` compares rows".into()
        }
    };
    // No row was compared.
    let range = VerifiedRange { lower: None, upper: None, counts: RangeCounts::default() };
    let done = Done { range, divergences: Vec::new(), hot_keys: Vec::new() };
    Ok((Counted { owner, other, settled, advice }, done))
}
