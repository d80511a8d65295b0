//! A partition that goes while it is being taken in is no matter for a person.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
#![cfg(feature = "killpoints")]

mod support;

use support::slow::until;
use support::{PATIENCE, Pair};

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_dropped_before_its_rows_are_copied_leaves_again() {
    let pair = Pair::start(&["public.p"]).await;
    pair.both(
        "CREATE TABLE public.p (id int PRIMARY KEY) PARTITION BY RANGE (id);
               CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (1000)",
    )
    .await;
    // What is refused cannot be met.
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    pair.write_spec(&source, &target, &["public.p"], "guard: { ddl: false }\n");
    let (run, _stops) = pair.run_stopping("leaf.published");
    pair.reaches(&run, "following").await;
    pair.both("CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (1000) TO (2000)").await;
    pair.source.execute("INSERT INTO public.p VALUES (1), (1001)").await;
    run.stopped_at("leaf.published", PATIENCE).await.unwrap();
    pair.source.execute("DROP TABLE public.p2").await;
    run.thaw();
    run.wait_for("SEGUE-LEAF-GONE", PATIENCE).await.unwrap();
    let followed = "SELECT count(*) FROM segue.unit WHERE left_at IS NULL AND unit <> table_id";
    until("it has left", async || pair.target.scalar(followed).await.as_deref() == Some("0")).await;
    pair.source.execute("INSERT INTO public.p VALUES (2)").await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
    assert_eq!(run.status(), None, "{}", run.lines().join("\n"));
}
