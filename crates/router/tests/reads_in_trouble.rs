//! Reads that the follower is asked for, by clients that do what they may, while it does what it must not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_model::switch::Side;
use segue_router::{BreakerState, Config, PoolMode};
use std::time::{Duration, Instant};
use support::pair::{Pair, READ, side, simple};
use support::wire::{Frame, Wire, field, frame};

const BOTH: [PoolMode; 2] = [PoolMode::Session, PoolMode::Transaction];
const BROKEN: &str = "ALTER TABLE t RENAME side TO another";
const MENDED: &str = "ALTER TABLE t RENAME another TO side";

fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', &[sql.as_bytes(), b"\0"])
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    frame(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

fn bind(portal: &str, name: &str) -> Vec<u8> {
    frame(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
}

fn execute(portal: &str, rows_max: u32) -> Vec<u8> {
    frame(b'E', &[portal.as_bytes(), b"\0", &rows_max.to_be_bytes()])
}

fn close(name: &str) -> Vec<u8> {
    frame(b'C', &[b"S", name.as_bytes(), b"\0"])
}

fn sync() -> Vec<u8> {
    frame(b'S', &[])
}

impl Pair {
    async fn wire(&self) -> Wire {
        drop(self.client().await);
        Wire::through(self.router.handle.address().port(), "postgres").await
    }
}

/// What was answered, up to so many ReadyForQuery: the values of rows, `ok` of commands, and codes of errors.
async fn answers(wire: &mut Wire, ready: usize) -> Vec<String> {
    let mut said = Vec::new();
    for _ in 0..ready {
        let frames = wire.until(|(tag, _)| *tag == b'Z').await;
        assert_eq!(frames.last().map(|(tag, _)| *tag), Some(b'Z'), "{frames:?}");
        said.extend(frames.iter().filter_map(told));
    }
    said
}

fn told((tag, body): &Frame) -> Option<String> {
    match tag {
        // One column.
        b'D' => Some(String::from_utf8_lossy(&body[6..]).into_owned()),
        b'C' => Some("ok".to_owned()),
        b'E' => Some(field(body, b'C')),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_behind_a_read_is_done_once() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let mut wire = pair.wire().await;
        pair.target.execute(BROKEN).await;
        for id in 10..14 {
            let insert = query(&format!("INSERT INTO t VALUES ({id}, 'x')"));
            wire.send(&query(READ)).await;
            // Right behind it, while the follower is being connected to or asked.
            wire.send(&insert).await;
            assert_eq!(answers(&mut wire, 2).await, ["source", "ok", "ok"], "{mode:?} {id}");
        }
        assert_eq!(pair.source.scalar("SELECT count(*) FROM t").await.as_deref(), Some("5"));
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_reads_that_has_failed_does_not_come_to_life() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let mut wire = pair.wire().await;
        pair.source.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(2, 200) i").await;
        pair.target.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(2, 200) i").await;
        wire.send(&query("BEGIN READ ONLY")).await;
        assert_eq!(answers(&mut wire, 1).await, ["ok"]);
        wire.send(&query("SELECT 1 / (150 - id) FROM t ORDER BY id")).await;
        assert_eq!(answers(&mut wire, 1).await.last().map(String::as_str), Some("22012"));
        for refused in [READ, "SET work_mem = '77MB'", "SELECT 1"] {
            wire.send(&query(refused)).await;
            assert_eq!(answers(&mut wire, 1).await, ["25P02"], "{refused}");
        }
        wire.send(&query("COMMIT")).await;
        wire.send(&query("SHOW work_mem")).await;
        assert_eq!(answers(&mut wire, 2).await, ["ok", "4MB", "ok"]);
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_the_follower_did_not_parse_is_parsed_again() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let mut wire = pair.wire().await;
        pair.target.execute(BROKEN).await;
        let first = [parse("s", READ), bind("", "s"), execute("", 0), sync()].concat();
        let again = [bind("", "s"), execute("", 0), sync()].concat();
        wire.send(&first).await;
        assert_eq!(answers(&mut wire, 1).await, ["source", "ok"], "{mode:?}");
        wire.send(&again).await;
        assert_eq!(answers(&mut wire, 1).await, ["source", "ok"], "{mode:?}");
        pair.target.execute(MENDED).await;
        wire.send(&again).await;
        assert_eq!(answers(&mut wire, 1).await, ["target", "ok"], "{mode:?}");
        pair.router.release_to(Side::Target);
        for _ in 0..3 {
            wire.send(&again).await;
            assert_eq!(answers(&mut wire, 1).await, ["target", "ok"], "{mode:?}");
        }
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_the_follower_refuses_keeps_its_session_with_the_owner() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let client = pair.client().await;
        pair.source.execute("CREATE TEXT SEARCH CONFIGURATION mine (COPY = simple)").await;
        client.batch_execute("SET default_text_search_config = 'public.mine'").await.unwrap();
        for _ in 0..8 {
            assert_eq!(side(&client).await, "source");
        }
        client.batch_execute("RESET default_text_search_config").await.unwrap();
        assert_eq!(side(&client).await, "target", "it was nobody's failure");
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_behind_a_close_is_repeated_as_well() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let mut wire = pair.wire().await;
        let group = [close("gone"), sync(), parse("", READ), bind("", ""), execute("", 0), sync()].concat();
        wire.send(&group).await;
        assert_eq!(answers(&mut wire, 2).await, ["target", "ok"]);
        pair.target.execute(BROKEN).await;
        wire.send(&group).await;
        assert_eq!(answers(&mut wire, 2).await, ["source", "ok"]);
        pair.target.execute(MENDED).await;
        let lock = pair.target.connect("postgres").await;
        lock.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
        wire.send(&group).await;
        assert_eq!(answers(&mut wire, 2).await, ["source", "ok"]);
        drop(lock);
        // One that closes what it has used would not find it again, and is the owner's.
        wire.send(&parse("e", READ)).await;
        wire.send(&sync()).await;
        wire.send(&[bind("", "e"), execute("", 0), close("e"), sync()].concat()).await;
        assert_eq!(answers(&mut wire, 2).await, ["source", "ok"]);
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_group_within_a_transaction_of_reads_is_the_owners() {
    let pair = Pair::start(PoolMode::Transaction).await;
    let mut wire = pair.wire().await;
    wire.send(&query("BEGIN READ ONLY")).await;
    assert_eq!(answers(&mut wire, 1).await, ["ok"]);
    wire.send(&query(READ)).await;
    assert_eq!(answers(&mut wire, 1).await, ["target", "ok"]);
    let one = [parse("", &format!("{READ} -- {}", "x".repeat(1_000))), bind("", ""), execute("", 0)].concat();
    let group = [one.repeat(80), sync()].concat();
    assert!(group.len() > 64 * 1024);
    // Exactly so much is there, and nothing more for a while.
    wire.send(&group[..64 * 1024]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    wire.send(&group[64 * 1024..]).await;
    let said = answers(&mut wire, 1).await;
    assert!(said.len() == 160 && said.iter().all(|said| said == "source" || said == "ok"), "{said:?}");
    drop(wire);
    pair.router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_not_torn() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let client = pair.client().await;
        let level = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ";
        client.batch_execute(level).await.unwrap();
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(side(&client).await, "source");
        client.batch_execute("COMMIT").await.unwrap();
        let url = format!("{} options='-c default_transaction_isolation=serializable'", pair.router.url());
        let client = pair.router.try_connect(&url).await.unwrap();
        assert_eq!(side(&client).await, "source");
        // A default of a role or a database is not seen in the session: where there is one, no transaction goes.
        pair.source
            .execute("ALTER DATABASE postgres SET default_transaction_isolation = 'repeatable read'")
            .await;
        pair.learn().await;
        let client = pair.router.connect().await;
        let since = Instant::now();
        loop {
            client.batch_execute("BEGIN READ ONLY").await.unwrap();
            let served_by = side(&client).await;
            client.batch_execute("COMMIT").await.unwrap();
            if served_by == "source" {
                break;
            }
            // The catalog is heard of in a moment.
            assert!(since.elapsed() < Duration::from_secs(20), "{mode:?}");
        }
        assert_eq!(side(&client).await, "target", "a read of its own is none of its business");
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_that_is_read_bit_by_bit_stays_in_one_place() {
    let pair = Pair::start(PoolMode::Transaction).await;
    let mut wire = pair.wire().await;
    pair.source.execute("INSERT INTO t VALUES (2, 'second')").await;
    for portal in ["c", ""] {
        wire.send(&query("BEGIN READ ONLY")).await;
        assert_eq!(answers(&mut wire, 1).await, ["ok"]);
        wire.send(&query(READ)).await;
        assert_eq!(answers(&mut wire, 1).await, ["target", "ok"]);
        let all = "SELECT side FROM t ORDER BY id";
        wire.send(&[parse("", all), bind(portal, ""), execute(portal, 1), sync()].concat()).await;
        wire.send(&[execute(portal, 1), sync()].concat()).await;
        assert_eq!(answers(&mut wire, 2).await, ["source", "second"], "{portal:?}");
        wire.send(&query("COMMIT")).await;
        assert_eq!(answers(&mut wire, 1).await, ["ok"]);
    }
    pair.router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_write_counts_however_it_is_sent() {
    let pair = Pair::start(PoolMode::Transaction).await;
    let mut wire = pair.wire().await;
    let reader = pair.router.connect().await;
    let of_acme = format!("{READ} /*segue_tenant='acme'*/");
    pair.shows(Instant::now() - Duration::from_millis(500));
    assert_eq!(simple(&reader, &of_acme).await, "target");
    let write = "UPDATE t SET side = 'written' WHERE id = 1 /*segue_tenant='acme'*/";
    wire.send(&[parse("w", write), sync()].concat()).await;
    wire.send(&query("SELECT 1")).await;
    answers(&mut wire, 2).await;
    // Not parsed again, and something that takes its time behind it.
    wire.send(&[bind("", "w"), execute("", 0), sync(), query("SELECT pg_sleep(1)")].concat()).await;
    assert_eq!(answers(&mut wire, 1).await, ["ok"]);
    assert_eq!(simple(&reader, &of_acme).await, "written");
    pair.router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_reads_outlives_the_follower_and_what_it_has_not_seen() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let client = pair.client().await;
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(side(&client).await, "target");
        // The follower does not show enough any more.
        pair.shows(Instant::now() - Duration::from_secs(60));
        assert_eq!(side(&client).await, "source");
        client.batch_execute("COMMIT").await.unwrap();
        pair.shows_all();
        client.batch_execute("BEGIN READ ONLY").await.unwrap();
        assert_eq!(side(&client).await, "target");
        pair.target.stop_immediate().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(side(&client).await, "source");
        assert_eq!(simple(&client, "SHOW transaction_read_only").await, "on");
        client.batch_execute("COMMIT").await.unwrap();
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_bye_within_a_transaction_of_reads_leaves_nothing_behind() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        // So often that failures in a row would open the breaker.
        for _ in 0..6 {
            let mut wire = pair.wire().await;
            wire.send(&query("BEGIN READ ONLY")).await;
            assert_eq!(answers(&mut wire, 1).await, ["ok"]);
            wire.send(&query(READ)).await;
            assert_eq!(answers(&mut wire, 1).await, ["target", "ok"], "{mode:?}");
            wire.send(&frame(b'X', &[])).await;
            assert_eq!(wire.rest().await, [], "{mode:?}");
        }
        let until = Instant::now() + Duration::from_secs(10);
        while pair.router.handle.clients() > 0 {
            assert!(Instant::now() < until, "{mode:?}: a session does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(pair.router.hold().await.is_quiet());
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        assert_eq!(pair.source.scalar(open).await.as_deref(), Some("0"), "{mode:?}");
        assert_eq!(pair.router.handle.breaker().0, BreakerState::Closed, "{mode:?}");
        assert_eq!(pair.router.counts().reads_failed, 0, "{mode:?}");
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_is_named_beside_the_write_reads_it() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        drop(pair.client().await);
        let of = async |tenant: &str| {
            let url = format!("{} options='-c segue.tenant={tenant}'", pair.router.url());
            pair.router.try_connect(&url).await.unwrap()
        };
        let write = "UPDATE t SET side = 'written' WHERE id = 1";
        for (own, names, tenants) in [
            ("o1", format!("SET segue.tenant = 'a1'; {write}"), &["a1"][..]),
            ("o2", format!("SET LOCAL segue.tenant = 'a2'; {write}"), &["a2", "o2"]),
            ("o3", format!("SET segue.tenant = 'a3'; {write}; SET segue.tenant = 'a4'"), &["a3", "a4", "o3"]),
        ] {
            let writer = of(own).await;
            pair.shows(Instant::now() - Duration::from_millis(500));
            for tenant in tenants {
                assert_eq!(
                    side(&of(tenant).await).await,
                    "target",
                    "{mode:?}: {tenant} has written nothing yet"
                );
            }
            writer.batch_execute("BEGIN").await.unwrap();
            for statement in names.split("; ") {
                writer.batch_execute(statement).await.unwrap();
            }
            writer.batch_execute("COMMIT").await.unwrap();
            for tenant in tenants {
                assert_eq!(side(&of(tenant).await).await, "written", "{mode:?}: {names} for {tenant}");
            }
        }
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_behind_a_close_is_sent_as_a_whole_although_the_route_changes() {
    for mode in BOTH {
        let waits = |config: &mut Config| config.reads.wait_max = Duration::from_secs(10);
        let pair = Pair::start_with(mode, waits).await;
        let mut wire = pair.wire().await;
        // It has seen what the follower does not show yet.
        pair.shows(Instant::now() - Duration::from_secs(60));
        let read = [parse("", READ), bind("", ""), execute("", 0), sync()].concat();
        wire.send(&read).await;
        assert_eq!(answers(&mut wire, 1).await, ["source", "ok"]);
        let lock = pair.target.connect("postgres").await;
        lock.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
        // While it waits for the follower a route comes that leads to the same place; and then the follower is late.
        wire.send(&[close("gone"), sync(), read].concat()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        pair.router.routes.send_modify(|heard| heard.revision += 1);
        pair.shows_all();
        assert_eq!(answers(&mut wire, 2).await, ["source", "ok"], "{mode:?}");
        assert_eq!(pair.router.counts().reads_repeated, 1, "{mode:?}");
        wire.send(&query("SELECT 7")).await;
        assert_eq!(answers(&mut wire, 1).await, ["7", "ok"], "{mode:?}: an answer to something else");
        drop(lock);
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_beside_the_end_of_a_failed_transaction_of_reads_is_the_owners() {
    for mode in BOTH {
        let pair = Pair::start(mode).await;
        let mut wire = pair.wire().await;
        let fill = "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(2, 200) i";
        pair.source.execute(fill).await;
        pair.target.execute(fill).await;
        let execute = |sql: &str| [parse("", sql), bind("", ""), execute("", 0)].concat();
        let insert = |id: u32| format!("INSERT INTO t VALUES ({id}, 'x')");
        let (both, none) = (&["ok", "ok"][..], &["25P02", "ok"][..]);
        for (returned, id, behind, expected) in [
            (0, 1_000, vec![query("ROLLBACK"), query("SELECT 1")], &["ok", "1", "ok"][..]),
            (1, 1_001, vec![query(&format!("ROLLBACK; {}", insert(1_001)))], both),
            (2, 1_002, vec![[execute("COMMIT"), execute(&insert(1_002)), sync()].concat()], both),
            // It fails at the first, as it would anywhere.
            (
                3,
                1_003,
                vec![query(&format!("SELECT 1; ROLLBACK; {}", insert(1_003))), query("ROLLBACK")],
                none,
            ),
        ] {
            wire.send(&query("BEGIN READ ONLY")).await;
            assert_eq!(answers(&mut wire, 1).await, ["ok"]);
            wire.send(&query("SELECT 1 / (150 - id) FROM t ORDER BY id")).await;
            assert_eq!(answers(&mut wire, 1).await.last().map(String::as_str), Some("22012"));
            let mut said = Vec::new();
            for group in behind {
                wire.send(&group).await;
                said.extend(answers(&mut wire, 1).await);
            }
            assert_eq!(said, expected, "{mode:?} {id}");
            assert_eq!(pair.router.counts().reads_returned, returned, "{mode:?} {id}");
            let found = format!("SELECT count(*) FROM t WHERE id = {id}");
            let is_there = if expected == both { "1" } else { "0" };
            assert_eq!(pair.source.scalar(&found).await.as_deref(), Some(is_there), "{mode:?} {id}");
            assert_eq!(pair.target.scalar(&found).await.as_deref(), Some("0"), "{mode:?} {id}");
        }
        pair.router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_does_not_open_a_transaction_again_is_given_up() {
    for mode in BOTH {
        let limits = |config: &mut Config| config.limits.connect_max = Duration::from_secs(1);
        let pair = Pair::start_with(mode, limits).await;
        let mut wire = pair.wire().await;
        // So that there is a connection to the owner.
        wire.send(&query("SELECT pg_backend_pid() IS NULL")).await;
        assert_eq!(answers(&mut wire, 1).await, ["f", "ok"]);
        wire.send(&query("BEGIN READ ONLY")).await;
        assert_eq!(answers(&mut wire, 1).await, ["ok"]);
        wire.send(&query(READ)).await;
        assert_eq!(answers(&mut wire, 1).await, ["target", "ok"], "{mode:?}");
        pair.source.freeze();
        let since = Instant::now();
        wire.send(&query("SHOW work_mem")).await;
        let said: Vec<_> = wire.rest().await.iter().filter_map(told).collect();
        assert_eq!(said, ["08006"], "{mode:?}");
        assert!(since.elapsed() < Duration::from_secs(20), "{mode:?}");
        pair.source.thaw();
        pair.router.drain().await;
    }
}
