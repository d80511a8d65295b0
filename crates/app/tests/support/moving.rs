//! A migration whose writes change hands under load: writers that follow the owner, probes that hold it to its word, and
//! what has to be true afterwards.

use super::orders::{self, answer, order};
use super::{PATIENCE, Pair, slow::until};
use segue_testkit::kill::{self, Process, Stops};
use segue_testkit::probe::{self, Probed, Probes};
use segue_testkit::workload::{self, Handle, Workload, schema};
use segue_testkit::{Cluster, Options, compare};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// What the spec has by default: after so long without a hand-over the old owner takes writes again.
pub const MAX_WRITE_HOLD: Duration = Duration::from_secs(2);
/// What is added for the machine: a probe's own pause and way, a late writer's turn, two busy cores.
pub const SLACK: Duration = Duration::from_millis(1_500);
/// Between two orders of which the first one came to nothing.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// After a server's start a lease whose holder lost its session is not free for so long.
const LEASE_TTL_S: u32 = 10;

pub const SOURCE: usize = 0;
pub const TARGET: usize = 1;

/// The verb that leads away from `owner`.
pub fn away_from(owner: usize) -> &'static str {
    if owner == SOURCE { "switch" } else { "reverse" }
}

/// How a [`Moving`] is made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Rows of the shop.
    pub rows: u64,
    /// Transactions per second.
    pub per_second: u32,
    /// The control database is on a third server.
    pub third: bool,
    /// More of the spec.
    pub more: &'static str,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { rows: 1_000, per_second: 40, third: false, more: "" }
    }
}

/// A migration that follows, under load and under probes.
pub struct Moving {
    pub pair: Pair,
    /// The third server, if there is one.
    pub third: Option<Cluster>,
    pub probes: Probes,
    pub began: Instant,
    load: Option<Handle>,
}

impl Moving {
    /// Starts everything; the source owns the writes, and the process returned drives.
    pub async fn start(setup: Setup) -> (Moving, Driving) {
        let tables = ["shop.*", "probe.mark"];
        let pair = Pair::start(&tables).await;
        let third = if setup.third { Some(Cluster::start(Options::default()).await) } else { None };
        for side in [&pair.source, &pair.target] {
            schema::create(&side.connect("postgres").await).await.expect("create the schema");
            side.execute(probe::DDL).await;
        }
        schema::seed_data(&pair.source.connect("postgres").await, setup.rows).await.expect("seed");
        let control = third.as_ref().map_or(String::new(), |third| {
            format!("control: {{ postgres: \"{}\" }}\n", third.url("postgres"))
        });
        let more = format!("{control}{}", setup.more);
        pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &tables, &more);
        let run = Driving::start(&pair);
        pair.reaches(&run.process, "following").await;
        let options = workload::Options {
            rate_limit: Some(setup.per_second),
            large_rows: 200,
            request_timeout: Duration::from_secs(5),
            ..Default::default()
        };
        let urls = [pair.source.url("postgres"), pair.target.url("postgres")];
        let load = Workload::start_between(&[&urls[0], &urls[1]], options).await;
        let probes = Probes::start(probed(&urls));
        pair.segue(&["verify"], 0);
        let moving = Moving { pair, third, probes, began: Instant::now(), load: Some(load) };
        (moving, run)
    }

    /// Where orders go.
    pub fn control(&self) -> &Cluster {
        self.third.as_ref().unwrap_or(&self.pair.target)
    }

    /// A server by its side.
    pub fn server(&self, side: usize) -> &Cluster {
        if side == SOURCE { &self.pair.source } else { &self.pair.target }
    }

    /// Waits until a lease is free as soon as its holder's session is lost.
    pub async fn grown_up(&self) {
        let old = format!(
            "SELECT clock_timestamp() - pg_postmaster_start_time() > interval '{} s'",
            LEASE_TTL_S + 1
        );
        until("the control database is old enough", async || {
            self.control().scalar(&old).await.as_deref() == Some("t")
        })
        .await;
    }

    /// What both ownership rows say, as text.
    pub async fn rows(&self) -> [String; 2] {
        let sql =
            "SELECT coalesce(max(state || ' ' || epoch), 'none') FROM segue.owner WHERE migration = 'test'";
        let row = async |side: usize| {
            let said = self.server(side).try_scalar(sql).await;
            said.map_or_else(|error| error.to_string(), Option::unwrap_or_default)
        };
        [row(SOURCE).await, row(TARGET).await]
    }

    /// Gives an order that leads away from `owner`, and returns its number.
    pub async fn order(&self, owner: usize) -> i64 {
        order(self.control(), away_from(owner), &orders::for_real()).await
    }

    /// Gives the order that leads away from `owner`, or rehearses it where only what is undone comes by, and returns its
    /// number once `run` is frozen at `point`.
    pub async fn frozen_at(&self, run: &Driving, point: &str, owner: usize) -> i64 {
        if !point.starts_with("switch.drain") {
            return self.ordered_up_to(run, point, owner).await;
        }
        // A marker that is applied by the time it is looked for is not waited for: held up, it is.
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let order = self.ordered_up_to(run, "switch.fence.before", owner).await;
            let held = self.hold_stream_onto(1 - owner).await;
            let comes_by = tokio::select! {
                () = run.thawed_until("switch.drain.before") => true,
                // Somebody's lock was in the way of the fence.
                _ = answer(self.control(), order) => false,
            };
            drop(held);
            if comes_by && point != "switch.drain.before" {
                run.thawed_until(point).await;
            }
            if comes_by {
                return order;
            }
        }
        panic!("{point} is not passed");
    }

    /// An order that is refused or undone before it comes by is given again: a gate was still red, or somebody's lock was in
    /// the way.
    async fn ordered_up_to(&self, run: &Driving, point: &str, owner: usize) -> i64 {
        let rehearses = point == "switch.undo";
        let arguments = if rehearses { orders::rehearsal() } else { orders::for_real() };
        let (mut answers, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while Instant::now() < deadline {
            let mark = run.process.mark();
            run.stops.at(point);
            let order = order(self.control(), away_from(owner), &arguments).await;
            let frozen = run.process.stopped_since(mark, point, PATIENCE);
            tokio::select! {
                frozen = frozen => match frozen {
                    Ok(()) => return order,
                    Err(overdue) => panic!("{point}: {overdue}"),
                },
                told = answer(self.control(), order) => answers.push(told),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        panic!("{point} is not passed: {answers:#?}");
    }

    /// Nothing is applied on `side` until the session is dropped.
    async fn hold_stream_onto(&self, side: usize) -> Client {
        let client = self.server(side).connect("postgres").await;
        client.batch_execute("BEGIN; SELECT FROM segue.stream FOR UPDATE").await.unwrap();
        client
    }

    /// Has the writes moved away from `owner`, in as many tries as it takes: other transactions may be in the way, and after
    /// a fault the driver starts over. Returns all answers, the last of them `switched` or `already`.
    pub async fn moves_away_from(&self, owner: usize, run: &Driving) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut answers = Vec::new();
        loop {
            let answer = answer(self.control(), self.order(owner).await).await;
            let outcome = answer["outcome"].as_str().unwrap_or_default().to_owned();
            answers.push(answer);
            if outcome == "switched" || outcome == "already" {
                return answers;
            }
            if Instant::now() > deadline || run.process.status().is_some() {
                let said = run.process.lines().join("\n");
                panic!("the writes do not move away from {owner}: {answers:#?}\n{said}");
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Nobody may ever have seen two owners; `what` names the moment.
    pub fn assert_one_owner(&self, what: &str) {
        assert_eq!(self.probes.history().violations(), Vec::<String>::new(), "two owners: {what}");
    }

    /// The longest time since `since` without a side that takes writes must be below `bound`.
    pub fn assert_gap(&self, since: Instant, bound: Duration, what: &str) -> Duration {
        let (gap, began) = self.probes.history().longest_gap(since, Instant::now());
        let at_ms = began.saturating_duration_since(since).as_millis();
        assert!(
            gap <= bound,
            "{what}: nobody took writes for {gap:?} from {at_ms} ms on; the bound is {bound:?}"
        );
        gap
    }

    /// `side` accepts a probe that is sent from now on.
    pub async fn assert_accepts(&self, side: usize, limit: Duration, what: &str) {
        if !self.probes.accepts(side, limit).await {
            panic!("{what}: side {side} takes no writes within {limit:?}: {:?}", self.rows().await);
        }
    }

    /// Waits until everything that was committed on `owner` until now has been applied on the other side.
    pub async fn caught_up(&self, owner: usize) {
        let end = self.server(owner).scalar("SELECT pg_current_wal_insert_lsn()").await.unwrap();
        let direction = if owner == SOURCE { "forward" } else { "reverse" };
        let reached = format!(
            "SELECT position >= '{end}' FROM segue.stream WHERE migration = 'test' AND direction = '{direction}'"
        );
        until(&format!("everything of {owner} up to {end} is applied"), async || {
            self.server(1 - owner).scalar(&reached).await.as_deref() == Some("t")
        })
        .await;
    }

    /// When all is over, with `owner` owning the writes: nothing acknowledged is missing, nothing deleted is back, both
    /// sides are equal, and nobody ever saw two owners. `run` has to be alive.
    pub async fn settle(mut self, owner: usize, run: &Driving) {
        self.assert_accepts(owner, PATIENCE, "at the end").await;
        let load = self.load.take().expect("stopped only here");
        assert!(load.progress(30, PATIENCE).await, "the writers stand still: {:?}", self.rows().await);
        let report = load.stop().await;
        self.probes.stop().await;
        let (history, refused) = (self.probes.history(), self.probes.refused());
        self.caught_up(owner).await;
        assert_eq!(run.process.status(), None, "{}", run.process.lines().join("\n"));
        assert_eq!(report.anomalies, Vec::<String>::new(), "seed {}", report.seed);
        assert_eq!(history.violations(), Vec::<String>::new(), "two owners");
        for side in [owner, 1 - owner] {
            let client = self.server(side).connect("postgres").await;
            assert_eq!(report.oracle.check(&client).await, Ok(()), "seed {}, side {side}", report.seed);
            assert_eq!(history.missing_on(&client).await.unwrap(), Vec::<String>::new(), "side {side}");
        }
        let (source, target) =
            (self.pair.source.connect("postgres").await, self.pair.target.connect("postgres").await);
        let compared = compare::schemas(&source, &target, &["shop", "probe"]).await.unwrap();
        assert!(compared.is_equal(), "{compared}");
        let refusals: u64 = report.errors.values().sum();
        eprintln!(
            "{} transactions acknowledged, {} without an answer, {refusals} refusals and lost connections; probes accepted {:?}, \
             others {refused:?}",
            report.acked,
            report.unknown,
            history.counts()
        );
    }
}

/// Both sides, asked for their ownership rows. Before the first order the source has none, and owns the writes.
pub(super) fn probed(urls: &[String; 2]) -> [Probed; 2] {
    let owner = |nothing: &str| {
        format!(
            "SELECT coalesce(max(state), '{nothing}') = 'owner', coalesce(max(epoch), 1) FROM segue.owner
              WHERE migration = 'test'"
        )
    };
    [
        Probed { url: urls[SOURCE].clone(), owner: owner("owner") },
        Probed { url: urls[TARGET].clone(), owner: owner("none") },
    ]
}

/// `segue run` that can be frozen at any named point.
pub struct Driving {
    pub process: Process,
    stops: Stops,
}

impl Driving {
    pub fn start(pair: &Pair) -> Driving {
        let mut command = pair.command(&["run"]);
        // A file of its own: an earlier process that is frozen must not take the later one's stops.
        let file = tempfile::Builder::new().prefix("stop-").tempfile_in(pair.dir.path()).unwrap();
        let path = file.into_temp_path().to_path_buf();
        let stops = Stops::of(&mut command, path);
        Driving { process: Process::start(command), stops }
    }

    /// Starts a process that kills itself when it comes by `point`, and waits for that.
    pub async fn dies_at(pair: &Pair, point: &str) {
        let mut command = pair.command(&["run"]);
        kill::kill_at(&mut command, point, 1);
        let run = Process::start(command);
        let status = run.wait(PATIENCE).await.unwrap_or_else(|e| panic!("{point} is not passed: {e}"));
        assert!(kill::was_killed(status), "{point}: {status}\n{}", run.lines().join("\n"));
    }

    /// The next passage of `point` freezes it.
    pub fn stop_at(&self, point: &str) {
        self.stops.at(point);
    }

    /// Lets a frozen process go on until it is frozen at `point`.
    pub async fn thawed_until(&self, point: &str) {
        let mark = self.process.mark();
        self.stops.at(point);
        self.process.thaw();
        if let Err(overdue) = self.process.stopped_since(mark, point, PATIENCE).await {
            panic!("{point}: {overdue}");
        }
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.process.lines();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("the last that process {} said:\n{}", self.process.pid(), tail.join("\n"));
        }
    }
}
