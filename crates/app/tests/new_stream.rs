//! A stream that is lost is never resumed over the gap, and is made anew over the rows that are there when that is asked for:
//! while rows are copied and while they are followed, killed wherever it may be.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![cfg(feature = "killpoints")]

mod support;

use segue_testkit::kill::{Process, kill_at};
use serde_json::Value;
use std::time::Duration;
use support::{PATIENCE, Pair, fire, fire::Fire, orders, slow::until};

const NEW_STREAM: &[&str] = &["run", "--new-stream"];

/// What is in the journal about new streams: the last record of this kind.
async fn last(pair: &Pair, kind: &str) -> Value {
    let sql = format!("SELECT body::text FROM segue.journal WHERE kind = '{kind}' ORDER BY seq DESC LIMIT 1");
    let body = pair.target.scalar(&sql).await.unwrap_or_else(|| panic!("no record {kind}"));
    serde_json::from_str(&body).unwrap()
}

async fn drop_slot(pair: &Pair) {
    let sql = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name = 'segue_test_fwd'";
    assert_eq!(pair.source.scalar(sql).await.as_deref(), Some("1"));
}

/// The log that a stopped Segue needs is removed, as the server's bound on it says.
async fn invalidate_slot(pair: &Pair) {
    pair.source.set("max_slot_wal_keep_size", "1MB").await;
    let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = 'segue_test_fwd'";
    until("the slot's log is removed", async || {
        for _ in 0..2 {
            pair.source
                .execute("SELECT pg_logical_emit_message(true, 'x', 'x'); SELECT pg_switch_wal()")
                .await;
        }
        pair.source.execute("CHECKPOINT").await;
        pair.source.scalar(lost).await.as_deref() == Some("t")
    })
    .await;
    pair.source.set("max_slot_wal_keep_size", "-1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_stream_is_made_anew_wherever_it_is_killed() {
    let fire = Fire::start(20_000, fire::seed(), 100).await;
    fire.dies_at("region.committed", 8).await;
    let region = "SELECT count(*) > 0 FROM segue.region WHERE rows > 0";
    assert_eq!(fire.pair.target.scalar(region).await.as_deref(), Some("t"), "nothing is copied yet");
    drop_slot(&fire.pair).await;
    let said = fire.pair.refused(&fire.pair.run(), "SEGUE-SLOT-LOST").await;
    for part in ["is gone", "is on the target, applied until", "segue run --new-stream"] {
        assert!(said.contains(part), "{part} is not said:\n{said}");
    }

    fire.dies_of(NEW_STREAM, "renew.ordered", 1).await;
    let lost = last(&fire.pair, "new-stream").await;
    assert_eq!(lost["code"], "SEGUE-SLOT-LOST", "{lost:#}");
    // From here on it need not be asked for again.
    for point in [
        "renew.cleared",
        "birth.fenced",
        "birth.incarnation",
        "birth.slot",
        "birth.barrier",
        "renew.succeeded",
    ] {
        fire.dies_at(point, 1).await;
    }
    for (point, passage) in [("renew.compared", 1), ("region.stored", 3), ("region.committed", 2)] {
        fire.dies_at(point, passage).await;
    }
    let run = fire.pair.run();
    run.wait_for("the new stream has compared", PATIENCE).await.unwrap();
    fire.settle(&run).await;
}

/// What a table can be like: keys that two servers may order differently, none at all, unique values that move between rows,
/// identities, generated columns, leaves.
const SHAPES: &str = "
    CREATE TABLE public.swap (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE, upper text GENERATED ALWAYS AS (upper(name)) STORED);
    CREATE TABLE public.word (word text PRIMARY KEY, big text);
    CREATE TABLE public.keyless (segue_nth int, note text); ALTER TABLE public.keyless REPLICA IDENTITY FULL;
    CREATE TABLE public.part (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE public.part_1 PARTITION OF public.part FOR VALUES FROM (0) TO (10);
    CREATE TABLE public.part_2 PARTITION OF public.part FOR VALUES FROM (10) TO (20);
    CREATE TABLE public.wide (id bigint PRIMARY KEY, n numeric, f float8, j jsonb, v text);";
const ROWS: &str = "
    INSERT INTO public.swap (name) SELECT 'n' || n FROM generate_series(1, 100) n;
    INSERT INTO public.word SELECT chr(65 + n % 26) || CASE n % 2 WHEN 0 THEN 'a' ELSE 'Z' END || n, repeat('x', n * 100) FROM generate_series(1, 200) n;
    INSERT INTO public.keyless SELECT n % 10, 'x' FROM generate_series(1, 50) n;
    INSERT INTO public.part SELECT n, n % 20 FROM generate_series(1, 100) n;
    INSERT INTO public.wide SELECT n, 1.0, 0, '{\"a\": 1}', 'v' FROM generate_series(1, 30000) n;";
/// What the source has done behind the lost stream's back, and what was done to the target.
const UNSEEN: &str = "
    UPDATE public.swap SET name = 'tmp' WHERE id = 1; UPDATE public.swap SET name = 'n1' WHERE id = 2;
    UPDATE public.swap SET name = 'n2' WHERE id = 1; DELETE FROM public.swap WHERE id = 3;
    INSERT INTO public.swap (name) VALUES ('n3');
    UPDATE public.word SET big = 'y' WHERE word LIKE 'A%'; DELETE FROM public.word WHERE word LIKE 'BZ%';
    DELETE FROM public.keyless WHERE ctid IN (SELECT min(ctid) FROM public.keyless WHERE segue_nth = 1); INSERT INTO public.keyless VALUES (2, 'x'), (NULL, NULL);
    UPDATE public.part SET at = 15 WHERE id = 5; ALTER TABLE public.part DETACH PARTITION public.part_2; ALTER TABLE public.part ATTACH PARTITION public.part_2 FOR VALUES FROM (10) TO (20);
    UPDATE public.wide SET n = 1.00 WHERE id = 7; UPDATE public.wide SET f = '-0' WHERE id = 8; DELETE FROM public.wide WHERE id = 29000;
    INSERT INTO public.wide VALUES (0, 1, 1, NULL, NULL);";

/// Only what differs is written, and counted; whatever took the stream away.
#[tokio::test(flavor = "multi_thread")]
async fn only_rows_that_differ_are_written_and_they_are_counted() {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(SHAPES).await;
    pair.source.execute(ROWS).await;
    pair.refused(&Process::start(pair.command(NEW_STREAM)), "SEGUE-NO-STREAM").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    pair.stop(&run).await;
    pair.refused(&Process::start(pair.command(NEW_STREAM)), "SEGUE-STREAM-INTACT").await;

    let before = pair.target.scalar("SELECT txid_current()").await.unwrap();
    pair.source.execute(UNSEEN).await;
    pair.plant("INSERT INTO public.wide VALUES (40000, 1, 1, NULL, 'nobody wrote this on the source')").await;
    invalidate_slot(&pair).await;
    let said = pair.refused(&pair.run(), "SEGUE-SLOT-LOST").await;
    assert!(said.contains("max_slot_wal_keep_size was exceeded"), "{said}");
    let (run, _) = pair.renewed().await;
    pair.source.execute("INSERT INTO public.wide VALUES (50000, 1, 1, NULL, 'streamed')").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    let written = format!("SELECT count(*) FROM public.wide WHERE xmin::text::bigint > {before}");
    // Of 30,000: two that changed, one that is new, and one that was streamed.
    assert_eq!(pair.target.scalar(&written).await.as_deref(), Some("4"));
    let found = &last(&pair, "new-stream-compared").await["found"];
    // swap: 1 and 2 changed, 3 is gone, one is new. word: 8 of 'A', 3 'BZ…' gone. part: 5 moved, by its key. wide: see above.
    let count = |what: &str| found[what].as_u64().unwrap();
    let words = pair.source.scalar("SELECT count(*) FROM public.word WHERE big = 'y'").await.unwrap();
    assert_eq!(count("changed"), 4 + words.parse::<u64>().unwrap(), "{found:#}");
    assert_eq!(count("missing"), 1 + 2 + 1 + 1, "{found:#}");
    let gone =
        200 - pair.source.scalar("SELECT count(*) FROM public.word").await.unwrap().parse::<u64>().unwrap();
    assert_eq!(count("extra"), 1 + gone + 1 + 1 + 2, "{found:#}");

    // What was compared before is no evidence any more, what is compared now is.
    let gates = pair.segue(&["switch", "writes"], 3);
    assert!(gates.contains("verif"), "{gates}");
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes"], 0);
    pair.stop(&run).await;

    // The target's rows are the right ones now: no stream is made over them.
    drop_slot(&pair).await;
    let said = pair.refused(&Process::start(pair.command(NEW_STREAM)), "SEGUE-TARGET-OWNS").await;
    assert!(said.contains("segue reverse"), "{said}");
}

/// Both restores leave a slot that would go on without a word. Asked twice, they are refused twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_source_and_a_restored_target_are_told_apart_and_mended() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    let rows = |range: &str, v: &str| {
        format!("INSERT INTO public.t SELECT n, '{v}' FROM generate_series({range}) n")
    };
    pair.source.execute(&rows("1, 1000", "first")).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.caught_up().await;
    pair.stop(&run).await;
    tokio::join!(pair.source.stop_fast(), pair.target.stop_fast());
    let saved = (pair.source.save(), pair.target.save());
    tokio::join!(pair.source.start_again(), pair.target.start_again());
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.source.execute(&rows("2001, 3000", "later")).await;
    pair.caught_up().await;

    // The source, whose log has grown beyond what was applied of the one that is lost.
    pair.stop(&run).await;
    let applied = pair.source.scalar("SELECT pg_current_wal_lsn()").await.unwrap();
    pair.source.stop_immediate().await;
    pair.source.restore(&saved.0);
    pair.source.start_again().await;
    pair.source.execute(&rows("5001, 20000", "other")).await;
    let beyond = format!("SELECT pg_current_wal_flush_lsn() > '{applied}'");
    assert_eq!(pair.source.scalar(&beyond).await.as_deref(), Some("t"));
    pair.refused(&pair.run(), "SEGUE-SOURCE-BEHIND").await;
    let said = pair.refused(&pair.run(), "SEGUE-SOURCE-BEHIND").await;
    assert!(said.contains("restored to an older state") && said.contains("--new-stream"), "{said}");
    let (run, _) = pair.renewed().await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    let found = last(&pair, "new-stream-compared").await;
    assert_eq!(
        found["found"]["extra"], 1000,
        "what was acknowledged and is on no server any more: {found:#}"
    );

    // The target, journal and all.
    pair.source.execute(&rows("3001, 3100", "again")).await;
    pair.caught_up().await;
    let confirmed = "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() - 8192 FROM pg_replication_slots";
    until("the slot is confirmed", async || pair.source.scalar(confirmed).await.as_deref() == Some("t"))
        .await;
    pair.stop(&run).await;
    pair.target.stop_immediate().await;
    pair.target.restore(&saved.1);
    pair.target.start_again().await;
    let run = pair.run();
    run.wait_for("next: ", PATIENCE).await.unwrap();
    let said = pair.refused(&run, "--new-stream").await;
    // Another slot than the one that the older state knows, too: which one of both is said first does not matter.
    assert!(said.contains("SEGUE-SLOT-REMADE") || said.contains("SEGUE-CHECKPOINT-BEHIND"), "{said}");
    let (_run, _) = pair.renewed().await;
    pair.source.execute(&rows("4001, 4010", "streamed")).await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}

/// What the storage under a source keeps of one moment of a run, as snapshots do, and not only of the time between two runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_restored_to_a_moment_of_the_last_run_is_told() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'kept' FROM generate_series(1, 1000) n").await;
    pair.caught_up().await;
    let saved = pair.source.snapshot();
    // The status may still show an earlier one than the snapshot has.
    let told = pair.source.scalar("SELECT max(id) FROM segue.signal").await.unwrap();
    let number = format!("SELECT max((body -> 'slot' ->> 'signal')::bigint) > {told} FROM segue.status");
    pair.source.execute("INSERT INTO public.t SELECT n, 'lost' FROM generate_series(1001, 2000) n").await;
    pair.caught_up().await;
    until("the source has a new number", async || pair.target.scalar(&number).await.as_deref() == Some("t"))
        .await;
    pair.stop(&run).await;
    let applied = pair.source.scalar("SELECT pg_current_wal_lsn()").await.unwrap();
    pair.source.stop_immediate().await;
    pair.source.restore(&saved);
    pair.source.start_again().await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'other' FROM generate_series(1501, 20000) n").await;
    let beyond = format!("SELECT pg_current_wal_flush_lsn() > '{applied}'");
    assert_eq!(pair.source.scalar(&beyond).await.as_deref(), Some("t"));
    pair.refused(&pair.run(), "SEGUE-SOURCE-BEHIND").await;
    let (_run, _) = pair.renewed().await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}

/// The driver dies between the flip and the opening, and the stream is lost. The new side is opened by the new stream, but not
/// before that has compared every row: what the application wrote there meanwhile would be put back.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_is_not_ended_by_a_stream_that_still_compares() {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    pair.source
        .execute("INSERT INTO public.t SELECT n, repeat('x', 200) FROM generate_series(1, 100000) n")
        .await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    // It outlives the process: comparing takes a minute.
    pair.segue(&["throttle", "--rate", "256KiB"], 0);
    drop(run);
    let mut dying = pair.command(&["run"]);
    kill_at(&mut dying, "switch.flip.after", 1);
    let dying = Process::start(dying);
    orders::order(&pair.target, "switch", &orders::for_real()).await;
    dying.wait(PATIENCE).await.expect("it dies");
    let idle = "SELECT bool_and(NOT active) FROM pg_replication_slots";
    until("the slot is free", async || pair.source.scalar(idle).await.as_deref() == Some("t")).await;
    drop_slot(&pair).await;
    let died_at = pair.target.scalar("SELECT now()::text").await.unwrap();

    let run = Process::start(pair.command(NEW_STREAM));
    let compared =
        format!("SELECT count(*) > 0 FROM segue.region WHERE rows > 0 AND copied_at > '{died_at}'");
    let given_up = "SELECT count(*) > 0 FROM segue.journal WHERE kind = 'new-stream'";
    until("the stream is given up", async || pair.target.scalar(given_up).await.as_deref() == Some("t"))
        .await;
    until("rows are compared", async || pair.target.scalar(&compared).await.as_deref() == Some("t")).await;
    let client = pair.target.connect("postgres").await;
    let write = "INSERT INTO public.t VALUES (0, 'new')";
    for _ in 0..30 {
        let error = client.batch_execute(write).await.expect_err("it is not open yet");
        assert_eq!(error.code().map(|code| code.code()), Some("25006"), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status: Value = serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap();
    assert_eq!(status["progress"]["tables"][0]["complete"], false, "the test has seen nothing: {status:#}");

    pair.segue(&["throttle", "--off"], 0);
    until("the new side takes writes", async || client.batch_execute(write).await.is_ok()).await;
    pair.reaches(&run, "switched").await;
    let kept = "SELECT count(*) FROM public.t WHERE id >= 0";
    assert_eq!(pair.target.scalar(kept).await.as_deref(), Some("100001"));
}
