//! Collecting the stream's events into whole transactions.

use super::spool::Changes;
use crate::fault::Fault;
use crate::ports::{ChangeStream, Outcome, StreamEvent};
use crate::progress::Progress;
use segue_model::change::TransactionHead;
use segue_model::position::Position;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// A committed transaction as it arrived.
#[derive(Debug)]
pub struct Transaction {
    /// Number, and time and place of commit.
    pub head: TransactionHead,
    /// Position after its commit.
    pub end: Position,
    /// What it changed.
    pub changes: Changes,
    /// The highest signal in it; 0 for none.
    pub signal: u64,
}

/// What the collector hands on.
#[derive(Debug)]
pub enum Arrived {
    /// A transaction, and its share of the memory that arrived transactions may hold.
    Transaction(Transaction, OwnedSemaphorePermit),
    /// Everything before this position has been handed on.
    Idle(Position),
}

/// Memory for transactions that have arrived and are not yet applied, in units of 1 KiB.
pub struct Budget {
    kib: Arc<Semaphore>,
    kib_max: u32,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Budget {
        let kib_max = u32::try_from(bytes / 1024).unwrap_or(u32::MAX >> 4).max(1);
        Budget { kib: Arc::new(Semaphore::new(kib_max as usize)), kib_max }
    }

    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(self.kib_max);
        self.kib.clone().acquire_many_owned(kib).await.ok()
    }
}

/// Reads the stream until it fails or nobody listens. A transaction above `spill_bytes` goes to disk.
pub async fn collect(
    mut stream: impl ChangeStream,
    out: mpsc::Sender<Arrived>,
    progress: Arc<Progress>,
    budget: Budget,
    spill_bytes: usize,
) -> Outcome<()> {
    let mut open: Option<(TransactionHead, Changes, u64)> = None;
    loop {
        let arrived = match (stream.next().await?, &mut open) {
            (StreamEvent::Begin(head), None) => {
                open = Some((head, Changes::new(spill_bytes), 0));
                continue;
            }
            (StreamEvent::Change(change), Some((_, changes, _))) => {
                changes.push(change)?;
                continue;
            }
            (StreamEvent::Signal(id), Some((_, _, signal))) => {
                *signal = id.max(*signal);
                continue;
            }
            (StreamEvent::Commit { end }, Some(_)) => {
                let Some((head, changes, signal)) = open.take() else { continue };
                let bytes = changes.memory_bytes();
                progress.received(end, bytes as u64, head.committed_at_us.unsigned_abs());
                // As it came, and once more as it will be sent.
                let Some(permit) = budget.take(2 * bytes).await else { return Ok(()) };
                Arrived::Transaction(Transaction { head, end, changes, signal }, permit)
            }
            (StreamEvent::Idle { position }, None) => Arrived::Idle(position),
            (event, open) => {
                let inside = if open.is_some() { "inside" } else { "outside" };
                return Err(Fault::bug("SEGUE-STREAM-ORDER", format!("{event:?} {inside} a transaction")));
            }
        };
        if out.send(arrived).await.is_err() {
            return Ok(());
        }
    }
}
