//! Two servers, and the streams between them, each a run of the engine in this process.

use segue_engine::admission::{Admission, Admissions};
use segue_engine::fault::Fault;
use segue_engine::follow::repair::StreamRepairer;
use segue_engine::follow::{self, build::BatchLimits};
use segue_engine::migration::{Handles, Run, Settings};
use segue_engine::ports::{Outcome, Source};
use segue_engine::progress::{Progress, Warnings};
use segue_engine::throttle::{Limits, Throttle};
use segue_engine::verify::ports::Repairer;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::stage::Stage;
use segue_model::table::{Table, TableId};
use segue_postgres::authority::Authority;
use segue_postgres::birth::{self, Direction, StreamIdentity};
use segue_postgres::catalog::{self, Catalog};
use segue_postgres::connect::Endpoint;
use segue_postgres::source::PgSource;
use segue_postgres::target::PgTarget;
use segue_postgres::{leaves, schema};
use segue_testkit::{Cluster, Options, compare};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

pub(crate) const MIGRATION: &str = "orders-move";
pub(crate) const TOKEN: i64 = 1;
/// How long anything may take before a test gives up on it; generous, for slow machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A table of every shape that matters on the way.
pub(crate) const DDL: &str = "
    CREATE TABLE public.t (id int PRIMARY KEY, a text, big text);
    ALTER TABLE public.t ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE public.auto (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text,
        twice bigint GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE public.whole (a int, b text);
    ALTER TABLE public.whole REPLICA IDENTITY FULL;
    CREATE TABLE public.r (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
    CREATE TABLE public.r_low PARTITION OF public.r FOR VALUES FROM (MINVALUE) TO (1000);
    CREATE TABLE public.r_high PARTITION OF public.r FOR VALUES FROM (1000) TO (MAXVALUE);";

pub(crate) const TABLES: &[&str] = &["public.t", "public.auto", "public.whole", "public.r"];

pub(crate) struct World {
    pub(crate) source: Cluster,
    pub(crate) target: Cluster,
}

/// A stream that runs.
pub(crate) struct Running {
    pub(crate) progress: Arc<Progress>,
    pub(crate) admissions: Arc<Admissions>,
    pub(crate) sender: Arc<PgSource>,
    stage: watch::Receiver<Stage>,
    run: JoinHandle<()>,
    ended: watch::Receiver<Option<Fault>>,
    repairer: Arc<StreamRepairer>,
    tables: BTreeMap<TableId, Arc<Table>>,
}

impl World {
    /// Tables on both sides; the source's hold rows.
    pub(crate) async fn start(source: Options, target: Options) -> World {
        let (source, target) = tokio::join!(Cluster::start(source), Cluster::start(target));
        let world = World { source, target };
        for cluster in [&world.source, &world.target] {
            let mut client = cluster.connect("postgres").await;
            schema::ensure(&mut client).await.unwrap();
            client
                .batch_execute(&format!("{DDL} SELECT segue.raise_token('{MIGRATION}', {TOKEN})"))
                .await
                .unwrap();
        }
        let rows = "INSERT INTO t SELECT i, 'seed', repeat('x', 5000) FROM generate_series(1, 50) i;
             INSERT INTO auto (a) SELECT 'seed' FROM generate_series(1, 20);
             INSERT INTO whole SELECT i, 'seed' FROM generate_series(1, 20) i;
             INSERT INTO r SELECT i, 'seed' FROM generate_series(900, 1100) i";
        world.source.execute(rows).await;
        world
    }

    pub(crate) fn at(&self, side: &str) -> Endpoint {
        let cluster = if side == "source" { &self.source } else { &self.target };
        Endpoint::parse(&cluster.url("postgres")).unwrap()
    }

    pub(crate) async fn clients(&self) -> (Client, Client) {
        (self.source.connect("postgres").await, self.target.connect("postgres").await)
    }

    /// The plan of one way; nothing stands in its way.
    pub(crate) async fn plan(&self, direction: Direction) -> Catalog {
        let (mut source, mut target) = self.clients().await;
        plan_between(&mut source, &mut target, direction).await
    }

    /// The forward stream, born as `segue run` does it, if it is not there yet.
    async fn forward(&self, catalog: &Catalog) -> StreamIdentity {
        let (source, target) = self.clients().await;
        if let Some((identity, at)) = birth::known(&target, MIGRATION, Direction::Forward).await.unwrap() {
            birth::resume_check(&source, &identity, at).await.unwrap();
            return identity;
        }
        let (from, relations) = (self.at("source"), &catalog.relations);
        let identity = birth::birth(&from, MIGRATION, Direction::Forward, TOKEN, relations, |_| {}).await;
        let identity = identity.unwrap();
        leaves::remember_born(&target, &identity, TOKEN, relations).await.unwrap();
        birth::claim(&target, TOKEN, &identity).await.unwrap();
        identity
    }

    /// Makes the way back, or finds it.
    pub(crate) async fn arm(&self) -> Outcome<StreamIdentity> {
        let catalog = self.plan(Direction::Reverse).await;
        let source = self.source.connect("postgres").await;
        let authority = (MIGRATION, TOKEN);
        birth::reverse(&source, &self.at("target"), authority, &catalog.relations, |_| {}).await
    }

    /// Starts one stream, making it first if it is not there. Whatever is written where it comes from counts.
    pub(crate) async fn run(&self, direction: Direction) -> Running {
        self.try_run(direction).await.unwrap()
    }

    /// [`World::run`], or why its source cannot be opened.
    pub(crate) async fn try_run(&self, direction: Direction) -> Outcome<Running> {
        self.open(direction, Admission::All).await
    }

    /// [`World::run`], with what counts at first.
    pub(crate) async fn run_admitting(&self, direction: Direction, admission: Admission) -> Running {
        self.open(direction, admission).await.unwrap()
    }

    async fn open(&self, direction: Direction, admission: Admission) -> Outcome<Running> {
        let catalog = self.plan(direction).await;
        let identity = match direction {
            Direction::Forward => self.forward(&catalog).await,
            Direction::Reverse => self.arm().await.unwrap(),
        };
        let (from, to) = (self.at(direction.from_side()), self.at(direction.to_side()));
        self.released(direction).await;
        let known = {
            let (from, to) = (from.connect("leaves").await.unwrap(), to.connect("leaves").await.unwrap());
            let tables = catalog.tables.len();
            leaves::settle(&from, &to, &identity, TOKEN, tables, &catalog.relations).await.unwrap()
        };
        let authority = Authority {
            migration: MIGRATION.into(),
            direction,
            token: TOKEN,
            incarnation: identity.incarnation,
        };
        let tables: Vec<_> = catalog.tables.into_iter().map(Arc::new).collect();
        let sender = Arc::new(PgSource::open(from, identity, TOKEN, &tables, known, None).await?);
        let settings = Settings {
            workers: 2,
            region_target: Duration::from_millis(500),
            follow: follow::Limits {
                memory_bytes_max: 64 << 20,
                batch: BatchLimits { bytes_max: 8 << 20, transactions_max: 1000 },
            },
        };
        let throttle = Arc::new(Throttle::new(Limits::default()));
        let target = Arc::new(PgTarget::new(to, authority));
        let warnings = Arc::new(Warnings::default());
        let admissions = Arc::new(Admissions::new(admission));
        let (from, told) = (sender.clone(), admissions.clone());
        let run = Run::prepare(from, target, told, tables, throttle, warnings, settings).await.unwrap();
        let (progress, stage) = (run.progress(), run.stage());
        let Handles { repairer, tables, .. } = run.handles();
        let (end, ended) = watch::channel(None);
        let run = tokio::spawn(async move {
            end.send_replace(Some(run.run().await));
        });
        Ok(Running { progress, admissions, sender, stage, run, ended, repairer, tables })
    }

    /// Waits until nobody streams from the slot: an earlier run may just have ended.
    async fn released(&self, direction: Direction) {
        let cluster = if direction == Direction::Forward { &self.source } else { &self.target };
        let until = Instant::now() + PATIENCE;
        while cluster.scalar("SELECT bool_or(active) FROM pg_replication_slots").await.as_deref() == Some("t")
        {
            assert!(Instant::now() < until, "the slot is still in use");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Both streams, the backfill behind them.
    pub(crate) async fn both(&self) -> (Running, Running) {
        let forward = self.run(Direction::Forward).await;
        forward.follows().await;
        let reverse = self.run(Direction::Reverse).await;
        (forward, reverse)
    }

    pub(crate) async fn assert_equal(&self) {
        let (source, target) = self.clients().await;
        let report = compare::schemas(&source, &target, &["public"]).await.unwrap();
        assert!(report.is_equal(), "{report}");
        assert!(report.rows() > 0);
    }
}

impl Running {
    /// Waits for `what`; a stream that ends meanwhile says why.
    pub(crate) async fn until<T>(&self, what: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            fault = self.fault() => panic!("the stream has ended: {fault}"),
            done = tokio::time::timeout(PATIENCE, what) => done.expect("in time"),
        }
    }

    /// The fault that it ends with.
    pub(crate) async fn fault(&self) -> Fault {
        let mut ended = self.ended.clone();
        let fault = ended.wait_for(Option::is_some).await.unwrap().clone();
        fault.unwrap()
    }

    pub(crate) async fn follows(&self) {
        let mut stage = self.stage.clone();
        self.until(stage.wait_for(|stage| *stage == Stage::Following)).await.unwrap();
    }

    /// Waits until everything that is committed where it comes from has been applied.
    pub(crate) async fn caught_up(&self) {
        let signal = self.sender.signal().await.unwrap();
        self.until(self.progress.passed(signal)).await;
    }

    /// Waits until it has come to `position`, with or without anything to apply on the way.
    pub(crate) async fn reaches(&self, position: Position) {
        let mut applied = self.progress.watch_applied();
        self.until(applied.wait_for(|applied| applied.position >= position)).await.unwrap();
    }

    /// Copies all rows of a table anew, as `verify --repair` does with those that differ.
    pub(crate) async fn repair(&self, table: u32) {
        self.until(self.repairer.repair(&self.tables[&TableId(table)], &Extent::ALL, None)).await.unwrap();
    }

    /// Row changes applied by this run.
    pub(crate) fn changes(&self) -> u64 {
        self.progress.snapshot().changes
    }

    /// Transactions applied by this run.
    pub(crate) fn transactions(&self) -> u64 {
        self.progress.snapshot().transactions
    }

    /// Ends it as a process that dies does: nothing is said to anybody.
    pub(crate) async fn kill(self) {
        self.run.abort();
        let _ = self.run.await;
    }
}

/// The plan of one way; nothing stands in its way.
pub(crate) async fn plan_between(source: &mut Client, target: &mut Client, direction: Direction) -> Catalog {
    let names = TABLES.iter().map(|name| QualifiedName::parse(name).unwrap());
    let pairs: Vec<_> = names.map(|name| (name.clone(), name)).collect();
    let catalog = match direction {
        Direction::Forward => catalog::read(source, target, &pairs).await,
        Direction::Reverse => catalog::read_reverse(source, target, &pairs).await,
    };
    let catalog = catalog.unwrap();
    assert_eq!(catalog.refusals, []);
    catalog
}

/// Where a server's log is.
pub(crate) async fn log_end(cluster: &Cluster) -> Position {
    cluster.scalar("SELECT pg_current_wal_insert_lsn()").await.unwrap().parse().unwrap()
}
