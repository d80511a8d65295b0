//! Probes accept one owner at a time, and notice two, whatever those say of themselves.

#![allow(clippy::expect_used)] // In a helper of tests a panic is a failed test.

use segue_testkit::probe::{self, Probed, Probes};
use segue_testkit::{Cluster, Options};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Two databases that both call themselves the owner of these epochs.
async fn pair(epochs: [i64; 2]) -> (Cluster, [Probed; 2]) {
    let cluster = Cluster::start(Options::default()).await;
    let mut probed = Vec::new();
    for (name, epoch) in ["one", "two"].into_iter().zip(epochs) {
        cluster.execute(&format!("CREATE DATABASE {name}")).await;
        cluster.connect(name).await.batch_execute(probe::DDL).await.expect("make the table");
        probed.push(Probed { url: cluster.url(name), owner: format!("SELECT true, {epoch}") });
    }
    (cluster, probed.try_into().expect("two of them"))
}

#[tokio::test]
async fn two_servers_that_take_writes_at_once_are_noticed() {
    let (_cluster, probed) = pair([1, 2]).await;
    let mut probes = Probes::start(probed);
    for side in [0, 1, 0, 1] {
        assert!(probes.accepts(side, SOON).await, "{:?}", probes.refused());
    }
    probes.stop().await;
    let found = probes.history().violations().join("\n");
    assert!(found.contains("the side changed"), "{found}");
    assert!(found.contains("an earlier epoch comes back"), "{found}");
}

#[tokio::test]
async fn a_hand_over_is_no_violation_and_no_accepted_probe_is_lost() {
    let (cluster, probed) = pair([1, 2]).await;
    let close = |name: &str, on: &str| {
        format!(
            "ALTER DATABASE {name} SET default_transaction_read_only = {on};
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
    };
    cluster.execute(&close("two", "on")).await;
    let mut probes = Probes::start(probed);
    assert!(probes.accepts(0, SOON).await, "{:?}", probes.refused());
    assert!(probes.refuses(1, SOON).await, "{:?}", probes.refused());
    cluster.execute(&close("one", "on")).await;
    assert!(probes.refuses(0, SOON).await, "{:?}", probes.refused());
    cluster.execute(&close("two", "off")).await;
    assert!(probes.accepts(1, SOON).await, "{:?}", probes.refused());
    probes.stop().await;
    let history = probes.history();
    assert_eq!(history.violations(), Vec::<String>::new());
    let missing = history.missing_on(&cluster.connect("one").await).await.expect("ask");
    assert_eq!(
        missing.len(),
        history.counts()[1].min(20),
        "those of the other one are not here: {missing:?}"
    );
}
