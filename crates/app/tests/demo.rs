//! `segue demo` as a stranger runs it, only smaller: it tells its story to the end, proves it, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

use serde_json::Value;
use std::process::Command;

#[test]
fn the_demo_tells_its_story_and_proves_it() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_segue"));
    demo.args(["demo", "--scale", "0.02", "--seconds", "3", "--json"]).env("TMPDIR", temporary.path());
    let output = demo.output().unwrap();
    let (said, heard) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{heard}");
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["clean"], true, "{report:#}");
    assert!(report["copied"]["rows"].as_u64().unwrap() > 20_000, "{report:#}");
    assert!(report["streamed"]["transactions"].as_u64().unwrap() > 0, "{report:#}");
    assert!(report["writes"]["acknowledged"].as_u64().unwrap() > 0, "{report:#}");
    let none = (&report["writes"]["lost"], &report["verified"]["divergences"], &report["left_behind"]);
    assert_eq!(none, (&Value::from(0), &Value::from(0), &Value::Array(Vec::new())), "{report:#}");
    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "the servers are gone, and what they wrote: {left:?}");
}
