//! What stands in the way of a way back is said by the names that the sides have.

use segue_model::name::QualifiedName;
use segue_model::table::Identity;
use segue_postgres::catalog::{self, Catalog, server};
use segue_testkit::{Cluster, Options};

struct Databases {
    cluster: Cluster,
}

impl Databases {
    async fn start() -> Databases {
        let cluster = Cluster::start(Options::default()).await;
        cluster.execute("CREATE DATABASE target").await;
        Databases { cluster }
    }

    async fn plan(&self, on_source: &str, on_target: &str, pairs: &[(&str, &str)]) -> Catalog {
        let (mut source, mut target) =
            (self.cluster.connect("postgres").await, self.cluster.connect("target").await);
        source.batch_execute(on_source).await.unwrap();
        target.batch_execute(on_target).await.unwrap();
        let name = |name: &str| QualifiedName::parse(name).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(from, to)| (name(from), name(to))).collect();
        let there = catalog::read(&mut source, &mut target, &pairs).await.unwrap();
        assert_eq!(there.refusals, [], "the way there is open");
        catalog::read_reverse(&mut source, &mut target, &pairs).await.unwrap()
    }
}

#[tokio::test]
async fn tables_keep_their_numbers_and_bring_the_targets_keys() {
    let databases = Databases::start().await;
    let plan = databases
        .plan(
            "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY)",
            "CREATE SCHEMA new; CREATE TABLE new.a (v text, id int PRIMARY KEY); \
             CREATE TABLE b (id int PRIMARY KEY) PARTITION BY HASH (id); \
             CREATE TABLE b0 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
             CREATE TABLE b1 PARTITION OF b FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
            &[("public.a", "new.a"), ("public.b", "public.b")],
        )
        .await;
    assert_eq!(plan.refusals, []);
    let a = &plan.tables[0];
    assert_eq!((a.id.0, a.source.to_string(), a.target.to_string()), (0, "new.a".into(), "public.a".into()));
    let Identity::Key(key) = &a.identity else { panic!("a key") };
    assert_eq!(a.columns[key.columns[0]].source, "id");
    let names: Vec<String> = plan.relations.iter().map(|r| r.name.to_string()).collect();
    assert_eq!(names, ["new.a", "public.b0", "public.b1"]);
}

#[tokio::test]
async fn what_stands_in_the_way_is_said_of_the_side_it_is_on() {
    let databases = Databases::start().await;
    let plan = databases
        .plan(
            "CREATE TABLE nokey (id int NOT NULL UNIQUE); ALTER TABLE nokey REPLICA IDENTITY USING INDEX nokey_id_key;
             CREATE TABLE late (id int PRIMARY KEY);
             CREATE TABLE nulls (id int PRIMARY KEY, v text NOT NULL);
             CREATE TABLE more (id int PRIMARY KEY);
             CREATE TABLE wide (id int PRIMARY KEY, v varchar(5));",
            "CREATE TABLE nokey (id int NOT NULL UNIQUE);
             CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
             CREATE TABLE nulls (id int PRIMARY KEY, v text);
             CREATE TABLE more (id int PRIMARY KEY, extra text);
             CREATE TABLE wide (id int PRIMARY KEY, v varchar(9));",
            &[
                ("public.nokey", "public.nokey"),
                ("public.late", "public.late"),
                ("public.nulls", "public.nulls"),
                ("public.more", "public.more"),
                ("public.wide", "public.wide"),
            ],
        )
        .await;
    let said: Vec<(&str, &str, &str)> =
        plan.refusals.iter().map(|f| (f.code, f.what.as_str(), f.next_step.as_str())).collect();
    let expected = [
        ("SEGUE-NO-KEY", "nokey has no primary key", "on the target: ALTER TABLE"),
        ("SEGUE-DEFERRABLE-KEY", "updates would fail on the target", "on the target"),
        ("SEGUE-COLUMN", "NOT NULL on the source only", "set it NOT NULL on the target"),
        ("SEGUE-COLUMN", "has no column \"extra\" on the source", "on the source: ALTER TABLE"),
        ("SEGUE-COLUMN", "in another form on the source", "on the source: ALTER TABLE"),
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (expected, said) in expected.iter().zip(&said) {
        let fits = said.0 == expected.0 && said.1.contains(expected.1) && said.2.contains(expected.2);
        assert!(fits, "{said:#?} is not {expected:#?}");
    }
}

#[tokio::test]
async fn servers_are_asked_for_what_the_other_direction_needs() {
    let source = Cluster::start(Options::default()).await;
    let target = Cluster::start(Options::default().with("wal_level", "replica")).await;
    let (from, to) = (source.connect("postgres").await, target.connect("postgres").await);
    let refusals = server::reverse_refusals(&from, &to).await.unwrap();
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    assert_eq!(refusals[0].code, "SEGUE-WAL-LEVEL");
    assert!(refusals[0].next_step.starts_with("on the target: "), "{}", refusals[0].next_step);
}
