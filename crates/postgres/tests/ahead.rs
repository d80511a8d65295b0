//! Reading ahead on the target: of tables whose rows come slowly those that will be changed, of others a few, and nothing
//! depends on it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use segue_engine::ports::Applier;
use segue_model::net::{Net, UpdateGroup};
use segue_model::table::Table;
use segue_postgres::apply::{Ahead, PgApplier};
use segue_postgres::connect::Endpoint;
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::row;

const PATIENCE: Duration = Duration::from_secs(20);
const ROWS: usize = 1_000;
/// Rows that are read to see how long one takes.
const TRIED: usize = 200;
/// Every row takes as long, even if the way there alone seemed to take longer than way and rows.
const NOTHING: Duration = Duration::ZERO;

struct World {
    cluster: Cluster,
    ahead: Ahead,
    table: Arc<Table>,
}

impl World {
    /// With a table of 100,000 rows.
    async fn start(ddl: &str, row_slow: Duration) -> World {
        let cluster = Cluster::start(Options::default()).await;
        cluster.execute(ddl).await;
        cluster.execute("INSERT INTO t SELECT n, 'note' FROM generate_series(1, 100000) n").await;
        cluster.execute("VACUUM (ANALYZE, FREEZE) t").await;
        cluster.execute("SELECT pg_stat_reset()").await;
        let table = Arc::new(support::table(&cluster.connect("postgres").await, 0, "t").await);
        let ahead = Ahead::new(Endpoint::parse(&cluster.url("postgres")).unwrap(), row_slow);
        World { cluster, ahead, table }
    }

    /// Says that every tenth row will be changed, so many of them.
    fn warm(&self, rows: usize) {
        let rows = (1..=rows).map(|n| row(&format!("{} new", n * 10))).collect();
        let net = Net { updates: vec![UpdateGroup { set: vec![1], rows }], ..Net::default() };
        self.ahead.offer(&self.table, &PgApplier::encode(&self.table, net).unwrap());
    }

    /// Rows of it that have been read once the session is gone: it then tells its figures. So many sessions were there.
    async fn read(self, sessions: &str) -> usize {
        const SESSIONS: &str =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'segue read ahead%'";
        let World { cluster, ahead, .. } = self;
        let until = async |count: &str| {
            let began = Instant::now();
            while cluster.scalar(SESSIONS).await.as_deref() != Some(count) {
                assert!(began.elapsed() < PATIENCE, "never {count} sessions");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until(sessions).await;
        // It has read all that it was asked for when it has been at rest for a while.
        let at_rest =
            format!("{SESSIONS} AND state = 'idle' AND state_change < clock_timestamp() - interval '300 ms'");
        while cluster.scalar(&at_rest).await.as_deref() != Some(sessions) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(ahead);
        until("0").await;
        let read = "SELECT coalesce(sum(idx_tup_fetch), 0) FROM pg_stat_user_tables WHERE relname LIKE 't%'";
        cluster.scalar(read).await.unwrap().parse().unwrap()
    }
}

const PLAIN: &str = "CREATE TABLE t (id int PRIMARY KEY, note text)";

#[tokio::test]
async fn rows_that_come_slowly_are_read_before_they_are_changed() {
    for ddl in [
        PLAIN,
        "CREATE TABLE t (id int PRIMARY KEY, note text) PARTITION BY RANGE (id); \
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO (5000); \
         CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (5000) TO (MAXVALUE)",
    ] {
        let world = World::start(ddl, NOTHING).await;
        world.warm(ROWS);
        world.warm(ROWS);
        assert_eq!(world.read("1").await, TRIED + 2 * ROWS, "{ddl}");
    }
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_not_read() {
    let world = World::start(PLAIN, NOTHING).await;
    for _ in 0..8 {
        world.warm(ROWS);
    }
    let World { cluster, ahead, .. } = world;
    drop(ahead);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let read = "SELECT coalesce(sum(idx_tup_fetch), 0) FROM pg_stat_user_tables WHERE relname = 't'";
    assert_eq!(cluster.scalar(read).await.as_deref(), Some("0"));
}

#[tokio::test]
async fn what_is_in_memory_is_not_read_twice() {
    let world = World::start(PLAIN, PATIENCE).await;
    for _ in 0..10 {
        world.warm(ROWS);
    }
    assert_eq!(world.read("1").await, TRIED, "a few, to see how long it takes");
}

#[tokio::test]
async fn a_few_rows_make_no_session() {
    let world = World::start(PLAIN, PATIENCE).await;
    world.warm(10);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.read("0").await, 0);
}

#[tokio::test]
async fn a_table_that_is_locked_keeps_nobody_waiting() {
    let world = World::start(PLAIN, PATIENCE).await;
    let other = world.cluster.connect("postgres").await;
    other.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for _ in 0..100 {
        world.warm(ROWS);
    }
    // It gives up, and the server is left alone for a while.
    tokio::time::sleep(Duration::from_secs(2)).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    world.warm(ROWS);
    assert_eq!(world.read("0").await, 0);
}
