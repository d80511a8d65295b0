//! Exactly once under fire: `segue run` is killed everywhere, servers are stopped hard, lines are cut, and four writers
//! go on all the time. Afterwards nothing acknowledged is missing, and both sides are equal.
//!
//! `SEGUE_SEED` replays a printed seed; `SEGUE_SOAK` runs the whole campaign in place of a bounded part.
#![cfg(feature = "killpoints")]

mod support;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use segue_engine::killpoint;
use segue_testkit::kill::Process;
use std::time::{Duration, Instant};
use support::fire::{self, Fire};

/// Points of one kind, in the order in which they are listed.
fn points(kind: &str) -> Vec<&'static str> {
    killpoint::ALL.iter().copied().filter(|point| point.split('.').next() == Some(kind)).collect()
}

/// Each point at its first passage and at a later one, shuffled.
fn passages(points: &[&'static str], rng: &mut StdRng, later_max: u32) -> Vec<(&'static str, u32)> {
    let mut all = Vec::new();
    for point in points {
        all.push((*point, 1));
        all.push((*point, rng.random_range(2..=later_max)));
    }
    all.shuffle(rng);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn campaign_killed_at_every_named_point_nothing_is_lost() {
    let seed = fire::seed();
    let mut fire = Fire::start(500_000, seed, 150).await;
    let mut killed = 0;
    // Once per start that has not got further: one after the other.
    for point in points("birth") {
        fire.dies_at(point, 1).await;
        killed += 1;
    }
    let during_backfill = [points("region"), points("batch")].concat();
    for (point, passage) in passages(&during_backfill, &mut fire.rng, 4) {
        fire.dies_at(point, passage).await;
        killed += 1;
    }
    let backfilled = fire.pair.target.scalar("SELECT backfilled_at FROM segue.stream").await;
    assert_eq!(backfilled, None, "too few rows: not all of this was during the backfill");
    for point in points("backfill") {
        fire.dies_at(point, 1).await;
        killed += 1;
    }
    let run = fire.pair.run();
    fire.pair.reaches(&run, "following").await;
    run.kill9();
    for (point, passage) in passages(&points("batch"), &mut fire.rng, 20) {
        fire.dies_at(point, passage).await;
        killed += 1;
    }
    eprintln!("killed at {killed} passages of named points, under load");
    let run = fire.pair.run();
    fire.settle(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn campaign_killed_while_idle_the_checkpoint_stays_right() {
    let seed = fire::seed();
    let mut fire = Fire::start(5_000, seed, 100).await;
    let run = fire.pair.run();
    fire.pair.reaches(&run, "following").await;
    fire.progress(100).await;
    run.kill9();
    fire.quiet().await;
    // What is written here is nobody's business; that the log grows is.
    fire.pair.source.execute("CREATE TABLE public.noise (n int)").await;
    let noise = fire.pair.source.connect("postgres").await;
    let noise = tokio::spawn(async move {
        while noise.execute("INSERT INTO public.noise VALUES (1)", &[]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    for (point, passage) in passages(&points("idle"), &mut fire.rng, 4) {
        fire.dies_at(point, passage).await;
    }
    noise.abort();
    let run = fire.pair.run();
    fire.settle(&run).await;
}

#[test]
fn campaign_walks_every_kind_of_point_there_is() {
    // Those of leaves are walked in `leaves`, those of the switch in `switch_kill.rs`, that of a rollback
    // in `rollback.rs`, those of a new stream in `new_stream.rs`, those of a completion in `complete.rs`, those of strays and
    // of a lost or outdated way back in `switch/way_back.rs`, those of a schema in `target_schema.rs`, that of a
    // backlog in `backlog.rs`, that of cancelling in `cancelled.rs`; at that of a repair one is held, in `switch/repairs.rs`.
    let walked = [
        "birth", "renew", "region", "batch", "backfill", "idle", "leaf", "switch", "rollback", "complete",
        "stray", "schema", "outdated", "lost", "backlog", "cancel", "repair",
    ];
    let known = walked.iter().map(|kind| points(kind).len()).sum::<usize>();
    assert_eq!(known, killpoint::ALL.len(), "a kind of point is not walked: {:?}", killpoint::ALL);
}

/// What is done to the migration and its servers.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    StopSource,
    StopTarget,
    /// The process dies while the target is down, and is started when it is back.
    KillAndStopTarget,
    CutSource,
    CutTarget,
    FreezeSource,
    FreezeTarget,
    DelayBoth,
}

impl Blow {
    /// Blows of one round, in a random order.
    fn round(rng: &mut StdRng) -> Vec<Blow> {
        use Blow::{CutSource, CutTarget, DelayBoth, FreezeSource, FreezeTarget};
        use Blow::{Kill, KillAndStopTarget, StopSource, StopTarget};
        let counts = [
            (Kill, 9),
            (StopSource, 2),
            (StopTarget, 1),
            (KillAndStopTarget, 1),
            (CutSource, 2),
            (CutTarget, 2),
            (FreezeSource, 1),
            (FreezeTarget, 1),
            (DelayBoth, 1),
        ];
        let mut all: Vec<Blow> =
            counts.iter().flat_map(|(blow, count)| std::iter::repeat_n(*blow, *count)).collect();
        all.shuffle(rng);
        all
    }
}

async fn moment(rng: &mut StdRng, ms_max: u64) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(0..ms_max))).await;
}

async fn strike(fire: &mut Fire, blow: Blow, run: Process) -> Process {
    let Fire { pair, source_line, target_line, rng, .. } = fire;
    match blow {
        Blow::Kill => {
            run.kill9();
            return pair.run();
        }
        Blow::StopSource => {
            pair.source.stop_immediate().await;
            moment(rng, 1_500).await;
            pair.source.start_again().await;
        }
        Blow::StopTarget => {
            pair.target.stop_immediate().await;
            moment(rng, 1_500).await;
            pair.target.start_again().await;
        }
        Blow::KillAndStopTarget => {
            pair.target.stop_immediate().await;
            moment(rng, 300).await;
            run.kill9();
            pair.target.start_again().await;
            return pair.run();
        }
        Blow::CutSource => source_line.cut(),
        Blow::CutTarget => target_line.cut(),
        Blow::FreezeSource => {
            source_line.freeze();
            moment(rng, 3_000).await;
            source_line.cut();
            source_line.thaw();
        }
        Blow::FreezeTarget => {
            target_line.freeze();
            moment(rng, 3_000).await;
            target_line.cut();
            target_line.thaw();
        }
        Blow::DelayBoth => {
            let delay = Duration::from_millis(rng.random_range(5..50));
            source_line.delay(delay);
            target_line.delay(delay);
            moment(rng, 3_000).await;
            source_line.delay(Duration::ZERO);
            target_line.delay(Duration::ZERO);
        }
    }
    run
}

async fn round(seed: u64) {
    let mut fire = Fire::start(200_000, seed, 150).await;
    let mut run = fire.pair.run();
    fire.begun(&run).await;
    for blow in Blow::round(&mut fire.rng) {
        eprintln!("{blow:?}");
        run = strike(&mut fire, blow, run).await;
        moment(&mut fire.rng, 2_500).await;
        fire.lives(&run, &format!("{blow:?}"));
    }
    fire.settle(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn campaign_struck_at_random_moments_nothing_is_lost() {
    let rounds = if fire::soak() && fire::replayed().is_none() { 6 } else { 1 };
    for number in 1..=rounds {
        let began = Instant::now();
        round(fire::seed()).await;
        eprintln!("round {number} of {rounds} took {} s", began.elapsed().as_secs());
    }
}
