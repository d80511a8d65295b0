//! The documentation is complete, true to the program, and the one in the tree.

use super::*;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

#[test]
fn the_document_in_the_tree_is_the_one_the_program_makes() {
    let kept = std::fs::read_to_string(tree("docs/cli.md")).unwrap_or_default();
    let made = document();
    let line = kept.lines().zip(made.lines()).position(|(a, b)| a != b);
    let line = line.unwrap_or_else(|| kept.lines().count().min(made.lines().count())) + 1;
    assert!(
        kept == made,
        "docs/cli.md is stale from line {line} on; make it anew: cargo run -p segue -- document-cli > docs/cli.md"
    );
}

#[test]
fn every_command_has_its_facts_and_no_facts_are_of_another() {
    let mut root = Cli::command();
    root.build();
    let names: BTreeSet<String> = leaves(&root).into_iter().map(|(name, _)| name).collect();
    let known: BTreeSet<String> = commands::FACTS.iter().map(|facts| facts.command.to_owned()).collect();
    assert_eq!(names, known);
    assert!(names.contains("switch writes") && !names.contains("document-cli"), "{names:?}");
}

/// Every path in an object: `a`, `a.b`, `a[].b`.
fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                paths(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{prefix}[]"), found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn covers(field: &str, path: &str) -> bool {
    match field.strip_suffix(".*") {
        Some(above) => {
            path == above || path.strip_prefix(above).is_some_and(|rest| rest.starts_with(['.', '[']))
        }
        None => path == field,
    }
}

#[test]
fn every_field_that_is_printed_is_explained_and_no_other() {
    let mut all = vec![objects::fault(), objects::wrong_spec()];
    all.extend(commands::FACTS.iter().flat_map(|facts| (facts.objects)()));
    for object in all.iter().filter(|object| !object.fields.is_empty()) {
        let mut found = BTreeSet::new();
        paths(&object.value, "", &mut found);
        for path in &found {
            assert!(object.fields.iter().any(|(f, _)| covers(f, path)), "{path} of {:#}", object.value);
        }
        for (field, _) in object.fields {
            assert!(found.iter().any(|path| covers(field, path)), "{field} is not in {:#}", object.value);
        }
    }
}

#[test]
fn every_fault_that_a_command_names_is_explained() {
    for code in commands::FACTS.iter().flat_map(|facts| facts.faults) {
        assert!(FAULTS.iter().any(|fault| fault.code == *code), "{code}");
    }
}

#[test]
fn an_option_says_how_it_is_written_and_what_it_can_be() {
    let text = document();
    for part in [
        "| `-f`, `--spec FILE` | The spec: the file that describes the migration; by default `segue.yaml`",
        "also set by the variable `SEGUE_SPEC` |",
        "| `--override GATE` | ",
        "`digest` (Every row by hash, halving ranges that differ down to single rows)",
        "segue switch writes [OPTIONS]",
        "| 3 | gates are red;",
    ] {
        assert!(text.contains(part), "{part}");
    }
}
