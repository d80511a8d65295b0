//! Knowing what both sides have seen of each other: signals one way, transaction numbers the other.

use super::ports::Passage;
use crate::admission::{Admission, Admissions};
use crate::fault::Fault;
use crate::moving::{Frozen, Moving};
use crate::ports::{Outcome, Source};
use crate::progress::Applied;
use futures_util::future::try_join_all;
use segue_model::name::QualifiedName;
use segue_model::seam::{Seam, Xid, Xid32};
use segue_model::table::Table;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Applied transactions that are remembered one by one until the owner is seen to show them. At 10,000 transactions a
/// second that is six seconds; a snapshot is looked at far more often while anything is compared.
const UNSEEN_MAX: usize = 65_536;
/// A stream that makes no progress at all for this long will not deliver a signal either.
const STALLED_AFTER: Duration = Duration::from_secs(300);
/// How long to wait for the owner to show what was applied before doing something else meanwhile.
const SHOWN_PATIENCE: Duration = Duration::from_secs(3);

/// Transactions that were applied on the other side and that the owner may not show yet: a commit reaches the log, and
/// so the other side, before it is visible to new snapshots.
#[derive(Debug)]
pub struct Unseen {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// To widen the stream's numbers by.
    near: Xid,
    /// Applied, and not seen in a snapshot yet.
    applied: BTreeSet<Xid>,
    /// Everything up to here must be seen to have ended: what was forgotten for lack of room.
    forgotten: Option<Xid>,
    /// Transactions that an earlier process applied are not known one by one. They are older than every signal of this
    /// process, so they count as forgotten up to the highest number applied once a signal has come through.
    inherited: bool,
}

/// What must be seen before the owner shows everything applied up to some moment.
#[derive(Debug)]
struct Pending {
    applied: BTreeSet<Xid>,
    ended: Option<Xid>,
}

impl Pending {
    fn is_shown_by(&mut self, seam: &Seam) -> bool {
        self.applied.retain(|x| !seam.contains(*x));
        self.ended = self.ended.filter(|x| *x >= seam.xmin());
        self.applied.is_empty() && self.ended.is_none()
    }
}

impl Unseen {
    /// For a stream that starts, or goes on, now. `near` is a recent transaction number of the owner.
    pub fn new(near: Xid) -> Self {
        let state = State { near, applied: BTreeSet::new(), forgotten: None, inherited: true };
        Unseen { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half-changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These transactions are about to be committed on the other side. To be called *before* that commit, because their
    /// rows can be read there as soon as it has happened.
    pub fn applying(&self, xids: impl IntoIterator<Item = Xid32>) {
        let mut state = self.lock();
        for xid in xids {
            let xid = xid.widen(state.near);
            state.near = state.near.max(xid);
            state.applied.insert(xid);
        }
        if state.applied.len() > UNSEEN_MAX {
            state.forgotten = state.forgotten.max(state.applied.last().copied());
            state.applied.clear();
        }
    }

    /// A snapshot of the owner shows these transactions.
    pub fn seen(&self, seam: &Seam) {
        let mut state = self.lock();
        state.near = state.near.max(seam.xmax());
        state.applied.retain(|x| !seam.contains(*x));
        state.forgotten = state.forgotten.filter(|x| *x >= seam.xmin());
    }

    /// Whether a snapshot should be looked at to make room.
    pub fn is_crowded(&self) -> bool {
        self.lock().applied.len() > UNSEEN_MAX / 2
    }

    /// What has been applied so far. A signal of this process must have come through before.
    fn pending(&self) -> Pending {
        let mut state = self.lock();
        if state.inherited {
            state.inherited = false;
            state.forgotten = state.forgotten.max(Some(state.near));
        }
        Pending { applied: state.applied.clone(), ended: state.forgotten }
    }
}

/// The passage along a running stream.
pub struct StreamPassage<S> {
    source: Arc<S>,
    applied: watch::Receiver<Applied>,
    unseen: Arc<Unseen>,
    moving: Arc<Moving>,
    admissions: Arc<Admissions>,
}

impl<S: Source> StreamPassage<S> {
    /// Along the stream from `source`, whose progress is watched by `applied`, whose transactions go to `unseen` before
    /// they are applied, and whose parts are on their way while `moving` is held. It proves nothing about rows while
    /// `admissions` does not let its side own the writes.
    pub fn new(
        source: Arc<S>,
        applied: watch::Receiver<Applied>,
        unseen: Arc<Unseen>,
        moving: Arc<Moving>,
        admissions: Arc<Admissions>,
    ) -> Self {
        StreamPassage { source, applied, unseen, moving, admissions }
    }

    /// The other side may be written to from the moment on at which this one is told that it does not own the writes: what
    /// was read since then says nothing, so every proof ends by asking this.
    fn of_the_owner(&self) -> Outcome<()> {
        let why = match self.admissions.get() {
            Admission::All | Admission::From(_) => return Ok(()),
            Admission::Nothing => {
                "the writes have left the side that rows are compared with: a hand-over is under way, or has just been"
            }
            Admission::Undecided => {
                "it is being decided which side owns the writes, at a start or in a hand-over"
            }
        };
        Err(Fault::retry("SEGUE-VERIFY-OWNER", why))
    }

    /// Has no part of a table moved as long as the answer lives; `None`: one is being moved, and has not arrived within
    /// `patience`.
    pub async fn freeze(&self, patience: Duration) -> Option<Frozen> {
        self.moving.freeze(patience).await
    }

    /// Gives the owner a number that it has not had, and waits for nothing: once it has come through, an owner that does not
    /// know it any more was restored. Returns it.
    pub async fn number(&self) -> Outcome<u64> {
        self.source.signal().await
    }

    /// The first of `tables` that is not made of the same parts on both sides. If there is none, and none was moved
    /// meanwhile, the other side has all rows of the owner's tables, once everything written has been applied.
    pub async fn in_pieces(&self, tables: &[Arc<Table>]) -> Outcome<Option<QualifiedName>> {
        let parted = tables.iter().filter(|table| self.source.has_parts(table));
        let asked = parted.map(|table| async move { Ok((table, self.source.parts(table).await?)) });
        let found = try_join_all(asked).await?;
        Ok(found.into_iter().find(|(_, parts)| parts.is_none()).map(|(table, _)| table.source.clone()))
    }

    /// Takes one look at the owner's snapshot, so that the memory of applied transactions stays small.
    pub async fn make_room(&self) -> Outcome<()> {
        if self.unseen.is_crowded() {
            self.unseen.seen(&self.source.seam().await?);
        }
        Ok(())
    }
}

impl<S: Source> Passage for StreamPassage<S> {
    async fn passed(&self) -> Outcome<()> {
        let id = self.source.signal().await?;
        let mut applied = self.applied.clone();
        while applied.borrow_and_update().signal < id {
            match tokio::time::timeout(STALLED_AFTER, applied.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(Fault::retry(
                        "SEGUE-VERIFY-STREAM",
                        "the stream ended while rows were compared",
                    ));
                }
                Err(_) => {
                    let what = format!(
                        "the stream has applied nothing for {} s; rows in flight cannot be told from differences",
                        STALLED_AFTER.as_secs()
                    );
                    return Err(Fault::retry("SEGUE-VERIFY-STALLED", what));
                }
            }
        }
        Ok(())
    }

    async fn shown(&self) -> Outcome<bool> {
        self.of_the_owner()?;
        let mut pending = self.unseen.pending();
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let seam = self.source.seam().await?;
            self.unseen.seen(&seam);
            if pending.is_shown_by(&seam) {
                return Ok(true);
            }
            if start.elapsed() > SHOWN_PATIENCE {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    async fn parts(&self, table: &Table) -> Outcome<Option<String>> {
        self.of_the_owner()?;
        if !self.source.has_parts(table) {
            return Ok(Some(String::new()));
        }
        let Some(_still) = self.moving.if_still().await else { return Ok(None) };
        self.source.parts(table).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seam(text: &str) -> Seam {
        text.parse().expect("a seam")
    }

    /// Past what an earlier process may have applied.
    fn running(near: u64) -> Unseen {
        let unseen = Unseen::new(Xid(near));
        assert!(!unseen.pending().is_shown_by(&seam(&format!("{near}:{near}:"))));
        unseen.seen(&seam(&format!("{0}:{0}:", near + 1)));
        unseen
    }

    #[test]
    fn an_applied_transaction_is_pending_until_a_snapshot_contains_it() {
        let unseen = running(99);
        unseen.applying([Xid32(100), Xid32(102)]);
        let mut pending = unseen.pending();
        assert!(!pending.is_shown_by(&seam("100:103:100")), "100 is in the log, and not visible");
        assert!(pending.is_shown_by(&seam("100:105:101")), "another one in progress is no matter");
        assert!(running(99).pending().is_shown_by(&seam("50:60:50")), "nothing applied, nothing pending");
    }

    #[test]
    fn what_an_earlier_process_applied_is_pending_until_everything_older_has_ended() {
        let unseen = Unseen::new(Xid(90));
        unseen.applying([Xid32(100)]);
        let mut pending = unseen.pending();
        assert!(!pending.is_shown_by(&seam("95:101:95")), "95 may be one of them");
        assert!(pending.is_shown_by(&seam("101:101:")));
    }

    #[test]
    fn more_than_can_be_remembered_is_pending_until_everything_older_has_ended() {
        let unseen = running(99);
        unseen.applying((0..=UNSEEN_MAX as u32).map(|n| Xid32(100 + n)));
        let last = 100 + UNSEEN_MAX as u64;
        let mut pending = unseen.pending();
        assert!(!pending.is_shown_by(&seam(&format!("{last}:{}:", last + 1))));
        assert!(pending.is_shown_by(&seam(&format!("{0}:{0}:", last + 1))));
        unseen.seen(&seam(&format!("{0}:{0}:", last + 1)));
        assert!(unseen.pending().is_shown_by(&seam("1:1:")), "seen once is seen for good");
    }
}
