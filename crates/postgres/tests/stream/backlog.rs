//! What has piled up is read by SQL, and is the same, in the same order, as what the walsender sends.

use super::{Source, majors, next};
use segue_engine::ports::{ChangeStream, StreamEvent};
use segue_model::position::Position;
use segue_postgres::stream::PgStream;
use segue_testkit::{Cluster, Options};
use std::time::Duration;

const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, a text); ALTER TABLE t ALTER a SET STORAGE EXTERNAL; CREATE TABLE f (a int, b text);
    ALTER TABLE f REPLICA IDENTITY FULL; CREATE TABLE elsewhere (a text)";

/// A call of the way by SQL, as the server logs it.
const CALL: &str = "COPY (SELECT data FROM pg_logical_slot_get_binary_changes";

/// How many walsenders stream; a slot is also active while it is moved.
const STREAMS: &str = "SELECT count(*) FROM pg_stat_replication WHERE state IN ('catchup', 'streaming')";

fn logged(options: Options) -> Options {
    options.with("log_statement", "all").with("autovacuum", "off")
}

/// Waits until a question is answered so.
async fn becomes(cluster: &Cluster, sql: &str, answer: &str, otherwise: &str) {
    let answered = async {
        while cluster.scalar(sql).await.as_deref() != Some(answer) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), answered).await.expect(otherwise);
}

/// The copy of the slot goes with the session that has it.
async fn copy_goes(cluster: &Cluster) {
    let slots = "SELECT count(*) FROM pg_replication_slots";
    becomes(cluster, slots, "1", "the copy of the slot is left").await;
}

fn calls(cluster: &Cluster) -> usize {
    cluster.log_tail(usize::MAX).matches(CALL).count()
}

/// All that comes up to `id`, but for positions of nothing.
async fn up_to(stream: &mut PgStream, id: u64) -> Vec<StreamEvent> {
    let mut found = Vec::new();
    loop {
        match next(stream).await {
            StreamEvent::Idle { .. } => {}
            event => found.push(event),
        }
        if let [.., StreamEvent::Signal(last), StreamEvent::Commit { .. }] = found[..]
            && last == id
        {
            return found;
        }
    }
}

fn end(event: &StreamEvent) -> Option<Position> {
    match event {
        StreamEvent::Commit { end } => Some(*end),
        _ => None,
    }
}

async fn signal(source: &Source) -> u64 {
    let sql = "INSERT INTO segue.signal AS s (migration, id, at) VALUES ('m', 1, now())
         ON CONFLICT (migration) DO UPDATE SET id = s.id + 1 RETURNING id";
    source.cluster.scalar(sql).await.unwrap().parse().unwrap()
}

/// Some forty megabytes of log: small transactions, one that is large, values that are stored apart, tables that do not move,
/// subtransactions, what is rolled back, and a transaction that begins before all that and ends in it.
async fn pile_up(source: &Source) {
    let spanning = source.cluster.connect("postgres").await;
    spanning.batch_execute("BEGIN; INSERT INTO t VALUES (-1, 'spanning')").await.unwrap();
    source
        .run("DO $$ BEGIN FOR n IN 1 .. 3000 LOOP INSERT INTO t VALUES (n, repeat(md5(n::text), 9)); COMMIT; END LOOP; END $$")
        .await;
    source
        .run("INSERT INTO elsewhere SELECT repeat(md5(n::text), 30) FROM generate_series(1, 15000) n")
        .await;
    source.run("CHECKPOINT").await;
    source.run("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(10001, 60000) n").await;
    spanning.batch_execute("UPDATE t SET a = 'still' WHERE id = -1; COMMIT").await.unwrap();
    source.run("BEGIN; DELETE FROM t WHERE id < 500 AND id > 0; ROLLBACK").await;
    source
        .run("BEGIN; INSERT INTO f VALUES (1, 'x'); SAVEPOINT a; INSERT INTO f VALUES (2, 'y'); ROLLBACK TO a; UPDATE f SET a = 3; COMMIT")
        .await;
    source.run("UPDATE t SET a = repeat('z', 90000) WHERE id <= 30").await;
    source
        .run("UPDATE t SET id = -id WHERE id BETWEEN 10 AND 20; DELETE FROM t WHERE id BETWEEN 100 AND 900")
        .await;
    source
        .run("DO $$ BEGIN FOR n IN 1 .. 3000 LOOP UPDATE t SET a = n WHERE id = 20000 + n % 7; COMMIT; END LOOP; END $$")
        .await;
    source.run("TRUNCATE f").await;
}

#[tokio::test]
async fn a_backlog_is_the_same_by_sql_as_from_the_walsender_on_the_oldest_and_the_newest_source() {
    // The oldest of which every minor release that is installed moves its slots well.
    for major in [13, majors().into_iter().max().unwrap_or_default()] {
        let source = Source::start(logged(Options::major(major)), DDL, &["t", "f"]).await;
        // Begun before, ended after: it is the walsender's to send.
        let across = source.cluster.connect("postgres").await;
        across.batch_execute("BEGIN; INSERT INTO t VALUES (-1000, 'across')").await.unwrap();
        pile_up(&source).await;
        let last = signal(&source).await;
        let mut by_sql = source.open(source.from).await;
        let found = up_to(&mut by_sql, last).await;
        assert!(calls(&source.cluster) > 1, "{major}: read by {} calls", calls(&source.cluster));
        across.batch_execute("COMMIT").await.unwrap();
        let after = signal(&source).await;
        let rest = up_to(&mut by_sql, after).await;
        drop(by_sql);
        copy_goes(&source.cluster).await;

        // Without room for a copy of the slot the walsender sends everything.
        source.cluster.execute("ALTER SYSTEM SET max_replication_slots = 1").await;
        source.cluster.restart().await;
        let before = calls(&source.cluster);
        let mut sent = source.open_again(source.from).await;
        let all = up_to(&mut sent, after).await;
        assert_eq!(calls(&source.cluster), before);
        assert!(found.len() > 50_000, "{}", found.len());
        assert_eq!(found.len() + rest.len(), all.len(), "{major}");
        assert!(found.into_iter().chain(rest).eq(all), "{major}: the events differ");
    }
}

#[tokio::test]
async fn a_backlog_is_read_on_from_wherever_it_was_left() {
    let source = Source::start(logged(Options::default()), DDL, &["t", "f"]).await;
    pile_up(&source).await;
    let last = signal(&source).await;
    let all = up_to(&mut source.open(source.from).await, last).await;
    let ends: Vec<Position> = all.iter().filter_map(end).collect();
    for at in [0, ends.len() / 3, ends.len() / 2] {
        let before = calls(&source.cluster);
        let found = up_to(&mut source.open_again(ends[at]).await, last).await;
        let rest = all.iter().skip_while(|event| end(event) != Some(ends[at])).skip(1);
        assert!(found.iter().eq(rest), "from the end of transaction {at}");
        assert!(calls(&source.cluster) > before || at > 0);
    }
}

#[tokio::test]
async fn what_is_acknowledged_meanwhile_is_not_kept() {
    let source = Source::start(logged(Options::default()), DDL, &["t", "f"]).await;
    for _ in 0..14 {
        source
            .run("INSERT INTO elsewhere SELECT repeat(md5(n::text), 60) FROM generate_series(1, 12000) n")
            .await;
        source.run("CHECKPOINT; INSERT INTO t SELECT coalesce(max(id), 0) + 1, 'x' FROM t").await;
    }
    let mut stream = source.open(source.from).await;
    let acknowledger = stream.acknowledger();
    let reading = tokio::spawn(async move {
        loop {
            if let Ok(StreamEvent::Idle { position } | StreamEvent::Commit { end: position }) =
                stream.next().await
            {
                acknowledger.acknowledge(position);
            }
        }
    });
    becomes(&source.cluster, STREAMS, "1", "the walsender does not begin").await;
    reading.abort();
    // Once for what is kept, twice at the end; the walsender's session moves it without a statement.
    let log = source.cluster.log_tail(usize::MAX);
    let moves = |slot: &str| log.matches(&format!("parameters: $1 = '{slot}")).count();
    assert!(moves("segue_backlog_") > 1, "{log}");
    assert!(
        (3..6).contains(&moves("s_1', $2 =")),
        "the slot stood still while its copy was read, or never did\n{log}"
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_no_slot_and_one_that_stands_still_no_snapshot_for_long() {
    let source = Source::start(logged(Options::default()), DDL, &["t", "f"]).await;
    pile_up(&source).await;
    let mut stream = source.open(source.from).await;
    next(&mut stream).await;
    // All that one call answers has room in what is read ahead.
    let held = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'segue backlog%' AND backend_xmin IS NOT NULL";
    becomes(&source.cluster, held, "0", "a snapshot is held for who does not read").await;
    drop(stream);
    copy_goes(&source.cluster).await;
}

#[tokio::test]
async fn who_goes_on_writing_does_not_keep_the_walsender_from_beginning() {
    let source = Source::start(logged(Options::default()), DDL, &["t", "f"]).await;
    pile_up(&source).await;
    let writer = source.cluster.connect("postgres").await;
    let writing = tokio::spawn(async move {
        for n in 0.. {
            let sql = format!(
                "INSERT INTO elsewhere SELECT repeat(md5((n * {n})::text), 60) FROM generate_series(1, 500) n"
            );
            writer.batch_execute(&sql).await.unwrap();
        }
    });
    let mut stream = source.open(source.from).await;
    let acknowledger = stream.acknowledger();
    let began = async {
        let mut seen = 0_u32;
        loop {
            if let StreamEvent::Idle { position } | StreamEvent::Commit { end: position } =
                next(&mut stream).await
            {
                acknowledger.acknowledge(position);
                seen += 1;
                if seen.is_multiple_of(50) && source.cluster.scalar(STREAMS).await.as_deref() == Some("1") {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), began).await.expect("the walsender does not begin");
    assert!(calls(&source.cluster) < 40, "{}", calls(&source.cluster));
    writing.abort();
    let last = signal(&source).await;
    up_to(&mut stream, last).await;
}

#[tokio::test]
async fn a_slot_that_somebody_moves_meanwhile_loses_nothing() {
    let source = Source::start(logged(Options::default()), DDL, &["t", "f"]).await;
    // More than is read ahead.
    for n in 0..5 {
        let rows = "SELECT i, repeat(md5(i::text), 12) FROM generate_series";
        source.run(&format!("INSERT INTO t {rows}({n} * 100000, {n} * 100000 + 24999) i")).await;
    }
    let mut stream = source.open(source.from).await;
    next(&mut stream).await;
    source.run("INSERT INTO t VALUES (-1, 'confirmed by nobody')").await;
    source.run("SELECT pg_replication_slot_advance('s_1', pg_current_wal_flush_lsn())").await;
    let last = signal(&source).await;
    // The copy stands where it stood. Had it not come by there, the walsender would be refused.
    let found = up_to(&mut stream, last).await;
    let rows = found.iter().filter(|event| matches!(event, StreamEvent::Change(_))).count();
    assert_eq!(rows, 5 * 25_000 + 1);
}
