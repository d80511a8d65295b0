//! A store in memory.

use crate::fault::Fault;
use crate::ports::Outcome;
use crate::verify::ports::{Begun, DivergenceId, Store, VerificationId, VerifiedRange};
use crate::verify::report::{Report, Request};
use segue_model::divergence::Divergence;
use segue_model::table::TableId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A store that forgets nothing, and can be made to fail.
#[derive(Default)]
pub(in crate::verify::tests) struct Kept {
    pub(in crate::verify::tests) ranges: Mutex<BTreeMap<TableId, Vec<VerifiedRange>>>,
    pub(in crate::verify::tests) divergences: Mutex<Vec<Divergence>>,
    pub(in crate::verify::tests) live: Mutex<Vec<Divergence>>,
    /// Of those found outside of a verification, those whose rows were found equal since.
    pub(in crate::verify::tests) equal: Mutex<BTreeSet<DivergenceId>>,
    /// Ranges that can be stored before it fails.
    pub(in crate::verify::tests) room: Mutex<Option<usize>>,
    /// What is found outside of a verification cannot be stored.
    pub(in crate::verify::tests) is_away: AtomicBool,
}

impl Kept {
    fn is_there(&self) -> Outcome<()> {
        match self.is_away.load(Ordering::Relaxed) {
            true => Err(Fault::retry("SEGUE-TEST", "away")),
            false => Ok(()),
        }
    }
}

impl Store for Kept {
    async fn begin(&self, request: &Request, _: &[TableId]) -> Outcome<Begun> {
        let (ranges, divergences) = match request.resume {
            true => (self.ranges.lock().expect("ok").clone(), self.divergences.lock().expect("ok").clone()),
            false => Default::default(),
        };
        Ok(Begun { id: VerificationId(1), ranges, divergences })
    }

    async fn verified(
        &self,
        _: VerificationId,
        table: TableId,
        range: &VerifiedRange,
        divergences: &[Divergence],
    ) -> Outcome<()> {
        if let Some(room) = self.room.lock().expect("ok").as_mut() {
            *room = room.checked_sub(1).ok_or_else(|| Fault::retry("SEGUE-TEST", "killed"))?;
        }
        self.ranges.lock().expect("ok").entry(table).or_default().push(range.clone());
        self.divergences.lock().expect("ok").extend_from_slice(divergences);
        Ok(())
    }

    async fn diverged(&self, divergences: &[Divergence]) -> Outcome<Vec<DivergenceId>> {
        self.is_there()?;
        let mut live = self.live.lock().expect("ok");
        let first = live.len();
        live.extend_from_slice(divergences);
        Ok((first..live.len()).map(|no| DivergenceId(no as i64)).collect())
    }

    async fn found_equal(&self, ids: &[DivergenceId]) -> Outcome<()> {
        self.is_there()?;
        self.equal.lock().expect("ok").extend(ids);
        Ok(())
    }

    async fn end(&self, _: VerificationId, _: &Report) -> Outcome<()> {
        Ok(())
    }
}
