//! Two throw-away PostgreSQL servers: made, started and taken away again.
//!
//! They listen on loopback and on a socket in their own directory, take one random password over SCRAM, never run as
//! root, and write as durably as servers in production do. What is in them is none of this module's business.

mod install;
mod watchdog;

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use segue_model::sqltext::{quote_ident, quote_literal};
use tokio_postgres::{Client, NoTls};

use super::DemoError;
use install::{Installation, ServerUser};
use watchdog::Watchdog;

pub(super) use watchdog::Guard;

/// The one database of each server.
pub(super) const DATABASE: &str = "shop";
/// The one role that everything is done with, but for Segue's work.
const USER: &str = "postgres";
/// Where the servers are with `--keep`, in the current directory.
const KEPT_DIR: &str = ".segue-demo";
/// In a kept directory: stops the servers and removes the directory. Also tells that the directory is a demo's.
const STOP_SCRIPT: &str = "stop";
/// Below Linux's ephemeral ports, so that no outgoing connection has just taken one.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// The longest path of a Unix socket's directory that every system takes.
const SOCKET_DIR_LEN_MAX: usize = 85;
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);

const SETTINGS: &str = "
# of the demo; fsync and synchronous_commit are on, as they are everywhere
wal_level = logical
max_connections = 100
max_wal_senders = 10
max_replication_slots = 10
shared_buffers = 256MB
max_wal_size = 4GB
password_encryption = 'scram-sha-256'
listen_addresses = '127.0.0.1'
log_min_messages = warning
logging_collector = off
";

/// The demo's two servers; dropping them stops both and removes their data.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) source: Server,
    pub(super) target: Server,
    /// Where the router is to listen.
    router: u16,
    /// For people: `15.14`.
    pub(super) version: String,
    /// `15`.
    pub(super) major: u32,
    home: Home,
}

impl Servers {
    /// Makes and starts both. With `keep` they live in the current directory, for [`Servers::keep`].
    pub(super) async fn start(keep: bool) -> Result<Self, DemoError> {
        let installation = Installation::find()?;
        let home = Home::make(keep)?;
        // The shop's role has one password, on whichever server it is served.
        let password = format!("{:032x}", rand::random::<u128>());
        let boot = |name| Server::boot(name, password.clone(), &home, &installation);
        // Both to their end, also if one fails: what is still being written cannot be removed.
        let (source, target) = tokio::join!(boot("source"), boot("target"));
        let router = free_port().ok_or(DemoError::NoPort)?;
        let Installation { version, major, .. } = installation;
        Ok(Self { source: source?, target: target?, router, version, major, home })
    }

    /// Where the router listens, without the password.
    pub(super) fn router_address(&self) -> String {
        address(self.router)
    }

    /// The shop's connection string by way of the router.
    pub(super) fn router_url(&self) -> String {
        self.source.url_at(&self.router_address(), DATABASE)
    }

    /// The users that the router knows, as its file has them.
    pub(super) fn router_users(&self) -> String {
        format!("\"{USER}\" \"{}\"\n", self.source.password)
    }

    /// The directory of all that the demo makes.
    pub(super) fn dir(&self) -> &Path {
        &self.home.dir
    }

    /// Ends processes besides the servers, too, if the demo is killed.
    pub(super) fn guard(&self) -> Guard {
        self.home.watchdog.guard()
    }

    /// Leaves both servers running for good; the answer is the command that stops and removes them.
    pub(super) fn keep(mut self) -> String {
        self.home.kept = true;
        self.source.child = None;
        self.target.child = None;
        stop_command(&self.home.dir)
    }
}

fn stop_command(dir: &Path) -> String {
    format!("sh {}", dir.join(STOP_SCRIPT).display())
}

fn stop_script(dir: &Path) -> String {
    let dir = dir.display().to_string().replace('\'', r"'\''");
    format!(
        "# Stops the two servers of `segue demo --keep` and removes their data.\n\
         cd / || exit\n\
         for side in source target; do\n\
         \x20   read -r pid <'{dir}'/$side/data/postmaster.pid && kill -s QUIT \"$pid\" &&\n\
         \x20       while kill -0 \"$pid\" 2>/dev/null; do sleep 0.1; done\n\
         done\n\
         rm -rf '{dir}'\n"
    )
}

/// The directory of a demo, and who takes it away.
#[derive(Debug)]
struct Home {
    dir: PathBuf,
    user: Option<ServerUser>,
    watchdog: Watchdog,
    kept: bool,
}

impl Home {
    fn make(keep: bool) -> Result<Self, DemoError> {
        let dir = if keep { kept_dir()? } else { temporary_dir()? };
        let prepared = Self::prepare(&dir, keep);
        if prepared.is_err() {
            let _ = fs::remove_dir_all(&dir);
        }
        prepared
    }

    fn prepare(dir: &Path, keep: bool) -> Result<Self, DemoError> {
        if keep {
            let script = dir.join(STOP_SCRIPT);
            fs::write(&script, stop_script(dir)).map_err(|error| DemoError::io("writing", &script, error))?;
        }
        // Servers that run as somebody else have to come through; each server's own directory is closed to others.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))
            .map_err(|error| DemoError::io("opening", dir, error))?;
        let user = ServerUser::instead_of_owner(dir)?;
        Ok(Self { dir: dir.to_owned(), user, watchdog: Watchdog::over(dir)?, kept: false })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // After an interruption a program of the servers' may still be writing for a moment.
        for _ in 0..50 {
            if self.kept || fs::remove_dir_all(&self.dir).is_ok() || !self.dir.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.watchdog.release();
    }
}

fn temporary_dir() -> Result<PathBuf, DemoError> {
    let dir = tempfile::Builder::new().prefix("segue-demo-").tempdir();
    dir.map(tempfile::TempDir::keep)
        .map_err(|error| DemoError::io("making a directory in", &std::env::temp_dir(), error))
}

fn kept_dir() -> Result<PathBuf, DemoError> {
    let here = std::env::current_dir().map_err(|error| DemoError::io("finding", Path::new("."), error))?;
    let dir = here.join(KEPT_DIR);
    match fs::create_dir(&dir) {
        Ok(()) => Ok(dir),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let is_demo = dir.join(STOP_SCRIPT).exists();
            let stop = if is_demo { stop_command(&dir) } else { format!("rm -r {}", dir.display()) };
            Err(DemoError::StillThere { dir, stop })
        }
        Err(error) => Err(DemoError::io("making", &dir, error)),
    }
}

/// One server; dropping it stops it.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    dir: PathBuf,
    port: u16,
    password: String,
    child: Option<Child>,
}

impl Server {
    async fn boot(
        name: &'static str,
        password: String,
        home: &Home,
        installation: &Installation,
    ) -> Result<Self, DemoError> {
        let dir = home.dir.join(name);
        let mut server = Self { name, dir, port: 0, password, child: None };
        let (init, user) = (installation.clone(), home.user);
        server = tokio::task::spawn_blocking(move || server.init(&init, user).map(|()| server))
            .await
            .map_err(|error| DemoError::Server { name, what: error.to_string() })??;
        // Somebody may take the port between the look and the start.
        for _ in 0..5 {
            server.port = free_port().ok_or(DemoError::NoPort)?;
            server.launch(installation, user)?;
            if server.is_ready().await? {
                return Ok(server);
            }
        }
        Err(server.fault("no port to listen on"))
    }

    /// Makes the data directory.
    fn init(&self, installation: &Installation, user: Option<ServerUser>) -> Result<(), DemoError> {
        let io = |path: &Path, error| DemoError::io("making", path, error);
        fs::create_dir(&self.dir).map_err(|error| io(&self.dir, error))?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))
            .map_err(|error| io(&self.dir, error))?;
        let password_file = self.dir.join("password");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&password_file)
            .map_err(|error| io(&password_file, error))?;
        file.write_all(self.password.as_bytes()).map_err(|error| io(&password_file, error))?;
        if let Some(user) = user {
            user.owns(&self.dir)?;
            user.owns(&password_file)?;
        }
        // Where there is a choice, text is not sorted by its bytes: as on most real servers.
        let cultured = ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"];
        let outcome = match installation.major {
            15.. => self.initdb(installation, user, &cultured),
            _ => Err(String::new()),
        };
        let outcome = outcome.or_else(|_| self.initdb(installation, user, &["--locale=C.UTF-8"]));
        let outcome = outcome.or_else(|_| self.initdb(installation, user, &["--locale=C"]));
        let _ = fs::remove_file(&password_file);
        outcome.map_err(|output| self.fault(format!("initdb failed: {output}")))?;
        let settings = self.dir.join("data/postgresql.conf");
        let mut file = fs::OpenOptions::new().append(true).open(&settings);
        file.as_mut()
            .map_err(|error| std::io::Error::from(error.kind()))
            .and_then(|file| file.write_all(SETTINGS.as_bytes()))
            .map_err(|error| DemoError::io("writing", &settings, error))
    }

    fn initdb(
        &self,
        installation: &Installation,
        user: Option<ServerUser>,
        locale: &[&str],
    ) -> Result<(), String> {
        let mut initdb = Command::new(installation.program("initdb"));
        initdb
            .current_dir(&self.dir)
            .env_remove("PGDATA")
            .args(["--pgdata=data", &format!("--username={USER}"), "--pwfile=password", "--encoding=UTF8"])
            .args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--no-sync"])
            .args(locale)
            .stdin(Stdio::null());
        if let Some(user) = user {
            user.runs(&mut initdb);
        }
        let output = initdb.output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    fn launch(&mut self, installation: &Installation, user: Option<ServerUser>) -> Result<(), DemoError> {
        let log_path = self.log_path();
        let log = fs::File::create(&log_path).map_err(|error| DemoError::io("writing", &log_path, error))?;
        let errors = log.try_clone().map_err(|error| DemoError::io("writing", &log_path, error))?;
        let socket_dir = Some(&self.dir).filter(|dir| dir.as_os_str().len() <= SOCKET_DIR_LEN_MAX);
        let mut postgres = Command::new(installation.program("postgres"));
        postgres
            .arg("-D")
            .arg(self.dir.join("data"))
            .args(["-c", &format!("port={}", self.port), "-c"])
            .arg(format!("unix_socket_directories={}", socket_dir.map_or(Path::new(""), |dir| dir).display()))
            .current_dir(&self.dir)
            .env_remove("PGDATA")
            .env_remove("PGPORT")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // A terminal's Ctrl-C is for the demo, which then stops its servers in order.
            .process_group(0);
        if let Some(user) = user {
            user.runs(&mut postgres);
        }
        let child = postgres.spawn().map_err(|error| self.fault(format!("cannot be started: {error}")))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the server takes connections, and makes its database; false if its port was taken.
    async fn is_ready(&mut self) -> Result<bool, DemoError> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if self.has_ended() {
                let log = self.log();
                return if log.contains("could not create any TCP/IP sockets") {
                    Ok(false)
                } else {
                    Err(self.fault(format!("did not start:\n{log}")))
                };
            }
            match self.connect_to("postgres").await {
                Ok(client) => {
                    let sql = format!("CREATE DATABASE {DATABASE}");
                    let made = client.batch_execute(&sql).await;
                    return made.map(|()| true).map_err(|error| DemoError::sql("making a database", &error));
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(self.fault(format!("takes no connections: {error}\n{}", self.log())));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// The end of the server's log.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn fault(&self, what: impl Into<String>) -> DemoError {
        DemoError::Server { name: self.name, what: what.into() }
    }

    /// Where it is, without the password: `127.0.0.1:23456`.
    pub(super) fn address(&self) -> String {
        address(self.port)
    }

    /// The superuser's connection string for the shop.
    pub(super) fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    /// Somebody else's, or the superuser's. All have one password.
    pub(super) fn url_as(&self, role: Option<&str>) -> String {
        let role = role.unwrap_or(USER);
        format!("postgres://{role}:{}@{}/{DATABASE}", self.password, self.address())
    }

    /// The statement that gives `role` the password.
    pub(super) fn password_for(&self, role: &str) -> String {
        format!("ALTER ROLE {} PASSWORD {}", quote_ident(role), quote_literal(&self.password))
    }

    fn url_of(&self, database: &str) -> String {
        self.url_at(&self.address(), database)
    }

    fn url_at(&self, address: &str, database: &str) -> String {
        format!("postgres://{USER}:{}@{address}/{database}", self.password)
    }

    /// Opens a session on the shop.
    pub(super) async fn connect(&self) -> Result<Client, DemoError> {
        let client = self.connect_to(DATABASE).await;
        client.map_err(|error| DemoError::sql("connecting to a server of the demo", &error))
    }

    async fn connect_to(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        connect(&self.url_of(database)).await
    }

    /// At once: whatever it still had to write is thrown away anyhow.
    fn stop(&mut self) {
        // A server that has ended by itself has no number any more, or somebody else has it.
        if self.has_ended() {
            return;
        }
        let Some(mut child) = self.child.take() else { return };
        // There is no safe call for signals other than KILL, which would leave the server's own children behind.
        let quit = Command::new("sh").args(["-c", &format!("kill -s QUIT {}", child.id())]).status();
        let deadline = Instant::now() + STOP_LIMIT;
        while quit.as_ref().is_ok_and(std::process::ExitStatus::success) && Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Opens a session as any application would, driven by a task of its own.
pub(super) async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // Its end shows in the next use of the client.
    tokio::spawn(connection);
    Ok(client)
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn free_port() -> Option<u16> {
    (0..1_000)
        .map(|_| rand::random_range(PORTS))
        .find(|number| TcpListener::bind(("127.0.0.1", *number)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_outlives_a_demo_that_is_killed() {
        let mut servers = Servers::start(false).await.unwrap();
        let dir = servers.dir().to_owned();
        let waiting = |name: &Path| {
            let mut sh = tokio::process::Command::new("sh");
            sh.args(["-c", "read -r line; :"])
                .arg(name)
                .stdin(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap()
        };
        // The number of a process that has ended may have come to somebody else.
        let (mut child, mut stranger) = (waiting(&dir), waiting(Path::new("/elsewhere")));
        servers.guard().over(child.id());
        servers.guard().over(stranger.id());

        servers.home.watchdog.hang_up();

        let deadline = Instant::now() + START_LIMIT;
        while dir.exists() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!dir.exists());
        assert!(servers.source.has_ended() && servers.target.has_ended());
        assert!(child.wait().await.unwrap().code().is_none(), "killed");
        assert!(stranger.try_wait().unwrap().is_none(), "left alone");
    }
}
