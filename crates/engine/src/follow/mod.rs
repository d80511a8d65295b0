//! Follow: the stream, applied. Collect → route and batch → write, three tasks with bounded queues between.

pub mod arrive;
pub mod build;
pub mod repair;
pub mod spool;
pub mod steps;
pub mod write;

use crate::backfill::Shared;
use crate::fault::Fault;
use crate::moving::Moving;
use crate::ports::{ChangeStream, Outcome, Source, Target};
use crate::verify::live::LiveQueue;
use crate::verify::passage::{StreamPassage, Unseen};
use arrive::{Budget, collect};
use build::{BatchLimits, Builder};
use repair::RepairRequest;
use segue_model::position::Position;
use segue_model::table::{Table, TableId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use write::Writer;

/// Arrived transactions that may queue before the builder (their bytes are bounded by the budget).
const ARRIVALS_MAX: usize = 8192;

/// Bounds of the stream's pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory for transactions that have arrived.
    pub memory_bytes_max: usize,
    /// A batch.
    pub batch: BatchLimits,
}

/// What a stream reports to verification, and hears from it.
pub struct Verifying {
    /// Learns of transactions before they are committed on the target.
    pub unseen: Arc<Unseen>,
    /// Learns of rows after they are committed there.
    pub live: Arc<LiveQueue>,
    /// Rows that are to be copied anew.
    pub repairs: mpsc::Receiver<RepairRequest>,
    /// Held while parts are on their way.
    pub moving: Arc<Moving>,
}

/// Follows the source from the stored checkpoint `from` on. Returns only with a fault.
pub async fn run<S: Source, T: Target>(
    shared: Arc<Shared<S, T>>,
    tables: BTreeMap<TableId, Arc<Table>>,
    from: Position,
    limits: Limits,
    verifying: Verifying,
) -> Outcome<()> {
    let (stream, applier) = tokio::try_join!(shared.source.stream(from), shared.target.applier())?;
    let acknowledger = stream.acknowledger();
    let (arrivals, arrived) = mpsc::channel(ARRIVALS_MAX);
    let (out, batches) = mpsc::channel(1);
    let spill_bytes = limits.memory_bytes_max / 4;
    let writer = Writer {
        applier,
        target: shared.target.clone(),
        tables: Arc::new(tables.clone()),
        progress: shared.progress.clone(),
        acknowledger,
        position: from,
        throttle: shared.throttle.clone(),
        unseen: verifying.unseen.clone(),
        live: verifying.live,
    };
    let Verifying { unseen, repairs, moving, .. } = verifying;
    let applied = shared.progress.watch_applied();
    let passage =
        StreamPassage::new(shared.source.clone(), applied, unseen, moving, shared.admissions.clone());
    let progress = shared.progress.clone();
    let builder = Builder {
        shared,
        tables,
        limits: limits.batch,
        out,
        sessions: None,
        spill_bytes,
        handed_on: from,
        last_idle: Instant::now(),
        last_shown: Instant::now(),
        repairs,
        passage,
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(collect(stream, arrivals, progress, Budget::new(limits.memory_bytes_max), spill_bytes));
    tasks.spawn(builder.run(arrived));
    tasks.spawn(writer.run(batches));
    first_fault(tasks).await
}

/// The fault that ended the pipeline: what closed the channels, not the complaint that they were closed.
async fn first_fault(mut tasks: tokio::task::JoinSet<Outcome<()>>) -> Outcome<()> {
    let mut closed = None;
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(fault)) if fault.code == "SEGUE-PIPELINE" => closed = Some(fault),
            Ok(Err(fault)) => return Err(fault),
            Err(e) => return Err(Fault::bug("SEGUE-TASK", format!("the stream ended unexpectedly: {e}"))),
        }
    }
    Err(closed.unwrap_or_else(|| Fault::retry("SEGUE-PIPELINE", "the stream has ended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ended(ends: Vec<Outcome<()>>) -> Fault {
        let mut tasks = tokio::task::JoinSet::new();
        for end in ends {
            tasks.spawn(async { end });
            tokio::task::yield_now().await;
        }
        first_fault(tasks).await.unwrap_err()
    }

    #[tokio::test]
    async fn what_ended_the_pipeline_is_told_and_not_that_it_ended() {
        let cause = || Err(Fault::operator("SEGUE-ROW", "a row", "mend it"));
        assert_eq!(ended(vec![Err(build::gone()), cause(), Ok(())]).await.code, "SEGUE-ROW");
        assert_eq!(ended(vec![cause(), Err(build::gone())]).await.code, "SEGUE-ROW");
        // It is tried again, where nobody says why.
        let unknown = ended(vec![Ok(()), Err(build::gone())]).await;
        assert_eq!(unknown, build::gone());
        assert_eq!(ended(vec![Ok(())]).await.code, "SEGUE-PIPELINE");
    }
}
