//! Thousands of seeded schedules of application, copy, stream and kills, against in-memory sides: afterwards both
//! sides are equal, and no row was ever missing or doubled on the way (a mismatch would be a fault).

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fake;

use fake::{FakeSource, FakeTarget, Rows, dither, table};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segue_engine::admission::{Admission, Admissions};
use segue_engine::follow::build::BatchLimits;
use segue_engine::migration::{Run, Settings};
use segue_engine::ports::Part;
use segue_engine::throttle::{Limits, Throttle};
use segue_model::name::QualifiedName;
use segue_model::stage::Stage;
use segue_model::table::{TableId, UnitId};
use std::sync::Arc;
use std::time::Duration;

const SETTINGS: Settings = Settings {
    workers: 2,
    region_target: Duration::from_millis(1),
    follow: segue_engine::follow::Limits {
        memory_bytes_max: 1 << 20,
        batch: BatchLimits { bytes_max: 4096, transactions_max: 8 },
    },
};

async fn prepare(source: &FakeSource, target: &FakeTarget) -> Run<FakeSource, FakeTarget> {
    prepare_with(source, target, Arc::new(Throttle::new(Limits::default()))).await
}

async fn prepare_with(
    source: &FakeSource,
    target: &FakeTarget,
    throttle: Arc<Throttle>,
) -> Run<FakeSource, FakeTarget> {
    let tables = vec![Arc::new(table())];
    Run::prepare(
        Arc::new(source.clone()),
        Arc::new(target.clone()),
        Arc::new(Admissions::new(Admission::All)),
        tables,
        throttle,
        Arc::default(),
        SETTINGS,
    )
    .await
    .unwrap()
}

/// The source's rows as they never were: some are missing, some have other values, some are too many.
fn outdated(source: &FakeSource, rng: &mut StdRng) -> Rows {
    let mut rows = source.rows();
    rows.retain(|_, _| rng.random_bool(0.8));
    rows.values_mut().filter(|_| rng.random_bool(0.2)).for_each(|(a, _)| a.push_str(" before"));
    rows.extend((0..20).map(|n| (n * 17 + 1, ("extra".to_owned(), "gone".to_owned()))));
    rows
}

/// One life: the application writes all the time, Segue is killed a few times, then left to finish. Returns how often a
/// crash of the target has undone batches.
async fn schedule(seed: u64) -> u64 {
    let mut undone = 0;
    let mut rng = StdRng::seed_from_u64(seed);
    let source = FakeSource::new(seed, 30);
    let target = match seed % 3 {
        // A new stream finds what one that was lost has brought.
        0 => FakeTarget::over(&source, outdated(&source, &mut rng)),
        _ => FakeTarget::new(&source),
    };
    let writers: Vec<_> = (0..3u64)
        .map(|writer| {
            let source = source.clone();
            tokio::spawn(async move {
                for i in 0..40 {
                    source.transact(writer * 1000 + i).await;
                    dither(&source.db).await;
                }
            })
        })
        .collect();
    for _ in 0..rng.random_range(0..4) {
        let run = prepare(&source, &target).await;
        let polls = rng.random_range(1..400);
        tokio::select! {
            biased;
            fault = run.run() => panic!("seed {seed}: {fault}"),
            () = async { for _ in 0..polls { tokio::task::yield_now().await; } } => {}
        }
        // The server of the target crashes with it: what nobody waited for is undone.
        undone += u64::from(rng.random_bool(0.5) && target.crash());
    }
    let run = prepare(&source, &target).await;
    let (progress, mut stage) = (run.progress(), run.stage());
    let settled = async {
        for writer in writers {
            writer.await.unwrap();
        }
        stage.wait_for(|s| *s == Stage::Following).await.unwrap();
        use segue_engine::ports::Source;
        let signal = source.signal().await.unwrap();
        progress.watch_applied().wait_for(|a| a.signal >= signal).await.unwrap();
    };
    tokio::select! {
        fault = run.run() => panic!("seed {seed}: {fault}"),
        () = settled => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("seed {seed}: stuck: {:?}", progress.snapshot()),
    }
    assert_eq!(target.durable.lock().unwrap().rows, source.rows(), "seed {seed}");
    undone
}

#[test]
fn both_sides_are_equal_after_every_schedule() {
    let count: u64 = if std::env::var_os("SEGUE_SOAK").is_some() { 20_000 } else { 400 };
    let first: u64 = std::env::var("SEGUE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut undone = 0;
    for seed in first..first + count {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        undone += runtime.block_on(schedule(seed));
    }
    assert!(undone > 0 || count < 400, "no schedule has met a crash that undoes batches");
}

/// The copy is over while a part that is gone is on its way out: it is remembered nevertheless.
#[tokio::test(start_paused = true)]
async fn a_part_that_leaves_while_the_copy_ends_is_remembered() {
    let part = Part {
        unit: UnitId(0),
        table: TableId(0),
        relation: 1,
        name: QualifiedName::new("public", "leaf"),
        condition: "false".into(),
    };
    let mut source = FakeSource::new(1, 30);
    source.leaves_for = Duration::from_secs(1);
    source.gone.lock().unwrap().push(part.clone());
    let target = FakeTarget::new(&source);
    let paused = Limits { paused: Some("until the part is on its way".into()), ..Limits::default() };
    let throttle = Arc::new(Throttle::new(paused));
    let run = prepare_with(&source, &target, throttle.clone()).await;
    let mut stage = run.stage();
    let followed = async {
        while !source.gone.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        throttle.set(Limits::default());
        stage.wait_for(|s| *s == Stage::Following).await.unwrap();
    };
    tokio::select! {
        fault = run.run() => panic!("{fault}"),
        () = followed => {}
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("stuck"),
    }
    assert_eq!(target.durable.lock().unwrap().left, [part]);
}
