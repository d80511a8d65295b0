//! What happens at the bounds: no connection free, a server that restarts, a wait that is given up, the router's end.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_router::{PoolMode, Upstream};
use segue_testkit::proxy::Proxy;
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Running, config};
use tokio_postgres::NoTls;

fn code(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.code().code().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_no_connection_in_time_is_told_and_goes_on() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.limits.connections_max = 1;
    config.limits.queue_max = Duration::from_millis(200);
    let router = Running::start(config, cluster.password()).await;
    let (a, b) = (router.connect().await, router.connect().await);
    a.batch_execute("BEGIN").await.unwrap();
    for _ in 0..2 {
        assert_eq!(code(&b.batch_execute("SELECT 1").await.unwrap_err()), "53300");
        assert_eq!(code(&b.query("SELECT 1", &[]).await.unwrap_err()), "53300", "extended groups too");
    }
    a.batch_execute("COMMIT").await.unwrap();
    b.query("SELECT 1", &[]).await.unwrap();
    assert_eq!(router.counts().queue_timeouts, 4);
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_outlive_a_restart_of_their_server_between_transactions() {
    let cluster = Cluster::start(Options::default()).await;
    let router = Running::before(&cluster, PoolMode::Transaction).await;
    let client = router.connect().await;
    let statement = client.prepare("SELECT $1::int").await.unwrap();
    cluster.restart().await;
    assert_eq!(client.query_one(&statement, &[&5]).await.unwrap().get::<_, i32>(0), 5);
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_statement_can_be_cancelled() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let router = Running::before(&cluster, mode).await;
        let client = router.connect().await;
        let statement = client.prepare("SELECT 1").await.unwrap();
        let token = client.cancel_token();
        router.routes.send_modify(|heard| heard.held_until = Some(Instant::now() + Duration::from_secs(60)));
        for extended in [false, true] {
            let before = router.counts().parked;
            let (statement, asked) = (&statement, &client);
            let waiting = async move {
                match extended {
                    true => asked.query(statement, &[]).await.map(drop),
                    false => asked.batch_execute("SELECT 1").await,
                }
            };
            let cancelling = async {
                while router.counts().parked == before {
                    tokio::task::yield_now().await;
                }
                token.cancel_query(NoTls).await.unwrap();
            };
            let (waited, ()) = tokio::join!(waiting, cancelling);
            assert_eq!(code(&waited.unwrap_err()), "57014", "{mode:?} {extended}");
        }
        router.routes.send_modify(|heard| heard.held_until = None);
        client.query(&statement, &[]).await.unwrap();
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_transactions_and_not_for_who_is_idle() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let router = Running::before(&cluster, mode).await;
        let (busy, idle) = (router.connect().await, router.connect().await);
        busy.batch_execute("BEGIN; CREATE TABLE IF NOT EXISTS t (i int); INSERT INTO t VALUES (1)")
            .await
            .unwrap();
        router.handle.drain();
        while !idle.is_closed() {
            tokio::task::yield_now().await;
        }
        busy.batch_execute("COMMIT").await.unwrap();
        router.drain().await;
        assert!(busy.is_closed() || busy.batch_execute("SELECT 1").await.is_err());
        assert_eq!(cluster.scalar("SELECT count(*) FROM t").await.as_deref(), Some("1"));
        cluster.execute("DROP TABLE t").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_take_a_sessions_settings_is_given_up() {
    let cluster = Cluster::start(Options::default()).await;
    let proxy = Proxy::start(cluster.port()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.source = Arc::new(Upstream { host: "127.0.0.1".into(), port: proxy.port(), tls: None });
    config.limits.connections_max = 1;
    config.limits.connect_max = Duration::from_secs(1);
    let router = Running::start(config, cluster.password()).await;
    let (set, plain) = (router.connect().await, router.connect().await);
    set.batch_execute("SET work_mem = '5MB'").await.unwrap();
    plain.batch_execute("SELECT 1").await.unwrap();
    proxy.half_open();
    let waiting = tokio::time::timeout(Duration::from_secs(20), set.batch_execute("SELECT 1"));
    assert_eq!(code(&waiting.await.expect("it is given up").unwrap_err()), "08006");
    plain.batch_execute("SELECT 1").await.expect("the place is free again");
    drop((set, plain));
    router.drain().await;
}
