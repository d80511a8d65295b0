//! Differences that were found outside of a verification, by live comparison or at rest, until their rows are found equal.
//!
//! The store has all of them, and whoever asks whether a difference is open asks the store. What is kept here serves to close
//! them there; what is not, for lack of room or because the process has ended, stays open until a verification closes it.

use super::Parts;
use super::ports::{Comparable, DivergenceId, Item, Passage, Repairer, Store};
use crate::ports::Outcome;
use segue_model::divergence::Divergence;
use segue_model::table::TableId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Differences that are told apart.
const OPEN_MAX: usize = 10_000;

/// The differences of one pair of sides, stored by this process.
#[derive(Debug, Default)]
pub struct Differences(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By the row: the last number that its difference is stored under.
    open: BTreeMap<(TableId, Item), DivergenceId>,
    /// Found equal since, which the store has not been told yet.
    to_close: BTreeSet<DivergenceId>,
}

impl Differences {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Forgetting one after a panic would only leave it open.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are stored, and open.
    pub(super) fn stored(&self, found: &[(Divergence, DivergenceId)]) {
        let mut state = self.lock();
        for (divergence, id) in found {
            let Some(key) = &divergence.key else { continue };
            let row = (divergence.table_id, Item::Key(key.clone()));
            if state.open.len() < OPEN_MAX || state.open.contains_key(&row) {
                state.open.insert(row, *id);
            }
        }
    }

    /// These rows were found equal.
    pub(super) fn equal<'a>(&self, table: TableId, items: impl IntoIterator<Item = &'a Item>) {
        let mut state = self.lock();
        if state.open.is_empty() {
            return;
        }
        for item in items {
            if let Some(id) = state.open.remove(&(table, item.clone())) {
                state.to_close.insert(id);
            }
        }
    }

    /// Whether the store has to be told of some.
    pub(super) fn has_to_close(&self) -> bool {
        !self.lock().to_close.is_empty()
    }

    /// How many have not been found equal since.
    pub fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<O: Comparable, X: Comparable, P: Passage, S: Store, R: Repairer> Parts<O, X, P, S, R> {
    /// Stores differences, and remembers them as open.
    pub(super) async fn diverged(&self, divergences: &[Divergence]) -> Outcome<()> {
        if divergences.is_empty() {
            return Ok(());
        }
        let ids = self.store.diverged(divergences).await?;
        let found: Vec<_> = divergences.iter().cloned().zip(ids).collect();
        self.differences.stored(&found);
        Ok(())
    }

    /// Tells the store which have been found equal. What it could not be told is told the next time.
    pub(super) async fn close_equal(&self) -> Outcome<()> {
        let ids: Vec<DivergenceId> = self.differences.lock().to_close.iter().copied().collect();
        if ids.is_empty() {
            return Ok(());
        }
        self.store.found_equal(&ids).await?;
        let mut state = self.differences.lock();
        ids.iter().for_each(|id| _ = state.to_close.remove(id));
        Ok(())
    }
}
