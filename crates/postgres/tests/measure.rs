//! Numbers that statements return, asked of a real server.
#![allow(clippy::unwrap_used, reason = "in a test a panic is a failed test")]

use segue_postgres::connect::Endpoint;
use segue_postgres::measure::Gauge;
use segue_testkit::{Cluster, Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_returns_one_number_or_it_is_said_why_not_and_nothing_is_written() {
    let server = Cluster::start(Options::default()).await;
    server.execute("CREATE TABLE t (n numeric); INSERT INTO t VALUES (1.5)").await;
    let mut gauge = Gauge::of(Endpoint::parse(&server.url("postgres")).unwrap(), "rollback");
    for (sql, number) in
        [("SELECT n FROM t", 1.5), ("SELECT count(*) FROM t;", 1.0), ("SELECT '-2e3'::text", -2000.0)]
    {
        assert_eq!(gauge.number(sql).await, Ok(number), "{sql}");
    }
    for (sql, why) in [
        ("SELECT max(n) FROM t WHERE false", "it returns NULL"),
        ("SELECT n FROM t WHERE false", "it returns no row"),
        ("SELECT generate_series(1, 3)", "it returns more than one row"),
        // Its rows are not kept.
        ("SELECT repeat('x', 1000) FROM generate_series(1, 300000)", "it returns more than one row"),
        ("SELECT 1, 2", "it returns 2 columns, not one"),
        ("SELECT 'many'", "it returns `many`, which is no number"),
        ("SELECT 'NaN'::float8", "it returns `NaN`, which is no number"),
        ("SELECT m FROM t", "column \"m\" does not exist"),
        ("COMMIT", "the statement returns nothing"),
        ("SELECT 1; SELECT 2", "cannot insert multiple commands into a prepared statement"),
        ("COMMIT; INSERT INTO t VALUES (2)", "cannot insert multiple commands into a prepared statement"),
        ("DELETE FROM t RETURNING n", "cannot execute DELETE in a read-only transaction"),
        ("SELECT 1 FROM pg_sleep(60)", "canceling statement due to statement timeout"),
        ("SELECT pg_terminate_backend(pg_backend_pid())::int", ""),
    ] {
        let said = gauge.number(sql).await.unwrap_err();
        assert!(said.contains(why), "{sql}: {said}");
        assert_eq!(gauge.number("SELECT count(*) FROM t").await, Ok(1.0), "after {sql}");
    }
    assert_eq!(
        server.scalar("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'").await.as_deref(),
        Some("0")
    );
}
