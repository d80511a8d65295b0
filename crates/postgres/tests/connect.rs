//! Sessions with a real server, encrypted by an authority made for the test.

#![allow(clippy::expect_used, reason = "a test says with it what it relies on")]

use segue_postgres::connect::Endpoint;
use segue_testkit::cluster::{Cluster, Options};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use tokio_postgres::Client;

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .expect("run openssl");
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority `ca.crt`, a certificate of it for `localhost`, and an authority `other.crt` that signed nothing.
fn certificates(directory: &Path) {
    for name in ["ca", "other"] {
        openssl(
            directory,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"
            ),
        );
    }
    openssl(
        directory,
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=server -keyout server.key -out server.csr",
    );
    std::fs::write(directory.join("ext"), "subjectAltName=DNS:localhost\n").expect("write extensions");
    openssl(
        directory,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
    );
}

async fn encrypted(cluster: &Cluster) {
    let data = cluster.data_dir();
    certificates(&data);
    let owner = std::fs::metadata(&data).expect("data directory");
    for file in ["server.crt", "server.key"] {
        let path = data.join(file);
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("chown");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    }
    cluster.set("ssl", "on").await;
}

async fn is_encrypted(endpoint: &Endpoint) -> bool {
    let client = endpoint.connect("test").await.expect("connect");
    let row = client
        .query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[])
        .await
        .expect("pg_stat_ssl");
    row.get(0)
}

#[tokio::test]
async fn sslmode_verifies_what_it_says() {
    let cluster = Cluster::start(Options::default()).await;
    let to = |host: &str, query: &str| {
        let url = cluster.url("postgres").replace("127.0.0.1", host);
        Endpoint::parse(&format!("{url}?{query}")).expect("a URL")
    };
    let refused = async |host: &str, query: &str| {
        let fault = to(host, query).connect("test").await.expect_err(query);
        assert!(!fault.to_string().contains(cluster.password()), "{fault}");
        fault.to_string()
    };
    assert!(!is_encrypted(&to("127.0.0.1", "sslmode=prefer")).await);
    assert!(refused("127.0.0.1", "sslmode=require").await.contains("does not offer TLS"));

    encrypted(&cluster).await;
    let ca = cluster.data_dir().join("ca.crt").display().to_string();
    let other = cluster.data_dir().join("other.crt").display().to_string();
    let own = cluster.data_dir().join("server.crt").display().to_string();
    assert!(!is_encrypted(&to("127.0.0.1", "sslmode=disable")).await);
    assert!(!is_encrypted(&to("127.0.0.1", "sslmode=allow")).await);
    for mode in ["prefer", "require"] {
        assert!(is_encrypted(&to("127.0.0.1", &format!("sslmode={mode}"))).await, "{mode}");
    }
    for mode in ["require", "verify-ca"] {
        assert!(is_encrypted(&to("127.0.0.1", &format!("sslmode={mode}&sslrootcert={ca}"))).await, "{mode}");
        let fault = refused("127.0.0.1", &format!("sslmode={mode}&sslrootcert={other}")).await;
        assert!(fault.contains("SEGUE-TLS") && fault.contains("authority"), "{mode}: {fault}");
    }
    assert!(is_encrypted(&to("localhost", &format!("sslmode=verify-full&sslrootcert={ca}"))).await);
    let fault = refused("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}")).await;
    assert!(fault.contains("does not name this host"), "{fault}");
    let fault = refused("localhost", &format!("sslmode=verify-full&sslrootcert={other}")).await;
    assert!(fault.contains("not signed by the authority"), "{fault}");
    // The certificate itself may be trusted, also where its authority is unknown.
    assert!(is_encrypted(&to("localhost", &format!("sslmode=verify-full&sslrootcert={own}"))).await);
    assert!(
        refused("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={own}"))
            .await
            .contains("name this host")
    );
    assert!(refused("localhost", "sslmode=verify-full&sslrootcert=/none.pem").await.contains("/none.pem"));
}

#[tokio::test]
async fn a_session_is_pinned_and_named() {
    let cluster = Cluster::start(Options::default()).await;
    cluster
        .execute(
            "ALTER ROLE postgres SET synchronous_commit = off; ALTER ROLE postgres SET DateStyle = 'German'",
        )
        .await;
    let endpoint = Endpoint::parse(&cluster.url("postgres")).expect("a URL");
    assert!(!format!("{endpoint:?} {endpoint}").contains(cluster.password()));
    let client = endpoint.connect("copy 1").await.expect("connect");
    let shown = async |name: &str| {
        client.query_one(&format!("SHOW {name}"), &[]).await.expect("SHOW").get::<_, String>(0)
    };
    assert_eq!(shown("application_name").await, "segue copy 1");
    assert_eq!(shown("synchronous_commit").await, "on");
    assert_eq!(shown("DateStyle").await, "ISO, YMD");
    assert_eq!(shown("search_path").await, "pg_catalog");
}

#[tokio::test]
async fn a_session_that_is_given_back_is_the_next_one() {
    let cluster = Cluster::start(Options::default()).await;
    let endpoint = Endpoint::parse(&cluster.url("postgres")).expect("a URL");
    let marked = endpoint.marked("m");
    let who = async |client: &Client| {
        let sql = "SELECT pid, application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        let row = client.query_one(sql, &[]).await.expect("it answers");
        (row.get::<_, i32>(0), row.get::<_, String>(1))
    };
    let first = endpoint.connect("first").await.expect("connect");
    let (number, _) = who(&first).await;
    endpoint.keep(first);
    let other = marked.connect("marked").await.expect("connect");
    assert_ne!(who(&other).await.0, number, "that one holds no lock");
    let (marked_number, _) = who(&other).await;
    marked.keep(other);
    let second = endpoint.clone().connect("it's second").await.expect("connect");
    assert_eq!(who(&second).await, (number, "segue it's second".to_owned()));
    let again = endpoint.marked("m").connect("marked").await.expect("connect");
    assert_eq!(who(&again).await.0, marked_number);

    endpoint.keep(second);
    cluster.execute(&format!("SELECT pg_terminate_backend({number}, 5000)")).await;
    let third = endpoint.connect("third").await.expect("one that ended is nobody's");
    assert_ne!(who(&third).await.0, number);
    let (number, _) = who(&third).await;
    endpoint.keep(third);
    endpoint.forget();
    let fourth = endpoint.connect("fourth").await.expect("connect");
    assert_ne!(who(&fourth).await.0, number, "the address may lead elsewhere by now");
    endpoint.keep(fourth);
    let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'segue fourth'";
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while cluster.scalar(left).await.as_deref() != Some("0") {
        assert!(std::time::Instant::now() < until, "nobody needs it");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_refused_login_says_why_and_what_to_do() {
    let cluster = Cluster::start(Options::default()).await;
    let fault = async |url: String| {
        let endpoint = Endpoint::parse(&url).expect("a URL");
        endpoint.connect("test").await.expect_err("refused").to_string()
    };
    let url = cluster.url("postgres");
    let wrong = fault(url.replace(cluster.password(), "hush")).await;
    assert!(wrong.contains("SEGUE-LOGIN") && !wrong.contains("hush"), "{wrong}");
    let unknown = fault(cluster.url("nowhere")).await;
    assert!(unknown.contains("SEGUE-NO-DATABASE") && unknown.contains("nowhere"), "{unknown}");
    cluster.stop_fast().await;
    let down = fault(url).await;
    assert!(down.contains("SEGUE-CONNECTION") && down.contains("refused"), "{down}");
}
