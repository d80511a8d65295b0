//! What cannot be carried is said beforehand, of the side it is on, and what is left alone is said too.

use crate::world::*;
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_postgres::sequences::{MARGIN, Sequences};

#[tokio::test]
async fn what_the_new_side_lacks_is_named() {
    let mut world = World::new(
        "CREATE TABLE none (id serial PRIMARY KEY); CREATE TABLE same (id serial PRIMARY KEY); CREATE TABLE other (id bigserial PRIMARY KEY);
         CREATE SEQUENCE by_text; CREATE TABLE hidden (id bigint PRIMARY KEY DEFAULT nextval('by_text'::text));
         CREATE TABLE owned (id bigserial PRIMARY KEY); ALTER TABLE owned ALTER id DROP DEFAULT;
         CREATE SEQUENCE lonely; CREATE TABLE plain (id bigint PRIMARY KEY)",
        "CREATE TABLE none (id int PRIMARY KEY); CREATE TABLE same (id int PRIMARY KEY DEFAULT 0);
         CREATE TABLE other (id bigint PRIMARY KEY DEFAULT (random() * 1000000)::bigint);
         CREATE SEQUENCE by_text; CREATE TABLE hidden (id bigint PRIMARY KEY DEFAULT nextval('by_text'::text));
         CREATE TABLE owned (id bigint PRIMARY KEY); CREATE TABLE plain (id bigserial PRIMARY KEY)",
    )
    .await;
    let sequences = world.pair(&["none", "same", "other", "hidden", "owned", "plain"]).await;
    assert_eq!(sequences.unready().len(), 3, "{:#?}", sequences.unready());
    says(sequences.unready(), &["public.same_id_seq", "the same for every row"]);
    says(sequences.unready(), &["public.none.id", "public.none_id_seq", "on the target", "has no default"]);
    says(sequences.unready(), &["public.hidden.id on the source", "('by_text'::text)"]);
    assert_eq!(sequences.remarks().len(), 3, "{:#?}", sequences.remarks());
    says(sequences.remarks(), &["public.other_id_seq", "takes no sequence"]);
    says(sequences.remarks(), &["public.owned_id_seq", "none has this name"]);
    says(sequences.remarks(), &["public.lonely", "the target has none of this name"]);
    let carried = world.carry_paired(&sequences, Direction::Forward).await;
    let names: Vec<String> = carried.iter().map(|one| one.to.to_string()).collect();
    assert_eq!(names, ["public.by_text"], "by its name; the target's own is left alone");
}

#[tokio::test]
async fn what_lies_beside_a_columns_sequence_does_not_push_it() {
    // Left over from an earlier default; the column still owns it.
    let on_source = "CREATE TABLE t (id bigserial PRIMARY KEY); SELECT setval('t_id_seq', 1000000);
        CREATE SEQUENCE ids; ALTER TABLE t ALTER id SET DEFAULT nextval('ids')";
    let mut world =
        World::new(on_source, "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)").await;
    let sequences = world.pair(&["t"]).await;
    says(sequences.remarks(), &["public.t_id_seq of public.t.id is not carried"]);
    let [pair] = sequences.pairs() else { panic!("{:?}", sequences.pairs()) };
    assert_eq!((pair.from.name.as_str(), pair.to.name.as_str()), ("ids", "t_id_seq"));
}

#[tokio::test]
async fn sequences_that_count_otherwise_are_named() {
    let make = |options: [&str; 6]| {
        let each = options.iter().enumerate().map(|(n, options)| {
            format!("CREATE SEQUENCE s{n} {options}; CREATE TABLE t{n} (id bigint PRIMARY KEY DEFAULT nextval('s{n}'));")
        });
        each.collect::<String>()
    };
    let on_source = make(["", "", "MAXVALUE 100 CYCLE", "", "START -50 MINVALUE -100", "MAXVALUE 500"]);
    let on_target = make(["INCREMENT BY 2", "INCREMENT BY -1", "MAXVALUE 100", "AS int", "", ""]);
    let mut world = World::new(&on_source, &on_target).await;
    let sequences = world.pair(&["t0", "t1", "t2", "t3", "t4", "t5"]).await;
    let unready = sequences.unready();
    says(unready, &["public.s0 counts by 1 on the source", "public.s0 counts by 2 on the target"]);
    says(unready, &["public.s1 counts by 1 on the source", "counts by -1 on the target"]);
    says(unready, &["public.s2 begins anew at its end on the source", "fails there on the target"]);
    says(unready, &["public.s3 on the target gives values from 1 to 2147483647"]);
    says(unready, &["public.s4 stands at -50 on the source", "on the target gives values from 1"]);
    assert!(!unready.iter().any(|text| text.contains("s5")), "wider is no obstacle: {unready:#?}");
    assert_eq!(sequences.pairs().len(), 1);
}

#[tokio::test]
async fn a_sequence_wider_than_its_column_is_no_obstacle() {
    // As a dump of a server before 10 makes it.
    let on_source = "CREATE SEQUENCE old; CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval('old'));
        ALTER SEQUENCE old OWNED BY t.id; SELECT nextval('old')";
    let mut world = World::new(on_source, "CREATE TABLE t (id serial PRIMARY KEY)").await;
    let carried = world.carry(&["t"]).await;
    assert_eq!((carried[0].to.name.as_str(), carried[0].after.last_value), ("t_id_seq", 1001));
}

#[tokio::test]
async fn rights_that_are_missing_are_named_with_their_grant() {
    let ddl = "CREATE TABLE t (id bigserial PRIMARY KEY)";
    let mut world = World::new(ddl, ddl).await;
    run(&world.source, "CREATE ROLE weak LOGIN PASSWORD 'weak'").await;
    let tables = world.plan(&[("t", "t")], Direction::Forward).await;
    let endpoint = |database: &str| {
        let url = world.source_endpoint_url(database);
        let at = url.find('@').unwrap();
        Endpoint::parse(&format!("postgres://weak:weak{}", &url[at..])).unwrap()
    };
    let old = endpoint("postgres").connect("weak").await.unwrap();
    let new = endpoint("target").connect("weak").await.unwrap();
    let sequences = Sequences::pair(&old, &new, &tables, Direction::Forward).await.unwrap();
    assert_eq!(sequences.unready().len(), 3, "{:#?}", sequences.unready());
    let sequence = r#"ON SEQUENCE "public"."t_id_seq""#;
    says(sequences.unready(), &["read on the source", "GRANT SELECT", sequence]);
    says(sequences.unready(), &["read on the target", "GRANT SELECT", sequence]);
    says(sequences.unready(), &["set on the target", "GRANT UPDATE", sequence]);
    assert_eq!(sequences.pairs(), []);
    // What is asked for is enough.
    run(&world.source, "GRANT SELECT ON SEQUENCE public.t_id_seq TO weak; GRANT SELECT ON public.t TO weak")
        .await;
    run(
        &world.target,
        "GRANT SELECT, UPDATE ON SEQUENCE public.t_id_seq TO weak; GRANT USAGE ON SCHEMA segue TO weak;
         GRANT SELECT ON segue.token TO weak; GRANT SELECT, UPDATE ON segue.owner TO weak",
    )
    .await;
    let sequences = Sequences::pair(&old, &new, &tables, Direction::Forward).await.unwrap();
    assert_eq!(sequences.unready(), [] as [String; 0]);
    assert_eq!(sequences.carry(&old, &new, ("m", TOKEN), MARGIN).await.unwrap().len(), 1);
}
