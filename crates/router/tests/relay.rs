//! Unmodified clients through the router to one server, in both pool modes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use futures_util::{SinkExt, StreamExt, TryStreamExt, future, pin_mut};
use segue_router::{ClientAuth, PoolMode, Secret, Users};
use segue_testkit::{Cluster, Options};
use std::time::Duration;
use support::{Running, config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{AsyncMessage, NoTls};

const MODES: [PoolMode; 2] = [PoolMode::Session, PoolMode::Transaction];

#[tokio::test(flavor = "multi_thread")]
async fn data_is_copied_both_ways() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in MODES {
        let router = Running::before(&cluster, mode).await;
        let client = router.connect().await;
        client.batch_execute("DROP TABLE IF EXISTS t; CREATE TABLE t (i int, x text)").await.unwrap();
        // Long enough to fill every buffer on the way.
        let sink = client.copy_in("COPY t FROM STDIN").await.unwrap();
        pin_mut!(sink);
        let line = format!("7\t{}\n", "x".repeat(1000)).repeat(100);
        for _ in 0..50 {
            sink.send(bytes::Bytes::from(line.clone())).await.unwrap();
        }
        assert_eq!(sink.finish().await.unwrap(), 5_000);
        let copied = client.copy_out("COPY t TO STDOUT").await.unwrap();
        let bytes = copied.try_fold(0, |sum, chunk| future::ok(sum + chunk.len())).await.unwrap();
        assert_eq!(bytes, 5_000 * 1_003);
        let sink = client.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN").await.unwrap();
        pin_mut!(sink);
        sink.send(bytes::Bytes::from_static(b"not a number\tx\n")).await.unwrap();
        assert!(sink.finish().await.is_err());
        let count: i64 = client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
        assert_eq!(count, 5_000);
        let out = router.psql(&["-c", "\\copy t to stdout", "-c", "\\d t"]).await;
        assert!(out.len() > 5_000 * 1_003 && out.contains("|integer|"));
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_passes_both_ways() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in MODES {
        let router = Running::before(&cluster, mode).await;
        let client = router.connect().await;
        let value = "v".repeat(3_000_000);
        for _ in 0..3 {
            let row = client.query_one("SELECT $1::text, length($1)", &[&value]).await.unwrap();
            assert_eq!((row.get::<_, String>(0).len(), row.get::<_, i32>(1)), (3_000_000, 3_000_000));
        }
        let text = format!("SELECT '{value}'");
        assert_eq!(client.simple_query(&text).await.unwrap().len(), 3);
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_work_although_servers_are_shared() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.limits.connections_max = 2;
    let router = Running::start(config, cluster.password()).await;
    let clients = future::join_all((0..6).map(|_| router.connect())).await;
    let work = clients.iter().enumerate().map(|(number, client)| async move {
        let number = i32::try_from(number).unwrap();
        let same = client.prepare("SELECT $1::int + 1").await.unwrap();
        let own = client.prepare(&format!("SELECT $1::int + {number}")).await.unwrap();
        for i in 0..50 {
            assert_eq!(client.query_one(&same, &[&i]).await.unwrap().get::<_, i32>(0), i + 1);
            assert_eq!(client.query_one(&own, &[&i]).await.unwrap().get::<_, i32>(0), i + number);
            // Unnamed, and pipelined with another.
            let (a, b) = future::join(client.query_one("SELECT 1", &[]), client.query_one(&own, &[&i])).await;
            assert_eq!((a.unwrap().get::<_, i32>(0), b.unwrap().get::<_, i32>(0)), (1, i + number));
        }
    });
    future::join_all(work).await;
    assert!(client_error(&clients[0], "SELECT nonsense").await.contains("42703"));
    assert!(client_error(&clients[0], "SELECT nonsense").await.contains("42703"), "twice the same error");
    assert!(router.counts().connects <= 2, "{:?}", router.counts());
    router.drain().await;
}

async fn client_error(client: &tokio_postgres::Client, sql: &str) -> String {
    let error = client.query(sql, &[]).await.expect_err("it fails");
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_a_clients_own_although_servers_are_shared() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.limits.connections_max = 1;
    let router = Running::start(config, cluster.password()).await;
    let a = router.try_connect(&format!("{} application_name=a", router.url())).await.unwrap();
    let b = router
        .try_connect(&format!("{} application_name=b options='-c work_mem=1234kB'", router.url()))
        .await
        .unwrap();
    a.batch_execute("SET statement_timeout = '77s'").await.unwrap();
    // Rolled back, and so never set.
    a.batch_execute("BEGIN; SET work_mem = '9MB'; ROLLBACK").await.unwrap();
    a.batch_execute("BEGIN; SET LOCAL work_mem = '8MB'; COMMIT").await.unwrap();
    for _ in 0..3 {
        for (client, expected) in [(&a, ["a", "77s", "4MB"]), (&b, ["b", "0", "1234kB"])] {
            for (name, value) in ["application_name", "statement_timeout", "work_mem"].iter().zip(expected) {
                let row = client.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
                assert_eq!(row.get::<_, String>(0), value, "{name}");
            }
        }
    }
    b.batch_execute("DISCARD ALL").await.unwrap();
    assert_eq!(b.query_one("SHOW work_mem", &[]).await.unwrap().get::<_, String>(0), "1234kB");
    assert_eq!((router.counts().pins, router.counts().connects), (0, 1));
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shared_pins() {
    let cluster = Cluster::start(Options::default()).await;
    let router = Running::before(&cluster, PoolMode::Transaction).await;
    let (a, b) = (router.connect().await, router.connect().await);
    a.batch_execute("CREATE TEMP TABLE mine AS SELECT 1 AS i").await.unwrap();
    for _ in 0..5 {
        b.batch_execute("SELECT 1").await.unwrap();
        assert_eq!(a.query_one("SELECT i FROM mine", &[]).await.unwrap().get::<_, i32>(0), 1);
    }
    assert_eq!(router.counts().pins, 1);
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_arrive_at_any_time() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in MODES {
        let router = Running::before(&cluster, mode).await;
        let (client, mut connection) = tokio_postgres::connect(&router.url(), NoTls).await.unwrap();
        let (sender, mut receiver) = futures_channel();
        tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(notification) = message {
                    let _ = sender.send(notification.payload().to_owned());
                }
            }
        });
        client.batch_execute("LISTEN news").await.unwrap();
        router.psql(&["-c", "NOTIFY news, 'hello'"]).await;
        let heard = tokio::time::timeout(Duration::from_secs(10), receiver.recv()).await.expect("in time");
        assert_eq!(heard.as_deref(), Some("hello"));
        drop(client);
        router.drain().await;
    }
}

fn futures_channel()
-> (tokio::sync::mpsc::UnboundedSender<String>, tokio::sync::mpsc::UnboundedReceiver<String>) {
    tokio::sync::mpsc::unbounded_channel()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_cancelled_by_the_client_that_runs_it() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in MODES {
        let router = Running::before(&cluster, mode).await;
        let (client, other) = (router.connect().await, router.connect().await);
        let token = client.cancel_token();
        let sleeping = tokio::spawn(async move {
            let error = client.batch_execute("SELECT pg_sleep(60)").await.expect_err("it is cancelled");
            (client, error.code().map(|code| code.code().to_owned()))
        });
        let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)' \
                       AND pid <> pg_backend_pid()";
        while other.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        token.cancel_query(NoTls).await.unwrap();
        let (client, code) =
            tokio::time::timeout(Duration::from_secs(20), sleeping).await.expect("in time").unwrap();
        assert_eq!(code.as_deref(), Some("57014"));
        client.batch_execute("SELECT 1").await.unwrap();
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_does_not_reach_the_server_and_nobody_is_told_from_somebody() {
    let cluster = Cluster::start(Options::default()).await;
    let router = Running::before(&cluster, PoolMode::Transaction).await;
    let mut told = Vec::new();
    for user in ["postgres", "nobody"] {
        let url = format!(
            "host=127.0.0.1 port={} user={user} password=wrong dbname=postgres",
            router.handle.address().port()
        );
        let error = router.try_connect(&url).await.expect_err("refused");
        let error = error.as_db_error().expect("an answer").clone();
        told.push((error.code().code().to_owned(), error.message().replace(user, "?")));
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0].0, "28P01");
    // It is counted once the client was told.
    while router.counts().refused_logins < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!((router.counts().connects, router.counts().refused_logins), (0, 2));
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verifier_is_enough_where_the_server_holds_the_same() {
    let cluster = Cluster::start(Options::default()).await;
    let verifier =
        cluster.scalar("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'").await.unwrap();
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.users = Users::parse(&format!("\"postgres\" \"{verifier}\"")).unwrap();
    let router = Running::start(config, cluster.password()).await;
    let client = router.connect().await;
    client.batch_execute("SELECT 1").await.unwrap();
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_disturb_nobody() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.auth = ClientAuth::Trust;
    config.users.insert("postgres", Secret::Password(cluster.password().to_owned()));
    config.limits.login_max = Duration::from_millis(500);
    let router = Running::start(config, cluster.password()).await;
    let client = router.connect().await;
    let startup = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";
    let after_login: [&[u8]; 6] = [
        b"Q\xff\xff\xff\xff",
        b"Z\0\0\0\x05I",
        b"p\0\0\0\x05x",
        b"Q\0\0\0\x05x",
        b"B\0\0\0\x06xx",
        b"D\0\0\0\x04",
    ];
    let firsts = [
        &b"\0\0\0\0"[..],
        b"\xff\xff\xff\xffxxxx",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\x08\x04\xd2\x16\x2f",
        b"\0\0",
    ];
    let all = firsts
        .iter()
        .map(|first| first.to_vec())
        .chain(after_login.iter().map(|then| [startup, *then].concat()));
    for bytes in all {
        let mut socket = tokio::net::TcpStream::connect(router.handle.address()).await.unwrap();
        socket.write_all(&bytes).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the router closes: {bytes:?}");
        client.query_one("SELECT 1", &[]).await.unwrap();
    }
    router.drain().await;
}
