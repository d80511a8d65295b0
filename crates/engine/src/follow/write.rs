//! Writing batches: one target transaction each, set-wise, else row by row; the checkpoint moves with the rows.

use super::build::Batch;
use super::spool::Changes;
use super::steps::{Manner, Step, steps};
use crate::fault::Fault;
use crate::killpoint;
use crate::ports::{Acknowledger, Applier, ApplyError, Mismatch, Outcome};
use crate::progress::{Applied, Progress};
use crate::throttle::Throttle;
use crate::verify::live::LiveQueue;
use crate::verify::passage::Unseen;
use segue_model::position::Position;
use segue_model::table::{Table, TableId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Writes batches and acknowledges them.
pub struct Writer<A> {
    /// The session.
    pub applier: A,
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
    /// Learns of rows after they are durable here.
    pub live: Arc<LiveQueue>,
}

impl<A: Applier> Writer<A> {
    /// Writes every batch that comes, until the channel closes.
    pub async fn run(mut self, mut batches: mpsc::Receiver<Batch>) -> Outcome<()> {
        while let Some(mut batch) = batches.recv().await {
            if batch.checkpoint.position <= self.position {
                continue;
            }
            self.throttle.running(&self.progress).await;
            self.unseen.applying(batch.xids.iter().copied());
            let changes = self.write(&mut batch).await?;
            self.position = batch.checkpoint.position;
            let point = if batch.committed_at_us.is_empty() { "idle.committed" } else { "batch.committed" };
            killpoint::pass(point);
            self.acknowledger.acknowledge(self.position);
            let applied = Applied { position: self.position, signal: batch.signal };
            let transactions = batch.committed_at_us.len() as u64;
            self.progress.applied(applied, transactions, changes, &batch.committed_at_us);
            killpoint::pass("batch.acknowledged");
            // Also to take apart what a large batch was made of takes its time; the next one need not wait for it.
            let (live, tables) = (self.live.clone(), self.tables.clone());
            tokio::spawn(async move {
                let batch = batch;
                live.applied(&tables, &batch.changes);
            });
        }
        Ok(())
    }

    /// Writes one batch durably; returns how many changes it held.
    async fn write(&mut self, batch: &mut Batch) -> Outcome<u64> {
        let first = self.attempt(batch, Manner::SetWise).await;
        let second = match first {
            Err(ApplyError::Mismatch(why)) => {
                tracing::debug!("replaying a batch row by row: {}: {}", why.table, why.what);
                self.progress.replayed();
                self.applier.rollback().await?;
                self.attempt(batch, Manner::RowByRow).await
            }
            other => other,
        };
        second.map_err(|e| match e {
            ApplyError::Fault(fault) => fault.during("applying the stream"),
            ApplyError::Mismatch(mismatch) => row_fault(mismatch),
        })
    }

    async fn attempt(&mut self, batch: &mut Batch, manner: Manner) -> Result<u64, ApplyError> {
        self.applier.begin().await?;
        killpoint::pass("batch.begun");
        let changes = match &mut batch.spilled {
            None => {
                match manner {
                    Manner::SetWise => self.apply(&batch.steps).await?,
                    Manner::RowByRow => self.apply(&steps(&self.tables, &batch.changes, manner)?).await?,
                }
                batch.changes.len() as u64
            }
            Some(spilled) => self.spilled(spilled, manner).await?,
        };
        self.applier.commit(self.position, &batch.checkpoint).await?;
        Ok(changes)
    }

    async fn spilled(&mut self, changes: &mut Changes, manner: Manner) -> Result<u64, ApplyError> {
        for index in 0..changes.pieces() {
            let piece = changes.piece(index)?;
            self.apply(&steps(&self.tables, &piece, manner)?).await?;
        }
        Ok(changes.count())
    }

    async fn apply(&mut self, steps: &[Step]) -> Result<(), ApplyError> {
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
