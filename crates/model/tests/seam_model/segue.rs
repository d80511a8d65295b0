//! Segue: what is durable on the target, and what one process has in its memory.
//!
//! The map of regions and the routing are the program's. What the engine does around them is written again here, as
//! small as it can be: `copy_region` (`backfill/region.rs`), routing and handing on (`follow/build.rs`), the start
//! from the stored state and the hand-over (`migration.rs`), and the lock of `regions.rs`, which is there by itself,
//! since a step of the model is one critical section.

use crate::map::{Map, regions_of};
use crate::source::{Rows, Shot, Source, Write};
use crate::world::Bug;
use segue_model::region::RegionId;
use segue_model::seam::{Seam, Xid};

/// A copied region, stored in the transaction that wrote its rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Copied {
    pub(crate) seam: Shot,
    row: Option<u8>,
    /// Which transactions the copy really shows, one bit each; Segue does not know it.
    shown: u8,
}

/// A transaction on the target that has not committed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Open {
    /// A region's copy, and where the region is.
    Region(usize, Copied),
    Batch(Batch),
}

/// What the stream writes with a checkpoint: what is left of one transaction of the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    after: usize,
    to: usize,
    transaction: u8,
    writes: Vec<Write>,
    skipped: Vec<u64>,
}

/// What the target holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Durable {
    pub(crate) rows: Rows,
    pub(crate) checkpoint: usize,
    skipped: Vec<u64>,
    /// Kept when they are forgotten, to judge by.
    pub(crate) regions: [Option<Copied>; 2],
    /// The backfill is over and its regions are forgotten.
    pub(crate) forgotten: bool,
}

/// What must never happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wrong {
    /// A row was missing that a change needs, or there that it must not find.
    DoesNotFit(Write),
    /// A change was applied to a region whose copy shows its transaction.
    Twice(Write),
    /// A copy found a row in its region.
    InTheWay(usize),
}

/// What a commit on the target came to.
pub(crate) enum Committed {
    Done,
    /// The target refused it: somebody else has been there. The process starts anew.
    Refused,
    Wrong(Wrong),
}

impl Durable {
    pub(crate) fn born(checkpoint: usize) -> Durable {
        let none = Vec::new();
        Durable { rows: [None; 2], checkpoint, skipped: none, regions: [None, None], forgotten: false }
    }

    pub(crate) fn commit(&mut self, open: &Open) -> Committed {
        match open {
            Open::Region(at, _) if self.regions[*at].is_some() => Committed::Refused,
            Open::Region(at, _) if self.rows[*at].is_some() => Committed::Wrong(Wrong::InTheWay(*at)),
            Open::Region(at, copied) => {
                self.rows[*at] = copied.row;
                self.regions[*at] = Some(copied.clone());
                Committed::Done
            }
            Open::Batch(batch) => self.advance(batch),
        }
    }

    /// The checkpoint is a compare-and-swap on the one before.
    fn advance(&mut self, batch: &Batch) -> Committed {
        if self.checkpoint != batch.after {
            return Committed::Refused;
        }
        for &write in &batch.writes {
            let shown =
                |at: usize| self.regions[at].as_ref().is_some_and(|r| r.shown >> batch.transaction & 1 == 1);
            if regions_of(write).any(shown) {
                return Committed::Wrong(Wrong::Twice(write));
            }
            if !write.apply(&mut self.rows) {
                return Committed::Wrong(Wrong::DoesNotFit(write));
            }
        }
        self.checkpoint = batch.to;
        self.skipped.clone_from(&batch.skipped);
        Committed::Done
    }
}

/// A worker's region.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Work {
    id: RegionId,
    /// Where the log ended when the region was marked; used, and therefore kept, by a bug only.
    marked_at: Option<usize>,
    pub(crate) copy: Option<Copy>,
}

/// What was read on the source, not yet committed on the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Copy {
    copied: Copied,
    covered_by: usize,
    /// The session that took the seam has seen the source durable up to `covered_by`.
    pub(crate) durable: bool,
}

/// How far the hand-over from the regions to the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandOver {
    Not,
    /// The signal ends here in the log.
    Signalled(usize),
    /// The map is dropped: every event applies.
    Retired,
}

/// One process, born of what is durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) map: Map,
    pub(crate) hand_over: HandOver,
    pub(crate) works: [Option<Work>; 2],
    /// The place in the log of the transaction that is routed, …
    pub(crate) routed: usize,
    /// … how many of its changes are, and what is left of those.
    change: usize,
    left: Vec<Write>,
    /// The checkpoint of the last batch that went to the writer.
    handed_on: usize,
    pub(crate) out: Option<Batch>,
    /// Its sessions on the source live. When they have died, only what needs no source goes on.
    pub(crate) connected: bool,
}

impl Process {
    pub(crate) fn start(durable: &Durable, bug: Option<Bug>) -> Process {
        let skipped = if bug == Some(Bug::SkippedNotStored) { &[][..] } else { &durable.skipped };
        let seams = durable.regions.each_ref().map(|r| r.as_ref().map(|r| &r.seam));
        Process {
            map: Map::restore(seams, skipped),
            hand_over: if durable.forgotten { HandOver::Retired } else { HandOver::Not },
            works: [None, None],
            routed: durable.checkpoint,
            change: 0,
            left: Vec::new(),
            handed_on: durable.checkpoint,
            out: None,
            connected: true,
        }
    }

    /// Nothing is half done.
    pub(crate) fn is_quiet(&self, source: &Source) -> bool {
        let done = self.map.is_complete() && self.works.iter().all(Option::is_none);
        self.connected && done && self.out.is_none() && self.change == 0 && self.routed == source.log.len()
    }

    /// A worker marks the first gap as being copied.
    pub(crate) fn begin(&mut self, source: &Source, bug: Option<Bug>) -> Option<usize> {
        let (at, gap) = self.map.next_gap()?;
        if bug == Some(Bug::NoFrozenSet) {
            let everything = Seam::new(Xid(u64::MAX), Xid(u64::MAX), Vec::new());
            self.map.change(|unit| unit.seen(&everything));
        }
        let id = self.map.begin(at, gap);
        let marked_at = (bug == Some(Bug::PositionBeforeSeam)).then_some(source.log.len());
        self.works[at] = Some(Work { id, marked_at, copy: None });
        Some(at)
    }

    /// Takes a snapshot for a marked region and offers it to the map; whether it serves.
    pub(crate) fn snapshot(&mut self, at: usize, source: &Source, bug: Option<Bug>) -> bool {
        let Some(Work { id, marked_at, copy: None }) = self.works[at] else { return false };
        let mut shot = source.snapshot();
        match bug {
            Some(Bug::InProgressIgnored) => {
                shot = Shot { xmin: shot.xmax, xmax: shot.xmax, in_progress: vec![] }
            }
            Some(Bug::OnlyBelowXmin) => shot = Shot { xmin: shot.xmin, xmax: shot.xmin, in_progress: vec![] },
            _ => {}
        }
        let seam = shot.seam();
        let serves = self.map.change(|unit| {
            unit.seen(&seam);
            unit.offer_seam(id, seam).is_ok()
        });
        if serves {
            let copied = Copied { seam: shot, row: source.rows[at], shown: source.shown };
            let covered_by = marked_at.unwrap_or(source.log.len());
            let copy = Copy { copied, covered_by, durable: false };
            self.works[at] = Some(Work { id, marked_at, copy: Some(copy) });
        }
        serves
    }

    /// The region is put back as not begun: no snapshot has served for too long.
    pub(crate) fn give_up(&mut self, at: usize) {
        if let Some(Work { id, .. }) = self.works[at].take() {
            self.map.change(|unit| unit.give_up(id));
        }
    }

    /// The region's transaction on the target, once it may commit.
    pub(crate) fn open_region(&self, at: usize) -> Option<Open> {
        let copy = self.works[at].as_ref()?.copy.as_ref()?;
        copy.durable.then(|| Open::Region(at, copy.copied.clone()))
    }

    pub(crate) fn copied(&mut self, at: usize) {
        if let Some(Work { id, .. }) = self.works[at].take() {
            self.map.change(|unit| unit.copied(id));
        }
    }

    /// What becomes true by itself: workers see the source durable, the stream passes what commits nothing.
    pub(crate) fn settle(&mut self, source: &Source, bug: Option<Bug>) {
        for copy in self.works.iter_mut().flatten().filter_map(|work| work.copy.as_mut()) {
            let flushed = source.flushed >= copy.covered_by || bug == Some(Bug::CommittedBeforeFlushed);
            copy.durable |= flushed && (self.connected || bug == Some(Bug::PositionInAnotherSession));
        }
        let nothing = |at: usize| at < source.flushed && source.log[at].commits.is_none();
        while self.connected && nothing(self.routed) {
            self.routed += 1;
        }
    }

    /// Routes the next change that the stream delivers, while the batch before may still be written; hands the
    /// transaction on after its last change, as soon as the writer is free. Whether anything happened.
    pub(crate) fn route(&mut self, source: &Source) -> bool {
        if self.routed >= source.flushed {
            return false;
        }
        let record = source.log[self.routed];
        let Some(transaction) = record.commits else { return false };
        let writes = &source.transactions[usize::from(transaction)].writes;
        if self.change == writes.len() && self.out.is_some() {
            return false;
        }
        if let Some(&write) = writes.get(self.change) {
            let before = self.map.clone();
            let routed = match self.hand_over {
                HandOver::Retired => Ok(Some(write)),
                HandOver::Not | HandOver::Signalled(_) => self.map.route(record.xid, write),
            };
            match routed {
                Ok(left) => self.left.extend(left),
                // The question itself may have noted a skipped transaction.
                Err(()) => return self.map != before,
            }
            self.change += 1;
        }
        if self.change == writes.len() && self.out.is_none() {
            self.routed += 1;
            self.change = 0;
            let writes = std::mem::take(&mut self.left);
            let skipped = self.map.skipped();
            let after = std::mem::replace(&mut self.handed_on, self.routed);
            self.out = Some(Batch { after, to: self.routed, transaction, writes, skipped });
        }
        true
    }

    /// The stream has passed the signal, and everything before is durable.
    pub(crate) fn has_passed(&self, signal: usize) -> bool {
        self.routed >= signal && self.change == 0 && self.out.is_none()
    }
}
