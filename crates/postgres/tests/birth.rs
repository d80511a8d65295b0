//! Streams are born, recognised after a restart, refused when something is lost, and removed.

#![allow(clippy::expect_used, reason = "a test says with it what it relies on")]

use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_postgres::birth::{
    Direction, StreamIdentity, WaitReport, WaitStep, birth, claim, drop_objects, drop_unfilled, forget,
    known, resume_check,
};
use segue_postgres::catalog::{self, SourceRelation};
use segue_postgres::connect::Endpoint;
use segue_postgres::schema;
use segue_testkit::cluster::{Cluster, Options, available_majors};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_postgres::Client;

struct Setting {
    cluster: Cluster,
    endpoint: Endpoint,
    source: Client,
    target: Client,
    relations: Vec<SourceRelation>,
}

impl Setting {
    async fn new(options: Options) -> Setting {
        let cluster = Cluster::start(options).await;
        cluster.execute("CREATE DATABASE target").await;
        let endpoint = Endpoint::parse(&cluster.url("postgres")).expect("a URL");
        let mut source = endpoint.connect("test").await.expect("source");
        let there = Endpoint::parse(&cluster.url("target")).expect("a URL");
        let mut target = there.connect("test").await.expect("target");
        for client in [&mut source, &mut target] {
            schema::ensure(client).await.expect("schema");
            client.batch_execute("SELECT segue.raise_token('orders-move', 1)").await.expect("token");
            client.batch_execute("CREATE TABLE public.t (id int PRIMARY KEY)").await.expect("a table");
        }
        let name = QualifiedName::parse("public.t").expect("a name");
        let pairs = [(name.clone(), name)];
        let catalog = catalog::read(&mut source, &mut target, &pairs).await.expect("catalogs");
        Setting { cluster, endpoint, source, target, relations: catalog.relations }
    }

    async fn born(&self) -> StreamIdentity {
        birth(&self.endpoint, "orders-move", Direction::Forward, 1, &self.relations, |_| {})
            .await
            .expect("birth")
    }

    async fn check(&self, at: &str) -> Outcome<()> {
        let (stream, position) =
            known(&self.target, "orders-move", Direction::Forward).await.expect("known").expect(at);
        resume_check(&self.source, &stream, position).await
    }

    /// A birth in the background, with everything that it reported.
    fn begin(&self) -> (tokio::task::JoinHandle<Outcome<StreamIdentity>>, Arc<Mutex<Vec<WaitReport>>>) {
        let reports = Arc::new(Mutex::new(Vec::new()));
        let (endpoint, relations, sink) = (self.endpoint.clone(), self.relations.clone(), reports.clone());
        let task = tokio::spawn(async move {
            birth(&endpoint, "orders-move", Direction::Forward, 1, &relations, |r| {
                sink.lock().expect("sink").push(r)
            })
            .await
        });
        (task, reports)
    }

    async fn open_transaction(&self) -> (Client, i32) {
        let client = self.cluster.connect("postgres").await;
        client.batch_execute("BEGIN; SELECT txid_current()").await.expect("a transaction");
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("pid").get(0);
        (client, pid)
    }
}

async fn until(mut what: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if what().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not come about");
}

/// As `segue cancel` does it.
async fn drop_everything(source: &Client, target: &Client, migration: &str) -> Outcome<Vec<String>> {
    let mut removed = drop_objects(source, target, migration, |_| {}).await?;
    for (side, client) in [("source", source), ("target", target)] {
        removed.extend(forget(client, migration).await?.map(|line| format!("{side}: {line}")));
    }
    Ok(removed)
}

#[tokio::test]
async fn a_stream_is_born_claimed_and_recognised_on_the_oldest_and_newest_server() {
    let majors: Vec<u16> = available_majors().into_iter().collect();
    for major in [majors[0], majors[majors.len() - 1]] {
        let setting = Setting::new(Options::major(major)).await;
        assert!(known(&setting.target, "orders-move", Direction::Forward).await.expect("known").is_none());
        let stream = setting.born().await;
        assert_eq!(stream.slot, "segue_orders_move_fwd");
        let published: i64 = setting
            .source
            .query_one(
                "SELECT count(*) FROM pg_publication_tables WHERE pubname = $1",
                &[&stream.publication],
            )
            .await
            .expect("publication")
            .get(0);
        assert_eq!(published, 2, "the table and segue.signal");
        claim(&setting.target, 1, &stream).await.expect("claim");
        assert!(claim(&setting.target, 1, &stream).await.is_err(), "a stream is claimed once");
        setting.check("claimed").await.expect("nothing was lost");
        setting.cluster.restart().await;
    }
}

#[tokio::test]
async fn a_start_that_was_cut_short_leaves_nothing_that_matters() {
    let setting = Setting::new(Options::default()).await;
    let first = setting.born().await;
    let second = setting.born().await;
    assert!(second.incarnation > first.incarnation && second.start >= first.start);
    // A process that was taken over in between binds nothing and drops nothing any more.
    for client in [&setting.source, &setting.target] {
        client.batch_execute("SELECT segue.raise_token('orders-move', 2)").await.expect("taken over");
    }
    assert_eq!(claim(&setting.target, 1, &second).await.expect_err("late").code, "SEGUE-SUPERSEDED");
    let late =
        birth(&setting.endpoint, "orders-move", Direction::Forward, 1, &setting.relations, |_| {}).await;
    assert_eq!(late.expect_err("late").code, "SEGUE-SUPERSEDED");
    claim(&setting.target, 2, &second).await.expect("the slot is untouched");
    setting.check("claimed").await.expect("nothing was lost");
}

#[tokio::test]
async fn whoever_is_waited_for_is_named() {
    let setting = Setting::new(Options::default()).await;
    let (other, pid) = setting.open_transaction().await;
    let prepared = setting.cluster.connect("postgres").await;
    prepared
        .batch_execute("BEGIN; SELECT txid_current(); PREPARE TRANSACTION 'two-phase'")
        .await
        .expect("prepare");
    let (task, reports) = setting.begin();
    let named = |wanted: &dyn Fn(&segue_postgres::birth::Blocker) -> bool| {
        let reports = reports.lock().expect("reports");
        reports.iter().any(|r| r.step == WaitStep::Slot && r.waiting_for.iter().any(wanted))
    };
    until(async || named(&|b| b.pid == Some(pid) && b.state == "idle in transaction")).await;
    other.batch_execute("COMMIT").await.expect("commit");
    until(async || named(&|b| b.pid.is_none() && b.query == "two-phase" && b.state == "prepared")).await;
    assert!(!task.is_finished());
    prepared.batch_execute("COMMIT PREPARED 'two-phase'").await.expect("commit");
    task.await.expect("task").expect("birth");
}

#[tokio::test]
async fn a_commit_that_is_logged_but_not_yet_visible_is_waited_for() {
    let setting = Setting::new(Options::default()).await;
    let (t100, _) = setting.open_transaction().await;
    let (task, reports) = setting.begin();
    until(async || !reports.lock().expect("reports").is_empty()).await;
    let (t101, _) = setting.open_transaction().await;
    let (t102, pid) = setting.open_transaction().await;
    t102.batch_execute("INSERT INTO public.t VALUES (102)").await.expect("insert");
    setting.cluster.set("synchronous_standby_names", "ghost").await;
    let t102 = tokio::spawn(async move { t102.batch_execute("COMMIT").await });
    let hanging = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until(async || setting.cluster.scalar(hanging).await.as_deref() == Some("1")).await;
    t101.batch_execute("ROLLBACK").await.expect("rollback");
    t100.batch_execute("ROLLBACK").await.expect("rollback");
    let named = |report: &WaitReport| report.waiting_for.iter().any(|b| b.pid == Some(pid));
    until(async || reports.lock().expect("reports").last().is_some_and(named)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!task.is_finished(), "a snapshot taken now would not see T102, and the slot may not deliver it");
    setting.cluster.set("synchronous_standby_names", "").await;
    t102.await.expect("task").expect("commit");
    task.await.expect("task").expect("birth");
}

#[tokio::test]
async fn what_was_lost_is_said() {
    let setting = Setting::new(Options::default()).await;
    let stream = setting.born().await;
    claim(&setting.target, 1, &stream).await.expect("claim");
    let code = async |what: &str| setting.check(what).await.expect_err(what).code;
    let source = async |sql: &str| setting.source.batch_execute(sql).await.expect(sql);

    let elsewhere = StreamIdentity { system_id: "1".into(), ..stream.clone() };
    let other = resume_check(&setting.source, &elsewhere, stream.start).await.expect_err("another server");
    assert_eq!(other.code, "SEGUE-OTHER-SERVER");
    let promoted = StreamIdentity { timeline: 7, ..stream.clone() };
    let timeline = resume_check(&setting.source, &promoted, stream.start).await.expect_err("promoted");
    assert_eq!(timeline.code, "SEGUE-TIMELINE");
    let future = resume_check(&setting.source, &stream, Position(u64::MAX / 2)).await.expect_err("restored");
    assert_eq!(future.code, "SEGUE-SOURCE-BEHIND");

    source("INSERT INTO public.t VALUES (1); SELECT pg_replication_slot_advance('segue_orders_move_fwd', pg_current_wal_lsn())").await;
    let behind = setting.check("advanced").await.expect_err("behind");
    assert_eq!(behind.code, "SEGUE-CHECKPOINT-BEHIND");
    assert!(behind.what.contains("restored to an older state") && !behind.next_step.is_empty(), "{behind}");

    source("UPDATE segue.slot SET incarnation = incarnation + 1").await;
    assert_eq!(code("remade").await, "SEGUE-SLOT-REMADE");
    source("UPDATE segue.slot SET incarnation = incarnation - 1").await;
    source("DROP PUBLICATION segue_orders_move_fwd").await;
    assert_eq!(code("unpublished").await, "SEGUE-PUBLICATION-LOST");
    source("SELECT pg_drop_replication_slot('segue_orders_move_fwd')").await;
    assert_eq!(code("dropped").await, "SEGUE-SLOT-LOST");
    source("SELECT pg_create_logical_replication_slot('segue_orders_move_fwd', 'test_decoding')").await;
    assert_eq!(code("foreign").await, "SEGUE-SLOT-FOREIGN");
    let fault =
        birth(&setting.endpoint, "orders-move", Direction::Forward, 1, &setting.relations, |_| {}).await;
    assert_eq!(fault.expect_err("not ours").code, "SEGUE-SLOT-FOREIGN");
}

#[tokio::test]
async fn an_invalidated_slot_is_named_as_such() {
    let options = Options::major(15).with("max_slot_wal_keep_size", "1MB").with("wal_keep_size", "0");
    let options = options.with("min_wal_size", "32MB").with("max_wal_size", "32MB");
    let setting = Setting::new(options).await;
    let stream = setting.born().await;
    claim(&setting.target, 1, &stream).await.expect("claim");
    for _ in 0..4 {
        setting.source.batch_execute("SELECT pg_switch_wal()").await.expect("switch");
        setting.source.batch_execute("CREATE TABLE public.x (); DROP TABLE public.x").await.expect("wal");
    }
    setting.source.batch_execute("CHECKPOINT").await.expect("checkpoint");
    let fault = setting.check("invalidated").await.expect_err("lost");
    assert_eq!(fault.code, "SEGUE-SLOT-LOST");
    assert!(fault.what.contains("invalidated"), "{fault}");
}

#[tokio::test]
async fn cancel_removes_what_was_made_and_nothing_else() {
    let setting = Setting::new(Options::default()).await;
    let stream = setting.born().await;
    claim(&setting.target, 1, &stream).await.expect("claim");
    setting
        .target
        .batch_execute("SELECT pg_replication_origin_create('segue_orders-move_forward')")
        .await
        .expect("origin");
    setting
        .target
        .batch_execute("INSERT INTO segue.token VALUES ('other', 1)")
        .await
        .expect("another migration");
    // Without a fence only a table that nobody has written into can be one that was just made.
    let tables = [QualifiedName::parse("public.t").expect("a name")];
    let drop_them = async || drop_unfilled(&setting.target, ("orders-move", 1), &tables, |_| {}).await;
    setting.target.batch_execute("INSERT INTO public.t VALUES (1)").await.expect("somebody's row");
    let kept = drop_them().await.expect_err("it is not empty");
    assert!(kept.code == "SEGUE-DROP-TARGET" && kept.what.contains("has rows"), "{kept}");
    setting.target.batch_execute("DELETE FROM public.t").await.expect("an empty table");
    assert_eq!(drop_them().await.expect("without a fence"), tables);
    assert_eq!(drop_them().await.expect("again"), []);
    let removed = drop_everything(&setting.source, &setting.target, "orders-move").await.expect("cancel");
    let text = removed.join("\n");
    for line in [
        "source: replication slot segue_orders_move_fwd",
        "source: publication segue_orders_move_fwd",
        "source: the schema segue",
        "replication origin segue_orders-move_forward",
        "target: 2 rows in the schema segue",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let again = drop_everything(&setting.source, &setting.target, "orders-move").await.expect("again");
    assert_eq!(again, Vec::<String>::new());
    setting.target.batch_execute("DELETE FROM segue.token").await.expect("the other one ends");
    let last = drop_everything(&setting.source, &setting.target, "orders-move").await.expect("last");
    assert_eq!(last, ["target: the schema segue"]);
    let kept: i64 =
        setting.source.query_one("SELECT count(*) FROM public.t", &[]).await.expect("source").get(0);
    assert_eq!(kept, 0);
}

#[tokio::test]
async fn attached_and_detached_leaves_are_found_and_join_the_publication() {
    let mut setting = Setting::new(Options::default()).await;
    let ddl = "CREATE TABLE public.p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
        CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (10);
        CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (10) TO (20);";
    setting.source.batch_execute(ddl).await.expect("source");
    setting.target.batch_execute(ddl).await.expect("target");
    let name = QualifiedName::parse("public.p").expect("a name");
    let read =
        catalog::read(&mut setting.source, &mut setting.target, &[(name.clone(), name)]).await.expect("read");
    setting.relations = read.relations.clone();
    let stream = setting.born().await;
    let was = catalog::drift::shapes(&setting.source, &read.tables).await.expect("shapes");
    let source = async |sql: &str| setting.source.batch_execute(sql).await.expect(sql);
    let look = async || {
        catalog::drift::drift(&setting.source, "source", &read.tables, &read.relations, &was)
            .await
            .expect("drift")
            .0
    };
    assert_eq!(look().await, Default::default());

    source("CREATE TABLE public.p3 (LIKE public.p); ALTER TABLE public.p ATTACH PARTITION public.p3 FOR VALUES FROM (20) TO (30);
        ALTER TABLE public.p DETACH PARTITION public.p1").await;
    let drift = look().await;
    assert_eq!(drift.detached.iter().map(|r| r.name.name.as_str()).collect::<Vec<_>>(), ["p1"]);
    let [attached] = drift.attached.as_slice() else { panic!("{drift:?}") };
    assert_eq!(
        (attached.relation.name.name.as_str(), attached.relation.unit.0, attached.table.0),
        ("p3", 1, 0)
    );
    assert!(attached.relation.leaf.as_ref().expect("a leaf").condition.contains("20"));
    let before = catalog::drift::published(&setting.source, &stream.publication).await.expect("published");
    assert!(!before.contains(&attached.relation.oid) && before.contains(&drift.detached[0].oid));

    let published = async || {
        let sql = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE schemaname = 'public'";
        setting.source.query_one(sql, &[]).await.expect("publication").get::<_, String>(0)
    };
    for _ in 0..2 {
        let join = catalog::drift::join_publication(
            (&setting.source, "source"),
            ("orders-move", 1),
            &stream.publication,
            attached.relation.oid,
        );
        assert!(join.await.expect("join"));
        assert_eq!(published().await, "p1 p2 p3");
    }
    source("ALTER TABLE public.p ALTER COLUMN v TYPE varchar(9)").await;
    assert!(look().await.faults.iter().any(|fault| fault.what.contains("public.p2 was altered")));
    source("DROP TABLE public.p").await;
    assert!(look().await.faults.iter().any(|fault| fault.what.contains("dropped or renamed")));
    assert!(
        !catalog::drift::join_publication(
            (&setting.source, "source"),
            ("orders-move", 1),
            &stream.publication,
            attached.relation.oid,
        )
        .await
        .expect("nothing to join")
    );
}

#[tokio::test]
async fn a_table_that_gave_its_name_to_another_one_is_found() {
    let mut setting = Setting::new(Options::default()).await;
    let name = QualifiedName::parse("public.t").expect("a name");
    let read =
        catalog::read(&mut setting.source, &mut setting.target, &[(name.clone(), name)]).await.expect("read");
    let was = catalog::drift::shapes(&setting.source, &read.tables).await.expect("shapes");
    let look = async |sql: &str| {
        setting.source.batch_execute(sql).await.expect(sql);
        let (drift, _) =
            catalog::drift::drift(&setting.source, "source", &read.tables, &read.relations, &was)
                .await
                .expect("drift");
        drift.faults.into_iter().map(|fault| fault.what).collect::<Vec<_>>()
    };
    let swapped =
        look("ALTER TABLE public.t RENAME TO t_old; CREATE TABLE public.t (LIKE public.t_old INCLUDING ALL)")
            .await;
    assert_eq!(
        swapped,
        ["public.t is another table than before on the source: the one that migrates was renamed"]
    );
    let back = look("DROP TABLE public.t; ALTER TABLE public.t_old RENAME TO t").await;
    assert_eq!(back, Vec::<String>::new());
}
