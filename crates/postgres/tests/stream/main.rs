//! The change stream against real servers, the oldest and the newest source among them.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backlog;
#[path = "../support/mod.rs"]
mod support;

use segue_engine::ports::{ChangeStream, Outcome, StreamEvent};
use segue_model::change::{Action, Change, Leaf, Value};
use segue_model::position::Position;
use segue_model::table::{TableId, UnitId};
use segue_postgres::connect::Endpoint;
use segue_postgres::stream::{Expectation, Opening, PgStream, RelationPlan, StreamPlan, StreamSource};
use segue_testkit::cluster::available_majors;
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use std::time::Duration;
use support::row;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::Client;

struct Source {
    cluster: Cluster,
    client: Client,
    plan: watch::Sender<Arc<StreamPlan>>,
    from: Position,
}

impl Source {
    /// Makes the schema, a publication for all of `tables`, the slot, and a plan.
    async fn start(options: Options, ddl: &str, tables: &[&str]) -> Source {
        let cluster = Cluster::start(options).await;
        let mut client = cluster.connect("postgres").await;
        segue_postgres::schema::ensure(&mut client).await.unwrap();
        client.batch_execute(ddl).await.unwrap();
        let names: String = tables.iter().map(|t| format!(", public.\"{t}\"")).collect();
        client
            .batch_execute(&format!("CREATE PUBLICATION \"p'\"\"\\x\" FOR TABLE segue.signal{names}"))
            .await
            .unwrap();
        let from: String = client
            .query_one("SELECT lsn::text FROM pg_create_logical_replication_slot('s_1', 'pgoutput')", &[])
            .await
            .unwrap()
            .get(0);
        let oid = |name: String| {
            let client = &client;
            async move {
                client.query_one("SELECT ($1::text)::regclass::oid", &[&name]).await.unwrap().get::<_, u32>(0)
            }
        };
        let mut plan = StreamPlan {
            migration: "m".into(),
            signal: oid("segue.signal".into()).await,
            ..StreamPlan::default()
        };
        for (i, name) in tables.iter().enumerate() {
            let table = support::table(&client, i as u32, name).await;
            let relation = RelationPlan {
                table: Arc::new(table),
                unit: UnitId(i as u32),
                leaf: None,
                loose: false,
                expected: vec![],
            };
            plan.relations.insert(oid(format!("public.\"{name}\"")).await, Arc::new(relation));
        }
        Source { cluster, client, plan: watch::channel(Arc::new(plan)).0, from: from.parse().unwrap() }
    }

    async fn open(&self, from: Position) -> PgStream {
        self.try_open(from).await.unwrap()
    }

    async fn try_open(&self, from: Position) -> Outcome<PgStream> {
        let source = StreamSource {
            endpoint: Endpoint::parse(&self.cluster.url("postgres")).unwrap(),
            slot: "s_1".into(),
            publications: vec!["p'\"\\x".into()],
        };
        Opening::begin(source, from).stream(self.plan.subscribe()).await
    }

    /// The same, as soon as a session before it has let go of the slot.
    async fn open_again(&self, from: Position) -> PgStream {
        loop {
            match self.try_open(from).await {
                Ok(stream) => return stream,
                Err(fault) if fault.code == "SEGUE-SLOT-BUSY" => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                Err(fault) => panic!("{fault}"),
            }
        }
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn confirmed(&self) -> Position {
        self.cluster
            .scalar("SELECT confirmed_flush_lsn FROM pg_replication_slots")
            .await
            .unwrap()
            .parse()
            .unwrap()
    }
}

async fn next(stream: &mut PgStream) -> StreamEvent {
    timeout(Duration::from_secs(30), stream.next()).await.expect("an event in time").unwrap()
}

/// The next transaction of something with its end; idle events before it are passed over. Before PostgreSQL 15 those that change
/// nothing come too, such as the server's own.
async fn transaction(stream: &mut PgStream) -> (Vec<StreamEvent>, Position) {
    let mut events = Vec::new();
    loop {
        match next(stream).await {
            StreamEvent::Idle { .. } => assert!(events.is_empty(), "idle within a transaction"),
            StreamEvent::Begin(_) => assert!(events.is_empty(), "begin within a transaction"),
            StreamEvent::Commit { .. } if events.is_empty() => {}
            StreamEvent::Commit { end } => return (events, end),
            event => events.push(event),
        }
    }
}

async fn actions(stream: &mut PgStream) -> Vec<Action> {
    transaction(stream)
        .await
        .0
        .into_iter()
        .map(|event| match event {
            StreamEvent::Change(change) => change.action,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn majors() -> Vec<u16> {
    let all = available_majors();
    [all.first(), all.last()].into_iter().flatten().copied().collect()
}

#[tokio::test]
async fn every_kind_of_change_arrives_from_the_oldest_and_the_newest_source() {
    for major in majors() {
        let source = Source::start(
            Options::major(major),
            "CREATE TABLE t (id int PRIMARY KEY, a text, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL; \
             CREATE TABLE f (a int, big text); ALTER TABLE f ALTER big SET STORAGE EXTERNAL; ALTER TABLE f REPLICA IDENTITY FULL",
            &["t", "f"],
        )
        .await;
        let mut stream = source.open(source.from).await;
        let big = "x".repeat(9000);

        source.run(&format!("INSERT INTO t VALUES (1, NULL, '{big}'), (2, '', 'small')")).await;
        let inserted = actions(&mut stream).await;
        assert_eq!(inserted[0], Action::Insert { new: row(&format!("1 - {big}")) });
        assert_eq!(
            inserted[1],
            Action::Insert {
                new: [support::value("2"), Value::Text("".into()), support::value("small")].into()
            }
        );

        source.run("UPDATE t SET a = 'y' WHERE id = 1").await;
        assert_eq!(actions(&mut stream).await, [Action::Update { old: None, new: row("1 y ~") }]);
        source.run("UPDATE t SET id = 9 WHERE id = 1").await;
        assert_eq!(
            actions(&mut stream).await,
            [Action::Update { old: Some(row("1 - -")), new: row("9 y ~") }]
        );
        source.run("DELETE FROM t WHERE id = 2").await;
        assert_eq!(actions(&mut stream).await, [Action::Delete { old: row("2 - -") }]);
        source.run("BEGIN; INSERT INTO t VALUES (3); TRUNCATE t, f; INSERT INTO t VALUES (4); COMMIT").await;
        let truncated = actions(&mut stream).await;
        let gone = Action::Truncate { leaf: None, within: None };
        assert_eq!(truncated[1..3], [gone.clone(), gone]);
        assert_eq!(truncated.len(), 4);

        source.run(&format!("INSERT INTO f VALUES (1, '{big}')")).await;
        actions(&mut stream).await;
        source.run("UPDATE f SET a = 2").await;
        let expected = Action::Update { old: Some(row(&format!("1 {big}"))), new: row(&format!("2 {big}")) };
        assert_eq!(actions(&mut stream).await, [expected]);
    }
}

#[tokio::test]
async fn only_what_was_committed_arrives_and_prepared_transactions_when_they_commit() {
    let source = Source::start(Options::default(), "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut stream = source.open(source.from).await;
    source.run("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'p'").await;
    source.run("BEGIN; INSERT INTO t VALUES (2); ROLLBACK").await;
    source
        .run("BEGIN; INSERT INTO t VALUES (3); SAVEPOINT a; INSERT INTO t VALUES (4); ROLLBACK TO a; INSERT INTO t VALUES (5); COMMIT")
        .await;
    let insert = |id: &str| Action::Insert { new: row(id) };
    assert_eq!(actions(&mut stream).await, [insert("3"), insert("5")]);
    source.run("COMMIT PREPARED 'p'").await;
    assert_eq!(actions(&mut stream).await, [insert("1")]);
}

#[tokio::test]
async fn a_restart_at_a_commit_delivers_neither_twice_nor_too_little() {
    let source = Source::start(Options::default(), "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut stream = source.open(source.from).await;
    // Transactions that overlap: begun in one order, committed in the other.
    let other = source.cluster.connect("postgres").await;
    other.batch_execute("BEGIN; INSERT INTO t VALUES (100)").await.unwrap();
    for id in 0..5 {
        source.run(&format!("INSERT INTO t VALUES ({id})")).await;
    }
    other.batch_execute("COMMIT").await.unwrap();
    let mut ends = Vec::new();
    for _ in 0..6 {
        ends.push(transaction(&mut stream).await.1);
    }
    drop(stream);
    for (done, end) in ends.iter().enumerate() {
        // Without an acknowledgement the slot still has everything: only the position decides.
        let mut stream = source.open_again(*end).await;
        for expected in &ends[done + 1..] {
            assert_eq!(transaction(&mut stream).await.1, *expected);
        }
    }
}

#[tokio::test]
async fn acknowledging_moves_the_slot_and_nothing_else_does() {
    let source = Source::start(Options::default(), "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut stream = source.open(source.from).await;
    source.run("INSERT INTO t VALUES (1)").await;
    let (_, end) = transaction(&mut stream).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(source.confirmed().await <= source.from);
    stream.acknowledger().acknowledge(end);
    let moved = async {
        while source.confirmed().await < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), moved).await.expect("the slot moves promptly");
    assert_eq!(source.confirmed().await, end);
    drop(stream);
    let Err(fault) = source.try_open(source.from).await else { panic!("a checkpoint behind the slot") };
    assert_eq!(fault.code, "SEGUE-SLOT-LOST");
}

#[tokio::test]
async fn writes_elsewhere_are_reported_as_idle_positions() {
    let source = Source::start(
        Options::default(),
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE elsewhere (id int)",
        &["t"],
    )
    .await;
    let mut stream = source.open(source.from).await;
    source.run("INSERT INTO elsewhere SELECT generate_series(1, 1000)").await;
    let written: Position =
        source.cluster.scalar("SELECT pg_current_wal_lsn()").await.unwrap().parse().unwrap();
    let mut acknowledged = Position(0);
    while acknowledged < written {
        let (StreamEvent::Idle { position } | StreamEvent::Commit { end: position }) =
            next(&mut stream).await
        else {
            continue;
        };
        stream.acknowledger().acknowledge(position);
        acknowledged = position;
    }
}

#[tokio::test]
async fn signals_of_this_migration_arrive_in_their_place() {
    let source = Source::start(Options::default(), "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut stream = source.open(source.from).await;
    let signal = |migration: &str, id: u64| {
        format!(
            "INSERT INTO segue.signal VALUES ('{migration}', {id}, now()) \
             ON CONFLICT (migration) DO UPDATE SET id = excluded.id, at = excluded.at"
        )
    };
    source
        .run(&format!("BEGIN; INSERT INTO t VALUES (1); {}; {}; COMMIT", signal("other", 1), signal("m", 7)))
        .await;
    source.run(&signal("m", 8)).await;
    let (events, _) = transaction(&mut stream).await;
    assert!(matches!(events[0], StreamEvent::Change(_)));
    assert_eq!(events[1..], [StreamEvent::Signal(7)]);
    assert_eq!(transaction(&mut stream).await.0, [StreamEvent::Signal(8)]);
}

#[tokio::test]
async fn leaves_are_read_as_their_root_and_truncated_one_by_one() {
    let source = Source::start(
        Options::default(),
        "CREATE TABLE r (id int PRIMARY KEY, a text) PARTITION BY RANGE (id); \
         CREATE TABLE low PARTITION OF r FOR VALUES FROM (0) TO (100); \
         CREATE TABLE high (a text, id int NOT NULL PRIMARY KEY); ALTER TABLE r ATTACH PARTITION high FOR VALUES FROM (100) TO (200)",
        &["low", "high"],
    )
    .await;
    let mut plan = StreamPlan::clone(&source.plan.borrow());
    let root = Arc::new(support::table(&source.client, 0, "r").await);
    for relation in plan.relations.values_mut() {
        let name = relation.table.source.name.clone();
        let leaf = Leaf { condition: format!("{name} only"), name };
        *relation = Arc::new(RelationPlan {
            table: root.clone(),
            unit: UnitId(0),
            leaf: Some(leaf),
            loose: false,
            expected: vec![
                Expectation { type_oid: 23, type_modifier: -1 },
                Expectation { type_oid: 25, type_modifier: -1 },
            ],
        });
    }
    source.plan.send_replace(Arc::new(plan));
    let mut stream = source.open(source.from).await;
    source.run("INSERT INTO r VALUES (1, 'x'), (101, 'y')").await;
    let insert = |text: &str| Action::Insert { new: row(text) };
    assert_eq!(actions(&mut stream).await, [insert("1 x"), insert("101 y")]);
    // Moves to the other leaf: a delete and an insert.
    source.run("UPDATE r SET id = 102 WHERE id = 1").await;
    assert_eq!(actions(&mut stream).await, [Action::Delete { old: row("1 -") }, insert("102 x")]);
    source.run("TRUNCATE high").await;
    let (events, _) = transaction(&mut stream).await;
    let leaf = Some(Leaf { name: "high".into(), condition: "high only".into() });
    let action = Action::Truncate { leaf, within: None };
    assert_eq!(events, [StreamEvent::Change(Change { table: TableId(0), unit: UnitId(0), action })]);
    // The other side may have other partitions, or none, and cannot tell these by their conditions.
    source.run("TRUNCATE r").await;
    assert_eq!(actions(&mut stream).await, [Action::Truncate { leaf: None, within: None }]);
    source.run("ALTER TABLE r ALTER a TYPE varchar; INSERT INTO r VALUES (5, 'z')").await;
    let fault = timeout(Duration::from_secs(10), async {
        loop {
            if let Err(fault) = stream.next().await {
                return fault;
            }
        }
    });
    assert_eq!(fault.await.unwrap().code, "SEGUE-DDL-DRIFT");
}

#[tokio::test]
async fn a_slow_consumer_keeps_its_session_and_loses_nothing() {
    let options =
        Options::default().with("wal_sender_timeout", "2s").with("logical_decoding_work_mem", "64kB");
    let source = Source::start(options, "CREATE TABLE t (id int PRIMARY KEY, a text)", &["t"]).await;
    let mut stream = source.open(source.from).await;
    // More than the read-ahead and every buffer between can hold.
    source.run("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 80000) i").await;
    assert!(matches!(next(&mut stream).await, StreamEvent::Begin(_) | StreamEvent::Idle { .. }));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut rows = 0;
    loop {
        match next(&mut stream).await {
            StreamEvent::Change(_) => rows += 1,
            StreamEvent::Commit { .. } if rows > 0 => break,
            _ => {}
        }
    }
    assert_eq!(rows, 80000);
}

#[tokio::test]
async fn a_very_large_value_arrives_whole() {
    let source =
        Source::start(Options::default(), "CREATE TABLE t (id int PRIMARY KEY, a bytea)", &["t"]).await;
    let mut stream = source.open(source.from).await;
    source.run("INSERT INTO t SELECT 1, decode(repeat('ab', 100 * 1024 * 1024), 'hex')").await;
    let arrived = actions(&mut stream).await;
    let Action::Insert { new } = &arrived[0] else { panic!("an insert") };
    assert_eq!(new[1].len_bytes(), 2 + 200 * 1024 * 1024);
}

#[tokio::test]
async fn a_server_that_goes_away_is_a_passing_fault() {
    let source = Source::start(Options::default(), "CREATE TABLE t (id int PRIMARY KEY)", &["t"]).await;
    let mut stream = source.open(source.from).await;
    source.cluster.stop_immediate().await;
    let fault = timeout(Duration::from_secs(10), async {
        loop {
            if let Err(fault) = stream.next().await {
                return fault;
            }
        }
    });
    assert_eq!(fault.await.unwrap().recovery, segue_engine::fault::Recovery::Retry);
}
