//! Whoever dies or falls silent in a hand-over, and when: nothing is released before it is known who owns the writes, and
//! as long as the old owner does, nobody else is needed for it to take them again.
#![cfg(feature = "killpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::proxy::Proxy;
use std::time::{Duration, Instant};
use support::moving::{Driving, MAX_WRITE_HOLD, Moving, SLACK, SOURCE, Setup, TARGET};
use support::orders::answer;
use support::{PATIENCE, slow::until};

/// Moments at which a fence stands or is about to, and nothing is decided.
const UNDECIDED: [&str; 4] =
    ["switch.arm.after", "switch.fence.after", "switch.drain.before", "switch.settle.before"];

/// Control on a third server, so that a side's death is only that.
fn apart() -> Setup {
    Setup { third: true, ..Setup::default() }
}

/// The source's row says this.
async fn source_says(moving: &Moving, state: &str) {
    until(&format!("the source is {state}"), async || moving.rows().await[SOURCE].starts_with(state)).await;
}

/// From `since` on nobody has taken a write.
fn assert_nobody(moving: &Moving, since: Instant, what: &str) {
    assert_eq!(moving.probes.accepted_since(since), 0, "{what}: {:?}", moving.probes.history().violations());
}

/// Has the writes moved away from `owner` and back, and settles: whatever happened, all goes on.
async fn goes_on(moving: Moving, run: Driving, owner: usize) {
    moving.moves_away_from(owner, &run).await;
    moving.assert_accepts(1 - owner, PATIENCE, "after the hand-over").await;
    moving.moves_away_from(1 - owner, &run).await;
    moving.settle(owner, &run).await;
}

/// The new side dies and stays dead: the old owner needs nobody to take writes again.
async fn the_new_side_dies(moving: &Moving, run: &Driving, owner: usize) {
    for point in UNDECIDED {
        let what = format!("{point}, away from {owner}");
        let asked = Instant::now();
        let order = moving.frozen_at(run, point, owner).await;
        moving.server(1 - owner).stop_immediate().await;
        run.process.thaw();
        moving.assert_accepts(owner, MAX_WRITE_HOLD + SLACK, &what).await;
        moving.assert_gap(asked, MAX_WRITE_HOLD + SLACK, &what);
        // The order is answered, or its driver starts over, without the dead side.
        moving.server(1 - owner).start_again().await;
        let told = answer(moving.control(), order).await;
        assert_ne!(told["outcome"], "switched", "{what}: {told:#}");
        moving.assert_one_owner(&what);
        eprintln!("{what}: {}", told["why"].as_str().or(told["fault"].as_str()).unwrap_or_default());
    }
    moving.moves_away_from(owner, run).await;
    moving.assert_accepts(1 - owner, PATIENCE, "after the hand-over").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_targets_death_does_not_keep_the_source_closed() {
    let (moving, run) = Moving::start(apart()).await;
    the_new_side_dies(&moving, &run, SOURCE).await;
    moving.settle(TARGET, &run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sources_death_does_not_keep_the_target_closed() {
    let (moving, run) = Moving::start(apart()).await;
    moving.moves_away_from(SOURCE, &run).await;
    the_new_side_dies(&moving, &run, TARGET).await;
    moving.settle(SOURCE, &run).await;
}

/// The fence is lifted by whoever is alive, and not only at its deadline, whatever the target was asked when it died.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_deadline_when_the_target_dies_under_the_fence() {
    let more = "switch: { max_write_hold_ms: 30000 }\n";
    let (moving, run) = Moving::start(Setup { third: true, more, ..Setup::default() }).await;
    for point in ["switch.drain.before", "switch.settle.before"] {
        let order = moving.frozen_at(&run, point, SOURCE).await;
        source_says(&moving, "fenced").await;
        moving.pair.target.stop_immediate().await;
        run.process.thaw();
        let thawed = Instant::now();
        source_says(&moving, "owner").await;
        let took = thawed.elapsed();
        assert!(took < Duration::from_secs(8), "{point}: the fence stood for {took:?}");
        moving.pair.target.start_again().await;
        answer(moving.control(), order).await;
    }
    moving.moves_away_from(SOURCE, &run).await;
    moving.settle(TARGET, &run).await;
}

/// The control database dies and stays dead: it decides nothing, so nobody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_control_databases_death_does_not_keep_the_old_owner_closed() {
    let (moving, run) = Moving::start(apart()).await;
    for point in UNDECIDED {
        let asked = Instant::now();
        moving.frozen_at(&run, point, SOURCE).await;
        moving.control().stop_immediate().await;
        run.process.thaw();
        // It cannot be known whether the hand-over went through without the control database, which is not needed for
        // it: some side takes writes, in time.
        let moved = moving.probes.accepts(SOURCE, MAX_WRITE_HOLD + SLACK).await;
        moving.assert_gap(asked, MAX_WRITE_HOLD + SLACK, point);
        moving.control().start_again().await;
        moving.assert_one_owner(point);
        eprintln!("{point}: the source takes writes again: {moved}; {:?}", moving.rows().await);
        moving.moves_away_from(SOURCE, &run).await;
        moving.assert_accepts(TARGET, PATIENCE, point).await;
        moving.moves_away_from(TARGET, &run).await;
        moving.assert_accepts(SOURCE, PATIENCE, point).await;
    }
    moving.settle(SOURCE, &run).await;
}

/// Killed while the fence stands, and never started again: the fence opens by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_whose_segue_is_dead_opens_at_its_deadline() {
    let (moving, run) = Moving::start(Setup::default()).await;
    let mut run = run;
    for owner in [SOURCE, TARGET] {
        let asked = Instant::now();
        moving.frozen_at(&run, "switch.flip.before", owner).await;
        run.process.kill9();
        moving.assert_accepts(owner, MAX_WRITE_HOLD + SLACK, "nobody has started Segue again").await;
        let gap = moving.assert_gap(asked, MAX_WRITE_HOLD + SLACK, "nobody has started Segue again");
        assert!(gap > MAX_WRITE_HOLD / 2, "the fence was not what kept writes out: {gap:?}");
        moving.assert_one_owner("nobody has started Segue again");
        run = Driving::start(&moving.pair);
        moving.moves_away_from(owner, &run).await;
        moving.assert_accepts(1 - owner, PATIENCE, "the new process hands over").await;
    }
    moving.settle(SOURCE, &run).await;
}

/// Stopped before the flip, woken after the deadline: its flip comes too late, and fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_flip_fails() {
    let (moving, run) = Moving::start(Setup::default()).await;
    for owner in [SOURCE, TARGET] {
        let order = moving.frozen_at(&run, "switch.flip.before", owner).await;
        moving.assert_accepts(owner, MAX_WRITE_HOLD + SLACK, "the fence has expired").await;
        let mark = run.process.mark();
        run.process.thaw();
        let told = answer(moving.control(), order).await;
        assert_ne!(told["outcome"], "switched", "{told:#}\n{:?}", run.process.lines().split_off(mark));
        moving.assert_accepts(owner, SLACK, "after the late flip").await;
        moving.assert_one_owner("after the late flip");
        eprintln!("{told:#}");
        moving.moves_away_from(owner, &run).await;
        moving.assert_accepts(1 - owner, PATIENCE, "the next one succeeds").await;
    }
    moving.settle(SOURCE, &run).await;
}

/// The old owner is frozen when the flip is sent. Until it answers nobody knows, so nobody may write.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_owner_that_falls_silent_before_the_flip_leaves_nobody_released() {
    let (moving, run) = Moving::start(apart()).await;
    moving.frozen_at(&run, "switch.flip.before", SOURCE).await;
    moving.pair.source.freeze();
    let silent = Instant::now();
    let mark = run.process.mark();
    run.process.thaw();
    // Long past the deadline: the flip is given up as unknown.
    run.process.wait_for_since(mark, "SEGUE-FENCE-UNKNOWN", PATIENCE).await.unwrap();
    assert!(moving.probes.refuses(TARGET, PATIENCE).await, "the target is not asked");
    assert_nobody(&moving, silent, "while the old owner is silent");
    moving.pair.source.thaw();
    // Whether the flip took effect depends on the clock of the moment at which the source went on: one of both, for good.
    moving.moves_away_from(SOURCE, &run).await;
    moving.assert_accepts(TARGET, PATIENCE, "after the source has answered").await;
    moving.assert_one_owner("after the source has answered");
    moving.moves_away_from(TARGET, &run).await;
    moving.settle(SOURCE, &run).await;
}

/// The flip took effect and its answer is lost with the line: nobody writes until the old owner can be asked, and then it
/// goes forward.
#[tokio::test(flavor = "multi_thread")]
async fn a_flip_whose_answer_is_lost_goes_forward_once_the_old_owner_answers() {
    let (moving, run) = Moving::start(apart()).await;
    moving.pair.stop(&run.process).await;
    let line = Proxy::start(moving.pair.source.port()).await;
    let source = moving.pair.source.url_through(line.port(), "postgres");
    let third = moving.third.as_ref().unwrap().url("postgres");
    moving.pair.write_spec(
        &source,
        &moving.pair.target.url("postgres"),
        &["shop.*", "probe.mark"],
        // Long enough for a slow line, and for a machine that has much else to do.
        &format!("control: {{ postgres: \"{third}\" }}\nswitch: {{ max_write_hold_ms: 6000 }}\n"),
    );
    let run = Driving::start(&moving.pair);
    moving.pair.reaches(&run.process, "following").await;
    moving.frozen_at(&run, "switch.flip.before", SOURCE).await;
    // Sent, and on its way for as long as the fence can bear; so is the answer.
    line.delay(Duration::from_millis(700));
    run.process.thaw();
    source_says(&moving, "handed_over").await;
    line.freeze();
    let silent = Instant::now();
    let mark = run.process.mark();
    run.process.wait_for_since(mark, "SEGUE-FENCE-UNKNOWN", PATIENCE).await.unwrap();
    assert!(moving.probes.refuses(TARGET, PATIENCE).await, "the target is not asked");
    assert!(moving.probes.refuses(SOURCE, PATIENCE).await, "the source is not asked");
    assert_nobody(&moving, silent, "before the old owner could be asked");
    line.delay(Duration::ZERO);
    line.cut();
    line.thaw();
    moving.assert_accepts(TARGET, PATIENCE, "once the old owner has answered").await;
    moving.assert_one_owner("once the old owner has answered");
    goes_on(moving, run, TARGET).await;
}

/// Another process has switched meanwhile: what the first one still wants when it wakes up is refused.
async fn wakes_up_too_late(point: &str) {
    let (moving, first) = Moving::start(Setup::default()).await;
    moving.frozen_at(&first, point, SOURCE).await;
    moving.pair.expire_lease().await;
    let second = Driving::start(&moving.pair);
    moving.moves_away_from(SOURCE, &second).await;
    moving.assert_accepts(TARGET, PATIENCE, "the second process has switched").await;
    first.process.thaw();
    moving.pair.refused(&first.process, "SEGUE-SUPERSEDED").await;
    moving.assert_accepts(TARGET, SLACK, "the first process has woken up").await;
    assert!(moving.probes.refuses(SOURCE, PATIENCE).await, "the source is not asked");
    moving.assert_one_owner("the first process has woken up");
    goes_on(moving, second, TARGET).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_wakes_up_before_its_flip_does_no_harm_to_a_later_switch() {
    wakes_up_too_late("switch.flip.before").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_wakes_up_before_its_undo_does_no_harm_to_a_later_switch() {
    wakes_up_too_late("switch.undo").await;
}

/// The proof must be able to fail: with the follower's fence taken off by hand, both sides take writes, and it shows.
#[tokio::test(flavor = "multi_thread")]
async fn two_owners_would_be_noticed() {
    let (moving, run) = Moving::start(Setup::default()).await;
    moving.assert_accepts(SOURCE, PATIENCE, "at first").await;
    moving.assert_one_owner("at first");
    moving.pair.target.execute("ALTER TABLE probe.mark DISABLE TRIGGER USER").await;
    moving.assert_accepts(TARGET, PATIENCE, "without its fence").await;
    moving.assert_accepts(SOURCE, PATIENCE, "as before").await;
    moving.assert_accepts(TARGET, PATIENCE, "without its fence").await;
    let found = moving.probes.history().violations().join("\n");
    assert!(found.contains("does not call itself the owner"), "{found}");
    assert!(found.contains("the side changed"), "by the clock alone: {found}");
    run.process.kill9();
}
