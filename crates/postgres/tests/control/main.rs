//! Lease, token, commands and journal on a real server.

#![allow(clippy::expect_used, reason = "a test says with it what it relies on")]

mod orders;

use segue_engine::verify::ports::RangeCounts;
use segue_engine::verify::report::{Report, TableReport};
use segue_model::table::TableId;
use segue_postgres::connect::Endpoint;
use segue_postgres::control::{Acquired, Control, LEASE_TTL, Lease, NewEntry, NewSample, shut_out};
use segue_testkit::cluster::{Cluster, Options, StandbyOptions};
use segue_testkit::proxy::Proxy;
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Setting {
    cluster: Cluster,
    endpoint: Endpoint,
    control: Arc<Control>,
}

impl Setting {
    async fn new() -> Setting {
        let cluster = Cluster::start(Options::default()).await;
        let endpoint = Endpoint::parse(&cluster.url("postgres")).expect("a URL");
        assert!(Control::find(&endpoint, "m").await.expect("find").is_none(), "looking makes nothing");
        let control = Arc::new(Control::connect(&endpoint, "m").await.expect("control"));
        Setting { cluster, endpoint, control }
    }

    async fn acquired(&self, holder: &str) -> Lease {
        match self.control.acquire(holder).await.expect("acquire") {
            Acquired::Lease(lease) => {
                shut_out(&self.endpoint, "m", lease.token, true).await.expect("token");
                lease
            }
            Acquired::Standby(driver) => panic!("{driver:?} holds it"),
        }
    }

    async fn let_the_lease_expire(&self) {
        let late = LEASE_TTL + Duration::from_secs(1);
        let sql = format!("UPDATE segue.heartbeat SET beat_at = beat_at - interval '{} s'", late.as_secs());
        self.cluster.execute(&sql).await;
    }
}

fn entry(kind: &str) -> NewEntry {
    NewEntry { version: 1, actor: "test".into(), kind: kind.into(), body: json!({ "b": 1, "a": [kind] }) }
}

#[tokio::test]
async fn a_frozen_driver_is_taken_over_and_its_late_writes_are_refused() {
    let setting = Setting::new().await;
    let first = setting.acquired("one").await;
    // Its last transaction has entered, and then the process froze.
    let frozen = setting.endpoint.connect("apply").await.expect("session");
    frozen.batch_execute("BEGIN").await.expect("begin");
    frozen.execute("SELECT segue.enter('m', $1)", &[&first.token]).await.expect("enter");
    let Acquired::Standby(driver) = setting.control.acquire("two").await.expect("acquire") else {
        panic!("a living driver was taken over")
    };
    assert_eq!((driver.holder.as_str(), driver.token), ("one", first.token));
    setting.control.beat(&first).await.expect("it beats");

    setting.let_the_lease_expire().await;
    let Acquired::Lease(second) = setting.control.acquire("two").await.expect("acquire") else {
        panic!("an expired lease was not taken over")
    };
    assert!(second.token > first.token);
    let fault = shut_out(&setting.endpoint, "m", second.token, false).await.expect_err("it holds the lock");
    assert!(fault.code == "SEGUE-STRAGGLER" && fault.what.contains("segue apply"), "{fault}");
    let ended = shut_out(&setting.endpoint, "m", second.token, true).await.expect("terminated");
    assert_eq!(ended.len(), 1);
    assert!(frozen.batch_execute("COMMIT").await.is_err(), "the frozen transaction is gone");

    let late = setting.endpoint.connect("apply").await.expect("session");
    let refused = late.execute("SELECT segue.enter('m', $1)", &[&first.token]).await.expect_err("late write");
    assert_eq!(segue_postgres::error::fault_of(&refused).code, "SEGUE-SUPERSEDED");
    let codes = [
        setting.control.beat(&first).await.expect_err("beat").code,
        setting.control.append(&first, 0, &entry("late")).await.expect_err("append").code,
        shut_out(&setting.endpoint, "m", first.token, true).await.expect_err("raise").code,
    ];
    assert_eq!(codes, ["SEGUE-SUPERSEDED"; 3]);
    setting.control.publish_status(&second, &json!({ "stage": "x" })).await.expect("status");
    assert!(setting.control.publish_status(&first, &json!({})).await.is_err());
    let (status, age_ms) = setting.control.read_status().await.expect("status").expect("one");
    assert_eq!(status, json!({ "stage": "x" }));
    assert!((0..60_000).contains(&age_ms));
}

#[tokio::test]
async fn a_released_lease_is_free_at_once_and_its_token_is_never_used_again() {
    let setting = Setting::new().await;
    let first = setting.acquired("one").await;
    setting.control.release(&first).await.expect("release");
    assert_eq!(setting.control.live_driver().await.expect_err("nobody").code, "SEGUE-NO-DRIVER");
    let second = setting.acquired("two").await;
    assert!(second.token > first.token);
    setting.control.release(&first).await.expect("harmless");
    assert_eq!(setting.control.live_driver().await.expect("alive").holder, "two");
}

#[tokio::test]
async fn the_journal_takes_one_record_per_number() {
    let setting = Setting::new().await;
    let lease = setting.acquired("one").await;
    assert_eq!(setting.control.append(&lease, 0, &entry("a")).await, Ok(1));
    assert_eq!(
        setting.control.append(&lease, 0, &entry("b")).await.expect_err("taken").code,
        "SEGUE-JOURNAL-MOVED"
    );
    assert!(setting.control.append(&lease, 5, &entry("b")).await.is_err(), "no gaps");
    let (one, two) = tokio::join!(async { setting.control.append(&lease, 1, &entry("b")).await }, async {
        setting.control.append(&lease, 1, &entry("c")).await
    });
    assert_eq!(usize::from(one.is_ok()) + usize::from(two.is_ok()), 1, "{one:?} {two:?}");
    let journal = setting.control.journal(0).await.expect("journal");
    assert_eq!(journal.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(journal[0].entry, entry("a"));
    assert_eq!(setting.control.journal(1).await.expect("journal").len(), 1);
}

#[tokio::test]
async fn a_record_whose_commit_is_not_answered_may_be_there_and_that_is_said() {
    let setting = Setting::new().await;
    let lease = setting.acquired("one").await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5); RETURN NULL; END';
                CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON segue.journal DEFERRABLE INITIALLY DEFERRED
                    FOR EACH ROW EXECUTE FUNCTION slow()";
    setting.cluster.execute(slow).await;
    let proxy = Proxy::start(setting.cluster.port()).await;
    let endpoint = Endpoint::parse(&setting.cluster.url_through(proxy.port(), "postgres")).expect("a URL");
    let control = Control::connect(&endpoint, "m").await.expect("control");
    let record = entry("a");
    let cut = async {
        holds(&setting.cluster, "EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')").await;
        proxy.cut();
    };
    let (appended, ()) = tokio::join!(control.append(&lease, 0, &record), cut);
    assert_eq!(appended.expect_err("no answer").code, "SEGUE-JOURNAL-UNKNOWN");
    // Only looking tells.
    holds(&setting.cluster, "EXISTS (SELECT FROM segue.journal)").await;
    assert_eq!(control.last_record().await, Ok(1));
    assert_eq!(control.append(&lease, 1, &entry("b")).await, Ok(2));
}

/// Waits until a condition in SQL holds.
async fn holds(cluster: &Cluster, condition: &str) {
    let (sql, began) = (format!("SELECT {condition}"), std::time::Instant::now());
    while cluster.scalar(&sql).await.as_deref() != Some("t") {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not come about: {condition}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_token_that_its_standbys_may_not_have_is_not_relied_on() {
    let setting = Setting::new().await;
    let lease = setting.acquired("one").await;
    let standby = Cluster::standby_of(&setting.cluster, StandbyOptions::named("s1")).await;
    setting.cluster.set("synchronous_standby_names", "s1").await;
    standby.pause().await;
    let waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let given_up = async {
        holds(&setting.cluster, &format!("EXISTS (SELECT {waits})")).await;
        setting.cluster.execute(&format!("SELECT pg_cancel_backend(pid) {waits}")).await;
    };
    let (raised, ()) = tokio::join!(shut_out(&setting.endpoint, "m", lease.token, true), given_up);
    let fault = raised.expect_err("somebody has given the standby up");
    assert_eq!(fault.code, "SEGUE-TOKEN-STANDBY");
    assert!(fault.what.contains("warned while the token was raised"), "{fault}");
    standby.unpause();
    assert_eq!(shut_out(&setting.endpoint, "m", lease.token, true).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_lost_control_session_is_opened_again() {
    let setting = Setting::new().await;
    let lease = setting.acquired("one").await;
    setting.cluster.restart().await;
    let mut tries = 0;
    while setting.control.beat(&lease).await.is_err() {
        tries += 1;
        assert!(tries < 20, "the session was not opened again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn the_lease_of_a_holder_that_is_gone_is_free_at_once_and_a_lost_session_alone_loses_nothing() {
    let setting = Setting::new().await;
    let first = setting.acquired("one").await;
    let other = Control::connect(&setting.endpoint, "m").await.expect("control");
    let free = async || match other.acquire("two").await.expect("acquire") {
        Acquired::Lease(lease) => Some(lease),
        Acquired::Standby(_) => None,
    };
    // Shortly after the server's start nobody has had the time to come back: the heart alone counts.
    let old_enough = format!(
        "SELECT clock_timestamp() - pg_postmaster_start_time() > interval '{} s'",
        LEASE_TTL.as_secs() + 1
    );
    while setting.cluster.scalar(&old_enough).await.as_deref() != Some("t") {
        setting.control.beat(&first).await.expect("it beats");
        assert_eq!(free().await, None, "a living driver was taken over");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'segue control'
                  AND pid = (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'
                              AND ((classid::bigint << 32) | objid::bigint) = (SELECT alive_key FROM segue.lease))";
    assert_eq!(setting.cluster.scalar(end).await.as_deref(), Some("t"), "its session holds the lock");
    while setting.control.beat(&first).await.is_err() {}
    assert_eq!(free().await, None, "a driver that came back was taken over");
    let renewed = setting.control.renew().await.expect("renew");
    assert!(renewed.token > first.token);

    let Setting { control, cluster: _cluster, .. } = setting;
    drop(control);
    let began = std::time::Instant::now();
    let taken = loop {
        match free().await {
            Some(lease) => break lease,
            None => assert!(began.elapsed() < Duration::from_secs(3), "a dead driver keeps the lease"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(taken.token > renewed.token);
}

/// Restored, the control database knows nothing of what was taken since, and other databases remember it.
#[tokio::test]
async fn tokens_outgrow_those_that_a_restored_control_database_has_forgotten() {
    let setting = Setting::new().await;
    let kept = setting.acquired("one").await;
    let mut last = kept.clone();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        last = setting.control.renew().await.expect("renew");
    }
    let restore =
        format!("UPDATE segue.lease SET token = {0}; UPDATE segue.token SET token = {0}", kept.token);
    setting.cluster.execute(&restore).await;
    assert!(setting.control.renew().await.expect("renew").token > last.token);
}

fn sample(series: &'static str, part: u64, whole: u64) -> NewSample {
    NewSample { series, part, whole }
}

#[tokio::test]
async fn samples_outlive_the_process_that_measured_them() {
    let setting = Setting::new().await;
    let lease = setting.acquired("one").await;
    let hour = Duration::from_secs(3600);
    assert_eq!(setting.control.samples("drift", hour).await.expect("none"), []);
    let at_us = setting
        .control
        .append_samples(&lease, &[sample("drift", 1, 1000), sample("lag", 20, 0)])
        .await
        .expect("stored");
    let later_us =
        setting.control.append_samples(&lease, &[sample("drift", 0, u64::MAX)]).await.expect("more");
    assert!(later_us > at_us);

    setting.cluster.restart().await;
    let again = Control::connect(&setting.endpoint, "m").await.expect("another process");
    let found = again.samples("drift", hour).await.expect("drift");
    let seen: Vec<_> = found.iter().map(|s| (s.at_us, s.part, s.whole)).collect();
    assert_eq!(seen, [(at_us, 1, 1000), (later_us, 0, i64::MAX.unsigned_abs())]);
    let lag = again.samples("lag", hour).await.expect("lag");
    assert_eq!(lag.iter().map(|s| (s.at_us, s.part)).collect::<Vec<_>>(), [(at_us, 20)]);
    let other = Control::connect(&setting.endpoint, "n").await.expect("another migration");
    assert_eq!(other.samples("lag", hour).await.expect("its own"), []);
}

#[tokio::test]
async fn samples_that_no_window_reaches_are_removed_but_for_the_last_one_before_it() {
    let setting = Setting::new().await;
    let lease = setting.acquired("one").await;
    for part in 1..=5 {
        setting
            .control
            .append_samples(&lease, &[sample("lag", part, 0), sample("rare", part, 0)])
            .await
            .expect("stored");
    }
    // One, two, … hours ago; of the rare series only the oldest is left.
    let age = "UPDATE segue.sample SET at = at - (6 - part) * interval '1 h';
         DELETE FROM segue.sample WHERE series = 'rare' AND part > 1";
    setting.cluster.execute(age).await;
    let window = Duration::from_secs(9000);
    let parts = |series: &'static str| {
        let control = setting.control.clone();
        async move {
            let found = control.samples(series, window).await.expect("samples");
            found.iter().map(|s| s.part).collect::<Vec<_>>()
        }
    };
    assert_eq!(parts("lag").await, [3, 4, 5], "the one before the window says what was at its begin");
    assert_eq!(setting.control.prune_samples(&lease, window).await.expect("pruned"), 2);
    assert_eq!(setting.control.prune_samples(&lease, window).await.expect("pruned"), 0);
    assert_eq!((parts("lag").await, parts("rare").await), (vec![3, 4, 5], vec![1]));
}

#[tokio::test]
async fn a_superseded_driver_stores_and_removes_no_samples() {
    let setting = Setting::new().await;
    let first = setting.acquired("one").await;
    setting
        .control
        .append_samples(&first, &[sample("lag", 1, 0), sample("lag", 2, 0)])
        .await
        .expect("stored");
    setting.cluster.execute("UPDATE segue.sample SET at = at - part * interval '1 h'").await;
    setting.control.release(&first).await.expect("release");
    let second = setting.acquired("two").await;
    let codes = [
        setting.control.append_samples(&first, &[sample("lag", 3, 0)]).await.expect_err("append").code,
        setting.control.prune_samples(&first, Duration::ZERO).await.expect_err("prune").code,
    ];
    assert_eq!(codes, ["SEGUE-SUPERSEDED"; 2]);
    assert_eq!(setting.control.samples("lag", Duration::from_secs(9000)).await.expect("samples").len(), 2);
    setting.control.append_samples(&second, &[sample("lag", 3, 0)]).await.expect("the new one may");
}

/// A digest verification of tables 0 and 1 as it is stored at its end; table 1 is complete, or has hot rows.
fn verification(ended: &str, complete: bool, hot: u64) -> String {
    let table = |table_id, complete, hot| {
        let counts = RangeCounts { hot, ..RangeCounts::default() };
        TableReport { table_id, complete, counts, ..TableReport::default() }
    };
    let tables = vec![table(0, true, 0), table(1, complete, hot)];
    let report = json!(Report { tables, ..Report::default() });
    format!(
        "INSERT INTO segue.verification (migration, mode, tables, started_at, ended_at, body)
         VALUES ('m', 'digest', '{{0,1}}', clock_timestamp(), {ended}, jsonb_build_object('report', '{report}'::jsonb));"
    )
}

fn divergence(verification: &str, table: u32, key: &str, repaired: bool) -> String {
    format!(
        "INSERT INTO segue.divergence (migration, verification, table_id, key, class, found_at, repaired, body)
         VALUES ('m', {verification}, {table}, '{key}', 'changed', clock_timestamp(), {repaired}, '{{}}');"
    )
}

#[tokio::test]
async fn a_table_counts_as_verified_once_a_digest_has_gone_through_all_of_it() {
    let setting = Setting::new().await;
    let verified = |born_us: i64| {
        let control = setting.control.clone();
        async move { control.standing(born_us, 0).await.expect("standing") }
    };
    assert!(verified(0).await.verified.is_empty());
    setting.cluster.execute(&verification("NULL", true, 0)).await;
    let sampled = verification("clock_timestamp()", true, 0).replace("'digest'", "'sample'");
    setting.cluster.execute(&sampled).await;
    assert!(verified(0).await.verified.is_empty(), "neither cut off nor a sample");
    setting.cluster.execute(&verification("clock_timestamp() - interval '1 h'", false, 0)).await;
    let first = verified(0).await;
    assert_eq!(first.verified.keys().copied().collect::<Vec<_>>(), [TableId(0)], "table 1 was cut off");
    assert!((first.now_us - first.verified[&TableId(0)] - 3_600_000_000).abs() < 60_000_000);
    setting.cluster.execute(&verification("clock_timestamp()", true, 7)).await;
    let second = verified(0).await;
    assert!(second.verified[&TableId(0)] > first.verified[&TableId(0)], "the last one counts");
    assert_eq!(second.verified.len(), 2, "hot rows are compared at the switch");
    assert!(verified(second.now_us).await.verified.is_empty(), "an earlier stream's are of another copy");
}

#[tokio::test]
async fn a_verification_does_not_count_past_what_it_cannot_know() {
    let setting = Setting::new().await;
    let verified = |live_us: i64| {
        let control = setting.control.clone();
        async move {
            let standing = control.standing(0, live_us).await.expect("standing");
            (standing.verified.keys().map(|id| id.0).collect::<Vec<_>>(), standing)
        }
    };
    // Rows were left unsettled, and the process that knows which has ended.
    setting.cluster.execute(&verification("clock_timestamp()", true, 7)).await;
    let (ids, standing) = verified(0).await;
    assert_eq!(ids, [0, 1]);
    assert_eq!(verified(standing.now_us).await.0, [0]);
    // More of them than anybody remembers.
    setting
        .cluster
        .execute("UPDATE segue.verification SET body = jsonb_set(body, '{report,hot}', '2001')")
        .await;
    assert_eq!(verified(0).await.0, [0]);
    // Or one of them found no room beside those of others.
    let forgotten = "UPDATE segue.verification SET body = jsonb_set(jsonb_set(body, '{report,hot}', '7'),
         '{report,tables,1,counts,forgotten}', '1')";
    setting.cluster.execute(forgotten).await;
    assert_eq!(verified(0).await.0, [0]);
    // It was cut off, and ended an hour later.
    let resumed =
        verification("clock_timestamp()", true, 0).replace("\"ranges_resumed\":0", "\"ranges_resumed\":1");
    let range = "INSERT INTO segue.verified_range (verification, table_id, counts, at)
         SELECT 2, t, '{}', clock_timestamp() - n * interval '1 h' FROM generate_series(0, 1) t, generate_series(0, 1) n;";
    setting.cluster.execute(&format!("{resumed}{range}")).await;
    let (ids, standing) = verified(0).await;
    assert_eq!(ids, [0, 1]);
    let age_us = standing.now_us - standing.verified[&TableId(1)];
    assert!((age_us - 3_600_000_000).abs() < 60_000_000, "{age_us}");
    // Somebody has written past a fence since.
    let lease = setting.acquired("test").await;
    setting.control.append(&lease, 0, &entry("stray")).await.expect("a record");
    assert_eq!(verified(0).await.0, [0; 0]);
    setting.cluster.execute(&verification("clock_timestamp()", true, 0)).await;
    assert_eq!(verified(0).await.0, [0, 1]);
}

#[tokio::test]
async fn a_divergence_is_open_until_it_is_repaired_or_its_table_compared_without_it() {
    let setting = Setting::new().await;
    let open = async || setting.control.standing(0, 0).await.expect("standing").open;
    assert_eq!(open().await, 0);
    setting.cluster.execute(&verification("NULL", true, 0)).await;
    let found = [
        divergence("1", 0, "[1]", false),
        divergence("1", 0, "[2]", true),
        divergence("1", 1, "[1]", false),
        // Live comparison finds the same row again and again.
        divergence("NULL", 1, "[9]", false),
        divergence("NULL", 1, "[9]", false),
    ];
    setting.cluster.execute(&found.concat()).await;
    assert_eq!(open().await, 3);
    // A later one that left rows of table 1 unsettled says nothing about them.
    setting.cluster.execute(&verification("clock_timestamp()", true, 1)).await;
    assert_eq!(open().await, 2);
    // One that finds a row again has it in its own list.
    setting
        .cluster
        .execute(&format!(
            "{}{}",
            verification("clock_timestamp()", true, 0),
            divergence("3", 1, "[1]", false)
        ))
        .await;
    assert_eq!(open().await, 1);
    setting.cluster.execute("UPDATE segue.divergence SET repaired = true WHERE verification = 3").await;
    assert_eq!(open().await, 0);
}
