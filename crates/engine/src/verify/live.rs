//! Live verification: rows that the stream has just applied are compared again, all the time.
//!
//! The follower hands over the keys it has applied; a queue with a bound keeps a fair sample of them when there are too
//! many, and a task compares as many a second as it is allowed to. The stream never waits for any of it.

use super::Parts;
use super::ports::{Comparable, Item, Passage, RangeCounts, Repairer, Store};
use crate::fault::Recovery;
use crate::ports::Outcome;
use rand::Rng;
use segue_model::change::{Action, Change};
use segue_model::key::KeyText;
use segue_model::table::{Key, Table, TableId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Keys that wait to be compared; at the default rate, about a minute's worth.
const QUEUE_KEYS_MAX: usize = 50_000;
/// A longer key is not queued: the queue's memory has a bound too.
const QUEUED_KEY_BYTES_MAX: usize = 512;
/// A batch is compared this often: one signal serves all of its keys.
const BATCH_EVERY: Duration = Duration::from_millis(200);
/// After a passing fault the next batch waits this long.
const FAULT_PAUSE: Duration = Duration::from_secs(2);

type Touched = (TableId, KeyText);

/// Keys that the stream has applied and nobody has compared since.
#[derive(Debug)]
pub struct LiveQueue {
    state: Mutex<Queue>,
    filled: Notify,
    dropped: AtomicU64,
    keys_max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    keys: Vec<Touched>,
    queued: HashSet<Touched>,
    /// Nothing is taken in: the side whose rows are applied is not the one whose rows are right.
    is_shut: bool,
    /// Keys offered since the queue was last below its bound: each of them has the same chance to be in it.
    offered: u64,
}

impl Default for LiveQueue {
    fn default() -> Self {
        LiveQueue::with_room(QUEUE_KEYS_MAX)
    }
}

impl LiveQueue {
    /// A queue for at most `keys_max` keys.
    pub fn with_room(keys_max: usize) -> Self {
        LiveQueue {
            state: Mutex::default(),
            filled: Notify::new(),
            dropped: AtomicU64::new(0),
            keys_max: keys_max.max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue that lost a key in a panic is still a queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These changes are committed on the other side. Called after that; never blocks for long.
    pub fn applied(&self, tables: &BTreeMap<TableId, Arc<Table>>, changes: &[Change]) {
        let mut queue = self.lock();
        if queue.is_shut {
            return;
        }
        for change in changes {
            let Some(table) = tables.get(&change.table) else { continue };
            let Some(key) = table.key() else { continue };
            for key in touched(key, &change.action).into_iter().flatten() {
                self.offer(&mut queue, (change.table, key));
            }
        }
        let some = !queue.keys.is_empty();
        drop(queue);
        if some {
            self.filled.notify_one();
        }
    }

    /// Takes nothing in until [`LiveQueue::open`], and forgets what waits: the side that the rows came from does not own the
    /// writes any more, so a difference to the other one is none.
    pub fn shut(&self) {
        *self.lock() = Queue { is_shut: true, ..Queue::default() };
    }

    /// Takes rows in again.
    pub fn open(&self) {
        self.lock().is_shut = false;
    }

    /// Reservoir sampling (Vitter's algorithm R) once the queue is full.
    fn offer(&self, queue: &mut Queue, touched: Touched) {
        let bytes: usize = touched.1.0.iter().map(bytes::Bytes::len).sum();
        if bytes > QUEUED_KEY_BYTES_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if queue.queued.contains(&touched) {
            return;
        }
        queue.offered += 1;
        if queue.keys.len() < self.keys_max {
            queue.queued.insert(touched.clone());
            queue.keys.push(touched);
            return;
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        let place = rand::rng().random_range(0..queue.offered);
        if let Some(slot) = usize::try_from(place).ok().and_then(|place| queue.keys.get_mut(place)) {
            let old = std::mem::replace(slot, touched.clone());
            queue.queued.remove(&old);
            queue.queued.insert(touched);
        }
    }

    /// Takes up to `max` keys, by table.
    pub(super) fn take(&self, max: usize) -> BTreeMap<TableId, Vec<KeyText>> {
        let mut queue = self.lock();
        let from = queue.keys.len().saturating_sub(max);
        let taken = queue.keys.split_off(from);
        for touched in &taken {
            queue.queued.remove(touched);
        }
        queue.offered = queue.keys.len() as u64;
        let mut by_table: BTreeMap<TableId, Vec<KeyText>> = BTreeMap::new();
        for (table, key) in taken {
            by_table.entry(table).or_default().push(key);
        }
        by_table
    }

    /// Keys that were not queued, for lack of room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Keys that wait now.
    pub fn len(&self) -> usize {
        self.lock().keys.len()
    }

    /// What waits.
    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<(TableId, KeyText)> {
        self.lock().keys.clone()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The keys of the rows that an action touched.
fn touched(key: &Key, action: &Action) -> [Option<KeyText>; 2] {
    let of = |row| KeyText::of(key, row).ok();
    match action {
        Action::Insert { new } => [of(new), None],
        Action::Update { old, new } => [of(new), old.as_ref().and_then(of)],
        Action::Delete { old } => [of(old), None],
        Action::Truncate { .. } => [None, None],
    }
}

/// What live verification has come to since this process began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveCounts {
    /// Keys compared.
    pub compared: u64,
    /// Found equal.
    pub equal: u64,
    /// Changed too often to tell.
    pub hot: u64,
    /// Confirmed differences.
    pub divergent: u64,
    /// Keys that were not compared, for lack of room.
    pub dropped: u64,
    /// Keys that wait.
    pub queued: u64,
    /// Differences, of those and of those found at rest, that have not been found equal since; some thousands are told apart.
    pub open: u64,
}

/// Compares what the queue holds.
pub struct Live<O, X, P, S, R> {
    parts: Arc<Parts<O, X, P, S, R>>,
    queue: Arc<LiveQueue>,
    tables: BTreeMap<TableId, Arc<Table>>,
    keys_per_s_max: u64,
    counts: Mutex<LiveCounts>,
}

impl<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer> Live<O, X, P, S, R> {
    /// Compares at most `keys_per_s_max` keys a second.
    pub fn new(
        parts: Arc<Parts<O, X, P, S, R>>,
        queue: Arc<LiveQueue>,
        tables: BTreeMap<TableId, Arc<Table>>,
        keys_per_s_max: u64,
    ) -> Self {
        Live { parts, queue, tables, keys_per_s_max, counts: Mutex::default() }
    }

    /// The counts now.
    pub fn counts(&self) -> LiveCounts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        counts.dropped = self.queue.dropped();
        counts.queued = self.queue.len() as u64;
        counts.open = self.parts.differences.len() as u64;
        counts
    }

    /// Compares until a fault that does not pass by itself. With a rate of 0 it compares nothing.
    pub async fn run(&self) -> Outcome<()> {
        let batch_keys = self.keys_per_s_max * BATCH_EVERY.as_millis() as u64 / 1000;
        let batch_keys = usize::try_from(batch_keys.max(1)).unwrap_or(usize::MAX);
        if self.keys_per_s_max == 0 {
            return std::future::pending().await;
        }
        loop {
            while self.queue.is_empty() && !self.parts.differences.has_to_close() {
                self.queue.filled.notified().await;
            }
            self.parts.throttle.admit(0, &self.parts.progress).await;
            let pace = tokio::time::sleep(BATCH_EVERY.max(Duration::from_secs(1) / self.rate()));
            let began = Instant::now();
            match self.compare(batch_keys).await {
                Ok(()) => {
                    let worked = began.elapsed();
                    pace.await;
                    self.parts.throttle.rest(worked).await;
                }
                Err(fault) => match fault.recovery {
                    Recovery::Retry => {
                        tracing::debug!("live verification waits: {fault}");
                        tokio::time::sleep(FAULT_PAUSE).await;
                    }
                    Recovery::Operator | Recovery::Ambiguous | Recovery::Bug => {
                        return Err(fault.during("comparing rows that were just applied"));
                    }
                },
            }
        }
    }

    fn rate(&self) -> u32 {
        u32::try_from(self.keys_per_s_max).unwrap_or(u32::MAX).max(1)
    }

    /// Compares one batch of keys.
    async fn compare(&self, keys_max: usize) -> Outcome<()> {
        for (id, keys) in self.queue.take(keys_max) {
            let Some(table) = self.tables.get(&id) else { continue };
            let all: Vec<Item> = keys.into_iter().map(Item::Key).collect();
            // Nobody else has them any more: whatever ends this, they stay to be compared at rest.
            self.parts.unsettled.keep(id, &all);
            // The other side first: it has applied these keys, so the owner most likely still shows the same.
            let other = self.parts.other.read(table, &all).await?;
            let owner = self.parts.owner.read(table, &all).await?;
            let pairs = all.iter().zip(owner.iter().zip(&other));
            let (suspects, equal): (Vec<_>, Vec<_>) =
                pairs.partition(|(_, (owner, other))| !owner.same(other));
            let items = |some: Vec<(&Item, _)>| some.into_iter().map(|(item, _)| item.clone()).collect();
            let (suspects, equal): (Vec<Item>, Vec<Item>) = (items(suspects), items(equal));
            self.parts.unsettled.forget(id, &equal);
            let unequal = suspects.len();
            let mut cost = RangeCounts::default();
            let settled = self.parts.settle(table, suspects, false, &mut cost).await?;
            let (differing, divergences): (Vec<Item>, Vec<_>) = settled.divergent.into_iter().unzip();
            self.count(all.len(), unequal, settled.equal, settled.hot.len(), divergences.len());
            self.remember(id, &all, &settled.hot, &differing);
            if !divergences.is_empty() {
                tracing::warn!(
                    "{}: {} row(s) differ after they were applied",
                    table.source,
                    divergences.len()
                );
                self.parts.diverged(&divergences).await?;
                // No gate knows of what is not stored; of these they do now.
                self.parts.unsettled.forget(id, &differing);
            }
        }
        self.parts.close_equal().await
    }

    fn count(&self, all: usize, unequal: usize, settled_equal: u64, hot: usize, divergent: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.compared += all as u64;
        counts.equal += (all - unequal) as u64 + settled_equal;
        counts.hot += hot as u64;
        counts.divergent += divergent as u64;
    }

    /// What was found equal is no longer known to differ. What was too hot to tell still is, if it was.
    pub(super) fn remember(&self, id: TableId, compared: &[Item], hot: &[Item], differing: &[Item]) {
        let is_equal = |item: &&Item| !hot.contains(item) && !differing.contains(item);
        self.parts.differences.equal(id, compared.iter().filter(is_equal));
    }
}
