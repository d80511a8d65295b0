//! One migration from one version to another: tables before, changes after, equality at the end.

use crate::support::{PATIENCE, Pair};
use segue_testkit::Options;
use segue_testkit::cluster::available_majors;
use segue_testkit::kill::Process;

/// A pair of servers of these versions; `None`, and a loud word, if one is not installed.
pub(crate) async fn pair(from: u16, to: u16, tables: &[&str]) -> Option<Pair> {
    let have = available_majors();
    if !(have.contains(&from) && have.contains(&to)) {
        eprintln!(
            "SKIPPED: PostgreSQL {from} → {to} needs both installed, there are {have:?}: run scripts/setup"
        );
        return None;
    }
    Some(Pair::with(Options::major(from), Options::major(to), tables).await)
}

/// Runs SQL on both sides, in the schema `public`.
pub(crate) async fn on_both(pair: &Pair, sql: &str) {
    for side in [&pair.source, &pair.target] {
        batch(side, sql).await;
    }
}

/// Runs SQL on one side; the failing text is shown.
pub(crate) async fn batch(side: &segue_testkit::Cluster, sql: &str) {
    let client = side.connect("postgres").await;
    client.batch_execute(sql).await.unwrap_or_else(|e| panic!("PostgreSQL {}: {sql}: {e:?}", side.major()));
}

/// Starts the migration and waits until all rows are there.
pub(crate) async fn following(pair: &Pair) -> Process {
    let run = pair.run();
    pair.reaches(&run, "following").await;
    run
}

/// Waits until everything is applied, and compares.
pub(crate) async fn arrives(pair: &Pair, run: &Process, schemas: &[&str]) {
    applied(pair, run).await;
    pair.assert_equal(schemas).await;
}

/// Waits until everything is applied; panics with the run's last words if it ends.
pub(crate) async fn applied(pair: &Pair, run: &Process) {
    tokio::select! {
        () = pair.caught_up() => {}
        ended = run.wait(PATIENCE) => panic!("the run has ended ({ended:?}):\n{}", run.lines().join("\n")),
    }
}
