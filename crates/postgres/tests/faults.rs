//! Faults that need no migration: what a name, a connection string or somebody else's session is refused for.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use segue_engine::fault::Recovery;
use segue_postgres::apply::PgApplier;
use segue_postgres::authority::Authority;
use segue_postgres::birth::{self, Direction};
use segue_postgres::connect::Endpoint;
use segue_postgres::verify::PgSides;
use segue_testkit::{Cluster, Options};

#[test]
fn a_name_that_no_slot_can_have_is_refused() {
    for name in ["Shop", "shop move", "größer", &"long".repeat(20)] {
        let fault = birth::stream_name(name, Direction::Forward).unwrap_err();
        assert_eq!((fault.recovery, fault.code), (Recovery::Operator, "SEGUE-NAME"), "{name}");
        assert!(fault.what.contains(name), "{fault}");
    }
    assert_eq!(birth::stream_name("shop-move", Direction::Forward).unwrap(), "segue_shop_move_fwd");
}

#[test]
fn a_connection_string_is_refused_without_being_told() {
    for text in [
        "postgres://u:s3cret@h:port/d",
        "postgres://u:s3cret@h/d?sslmode=perhaps",
        "postgres://u:s3cret@h/d?sslcert=/c.pem",
        "host=h password='s3cret",
        "postgres://u:s3cret@h/d?tcp_user_timeout=soon",
    ] {
        let fault = Endpoint::parse(text).map(drop).unwrap_err();
        assert_eq!((fault.recovery, fault.code), (Recovery::Operator, "SEGUE-URL"), "{text}");
        assert!(!fault.to_string().contains("s3cret") && !fault.next_step.is_empty(), "{fault}");
    }
}

/// An origin that another session has is waited for, and then named: by who applies, and by who cancels.
#[tokio::test]
async fn an_origin_that_is_in_use_is_named() {
    let cluster = Cluster::start(Options::default()).await;
    let holder = cluster.connect("postgres").await;
    holder
        .batch_execute(
            "SELECT pg_replication_origin_create('segue_m_forward');
             SELECT pg_replication_origin_session_setup('segue_m_forward')",
        )
        .await
        .unwrap();
    let endpoint = Endpoint::parse(&cluster.url("postgres")).unwrap();
    let client = cluster.connect("postgres").await;
    let authority =
        Authority { migration: "m".into(), direction: Direction::Forward, token: 1, incarnation: 1 };
    let (applier, cancelled) = tokio::join!(
        PgApplier::open(&endpoint, authority),
        birth::drop_objects(&client, &client, "m", |_| {})
    );
    let busy = applier.map(drop).unwrap_err();
    assert_eq!((busy.recovery, busy.code), (Recovery::Retry, "SEGUE-ORIGIN-BUSY"), "{busy}");
    let active = cancelled.unwrap_err();
    assert_eq!((active.recovery, active.code), (Recovery::Operator, "SEGUE-ORIGIN-ACTIVE"), "{active}");
    assert!(active.what.contains("segue_m_forward"), "{active}");
}

/// Where the two servers can compute nothing that is the same, nothing is compared, and nothing called equal.
#[tokio::test]
async fn what_cannot_be_compared_is_refused() {
    let cluster = Cluster::start(Options::default()).await;
    let hashes = "SELECT oid::regprocedure::text FROM pg_proc WHERE proname ~ '^(md5|sha[0-9]|hash)'";
    cluster
        .execute(&format!(
            "CREATE ROLE plain LOGIN PASSWORD 'pl4in';
             DO $$ DECLARE f text; BEGIN FOR f IN {hashes} LOOP
                 EXECUTE 'REVOKE EXECUTE ON FUNCTION ' || f || ' FROM PUBLIC'; END LOOP; END $$"
        ))
        .await;
    let url = format!("postgres://plain:pl4in@127.0.0.1:{}/postgres", cluster.port());
    let endpoint = Endpoint::parse(&url).unwrap();
    let fault = PgSides::open(&endpoint, &endpoint, &[]).await.map(drop).unwrap_err();
    assert_eq!((fault.recovery, fault.code), (Recovery::Operator, "SEGUE-VERIFY-HASH"), "{fault}");
}
