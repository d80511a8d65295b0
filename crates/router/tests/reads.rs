//! Reads that the follower serves: what goes there, what a session sees, and that nobody notices when it fails.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_model::switch::Side;
use segue_router::{BreakerState, Fresh, PoolMode, Reads};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::pair::{Pair, READ, side, simple};
use support::wire::{Wire, frame};

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_the_followers_and_everything_else_is_the_owners() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pair = Pair::start(mode).await;
        let client = pair.client().await;
        let prepared = client.prepare("SELECT side FROM t WHERE id = $1").await.unwrap();
        for _ in 0..3 {
            client.batch_execute("INSERT INTO t SELECT max(id) + 1, 'new' FROM t").await.unwrap();
            assert_eq!(client.query_one(&prepared, &[&1]).await.unwrap().get::<_, String>(0), "target");
            assert_eq!(side(&client).await, "target");
            for sql in [
                "SELECT side FROM t WHERE id = 1 FOR SHARE",
                "WITH w AS (DELETE FROM t WHERE id < 0) SELECT side FROM t",
            ] {
                assert_eq!(simple(&client, sql).await, "source", "{sql}");
            }
            client.batch_execute("BEGIN").await.unwrap();
            assert_eq!(side(&client).await, "source", "in a transaction that may write");
            client.batch_execute("COMMIT").await.unwrap();
        }
        assert_eq!(pair.source.scalar("SELECT count(*) FROM t").await.as_deref(), Some("4"));
        assert_eq!(pair.target.scalar("SELECT count(*) FROM t").await.as_deref(), Some("1"));
        pair.share(0);
        assert_eq!(side(&client).await, "source");
        assert_eq!(client.query_one(&prepared, &[&1]).await.unwrap().get::<_, String>(0), "source");
        pair.share(100);
        assert_eq!(side(&client).await, "target");
        pair.router.release_to(Side::Target);
        client.execute("INSERT INTO t VALUES (2, 'moved')", &[]).await.unwrap();
        assert_eq!(pair.target.scalar("SELECT count(*) FROM t").await.as_deref(), Some("2"));
        let counts = pair.router.counts();
        assert_eq!((counts.reads_failed, counts.reads_repeated), (0, 0), "{counts:?}");
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_reads_its_own_writes() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pair = Pair::start(mode).await;
        let (client, other) = (pair.client().await, pair.client().await);
        client.batch_execute("UPDATE t SET side = 'written' WHERE id = 1").await.unwrap();
        pair.shows(Instant::now() - Duration::from_millis(500));
        assert_eq!(side(&client).await, "written");
        assert_eq!(side(&other).await, "target", "who has not written may read what was");
        pair.shows(Instant::now());
        assert_eq!(side(&client).await, "target");
        // Whoever prepares what it reads comes back as well: the follower is waited for by who has not written since.
        client.batch_execute("UPDATE t SET side = 'written' WHERE id = 1").await.unwrap();
        pair.shows(Instant::now() - Duration::from_millis(500));
        let shows = tokio::spawn({
            let (fresh, epoch) = (pair.router.fresh.clone(), pair.router.routes.borrow().epoch);
            async move {
                loop {
                    // The follower is always a moment behind, which is more than a read takes and less than one waits.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let as_of = Instant::now() - Duration::from_millis(20);
                    fresh.send_replace(Some(Fresh { epoch, as_of }));
                }
            }
        });
        let since = Instant::now();
        while client.query_one(READ, &[]).await.unwrap().get::<_, String>(0) != "target" {
            assert!(since.elapsed() < Duration::from_secs(20), "it never comes back");
        }
        shows.abort();
        pair.shows(Instant::now());
        // What the owner has shown is not taken back either.
        client.batch_execute("SELECT side, pg_backend_pid() FROM t").await.unwrap();
        pair.shows(Instant::now() - Duration::from_millis(500));
        assert_eq!(side(&client).await, "written");
        // A follower that is far behind is nobody's.
        pair.shows(Instant::now() - Duration::from_secs(3));
        assert_eq!(side(&other).await, "written");
        let epoch = pair.router.routes.borrow().epoch.next();
        pair.router.fresh.send_replace(Some(Fresh { epoch, as_of: Instant::now() }));
        assert_eq!(side(&other).await, "written", "of another owner's time");
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_reads_its_own_writes_in_every_session() {
    let pair = Pair::start(PoolMode::Transaction).await;
    drop(pair.client().await);
    let url = format!("{} options='-c segue.tenant=acme'", pair.router.url());
    let (writer, reader) =
        (pair.router.try_connect(&url).await.unwrap(), pair.router.try_connect(&url).await.unwrap());
    let stranger = pair.router.connect().await;
    pair.shows(Instant::now() - Duration::from_millis(500));
    assert_eq!(side(&reader).await, "target");
    writer.batch_execute("UPDATE t SET side = 'acme' WHERE id = 1").await.unwrap();
    assert_eq!((side(&reader).await, side(&stranger).await), ("acme".into(), "target".into()));
    let in_comment = "UPDATE t SET side = 'b' WHERE id = 1 /*segue_tenant='b'*/";
    stranger.batch_execute(in_comment).await.unwrap();
    let other = pair.router.connect().await;
    assert_eq!(simple(&other, "SELECT side FROM t WHERE id = 1 /*segue_tenant='b'*/").await, "b");
    assert_eq!(side(&pair.router.connect().await).await, "target");
    // A rule for a tenant goes before the share.
    pair.shows_all();
    let rules = [("acme".to_owned(), Side::Source), ("b".to_owned(), Side::Target)];
    pair.router.reads.send_replace(Arc::new(Reads {
        share_percent: 0,
        tenants: rules.into(),
        ..Reads::default()
    }));
    assert_eq!(side(&reader).await, "b");
    assert_eq!(side(&other).await, "b");
    assert_eq!(simple(&other, "SELECT side FROM t WHERE id = 1 /*segue_tenant='b'*/").await, "target");
    pair.router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_refuses_is_not_noticed_and_is_left_alone_in_the_end() {
    let refused = async |mode| {
        let pair = Pair::start(mode).await;
        let client = pair.client().await;
        let prepared = client.prepare("SELECT side FROM t WHERE id = $1").await.unwrap();
        // What is the client's own fault is told by the owner, and is nobody else's.
        for _ in 0..8 {
            let error = client.simple_query("SELECT 1 / (id - 1) FROM t").await.unwrap_err();
            assert_eq!(error.code().unwrap().code(), "22012");
        }
        assert_eq!(pair.router.handle.breaker().0, BreakerState::Closed);
        pair.target.execute("ALTER TABLE t RENAME side TO another").await;
        for _ in 0..5 {
            assert_eq!(side(&client).await, "source");
            assert_eq!(client.query_one(&prepared, &[&1]).await.unwrap().get::<_, String>(0), "source");
        }
        assert_eq!(pair.router.handle.breaker(), (BreakerState::Open, 1));
        let asked = pair.router.counts().reads;
        assert_eq!(side(&client).await, "source");
        assert_eq!(pair.router.counts().reads, asked, "it is not asked any more");
        pair.target.execute("ALTER TABLE t RENAME another TO side").await;
        // It is tried again by itself, and closes.
        let since = Instant::now();
        while side(&client).await != "target" || pair.router.handle.breaker().0 != BreakerState::Closed {
            assert!(since.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pair.router.drain().await;
    };
    tokio::join!(refused(PoolMode::Session), refused(PoolMode::Transaction));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_late_or_goes_away_is_not_noticed() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pair = Pair::start(mode).await;
        let client = pair.client().await;
        let lock = pair.target.connect("postgres").await;
        lock.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
        let since = Instant::now();
        assert_eq!(side(&client).await, "source");
        assert!(since.elapsed() >= Duration::from_millis(200) && since.elapsed() < Duration::from_secs(5));
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        while pair.target.scalar(waiting).await.as_deref() != Some("0") {
            assert!(since.elapsed() < Duration::from_secs(10), "what is late is cancelled");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lock.batch_execute("COMMIT").await.unwrap();
        assert_eq!(side(&client).await, "target");
        let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'postgres' AND backend_type = 'client backend'";
        pair.target.scalar(others).await;
        for _ in 0..4 {
            assert!(["source", "target"].contains(&side(&client).await.as_str()));
        }
        pair.target.stop_immediate().await;
        for _ in 0..10 {
            assert_eq!(side(&client).await, "source");
        }
        assert_eq!(pair.router.handle.breaker().0, BreakerState::Open);
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_only_reads_goes_as_a_unit_and_returns_for_what_is_more() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pair = Pair::start(mode).await;
        let client = pair.client().await;
        let prepared = client.prepare("SELECT side FROM t WHERE id = $1").await.unwrap();
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(side(&client).await, "target");
        assert_eq!(client.query_one(&prepared, &[&1]).await.unwrap().get::<_, String>(0), "target");
        client.batch_execute("COMMIT").await.unwrap();
        assert_eq!(pair.router.counts().reads_returned, 0);
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(side(&client).await, "target");
        assert_eq!(
            simple(&client, "SHOW transaction_read_only").await,
            "on",
            "the owner's transaction is the same"
        );
        assert_eq!(pair.router.counts().reads_returned, 1);
        assert_eq!(side(&client).await, "source");
        assert_eq!(client.query_one(&prepared, &[&1]).await.unwrap().get::<_, String>(0), "source");
        let refused = client.batch_execute("DELETE FROM t").await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "25006");
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(pair.router.counts().connects, 2, "one on each side, and they are kept");
        // What the follower refuses within is the owner's as well.
        pair.target.execute("ALTER TABLE t RENAME side TO another").await;
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(side(&client).await, "source");
        assert_eq!(simple(&client, "SHOW transaction_read_only").await, "on");
        client.batch_execute("COMMIT").await.unwrap();
        // A snapshot cannot be taken along.
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
        assert_eq!(side(&client).await, "source");
        client.batch_execute("COMMIT").await.unwrap();
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_statements_mean_the_same_on_both_sides() {
    let pair = Pair::start(PoolMode::Session).await;
    drop(pair.client().await);
    let mut wire = Wire::through(pair.router.handle.address().port(), "postgres").await;
    for turn in 0..3 {
        // Prepared and closed on either side, in turns.
        for (sql, expected) in
            [(READ, "target"), ("SELECT side, pg_backend_pid() FROM t", "source"), (READ, "target")]
        {
            let group = [
                frame(b'P', &[b"s\0", sql.as_bytes(), b"\0\0\0"]),
                frame(b'B', &[b"\0s\0\0\0\0\0\0\0"]),
                frame(b'E', &[b"\0\0\0\0\0"]),
                frame(b'S', &[]),
                frame(b'C', &[b"Ss\0"]),
                frame(b'S', &[]),
            ];
            wire.send(&group[..4].concat()).await;
            let answers = wire.until(|(tag, _)| *tag == b'Z').await;
            let row = answers.iter().find(|(tag, _)| *tag == b'D');
            let row = &row.unwrap_or_else(|| panic!("{turn} {sql}: {answers:?}")).1;
            assert_eq!(&row[6..12], expected.as_bytes(), "{turn} {sql}");
            wire.send(&group[4..].concat()).await;
            wire.until(|(tag, _)| *tag == b'Z').await;
        }
    }
    let counts = pair.router.counts();
    assert_eq!((counts.reads_failed, counts.reads_repeated), (0, 0), "{counts:?}");
    pair.router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_its_client_cancels_is_not_repeated() {
    let pair = Pair::start(PoolMode::Transaction).await;
    let client = pair.client().await;
    let lock = pair.target.connect("postgres").await;
    lock.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let cancel = client.cancel_token();
    let reading = tokio::spawn(async move { client.simple_query(READ).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    while pair.target.scalar(waiting).await.as_deref() != Some("1") {
        assert!(!reading.is_finished());
    }
    cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    let error = reading.await.unwrap().unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    assert_eq!(pair.router.counts().reads_repeated, 0);
    drop(lock);
    pair.router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_does_not_wait_for_reads_on_the_follower_and_they_do_not_wait_for_it() {
    let pair = Pair::start(PoolMode::Transaction).await;
    let (client, reader) = (pair.client().await, pair.client().await);
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(side(&client).await, "target");
    let taken = pair.router.hold().await;
    assert!(taken.is_quiet());
    assert_eq!((side(&reader).await, side(&client).await), ("target".into(), "target".into()));
    pair.router.release_to(Side::Target);
    client.batch_execute("COMMIT").await.unwrap();
    pair.router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_repeated_on_the_other_side_and_differences_are_found() {
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let pair = Pair::start(mode).await;
        let mut wanted = Reads { mirror_percent: 100, ..Reads::default() };
        pair.router.reads.send_replace(Arc::new(wanted.clone()));
        let client = pair.router.connect().await;
        let prepared = client.prepare("SELECT side FROM t WHERE id = $1").await.unwrap();
        let found = async |compared: u64| {
            let since = Instant::now();
            loop {
                let shadow = pair.router.handle.shadow();
                if shadow.compared >= compared || since.elapsed() > Duration::from_secs(20) {
                    return shadow;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert_eq!(side(&client).await, "source");
        assert_eq!(client.query_one(&prepared, &[&1]).await.unwrap().get::<_, String>(0), "source");
        let shadow = found(2).await;
        assert_eq!((shadow.compared, shadow.mismatched), (2, 2), "{shadow:?}");
        assert_eq!(shadow.mismatches.iter().map(|mismatch| mismatch.count).sum::<u64>(), 2);
        let told = format!("{:?}", shadow.mismatches);
        assert!(!told.contains("\"source\"") && !told.contains("\"target\""), "no value is shown: {told}");
        // The same whoever serves it; and what is the same on both sides is.
        wanted.share_percent = 100;
        pair.router.reads.send_replace(Arc::new(wanted));
        assert_eq!(side(&client).await, "target");
        client.simple_query("SELECT id FROM t WHERE id < 2 ORDER BY id").await.unwrap();
        let shadow = found(4).await;
        assert_eq!((shadow.compared, shadow.mismatched, shadow.equal), (4, 3, 1), "{shadow:?}");
        client.execute("INSERT INTO t VALUES (7, 'more')", &[]).await.unwrap();
        assert_eq!(
            pair.target.scalar("SELECT count(*) FROM t").await.as_deref(),
            Some("1"),
            "only reads are"
        );
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_used_which_side_with_what_is_known() {
    let pair = Pair::start(PoolMode::Transaction).await;
    drop(pair.client().await);
    let url = format!("{} application_name=shop", pair.router.url());
    let client = pair.router.try_connect(&url).await.unwrap();
    for id in 0..3 {
        client.batch_execute(&format!("INSERT INTO t VALUES (1{id}, 'x')")).await.unwrap();
        assert_eq!(side(&client).await, "target");
    }
    let prepared = client.prepare("DELETE FROM t WHERE id = $1").await.unwrap();
    client.execute(&prepared, &[&10]).await.unwrap();
    client.batch_execute("SELECT side, pg_backend_pid() FROM t").await.unwrap();
    let served = pair.router.handle.served(1_000);
    let of_kind = |kind: &str| {
        let found: Vec<_> =
            served.iter().filter(|served| served.application == "shop" && served.kind == kind).collect();
        let (source, target) = (found.iter().map(|s| s.source.count), found.iter().map(|s| s.target.count));
        (found.len(), source.sum::<u64>(), target.sum::<u64>())
    };
    assert_eq!(of_kind("insert"), (1, 3, 0), "{served:?}");
    assert_eq!(of_kind("delete"), (1, 1, 0), "{served:?}");
    assert_eq!(of_kind("select"), (2, 1, 3), "{served:?}");
    assert!(served.iter().all(|served| served.user == "postgres" && !served.shape.contains("10")));
    assert_eq!(served[0].source.last.map(|last| last < Duration::from_secs(10)), Some(true));
    let times = pair.router.handle.times();
    assert!(times.iter().any(|t| t.kind == "select" && t.side == Side::Target && t.times.count() >= 3));
    assert_eq!(pair.router.handle.kept(), [("about_server", 1)]);
    pair.router.drain().await;
}
