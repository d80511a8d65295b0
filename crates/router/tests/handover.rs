//! Writes handed over between two real servers, while clients go on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_model::switch::Side;
use segue_model::switch::route::Route;
use segue_router::{ClientAuth, Databases, Heard, PoolMode};
use segue_testkit::{Cluster, Options};
use std::time::{Duration, Instant};
use support::wire::{Wire, field, frame};
use support::{Running, config, said};
use tokio_postgres::SimpleQueryMessage;

/// A fence, as the product puts it up; `constraint` names it.
fn fence(constraint: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS t (i int);
         CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'not here' USING ERRCODE = '25006', CONSTRAINT = '{constraint}'; END $$;
         CREATE OR REPLACE TRIGGER fence BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )
}

async fn pair() -> (Cluster, Cluster) {
    let (source, target) =
        tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
    // Both are asked for the same password.
    target.execute(&format!("ALTER ROLE postgres PASSWORD '{}'", source.password())).await;
    (source, target)
}

/// Waits until a server answers so: sessions of the tests' own end a moment after their answer.
async fn comes_to(server: &Cluster, sql: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let found = server.scalar(sql).await;
        if found.as_deref() == Some(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{sql}: {found:?}, and not {wanted}");
        tokio::task::yield_now().await;
    }
}

async fn bench(mode: PoolMode, protocol: &str) {
    let (source, target) = pair().await;
    let router = Running::start(config(&source, &target, mode), source.password()).await;
    for side in [Side::Source, Side::Target] {
        router.release_to(side);
        said(&router.run("pgbench", &["-i", "-q", "-s", "1"]).await);
    }
    let arguments = ["-M", protocol, "-c", "6", "-T", "18", "-n", "--max-tries", "1"];
    let mut running = router.command("pgbench", &arguments);
    running.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = running.spawn().unwrap();
    let servers = [&source, &target];
    let begun =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench' AND xact_start IS NOT NULL";
    let rows = "SELECT count(*) FROM pgbench_history";
    for handover in 0..12 {
        let (old, side) = if handover % 2 == 0 { (1, Side::Source) } else { (0, Side::Target) };
        router.hold().await;
        assert_eq!(servers[old].scalar(begun).await.as_deref(), Some("0"), "a held router is quiet");
        let new = servers[1 - old];
        let before = new.scalar(rows).await;
        router.release_to(side);
        while new.scalar(rows).await == before {
            tokio::task::yield_now().await;
            assert!(child.try_wait().unwrap().is_none(), "the clients go on");
        }
    }
    // SIGINT would lose the report, so the clients are waited for; the hand-overs are long over.
    let output = child.wait_with_output().await.unwrap();
    let report = said(&output);
    assert!(report.contains("failed transactions: 0 "), "{report}");
    let done =
        report.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let done: u64 = done.unwrap().split('/').next().unwrap().parse().unwrap();
    let mut kept = 0;
    for server in servers {
        kept += server.scalar(rows).await.unwrap().parse::<u64>().unwrap();
    }
    assert_eq!(kept, done, "every acknowledged transaction is on one server, and none on both");
    assert!(router.counts().parked > 0 && router.counts().exchanges > 0 || mode == PoolMode::Transaction);
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dozen_handovers_are_not_noticed_by_sessions_that_prepare() {
    bench(PoolMode::Session, "prepared").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dozen_handovers_are_not_noticed_where_servers_are_shared() {
    bench(PoolMode::Transaction, "prepared").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dozen_handovers_are_not_noticed_by_simple_queries() {
    bench(PoolMode::Transaction, "simple").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_statement_that_the_fence_refused_is_done_by_the_new_owner() {
    let (source, target) = pair().await;
    source.execute(&fence("segue:m")).await;
    target.execute("CREATE TABLE t (i int)").await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let router = Running::start(config(&source, &target, mode), source.password()).await;
        let (extended, simple) = (router.connect().await, router.connect().await);
        let prepared = extended.prepare("INSERT INTO t VALUES ($1)").await.unwrap();
        let inserts = tokio::spawn(async move {
            let (a, b) = tokio::join!(
                extended.execute(&prepared, &[&1]),
                simple.batch_execute("INSERT INTO t VALUES (2)")
            );
            (a.unwrap(), b.unwrap())
        });
        while router.counts().parked < 2 {
            tokio::task::yield_now().await;
        }
        assert!(!inserts.is_finished());
        router.release_to(Side::Target);
        inserts.await.unwrap();
        assert_eq!(router.counts().repeated, 2);
        let (times, pools) = (router.handle.parked_times(), router.handle.pools());
        assert!(times.count() >= 2 && times.max() < Duration::from_secs(20), "{times:?}");
        let used: Vec<_> = pools.iter().map(|pool| (pool.side, pool.connections_max)).collect();
        match mode {
            PoolMode::Session => assert_eq!(used, []),
            PoolMode::Transaction => assert_eq!(used, [(Side::Source, 8), (Side::Target, 8)]),
        }
        assert_eq!(target.scalar("SELECT count(*) FROM t").await.as_deref(), Some("2"));
        target.execute("TRUNCATE t").await;
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_in_a_hold_has_its_server_on_the_other_side_already() {
    let (source, target) = pair().await;
    let router = Running::start(config(&source, &target, PoolMode::Session), source.password()).await;
    let url = format!("{} application_name=tests", router.url());
    let client = router.try_connect(&url).await.unwrap();
    router.hold().await;
    let waiting = tokio::spawn(async move { client.simple_query("SELECT 1").await.map(|_| client) });
    let there = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tests'";
    // The server knows of it before the router does.
    while target.scalar(there).await.as_deref() != Some("1") || router.counts().connects < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    router.release_to(Side::Target);
    let client = waiting.await.unwrap().unwrap();
    assert_eq!((router.counts().connects, router.counts().exchanges), (2, 1), "it is the one that is used");
    // What was opened for nothing is closed.
    router.hold().await;
    let waiting = tokio::spawn(async move { client.simple_query("SELECT 1").await.map(|_| client) });
    while source.scalar(there).await.as_deref() != Some("1") {
        tokio::task::yield_now().await;
    }
    router.release_to(Side::Target);
    let _client = waiting.await.unwrap().unwrap();
    while source.scalar(there).await.as_deref() != Some("0") {
        tokio::task::yield_now().await;
    }
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_served_before_the_writes_leave_has_its_server_on_the_other_side_already() {
    let (source, target) = pair().await;
    // Of the router's own sessions, by the only address that they come from over TCP.
    let there = "SELECT count(*) FROM pg_stat_activity WHERE client_port > 0 AND pid <> pg_backend_pid()";
    let here = "SELECT inet_server_port()";
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        comes_to(&target, there, "0").await;
        let router = Running::start(config(&source, &target, mode), source.password()).await;
        let client = router.connect().await;
        // As a simple query: what is prepared is closed again, behind the answer.
        let port = async || match &client.simple_query(here).await.unwrap()[1] {
            SimpleQueryMessage::Row(row) => row.get(0).unwrap().parse::<u16>().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(port().await, source.port());
        router.routes.send_modify(|heard| *heard = Heard::now(2, heard.route.leaving(60_000)));
        // Who does nothing needs none.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(router.counts().connects, 1);
        while router.counts().connects < 2 {
            assert_eq!(port().await, source.port(), "the writes have not left yet");
        }
        for _ in 0..20 {
            assert_eq!(port().await, source.port());
        }
        assert_eq!(router.counts().connects, 2, "{mode:?}");
        comes_to(&target, there, "1").await;
        router.hold().await;
        router.release_to(Side::Target);
        assert_eq!(port().await, target.port());
        assert_eq!(router.counts().connects, 2, "{mode:?}: what was opened ahead is what serves");
        drop(client);
        router.drain().await;
        comes_to(&target, there, "0").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_before_and_after_the_announcement_is_what_it_was_on_the_new_owner() {
    let (source, target) = pair().await;
    let mut config = config(&source, &target, PoolMode::Session);
    config.auth = ClientAuth::Trust;
    let router = Running::start(config, source.password()).await;
    let parse = |name: &[u8], sql: &[u8]| frame(b'P', &[name, b"\0", sql, b"\0\0\0"]);
    let close = |name: &[u8]| frame(b'C', &[b"S", name, b"\0"]);
    let sync = || frame(b'S', &[]);
    let execute = |name: &[u8]| {
        let bind = frame(b'B', &[b"\0", name, b"\0\0\0\0\0\0\0"]);
        [bind, frame(b'E', &[b"\0\0\0\0\0"]), sync()].concat()
    };
    let said = async |wire: &mut Wire, bytes: &[u8]| -> Vec<String> {
        wire.send(bytes).await;
        let answers = wire.until(|(tag, _)| *tag == b'Z').await;
        assert!(answers.iter().all(|(tag, _)| *tag != b'E'), "{answers:?}");
        let rows = answers.into_iter().filter(|(tag, _)| *tag == b'D');
        rows.map(|(_, body)| String::from_utf8_lossy(&body[6..]).into_owned()).collect()
    };
    let mut keeps = Wire::through(router.handle.address().port(), "postgres").await;
    let mut changes = Wire::through(router.handle.address().port(), "postgres").await;
    for wire in [&mut keeps, &mut changes] {
        let both = [parse(b"s", b"SELECT 'first'"), parse(b"u", b"SELECT 'u'"), sync()].concat();
        said(wire, &both).await;
    }
    router.routes.send_modify(|heard| *heard = Heard::now(2, heard.route.leaving(60_000)));
    for wire in [&mut keeps, &mut changes] {
        assert_eq!(said(wire, &execute(b"s")).await, ["first"]);
    }
    while router.counts().connects < 4 {
        tokio::task::yield_now().await;
    }
    let other = [close(b"s"), parse(b"s", b"SELECT 'second'"), sync()].concat();
    said(&mut changes, &other).await;
    router.hold().await;
    router.release_to(Side::Target);
    // It is parsed there when it is bound.
    let there =
        frame(b'Q', &[b"SELECT count(*) || ' at ' || inet_server_port() FROM pg_prepared_statements\0"]);
    assert_eq!(said(&mut keeps, &there).await, [format!("0 at {}", target.port())]);
    assert_eq!(said(&mut changes, &there).await, [format!("0 at {}", target.port())]);
    for (wire, wanted) in [(&mut keeps, "first"), (&mut changes, "second")] {
        assert_eq!(said(wire, &execute(b"s")).await, [wanted]);
        assert_eq!(said(wire, &execute(b"u")).await, ["u"]);
    }
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sql_prepares_and_sets_between_the_announcement_and_the_release_is_so_on_the_new_owner() {
    let (source, target) = pair().await;
    let router = Running::start(config(&source, &target, PoolMode::Session), source.password()).await;
    let (sets, gives_up) = (router.connect().await, router.connect().await);
    for client in [&sets, &gives_up] {
        client.batch_execute("PREPARE p AS SELECT 'first'; LISTEN news").await.unwrap();
    }
    router.routes.send_modify(|heard| *heard = Heard::now(2, heard.route.leaving(60_000)));
    for client in [&sets, &gives_up] {
        client.batch_execute("SELECT 1").await.unwrap();
    }
    while router.counts().connects < 4 {
        tokio::task::yield_now().await;
    }
    sets.batch_execute("SET search_path = pg_catalog").await.unwrap();
    gives_up.batch_execute("DEALLOCATE p; UNLISTEN news").await.unwrap();
    router.hold().await;
    router.release_to(Side::Target);
    let first = async |client: &tokio_postgres::Client, sql: &str| {
        let answers = client.simple_query(sql).await.unwrap();
        let row = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        row.unwrap_or_default()
    };
    assert_eq!(first(&sets, "EXECUTE p").await, "first");
    assert_eq!(first(&sets, "SHOW search_path").await, "pg_catalog");
    assert_eq!(first(&sets, "SELECT pg_listening_channels()").await, "news");
    gives_up.batch_execute("PREPARE p AS SELECT 'second'").await.unwrap();
    assert_eq!(first(&gives_up, "EXECUTE p").await, "second");
    assert_eq!(first(&gives_up, "SELECT pg_listening_channels()").await, "");
    assert_eq!(first(&gives_up, "SELECT inet_server_port()").await, target.port().to_string());
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_opened_ahead_is_closed_where_the_writes_stay() {
    let (source, target) = pair().await;
    let router = Running::start(config(&source, &target, PoolMode::Session), source.password()).await;
    let url = format!("{} application_name=tests", router.url());
    let client = router.try_connect(&url).await.unwrap();
    router.routes.send_modify(|heard| *heard = Heard::now(2, heard.route.leaving(60_000)));
    client.simple_query("SELECT 1").await.unwrap();
    let there = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tests'";
    comes_to(&target, there, "1").await;
    router.routes.send_modify(|heard| *heard = Heard::now(3, Route::to(Side::Source, heard.epoch)));
    client.simple_query("SELECT 1").await.unwrap();
    comes_to(&target, there, "0").await;
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_refusals_are_the_clients() {
    let (source, target) = pair().await;
    for (constraint, sql) in [
        ("", "INSERT INTO t VALUES (1)"),
        ("segue:m", "BEGIN; INSERT INTO t VALUES (1); COMMIT"),
        ("segue:m", "SELECT 1; INSERT INTO t VALUES (1)"),
        ("segue:m", "DO $$ BEGIN INSERT INTO t VALUES (1); END $$"),
    ] {
        source.execute(&fence(constraint)).await;
        let router = Running::start(config(&source, &target, PoolMode::Transaction), source.password()).await;
        let client = router.connect().await;
        let error = client.batch_execute(sql).await.expect_err("refused");
        assert_eq!(error.code().map(|code| code.code()), Some("25006"), "{sql}");
        assert_eq!(router.counts().repeated, 0, "{sql}");
        drop(client);
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_that_stays_is_told_in_time() {
    let (source, target) = pair().await;
    source.execute(&fence("segue:m")).await;
    let mut config = config(&source, &target, PoolMode::Session);
    config.limits.refused_max = Duration::from_secs(3);
    let router = Running::start(config, source.password()).await;
    let client = router.connect().await;
    let error = client.execute("INSERT INTO t VALUES (1)", &[]).await.expect_err("refused");
    assert_eq!(error.code().map(|code| code.code()), Some("25006"));
    // The fence is lifted again while a statement waits: nobody tells the router, and it tries once more.
    let insert = tokio::spawn(async move { client.execute("INSERT INTO t VALUES (1)", &[]).await });
    while router.counts().parked < 2 {
        tokio::task::yield_now().await;
    }
    source.execute("DROP TRIGGER fence ON t").await;
    assert_eq!(insert.await.unwrap().unwrap(), 1);
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_the_same_on_the_new_owner() {
    let (source, target) = pair().await;
    target.execute("CREATE ROLE other").await;
    source.execute("CREATE ROLE other").await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let router = Running::start(config(&source, &target, mode), source.password()).await;
        let client = router.try_connect(&format!("{} application_name=same", router.url())).await.unwrap();
        client.batch_execute("SET work_mem = '1234kB'; SET TIME ZONE 'Asia/Tokyo'").await.unwrap();
        client.batch_execute("SET ROLE other; LISTEN a; PREPARE q AS SELECT 41 + 1").await.unwrap();
        let statement = client.prepare("SELECT $1::int * 2").await.unwrap();
        router.hold().await;
        router.release_to(Side::Target);
        assert_eq!(client.query_one(&statement, &[&4]).await.unwrap().get::<_, i32>(0), 8);
        for (sql, value) in [
            ("SHOW work_mem", "1234kB"),
            ("SHOW timezone", "Asia/Tokyo"),
            ("SHOW application_name", "same"),
            ("SELECT current_user::text", "other"),
            ("SELECT setting FROM pg_settings WHERE name = 'port'", &target.port().to_string()),
            ("SELECT pg_listening_channels()", "a"),
        ] {
            assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, String>(0), value, "{sql}");
        }
        assert_eq!(client.simple_query("EXECUTE q").await.unwrap().len(), 3);
        drop(client);
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_may_have_another_name_on_each_side() {
    let (source, target) = pair().await;
    source.execute("CREATE DATABASE before").await;
    target.execute("CREATE DATABASE after").await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut config = config(&source, &target, mode);
        config.databases = Some(Databases { source: "before".into(), target: "after".into() });
        let router = Running::start(config, source.password()).await;
        let named = |name: &str| format!("{} dbname={name}", router.url());
        let (before, after) = (
            router.try_connect(&named("before")).await.unwrap(),
            router.try_connect(&named("after")).await.unwrap(),
        );
        let other = router.try_connect(&named("postgres")).await.expect_err("another database");
        assert_eq!(other.code().map(|code| code.code()), Some("3D000"));
        for (side, name) in [(None, "before"), (Some(Side::Target), "after")] {
            side.into_iter().for_each(|side| router.release_to(side));
            for client in [&before, &after] {
                let row = client.query_one("SELECT current_database()::text", &[]).await.unwrap();
                assert_eq!(row.get::<_, &str>(0), name);
            }
        }
        drop((before, after));
        router.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_carried_ends_the_session_with_its_reason() {
    let (source, target) = pair().await;
    let router = Running::start(config(&source, &target, PoolMode::Session), source.password()).await;
    let client = router.connect().await;
    client.batch_execute("CREATE TEMP TABLE mine (i int)").await.unwrap();
    router.hold().await;
    router.release_to(Side::Target);
    let error = client.batch_execute("INSERT INTO mine VALUES (1)").await.expect_err("it is not there");
    let error = error.as_db_error().expect("told why");
    assert_eq!(error.code().code(), "57P01");
    assert!(error.message().contains("a temporary table"), "{error}");
    router.drain().await;
}

/// A client that flushes without a Sync is in a transaction, although nothing is owed to it: what the fence refuses there
/// takes back what came before, and is the client's to know.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_behind_flushed_ones_is_not_repeated() {
    let (source, target) = pair().await;
    source.execute(&fence("segue:m")).await;
    source.execute("CREATE TABLE audit (i int)").await;
    target.execute("CREATE TABLE t (i int)").await;
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut config = config(&source, &target, mode);
        config.auth = ClientAuth::Trust;
        let router = Running::start(config, source.password()).await;
        let mut wire = Wire::through(router.handle.address().port(), "postgres").await;
        let group = |sql: &[u8]| {
            let parse = frame(b'P', &[b"\0", sql, b"\0\0\0"]);
            [parse, frame(b'B', &[b"\0\0\0\0\0\0\0\0"]), frame(b'E', &[b"\0\0\0\0\0"])].concat()
        };
        wire.send(&[group(b"INSERT INTO audit VALUES (1)"), frame(b'H', &[])].concat()).await;
        wire.until(|(tag, _)| *tag == b'C').await;
        wire.send(&[group(b"INSERT INTO t VALUES (1)"), frame(b'S', &[])].concat()).await;
        let answers = wire.until(|(tag, _)| *tag == b'Z').await;
        let refused = answers.iter().find(|(tag, _)| *tag == b'E').map(|(_, body)| field(body, b'C'));
        assert_eq!(refused.as_deref(), Some("25006"), "{answers:?}");
        assert_eq!(router.counts().repeated, 0);
        router.drain().await;
    }
    for (server, table) in [(&source, "audit"), (&target, "t")] {
        assert_eq!(server.scalar(&format!("SELECT count(*) FROM {table}")).await.as_deref(), Some("0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_lets_running_transactions_finish_and_nobody_waits_beyond_it() {
    let (source, target) = pair().await;
    let router = Running::start(config(&source, &target, PoolMode::Transaction), source.password()).await;
    let (inside, outside) = (router.connect().await, router.connect().await);
    inside.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let until = Instant::now() + Duration::from_millis(700);
    router.routes.send_modify(|heard| heard.held_until = Some(until));
    let mut taken = router.handle.taken();
    assert_eq!(taken.wait_for(|taken| taken.held).await.unwrap().running, 1);
    let waiting = tokio::spawn(async move {
        outside.batch_execute("SELECT 1").await.unwrap();
        Instant::now()
    });
    inside.batch_execute("SELECT 2; COMMIT").await.unwrap();
    assert!(taken.wait_for(|taken| taken.is_quiet()).await.is_ok());
    assert!(waiting.await.unwrap() >= until, "it went to the old owner, where a fence would judge it");
    router.drain().await;
}
