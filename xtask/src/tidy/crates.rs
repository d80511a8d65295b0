//! Which crate may import which: a crate exists to forbid a dependency, and here it is forbidden.

use super::Finding;
use serde_json::Value;

/// What a crate of the workspace may import.
struct Crate {
    name: &'static str,
    /// Crates of the workspace, in every kind of dependency.
    may: &'static [&'static str],
    /// Whether its tests may use the test kit.
    tested_on_servers: bool,
    /// Crates from outside that would let in what it must not know; tests may use them.
    never: &'static [&'static str],
}

const TESTKIT: &str = "segue-testkit";
/// The binary's crate: it joins all others, so none may know it.
const APP: &str = "segue";
const IO: &[&str] = &["tokio", "tokio-postgres", "futures-util", "rand", "tempfile", "tracing"];
const DATABASES: &[&str] = &["tokio-postgres", "postgres-protocol", "postgres-types", "mysql_async", "sqlx"];

/// The layout of the workspace; crates that are planned are here already.
const CRATES: &[Crate] = &[
    Crate { name: "segue-model", may: &[], tested_on_servers: false, never: IO },
    Crate { name: "segue-engine", may: &["segue-model"], tested_on_servers: true, never: DATABASES },
    Crate {
        name: "segue-postgres",
        may: &["segue-model", "segue-engine"],
        tested_on_servers: true,
        never: &[],
    },
    Crate { name: "segue-mysql", may: &["segue-model", "segue-engine"], tested_on_servers: true, never: &[] },
    Crate {
        name: "segue-control",
        may: &["segue-model", "segue-engine"],
        tested_on_servers: true,
        never: DATABASES,
    },
    Crate { name: "segue-router", may: &["segue-model"], tested_on_servers: true, never: &[] },
    Crate {
        name: APP,
        may: &[
            "segue-model",
            "segue-engine",
            "segue-postgres",
            "segue-mysql",
            "segue-control",
            "segue-router",
        ],
        tested_on_servers: true,
        never: &[],
    },
    Crate { name: TESTKIT, may: &[], tested_on_servers: false, never: &[] },
    // Never shipped, so its benchmarks may stand on the test kit as a test does; the router is measured without the rest.
    Crate {
        name: "xtask",
        may: &["segue-model", "segue-router", TESTKIT],
        tested_on_servers: true,
        never: &[],
    },
];

/// Checks what `cargo metadata --no-deps` says of the workspace.
pub(super) fn check(metadata: &Value) -> Vec<Finding> {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(rule) = CRATES.iter().find(|c| c.name == name) else {
            let what = format!(
                "the crate `{name}` is not in the table in xtask/src/tidy/crates.rs: say there what it may import"
            );
            findings.push(Finding::new("Cargo.toml", 0, what));
            continue;
        };
        let path = manifest_of(name);
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let of = dependency["name"].as_str().unwrap_or_default();
            let in_tests = dependency["kind"] == "dev";
            if let Some(why) = refusal(rule, of, in_tests) {
                findings.push(Finding::new(&path, 0, format!("`{name}` must not import `{of}`: {why}")));
            }
        }
    }
    findings
}

fn manifest_of(name: &str) -> String {
    match name.strip_prefix("segue-") {
        Some(directory) => format!("crates/{directory}/Cargo.toml"),
        None if name == APP => "crates/app/Cargo.toml".to_owned(),
        None => format!("{name}/Cargo.toml"),
    }
}

fn refusal(rule: &Crate, of: &str, in_tests: bool) -> Option<&'static str> {
    let ours = of == "xtask" || CRATES.iter().any(|c| c.name == of);
    if rule.may.contains(&of) || (of == TESTKIT && in_tests && rule.tested_on_servers) {
        None
    } else if of == TESTKIT && rule.tested_on_servers {
        Some("the test kit is a dev-dependency only")
    } else if ours {
        Some("ARCHITECTURE.md says which way imports go")
    } else if rule.never.contains(&of) && !in_tests {
        Some("it would bring in what this crate must not know")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn imports(name: &str, of: &str, kind: Option<&str>) -> Vec<Finding> {
        check(&json!({"packages": [{"name": name, "dependencies": [{"name": of, "kind": kind}]}]}))
    }

    #[test]
    fn imports_against_the_layout_are_found() {
        for (name, of, kind) in [
            ("segue-model", "segue-engine", None),
            ("segue-model", "segue-testkit", Some("dev")),
            ("segue-model", "tokio", None),
            ("segue-model", "rand", None),
            ("segue-engine", "segue-postgres", None),
            ("segue-engine", "segue-postgres", Some("dev")),
            ("segue-engine", "tokio-postgres", None),
            ("segue-engine", "segue-testkit", None),
            ("segue-postgres", "segue", Some("dev")),
            ("segue-router", "segue-engine", None),
            ("segue-router", "segue-postgres", None),
            ("segue-testkit", "segue-model", Some("dev")),
            ("segue", "segue-testkit", Some("build")),
            ("segue", "xtask", None),
        ] {
            let found = imports(name, of, kind);
            assert_eq!(found.len(), 1, "{name} → {of} ({kind:?})");
            assert!(found[0].path.ends_with("/Cargo.toml") && found[0].what.contains(of));
        }
    }

    #[test]
    fn the_layout_itself_is_allowed() {
        for (name, of, kind) in [
            ("segue-engine", "segue-model", None),
            ("segue-engine", "tokio", None),
            ("segue-postgres", "segue-engine", None),
            ("segue-postgres", "segue-testkit", Some("dev")),
            ("segue", "segue-router", None),
            ("segue-model", "rand", Some("dev")),
            ("xtask", "segue-testkit", None),
        ] {
            assert_eq!(imports(name, of, kind), [], "{name} → {of}");
        }
    }
}
