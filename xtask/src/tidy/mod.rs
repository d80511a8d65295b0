//! The rules of the source tree, checked as an ordinary test and by `cargo xtask tidy`.
//!
//! Each rule is a pure function from the texts of files to findings; only this module reads the tree.
//! A rule says what is wrong, where, and what to do instead.

mod crates;
mod length;
mod links;
mod modules;
mod source;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use source::Source;

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// The file, from the root, with `/` between its parts.
    path: String,
    /// From 1; 0 where the file as a whole is meant.
    line: usize,
    /// What is wrong, and what to do.
    what: String,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Everything the rules look at.
struct Tree {
    /// Texts by path from the root: Rust, Markdown and the ratchets.
    files: BTreeMap<String, String>,
    /// Every file and directory there is, for links.
    paths: BTreeSet<String>,
    /// What `cargo metadata --no-deps` says of the workspace.
    metadata: serde_json::Value,
}

/// The root of the workspace that this program was built from.
pub fn this_workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Checks the tree at `root`, prints what it finds, and ends with 1 if it found something.
pub fn run(root: &Path) -> ExitCode {
    let tree = match Tree::read(root) {
        Ok(tree) => tree,
        Err(error) => {
            eprintln!("tidy: cannot read {}: {error}", root.display());
            return ExitCode::FAILURE;
        }
    };
    let findings = check(&tree);
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => ExitCode::SUCCESS,
        n => {
            eprintln!("tidy: {n} finding(s)");
            ExitCode::FAILURE
        }
    }
}

/// Every rule on every file.
fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = crates::check(&tree.metadata);
    let mut lines = BTreeMap::new();
    let mut functions = BTreeMap::new();
    for (path, text) in &tree.files {
        if path.ends_with(".md") {
            findings.extend(links::check(path, text, &tree.paths));
        }
        if !path.ends_with(".rs") {
            continue;
        }
        let source = Source::new(text);
        findings.extend(modules::check(path, &source));
        findings.extend(words::check(path, &source));
        lines.insert(path.clone(), text.lines().count());
        length::longest_functions(path, &source, &mut functions);
    }
    for (ratchet, found) in [(&length::FILES, lines), (&length::FUNCTIONS, functions)] {
        let list = tree.files.get(ratchet.path).map_or("", String::as_str);
        findings.extend(length::check(ratchet, list, &found));
    }
    findings.sort();
    findings
}

impl Tree {
    fn read(root: &Path) -> std::io::Result<Tree> {
        let mut tree = Tree { files: BTreeMap::new(), paths: BTreeSet::new(), metadata: metadata(root)? };
        tree.walk(root, "")?;
        Ok(tree)
    }

    fn walk(&mut self, root: &Path, below: &str) -> std::io::Result<()> {
        for entry in std::fs::read_dir(root.join(below))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Hidden directories, build output and what a package manager brought are not ours.
            if name.starts_with('.') || matches!(name.as_str(), "target" | "node_modules") {
                continue;
            }
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if entry.file_type()?.is_dir() {
                self.walk(root, &path)?;
            } else if [".rs", ".md", "-ratchet.txt"].iter().any(|end| path.ends_with(end)) {
                self.files.insert(path.clone(), std::fs::read_to_string(entry.path())?);
            }
            self.paths.insert(path);
        }
        Ok(())
    }
}

fn metadata(root: &Path) -> std::io::Result<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        return Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_keeps_every_rule() {
        let tree = Tree::read(&this_workspace()).expect("the tree can be read");
        assert!(tree.files.len() > 50, "the walk found the sources");
        let findings: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    #[test]
    fn every_rule_is_asked() {
        let files = [
            ("crates/engine/src/utils.rs", "fn f() { todo!() }\n".to_owned()),
            ("crates/engine/src/long.rs", format!("//! Long.\nfn f() {{\n{}}}\n", "x();\n".repeat(600))),
            ("README.md", "[gone](docs/gone.md)\n".to_owned()),
        ];
        let tree = Tree {
            files: files.map(|(path, text)| (path.to_owned(), text)).into(),
            paths: BTreeSet::new(),
            metadata: serde_json::json!({"packages": [{"name": "stranger", "dependencies": []}]}),
        };
        let found: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
        for part in ["stranger", "utils", "`//!`", "todo!", "603 lines", "602 lines", "docs/gone.md"] {
            assert!(found.iter().any(|f| f.contains(part)), "{part} in {found:#?}");
        }
    }
}
