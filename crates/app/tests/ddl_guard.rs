//! DDL that a stream cannot follow is refused where it would be run, on whichever side owns the writes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::Cluster;
use support::Pair;

const TABLES: &str = "CREATE TABLE public.t (id int PRIMARY KEY, v text);
    CREATE TABLE public.p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (1000)";
const CHANGE: &str = "ALTER TABLE public.t ADD COLUMN more int";

/// The change is refused, and what is said names the migration, the table and the change.
async fn refused(side: &Cluster) {
    let client = side.connect("postgres").await;
    let error = client.batch_execute(CHANGE).await.expect_err("it is refused");
    let said = error.as_db_error().expect("an answer");
    let all = format!("{} {}", said.message(), said.hint().unwrap_or_default());
    for part in ["test", "public.t", "column more", "segue_guard_test"] {
        assert!(all.contains(part), "{part} in {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_cannot_follow_is_refused_until_the_migration_is_over() {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(TABLES).await;
    pair.source.execute("INSERT INTO public.t VALUES (1, 'x'); INSERT INTO public.p VALUES (1, 'x')").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    refused(&pair.source).await;
    pair.source.execute("INSERT INTO public.t VALUES (2, 'y'); CREATE INDEX ON public.t (v)").await;
    let late = "CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (1000) TO (2000)";
    pair.target.execute(late).await;
    pair.source.execute(late).await;
    pair.source.execute("INSERT INTO public.p VALUES (1500, 'late')").await;
    pair.caught_up().await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes"], 0);
    refused(&pair.target).await;
    pair.target.execute("INSERT INTO public.t VALUES (3, 'z')").await;
    pair.segue(&["reverse"], 0);
    pair.segue(&["cancel"], 0);
    for side in [&pair.source, &pair.target] {
        side.execute(CHANGE).await;
        let left = "SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'segue')";
        assert_eq!(side.scalar(left).await.as_deref(), Some("0"));
    }
}
