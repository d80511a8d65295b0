//! In-memory source and target with the properties that matter: commits that are in the log before snapshots
//! show them, row locks, snapshots, log positions, transactions on the target that vanish when dropped.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "a test may stop where it stands")]

mod rows;
mod target;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segue_engine::fault::Fault;
use segue_engine::ports::*;
use segue_model::change::{Action, Change, TransactionHead, Value};
use segue_model::key::KeyText;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::seam::{Seam, Xid, Xid32};
use segue_model::table::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

pub use rows::{Rows, table};
use rows::{id_of, key, row, text, within};
pub use target::FakeTarget;

#[derive(Clone, Debug)]
struct Entry {
    xid: u64,
    changes: Vec<Change>,
    signal: Option<u64>,
    /// The rows it leaves behind, key by key.
    writes: Vec<(i64, Option<(String, String)>)>,
}

#[derive(Debug)]
pub struct Db {
    rng: StdRng,
    next_xid: u64,
    /// Allocated and not yet ended for snapshots.
    in_progress: BTreeSet<u64>,
    /// Keys written by transactions that have not ended.
    locked: BTreeMap<i64, u64>,
    log: Vec<Entry>,
    visible: Rows,
    signals: u64,
}

/// The source, and the application that writes to it.
#[derive(Clone)]
pub struct FakeSource {
    pub db: Arc<Mutex<Db>>,
    grown: Arc<Notify>,
    /// Parts that are gone and have not left the stream.
    pub gone: Arc<Mutex<Vec<Part>>>,
    /// How long one takes to leave, after it has been said that it has.
    pub leaves_for: Duration,
    /// What was said to be durable: the log before it is gone.
    acknowledged: Arc<AtomicU64>,
}

/// Gives way to other tasks a random number of times.
pub async fn dither(rng: &Mutex<Db>) {
    let n = rng.lock().unwrap().rng.random_range(0..4);
    for _ in 0..n {
        tokio::task::yield_now().await;
    }
}

impl FakeSource {
    pub fn new(seed: u64, rows: i64) -> Self {
        let visible = (0..rows).map(|i| (i * 10, (format!("a{i}"), format!("big{i}")))).collect();
        let db = Db {
            rng: StdRng::seed_from_u64(seed),
            next_xid: 100,
            in_progress: BTreeSet::new(),
            locked: BTreeMap::new(),
            log: Vec::new(),
            visible,
            signals: 0,
        };
        FakeSource {
            db: Arc::new(Mutex::new(db)),
            grown: Arc::default(),
            gone: Arc::default(),
            leaves_for: Duration::ZERO,
            acknowledged: Arc::default(),
        }
    }

    pub fn rows(&self) -> Rows {
        self.db.lock().unwrap().visible.clone()
    }

    /// One application transaction: writes, enters the log, is seen by snapshots some time later. Or rolls back.
    pub async fn transact(&self, label: u64) {
        let planned = self.db.lock().unwrap().plan(label);
        dither(&self.db).await;
        let Some((xid, entry)) = planned else { return };
        let abort = self.db.lock().unwrap().rng.random_range(0..8) == 0;
        if !abort {
            self.db.lock().unwrap().log.push(entry.clone());
            self.grown.notify_waiters();
            // In the log, not yet visible: a synchronous standby takes its time.
            let slow = self.db.lock().unwrap().rng.random_range(0..12) * 4;
            for _ in 0..slow {
                tokio::task::yield_now().await;
            }
        }
        self.db.lock().unwrap().end(xid, (!abort).then_some(&entry));
    }

    /// One transaction that inserts rows and shows at once. Returns where its commit record begins.
    pub fn insert(&self, ids: impl IntoIterator<Item = i64>) -> Position {
        let mut db = self.db.lock().unwrap();
        let at = commit_of(db.log.len());
        let entry = db.inserted(ids);
        db.end(entry.xid, Some(&entry));
        db.log.push(entry);
        drop(db);
        self.grown.notify_waiters();
        at
    }

    /// One transaction that is in the log, and not seen by snapshots until [`FakeSource::show`]: its commit waits for a
    /// synchronous standby.
    pub fn insert_hidden(&self, id: i64) -> usize {
        let mut db = self.db.lock().unwrap();
        let entry = db.inserted([id]);
        db.in_progress.insert(entry.xid);
        db.log.push(entry);
        let index = db.log.len() - 1;
        drop(db);
        self.grown.notify_waiters();
        index
    }

    /// Ends what [`FakeSource::insert_hidden`] began.
    pub fn show(&self, index: usize) {
        let mut db = self.db.lock().unwrap();
        let entry = db.log[index].clone();
        db.end(entry.xid, Some(&entry));
    }

    async fn entry(&self, index: usize) -> Entry {
        loop {
            let grown = self.grown.notified();
            if let Some(entry) = self.db.lock().unwrap().log.get(index) {
                return entry.clone();
            }
            grown.await;
        }
    }
}

impl Db {
    /// A transaction that inserts rows, and has not ended.
    fn inserted(&mut self, ids: impl IntoIterator<Item = i64>) -> Entry {
        let xid = self.next_xid;
        self.next_xid += 1;
        let (mut changes, mut writes) = (Vec::new(), Vec::new());
        for id in ids {
            let action = Action::Insert { new: row(id, "new", Some("big")) };
            changes.push(Change { table: TableId(0), unit: UnitId(0), action });
            writes.push((id, Some(("new".to_owned(), "big".to_owned()))));
        }
        Entry { xid, changes, signal: None, writes }
    }

    /// Plans a transaction of one to three statements on keys nobody has locked, and locks them.
    fn plan(&mut self, label: u64) -> Option<(u64, Entry)> {
        let xid = self.next_xid;
        let mut rows = self.visible.clone();
        let (mut changes, mut touched) = (Vec::new(), BTreeSet::new());
        for step in 0..self.rng.random_range(1..4) {
            let id = self.rng.random_range(0..40) * 5;
            let to = self.rng.random_range(0..40) * 5;
            if [id, to].iter().any(|k| self.locked.contains_key(k)) {
                continue;
            }
            let mark = format!("x{label}.{step}");
            let action = match (self.rng.random_range(0..5), rows.get(&id).cloned(), rows.contains_key(&to)) {
                (0, Some(_), _) => {
                    rows.remove(&id);
                    Action::Delete { old: vec![text(&id.to_string()), Value::Null, Value::Null].into() }
                }
                (1, Some((_, big)), false) if id != to => {
                    rows.remove(&id);
                    rows.insert(to, (mark.clone(), big));
                    let old = Some(vec![text(&id.to_string()), Value::Null, Value::Null].into());
                    Action::Update { old, new: row(to, &mark, None) }
                }
                (2, Some(_), _) => {
                    rows.insert(id, (mark.clone(), mark.clone()));
                    Action::Update { old: None, new: row(id, &mark, Some(&mark)) }
                }
                (_, Some((_, big)), _) => {
                    rows.insert(id, (mark.clone(), big));
                    Action::Update { old: None, new: row(id, &mark, None) }
                }
                (_, None, _) => {
                    rows.insert(id, (mark.clone(), mark.clone()));
                    Action::Insert { new: row(id, &mark, Some(&mark)) }
                }
            };
            touched.extend([id, to]);
            changes.push(Change { table: TableId(0), unit: UnitId(0), action });
        }
        if changes.is_empty() {
            return None;
        }
        self.next_xid += 1;
        self.in_progress.insert(xid);
        touched.iter().for_each(|k| {
            self.locked.insert(*k, xid);
        });
        let writes = touched.into_iter().map(|k| (k, rows.get(&k).cloned())).collect();
        Some((xid, Entry { xid, changes, signal: None, writes }))
    }

    fn end(&mut self, xid: u64, committed: Option<&Entry>) {
        self.in_progress.remove(&xid);
        self.locked.retain(|_, owner| *owner != xid);
        for (k, value) in committed.into_iter().flat_map(|e| &e.writes) {
            match value {
                Some(value) => self.visible.insert(*k, value.clone()),
                None => self.visible.remove(k),
            };
        }
    }

    fn seam(&self) -> Seam {
        let xmin = self.in_progress.first().copied().unwrap_or(self.next_xid);
        Seam::new(Xid(xmin), Xid(self.next_xid), self.in_progress.iter().map(|x| Xid(*x)).collect())
    }
}

/// Where the commit record of an entry of the log begins; it ends where the next one does.
pub fn commit_of(index: usize) -> Position {
    Position(index as u64 * 10)
}

fn after(index: usize) -> Position {
    Position((index as u64 + 1) * 10)
}

impl Source for FakeSource {
    type Stream = FakeStream;
    type Reader = FakeReader;

    async fn stream(&self, from: Position) -> Outcome<FakeStream> {
        let gone = self.acknowledged.fetch_max(from.0, Ordering::Relaxed);
        if gone > from.0 {
            let what = format!("the stream begins at {gone}, behind the checkpoint {}", from.0);
            return Err(Fault::bug("TEST-ACKNOWLEDGED", what));
        }
        Ok(FakeStream { source: self.clone(), next: (from.0 / 10) as usize, queue: Vec::new() })
    }
    async fn reader(&self) -> Outcome<FakeReader> {
        Ok(FakeReader { source: self.clone(), snapshot: None, pieces: Vec::new() })
    }
    async fn seam(&self) -> Outcome<Seam> {
        Ok(self.db.lock().unwrap().seam())
    }
    async fn signal(&self) -> Outcome<u64> {
        let mut db = self.db.lock().unwrap();
        db.signals += 1;
        let (xid, signal) = (db.next_xid, db.signals);
        db.next_xid += 1;
        db.log.push(Entry { xid, changes: Vec::new(), signal: Some(signal), writes: Vec::new() });
        drop(db);
        self.grown.notify_waiters();
        Ok(signal)
    }
    async fn places(&self, _: &Table, bounds: &[KeyText], keys: &[KeyText]) -> Outcome<Vec<usize>> {
        dither(&self.db).await;
        Ok(keys.iter().map(|k| bounds.iter().filter(|b| id_of(b) < id_of(k)).count()).collect())
    }
    async fn drift(&self) -> Outcome<Vec<Drift>> {
        Ok(self.gone.lock().unwrap().iter().cloned().map(Drift::Detached).collect())
    }
    async fn adopt(&self, _: &Part) -> Outcome<bool> {
        Ok(false)
    }
    async fn leave(&self, part: &Part) -> Outcome<u64> {
        let signal = self.signal().await?;
        self.gone.lock().unwrap().retain(|gone| gone.unit != part.unit);
        tokio::time::sleep(self.leaves_for).await;
        Ok(signal)
    }
    fn has_parts(&self, _: &Table) -> bool {
        false
    }
    async fn parts(&self, _: &Table) -> Outcome<Option<String>> {
        Ok(Some(String::new()))
    }
    async fn log_end(&self) -> Outcome<Position> {
        Ok(Position(self.db.lock().unwrap().log.len() as u64 * 10))
    }
}

pub struct FakeStream {
    source: FakeSource,
    next: usize,
    queue: Vec<StreamEvent>,
}

impl ChangeStream for FakeStream {
    async fn next(&mut self) -> Outcome<StreamEvent> {
        dither(&self.source.db).await;
        if self.queue.is_empty() {
            let entry = self.source.entry(self.next).await;
            let (xid, commit) = (Xid32(entry.xid as u32), commit_of(self.next));
            let head = TransactionHead { xid, committed_at_us: 1, commit };
            self.queue.push(StreamEvent::Commit { end: after(self.next) });
            self.queue.extend(entry.signal.map(StreamEvent::Signal));
            self.queue.extend(entry.changes.into_iter().rev().map(StreamEvent::Change));
            self.queue.push(StreamEvent::Begin(head));
            self.next += 1;
        }
        Ok(self.queue.pop().unwrap())
    }
    fn acknowledger(&self) -> Acknowledger {
        let acknowledged = self.source.acknowledged.clone();
        Acknowledger::new(move |position| {
            acknowledged.fetch_max(position.0, Ordering::Relaxed);
        })
    }
}

pub struct FakeReader {
    source: FakeSource,
    snapshot: Option<Rows>,
    pieces: Vec<Bytes>,
}

impl FakeReader {
    /// The snapshot's rows.
    fn shown(&self, extent: &Extent) -> Rows {
        let all = self.snapshot.iter().flatten().map(|(k, v)| (*k, v.clone()));
        all.filter(|(k, _)| within(extent, *k)).collect()
    }
}

impl RegionReader for FakeReader {
    async fn bound_after(
        &mut self,
        _: &Table,
        _: UnitId,
        extent: &Extent,
        _: u64,
    ) -> Outcome<Option<KeyText>> {
        dither(&self.source.db).await;
        let inside: Vec<i64> = self.source.rows().into_keys().filter(|id| within(extent, *id)).collect();
        let upper = match extent {
            Extent::Range { upper, .. } => upper.clone(),
            Extent::Key(_) => None,
        };
        Ok(inside.get(3).map(|id| key(*id)).filter(|k| Some(k) != upper.as_ref()))
    }
    async fn begin(&mut self, _: &Table, _: UnitId) -> Outcome<(Seam, Position)> {
        dither(&self.source.db).await;
        let db = self.source.db.lock().unwrap();
        self.snapshot = Some(db.visible.clone());
        Ok((db.seam(), Position(db.log.len() as u64 * 10)))
    }
    async fn digest(&mut self, _: &Table, _: UnitId, extent: &Extent) -> Outcome<RegionDigest> {
        let rows = self.shown(extent);
        Ok(RegionDigest { rows: rows.len() as u64, sum: format!("{rows:?}"), bytes: 0 })
    }
    async fn version(&mut self, _: &Table, _: UnitId, key: &KeyText) -> Outcome<String> {
        let shown = self.shown(&Extent::Key(key.clone()));
        Ok(shown.into_values().map(|(a, big)| format!("{a} {big}")).collect())
    }
    async fn copy(&mut self, _: &Table, _: UnitId, extent: &Extent) -> Outcome<()> {
        let rows = self.shown(extent);
        self.pieces = rows.into_iter().map(|r| Bytes::from(serde_json::to_vec(&r).unwrap())).collect();
        Ok(())
    }
    async fn next_piece(&mut self) -> Outcome<Option<Bytes>> {
        dither(&self.source.db).await;
        Ok(self.pieces.pop())
    }
    async fn end(&mut self) -> Outcome<()> {
        self.snapshot = None;
        Ok(())
    }
    async fn durable(&mut self, _: Position) -> Outcome<()> {
        dither(&self.source.db).await;
        Ok(())
    }
}
