//! Comparing two real servers: every planted difference is found and named, and nothing else is.

#![allow(clippy::unwrap_used)]

use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::progress::Progress;
use segue_engine::throttle::{Limits, Throttle};
use segue_engine::verify::ports::{Comparable, Item, Passage, Repaired, Repairer, Store};
use segue_engine::verify::report::{Mode, Repair, Report, Request};
use segue_engine::verify::{Parts, Verifier};
use segue_model::divergence::{Class, Difference, Divergence};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::table::{Table, TableId};
use segue_postgres::birth::Direction;
use segue_postgres::catalog;
use segue_postgres::connect::Endpoint;
use segue_postgres::control::Control;
use segue_postgres::schema;
use segue_postgres::verify::{PgComparable, PgSides, PgStore};
use segue_testkit::cluster::{Cluster, Options, available_majors};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Nothing writes while these tests compare: everything has passed and is shown.
struct Quiet;

impl Passage for Quiet {
    async fn passed(&self) -> Outcome<()> {
        Ok(())
    }
    async fn shown(&self) -> Outcome<bool> {
        Ok(true)
    }
    async fn parts(&self, _: &Table) -> Outcome<Option<String>> {
        Ok(Some(String::new()))
    }
}

/// Repairs by running the statements that a dry run printed.
struct ByHand {
    target: tokio_postgres::Client,
    remedies: Mutex<Vec<(Option<KeyText>, String)>>,
}

impl Repairer for ByHand {
    async fn repair(&self, table: &Table, extent: &Extent, _: Option<&str>) -> Outcome<Repaired> {
        let name = format!("{} ", table.target.sql());
        let wanted = |(key, statement): &(Option<KeyText>, String)| match extent {
            Extent::Key(wanted) => key.as_ref() == Some(wanted),
            Extent::Range { .. } => statement.contains(&name),
        };
        let remedies = self.remedies.lock().unwrap().clone();
        for (_, statement) in remedies.iter().filter(|remedy| wanted(remedy)) {
            let run = self.target.batch_execute(statement).await;
            run.map_err(|e| Fault::bug("SEGUE-TEST", format!("{statement}: {e:?}")))?;
        }
        Ok(Repaired::Copied)
    }
}

struct Pair {
    source: Cluster,
    target: Cluster,
    tables: Vec<Arc<Table>>,
    parts: Arc<Parts<PgComparable, PgComparable, Quiet, PgStore, ByHand>>,
}

impl Pair {
    async fn start(source: Options, target: Options) -> (Cluster, Cluster) {
        tokio::join!(Cluster::start(source), Cluster::start(target))
    }

    async fn of((source, target): (Cluster, Cluster), tables: &[&str]) -> Pair {
        let endpoint = |c: &Cluster| Endpoint::parse(&c.url("postgres")).unwrap();
        let mut on_source = endpoint(&source).connect("test").await.unwrap();
        let mut on_target = endpoint(&target).connect("test").await.unwrap();
        let name = |name: &&str| QualifiedName::new("public", *name);
        let pairs: Vec<_> = tables.iter().map(|n| (name(n), name(n))).collect();
        let read = catalog::read(&mut on_source, &mut on_target, &pairs).await.unwrap();
        assert_eq!(read.refusals, vec![]);
        let tables: Vec<Arc<Table>> = read.tables.into_iter().map(Arc::new).collect();
        schema::ensure(&mut on_target).await.unwrap();
        let sides = PgSides::open(&endpoint(&source), &endpoint(&target), &tables).await.unwrap();
        let parts = Arc::new(Parts {
            owner: sides.source,
            other: sides.target,
            passage: Arc::new(Quiet),
            store: Arc::new(PgStore::new(endpoint(&target), "m".into(), Direction::Forward)),
            repairer: Arc::new(ByHand { target: on_target, remedies: Mutex::default() }),
            throttle: Arc::new(Throttle::new(Limits::default())),
            progress: Arc::new(Progress::new([], Position(0))),
            unsettled: Default::default(),
            differences: Default::default(),
        });
        Pair { source, target, tables, parts }
    }

    async fn run(&self, request: Request) -> Report {
        let (report, _watch) = watch::channel(Report::default());
        Verifier::new(self.parts.clone()).run(&self.tables, &request, &report).await.unwrap()
    }
}

const ZOO: &str = "
    CREATE TYPE mood AS ENUM ('happy', 'sad'); CREATE DOMAIN percent AS numeric CHECK (VALUE <= 100);
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE zoo (id int PRIMARY KEY, n numeric, t text, c char(6), vc varchar(20), ts timestamp, tz timestamptz,
        f float8, r float4, j jsonb, js json, b bytea, m mood, a text[], ma mood[], p percent, co pair, i inet, iv interval,
        bo boolean, u uuid, bi bit varying, ra int4range, x xml, mo money, pt point, rc regclass, tv tsvector);
    INSERT INTO zoo SELECT g, g * 1.50, 'text ' || g, 'c' || g % 100, 'Vc' || g, timestamp '2026-01-01' + g * interval '1.5 s',
        timestamptz '2026-01-01 UTC' + g * interval '1 min', g / 7.0, g / 7.0, jsonb_build_object('k', g), '{\"a\":  1}',
        decode(md5(g::text), 'hex'), 'happy', ARRAY['x', 'y' || g, NULL], ARRAY['sad'::mood], 12.30, ROW(g, 'q')::pair,
        '10.0.0.1', g * interval '1 h', g % 2 = 0, md5(g::text)::uuid, B'101', int4range(g, g + 5), '<a/>', 1.50, point(1, g),
        'pg_class'::regclass, 'a fat cat'::tsvector
      FROM generate_series(1, 3000) g;";

/// What is done to the target, in which row, and what it must be called.
const PLANTED: [(&str, i32, Class); 20] = [
    ("DELETE FROM zoo WHERE id = 1", 1, Class::Missing),
    ("INSERT INTO zoo (id, t) VALUES (5000, 'extra')", 5000, Class::Extra),
    ("UPDATE zoo SET t = 'texu 101' WHERE id = 101", 101, Class::Changed),
    ("UPDATE zoo SET n = n::numeric(20,1) WHERE id = 102", 102, Class::Precision),
    ("UPDATE zoo SET t = '' WHERE id = 103", 103, Class::NullDefault),
    ("UPDATE zoo SET t = t || ' ' WHERE id = 104", 104, Class::TrailingSpace),
    ("UPDATE zoo SET tz = tz + interval '2 h' WHERE id = 105", 105, Class::TimeZone),
    ("UPDATE zoo SET ts = date_trunc('second', ts) WHERE id = 107", 107, Class::Precision),
    ("UPDATE zoo SET vc = upper(vc) WHERE id = 108", 108, Class::Case),
    ("UPDATE zoo SET f = f + 3e-15 WHERE id = 109", 109, Class::Precision),
    ("UPDATE zoo SET j = jsonb_build_object('K', 110) WHERE id = 110", 110, Class::Case),
    ("UPDATE zoo SET b = set_byte(b, 15, 7) WHERE id = 111", 111, Class::Changed),
    ("UPDATE zoo SET m = 'sad' WHERE id = 112", 112, Class::Changed),
    ("UPDATE zoo SET a[2] = 'z' WHERE id = 113", 113, Class::Changed),
    ("UPDATE zoo SET p = 12.3 WHERE id = 114", 114, Class::Changed),
    ("UPDATE zoo SET js = '{\"a\": 1}' WHERE id = 115", 115, Class::Changed),
    ("UPDATE zoo SET t = left(t, 4) WHERE id = 116", 116, Class::Truncation),
    ("UPDATE zoo SET t = 'Ã©' WHERE id = 117", 117, Class::Encoding),
    ("UPDATE zoo SET a = '[0:2]={x,y118,NULL}' WHERE id = 118", 118, Class::Changed),
    ("UPDATE zoo SET co = ROW(NULL, NULL), x = NULL WHERE id = 119", 119, Class::Changed),
];
const ONLY_ON_SOURCE: &str = "UPDATE zoo SET t = NULL WHERE id = 103; UPDATE zoo SET t = 'é' WHERE id = 117;
    UPDATE zoo SET co = NULL, x = NULL WHERE id = 119";

async fn plant(pair: &Pair) {
    pair.source.execute(ONLY_ON_SOURCE).await;
    for (statement, _, _) in PLANTED {
        pair.target.execute(statement).await;
    }
}

fn found(report: &Report) -> BTreeSet<(String, Class)> {
    report.divergences.iter().map(|d| (d.key.as_ref().unwrap().to_string(), d.difference.class)).collect()
}

fn expected() -> BTreeSet<(String, Class)> {
    PLANTED.into_iter().map(|(_, id, class)| (format!("({id})"), class)).collect()
}

async fn zoo(source: Options, target: Options) -> Pair {
    let clusters = Pair::start(source, target).await;
    // Other numbers of user types, and another collation would do no harm either.
    clusters.1.execute("CREATE TYPE earlier AS ENUM ('x'); CREATE TABLE earlier_too ()").await;
    clusters.0.execute(ZOO).await;
    clusters.1.execute(ZOO).await;
    Pair::of(clusters, &["zoo"]).await
}

#[tokio::test]
async fn every_planted_difference_is_found_named_and_mended() {
    let pair = zoo(Options::default(), Options::default()).await;
    let small = Request { range_rows_max: 700, ..Request::default() };
    let report = pair.run(small.clone()).await;
    assert_eq!((report.rows, report.divergences.len(), report.hot), (3000, 0, 0), "{:?}", report.divergences);
    assert_eq!(report.tables[0].counts.unsettled, 0, "equal rows have equal hashes");
    plant(&pair).await;
    let dry = pair.run(Request { repair: Repair::DryRun, ..small.clone() }).await;
    assert_eq!(found(&dry), expected());
    let sampled = pair.run(Request { mode: Mode::Sample, sample_rows: 4000, ..small.clone() }).await;
    assert_eq!(sampled.divergent, 19, "all but the extra row");
    let remedies = dry.divergences.iter().map(|d| (d.key.clone(), d.remedy.clone().unwrap()));
    *pair.parts.repairer.remedies.lock().unwrap() = remedies.collect();
    let mended = pair.run(Request { repair: Repair::Write, ..small.clone() }).await;
    assert!(mended.is_equal(), "{:?}", mended.divergences);
    assert_eq!(mended.tables[0].counts.repaired, 20);
    assert_eq!(pair.run(small).await.divergent, 0);
    let counted = pair.run(Request { mode: Mode::Aggregate, ..Request::default() }).await;
    assert!(
        counted.shows_no_difference()
            && !counted.is_equal()
            && counted.tables[0].counted.as_ref().unwrap().settled
    );
    let stored = pair.target.scalar("SELECT count(*) FROM segue.divergence WHERE repaired").await;
    assert_eq!(stored.as_deref(), Some("20"));
    let ended = pair.target.scalar("SELECT count(*) FROM segue.verification WHERE ended_at IS NULL").await;
    assert_eq!(ended.as_deref(), Some("0"));
}

#[tokio::test]
async fn old_and_new_majors_are_compared_in_a_form_that_both_have() {
    let majors = available_majors();
    for (source, target) in [(12, 18), (13, 14), (18, 14)] {
        if !majors.contains(&source) || !majors.contains(&target) {
            eprintln!("skipped: PostgreSQL {source} or {target} is not installed");
            continue;
        }
        let pair = zoo(Options::major(source), Options::major(target)).await;
        let quiet = pair.run(Request::default()).await;
        assert_eq!((quiet.divergent, quiet.tables[0].counts.unsettled), (0, 0), "{source} to {target}");
        plant(&pair).await;
        assert_eq!(found(&pair.run(Request::default()).await), expected(), "{source} to {target}");
    }
}

fn odd_tables() -> String {
    let columns: Vec<String> = (0..1598).map(|n| format!("c{n} smallint")).collect();
    format!(
        "CREATE EXTENSION citext;
         CREATE TABLE by_text (k text PRIMARY KEY, v int);
         INSERT INTO by_text SELECT (ARRAY['ä', 'A', 'a', 'Z', 'z ', '_', 'ß'])[g % 7 + 1] || g, g FROM generate_series(1, 3000) g;
         CREATE TABLE by_number (k numeric PRIMARY KEY, v int); INSERT INTO by_number SELECT g, g FROM generate_series(1, 1000) g;
         CREATE TABLE by_citext (k citext PRIMARY KEY, v int); INSERT INTO by_citext SELECT 'k' || g, g FROM generate_series(1, 1000) g;
         CREATE TABLE by_char (k char(8), k2 boolean, v int, PRIMARY KEY (k, k2));
         INSERT INTO by_char SELECT 'ab' || g, g % 2 = 0, g FROM generate_series(1, 1000) g;
         CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (500);
         CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (500) TO (5000);
         INSERT INTO parted SELECT g, 'v' || g FROM generate_series(1, 1000) g;
         CREATE TABLE \"odd \"\"name\" (id int PRIMARY KEY, t int, n int, i text, h text, \"k0\" text);
         INSERT INTO \"odd \"\"name\" SELECT g, g, g, 'x', 'y', 'z' FROM generate_series(1, 100) g;
         CREATE TABLE keyless (a int, b text, c char(3), d json); ALTER TABLE keyless REPLICA IDENTITY FULL;
         INSERT INTO keyless SELECT g % 50, 'x', 'y', '{{}}' FROM generate_series(1, 1000) g;
         CREATE TABLE wide (id int PRIMARY KEY, {}); INSERT INTO wide (id, c3) SELECT g, g FROM generate_series(1, 50) g;",
        columns.join(", ")
    )
}

const ODD_PLANTED: &str = "DELETE FROM by_text WHERE k = 'ä7'; INSERT INTO by_text VALUES ('Ä7', 7);
             UPDATE by_number SET k = 500.00 WHERE k = 500;
             UPDATE by_citext SET k = 'K7' WHERE k = 'k7';
             UPDATE by_char SET v = 0 WHERE k = 'ab77';
             UPDATE parted SET v = 'V700' WHERE id = 700; DELETE FROM \"odd \"\"name\" WHERE id = 5;
             DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless WHERE a = 7 LIMIT 1); INSERT INTO keyless VALUES (NULL, '', 'y', '{ }');
             UPDATE wide SET c1597 = 1 WHERE id = 50";

#[tokio::test]
async fn odd_keys_and_shapes_are_compared_by_index_and_by_their_own_equality() {
    let german = Options {
        initdb: vec!["--locale-provider=icu".into(), "--icu-locale=de".into(), "--encoding=UTF8".into()],
        ..Options::default()
    };
    let clusters = Pair::start(Options::default(), german).await;
    let tables = odd_tables();
    clusters.0.execute(&tables).await;
    clusters.1.execute(&tables).await;
    let names = ["by_text", "by_number", "by_citext", "by_char", "parted", "odd \"name", "keyless", "wide"];
    let pair = Pair::of(clusters, &names).await;
    let small = Request { range_rows_max: 300, ..Request::default() };
    let quiet = pair.run(small.clone()).await;
    assert_eq!((quiet.divergent, quiet.hot), (0, 0), "{:?}", quiet.divergences);
    pair.target.execute(ODD_PLANTED).await;
    let dry = pair.run(Request { repair: Repair::DryRun, ..small.clone() }).await;
    let mut seen: Vec<(String, String, Class)> = dry
        .divergences
        .iter()
        .map(|d| {
            (
                d.table.clone(),
                d.key.as_ref().map_or_else(String::new, ToString::to_string),
                d.difference.class,
            )
        })
        .collect();
    seen.sort();
    let expected = [
        ("by_char", "(ab77    , f)", Class::Changed),
        ("by_citext", "(k7)", Class::Case),
        ("by_number", "(500)", Class::Precision),
        ("by_text", "(Ä7)", Class::Extra),
        ("by_text", "(ä7)", Class::Missing),
        ("keyless", "", Class::Missing),
        ("keyless", "", Class::Extra),
        ("odd", "(5)", Class::Missing),
        ("parted", "(700)", Class::Case),
        ("wide", "(50)", Class::Changed),
    ];
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    for (table, key, class) in expected {
        let met = seen.iter().any(|(t, k, c)| t.contains(table) && k == key && *c == class);
        assert!(met, "{table} {key} {class} in {seen:?}");
    }
    let remedies = dry.divergences.iter().map(|d| (d.key.clone(), d.remedy.clone().unwrap()));
    *pair.parts.repairer.remedies.lock().unwrap() = remedies.filter(|(key, _)| key.is_some()).collect();
    for d in dry.divergences.iter().filter(|d| d.key.is_none()) {
        pair.target.execute(d.remedy.as_ref().unwrap()).await;
    }
    let mended = pair.run(Request { repair: Repair::Write, ..small.clone() }).await;
    assert!(mended.is_equal(), "{:?}", mended.divergences);
    assert_eq!(pair.run(small).await.divergent, 0);
}

/// A server sends what is in its files as it is, also where an earlier release, or a cast like this one, let in what it should
/// not have.
#[tokio::test]
async fn a_value_that_is_no_text_is_said_to_be_incomparable() {
    let clusters = Pair::start(Options::default(), Options::default()).await;
    for side in [&clusters.0, &clusters.1] {
        side.execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE CAST (bytea AS text) WITHOUT FUNCTION",
        )
        .await;
    }
    clusters.0.execute(r"INSERT INTO t VALUES (1, '\xff'::bytea::text)").await;
    clusters.1.execute("INSERT INTO t VALUES (1, 'x')").await;
    let pair = Pair::of(clusters, &["t"]).await;
    let (report, _watch) = watch::channel(Report::default());
    let verified = Verifier::new(pair.parts.clone()).run(&pair.tables, &Request::default(), &report).await;
    let fault = verified.unwrap_err();
    assert_eq!(fault.code, "SEGUE-VERIFY-TEXT");
    assert!(fault.what.contains("cannot be compared"), "{fault}");
}

#[tokio::test]
async fn a_version_is_never_the_same_after_a_write() {
    let clusters = Pair::start(Options::default(), Options::default()).await;
    for cluster in [&clusters.0, &clusters.1] {
        cluster.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").await;
    }
    let pair = Pair::of(clusters, &["t"]).await;
    let items = [Item::Key(KeyText::from_texts(["1"])), Item::Key(KeyText::from_texts(["2"]))];
    let mut versions = BTreeSet::new();
    for write in [
        "UPDATE t SET v = 'b'",
        "UPDATE t SET v = 'a'",
        "DELETE FROM t; INSERT INTO t VALUES (1, 'a')",
        "VACUUM FULL t",
    ] {
        let read = pair.parts.owner.read(&pair.tables[0], &items).await.unwrap();
        assert_eq!((read[0].rows, read[1].rows, read[1].version.as_str()), (1, 0, ""));
        assert!(versions.insert(read[0].version.clone()), "before {write}");
        let full = pair.parts.owner.rows(&pair.tables[0], &items).await.unwrap();
        assert_eq!(full[0].as_ref().map(|f| &f.version), Some(&read[0].version));
        pair.source.execute(write).await;
    }
}

#[tokio::test]
async fn what_was_cut_off_goes_on_only_where_its_ranges_still_say_something() {
    let clusters = Pair::start(Options::default(), Options::default()).await;
    for cluster in [&clusters.0, &clusters.1] {
        cluster.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    }
    let pair = Pair::of(clusters, &["t"]).await;
    let endpoint = Endpoint::parse(&pair.target.url("postgres")).unwrap();
    let begun = async |direction| {
        let store = PgStore::new(endpoint.clone(), "m".into(), direction);
        let request = Request { resume: true, ..Request::default() };
        store.begin(&request, &[pair.tables[0].id]).await.unwrap().id.0
    };
    assert_eq!(begun(Direction::Forward).await, 1);
    assert_eq!(begun(Direction::Forward).await, 1, "the same one goes on");
    // Its ranges were cut along the keys of the side that owned the writes then.
    assert_eq!(begun(Direction::Reverse).await, 2);
    for (seq, kind) in ["stray", "born"].into_iter().enumerate() {
        let record = format!(
            "INSERT INTO segue.journal VALUES ('m', {}, 1, clock_timestamp(), 'a', '{kind}', '{{}}')",
            seq + 1
        );
        pair.target.execute(&record).await;
        assert_eq!(begun(Direction::Forward).await, 3 + seq as i64, "after {kind}");
    }
}

#[tokio::test]
async fn a_row_that_is_there_twice_is_a_difference_though_both_are_equal_to_the_owners() {
    let clusters = Pair::start(Options::default(), Options::default()).await;
    let tables = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 100) g";
    clusters.0.execute(tables).await;
    clusters.1.execute(tables).await;
    let pair = Pair::of(clusters, &["t"]).await;
    let twice = "ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (7, 'v7'), (8, 'other'), (200, 'x'), (200, 'x')";
    pair.target.execute(twice).await;
    let dry = pair.run(Request { repair: Repair::DryRun, ..Request::default() }).await;
    let of = |d: &Divergence| {
        (d.key.as_ref().unwrap().to_string(), d.difference.class, d.owner_rows, d.other_rows)
    };
    let found: BTreeSet<_> = dry.divergences.iter().map(of).collect();
    let expected = [("(7)", 1), ("(8)", 1), ("(200)", 0)];
    assert_eq!(found, expected.map(|(key, rows)| (key.to_owned(), Class::Extra, rows, 2)).into());
    let remedies = dry.divergences.iter().map(|d| (d.key.clone(), d.remedy.clone().unwrap()));
    *pair.parts.repairer.remedies.lock().unwrap() = remedies.collect();
    let mended = pair.run(Request { repair: Repair::Write, ..Request::default() }).await;
    assert!(mended.is_equal(), "{:?}", mended.divergences);
    let count = pair.target.scalar("SELECT count(*) || ' ' || count(DISTINCT id) FROM t").await;
    assert_eq!(count.as_deref(), Some("100 100"));
}

#[tokio::test]
async fn columns_that_do_not_travel_are_named_as_not_compared() {
    let clusters = Pair::start(Options::default(), Options::default()).await;
    let table = |factor: u32| {
        format!(
            "CREATE TABLE t (id int PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * {factor}) STORED);
             CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO t SELECT g, g FROM generate_series(1, 9) g;"
        )
    };
    clusters.0.execute(&table(2)).await;
    clusters.1.execute(&format!("{} ALTER TABLE t ADD note text", table(3))).await;
    let pair = Pair::of(clusters, &["t", "plain"]).await;
    let report = pair.run(Request::default()).await;
    assert!(report.is_equal(), "{report:?}");
    let named = report.tables.iter().map(|t| (t.table.as_str(), t.columns_not_compared.join(" ")));
    let named: Vec<_> = named.collect();
    assert_eq!(named, [("public.t", "note twice".to_owned()), ("public.plain", String::new())]);
}

#[tokio::test]
async fn what_was_found_equal_is_open_no_more_and_what_is_found_later_is() {
    let cluster = Cluster::start(Options::default()).await;
    let endpoint = Endpoint::parse(&cluster.url("postgres")).unwrap();
    let control = Control::connect(&endpoint, "m").await.unwrap();
    // As an earlier build has left it.
    let earlier = "COMMENT ON TABLE segue.format IS NULL; ALTER TABLE segue.divergence DROP COLUMN equal_at";
    cluster.execute(earlier).await;
    schema::ensure(&mut endpoint.connect("test").await.unwrap()).await.unwrap();
    let store = PgStore::new(endpoint, "m".into(), Direction::Forward);
    let open = async || control.standing(0, 0).await.unwrap().open;
    let differs = |key: &str| Divergence {
        table_id: TableId(1),
        table: "public.t".into(),
        key: Some(KeyText::from_texts([key.to_owned()])),
        difference: Difference { class: Class::Changed, columns: vec![] },
        owner_row: None,
        other_row: None,
        owner_rows: 1,
        other_rows: 1,
        owner_hash: 1,
        other_hash: 2,
        owner_position: Position(0),
        other_position: Position(0),
        remedy: None,
        repaired: false,
        refused: None,
    };
    let earlier = store.diverged(&[differs("1"), differs("2")]).await.unwrap();
    let later = store.diverged(&[differs("1")]).await.unwrap();
    assert_eq!(open().await, 2, "one row was found twice");
    store.found_equal(&earlier[..1]).await.unwrap();
    assert_eq!(open().await, 2, "it was found to differ again since");
    store.found_equal(&later).await.unwrap();
    assert_eq!(open().await, 1, "and equal");
    let adopt = "INSERT INTO segue.verification (migration, mode, tables) VALUES ('m', 'digest', '{1}');
        UPDATE segue.divergence SET verification = 1 WHERE no = 2";
    cluster.execute(adopt).await;
    store.found_equal(&earlier).await.unwrap();
    assert_eq!(open().await, 1, "another verification has to say so of what one has found");
}
