//! Processes and ports: starting a server, signalling it, and making sure that nothing outlives the test.

use super::install::{Installation, ServerUser};
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Below Linux's ephemeral ports, so that no outgoing connection takes the port of a stopped server.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A TCP port that no other test process on this machine uses, for as long as this value lives.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) number: u16,
    _lock: File,
}

impl Port {
    pub(super) fn reserve(base: &Path) -> Port {
        for _ in 0..1_000 {
            let number = rand::random_range(PORTS);
            let lock =
                File::create(base.join("ports").join(number.to_string())).expect("create a port's lock");
            // The lock keeps other testkits away, the bind tells of everybody else.
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port in {PORTS:?}");
    }
}

/// Starts the server's first process, with its output appended to `log`. It does not wait.
pub(super) fn spawn_server(
    installation: &Installation,
    home: &Path,
    port: u16,
    user: Option<ServerUser>,
) -> Child {
    let log = File::options().append(true).open(home.join("server.log")).expect("open the server's log");
    let mut command = Command::new(installation.program("postgres"));
    command
        .arg("-D")
        .arg(home.join("data"))
        .args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={port}"), "-c"])
        .arg(format!("unix_socket_directories={}", home.display()))
        .current_dir(home.join("data"))
        .env_remove("PGDATA")
        .env_remove("PGPORT")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log)
        // A terminal's Ctrl-C and a test runner's signals are for the test; the server dies by the test's hand.
        .process_group(0);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// A small shell that outlives a killed test process, and then takes its server and data away.
///
/// It waits on a pipe that only this process holds; the kernel closes it however the process ends. (A parent-death
/// signal would not do: it follows the *thread* that started the child.)
#[derive(Debug)]
pub(super) struct Watchdog(Child);

impl Watchdog {
    pub(super) fn over(home: &Path, keep: bool) -> Watchdog {
        const SCRIPT: &str = r#"
            trap '' HUP INT TERM
            while read -r _; do :; done
            pids_of_server() { read -r pid <"$1/data/postmaster.pid" && grep -qaF "$1" "/proc/$pid/cmdline"; }
            if pids_of_server "$1"; then
                kill -s CONT "$pid"; kill -s QUIT "$pid"
                i=0; while kill -0 "$pid" && [ $i -lt 50 ]; do sleep 0.1; i=$((i + 1)); done
                kill -s KILL "$pid"
            fi
            [ "$2" = keep ] || rm -rf "$1"
        "#;
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "segue-testkit-watchdog"])
            .arg(home)
            .arg(if keep { "keep" } else { "remove" })
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("start the watchdog");
        Watchdog(child)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A process's children, by the kernel's word; empty when it is gone.
pub(super) fn children_of(parent: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if status_of(pid).is_some_and(|(_, its_parent)| its_parent == parent) {
            children.push(pid);
        }
    }
    children
}

/// What the process calls itself, for example `postgres: walreceiver streaming 0/3000148`.
pub(super) fn title_of(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned()
}

/// Whether the process still runs (a zombie does not).
pub(super) fn is_alive(pid: u32) -> bool {
    status_of(pid).is_some_and(|(state, _)| state != 'Z')
}

/// Whether the process is frozen by a signal.
pub(crate) fn is_stopped(pid: u32) -> bool {
    status_of(pid).is_some_and(|(state, _)| state == 'T')
}

/// State and parent, from `/proc/<pid>/stat`, where they follow the name in parentheses.
fn status_of(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Sends a signal (`KILL`, `STOP`, …); processes that are gone are no error.
pub(crate) fn signal(name: &str, pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    // The shell's own `kill`: one is always there, and this crate has no unsafe code to call the kernel's.
    let mut script = String::new();
    for pid in pids {
        script.push_str(&format!("kill -s {name} {pid};"));
    }
    let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().expect("run sh");
}

/// Polls until `done` says so; false after `limit`.
pub(super) async fn until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}
