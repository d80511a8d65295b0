//! Clusters start fast, crash for real, come back, follow each other, and leave nothing behind.

use segue_testkit::cluster::{StandbyOptions, available_majors};
use segue_testkit::{Cluster, Options};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[tokio::test]
async fn a_cluster_from_the_template_starts_quickly() {
    drop(Cluster::start(Options::default()).await);
    let mut quickest = Duration::MAX;
    // A quarter of a second where nothing else runs. The bound is for the best of three on a busy machine: what it
    // guards against is an `initdb` per cluster.
    for _ in 0..3 {
        let began = Instant::now();
        let cluster = Cluster::start(Options::default().with("work_mem", "7MB")).await;
        quickest = quickest.min(began.elapsed());
        assert_eq!(cluster.scalar("SHOW work_mem").await.as_deref(), Some("7MB"));
        assert_eq!(cluster.scalar("SHOW wal_level").await.as_deref(), Some("logical"));
    }
    assert!(quickest < Duration::from_secs(3), "{quickest:?}");
}

#[tokio::test]
async fn every_installed_major_runs_beside_the_others() {
    for major in available_majors() {
        let cluster = Cluster::start(Options::major(major)).await;
        let version = cluster.scalar("SHOW server_version_num").await.unwrap_or_default();
        assert!(version.starts_with(&major.to_string()), "{version} is not {major}");
        let method =
            cluster.scalar("SELECT left(rolpassword, 13) FROM pg_authid WHERE rolname = 'postgres'").await;
        assert_eq!(method.as_deref(), Some("SCRAM-SHA-256"));
    }
}

#[tokio::test]
async fn two_clusters_are_two_systems() {
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    let (one, other) = tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
    assert_ne!(one.scalar(identifier).await, other.scalar(identifier).await);
    assert_ne!(one.port(), other.port());
}

#[tokio::test]
async fn a_crash_keeps_what_was_flushed_and_loses_what_was_not() {
    let cluster = Cluster::start(Options::default().with("wal_writer_delay", "10s")).await;
    cluster.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CHECKPOINT").await;
    let client = cluster.connect("postgres").await;
    client.batch_execute("SET synchronous_commit = off; INSERT INTO t VALUES (2)").await.expect("insert");
    let port = cluster.port();
    cluster.kill9().await;
    assert!(cluster.try_connect("postgres").await.is_err());
    cluster.start_again().await;
    assert_eq!(cluster.port(), port);
    assert_eq!(cluster.scalar("SELECT string_agg(id::text, ',') FROM t").await.as_deref(), Some("1"));

    cluster.execute("INSERT INTO t VALUES (3)").await;
    cluster.stop_immediate().await;
    cluster.start_again().await;
    cluster.restart().await;
    assert_eq!(cluster.scalar("SELECT count(*) FROM t").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn settings_are_in_force_when_set_returns() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.set("log_line_prefix", "it's %m").await;
    assert_eq!(cluster.scalar("SHOW log_line_prefix").await.as_deref(), Some("it's %m"));
}

#[tokio::test]
async fn a_saved_state_can_be_gone_back_to() {
    let cluster = Cluster::start(Options::default()).await;
    cluster.execute("CREATE TABLE t AS SELECT 1 AS id").await;
    cluster.stop_fast().await;
    let saved = cluster.save();
    cluster.start_again().await;
    cluster.execute("INSERT INTO t VALUES (2)").await;
    cluster.stop_fast().await;
    cluster.restore(&saved);
    cluster.start_again().await;
    assert_eq!(cluster.scalar("SELECT count(*) FROM t").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn psql_reads_its_input_and_fails_on_errors() {
    let cluster = Cluster::start(Options::default()).await;
    let output = cluster.psql(&["-At"], "SELECT 6 * 7;");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42");
    assert!(!cluster.psql(&[], "SELECT nonsense;").status.success());
}

#[tokio::test]
async fn a_frozen_synchronous_standby_leaves_commits_in_the_log_but_invisible() {
    let majors: Vec<u16> = available_majors();
    let both_backup_interfaces = [majors.iter().find(|m| **m < 15), majors.iter().find(|m| **m >= 15)];
    for major in both_backup_interfaces.into_iter().flatten() {
        let primary = Cluster::start(Options::major(*major)).await;
        primary.execute("CREATE TABLE t (id int)").await;
        let standby = Cluster::standby_of(&primary, StandbyOptions::named("sync1")).await;
        assert_eq!(standby.scalar("SELECT pg_is_in_recovery()").await.as_deref(), Some("t"));
        primary.set("synchronous_standby_names", "sync1").await;
        primary.execute("INSERT INTO t VALUES (1)").await;

        standby.pause().await;
        let writer = primary.connect("postgres").await;
        let commit = tokio::spawn(async move { writer.batch_execute("INSERT INTO t VALUES (2)").await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!commit.is_finished(), "the commit did not wait for the frozen standby");
        assert_eq!(primary.scalar("SELECT count(*) FROM t").await.as_deref(), Some("1"));
        standby.unpause();
        commit.await.expect("the writer's task").expect("the commit");
        assert_eq!(primary.scalar("SELECT count(*) FROM t").await.as_deref(), Some("2"));

        primary.kill9().await;
        standby.promote().await;
        standby.execute("INSERT INTO t VALUES (3)").await;
        assert_eq!(standby.scalar("SELECT count(*) FROM t").await.as_deref(), Some("3"));
    }
}

/// Not a test by itself: the process that the next one kills.
#[tokio::test]
#[ignore = "run by a_server_dies_with_its_test_process"]
async fn hold_a_cluster_forever() {
    let cluster = Cluster::start(Options::default()).await;
    println!("HOLDING {} {}", cluster.pid().expect("it runs"), cluster.data_dir().display());
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[test]
fn a_server_dies_with_its_test_process() -> Outcome {
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "--nocapture", "hold_a_cluster_forever"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = BufReader::new(holder.stdout.take().expect("piped"));
    // The test harness may print its own words on the same line first.
    let line = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split_once("HOLDING ").map(|(_, rest)| rest.to_owned()))
        .expect("the holder says what it holds");
    let (pid, data) = line.split_once(' ').expect("pid and path");
    let server = Path::new("/proc").join(pid);
    assert!(server.exists() && Path::new(data).exists());
    holder.kill()?;
    holder.wait()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    // A machine without a reaper keeps the zombie's entry, but no longer its command line.
    while std::fs::read(server.join("cmdline")).is_ok_and(|line| !line.is_empty()) || Path::new(data).exists()
    {
        assert!(Instant::now() < deadline, "server or data survived");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
