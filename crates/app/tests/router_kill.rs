//! Whoever dies or falls silent around a router: no acknowledged write is lost, nobody ever sees two owners, and traffic goes on
//! by itself within its bound.

#![cfg(feature = "killpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::kill::Process;
use segue_testkit::proxy::Proxy;
use segue_testkit::{Cluster, Options};
use std::time::Instant;
use support::PATIENCE;
use support::callers::Callers;
use support::moving::{Driving, MAX_WRITE_HOLD, SLACK};
use support::routed::{Routed, port_of};

/// Statements that show that traffic goes on.
const SOME: usize = 30;

/// Three routers with clients, which reach the control database over a line of their own.
struct Three {
    routed: Routed,
    run: Driving,
    line: Proxy,
    routers: [Process; 3],
    ports: [u16; 3],
    callers: [Callers; 3],
}

impl Three {
    async fn start() -> Three {
        let third = Cluster::start(Options::default()).await;
        let line = Proxy::start(third.port()).await;
        let (routed, run) = Routed::start("transaction", "", Some(third)).await;
        let direct = std::fs::read_to_string(routed.pair.spec()).unwrap();
        let port = routed.control().port().to_string();
        std::fs::write(routed.pair.spec(), direct.replace(&port, &line.port().to_string())).unwrap();
        let routers = [routed.router(), routed.router(), routed.router()];
        let ports = [port_of(&routers[0]).await, port_of(&routers[1]).await, port_of(&routers[2]).await];
        let callers = [0, 1, 2].map(|n| Callers::start(&routed.url(ports[n]), n as i32 * 10, 2));
        for caller in &callers {
            caller.go_on(SOME, "at the start").await;
        }
        Three { routed, run, line, routers, ports, callers }
    }

    /// The clients of these routers go on, and none of them has waited for long since `began`.
    async fn go_on(&self, routers: &[usize], began: Instant, what: &str) {
        for router in routers {
            let caller = &self.callers[*router];
            caller.go_on(SOME, what).await;
            let gap = caller.longest_gap(began);
            assert!(gap < MAX_WRITE_HOLD + SLACK, "{what}: nothing was acknowledged for {gap:?}");
            eprintln!("{what}: the clients of router {router} waited {gap:?} at most");
        }
    }

    /// The switch does not wait for a router that is frozen, and its clients go on when it does.
    async fn one_is_frozen(&self) {
        self.routers[2].freeze();
        let (began, _) = self.routed.moves_away_from(0, &self.run.process).await;
        self.go_on(&[0, 1], began, "beside a frozen router").await;
        self.routers[2].thaw();
        eprintln!("it goes on after {:?}", self.callers[2].go_on(SOME, "thawed").await);
    }

    /// Nobody tells them, and they find out.
    async fn all_are_cut_off(&self) {
        self.line.refuse(true);
        self.line.cut();
        let (began, _) = self.routed.moves_away_from(1, &self.run.process).await;
        self.go_on(&[0, 1, 2], began, "without the control database").await;
        self.line.refuse(false);
        for router in &self.routers {
            router.wait_for("the router hears from the control database again", PATIENCE).await.unwrap();
        }
    }

    /// Killed, and started again after the writes have moved.
    async fn one_is_killed(&mut self) {
        self.routers[0].kill9();
        let (began, _) = self.routed.moves_away_from(0, &self.run.process).await;
        self.go_on(&[1, 2], began, "beside a dead router").await;
        self.routers[0] = self.routed.router_at(&format!("127.0.0.1:{}", self.ports[0]));
        eprintln!("it goes on after {:?}", self.callers[0].go_on(SOME, "started again").await);
        let said = self.routers[0].wait_for("the router listens", PATIENCE).await.unwrap();
        assert!(said.contains("the target owns the writes (epoch 4)"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_that_die_freeze_or_are_cut_off_lose_nothing() {
    let mut three = Three::start().await;
    let mut probes = three.routed.probes();
    three.one_is_frozen().await;
    three.all_are_cut_off().await;
    for caller in &three.callers {
        assert_eq!(caller.failed(), Vec::<String>::new(), "nothing has failed so far");
    }
    three.one_is_killed().await;
    let Three { routed, run: _run, line: _line, routers, callers, .. } = three;
    for (number, caller) in callers.into_iter().enumerate() {
        let failed = caller.finish(routed.server(1)).await;
        assert!(number == 0 || failed.is_empty(), "router {number}: {failed:?}");
        // Each of its clients may have lost what was under way.
        assert!(failed.len() <= 2, "{failed:?}");
    }
    probes.stop().await;
    assert_eq!(probes.history().violations(), Vec::<String>::new(), "two owners");
    routed.assert_equal(1).await;
    for router in &routers {
        router.terminate();
        assert_eq!(router.wait(PATIENCE).await.unwrap().code(), Some(0), "{}", router.lines().join("\n"));
    }
    // The one that was killed could not leave its seat; the one inside `segue run` has it.
    let seats = routed.control().scalar("SELECT count(*) FROM segue.router").await;
    assert_eq!(seats.as_deref(), Some("2"));
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
    let (routed, mut run) = Routed::start("session", "", None).await;
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
