//! Modules: each says at its head what it owns, and is named after something of the domain.

use super::Finding;
use super::source::{Source, words};

/// Names that say nothing, so that everything ends up there.
const NAMES: &[&str] =
    &["util", "utils", "helper", "helpers", "types", "common", "manager", "managers", "misc"];

/// Checks one file.
pub(super) fn check(path: &str, source: &Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let in_src = path.starts_with("xtask/src/") || (path.starts_with("crates/") && path.contains("/src/"));
    if in_src && !source.text.starts_with("//!") {
        let what = "must open with `//!`: what the module owns, and what it refuses to know";
        findings.push(Finding::new(path, 1, what));
    }
    let refuse = |name: &str, line: usize| {
        let what = format!("a module named `{name}` says nothing: name it after what it owns");
        Finding::new(path, line, what)
    };
    let parts: Vec<&str> = path
        .trim_end_matches(".rs")
        .split('/')
        .skip_while(|part| !matches!(*part, "src" | "tests"))
        .collect();
    // A file directly in `tests/` is a program, named after what it tests.
    if !matches!(parts[..], ["tests", _]) {
        let nameless = parts.iter().filter(|part| NAMES.contains(*part));
        findings.extend(nameless.map(|part| refuse(part, 0)));
    }
    for (at, line) in words(&source.code, "mod") {
        let name = source.code[at + "mod".len()..].trim_start();
        let name = &name[..name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len())];
        // `mod name;` is found as a file.
        let inline =
            source.code[at..].find(['{', ';']).is_some_and(|i| source.code[at + i..].starts_with('{'));
        if inline && NAMES.contains(&name) {
            findings.push(refuse(name, line + 1));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(path, &Source::new(text)).len()
    }

    #[test]
    fn a_module_without_a_head_is_found() {
        assert_eq!(found("crates/model/src/a.rs", "use b;\n"), 1);
        assert_eq!(found("xtask/src/a.rs", "/// Not the module's.\nuse b;\n"), 1);
        assert_eq!(found("crates/model/src/a.rs", "//! What it owns.\nuse b;\n"), 0);
        assert_eq!(found("crates/model/tests/a.rs", "use b;\n"), 0);
    }

    #[test]
    fn a_module_that_is_named_after_nothing_is_found() {
        for path in ["crates/a/src/utils.rs", "crates/a/src/common/x.rs", "crates/a/tests/common/mod.rs"] {
            assert_eq!(found(path, "//! x\n"), 1, "{path}");
        }
        assert_eq!(found("crates/a/tests/types.rs", ""), 0, "a test of all types");
        assert_eq!(found("crates/a/src/b.rs", "//! x\npub(crate) mod helpers {\n}\n"), 1);
        assert_eq!(
            found("crates/a/src/b.rs", "//! mod utils {}\nmod name { mod tests {} }\nfn types() {}\n"),
            0
        );
    }
}
