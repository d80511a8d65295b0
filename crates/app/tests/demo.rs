//! `segue demo` as a stranger runs it, only smaller: it tells its story to the end, proves it, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

use serde_json::Value;
use std::process::Command;

fn reads_were_compared_and_moved(reads: &Value) {
    let number = |name: &str| reads[name].as_u64().unwrap_or_else(|| panic!("{name}: {reads:#}"));
    assert!(number("browsed") > number("read_back") && number("read_back") > 0, "{reads:#}");
    assert_eq!((number("stale"), number("planted"), number("mended")), (0, 1, 1), "{reads:#}");
    assert!(number("differed") > 0 && number("compared_afterwards") > 0, "{reads:#}");
    assert_eq!(number("differ_afterwards"), 0, "{reads:#}");
    assert!(reads["statement"].as_str().unwrap().contains("FROM shop.products"), "{reads:#}");
    let shares = reads["shares"].as_array().unwrap();
    let of = |name: &str| shares.iter().map(|share| share[name].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("percent"), [1, 10, 100], "{reads:#}");
    let (answered, by_target) = (of("answered"), of("by_target"));
    assert!(answered.iter().zip(&by_target).all(|(all, some)| *all > 0 && all >= some), "{reads:#}");
    // How many depends on how far behind it is, which depends on what else this machine does.
    assert!(by_target[2] > 0, "{reads:#}");
}

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
    assert_eq!(report["writes"]["differ_on_the_other_side"], 0, "{report:#}");
    assert_eq!(report["verified"]["rows_compared"].as_array().unwrap().len(), 4, "{report:#}");

    reads_were_compared_and_moved(&report["reads"]);
    assert!(heard.contains("differs ") && heard.contains("values differ in column price"), "{heard}");
    let hand_overs = report["hand_overs"].as_array().unwrap();
    let what: Vec<&str> = hand_overs.iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["rehearsed", "to the target", "back to the source", "to the target again"]);
    for one in hand_overs {
        let ms = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{one:#}"));
        let latency = ["p50", "p99", "max"].map(|share| ms(&one["latency_ms"][share]));
        assert!(ms(&one["stall_ms"]) > 0.0 && latency.is_sorted(), "{one:#}");
        assert!(ms(&one["gap_ms"]) > 0.0, "{one:#}");
    }
    assert_eq!(
        report["writes"]["errors"],
        Value::Object(Default::default()),
        "clients notice nothing: {report:#}"
    );
    assert!(heard.contains("which is no superuser"), "{heard}");
    for step in [
        "plan --grants=source | psql",
        "plan",
        "mirror 100",
        "verify --table shop.products --repair",
        "switch reads 1",
        "switch reads 10",
        "switch reads 100",
        "switch writes --dry-run",
        "switch writes",
        "reverse",
        "complete --dry-run",
        "complete",
        "cancel",
    ] {
        assert!(heard.contains(&format!("$ segue {step}\n")), "{heard}");
    }

    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "the servers are gone, and what they wrote: {left:?}");
}
