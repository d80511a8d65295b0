//! The binary as a script sees it: output, errors and exit codes that need no server.

#![allow(clippy::unwrap_used, reason = "a test that cannot start the binary has to fail")]

use std::process::{Command, Output};

fn segue(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
    command
        .args(arguments)
        .env_remove("SEGUE_SPEC")
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

#[test]
fn the_schema_is_json() {
    let output = segue(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn a_wrong_command_line_or_spec_ends_with_2() {
    for arguments in [&["rnu"][..], &["wait"], &["status"], &["-f", "/nowhere.yaml", "run"]] {
        let output = segue(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_is_written_wrong_is_an_object_for_a_program() {
    let spec = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrong.yaml");
    std::fs::write(&spec, "migration: m\nprofil: dev\n").unwrap();
    let spec = spec.to_str().unwrap();
    for (arguments, code) in [
        (&["-f", spec, "run", "--json"][..], "SEGUE-SPEC"),
        (&["-f", "/nowhere.yaml", "status", "--json"], "SEGUE-SPEC-FILE"),
        (&["rnu", "--json"], "SEGUE-USAGE"),
        (&["wait", "--json"], "SEGUE-USAGE"),
        (&["init", "--source", "mysql://a", "--target", "postgres://b/c", "--json"], "SEGUE-USAGE"),
    ] {
        let output = segue(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["code"], code, "{object:#}");
        assert!(object["fault"] != "" && object["next_step"] != "", "{object:#}");
        let problems = object["problems"].as_array().map_or(0, Vec::len);
        assert_eq!(problems > 0, code == "SEGUE-SPEC", "{object:#}");
    }
    assert!(segue(&["--help", "--json"]).stdout.starts_with(b"Segue moves"), "help stays what it is");
}

#[test]
fn the_long_help_lists_the_exit_codes() {
    let help = String::from_utf8(segue(&["--help"]).stdout).unwrap();
    for line in
        ["0  done", "1  a fault", "2  the command line or the spec", "3  a gate refused", "4  a difference"]
    {
        assert!(help.contains(line), "{line} is missing from\n{help}");
    }
}
