//! Two servers with the settings of production, the clients that use them, and `segue` between them.

use super::measure::peak_memory_kib;
use segue_testkit::cluster::{self, client_program};
use segue_testkit::kill::Process;
use segue_testkit::{Cluster, Options};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// The database that is measured, on both servers.
pub(super) const DATABASE: &str = "bench";
/// No turn takes longer; a contestant that hangs must not hang the run.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Source and target.
pub(super) struct Pair {
    pub(super) source: Cluster,
    pub(super) target: Cluster,
    dir: PathBuf,
    /// The most memory any `segue` process has held.
    peak_kib: Arc<AtomicU64>,
}

/// The release build beside this program.
pub(super) fn segue_program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().unwrap_or(Path::new(".")).join("segue")
}

/// The settings of production.
pub(super) fn options() -> Options {
    let mut options = Options { fsync: true, ..Options::default() };
    for (setting, value) in [
        ("shared_buffers", "512MB"),
        ("max_wal_size", "16GB"),
        ("checkpoint_timeout", "30min"),
        ("maintenance_work_mem", "256MB"),
        ("synchronous_commit", "on"),
    ] {
        options = options.with(setting, value);
    }
    options
}

impl Pair {
    pub(super) async fn start() -> Pair {
        Pair::start_with(options(), options()).await
    }

    /// With other settings.
    pub(super) async fn start_with(source: Options, target: Options) -> Pair {
        let (source, target) = tokio::join!(Cluster::start(source), Cluster::start(target));
        let dir = source.socket_dir().join("bench");
        must(std::fs::create_dir(&dir), "make a directory for the spec");
        for server in [&source, &target] {
            server.execute(&format!("CREATE DATABASE {DATABASE}")).await;
        }
        Pair { source, target, dir, peak_kib: Arc::default() }
    }

    /// Writes the spec that moves `tables` from the source to a database of the target, all else by default.
    pub(super) fn write_spec(&self, target_database: &str, tables: &[&str]) {
        self.write_spec_for("prod", target_database, tables);
    }

    /// The same with another profile.
    pub(super) fn write_spec_for(&self, profile: &str, target_database: &str, tables: &[&str]) {
        self.write_spec_with(profile, target_database, tables, "");
    }

    /// The same with more to it.
    pub(super) fn write_spec_with(&self, profile: &str, target_database: &str, tables: &[&str], more: &str) {
        let tables: String = tables.iter().map(|t| format!("  - \"public.{t}\"\n")).collect();
        let (source, target) = (self.source.url(DATABASE), self.target.url(target_database));
        let text = format!(
            "migration: bench\nprofile: {profile}\nsource: {{ postgres: \"{source}\" }}\ntarget: {{ postgres: \"{target}\" }}\ntables:\n{tables}{more}"
        );
        must(std::fs::write(self.spec(), text), "write the spec");
    }

    /// The spec's file.
    pub(super) fn spec(&self) -> PathBuf {
        self.dir.join("segue.yaml")
    }

    /// Starts `segue`, and watches how much memory it takes.
    pub(super) fn segue(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(segue_program());
        command.args(arguments).arg("-f").arg(self.spec());
        let process = Process::start(command);
        let (pid, peak) = (process.pid(), self.peak_kib.clone());
        tokio::spawn(async move {
            while let Some(kib) = peak_memory_kib(pid) {
                peak.fetch_max(kib, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        process
    }

    /// The most memory that `segue` has held, in MiB.
    pub(super) fn peak_mib(&self) -> f64 {
        self.peak_kib.load(Ordering::Relaxed) as f64 / 1024.0
    }

    /// Runs `segue` to its end.
    pub(super) async fn segue_to_end(&self, arguments: &[&str]) {
        let process = self.segue(arguments);
        let ended = process.wait(PATIENCE).await;
        let good = ended.is_ok_and(|status| status.success());
        assert!(good, "segue {arguments:?}:\n{}", process.lines().join("\n"));
    }

    /// Asks a running `segue` to end, and waits until it has.
    pub(super) async fn end_segue(&self, process: Process) {
        process.terminate();
        assert!(process.wait(PATIENCE).await.is_ok(), "segue does not end");
    }

    /// A connection string for programs of PostgreSQL.
    pub(super) fn conninfo(server: &Cluster, database: &str) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres password={} dbname={database}",
            server.port(),
            server.password()
        )
    }

    /// Connects to a database of a server.
    pub(super) async fn connect(server: &Cluster, database: &str) -> Client {
        must(cluster::connect(&server.url(database)).await, "connect")
    }

    /// Makes the target's database anew, with nothing in it.
    pub(super) async fn fresh_target(&self) {
        self.target.execute(&format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")).await;
        self.target.execute(&format!("CREATE DATABASE {DATABASE}")).await;
    }

    /// Writes everything out, so that each turn begins alike.
    pub(super) async fn settle(&self) {
        for server in [&self.source, &self.target] {
            server.execute("CHECKPOINT").await;
        }
    }

    /// Removes what a migration left on the source.
    pub(super) async fn forget_migration(&self) {
        let source = Pair::connect(&self.source, DATABASE).await;
        let slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
        must(source.batch_execute(slots).await, "drop the slots");
        let rows =
            must(source.query("SELECT quote_ident(pubname) FROM pg_publication", &[]).await, "publications");
        for row in rows {
            let name: String = row.get(0);
            must(source.batch_execute(&format!("DROP PUBLICATION {name}")).await, "drop a publication");
        }
        must(source.batch_execute("DROP SCHEMA IF EXISTS segue CASCADE").await, "drop the schema segue");
    }
}

/// `pgbench -b tpcb-like` at work on the source.
pub(super) struct Writers {
    pgbench: Child,
    began: Instant,
    written_before: i64,
}

impl Writers {
    /// At a rate of so many transactions a second, if the machine can.
    pub(super) async fn start(pair: &Pair, per_s: u64) -> Writers {
        let written_before = Writers::written(pair).await;
        let mut command = Command::new(client_program("pgbench"));
        command.args(["-n", "-b", "tpcb-like", "-c", "8", "-T", "3600", "-R"]).arg(per_s.to_string());
        command.arg(Pair::conninfo(&pair.source, DATABASE)).stdout(Stdio::null()).stderr(Stdio::null());
        Writers { pgbench: must(command.spawn(), "start pgbench"), began: Instant::now(), written_before }
    }

    /// Ends them; how many transactions a second they have written.
    pub(super) async fn end(mut self, pair: &Pair) -> f64 {
        let ended = must(self.pgbench.try_wait(), "look at pgbench");
        assert!(ended.is_none(), "pgbench has ended by itself: {ended:?}");
        let seconds = self.began.elapsed().as_secs_f64();
        let written = Writers::written(pair).await - self.written_before;
        must(self.pgbench.kill(), "end pgbench");
        must(self.pgbench.wait(), "end pgbench");
        written as f64 / seconds
    }

    /// How many transactions `pgbench` has ever written.
    pub(super) async fn written(pair: &Pair) -> i64 {
        let source = Pair::connect(&pair.source, DATABASE).await;
        must(source.query_one("SELECT count(*) FROM pgbench_history", &[]).await, "count").get(0)
    }
}

impl Drop for Writers {
    /// Where a turn has failed.
    fn drop(&mut self) {
        let _ = self.pgbench.kill();
    }
}

/// The value, or the end of the run with what was being done.
pub(super) fn must<T, E: std::fmt::Display>(result: Result<T, E>, doing: &str) -> T {
    result.unwrap_or_else(|error| panic!("{doing}: {error}"))
}

/// Runs a shell command to its end; panics if it fails.
pub(super) async fn shell(script: &str) {
    if let Err(why) = said(script).await {
        panic!("{script}\n{why}");
    }
}

/// Runs a shell command to its end; returns what it wrote, or, if it fails, what it wrote of that.
pub(super) async fn said(script: &str) -> Result<String, String> {
    let mut command = Command::new("bash");
    command.args(["-ec", &format!("set -o pipefail\n{script}")]);
    let output = must(tokio::task::spawn_blocking(move || command.output()).await, "run a shell");
    let output = must(output, "run a shell");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A program of PostgreSQL, quoted for a shell.
pub(super) fn program(name: &str) -> String {
    format!("'{}'", client_program(name).display())
}

/// `psql` on a database, quoted for a shell.
pub(super) fn psql(server: &Cluster, database: &str, statement: &str) -> String {
    format!(
        "{} -X -q -v ON_ERROR_STOP=1 -d '{}' -c \"{statement}\"",
        program("psql"),
        Pair::conninfo(server, database)
    )
}

/// `pgbench` on a database, quoted for a shell.
pub(super) fn pgbench(server: &Cluster, database: &str, arguments: &str) -> String {
    format!("{} {arguments} '{}'", program("pgbench"), Pair::conninfo(server, database))
}

/// Polls until a statement answers `true`.
pub(super) async fn until_true(client: &Client, statement: &str) {
    let prepared = must(client.prepare(statement).await, statement);
    let deadline = Instant::now() + PATIENCE;
    while !must(client.query_one(&prepared, &[]).await, statement).get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "never true: {statement}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
