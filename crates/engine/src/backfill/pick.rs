//! Which unit a worker copies next: one that fewer workers copy than any other, and of those the biggest.
//!
//! Several workers in one table cost the target more than in several: they meet at the table's end, and only one of them writes
//! at the end of its index. It does not know how a unit is cut.

use super::Work;
use crate::regions::Regions;
use std::ops::Deref;
use std::sync::atomic::Ordering;

/// A unit that a worker is at, until this is dropped.
pub(super) struct Picked<'w>(&'w Work);

impl Deref for Picked<'_> {
    type Target = Work;

    fn deref(&self) -> &Work {
        self.0
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.0.workers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Picks among `work`, the biggest first, what has a gap; `None`: nothing has.
pub(super) fn pick<'w>(regions: &Regions, work: &'w [Work]) -> Option<Picked<'w>> {
    loop {
        let mut least: Option<(&Work, usize)> = None;
        for unit in work {
            let workers = unit.workers.load(Ordering::Relaxed);
            let is_less = least.is_none_or(|(_, least)| workers < least);
            if is_less && regions.next_gap(unit.unit).is_some() {
                least = Some((unit, workers));
                if workers == 0 {
                    break;
                }
            }
        }
        let (unit, workers) = least?;
        // Another worker may have picked it just now; then all are looked at again.
        let picked =
            unit.workers.compare_exchange(workers, workers + 1, Ordering::Relaxed, Ordering::Relaxed);
        if picked.is_ok() {
            return Some(Picked(unit));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

    use super::*;
    use crate::ports::Onto;
    use segue_model::key::KeyText;
    use segue_model::name::QualifiedName;
    use segue_model::region::UnitRegions;
    use segue_model::seam::Xid;
    use segue_model::table::{Estimate, Identity, KeyOrder, Table, TableId, UnitId};
    use std::sync::Arc;

    fn three() -> (Regions, Vec<Work>) {
        let name = QualifiedName::new("public", "t");
        let table = Arc::new(Table {
            id: TableId(0),
            source: name.clone(),
            target: name,
            columns: Vec::new(),
            identity: Identity::WholeRow,
            one_region: None,
            estimate: Estimate::default(),
        });
        let units = [UnitId(2), UnitId(0), UnitId(1)];
        let regions =
            units.into_iter().map(|unit| (unit, UnitRegions::new(vec![KeyOrder::Integer]))).collect();
        let work = units.into_iter().map(|unit| Work::new(unit, table.clone(), Onto::Nothing)).collect();
        (Regions::new(regions, Xid(3)), work)
    }

    #[test]
    fn each_worker_has_a_unit_of_its_own_while_there_are_enough() {
        let (regions, work) = three();
        let mut picked: Vec<Picked<'_>> = (0..4).map(|_| pick(&regions, &work).unwrap()).collect();
        let units: Vec<UnitId> = picked.iter().map(|picked| picked.unit).collect();
        assert_eq!(units, [UnitId(2), UnitId(0), UnitId(1), UnitId(2)], "the biggest first, and twice");
        picked.remove(1);
        assert_eq!(pick(&regions, &work).unwrap().unit, UnitId(0), "nobody is there any more");
    }

    #[test]
    fn what_has_no_gap_is_nobodys_and_the_last_one_is_everybodys() {
        let (regions, work) = three();
        for unit in [UnitId(2), UnitId(1)] {
            let (gap, _) = regions.next_gap(unit).unwrap();
            regions.begin(unit, gap, None).unwrap();
        }
        let both = [pick(&regions, &work).unwrap(), pick(&regions, &work).unwrap()];
        assert!(both.iter().all(|picked| picked.unit == UnitId(0)));
        let (gap, _) = regions.next_gap(UnitId(0)).unwrap();
        regions.begin(UnitId(0), gap, Some(KeyText::from_texts(["7".to_owned()]))).unwrap();
        assert!(pick(&regions, &work).is_some(), "what is behind the cut");
        let (gap, _) = regions.next_gap(UnitId(0)).unwrap();
        regions.begin(UnitId(0), gap, None).unwrap();
        assert!(pick(&regions, &work).is_none());
    }
}
