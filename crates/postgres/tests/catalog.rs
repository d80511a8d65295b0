//! Both catalogs of real servers become tables, relations and refusals.

#![allow(clippy::expect_used, reason = "a test says with it what it relies on")]

use segue_model::name::QualifiedName;
use segue_model::table::{ArrayForm, Identity, KeyOrder, Table, Transport};
use segue_postgres::catalog::{self, Catalog};
use segue_postgres::connect::Endpoint;
use segue_testkit::cluster::{Cluster, Options, available_majors};
use tokio_postgres::Client;

/// Two databases of one server, or of two.
struct Pair {
    source: Client,
    target: Client,
    _clusters: Vec<Cluster>,
}

impl Pair {
    async fn with(schema: &str) -> Pair {
        let pair = Pair::empty().await;
        pair.both(schema).await;
        pair
    }

    async fn empty() -> Pair {
        let cluster = Cluster::start(Options::default()).await;
        cluster.execute("CREATE DATABASE target").await;
        let source = session(&cluster, "postgres").await;
        let target = session(&cluster, "target").await;
        Pair { source, target, _clusters: vec![cluster] }
    }

    async fn between(source: u16, target: u16) -> Pair {
        let from = Cluster::start(Options::major(source)).await;
        let to = Cluster::start(Options::major(target)).await;
        Pair {
            source: session(&from, "postgres").await,
            target: session(&to, "postgres").await,
            _clusters: vec![from, to],
        }
    }

    async fn both(&self, sql: &str) {
        let sql = format!("SET search_path = public; {sql}");
        self.source.batch_execute(&sql).await.expect("source");
        self.target.batch_execute(&sql).await.expect("target");
    }

    async fn read(&mut self, names: &[&str]) -> Catalog {
        let pairs: Vec<_> = names.iter().map(|n| (name(n), name(n))).collect();
        self.source.batch_execute("SET search_path = pg_catalog").await.expect("path");
        self.target.batch_execute("SET search_path = pg_catalog").await.expect("path");
        catalog::read(&mut self.source, &mut self.target, &pairs).await.expect("both catalogs")
    }

    /// The one table, which must be accepted.
    async fn table(&mut self, name: &str) -> Table {
        let mut catalog = self.read(&[name]).await;
        assert_eq!(catalog.refusals, vec![]);
        catalog.tables.remove(0)
    }

    /// The refusals of one table, as one text.
    async fn refused(&mut self, name: &str) -> String {
        let catalog = self.read(&[name]).await;
        assert!(catalog.tables.is_empty(), "{name} was accepted");
        catalog.refusals.iter().map(|fault| format!("{fault}\n")).collect()
    }
}

async fn session(cluster: &Cluster, database: &str) -> Client {
    Endpoint::parse(&cluster.url(database)).expect("a URL").connect("test").await.expect("connect")
}

fn name(text: &str) -> QualifiedName {
    QualifiedName::parse(text).expect("a name")
}

fn transports(table: &Table) -> Vec<(&str, Transport)> {
    table.columns.iter().map(|column| (column.source.as_str(), column.transport)).collect()
}

const ZOO: &str = "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN short AS varchar(5); CREATE TYPE pair AS (a int, b text); CREATE TYPE moods AS (m mood);
    CREATE TABLE zoo (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text, n numeric(10,2), r regclass,
        e mood, ea mood[], d short, da short[], c pair, cm moods, ia int[], rg int4range, x citext, h hstore, xa citext[],
        acl aclitem, g int GENERATED ALWAYS AS (1) STORED, j jsonb, \"Odd Name\" int);";

#[tokio::test]
async fn columns_travel_in_binary_unless_their_bytes_name_a_catalog() {
    let mut pair = Pair::with(ZOO).await;
    let zoo = pair.table("zoo").await;
    let text = ["r", "ea", "da", "cm", "xa", "acl"];
    for (column, transport) in transports(&zoo) {
        let expected = if text.contains(&column) { Transport::Text } else { Transport::Binary };
        assert_eq!(transport, expected, "{column}");
    }
    assert!(!zoo.columns.iter().any(|column| column.source == "g"), "generated columns do not travel");
    let column = |name: &str| zoo.columns.iter().find(|c| c.source == name).expect(name);
    assert!(column("id").identity_always && !column("id").nullable && column("t").nullable);
    assert_eq!(column("e").target_type, "public.mood");
    assert_eq!(column("ia").target_type, "integer[]");
    assert_eq!(column("ia").array, ArrayForm::CastText);
    assert_eq!(column("e").array, ArrayForm::Typed);
    let key = zoo.key().expect("a key");
    assert_eq!(
        (key.columns.as_slice(), key.order.as_slice(), key.bytewise),
        (&[0][..], &[KeyOrder::Integer][..], true)
    );
    assert_eq!(zoo.one_region, None);
}

#[tokio::test]
async fn every_pair_of_versions_has_the_columns_that_are_asked_for() {
    let majors = available_majors();
    let (first, last) = (majors[0], majors[majors.len() - 1]);
    for (source, target) in [(first, last), (last, *majors.iter().find(|m| **m >= 14).expect("a target"))] {
        let mut pair = Pair::between(source, target).await;
        pair.both(
            "CREATE TABLE t (id int, at timestamptz, i interval, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE TABLE t1 PARTITION OF t DEFAULT; CREATE TABLE u (id uuid PRIMARY KEY, x int4range[], v text, w text COLLATE \"C\");",
        )
        .await;
        let catalog = pair.read(&["t", "u"]).await;
        assert_eq!(catalog.refusals, vec![], "{source} to {target}");
        let interval = transports(&catalog.tables[0])[2].1;
        let differs = (source >= 17) != (target >= 17);
        assert_eq!(
            interval,
            if differs { Transport::Text } else { Transport::Binary },
            "{source} to {target}"
        );
        assert!(
            catalog::server::source_refusals(&pair.source).await.expect("asked").is_empty() || source < 12
        );
        assert_eq!(
            catalog::server::target_refusals(&pair.source, &pair.target).await.expect("asked"),
            vec![]
        );
    }
}

#[tokio::test]
async fn a_partitioned_table_is_its_leaves_however_deep() {
    let mut pair = Pair::with(
        "CREATE TABLE p (id int, k int, v text, PRIMARY KEY (k, id)) PARTITION BY RANGE (k);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20) PARTITION BY HASH (id);
         CREATE TABLE p2a PARTITION OF p2 FOR VALUES WITH (modulus 2, remainder 0);
         CREATE TABLE p2b PARTITION OF p2 FOR VALUES WITH (modulus 2, remainder 1);
         INSERT INTO p SELECT i, i % 20, 'x' FROM generate_series(1, 1000) i; ANALYZE p1;
         CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);",
    )
    .await;
    let catalog = pair.read(&["p", "parent"]).await;
    assert_eq!(catalog.refusals, vec![]);
    let names: Vec<String> = catalog.relations.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names, ["public.p1", "public.p2a", "public.p2b", "public.parent"]);
    assert_eq!(catalog.tables[0].key().expect("a key").columns, vec![1, 0], "in the order of the index");
    assert!(catalog.tables[0].estimate.rows >= 500 && catalog.tables[0].estimate.bytes > 0);
    // The target finds exactly the leaf's rows, although it numbers its tables otherwise.
    let mut found = 0;
    for relation in &catalog.relations[..3] {
        let leaf = relation.leaf.as_ref().expect("a leaf");
        let sql = format!("SELECT count(*) FROM public.p WHERE {}", leaf.condition);
        let by_condition: i64 = pair.target.query_one(&sql, &[]).await.expect(&sql).get(0);
        let sql = format!("SELECT count(*) FROM {}", relation.name.sql());
        let there: i64 = pair.target.query_one(&sql, &[]).await.expect("count").get(0);
        assert_eq!(by_condition, there, "{}", leaf.condition);
        found += there;
    }
    assert_eq!(found, 1000);
}

#[tokio::test]
async fn wildcards_find_tables_but_no_leaves_and_no_system() {
    let pair = Pair::with(
        "CREATE SCHEMA crm; CREATE TABLE crm.a (id int); CREATE TABLE b (id int) PARTITION BY LIST (id);
         CREATE TABLE b1 PARTITION OF b DEFAULT; CREATE TABLE b_old (id int); CREATE SCHEMA segue;
         CREATE TABLE segue.t (id int); CREATE VIEW v AS SELECT 1;",
    )
    .await;
    let found = catalog::all_tables(&pair.source).await.expect("list");
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["crm.a", "public.b", "public.b_old"]);
}

#[tokio::test]
async fn the_best_key_is_taken_and_what_cannot_be_told_apart_is_one_region() {
    let mut pair = Pair::with(
        "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('a');
         CREATE TABLE by_index (a int NOT NULL, b text COLLATE \"C\" NOT NULL, c int); CREATE UNIQUE INDEX i ON by_index (b, a);
         ALTER TABLE by_index REPLICA IDENTITY USING INDEX i;
         CREATE TABLE full_key (id int PRIMARY KEY, v text); ALTER TABLE full_key REPLICA IDENTITY FULL;
         CREATE TABLE full_none (v text); ALTER TABLE full_none REPLICA IDENTITY FULL;
         CREATE TABLE loose (id numeric PRIMARY KEY); CREATE TABLE fixed (id numeric(8,2) PRIMARY KEY);
         CREATE TABLE ci (id citext PRIMARY KEY); CREATE TABLE en (m mood, at timestamptz, c char(4), PRIMARY KEY (m, at, c));
         CREATE TABLE uniq (id int PRIMARY KEY, v text UNIQUE, UNIQUE (v, id));
         CREATE TABLE excl (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&));",
    )
    .await;
    let by_index = pair.table("by_index").await;
    let key = by_index.key().expect("a key");
    assert_eq!(
        (key.columns.as_slice(), key.order.as_slice()),
        (&[1, 0][..], &[KeyOrder::Bytes, KeyOrder::Integer][..])
    );
    assert_eq!(pair.table("full_key").await.key().expect("a key").columns, vec![0]);
    let none = pair.table("full_none").await;
    assert_eq!(none.identity, Identity::WholeRow);
    assert!(none.one_region.is_some());
    for (name, bytewise) in [("loose", false), ("fixed", true), ("ci", false), ("en", true)] {
        let table = pair.table(name).await;
        assert_eq!(table.key().expect("a key").bytewise, bytewise, "{name}");
        assert_eq!(table.one_region.is_none(), bytewise, "{name}: {:?}", table.one_region);
    }
    for (name, index) in [("uniq", "uniq_v_key"), ("excl", "excl_r_excl")] {
        let reason = pair.table(name).await.one_region.expect(name);
        assert!(reason.contains(index) && !reason.contains("id_key"), "{name}: {reason}");
    }
}

#[tokio::test]
async fn a_table_without_a_usable_identity_is_refused_with_the_remedy() {
    let mut pair = Pair::with(
        "CREATE TABLE bare (v text); CREATE TABLE candidate (a int NOT NULL UNIQUE, v text);
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, v int);
         CREATE TABLE loose (id int, k int) PARTITION BY LIST (k); CREATE TABLE loose1 PARTITION OF loose DEFAULT;
         ALTER TABLE loose1 ADD PRIMARY KEY (id);
         CREATE TABLE untargeted (id int PRIMARY KEY); CREATE TABLE deferred_there (id int PRIMARY KEY);",
    )
    .await;
    let text = pair.refused("bare").await;
    assert!(
        text.contains("SEGUE-NO-KEY")
            && text.contains("ALTER TABLE \"public\".\"bare\" REPLICA IDENTITY FULL;"),
        "{text}"
    );
    let text = pair.refused("candidate").await;
    assert!(text.contains("REPLICA IDENTITY USING INDEX \"candidate_a_key\";"), "{text}");
    let text = pair.refused("nothing").await;
    assert!(text.contains("NOTHING") && text.contains("USING INDEX \"nothing_pkey\""), "{text}");
    let text = pair.refused("deferred").await;
    assert!(text.contains("SEGUE-DEFERRABLE-KEY") && text.contains("deferred_pkey"), "{text}");
    let text = pair.refused("loose").await;
    assert!(text.contains("unique in the whole table"), "{text}");
    pair.target
        .batch_execute(
            "ALTER TABLE public.untargeted DROP CONSTRAINT untargeted_pkey;
             ALTER TABLE public.deferred_there DROP CONSTRAINT deferred_there_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
        )
        .await
        .expect("change the target");
    let text = pair.refused("untargeted").await;
    assert!(text.contains("SEGUE-TARGET-KEY") && text.contains("ADD PRIMARY KEY (\"id\")"), "{text}");
    assert!(pair.table("deferred_there").await.key().expect("a key").target_deferrable);
}

#[tokio::test]
async fn other_shapes_are_refused_by_column_with_the_remedy() {
    let mut pair = Pair::empty().await;
    pair.both("CREATE TYPE mood AS ENUM ('a')").await;
    let shapes = [
        ("narrow", "v varchar(9)", "v varchar(8)", "TYPE character varying(9)"),
        ("wide", "v varchar(9), n numeric(5,2)", "v varchar(10), n numeric(6,2)", ""),
        ("scale", "v numeric(5,2)", "v numeric(6,3)", "TYPE numeric(5,2)"),
        ("other", "v int", "v bigint", "TYPE integer"),
        ("absent", "v int", "", "ADD COLUMN \"v\" integer"),
        ("extra", "", "v int NOT NULL", "ALTER COLUMN \"v\" DROP NOT NULL"),
        ("fine", "", "v int NOT NULL DEFAULT 1, w int, x int GENERATED ALWAYS AS (1) STORED", ""),
        ("strict", "v int", "v int NOT NULL", "DROP NOT NULL"),
        ("computed", "v int GENERATED ALWAYS AS (1) STORED", "v int", "GENERATED ALWAYS"),
        ("computes", "v int", "v int GENERATED ALWAYS AS (1) STORED", "DROP EXPRESSION"),
        ("blank", "v char(3)", "v char(4)", "TYPE character(3)"),
    ];
    for (name, from, to, _) in shapes {
        let create = |columns: &str| {
            format!(
                "CREATE TABLE public.{name} ({columns}{} id int PRIMARY KEY)",
                if columns.is_empty() { "" } else { "," }
            )
        };
        pair.source.batch_execute(&create(from)).await.expect(name);
        pair.target.batch_execute(&create(to)).await.expect(name);
    }
    for (name, _, _, remedy) in shapes {
        if remedy.is_empty() {
            pair.table(name).await;
        } else {
            let text = pair.refused(name).await;
            assert!(text.contains("SEGUE-COLUMN") && text.contains(remedy), "{name}: {text}");
        }
    }
    pair.source
        .batch_execute(
            "ALTER TYPE public.mood ADD VALUE 'b'; CREATE TABLE public.m (m public.mood PRIMARY KEY)",
        )
        .await
        .expect("m");
    pair.target.batch_execute("CREATE TABLE public.m (m public.mood PRIMARY KEY)").await.expect("m");
    let text = pair.refused("m").await;
    assert!(text.contains("label 'b'"), "{text}");
    let remedy = text
        .split("ALTER TYPE")
        .nth(1)
        .map(|sql| format!("ALTER TYPE{}", sql.split(';').next().unwrap_or_default()));
    let remedy = remedy.unwrap_or_else(|| panic!("no remedy: {text}"));
    assert!(remedy.ends_with("ADD VALUE 'b' AFTER 'a'"), "{remedy}");
    pair.target.batch_execute(&remedy).await.expect("the remedy");
    pair.table("m").await;
    // Of another type no label is missing.
    pair.source.batch_execute("CREATE TABLE public.o (m public.mood PRIMARY KEY)").await.expect("o");
    pair.target.batch_execute("CREATE TABLE public.o (m text PRIMARY KEY)").await.expect("o");
    let text = pair.refused("o").await;
    assert!(text.contains("ALTER COLUMN \"m\" TYPE") && !text.contains("ADD VALUE"), "{text}");
}

#[tokio::test]
async fn a_type_with_less_room_inside_is_refused_like_a_narrower_column() {
    let mut pair = Pair::empty().await;
    let kinds = [
        ("same", "numeric(12,4)", "numeric(12,4)", ""),
        ("wider", "numeric(12,4)", "numeric(14,4)", ""),
        ("unbounded", "varchar(9)", "varchar", ""),
        ("scale", "numeric(12,4)", "numeric(12,2)", "numeric(12,2) on the target"),
        ("narrow", "varchar(9)", "varchar(8)", "character varying(8) on the target"),
        ("coarse", "timestamptz(3)", "timestamptz(0)", "timestamp(0) with time zone on the target"),
        ("listed", "numeric(12,4)[]", "numeric(12,2)[]", "numeric(12,2)[] on the target"),
    ];
    // A domain, one over it, a composite, one with that inside, and arrays.
    let columns = ["d", "dd", "c", "cc", "dd[]", "c[]"];
    for (name, from, to, _) in kinds {
        for (client, inner) in [(&pair.source, from), (&pair.target, to)] {
            let types = format!(
                "SET search_path = public; CREATE DOMAIN {name}_d AS {inner}; CREATE DOMAIN {name}_dd AS {name}_d;
                 CREATE TYPE {name}_c AS (a int, b {inner}); CREATE TYPE {name}_cc AS (a text, b {name}_c)"
            );
            client.batch_execute(&types).await.expect(name);
            for (no, column) in columns.iter().enumerate() {
                let table = format!("CREATE TABLE {name}{no} (id int PRIMARY KEY, v {name}_{column})");
                client.batch_execute(&table).await.expect(&table);
            }
        }
    }
    for (name, _, _, words) in kinds {
        for no in 0..columns.len() {
            let table = format!("{name}{no}");
            if words.is_empty() {
                pair.table(&table).await;
            } else {
                let text = pair.refused(&table).await;
                assert!(text.contains("SEGUE-COLUMN") && text.contains(words), "{table}: {text}");
                assert!(text.contains("on the target, make the type") && !text.contains("ALTER"), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_a_logged_table_or_not_there_is_refused() {
    let mut pair = Pair::with(
        "CREATE VIEW v AS SELECT 1 AS id; CREATE MATERIALIZED VIEW m AS SELECT 1 AS id;
         CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id);
         CREATE TABLE p1 PARTITION OF p DEFAULT;",
    )
    .await;
    for (name, word) in [
        ("v", "a view"),
        ("m", "a materialized view"),
        ("u", "SET LOGGED"),
        ("none", "does not exist on the source"),
    ] {
        let text = pair.refused(name).await;
        assert!(text.contains(word), "{name}: {text}");
    }
    pair.source.batch_execute("CREATE TABLE public.here (id int PRIMARY KEY)").await.expect("here");
    let text = pair.refused("here").await;
    assert!(text.contains("pg_dump --schema-only --table '\"public\".\"here\"'"), "{text}");
    let catalog = pair.read(&["p", "p1"]).await;
    assert!(catalog.refusals.iter().any(|fault| fault.code == "SEGUE-TWICE"));
}

#[tokio::test]
async fn row_security_and_missing_privileges_are_refused_by_name() {
    let pair = Pair::with(
        "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY;
         CREATE TABLE forced (id int PRIMARY KEY); ALTER TABLE forced ENABLE ROW LEVEL SECURITY; ALTER TABLE forced FORCE ROW LEVEL SECURITY;",
    )
    .await;
    pair.source
        .batch_execute("CREATE ROLE plain; GRANT SELECT ON public.t TO plain; ALTER TABLE public.forced OWNER TO plain; SET ROLE plain")
        .await
        .expect("a role");
    let mut pair = pair;
    let text = pair.refused("t").await;
    assert!(
        text.contains("public.t has row-level security") && text.contains("only its owner can publish"),
        "{text}"
    );
    let text = pair.refused("forced").await;
    assert!(text.contains("public.forced has row-level security"), "{text}");
    let refusals = catalog::server::source_refusals(&pair.source).await.expect("asked");
    let text: String = refusals.iter().map(ToString::to_string).collect();
    assert!(text.contains("REPLICATION") && text.contains("GRANT CREATE ON DATABASE"), "{text}");
    pair.source.batch_execute("RESET ROLE").await.expect("reset");
    pair.table("t").await;
}

#[tokio::test]
async fn a_server_that_cannot_be_a_source_says_why() {
    let cluster = Cluster::start(
        Options::default().with("wal_level", "replica").with("synchronous_standby_names", "FIRST 1 (*)"),
    )
    .await;
    let client = session(&cluster, "postgres").await;
    let refusals = catalog::server::source_refusals(&client).await.expect("asked");
    let codes: Vec<&str> = refusals.iter().map(|fault| fault.code).collect();
    assert_eq!(codes, ["SEGUE-WAL-LEVEL", "SEGUE-SYNC-STANDBY"]);
}

#[tokio::test]
async fn filled_targets_are_found() {
    let mut pair =
        Pair::with("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);").await;
    pair.target.batch_execute("INSERT INTO public.b VALUES (1)").await.expect("a row");
    let catalog = pair.read(&["a", "b"]).await;
    let found = catalog::nonempty_targets(&pair.target, &catalog.tables).await.expect("asked");
    assert_eq!(found.len(), 1);
    assert!(found[0].what.starts_with("public.b"));
}

#[tokio::test]
async fn thousands_of_leaves_are_read_in_seconds() {
    let mut pair = Pair::empty().await;
    pair.both(
        "DO $$ BEGIN FOR i IN 1..50 LOOP
            EXECUTE format('CREATE TABLE s%s (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)', i);
            FOR j IN 1..20 LOOP EXECUTE format('CREATE TABLE s%s_%s PARTITION OF s%s FOR VALUES FROM (%s) TO (%s)', i, j, i, j, j + 1); END LOOP;
         END LOOP; END $$",
    )
    .await;
    let names: Vec<String> = (1..=50).map(|i| format!("s{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let began = std::time::Instant::now();
    let catalog = pair.read(&names).await;
    assert_eq!(catalog.refusals, vec![]);
    assert_eq!((catalog.tables.len(), catalog.relations.len()), (50, 1000));
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
}
