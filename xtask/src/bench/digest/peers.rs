//! The peers that find the rows that differ: data-diff and pg_comparator, and segue as they are asked, a table at a time.

use super::super::pair::{DATABASE, Pair, must, said, segue_program};
use crate::tidy::this_workspace;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// Connections of data-diff to each server: with more it takes as much of the processors, with fewer they wait.
pub(super) const DATA_DIFF_THREADS: usize = 4;
/// The integer keys place the rows in its tree, as they are evenly spread; of its checksums, the cheapest. The rest is its
/// default.
pub(super) const PG_COMPARATOR_OPTIONS: &str = "--use-key --checksum-function=fnv";

/// Who finds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finder {
    DataDiff,
    PgComparator,
    Segue,
}

impl Finder {
    pub(super) const ALL: [Finder; 3] = [Finder::DataDiff, Finder::PgComparator, Finder::Segue];

    pub(super) fn name(self) -> &'static str {
        match self {
            Finder::DataDiff => "data-diff",
            Finder::PgComparator => "pg_comparator",
            Finder::Segue => "segue verify",
        }
    }

    /// The keys of a table's rows that it says differ, or why it cannot compare the table.
    pub(super) async fn keys(self, pair: &Pair, table: &str, key: &str) -> Result<BTreeSet<i64>, String> {
        match self {
            Finder::DataDiff => said(&data_diff(pair, table, key)).await.map(|text| keys_of_lines(&text)),
            Finder::PgComparator => said(&pg_comparator(pair, table)).await.map(|text| keys_of_lines(&text)),
            Finder::Segue => Ok(segue(pair, table).await),
        }
    }
}

/// What `scripts/setup --bench` brings from PyPI; the rule for where is repeated there.
fn python() -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let home = match (std::env::var_os("SEGUE_BENCH"), std::env::var_os("HOME")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(home)) if !is_root => PathBuf::from(home).join(".cache/segue/bench"),
        _ => PathBuf::from("/var/cache/segue/bench"),
    };
    let python = home.join("python/bin/python");
    assert!(python.exists(), "data-diff is missing ({}): run scripts/setup --bench", python.display());
    python
}

fn data_diff(pair: &Pair, table: &str, key: &str) -> String {
    let (source, target) = (&pair.source, &pair.target);
    assert_eq!(source.password(), target.password(), "one password for both");
    format!(
        "'{}' '{}' --database {DATABASE} --password '{}' --ports {} {} --threads {DATA_DIFF_THREADS} --table {table} --key {key}",
        python().display(),
        this_workspace().join("xtask/src/bench/digest/data_diff_client.py").display(),
        source.password(),
        source.port(),
        target.port(),
    )
}

fn pg_comparator(pair: &Pair, table: &str) -> String {
    let [source, target] = [&pair.source, &pair.target].map(|server| {
        format!("'pgsql://postgres:{}@127.0.0.1:{}/{DATABASE}/{table}'", server.password(), server.port())
    });
    format!("pg_comparator {PG_COMPARATOR_OPTIONS} {source} {target}")
}

/// The last word of each line.
fn keys_of_lines(text: &str) -> BTreeSet<i64> {
    let key = |line: &str| {
        let word = line.split_whitespace().next_back().unwrap_or_default();
        word.parse().unwrap_or_else(|_| panic!("no key: {line}"))
    };
    text.lines().map(key).collect()
}

async fn segue(pair: &Pair, table: &str) -> BTreeSet<i64> {
    let mut command = Command::new(segue_program());
    command.args(["verify", "--json", "--table", &format!("public.{table}"), "-f"]).arg(pair.spec());
    let output = must(tokio::task::spawn_blocking(move || command.output()).await, "run segue verify");
    let output = must(output, "run segue verify");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: serde_json::Value = must(serde_json::from_str(&text), &format!("read: {text}"));
    assert_eq!(report["complete"], true, "{report:#}");
    let divergences = report["divergences"].as_array().map(Vec::as_slice).unwrap_or_default();
    assert_eq!(report["divergent"], divergences.len(), "{report:#}");
    let key = |divergence: &serde_json::Value| divergence["key"][0].as_str()?.parse().ok();
    divergences.iter().map(|one| key(one).unwrap_or_else(|| panic!("no key: {one:#}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_what_peers_print() {
        assert_eq!(keys_of_lines("UPDATE 3\nINSERT -7\n"), BTreeSet::from([-7, 3]));
        assert_eq!(keys_of_lines("12\n"), BTreeSet::from([12]));
        assert_eq!(keys_of_lines(""), BTreeSet::new());
    }
}
