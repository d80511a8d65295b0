//! Servers that are shared: what one client leaves on them is not seen by another, and each finds its own again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_router::PoolMode;
use segue_testkit::{Cluster, Options};
use support::{Running, config};
use tokio_postgres::Client;

/// A router to one server that has one connection.
async fn narrow(cluster: &Cluster) -> Running {
    let mut config = config(cluster, cluster, PoolMode::Transaction);
    config.limits.connections_max = 1;
    Running::start(config, cluster.password()).await
}

async fn show(client: &Client, name: &str) -> String {
    client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_brings_back_what_the_client_wished_at_its_start() {
    let cluster = Cluster::start(Options::default()).await;
    let router = narrow(&cluster).await;
    let url = format!("{} options='-c DateStyle=SQL,DMY -c work_mem=5MB'", router.url());
    let (wishing, plain) = (router.try_connect(&url).await.unwrap(), router.connect().await);
    for reset in ["RESET", "SET", "SET SESSION"] {
        for name in ["DateStyle", "work_mem"] {
            let value = if name == "work_mem" { "'6MB'" } else { "'ISO, YMD'" };
            wishing.batch_execute(&format!("SET {name} = {value}")).await.unwrap();
            let sql = if reset == "RESET" {
                format!("RESET {name}")
            } else {
                format!("{reset} {name} TO DEFAULT;")
            };
            wishing.batch_execute(&sql).await.unwrap();
        }
        assert_eq!(
            (show(&wishing, "DateStyle").await, show(&wishing, "work_mem").await),
            ("SQL, DMY".into(), "5MB".into()),
            "{reset}"
        );
        assert_eq!(
            (show(&plain, "DateStyle").await, show(&plain, "work_mem").await),
            ("ISO, MDY".into(), "4MB".into()),
            "{reset}"
        );
    }
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sql_prepared_outlives_a_rollback_and_is_nobody_elses() {
    let cluster = Cluster::start(Options::default()).await;
    let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'mine%'";
    for sql in [
        &["BEGIN", "PREPARE mine AS SELECT 1", "ROLLBACK"][..],
        &["BEGIN; PREPARE mine AS SELECT 1; ROLLBACK"],
        &["BEGIN", "SAVEPOINT a", "PREPARE mine AS SELECT 1", "ROLLBACK TO a", "ROLLBACK"],
        &["BEGIN", "PREPARE mine AS SELECT 1", "SELECT 1/0", "ROLLBACK"],
        &["PREPARE mine AS SELECT 1; SELECT 1/0"],
    ] {
        let router = narrow(&cluster).await;
        let client = router.connect().await;
        for statement in sql {
            let _ = client.batch_execute(statement).await;
        }
        assert_eq!(client.query_one(prepared, &[]).await.unwrap().get::<_, i64>(0), 1, "{sql:?}");
        client.batch_execute("EXECUTE mine").await.unwrap();
        drop(client);
        let other = router.connect().await;
        assert_eq!(other.query_one(prepared, &[]).await.unwrap().get::<_, i64>(0), 0, "{sql:?}");
        router.drain().await;
    }
}
