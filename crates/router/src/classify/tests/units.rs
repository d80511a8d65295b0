//! What each statement is proved to be.

use super::*;

#[test]
fn reads_of_migrated_tables_are_proved() {
    expect(
        Unit::Read,
        &[
            "SELECT * FROM t",
            "select a from t where id = $1",
            "SELECT a FROM public.t WHERE b = 'x' AND c IN (1, 2, 3) OR NOT d",
            "TABLE t",
            "SELECT * FROM ONLY t",
            "(SELECT a FROM t)",
            "SELECT a FROM t;",
            "/* c */ SELECT a -- d\n FROM t;;",
            "SELECT t.*, u.b AS x FROM t JOIN u ON t.a = u.a LEFT JOIN u v USING (a) NATURAL JOIN p",
            "SELECT * FROM \"Ü\"",
            "SELECT * FROM \"t\" AS \"select\"",
            "SELECT * FROM p1",
            "SELECT a FROM t UNION ALL SELECT a FROM u ORDER BY 1",
            "SELECT a FROM t EXCEPT SELECT 1",
            "SELECT DISTINCT a FROM t",
            "SELECT DISTINCT ON (a) a, b FROM t ORDER BY a, b DESC NULLS LAST",
            "SELECT a, count(*) FROM t GROUP BY a HAVING count(*) > 1",
            "SELECT a, b, sum(c), grouping(a) FROM t GROUP BY GROUPING SETS ((a), (a, b), ())",
            "SELECT a, sum(c) FROM t GROUP BY ROLLUP (a, b)",
            "SELECT sum(a) FILTER (WHERE b > 1) FROM t",
            "SELECT row_number() OVER (PARTITION BY a ORDER BY b) FROM t",
            "SELECT sum(a) OVER w FROM t WINDOW w AS (ORDER BY b ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t",
            "WITH x AS (SELECT a FROM t) SELECT * FROM x",
            "WITH x AS MATERIALIZED (SELECT a FROM t), y AS (SELECT * FROM x) SELECT * FROM y, u",
            "WITH RECURSIVE x(n) AS (SELECT a FROM t UNION ALL SELECT n + 1 FROM x WHERE n < 9) SELECT * FROM x",
            "WITH other AS (SELECT a FROM t) SELECT * FROM other",
            "SELECT * FROM (SELECT a FROM t) s",
            "SELECT * FROM t, LATERAL (SELECT * FROM u WHERE u.a = t.a) s",
            "SELECT * FROM t, generate_series(1, t.a) WITH ORDINALITY AS g(i, n)",
            "SELECT * FROM t WHERE EXISTS (SELECT FROM u WHERE u.a = t.a) AND a = ANY ($1)",
            "SELECT (SELECT max(a) FROM u), ARRAY(SELECT a FROM u) FROM t",
            "SELECT CASE a WHEN 1 THEN 'x' ELSE 'y' END, coalesce(a, 0), greatest(a, b), nullif(a, 1) FROM t",
            "SELECT a::text, CAST(b AS numeric(10, 2)), '{}'::int[], date '2020-01-01' FROM t",
            "SELECT ARRAY[a, 1], ROW(a, b), (a, b) = (1, 2), c[1], c[1:2], (d).e FROM t",
            "SELECT a COLLATE \"C\" FROM t WHERE b LIKE 'x\\_%' AND c IS NOT NULL AND d IS TRUE",
            "SELECT a FROM t WHERE b BETWEEN 1 AND 2 AND c IS DISTINCT FROM 3",
            "SELECT extract(year FROM a), substring(b FROM 1 FOR 2), a AT TIME ZONE 'UTC' FROM t",
            "SELECT now(), current_timestamp, current_date, localtime(0) FROM t",
            "SELECT random(), pg_sleep(0), pg_typeof(a) FROM t",
            "SELECT a FROM t ORDER BY a LIMIT 10 OFFSET 5",
            "SELECT a FROM t ORDER BY a FETCH FIRST 3 ROWS WITH TIES",
            "SELECT lower(a), pg_catalog.lower(b) FROM t",
            "SELECT a FROM good",
            "SELECT a FROM deep",
            "SELECT a FROM top",
            "SELECT a FROM calls_sql",
            "SELECT tidy(a), native(a), total(a), outer_total(b) FROM t",
            "SELECT total(1)",
            "SELECT my_agg(a) FROM t",
            "SELECT a <+> b, a %%% b FROM t",
            "SELECT a FROM t; SELECT b FROM u",
            "SELECT 'DELETE FROM t' FROM t",
            "SELECT a AS \"for update\" FROM t",
            "SELECT a FROM public.twice",
        ],
    );
}

#[test]
fn what_writes_or_locks_is_the_owners() {
    expect_owner(
        Why::Write,
        &[
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET a = 1",
            "DELETE FROM t",
            "MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE",
            "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
            "WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x, t",
            "WITH y AS (SELECT a FROM t), x AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM y",
            "SELECT * INTO n FROM t",
            "SELECT * INTO TEMP n FROM t",
            "CREATE TABLE n AS SELECT * FROM t",
            "TRUNCATE t",
            "SELECT a FROM t; DELETE FROM t",
            "SELECT a FROM t; DROP TABLE t; SELECT a FROM t",
        ],
    );
    expect_owner(
        Why::Locks,
        &[
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t FOR SHARE OF t NOWAIT",
            "SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED",
            "SELECT * FROM t FOR KEY SHARE",
            "SELECT * FROM (SELECT * FROM t FOR UPDATE) s",
            "WITH x AS (SELECT * FROM t FOR UPDATE) SELECT * FROM x",
            "SELECT a FROM t WHERE b IN (SELECT c FROM u FOR SHARE)",
        ],
    );
    expect_owner(
        Why::Utility,
        &[
            "EXPLAIN SELECT a FROM t",
            "EXPLAIN ANALYZE SELECT a FROM t",
            "DO $$ BEGIN END $$",
            "CALL p()",
            "PREPARE q AS SELECT a FROM t",
            "EXECUTE q",
            "DECLARE c CURSOR FOR SELECT a FROM t",
            "FETCH c",
            "LISTEN x",
            "NOTIFY x",
            "LOCK TABLE t",
            "VACUUM t",
            "DISCARD ALL",
            "SELECT a FROM t; CALL p()",
        ],
    );
    expect_owner(Why::Copy, &["COPY t TO STDOUT", "COPY (SELECT a FROM t) TO STDOUT"]);
    expect_owner(
        Why::Session,
        &["SET a.b = 1", "SHOW work_mem", "RESET ALL", "SELECT a FROM t; SET a.b = 1"],
    );
}

#[test]
fn functions_that_may_write_are_seen_wherever_they_stand() {
    expect_owner(
        Why::Volatile,
        &[
            "SELECT writer(a) FROM t",
            "SELECT public.writer(a) FROM t",
            "SELECT \"writer\"(a) FROM t",
            "SELECT a FROM t WHERE writer(b) = 1",
            "SELECT a FROM t ORDER BY writer(a)",
            "SELECT a FROM t GROUP BY a, writer(a)",
            "SELECT a FROM t LIMIT writer(1)",
            "SELECT a FROM t OFFSET writer(1)",
            "SELECT DISTINCT ON (writer(a)) a FROM t",
            "SELECT (SELECT writer(1)) FROM t",
            "SELECT a FROM t WHERE b IN (SELECT writer(c) FROM u)",
            "WITH x AS (SELECT writer(a) FROM t) SELECT * FROM x",
            "SELECT * FROM t, LATERAL (SELECT writer(t.a)) s",
            "SELECT * FROM t, writer(t.a)",
            "SELECT * FROM t, ROWS FROM (generate_series(1, 2), writer(t.a) AS (x int)) r",
            "SELECT sum(a) FILTER (WHERE writer(b) > 1) FROM t",
            "SELECT array_agg(a ORDER BY writer(b)) FROM t",
            "SELECT sum(a) OVER (ORDER BY writer(b)) FROM t",
            "SELECT sum(a) OVER w FROM t WINDOW w AS (PARTITION BY writer(b))",
            "SELECT sum(a) OVER (ORDER BY b ROWS writer(1) PRECEDING) FROM t",
            "SELECT CASE WHEN a THEN writer(1) END FROM t",
            "SELECT coalesce(a, writer(1)), ARRAY[1, writer(2)] FROM t",
            "SELECT c[writer(1)] FROM t",
            "SELECT (writer(a))::text FROM t",
            "SELECT lower(x => writer(a)) FROM t",
            "SELECT a FROM t JOIN u ON writer(t.a) = u.a",
            "SELECT a FROM t UNION SELECT writer(1)",
            "SELECT a FROM t HAVING writer(1) = 1",
            "VALUES (writer(1))",
            "SELECT t.rowf FROM t",
            "SELECT (t).rowf FROM t",
            "SELECT (SELECT public.t.rowf) FROM t",
            "SELECT a FROM writes",
            "SELECT bad_agg(a) FROM t",
            "SELECT setseed(0.5) FROM t",
            "SELECT a FROM t; SELECT writer(a) FROM t",
        ],
    );
    expect_owner(
        Why::UnknownFunction,
        &[
            "SELECT nothing(a) FROM t",
            "SELECT app.tidy(a) FROM t",
            "SELECT db.public.tidy(a) FROM t",
            "SELECT guess(a) FROM t",
            "SELECT atomic(a) FROM t",
            "SELECT circle() FROM t",
            "SELECT xmin(t) FROM t",
        ],
    );
    expect_owner(Why::Operator, &["SELECT a @@@ b FROM t", "SELECT a OPERATOR(public.@@@) b FROM t"]);
    expect_owner(
        Why::Operator,
        &["SELECT a FROM t ORDER BY a USING @@@", "SELECT a FROM t WHERE b @@@ ANY ($1)"],
    );
}

#[test]
fn what_asks_about_the_server_is_the_owners() {
    expect_owner(
        Why::AboutServer,
        &[
            "SELECT version() FROM t",
            "SELECT current_setting('a.b') FROM t",
            "SELECT set_config('a.b', 'c', true) FROM t",
            "SELECT nextval('seq') FROM t",
            "SELECT pg_advisory_lock(1) FROM t",
            "SELECT pg_backend_pid() FROM t",
            "SELECT txid_current() FROM t",
            "SELECT has_table_privilege('t', 'select') FROM t",
            "SELECT query_to_xml('delete from t', true, true, '') FROM t",
            "SELECT to_regclass('t') FROM t",
            "SELECT 't'::regclass FROM t",
            "SELECT CAST(a AS pg_catalog.regtype[]) FROM t",
            "SELECT regproc 'x' FROM t",
            "SELECT current_user FROM t",
            "SELECT session_user, a FROM t",
            "SELECT current_catalog FROM t",
            "SELECT current_schema FROM t",
        ],
    );
    expect_owner(Why::NoTable, &["SELECT 1", "SELECT now()", "VALUES (1)", "SELECT a FROM t; SELECT 1"]);
    expect_owner(Why::NoTable, &["WITH x AS (SELECT 1) SELECT * FROM x", "SELECT generate_series(1, 2)"]);
    expect_owner(
        Why::SystemCatalog,
        &[
            "SELECT * FROM pg_class",
            "SELECT * FROM pg_catalog.pg_class",
            "SELECT * FROM information_schema.tables",
            "SELECT t.a FROM t, pg_stat_activity",
            "SELECT * FROM pg_temp.t",
        ],
    );
    expect_owner(
        Why::SystemColumn,
        &[
            "SELECT ctid FROM t",
            "SELECT t.xmin FROM t",
            "SELECT a FROM t WHERE \"tableoid\" = 1",
            "SELECT (t).cmax FROM t",
            "SELECT a FROM t ORDER BY xmax",
        ],
    );
}

#[test]
fn tables_that_only_the_owner_has_are_the_owners() {
    expect_owner(
        Why::NotMigrated,
        &[
            "SELECT * FROM other",
            "SELECT * FROM t JOIN other USING (a)",
            "SELECT a FROM t WHERE b IN (SELECT b FROM public.other)",
            "SELECT * FROM stock",
            "SELECT * FROM far",
            "SELECT * FROM seq",
            // A table that inherits from it is not migrated.
            "SELECT * FROM heads",
            "SELECT * FROM heir",
            // There is another of that name, and the search path decides.
            "SELECT * FROM twice",
            "SELECT * FROM app.twice",
            "SELECT a FROM reads_other",
            "SELECT total_other() FROM t",
            // A name of WITH hides no table outside of its query, and not within its own.
            "SELECT * FROM (WITH other AS (SELECT a FROM t) SELECT * FROM other) s, other",
            "WITH other AS (SELECT * FROM other) SELECT * FROM other",
            "WITH x AS (SELECT * FROM other), other AS (SELECT a FROM t) SELECT * FROM x",
            "WITH other AS (SELECT a FROM t) SELECT * FROM public.other",
            "(WITH other AS (SELECT a FROM t) SELECT * FROM other) UNION SELECT * FROM other",
        ],
    );
    expect_owner(Why::RowSecurity, &["SELECT * FROM secret"]);
    expect_owner(Why::UnknownTable, &["SELECT * FROM nowhere", "SELECT * FROM app.t", "SELECT * FROM \"T\""]);
    expect_owner(Why::Unparsed, &["SELECT * FROM broken"]);
}

#[test]
fn syntax_that_is_not_known_is_the_owners() {
    expect_owner(
        Why::UnknownSyntax,
        &[
            "SELECT * FROM t TABLESAMPLE SYSTEM (10)",
            "SELECT * FROM db.public.t",
            "SELECT xmlelement(name a, b) FROM t",
            "SELECT * FROM t, XMLTABLE('/a' PASSING b COLUMNS c int)",
            "WITH RECURSIVE x AS (SELECT a FROM t UNION SELECT a FROM x) CYCLE a SET c USING p SELECT * FROM x",
        ],
    );
    expect_owner(
        Why::Unparsed,
        &[
            "SELECT FROM WHERE",
            "SELECT a FROM t WHERE b = '\\' /*' ; DELETE FROM t; --*/",
            "SELECT 'a",
            "SELECT a FROM t \u{1}",
            "SELECT a FROM t; SELEC",
        ],
    );
    expect_owner(Why::Empty, &["", ";", " -- nothing", "/* nothing */ ; ;"]);
    let classifier = classifier();
    assert_eq!(classifier.class(b"SELECT a FROM t WHERE b = '\xff'").unit, Unit::Owner(Why::Unparsed));
}

#[test]
fn transactions_are_told_apart() {
    expect(
        Unit::BeginReadOnly,
        &[
            "BEGIN READ ONLY",
            "BEGIN TRANSACTION READ ONLY;",
            "START TRANSACTION READ ONLY",
            "begin isolation level read committed, read only",
            "BEGIN READ ONLY ISOLATION LEVEL READ COMMITTED",
        ],
    );
    expect(Unit::End, &["COMMIT", "END", "ROLLBACK", "abort work", "COMMIT AND NO CHAIN", "/* x */ commit;"]);
    expect_owner(
        Why::Transaction,
        &[
            "BEGIN",
            "BEGIN READ WRITE",
            "BEGIN READ ONLY, READ WRITE",
            "BEGIN ISOLATION LEVEL READ COMMITTED",
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            "COMMIT AND CHAIN",
            "ROLLBACK TO a",
            "SAVEPOINT a",
            "RELEASE a",
            "COMMIT PREPARED 'x'",
            "BEGIN READ ONLY; SELECT a FROM t",
            "SELECT a FROM t; COMMIT",
            "COMMIT; COMMIT",
        ],
    );
}
