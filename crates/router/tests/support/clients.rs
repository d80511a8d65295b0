//! Clients in other languages, as `scripts/setup` has installed them, and what they report.

use super::{Running, config, said};
use segue_router::{Config, PoolMode};
use segue_testkit::cluster::client_program;
use segue_testkit::{Cluster, Options};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// What a client's whole script may take; it does in seconds what it does.
const LIMIT: Duration = Duration::from_secs(120);

/// A server, and the ways to it that a client is tried on.
pub(crate) struct Ways {
    pub(crate) cluster: Cluster,
    pub(crate) routers: Vec<(&'static str, Running)>,
}

impl Ways {
    pub(crate) async fn open() -> Ways {
        Ways::open_with(|_| {}).await
    }

    pub(crate) async fn open_with(change: impl Fn(&mut Config)) -> Ways {
        let cluster = Cluster::start(Options::default()).await;
        let mut routers = Vec::new();
        for (name, mode) in [("session", PoolMode::Session), ("transaction", PoolMode::Transaction)] {
            let mut config = config(&cluster, &cluster, mode);
            change(&mut config);
            routers.push((name, Running::start(config, cluster.password()).await));
        }
        Ways { cluster, routers }
    }

    /// Every way by its name, directly first.
    pub(crate) fn ports(&self) -> Vec<(&'static str, u16)> {
        let through = self.routers.iter().map(|(name, router)| (*name, router.handle.address().port()));
        std::iter::once(("direct", self.cluster.port())).chain(through).collect()
    }

    pub(crate) fn psql(&self, port: u16) -> Command {
        self.client("psql", port)
    }

    /// Runs pgbench and returns what it said.
    pub(crate) async fn pgbench(&self, port: u16, arguments: &[&str]) -> String {
        said(&self.client("pgbench", port).args(arguments).output().await.expect("run pgbench"))
    }

    fn client(&self, program: &str, port: u16) -> Command {
        let mut command = Command::new(client_program(program));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", self.cluster.password())
            .env("PGDATABASE", "postgres")
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a client's script on every way, directly first: what fails there is the script's fault.
    ///
    /// # Panics
    /// Unless it reports each of its behaviours on every way.
    pub(crate) async fn run(&self, mut command: Command, behaviours: usize) {
        let targets: Vec<String> = self.ports().iter().map(|(name, port)| format!("{name}={port}")).collect();
        command
            .env("TARGETS", targets.join(" "))
            .env("PGPASSWORD", self.cluster.password())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(scripts())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .unwrap_or_else(|_| panic!("it takes more than {} s: {command:?}", LIMIT.as_secs()))
            .unwrap_or_else(|error| panic!("{command:?}: {error}: run scripts/setup"));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let seen = |way: &str| out.lines().filter(|line| line.starts_with(&format!("ok {way} "))).count();
        let counts = [seen("direct"), seen("session"), seen("transaction")];
        assert!(
            output.status.success() && counts == [behaviours; 3],
            "{}, {counts:?} of {behaviours}\n{out}\n{err}",
            output.status
        );
    }

    pub(crate) async fn close(self) {
        for (_, router) in self.routers {
            router.drain().await;
        }
    }
}

/// The directory of the scripts.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// A file that `scripts/setup` brings.
///
/// # Panics
/// If it is not there: nothing is left out in silence.
fn installed(path: PathBuf, what: &str) -> PathBuf {
    assert!(path.exists(), "{what} is missing ({}): run scripts/setup", path.display());
    path
}

/// Where `scripts/setup` puts clients; the rule is repeated there.
fn home() -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    match (std::env::var_os("SEGUE_CLIENTS"), std::env::var_os("HOME")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(home)) if !is_root => PathBuf::from(home).join(".cache/segue/clients"),
        _ => PathBuf::from("/var/cache/segue/clients"),
    }
}

/// PostgreSQL's regression statements, of the major that servers have by default.
pub(crate) fn regression_statements(major: u16) -> PathBuf {
    installed(home().join("regress").join(major.to_string()), "the set of PostgreSQL's regression statements")
}

pub(crate) fn python(script: &str) -> Command {
    let mut command =
        Command::new(installed(home().join("python/bin/python"), "Python with psycopg and asyncpg"));
    command.arg(script);
    command
}

pub(crate) fn node(script: &str) -> Command {
    let modules = installed(home().join("node/node_modules"), "node-postgres");
    let mut command = Command::new("node");
    command.arg(script).env("NODE_PATH", modules);
    command
}

/// Java compiles and runs a single file.
pub(crate) fn java(source: &str) -> Command {
    let driver = installed("/usr/share/java/postgresql.jar".into(), "PostgreSQL's JDBC driver");
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"]).arg(driver).arg(source);
    command
}
