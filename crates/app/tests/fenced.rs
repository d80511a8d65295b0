//! A client that writes to the wrong side fails loudly, from before the first row is copied until the migration is cancelled.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]
#![cfg(feature = "killpoints")]

mod support;

use segue_testkit::kill::Process;
use support::{PATIENCE, Pair};

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)";
const WRITES: [&str; 5] = [
    "INSERT INTO t VALUES (2, 'stray')",
    "UPDATE p SET v = 'stray'",
    "DELETE FROM p1",
    "TRUNCATE t",
    "COPY p FROM PROGRAM 'echo 7,stray' WITH (FORMAT csv)",
];

async fn refused(pair: &Pair) {
    let client = pair.target.connect("postgres").await;
    for write in WRITES {
        let error = client.batch_execute(write).await.expect_err(write);
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "25006", "{write}: {error}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(&pair.source.port().to_string()), "{write} is not told where to write: {hint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_target_follows_only_segue_writes_to_it() {
    let pair = Pair::start(&["public.*"]).await;
    for side in [&pair.source, &pair.target] {
        side.execute(TABLES).await;
    }
    pair.source.execute("INSERT INTO t VALUES (1, 'x'); INSERT INTO p VALUES (1, 'x')").await;
    pair.fenced().await;
    refused(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    refused(&pair).await;
    pair.source
        .execute("INSERT INTO t VALUES (3, 'y'); UPDATE p SET v = 'y'; DELETE FROM t WHERE id = 1")
        .await;
    pair.caught_up().await;
    // It is no process that keeps others out.
    run.kill9();
    refused(&pair).await;
    pair.assert_equal(&["public"]).await;
    let cancel = Process::start(pair.command(&["cancel"]));
    assert!(cancel.wait(PATIENCE).await.unwrap().success(), "{}", cancel.lines().join("\n"));
    pair.target.execute("INSERT INTO t VALUES (2, 'mine'); INSERT INTO p VALUES (2, 'mine')").await;
    let left = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal";
    assert_eq!(pair.target.scalar(left).await.as_deref(), Some("0"));
}
