//! The whole way on real servers, with the real binary: copy under load, follow, compare, cancel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::workload::{self, Workload, schema};
use support::Pair;

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_under_load_is_copied_followed_and_equal() {
    let pair = Pair::start(&["shop.*"]).await;
    let source = pair.source.connect("postgres").await;
    schema::create(&source).await.unwrap();
    schema::create(&pair.target.connect("postgres").await).await.unwrap();
    schema::seed_data(&source, 50_000).await.unwrap();
    let load = Workload::start(&pair.source.url("postgres"), workload::Options::default()).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    load.progress(200, support::PATIENCE).await;
    let said = pair.segue(&["verify", "--json"], 0);
    let verified: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(verified["rows_compared"].as_u64().unwrap() > 50_000, "{said}");
    let report = load.stop().await;
    pair.caught_up().await;
    pair.assert_equal(&["shop"]).await;
    let target = pair.target.connect("postgres").await;
    report.oracle.check(&target).await.expect("every acknowledged write is on the target");
    let removed = pair.segue(&["cancel"], 0);
    assert!(removed.contains("replication slot"), "{removed}");
    for side in [&pair.source, &pair.target] {
        assert_eq!(side.scalar("SELECT to_regnamespace('segue')::text").await, None);
        assert_eq!(
            side.scalar("SELECT count(*)::text FROM pg_replication_slots").await.as_deref(),
            Some("0")
        );
    }
    assert!(run.wait(support::PATIENCE).await.unwrap().success(), "the driver ends as told");
}
