//! A gate on the target: the backfill's ranges commit only as far as a test lets them, so that a schedule can be
//! played while some regions are copied, one is being copied, and the rest has not begun.
//!
//! Single rows that the stream copies for itself pass. It is a trigger on the table that every region's transaction
//! writes last; nothing of the product is changed for it.

use crate::support::{PATIENCE, Pair};
use segue_testkit::kill::Process;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const GATE: &str = r#"
CREATE SCHEMA gate;
CREATE TABLE gate.open (regions int NOT NULL);
CREATE FUNCTION gate.pass() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    IF NEW.extent ? 'range' THEN
        WHILE (SELECT count(*) FROM segue.region r WHERE r.extent ? 'range') >= (SELECT regions FROM gate.open) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER gate BEFORE INSERT ON segue.region FOR EACH ROW EXECUTE FUNCTION gate.pass();
ALTER TABLE segue.region ENABLE ALWAYS TRIGGER gate;
"#;

/// Lets a number of ranges through.
pub(crate) struct Gate {
    client: Client,
}

impl Gate {
    /// Sets the gate up before the migration starts: `regions` may pass.
    pub(crate) async fn set(pair: &Pair, regions: u32) -> Gate {
        let mut client = pair.target.connect("postgres").await;
        segue_postgres::schema::ensure(&mut client).await.unwrap();
        client.batch_execute(GATE).await.unwrap();
        client.execute(&format!("INSERT INTO gate.open VALUES ({regions})"), &[]).await.unwrap();
        Gate { client }
    }

    /// Lets `regions` pass in all.
    pub(crate) async fn open(&self, regions: u32) {
        self.client.execute(&format!("UPDATE gate.open SET regions = {regions}"), &[]).await.unwrap();
    }

    /// Lets everything pass.
    pub(crate) async fn open_wide(&self) {
        self.open(i32::MAX.cast_unsigned()).await;
    }

    /// Waits until `regions` are copied and the next one stands before the gate: its rows are read, not committed.
    pub(crate) async fn reached(&self, run: &Process, regions: i64) {
        let until = Instant::now() + PATIENCE;
        let state = "SELECT (SELECT count(*) FROM segue.region WHERE extent ? 'range'), \
                     (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
        loop {
            let row = self.client.query_one(state, &[]).await.unwrap();
            if (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (regions, 1) {
                return;
            }
            let said = || run.lines().join("\n");
            assert!(run.status().is_none(), "the run has ended:\n{}", said());
            assert!(Instant::now() < until, "{regions} regions were not copied: {row:?}\n{}", said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the last range is copied, or the run has ended.
    pub(crate) async fn passed(&self, run: &Process) {
        // Once the stream has the table in hand, its regions are forgotten.
        let last = "SELECT EXISTS (SELECT FROM segue.region WHERE extent #> '{range,upper}' = 'null') \
                    OR EXISTS (SELECT FROM segue.stream WHERE backfilled_at IS NOT NULL)";
        let until = Instant::now() + PATIENCE;
        while run.status().is_none() && !self.client.query_one(last, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(Instant::now() < until, "the copy does not end:\n{}", run.lines().join("\n"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last key that is copied, of a table whose key begins with a number.
    pub(crate) async fn upper(&self) -> i64 {
        let sql = "SELECT max((extent #>> '{range,upper,0}')::numeric)::bigint FROM segue.region";
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// How many single rows the stream has copied for itself.
    pub(crate) async fn single_rows(&self) -> i64 {
        let sql = "SELECT count(*) FROM segue.region WHERE extent ? 'key'";
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

/// Waits until the stream says that it waits for a region that is being copied.
pub(crate) async fn stream_waits(pair: &Pair, run: &Process) {
    let until = Instant::now() + PATIENCE;
    let client = pair.target.connect("postgres").await;
    let waits = "SELECT s::text FROM segue.status s";
    loop {
        let rows = client.query(waits, &[]).await.unwrap();
        if rows.iter().any(|row| row.get::<_, String>(0).contains("is being copied")) {
            return;
        }
        assert!(Instant::now() < until, "the stream does not wait:\n{}", run.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs `schedule` while the process cannot notice: what it reads afterwards, it reads all at once.
pub(crate) async fn unnoticed(pair: &Pair, run: &Process, schedule: &[String]) {
    let source = pair.source.connect("postgres").await;
    source.batch_execute("SET lock_timeout = '2s'").await.unwrap();
    run.freeze();
    for transaction in schedule {
        while let Err(error) = source.batch_execute(transaction).await {
            // Frozen in the middle of a look at the catalog it keeps a lock, until the server ends its session after minutes:
            // it ends that look first.
            let is_locked = error.code().is_some_and(|code| code.code() == "55P03");
            assert!(is_locked, "{transaction}: {error:?}");
            source.batch_execute("ROLLBACK").await.unwrap();
            run.thaw();
            tokio::time::sleep(Duration::from_millis(200)).await;
            run.freeze();
        }
    }
    run.thaw();
}

/// Runs each text as one transaction on the source.
pub(crate) async fn play(pair: &Pair, schedule: &[String]) {
    let source = pair.source.connect("postgres").await;
    for transaction in schedule {
        source.batch_execute(transaction).await.unwrap_or_else(|e| panic!("{transaction}: {e:?}"));
    }
}

/// Makes the tables on both sides, and fills the source.
pub(crate) async fn create(pair: &Pair, ddl: &str, fill: &str) {
    for side in [&pair.source, &pair.target] {
        side.connect("postgres").await.batch_execute(ddl).await.unwrap_or_else(|e| panic!("{ddl}: {e:?}"));
    }
    pair.source
        .connect("postgres")
        .await
        .batch_execute(fill)
        .await
        .unwrap_or_else(|e| panic!("{fill}: {e:?}"));
}

/// One worker, and regions that are as short as can be.
pub(crate) fn small_regions(pair: &Pair, tables: &[&str]) {
    let more = "copy: { workers: 1, region_target_ms: 50 }\n";
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), tables, more);
}

/// Opens the gate and waits for the end: following, everything applied, both sides equal.
pub(crate) async fn ends_equal(pair: &Pair, run: &Process, gate: &Gate, schemas: &[&str]) {
    gate.open_wide().await;
    pair.reaches(run, "following").await;
    applied(pair, run).await;
    pair.assert_equal(schemas).await;
}

/// As [`Pair::caught_up`], with the run's last words if it has ended.
pub(crate) async fn applied(pair: &Pair, run: &Process) {
    tokio::select! {
        () = pair.caught_up() => {}
        ended = run.wait(PATIENCE) => panic!("the run has ended ({ended:?}):\n{}", run.lines().join("\n")),
    }
}
