//! Whoever dies or falls silent around a router: no acknowledged write is lost, nobody ever sees two owners, and traffic goes on
//! by itself within its bound.

#![cfg(feature = "killpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::proxy::Proxy;
use segue_testkit::{Cluster, Options};
use std::time::Instant;
use support::PATIENCE;
use support::callers::Callers;
use support::moving::{Driving, MAX_WRITE_HOLD, SLACK};
use support::routed::{Routed, port_of};

/// Statements that show that traffic goes on.
const SOME: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn routers_that_die_freeze_or_are_cut_off_lose_nothing() {
    let third = Cluster::start(Options::default()).await;
    let line = Proxy::start(third.port()).await;
    let (routed, run) = Routed::start("transaction", "", Some(third), None).await;
    // The driver reaches the control database, routers do over a line of their own.
    let direct = std::fs::read_to_string(routed.pair.spec()).unwrap();
    let third = routed.third.as_ref().unwrap();
    let port = third.port().to_string();
    std::fs::write(routed.pair.spec(), direct.replace(&port, &line.port().to_string())).unwrap();
    let mut routers = [routed.router(), routed.router(), routed.router()];
    let mut ports = Vec::new();
    for router in &routers {
        ports.push(port_of(router).await);
    }
    let mut probes = routed.probes();
    let callers: Vec<Callers> =
        (0..3).map(|n| Callers::start(&routed.url(ports[n as usize]), n * 10, 2)).collect();
    for caller in &callers {
        caller.go_on(SOME, "at the start").await;
    }

    // One of three is frozen: the switch does not wait for it, and its clients go on when it does.
    routers[2].freeze();
    let (began, answer) = routed.moves_away_from(0, &run.process).await;
    let took = began.elapsed();
    for caller in &callers[..2] {
        caller.go_on(SOME, "beside a frozen router").await;
        let gap = caller.longest_gap(began);
        assert!(gap < MAX_WRITE_HOLD + SLACK, "a frozen router holds the others up: {gap:?}");
        eprintln!(
            "frozen: the switch took {took:?}, its stall {} ms, others waited {gap:?}",
            answer["stall_ms"]
        );
    }
    routers[2].thaw();
    eprintln!("frozen: it goes on after {:?}", callers[2].go_on(SOME, "thawed").await);

    // The line to the control database is cut: nobody tells them, and they find out.
    line.refuse(true);
    line.cut();
    let (began, _) = routed.moves_away_from(1, &run.process).await;
    for caller in &callers {
        caller.go_on(SOME, "without the control database").await;
        let gap = caller.longest_gap(began);
        assert!(gap < MAX_WRITE_HOLD + SLACK, "cut off: {gap:?}");
        eprintln!("cut off: waited {gap:?} at most");
    }
    line.refuse(false);
    for router in &routers {
        router.wait_for("the router hears from the control database again", PATIENCE).await.unwrap();
    }
    for caller in &callers {
        assert_eq!(caller.failed(), Vec::<String>::new(), "nothing has failed so far");
    }

    // Killed, and started again after the writes have moved.
    routers[0].kill9();
    let (began, _) = routed.moves_away_from(0, &run.process).await;
    callers[1].go_on(SOME, "beside a dead router").await;
    let gap = callers[1].longest_gap(began);
    assert!(gap < MAX_WRITE_HOLD + SLACK, "a dead router holds the others up: {gap:?}");
    routers[0] = routed.router_at(&format!("127.0.0.1:{}", ports[0]));
    eprintln!(
        "killed: others waited {gap:?}; it goes on after {:?}",
        callers[0].go_on(SOME, "started again").await
    );
    let said = routers[0].wait_for("the router listens", PATIENCE).await.unwrap();
    assert!(said.contains("the target owns the writes (epoch 4)"), "{said}");

    for (number, caller) in callers.into_iter().enumerate() {
        let failed = caller.finish(routed.server(1)).await;
        assert!(number == 0 || failed.is_empty(), "router {number}: {failed:?}");
        // Each of its clients may have lost what was under way.
        assert!(failed.len() <= 2, "{failed:?}");
    }
    probes.stop().await;
    assert_eq!(probes.history().violations(), Vec::<String>::new(), "two owners");
    routed.assert_equal(1).await;
    // They leave, and say so.
    for router in &routers {
        router.terminate();
        assert_eq!(router.wait(PATIENCE).await.unwrap().code(), Some(0), "{}", router.lines().join("\n"));
    }
    assert_eq!(
        third.scalar("SELECT count(*) FROM segue.router WHERE body->>'clients' = '0'").await.as_deref(),
        Some("1")
    );
}

/// Freezes the driver at `point` of a switch away from `owner`, kills it there, and measures how long clients wait.
async fn dies_at(routed: &Routed, run: &Driving, callers: &Callers, point: &str, owner: usize) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mark = run.process.mark();
        run.stop_at(point);
        let verb = support::moving::away_from(owner);
        let order = support::orders::order(routed.control(), verb, &support::orders::for_real()).await;
        tokio::select! {
            frozen = run.process.stopped_since(mark, point, PATIENCE) => {
                frozen.unwrap();
                break;
            }
            told = support::orders::answer(routed.control(), order) => {
                assert!(Instant::now() < deadline, "{point} is not passed: {told:#}");
            }
        }
    }
    let died = Instant::now();
    run.process.kill9();
    assert!(callers.acknowledged() > 0);
    died
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_dies_in_a_hold_keeps_nobody_beyond_its_bound() {
    let (routed, mut run) = Routed::start("session", "", None, None).await;
    let router = routed.router();
    let mut probes = routed.probes();
    let callers = Callers::start(&routed.url(port_of(&router).await), 0, 4);
    callers.go_on(SOME, "at the start").await;
    let mut owner = 0;
    for (point, moves) in
        [("switch.hold.after", false), ("switch.fence.after", false), ("switch.flip.after", true)]
    {
        let died = dies_at(&routed, &run, &callers, point, owner).await;
        if moves {
            // Nobody takes the writes before another driver has opened the new owner.
            run = Driving::start(&routed.pair);
            owner = 1 - owner;
        }
        callers.go_on(SOME, point).await;
        let gap = callers.longest_gap(died);
        let bound = if moves { PATIENCE } else { MAX_WRITE_HOLD + SLACK };
        assert!(gap < bound, "{point}: nothing was acknowledged for {gap:?}");
        eprintln!("{point}: nothing was acknowledged for {gap:?}; failed so far: {:?}", callers.failed());
        if !moves {
            run = Driving::start(&routed.pair);
            routed.pair.reaches(&run.process, "following").await;
        }
    }
    routed.moves_away_from(owner, &run.process).await;
    callers.go_on(SOME, "at the end").await;
    let failed = callers.finish(routed.server(1 - owner)).await;
    assert!(failed.is_empty(), "a lone statement waits for whoever owns the writes: {failed:?}");
    probes.stop().await;
    assert_eq!(probes.history().violations(), Vec::<String>::new(), "two owners");
    routed.assert_equal(1 - owner).await;
}
