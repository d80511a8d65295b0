//! From arrived transactions to batches: which of them count, routing while the backfill runs, and how much goes into one
//! batch.
//!
//! Holds no lock on the target: where the stream must wait for a region or a decision, the open batch is handed on first.

use super::arrive::{Arrived, Transaction};
use super::repair::RepairRequest;
use super::spool::Changes;
use super::steps::{Manner, Step, steps, warm};
use crate::admission::{Admissions, Judgement};
use crate::backfill::{self, Work, copy_region};
use crate::fault::Fault;
use crate::killpoint;
use crate::ports::{Applier, Checkpoint, Onto, Outcome, Source, Target};
use crate::progress::{Applied, Progress};
use crate::regions::{Regions, Told};
use crate::verify::passage::StreamPassage;
use segue_model::change::Change;
use segue_model::key::KeyText;
use segue_model::position::Position;
use segue_model::region::{Extent, Place};
use segue_model::route::{Routed, ToldPlaces, keys};
use segue_model::seam::Xid32;
use segue_model::table::{Table, TableId, UnitId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// An idle stream moves its checkpoint at most this often.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// Changes whose keys are looked up together with that of the first.
const LOCATE_AHEAD_MAX: usize = 2_000;

/// Skipped transactions that a checkpoint may hold before a snapshot is taken to shrink them …
const SKIPPED_MAX: usize = 2_000;
/// … at most this often.
const SHOWN_PAUSE: Duration = Duration::from_millis(500);

/// Whole transactions that become one target transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// What to write, in commit order.
    pub changes: Vec<Change>,
    /// A transaction larger than memory; then it is alone in the batch and `changes` is empty.
    pub spilled: Option<Arc<Changes>>,
    /// The checkpoint after it.
    pub checkpoint: Checkpoint,
    /// The highest signal in it.
    pub signal: u64,
    /// When its transactions were committed on the source, in µs since the Unix epoch.
    pub committed_at_us: Vec<u64>,
    /// Their numbers.
    pub xids: Vec<Xid32>,
    bytes: usize,
    _memory: Vec<OwnedSemaphorePermit>,
}

/// A batch, and how it is written.
#[derive(Debug)]
pub struct Ready<E> {
    /// What it is made of.
    pub batch: Batch,
    /// Its changes as they are best written; none if they are spilled.
    pub steps: Vec<Step<E>>,
}

/// Bounds of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Bytes of row images.
    pub bytes_max: usize,
    /// Transactions.
    pub transactions_max: usize,
}

/// Routes and batches.
pub struct Builder<S: Source, T: Target> {
    /// What the backfill shares.
    pub shared: Arc<backfill::Shared<S, T>>,
    /// All tables.
    pub tables: BTreeMap<TableId, Arc<Table>>,
    /// Bounds.
    pub limits: BatchLimits,
    /// Where batches go. One or two wait while one is written.
    pub out: mpsc::Sender<Ready<<T::Applier as Applier>::Encoded>>,
    /// Sessions for copying single keys, opened when first needed.
    pub sessions: Option<(S::Reader, T::Writer)>,
    /// Memory a routed transaction may hold before it goes to disk.
    pub spill_bytes: usize,
    /// The checkpoint of the last batch that went to the writer; the stored one at first.
    pub handed_on: Position,
    /// When a batch that only moves the checkpoint was last handed on.
    pub last_idle: Instant,
    /// When a snapshot was last taken to shrink the skipped set.
    pub last_shown: Instant,
    /// Rows that are to be copied anew.
    pub repairs: mpsc::Receiver<RepairRequest>,
    /// What the source shows of what was applied.
    pub passage: StreamPassage<S>,
}

impl<S: Source, T: Target> Builder<S, T> {
    pub(super) fn regions(&self) -> &Regions {
        &self.shared.regions
    }

    pub(super) fn admissions(&self) -> &Admissions {
        &self.shared.admissions
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    /// Batches everything that arrives until the channel closes.
    pub async fn run(mut self, mut arrivals: mpsc::Receiver<Arrived>) -> Outcome<()> {
        let mut batch = Batch::default();
        let mut next = None;
        loop {
            let arrived = match next.take() {
                Some(arrived) => arrived,
                None => match self.next(&mut arrivals, &mut batch).await? {
                    Some(arrived) => arrived,
                    None => return Ok(()),
                },
            };
            match arrived {
                Arrived::Idle(position) => {
                    batch.checkpoint.position = batch.checkpoint.position.max(position)
                }
                Arrived::Transaction(transaction, memory) => {
                    batch = self.add(batch, transaction, memory).await?;
                }
            }
            let full = batch.bytes >= self.limits.bytes_max
                || batch.committed_at_us.len() >= self.limits.transactions_max
                || batch.spilled.is_some();
            if !full {
                // More may be there already; it then rides in the same batch. While the writer is busy, wait for more.
                match arrivals.try_recv() {
                    Ok(arrived) => next = Some(arrived),
                    Err(mpsc::error::TryRecvError::Empty) if self.out.capacity() == 0 => {
                        tokio::select! {
                            biased;
                            permit = self.out.reserve() => { permit.map_err(|_| gone())?; }
                            arrived = arrivals.recv() => match arrived {
                                Some(arrived) => next = Some(arrived),
                                None => return Ok(()),
                            },
                        }
                    }
                    Err(_) => {}
                }
                if next.is_some() {
                    continue;
                }
            }
            if !batch.committed_at_us.is_empty() {
                self.hand_on(&mut batch).await?;
            }
        }
    }

    /// The next arrival. A batch that only moves the checkpoint is handed on when nothing else has come for a while:
    /// keepalives are frequent, durable checkpoints are not free.
    async fn next(
        &mut self,
        arrivals: &mut mpsc::Receiver<Arrived>,
        batch: &mut Batch,
    ) -> Outcome<Option<Arrived>> {
        if batch.checkpoint.position > self.handed_on {
            let due = self.last_idle + IDLE_PAUSE;
            tokio::select! {
                biased;
                arrived = arrivals.recv() => return Ok(arrived),
                () = tokio::time::sleep_until(due.into()) => {}
            }
            self.last_idle = Instant::now();
            self.hand_on(batch).await?;
        }
        loop {
            tokio::select! {
                biased;
                Some(request) = self.repairs.recv() => self.repair(batch, request).await?,
                arrived = arrivals.recv() => return Ok(arrived),
            }
        }
    }

    /// Sends the open batch to the writer, if there is anything in it.
    async fn hand_on(&mut self, batch: &mut Batch) -> Outcome<()> {
        if batch.checkpoint.position <= self.handed_on {
            return Ok(());
        }
        let mut full = std::mem::take(batch);
        self.handed_on = self.handed_on.max(full.checkpoint.position);
        if self.regions().skipped_count() > SKIPPED_MAX && self.last_shown.elapsed() > SHOWN_PAUSE {
            // No region has begun for long, so no snapshot has been taken: take one, to keep the checkpoint small.
            let shown = self.shared.source.seam().await?;
            self.regions().seen(&shown);
            self.last_shown = Instant::now();
        }
        self.strays_told().await;
        full.checkpoint.skipped = self.regions().skipped();
        let steps = steps::<T::Applier>(&self.tables, &full.changes, Manner::SetWise)?;
        warm(&*self.shared.target, &self.tables, &steps);
        self.out.send(Ready { batch: full, steps }).await.map_err(|_| gone())
    }

    /// Waits until somebody has written down what was not applied: once the checkpoint is past it, nothing else knows it.
    async fn strays_told(&mut self) {
        let strays = self.admissions().strays();
        if strays.is_all_told() {
            return;
        }
        killpoint::pass("stray.met");
        self.progress().waiting("stream", Some("a write past the fence is being written down".into()));
        strays.all_told().await;
        self.progress().waiting("stream", None);
    }

    async fn add(
        &mut self,
        mut batch: Batch,
        transaction: Transaction,
        memory: OwnedSemaphorePermit,
    ) -> Outcome<Batch> {
        let Transaction { head, end, mut changes, signal } = transaction;
        if changes.count() > 0 && !self.is_admitted(&mut batch, head.commit).await? {
            self.admissions().strays().met(head, &changes, &self.tables)?;
            changes = Changes::new(self.spill_bytes);
        }
        let count = changes.count();
        let changes = if self.regions().is_active() {
            self.route_all(&mut batch, head.xid, changes).await?
        } else {
            changes
        };
        self.progress().dropped(count.saturating_sub(changes.count()));
        batch.bytes += changes.memory_bytes();
        match changes.into_memory() {
            Ok(changes) if batch.changes.is_empty() => batch.changes = changes,
            Ok(changes) => batch.changes.extend(changes),
            Err(spilled) => {
                self.hand_on(&mut batch).await?;
                batch.spilled = Some(Arc::new(spilled));
            }
        }
        batch.checkpoint.position = end;
        batch.signal = batch.signal.max(signal);
        batch.xids.push(head.xid);
        batch.committed_at_us.push(head.committed_at_us.unsigned_abs());
        batch._memory.push(memory);
        Ok(batch)
    }

    /// Whether a transaction with changes is applied; waits until that is decided. Signals alone are never asked about:
    /// whoever hands the writes over waits for them.
    async fn is_admitted(&mut self, batch: &mut Batch, commit: Position) -> Outcome<bool> {
        loop {
            match self.admissions().get().judge(commit) {
                Judgement::Apply => return Ok(true),
                Judgement::Stray => return Ok(false),
                Judgement::Wait => {
                    self.hand_on(batch).await?;
                    let reason = "it is being decided which side owns the writes";
                    self.progress().waiting("stream", Some(reason.into()));
                    self.admissions().decided().await;
                    self.progress().waiting("stream", None);
                }
            }
        }
    }

    /// What is left of a transaction after routing.
    async fn route_all(&mut self, batch: &mut Batch, xid: Xid32, changes: Changes) -> Outcome<Changes> {
        'again: loop {
            let mut left = Changes::new(self.spill_bytes);
            for index in 0..changes.pieces() {
                let piece = changes.piece(index)?;
                let mut told = Told::new();
                for at in 0..piece.len() {
                    match self.route(batch, xid, &piece[at..], &mut told).await? {
                        Next::Keep(change) => left.push(change)?,
                        Next::Drop => {}
                        // The row now has a seam of its own, which may cover earlier changes of this transaction.
                        Next::StartAgain => continue 'again,
                    }
                }
            }
            return Ok(left);
        }
    }

    pub(super) fn table(&self, id: TableId) -> Outcome<Arc<Table>> {
        let unknown = || {
            Fault::bug("SEGUE-TABLE", format!("the stream names table number {}, which the plan lacks", id.0))
        };
        self.tables.get(&id).cloned().ok_or_else(unknown)
    }

    /// Routes the first of `rest`; what the source told about the others is kept in `told`.
    async fn route(
        &mut self,
        batch: &mut Batch,
        xid: Xid32,
        rest: &[Change],
        told: &mut Told,
    ) -> Outcome<Next> {
        let Some(change) = rest.first() else { return Ok(Next::Drop) };
        let table = &self.table(change.table)?;
        loop {
            let mut changed = self.regions().watch();
            changed.borrow_and_update();
            let incomplete = |e| Fault::bug("SEGUE-KEY-MISSING", format!("{}: {e}", table.source));
            let (unit, routed) = self.regions().route(table, xid, change, told).map_err(incomplete)?;
            match routed {
                Routed::Apply(change) => return Ok(Next::Keep(change)),
                Routed::Drop => return Ok(Next::Drop),
                Routed::Locate(mut keys) => {
                    keys.extend(ahead(table, rest));
                    told.insert(unit, self.locate(table, unit, keys).await?);
                }
                Routed::Wait => {
                    self.hand_on(batch).await?;
                    let reason = format!("a region of {} is being copied", table.source);
                    self.progress().waiting("stream", Some(reason));
                    let woken = changed.changed().await;
                    self.progress().waiting("stream", None);
                    woken.map_err(|_| gone())?;
                }
                Routed::CopyKey(key) => {
                    self.copy_key(batch, table, unit, xid, key).await?;
                    return Ok(Next::StartAgain);
                }
            }
        }
    }

    /// Asks the source where keys lie among the unit's current bounds.
    async fn locate(&mut self, table: &Table, unit: UnitId, keys: Vec<KeyText>) -> Outcome<ToldPlaces> {
        let (bounds, cuts) = self.regions().bounds(unit);
        let places = self.shared.source.places(table, &bounds, &keys).await?;
        Ok(keys
            .into_iter()
            .zip(places)
            .map(|(key, bounds_below)| (key, Place { bounds_below, cuts }))
            .collect())
    }

    /// Hands the open batch on and waits until everything handed on is durable.
    pub(super) async fn flush(&mut self, batch: &mut Batch) -> Outcome<()> {
        self.hand_on(batch).await?;
        let before = self.handed_on;
        let durable = |a: &Applied| a.position >= before;
        self.progress().watch_applied().wait_for(durable).await.map_err(|_| gone())?;
        Ok(())
    }

    /// The sessions for copying single regions.
    pub(super) async fn sessions(&mut self) -> Outcome<(S::Reader, T::Writer)> {
        match self.sessions.take() {
            Some(sessions) => Ok(sessions),
            None => Ok((self.shared.source.reader().await?, self.shared.target.writer().await?)),
        }
    }

    /// Copies the row of one key as a region of its own, after everything before this transaction is durable.
    async fn copy_key(
        &mut self,
        batch: &mut Batch,
        table: &Arc<Table>,
        unit: UnitId,
        xid: Xid32,
        key: KeyText,
    ) -> Outcome<()> {
        self.flush(batch).await?;
        let (mut reader, mut writer) = self.sessions().await?;
        let work = Work::new(unit, table.clone(), Onto::Replaced);
        while let Some(id) = self.regions().begin_key(unit, key.clone(), xid) {
            let extent = Extent::Key(key.clone());
            if copy_region(&self.shared, &mut reader, &mut writer, &work, id, &extent).await?.is_some() {
                break;
            }
        }
        self.sessions = Some((reader, writer));
        Ok(())
    }
}

/// Keys of the changes behind the first that will be asked for, too: one question instead of many.
fn ahead(table: &Table, rest: &[Change]) -> Vec<KeyText> {
    let Some((first, rest)) = rest.split_first() else { return Vec::new() };
    let Some(key) = table.key() else { return Vec::new() };
    let alike = rest.iter().filter(|c| (c.table, c.unit) == (first.table, first.unit));
    // A key that is incomplete is met in its turn.
    let keys = alike.take(LOCATE_AHEAD_MAX).flat_map(|c| keys(key, c).unwrap_or_default());
    keys.flatten().collect()
}

enum Next {
    Keep(Change),
    Drop,
    StartAgain,
}

/// The other half of the pipeline has ended; its own fault says why.
pub(super) fn gone() -> Fault {
    Fault::retry("SEGUE-PIPELINE", "the stream's pipeline was closed")
}
