//! What is proved of statements, against a small catalog that is written here.

use super::*;
use proptest::prelude::*;
use serde_json::json;

mod hot_loop;
mod units;

fn relation(oid: u32, schema: &str, name: &str, kind: &str) -> Value {
    json!({"oid": oid, "schema": schema, "name": name, "kind": kind, "row_security": false,
           "partition": false, "parents": [], "definition": null})
}

fn view(oid: u32, name: &str, definition: &str) -> Value {
    with(relation(oid, "public", name, "v"), "definition", definition.into())
}

fn with(mut row: Value, member: &str, value: Value) -> Value {
    row[member] = value;
    row
}

fn function(name: &str, volatility: &str, language: &str, body: Option<&str>) -> Value {
    json!({"schema": "public", "name": name, "kind": "f", "volatility": volatility, "language": language,
           "takes_row": false, "body": body, "calls": null})
}

fn aggregate(name: &str, calls: &str) -> Value {
    let row = with(function(name, "i", "internal", None), "kind", json!("a"));
    with(row, "calls", json!([["public", calls]]))
}

/// Tables `t`, `u` and `"Ü"` and a partitioned `p` with its leaf `p1` are migrated; `other` is not.
fn relations() -> Vec<Value> {
    let leaf = with(relation(6, "public", "p1", "r"), "parents", json!([5]));
    vec![
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
    ]
}

fn functions() -> Vec<Value> {
    vec![
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
        aggregate("my_agg", "tidy"),
        aggregate("bad_agg", "writer"),
    ]
}

fn catalog_json() -> Value {
    let system = |name: &str, volatile: bool, aggregate: bool| json!({"name": name, "volatile": volatile, "aggregate": aggregate});
    json!({
        "levels": false,
        "relations": relations(),
        "functions": functions(),
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
