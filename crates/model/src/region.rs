//! The map of regions: which rows have been copied under which seam, and what therefore becomes of
//! an event that the change stream delivers while the backfill runs.
//!
//! Pure: the caller holds the one lock under which a region is marked and an event is judged, so that
//! the set of skipped transactions is frozen at the very moment a region begins.
//! The rule is the table in `docs/design.md`, "Where an event goes while the backfill runs".

use crate::key::{KeyText, compare};
use crate::seam::{Seam, Xid};
use crate::table::KeyOrder;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

/// Number of a region within its unit; never used twice by one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u64);

/// The rows a region holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// Keys above `lower` up to and including `upper`; `None` is unbounded.
    Range {
        /// Exclusive lower bound.
        lower: Option<KeyText>,
        /// Inclusive upper bound.
        upper: Option<KeyText>,
    },
    /// The one row with this key; overrides the range that surrounds it.
    Key(KeyText),
}

impl Extent {
    /// Every row.
    pub const ALL: Extent = Extent::Range { lower: None, upper: None };
}

/// An extent that a TRUNCATE empties, with the keys inside it that it must spare.
pub type Emptied = (Extent, Vec<KeyText>);

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The copy does not contain it: apply it.
    Apply,
    /// The copy contains it, or will: drop it.
    Drop,
    /// The region is being copied and will not contain it: wait until the copy has ended.
    Wait,
}

#[derive(Clone, Debug)]
enum State {
    NotBegun,
    /// `frozen` is what had been skipped when the region was marked; `seam` is known once a snapshot
    /// that contains all of it was taken.
    Copying {
        frozen: BTreeSet<Xid>,
        seam: Option<Seam>,
    },
    Copied {
        seam: Seam,
    },
}

#[derive(Clone, Debug)]
struct Region {
    id: RegionId,
    upper: Option<KeyText>,
    state: State,
}

/// The seam of a snapshot lacks transactions that were skipped for the region.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot does not contain {} skipped transaction(s) yet, the oldest is {}", .missing.len(), .missing.first().map_or(0, |x| x.0))]
pub struct SeamTooOld {
    /// The transactions it lacks, ascending; never empty.
    pub missing: Vec<Xid>,
}

/// A copied region as it is stored, to rebuild a map after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedRegion {
    /// Which rows.
    pub extent: Extent,
    /// Under which snapshot.
    pub seam: Seam,
}

/// Stored regions contradict each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// Two stored ranges overlap, or are out of order.
    #[error("stored regions overlap at {at}")]
    Overlap {
        /// The bound at which it was noticed.
        at: String,
    },
}

/// The regions of one unit.
#[derive(Clone, Debug)]
pub struct UnitRegions {
    order: Vec<KeyOrder>,
    /// Ascending by upper bound; the last one is unbounded. Region *i* begins after the upper bound of *i − 1*.
    ranges: Vec<Region>,
    keys: HashMap<KeyText, (RegionId, State)>,
    /// Transactions of which an event was dropped because its region had not begun, and that no
    /// snapshot has shown yet.
    skipped: BTreeSet<Xid>,
    next_id: u64,
    /// Grows with every change of the bounds, so that a place computed elsewhere can be checked.
    cuts: u64,
}

/// What is known of a single row, to be put back where its copy comes to nothing.
#[derive(Clone, Debug, Default)]
pub struct KeyOverride(Option<(RegionId, State)>);

/// Where a key lies: the number of range bounds below it, valid for one set of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of upper bounds that are smaller than the key.
    pub bounds_below: usize,
    /// The version of the bounds it was computed for.
    pub cuts: u64,
}

impl UnitRegions {
    /// A unit of which nothing has been copied. `order` is empty for a unit without a key.
    pub fn new(order: Vec<KeyOrder>) -> Self {
        let all = Region { id: RegionId(0), upper: None, state: State::NotBegun };
        UnitRegions {
            order,
            ranges: vec![all],
            keys: HashMap::new(),
            skipped: BTreeSet::new(),
            next_id: 1,
            cuts: 0,
        }
    }

    /// A unit that the stream has wholly in hand: every event applies, until a key is copied over it.
    pub fn followed(order: Vec<KeyOrder>) -> Self {
        let mut unit = UnitRegions::new(order);
        let before_all = Seam::new(Xid(0), Xid(0), Vec::new());
        unit.ranges[0].state = State::Copied { seam: before_all };
        unit
    }

    /// Puts a stored override back: the row of `key` was copied under `seam`.
    pub fn override_key(&mut self, key: KeyText, seam: Seam) {
        let id = self.new_id();
        self.keys.insert(key, (id, State::Copied { seam }));
    }

    /// Puts a stored override back: every row was copied anew under `seam`.
    pub fn override_all(&mut self, seam: Seam) {
        for range in &mut self.ranges {
            range.state = State::Copied { seam: seam.clone() };
        }
    }

    /// Rebuilds the map from what is stored. `copied` must list ranges in the order of their keys (as the
    /// source orders them); gaps between them have not begun.
    pub fn restore(
        order: Vec<KeyOrder>,
        copied: Vec<CopiedRegion>,
        skipped: BTreeSet<Xid>,
    ) -> Result<Self, MapError> {
        let mut unit = UnitRegions::new(order);
        unit.skipped = skipped;
        unit.ranges.clear();
        let mut reached: Option<Option<KeyText>> = Some(None);
        for CopiedRegion { extent, seam } in copied {
            let id = unit.new_id();
            let (lower, upper) = match extent {
                Extent::Key(key) => {
                    unit.keys.insert(key, (id, State::Copied { seam }));
                    continue;
                }
                Extent::Range { lower, upper } => (lower, upper),
            };
            let shown = |k: &Option<KeyText>| k.as_ref().map_or("the end".to_owned(), ToString::to_string);
            let Some(end) = &reached else { return Err(MapError::Overlap { at: shown(&lower) }) };
            if *end != lower {
                let (Some(gap_end), false) = (&lower, unit.is_before(&lower, end)) else {
                    return Err(MapError::Overlap { at: shown(&lower) });
                };
                let gap = Region { id: unit.new_id(), upper: Some(gap_end.clone()), state: State::NotBegun };
                unit.ranges.push(gap);
            }
            unit.ranges.push(Region { id, upper: upper.clone(), state: State::Copied { seam } });
            reached = upper.map(Some);
        }
        if reached.is_some() {
            let id = unit.new_id();
            unit.ranges.push(Region { id, upper: None, state: State::NotBegun });
        }
        Ok(unit)
    }

    /// `a` lies before `b`, as far as it can be told here.
    fn is_before(&self, a: &Option<KeyText>, b: &Option<KeyText>) -> bool {
        match (a, b) {
            (None, Some(_)) => true,
            (Some(a), Some(b)) => compare(&self.order, a, b) == Some(Ordering::Less),
            (_, None) => false,
        }
    }

    fn new_id(&mut self) -> RegionId {
        self.next_id += 1;
        RegionId(self.next_id - 1)
    }

    /// The upper bounds, ascending, with the version that a [`Place`] must name.
    pub fn bounds(&self) -> (Vec<KeyText>, u64) {
        (self.ranges.iter().filter_map(|r| r.upper.clone()).collect(), self.cuts)
    }

    /// Finds `key`'s place, or `None` where the source must be asked with [`UnitRegions::bounds`].
    pub fn place(&self, key: &KeyText) -> Option<Place> {
        let mut low = 0;
        let mut high = self.ranges.len() - 1;
        while low < high {
            let middle = (low + high) / 2;
            let upper = self.ranges[middle].upper.as_ref()?;
            match compare(&self.order, upper, key)? {
                Ordering::Less => low = middle + 1,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        Some(Place { bounds_below: low, cuts: self.cuts })
    }

    /// Judges an event of transaction `x` on `key`, which lies at `place`.
    ///
    /// A verdict once given for (x, key) stays right whatever happens to the region afterwards; only
    /// [`Verdict::Wait`] must be asked again. `None`: the bounds have changed, find the place anew.
    /// A drop because the region has not begun is remembered under the same lock.
    pub fn judge(&mut self, x: Xid, key: Option<&KeyText>, place: Place) -> Option<Verdict> {
        let state = match key.and_then(|key| self.keys.get(key)) {
            Some((_, state)) => state,
            None if place.cuts == self.cuts => &self.ranges[place.bounds_below].state,
            None => return None,
        };
        let verdict = judge_state(state, x);
        if matches!(state, State::NotBegun) {
            self.skipped.insert(x);
        }
        Some(verdict)
    }

    /// Judges a TRUNCATE of transaction `x` for every region.
    ///
    /// `Ok` lists the extents whose rows it removes; `Ok(None)` means all rows, plainly. `Err(())` asks to wait.
    #[allow(clippy::result_unit_err, reason = "the one way to fail is to have to wait")]
    pub fn judge_truncate(&mut self, x: Xid) -> Result<Option<Vec<Emptied>>, ()> {
        let states = || self.ranges.iter().map(|r| &r.state).chain(self.keys.values().map(|(_, s)| s));
        let verdicts: Vec<Verdict> = states().map(|s| judge_state(s, x)).collect();
        if verdicts.contains(&Verdict::Wait) {
            return Err(());
        }
        if states().any(|s| matches!(s, State::NotBegun)) {
            self.skipped.insert(x);
        }
        if verdicts.iter().all(|v| *v == Verdict::Apply) {
            return Ok(None);
        }
        let keys_with = |wanted: Verdict| {
            self.keys.iter().filter(move |(_, (_, s))| judge_state(s, x) == wanted).map(|(k, _)| k.clone())
        };
        let spared: Vec<KeyText> = keys_with(Verdict::Drop).collect();
        let mut extents: Vec<_> = keys_with(Verdict::Apply).map(|k| (Extent::Key(k), Vec::new())).collect();
        for (i, region) in self.ranges.iter().enumerate() {
            if judge_state(&region.state, x) == Verdict::Apply {
                extents.push((self.extent_of(i), spared.clone()));
            }
        }
        Ok(Some(extents))
    }

    fn extent_of(&self, range: usize) -> Extent {
        let lower = range.checked_sub(1).and_then(|before| self.ranges[before].upper.clone());
        Extent::Range { lower, upper: self.ranges[range].upper.clone() }
    }

    /// The first range that has not begun, if any.
    pub fn next_gap(&self) -> Option<(RegionId, Extent)> {
        let at = self.ranges.iter().position(|r| matches!(r.state, State::NotBegun))?;
        Some((self.ranges[at].id, self.extent_of(at)))
    }

    /// Marks the range `id`, cut short at `upper` if given, as being copied and freezes the skipped set.
    ///
    /// Returns the region to copy, or `None` if `id` is no longer a range that has not begun.
    pub fn begin(&mut self, id: RegionId, upper: Option<KeyText>) -> Option<(RegionId, Extent)> {
        let at = self.ranges.iter().position(|r| r.id == id && matches!(r.state, State::NotBegun))?;
        let copying = State::Copying { frozen: self.skipped.clone(), seam: None };
        if upper.is_none() || upper == self.ranges[at].upper {
            self.ranges[at].state = copying;
            return Some((id, self.extent_of(at)));
        }
        let new = Region { id: self.new_id(), upper, state: copying };
        let new_id = new.id;
        self.ranges.insert(at, new);
        self.cuts += 1;
        Some((new_id, self.extent_of(at)))
    }

    /// Marks the single row `key` as being copied, overriding its range. `x` is the transaction that asks for it:
    /// the copy must contain it.
    pub fn begin_key(&mut self, key: KeyText, x: Xid) -> RegionId {
        let id = self.new_id();
        let mut frozen = self.skipped.clone();
        frozen.insert(x);
        self.keys.insert(key, (id, State::Copying { frozen, seam: None }));
        id
    }

    /// What is known of the single row `key` now.
    pub fn key_override(&self, key: &KeyText) -> KeyOverride {
        KeyOverride(self.keys.get(key).cloned())
    }

    /// The copy of the single row `key` was thrown away: its events are judged as before it was marked. No event of the unit
    /// may have been judged in between.
    pub fn put_back_key(&mut self, key: KeyText, before: KeyOverride) {
        match before.0 {
            Some(state) => self.keys.insert(key, state),
            None => self.keys.remove(&key),
        };
    }

    fn state_mut(&mut self, id: RegionId) -> Option<&mut State> {
        let range = self.ranges.iter_mut().find(|r| r.id == id).map(|r| &mut r.state);
        range.or_else(|| self.keys.values_mut().find(|(k, _)| *k == id).map(|(_, s)| s))
    }

    /// A snapshot was taken for region `id`. It serves only if it contains everything frozen.
    pub fn offer_seam(&mut self, id: RegionId, offered: Seam) -> Result<(), SeamTooOld> {
        if let Some(State::Copying { frozen, seam }) = self.state_mut(id) {
            let missing: Vec<Xid> = frozen.iter().copied().filter(|x| !offered.contains(*x)).collect();
            if !missing.is_empty() {
                return Err(SeamTooOld { missing });
            }
            *seam = Some(offered);
        }
        Ok(())
    }

    /// The copy of region `id` has been committed on the target.
    pub fn copied(&mut self, id: RegionId) {
        if let Some(state) = self.state_mut(id)
            && let State::Copying { seam: Some(seam), .. } = state
        {
            *state = State::Copied { seam: seam.clone() };
        }
    }

    /// The copy of region `id` was thrown away: it has not begun.
    ///
    /// A key region stays an override that has not begun: its events are skipped until it is copied.
    pub fn give_up(&mut self, id: RegionId) {
        if let Some(state) = self.state_mut(id) {
            *state = State::NotBegun;
        }
    }

    /// A snapshot of the source has shown these transactions: they need not be remembered.
    pub fn seen(&mut self, seam: &Seam) {
        self.skipped.retain(|x| !seam.contains(*x));
    }

    /// Skipped transactions that no snapshot has shown yet; they belong to the checkpoint.
    pub fn skipped(&self) -> &BTreeSet<Xid> {
        &self.skipped
    }

    /// Whether every region has been copied.
    pub fn is_complete(&self) -> bool {
        let copied = |s: &State| matches!(s, State::Copied { .. });
        self.ranges.iter().all(|r| copied(&r.state)) && self.keys.values().all(|(_, s)| copied(s))
    }
}

fn judge_state(state: &State, x: Xid) -> Verdict {
    match state {
        State::NotBegun => Verdict::Drop,
        State::Copied { seam } | State::Copying { seam: Some(seam), .. } if seam.contains(x) => Verdict::Drop,
        State::Copied { .. } => Verdict::Apply,
        State::Copying { .. } => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests;
