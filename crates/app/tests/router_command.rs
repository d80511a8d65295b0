//! `segue router` as a command: how it starts, what it refuses, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_testkit::cluster::client_program;
use segue_testkit::kill::Process;
use segue_testkit::{Cluster, Options};
use std::process::Command;
use std::time::Duration;
use support::routed::{Routed, port_of};
use support::slow::until;
use support::{PATIENCE, Pair};
use tokio_postgres::NoTls;

/// Writes the spec with this section `router`.
fn with_router(pair: &Pair, router: &str) {
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.t"], &format!("router: {router}\n"));
}

fn users(pair: &Pair, password: &str) {
    std::fs::write(pair.dir.path().join("users"), format!("\"app\" \"{password}\"\n")).unwrap();
}

/// Makes a certificate for 127.0.0.1 that is good for so many days.
fn certify(pair: &Pair, name: &str) {
    let file = |suffix: &str| pair.dir.path().join(format!("router.{suffix}"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            &format!("/CN={name}"),
        ])
        .arg("-keyout")
        .arg(file("key"))
        .arg("-out")
        .arg(file("pem"))
        .output()
        .expect("run openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// What psql says through the router.
fn psql(port: u16, password: &str, tls: &str, sql: &str) -> (bool, String) {
    let output = Command::new(client_program("psql"))
        .args(["-X", "-A", "-t", "-c", sql])
        .args([format!(
            "host=127.0.0.1 port={port} user=app password={password} dbname=postgres sslmode={tls}"
        )])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned()).concat();
    (output.status.success(), text.trim().to_owned())
}

/// Who is on the other end of the certificate.
fn served_certificate(port: u16) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-starttls", "postgres", "-connect", &format!("127.0.0.1:{port}")])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find(|line| line.starts_with("subject="))
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_starts_before_its_migration_takes_new_users_and_certificates_and_lets_transactions_finish()
{
    let pair = Pair::start(&["public.t"]).await;
    pair.source.execute("CREATE ROLE app LOGIN PASSWORD 'one'").await;
    users(&pair, "one");
    certify(&pair, "first");
    with_router(
        &pair,
        "{ listen: \"127.0.0.1:0\", users: users, tls: { certificate: router.pem, key: router.key, required: false } }",
    );
    let router = Process::start(pair.command(&["router"]));
    let port = port_of(&router).await;
    assert!(
        router.lines().iter().any(|line| line
            .contains("the source owns the writes (epoch 1); pool session, auth scram, TLS optional")),
        "{:?}",
        router.lines()
    );
    let own_port = "SELECT setting FROM pg_settings WHERE name = 'port'";
    for tls in ["disable", "require"] {
        assert_eq!(psql(port, "one", tls, own_port), (true, pair.source.port().to_string()));
    }
    assert!(served_certificate(port).contains("first"));

    // New users and another certificate, and nobody is dropped.
    let url = format!("host=127.0.0.1 port={port} user=app password=one dbname=postgres");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    pair.source.execute("ALTER ROLE app PASSWORD 'two'").await;
    users(&pair, "two");
    certify(&pair, "second");
    router.hang_up();
    router.wait_for("has read users and certificates again", PATIENCE).await.unwrap();
    assert!(!psql(port, "one", "require", "SELECT 1").0, "the old password is none any more");
    assert_eq!(psql(port, "two", "require", "SELECT 1"), (true, "1".into()));
    assert!(served_certificate(port).contains("second"));
    client.batch_execute("SELECT 1").await.unwrap();
    std::fs::write(pair.dir.path().join("users"), "app two").unwrap();
    router.hang_up();
    let said = router.wait_for("keeps the users and certificates it had", PATIENCE).await.unwrap();
    assert!(said.contains("line 1") && !said.contains("two"), "{said}");

    // Its end: who is in a transaction finishes it, nobody else gets in.
    client.batch_execute("BEGIN; SELECT 1").await.unwrap();
    router.terminate();
    router.wait_for("transactions may finish", PATIENCE).await.unwrap();
    client.batch_execute("SELECT 2; COMMIT").await.unwrap();
    assert_eq!(router.wait(PATIENCE).await.unwrap().code(), Some(0), "{:?}", router.lines());
    assert!(!psql(port, "two", "disable", "SELECT 1").0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_serve_is_refused_plainly() {
    let pair = Pair::start(&["public.t"]).await;
    let refused = |pair: &Pair, arguments: &[&str], code: i32| {
        let output = pair.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    };
    let said = refused(&pair, &["router"], 2);
    assert!(said.contains("SEGUE-ROUTER") && said.contains("listen: 127.0.0.1:6432"), "{said}");
    with_router(&pair, "{ listen: \"127.0.0.1:0\", users: nowhere }");
    assert!(refused(&pair, &["router"], 2).contains("SEGUE-ROUTER-USERS"));
    users(&pair, "x");
    with_router(&pair, "{ listen: \"127.0.0.1:0\", users: users, tls: { certificate: a.pem, key: b.pem } }");
    assert!(refused(&pair, &["router"], 2).contains("SEGUE-ROUTER-TLS"));
    with_router(&pair, "{ listen: \"127.0.0.1:0\", auth: trust }");
    let said = refused(&pair, &["router", "--listen", "0.0.0.0:0"], 2);
    assert!(said.contains("let everybody in"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(refused(&pair, &["router", "--listen", &address], 1).contains("SEGUE-LISTEN"));

    // Nobody says who owns the writes: better no router than one at the wrong side.
    let third = Cluster::start(Options::default()).await;
    let control = third.url("postgres");
    third.stop_immediate().await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    let more = format!(
        "control: {{ postgres: \"{control}\" }}\nrouter: {{ listen: \"127.0.0.1:0\", auth: trust }}\n"
    );
    pair.write_spec(&source, &target, &["public.t"], &more);
    let said = refused(&pair, &["router"], 1);
    assert!(said.contains("SEGUE-NO-ROUTE") && said.contains("the control database"), "{said}");
    assert!(!said.contains(third.password()), "{said}");
}

/// When the migration ends, so do its routers: nobody may be left behind who comes by way of one.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_is_not_completed_while_applications_come_by_way_of_a_router() {
    let (routed, run) = Routed::start("transaction", "", None).await;
    let port = port_of(&run.process).await;
    routed.moves_away_from(0, &run.process).await;
    let (client, connection) = tokio_postgres::connect(&routed.url(port), NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("INSERT INTO app.entry (client, account) VALUES (0, 0)").await.unwrap();
    assert_eq!(routed.entries(1).await, 1);
    // A control database that was restored tells of an earlier owner; a router that starts asks the owners, too.
    let earlier = "UPDATE segue.route SET body = '{\"owner\": \"source\", \"epoch\": 1}'";
    routed.control().execute(earlier).await;
    let router = routed.router();
    let said = router.wait_for("the router listens on", PATIENCE).await.unwrap();
    assert!(said.contains("the target owns the writes"), "{said}");
    router.terminate();
    router.wait(PATIENCE).await.unwrap();
    let address = format!("on 127.0.0.1:{port}");
    let complete = ["complete", "--window", "0s"];
    let refused = async || {
        let output = routed.pair.command(&complete).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code() == Some(3) && said.contains("routers: 1 client(s)")).then_some(said)
    };
    until("completing is refused for that client", async || {
        refused().await.is_some_and(|said| said.contains(&address))
    })
    .await;
    drop(client);
    until("the migration is completed", async || {
        routed.pair.command(&complete).output().unwrap().status.success()
    })
    .await;
    run.process.wait(PATIENCE).await.unwrap();
}

/// Sessions that are served meanwhile open their connections on the other side before anybody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_is_announced_to_routers_before_it_holds_and_a_rehearsal_takes_it_back() {
    let (routed, run) = Routed::start("session", "", None).await;
    let port = port_of(&run.process).await;
    let (client, connection) = tokio_postgres::connect(&routed.url(port), NoTls).await.unwrap();
    tokio::spawn(connection);
    let serves = tokio::spawn(async move {
        loop {
            client.simple_query("SELECT 1").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let there = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'client'";
    // By sessions that are kept: the announcement lasts for a moment only.
    let (target, control) =
        tokio::join!(routed.pair.target.connect("postgres"), routed.control().connect("postgres"));
    let on_target = async || target.query_one(there, &[]).await.unwrap().get::<_, i64>(0);
    let body = async || -> String {
        control.query_one("SELECT body::text FROM segue.route", &[]).await.unwrap().get(0)
    };
    assert_eq!(on_target().await, 0);
    let rehearsing = Process::start(routed.pair.command(&["switch", "writes", "--dry-run"]));
    let mut told = vec![body().await];
    until("the session has a server on the target", async || {
        let is_there = on_target().await == 1;
        let now = body().await;
        if told.last() != Some(&now) {
            told.push(now);
        }
        assert!(is_there || rehearsing.status().is_none(), "{told:?}\n{:?}", rehearsing.lines());
        is_there
    })
    .await;
    assert!(told[1].contains("leaves_ms_max") && !told[1].contains("hold"), "{told:?}");
    assert_eq!(rehearsing.wait(PATIENCE).await.unwrap().code(), Some(0), "{:?}", rehearsing.lines());
    until("it has none there any more", async || on_target().await == 0).await;
    assert!(!body().await.contains("leaves"));
    serves.abort();
}
