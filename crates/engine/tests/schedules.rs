//! Thousands of seeded schedules of application, copy, stream and kills, against in-memory sides: afterwards both
//! sides are equal, and no row was ever missing or doubled on the way (a mismatch would be a fault).

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fake;

use fake::{FakeSource, FakeTarget, dither, table};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segue_engine::follow::build::BatchLimits;
use segue_engine::migration::{Run, Settings};
use segue_engine::throttle::{Limits, Throttle};
use segue_model::stage::Stage;
use std::sync::{Arc, Mutex};
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
    let tables = vec![Arc::new(table())];
    let throttle = Arc::new(Throttle::new(Limits::default()));
    Run::prepare(Arc::new(source.clone()), Arc::new(target.clone()), tables, throttle, SETTINGS)
        .await
        .unwrap()
}

/// One life: the application writes all the time, Segue is killed a few times, then left to finish.
async fn schedule(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let source = FakeSource::new(seed, 30);
    let durable = Arc::new(Mutex::new(fake::Durable::default()));
    let target = FakeTarget { durable: durable.clone(), source: source.clone() };
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
    assert_eq!(durable.lock().unwrap().rows, source.rows(), "seed {seed}");
}

#[test]
fn both_sides_are_equal_after_every_schedule() {
    let count: u64 = if std::env::var_os("SEGUE_SOAK").is_some() { 20_000 } else { 400 };
    let first: u64 = std::env::var("SEGUE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    for seed in first..first + count {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(schedule(seed));
    }
}
