//! A migration under fire: writers that remember, proxies on both lines, and what has to hold when it is over.

use super::{PATIENCE, Pair};
use rand::SeedableRng;
use rand::rngs::StdRng;
use segue_testkit::Options;
use segue_testkit::kill::{self, Process};
use segue_testkit::proxy::Proxy;
use segue_testkit::workload::{self, Handle, Report, Workload, schema};
use std::time::{Duration, Instant};

/// Small regions, so that there are many moments in a backfill.
const MANY_REGIONS: &str = "copy: { workers: 2, region_target_ms: 50 }\n";

/// A migration that takes longer than this to come to rest has its output shown.
const SLOW: Duration = Duration::from_secs(40);

/// A pair of servers under load.
pub struct Fire {
    pub pair: Pair,
    load: Option<Handle>,
    report: Option<Report>,
    /// Between `segue` and the source; the writers are not behind it.
    pub source_line: Proxy,
    pub target_line: Proxy,
    pub seed: u64,
    pub rng: StdRng,
}

/// Whether the whole campaign is wanted.
pub fn soak() -> bool {
    std::env::var_os("SEGUE_SOAK").is_some()
}

/// The seed to replay.
pub fn replayed() -> Option<u64> {
    std::env::var("SEGUE_SEED").ok().map(|seed| seed.parse().expect("a number"))
}

/// The seed to replay, or a new one; printed.
pub fn seed() -> u64 {
    let seed = replayed().unwrap_or_else(rand::random);
    eprintln!("campaign: SEGUE_SEED={seed}");
    seed
}

impl Fire {
    /// Seeds a shop of about `rows` rows on the source, makes an empty one on the target, and lets the writers loose.
    pub async fn start(rows: u64, seed: u64, per_second: u32) -> Fire {
        Fire::on(&Options::default(), rows, seed, per_second).await
    }

    /// As [`Fire::start`], with both servers made with these options.
    pub async fn on(servers: &Options, rows: u64, seed: u64, per_second: u32) -> Fire {
        let pair = Pair::with(servers.clone(), servers.clone(), &["shop.*"]).await;
        let (source, target) = (pair.source.connect("postgres").await, pair.target.connect("postgres").await);
        tokio::try_join!(schema::create(&source), schema::create(&target)).expect("create the schema");
        schema::seed_data(&source, rows).await.expect("seed");
        let source_line = Proxy::start(pair.source.port()).await;
        let target_line = Proxy::start(pair.target.port()).await;
        pair.write_spec(
            &pair.source.url_through(source_line.port(), "postgres"),
            &pair.target.url_through(target_line.port(), "postgres"),
            &["shop.*"],
            MANY_REGIONS,
        );
        let options =
            workload::Options { seed: Some(seed), rate_limit: Some(per_second), ..Default::default() };
        let load = Workload::start(&pair.source.url("postgres"), options).await;
        Fire {
            pair,
            load: Some(load),
            report: None,
            source_line,
            target_line,
            seed,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Runs `segue run` until it kills itself at the `passage`-th time it comes by `point`.
    pub async fn dies_at(&self, point: &str, passage: u32) {
        self.dies_of(&["run"], point, passage).await;
    }

    /// As [`Fire::dies_at`], of a run with these arguments.
    pub async fn dies_of(&self, arguments: &[&str], point: &str, passage: u32) {
        let mut command = self.pair.command(arguments);
        kill::kill_at(&mut command, point, passage);
        let run = Process::start(command);
        let status =
            run.wait(PATIENCE).await.unwrap_or_else(|e| panic!("{point}:{passage} was not passed: {e}"));
        let said = run.lines().join("\n");
        assert!(kill::was_killed(status), "ended by itself before {point}:{passage}: {status}\n{said}");
    }

    /// Waits until the plan was found in order and is journalled: before that, what fails is shown and not tried again.
    pub async fn begun(&self, run: &Process) {
        let journal = "SELECT to_regclass('segue.journal') IS NOT NULL";
        let begun = "SELECT count(*) > 0 FROM segue.journal";
        let target = &self.pair.target;
        while target.scalar(journal).await.as_deref() != Some("t")
            || target.scalar(begun).await.as_deref() != Some("t")
        {
            self.lives(run, "its start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Panics if `run` has ended: whatever was done to it, it was to go on.
    pub fn lives(&self, run: &Process, after: &str) {
        if let Some(status) = run.status() {
            panic!("seed {}: ended after {after}: {status}\n{}", self.seed, run.lines().join("\n"));
        }
    }

    /// Waits until so many more transactions are acknowledged.
    pub async fn progress(&self, more: u64) {
        let load = self.load.as_ref().expect("the writers have been stopped");
        assert!(load.progress(more, PATIENCE).await, "seed {}: the writers stand still", self.seed);
    }

    /// Stops the writers.
    pub async fn quiet(&mut self) {
        if let Some(load) = self.load.take() {
            let report = load.stop().await;
            assert_eq!(report.anomalies, Vec::<String>::new(), "seed {}: on the source itself", self.seed);
            self.report = Some(report);
        }
    }

    /// Another server is the source now: Segue and the writers are sent there.
    pub fn moved(&mut self) {
        let Pair { source, target, .. } = &self.pair;
        let target = target.url_through(self.target_line.port(), "postgres");
        self.pair.write_spec(&source.url("postgres"), &target, &["shop.*"], MANY_REGIONS);
        if let Some(load) = &self.load {
            load.redirect(&source.url("postgres"));
        }
    }

    /// When all is over: the target follows, has everything that was acknowledged, and equals the source.
    pub async fn settle(mut self, run: &Process) {
        let began = Instant::now();
        self.pair.reaches(run, "following").await;
        if self.load.is_some() {
            self.progress(100).await;
            self.pair.caught_up().await;
        }
        if began.elapsed() > SLOW {
            let said = run.lines().join("\n");
            eprintln!("seed {}: settled only after {} s:\n{said}", self.seed, began.elapsed().as_secs());
        }
        self.quiet().await;
        self.pair.caught_up().await;
        self.lives(run, "everything");
        self.pair.assert_equal(&["shop"]).await;
        let report = self.report.take().expect("stopped above");
        let lost = report.oracle.check(&self.pair.target.connect("postgres").await).await;
        assert_eq!(lost, Ok(()), "seed {}: acknowledged, and not on the target", self.seed);
        let (seed, acked, open) = (self.seed, report.acked, report.unknown);
        eprintln!("seed {seed}: {acked} acknowledged, {open} without an answer; {:?}", report.errors);
    }
}
