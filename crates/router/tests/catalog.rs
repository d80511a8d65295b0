//! What a real database says of itself, and what is proved of statements by it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

use segue_router::Catalog;
use segue_testkit::{Cluster, Options};

const SCHEMA: &str = r#"
CREATE SCHEMA app;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE t (id int PRIMARY KEY, a int, b text, m mood, n numeric, j jsonb, ts timestamptz, tags text[]);
CREATE TABLE app."Odd name" (id int, "select" text);
CREATE TABLE events (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE events_2024 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') PARTITION BY LIST (id);
CREATE TABLE events_2024_1 PARTITION OF events_2024 FOR VALUES IN (1);
CREATE TABLE other (id int);
CREATE TABLE heads (id int);
CREATE TABLE heir (extra int) INHERITS (heads);
CREATE TABLE secret (id int);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE SEQUENCE seq;
CREATE FUNCTION writer(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN INSERT INTO other VALUES ($1); RETURN 1; END';
CREATE FUNCTION tidy(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE FUNCTION guess(int) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE FUNCTION total(int) RETURNS bigint STABLE LANGUAGE sql AS 'SELECT sum(a) FROM t WHERE id > $1';
CREATE FUNCTION total_other() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM other';
CREATE FUNCTION by_default(int DEFAULT tidy(1), text DEFAULT 'a,b') RETURNS int IMMUTABLE LANGUAGE plpgsql AS
  'BEGIN RETURN $1; END';
CREATE FUNCTION badly_by_default(int DEFAULT writer(1)) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
  'BEGIN RETURN $1; END';
CREATE FUNCTION sql_by_default(int DEFAULT writer(1)) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION of_row(t) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
CREATE FUNCTION add_tidy(int, int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 + $2; END';
CREATE FUNCTION add_badly(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN $1 + $2; END';
CREATE AGGREGATE tidy_sum(int) (SFUNC = add_tidy, STYPE = int, INITCOND = '0');
CREATE AGGREGATE bad_sum(int) (SFUNC = add_badly, STYPE = int, INITCOND = '0');
CREATE OPERATOR %%% (LEFTARG = int, RIGHTARG = int, FUNCTION = add_tidy);
CREATE OPERATOR %#% (LEFTARG = int, RIGHTARG = int, FUNCTION = add_badly);
CREATE DOMAIN positive AS int CHECK (tidy(VALUE) > 0);
CREATE VIEW plain AS SELECT id, a AS aa, extract(year FROM ts) AS y, b LIKE 'x%' AS x FROM t WHERE m = 'happy';
CREATE VIEW deep AS SELECT p.id, sum(p.aa) OVER (PARTITION BY p.y) AS s FROM plain p JOIN events e USING (id)
  WHERE e.at > '2024-01-01' AND p.aa IN (1, 2, 3) AND to_tsvector('english', p.x::text) @@ to_tsquery('english', 'a');
CREATE VIEW writes AS SELECT writer(id) FROM t;
CREATE VIEW mixed AS SELECT t.id FROM t JOIN other USING (id);
CREATE VIEW about AS SELECT id, current_user FROM t;
CREATE MATERIALIZED VIEW stock AS SELECT id FROM t;
"#;

const READS: &[&str] = &[
    "SELECT * FROM t WHERE id = 5",
    "SELECT \"select\" FROM app.\"Odd name\"",
    "SELECT * FROM \"Odd name\"",
    "SELECT * FROM events",
    "SELECT * FROM events_2024_1 WHERE at = '2024-02-03'",
    "SELECT lower(b), j -> 'x' ->> 'y', n::numeric(10, 2), m = 'sad', ts AT TIME ZONE 'UTC' FROM t",
    "SELECT count(*), array_agg(a ORDER BY id), string_agg(b, ',') FROM t GROUP BY m",
    "SELECT date_trunc('day', ts), now() - interval '1 day' FROM t WHERE ts > now() - '1 hour'::interval",
    "SELECT id, unnest(tags) FROM t, jsonb_array_elements(j) AS e(x), generate_series(1, 3) g",
    "SELECT * FROM t WHERE tags && ARRAY['x'] AND j @> '{}' AND b ~* 'x' AND b ILIKE '%y'",
    "SELECT rank() OVER (ORDER BY a), lag(a) OVER (ORDER BY a), random(), clock_timestamp() FROM t",
    "SELECT to_char(ts, 'YYYY'), round(n, 2), abs(a), coalesce(b, ''), format('%s', b), concat(a, b) FROM t",
    "SELECT extract(epoch FROM ts), position('a' IN b), trim(b), overlay(b placing 'x' from 1) FROM t",
    "SELECT b SIMILAR TO 'x|y', substring(b FROM 'x.') FROM t",
    "SELECT to_jsonb(t), jsonb_build_object('a', a), json_agg(a) FROM t GROUP BY 1, 2",
    "SELECT * FROM plain",
    "SELECT * FROM deep ORDER BY id LIMIT 3",
    "SELECT tidy(a), total(a), tidy_sum(a) OVER (), a %%% 1, a::positive FROM t",
    "SELECT by_default() FROM t",
    "SELECT ts_rank(to_tsvector('english', b), plainto_tsquery('english', 'x')) FROM t",
];

const NOT_READS: &[(&str, &str)] = &[
    ("SELECT * FROM other", "not migrated"),
    ("SELECT * FROM heads", "not migrated"),
    ("SELECT * FROM stock", "not migrated"),
    ("SELECT * FROM seq", "not migrated"),
    ("SELECT * FROM mixed", "not migrated"),
    ("SELECT total_other() FROM t", "not migrated"),
    ("SELECT * FROM secret", "row-level security"),
    ("SELECT writer(id) FROM t", "function that may write"),
    ("SELECT * FROM writes", "function that may write"),
    ("SELECT badly_by_default() FROM t", "function that may write"),
    ("SELECT sql_by_default() FROM t", "function that may write"),
    ("SELECT regclass('t'::text) FROM t", "about the server"),
    ("SELECT t.of_row FROM t", "function that may write"),
    ("SELECT bad_sum(a) FROM t", "function that may write"),
    ("SELECT guess(id) FROM t", "not known"),
    ("SELECT atomic(id) FROM t", "not known"),
    ("SELECT a %#% 1 FROM t", "operator"),
    ("SELECT nextval('seq') FROM t", "about the server"),
    ("SELECT pg_size_bytes('1'), pg_relation_size('t') FROM t", "about the server"),
    ("SELECT * FROM about", "about the server"),
    ("SELECT * FROM pg_class", "system's catalog"),
    ("SELECT txid_current(), pg_notify('a', 'b') FROM t", "about the server"),
    ("SELECT lo_create(0) FROM t", "about the server"),
    ("SELECT ctid FROM t", "system column"),
    ("SELECT * FROM t FOR UPDATE", "locks"),
    ("SELECT * FROM nowhere", "not known"),
    ("SELECT 1", "no table"),
    ("DELETE FROM t", "writes"),
];

async fn catalog(cluster: &Cluster) -> Catalog {
    let json = cluster.scalar(Catalog::SQL).await.unwrap();
    let migrated = [
        ("public", "t"),
        ("app", "Odd name"),
        ("public", "events"),
        ("public", "heads"),
        ("public", "secret"),
    ];
    let migrated: Vec<_> =
        migrated.iter().map(|(schema, name)| (schema.to_string(), name.to_string())).collect();
    Catalog::read(&json, &migrated).unwrap()
}

async fn a_database_is_judged(major: u16) {
    let cluster = Cluster::start(Options::major(major)).await;
    cluster.execute(SCHEMA).await;
    if major >= 14 {
        cluster
            .execute("CREATE FUNCTION atomic(int) RETURNS bigint STABLE BEGIN ATOMIC SELECT total($1); END")
            .await;
    }
    let judged = catalog(&cluster).await;
    for sql in READS {
        assert_eq!(judged.reads(sql), Ok(()), "PostgreSQL {major}: {sql}");
        // It is a statement that this server knows at all.
        cluster.execute(&format!("SET search_path TO public, app; PREPARE q AS {sql}")).await;
    }
    for (sql, why) in NOT_READS {
        let reason = judged.reads(sql).unwrap_err();
        assert!(reason.contains(why), "PostgreSQL {major}: {sql}: {reason}");
    }
    // A cast that may write can be anywhere.
    cluster
        .execute(
            "CREATE FUNCTION cast_badly(mood) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
             CREATE CAST (mood AS int) WITH FUNCTION cast_badly(mood) AS IMPLICIT",
        )
        .await;
    let reason = catalog(&cluster).await.reads("SELECT * FROM t").unwrap_err();
    assert!(reason.contains("casts"), "{reason}");
    cluster.execute("DROP CAST (mood AS int); CREATE DOMAIN bad AS int CHECK (writer(VALUE) > 0)").await;
    let reason = catalog(&cluster).await.reads("SELECT * FROM t").unwrap_err();
    assert!(reason.contains("domains"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_judged_on_postgresql_14() {
    a_database_is_judged(14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_judged_on_postgresql_18() {
    a_database_is_judged(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_judged_on_postgresql_12() {
    a_database_is_judged(12).await;
}
