//! What is repaired, in which order, and what is said where the other side does not take a row.

use super::*;

#[tokio::test(start_paused = true)]
async fn repaired_rows_are_compared_again() {
    let parts = parts(planted(1), Order::Number);
    let dry = run(&parts, table(true), Request { repair: Repair::DryRun, ..small_ranges() }).await;
    assert!(dry.divergences.iter().all(|d| d.remedy.is_some() && !d.repaired));
    let report = run(&parts, table(true), Request { repair: Repair::Write, ..small_ranges() }).await;
    assert_eq!((report.divergent, report.tables[0].counts.repaired), (4, 4));
    assert!(report.divergences.iter().all(|d| d.repaired) && report.is_equal());
    assert_eq!(report.drift, 0.0);
    assert_eq!(run(&parts, table(true), small_ranges()).await.divergent, 0);
}

fn write() -> Request {
    Request { repair: Repair::Write, ..small_ranges() }
}

#[tokio::test(start_paused = true)]
async fn rows_that_keep_each_other_out_are_repaired_in_an_order_in_which_they_fit() {
    let mut world = World::new(1, 6, []);
    // Somebody has moved the value of row 1 to a row that the owner does not have …
    world.plant(1, None);
    world.plant(9, Some("v1"));
    // … and shifted others by one, so that each is kept out by the next.
    for (key, value) in [(2, "other"), (3, "v2"), (4, "v3")] {
        world.plant(key, Some(value));
    }
    world.unique = true;
    let parts = parts(world, Order::Number);
    let report = run(&parts, table(true), write()).await;
    assert!(report.is_equal(), "{:?}", report.divergences);
    assert_eq!((report.divergent, report.tables[0].counts.repaired), (5, 5));
    assert_eq!(run(&parts, table(true), small_ranges()).await.divergent, 0);
}

#[tokio::test(start_paused = true)]
async fn rows_that_hold_each_others_values_are_left_with_the_reason_and_the_others_are_repaired() {
    let mut world = World::new(1, 6, []);
    for (key, value) in [(0, Some("v1")), (1, Some("v0")), (5, None)] {
        world.plant(key, value);
    }
    world.unique = true;
    let report = run(&parts(world, Order::Number), table(true), write()).await;
    assert!(report.complete && !report.shows_no_difference());
    assert_eq!((report.divergent, report.tables[0].counts.repaired), (3, 1));
    for d in &report.divergences {
        let is_swapped = d.difference.class == Class::Changed;
        assert_eq!((d.repaired, d.refused.is_some()), (!is_swapped, is_swapped), "{d:?}");
        assert!(d.refused.iter().all(|why| why.contains("the value is taken") && why.contains("free it")));
    }
}
