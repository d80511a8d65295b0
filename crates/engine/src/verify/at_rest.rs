//! Comparing, while nothing changes, what never came to rest before: under the fence of a hand-over.
//!
//! Rows that changed too often to be compared are remembered here until they are found equal or different. Under a fence
//! that the stream has drained both sides stand still, so one reading of each decides.

use super::Parts;
use super::live::LiveQueue;
use super::ports::{Comparable, Item, Passage, RangeCounts, Repairer, Store};
use crate::fault::Recovery;
use crate::ports::Outcome;
use futures_util::future::try_join_all;
use segue_model::divergence::Divergence;
use segue_model::table::{Table, TableId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Rows that are remembered; a workload that keeps more of them hot keeps them so for other reasons. A verification that
/// has left more is none.
pub const UNSETTLED_MAX: usize = 2_000;
/// Rows that a comparison is just at find room up to this: what it proves to differ must not be forgotten before it is stored.
const AT_HAND_MAX: usize = 2 * UNSETTLED_MAX;
/// Rows just applied, and not compared since, that are taken along: as many as the application notices nothing of.
const RECENT_MAX: usize = 200;
/// How often it is tried to store what differs at rest; whoever fences waits no longer …
const STORE_TRIES: u32 = 20;
/// … and as long between two tries.
const STORE_PAUSE: Duration = Duration::from_millis(100);

/// Rows that changed too often to be compared, and have not been since; those that a comparison is just at; and those that
/// were found to differ at rest, until they are found equal or a verification has them in its list.
#[derive(Debug, Default)]
pub struct Unsettled(Mutex<BTreeMap<TableId, BTreeSet<Item>>>);

impl Unsettled {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TableId, BTreeSet<Item>>> {
        // Forgetting one after a panic would only compare fewer.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of these rows the hot ones are remembered, and the others need not be any more. Returns how many found no room.
    pub(super) fn settled(&self, table: TableId, all: &[Item], hot: &[Item]) -> u64 {
        let hot_ones: BTreeSet<&Item> = hot.iter().collect();
        let cool: Vec<Item> = all.iter().filter(|item| !hot_ones.contains(item)).cloned().collect();
        self.forget(table, &cool);
        self.remember(table, hot, UNSETTLED_MAX)
    }

    /// A comparison is at these rows, and nobody else has them any more: whatever ends it, they stay to be compared at rest.
    pub(super) fn keep(&self, table: TableId, items: &[Item]) {
        self.remember(table, items, AT_HAND_MAX);
    }

    /// These rows need not be compared at rest.
    pub(super) fn forget(&self, table: TableId, items: &[Item]) {
        if let Some(known) = self.lock().get_mut(&table) {
            items.iter().for_each(|item| _ = known.remove(item));
        }
    }

    fn remember(&self, table: TableId, items: &[Item], max: usize) -> u64 {
        if items.is_empty() {
            return 0;
        }
        let mut rows = self.lock();
        let room = max.saturating_sub(rows.values().map(BTreeSet::len).sum());
        let known = rows.entry(table).or_default();
        let new: Vec<&Item> = items.iter().filter(|item| !known.contains(item)).collect();
        let forgotten = new.len().saturating_sub(room) as u64;
        known.extend(new.into_iter().take(room).cloned());
        forgotten
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.lock().values().map(BTreeSet::len).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a comparison at rest came to.
#[derive(Debug, Default)]
pub struct AtRest {
    /// Rows compared.
    pub compared: u64,
    /// Those that differ; stored already.
    pub divergences: Vec<Divergence>,
    /// Those that are unequal and did not stand still: somebody writes to them past the fence, or the owner does not show
    /// what was applied. They are neither equal nor proven to differ.
    pub hot: u64,
}

impl<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer> Parts<O, X, P, S, R> {
    /// Compares the rows that were too hot before, and those the stream has applied last. Meant for a moment at which the
    /// owner takes no writes and the other side has applied all of them; at any other it is right too, but may tell less.
    pub async fn compare_at_rest(
        &self,
        tables: &BTreeMap<TableId, Arc<Table>>,
        recent: &LiveQueue,
    ) -> Outcome<AtRest> {
        for (table, keys) in recent.take(RECENT_MAX) {
            self.unsettled.keep(table, &keys.into_iter().map(Item::Key).collect::<Vec<_>>());
        }
        let rows = self.unsettled.lock().clone();
        // Of all tables at once, as far as each side has sessions for it: writers wait meanwhile.
        let read = rows.into_iter().filter_map(|(id, items)| {
            let table = tables.get(&id).filter(|_| !items.is_empty())?;
            let items: Vec<Item> = items.into_iter().collect();
            Some(async move {
                let (owner, other) =
                    tokio::try_join!(self.owner.read(table, &items), self.other.read(table, &items))?;
                Ok((table, items, owner, other))
            })
        });
        let mut found = AtRest::default();
        for (table, items, owner, other) in try_join_all(read).await? {
            let (mut unequal, mut equal) = (Vec::new(), Vec::new());
            for (item, (owner, other)) in items.into_iter().zip(owner.iter().zip(&other)) {
                let which = if owner.same(other) { &mut equal } else { &mut unequal };
                which.push(item);
            }
            found.compared += (equal.len() + unequal.len()) as u64;
            self.unsettled.forget(table.id, &equal);
            self.differences.equal(table.id, &equal);
            // Those that differ stay among the unsettled: they are compared at every fence until they are found equal.
            let settled = self.settle(table, unequal, false, &mut RangeCounts::default()).await?;
            found.hot += settled.hot.len() as u64;
            let divergences: Vec<Divergence> = settled.divergent.into_iter().map(|(_, d)| d).collect();
            self.store_found(&divergences).await?;
            found.divergences.extend(divergences);
        }
        Ok(found)
    }

    /// Stores what differs at rest. That the store is away for a moment ends no hand-over that could be undone as well.
    async fn store_found(&self, divergences: &[Divergence]) -> Outcome<()> {
        let mut tries = 1;
        loop {
            match self.diverged(divergences).await {
                Err(fault) if fault.recovery == Recovery::Retry && tries < STORE_TRIES => tries += 1,
                stored => return stored,
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::key::KeyText;

    fn items(keys: std::ops::Range<i32>) -> Vec<Item> {
        keys.map(|key| Item::Key(KeyText::from_texts([key.to_string()]))).collect()
    }

    #[test]
    fn what_is_hot_is_remembered_until_it_is_settled_and_no_more_than_there_is_room_for() {
        let unsettled = Unsettled::default();
        unsettled.settled(TableId(1), &items(0..10), &items(3..5));
        assert_eq!(unsettled.len(), 2);
        unsettled.settled(TableId(2), &items(0..10), &[]);
        assert_eq!(unsettled.len(), 2, "another table's");
        unsettled.settled(TableId(1), &items(3..4), &[]);
        assert_eq!(unsettled.len(), 1);
        let forgotten = unsettled.settled(TableId(1), &items(0..5000), &items(0..5000));
        assert_eq!((unsettled.len(), forgotten), (UNSETTLED_MAX, 3000));
        assert_eq!(unsettled.settled(TableId(1), &items(0..9), &items(0..9)), 0, "they are remembered");
        unsettled.settled(TableId(1), &items(0..5000), &[]);
        assert!(unsettled.is_empty());
    }
}
