//! The catalogue says of each fault what the code that makes it says, and every fault has a test that causes it.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What a file of the source tree is made of, without white space.
struct File {
    path: PathBuf,
    code: String,
    tests: String,
}

fn read(dir: &Path, all: &mut Vec<File>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // The documentation names faults; it makes none, and causes none.
        if path.is_dir() && !path.ends_with("cli/document") {
            read(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "snap") {
            let text = std::fs::read_to_string(&path).unwrap();
            let text: String = text.split_whitespace().collect();
            let is_test = path.components().any(|c| c.as_os_str() == "tests") || path.ends_with("tests.rs");
            let code_end = if is_test { 0 } else { text.find("#[cfg(test)]modtests{").unwrap_or(text.len()) };
            let (code, tests) = text.split_at(code_end);
            all.push(File { path, code: code.to_owned(), tests: tests.to_owned() });
        }
    }
}

fn files() -> Vec<File> {
    let mut all = Vec::new();
    for name in ["model", "engine", "postgres", "router", "app"] {
        for part in ["src", "tests"] {
            let dir = tree(&format!("crates/{name}/{part}"));
            if dir.is_dir() {
                read(&dir, &mut all);
            }
        }
    }
    all
}

/// The codes in a text, each with what is before it.
fn codes(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices("SEGUE-").map(|(at, _)| {
        let end = text[at..].find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-'));
        (&text[..at], text[at..at + end.unwrap_or(text.len() - at)].trim_end_matches('-'))
    })
}

/// How a code is written where a fault is made of it.
const MAKING: &[(&str, Recovery)] = &[
    ("Fault::retry(\"", Recovery::Retry),
    ("Fault::operator(\"", Recovery::Operator),
    ("Fault::ambiguous(\"", Recovery::Ambiguous),
    ("Fault::bug(\"", Recovery::Bug),
    ("Retry,\"", Recovery::Retry),
    ("Operator,\"", Recovery::Operator),
    ("Recovery::Retry,code:\"", Recovery::Retry),
    ("Recovery::Operator,code:\"", Recovery::Operator),
    ("Recovery::Retry;fault.code=\"", Recovery::Retry),
    ("refusal(\"", Recovery::Operator),
    ("refuse(\"", Recovery::Operator),
    ("lost(stream,\"", Recovery::Operator),
    ("lost_for_good(stream,\"", Recovery::Operator),
    ("\"code\":\"", Recovery::Operator),
];

/// How it is written where one is only looked for, or listed.
const NAMING: &[&str] =
    &["LOG_REMOVED,\"", "==\"", "!=\"", "==Some(\"", "code,\"", "[\"", "\",\"", ":&str=\"", "map_or(\""];

/// Every code that is made, with the kinds that it is made with.
fn made(files: &[File]) -> BTreeMap<String, Vec<(Recovery, PathBuf)>> {
    let mut made: BTreeMap<String, Vec<(Recovery, PathBuf)>> = BTreeMap::new();
    for file in files {
        // Elsewhere it is only told of, in words.
        for (before, code) in codes(&file.code).filter(|(before, _)| before.ends_with('"')) {
            let how = MAKING.iter().find(|(start, _)| before.ends_with(start)).map(|(_, kind)| *kind);
            let named = || NAMING.iter().any(|start| before.ends_with(start));
            assert!(how.is_some() || named(), "{}: how is {code} made?", file.path.display());
            made.entry(code.to_owned()).or_default().extend(how.map(|kind| (kind, file.path.clone())));
            // A constant, of which a fault is made.
            if let Some((_, name)) = before.strip_suffix(":&str=\"").and_then(|b| b.rsplit_once("const")) {
                let kinds = [
                    ("Fault::retry(", Recovery::Retry),
                    ("Fault::operator(", Recovery::Operator),
                    ("Fault::ambiguous(", Recovery::Ambiguous),
                    ("Fault::bug(", Recovery::Bug),
                    ("Recovery::Operator,", Recovery::Operator),
                    ("lost(stream,", Recovery::Operator),
                    ("lost_for_good(stream,", Recovery::Operator),
                ];
                for (kind, recovery) in kinds {
                    let call = format!("{kind}{name},");
                    let here = files.iter().filter(|file| file.code.contains(&call));
                    made.entry(code.to_owned())
                        .or_default()
                        .extend(here.map(|file| (recovery, file.path.clone())));
                }
            }
        }
    }
    made
}

#[test]
fn every_fault_that_is_made_is_in_the_catalogue_with_its_kind_and_no_other() {
    let made = made(&files());
    let all = all();
    let mut wrong = Vec::new();
    for (code, places) in &made {
        let Some(known) = all.iter().find(|known| known.code == code) else {
            wrong.push(format!("{code} is not in the catalogue (crates/app/src/cli/document/faults)"));
            continue;
        };
        if places.is_empty() {
            wrong.push(format!("{code} is named, and made nowhere"));
        }
        for (kind, path) in places.iter().filter(|(kind, _)| *kind != known.recovery) {
            wrong.push(format!(
                "{code} is {:?} in the catalogue, and {kind:?} in {}",
                known.recovery,
                path.display()
            ));
        }
    }
    let unmade = all.iter().filter(|known| !made.contains_key(known.code));
    wrong.extend(unmade.map(|known| format!("{} is made nowhere", known.code)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_code_is_explained_once_and_in_order() {
    let lists =
        [defects::FAULTS, plan::FAULTS, servers::FAULTS, stream::FAULTS, switch::FAULTS, verify::FAULTS];
    for list in lists.into_iter().chain([FAULTS]) {
        assert!(list.is_sorted_by_key(|known| known.code), "{} …", list[0].code);
    }
    let codes: Vec<&str> = all().iter().map(|known| known.code).collect();
    assert_eq!(codes.len(), codes.iter().collect::<BTreeSet<_>>().len(), "a code is explained twice");
}

#[test]
fn every_fault_that_is_no_defect_has_a_test_that_causes_it() {
    let files = files();
    let caused: BTreeSet<&str> =
        files.iter().flat_map(|file| codes(&file.tests)).map(|(_, code)| code).collect();
    let wanting: Vec<&str> = all()
        .iter()
        .filter(|known| known.recovery != Recovery::Bug && !caused.contains(known.code))
        .map(|known| known.code)
        .collect();
    assert!(wanting.is_empty(), "no test causes {wanting:#?}");
}

#[test]
fn the_catalogue_in_the_tree_is_the_one_the_program_makes() {
    let kept = std::fs::read_to_string(tree("docs/errors.md")).unwrap_or_default();
    assert!(
        kept == errors(),
        "docs/errors.md is stale; make it anew: cargo run -p segue --all-features -- document-errors > docs/errors.md"
    );
}
