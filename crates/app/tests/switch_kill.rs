//! The switch under fire: at every named point of it, in both directions, the process is killed or a server is stopped,
//! while writers follow the owner and probes try both sides all the time.
//!
//! What has to hold is said by [`History`](segue_testkit::probe::History) (never two owners), by the workload's oracle
//! (nothing acknowledged is lost) and by the comparer (both sides are equal at the end). And within a bound there is one
//! owner again: `max_write_hold`, past which the fence opens by itself, and the time until a new process works, because
//! past the point of no return only it can go on.
//!
//! `SEGUE_SEED` replays a printed seed; `SEGUE_SOAK` runs every combination and a hundred random rounds.
#![cfg(feature = "killpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use segue_engine::killpoint;
use std::time::{Duration, Instant};
use support::moving::{Driving, MAX_WRITE_HOLD, Moving, SLACK, SOURCE, Setup, TARGET};
use support::{PATIENCE, fire, slow::until};

/// Every point of a hand-over, in the order of the list: a new one cannot be forgotten.
fn points() -> Vec<&'static str> {
    killpoint::ALL.iter().copied().filter(|point| point.starts_with("switch.")).collect()
}

/// Whether the point lies behind the point of no return, so that whoever comes next goes forward.
fn is_past_return(point: &str) -> bool {
    ["switch.flip.after", "switch.open.before", "switch.opened", "switch.open.after"].contains(&point)
}

/// Waits until the process drives the migration and has said so; it has read both sides by then.
async fn drives(moving: &Moving, run: &Driving) {
    let sql = format!(
        "SELECT l.holder LIKE '%process {}' AND (s.body->>'token')::bigint = l.token
           FROM segue.lease l JOIN segue.status s USING (migration)",
        run.process.pid()
    );
    until("the new process drives", async || moving.control().scalar(&sql).await.as_deref() == Some("t"))
        .await;
}

/// Kills the process at the point, starts another one, and has the hand-over succeed. Returns the new process.
async fn killed_at(moving: &Moving, run: Driving, point: &str, owner: usize) -> Driving {
    let what = format!("{point}, away from {owner}");
    let asked = Instant::now();
    moving.frozen_at(&run, point, owner).await;
    run.process.kill9();
    let killed = Instant::now();
    let run = Driving::start(&moving.pair);
    drives(moving, &run).await;
    let restart = killed.elapsed();
    let answers = moving.moves_away_from(owner, &run).await;
    let already = answers[0]["outcome"] == "already";
    assert_eq!(already, is_past_return(point), "{what}: {answers:#?}");
    moving.assert_accepts(1 - owner, PATIENCE, &what).await;
    moving.assert_one_owner(&what);
    let gap = moving.assert_gap(asked, MAX_WRITE_HOLD + 2 * restart + SLACK, &what);
    eprintln!("{what}: killed; no owner for {} ms, restart {} ms", gap.as_millis(), restart.as_millis());
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn switch_campaign_killed_at_every_point_in_both_directions() {
    let (moving, mut run) = Moving::start(Setup::default()).await;
    moving.grown_up().await;
    for point in points() {
        for owner in [SOURCE, TARGET] {
            run = killed_at(&moving, run, point, owner).await;
        }
    }
    moving.settle(SOURCE, &run).await;
}

/// Killed at the first point, and the processes that come after it, too, while they go on or undo.
const AGAIN: [(&str, &[&str]); 4] = [
    ("switch.flip.after", &["switch.drain.before", "switch.drain.after"]),
    ("switch.flip.after", &["switch.open.before", "switch.opened", "switch.undo"]),
    ("switch.opened", &["switch.open.before", "switch.open.after"]),
    ("switch.fence.after", &["switch.undo", "switch.undo"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn switch_campaign_killed_again_while_it_recovers() {
    let (moving, mut run) = Moving::start(Setup::default()).await;
    moving.grown_up().await;
    for (first, others) in AGAIN {
        for owner in [SOURCE, TARGET] {
            let what = format!("{first}, then {others:?}, away from {owner}");
            moving.frozen_at(&run, first, owner).await;
            run.process.kill9();
            for point in others {
                Driving::dies_at(&moving.pair, point).await;
                moving.assert_one_owner(&what);
            }
            run = Driving::start(&moving.pair);
            let answers = moving.moves_away_from(owner, &run).await;
            assert_eq!(answers[0]["outcome"] == "already", is_past_return(first), "{what}: {answers:#?}");
            moving.assert_accepts(1 - owner, PATIENCE, &what).await;
            eprintln!("{what}");
        }
    }
    moving.settle(SOURCE, &run).await;
}

/// What a restart may take on a busy machine: a second or so where it is not.
const RESTART: Duration = Duration::from_secs(8);
/// For so long after a start of the control database nobody takes a lease over whose holder has not given it back.
const LEASE_TTL: Duration = Duration::from_secs(10);

/// Who is struck at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Segue,
    OldOwner,
    NewOwner,
    /// The process too, while the server is down.
    SegueAndOldOwner,
    SegueAndNewOwner,
}

impl Victim {
    const ALL: [Victim; 5] = [
        Victim::Segue,
        Victim::OldOwner,
        Victim::NewOwner,
        Victim::SegueAndOldOwner,
        Victim::SegueAndNewOwner,
    ];

    fn server(self, owner: usize) -> Option<usize> {
        match self {
            Victim::Segue => None,
            Victim::OldOwner | Victim::SegueAndOldOwner => Some(owner),
            Victim::NewOwner | Victim::SegueAndNewOwner => Some(1 - owner),
        }
    }

    fn is_process_too(self) -> bool {
        matches!(self, Victim::Segue | Victim::SegueAndOldOwner | Victim::SegueAndNewOwner)
    }
}

/// How long nobody may take writes once all servers are up again. Before the point of no return the old owner's fence opens
/// by itself. Behind it Segue is needed: it starts over, or is started; and where the control database has just started,
/// too, a lease proves nothing before it has expired.
fn bound(point: &str, victim: Victim, owner: usize) -> Duration {
    let by_itself = MAX_WRITE_HOLD + SLACK;
    // Only a server is struck: the process goes on, and hands over.
    let hands_over = point == "switch.flip.before" && !victim.is_process_too();
    if !is_past_return(point) && !hands_over {
        return by_itself;
    }
    let waits_for_lease = victim.is_process_too() && victim.server(owner) == Some(TARGET);
    by_itself + RESTART + if waits_for_lease { LEASE_TTL } else { Duration::ZERO }
}

/// One strike: at the point, the victim is stopped for `pause`. Afterwards the hand-over succeeds.
async fn struck(
    moving: &Moving,
    mut run: Driving,
    (point, victim, pause): (&str, Victim, Duration),
    owner: usize,
) -> Driving {
    let what = format!("{point}, away from {owner}, {victim:?}, {} ms", pause.as_millis());
    eprintln!("{what}");
    moving.frozen_at(&run, point, owner).await;
    let server = victim.server(owner).map(|side| moving.server(side));
    if let Some(server) = server {
        server.stop_immediate().await;
    }
    if victim.is_process_too() {
        run.process.kill9();
    } else {
        run.process.thaw();
    }
    tokio::time::sleep(pause).await;
    if let Some(server) = server {
        server.start_again().await;
    }
    let up = Instant::now();
    if victim.is_process_too() {
        run = Driving::start(&moving.pair);
    }
    let answers = moving.moves_away_from(owner, &run).await;
    moving.assert_accepts(1 - owner, PATIENCE, &what).await;
    moving.assert_one_owner(&what);
    let gap = moving.assert_gap(up, bound(point, victim, owner), &what);
    let outcomes: Vec<&str> = answers.iter().map(|a| a["outcome"].as_str().unwrap_or("fault")).collect();
    eprintln!(
        "    {outcomes:?}; no owner for {} ms, done in {} ms",
        gap.as_millis(),
        up.elapsed().as_millis()
    );
    run
}

/// Servers that are stopped at a point. In a bounded run some, chosen at random; in a soak all.
#[tokio::test(flavor = "multi_thread")]
async fn switch_campaign_servers_stopped_at_points_in_both_directions() {
    let mut rng = StdRng::seed_from_u64(fire::seed());
    let mut all: Vec<(&str, Victim)> = Vec::new();
    for point in points() {
        all.extend([Victim::OldOwner, Victim::NewOwner].map(|victim| (point, victim)));
    }
    all.shuffle(&mut rng);
    let (rounds, directions) = if fire::soak() { (all.len(), 2) } else { (5, 1) };
    let (moving, mut run) = Moving::start(Setup::default()).await;
    let mut owner = SOURCE;
    for (point, victim) in all.into_iter().take(rounds) {
        for _ in 0..directions {
            let pause = Duration::from_millis(rng.random_range(0..500));
            run = struck(&moving, run, (point, victim, pause), owner).await;
            owner = 1 - owner;
        }
    }
    moving.settle(owner, &run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switch_campaign_struck_at_random() {
    let mut rng = StdRng::seed_from_u64(fire::seed());
    let rounds = if fire::soak() && fire::replayed().is_none() { 120 } else { 4 };
    let (moving, mut run) = Moving::start(Setup::default()).await;
    let mut owner = SOURCE;
    for round in 1..=rounds {
        let point = *points().choose(&mut rng).unwrap();
        let victim = *Victim::ALL.choose(&mut rng).unwrap();
        // Around the deadline of the fence, too.
        let pause = Duration::from_millis(rng.random_range(0..3_000));
        eprint!("round {round} of {rounds}: ");
        run = struck(&moving, run, (point, victim, pause), owner).await;
        owner = 1 - owner;
    }
    moving.settle(owner, &run).await;
}
