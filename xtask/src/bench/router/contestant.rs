//! The ways to the server: direct, or by way of a process that is started, watched and measured here.

use super::super::measure::{cpu_of, memory_kib};
use super::super::pair::{DATABASE, must};
use super::proxy::{CLIENTS_MAX, COMPARED, LISTENS, MIRROR, MIRROR_PERCENT, PASSWORD, POOL_SIZE};
use segue_testkit::Cluster;
use segue_testkit::kill::Process;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A process that does not listen by then never will.
const START_MAX: Duration = Duration::from_secs(10);
/// From here on PgBouncer knows of prepared statements in transaction mode.
const KNOWS_STATEMENTS: (u32, u32) = (1, 21);

/// Who takes part, in the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Direct,
    Relay,
    PgBouncer(Mode),
    Router(Mode),
    /// In transaction mode, and repeats some reads.
    Mirror,
}

/// How server connections are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Session,
    Transaction,
}

impl Mode {
    pub(super) const ALL: [Mode; 2] = [Mode::Session, Mode::Transaction];

    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Session => "session",
            Mode::Transaction => "transaction",
        }
    }
}

impl Kind {
    pub(super) const ALL: [Kind; 7] = [
        Kind::Direct,
        Kind::Relay,
        Kind::PgBouncer(Mode::Session),
        Kind::Router(Mode::Session),
        Kind::PgBouncer(Mode::Transaction),
        Kind::Router(Mode::Transaction),
        Kind::Mirror,
    ];

    pub(super) fn name(self) -> String {
        match self {
            Kind::Direct => "direct".to_owned(),
            Kind::Relay => "bare relay".to_owned(),
            Kind::PgBouncer(mode) => format!("PgBouncer, {}", mode.name()),
            Kind::Router(mode) => format!("segue's router, {}", mode.name()),
            Kind::Mirror => format!("the same, {MIRROR_PERCENT} % of the reads repeated"),
        }
    }

    /// Where it is in [`Kind::ALL`].
    pub(super) fn index(self) -> usize {
        Kind::ALL.iter().position(|kind| *kind == self).unwrap_or_default()
    }
}

/// One way to the server.
pub(super) struct Contestant {
    pub(super) kind: Kind,
    pub(super) port: u16,
    process: Option<Process>,
}

impl Contestant {
    pub(super) async fn start(kind: Kind, server: &Cluster) -> Contestant {
        let (port, process) = match kind {
            Kind::Direct => (server.port(), None),
            Kind::Relay => own_process("relay", server).await,
            Kind::Router(mode) => own_process(mode.name(), server).await,
            Kind::Mirror => own_process(MIRROR, server).await,
            Kind::PgBouncer(mode) => pgbouncer(mode, server).await,
        };
        Contestant { kind, port, process }
    }

    /// Processor seconds that its process has taken so far; of the server itself, none.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.process.as_ref().map_or(0.0, |process| cpu_of(process.pid()))
    }

    /// How many reads it has repeated and compared, and how many were the same.
    pub(super) fn compared(&self) -> Option<(u64, u64)> {
        let lines = self.process.as_ref()?.lines();
        let (compared, equal) =
            lines.iter().rev().find_map(|line| line.strip_prefix(COMPARED))?.split_once(' ')?;
        Some((compared.parse().ok()?, equal.parse().ok()?))
    }

    /// The memory that its process has now.
    pub(super) fn memory_kib(&self) -> u64 {
        let memory = self.process.as_ref().and_then(|process| memory_kib(process.pid()));
        memory.unwrap_or_else(|| panic!("{} has no process", self.kind.name()))
    }
}

/// This program once more.
async fn own_process(what: &str, server: &Cluster) -> (u16, Option<Process>) {
    let mut command = Command::new(must(std::env::current_exe(), "find this program"));
    command.args(["bench-proxy", what]).arg(server.port().to_string()).env(PASSWORD, server.password());
    let process = Process::start(command);
    let line = must(process.wait_for(LISTENS, START_MAX).await, what);
    let port = line.rsplit(':').next().and_then(|port| port.parse().ok());
    (port.unwrap_or_else(|| panic!("no port in {line:?}")), Some(process))
}

async fn pgbouncer(mode: Mode, server: &Cluster) -> (u16, Option<Process>) {
    let home = must(server.socket_dir().metadata(), "look at the server's directory");
    // Free a moment ago; nobody else is given it so soon.
    let listener = must(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), "find a port");
    let port = must(listener.local_addr(), "find a port").port();
    drop(listener);
    let dir = server.socket_dir().join(format!("pgbouncer-{port}"));
    must(std::fs::DirBuilder::new().mode(0o755).create(&dir), "make a directory");
    let users = dir.join("users.txt");
    must(std::fs::write(&users, format!("\"postgres\" \"{}\"\n", server.password())), "write the users");
    let file = dir.join("pgbouncer.ini");
    must(std::fs::write(&file, configuration(mode, server.port(), port, &users)), "write the configuration");
    let mut command = Command::new(program());
    command.arg("--quiet").arg(&file);
    if must(std::fs::metadata("/proc/self"), "find out who runs this").uid() == 0 {
        // It refuses to run as root, as the server does.
        command.uid(home.uid()).gid(home.gid());
    }
    let process = Process::start(command);
    let deadline = Instant::now() + START_MAX;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let said = process.lines().join("\n");
        assert!(Instant::now() < deadline && process.status().is_none(), "pgbouncer does not start:\n{said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (port, Some(process))
}

fn configuration(mode: Mode, server_port: u16, port: u16, users: &Path) -> String {
    let statements = if knows_statements() { "max_prepared_statements = 200\n" } else { "" };
    format!(
        "[databases]\n{DATABASE} = host=127.0.0.1 port={server_port} dbname={DATABASE}\n\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\n\
         pool_mode = {}\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = {CLIENTS_MAX}\n{statements}",
        users.display(),
        mode.name(),
    )
}

/// Debian keeps it where only root looks.
fn program() -> PathBuf {
    let installed = Path::new("/usr/sbin/pgbouncer");
    if installed.exists() { installed.to_owned() } else { PathBuf::from("pgbouncer") }
}

/// Its first line of version.
pub(super) fn version() -> String {
    let output = Command::new(program()).arg("--version").output();
    let output = must(output, "run pgbouncer (scripts/setup --bench installs it)");
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

/// Whether prepared statements work in transaction mode.
pub(super) fn knows_statements() -> bool {
    is_since(&version(), KNOWS_STATEMENTS)
}

fn is_since(version: &str, since: (u32, u32)) -> bool {
    let mut numbers = version.rsplit(' ').next().unwrap_or_default().split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= since,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_tells_what_it_can() {
        assert!(!is_since("PgBouncer 1.18.0", KNOWS_STATEMENTS));
        assert!(
            is_since("PgBouncer 1.21.0", KNOWS_STATEMENTS) && is_since("PgBouncer 2.0.0", KNOWS_STATEMENTS)
        );
        assert!(!is_since("", KNOWS_STATEMENTS));
    }

    #[test]
    fn everybody_is_where_the_index_says() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), at);
        }
    }
}
