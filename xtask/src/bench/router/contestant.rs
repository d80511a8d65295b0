//! The ways to the server: direct, or by way of a process that is started, watched and measured here.

use super::super::measure::{cpu_of, memory_kib};
use super::super::pair::must;
use super::super::pgbouncer::{PgBouncer, Settings};
use super::proxy::{CLIENTS_MAX, COMPARED, LISTENS, MIRROR, MIRROR_PERCENT, PASSWORD, POOL_SIZE};
use segue_testkit::Cluster;
use segue_testkit::kill::Process;
use std::process::Command;
use std::time::Duration;

/// A process that does not listen by then never will.
const START_MAX: Duration = Duration::from_secs(10);

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
    let settings = Settings {
        pool_mode: mode.name(),
        pool_size: POOL_SIZE,
        clients_max: CLIENTS_MAX,
        user: ("postgres", server.password()),
    };
    let PgBouncer { port, process, .. } = PgBouncer::start(server, settings).await;
    (port, Some(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_where_the_index_says() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), at);
        }
    }
}
