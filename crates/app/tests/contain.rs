//! The emergency order, with the real binary between two real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::kill::Process;
use serde_json::Value;
use std::time::{Duration, Instant};
use support::{PATIENCE, Pair, orders};

async fn following() -> (Pair, Process) {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id bigserial PRIMARY KEY, v text)").await;
    pair.source.execute("INSERT INTO public.t (v) SELECT 'seed' FROM generate_series(1, 1000)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    (pair, run)
}

async fn rows(pair: &Pair) -> String {
    pair.target.scalar("SELECT count(*) FROM public.t").await.unwrap()
}

async fn status(pair: &Pair, wanted: &str) {
    let until = Instant::now() + PATIENCE;
    while !pair.segue(&["status"], 0).contains(wanted) {
        assert!(Instant::now() < until, "`{wanted}` is not in\n{}", pair.segue(&["status"], 0));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_contained_writes_nothing_until_it_may_go_on_again() {
    let (pair, run) = following().await;
    let answer: Value = serde_json::from_str(&pair.segue(&["contain", "--json"], 0)).unwrap();
    assert!(answer["took_ms"].as_f64().unwrap() < 1000.0, "{answer:#}");
    assert_eq!((answer["owner"].as_str(), answer["resume"].as_str()), (Some("source"), Some("segue resume")));
    pair.source.execute("INSERT INTO public.t (v) VALUES ('meanwhile')").await;
    status(&pair, "contained by").await;
    assert_eq!(rows(&pair).await, "1000");
    // Whoever takes over is as contained.
    run.kill9();
    let run = pair.run();
    status(&pair, "contained by").await;
    assert_eq!(rows(&pair).await, "1000");
    // Nothing would arrive: writes cannot be handed over now.
    pair.segue(&["switch", "writes"], 1);
    pair.segue(&["resume"], 0);
    pair.caught_up().await;
    assert_eq!(rows(&pair).await, "1001");
    run.kill9();
    let run = pair.run();
    pair.source.execute("INSERT INTO public.t (v) VALUES ('after')").await;
    pair.caught_up().await;
    assert_eq!(rows(&pair).await, "1002", "{}", run.lines().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_is_under_way_is_undone() {
    let (pair, _run) = following().await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let culprit = pair.source.connect("postgres").await;
    culprit.batch_execute("BEGIN; INSERT INTO public.t (v) VALUES ('held')").await.unwrap();
    let order = orders::order(&pair.target, "switch", &orders::for_real()).await;
    let begun = "SELECT count(*) FROM segue.journal WHERE kind = 'switch-begun'";
    let until = Instant::now() + PATIENCE;
    while pair.target.scalar(begun).await.as_deref() != Some("2") {
        assert!(Instant::now() < until, "it does not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pair.segue(&["contain"], 0);
    let answer = orders::answer(&pair.target, order).await;
    assert_eq!(
        (answer["outcome"].as_str(), answer["owner"].as_str()),
        (Some("undone"), Some("source")),
        "{answer:#}"
    );
    culprit.batch_execute("COMMIT").await.unwrap();
    pair.source.execute("INSERT INTO public.t (v) VALUES ('goes on')").await;
    let off =
        "SELECT count(*) FROM pg_class WHERE array_to_string(reloptions, ',') LIKE '%autovacuum_enabled%'";
    assert_eq!(pair.source.scalar(off).await.as_deref(), Some("0"));
    pair.segue(&["resume"], 0);
    pair.segue(&["switch", "writes"], 0);
}
