//! PgBouncer: a process of it before a server, and what its version can do.

use super::pair::{DATABASE, must};
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

/// What one is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings<'a> {
    /// As it calls it.
    pub(super) pool_mode: &'a str,
    pub(super) pool_size: usize,
    pub(super) clients_max: usize,
    /// Who is let in, by SCRAM, and goes on to the server, with which password. May give orders, too.
    pub(super) user: (&'a str, &'a str),
}

/// A process that listens.
pub(super) struct PgBouncer {
    pub(super) port: u16,
    pub(super) process: Process,
    file: PathBuf,
    /// The configuration, but for the databases.
    settings: String,
}

impl PgBouncer {
    /// Starts one before `server`, with its files in that one's directory.
    pub(super) async fn start(server: &Cluster, settings: Settings<'_>) -> PgBouncer {
        let home = must(server.socket_dir().metadata(), "look at the server's directory");
        // Free a moment ago; nobody else is given it so soon.
        let listener = must(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), "find a port");
        let port = must(listener.local_addr(), "find a port").port();
        drop(listener);
        let dir = server.socket_dir().join(format!("pgbouncer-{port}"));
        must(std::fs::DirBuilder::new().mode(0o755).create(&dir), "make a directory");
        let users = dir.join("users.txt");
        let (user, password) = settings.user;
        must(std::fs::write(&users, format!("\"{user}\" \"{password}\"\n")), "write the users");
        let file = dir.join("pgbouncer.ini");
        let settings = configuration(settings, port, &users);
        write(&file, server.port(), &settings);
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
            assert!(
                Instant::now() < deadline && process.status().is_none(),
                "pgbouncer does not start:\n{said}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        PgBouncer { port, process, file, settings }
    }

    /// Names another server in its configuration, which it reads when it is told to (`RELOAD`).
    pub(super) fn point_at(&self, server: &Cluster) {
        write(&self.file, server.port(), &self.settings);
    }
}

fn write(file: &Path, server_port: u16, settings: &str) {
    let text = format!(
        "[databases]\n{DATABASE} = host=127.0.0.1 port={server_port} dbname={DATABASE}\n\n{settings}"
    );
    must(std::fs::write(file, text), "write the configuration");
}

fn configuration(settings: Settings<'_>, port: u16, users: &Path) -> String {
    let Settings { pool_mode, pool_size, clients_max, user: (user, _) } = settings;
    let statements = if knows_statements() { "max_prepared_statements = 200\n" } else { "" };
    format!(
        "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
         auth_file = {}\nadmin_users = {user}\npool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\n\
         max_client_conn = {clients_max}\n{statements}",
        users.display(),
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
}
