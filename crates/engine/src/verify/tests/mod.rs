//! Verifying two sides in memory while both of them change, under seeded schedules.

mod repairs;
mod world;

use super::live::{Live, LiveQueue};
use super::ports::Comparable as _;
use super::report::{Mode, Repair, Report, Request};
use super::*;
use crate::throttle::Limits;
use segue_model::change::{Action, Change, Value};
use segue_model::divergence::Class;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::table::{ArrayForm, Column, Estimate, Key, KeyOrder, Transport, UnitId};
use std::collections::BTreeSet;
use tokio::sync::Barrier;
use world::{Broken, Kept, Order, Side, Stream, World, sides};

type TestParts = Parts<Side, Side, Stream, Kept, Stream>;

fn table(keyed: bool) -> Arc<Table> {
    let column = |name: &str, sql_type: &str| Column {
        source: name.into(),
        target: name.into(),
        target_type: sql_type.into(),
        transport: Transport::Binary,
        array: ArrayForm::Typed,
        nullable: true,
        identity_always: false,
    };
    let key = Key {
        columns: vec![0],
        order: vec![KeyOrder::Integer],
        ordered_alike: true,
        bytewise: true,
        target_deferrable: false,
    };
    Arc::new(Table {
        id: TableId(7),
        source: QualifiedName::new("public", "t"),
        target: QualifiedName::new("public", "t"),
        columns: vec![column("id", "bigint"), column("v", "text")],
        identity: if keyed { Identity::Key(key) } else { Identity::WholeRow },
        one_region: None,
        estimate: Estimate::default(),
    })
}

fn parts(world: World, order: Order) -> Arc<TestParts> {
    let (world, owner, other) = sides(world, order);
    Arc::new(Parts {
        owner: Arc::new(owner),
        other: Arc::new(other),
        passage: Arc::new(Stream(world.clone())),
        store: Arc::new(Kept::default()),
        repairer: Arc::new(Stream(world)),
        throttle: Arc::new(Throttle::new(Limits::default())),
        progress: Arc::new(Progress::new([], Position(0))),
        unsettled: Unsettled::default(),
        differences: Differences::default(),
    })
}

async fn run(parts: &Arc<TestParts>, table: Arc<Table>, request: Request) -> Report {
    let (report, _watch) = watch::channel(Report::default());
    Verifier::new(parts.clone()).run(&[table], &request, &report).await.expect("no fault")
}

fn small_ranges() -> Request {
    Request { range_rows_max: 9, ranges_at_once: 3, ..Request::default() }
}

/// Runs every seed and returns how many reported a difference.
async fn reports(
    seeds: u64,
    keyed: bool,
    order: Order,
    broken: Broken,
    world: impl Fn(u64) -> World,
) -> usize {
    let mut reports = 0;
    for seed in 0..seeds {
        let parts = parts(world(seed).breaking(broken), order);
        let report = run(&parts, table(keyed), small_ranges()).await;
        assert!(report.complete, "seed {seed}");
        reports += usize::from(report.divergent > 0);
    }
    reports
}

#[tokio::test(start_paused = true)]
async fn nothing_in_flight_is_ever_reported() {
    let world = |seed| World::new(seed, 30, 0..40);
    assert_eq!(reports(300, true, Order::Number, Broken::default(), world).await, 0);
    assert_eq!(reports(100, true, Order::TextBackwards, Broken::default(), world).await, 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_in_flight_is_ever_reported_without_a_key() {
    let world = |seed| World::new(seed, 12, 0..16);
    assert_eq!(reports(300, false, Order::Number, Broken::default(), world).await, 0);
}

#[tokio::test(start_paused = true)]
async fn parts_on_their_way_are_never_reported() {
    let world = |seed| World::new(seed, 30, 0..40).with_leaf();
    assert_eq!(reports(300, true, Order::Number, Broken::default(), world).await, 0);
    let world = |seed| World::new(seed, 12, 0..16).with_leaf();
    assert_eq!(reports(300, false, Order::Number, Broken::default(), world).await, 0);
    // A part that moves just when one of its rows is settled.
    for seed in 0..10_000 {
        let parts = parts(World::new(seed, 2, []).with_leaf(), Order::Number);
        let items = vec![Item::Key(KeyText::from_texts(["-1".to_owned()]))];
        let settled = parts.settle(&table(true), items, false, &mut RangeCounts::default()).await;
        assert!(settled.expect("no fault").divergent.is_empty(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_rule_of_settling_is_needed() {
    for (what, broken) in [
        ("signals", Broken { passed: true, ..Broken::default() }),
        ("visibility", Broken { shown: true, ..Broken::default() }),
        ("versions", Broken { versions: true, ..Broken::default() }),
        ("parts", Broken { parts: true, ..Broken::default() }),
    ] {
        let leaf = |world: World| if broken.parts { world.with_leaf() } else { world };
        let world = |seed| leaf(World::new(seed, 30, 0..40));
        let keyed = reports(300, true, Order::Number, broken, world).await;
        let world = |seed| leaf(World::new(seed, 12, 0..16));
        let keyless = reports(300, false, Order::Number, broken, world).await;
        assert!(keyed + keyless > 0, "without {what} there must be false reports");
    }
}

/// Differences in rows that nobody writes to, among rows that are written to all the time.
fn planted(seed: u64) -> World {
    let mut world = World::new(seed, 700, (0..700).filter(|key| key % 10 != 3));
    world.plant(3, None);
    world.plant(113, Some("something else"));
    world.plant(693, Some(""));
    world.plant(1_000_000, Some("extra"));
    world
}

fn found(report: &Report) -> BTreeSet<(String, Class)> {
    let key = |d: &Divergence| d.key.as_ref().map_or_else(String::new, ToString::to_string);
    report.divergences.iter().map(|d| (key(d), d.difference.class)).collect()
}

fn planted_keys() -> BTreeSet<(String, Class)> {
    [
        ("(3)", Class::Missing),
        ("(113)", Class::Changed),
        ("(693)", Class::Truncation),
        ("(1000000)", Class::Extra),
    ]
    .map(|(key, class)| (key.to_owned(), class))
    .into()
}

#[tokio::test(start_paused = true)]
async fn planted_differences_are_always_found_and_nothing_else() {
    for seed in 0..60 {
        let order = if seed % 3 == 0 { Order::TextBackwards } else { Order::Number };
        let rows = [9, 100, 10_000][seed as usize % 3];
        let request = Request { range_rows_max: rows, ..Request::default() };
        let report = run(&parts(planted(seed), order), table(true), request).await;
        assert_eq!(found(&report), planted_keys(), "seed {seed}");
        assert_eq!(report.divergent, 4, "seed {seed}");
        assert_eq!(report.tables[0].columns_not_compared, ["of both", "of the other side", "of the owner"]);
        assert!(report.drift > 0.0 && !report.is_equal());
    }
}

#[tokio::test(start_paused = true)]
async fn planted_images_are_found_without_a_key() {
    for seed in 0..100 {
        let mut world = World::new(seed, 40, 0..3);
        // One image that only one side has; and one that it has once too often, by a write over another one.
        world.plant(100, Some("new"));
        world.plant(31, Some("v5"));
        let report = run(&parts(world, Order::Number), table(false), Request::default()).await;
        let classes: Vec<Class> = report.divergences.iter().map(|d| d.difference.class).collect();
        let count = |class| classes.iter().filter(|c| **c == class).count();
        assert_eq!((count(Class::Extra), count(Class::Missing)), (2, 1), "seed {seed}: new, v5; v3");
        assert!(report.divergences.iter().all(|d| d.key.is_none() && d.owner_rows != d.other_rows));
    }
}

#[tokio::test(start_paused = true)]
async fn a_verification_that_was_cut_off_goes_on_with_what_is_not_stored() {
    for room in [0, 1, 5, 40] {
        let parts = parts(planted(room as u64), Order::Number);
        let (report, _watch) = watch::channel(Report::default());
        *parts.store.room.lock().expect("ok") = Some(room);
        let verifier = Verifier::new(parts.clone());
        verifier.run(&[table(true)], &small_ranges(), &report).await.expect_err("killed");
        *parts.store.room.lock().expect("ok") = None;
        let stored = parts.store.ranges.lock().expect("ok").get(&TableId(7)).map_or(0, Vec::len);
        assert_eq!(stored, room);
        let report = run(&parts, table(true), Request { resume: true, ..small_ranges() }).await;
        assert_eq!(report.tables[0].ranges_resumed, room as u64);
        assert_eq!(found(&report), planted_keys(), "after {room} ranges");
        assert_eq!(report.divergent, 4);
        let again = run(&parts, table(true), Request { resume: true, ..small_ranges() }).await;
        assert_eq!(again.tables[0].ranges_resumed, again.tables[0].ranges, "nothing is left to compare");
        assert_eq!(again.divergent, 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sample_compares_the_rows_it_picked() {
    let request = Request { mode: Mode::Sample, sample_rows: 200, ..Request::default() };
    let report = run(&parts(planted(2), Order::Number), table(true), request.clone()).await;
    assert_eq!(report.divergent, 2, "rows 3 and 113 are among the first 200");
    let quiet = run(&parts(World::new(1, 300, []), Order::Number), table(true), request).await;
    assert_eq!((quiet.divergent, quiet.rows, quiet.shows_no_difference()), (0, 200, true));
    assert!(!quiet.is_equal(), "a hundred rows were not looked at");
}

#[tokio::test(start_paused = true)]
async fn counts_are_settled_only_while_nothing_changes() {
    let request = Request { mode: Mode::Aggregate, ..Request::default() };
    let quiet = run(&parts(World::new(1, 50, []), Order::Number), table(true), request.clone()).await;
    assert!(quiet.shows_no_difference() && !quiet.is_equal(), "a count is no proof");
    assert!(quiet.tables[0].counted.as_ref().is_some_and(|c| c.settled && c.owner == 50));
    assert_eq!((quiet.rows, quiet.tables[0].counts.rows), (0, 0), "and no row was compared");
    let mut world = World::new(1, 50, []);
    world.plant(3, None);
    let parts = parts(world, Order::Number);
    let unequal = run(&parts, table(true), request.clone()).await;
    let counted = unequal.tables[0].counted.as_ref().expect("counted");
    assert!(!unequal.shows_no_difference() && !counted.settled && counted.advice.contains("digest"));
    // One that was cut off behind this table counts it again.
    let resumed = run(&parts, table(true), Request { resume: true, ..request }).await;
    assert_eq!(resumed.tables[0].counted.as_ref(), Some(counted));
    assert!(!resumed.shows_no_difference());
    let mut uncounted = resumed.clone();
    uncounted.tables[0].counted = None;
    assert!(!uncounted.shows_no_difference(), "what was not counted does not agree");
}

fn touch(key: i64) -> Change {
    let text = |text: String| Value::Text(text.into());
    let new = [text(key.to_string()), text("x".into())].into();
    Change { table: TableId(7), unit: UnitId(7), action: Action::Insert { new } }
}

#[tokio::test(start_paused = true)]
async fn rows_touched_by_the_stream_are_compared_again() {
    let parts = parts(planted(5), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    let queue = Arc::new(LiveQueue::default());
    let changes: Vec<Change> = (0..700).chain(0..700).map(touch).collect();
    queue.applied(&tables, &changes);
    assert_eq!(queue.len(), 700, "a key waits once");
    let live = Live::new(parts.clone(), queue, tables, 1000);
    let limit = tokio::time::timeout(Duration::from_secs(60), live.run()).await;
    assert!(limit.is_err(), "it never ends by itself");
    let counts = live.counts();
    assert_eq!((counts.compared, counts.divergent, counts.open, counts.queued), (700, 3, 3, 0));
    assert_eq!(counts.equal + counts.hot + counts.divergent, 700);
    assert_eq!(parts.store.live.lock().expect("ok").len(), 3);
}

fn items(keys: &[i64]) -> Vec<Item> {
    keys.iter().map(|key| Item::Key(KeyText::from_texts([key.to_string()]))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_difference_that_could_not_be_stored_and_what_nobody_got_to_are_left_to_be_compared_at_rest() {
    let parts = parts(planted(5).quiet(), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    let queue = Arc::new(LiveQueue::default());
    queue.applied(&tables, &[touch(3), touch(4)]);
    parts.store.is_away.store(true, std::sync::atomic::Ordering::Relaxed);
    let live = Live::new(parts.clone(), queue.clone(), tables.clone(), 1000);
    let limit = tokio::time::timeout(Duration::from_secs(5), live.run()).await;
    assert!(limit.is_err() && parts.store.live.lock().expect("ok").is_empty(), "it waits for the store");
    parts.store.is_away.store(false, std::sync::atomic::Ordering::Relaxed);
    let found = parts.compare_at_rest(&tables, &queue).await.expect("no fault");
    assert_eq!(
        (found.compared, found.divergences.len()),
        (1, 1),
        "row 3 was tampered with, 4 was found equal"
    );
}

#[tokio::test(start_paused = true)]
async fn a_row_that_differed_and_is_too_hot_to_tell_is_not_taken_for_equal() {
    let parts = parts(planted(5), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    let queue = Arc::new(LiveQueue::default());
    queue.applied(&tables, &[touch(3), touch(113)]);
    let live = Live::new(parts, queue, tables, 1000);
    let limit = tokio::time::timeout(Duration::from_secs(5), live.run()).await;
    assert!(limit.is_err() && live.counts().open == 2);
    live.remember(TableId(7), &items(&[3, 113]), &items(&[3]), &[]);
    assert_eq!(live.counts().open, 1, "the other one was found equal");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_stand_still_at_rest_is_said() {
    let tables = BTreeMap::from([(TableId(7), table(false))]);
    let mut met = 0;
    for seed in 0..20 {
        // Somebody goes on writing past the fence.
        let parts = parts(World::new(seed, 50, 0..50), Order::Number);
        let images = parts.owner.sample(&table(false), 5).await.expect("no fault");
        parts.unsettled.settled(TableId(7), &[], &images);
        let found = parts.compare_at_rest(&tables, &LiveQueue::default()).await.expect("no fault");
        assert_eq!(found.hot, parts.unsettled.len() as u64, "seed {seed}");
        assert!(found.divergences.is_empty(), "seed {seed}");
        met += found.hot;
    }
    assert!(met > 0, "rows are hot in one of the schedules");
}

#[tokio::test(start_paused = true)]
async fn hot_rows_that_find_no_room_are_counted() {
    let others: Vec<Item> = (0..at_rest::UNSETTLED_MAX as i64 - 1).map(Item::Image).collect();
    let mut met = 0;
    for seed in 0..20 {
        let parts = parts(World::new(seed, 50, 0..50), Order::Number);
        assert_eq!(parts.unsettled.settled(TableId(1), &[], &others), 0);
        let counts = run(&parts, table(false), Request::default()).await.tables[0].counts;
        assert_eq!(counts.forgotten, counts.hot.saturating_sub(1), "seed {seed}: there is room for one");
        met += counts.forgotten;
    }
    assert!(met > 0, "rows are hot in one of the schedules");
}

#[tokio::test(start_paused = true)]
async fn what_was_hot_and_what_was_just_applied_is_compared_at_rest() {
    let parts = parts(planted(5).quiet(), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    parts.unsettled.settled(TableId(7), &[], &items(&[1, 2, 3]));
    let queue = LiveQueue::default();
    queue.applied(&tables, &[touch(113), touch(4)]);
    let found = parts.compare_at_rest(&tables, &queue).await.expect("no fault");
    assert_eq!((found.compared, found.divergences.len()), (5, 2), "rows 3 and 113 were tampered with");
    assert!(queue.is_empty());
    assert_eq!(parts.store.live.lock().expect("ok").len(), 2);
    // What differs is compared at every fence, until somebody has mended it.
    let again = parts.compare_at_rest(&tables, &queue).await.expect("no fault");
    assert_eq!((again.compared, again.divergences.len()), (2, 2));
    parts.repairer.repair(&table(true), &Extent::ALL, None).await.expect("no fault");
    let mended = parts.compare_at_rest(&tables, &queue).await.expect("no fault");
    assert_eq!((mended.compared, mended.divergences.len()), (2, 0));
    assert!(parts.unsettled.is_empty(), "nothing is left to be compared");
}

#[tokio::test(start_paused = true)]
async fn a_difference_at_rest_outlives_a_store_that_is_away_and_whoever_gives_up_waiting() {
    let parts = parts(planted(5).quiet(), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    parts.unsettled.settled(TableId(7), &[], &items(&[3]));
    let queue = LiveQueue::default();
    queue.applied(&tables, &[touch(113)]);
    parts.store.is_away.store(true, std::sync::atomic::Ordering::Relaxed);
    let waiting = tokio::time::timeout(Duration::from_millis(500), parts.compare_at_rest(&tables, &queue));
    assert!(waiting.await.is_err(), "it tries again");
    parts.compare_at_rest(&tables, &queue).await.expect_err("not for ever");
    parts.store.is_away.store(false, std::sync::atomic::Ordering::Relaxed);
    let found = parts.compare_at_rest(&tables, &queue).await.expect("no fault");
    assert_eq!((found.compared, found.divergences.len()), (2, 2));
    assert_eq!(parts.store.live.lock().expect("ok").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn readings_at_rest_that_fail_forget_no_row_that_was_just_applied() {
    let mut parts = parts(planted(5).quiet(), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    let queue = LiveQueue::default();
    queue.applied(&tables, &[touch(113)]);
    // A reading that never comes back, as that of a server that is stopped.
    let owner = Arc::get_mut(&mut parts).and_then(|own| Arc::get_mut(&mut own.owner)).expect("not shared");
    owner.together = Some(Barrier::new(2));
    let waiting = tokio::time::timeout(Duration::from_millis(500), parts.compare_at_rest(&tables, &queue));
    assert!(waiting.await.is_err() && queue.is_empty());
    let owner = Arc::get_mut(&mut parts).and_then(|own| Arc::get_mut(&mut own.owner)).expect("not shared");
    owner.together = None;
    let found = parts.compare_at_rest(&tables, &queue).await.expect("no fault");
    assert_eq!((found.compared, found.divergences.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_difference_is_closed_in_the_store_once_live_comparison_finds_its_row_equal() {
    let parts = parts(planted(5).quiet(), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    // One is found live, and one at rest.
    let queue = Arc::new(LiveQueue::default());
    queue.applied(&tables, &[touch(3)]);
    let live = Live::new(parts.clone(), queue.clone(), tables.clone(), 1000);
    let second = Duration::from_secs(1);
    assert!(tokio::time::timeout(second, live.run()).await.is_err());
    queue.applied(&tables, &[touch(113)]);
    parts.compare_at_rest(&tables, &queue).await.expect("no fault");
    assert_eq!(live.counts().open, 2);
    parts.repairer.repair(&table(true), &Extent::ALL, None).await.expect("no fault");
    // The store is away just then, and is told later, though no other row is touched.
    parts.store.is_away.store(true, std::sync::atomic::Ordering::Relaxed);
    queue.applied(&tables, &[touch(3), touch(113)]);
    assert!(tokio::time::timeout(second, live.run()).await.is_err());
    assert!(live.counts().open == 0 && parts.store.equal.lock().expect("ok").is_empty());
    parts.store.is_away.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(tokio::time::timeout(second * 5, live.run()).await.is_err());
    let told: Vec<i64> = parts.store.equal.lock().expect("ok").iter().map(|id| id.0).collect();
    assert_eq!(told, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn what_a_verification_has_in_its_list_needs_no_fence_to_be_found() {
    let parts = parts(planted(5).quiet(), Order::Number);
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    parts.unsettled.settled(TableId(7), &[], &items(&[3]));
    *parts.store.room.lock().expect("ok") = Some(0);
    let (report, _watch) = watch::channel(Report::default());
    let verifier = Verifier::new(parts.clone());
    verifier.run(&[table(true)], &small_ranges(), &report).await.expect_err("the store is away");
    assert_eq!(parts.unsettled.len(), 1, "nobody else knows of it");
    *parts.store.room.lock().expect("ok") = None;
    assert_eq!(found(&run(&parts, table(true), small_ranges()).await), planted_keys());
    let at_rest = parts.compare_at_rest(&tables, &LiveQueue::default()).await.expect("no fault");
    assert_eq!(at_rest.compared, 0);
}

#[tokio::test(start_paused = true)]
async fn at_rest_no_table_waits_for_the_reading_of_another() {
    let mut parts = parts(World::new(1, 50, []).quiet(), Order::Number);
    let own = Arc::get_mut(&mut parts).expect("not shared");
    let [owner, other] = [&mut own.owner, &mut own.other].map(|side| Arc::get_mut(side).expect("not shared"));
    (owner.together, other.together) = (Some(Barrier::new(3)), Some(Barrier::new(3)));
    let of_id = |id: u32| (TableId(id), Arc::new(Table { id: TableId(id), ..Table::clone(&table(true)) }));
    let tables = BTreeMap::from([7, 8, 9].map(of_id));
    for (id, key) in [(7, 1), (8, 2), (9, 3)] {
        let item = Item::Key(KeyText::from_texts([key.to_string()]));
        parts.unsettled.settled(TableId(id), &[], &[item]);
    }
    let queue = LiveQueue::default();
    let compared = parts.compare_at_rest(&tables, &queue);
    let found = tokio::time::timeout(Duration::from_secs(1), compared).await.expect("they are read at once");
    assert_eq!(found.expect("no fault").compared, 3);
    assert!(parts.unsettled.is_empty(), "each was taken off its own table's");
}

#[test]
fn a_queue_that_is_shut_forgets_what_it_has_and_takes_nothing_in() {
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    let queue = LiveQueue::default();
    queue.applied(&tables, &[touch(1)]);
    queue.shut();
    assert!(queue.is_empty());
    queue.applied(&tables, &[touch(1), touch(2)]);
    assert!(queue.is_empty());
    queue.open();
    queue.applied(&tables, &[touch(1)]);
    assert_eq!(queue.len(), 1);
}

#[test]
fn a_full_queue_keeps_a_fair_sample_and_counts_what_it_dropped() {
    let tables = BTreeMap::from([(TableId(7), table(true))]);
    let queue = LiveQueue::with_room(100);
    let changes: Vec<Change> = (0..10_000).map(touch).collect();
    queue.applied(&tables, &changes);
    assert_eq!(queue.len(), 100);
    let kept = queue.keys();
    let late = kept.iter().filter(|(_, key)| key.to_string().len() == 6).count();
    assert!((60..=100).contains(&late), "nine in ten keys have four digits: {late}");
    assert_eq!(queue.dropped(), 9_900);
}

#[test]
fn stored_ranges_count_as_far_as_they_follow_each_other() {
    let key = |k: &str| Some(KeyText::from_texts([k.to_owned()]));
    let range = |lower: Option<KeyText>, upper: Option<KeyText>| VerifiedRange {
        lower,
        upper,
        counts: RangeCounts::default(),
    };
    assert_eq!(chain(vec![]).1, Next::From(None));
    let (done, next) = chain(vec![range(key("5"), key("9")), range(None, key("5")), range(key("20"), None)]);
    assert_eq!((done.len(), next), (2, Next::From(key("9"))));
    assert_eq!(chain(vec![range(None, None)]).1, Next::Nothing);
}
