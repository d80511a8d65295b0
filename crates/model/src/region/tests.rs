//! The map of regions: what becomes of an event, and of a map that is read again.

use super::*;

fn key(n: i64) -> KeyText {
    KeyText::from_texts([n.to_string()])
}
fn seam(text: &str) -> Seam {
    text.parse().expect("a seam")
}
fn unit() -> UnitRegions {
    UnitRegions::new(vec![KeyOrder::Integer])
}
fn judge(unit: &mut UnitRegions, x: u64, k: i64) -> Verdict {
    let key = key(k);
    let place = unit.place(&key).expect("integers have a place");
    unit.judge(Xid(x), Some(&key), place).expect("the place is fresh")
}
fn copy(unit: &mut UnitRegions, upper: Option<i64>, at: &str) -> RegionId {
    let (gap, _) = unit.next_gap().expect("a gap");
    let (id, _) = unit.begin(gap, upper.map(key)).expect("not begun");
    unit.offer_seam(id, seam(at)).expect("seam serves");
    unit.copied(id);
    id
}

#[test]
fn an_event_goes_where_the_table_says() {
    let mut u = unit();
    assert_eq!(judge(&mut u, 50, 1), Verdict::Drop, "not begun");
    copy(&mut u, Some(10), "100:100:");
    assert_eq!(judge(&mut u, 99, 10), Verdict::Drop, "copied with it");
    assert_eq!(judge(&mut u, 100, 10), Verdict::Apply, "copied without it");
    let (gap, _) = u.next_gap().unwrap();
    let (id, extent) = u.begin(gap, None).unwrap();
    assert_eq!(extent, Extent::Range { lower: Some(key(10)), upper: None });
    assert_eq!(judge(&mut u, 101, 11), Verdict::Wait, "being copied, seam unknown");
    u.offer_seam(id, seam("102:102:")).unwrap();
    assert_eq!(judge(&mut u, 101, 11), Verdict::Drop, "the copy will have it");
    assert_eq!(judge(&mut u, 102, 11), Verdict::Wait, "the copy will not have it");
    u.copied(id);
    assert_eq!(judge(&mut u, 102, 11), Verdict::Apply);
    assert!(u.is_complete());
}

#[test]
fn a_seam_that_lacks_a_skipped_transaction_does_not_serve() {
    let mut u = unit();
    judge(&mut u, 70, 5);
    let (gap, _) = u.next_gap().unwrap();
    let (id, _) = u.begin(gap, None).unwrap();
    assert_eq!(u.offer_seam(id, seam("60:75:70")), Err(SeamTooOld { missing: vec![Xid(70)] }));
    assert_eq!(judge(&mut u, 71, 5), Verdict::Wait);
    assert_eq!(u.offer_seam(id, seam("71:75:")), Ok(()));
}

#[test]
fn a_region_given_up_has_not_begun_and_its_later_events_are_skipped() {
    let mut u = unit();
    let (gap, _) = u.next_gap().unwrap();
    let (id, _) = u.begin(gap, None).unwrap();
    u.offer_seam(id, seam("60:60:")).unwrap();
    u.give_up(id);
    assert_eq!(judge(&mut u, 61, 1), Verdict::Drop);
    assert!(u.skipped().contains(&Xid(61)));
    let (id, _) = u.begin(id, None).unwrap();
    assert!(u.offer_seam(id, seam("61:61:")).is_err());
}

#[test]
fn a_place_from_old_bounds_is_refused() {
    let mut u = unit();
    let place = u.place(&key(3)).unwrap();
    copy(&mut u, Some(1), "9:9:");
    assert_eq!(u.judge(Xid(1), Some(&key(3)), place), None);
}

#[test]
fn a_key_region_overrides_its_range() {
    let mut u = unit();
    let id = u.begin_key(key(7), Xid(40));
    assert!(u.offer_seam(id, seam("40:41:40")).is_err(), "must contain the asking transaction");
    u.offer_seam(id, seam("41:41:")).unwrap();
    u.copied(id);
    assert_eq!(judge(&mut u, 45, 7), Verdict::Apply);
    assert_eq!(judge(&mut u, 45, 8), Verdict::Drop);
}

#[test]
fn a_map_is_rebuilt_with_its_gaps() {
    let stored = |l: Option<i64>, h: Option<i64>| CopiedRegion {
        extent: Extent::Range { lower: l.map(key), upper: h.map(key) },
        seam: seam("100:100:"),
    };
    let order = vec![KeyOrder::Integer];
    let mut u = UnitRegions::restore(
        order.clone(),
        vec![stored(Some(10), Some(20)), stored(Some(30), None)],
        BTreeSet::from([Xid(99)]),
    )
    .unwrap();
    for (k, verdict) in [(10, Verdict::Drop), (11, Verdict::Apply), (25, Verdict::Drop), (31, Verdict::Apply)]
    {
        assert_eq!(judge(&mut u, 100, k), verdict, "key {k}");
    }
    assert_eq!(u.next_gap().unwrap().1, Extent::Range { lower: None, upper: Some(key(10)) });
    assert!(u.skipped().contains(&Xid(99)));
    let overlap = UnitRegions::restore(
        order,
        vec![stored(None, Some(20)), stored(Some(10), Some(30))],
        BTreeSet::new(),
    );
    assert!(matches!(overlap, Err(MapError::Overlap { .. })));
    let done = UnitRegions::restore(vec![], vec![stored(None, None)], BTreeSet::new()).unwrap();
    assert!(done.is_complete());
}

#[test]
fn truncate_removes_only_rows_that_were_copied_before_it() {
    let mut u = unit();
    copy(&mut u, Some(10), "100:100:");
    copy(&mut u, Some(20), "200:200:");
    let extents = u.judge_truncate(Xid(150)).unwrap().expect("not all");
    assert_eq!(extents, vec![(Extent::Range { lower: None, upper: Some(key(10)) }, vec![])]);
    assert!(u.skipped().contains(&Xid(150)), "the rest has not begun");
    copy(&mut u, None, "300:300:");
    assert_eq!(u.judge_truncate(Xid(300)), Ok(None), "later than every seam");
    assert_eq!(u.judge_truncate(Xid(99)), Ok(Some(vec![])), "in every seam");
}

#[test]
fn snapshots_make_the_skipped_set_shrink() {
    let mut u = unit();
    for x in [5, 6, 7] {
        judge(&mut u, x, 1);
    }
    u.seen(&seam("6:8:6"));
    assert_eq!(u.skipped().iter().copied().collect::<Vec<_>>(), vec![Xid(6)]);
}

#[test]
fn a_row_whose_copy_came_to_nothing_is_judged_as_before_it_was_marked() {
    let mut u = UnitRegions::followed(vec![KeyOrder::Integer]);
    // It was in the stream's hands: whatever comes applies.
    let before = u.key_override(&key(5));
    let id = u.begin_key(key(5), Xid(0));
    u.offer_seam(id, seam("20:20:")).expect("seam serves");
    u.put_back_key(key(5), before);
    assert_eq!(judge(&mut u, 10, 5), Verdict::Apply);
    // It was copied, and is to be copied once more: what the first copy contains is still dropped.
    u.override_key(key(5), seam("20:20:"));
    let before = u.key_override(&key(5));
    u.begin_key(key(5), Xid(0));
    u.put_back_key(key(5), before);
    assert_eq!((judge(&mut u, 10, 5), judge(&mut u, 30, 5)), (Verdict::Drop, Verdict::Apply));
    assert!(u.is_complete() && u.skipped().is_empty());
}
