//! Rows of a hash partition are told by its bound, on a server that has no such partition.

#![allow(clippy::expect_used, reason = "a test says with it what it relies on")]

use segue_model::name::QualifiedName;
use segue_postgres::catalog::{self, Catalog};
use segue_postgres::connect::Endpoint;
use segue_testkit::cluster::{Cluster, Options, available_majors};
use tokio_postgres::Client;

struct Pair {
    source: Client,
    target: Client,
    _clusters: [Cluster; 2],
}

async fn session(cluster: &Cluster) -> Client {
    Endpoint::parse(&cluster.url("postgres")).expect("a URL").connect("test").await.expect("connect")
}

impl Pair {
    async fn between(source: u16, target: u16) -> Pair {
        let (from, to) =
            (Cluster::start(Options::major(source)).await, Cluster::start(Options::major(target)).await);
        Pair { source: session(&from).await, target: session(&to).await, _clusters: [from, to] }
    }

    async fn run(&self, source: &str, target: &str) {
        for (client, sql) in [(&self.source, source), (&self.target, target)] {
            let sql = format!("SET search_path = public; {sql}; SET search_path = pg_catalog");
            client.batch_execute(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        }
    }

    async fn read(&mut self, tables: &[String]) -> Catalog {
        let name = |table: &String| QualifiedName::new("public", table.as_str());
        let pairs: Vec<_> = tables.iter().map(|table| (name(table), name(table))).collect();
        catalog::read(&mut self.source, &mut self.target, &pairs).await.expect("both catalogs")
    }
}

/// How many rows, and which: the sum of their numbers.
async fn count(client: &Client, from: &str) -> String {
    let sql = format!("SELECT count(*) || ' ' || coalesce(sum(n), 0) FROM {from}");
    client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}")).get(0)
}

/// Types that are hashed to the same number anywhere, and a value of each for `n`.
const TYPES: &[(&str, &str)] = &[
    ("int2", "n % 300"),
    ("int4", "n * 7919 - 100000"),
    ("int8", "(n - 250) * 10000000019"),
    ("oid", "n"),
    ("bool", "n % 2 = 0"),
    ("numeric", "(n - 200) / 7.0"),
    ("uuid", "md5(n::text)::uuid"),
    ("time", "time '00:00' + n * interval '61 s'"),
    ("timetz", "timetz '00:00+02' + n * interval '61 s'"),
    ("interval", "n * interval '25 hours'"),
    ("date", "CASE n WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE date '1999-06-01' + n END"),
    ("timestamp", "CASE n WHEN 1 THEN 'infinity' ELSE timestamp '1999-06-01' + n * interval '11 hours' END"),
    (
        "timestamptz",
        "CASE n WHEN 1 THEN '-infinity' ELSE timestamptz '1999-06-01 UTC' + n * interval '11 hours' END",
    ),
    ("inet", "('10.0.' || n % 256 || '.1')::inet"),
    ("macaddr", "('08002b0102' || lpad(to_hex(n % 256), 2, '0'))::macaddr"),
    ("macaddr8", "('08002b010203' || lpad(to_hex(n), 4, '0'))::macaddr8"),
    ("text", "'é' || n"),
    ("varchar(20)", "'v' || n"),
    ("char(9)", "'c' || n"),
    ("text COLLATE \"C\"", "'c' || n"),
];

/// Three leaves of a table that is partitioned by a hash, and `more` for each, whose number is `#`.
fn leaves(table: &str, more: &str) -> String {
    let leaf = |n: u32| {
        format!(
            "CREATE TABLE {table}_{n} PARTITION OF {table} FOR VALUES WITH (MODULUS 3, REMAINDER {n}); {}",
            more.replace('#', &n.to_string())
        )
    };
    (0..3).map(leaf).collect()
}

/// Several keys, some of them NULL; a column has the name of what the bound calls its sum.
const SEVERAL: [&str; 2] = [
    "CREATE TABLE several (a int, b text, h uuid, n int)",
    "INSERT INTO several SELECT nullif(n % 7, 0), nullif('b' || n % 5, 'b0'), CASE WHEN n % 11 > 2 THEN md5((n % 11)::text)::uuid END, n
       FROM generate_series(1, 1000) n",
];

#[tokio::test]
async fn a_bound_finds_the_same_rows_on_a_server_that_has_no_partitions() {
    let majors = available_majors();
    let (first, last) = (majors[0], majors[majors.len() - 1]);
    for (source, target) in [(first, last), (last, *majors.iter().find(|m| **m >= 14).expect("a target"))] {
        let mut pair = Pair::between(source, target).await;
        let mut tables = Vec::new();
        for (at, (form, value)) in TYPES.iter().enumerate() {
            let table = format!("h{at}");
            let columns = format!("CREATE TABLE {table} (\"K k\" {form}, n int, PRIMARY KEY (\"K k\", n))");
            let fill = format!("INSERT INTO {table} SELECT {value}, n FROM generate_series(1, 500) n");
            let parted = format!("{columns} PARTITION BY HASH (\"K k\"); {} {fill}", leaves(&table, ""));
            pair.run(&parted, &format!("{columns}; {fill}")).await;
            tables.push(table);
        }
        let [columns, fill] = SEVERAL;
        let parted = format!(
            "{columns} PARTITION BY HASH (a, b, h); {} {fill}",
            leaves("several", "ALTER TABLE several_# REPLICA IDENTITY FULL;")
        );
        pair.run(&parted, &format!("{columns}; {fill}")).await;
        tables.push("several".to_owned());
        let catalog = pair.read(&tables).await;
        assert_eq!(catalog.refusals, vec![], "{source} to {target}");
        assert_eq!(catalog.relations.len(), 3 * tables.len());
        for relation in &catalog.relations {
            let condition = &relation.leaf.as_ref().expect("a leaf").condition;
            assert!(!condition.contains("satisfies_hash_partition"), "{condition}");
            let root = catalog.tables[relation.table.0 as usize].target.sql();
            let there = count(&pair.target, &format!("{root} WHERE {condition}")).await;
            let here = count(&pair.source, &relation.name.sql()).await;
            assert_eq!(there, here, "{source} to {target}, {}: {condition}", relation.name);
        }
    }
}

#[tokio::test]
async fn what_may_be_another_hash_there_is_not_said() {
    let majors = available_majors();
    let last = majors[majors.len() - 1];
    let mut pair = Pair::between(last, last).await;
    let types = "CREATE TYPE kind AS ENUM ('a', 'b');
        CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    pair.run(types, &format!("CREATE TYPE other AS ENUM ('x'); {types}")).await;
    for (table, form) in
        [("e", "kind"), ("l", "text COLLATE loose"), ("r", "int4range"), ("b", "bytea"), ("p", "bytea")]
    {
        let columns = format!("CREATE TABLE {table} (k {form}, n int, PRIMARY KEY (k, n))");
        let parted = format!("{columns} PARTITION BY HASH (k); {}", leaves(table, ""));
        // Also where the target is partitioned in the same way. Of bytes that can then be asked.
        pair.run(&parted, if table == "p" { &columns } else { &parted }).await;
        let catalog = pair.read(&[table.to_owned()]).await;
        assert_eq!(catalog.refusals, vec![], "{table}");
        let condition = &catalog.relations[0].leaf.as_ref().expect("a leaf").condition;
        assert_eq!(condition.contains("another one here"), table != "b", "{table}: {condition}");
        // It is valid either way, and true of nothing where there is nothing.
        assert_eq!(count(&pair.target, &format!("public.{table} WHERE {condition}")).await, "0 0");
    }
}
