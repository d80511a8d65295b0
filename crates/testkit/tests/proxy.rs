//! Each fault of the proxy is what the two ends of a real network would see.

use segue_testkit::proxy::Proxy;
use segue_testkit::{Cluster, Options, cluster};
use std::time::{Duration, Instant};

#[tokio::test]
async fn faults_of_the_network_reach_the_client_of_a_real_server() {
    let server = Cluster::start(Options::default()).await;
    let proxy = Proxy::start(server.port()).await;
    let url = server.url_through(proxy.port(), "postgres");
    let client = cluster::connect(&url).await.expect("connect through the proxy");

    // A delay counts once per direction.
    proxy.delay(Duration::from_millis(100));
    let began = Instant::now();
    client.simple_query("SELECT 1").await.expect("a slow answer");
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    proxy.delay(Duration::ZERO);

    // 100 kB at 200 kB/s.
    proxy.throttle(200_000);
    let began = Instant::now();
    client.simple_query("SELECT repeat('x', 100000)").await.expect("a trickling answer");
    let took = began.elapsed();
    assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&took), "{took:?}");
    proxy.throttle(0);

    // A frozen network says nothing, neither to the present nor to a new connection, and loses nothing when it is back.
    proxy.freeze();
    let answer = client.simple_query("SELECT 1");
    tokio::pin!(answer);
    let brief = Duration::from_millis(300);
    assert!(tokio::time::timeout(brief, &mut answer).await.is_err(), "an answer through a frozen network");
    assert!(tokio::time::timeout(brief, cluster::connect(&url)).await.is_err());
    proxy.thaw();
    answer.await.expect("the answer after the thaw");

    // Refused: new connections only.
    proxy.refuse(true);
    assert!(cluster::connect(&url).await.is_err());
    client.simple_query("SELECT 1").await.expect("a present connection is left alone");
    proxy.refuse(false);

    // Cut: present connections only, also one in the middle of a statement, and the server notices.
    let sleeping = client.simple_query("SELECT pg_sleep(60)");
    tokio::pin!(sleeping);
    assert!(tokio::time::timeout(brief, &mut sleeping).await.is_err());
    proxy.cut();
    assert!(sleeping.await.is_err());
    assert!(client.simple_query("SELECT 1").await.is_err());
    let client = cluster::connect(&url).await.expect("a new connection after the cut");

    // Half open: the present connection is silent even when the server ends it, a new one is served.
    proxy.half_open();
    let answer = client.simple_query("SELECT 1");
    tokio::pin!(answer);
    server.stop_immediate().await;
    server.start_again().await;
    cluster::connect(&url)
        .await
        .expect("a new connection")
        .simple_query("SELECT 1")
        .await
        .expect("an answer");
    assert!(
        tokio::time::timeout(brief, &mut answer).await.is_err(),
        "an answer through a half-open connection"
    );
    proxy.cut();
    assert!(answer.await.is_err());
}

#[tokio::test]
async fn large_answers_pass_unchanged_in_both_directions() {
    let server = Cluster::start(Options::default()).await;
    let proxy = Proxy::start(server.port()).await;
    let client = cluster::connect(&server.url_through(proxy.port(), "postgres")).await.expect("connect");
    let sent: String = (0..2_000_000u32).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let row = client.query_one("SELECT $1::text || 'end'", &[&sent]).await.expect("a large round trip");
    assert_eq!(row.get::<_, String>(0), sent + "end");
}

#[tokio::test]
async fn a_dropped_proxy_closes_its_connections() {
    let server = Cluster::start(Options::default()).await;
    let proxy = Proxy::start(server.port()).await;
    let client = cluster::connect(&server.url_through(proxy.port(), "postgres")).await.expect("connect");
    drop(proxy);
    assert!(client.simple_query("SELECT 1").await.is_err());
}
