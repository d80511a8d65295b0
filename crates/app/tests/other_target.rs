//! The source remembers which target a migration goes to: another one gets nothing of what is that one's, and the first one
//! everything, wherever it has moved to.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::cluster::StandbyOptions;
use segue_testkit::{Cluster, Options};
use support::{PATIENCE, Pair, slow::until};

const TABLES: [&str; 1] = ["public.t"];
const MAKE: &str = "CREATE TABLE public.t (id int PRIMARY KEY, v text)";
const CODE: &str = "SEGUE-OTHER-TARGET";

fn rows(range: &str) -> String {
    format!("INSERT INTO public.t SELECT n, 'row' FROM generate_series({range}) n")
}

/// A migration of some rows, and a third server with the same table.
async fn begun() -> (Pair, Cluster) {
    let pair = Pair::start(&TABLES).await;
    let third = Cluster::start(Options::default()).await;
    pair.both(MAKE).await;
    third.execute(MAKE).await;
    pair.source.execute(&rows("1, 1000")).await;
    (pair, third)
}

/// The spec names another target from now on.
fn goes_to(pair: &Pair, target: &Cluster, more: &str) {
    pair.write_spec(&pair.source.url("postgres"), &target.url("postgres"), &TABLES, more);
}

async fn has_nothing_of_segue(server: &Cluster) {
    let schema = server.scalar("SELECT to_regnamespace('segue') IS NULL").await;
    assert_eq!(schema.as_deref(), Some("t"), "something was made there");
    assert_eq!(server.scalar("SELECT count(*) FROM public.t").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_target_gets_nothing_before_the_first_one_is_given_up() {
    let (pair, other) = begun().await;
    let first = pair.run();
    pair.reaches(&first, "following").await;

    // While it is driven, and while nobody drives it.
    goes_to(&pair, &other, "");
    let said = pair.refused(&pair.run(), CODE).await;
    for part in [pair.target.port().to_string(), other.port().to_string(), "segue_test_fwd".to_owned()] {
        assert!(said.contains(&part), "{part} is not said:\n{said}");
    }
    assert_eq!(first.status(), None, "{}", first.lines().join("\n"));
    pair.stop(&first).await;
    pair.source.execute(&rows("1001, 2000")).await;
    pair.refused(&pair.run(), CODE).await;
    let plan = pair.segue(&["plan"], 3);
    assert!(plan.contains("leftovers") && plan.contains(CODE), "{plan}");
    assert!(pair.segue(&["cancel", "--json"], 1).contains(CODE));
    has_nothing_of_segue(&other).await;

    // Nothing was done to the first one.
    goes_to(&pair, &pair.target, "");
    let run = pair.run();
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    pair.stop(&run).await;

    // Whoever says that it is gone for good is believed.
    goes_to(&pair, &other, "");
    let said = pair.refused(&pair.run(), CODE).await;
    let order = "DELETE FROM segue.pair WHERE migration = 'test'";
    assert!(said.contains(order), "{said}");
    pair.source.execute(order).await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    assert_eq!(other.scalar("SELECT count(*) FROM public.t").await.as_deref(), Some("2000"));
    // The first one is told, if it was not gone.
    goes_to(&pair, &pair.target, "");
    pair.refused(&pair.run(), CODE).await;
    // A right target is not given up for a wrong source: what is on the right one would be left there for good.
    let stranger = Cluster::start(Options::default()).await;
    stranger.execute(MAKE).await;
    pair.write_spec(&stranger.url("postgres"), &other.url("postgres"), &TABLES, "");
    assert!(pair.segue(&["cancel", "--json"], 1).contains("SEGUE-OTHER-SOURCE"));
    goes_to(&pair, &other, "");
    pair.segue(&["cancel"], 0);
    run.wait(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_its_own_does_not_lead_to_another_target_either() {
    let (pair, other) = begun().await;
    let third = Cluster::start(Options::default()).await;
    let control = format!("control: {{ postgres: \"{}\" }}\n", third.url("postgres"));
    goes_to(&pair, &pair.target, &control);
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.stop(&run).await;
    let token = "SELECT max(token) FROM segue.token";
    let before = pair.source.scalar(token).await;
    goes_to(&pair, &other, &control);
    pair.refused(&pair.run(), CODE).await;
    assert_eq!(pair.source.scalar(token).await, before, "nobody was shut out");
    assert!(pair.segue(&["cancel", "--json"], 1).contains(CODE));
    let router = format!("{control}router: {{ listen: \"127.0.0.1:0\", auth: trust }}\n");
    goes_to(&pair, &other, &router);
    assert!(pair.segue(&["router", "--json"], 1).contains(CODE));
    has_nothing_of_segue(&other).await;
    goes_to(&pair, &pair.target, &control);
    pair.source.execute(&rows("1001, 2000")).await;
    let _run = pair.run();
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_is_the_same_one_when_its_standby_has_taken_its_place() {
    let (mut pair, _other) = begun().await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let standby = Cluster::standby_of(&pair.target, StandbyOptions::named("second")).await;
    pair.stop(&run).await;
    let end = pair.target.scalar("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let has_all = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    until("the standby has all", async || standby.scalar(&has_all).await.as_deref() == Some("t")).await;
    pair.target.stop_immediate().await;
    standby.promote().await;
    pair.target = standby;
    goes_to(&pair, &pair.target, "");
    pair.source.execute(&rows("1001, 2000")).await;
    let run = pair.run();
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    pair.stop(&run).await;

    // Where it stands it is known without what Segue keeps there, too.
    pair.target.execute("DROP SCHEMA segue CASCADE").await;
    pair.refused(&pair.run(), "SEGUE-NOT-EMPTY").await;
    pair.segue(&["cancel"], 0);
    let slots = pair.source.scalar("SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(slots.as_deref(), Some("0"));
}
