//! Every kind of type from a real stream through the applier onto another database: text must round trip.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use segue_engine::ports::{Applier, ChangeStream, Checkpoint, Durability, StreamEvent};
use segue_model::change::Change;
use segue_model::net::collapse;
use segue_model::position::Position;
use segue_model::table::{Identity, Table, UnitId};
use segue_postgres::apply::PgApplier;
use segue_postgres::authority::Authority;
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_postgres::stream::{Opening, PgStream, RelationPlan, StreamPlan, StreamSource};
use segue_testkit::cluster::available_majors;
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use tokio::sync::watch;

/// Type, and values of it.
const ZOO: &[(&str, &[&str])] = &[
    ("smallint", &["-32768", "32767"]),
    ("bigint", &["-9223372036854775808"]),
    ("numeric", &["1.0", "1.00", "NaN", "123456789012345678901234567890.123456789", "-0.00"]),
    ("numeric(5,2)", &["123.45"]),
    ("real", &["3.4028235e38", "-0", "NaN", "Infinity", "0.1"]),
    ("double precision", &["2.2250738585072014e-308", "0.1", "-Infinity"]),
    ("money", &["$1,234.56", "-$0.01"]),
    ("text", &["", "NULL", "a\"b\\c{},'", "\n\t ", "größe ☃"]),
    ("varchar(5)", &["abc  ", "größe"]),
    ("char(5)", &["ab", ""]),
    ("char", &["x"]),
    ("\"char\"", &["q", ""]),
    ("name", &["a name"]),
    ("bytea", &["\\x00ff5c22", "\\x"]),
    ("boolean", &["t", "f"]),
    ("date", &["infinity", "4713-01-01 BC", "5874897-12-31"]),
    ("timestamp", &["0044-03-15 12:00:00 BC", "294276-12-31 23:59:59.999999", "-infinity"]),
    ("timestamptz(3)", &["2026-11-21 01:02:03.456+05:30"]),
    ("time", &["24:00:00"]),
    ("timetz", &["12:34:56.789-11:30"]),
    ("interval", &["-1 year -2 mons +3 days -04:05:06.789", "0"]),
    ("interval day to second(2)", &["3 days 04:05:06.78"]),
    ("bit(3)", &["101"]),
    ("bit", &["1"]),
    ("bit varying", &["", "10110"]),
    ("uuid", &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
    ("json", &["{\"a\" :  1, \"a\": null}"]),
    ("jsonb", &["{\"a\": [1, 2.00, \"\\\"x\"]}", "null"]),
    ("xml", &["<a b=\"c\">d</a>", "just content"]),
    ("inet", &["192.168.0.1/24", "::1"]),
    ("cidr", &["10.0.0.0/8"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("point", &["(1.5,-2)"]),
    ("box", &["(2,2),(1,1)"]),
    ("path", &["[(1,2),(3,4)]"]),
    ("polygon", &["((1,2),(3,4),(5,6))"]),
    ("circle", &["<(1,2),3>"]),
    ("tsvector", &["'a':1A 'it''s':2"]),
    ("tsquery", &["'a' & !'b'"]),
    ("int4range", &["empty", "[1,5)", "(,)"]),
    ("tstzrange", &["[\"2026-01-01 00:00:00+00\",)"]),
    ("int[]", &["{}", "{1,NULL,3}", "[0:1]={5,6}", "{{1,2},{3,4}}"]),
    ("text[]", &["{\"a,b\",\"NULL\",NULL,\"\",\"q\\\"\\\\\"}"]),
    ("box[]", &["{(2,2),(1,1);(4,4),(3,3)}"]),
    ("mood", &["happy", "very \"sad\", {really}"]),
    ("mood[]", &["{happy,NULL}"]),
    ("pair", &["(1,\"a \"\"b\"\", c\")", "(,)"]),
    ("pair[]", &["{\"(1,x)\",\"(2,\\\"a,b\\\")\"}"]),
    ("short", &["abc"]),
    ("tags", &["{a,b}"]),
    ("fingers", &["{[1,2),[5,6)}"]),
    ("int2vector", &["1 2 3"]),
    ("oid", &["4294967295"]),
    ("pg_lsn", &["16/B374D848"]),
    ("regclass", &["pg_catalog.pg_class"]),
];

const TYPES: &str = "CREATE TYPE mood AS ENUM ('happy', 'very \"sad\", {really}'); CREATE TYPE pair AS (a int, b text); \
    CREATE DOMAIN short AS varchar(3) CHECK (VALUE <> ''); CREATE DOMAIN tags AS text[]; CREATE DOMAIN fingers AS text";

async fn table(cluster: &Cluster, database: &str, identity: &str) -> Table {
    let mut client = cluster.connect(database).await;
    segue_postgres::schema::ensure(&mut client).await.unwrap();
    let columns: String = ZOO.iter().enumerate().map(|(i, (ty, _))| format!(", c{i} {ty}")).collect();
    client.batch_execute(&format!("{TYPES}; CREATE TABLE zoo (id int {identity}{columns})")).await.unwrap();
    if identity.is_empty() {
        client.batch_execute("ALTER TABLE zoo REPLICA IDENTITY FULL").await.unwrap();
    }
    support::table(&client, 0, "zoo").await
}

async fn transaction(stream: &mut PgStream) -> Vec<Change> {
    let mut changes = Vec::new();
    loop {
        match stream.next().await.unwrap() {
            StreamEvent::Change(change) => changes.push(change),
            StreamEvent::Commit { .. } if !changes.is_empty() => return changes,
            _ => {}
        }
    }
}

async fn rows(cluster: &Cluster, database: &str) -> String {
    let client = cluster.connect(database).await;
    let row = client
        .query_one("SELECT string_agg(zoo::text, E'\\n' ORDER BY zoo::text) FROM zoo", &[])
        .await
        .unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

/// What is done to the zoo, one transaction after the other.
fn steps() -> [String; 4] {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut inserts = String::from("INSERT INTO zoo (id) VALUES (0);");
    let longest = ZOO.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    for n in 0..longest.max(5) {
        let values: String =
            ZOO.iter().map(|(_, values)| format!(", {}", literal(values[n % values.len()]))).collect();
        inserts.push_str(&format!("INSERT INTO zoo VALUES ({}{values});", n + 1));
    }
    let sets: Vec<String> =
        (0..ZOO.len()).map(|i| format!("c{i} = (SELECT z.c{i} FROM zoo z WHERE z.id = 2)")).collect();
    [
        inserts,
        format!("UPDATE zoo SET {} WHERE id <> 2", sets.join(", ")),
        "UPDATE zoo SET id = id + 100, c0 = NULL WHERE id IN (1, 3)".to_owned(),
        "DELETE FROM zoo WHERE id IN (2, 101)".to_owned(),
    ]
}

async fn round_trip(major: u16, identity: &str, set_wise: bool) {
    let cluster = Cluster::start(Options::major(major)).await;
    cluster.execute("CREATE DATABASE src").await;
    cluster.execute("CREATE DATABASE dst").await;
    table(&cluster, "src", identity).await;
    let planned = table(&cluster, "dst", identity).await;
    let source = cluster.connect("src").await;
    source.batch_execute("CREATE PUBLICATION p FOR TABLE zoo").await.unwrap();
    source.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    let oid = source.query_one("SELECT 'zoo'::regclass::oid", &[]).await.unwrap().get(0);
    let relation = RelationPlan {
        table: Arc::new(planned.clone()),
        unit: UnitId(0),
        leaf: None,
        loose: false,
        expected: vec![],
    };
    let plan = StreamPlan { relations: [(oid, Arc::new(relation))].into(), ..StreamPlan::default() };
    let from: String = source
        .query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots", &[])
        .await
        .unwrap()
        .get(0);
    let stream_source = StreamSource {
        endpoint: Endpoint::parse(&cluster.url("src")).unwrap(),
        slot: "s".into(),
        publications: vec!["p".into()],
    };
    // Roles with settings of their own must not matter.
    cluster.execute("ALTER ROLE postgres SET datestyle = 'German'; ALTER ROLE postgres SET intervalstyle = 'iso_8601'").await;
    cluster.execute("ALTER ROLE postgres SET bytea_output = 'escape'").await;
    cluster.execute("ALTER ROLE postgres SET extra_float_digits = -5").await;
    let mut stream = Opening::begin(stream_source.clone(), from.parse().unwrap())
        .stream(watch::channel(Arc::new(plan)).1)
        .await
        .unwrap();
    cluster.execute("ALTER ROLE postgres RESET ALL").await;

    let target = cluster.connect("dst").await;
    target
        .batch_execute(
            "INSERT INTO segue.token VALUES ('m', 3); INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, position, skipped, updated_at) VALUES ('m', 'forward', 's', '1', 1, 5, '0/0', '{}', now())",
        )
        .await
        .unwrap();
    let stream_identity =
        Authority { migration: "m".into(), direction: Direction::Forward, token: 3, incarnation: 5 };
    let mut applier =
        PgApplier::open(&Endpoint::parse(&cluster.url("dst")).unwrap(), stream_identity).await.unwrap();

    for (n, step) in steps().iter().enumerate() {
        source.batch_execute(step).await.unwrap_or_else(|e| panic!("{step}: {e:?}"));
        let changes = transaction(&mut stream).await;
        applier.begin().await.unwrap();
        let written = match collapse(&planned, &changes).unwrap() {
            Some(net) if set_wise => applier.net(&planned, &PgApplier::encode(&planned, net).unwrap()).await,
            _ => applier.in_order(&planned, &changes).await,
        };
        written.unwrap_or_else(|e| panic!("step {n} on {major}: {e:?}"));
        let to = Checkpoint { position: Position(n as u64 + 1), ..Checkpoint::default() };
        applier.commit(Position(n as u64), &to, Durability::Now).await.unwrap();
        assert_eq!(rows(&cluster, "src").await, rows(&cluster, "dst").await, "step {n} on {major}");
    }
    assert_eq!(planned.identity == Identity::WholeRow, identity.is_empty());
}

#[tokio::test]
async fn every_type_round_trips_set_wise() {
    for major in [available_majors()[0], 15] {
        round_trip(major, "PRIMARY KEY", true).await;
    }
}

#[tokio::test]
async fn every_type_round_trips_one_by_one() {
    round_trip(*available_majors().last().unwrap(), "PRIMARY KEY", false).await;
}

#[tokio::test]
async fn every_type_is_found_by_its_whole_image() {
    round_trip(15, "", false).await;
}
