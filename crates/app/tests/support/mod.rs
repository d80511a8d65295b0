//! A pair of real servers, the real binary, and what tests do with them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test file uses its own part"
)]

pub mod callers;
pub mod definitions;
pub mod fire;
pub mod moving;
pub mod orders;
pub mod routed;
pub mod slow;

use segue_testkit::kill::Process;
use segue_testkit::{Cluster, Options, compare};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A source, a target, and a spec between them.
pub struct Pair {
    pub source: Cluster,
    pub target: Cluster,
    pub dir: tempfile::TempDir,
}

impl Pair {
    /// Two fresh servers, and a spec that moves `tables` (as YAML list items).
    pub async fn start(tables: &[&str]) -> Pair {
        Pair::with(Options::default(), Options::default(), tables).await
    }

    /// Two servers made with these options.
    pub async fn with(source: Options, target: Options, tables: &[&str]) -> Pair {
        let (source, target) = tokio::join!(Cluster::start(source), Cluster::start(target));
        let pair = Pair { source, target, dir: tempfile::tempdir().unwrap() };
        pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), tables, "");
        pair
    }

    /// Writes the spec anew, with other addresses (through a proxy, say) or more settings.
    pub fn write_spec(&self, source: &str, target: &str, tables: &[&str], more: &str) {
        let tables: String = tables.iter().map(|t| format!("  - {t}\n")).collect();
        let text = format!(
            "migration: test\nprofile: dev\nsource: {{ postgres: \"{source}\" }}\ntarget: {{ postgres: \"{target}\" }}\ntables:\n{tables}{more}"
        );
        std::fs::write(self.spec(), text).unwrap();
    }

    pub fn spec(&self) -> PathBuf {
        self.dir.path().join("segue.yaml")
    }

    /// The binary with arguments, and the spec.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
        command.args(arguments).arg("-f").arg(self.spec());
        command
    }

    /// Starts `segue run`.
    pub fn run(&self) -> Process {
        Process::start(self.command(&["run"]))
    }

    /// Starts `segue run --new-stream`, and waits until the new stream has compared everything. Returns what it found, too.
    pub async fn renewed(&self) -> (Process, String) {
        let run = Process::start(self.command(&["run", "--new-stream"]));
        let found = run.wait_for("the new stream has compared", PATIENCE).await.unwrap();
        (run, found)
    }

    /// Runs a command to its end; panics unless it ends with `code`. Returns its standard output.
    pub fn segue(&self, arguments: &[&str], code: i32) -> String {
        let output = self.command(arguments).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "segue {arguments:?}\n{out}\n{err}");
        out.into_owned()
    }

    /// Waits for a stage without keeping this thread from its other tasks.
    pub async fn reaches(&self, run: &Process, stage: &str) {
        let mut command = self.command(&["wait", stage, "--timeout", "120s"]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = run.lines().join("\n");
        assert!(output.status.success(), "wait {stage}: {}\n{said}", String::from_utf8_lossy(&output.stderr));
    }

    /// Waits until everything that is committed on the source now has been applied.
    pub async fn caught_up(&self) {
        let end = self.source.scalar("SELECT pg_current_wal_insert_lsn()").await.unwrap();
        let until = std::time::Instant::now() + PATIENCE;
        let reached = format!("SELECT position >= '{end}' FROM segue.stream");
        while self.target.scalar(&reached).await.as_deref() != Some("t") {
            assert!(std::time::Instant::now() < until, "the target does not catch up with {end}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Writes to the target past its fence, as a superuser can who insists on it; returns how many rows.
    pub async fn plant(&self, statement: &str) -> u64 {
        let client = self.target.connect("postgres").await;
        client.batch_execute("SET session_replication_role = replica").await.unwrap();
        client.execute(statement, &[]).await.unwrap()
    }

    /// Compares whole schemas with the independent comparer.
    pub async fn assert_equal(&self, schemas: &[&str]) {
        let source = self.source.connect("postgres").await;
        let target = self.target.connect("postgres").await;
        let report = compare::schemas(&source, &target, schemas).await.unwrap();
        assert!(report.is_equal(), "{report}");
    }
}
