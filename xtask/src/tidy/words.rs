//! Words that must not stand in code: unfinished business, panics without a reason, SQL where no database is known,
//! and the outside world where only values are.

use super::Finding;
use super::source::{Source, line_of, words};

/// Left over from writing, in tests too.
const UNFINISHED: &[&str] = &["todo", "unimplemented", "dbg"];
/// Beginnings of SQL, as they stand in string literals.
const SQL: &[&str] = &["SELECT ", "INSERT INTO", "DELETE FROM", "ALTER TABLE", "CREATE TABLE"];
/// What a pure decision has to be given instead of fetching it.
const OUTSIDE: &[&str] = &[
    "std::fs",
    "std::env",
    "std::net",
    "std::process",
    "std::thread",
    "SystemTime",
    "Instant",
    "println",
    "eprintln",
];

/// Checks one file.
pub(super) fn check(path: &str, source: &Source<'_>) -> Vec<Finding> {
    let mut findings = unfinished(path, source);
    if !is_test_file(path) {
        findings.extend(panics(path, source));
        if path.starts_with("crates/engine/src/") {
            findings.extend(sql(path, source));
        }
        if path.starts_with("crates/model/src/") {
            findings.extend(outside(path, source));
        }
    }
    findings
}

/// Tests, whole files of them: `tests/`, a module's `tests.rs`, and the test kit.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.starts_with("crates/testkit/")
}

fn unfinished(path: &str, source: &Source<'_>) -> Vec<Finding> {
    let macros = UNFINISHED.iter().flat_map(|name| words(&source.code, name).map(move |found| (name, found)));
    macros
        .filter(|(name, (at, _))| source.code[at + name.len()..].starts_with('!'))
        .map(|(name, (_, line))| {
            Finding::new(
                path,
                line + 1,
                format!("`{name}!` must not stay: finish it, or refuse the case with a fault"),
            )
        })
        .collect()
}

fn panics(path: &str, source: &Source<'_>) -> Vec<Finding> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut findings = Vec::new();
    for call in [".unwrap()", ".expect("] {
        for (at, _) in source.code.match_indices(call) {
            let line = line_of(&source.code, at);
            let panics = call.ends_with(')') || takes_one_argument(&source.code[at + call.len()..]);
            if panics && !source.is_test_line(line) && !has_reason(&lines, line) {
                let call = call.trim_matches(['.', '(', ')']);
                let what = format!(
                    "`{call}` without a reason: handle the case, or say on the line above, `// reason: …`, why it cannot happen"
                );
                findings.push(Finding::new(path, line + 1, what));
            }
        }
    }
    findings
}

/// Whether a call whose `arguments` begin here has one argument, as the `expect` of `Option` and `Result` has.
/// A parser's method of the same name has more.
fn takes_one_argument(arguments: &str) -> bool {
    let mut depth = 0_i32;
    for (at, c) in arguments.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => return true,
            ')' | ']' | '}' => depth -= 1,
            // A comma may trail.
            ',' if depth == 0 => return arguments[at + 1..].trim_start().starts_with(')'),
            _ => {}
        }
    }
    true
}

/// A reason stands on the line itself, or in the comments and attributes directly above it.
fn has_reason(lines: &[&str], line: usize) -> bool {
    let gives =
        |text: &str| text.contains("// reason: ") || (text.contains("#[") && text.contains("reason = \""));
    let above = lines[..line].iter().rev().map(|l| l.trim_start());
    gives(lines[line]) || above.take_while(|l| l.starts_with("//") || l.starts_with("#[")).any(gives)
}

fn sql(path: &str, source: &Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.literals.lines().enumerate() {
        let statement = SQL.iter().find(|start| line.contains(**start));
        let catalog = line
            .match_indices("pg_")
            .any(|(at, _)| !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_'));
        if (statement.is_some() || catalog) && !source.is_test_line(index) {
            let what =
                format!("SQL in the engine (`{}`): it belongs into an adapter, behind a port", line.trim());
            findings.push(Finding::new(path, index + 1, what));
        }
    }
    findings
}

fn outside(path: &str, source: &Source<'_>) -> Vec<Finding> {
    let found = OUTSIDE.iter().flat_map(|name| words(&source.code, name).map(move |(_, line)| (name, line)));
    found
        .filter(|(_, line)| !source.is_test_line(*line))
        .map(|(name, line)| Finding::new(path, line + 1, format!("`{name}` in the model: pass the value in")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        check(path, &Source::new(text)).len()
    }

    #[test]
    fn panics_need_a_reason_outside_tests() {
        let path = "crates/postgres/src/a.rs";
        for text in [
            "fn f() { x.unwrap(); }",
            "fn f() {\n    // Because.\n    x.expect(\"y\");\n}",
            "fn f() {\n    x.expect(\n        f(a, b),\n    );\n}",
            "// reason: of another line\nfn g() {}\nfn f() { x.unwrap() }",
        ] {
            assert_eq!(found(path, text), 1, "{text}");
        }
        for text in [
            "fn f() { x.unwrap(); } // reason: checked above",
            "fn f() {\n    // reason: a literal,\n    // and a short one\n    x.expect(\"y\");\n}",
            "fn f() {\n    #[expect(clippy::unwrap_used, reason = \"a literal\")]\n    x.unwrap();\n}",
            "fn f() { r.expect(\"new row\", b'N')?; }",
            "/// Like `.unwrap()`.\nfn f() { x.unwrap_or(1); }",
            "#[cfg(test)]\nmod tests {\n    fn f() { x.unwrap(); }\n}",
        ] {
            assert_eq!(found(path, text), 0, "{text}");
        }
        for path in ["crates/a/tests/b.rs", "crates/testkit/src/c.rs", "crates/a/src/b/tests.rs"] {
            assert_eq!(found(path, "fn f() { x.unwrap(); }"), 0, "{path}");
        }
    }

    #[test]
    fn unfinished_business_is_found_everywhere() {
        for text in ["fn f() { todo!() }", "fn f() { unimplemented!(\"x\") }", "fn f() { dbg!(x); }"] {
            assert_eq!(found("crates/a/tests/b.rs", text), 1, "{text}");
        }
        assert_eq!(found("crates/a/src/b.rs", "// todo!\nfn todo() { log(\"todo!\") }"), 0);
    }

    #[test]
    fn sql_in_the_engine_is_found() {
        let path = "crates/engine/src/a.rs";
        for text in
            ["f(\"SELECT 1\")", "f(r#\"x\nINSERT INTO t\"#)", "f(\"from pg_class\")", "f(\"pg_class\")"]
        {
            assert_eq!(found(path, text), 1, "{text}");
            assert_eq!(found("crates/postgres/src/a.rs", text), 0, "{text}");
        }
        for text in ["// SELECT 1\nf()", "f(\"selected\")", "#[cfg(test)]\nmod t { fn f() { \"SELECT 1\" } }"]
        {
            assert_eq!(found(path, text), 0, "{text}");
        }
    }

    #[test]
    fn the_outside_world_in_the_model_is_found() {
        for text in ["use std::fs;", "fn f() { Instant::now() }", "fn f() { println!() }"] {
            assert_eq!(found("crates/model/src/a.rs", text), 1, "{text}");
            assert_eq!(found("crates/engine/src/a.rs", text), 0, "{text}");
        }
        assert_eq!(found("crates/model/src/a.rs", "/// Not an Instant.\nstruct InstantRow;"), 0);
    }
}
