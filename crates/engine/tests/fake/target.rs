//! The target: what is durable, transactions that vanish when dropped, rows that must be there or must not.

use super::rows::{Rows, id_of, parse, within};
use super::{FakeSource, dither};
use bytes::Bytes;
use segue_engine::fault::Fault;
use segue_engine::ports::*;
use segue_model::change::{Action, Change, Row};
use segue_model::net::Net;
use segue_model::position::Position;
use segue_model::region::{CopiedRegion, Extent};
use segue_model::table::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What survives a kill.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    pub rows: Rows,
    pub stored: Stored,
    /// Parts that are remembered to have left.
    pub left: Vec<Part>,
}

#[derive(Clone)]
pub struct FakeTarget {
    pub durable: Arc<Mutex<Durable>>,
    /// What sessions see: with commits that are not durable yet.
    committed: Arc<Mutex<Durable>>,
    /// What it says to a region that is to be committed, if it does not take it.
    pub refuses: Arc<Mutex<Option<Fault>>>,
    /// Its rows can keep each other out.
    pub has_rivals: Arc<AtomicBool>,
    /// Only for its randomness.
    pub source: FakeSource,
}

impl FakeTarget {
    pub fn new(source: &FakeSource) -> FakeTarget {
        FakeTarget {
            durable: Arc::default(),
            committed: Arc::default(),
            refuses: Arc::default(),
            has_rivals: Arc::default(),
            source: source.clone(),
        }
    }
    /// A target that has `rows` already, which another stream has brought.
    pub fn over(source: &FakeSource, rows: Rows) -> FakeTarget {
        let target = FakeTarget::new(source);
        let stored = Stored { over_rows: true, ..Stored::default() };
        let there = Durable { rows, stored, left: Vec::new() };
        (*target.durable.lock().unwrap(), *target.committed.lock().unwrap()) = (there.clone(), there);
        target
    }
    /// Commits: durable at once, with everything committed before, or at a later commit.
    fn commit<V, E>(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Durable) -> Result<V, E>,
    ) -> Result<V, E> {
        let mut committed = self.committed.lock().unwrap();
        let value = change(&mut committed)?;
        if durability == Durability::Now {
            *self.durable.lock().unwrap() = committed.clone();
        }
        Ok(value)
    }
    /// The server crashes: what was not durable is undone. Returns whether anything was.
    pub fn crash(&self) -> bool {
        let (mut committed, durable) = (self.committed.lock().unwrap(), self.durable.lock().unwrap());
        let lost = committed.stored.checkpoint != durable.stored.checkpoint;
        *committed = durable.clone();
        lost
    }
}

impl Target for FakeTarget {
    type Writer = FakeWriter;
    type Applier = FakeApplier;
    async fn writer(&self) -> Outcome<FakeWriter> {
        Ok(FakeWriter { target: self.clone(), copying: Extent::ALL, onto: Onto::Nothing, rows: Vec::new() })
    }
    async fn applier(&self) -> Outcome<FakeApplier> {
        Ok(FakeApplier { target: self.clone(), open: BTreeMap::new() })
    }
    async fn stored(&self) -> Outcome<Stored> {
        self.commit(Durability::Now, |committed| Ok(committed.stored.clone()))
    }
    async fn last_region(&self) -> Outcome<i64> {
        Ok(0)
    }
    async fn store_part(&self, _: &Part) -> Outcome<()> {
        Ok(())
    }
    async fn part_followed(&self, _: &Part) -> Outcome<()> {
        Ok(())
    }
    async fn part_left(&self, part: &Part) -> Outcome<()> {
        self.commit(Durability::Now, |committed| {
            committed.left.push(part.clone());
            Ok(())
        })
    }
    async fn forget_regions(&self, _: i64) -> Outcome<()> {
        self.commit(Durability::Now, |committed| {
            committed.stored.regions.clear();
            committed.stored.backfilled = true;
            Ok(())
        })
    }
}

pub struct FakeWriter {
    target: FakeTarget,
    copying: Extent,
    onto: Onto,
    rows: Vec<(i64, (String, String))>,
}

impl RegionWriter for FakeWriter {
    async fn begin(&mut self, _: &Table, _: UnitId, extent: &Extent, onto: Onto) -> Outcome<()> {
        (self.copying, self.onto) = (extent.clone(), onto);
        self.rows.clear();
        Ok(())
    }
    async fn begin_equal(
        &mut self,
        table: &Table,
        unit: UnitId,
        extent: &Extent,
        digest: &RegionDigest,
    ) -> Outcome<bool> {
        let here = self.target.committed.lock().unwrap().rows.clone();
        let here: Rows = here.into_iter().filter(|(id, _)| within(extent, *id)).collect();
        let equal = format!("{here:?}") == digest.sum;
        if equal {
            // What is there is written once more.
            self.begin(table, unit, extent, Onto::Compared).await?;
            self.rows.extend(here);
        }
        Ok(equal)
    }
    async fn has_rivals(&mut self, _: &Table) -> Outcome<bool> {
        Ok(self.target.has_rivals.load(Ordering::Relaxed))
    }
    async fn write(&mut self, piece: Bytes) -> Outcome<()> {
        self.rows.push(serde_json::from_slice(&piece).unwrap());
        dither(&self.target.source.db).await;
        Ok(())
    }
    async fn finish(&mut self) -> Outcome<u64> {
        Ok(self.rows.len() as u64)
    }
    async fn commit(&mut self, record: &RegionRecord) -> Outcome<()> {
        dither(&self.target.source.db).await;
        if let Some(fault) = self.target.refuses.lock().unwrap().clone() {
            return Err(fault);
        }
        self.target.commit(Durability::Now, |committed| {
            if self.onto != Onto::Nothing {
                committed.rows.retain(|id, _| !within(&self.copying, *id));
            }
            for (id, value) in self.rows.drain(..) {
                if committed.rows.insert(id, value).is_some() {
                    return Err(Fault::bug(
                        "TEST-DUPLICATE",
                        format!("region {:?} copies {id}, which is there", record.extent),
                    ));
                }
            }
            let copied = CopiedRegion { extent: record.extent.clone(), seam: record.seam.clone() };
            committed.stored.regions.entry(record.unit).or_default().push(StoredRegion {
                copied,
                rows: 0,
                bytes: 0,
            });
            Ok(())
        })
    }
    async fn abandon(&mut self) -> Outcome<()> {
        self.rows.clear();
        Ok(())
    }
}

pub struct FakeApplier {
    target: FakeTarget,
    /// What the open transaction has done, key by key.
    open: BTreeMap<i64, Option<(String, String)>>,
}

fn mismatch(what: String) -> ApplyError {
    ApplyError::Mismatch(Mismatch { table: "t".into(), key: None, what })
}

impl FakeApplier {
    fn take(&mut self, id: i64) -> Result<(String, String), ApplyError> {
        let committed = self.target.committed.lock().unwrap().rows.get(&id).cloned();
        let now = self.open.get(&id).cloned().unwrap_or(committed);
        self.open.insert(id, None);
        now.ok_or_else(|| mismatch(format!("no row {id}")))
    }
    fn put(&mut self, id: i64, value: (String, String)) -> Result<(), ApplyError> {
        let there = self.target.committed.lock().unwrap().rows.contains_key(&id);
        let there = self.open.get(&id).map_or(there, Option::is_some);
        self.open.insert(id, Some(value));
        if there { Err(mismatch(format!("row {id} exists"))) } else { Ok(()) }
    }
    fn overlay(old: (String, String), new: &Row) -> (String, String) {
        let (_, a, big) = parse(new);
        (a.unwrap_or(old.0), big.unwrap_or(old.1))
    }
}

impl Applier for FakeApplier {
    type Encoded = Net;
    fn encode(_: &Table, net: Net) -> Outcome<Net> {
        Ok(net)
    }
    async fn begin(&mut self) -> Result<(), ApplyError> {
        self.open.clear();
        // Sometimes slow: batches come together meanwhile.
        for _ in 0..4 {
            dither(&self.target.source.db).await;
        }
        Ok(())
    }
    async fn net(&mut self, _: &Table, net: &Net) -> Result<(), ApplyError> {
        for k in &net.deletes {
            self.take(id_of(k))?;
        }
        for r in net.updates.iter().flat_map(|g| &g.rows) {
            let old = self.take(parse(r).0)?;
            self.put(parse(r).0, Self::overlay(old, r))?;
        }
        for (from, r) in net.moves.iter().flat_map(|g| &g.rows) {
            let old = self.take(id_of(from))?;
            self.put(parse(r).0, Self::overlay(old, r))?;
        }
        for r in &net.inserts {
            let (id, a, big) = parse(r);
            self.put(id, (a.unwrap(), big.unwrap()))?;
        }
        Ok(())
    }
    async fn in_order(&mut self, _: &Table, changes: &[Change]) -> Result<(), ApplyError> {
        for change in changes {
            match &change.action {
                Action::Insert { new } => {
                    let (id, a, big) = parse(new);
                    self.put(id, (a.unwrap(), big.unwrap()))?;
                }
                Action::Delete { old } => {
                    self.take(parse(old).0)?;
                }
                Action::Update { old, new } => {
                    let before = self.take(parse(old.as_ref().unwrap_or(new)).0)?;
                    self.put(parse(new).0, Self::overlay(before, new))?;
                }
                Action::Truncate { .. } => return Err(mismatch("no TRUNCATE here".into())),
            }
        }
        Ok(())
    }
    async fn commit(
        &mut self,
        from: Position,
        to: &Checkpoint,
        durability: Durability,
    ) -> Result<(), ApplyError> {
        dither(&self.target.source.db).await;
        let open = std::mem::take(&mut self.open);
        self.target.commit(durability, |committed| {
            if committed.stored.checkpoint.position != from {
                return Err(Fault::bug("TEST-CHECKPOINT", "the checkpoint is elsewhere").into());
            }
            for (id, value) in open {
                match value {
                    Some(value) => committed.rows.insert(id, value),
                    None => committed.rows.remove(&id),
                };
            }
            committed.stored.checkpoint = to.clone();
            Ok(())
        })
    }
    async fn rollback(&mut self) -> Outcome<()> {
        self.open.clear();
        Ok(())
    }
}
