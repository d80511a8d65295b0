//! Looks at a server's health, on the oldest, the distribution's and the newest version: each names what it should, and
//! nothing else.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use segue_model::name::QualifiedName;
use segue_postgres::asking::Remembering;
use segue_postgres::catalog::columns::{ColumnForm, columns};
use segue_postgres::connect::Endpoint;
use segue_postgres::health::{self, Replica, StatefulSession, Transaction};
use segue_postgres::probe::Probe;
use segue_postgres::schema;
use segue_testkit::cluster::{StandbyOptions, connect};
use segue_testkit::{Cluster, Options};
use std::future::Future;
use std::time::Duration;
use tokio_postgres::Client;

const MAJORS: [u16; 3] = [12, 15, 18];

const DDL: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE outside (id int PRIMARY KEY);
    CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
    INSERT INTO t VALUES (1, 'a');
    CREATE ROLE app LOGIN PASSWORD 'app'; CREATE ROLE other LOGIN PASSWORD 'app';
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app, other;";

struct World {
    cluster: Cluster,
    /// As Segue looks.
    health: Remembering,
}

impl World {
    async fn start(options: Options) -> World {
        let cluster = Cluster::start(options).await;
        cluster.execute(DDL).await;
        let endpoint = Endpoint::parse(&cluster.url("postgres")).unwrap();
        let health = health::session(&endpoint, Duration::from_secs(5)).await.unwrap();
        World { cluster, health }
    }

    /// A session of somebody's, who calls itself so.
    async fn session(&self, role: &str, application: &str) -> Client {
        let url = self.cluster.url("postgres");
        let at = url.find('@').unwrap();
        let client = connect(&format!("postgres://{role}:app{}", &url[at..])).await.unwrap();
        client.batch_execute(&format!("SET application_name = '{application}'")).await.unwrap();
        client
    }

    async fn transactions(&self) -> Vec<Transaction> {
        health::transactions(&self.health, &tables()).await.unwrap()
    }

    async fn state(&self) -> Vec<StatefulSession> {
        health::sessions_with_state(&self.health).await.unwrap()
    }
}

fn tables() -> Vec<QualifiedName> {
    ["t", "parts"].map(|name| QualifiedName::new("public", name)).to_vec()
}

/// One server after the other: a test is about all of them.
async fn on_each<F: Future<Output = ()>>(test: impl Fn(World, u16) -> F) {
    for major in MAJORS {
        test(World::start(Options::major(major)).await, major).await;
    }
}

/// What another session does takes a moment to be shown.
async fn until<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F) -> T {
    for _ in 0..500 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came to that")
}

#[tokio::test]
async fn a_transaction_with_a_lock_on_the_tables_is_named_and_others_are_not() {
    on_each(|world, _| async move {
        assert_eq!(world.transactions().await, []);
        let writer = world.session("app", "forgetful").await;
        writer.batch_execute("BEGIN; UPDATE t SET v = 'secret' WHERE id = 1").await.unwrap();
        let reader = world.session("app", "report").await;
        reader.batch_execute("BEGIN; SELECT * FROM t; SELECT id FROM parts FOR SHARE").await.unwrap();
        let elsewhere = world.session("app", "elsewhere").await;
        elsewhere.batch_execute("BEGIN; INSERT INTO outside VALUES (1)").await.unwrap();
        let ours = world.session("app", "segue apply").await;
        ours.batch_execute("BEGIN; INSERT INTO t VALUES (2, 'b')").await.unwrap();

        let found = world.transactions().await;
        let [one] = &found[..] else { panic!("{found:?}") };
        assert!(one.age.unwrap() < Duration::from_secs(60));
        let words = one.to_string();
        assert!(words.contains("(app in postgres, 'forgetful', idle in transaction: "), "{words}");
        assert!(words.contains("UPDATE t SET v = ? WHERE id = ?") && !words.contains("secret"), "{words}");
        writer.batch_execute("COMMIT").await.unwrap();

        // A leaf counts, and the oldest comes first.
        let first = world.session("app", "first").await;
        first.batch_execute("BEGIN; INSERT INTO parts VALUES (1)").await.unwrap();
        writer.batch_execute("BEGIN; DELETE FROM t").await.unwrap();
        let names: Vec<String> =
            world.transactions().await.into_iter().map(|found| found.by.application).collect();
        assert_eq!(names, ["first", "forgetful"]);
    })
    .await;
}

#[tokio::test]
async fn whoever_waits_for_a_lock_on_the_tables_is_named_as_well() {
    let world = World::start(Options::default()).await;
    let reader = world.session("app", "report").await;
    reader.batch_execute("BEGIN; SELECT * FROM t").await.unwrap();
    let ddl = world.cluster.connect("postgres").await;
    ddl.batch_execute("SET application_name = 'release'").await.unwrap();
    let waits = tokio::spawn(async move { ddl.batch_execute("ALTER TABLE t ADD COLUMN w int").await });
    let found = until(|| async {
        let found = world.transactions().await;
        (!found.is_empty()).then_some(found)
    })
    .await;
    assert_eq!(found.len(), 1, "a reader is in nobody's way: {found:?}");
    assert_eq!(found[0].by.application, "release");
    reader.batch_execute("COMMIT").await.unwrap();
    waits.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_prepared_transaction_is_named_also_after_a_restart() {
    on_each(|world, _| async move {
        let app = world.session("app", "xa").await;
        app.batch_execute("BEGIN; INSERT INTO t VALUES (2, 'b'); PREPARE TRANSACTION 'left over'")
            .await
            .unwrap();
        app.batch_execute("BEGIN; INSERT INTO outside VALUES (2); PREPARE TRANSACTION 'elsewhere'")
            .await
            .unwrap();
        let expected = "the prepared transaction 'left over' of app in postgres";
        let found = world.transactions().await;
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        let trouble = health::old_trouble(&world.health).await.unwrap();
        assert_eq!(trouble.len(), 2, "{trouble:?}");
        assert!(trouble.iter().any(|line| line.starts_with(&format!("{expected}, for "))), "{trouble:?}");

        world.cluster.restart().await;
        let endpoint = Endpoint::parse(&world.cluster.url("postgres")).unwrap();
        let health = health::session(&endpoint, Duration::from_secs(5)).await.unwrap();
        let found = health::transactions(&health, &tables()).await.unwrap();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    })
    .await;
}

#[tokio::test]
async fn a_role_that_may_not_see_others_never_takes_their_transactions_for_young() {
    on_each(|world, _| async move {
        let writer = world.session("app", "forgetful").await;
        writer.batch_execute("BEGIN; UPDATE t SET v = 'secret' WHERE id = 1").await.unwrap();
        let blind = world.session("other", "segue health").await;
        let found = health::transactions(&blind, &tables()).await.unwrap();
        let [one] = &found[..] else { panic!("{found:?}") };
        assert_eq!(one.age, None);
        let words = one.to_string();
        assert!(
            words.contains("(app in postgres, 'forgetful'; for how long is shown to pg_read_all_stats only)"),
            "{words}"
        );
        let trouble = health::old_trouble(&blind).await.unwrap();
        assert_eq!(
            trouble,
            ["the role other cannot see what other sessions do: GRANT pg_read_all_stats TO other"]
        );
        assert_eq!(health::application_sessions(&blind).await.unwrap(), 1, "they are counted all the same");
        world.cluster.execute("GRANT pg_read_all_stats TO other").await;
        assert_eq!(health::old_trouble(&blind).await.unwrap(), [""; 0]);
        assert!(health::transactions(&blind, &tables()).await.unwrap()[0].age.is_some());
    })
    .await;
}

#[tokio::test]
async fn sessions_with_advisory_locks_temporary_tables_or_listen_are_named() {
    on_each(|world, major| async move {
        assert_eq!(world.state().await, []);
        let leader = world.session("app", "leader").await;
        leader
            .batch_execute("SELECT pg_advisory_lock(-42); SELECT pg_advisory_lock_shared(1, -2)")
            .await
            .unwrap();
        let staging = world.session("app", "import").await;
        staging
            .batch_execute("CREATE TEMP TABLE rows (id int); CREATE TEMP TABLE bad (id serial)")
            .await
            .unwrap();
        let hears = world.session("app", "hears").await;
        hears.batch_execute("LISTEN news").await.unwrap();
        let ours = world.session("app", "segue fence").await;
        ours.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
        ours.batch_execute("CREATE TEMP TABLE segue_large (no int); LISTEN segue_command").await.unwrap();

        let found = world.state().await;
        let words: Vec<&str> = found.iter().map(|session| session.words.as_str()).collect();
        let [locks, tables, listens] = words[..] else { panic!("{words:?}") };
        assert!(locks.ends_with("(app, 'leader') holds the advisory locks (1, -2), -42"), "{locks}");
        if major >= 16 {
            assert!(tables.ends_with("(app, 'import') has made temporary tables: bad, rows"), "{tables}");
        } else {
            assert!(
                tables.starts_with("a session of app has made temporary tables: bad, rows (or "),
                "{tables}"
            );
        }
        assert!(listens.ends_with("(app, 'hears') listens for notifications"), "{listens}");
        assert!(found.iter().all(|session| session.is_certain));
        assert_eq!(found[0].session.unwrap().0, pid(&leader).await);

        leader.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
        drop((staging, hears));
        until(|| async { world.state().await.is_empty().then_some(()) }).await;
    })
    .await;
}

#[tokio::test]
async fn of_a_session_in_a_transaction_it_is_not_known_whose_the_lock_is() {
    let world = World::start(Options::default()).await;
    let app = world.session("app", "app").await;
    app.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await.unwrap();
    let found = world.state().await;
    assert!(found.len() == 1 && !found[0].is_certain, "{found:?}");
    app.batch_execute("COMMIT").await.unwrap();
    assert_eq!(world.state().await, []);
}

async fn pid(client: &Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn free_connections_are_what_is_left_without_the_reserved_ones() {
    on_each(|world, major| async move {
        // A session that was ended is there for a moment longer.
        let free = async |count| {
            let free = || async { health::free_connections(&world.health).await.unwrap() };
            until(|| async { (free().await == count).then_some(()) }).await;
        };
        let used = async || health::application_sessions(&world.health).await.unwrap();
        // 100, of which 3 are for superusers; one is ours.
        free(96).await;
        assert_eq!(used().await, 0);
        let held = [world.session("app", "a").await, world.session("app", "b").await];
        free(94).await;
        assert_eq!(used().await, 2);
        // The database's own limit counts if it is less.
        world.cluster.execute("ALTER DATABASE postgres CONNECTION LIMIT 10").await;
        free(7).await;
        world.cluster.execute("ALTER DATABASE postgres CONNECTION LIMIT -1").await;
        if major >= 16 {
            drop(held);
            world.cluster.set("reserved_connections", "20").await;
            world.cluster.restart().await;
            let endpoint = Endpoint::parse(&world.cluster.url("postgres")).unwrap();
            let again = health::session(&endpoint, Duration::from_secs(5)).await.unwrap();
            assert_eq!(health::free_connections(&again).await.unwrap(), 76);
        }
    })
    .await;
}

#[tokio::test]
async fn a_load_is_that_of_others_and_a_probe_waits_as_they_do() {
    on_each(|world, _| async move {
        let load = || async { health::load(&world.health).await.unwrap() };
        let quiet = load().await;
        assert_eq!((quiet.active_sessions, quiet.lock_waits, quiet.is_partly_hidden), (0, 0, false));
        assert!(quiet.standbys.is_empty() && quiet.flushed > Some(0));
        let endpoint = Endpoint::parse(&world.cluster.url("postgres")).unwrap();
        schema::ensure(&mut endpoint.connect("schema").await.unwrap()).await.unwrap();
        let mut probe = Probe::of(endpoint, "m");
        for _ in 0..2 {
            assert!(probe.write().await.unwrap() < Duration::from_secs(2));
        }
        assert_eq!(world.cluster.scalar("SELECT count(*) FROM segue.probe").await.as_deref(), Some("1"));

        // In the way of a session of the application's, and of the probe's.
        let holder = world.cluster.connect("postgres").await;
        holder.batch_execute("BEGIN; LOCK TABLE t; UPDATE segue.probe SET at = now()").await.unwrap();
        let waiting = world.session("app", "report").await;
        let waits = tokio::spawn(async move { waiting.batch_execute("SELECT FROM t").await });
        until(|| async {
            let now = load().await;
            ((now.active_sessions, now.lock_waits) == (1, 1)).then_some(())
        })
        .await;
        let blind = world.session("other", "segue health").await;
        assert!(health::load(&blind).await.unwrap().is_partly_hidden, "hidden is not absent");
        let late = probe.write().await.unwrap();
        assert!(late > Duration::from_millis(1_900), "as late as it was waited for: {late:?}");
        holder.batch_execute("ROLLBACK; DROP TABLE segue.probe").await.unwrap();
        waits.await.unwrap().unwrap();
        let why = probe.write().await.unwrap_err();
        assert!(why.contains("segue.probe"), "{why}");
    })
    .await;
}

async fn a_standby_is_measured_on(major: u16) {
    let world = World::start(Options::major(major)).await;
    assert_eq!(health::replicas(&world.health).await.unwrap(), []);
    // A logical stream is no replica.
    world.cluster.execute("SELECT pg_create_logical_replication_slot('logical', 'pgoutput')").await;
    let standby = Cluster::standby_of(&world.cluster, StandbyOptions::named("b")).await;
    let replicas = || async { health::replicas(&world.health).await.unwrap() };
    let in_step = || async {
        until(|| async { (replicas().await == [Replica { name: "b".into(), lag_ms: 0 }]).then_some(()) })
            .await;
    };
    in_step().await;
    standby.pause().await;
    world.cluster.execute("INSERT INTO t VALUES (2, 'b')").await;
    let behind =
        until(|| async { replicas().await.first().map(|b| b.lag_ms).filter(|lag_ms| *lag_ms > 1_000) }).await;
    assert!(behind < 60_000, "{behind}");
    let load = health::load(&world.health).await.unwrap();
    assert!(load.standbys[0].replayed.is_some_and(|at| Some(at) < load.flushed), "{load:?}");
    let blind = world.session("other", "segue health").await;
    let hidden = health::replicas(&blind).await.unwrap();
    assert_eq!(hidden, [Replica { name: "b".into(), lag_ms: u64::MAX }], "hidden is not absent");
    let trouble = health::old_trouble(&world.health).await.unwrap();
    assert!(trouble.iter().any(|line| line.starts_with("the replica b is ")), "{trouble:?}");
    assert!(
        trouble.iter().any(|line| line.starts_with("the slot logical is read by nobody and keeps ")),
        "{trouble:?}"
    );
    standby.unpause();
    in_step().await;
    let trouble = health::old_trouble(&world.health).await.unwrap();
    assert_eq!(trouble.len(), 1, "the slot alone: {trouble:?}");
    let slots = health::slots(&world.health).await.unwrap();
    let seen: Vec<_> = slots.iter().map(|slot| (slot.name.as_str(), slot.active)).collect();
    assert_eq!(seen, [("b", true), ("logical", false)]);
    assert_eq!(slots[0].wal_status.is_empty(), major < 13);
}

#[tokio::test]
async fn a_standby_is_measured_on_the_oldest_server() {
    a_standby_is_measured_on(12).await;
}

#[tokio::test]
async fn a_standby_is_measured() {
    a_standby_is_measured_on(15).await;
}

#[tokio::test]
async fn a_standby_is_measured_on_the_newest_server() {
    a_standby_is_measured_on(18).await;
}

#[tokio::test]
async fn columns_are_those_of_now() {
    on_each(|world, _| async move {
        let names: Vec<QualifiedName> =
            ["t", "gone", "bare"].map(|name| QualifiedName::new("public", name)).to_vec();
        world
            .cluster
            .execute(
                "CREATE TABLE bare (); ALTER TABLE t DROP v, ADD \"V\" numeric(7,2) NOT NULL DEFAULT 0,
                 ADD twice int GENERATED ALWAYS AS (id * 2) STORED",
            )
            .await;
        let found = columns(&world.health, &names).await.unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[&names[2]].is_empty());
        let form = |sql_type: &str, not_null, generated, optional| ColumnForm {
            sql_type: sql_type.into(),
            not_null,
            generated,
            optional,
        };
        let expected = [
            ("V".to_owned(), form("numeric(7,2)", true, false, true)),
            ("id".to_owned(), form("integer", true, false, false)),
            ("twice".to_owned(), form("integer", false, true, true)),
        ];
        assert_eq!(found[&names[0]].clone().into_iter().collect::<Vec<_>>(), expected);
    })
    .await;
}

#[tokio::test]
async fn a_look_is_bounded() {
    let world = World::start(Options::default()).await;
    let endpoint = Endpoint::parse(&world.cluster.url("postgres")).unwrap();
    let health = health::session(&endpoint, Duration::from_millis(50)).await.unwrap();
    let error = health.batch_execute("SELECT pg_sleep(60)").await.expect_err("it takes too long");
    assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
}

#[tokio::test]
async fn a_slot_whose_backlog_is_read_by_way_of_a_copy_is_not_abandoned() {
    let World { cluster, health } = World::start(Options::default().with("wal_level", "logical")).await;
    cluster.execute("SELECT pg_create_logical_replication_slot('segue_m_fwd', 'pgoutput')").await;
    let seen = async || {
        let slots = health::slots(&health).await.unwrap();
        slots.into_iter().map(|slot| (slot.name, slot.active)).collect::<Vec<_>>()
    };
    assert_eq!(seen().await, [("segue_m_fwd".to_owned(), false)]);
    let reader = cluster.connect("postgres").await;
    let copy = "SELECT pg_copy_logical_replication_slot('segue_m_fwd', 'segue_backlog_7', true)";
    reader.batch_execute(copy).await.unwrap();
    assert_eq!(seen().await, [("segue_m_fwd".to_owned(), true)]);
}
