//! A table that is emptied while ranges of it are copied: exactly their rows go on the target, or it is said that they cannot
//! be told.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use segue_engine::ports::{Applier, ApplyError, Checkpoint, Durability};
use segue_model::change::{Action, Change};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::region::{Emptied, Extent};
use segue_model::table::Table;
use segue_postgres::apply::PgApplier;
use segue_postgres::authority::Authority;
use segue_postgres::birth::Direction;
use segue_postgres::catalog;
use segue_postgres::connect::Endpoint;
use segue_testkit::{Cluster, Options};
use tokio_postgres::Client;

/// Two databases, and what writes to the second one.
struct World {
    source: Client,
    target: Client,
    applier: PgApplier,
    at: Position,
    _cluster: Cluster,
}

impl World {
    /// `how` both databases are made.
    async fn start(how: &str) -> World {
        let cluster = Cluster::start(Options::default()).await;
        for database in ["source", "target"] {
            cluster.execute(&format!("CREATE DATABASE {database} TEMPLATE template0 {how}")).await;
        }
        let endpoint = |database: &str| Endpoint::parse(&cluster.url(database)).unwrap();
        let source = endpoint("source").connect("test").await.unwrap();
        let mut target = endpoint("target").connect("test").await.unwrap();
        segue_postgres::schema::ensure(&mut target).await.unwrap();
        target
            .batch_execute(
                "INSERT INTO segue.token VALUES ('m', 3); INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, position, skipped, updated_at) VALUES ('m', 'forward', 's', '1', 1, 5, '0/0', '{}', now())",
            )
            .await
            .unwrap();
        let authority =
            Authority { migration: "m".into(), direction: Direction::Forward, token: 3, incarnation: 5 };
        let applier = PgApplier::open(&endpoint("target"), authority).await.unwrap();
        World { source, target, applier, at: Position(0), _cluster: cluster }
    }

    /// Makes `public.name` with these columns on the source, and those on the target.
    async fn create(&self, name: &str, here: &str, there: &str) {
        for (client, columns) in [(&self.source, here), (&self.target, there)] {
            client.batch_execute(&format!("CREATE TABLE public.{name} ({columns})")).await.unwrap();
        }
    }

    async fn both(&self, sql: &str) {
        for client in [&self.source, &self.target] {
            client.batch_execute(sql).await.unwrap();
        }
    }

    async fn read(&mut self, names: &[String]) -> Vec<Table> {
        let name = |name: &String| QualifiedName::new("public", name.as_str());
        let pairs: Vec<_> = names.iter().map(|n| (name(n), name(n))).collect();
        let read = catalog::read(&mut self.source, &mut self.target, &pairs).await.unwrap();
        assert_eq!(read.refusals, vec![]);
        read.tables
    }

    async fn table(&mut self, name: &str) -> Table {
        self.read(&[name.to_owned()]).await.remove(0)
    }

    /// Whether keys of one column are taken to be ordered alike, for each of these pairs of types.
    async fn alike(&mut self, prefix: &str, types: &[(&str, &str)]) -> Vec<bool> {
        let mut names = Vec::new();
        for (no, &(here, there)) in types.iter().enumerate() {
            let name = format!("{prefix}{no}");
            let column = |sql_type: &str| format!("k {sql_type} PRIMARY KEY");
            self.create(&name, &column(here), &column(there)).await;
            names.push(name);
        }
        self.read(&names).await.iter().map(Table::orders_alike).collect()
    }

    /// Empties `within` on the target; refused, nothing is done there.
    async fn empty(&mut self, table: &Table, within: Vec<Emptied>) -> Result<(), ApplyError> {
        self.applier.begin().await?;
        let action = Action::Truncate { leaf: None, within: Some(within) };
        let change = Change { table: table.id, unit: table.id.into(), action };
        if let Err(error) = self.applier.in_order(table, &[change]).await {
            self.applier.rollback().await?;
            return Err(error);
        }
        let to = Checkpoint { position: Position(self.at.0 + 1), ..Checkpoint::default() };
        self.applier.commit(self.at, &to, Durability::Now).await?;
        self.at = to.position;
        Ok(())
    }

    /// The keys of `table` on the target, by bytes.
    async fn keys(&self, table: &str) -> String {
        let sql =
            format!("SELECT coalesce(string_agg(k, ' ' ORDER BY k COLLATE \"C\"), '') FROM public.{table}");
        self.target.query_one(&sql, &[]).await.unwrap().get(0)
    }
}

fn key<const N: usize>(texts: [&'static str; N]) -> KeyText {
    KeyText::from_texts(texts)
}

fn up_to(upper: KeyText, spared: Vec<KeyText>) -> Vec<Emptied> {
    vec![(Extent::Range { lower: None, upper: Some(upper) }, spared)]
}

fn code(refused: Result<(), ApplyError>) -> &'static str {
    match refused {
        Err(ApplyError::Fault(fault)) => fault.code,
        other => panic!("expected a fault: {other:?}"),
    }
}

#[tokio::test]
async fn text_that_both_sides_order_alike_is_emptied_between_its_bounds() {
    let mut world = World::start("").await;
    for (name, collation, left) in [("bytes", "C", "a c"), ("words", "en-x-icu", "B C a c")] {
        let column = format!("k text COLLATE \"{collation}\" PRIMARY KEY");
        world.create(name, &column, &column).await;
        world
            .both(&format!("INSERT INTO public.{name} VALUES ('a'), ('A'), ('b'), ('B'), ('c'), ('C')"))
            .await;
        let table = world.table(name).await;
        world.empty(&table, up_to(key(["b"]), vec![key(["a"])])).await.unwrap();
        assert_eq!(world.keys(name).await, left, "{collation}");
        // What is left there is what the source has not put before the bound.
        let beyond = format!(
            "SELECT string_agg(k, ' ' ORDER BY k COLLATE \"C\") FROM public.{name} WHERE k > 'b' OR k = 'a'"
        );
        let beyond: String = world.source.query_one(&beyond, &[]).await.unwrap().get(0);
        assert_eq!(beyond, left, "{collation}");
    }
}

#[tokio::test]
async fn a_later_column_that_the_target_may_order_otherwise_is_refused() {
    let mut world = World::start("").await;
    let columns = |collation: &str| format!("n int, k text COLLATE \"{collation}\", PRIMARY KEY (n, k)");
    world.create("other", &columns("C"), &columns("en-x-icu")).await;
    world.create("same", &columns("en-x-icu"), &columns("en-x-icu")).await;
    for name in ["other", "same"] {
        world.both(&format!("INSERT INTO public.{name} VALUES (1, 'a'), (1, 'B'), (1, 'c'), (2, 'd')")).await;
    }
    let (other, same) = (world.table("other").await, world.table("same").await);
    // By bytes 'B' lies before this bound, and behind it by letters.
    let bound = || key(["1", "a"]);
    assert_eq!(code(world.empty(&other, up_to(bound(), vec![])).await), "SEGUE-EMPTIED");
    let above = vec![(Extent::Range { lower: Some(bound()), upper: None }, vec![])];
    assert_eq!(code(world.empty(&other, above).await), "SEGUE-EMPTIED");
    assert_eq!(world.keys("other").await, "B a c d");
    world.empty(&same, up_to(bound(), vec![])).await.unwrap();
    assert_eq!(world.keys("same").await, "B c d");
    // Without bounds no order is asked for.
    world.empty(&other, vec![(Extent::Key(key(["1", "c"])), vec![])]).await.unwrap();
    assert_eq!(world.keys("other").await, "B a d");
    world.empty(&other, vec![(Extent::ALL, vec![bound()])]).await.unwrap();
    assert_eq!(world.keys("other").await, "a");
}

#[tokio::test]
async fn both_catalogs_say_which_keys_are_ordered_alike() {
    let mut world = World::start("").await;
    world
        .both(
            "CREATE TYPE public.mood AS ENUM ('a', 'b'); CREATE DOMAIN public.word AS text COLLATE \"C\";
             CREATE COLLATION public.swedish (provider = icu, locale = 'sv');
             CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        )
        .await;
    world.source.batch_execute("CREATE TYPE public.size AS ENUM ('s', 'l')").await.unwrap();
    world.target.batch_execute("CREATE TYPE public.size AS ENUM ('l', 's')").await.unwrap();
    let (bytes, swedish) = ("text COLLATE \"C\"", "varchar(9) COLLATE public.swedish");
    let cases = [
        ("bigint", "bigint", true),
        ("numeric(8, 2)", "numeric(8, 2)", true),
        ("jsonb", "jsonb", false),
        (bytes, bytes, true),
        (bytes, "text COLLATE \"POSIX\"", true),
        (bytes, "text COLLATE ucs_basic", true),
        (bytes, "text COLLATE public.swedish", false),
        (swedish, swedish, true),
        (swedish, "varchar(9) COLLATE \"en-x-icu\"", false),
        ("text COLLATE public.loose", "text COLLATE public.loose", false),
        ("name", "name", true),
        ("public.word", "public.word", true),
        ("public.mood", "public.mood", true),
        ("public.size", "public.size", false),
        // By libc's C.UTF-8, of which nobody knows the version.
        ("text", "text", false),
        (bytes, "text", false),
    ];
    let types: Vec<_> = cases.iter().map(|(here, there, _)| (*here, *there)).collect();
    let expected: Vec<bool> = cases.iter().map(|(_, _, alike)| *alike).collect();
    assert_eq!(world.alike("k", &types).await, expected, "{cases:#?}");
    // Indexes that another version of the library has made.
    let stale = "UPDATE pg_collation SET collversion = '1' WHERE collname = 'swedish'";
    world.target.batch_execute(stale).await.unwrap();
    assert_eq!(world.alike("stale", &[(swedish, swedish)]).await, [false]);
}

#[tokio::test]
async fn the_default_collation_is_the_databases() {
    let mut world = World::start("ENCODING 'UTF8' LOCALE 'C'").await;
    let text = [("text", "text"), ("text", "text COLLATE \"C\""), ("text", "text COLLATE \"de-x-icu\"")];
    assert_eq!(world.alike("k", &text).await, [true, true, false]);

    let mut world = World::start("ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de'").await;
    assert_eq!(world.alike("k", &text).await, [true, false, true]);
    let stale = "UPDATE pg_database SET datcollversion = '1' WHERE datname = current_database()";
    world.target.batch_execute(stale).await.unwrap();
    assert_eq!(world.alike("stale", &text[..1]).await, [false]);
}
