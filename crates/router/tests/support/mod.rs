//! A router between real clients and real servers.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

pub(crate) mod clients;
pub(crate) mod wire;

use segue_model::switch::Side;
use segue_model::switch::ownership::Epoch;
use segue_model::switch::route::Route;
use segue_router::{
    Catalog, ClientAuth, Config, Counts, Feeds, Fresh, Handle, Heard, Limits, PoolMode, ReadLimits, Reads,
    Router, Secret, ShadowConfig, Taken, Tls, Upstream, Users,
};
use segue_testkit::Cluster;
use segue_testkit::cluster::client_program;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

/// A router that runs, and what steers it.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    pub(crate) routes: watch::Sender<Heard>,
    /// What is read where; nobody but the owner serves anything until it is said here.
    pub(crate) reads: watch::Sender<Arc<Reads>>,
    pub(crate) fresh: watch::Sender<Option<Fresh>>,
    pub(crate) catalog: watch::Sender<Option<Arc<Catalog>>>,
    pub(crate) password: String,
    running: tokio::task::JoinHandle<()>,
}

pub(crate) fn upstream(cluster: &Cluster) -> Arc<Upstream> {
    Arc::new(Upstream { host: "127.0.0.1".into(), port: cluster.port(), tls: None })
}

pub(crate) fn config(source: &Cluster, target: &Cluster, pool: PoolMode) -> Config {
    let mut users = Users::default();
    users.insert("postgres", Secret::Password(source.password().to_owned()));
    Config {
        auth: ClientAuth::Scram,
        users,
        tls: None::<Tls>,
        pool,
        source: upstream(source),
        target: upstream(target),
        databases: None,
        limits: Limits { connections_max: 8, ..Limits::default() },
        reads: ReadLimits::default(),
        shadow: ShadowConfig::default(),
    }
}

impl Running {
    pub(crate) async fn start(config: Config, password: &str) -> Running {
        let (routes, followed) = watch::channel(Heard::now(1, Route::to(Side::Source, Epoch(1))));
        let (reads, wanted) = watch::channel(Arc::default());
        let (fresh, shown) = watch::channel(None);
        let (catalog, known) = watch::channel(None);
        let feeds = Feeds { reads: wanted, fresh: shown, catalog: known };
        let listen = "127.0.0.1:0".parse().unwrap();
        let router = Router::bind_reading(listen, config, followed, feeds).await.unwrap();
        let handle = router.handle();
        let running = tokio::spawn(router.run());
        Running { handle, routes, reads, fresh, catalog, password: password.to_owned(), running }
    }

    /// Before one server, which both sides are.
    pub(crate) async fn before(cluster: &Cluster, pool: PoolMode) -> Running {
        Running::start(config(cluster, cluster, pool), cluster.password()).await
    }

    pub(crate) fn url(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres password={} dbname=postgres",
            self.handle.address().port(),
            self.password
        )
    }

    pub(crate) async fn connect(&self) -> Client {
        self.try_connect(&self.url()).await.expect("connect through the router")
    }

    pub(crate) async fn try_connect(&self, url: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().await.expect("run a client")
    }

    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(client_program(program));
        command
            .args(arguments)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.handle.address().port().to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", &self.password)
            .env("PGDATABASE", "postgres")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs psql and returns what it printed.
    pub(crate) async fn psql(&self, arguments: &[&str]) -> String {
        let output =
            self.run("psql", &[&["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"], arguments].concat()).await;
        said(&output)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.handle.counts()
    }

    /// Holds, waits until the router has acknowledged, and returns what it said.
    pub(crate) async fn hold(&self) -> Taken {
        self.routes.send_modify(|heard| heard.held_until = Some(Instant::now() + Duration::from_secs(20)));
        let mut taken = self.handle.taken();
        let epoch = self.routes.borrow().epoch;
        let waiting = taken.wait_for(|taken| taken.epoch == epoch && taken.is_quiet());
        *tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("a hold in time").unwrap()
    }

    pub(crate) fn release_to(&self, owner: Side) {
        self.routes.send_modify(|heard| {
            *heard = Heard::now(heard.revision + 1, Route::to(owner, heard.epoch.next()));
        });
    }

    /// Drains the router and waits for its end.
    pub(crate) async fn drain(self) {
        self.handle.drain();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("an end in time").unwrap();
    }
}

pub(crate) fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out.trim().to_owned()
}
