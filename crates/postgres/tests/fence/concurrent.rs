//! Under load: between a fence's marker and its end no write commits, and none that was acknowledged is lost.

use crate::world::*;
use segue_model::switch::ownership::Attempt;
use segue_testkit::Options;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const ROUNDS: u64 = 12;
const WRITERS: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_commits_between_the_marker_and_the_end_of_the_fence() {
    let options = Options::default().with("track_commit_timestamp", "on");
    let world = World::owner(options, limits(20_000)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (next, written, refused_writes) =
        (Arc::new(AtomicI32::new(1_000)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for n in 0..WRITERS {
        let app = world.app().await;
        let level = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "READ COMMITTED"][n];
        let (stop, next, written, refused_writes) =
            (stop.clone(), next.clone(), written.clone(), refused_writes.clone());
        writers.push(tokio::spawn(async move {
            while !stop.load(SeqCst) {
                let id = next.fetch_add(1, SeqCst);
                let begin = format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM plain");
                let write = format!(
                    "INSERT INTO plain VALUES ({id}, 'w'); UPDATE parts SET v = '{id}' WHERE id = 1; COMMIT"
                );
                let done = async {
                    app.batch_execute(&begin).await?;
                    app.batch_execute(&write).await
                };
                match done.await {
                    Ok(()) => drop(written.fetch_add(1, SeqCst)),
                    Err(error) => {
                        let state = error.code().unwrap().code().to_owned();
                        assert!([REFUSED, "40001"].contains(&state.as_str()), "{error:?}");
                        refused_writes.fetch_add(u64::from(state == REFUSED), SeqCst);
                        app.batch_execute("ROLLBACK").await.unwrap();
                    }
                }
            }
        }));
    }
    let mut windows = Vec::new();
    let stamp = async |table: &str| {
        let sql = format!("SELECT pg_xact_commit_timestamp(xmin)::text FROM segue.{table}");
        world.cluster.scalar(&sql).await.unwrap()
    };
    for attempt in 1..=ROUNDS {
        tokio::time::sleep(Duration::from_millis(60)).await;
        for tries in 0.. {
            if world.side.fence(id(1, attempt - 1), Attempt(attempt)).await.unwrap().made().is_some() {
                break;
            }
            assert!(tries < 20, "no lock under load");
        }
        let begin = stamp("signal").await;
        let before = world.cluster.scalar("SELECT count(*) FROM plain").await;
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(world.cluster.scalar("SELECT count(*) FROM plain").await, before, "attempt {attempt}");
        done(world.side.unfence(id(1, attempt)).await.unwrap());
        windows.push((begin, stamp("owner").await));
    }
    stop.store(true, SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
    for (begin, end) in &windows {
        let sql = format!(
            "SELECT count(*) FROM plain WHERE pg_xact_commit_timestamp(xmin) BETWEEN '{begin}' AND '{end}'"
        );
        assert_eq!(world.cluster.scalar(&sql).await.as_deref(), Some("0"), "{begin} {end}");
    }
    let there = world.cluster.scalar("SELECT count(*) FROM plain WHERE v = 'w'").await.unwrap();
    assert_eq!(there, written.load(SeqCst).to_string(), "every acknowledged write, and nothing else");
    assert!(written.load(SeqCst) > 50 && refused_writes.load(SeqCst) > 50, "{written:?} {refused_writes:?}");
}
