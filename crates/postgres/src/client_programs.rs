//! PostgreSQL's own client programs on this machine: where `pg_dump` and `pg_restore` are, and of which version.
//!
//! Which of them is good enough, and for what, is its callers' matter.

use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::Command;
use tokio_postgres::Client;

/// `pg_dump` and `pg_restore` of one version, in one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// Where they are.
    pub directory: PathBuf,
    /// Their major version.
    pub major: i32,
}

/// All there are: in PATH, beside the `server` if it is here, and where packages put them, in this order.
pub async fn found(server: &Client) -> Vec<Programs> {
    let mut found = Vec::new();
    for directory in directories(server).await {
        let pg_dump = directory.join("pg_dump");
        if !pg_dump.is_file() || !directory.join("pg_restore").is_file() {
            continue;
        }
        let said = Command::new(pg_dump).arg("--version").stdin(Stdio::null()).output().await;
        let major = said.ok().and_then(|said| major_of(&String::from_utf8_lossy(&said.stdout)));
        found.extend(major.map(|major| Programs { directory, major }));
    }
    found
}

async fn directories(server: &Client) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    // Of another machine it says nothing useful; whoever may not ask has no server here.
    let sql = "SELECT setting FROM pg_config WHERE name = 'BINDIR'";
    if let Ok(Some(row)) = server.query_opt(sql, &[]).await {
        all.push(PathBuf::from(row.get::<_, String>(0)));
    }
    let below = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    all.extend(below("/usr/lib/postgresql").into_iter().map(|version| version.join("bin")));
    let is_packaged =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgsql-"));
    all.extend(below("/usr").into_iter().filter(is_packaged).map(|version| version.join("bin")));
    all
}

/// `pg_dump (PostgreSQL) 15.4 (Debian …)`.
fn major_of(said: &str) -> Option<i32> {
    let version = said.split_once("(PostgreSQL) ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_every_packager_writes_them() {
        assert_eq!(major_of("pg_dump (PostgreSQL) 15.4 (Debian 15.4-1.pgdg120+1)\n"), Some(15));
        assert_eq!(major_of("pg_dump (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major_of("pg_dump 15"), None);
    }
}
