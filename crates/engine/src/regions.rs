//! The region map shared by the copy workers and the follower: one lock, one wake-up.
//!
//! All rules are in `segue_model::region` and `segue_model::route`; this only guards them.

use segue_model::change::Change;
use segue_model::key::{KeyIncomplete, KeyText};
use segue_model::region::{Extent, KeyOverride, RegionId, SeamTooOld, UnitRegions};
use segue_model::route::{Routed, ToldPlaces, route};
use segue_model::seam::{Seam, Xid, Xid32};
use segue_model::table::{Table, UnitId};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What the source has told about keys, by the unit among whose bounds it placed them.
pub type Told = BTreeMap<UnitId, ToldPlaces>;

/// What was known of an extent's rows, to be put back where a copy comes to nothing.
#[derive(Debug)]
pub enum Before {
    /// Of a single row.
    Key(KeyText, KeyOverride),
    /// Of the whole unit; `None`: it had no map.
    Unit(Option<UnitRegions>),
}

/// The regions of all units that are not yet wholly in the stream's hands.
#[derive(Debug)]
pub struct Regions {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    units: BTreeMap<UnitId, UnitRegions>,
    /// A transaction number of recent times, to widen the stream's numbers by.
    near: Xid,
    /// How often a region was marked as being copied, or its seam accepted.
    marked: u64,
}

impl Regions {
    /// Guards `units`. `near` is a recent transaction number of the source.
    pub fn new(units: BTreeMap<UnitId, UnitRegions>, near: Xid) -> Self {
        Regions { state: Mutex::new(State { units, near, marked: 0 }), changed: watch::Sender::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the lock tears the process down; the map is never used after it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let out = f(&mut self.lock());
        self.changed.send_modify(|n| *n += 1);
        out
    }

    /// Wakes at every change of the map.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether any unit still has a map.
    pub fn is_active(&self) -> bool {
        !self.lock().units.is_empty()
    }

    /// Routes a change, and says which unit's map has decided; where its unit has no map any more, it applies.
    ///
    /// A part that came later has a map of its own while it is copied; the table's map, which then holds rows that
    /// were repaired, decides about what that one lets through.
    pub fn route(
        &self,
        table: &Table,
        xid: Xid32,
        change: &Change,
        told: &Told,
    ) -> Result<(UnitId, Routed), KeyIncomplete> {
        let mut state = self.lock();
        let x = xid.widen(state.near);
        state.near = state.near.max(x);
        let nothing = ToldPlaces::new();
        let told = |unit: &UnitId| told.get(unit).unwrap_or(&nothing);
        let routed = match state.units.get_mut(&change.unit) {
            Some(unit) => route(table, unit, x, change, told(&change.unit))?,
            None => Routed::Apply(change.clone()),
        };
        let whole = UnitId::from(table.id);
        match (routed, state.units.get_mut(&whole)) {
            (Routed::Apply(left), Some(unit)) if change.unit != whole => {
                Ok((whole, route(table, unit, x, &left, told(&whole))?))
            }
            (routed, _) => Ok((change.unit, routed)),
        }
    }

    /// Bounds of a unit's ranges and their version.
    pub fn bounds(&self, unit: UnitId) -> (Vec<KeyText>, u64) {
        self.lock().units.get(&unit).map_or((Vec::new(), 0), UnitRegions::bounds)
    }

    /// The unit's first range that has not begun.
    pub fn next_gap(&self, unit: UnitId) -> Option<(RegionId, Extent)> {
        self.lock().units.get(&unit)?.next_gap()
    }

    /// Marks a range as being copied. See [`UnitRegions::begin`].
    pub fn begin(&self, unit: UnitId, id: RegionId, upper: Option<KeyText>) -> Option<(RegionId, Extent)> {
        self.change(|s| {
            s.marked += 1;
            s.units.get_mut(&unit)?.begin(id, upper)
        })
    }

    /// Marks one key as being copied, for the transaction `xid` that asks for it. See [`UnitRegions::begin_key`].
    pub fn begin_key(&self, unit: UnitId, key: KeyText, xid: Xid32) -> Option<RegionId> {
        self.change(|s| {
            let x = xid.widen(s.near);
            s.marked += 1;
            Some(s.units.get_mut(&unit)?.begin_key(key, x))
        })
    }

    /// Marks one key as being copied, when snapshots show everything that was applied. See [`UnitRegions::begin_key`].
    pub fn begin_shown_key(&self, unit: UnitId, key: KeyText) -> Option<RegionId> {
        self.change(|s| {
            s.marked += 1;
            Some(s.units.get_mut(&unit)?.begin_key(key, Xid(0)))
        })
    }

    /// What is known of the rows of `extent`, before they are marked to be copied anew.
    pub fn before(&self, unit: UnitId, extent: &Extent) -> Before {
        let state = self.lock();
        let regions = state.units.get(&unit);
        match extent {
            Extent::Key(key) => {
                let known = regions.map_or_else(KeyOverride::default, |unit| unit.key_override(key));
                Before::Key(key.clone(), known)
            }
            Extent::Range { .. } => Before::Unit(regions.cloned()),
        }
    }

    /// The copy has come to nothing, and is known not to be committed: events are judged as before it was marked. None of the
    /// unit's may have been judged in between.
    pub fn put_back(&self, unit: UnitId, before: Before) {
        self.change(|s| match before {
            Before::Key(key, known) => {
                if let Some(regions) = s.units.get_mut(&unit) {
                    regions.put_back_key(key, known);
                }
            }
            Before::Unit(Some(regions)) => drop(s.units.insert(unit, regions)),
            Before::Unit(None) => drop(s.units.remove(&unit)),
        });
    }

    /// Gives a unit a map if it has none.
    pub fn ensure(&self, unit: UnitId, regions: impl FnOnce() -> UnitRegions) {
        self.change(|s| {
            s.units.entry(unit).or_insert_with(regions);
        });
    }

    /// Offers a snapshot for a region; every unit learns what the snapshot shows.
    pub fn offer_seam(&self, unit: UnitId, id: RegionId, seam: &Seam) -> Result<(), SeamTooOld> {
        self.change(|s| {
            s.near = s.near.max(seam.xmax());
            s.units.values_mut().for_each(|u| u.seen(seam));
            s.units.get_mut(&unit).map_or(Ok(()), |u| u.offer_seam(id, seam.clone()))?;
            // A signal emitted before this seam was taken says nothing about it.
            s.marked += 1;
            Ok(())
        })
    }

    /// A snapshot shows these transactions.
    pub fn seen(&self, seam: &Seam) {
        let mut state = self.lock();
        state.near = state.near.max(seam.xmax());
        state.units.values_mut().for_each(|u| u.seen(seam));
    }

    /// The region's copy is committed.
    pub fn copied(&self, unit: UnitId, id: RegionId) {
        self.change(|s| {
            if let Some(u) = s.units.get_mut(&unit) {
                u.copied(id);
            }
        });
    }

    /// The region's copy was thrown away.
    pub fn give_up(&self, unit: UnitId, id: RegionId) {
        self.change(|s| {
            if let Some(u) = s.units.get_mut(&unit) {
                u.give_up(id);
            }
        });
    }

    /// How many skipped transactions no snapshot has shown yet.
    pub fn skipped_count(&self) -> usize {
        self.lock().units.values().map(|u| u.skipped().len()).sum()
    }

    /// Skipped transactions that no snapshot has shown, by unit.
    pub fn skipped(&self) -> BTreeMap<UnitId, Vec<Xid>> {
        let some = |(id, u): (&UnitId, &UnitRegions)| {
            (!u.skipped().is_empty()).then(|| (*id, u.skipped().iter().copied().collect()))
        };
        self.lock().units.iter().filter_map(some).collect()
    }

    /// Whether every region of the unit has been copied (or it has no map).
    pub fn is_complete(&self, unit: UnitId) -> bool {
        self.lock().units.get(&unit).is_none_or(UnitRegions::is_complete)
    }

    /// Whether every region of every unit has been copied.
    pub fn all_complete(&self) -> bool {
        self.lock().units.values().all(UnitRegions::is_complete)
    }

    /// Puts a unit under a map again (a leaf that was attached, a row to be repaired).
    pub fn add(&self, unit: UnitId, regions: UnitRegions) {
        self.change(|s| s.units.insert(unit, regions));
    }

    /// Forgets a unit that is gone.
    pub fn forget(&self, unit: UnitId) {
        self.change(|s| s.units.remove(&unit));
    }

    /// Grows whenever a region is marked or its seam accepted, for [`Regions::retire`].
    pub fn marked(&self) -> u64 {
        self.lock().marked
    }

    /// Drops all maps, if every region is copied and none was marked since `marked` was read. The stream must have passed
    /// a signal emitted after that reading: then no event that any seam contains is still to come.
    pub fn retire(&self, marked: u64) -> bool {
        self.change(|s| {
            let may = s.marked == marked && s.units.values().all(UnitRegions::is_complete);
            if may {
                s.units.clear();
            }
            may
        })
    }
}
