//! A run that ends before it has shut anybody out, or has found anything out: the journal and the status tell of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use serde_json::Value;
use support::{Pair, slow::until};

const TABLES: [&str; 1] = ["public.t"];

/// The source's address with another password.
fn shut_out_of_the_source(pair: &Pair) -> String {
    format!("postgres://postgres:wr0ng@127.0.0.1:{}/postgres", pair.source.port())
}

fn from(pair: &Pair, source: &str) {
    pair.write_spec(source, &pair.target.url("postgres"), &TABLES, "");
}

fn status(pair: &Pair) -> Value {
    serde_json::from_str(&pair.segue(&["status", "--json"], 0)).unwrap()
}

/// The last record of the journal.
fn last(pair: &Pair) -> Value {
    serde_json::from_str(pair.segue(&["journal", "--json"], 0).lines().last().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_does_not_reach_the_source_is_told_of_and_disturbs_nobody() {
    let pair = Pair::start(&TABLES).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.stop(&run).await;
    from(&pair, &shut_out_of_the_source(&pair));
    for _ in 0..2 {
        pair.refused(&pair.run(), "SEGUE-LOGIN").await;
        let record = last(&pair);
        assert_eq!((&record["kind"], &record["body"]["code"]), (&"fault".into(), &"SEGUE-LOGIN".into()));
        let seen = status(&pair);
        assert_eq!(
            (&seen["run"]["is"], &seen["run"]["code"]),
            (&"failed".into(), &"SEGUE-LOGIN".into()),
            "{seen:#}"
        );
        assert_eq!((&seen["stage"], &seen["owner"]), (&"following".into(), &"source".into()), "{seen:#}");
    }
    let text = pair.segue(&["status"], 0);
    assert!(text.contains("[SEGUE-LOGIN]") && text.contains("  next: "), "{text}");
    assert!(!text.contains("wr0ng"), "{text}");

    // Nothing that the source was told is taken for forgotten, and whoever drives writes his own records on.
    from(&pair, &pair.source.url("postgres"));
    let run = pair.run();
    pair.source.execute("INSERT INTO public.t SELECT generate_series(1, 100)").await;
    pair.caught_up().await;
    from(&pair, &shut_out_of_the_source(&pair));
    let other = pair.run();
    other.wait_for("standing by", support::PATIENCE).await.unwrap();
    from(&pair, &pair.source.url("postgres"));
    pair.segue(&["pause"], 0);
    pair.segue(&["resume"], 0);
    assert_eq!(run.status(), None, "{}", run.lines().join("\n"));
    until("it runs again", async || status(&pair)["run"]["is"] == "running").await;
    pair.stop(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_run_that_is_refused_where_a_journal_can_be_written_is_told_of() {
    let pair = Pair::start(&TABLES).await;
    pair.source.execute("CREATE TABLE public.t (id int PRIMARY KEY)").await;
    // Another migration has been here.
    let mut client = pair.target.connect("postgres").await;
    segue_postgres::schema::ensure(&mut client).await.unwrap();
    from(&pair, &shut_out_of_the_source(&pair));
    pair.refused(&pair.run(), "SEGUE-LOGIN").await;
    assert_eq!(last(&pair)["body"]["code"], "SEGUE-LOGIN");
    let seen = status(&pair);
    assert_eq!((&seen["stage"], &seen["owner"]), (&"planned".into(), &"ambiguous".into()), "{seen:#}");
    assert_eq!((&seen["run"]["code"], &seen["alive"]), (&"SEGUE-LOGIN".into(), &false.into()), "{seen:#}");

    // The plan is refused next.
    from(&pair, &pair.source.url("postgres"));
    pair.refused(&pair.run(), "SEGUE-NO-TABLE").await;
    assert_eq!(last(&pair)["body"]["code"], "SEGUE-NO-TABLE");
    assert_eq!(status(&pair)["run"]["code"], "SEGUE-NO-TABLE");
    let waited = pair.command(&["wait", "following", "--timeout", "1s"]).output().unwrap();
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(waited.status.code() == Some(1) && said.contains("SEGUE-FAILED"), "{said}");

    // And what was told does not keep it from going on.
    pair.target.execute("CREATE TABLE public.t (id int PRIMARY KEY)").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    assert_eq!(status(&pair)["owner"], "source");
}
