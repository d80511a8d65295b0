//! Reading ahead on the target: of large tables the rows that will be changed, of others nothing, and nothing depends on it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use segue_engine::ports::{Applier, Target};
use segue_model::net::{Net, UpdateGroup};
use segue_model::table::Table;
use segue_postgres::apply::PgApplier;
use segue_postgres::authority::Authority;
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_postgres::target::PgTarget;
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::row;

const PATIENCE: Duration = Duration::from_secs(20);
const ROWS: usize = 1_000;

struct Ahead {
    cluster: Cluster,
    target: PgTarget,
    table: Arc<Table>,
}

impl Ahead {
    /// With a table of 100,000 rows, some 5 MB with its index, and this much memory of the server's own.
    async fn start(shared_buffers: &str, ddl: &str) -> Ahead {
        let cluster = Cluster::start(Options::default().with("shared_buffers", shared_buffers)).await;
        cluster.execute(ddl).await;
        cluster.execute("INSERT INTO t SELECT n, 'note' FROM generate_series(1, 100000) n").await;
        cluster.execute("VACUUM (ANALYZE, FREEZE) t").await;
        cluster.execute("SELECT pg_stat_reset()").await;
        let table = Arc::new(support::table(&cluster.connect("postgres").await, 0, "t").await);
        let authority =
            Authority { migration: "m".into(), direction: Direction::Forward, token: 3, incarnation: 5 };
        let target = PgTarget::new(Endpoint::parse(&cluster.url("postgres")).unwrap(), authority);
        Ahead { cluster, target, table }
    }

    /// Tells the target that every tenth row will be changed, so many of them.
    fn warm(&self, rows: usize) {
        let rows = (1..=rows).map(|n| row(&format!("{} new", n * 10))).collect();
        let net = Net { updates: vec![UpdateGroup { set: vec![1], rows }], ..Net::default() };
        self.target.warm(&self.table, &PgApplier::encode(&self.table, net).unwrap());
    }

    async fn sessions(&self) -> String {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'segue read ahead%'";
        self.cluster.scalar(sql).await.unwrap()
    }

    /// Rows that have been read by key once the session is gone: it then tells its figures.
    async fn read(self) -> usize {
        let began = Instant::now();
        while self.sessions().await == "0" && began.elapsed() < Duration::from_secs(2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let Ahead { cluster, target, .. } = self;
        drop(target);
        while cluster
            .scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'segue read ahead%'")
            .await
            .unwrap()
            != "0"
        {
            assert!(began.elapsed() < PATIENCE, "the session outlives who asked");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let read = "SELECT coalesce(sum(idx_tup_fetch), 0) FROM pg_stat_user_tables WHERE relname LIKE 't%'";
        cluster.scalar(read).await.unwrap().parse().unwrap()
    }
}

const PLAIN: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";

#[tokio::test]
async fn rows_of_a_large_table_are_read_before_they_are_changed() {
    let ahead = Ahead::start("2MB", PLAIN).await;
    ahead.warm(ROWS);
    assert_eq!(ahead.read().await, ROWS);
}

#[tokio::test]
async fn rows_of_a_partitioned_table_too() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text) PARTITION BY RANGE (id); \
        CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO (5000); \
        CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (5000) TO (MAXVALUE)";
    let ahead = Ahead::start("2MB", ddl).await;
    ahead.warm(ROWS);
    assert_eq!(ahead.read().await, ROWS);
}

#[tokio::test]
async fn what_is_in_memory_anyway_is_not_read_twice() {
    let ahead = Ahead::start("128MB", PLAIN).await;
    ahead.warm(ROWS);
    assert_eq!(ahead.read().await, 0);
}

#[tokio::test]
async fn a_few_rows_make_no_session() {
    let ahead = Ahead::start("2MB", PLAIN).await;
    ahead.warm(10);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ahead.sessions().await, "0");
    assert_eq!(ahead.read().await, 0);
}

#[tokio::test]
async fn a_table_that_is_locked_keeps_nobody_waiting() {
    let ahead = Ahead::start("2MB", PLAIN).await;
    let other = ahead.cluster.connect("postgres").await;
    other.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let began = Instant::now();
    for _ in 0..100 {
        ahead.warm(ROWS);
    }
    assert!(began.elapsed() < PATIENCE);
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
    // It gives up, and is left alone for a while.
    let given_up = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        ahead.cluster.scalar(waits).await
    };
    assert_eq!(given_up.await.as_deref(), Some("0"));
    other.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(ahead.read().await, 0);
}
