//! What is proved of statements, against a small catalog that is written here.

use super::*;
use proptest::prelude::*;
use serde_json::json;

/// Tables `t`, `u` and `"Ü"` and a partitioned `p` with its leaf `p1` are migrated; `other` is not.
fn catalog_json() -> Value {
    let relation = |oid: u32, schema: &str, name: &str, kind: &str| {
        json!({"oid": oid, "schema": schema, "name": name, "kind": kind, "row_security": false,
               "partition": false, "parents": [], "definition": null})
    };
    let view = |oid: u32, name: &str, definition: &str| {
        let mut view = relation(oid, "public", name, "v");
        view["definition"] = definition.into();
        view
    };
    let with = |mut relation: Value, member: &str, value: Value| {
        relation[member] = value;
        relation
    };
    let function = |name: &str, volatility: &str, language: &str, body: Option<&str>| {
        json!({"schema": "public", "name": name, "kind": "f", "volatility": volatility, "language": language,
               "takes_row": false, "body": body, "calls": null})
    };
    let system = |name: &str, volatile: bool, aggregate: bool| json!({"name": name, "volatile": volatile, "aggregate": aggregate});
    let leaf = with(relation(6, "public", "p1", "r"), "parents", json!([5]));
    json!({
        "relations": [
            relation(1, "public", "t", "r"),
            relation(2, "public", "u", "r"),
            relation(3, "public", "Ü", "r"),
            relation(4, "public", "other", "r"),
            relation(5, "public", "p", "p"),
            with(leaf, "partition", json!(true)),
            with(relation(7, "public", "secret", "r"), "row_security", json!(true)),
            relation(8, "public", "heads", "r"),
            with(relation(9, "public", "heir", "r"), "parents", json!([8])),
            relation(10, "public", "stock", "m"),
            relation(11, "public", "far", "f"),
            relation(12, "public", "seq", "S"),
            relation(13, "public", "twice", "r"),
            relation(14, "app", "twice", "r"),
            view(20, "good", "SELECT t.a FROM t;"),
            view(21, "deep", "SELECT good.a FROM good;"),
            view(22, "writes", "SELECT writer(t.a) AS a FROM t;"),
            view(23, "reads_other", "SELECT t.a FROM t JOIN other USING (a);"),
            view(24, "top", "SELECT t.a FROM t LIMIT 5;"),
            view(25, "broken", "SELECT FROM FROM"),
            view(26, "calls_sql", "SELECT total(1) AS a;"),
        ],
        "functions": [
            function("writer", "v", "plpgsql", None),
            function("tidy", "i", "plpgsql", None),
            function("guess", "s", "plpgsql", None),
            function("native", "s", "c", None),
            function("gen_random_bytes", "v", "c", None),
            function("total", "s", "sql", Some("SELECT sum(a) FROM t WHERE b = $1")),
            function("total_other", "s", "sql", Some("SELECT sum(a) FROM other")),
            function("atomic", "i", "sql", None),
            function("outer_total", "s", "sql", Some("SELECT total(1) + 1")),
            function("circle", "s", "sql", Some("SELECT circle()")),
            with(function("rowf", "v", "plpgsql", None), "takes_row", json!(true)),
            json!({"schema": "public", "name": "my_agg", "kind": "a", "volatility": "i", "language": "internal",
                   "takes_row": false, "body": null, "calls": [["public", "tidy"]]}),
            json!({"schema": "public", "name": "bad_agg", "kind": "a", "volatility": "i", "language": "internal",
                   "takes_row": false, "body": null, "calls": [["public", "writer"]]}),
        ],
        "system_functions": [
            system("sum", false, true), system("count", false, true), system("max", false, true),
            system("array_agg", false, true), system("lower", false, false), system("now", false, false),
            system("random", true, false), system("nextval", true, false), system("version", false, false),
            system("current_setting", false, false), system("set_config", true, false),
            system("pg_typeof", false, false), system("pg_backend_pid", false, false),
            system("pg_advisory_lock", true, false), system("row_number", false, false),
            system("generate_series", false, false), system("extract", false, false),
            system("timezone", true, false), system("percentile_cont", false, true),
            system("has_table_privilege", false, false), system("query_to_xml", true, false),
            system("to_regclass", false, false), system("substring", false, false),
            system("txid_current", false, false), system("pg_sleep", true, false),
            system("coalesce", false, false), system("setseed", true, false), system("json_agg", false, true),
        ],
        "operators": [
            {"name": "@@@", "schema": "public", "function": "writer"},
            {"name": "<+>", "schema": "public", "function": "tidy"},
            {"name": "%%%", "schema": "public", "function": "total"},
        ],
        "implicit": [["public", "tidy"]],
    })
}

fn catalog_of(json: &Value) -> Arc<Catalog> {
    let migrated = ["t", "u", "Ü", "p", "secret", "heads", "twice"];
    let migrated: Vec<_> = migrated.map(|name| ("public".to_owned(), name.to_owned())).into();
    Arc::new(Catalog::read(&json.to_string(), &migrated).unwrap())
}

fn classifier() -> Classifier {
    let classifier = Classifier::new();
    classifier.set_catalog(Some(catalog_of(&catalog_json())));
    classifier
}

/// Each text twice, so that what is remembered is the same as what was proved.
fn expect(unit: Unit, texts: &[&str]) {
    let classifier = classifier();
    for _ in 0..2 {
        for text in texts {
            assert_eq!(classifier.class(text.as_bytes()).unit, unit, "{text}");
        }
    }
}

fn expect_owner(why: Why, texts: &[&str]) {
    expect(Unit::Owner(why), texts);
}

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

#[test]
fn implicit_functions_that_may_write_leave_no_reads() {
    for (member, value) in [
        ("implicit", json!([["public", "writer"]])),
        ("operators", json!([{"name": "=", "schema": "public", "function": "writer"}])),
    ] {
        let mut json = catalog_json();
        json[member] = value;
        let classifier = Classifier::new();
        classifier.set_catalog(Some(catalog_of(&json)));
        assert_eq!(classifier.class(b"SELECT a FROM t").unit, Unit::Owner(Why::Implicit), "{member}");
    }
}

#[test]
fn what_was_proved_goes_with_its_catalog() {
    let classifier = Classifier::new();
    let unit = || classifier.class(b"SELECT a FROM t").unit;
    assert_eq!(unit(), Unit::Owner(Why::NoCatalog));
    classifier.set_catalog(Some(catalog_of(&catalog_json())));
    assert_eq!((unit(), unit()), (Unit::Read, Unit::Read));
    let mut json = catalog_json();
    json["relations"] = json!([]);
    classifier.set_catalog(Some(catalog_of(&json)));
    assert_eq!(unit(), Unit::Owner(Why::UnknownTable));
    classifier.set_catalog(None);
    assert_eq!(unit(), Unit::Owner(Why::NoCatalog));
    assert!(Catalog::read("{}", &[]).is_err());
}

#[test]
fn the_order_of_rows_is_told_by_output_columns() {
    let classifier = classifier();
    let keys = |keys: &[usize]| Order::Keys(keys.to_vec());
    for (sql, order) in [
        ("SELECT a FROM t", Order::None),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a) s", Order::None),
        ("SELECT a, b FROM t ORDER BY b, a DESC", keys(&[1, 0])),
        ("SELECT a, b FROM t ORDER BY 2", keys(&[1])),
        // The same text but for a constant.
        ("SELECT a, b FROM t ORDER BY 1", keys(&[0])),
        ("SELECT a, b FROM t ORDER BY (2)", keys(&[1])),
        ("SELECT a, b FROM t ORDER BY 1", keys(&[0])),
        ("SELECT * FROM t ORDER BY 3", keys(&[2])),
        ("SELECT a AS b, b AS a FROM t ORDER BY a", keys(&[1])),
        ("SELECT t.a, lower(t.b) FROM t ORDER BY lower(t.b), t.a", keys(&[1, 0])),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY a", keys(&[0])),
        ("SELECT a FROM t ORDER BY b", Order::Hidden),
        ("SELECT a FROM t ORDER BY a, b", Order::Hidden),
        ("SELECT * FROM t ORDER BY a", Order::Hidden),
        ("SELECT *, a AS x FROM t ORDER BY x", Order::Hidden),
        ("SELECT a AS x, * FROM t ORDER BY x", keys(&[0])),
        ("SELECT a FROM t; SELECT a FROM t ORDER BY a", Order::Hidden),
        ("DELETE FROM t", Order::None),
    ] {
        assert_eq!(classifier.class(sql.as_bytes()).order, order, "{sql}");
    }
}

#[test]
fn results_that_depend_on_chance_are_told() {
    let classifier = classifier();
    for (sql, limited) in [
        ("SELECT a FROM t ORDER BY a", false),
        ("SELECT sum(a) FROM t", false),
        ("SELECT array_agg(a ORDER BY a) FROM t", false),
        ("SELECT DISTINCT a FROM t", false),
        ("SELECT a FROM t LIMIT 1", true),
        ("SELECT a FROM t OFFSET 1", true),
        ("SELECT a FROM (SELECT a FROM t FETCH FIRST 1 ROW ONLY) s", true),
        ("SELECT DISTINCT ON (a) a, b FROM t", true),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", true),
        ("SELECT array_agg(a) FROM t", true),
        ("SELECT my_agg(a) FROM t", true),
        ("SELECT random() FROM t", true),
        ("SELECT gen_random_bytes(8) FROM t", true),
        ("SELECT a FROM top", true),
    ] {
        let class = classifier.class(sql.as_bytes());
        assert_eq!((class.unit, class.limited), (Unit::Read, limited), "{sql}");
    }
}

#[test]
fn statements_are_named_by_the_strongest() {
    let classifier = classifier();
    for (sql, name) in [
        ("SELECT a FROM t", "select"),
        ("(TABLE t)", "select"),
        ("SELECT a FROM t; COMMIT", "transaction"),
        ("SELECT a FROM t; UPDATE t SET a = 1; COMMIT", "update"),
        ("WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x", "delete"),
        ("WITH x AS (SELECT a FROM t) MERGE INTO t USING x ON true WHEN MATCHED THEN DELETE", "select"),
        ("create index on t (a)", "ddl"),
        ("EXPLAIN SELECT 1", "other"),
        ("COPY t FROM STDIN", "copy"),
        ("SHOW a", "set"),
        ("", "other"),
    ] {
        assert_eq!(classifier.class(sql.as_bytes()).kind.name(), name, "{sql}");
    }
}

#[test]
fn texts_that_differ_in_constants_share_what_was_proved() {
    let classifier = classifier();
    let one = classifier.class(b"SELECT a FROM t WHERE b = 1 AND c = 'x'");
    let other = classifier.class(b"SELECT a FROM t  WHERE b = 22 AND c = E'\\'' -- y");
    assert!(Arc::ptr_eq(&one, &other));
    assert_eq!(&*one.shape, "SELECT a FROM t WHERE b = ? AND c = ?");
    let first = classifier.class(b"SELECT a, b FROM t ORDER BY 1");
    let second = classifier.class(b"SELECT a, b FROM t ORDER BY 2");
    assert_eq!(first.fingerprint, second.fingerprint);
    assert_ne!(first.fingerprint, one.fingerprint);
}

#[test]
fn deep_and_long_texts_are_the_owners_and_break_nothing() {
    let classifier = classifier();
    let deep = |open: &str, close: &str, times: usize| {
        format!("SELECT {}a{} FROM t", open.repeat(times), close.repeat(times))
    };
    let texts = [
        deep("(", ")", 20_000),
        deep("NOT ", "", 1_500),
        deep("- ", "", 3_000),
        deep("(SELECT ", ")", 700),
        deep("lower(", ")", 1_000),
        deep("a[", "]", 2_000),
        deep("CASE WHEN a THEN ", " END", 300),
        deep("a + ", "", 1_800),
        format!("SELECT a FROM t {}", "UNION SELECT a FROM t ".repeat(300)),
        format!("SELECT a FROM {}t{}", "(".repeat(3_000), ")".repeat(3_000)),
    ];
    // A thread of the runtime has no more stack than this.
    let run = move || {
        for text in &texts {
            let unit = classifier.class(text.as_bytes()).unit;
            assert!(matches!(unit, Unit::Owner(Why::Unparsed | Why::TooLong)), "{unit:?} {}", &text[..40]);
        }
        // The grammar leaves nothing of these.
        assert_eq!(classifier.class(deep("(", ")", 3_500).as_bytes()).unit, Unit::Read);
        let wide = format!("SELECT a FROM t WHERE {}", "a = 1 OR ".repeat(500) + "b = 2");
        assert_eq!(classifier.class(wide.as_bytes()).unit, Unit::Read);
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap();
}

#[test]
fn parsing_in_many_threads_leaves_the_error_output_alone() {
    let classifier = classifier();
    let before = std::fs::read_link("/proc/self/fd/2").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let classifier = &classifier;
            scope.spawn(move || {
                for index in 0..200 {
                    let sql = format!("SELECT a{index} FROM t WHERE b{thread} = 1");
                    assert_eq!(classifier.class(sql.as_bytes()).unit, Unit::Read);
                }
            });
        }
    });
    assert_eq!(std::fs::read_link("/proc/self/fd/2").unwrap(), before);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "SELECT", "FROM", "t", "(", ")", ",", "1", "'x'", "ORDER BY", "WITH", "x", "AS", "::", "[", "]", "*",
                "UNION", "LIMIT", "$1", ";", "BEGIN", "READ ONLY", "JOIN", "ON", "=", ".", "E'\\''", "--", "\n", "/*",
                "IN", "CASE", "WHEN", "END", "OVER", "FILTER", "VALUES", "NOT", "NULL", "INTERVAL", "JSON_TABLE",
            ]),
            0..16,
        ),
    ) {
        let classifier = classifier();
        classifier.class(&bytes);
        classifier.class(words.join(" ").as_bytes());
    }
}
