//! Logging in to a walsender session every way that a server may ask for, encrypted and not.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use segue_postgres::connect::Endpoint;
use segue_postgres::replication::Connection;
use segue_testkit::{Cluster, Options};
use std::path::Path;
use std::process::Command;

/// A self-signed certificate for `localhost`, as the server wants it.
async fn encrypted(cluster: &Cluster) {
    let output = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
                .split(' '),
        )
        .args("-addext subjectAltName=DNS:localhost -keyout server.key -out server.crt".split(' '))
        .current_dir(cluster.data_dir())
        .output()
        .expect("run openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let owner = std::fs::metadata(cluster.data_dir()).unwrap();
    for name in ["server.key", "server.crt"] {
        let path = cluster.data_dir().join(name);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (uid, gid) =
            (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
    }
    cluster.set("ssl", "on").await;
}

async fn identify(url: &str) -> Result<String, String> {
    let endpoint = Endpoint::parse(url).map_err(|fault| fault.to_string())?;
    let mut connection = Connection::open(&endpoint).await.map_err(|fault| fault.to_string())?;
    let system = connection.identify().await.map_err(|fault| fault.to_string())?;
    let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let ssl = connection.query(ssl).await.map_err(|fault| fault.to_string())?;
    assert!(system.timeline == 1 && !system.id.is_empty());
    Ok(ssl[0][0].clone().unwrap_or_default())
}

fn with_method(cluster: &Cluster, method: &str) {
    let hba = format!(
        "local all all trust\nhost all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}\n"
    );
    write(&cluster.data_dir().join("pg_hba.conf"), &hba);
}

/// In place, so that the file stays the server's.
fn write(path: &Path, text: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_walsender_session_logs_in_by_every_method_and_says_what_is_wrong() {
    let cluster = Cluster::start(Options::default()).await;
    let admin = cluster.connect("postgres").await;
    let url = |user: &str, password: &str| {
        format!("postgres://{user}:{password}@127.0.0.1:{}/postgres?sslmode=disable", cluster.port())
    };
    assert_eq!(identify(&cluster.url("postgres")).await.as_deref(), Ok("f"), "SCRAM");
    assert!(identify(&url("postgres", "wrong")).await.unwrap_err().contains("SEGUE-LOGIN"));
    let socket = format!(
        "host={} port={} user=postgres dbname=postgres",
        cluster.socket_dir().display(),
        cluster.port()
    );
    assert_eq!(identify(&socket).await.as_deref(), Ok("f"), "socket");
    assert!(identify(&format!("{socket}x")).await.unwrap_err().contains("SEGUE-NO-DATABASE"));

    admin
        .batch_execute("SET password_encryption = md5; CREATE ROLE old LOGIN REPLICATION PASSWORD 'ha\"sh'")
        .await
        .unwrap();
    for method in ["md5", "password"] {
        with_method(&cluster, method);
        admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(identify(&url("old", "ha%22sh")).await.as_deref(), Ok("f"), "{method}");
    }
    with_method(&cluster, "reject");
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(identify(&url("old", "ha%22sh")).await.unwrap_err().contains("SEGUE-LOGIN"));
}

#[tokio::test]
async fn a_walsender_session_is_encrypted_as_sslmode_says() {
    let cluster = Cluster::start(Options::default()).await;
    let url = |host: &str, more: &str| {
        format!("postgres://postgres:{}@{host}:{}/postgres?{more}", cluster.password(), cluster.port())
    };
    assert_eq!(identify(&url("127.0.0.1", "sslmode=prefer")).await.as_deref(), Ok("f"));
    assert!(identify(&url("127.0.0.1", "sslmode=require")).await.unwrap_err().contains("does not offer TLS"));
    encrypted(&cluster).await;
    for mode in ["prefer", "require"] {
        assert_eq!(
            identify(&url("127.0.0.1", &format!("sslmode={mode}"))).await.as_deref(),
            Ok("t"),
            "{mode}"
        );
    }
    assert_eq!(identify(&url("127.0.0.1", "sslmode=disable")).await.as_deref(), Ok("f"));
    let root = cluster.data_dir().join("server.crt");
    let full = format!("sslmode=verify-full&sslrootcert={}", root.display());
    assert_eq!(identify(&url("localhost", &full)).await.as_deref(), Ok("t"));
    assert!(identify(&url("127.0.0.1", &full)).await.unwrap_err().contains("SEGUE-TLS"));
}
