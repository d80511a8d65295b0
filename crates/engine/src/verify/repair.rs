//! Repairing differences, in an order in which the other side can take them.
//!
//! Where the other side has a unique column beside the key, one row can keep another one out: a row that the owner does not
//! have, one that the owner has moved the value away from, or one whose change is still on its way. So rows that are too many
//! go first, and what was refused is tried again after the others. Rows that hold each other's values are left, with the reason,
//! and so are those that never stand still.

use super::ports::{Comparable, Item, Passage, RangeCounts, Repaired, Repairer, Store};
use super::settle::{Settled, cost_of};
use super::{Parts, metered};
use crate::fault::Fault;
use crate::ports::Outcome;
use segue_model::divergence::{Class, Divergence};
use segue_model::key::KeyText;
use segue_model::region::Extent;
use segue_model::table::{Identity, Table};
use std::collections::BTreeMap;

/// Times that all rows left are tried without one of them being taken.
const STUCK_MAX: u32 = 3;
/// Rows that are looked at together before they are copied: of more of them the first look would be old by the time of the last.
const TOGETHER_MAX: usize = 64;
/// Rows of a range that may be refused. More of them have one reason, which is not another row; those that have only changed
/// meanwhile do not count.
const REFUSED_MAX: usize = 100;

/// Writes the owner's rows over the differences, and settles them once more.
pub(super) async fn repair<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: &Parts<O, X, P, S, R>,
    table: &Table,
    settled: &mut Settled,
    counts: &mut RangeCounts,
) -> Outcome<()> {
    let mut refused = BTreeMap::new();
    match &table.identity {
        Identity::Key(key) if key.bytewise => {
            refused = by_key(parts, table, &settled.divergent, counts).await?;
        }
        // Where no single row has a seam, as where equal keys can have different text, the table is copied anew, once.
        Identity::Key(_) | Identity::WholeRow => {
            if let Repaired::Refused(fault) = parts.repairer.repair(table, &Extent::ALL, None).await? {
                refused = settled.divergent.iter().map(|(item, _)| (item.clone(), fault.clone())).collect();
            }
        }
    }
    let items = settled.divergent.iter().map(|(item, _)| item.clone()).collect();
    let again = parts.settle(table, items, false, counts).await?;
    let still: Vec<&Item> = again.divergent.iter().map(|(item, _)| item).chain(&again.hot).collect();
    for (item, divergence) in &mut settled.divergent {
        divergence.repaired = !still.contains(&&*item);
        if divergence.repaired {
            continue;
        }
        match refused.get(item) {
            Some(fault) => divergence.refused = Some(fault.to_string()),
            None => tracing::warn!("{}: {item:?} was repaired and is not settled as equal", table.source),
        }
    }
    Ok(())
}

/// Copies row by row; returns which the other side does not take, and why.
async fn by_key<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer>(
    parts: &Parts<O, X, P, S, R>,
    table: &Table,
    divergent: &[(Item, Divergence)],
    counts: &mut RangeCounts,
) -> Outcome<BTreeMap<Item, Fault>> {
    let (extra, others): (Vec<_>, Vec<_>) =
        divergent.iter().partition(|(_, d)| d.difference.class == Class::Extra);
    let row = |(item, d): &(Item, Divergence)| {
        let Item::Key(key) = item else { return None };
        Some((item.clone(), d.key.clone().unwrap_or_else(|| key.clone())))
    };
    let mut left: Vec<(Item, KeyText)> = extra.into_iter().chain(others).filter_map(row).collect();
    let mut stuck = 0;
    loop {
        let (tried, mut refused) = (left.len(), BTreeMap::new());
        let mut again = Vec::new();
        let mut in_the_way = 0;
        for some in left.chunks(TOGETHER_MAX) {
            let items: Vec<Item> = some.iter().map(|(item, _)| item.clone()).collect();
            let seen = metered(&mut counts.owner, parts.owner.read(table, &items), |r| cost_of(r)).await?;
            // Also what is in the way may be on its way out of it.
            parts.passed().await?;
            for ((item, key), seen) in some.iter().zip(seen) {
                let extent = Extent::Key(key.clone());
                match parts.repairer.repair(table, &extent, Some(seen.version.as_str())).await? {
                    Repaired::Copied => {}
                    Repaired::Refused(fault) if in_the_way >= REFUSED_MAX => return Err(fault),
                    Repaired::Refused(fault) => {
                        in_the_way += usize::from(fault.code != "SEGUE-REPAIR-CHANGED");
                        refused.insert(item.clone(), fault);
                        again.push((item.clone(), key.clone()));
                    }
                }
            }
        }
        stuck = if again.len() < tried { 0 } else { stuck + 1 };
        if again.is_empty() || stuck >= STUCK_MAX {
            return Ok(refused);
        }
        left = again;
    }
}
