//! Before writes are held: autovacuum is turned off and put back exactly, and the fence's session gets ready.

use crate::world::*;
use segue_engine::fault::Recovery;
use segue_postgres::fence::autovacuum::{
    due_against_wraparound, put_back, running, turn_off, wait_for_running,
};
use segue_testkit::Options;
use std::time::Duration;

const OPTIONS: &str = "SELECT coalesce(string_agg(relname || '=' || (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(reloptions) o), ' ' ORDER BY relname), '')
     FROM (SELECT c.relname, c.reloptions FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
           UNION ALL SELECT 'toast of ' || c.relname, t.reloptions FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid
            WHERE c.relnamespace = 'public'::regnamespace) x WHERE reloptions IS NOT NULL";

#[tokio::test]
async fn what_autovacuum_was_set_to_is_put_back_exactly() {
    let world = World::owner(Options::default(), limits(2_000)).await;
    world
        .client
        .batch_execute(
            "ALTER TABLE plain SET (autovacuum_enabled = True, fillfactor = 70, toast.autovacuum_enabled = false);
             ALTER TABLE heirs SET (toast.autovacuum_enabled = on, toast.autovacuum_vacuum_threshold = 7);
             ALTER TABLE parts_low SET (autovacuum_enabled = no)",
        )
        .await
        .unwrap();
    let before = world.cluster.scalar(OPTIONS).await;
    let off = turn_off(&world.client, ("m", 3)).await.unwrap();
    assert_eq!(off.len(), 6, "{off:?}");
    assert_eq!(turn_off(&world.client, ("m", 3)).await.unwrap(), [""; 0], "once");
    let all_off = "SELECT bool_and('autovacuum_enabled=off' = ANY(reloptions)) FROM pg_class WHERE relname IN
         ('plain', 'child', 'parts_low', 'parts_high_1', 'heirs', 'heirs_1')
         OR oid IN (SELECT reltoastrelid FROM pg_class WHERE relname IN ('plain', 'heirs', 'heirs_1', 'parts_low'))";
    assert_eq!(world.cluster.scalar(all_off).await.as_deref(), Some("t"));
    // A table that is dropped meanwhile, and one that somebody has set to something else.
    world
        .client
        .batch_execute("DROP TABLE parts_high_1; ALTER TABLE child SET (autovacuum_enabled = true)")
        .await
        .unwrap();
    put_back(&world.client, "m").await.unwrap();
    let after = world.cluster.scalar(OPTIONS).await.unwrap();
    assert_eq!(after.replace("child=autovacuum_enabled=true ", ""), before.unwrap());
    assert_eq!(put_back(&world.client, "m").await.unwrap(), [""; 0], "once");
    assert_eq!(world.cluster.scalar("SELECT count(*) FROM segue.autovacuum").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_running_vacuum_is_named_and_waited_for() {
    let world = World::owner(Options::default(), limits(2_000)).await;
    world
        .client
        .batch_execute("INSERT INTO plain SELECT g, repeat('x', 200) FROM generate_series(10, 60000) g")
        .await
        .unwrap();
    let vacuum = world.cluster.connect("postgres").await;
    vacuum
        .batch_execute(
            "SET application_name = 'nightly'; SET vacuum_cost_delay = '5ms'; SET vacuum_cost_limit = 10",
        )
        .await
        .unwrap();
    let run = tokio::spawn(async move { vacuum.batch_execute("VACUUM FREEZE plain").await });
    let mut found = Vec::new();
    for _ in 0..100 {
        found = running(&world.client, "m").await.unwrap();
        if !found.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let [one] = &found[..] else { panic!("{found:?}") };
    assert!(one.by.application == "nightly" && !one.against_wraparound, "{one:?}");
    assert_eq!(wait_for_running(&world.client, "m", Duration::from_millis(150)).await.unwrap().len(), 1);
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nightly'";
    world.client.execute(end, &[]).await.unwrap();
    run.await.unwrap().expect_err("ended");
    assert_eq!(wait_for_running(&world.client, "m", Duration::from_secs(10)).await.unwrap(), []);
    assert_eq!(due_against_wraparound(&world.client, "m", 1_000).await.unwrap(), [""; 0]);
    world.client.batch_execute("ALTER TABLE plain SET (autovacuum_freeze_max_age = 100000)").await.unwrap();
    assert_eq!(due_against_wraparound(&world.client, "m", 100_000).await.unwrap(), ["public.plain"]);
}

#[tokio::test]
async fn getting_ready_waits_for_no_writer_and_changes_nothing() {
    let world = World::owner(Options::default(), limits(60_000)).await;
    let app = world.app().await;
    app.batch_execute("BEGIN; INSERT INTO plain VALUES (7, 'b')").await.unwrap();
    let (before, disabled) = (world.ownership().await, world.triggers("D").await);
    world.side.get_ready().await.unwrap();
    assert_eq!((world.ownership().await, world.triggers("D").await), (before, disabled));
    // Somebody who keeps even readers out is waited for no longer than for the fence's locks.
    world.client.batch_execute("BEGIN; LOCK TABLE child").await.unwrap();
    let fault = world.side.get_ready().await.expect_err("a table that nobody may read");
    assert_eq!((fault.code, fault.recovery), ("SEGUE-LOCKED", Recovery::Retry), "{fault}");
    world.client.batch_execute("ROLLBACK").await.unwrap();
    world.side.get_ready().await.unwrap();
    app.batch_execute("INSERT INTO parts VALUES (201, 'b'); COMMIT").await.unwrap();
    // And it keeps no lock.
    world.client.batch_execute("SET lock_timeout = '1s'; TRUNCATE plain, child, parts").await.unwrap();
}
