//! Writing batches: one target transaction each, set-wise, else row by row; the checkpoint moves with the rows.

use super::build::{Batch, Ready};
use super::spool::Changes;
use super::steps::{Manner, Step, steps, warm};
use crate::fault::Fault;
use crate::killpoint;
use crate::ports::{Acknowledger, Applier, ApplyError, Durability, Mismatch, Outcome, Target};
use crate::progress::{Applied, Progress, now_us};
use crate::throttle::Throttle;
use crate::verify::live::LiveQueue;
use crate::verify::passage::Unseen;
use segue_model::position::Position;
use segue_model::table::{Table, TableId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Nobody hears of a batch for at most about this long and a batch after its commit: a crash of the target costs that much
/// work again, and the source keeps that much more log.
const UNREPORTED_MAX: Duration = Duration::from_secs(1);
/// A batch whose newest transaction is older than this is part of a backlog: that it is reported later does not count.
const BEHIND_MIN_US: u64 = 1_000_000;

type Encoded<T> = <<T as Target>::Applier as Applier>::Encoded;

/// Writes batches and acknowledges them.
pub struct Writer<T: Target> {
    /// The session.
    pub applier: T::Applier,
    /// Where the rows of a large transaction are brought near.
    pub target: Arc<T>,
    /// All tables, those of every step among them.
    pub tables: Arc<BTreeMap<TableId, Arc<Table>>>,
    /// Counters.
    pub progress: Arc<Progress>,
    /// Tells the source.
    pub acknowledger: Acknowledger,
    /// The stored checkpoint.
    pub position: Position,
    /// Pause.
    pub throttle: Arc<Throttle>,
    /// Learns of transactions before they are committed here.
    pub unseen: Arc<Unseen>,
    /// Learns of rows after they are committed here.
    pub live: Arc<LiveQueue>,
}

/// Batches on their way to the writer and behind it.
struct Queue<E> {
    batches: mpsc::Receiver<Ready<E>>,
    /// The next one, if it was looked for before its turn.
    at_hand: Option<Ready<E>>,
    /// Committed, but perhaps not durable: nobody has heard of them.
    unreported: Unreported,
}

/// What is to be said of batches once they are durable.
#[derive(Default)]
struct Unreported {
    /// When the first of them was committed.
    since: Option<Instant>,
    signal: u64,
    changes: u64,
    committed_at_us: Vec<u64>,
}

impl<E> Queue<E> {
    async fn next(&mut self) -> Option<Ready<E>> {
        match self.at_hand.take() {
            Some(ready) => Some(ready),
            None => self.batches.recv().await,
        }
    }

    /// Whether the commit of `batch` is waited for: not in a backlog, if another will follow at once and nobody waits for a
    /// signal.
    fn durability(&mut self, batch: &Batch, is_paused: bool) -> Durability {
        let behind_us = batch.committed_at_us.last().map_or(0, |at| now_us().saturating_sub(*at));
        let due = self.unreported.since.is_some_and(|since| since.elapsed() >= UNREPORTED_MAX);
        let awaited = batch.signal.max(self.unreported.signal) > 0;
        if behind_us < BEHIND_MIN_US || due || awaited || is_paused {
            return Durability::Now;
        }
        self.at_hand = self.at_hand.take().or_else(|| self.batches.try_recv().ok());
        match &self.at_hand {
            // One that is larger than memory can take long.
            Some(next) if next.batch.spilled.is_none() => Durability::Later,
            Some(_) | None => Durability::Now,
        }
    }
}

impl<T: Target> Writer<T> {
    /// Writes every batch that comes, until the channel closes.
    ///
    /// Under a backlog a commit is not waited for: the commit of the next batch, or of one soon after, makes both durable.
    /// The source, and everybody else, hears of a batch only then.
    pub async fn run(mut self, batches: mpsc::Receiver<Ready<Encoded<T>>>) -> Outcome<()> {
        let mut queue = Queue { batches, at_hand: None, unreported: Unreported::default() };
        while let Some(mut ready) = queue.next().await {
            if ready.batch.checkpoint.position <= self.position {
                continue;
            }
            self.throttle.running(&self.progress).await;
            self.unseen.applying(ready.batch.xids.iter().copied());
            let began = Instant::now();
            let throttle = self.throttle.clone();
            let (changes, durability) =
                throttle.unless_contained(self.write(&mut ready, &mut queue)).await.flatten()?;
            let batch = ready.batch;
            self.position = batch.checkpoint.position;
            let (transactions, took_ms) = (batch.committed_at_us.len(), began.elapsed().as_millis());
            tracing::debug!("wrote {changes} changes of {transactions} transactions in {took_ms} ms");
            killpoint::pass(if transactions == 0 { "idle.committed" } else { "batch.committed" });
            let Unreported { since, signal, changes: earlier, committed_at_us } = &mut queue.unreported;
            since.get_or_insert_with(Instant::now);
            *signal = batch.signal.max(*signal);
            *earlier += changes;
            committed_at_us.extend(&batch.committed_at_us);
            if durability == Durability::Now {
                self.report(std::mem::take(&mut queue.unreported));
            }
            // Also to take apart what a large batch was made of takes its time; the next one need not wait for it.
            let (live, tables) = (self.live.clone(), self.tables.clone());
            let worked = began.elapsed();
            tokio::spawn(async move {
                let batch = batch;
                live.applied(&tables, &batch.changes);
            });
            self.throttle.rest_of_stream(worked).await;
        }
        Ok(())
    }

    /// Everything that was committed is durable: the source hears of it, and everybody here.
    fn report(&self, durable: Unreported) {
        self.acknowledger.acknowledge(self.position);
        let applied = Applied { position: self.position, signal: durable.signal };
        self.progress.applied(applied, durable.changes, &durable.committed_at_us);
        killpoint::pass("batch.acknowledged");
    }

    /// Writes one batch; returns how many changes it held, and whether it is durable.
    async fn write(
        &mut self,
        ready: &mut Ready<Encoded<T>>,
        queue: &mut Queue<Encoded<T>>,
    ) -> Outcome<(u64, Durability)> {
        let first = self.attempt(ready, queue, Manner::SetWise).await;
        let second = match first {
            Err(ApplyError::Mismatch(why)) => {
                tracing::debug!("replaying a batch row by row: {}: {}", why.table, why.what);
                self.progress.replayed();
                self.applier.rollback().await?;
                self.attempt(ready, queue, Manner::RowByRow).await
            }
            other => other,
        };
        second.map_err(|e| match e {
            ApplyError::Fault(fault) => fault.during("applying the stream"),
            ApplyError::Mismatch(mismatch) => row_fault(mismatch),
        })
    }

    async fn attempt(
        &mut self,
        ready: &mut Ready<Encoded<T>>,
        queue: &mut Queue<Encoded<T>>,
        manner: Manner,
    ) -> Result<(u64, Durability), ApplyError> {
        self.applier.begin().await?;
        killpoint::pass("batch.begun");
        let Ready { batch, steps: set_wise } = ready;
        let changes = match &batch.spilled {
            None => {
                match manner {
                    Manner::SetWise => self.apply(set_wise).await?,
                    Manner::RowByRow => {
                        self.apply(&steps::<T::Applier>(&self.tables, &batch.changes, manner)?).await?;
                    }
                }
                batch.changes.len() as u64
            }
            Some(spilled) => {
                self.spilled(spilled, manner).await?;
                spilled.count()
            }
        };
        let durability = queue.durability(batch, self.throttle.limits().paused.is_some());
        self.applier.commit(self.position, &batch.checkpoint, durability).await?;
        Ok((changes, durability))
    }

    /// Writes piece after piece. While the server works at one the next is read and prepared.
    async fn spilled(&mut self, spilled: &Arc<Changes>, manner: Manner) -> Result<(), ApplyError> {
        let mut steps = prepared(self.prepare(spilled, 0, manner)).await?;
        for next in 1..spilled.pieces() {
            let ahead = self.prepare(spilled, next, manner);
            self.apply(&steps).await?;
            steps = prepared(ahead).await?;
        }
        self.apply(&steps).await
    }

    /// Reads a piece of a transaction and makes its steps, beside everything else.
    fn prepare(&self, spilled: &Arc<Changes>, piece: usize, manner: Manner) -> Preparing<Encoded<T>> {
        let (spilled, tables, target) = (spilled.clone(), self.tables.clone(), self.target.clone());
        tokio::task::spawn_blocking(move || {
            let steps = steps::<T::Applier>(&tables, &spilled.piece(piece)?, manner)?;
            warm(&*target, &tables, &steps);
            Ok(steps)
        })
    }

    async fn apply(&mut self, steps: &[Step<Encoded<T>>]) -> Result<(), ApplyError> {
        for step in steps {
            match step {
                Step::Net(table, net) => self.applier.net(&self.tables[table], net).await?,
                Step::InOrder(table, changes) => {
                    self.applier.in_order(&self.tables[table], changes).await?;
                }
            }
        }
        Ok(())
    }
}

/// A piece of a transaction that is larger than memory, on its way to be written.
type Preparing<E> = JoinHandle<Outcome<Vec<Step<E>>>>;

async fn prepared<E>(piece: Preparing<E>) -> Outcome<Vec<Step<E>>> {
    let ended =
        |e| Fault::bug("SEGUE-TASK", format!("preparing a large transaction ended unexpectedly: {e}"));
    piece.await.map_err(ended)?
}

fn row_fault(mismatch: Mismatch) -> Fault {
    let Mismatch { table, key, what } = mismatch;
    let row = key.map_or_else(|| "a row".to_owned(), |key| format!("the row {key}"));
    Fault::operator(
        "SEGUE-ROW",
        format!("{row} of {table} cannot be applied: {what}"),
        "the stream stands here and nothing was skipped; something other than Segue has changed the target, \
         or a constraint of the target forbids the row. Mend the row or the constraint, then run `segue resume`",
    )
}
