//! The source is not hurt: no snapshot of Segue's is older than a few regions' time, and the log it keeps is bounded,
//! while a large table is copied under load and while nothing happens at all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use segue_testkit::workload::{self, Workload, schema};
use segue_testkit::{Cluster, Options};
use std::time::{Duration, Instant};
use support::Pair;
use tokio_postgres::Client;

/// A region's time.
const REGION_MS: u64 = 500;
/// Four regions' time, and what a busy machine takes between two steps.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_millis(4 * REGION_MS + 3_000);
/// How long the confirmed position may stand still: it waits for a region at most.
const STANDSTILL_MAX: Duration = SNAPSHOT_AGE_MAX;
/// Log that is confirmed may be kept until the server next notes its running transactions, every 15 s.
const RETAINED_BYTES_MAX: i64 = 128 << 20;
/// Log that is not confirmed yet.
const BEHIND_BYTES_MAX: i64 = 32 << 20;

/// What was seen over a while.
#[derive(Debug, Default)]
struct Seen {
    samples: u32,
    snapshots: u32,
    oldest: Duration,
    advances: u32,
    standstill: Duration,
    retained_bytes: i64,
    behind_bytes: i64,
}

/// Samples the source until `enough`.
async fn watch(client: &Client, mut enough: impl AsyncFnMut(&Seen) -> bool) -> Seen {
    let snapshots =
        "SELECT count(*), coalesce(max(extract(epoch FROM clock_timestamp() - xact_start) * 1000), 0)::bigint
          FROM pg_stat_activity WHERE application_name LIKE 'segue%' AND backend_type = 'client backend'
           AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)";
    let slot = "SELECT confirmed_flush_lsn::text, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
               pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint
          FROM pg_replication_slots WHERE slot_name LIKE 'segue%'";
    let mut seen = Seen::default();
    let mut confirmed = (String::new(), Instant::now());
    while !enough(&seen).await {
        let row = client.query_one(snapshots, &[]).await.unwrap();
        let age = Duration::from_millis(row.get::<_, i64>(1).unsigned_abs());
        seen.snapshots += u32::from(row.get::<_, i64>(0) > 0);
        seen.oldest = seen.oldest.max(age);
        let row = client.query_one(slot, &[]).await.unwrap();
        let now: String = row.get(0);
        if now != confirmed.0 {
            confirmed = (now, Instant::now());
            seen.advances += 1;
        }
        seen.standstill = seen.standstill.max(confirmed.1.elapsed());
        seen.retained_bytes = seen.retained_bytes.max(row.get(1));
        seen.behind_bytes = seen.behind_bytes.max(row.get(2));
        seen.samples += 1;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    seen
}

async fn is_following(target: &Cluster) -> bool {
    target.scalar("SELECT backfilled_at IS NOT NULL FROM segue.stream").await.as_deref() == Some("t")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_snapshot_is_old_and_the_retained_log_is_bounded() {
    let settings = || Options::default().with("checkpoint_timeout", "30s").with("max_wal_size", "64MB");
    let pair = Pair::with(settings(), settings(), &["shop.*"]).await;
    let more = format!("copy: {{ workers: 2, region_target_ms: {REGION_MS} }}\n");
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &["shop.*"], &more);
    let source = pair.source.connect("postgres").await;
    schema::create(&source).await.unwrap();
    schema::create(&pair.target.connect("postgres").await).await.unwrap();
    schema::seed_data(&source, 600_000).await.unwrap();
    let options = workload::Options { rate_limit: Some(150), ..Default::default() };
    let load = Workload::start(&pair.source.url("postgres"), options).await;
    let run = pair.run();
    pair.reaches(&run, "backfilling").await;
    pair.segue(&["throttle", "--rate", "4MiB"], 0);

    let began = Instant::now();
    let backfill = watch(&source, async |_| is_following(&pair.target).await).await;
    eprintln!("backfill of {} s: {backfill:?}", began.elapsed().as_secs());
    assert!(began.elapsed() > Duration::from_secs(10) && backfill.snapshots > 20, "too short to tell");
    assert!(backfill.oldest < SNAPSHOT_AGE_MAX, "{backfill:?}");
    assert!(backfill.standstill < STANDSTILL_MAX && backfill.advances > 20, "{backfill:?}");
    assert!(backfill.retained_bytes < RETAINED_BYTES_MAX, "{backfill:?}");
    assert!(backfill.behind_bytes < BEHIND_BYTES_MAX, "{backfill:?}");

    load.stop().await;
    pair.caught_up().await;
    // Nobody writes to what migrates; another table of the database fills the log.
    pair.source.execute("CREATE TABLE public.noise (t text)").await;
    let noisy = pair.source.connect("postgres").await;
    let began = Instant::now();
    let idle = watch(&source, async |_| {
        let sql = "INSERT INTO public.noise SELECT repeat('x', 1000) FROM generate_series(1, 50)";
        noisy.execute(sql, &[]).await.unwrap();
        began.elapsed() > Duration::from_secs(8)
    })
    .await;
    eprintln!("idle: {idle:?}");
    assert!(idle.standstill < STANDSTILL_MAX && idle.advances >= 4, "{idle:?}");
    assert!(idle.oldest < SNAPSHOT_AGE_MAX && idle.retained_bytes < RETAINED_BYTES_MAX, "{idle:?}");
    pair.assert_equal(&["shop"]).await;
}
