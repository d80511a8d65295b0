//! What a user sees for each kind of mistake in a spec: `bad_specs/NAME.yaml` is the spec, `NAME.txt` the whole message.
//!
//! `UPDATE_EXPECTED=1` writes the messages anew; read the difference before it is committed.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its cases has to fail")]

use std::fs;
use std::path::{Path, PathBuf};

use segue_model::spec::Spec;

fn environment(name: &str) -> Option<String> {
    match name {
        "SOURCE_URL" => Some("postgres://app:s3cret@old.example/shop".to_owned()),
        "TARGET_URL" => Some("postgres://app:s3cret@new.example/shop".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_specs");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    cases.sort();
    cases
}

#[test]
fn each_mistake_is_shown_at_its_place() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let text = fs::read_to_string(&case).unwrap();
        let error = Spec::parse("segue.yaml", &text, &environment).expect_err(&case.display().to_string());
        let shown = format!("{error}\n");
        assert!(!shown.contains("s3cret"), "{} shows a password:\n{shown}", case.display());
        let expected_path = case.with_extension("txt");
        if update {
            fs::write(&expected_path, &shown).unwrap();
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if shown != expected {
            wrong.push(format!("{}:\n{shown}\nexpected:\n{expected}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_are_cases() {
    assert!(cases().len() >= 15);
}
