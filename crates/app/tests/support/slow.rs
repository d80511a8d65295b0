//! Holding things still at chosen moments: open transactions, locks, commits that hang on a standby.

use super::{PATIENCE, Pair};
use segue_testkit::cluster::StandbyOptions;
use segue_testkit::kill::{Process, Stops};
use segue_testkit::{Cluster, Options};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

/// The name of the standby that commits on the source wait for.
pub const STANDBY: &str = "standby1";

/// Polls until `what` holds; panics with `why` if it never does.
pub async fn until(why: &str, mut what: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what().await {
        assert!(Instant::now() < deadline, "it did not come about: {why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A session inside a transaction that has a number; returns the number as text.
pub async fn transaction(cluster: &Cluster) -> (Client, String) {
    let client = cluster.connect("postgres").await;
    client.batch_execute("BEGIN").await.unwrap();
    let row = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap();
    (client, row.get(0))
}

/// A session that holds a lock until it is dropped or ended.
pub async fn locked(cluster: &Cluster, table: &str, mode: &str) -> Client {
    let client = cluster.connect("postgres").await;
    client.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN {mode} MODE")).await.unwrap();
    client
}

/// Options for a source whose commits wait for [`STANDBY`].
pub fn synchronous() -> Options {
    Options::default().with("synchronous_standby_names", STANDBY)
}

/// The standby of a source made with [`synchronous`].
pub async fn standby(source: &Cluster) -> Cluster {
    // Its data must not wait for itself.
    let mut options = StandbyOptions::named(STANDBY);
    options.settings.push(("synchronous_standby_names".into(), String::new()));
    Cluster::standby_of(source, options).await
}

/// Commits `client`'s transaction while the standby does not answer: returns when the commit is in the log and hangs.
pub async fn hang(source: &Cluster, standby: &Cluster, client: Client) -> JoinHandle<Result<(), Error>> {
    standby.pause().await;
    let commit = tokio::spawn(async move { client.batch_execute("COMMIT").await });
    let hanging = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("a commit that hangs on the standby", async || {
        source.scalar(hanging).await.as_deref() == Some("1")
    })
    .await;
    commit
}

impl Pair {
    /// Runs the same statements on both sides.
    pub async fn both(&self, sql: &str) {
        tokio::join!(self.source.execute(sql), self.target.execute(sql));
    }

    /// Starts `segue run`, which freezes itself when it passes `point`, and then where it is told to.
    pub fn run_stopping(&self, point: &str) -> (Process, Stops) {
        let mut command = self.command(&["run"]);
        let stops = Stops::of(&mut command, self.dir.path().join("stop"));
        stops.at(point);
        (Process::start(command), stops)
    }

    /// Fences the target, and goes no further: whoever wants to hold the copy up by a lock there can take it now.
    #[cfg(feature = "killpoints")]
    pub async fn fenced(&self) {
        let mut command = self.command(&["run"]);
        segue_testkit::kill::kill_at(&mut command, "birth.fenced", 1);
        let run = Process::start(command);
        let status = run.wait(PATIENCE).await.unwrap();
        assert!(segue_testkit::kill::was_killed(status), "{}", run.lines().join("\n"));
    }

    /// Asks `run` to end, and waits until it has.
    pub async fn stop(&self, run: &Process) {
        run.terminate();
        run.wait(PATIENCE).await.unwrap();
    }

    /// Lets as much time pass for the lease as its holder's heart must stand still for.
    pub async fn expire_lease(&self) {
        self.target.execute("UPDATE segue.heartbeat SET beat_at = beat_at - interval '1 hour'").await;
    }

    /// Waits for the end of `run`, which must be a fault with this code; returns all it said.
    pub async fn refused(&self, run: &Process, code: &str) -> String {
        // Waited for first: its last lines may come after its end.
        run.wait_for(code, PATIENCE).await.unwrap();
        let status = run.wait(PATIENCE).await.unwrap();
        let said = run.lines().join("\n");
        assert_eq!(status.code(), Some(1), "{said}");
        said
    }
}
