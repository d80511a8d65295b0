//! Every built-in type, and those that users and extensions make: copied, inserted, updated, found again, deleted.

use crate::route;
use crate::support::Pair;

/// A type, the first version that has it (or these values of it), and values.
type Kind = (&'static str, u16, &'static [&'static str]);

const KINDS: &[Kind] = &[
    ("smallint", 0, &["-32768", "32767"]),
    ("integer", 0, &["-2147483648", "2147483647"]),
    ("bigint", 0, &["-9223372036854775808", "9223372036854775807"]),
    (
        "numeric",
        0,
        &["1.0", "1.00", "NaN", "-0.00", "123456789012345678901234567890.123456789", "1e-200", "0"],
    ),
    ("numeric", 14, &["Infinity", "-Infinity", "NaN"]),
    ("numeric(5,2)", 0, &["123.45", "-0.10"]),
    ("real", 0, &["3.4028235e38", "-0", "NaN", "Infinity", "0.1", "1e-45"]),
    ("double precision", 0, &["2.2250738585072014e-308", "0.1", "-Infinity", "NaN", "-0"]),
    ("money", 0, &["$1,234.56", "-$0.01"]),
    ("text", 0, &["", "NULL", "\\N", "a\"b\\c{},'", "\n\t \r", "größe ☃ 🐘"]),
    ("varchar(5)", 0, &["abc  ", "größe", ""]),
    ("char(5)", 0, &["ab", "", "größe"]),
    ("char", 0, &["x", " "]),
    ("\"char\"", 0, &["q", "", "\\"]),
    ("name", 0, &["a name", "", "\"quoted\""]),
    ("bytea", 0, &["\\x00ff5c22", "\\x", "\\xdeadbeef"]),
    ("boolean", 0, &["t", "f"]),
    ("date", 0, &["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "0001-01-01"]),
    ("timestamp", 0, &["4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999", "-infinity", "infinity"]),
    ("timestamptz", 0, &["4713-01-01 00:00:00+00 BC", "2026-11-21 01:02:03.456789+05:30", "infinity"]),
    ("timestamptz(3)", 0, &["2026-11-21 01:02:03.456+05:30"]),
    ("time", 0, &["24:00:00", "00:00:00.000001"]),
    ("timetz", 0, &["12:34:56.789-11:30", "24:00:00-15:59"]),
    ("interval", 0, &["-1 year -2 mons +3 days -04:05:06.789", "0", "178000000 years", "30 days", "1 mon"]),
    ("interval", 17, &["infinity", "-infinity"]),
    ("interval day to second(2)", 0, &["3 days 04:05:06.78"]),
    ("bit(3)", 0, &["101", "000"]),
    ("bit", 0, &["1", "0"]),
    ("bit varying", 0, &["", "10110"]),
    ("varbit(70)", 0, &["1111111111111111111111111111111111111111111111111111111111111111111111"]),
    ("uuid", 0, &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"]),
    ("json", 0, &["{\"a\" :  1, \"a\": null}", "\"\\u0041\"", "  1.50 "]),
    ("jsonb", 0, &["{\"a\": [1, 2.00, \"\\\"x\"], \"b\": {}}", "null", "1e400"]),
    ("jsonpath", 0, &["$.a[*] ? (@.b == 1)", "lax $"]),
    ("xml", 0, &["<a b=\"c\">d</a>", "just content", "<?xml version=\"1.0\"?><r/>"]),
    ("inet", 0, &["192.168.0.1/24", "::1", "10.1.2.3"]),
    ("cidr", 0, &["10.0.0.0/8", "2001:db8::/32"]),
    ("macaddr", 0, &["08:00:2b:01:02:03"]),
    ("macaddr8", 0, &["08:00:2b:01:02:03:04:05"]),
    ("point", 0, &["(1.5,-2)", "(NaN,Infinity)"]),
    ("line", 0, &["{1,-1,0}"]),
    ("lseg", 0, &["[(1,2),(3,4)]"]),
    ("box", 0, &["(2,2),(1,1)"]),
    ("path", 0, &["[(1,2),(3,4)]", "((1,2),(3,4))"]),
    ("polygon", 0, &["((1,2),(3,4),(5,6))"]),
    ("circle", 0, &["<(1,2),3>"]),
    ("tsvector", 0, &["'a':1A 'it''s':2", ""]),
    ("tsquery", 0, &["'a' & !'b'", "'x' <-> 'y':*A"]),
    ("int4range", 0, &["empty", "[1,5)", "(,)", "(,7)"]),
    ("int8range", 0, &["[1,9223372036854775807)"]),
    ("numrange", 0, &["[1.0,1.10]", "(NaN,)"]),
    ("daterange", 0, &["[4713-01-01 BC,infinity)"]),
    ("tsrange", 0, &["[\"2026-01-01 00:00:00\",infinity)"]),
    ("tstzrange", 0, &["[\"2026-01-01 00:00:00+00\",)"]),
    ("textrange", 0, &["[\"a,b\",\"c\"\"\\\\\")", "empty"]),
    ("int4multirange", 14, &["{}", "{[1,2),[5,6)}"]),
    ("tstzmultirange", 14, &["{[\"2026-01-01 00:00:00+00\",infinity)}"]),
    ("int[]", 0, &["{}", "{1,NULL,3}", "[0:1]={5,6}", "{{1,2},{3,4}}", "[1:1][-2:-1]={{1,2}}"]),
    ("text[]", 0, &["{\"a,b\",\"NULL\",NULL,\"\",\"q\\\"\\\\\"}", "{{a},{b}}"]),
    ("box[]", 0, &["{(2,2),(1,1);(4,4),(3,3)}"]),
    ("bytea[]", 0, &["{\"\\\\x00\",NULL}"]),
    ("numeric(7,3)[]", 0, &["{1.000,NaN}"]),
    ("jsonb[]", 0, &["{\"{\\\"a\\\": \\\"b,c\\\"}\",NULL}"]),
    ("int4range[]", 0, &["{\"[1,5)\",empty}"]),
    ("regtype[]", 0, &["{integer,\"character varying\"}"]),
    ("mood", 0, &["happy", "very \"sad\", {really}", "größe"]),
    ("mood[]", 0, &["{happy,NULL}"]),
    ("pair", 0, &["(1,\"a \"\"b\"\", c\")", "(,)", "(,\"\")"]),
    ("pair[]", 0, &["{\"(1,x)\",\"(2,\\\"a,b\\\")\",NULL}"]),
    ("nest", 0, &["(\"(1,x)\",\"{happy}\",abc)", "(,,)"]),
    ("short", 0, &["abc"]),
    ("tags", 0, &["{a,b}", "{}"]),
    ("pairs", 0, &["(1,x)"]),
    ("\"Odd, type\"", 0, &["odd"]),
    ("int2vector", 0, &["1 2 3", ""]),
    ("oidvector", 0, &["1 4294967295"]),
    ("oid", 0, &["4294967295", "0"]),
    ("xid", 0, &["4294967295"]),
    ("xid8", 13, &["18446744073709551615"]),
    ("cid", 0, &["7"]),
    ("tid", 0, &["(4294967295,65535)"]),
    ("pg_lsn", 0, &["16/B374D848", "FFFFFFFF/FFFFFFFF"]),
    ("txid_snapshot", 0, &["10:20:10,14,15"]),
    ("pg_snapshot", 13, &["10:20:10,14,15"]),
    ("regclass", 0, &["pg_catalog.pg_class", "public.zoo", "-"]),
    ("regtype", 0, &["integer", "public.mood"]),
    ("regproc", 0, &["pg_catalog.now", "public.twice"]),
    ("regprocedure", 0, &["pg_catalog.abs(integer)", "public.twice(integer)"]),
    ("regoper", 0, &["pg_catalog.||/"]),
    ("regoperator", 0, &["pg_catalog.+(integer,integer)"]),
    ("regrole", 0, &["postgres"]),
    ("regnamespace", 0, &["public"]),
    ("regconfig", 0, &["pg_catalog.simple"]),
    ("regdictionary", 0, &["pg_catalog.simple"]),
    ("regcollation", 13, &["pg_catalog.\"C\""]),
    ("refcursor", 0, &["a cursor"]),
    ("aclitem", 0, &["postgres=r/postgres"]),
    ("public.citext", 0, &["MiXed", ""]),
    ("public.citext[]", 0, &["{A,a}"]),
    ("public.hstore", 0, &["\"a\"=>\"1, \\\"x\\\"\", \"b\"=>NULL", ""]),
    ("public.ltree", 0, &["Top.Science.Astronomy", ""]),
    ("public.lquery", 0, &["*{1,2}.b|c"]),
];

const MADE: &str = "CREATE TYPE mood AS ENUM ('happy', 'very \"sad\", {really}', 'größe'); CREATE TYPE pair AS (a int, b text); \
    CREATE DOMAIN short AS varchar(3) CHECK (VALUE <> ''); CREATE DOMAIN tags AS text[]; CREATE DOMAIN pairs AS pair; \
    CREATE TYPE nest AS (p pair, moods mood[], s short); CREATE TYPE textrange AS RANGE (subtype = text, collation = \"C\"); \
    CREATE TYPE \"Odd, type\" AS ENUM ('odd'); \
    CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT 2 * $1'";

/// Numbers that user types, tables and functions get must differ between the servers, or nothing is shown by them.
const OTHER_NUMBERS: &str = "CREATE TABLE filler (a int); CREATE TYPE filler_type AS ENUM ('x'); DROP TABLE filler; DROP TYPE filler_type";

/// The kinds that both servers know; the others are named aloud.
async fn known(pair: &Pair) -> Vec<&'static Kind> {
    let older = pair.source.major().min(pair.target.major());
    let mut known = Vec::new();
    for side in [&pair.source, &pair.target] {
        for extension in ["citext", "hstore", "ltree"] {
            let client = side.connect("postgres").await;
            if let Err(e) = client.batch_execute(&format!("CREATE EXTENSION {extension} SCHEMA public")).await
            {
                eprintln!("SKIPPED: {extension} on {}: {e}", side.major());
            }
        }
    }
    'kinds: for kind in KINDS {
        let (name, since, values) = kind;
        if *since > older {
            continue;
        }
        for side in [&pair.source, &pair.target] {
            let client = side.connect("postgres").await;
            for value in *values {
                let literal = value.replace('\'', "''");
                if *name != "regclass"
                    && let Err(e) = client.batch_execute(&format!("SELECT '{literal}'::{name}")).await
                {
                    eprintln!("SKIPPED: {name} '{value}' on {}: {:?}", side.major(), e.as_db_error());
                    continue 'kinds;
                }
            }
        }
        known.push(kind);
    }
    // What a build may lack is named here; everything else must be there.
    let may_lack = |name: &str| name == "xml" || name.starts_with("public.");
    for kind in KINDS.iter().filter(|kind| kind.1 <= older && !may_lack(kind.0)) {
        assert!(known.iter().any(|k| std::ptr::eq(*k, kind)), "{} is not known", kind.0);
    }
    known
}

/// Rows `first` and on, each kind's values in turn; with one row of NULLs.
fn rows(kinds: &[&Kind], table: &str, first: usize) -> String {
    let longest = kinds.iter().map(|(_, _, values)| values.len()).max().unwrap_or(0);
    let mut sql = format!("INSERT INTO {table} (id) VALUES ({first});");
    for n in 0..longest {
        let values: String = kinds
            .iter()
            .map(|(_, _, values)| format!(", '{}'", values[n % values.len()].replace('\'', "''")))
            .collect();
        sql.push_str(&format!("INSERT INTO {table} VALUES ({}{values});", first + n + 1));
    }
    sql
}

async fn travels(from: u16, to: u16) {
    let Some(pair) = route::pair(from, to, &["public.zoo", "public.zoo_whole"]).await else { return };
    route::batch(&pair.target, OTHER_NUMBERS).await;
    route::on_both(&pair, MADE).await;
    let kinds = known(&pair).await;
    let columns: String =
        kinds.iter().enumerate().map(|(i, (name, _, _))| format!(", c{i} {name}")).collect();
    let ddl = format!(
        "CREATE TABLE zoo (id int PRIMARY KEY{columns}); CREATE TABLE zoo_whole (id int{columns}); \
         ALTER TABLE zoo_whole REPLICA IDENTITY FULL"
    );
    route::on_both(&pair, &ddl).await;
    let tables = ["zoo", "zoo_whole"];
    for table in tables {
        route::batch(&pair.source, &rows(&kinds, table, 0)).await;
    }
    let run = route::following(&pair).await;
    route::arrives(&pair, &run, &["public"]).await;
    for table in tables {
        // Every row becomes the one after it; then some get new keys, some go, some come, one at a time and many at once.
        let sets: Vec<String> = (0..kinds.len()).map(|i| format!("c{i} = z.c{i}")).collect();
        let sets = sets.join(", ");
        for step in [
            rows(&kinds, table, 100),
            format!(
                "UPDATE {table} SET {sets} FROM {table} z WHERE z.id = 3 AND {table}.id IN (1, 2, 4, 5, 6, 103)"
            ),
            format!("UPDATE {table} SET {sets} FROM {table} z WHERE z.id = 102 AND {table}.id = 100"),
            format!("UPDATE {table} SET id = id + 1000, c0 = NULL WHERE id IN (1, 3, 101)"),
            format!("DELETE FROM {table} WHERE id IN (2, 1001, 0, 104, 105)"),
            rows(&kinds, table, 200).replace("INSERT", "/* one by one */ INSERT"),
        ] {
            route::batch(&pair.source, &step).await;
        }
    }
    route::arrives(&pair, &run, &["public"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_travels_from_15_to_15() {
    travels(15, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_travels_from_12_to_18() {
    travels(12, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_travels_from_18_to_14() {
    travels(18, 14).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_travels_from_16_to_17() {
    travels(16, 17).await;
}
