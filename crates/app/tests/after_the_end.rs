//! Which side has won is known after the end of a migration, for as long as anything of it is left.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use serde_json::Value;
use support::{PATIENCE, Pair, orders};

/// A migration that is completed, with a row that only the target has.
async fn completed() -> Pair {
    let pair = Pair::start(&["public.t"]).await;
    pair.both("CREATE TABLE public.t (id int PRIMARY KEY, v text)").await;
    pair.source.execute("INSERT INTO public.t SELECT n, 'seed' FROM generate_series(1, 100) n").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    let answer = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(answer["outcome"], "switched", "{answer:#}\n{}", run.lines().join("\n"));
    pair.segue(&["complete"], 0);
    run.wait(PATIENCE).await.unwrap();
    pair.target.execute("INSERT INTO public.t VALUES (0, 'on the target only')").await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_told_up_to_the_last_word_of_a_cancel() {
    let pair = completed().await;
    let won =
        format!("the target 127.0.0.1:{}/postgres owns the writes for good, since 2", pair.target.port());
    let status = pair.segue(&["status"], 0);
    assert!(status.contains("completed") && status.contains(&won), "{status}");
    let again = pair.run();
    again.wait(PATIENCE).await.unwrap();
    assert!(again.lines().join("\n").contains(&won), "{}", again.lines().join("\n"));
    let last = pair.segue(&["cancel"], 0);
    for part in
        [won.as_str(), "The source's tables can be written again", "Nothing of Segue's tells that any more"]
    {
        assert!(last.contains(part), "{part} is not said:\n{last}");
    }
    let status = pair.command(&["status"]).output().unwrap();
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(said.contains("never run, or it was cancelled"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_copied_anew_from_a_source_that_has_given_the_writes_away() {
    let pair = completed().await;
    // The journal is lost, and so is all that the target knows.
    pair.target.execute("DROP SCHEMA segue CASCADE").await;
    for _ in 0..2 {
        let said = pair.refused(&pair.run(), "SEGUE-SOURCE-CLOSED").await;
        assert!(said.contains(&pair.target.port().to_string()) && !said.contains("TRUNCATE"), "{said}");
        let plan = pair.segue(&["plan"], 3);
        assert!(plan.contains("SEGUE-SOURCE-CLOSED") && !plan.contains("SEGUE-NOT-EMPTY"), "{plan}");
        // A journal can be written, and says nothing of it.
        let mut client = pair.target.connect("postgres").await;
        segue_postgres::schema::ensure(&mut client).await.unwrap();
    }
    assert_eq!(pair.target.scalar("SELECT count(*) FROM public.t").await.as_deref(), Some("101"));
    pair.segue(&["cancel"], 1);
    pair.source.execute("DELETE FROM segue.owner WHERE migration = 'test'").await;
    let cancelled: Value = serde_json::from_str(&pair.segue(&["cancel", "--json"], 0)).unwrap();
    assert_eq!(cancelled["owner"], "source", "{cancelled:#}");
    pair.source.execute("INSERT INTO public.t VALUES (0, 'open again')").await;
}
