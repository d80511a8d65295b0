//! PostgreSQL's own regression statements, run directly and through the router: both say the same.
//!
//! The statements are those of the source package of the very server that runs here (`scripts/setup` brings them);
//! the schedule's order is kept, one file after the other. What PostgreSQL expects is not looked at: some files need a
//! library that no package has, and fail alike on every way. A default run takes some files, `SEGUE_SOAK` all of them.
//!
//! What differs, and why, is in `tests/regress/differences.txt`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_router::PoolMode;
use segue_testkit::cluster::client_program;
use segue_testkit::{Cluster, Options};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;
use support::Running;
use support::clients::regression_statements;
use tokio::process::Command;

/// Small ones that say much of types, errors, transactions, cursors, settings, prepared statements and COPY.
const OF_DEFAULT_RUN: &[&str] = &[
    "test_setup",
    "boolean",
    "int8",
    "float8",
    "strings",
    "date",
    "timestamptz",
    "copy",
    "copyselect",
    "errors",
    "select_into",
    "case",
    "transactions",
    "portals",
    "arrays",
    "prepared_xacts",
    "async",
    "psql",
    "psql_crosstab",
    "sequence",
    "guc",
    "limit",
    "copy2",
    "temp",
    "prepare",
    "rowtypes",
    "returning",
    "xml",
];

/// One way to a server of its own, and what was said on it.
struct Way {
    name: &'static str,
    cluster: Cluster,
    router: Option<Running>,
    results: PathBuf,
}

impl Way {
    async fn open(name: &'static str, mode: Option<PoolMode>, home: &Path) -> Way {
        let cluster = Cluster::start(Options::default().with("autovacuum", "off")).await;
        // As PostgreSQL's own driver makes its database.
        cluster.execute("CREATE DATABASE regression TEMPLATE template0 ENCODING 'UTF8'").await;
        for (name, value) in [
            ("lc_messages", "C"),
            ("lc_monetary", "C"),
            ("lc_numeric", "C"),
            ("lc_time", "C"),
            ("bytea_output", "hex"),
            ("timezone_abbreviations", "Default"),
        ] {
            cluster.execute(&format!("ALTER DATABASE regression SET {name} TO '{value}'")).await;
        }
        let router = match mode {
            Some(mode) => Some(Running::before(&cluster, mode).await),
            None => None,
        };
        let results = home.join(name);
        // The server, which runs as another user, writes there too.
        for directory in [results.clone(), results.join("results")] {
            fs::create_dir_all(&directory).unwrap();
            let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            fs::set_permissions(&directory, everybody).unwrap();
        }
        Way { name, cluster, router, results }
    }

    /// Runs one file as PostgreSQL's own driver does.
    async fn run(&self, statements: &Path, file: &str) {
        let port = self.router.as_ref().map_or(self.cluster.port(), |router| router.handle.address().port());
        let input = fs::File::open(statements.join("sql").join(format!("{file}.sql"))).unwrap();
        let output = fs::File::create(self.results.join(format!("{file}.out"))).unwrap();
        let status = Command::new(client_program("psql"))
            .args([
                "-X",
                "-a",
                "-q",
                "-d",
                "regression",
                "-v",
                "HIDE_TABLEAM=on",
                "-v",
                "HIDE_TOAST_COMPRESSION=on",
            ])
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", self.cluster.password())
            .env("PGTZ", "PST8PDT")
            .env("PGDATESTYLE", "Postgres, MDY")
            .env("PGOPTIONS", "-c intervalstyle=postgres_verbose")
            .env("PG_ABS_SRCDIR", statements)
            .env("PG_ABS_BUILDDIR", &self.results)
            .env("PG_LIBDIR", "/nowhere")
            .env("PG_DLSUFFIX", ".so")
            .env_remove("LC_ALL")
            .env("LANG", "C")
            .env("LC_MESSAGES", "C")
            .stdin(Stdio::from(input))
            .stderr(Stdio::from(output.try_clone().unwrap()))
            .stdout(Stdio::from(output))
            .kill_on_drop(true)
            .status()
            .await
            .unwrap();
        // 2: the connection broke, which some files bring about; 3: a script that stops itself.
        assert!(status.code().is_some(), "{}: {file}: {status}", self.name);
    }

    fn said(&self, file: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.results.join(format!("{file}.out"))).unwrap())
            .replace(self.results.to_str().unwrap(), "RESULTS")
    }
}

/// The files in the order of the schedule.
fn schedule(statements: &Path) -> Vec<String> {
    let text = fs::read_to_string(statements.join("parallel_schedule")).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("test:"));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresqls_own_statements_say_the_same() {
    let soak = std::env::var_os("SEGUE_SOAK").is_some();
    let home = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let direct = Way::open("direct", None, home.path()).await;
    let statements = regression_statements(direct.cluster.major());
    let files: Vec<String> = schedule(&statements)
        .into_iter()
        .filter(|file| soak || OF_DEFAULT_RUN.contains(&file.as_str()))
        .collect();
    let session = Way::open("session", Some(PoolMode::Session), home.path()).await;
    let transaction = Way::open("transaction", Some(PoolMode::Transaction), home.path()).await;
    let all = async |way: &Way| {
        let mut times = Vec::new();
        for file in &files {
            let began = Instant::now();
            way.run(&statements, file).await;
            times.push((began.elapsed().as_millis(), file.as_str()));
        }
        times.sort_unstable();
        println!("{}, slowest: {:?}", way.name, &times[times.len().saturating_sub(5)..]);
    };
    tokio::join!(all(&direct), all(&session), all(&transaction));
    let mut found = BTreeMap::new();
    let mut statements_run = 0;
    for file in &files {
        let text = fs::read(statements.join("sql").join(format!("{file}.sql"))).unwrap();
        statements_run += text.iter().filter(|&&byte| byte == b';').count();
        for way in [&session, &transaction] {
            if let Some(differences) = differences(&direct, way, file) {
                found.insert(format!("{} {file}", way.name), differences);
            }
        }
    }
    println!("{} files, {statements_run} ends of statements, each on three ways", files.len());
    if let Some(keep) = std::env::var_os("SEGUE_KEEP") {
        let kept = std::process::Command::new("cp").arg("-r").arg(home.path()).arg(keep).status().unwrap();
        assert!(kept.success());
    }
    let mut expected = expected_differences();
    // Some come about only behind others' files.
    expected.retain(|name, _| soak || found.contains_key(name));
    assert_eq!(expected, found, "instead of tests/regress/differences.txt");
    for way in [direct, session, transaction] {
        if let Some(router) = way.router {
            router.drain().await;
        }
    }
}

/// What `diff` says of a file, without the numbers of lines.
fn differences(direct: &Way, way: &Way, file: &str) -> Option<Vec<String>> {
    let (expected, said) = (direct.said(file), way.said(file));
    if expected == said {
        return None;
    }
    let [a, b] = [("a", expected), ("b", said)].map(|(name, text)| {
        let path = way.results.join(format!("{file}.{name}"));
        fs::write(&path, text).unwrap();
        path
    });
    let output = std::process::Command::new("diff").arg("-a").args([a, b]).output().expect("run diff");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|line| !line.starts_with(|c: char| c.is_ascii_digit()));
    Some(lines.map(|line| line.trim_end().to_owned()).collect())
}

/// The differences that are known, by way and file.
fn expected_differences() -> BTreeMap<String, Vec<String>> {
    let text = include_str!("regress/differences.txt");
    let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match line.strip_prefix("== ") {
            Some(next) => next.clone_into(&mut name),
            None => known.entry(name.clone()).or_default().push(line.trim_end().to_owned()),
        }
    }
    known
}
