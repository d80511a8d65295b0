//! Servers that are shared: what one client leaves on them is not seen by another, and each finds its own again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_router::{ClientAuth, PoolMode};
use segue_testkit::{Cluster, Options};
use std::time::{Duration, Instant};
use support::wire::{Wire, field, frame};
use support::{Running, config};
use tokio_postgres::Client;

/// A router to one server that has one connection.
async fn narrow(cluster: &Cluster) -> Running {
    let mut config = config(cluster, cluster, PoolMode::Transaction);
    config.limits.connections_max = 1;
    Running::start(config, cluster.password()).await
}

async fn show(client: &Client, name: &str) -> String {
    client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_brings_back_what_the_client_wished_at_its_start() {
    let cluster = Cluster::start(Options::default()).await;
    let router = narrow(&cluster).await;
    let url = format!("{} options='-c DateStyle=SQL,DMY -c work_mem=5MB'", router.url());
    let (wishing, plain) = (router.try_connect(&url).await.unwrap(), router.connect().await);
    for reset in ["RESET", "SET", "SET SESSION"] {
        for name in ["DateStyle", "work_mem"] {
            let value = if name == "work_mem" { "'6MB'" } else { "'ISO, YMD'" };
            wishing.batch_execute(&format!("SET {name} = {value}")).await.unwrap();
            let sql = if reset == "RESET" {
                format!("RESET {name}")
            } else {
                format!("{reset} {name} TO DEFAULT;")
            };
            wishing.batch_execute(&sql).await.unwrap();
        }
        assert_eq!(
            (show(&wishing, "DateStyle").await, show(&wishing, "work_mem").await),
            ("SQL, DMY".into(), "5MB".into()),
            "{reset}"
        );
        assert_eq!(
            (show(&plain, "DateStyle").await, show(&plain, "work_mem").await),
            ("ISO, MDY".into(), "4MB".into()),
            "{reset}"
        );
    }
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sql_prepared_outlives_a_rollback_and_is_nobody_elses() {
    let cluster = Cluster::start(Options::default()).await;
    let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'mine%'";
    for sql in [
        &["BEGIN", "PREPARE mine AS SELECT 1", "ROLLBACK"][..],
        &["BEGIN; PREPARE mine AS SELECT 1; ROLLBACK"],
        &["BEGIN", "SAVEPOINT a", "PREPARE mine AS SELECT 1", "ROLLBACK TO a", "ROLLBACK"],
        &["BEGIN", "PREPARE mine AS SELECT 1", "SELECT 1/0", "ROLLBACK"],
        &["PREPARE mine AS SELECT 1; SELECT 1/0"],
    ] {
        let router = narrow(&cluster).await;
        let client = router.connect().await;
        for statement in sql {
            let _ = client.batch_execute(statement).await;
        }
        assert_eq!(client.query_one(prepared, &[]).await.unwrap().get::<_, i64>(0), 1, "{sql:?}");
        client.batch_execute("EXECUTE mine").await.unwrap();
        drop(client);
        let other = router.connect().await;
        assert_eq!(other.query_one(prepared, &[]).await.unwrap().get::<_, i64>(0), 0, "{sql:?}");
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_sent_without_waiting_ends_although_the_route_changes() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.execute("CREATE TABLE t (i int)").await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut config = config(&cluster, &cluster, mode);
        config.auth = ClientAuth::Trust;
        let router = Running::start(config, cluster.password()).await;
        let mut wire = Wire::through(router.handle.address().port(), "postgres").await;
        // The lock keeps the first answer back until the route has changed.
        let blocker = cluster.connect("postgres").await;
        blocker.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
        let texts = [&b"BEGIN; INSERT INTO t VALUES (1)\0"[..], b"SELECT 1\0", b"COMMIT\0"];
        let texts = texts.map(|text| frame(b'Q', &[text]));
        wire.send(&texts[0]).await;
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        while cluster.scalar(waiting).await.as_deref() != Some("1") {}
        let until = Instant::now() + Duration::from_secs(20);
        router.routes.send_modify(|route| route.held_until = Some(until));
        let mut taken = router.handle.taken();
        assert_eq!(taken.wait_for(|taken| taken.held).await.unwrap().running, 1, "{mode:?}");
        // Read behind an answer that is still to come, and so kept back for now. Nothing tells that they were read: were
        // the time too short, less would be shown.
        wire.send(&texts[1..].concat()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        blocker.batch_execute("COMMIT").await.unwrap();
        for _ in texts {
            let answers = wire.until(|(tag, _)| *tag == b'Z').await;
            assert!(answers.last().is_some_and(|(tag, _)| *tag == b'Z'), "{mode:?}: {answers:?}");
        }
        taken.wait_for(|taken| taken.is_quiet()).await.unwrap();
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_outlive_a_discard_that_is_refused() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let router = Running::before(&cluster, mode).await;
        let client = router.connect().await;
        let statement = client.prepare("SELECT $1::int").await.unwrap();
        client.batch_execute("BEGIN").await.unwrap();
        assert!(client.batch_execute("DISCARD ALL").await.is_err(), "within a transaction");
        client.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(client.query_one(&statement, &[&5]).await.unwrap().get::<_, i32>(0), 5, "{mode:?}");
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_is_known_of_the_portal_that_is_executed_and_once_it_is_answered() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.auth = ClientAuth::Trust;
    config.limits.connections_max = 1;
    let router = Running::start(config, cluster.password()).await;
    let mut wire = Wire::through(router.handle.address().port(), "postgres").await;
    let other = router.connect().await;
    // Sent without waiting; the second is refused after the first is answered.
    let texts = [&b"SELECT 1\0"[..], b"SET work_mem = 'nonsense'\0"];
    wire.send(&texts.map(|text| frame(b'Q', &[text])).concat()).await;
    for _ in texts {
        wire.until(|(tag, _)| *tag == b'Z').await;
    }
    assert_eq!(show(&other, "work_mem").await, "4MB");
    // Bound first, executed last.
    let portal = [
        frame(b'P', &[b"set\0SET work_mem = '7MB'\0\0\0"]),
        frame(b'B', &[b"first\0set\0\0\0\0\0\0\0"]),
        frame(b'P', &[b"\0SELECT 1\0\0\0"]),
        frame(b'B', &[b"\0\0\0\0\0\0\0\0"]),
        frame(b'E', &[b"\0\0\0\0\0"]),
        frame(b'E', &[b"first\0\0\0\0\0"]),
        frame(b'S', &[]),
    ];
    wire.send(&portal.concat()).await;
    wire.until(|(tag, _)| *tag == b'Z').await;
    assert_eq!(show(&other, "work_mem").await, "4MB");
    wire.send(&frame(b'Q', &[b"SHOW work_mem\0"])).await;
    let answers = wire.until(|(tag, _)| *tag == b'Z').await;
    assert!(answers.contains(&(b'D', b"\0\x01\0\0\0\x037MB".to_vec())), "{answers:?}");
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_last_word_is_passed_on_and_nothing_is_added() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut config = config(&cluster, &cluster, mode);
        config.auth = ClientAuth::Trust;
        let router = Running::start(config, cluster.password()).await;
        let mut wire = Wire::through(router.handle.address().port(), "postgres").await;
        wire.send(&frame(b'Q', &[b"SELECT pg_terminate_backend(pg_backend_pid())\0"])).await;
        let rest = wire.rest().await;
        let errors: Vec<String> =
            rest.iter().filter(|(tag, _)| *tag == b'E').map(|(_, body)| field(body, b'C')).collect();
        assert_eq!(errors, ["57P01"], "{mode:?}");
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pins_for_good_outlasts_what_pins_for_a_while() {
    let cluster = Cluster::start(Options::default()).await;
    for (holds, ends) in [("PREPARE mine AS SELECT 1", "DEALLOCATE mine"), ("LISTEN mine", "UNLISTEN mine")] {
        let router = narrow(&cluster).await;
        let client = router.connect().await;
        for sql in [holds, "CREATE TEMP TABLE mine (i int)", ends, "SELECT * FROM mine"] {
            client.batch_execute(sql).await.unwrap();
        }
        drop(client);
        let other = router.connect().await;
        assert!(other.batch_execute("SELECT * FROM mine").await.is_err(), "{holds}: another client's table");
        router.drain().await;
    }
}

/// As some clients do whose time is up: what was sent before is done, and place and server are free again.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_bye_that_does_not_wait_for_its_answer_leaves_nothing_behind() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.execute("CREATE TABLE t (i int)").await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut config = config(&cluster, &cluster, mode);
        config.auth = ClientAuth::Trust;
        config.limits.connections_max = 1;
        let router = Running::start(config, cluster.password()).await;
        let port = router.handle.address().port();
        let (insert, bye) =
            (frame(b'Q', &[b"INSERT INTO t SELECT 1 FROM pg_sleep(0.2)\0"]), frame(b'X', &[]));
        let begin = frame(b'Q', &[b"BEGIN; INSERT INTO t VALUES (2)\0"]);
        for words in [[&insert[..], &bye].concat(), [&begin[..], &bye].concat()] {
            let mut wire = Wire::through(port, "postgres").await;
            wire.send(&words).await;
            wire.rest().await;
            let until = Instant::now() + Duration::from_secs(20);
            while router.handle.clients() > 0 {
                assert!(Instant::now() < until, "{mode:?}: the session does not end");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut next = Wire::through(port, "postgres").await;
            next.send(&frame(b'Q', &[b"SELECT 1\0"])).await;
            let answers = next.until(|(tag, _)| *tag == b'Z').await;
            assert!(answers.iter().any(|(tag, _)| *tag == b'D'), "{mode:?}: {answers:?}");
            next.send(&bye).await;
            next.rest().await;
        }
        router.drain().await;
    }
    assert_eq!(cluster.scalar("SELECT string_agg(i::text, ' ') FROM t").await.as_deref(), Some("1 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_beside_a_deallocation_is_done() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.execute("CREATE TABLE t (i int)").await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.auth = ClientAuth::Trust;
    config.limits.connections_max = 1;
    let router = Running::start(config, cluster.password()).await;
    let mut wire = Wire::through(router.handle.address().port(), "postgres").await;
    for name in ["a1", "a2", "a3"] {
        let text = format!("{name}\0SELECT '{name}'\0\0\0");
        wire.send(&[frame(b'P', &[text.as_bytes()]), frame(b'S', &[])].concat()).await;
        wire.until(|(tag, _)| *tag == b'Z').await;
    }
    wire.send(&frame(b'Q', &[b"DEALLOCATE a3; INSERT INTO t VALUES (3)\0"])).await;
    wire.until(|(tag, _)| *tag == b'Z').await;
    assert_eq!(cluster.scalar("SELECT count(*) FROM t").await.as_deref(), Some("1"));
    let text =
        b"INSERT INTO t VALUES (1); DEALLOCATE a1; DEALLOCATE PREPARE \"a2\"; INSERT INTO t VALUES (2)\0";
    wire.send(&frame(b'Q', &[text])).await;
    let answers = wire.until(|(tag, _)| *tag == b'Z').await;
    let done: Vec<_> = answers.iter().filter(|(tag, _)| *tag == b'C').map(|(_, body)| &body[..]).collect();
    assert_eq!(
        done,
        [&b"INSERT 0 1\0"[..], b"DEALLOCATE\0", b"DEALLOCATE\0", b"INSERT 0 1\0"],
        "{answers:?}"
    );
    assert_eq!(cluster.scalar("SELECT count(*) FROM t").await.as_deref(), Some("3"));
    wire.send(&[frame(b'B', &[b"\0a1\0\0\0\0\0\0\0"]), frame(b'S', &[])].concat()).await;
    let answers = wire.until(|(tag, _)| *tag == b'Z').await;
    assert_eq!(field(&answers[0].1, b'C'), "26000", "{answers:?}");
    router.drain().await;
}

/// What is sent at once, and what is set afterwards, are the same as with a server of one's own; and nobody else sees it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_set_beside_the_end_of_a_transaction_is_known_or_keeps_its_server() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.auth = ClientAuth::Trust;
    config.limits.connections_max = 1;
    let router = Running::start(config, cluster.password()).await;
    let query = |sql: &str| frame(b'Q', &[sql.as_bytes(), b"\0"]);
    let execute = |sql: &str| {
        let text = format!("\0{sql}\0\0\0");
        let (bind, execute) = (frame(b'B', &[&[0; 8]]), frame(b'E', &[&[0; 5]]));
        [frame(b'P', &[text.as_bytes()]), bind, execute].concat()
    };
    let sync = || frame(b'S', &[]);
    const SET: &str = "SET work_mem = '5MB'";
    let cases: [(&str, Vec<Vec<u8>>, u64); 11] = [
        ("behind a rollback", vec![query(&format!("ROLLBACK; {SET}"))], 0),
        ("before an error", vec![query(&format!("{SET}; COMMIT; SELECT 1/0"))], 1),
        ("committed", vec![query("BEGIN"), query(SET), query("COMMIT; SELECT 1/0")], 1),
        (
            "once it had failed",
            vec![query("BEGIN"), query("SELECT 1/0"), query(&format!("COMMIT; {SET}"))],
            0,
        ),
        ("not in a transaction", vec![[query(SET), query("ROLLBACK")].concat()], 0),
        ("in a chain", vec![query("BEGIN"), query(SET), query("COMMIT AND CHAIN"), query("ROLLBACK")], 0),
        ("taken back", vec![query("BEGIN"), query(SET), query("ROLLBACK")], 0),
        ("taken back at once", vec![[query("BEGIN"), query(SET), query("ROLLBACK")].concat()], 0),
        ("kept at once", vec![[query("BEGIN"), query(SET), query("COMMIT")].concat()], 0),
        (
            "behind a rollback in a group",
            vec![query("BEGIN"), query("SELECT 1/0"), [execute("ROLLBACK"), execute(SET), sync()].concat()],
            0,
        ),
        (
            "behind a savepoint",
            vec![
                query("BEGIN; SAVEPOINT a"),
                query("SELECT 1/0"),
                [execute("ROLLBACK TO a"), execute(SET), execute("COMMIT"), sync()].concat(),
            ],
            0,
        ),
    ];
    let mut pins = 0;
    for (what, sends, pinned) in cases {
        let mut direct = Wire::direct(&cluster, "postgres").await;
        let mut routed = Wire::through(router.handle.address().port(), "postgres").await;
        let mut set = Vec::new();
        for wire in [&mut direct, &mut routed] {
            for send in &sends {
                wire.send(send).await;
                for _ in 0..boundaries(send) {
                    wire.until(|(tag, _)| *tag == b'Z').await;
                }
            }
            wire.send(&query("SHOW work_mem")).await;
            let answers = wire.until(|(tag, _)| *tag == b'Z').await;
            set.push(answers.into_iter().find(|(tag, _)| *tag == b'D'));
        }
        assert!(set[0].is_some() && set[0] == set[1], "{what}: {set:?}");
        routed.send(&frame(b'X', &[])).await;
        routed.rest().await;
        assert_eq!(show(&router.connect().await, "work_mem").await, "4MB", "{what}");
        pins += pinned;
        assert_eq!(router.counts().pins, pins, "{what}");
    }
    router.drain().await;
}

/// How many ReadyForQuery come for it.
fn boundaries(mut sent: &[u8]) -> usize {
    let mut boundaries = 0;
    while let [tag, a, b, c, d, ..] = sent {
        boundaries += usize::from(matches!(tag, b'Q' | b'S'));
        sent = &sent[1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize..];
    }
    boundaries
}

#[tokio::test(flavor = "multi_thread")]
async fn the_modes_of_a_sessions_transactions_are_carried_one_by_one() {
    let cluster = Cluster::start(Options::default()).await;
    let router = narrow(&cluster).await;
    let (client, other) = (router.connect().await, router.connect().await);
    for modes in ["ISOLATION LEVEL REPEATABLE READ", "READ ONLY, DEFERRABLE"] {
        let sql = format!("SET SESSION CHARACTERISTICS AS TRANSACTION {modes}");
        client.batch_execute(&sql).await.unwrap();
    }
    client.batch_execute("SET default_transaction_deferrable = off").await.unwrap();
    for (name, mine, others) in [
        ("default_transaction_isolation", "repeatable read", "read committed"),
        ("default_transaction_read_only", "on", "off"),
        ("default_transaction_deferrable", "off", "off"),
    ] {
        assert_eq!(show(&other, name).await, others, "{name}");
        assert_eq!(show(&client, name).await, mine, "{name}");
    }
    router.drain().await;
}

/// Executes a text with the extended protocol.
fn execute(name: &str, sql: &str) -> Vec<u8> {
    let parse = frame(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"]);
    [parse, execute_again(name)].concat()
}

fn execute_again(name: &str) -> Vec<u8> {
    let bind = frame(b'B', &[b"\0", name.as_bytes(), &[0; 7]]);
    [bind, frame(b'E', &[&[0; 5]]), frame(b'S', &[])].concat()
}

/// The code of an error that comes before the next ReadyForQuery.
async fn refused(wire: &mut Wire) -> Option<String> {
    let answers = wire.until(|(tag, _)| *tag == b'Z').await;
    assert_eq!(answers.last().map(|(tag, _)| *tag), Some(b'Z'), "{answers:?}");
    answers.iter().find(|(tag, _)| *tag == b'E').map(|(_, body)| field(body, b'C'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_can_be_deallocated_by_the_protocol_that_made_it() {
    let cluster = Cluster::start(Options::default()).await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut config = config(&cluster, &cluster, mode);
        config.auth = ClientAuth::Trust;
        config.limits.connections_max = 1;
        let router = Running::start(config, cluster.password()).await;
        let mut wire = Wire::through(router.handle.address().port(), "postgres").await;
        for deallocates in ["", "d"] {
            for name in ["a", "b"] {
                wire.send(&execute(name, "SELECT 1")).await;
                assert_eq!(refused(&mut wire).await, None);
            }
            wire.send(&execute(deallocates, "DEALLOCATE PREPARE a")).await;
            assert_eq!(refused(&mut wire).await, None, "{mode:?} {deallocates:?}");
            wire.send(&execute_again("a")).await;
            assert_eq!(refused(&mut wire).await.as_deref(), Some("26000"), "{mode:?} {deallocates:?}");
            wire.send(&execute_again("b")).await;
            assert_eq!(refused(&mut wire).await, None, "{mode:?} {deallocates:?}");
            wire.send(&execute("", "DEALLOCATE b")).await;
            assert_eq!(refused(&mut wire).await, None);
        }
        assert_eq!(router.counts().pins, 0, "{mode:?}");
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_throws_away_what_another_client_has_prepared() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.auth = ClientAuth::Trust;
    config.limits.connections_max = 1;
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let mut wire = Wire::through(port, "postgres").await;
    wire.send(&execute("mine", "SELECT 1")).await;
    assert_eq!(refused(&mut wire).await, None);
    let name = "SELECT name FROM pg_prepared_statements WHERE statement = 'SELECT 1'";
    for is_extended in [false, true] {
        let mut other = Wire::through(port, "postgres").await;
        other.send(&frame(b'Q', &[name.as_bytes(), b"\0"])).await;
        let answers = other.until(|(tag, _)| *tag == b'Z').await;
        let row = answers.iter().find(|(tag, _)| *tag == b'D').expect("it is on the server");
        let deallocate = format!("DEALLOCATE {}", String::from_utf8_lossy(&row.1[6..]));
        let query = frame(b'Q', &[deallocate.as_bytes(), b"\0"]);
        other.send(&if is_extended { execute("", &deallocate) } else { query }).await;
        assert_eq!(refused(&mut other).await, None, "it is there, whosever it is");
        wire.send(&execute_again("mine")).await;
        assert_eq!(refused(&mut wire).await, None, "extended: {is_extended}");
    }
    // What a function does is not seen; what comes of it once is seen.
    let hidden = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$";
    router.connect().await.batch_execute(hidden).await.unwrap();
    wire.send(&execute_again("mine")).await;
    assert_eq!(refused(&mut wire).await.as_deref(), Some("26000"));
    wire.send(&execute_again("mine")).await;
    assert_eq!(refused(&mut wire).await, None);
    router.drain().await;
}

/// What a constant is, is told when a text is parsed: here, by the time zone.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_understood_by_the_settings_of_its_own_session() {
    let cluster = Cluster::start(Options::default()).await;
    let router = narrow(&cluster).await;
    let zone = async |zone: &str| {
        let url = format!("{} options='-c TimeZone={zone}'", router.url());
        router.try_connect(&url).await.unwrap()
    };
    let midnight = "SELECT extract(epoch FROM '2020-01-01 00:00:00'::timestamptz)::int8";
    let (london, tokyo) = (1_577_836_800_i64, 1_577_836_800 - 9 * 3_600);
    let first = zone("UTC").await;
    let statement = first.prepare(midnight).await.unwrap();
    let again = async || first.query_one(&statement, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(again().await, london);
    assert_eq!(zone("Asia/Tokyo").await.query_one(midnight, &[]).await.unwrap().get::<_, i64>(0), tokyo);
    assert_eq!(again().await, london);
    // For a transaction only, and in each way to say so.
    for set in [
        "SET LOCAL TimeZone = 'Asia/Tokyo'",
        "SELECT set_config('TimeZone', 'Asia/Tokyo', true)",
        "SET TimeZone = 'Asia/Tokyo'",
    ] {
        let second = zone("UTC").await;
        for ends in ["ROLLBACK", "COMMIT"] {
            second.batch_execute("BEGIN").await.unwrap();
            second.batch_execute(set).await.unwrap();
            assert_eq!(second.query_one(midnight, &[]).await.unwrap().get::<_, i64>(0), tokyo, "{set}");
            second.batch_execute(ends).await.unwrap();
            assert_eq!(again().await, london, "{set}, {ends}");
        }
        let stays = if set.starts_with("SET T") { tokyo } else { london };
        assert_eq!(second.query_one(midnight, &[]).await.unwrap().get::<_, i64>(0), stays, "{set}");
    }
    // Where servers are shared it is understood anew by whoever sets something else.
    first.batch_execute("SET TimeZone = 'Asia/Tokyo'").await.unwrap();
    assert_eq!(again().await, tokyo);
    router.drain().await;
}
