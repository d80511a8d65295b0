//! Throw-away PostgreSQL servers: start, stop, crash, restore, follow.
//!
//! A [`Cluster`] is one server with its data in a temporary directory. It listens on a loopback TCP port (password,
//! SCRAM) and on a Unix socket in that directory (trust). Servers never run as root. Nothing survives: dropping a
//! cluster, also in a panic, removes server and data, and so does a watchdog when the test process itself is killed.
//!
//! It knows nothing of schemas or workloads.

mod ask;
mod install;
mod process;
mod standby;
mod template;

pub use install::{available_majors, client_program};
pub(crate) use process::{is_stopped, signal};
pub use standby::StandbyOptions;

use install::{Installation, ServerUser, give};
use process::{Port, Watchdog, children_of, is_alive, spawn_server, title_of, until};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// A start includes crash recovery, which a slow machine may take its time for.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What kind of server to start; `Options::default()` is the distribution's newest major with the test settings.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// PostgreSQL's major version, one of [`available_majors`]; `None` is the distribution's newest.
    pub major: Option<u16>,
    /// Settings that override the defaults for tests, as in `postgresql.conf`, unquoted.
    pub settings: Vec<(String, String)>,
    /// Real `fsync`. Off by default: what tests kill are processes, and the kernel keeps what those wrote.
    pub fsync: bool,
    /// Arguments for `initdb` in place of `--locale=C.UTF-8`, for example another locale or `--data-checksums`.
    pub initdb: Vec<String>,
    /// Leave the data directory where it is at the end (the server is stopped all the same).
    pub keep: bool,
}

impl Options {
    /// The defaults, for one major.
    pub fn major(major: u16) -> Options {
        Options { major: Some(major), ..Options::default() }
    }

    /// Adds a setting.
    pub fn with(mut self, setting: &str, value: &str) -> Options {
        self.settings.push((setting.to_owned(), value.to_owned()));
        self
    }
}

/// One PostgreSQL server of a test's own.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order, after `Drop::drop` has stopped the server: the watchdog finds nothing left to do.
    _watchdog: Watchdog,
    home: TempDir,
    options: Options,
    installation: Installation,
    user: Option<ServerUser>,
    port: Port,
    password: String,
    server: Mutex<Option<Child>>,
    /// A session for questions, between two of them.
    asking: Mutex<Option<Client>>,
}

/// A server's data as they were when it was stopped; see [`Cluster::save`].
#[derive(Debug)]
pub struct Saved(TempDir);

impl Cluster {
    /// Starts a new, empty server and waits until it takes connections.
    ///
    /// # Panics
    /// If the major is not installed or the server does not start; the message has the log's end.
    pub async fn start(options: Options) -> Cluster {
        let installation = options.major.map_or_else(Installation::preferred, Installation::of);
        let user = ServerUser::required();
        let cluster = tokio::task::spawn_blocking(move || {
            let base = template::base_dir();
            let home = new_home(&base, user);
            let password =
                template::instantiate(&base, &installation, &options.initdb, &home.path().join("data"), user);
            Cluster::assemble(home, options, installation, user, password)
        })
        .await
        .expect("prepare a data directory");
        cluster.write_settings();
        cluster.launch().await
    }

    fn assemble(
        mut home: TempDir,
        options: Options,
        installation: Installation,
        user: Option<ServerUser>,
        password: String,
    ) -> Cluster {
        home.disable_cleanup(options.keep);
        Cluster {
            _watchdog: Watchdog::over(home.path(), options.keep),
            port: Port::reserve(&template::base_dir()),
            home,
            options,
            installation,
            user,
            password,
            server: Mutex::new(None),
            asking: Mutex::new(None),
        }
    }

    /// The first start: here, and only here, may the port change.
    async fn launch(mut self) -> Cluster {
        for _ in 0..10 {
            match self.try_start().await {
                Ok(()) => return self,
                Err(log) if log.contains("could not create any TCP/IP sockets") => {
                    self.port = Port::reserve(&template::base_dir());
                }
                Err(log) => panic!("PostgreSQL {} did not start:\n{log}", self.installation.major),
            }
        }
        panic!("no port to listen on:\n{}", self.log_tail(20));
    }

    fn write_settings(&self) {
        let defaults = [
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_prepared_transactions", "20"),
            ("max_connections", "100"),
            ("shared_buffers", "64MB"),
            ("password_encryption", "scram-sha-256"),
            ("fsync", if self.options.fsync { "on" } else { "off" }),
            ("log_min_messages", "warning"),
            ("log_line_prefix", "%m [%p] %q%u@%d %a: "),
            ("logging_collector", "off"),
        ];
        let given = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut text = String::from("\n# of the test\n");
        for (name, value) in defaults.into_iter().chain(given) {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        fs::OpenOptions::new()
            .append(true)
            .open(self.data_dir().join("postgresql.conf"))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("write the settings");
    }

    /// Starts the server on its port; the error is the end of its log.
    async fn try_start(&self) -> Result<(), String> {
        let child = spawn_server(&self.installation, self.home.path(), self.port.number, self.user);
        let pid = child.id();
        let replaced = self.server.lock().unwrap().replace(child);
        assert!(replaced.is_none(), "the server was already started");
        let mut ended = false;
        let ready = until(START_LIMIT, || {
            ended = self.reap();
            ended || self.is_ready(pid)
        })
        .await;
        if ready && !ended { Ok(()) } else { Err(self.log_tail(20)) }
    }

    /// The server says so itself in the eighth line of its lock file, which is how `pg_ctl` waits too.
    fn is_ready(&self, pid: u32) -> bool {
        let lock = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let mut lines = lock.lines();
        lines.next() == Some(pid.to_string().as_str())
            && lines.nth(6).is_some_and(|state| state.trim() == "ready")
    }

    /// True if the server has ended, or was not running.
    fn reap(&self) -> bool {
        let mut server = self.server.lock().unwrap();
        let ended =
            server.as_mut().is_none_or(|child| child.try_wait().expect("wait for the server").is_some());
        if ended {
            *server = None;
        }
        ended
    }

    /// The major version.
    pub fn major(&self) -> u16 {
        self.installation.major
    }

    /// The TCP port on 127.0.0.1; the same for the whole life of the cluster.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// The password of the superuser `postgres`.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.home.path()
    }

    /// Process id of the server's first process; `None` when it does not run.
    pub fn pid(&self) -> Option<u32> {
        if self.reap() { None } else { self.server.lock().unwrap().as_ref().map(Child::id) }
    }

    /// A connection string of the superuser for a database, over TCP.
    pub fn url(&self, database: &str) -> String {
        self.url_through(self.port(), database)
    }

    /// As [`Cluster::url`], through another local port, such as a [`Proxy`](crate::proxy::Proxy)'s.
    pub fn url_through(&self, port: u16, database: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{port}/{database}", self.password)
    }

    /// Connects as superuser; the connection is driven by a task of its own.
    ///
    /// # Panics
    /// If the server refuses; see [`Cluster::try_connect`].
    pub async fn connect(&self, database: &str) -> Client {
        self.try_connect(database).await.unwrap_or_else(|error| {
            panic!("connect to {database} on port {}: {error:?}\n{}", self.port(), self.log_tail(10))
        })
    }

    /// Connects as superuser, or says why not.
    pub async fn try_connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        connect(&self.url(database)).await
    }

    /// Runs statements in database `postgres`.
    ///
    /// # Panics
    /// If one fails.
    pub async fn execute(&self, sql: &str) {
        self.connect("postgres")
            .await
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Sets a setting for good (`ALTER SYSTEM`) and reloads; those that need a restart wait for one.
    pub async fn set(&self, setting: &str, value: &str) {
        let client = self.connect("postgres").await;
        let loaded_before = self.scalar("SELECT pg_conf_load_time()").await;
        let value = value.replace('\'', "''");
        // Two requests, because ALTER SYSTEM takes no part in a transaction.
        client.batch_execute(&format!("ALTER SYSTEM SET {setting} = '{value}'")).await.expect("ALTER SYSTEM");
        client.batch_execute("SELECT pg_reload_conf()").await.expect("reload the settings");
        for _ in 0..200 {
            if self.scalar("SELECT pg_conf_load_time()").await != loaded_before {
                // New sessions have it; the background processes follow on a signal of their own.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{setting} was not taken up:\n{}", self.log_tail(10));
    }

    /// Stops as `pg_ctl stop -m immediate` does: no checkpoint, recovery at the next start.
    pub async fn stop_immediate(&self) {
        self.stop("QUIT").await;
    }

    /// Stops as `pg_ctl stop -m fast` does: sessions are ended, a checkpoint is written.
    pub async fn stop_fast(&self) {
        self.stop("INT").await;
    }

    async fn stop(&self, signal_name: &str) {
        if let Some(pid) = self.pid() {
            signal("CONT", &children_of(pid));
            signal("CONT", &[pid]);
            signal(signal_name, &[pid]);
            assert!(
                until(STOP_LIMIT, || self.reap()).await,
                "the server did not stop:\n{}",
                self.log_tail(20)
            );
        }
    }

    /// Freezes the process that writes out the log by itself: from now on only a commit that is waited for does.
    pub async fn freeze_wal_writer(&self) {
        let writer = "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'walwriter'";
        let pid = self.scalar(writer).await.and_then(|pid| pid.parse().ok());
        signal("STOP", &pid.map_or_else(Vec::new, |pid| vec![pid]));
    }

    /// Freezes every process of the server (SIGSTOP): it answers nobody, and nobody's connection is lost.
    pub fn freeze(&self) {
        if let Some(pid) = self.pid() {
            // The first process before the others, so that it starts no further child in between.
            signal("STOP", &[pid]);
            signal("STOP", &children_of(pid));
        }
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        if let Some(pid) = self.pid() {
            signal("CONT", &children_of(pid));
            signal("CONT", &[pid]);
        }
    }

    /// Kills every process of the server with SIGKILL, as a crash of the machine would, and waits until all are gone.
    pub async fn kill9(&self) {
        if let Some(pid) = self.pid() {
            // Stopped first, so that it starts no further child between the look and the blow.
            signal("STOP", &[pid]);
            let mut all = children_of(pid);
            all.push(pid);
            signal("KILL", &all);
            assert!(
                until(STOP_LIMIT, || self.reap() && !all.iter().any(|pid| is_alive(*pid))).await,
                "a server survived SIGKILL"
            );
        }
    }

    /// Starts a stopped or killed server again, on the same port, and waits until it takes connections.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_again(&self) {
        if let Err(log) = self.try_start().await {
            panic!("PostgreSQL {} did not start again:\n{log}", self.major());
        }
    }

    /// Stops the server (fast) and starts it again.
    pub async fn restart(&self) {
        self.stop_fast().await;
        self.start_again().await;
    }

    /// Copies the data of a *stopped* server, to go back to with [`Cluster::restore`].
    pub fn save(&self) -> Saved {
        assert!(self.pid().is_none(), "only a stopped server's data are consistent");
        self.copy()
    }

    /// Copies the data of a running server as they are at one moment, as a snapshot of its storage has them.
    pub fn snapshot(&self) -> Saved {
        self.freeze();
        let saved = self.copy();
        self.thaw();
        saved
    }

    fn copy(&self) -> Saved {
        let saved = new_home(&template::base_dir(), self.user);
        template::copy_tree(&self.data_dir(), &saved.path().join("data"), self.user, &|_| false);
        Saved(saved)
    }

    /// Puts a *stopped* server's data back to what they were, as a restore from a backup does.
    pub fn restore(&self, saved: &Saved) {
        assert!(self.pid().is_none(), "stop the server before its data are replaced");
        fs::remove_dir_all(self.data_dir()).expect("remove the data");
        template::copy_tree(&saved.0.path().join("data"), &self.data_dir(), self.user, &|_| false);
    }

    /// Runs `psql` against database `postgres` (another one can be named in `arguments`), with `stdin` as its input.
    pub fn psql(&self, arguments: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(client_program("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
            .args(arguments)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", &self.password)
            .env("PGDATABASE", "postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run psql");
        let mut input = child.stdin.take().expect("psql has an input");
        let stdin = stdin.to_owned();
        let writer = std::thread::spawn(move || drop(input.write_all(stdin.as_bytes())));
        let output = child.wait_with_output().expect("wait for psql");
        writer.join().expect("feed psql");
        output
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read(self.home.path().join("server.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let from = log.lines().count().saturating_sub(lines);
        log.lines().skip(from).collect::<Vec<_>>().join("\n")
    }

    /// Processes of the server whose title contains `words`, such as `walsender` or `autovacuum worker`.
    pub fn processes(&self, words: &str) -> Vec<u32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        children_of(pid).into_iter().filter(|child| title_of(*child).contains(words)).collect()
    }

    /// A killed server leaves a few bytes of System V shared memory behind, which only its next start would remove.
    fn remove_shared_memory(&self) {
        let lock = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        if let Some(id) = lock.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let mut all = children_of(pid);
            all.push(pid);
            signal("CONT", &all);
            signal("QUIT", &[pid]);
            for _ in 0..1_000 {
                if self.reap() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            if self.pid().is_some() {
                signal("KILL", &all);
                if let Some(mut child) = self.server.lock().unwrap().take() {
                    let _ = child.wait();
                }
            }
        }
        self.remove_shared_memory();
        if self.options.keep {
            eprintln!("kept: {}", self.home.path().display());
        }
    }
}

/// Connects to a URL; the connection is driven by a task of its own, which ends with the client.
pub async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // Its error, if any, is also what the client's next request gets.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

fn new_home(base: &Path, user: Option<ServerUser>) -> TempDir {
    let home = tempfile::Builder::new().prefix("c-").tempdir_in(base).expect("make a temporary directory");
    give(home.path(), user);
    let log = home.path().join("server.log");
    fs::write(&log, "").expect("create the server's log");
    give(&log, user);
    home
}
