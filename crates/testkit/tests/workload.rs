//! The workload's oracle accepts a server that lost nothing, through crashes and cut connections, and finds each loss.

#![allow(clippy::expect_used)] // In a helper of tests a panic is a failed test.

use segue_testkit::proxy::Proxy;
use segue_testkit::workload::{self, Oracle, Workload, schema};
use segue_testkit::{Cluster, Options};
use std::time::Duration;
use tokio_postgres::Client;

const SOON: Duration = Duration::from_secs(60);

async fn shop(rows: u64) -> Cluster {
    let cluster = Cluster::start(Options::default()).await;
    let client = cluster.connect("postgres").await;
    schema::create(&client).await.expect("create the schema");
    schema::seed_data(&client, rows).await.expect("seed");
    cluster
}

fn options() -> workload::Options {
    workload::Options { large_rows: 300, request_timeout: Duration::from_secs(10), ..Default::default() }
}

#[tokio::test]
async fn everything_acknowledged_is_there_through_crashes_and_cuts() {
    let cluster = shop(20_000).await;
    let proxy = Proxy::start(cluster.port()).await;
    let writers = Workload::start(&cluster.url_through(proxy.port(), "postgres"), options()).await;
    for round in 0..6 {
        assert!(writers.progress(150, SOON).await, "the clients stand still");
        match round % 3 {
            0 => proxy.cut(),
            1 => {
                cluster.kill9().await;
                cluster.start_again().await;
            }
            _ => {
                cluster.stop_immediate().await;
                cluster.start_again().await;
            }
        }
    }
    // Answers to COMMIT get lost on the way back: the only outcome a client cannot know.
    for _ in 0..5 {
        assert!(writers.progress(20, SOON).await, "the clients stand still");
        proxy.delay(Duration::from_millis(20));
        tokio::time::sleep(Duration::from_millis(150)).await;
        proxy.cut();
        proxy.delay(Duration::ZERO);
    }
    let report = writers.stop().await;
    assert!(report.acked >= 1_000 && report.rolled_back > 0, "{report:?}");
    assert!(!report.errors.is_empty(), "nothing was felt of the crashes");
    assert_eq!(report.anomalies, Vec::<String>::new());
    let lost = report.oracle.check(&cluster.connect("postgres").await).await;
    assert_eq!(lost, Ok(()), "seed {}", report.seed);
}

#[tokio::test]
async fn a_large_shop_has_the_rows_that_were_asked_for() {
    let cluster = shop(200_000).await;
    let rows = "SELECT sum(reltuples)::bigint FROM pg_class
                WHERE relkind = 'r' AND relnamespace = 'shop'::regnamespace AND reltuples > 0";
    let rows: u64 = cluster.scalar(rows).await.and_then(|rows| rows.parse().ok()).unwrap_or_default();
    assert!((180_000..220_000).contains(&rows), "{rows}");
}

async fn places_lost(oracle: &Oracle, client: &Client) -> Vec<String> {
    let mut places: Vec<String> =
        oracle.check(client).await.err().unwrap_or_default().into_iter().map(|lost| lost.place).collect();
    places.dedup();
    places
}

#[tokio::test]
async fn each_kind_of_loss_is_found() {
    let cluster = shop(2_000).await;
    let url = cluster.url("postgres");
    let writers = Workload::start(&url, workload::Options { truncate: false, ..options() }).await;
    assert!(writers.progress(2_000, SOON).await, "the clients stand still");
    let oracle = writers.stop().await.oracle;
    let client = cluster.connect("postgres").await;
    assert_eq!(oracle.check(&client).await, Ok(()));

    // A fresh copy of the database for each loss, as a bad migration would leave it.
    let newest =
        |table: &str| format!("(SELECT n FROM {table} WHERE version > 0 ORDER BY version DESC LIMIT 1)");
    let gone = |table: &str| format!("DELETE FROM {table} WHERE n = {}", newest(table));
    let stale = |table: &str| format!("UPDATE {table} SET version = version - 1 WHERE n = {}", newest(table));
    let losses: Vec<(String, &str)> = vec![
        (gone("shop.session"), "shop.session"),
        (gone("shop.\"Größen Tabelle\""), "shop.\"Größen Tabelle\""),
        (stale("shop.setting"), "shop.setting"),
        (stale("shop.keyless"), "shop.keyless"),
        ("DELETE FROM shop.membership WHERE member = (SELECT min(member) FROM shop.membership WHERE version = 0)".into(), "shop.membership"),
        ("INSERT INTO shop.keyless SELECT * FROM shop.keyless WHERE version > 0 LIMIT 1".into(), "shop.keyless"),
        ("UPDATE shop.rate SET amount = amount * 1.0 WHERE n = (SELECT max(n) FROM shop.rate WHERE version > 0)".into(), "shop.rate"),
        ("INSERT INTO shop.scratch VALUES (7000000, 7000000, 1, '')".into(), "shop.scratch"),
        ("UPDATE shop.document SET body = '' WHERE n = (SELECT max(n) FROM shop.document)".into(), "documents have the body of their version"),
        ("UPDATE shop.account SET balance = balance + 1 WHERE id = 3".into(), "balances follow from the ledger"),
        ("DELETE FROM shop.ledger WHERE (client, seq) = (SELECT client, max(seq) FROM shop.ledger WHERE amount IS NULL GROUP BY client LIMIT 1)".into(), "shop.ledger"),
        ("INSERT INTO shop.ledger (client, seq) VALUES (0, 1000000000)".into(), "shop.ledger"),
    ];
    drop(client);
    for (loss, place) in losses {
        cluster.execute("CREATE DATABASE damaged TEMPLATE postgres").await;
        let damaged = cluster.connect("damaged").await;
        assert!(damaged.execute(&loss, &[]).await.expect("damage") > 0, "{loss}");
        let places = places_lost(&oracle, &damaged).await;
        assert!(places.iter().any(|found| found == place), "{loss}: found {places:?}");
        drop(damaged);
        cluster.execute("DROP DATABASE damaged WITH (FORCE)").await;
    }
}

#[tokio::test]
async fn with_two_servers_it_writes_to_the_one_that_takes_writes() {
    let cluster = shop(2_000).await;
    cluster.execute("CREATE DATABASE closed").await;
    let closed = cluster.connect("closed").await;
    schema::create(&closed).await.expect("create the schema");
    schema::seed_data(&closed, 2_000).await.expect("seed");
    cluster.execute("ALTER DATABASE closed SET default_transaction_read_only = on").await;
    let urls = [cluster.url("closed"), cluster.url("postgres")];
    let writers = Workload::start_between(&[&urls[0], &urls[1]], options()).await;
    assert!(writers.progress(100, SOON).await, "the clients stand still");
    let report = writers.stop().await;
    assert!(report.errors.keys().all(|error| error.starts_with("25006")), "{:?}", report.errors);
    assert!(!report.errors.is_empty(), "nobody tried the first one");
    assert_eq!(report.oracle.check(&cluster.connect("postgres").await).await, Ok(()), "seed {}", report.seed);
}
