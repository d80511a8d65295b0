//! TLS towards clients, and towards a server: a router in front of another one speaks both.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use segue_router::{PoolMode, Tls, Upstream, UpstreamTls};
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Running, config, said};

fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "-", "-out", "-"])
        .output()
        .expect("run openssl");
    (
        CertificateDer::from_pem_slice(&made.stdout).unwrap(),
        PrivateKeyDer::from_pem_slice(&made.stdout).unwrap(),
    )
}

/// TLS as a router serves it, and as another one that trusts it asks for it.
fn tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let (certificate, key) = certificate();
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let served = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(certificate).unwrap();
    let asked = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    (Arc::new(served), Arc::new(asked))
}

/// The way to a router that speaks TLS.
fn to(behind: &Running, asked: &Arc<rustls::ClientConfig>) -> Arc<Upstream> {
    Arc::new(Upstream {
        host: "127.0.0.1".into(),
        port: behind.handle.address().port(),
        tls: Some(UpstreamTls { config: Arc::clone(asked), optional: false }),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_encrypted_on_both_ways() {
    let cluster = Cluster::start(Options::default()).await;
    let (served, asked) = tls();

    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut behind = config(&cluster, &cluster, mode);
        behind.tls = Some(Tls { config: Arc::clone(&served), required: true });
        let behind = Running::start(behind, cluster.password()).await;
        let refused = behind.try_connect(&behind.url()).await.expect_err("in the clear");
        assert!(refused.as_db_error().is_some_and(|error| error.message().contains("TLS only")), "{refused}");
        let mut psql = behind.command("psql", &["-X", "-A", "-t", "-c", "SELECT repeat('x', 1000000)"]);
        assert_eq!(said(&psql.env("PGSSLMODE", "require").output().await.unwrap()).len(), 1_000_000);

        let mut front = config(&cluster, &cluster, mode);
        front.source = to(&behind, &asked);
        let front = Running::start(front, cluster.password()).await;
        let client = front.connect().await;
        let value = "v".repeat(500_000);
        let row = client.query_one("SELECT $1::text", &[&value]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), value);
        drop(client);
        front.drain().await;
        behind.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_ended_while_nobody_used_it_is_not_used_again() {
    let cluster = Cluster::start(Options::default()).await;
    let (served, asked) = tls();
    let mut behind = config(&cluster, &cluster, PoolMode::Session);
    behind.tls = Some(Tls { config: served, required: true });
    let behind = Running::start(behind, cluster.password()).await;
    let mut front = config(&cluster, &cluster, PoolMode::Transaction);
    front.source = to(&behind, &asked);
    let front = Running::start(front, cluster.password()).await;
    let client = front.connect().await;
    let backend = async || client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    let first = backend().await;
    assert_eq!(backend().await, first, "what TLS says of itself is no last word");
    // The last word, a record, waits to be read, and perhaps not even the end.
    assert_eq!(cluster.scalar(&format!("SELECT pg_terminate_backend({first})")).await.as_deref(), Some("t"));
    let until = Instant::now() + Duration::from_secs(10);
    while behind.handle.clients() > 0 {
        assert!(Instant::now() < until, "it does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_ne!(backend().await, first);
    drop(client);
    front.drain().await;
    behind.drain().await;
}
