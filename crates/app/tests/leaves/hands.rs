//! Leaves and tables that change hands: their names, their tables, and back to where they were.

use super::load::Load;
use super::{attach, ddl, detach, equal_in_the_end, settled, start, unguarded};
use crate::support::{self, PATIENCE, Pair};
use std::time::{Duration, Instant};

/// `sql`, in a transaction that has written to `leaf`, at the moment when Segue waits for its end.
async fn while_segue_waits(pair: &Pair, leaf: &str, sql: &str) {
    let client = pair.source.connect("postgres").await;
    client.batch_execute(&format!("BEGIN; LOCK TABLE {leaf} IN ROW EXCLUSIVE MODE")).await.unwrap();
    let waits = "SELECT count(*)::text FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE NOT l.granted AND l.mode = 'ShareRowExclusiveLock' AND a.application_name LIKE 'segue%'";
    let deadline = Instant::now() + PATIENCE;
    while pair.source.scalar(waits).await.as_deref() == Some("0") {
        assert!(Instant::now() < deadline, "Segue never waited for {sql}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.batch_execute(&format!("{sql}; COMMIT")).await.unwrap();
}

/// What is to be locked, published or taken out was looked up under a name that belongs to another leaf a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_leaves_change_hands_while_they_come_and_go() {
    let pair = start(2_000).await;
    let load = Load::start(&pair).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    load.progress(50).await;
    ddl(&pair, &attach("late", 400, 450, 500)).await;
    while_segue_waits(&pair, "late", "ALTER TABLE late RENAME TO late_one; ALTER TABLE e0 RENAME TO late")
        .await;
    settled(&pair, &run).await;
    ddl(&pair, &detach("e1")).await;
    while_segue_waits(&pair, "e1", "ALTER TABLE e1 RENAME TO e1_gone; ALTER TABLE e2 RENAME TO e1").await;
    equal_in_the_end(&pair, load, run).await;
}

/// What is written to a leaf while it is detached is passed over, and a leaf that was found gone is copied again when it is
/// there again: over a restart, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_was_found_gone_leaves_over_a_restart() {
    let pair = start(2_000).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let writer = pair.source.connect("postgres").await;
    writer.batch_execute("BEGIN; ALTER TABLE events DETACH PARTITION e1; COMMIT").await.unwrap();
    // Segue cannot take it out of the stream as long as this has not ended.
    writer.batch_execute("BEGIN; LOCK TABLE e1 IN ROW EXCLUSIVE MODE").await.unwrap();
    ddl(&pair, "UPDATE e1 SET body = 'while it was detached'").await;
    ddl(&pair, "INSERT INTO events VALUES (1, 300, 'behind it')").await;
    let behind = "SELECT count(*) FROM events WHERE body = 'behind it'";
    support::slow::until("the stream is past it", async || {
        pair.target.scalar(behind).await.as_deref() == Some("1")
    })
    .await;
    pair.caught_up().await;
    run.kill9();
    let back = "ALTER TABLE events ATTACH PARTITION e1 FOR VALUES FROM (100) TO (200); COMMIT";
    writer.batch_execute(back).await.unwrap();
    let run = pair.run();
    // It has left, and came back as a new one.
    let came_back = "SELECT count(*) FROM segue.unit WHERE unit <> table_id AND backfilled_at IS NOT NULL";
    support::slow::until("it has come back", async || {
        assert_eq!(run.status(), None, "{}", run.lines().join("\n"));
        pair.target.scalar(came_back).await.as_deref() == Some("1")
    })
    .await;
    equal_in_the_end(&pair, Load::start(&pair).await, run).await;
}

/// A leaf moves from one migrated table to another, at once: it leaves the one, and comes to the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_moves_from_one_table_to_another() {
    let pair = start(2_000).await;
    let archive =
        "CREATE TABLE archive (id int, day int, body text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)";
    pair.source.execute(archive).await;
    pair.target.execute(&format!("{archive}; CREATE TABLE archived PARTITION OF archive DEFAULT")).await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.events", "public.archive"], "");
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let moves = |from: &str, to: &str, leaf: &str, bounds: &str| {
        format!(
            "BEGIN; SET LOCAL lock_timeout = '5s'; ALTER TABLE {from} DETACH PARTITION {leaf};
             ALTER TABLE {to} ATTACH PARTITION {leaf} FOR VALUES FROM {bounds}; COMMIT"
        )
    };
    let both_equal = async || {
        support::slow::until("both sides have it in the same place", async || {
            let rows = "SELECT concat((SELECT count(*) FROM events), ' ', (SELECT count(*) FROM archive))";
            pair.source.scalar(rows).await == pair.target.scalar(rows).await
        })
        .await;
        pair.caught_up().await;
        pair.assert_equal(&["public"]).await;
    };
    ddl(&pair, &moves("events", "archive", "e1", "(0) TO (250)")).await;
    both_equal().await;
    // While nobody looks; wider bounds than it had, which must not be taken for those of what leaves.
    run.kill9();
    ddl(
        &pair,
        &moves("events", "archive", "e2", "(250) TO (400)")
            .replace("e2;", "e2; DELETE FROM e2 WHERE day < 250;"),
    )
    .await;
    let run = pair.run();
    both_equal().await;
    ddl(&pair, "UPDATE archive SET body = 'archived'").await;
    both_equal().await;
    assert!(run.status().is_none(), "{}", run.lines().join("\n"));
}

/// Somebody puts another table in the place of one that is being copied, and back: no region of the other one counts as copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_swapped_while_it_is_copied_is_not_copied_from_the_other_one() {
    let pair = start(150_000).await;
    unguarded(&pair);
    let spec = std::fs::read_to_string(pair.spec()).unwrap();
    std::fs::write(pair.spec(), format!("{spec}copy: {{ workers: 2, region_target_ms: 50 }}\n")).unwrap();
    let run = pair.run();
    pair.reaches(&run, "backfilling").await;
    pair.segue(&["throttle", "--rate", "2MB"], 0);
    ddl(&pair, "ALTER TABLE events RENAME TO events_old; CREATE TABLE events (LIKE events_old INCLUDING ALL) PARTITION BY RANGE (day)").await;
    let ended = run.wait(PATIENCE).await.unwrap();
    assert!(!ended.success(), "{}", run.lines().join("\n"));
    ddl(&pair, "DROP TABLE events; ALTER TABLE events_old RENAME TO events").await;
    let run = pair.run();
    // The stage in the control database is that of the process before.
    run.wait_for("backfilling", PATIENCE).await.unwrap();
    pair.segue(&["throttle", "--off"], 0);
    pair.reaches(&run, "following").await;
    equal_in_the_end(&pair, Load::start(&pair).await, run).await;
}
