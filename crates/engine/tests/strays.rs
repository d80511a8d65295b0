//! What was written on a side that does not own the writes is not applied, and is told; nothing else is lost or held up.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod fake;

use fake::{FakeSource, FakeTarget, dither, table};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segue_engine::admission::{Admission, Admissions, StrayCounts, Strays};
use segue_engine::follow::build::BatchLimits;
use segue_engine::migration::{Handles, Run, Settings};
use segue_engine::ports::{Part, Source};
use segue_engine::progress::{Applied, Progress};
use segue_engine::throttle::{Limits, Throttle};
use segue_engine::verify::passage::{StreamPassage, Unseen};
use segue_engine::verify::ports::{Passage, Repairer};
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::seam::Xid;
use segue_model::stage::Stage;
use segue_model::table::{TableId, UnitId};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(20);

/// A side without rows, the other side, and what says which writes count.
struct World {
    source: FakeSource,
    target: FakeTarget,
    admissions: Arc<Admissions>,
    memory_bytes_max: usize,
    transactions_max: usize,
}

/// A stream that runs, its backfill behind it.
struct Running {
    source: FakeSource,
    handles: Handles<FakeSource>,
    run: JoinHandle<()>,
}

/// Says of every stray that it is told, as whoever runs a stream has to.
async fn tell(strays: Arc<Strays>) {
    let mut met = strays.subscribe();
    loop {
        if let Some(new) = strays.untold() {
            strays.told(&new);
        }
        // The sender lives in what is held here.
        met.changed().await.unwrap();
    }
}

impl World {
    fn new(seed: u64, admission: Admission) -> World {
        let source = FakeSource::new(seed, 0);
        let target = FakeTarget::new(&source);
        let admissions = Arc::new(Admissions::new(admission));
        World { source, target, admissions, memory_bytes_max: 1 << 20, transactions_max: 8 }
    }

    async fn run(&self) -> Running {
        self.run_with(tell(self.strays())).await
    }

    /// Nobody tells strays, unless the test does.
    async fn run_untold(&self) -> Running {
        self.run_with(std::future::pending()).await
    }

    async fn run_with(&self, telling: impl Future<Output = ()> + Send + 'static) -> Running {
        let settings = Settings {
            workers: 1,
            region_target: Duration::from_millis(1),
            follow: segue_engine::follow::Limits {
                memory_bytes_max: self.memory_bytes_max,
                batch: BatchLimits { bytes_max: 4096, transactions_max: self.transactions_max },
            },
        };
        let run = Run::prepare(
            Arc::new(self.source.clone()),
            Arc::new(self.target.clone()),
            self.admissions.clone(),
            vec![Arc::new(table())],
            Arc::new(Throttle::new(Limits::default())),
            Arc::default(),
            settings,
        );
        let run = run.await.unwrap();
        let (handles, mut stage) = (run.handles(), run.stage());
        let run = tokio::spawn(async move {
            tokio::select! {
                fault = run.run() => panic!("the stream has ended: {fault}"),
                () = telling => {}
            }
        });
        let running = Running { source: self.source.clone(), handles, run };
        within(stage.wait_for(|stage| *stage == Stage::Following)).await.unwrap();
        running
    }

    /// Numbers of the rows that were applied, durably.
    fn applied(&self) -> Vec<i64> {
        self.target.durable.lock().unwrap().rows.keys().copied().collect()
    }

    fn strays(&self) -> Arc<Strays> {
        self.admissions.strays()
    }
}

impl Running {
    fn progress(&self) -> &Progress {
        &self.handles.progress
    }

    async fn caught_up(&self) {
        let signal = self.source.signal().await.unwrap();
        within(self.progress().passed(signal)).await;
    }

    /// Whether the stream says that it waits for the decision.
    fn waits(&self) -> bool {
        let waits = self.progress().snapshot().waits;
        waits.iter().any(|wait| wait.who == "stream" && wait.reason.contains("which side owns"))
    }

    async fn waiting(&self) {
        until(|| self.waits()).await;
    }

    async fn kill(self) {
        self.run.abort();
        let ended = self.run.await.unwrap_err();
        assert!(ended.is_cancelled(), "{ended}");
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

/// Returns when `what` holds.
async fn until(what: impl Fn() -> bool) {
    let holds = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    within(holds).await;
}

const fn counts(transactions: u64, changes: u64) -> StrayCounts {
    StrayCounts { transactions, changes }
}

/// Lets tasks run one after the other, in an order that depends on the seed.
fn seeded<F: Future<Output = ()>>(seeds: u64, schedule: impl Fn(u64) -> F) {
    for seed in 0..seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(schedule(seed));
    }
}

#[tokio::test]
async fn strays_are_not_applied_and_are_told_with_their_keys_while_signals_pass() {
    let world = World::new(1, Admission::Nothing);
    let running = world.run().await;
    let first = world.source.insert([1, 2]);
    let second = world.source.insert(10..20);
    running.caught_up().await;
    assert_eq!(world.applied(), [0; 0]);
    assert_eq!(running.progress().snapshot().changes, 0);
    let strays = running.handles.strays.clone();
    assert_eq!(strays.counts(), counts(2, 12));
    let latest = strays.latest();
    assert_eq!(latest.iter().map(|stray| stray.commit).collect::<Vec<_>>(), [first, second]);
    let [of] = &latest[0].tables[..] else { panic!("one table: {latest:?}") };
    assert_eq!(
        (of.table.as_str(), of.changes, &of.keys[..]),
        ("public.t", 2, &["(1)".into(), "(2)".into()][..])
    );
    assert_eq!((latest[0].changes, latest[0].committed_at_us), (2, 1));
    let [of] = &latest[1].tables[..] else { panic!("one table: {latest:?}") };
    assert_eq!((of.changes, of.keys.len()), (10, 5));
    // Nor are they met again.
    running.kill().await;
    let stored = world.target.durable.lock().unwrap().stored.checkpoint.position;
    assert!(stored > second);
    let again = world.run().await;
    again.caught_up().await;
    assert_eq!(strays.counts(), counts(2, 12));
}

#[tokio::test]
async fn nothing_passes_a_stray_before_it_is_told() {
    let world = World::new(1, Admission::Nothing);
    let running = world.run_untold().await;
    let strays = world.strays();
    assert_eq!(strays.untold(), None);
    let place = world.source.insert([1]);
    let signal = world.source.signal().await.unwrap();
    until(|| running.progress().snapshot().waits.iter().any(|wait| wait.reason.contains("written down")))
        .await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let stored = || world.target.durable.lock().unwrap().stored.checkpoint.position;
    assert!(stored() <= place && running.progress().watch_applied().borrow().signal < signal);
    // Whoever dies before it has told them finds them again.
    let new = strays.untold().unwrap();
    assert_eq!((new.counts, new.strays.len()), (counts(1, 1), 1));
    assert_eq!(strays.untold(), Some(new.clone()));
    strays.told(&new);
    assert_eq!(strays.untold(), None);
    within(running.progress().passed(signal)).await;
    assert!(stored() > place && running.progress().snapshot().waits.is_empty());
}

#[tokio::test]
async fn of_many_strays_the_newest_are_told_and_all_are_counted() {
    let mut world = World::new(1, Admission::Undecided);
    // All of them in one batch.
    world.transactions_max = 1000;
    let running = world.run_untold().await;
    let strays = world.strays();
    let places: Vec<Position> = (0..150).map(|at| world.source.insert([100 + at, 1000 + at])).collect();
    running.waiting().await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    world.admissions.set(Admission::Nothing);
    until(|| strays.counts().transactions == 150).await;
    let new = strays.untold().unwrap();
    assert_eq!(new.counts, counts(150, 300));
    assert_eq!(new.strays.iter().map(|stray| stray.commit).collect::<Vec<_>>(), places[50..]);
    assert_eq!(strays.latest(), new.strays);
    strays.told(&new);
    world.source.insert([2]);
    until(|| strays.counts().transactions == 151).await;
    let new = strays.untold().unwrap();
    assert_eq!((new.counts, new.strays.len()), (counts(1, 1), 1));
    assert_eq!((strays.counts(), strays.latest().len()), (counts(151, 301), 100));
}

#[tokio::test]
async fn a_transaction_is_applied_if_its_commit_lies_at_the_first_place_that_counts_or_after_it() {
    let world = World::new(1, Admission::Undecided);
    let running = world.run().await;
    let places: Vec<Position> = (1..=4).map(|id| world.source.insert([id])).collect();
    running.waiting().await;
    world.admissions.set(Admission::From(places[2]));
    running.caught_up().await;
    assert_eq!(world.applied(), [3, 4]);
    let strays: Vec<Position> = world.strays().latest().iter().map(|stray| stray.commit).collect();
    assert_eq!(strays, places[..2]);
}

#[test]
fn an_undecided_transaction_waits_for_the_decision_and_holds_nothing_before_it_up() {
    for (decision, applied) in [(Admission::All, &[1, 2][..]), (Admission::Nothing, &[1])] {
        seeded(50, async |seed| {
            let world = World::new(seed, Admission::All);
            let running = world.run().await;
            world.source.insert([1]);
            running.caught_up().await;
            world.admissions.set(Admission::Undecided);
            // Whoever decides may wait for this signal: it must pass, also if it has come together with what is undecided.
            let before = world.source.signal().await.unwrap();
            world.source.insert([2]);
            let after = world.source.signal().await.unwrap();
            within(running.progress().passed(before)).await;
            running.waiting().await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!((world.applied(), world.strays().counts()), (vec![1], counts(0, 0)));
            assert_eq!(running.progress().watch_applied().borrow().signal, before);
            world.admissions.set(decision);
            within(running.progress().passed(after)).await;
            assert_eq!(world.applied(), applied);
            assert_eq!(world.strays().counts().transactions, 2 - applied.len() as u64);
            assert!(!running.waits());
        });
    }
}

#[tokio::test]
async fn a_stray_larger_than_memory_is_counted_to_its_last_change() {
    let mut world = World::new(1, Admission::Nothing);
    world.memory_bytes_max = 16 << 10;
    let running = world.run().await;
    world.source.insert(0..5_000);
    running.caught_up().await;
    assert_eq!((world.applied().len(), world.strays().counts()), (0, counts(1, 5_000)));
    let latest = world.strays().latest();
    let [of] = &latest[0].tables[..] else { panic!("one table: {latest:?}") };
    assert_eq!((of.changes, &of.keys[..2]), (5_000, &["(0)".into(), "(1)".into()][..]));
    world.admissions.set(Admission::All);
    world.source.insert(6_000..11_000);
    running.caught_up().await;
    assert_eq!((world.applied().len(), world.strays().counts()), (5_000, counts(1, 5_000)));
}

/// A row of a side that follows would be written over the owner's.
#[tokio::test]
async fn repairs_are_refused_while_the_side_does_not_own_the_writes() {
    let world = World::new(1, Admission::Nothing);
    let running = world.run().await;
    let repair = || running.handles.repairer.repair(&running.handles.tables[&TableId(0)], &Extent::ALL, None);
    world.source.insert([1]);
    running.caught_up().await;
    let refused = within(repair()).await.unwrap_err();
    assert_eq!(refused.code, "SEGUE-NOT-OWNER");
    assert!(
        refused.what.contains("public.t") && refused.what.contains("does not own the writes"),
        "{refused}"
    );
    // Also while the stream stands, and hears of nothing.
    world.admissions.set(Admission::Undecided);
    world.source.insert([2]);
    running.waiting().await;
    let refused = within(repair()).await.unwrap_err();
    assert_eq!(refused.code, "SEGUE-NOT-OWNER");
    assert!(refused.what.contains("being decided"), "{refused}");
    // One that was asked for before, and comes to its turn after.
    world.admissions.set(Admission::All);
    running.caught_up().await;
    let mut asked = Box::pin(repair());
    assert!(poll_fn(|context| Poll::Ready(asked.as_mut().poll(context).is_pending())).await);
    world.admissions.set(Admission::Nothing);
    assert_eq!(within(asked).await.unwrap_err().code, "SEGUE-NOT-OWNER");
    assert_eq!(world.applied(), [2]);
    // The owner's rows are copied anew as ever, the first stray with them: it is a row of the owner by now.
    world.admissions.set(Admission::From(Position(0)));
    within(repair()).await.unwrap();
    assert_eq!(world.applied(), [1, 2]);
}

#[tokio::test]
async fn rows_are_compared_live_only_while_they_come_from_the_owner() {
    let world = World::new(1, Admission::All);
    let running = world.run().await;
    let live = running.handles.live.clone();
    world.source.insert([1]);
    running.caught_up().await;
    until(|| live.len() == 1).await;
    world.admissions.set(Admission::Nothing);
    until(|| live.is_empty()).await;
    world.source.insert([2]);
    running.caught_up().await;
    let from = world.source.insert([3]);
    running.caught_up().await;
    assert!(live.is_empty());
    world.admissions.set(Admission::From(from));
    world.source.insert([4]);
    running.caught_up().await;
    until(|| live.len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn parts_of_a_side_that_does_not_own_the_writes_are_left_alone() {
    let part = Part {
        unit: UnitId(0),
        table: TableId(0),
        relation: 1,
        name: QualifiedName::new("public", "leaf"),
        condition: "false".into(),
    };
    let world = World::new(1, Admission::Nothing);
    let running = world.run().await;
    world.source.gone.lock().unwrap().push(part.clone());
    // Many looks long.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.source.gone.lock().unwrap().len(), 1);
    let left = || world.target.durable.lock().unwrap().left.clone();
    assert_eq!(left(), []);
    world.admissions.set(Admission::From(Position(0)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(left(), [part]);
    running.kill().await;
}

/// What was applied last would be taken from the target again.
#[tokio::test]
async fn rows_are_not_copied_anew_while_the_owner_does_not_show_what_was_applied() {
    let world = World::new(1, Admission::All);
    let running = world.run().await;
    let repair = || running.handles.repairer.repair(&running.handles.tables[&TableId(0)], &Extent::ALL, None);
    let hidden = world.source.insert_hidden(1);
    running.caught_up().await;
    assert_eq!(within(repair()).await.unwrap_err().code, "SEGUE-NOT-SHOWN");
    assert_eq!(world.applied(), [1]);
    world.source.show(hidden);
    within(repair()).await.unwrap();
    assert_eq!(world.applied(), [1]);
}

/// Two hand-overs, away and back, while Segue is killed and its target crashes: afterwards everything that was written by the
/// owner is there, nothing else is, and every stray was told exactly once.
async fn hand_overs(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::new(seed, Admission::All);
    let mut running = world.run().await;
    let (mut written, mut strays) = (Vec::new(), Vec::new());
    let mut id = 0;
    for _ in 0..2 {
        for owned in [true, false] {
            for _ in 0..rng.random_range(1..10) {
                let ids: Vec<i64> = (id..id + rng.random_range(1..4)).collect();
                id += ids.len() as i64;
                let at = world.source.insert(ids.clone());
                if owned {
                    written.extend(ids)
                } else {
                    strays.push(at)
                }
                dither(&world.source.db).await;
                if rng.random_bool(0.1) {
                    running.kill().await;
                    if rng.random_bool(0.5) {
                        world.target.crash();
                    }
                    running = world.run().await;
                }
            }
            if owned {
                // The fence's marker has passed; the other side opens.
                running.caught_up().await;
                world.admissions.set(Admission::Nothing);
            } else {
                // This side opens again, while strays are still on their way.
                if rng.random_bool(0.5) {
                    world.admissions.set(Admission::Undecided);
                }
                let opened_at = world.source.log_end().await.unwrap();
                world.admissions.set(Admission::From(opened_at));
            }
        }
    }
    running.caught_up().await;
    assert_eq!(world.applied(), written, "seed {seed}");
    let told: Vec<Position> = world.strays().latest().iter().map(|stray| stray.commit).collect();
    assert_eq!(told, strays, "seed {seed}");
    assert_eq!(world.strays().counts().transactions, strays.len() as u64, "seed {seed}");
}

#[test]
fn hand_overs_away_and_back_lose_nothing_and_let_no_stray_in() {
    let seeds = if std::env::var_os("SEGUE_SOAK").is_some() { 10_000 } else { 200 };
    seeded(seeds, hand_overs);
}

/// A passage along a stream that has applied nothing, and what says that it lives.
fn passage(admissions: &Arc<Admissions>) -> (StreamPassage<FakeSource>, watch::Sender<Applied>) {
    let (applied, watched) = watch::channel(Applied::default());
    let (source, unseen) = (Arc::new(FakeSource::new(1, 0)), Arc::new(Unseen::new(Xid(1))));
    (StreamPassage::new(source, watched, unseen, Arc::default(), admissions.clone()), applied)
}

/// No proof about rows outlives the stream, or the side's being the owner.
#[tokio::test]
async fn nothing_is_proved_without_the_stream_or_the_owner() {
    let admissions = Arc::new(Admissions::new(Admission::All));
    let (passage, applied) = passage(&admissions);
    let (passed, ()) = tokio::join!(within(passage.passed()), async { drop(applied) });
    assert_eq!(passed.unwrap_err().code, "SEGUE-VERIFY-STREAM");
    admissions.set(Admission::Nothing);
    assert_eq!(within(passage.shown()).await.unwrap_err().code, "SEGUE-VERIFY-OWNER");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_applies_nothing_is_not_waited_for_without_end() {
    let (passage, _applied) = passage(&Arc::new(Admissions::new(Admission::All)));
    let fault = passage.passed().await.unwrap_err();
    assert_eq!(fault.code, "SEGUE-VERIFY-STALLED");
    assert!(fault.what.contains("has applied nothing for 300 s"), "{fault}");
}
