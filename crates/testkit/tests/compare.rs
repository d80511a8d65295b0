//! The comparer calls equal what is equal across versions, and finds the smallest difference.

#![allow(clippy::expect_used)] // In a helper of tests a panic is a failed test.

use segue_testkit::cluster::available_majors;
use segue_testkit::compare::{self, Table};
use segue_testkit::workload::schema;
use segue_testkit::{Cluster, Options};

const ZOO: &str = r#"
    CREATE SCHEMA zoo;
    CREATE TYPE zoo.mood AS ENUM ('fine', 'so ''so''');
    CREATE TYPE zoo.pair AS (a int, b text);
    CREATE TABLE zoo.animal (
        id int, n numeric, t text, c char(8), v varchar, f float8, ts timestamptz, d date, i interval, m money,
        b bytea, j json, jb jsonb, bits varbit, p point, x xml, addr inet, r int4range, a int[], e zoo.mood,
        ea zoo.mood[], pair zoo.pair, u uuid, cls regclass, tv tsvector, o oid, "odd ""name" text);
    CREATE TABLE zoo."Überall" ("Ä" text);
    CREATE TABLE zoo.nothing ();
    INSERT INTO zoo."Überall" VALUES ('same'), ('same'), (NULL), (NULL), ('');
    INSERT INTO zoo.animal VALUES
        (1, 1.50, 'a', 'pad', 'pad ', 1e-300, '2024-02-29 12:00+02', '4713-01-01 BC', '1 mon -1 day', '12.50',
         '\x00ff', '{"a":  1}', '{"a": 1}', B'0101', '(1,2)', '<a>ü</a>', '::1/64', '[1,5)', '{1,NULL}',
         'so ''so''', '{fine}', '(1,)', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'pg_class', 'a:1 b', 42, 'x'),
        (2, 'NaN', '', '', '', 'NaN', 'infinity', '-infinity', '0', '0', '', '1', '1', B'', '(0,0)', '',
         '10.0.0.1', 'empty', '{}', 'fine', '{}', '(,)', NULL, NULL, '', 0, NULL);
    INSERT INTO zoo.animal (id, pair) VALUES (3, NULL);
"#;

async fn zoo(cluster: &Cluster, database: &str) {
    let client = cluster.connect(database).await;
    // A session of its own taste must not matter.
    client.batch_execute(ZOO).await.expect("make the zoo");
}

#[tokio::test]
async fn equal_databases_of_different_versions_and_settings_are_equal() {
    let majors = available_majors();
    let (oldest, newest) = (majors[0], majors[majors.len() - 1]);
    let source = Cluster::start(Options::major(oldest).with("TimeZone", "Asia/Tokyo")).await;
    let target = Cluster::start(Options::major(newest).with("extra_float_digits", "0")).await;
    for cluster in [&source, &target] {
        zoo(cluster, "postgres").await;
        // Other object ids, other order.
        cluster.execute("CREATE TABLE zoo.spare (); DROP TABLE zoo.spare").await;
        let client = cluster.connect("postgres").await;
        schema::create(&client).await.expect("make the shop");
        schema::seed_data(&client, 5_000).await.expect("fill the shop");
    }
    target
        .execute("UPDATE zoo.animal SET id = id WHERE id = 1; UPDATE shop.event SET n = n WHERE n % 3 = 0")
        .await;
    let (left, right) = (source.connect("postgres").await, target.connect("postgres").await);
    let report = compare::schemas(&left, &right, &["zoo", "shop"]).await.expect("compare");
    assert!(report.is_equal(), "{report}");
    assert_eq!(report.tables.len(), 3 + 15);
    assert!(report.rows() > 4_000);

    // Without the help of binary forms: texts alone must tell.
    target.execute("UPDATE zoo.animal SET c = c, v = 'pad' WHERE id = 1").await;
    let report = compare::schemas(&left, &right, &["zoo"]).await.expect("compare");
    assert_eq!(report.unequal().map(|table| table.differences).collect::<Vec<_>>(), [2], "{report}");
}

#[tokio::test]
async fn the_smallest_difference_is_found_and_shown() {
    let cluster = Cluster::start(Options::default()).await;
    zoo(&cluster, "postgres").await;
    let changes = [
        ("UPDATE zoo.animal SET n = 1.5 WHERE id = 1", 2),
        ("UPDATE zoo.animal SET t = 'a ' WHERE id = 1", 2),
        ("UPDATE zoo.animal SET t = NULL WHERE id = 2", 2),
        ("UPDATE zoo.animal SET v = 'pad' WHERE id = 1", 2),
        ("UPDATE zoo.animal SET f = 1.0000000000000002e-300 WHERE id = 1", 2),
        ("UPDATE zoo.animal SET ts = ts + '1 microsecond' WHERE id = 1", 2),
        ("UPDATE zoo.animal SET i = '29 days' WHERE id = 1", 2),
        ("UPDATE zoo.animal SET j = '{\"a\": 1}' WHERE id = 1", 2),
        ("UPDATE zoo.animal SET pair = NULL WHERE id = 2", 2),
        ("UPDATE zoo.animal SET e = 'fine' WHERE id = 1", 2),
        ("UPDATE zoo.animal SET bits = B'01010' WHERE id = 1", 2),
        ("UPDATE zoo.animal SET t = v, v = t WHERE id = 1", 2),
        ("DELETE FROM zoo.animal WHERE id = 3", 1),
        ("INSERT INTO zoo.animal SELECT * FROM zoo.animal WHERE id = 3", 1),
        ("INSERT INTO zoo.\"Überall\" VALUES (NULL)", 1),
        ("DELETE FROM zoo.\"Überall\" WHERE \"Ä\" = 'same'", 2),
        ("INSERT INTO zoo.nothing DEFAULT VALUES", 1),
    ];
    for (change, differences) in changes {
        cluster.execute("CREATE DATABASE other TEMPLATE postgres").await;
        let other = cluster.connect("other").await;
        other.batch_execute(change).await.expect("change something");
        let original = cluster.connect("postgres").await;
        let report = compare::schemas(&original, &other, &["zoo"]).await.expect("compare");
        let found: u64 = report.tables.iter().map(|table| table.differences).sum();
        assert_eq!((report.is_equal(), found), (false, differences), "{change}: {report}");
        assert!(report.unequal().all(|table| !table.examples.is_empty()));
        drop((original, other));
        cluster.execute("DROP DATABASE other WITH (FORCE)").await;
    }
}

#[tokio::test]
async fn tables_may_have_other_names_but_not_other_columns() {
    let cluster = Cluster::start(Options::default()).await;
    cluster
        .execute(
            "CREATE TABLE a (x int, y text); INSERT INTO a SELECT n, 'row ' || n % 7 FROM generate_series(1, 5000) n;
             CREATE TABLE b (y text, x int); INSERT INTO b SELECT y, x FROM a ORDER BY random();
             CREATE TABLE c (x int)",
        )
        .await;
    let (left, right) = (cluster.connect("postgres").await, cluster.connect("postgres").await);
    let pair = |from: &str, to: &str| (Table::new("public", from), Table::new("public", to));
    let report = compare::tables(&left, &right, &[pair("a", "b")]).await.expect("compare");
    assert!(report.is_equal(), "{report}");
    let report = compare::tables(&left, &right, &[pair("a", "c"), pair("a", "none")]).await.expect("compare");
    assert_eq!(report.unequal().count(), 2);

    // Merged over several batches; what is counted is each row too many or too few.
    cluster.execute("DELETE FROM b WHERE x % 100 = 0; UPDATE b SET y = 'changed' WHERE x = 7").await;
    let report = compare::tables(&left, &right, &[pair("a", "b")]).await.expect("compare");
    assert_eq!((report.tables[0].differences, report.tables[0].examples.len()), (52, 10));

    let report = compare::schemas(&left, &right, &["no_such_schema"]).await.expect("compare");
    assert!(!report.is_equal(), "nothing compared is not equal");
}
