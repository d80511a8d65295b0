//! The ends of ranges, circles, and rows that were put ahead of their sequence.

use crate::world::*;
use segue_postgres::sequences::Stand;
use tokio_postgres::error::SqlState;

#[tokio::test]
async fn near_its_end_a_sequence_keeps_most_of_what_is_left() {
    let ddl = "CREATE TABLE small (id smallserial PRIMARY KEY)";
    let mut world = World::new(ddl, ddl).await;
    run(&world.source, "SELECT setval('public.small_id_seq', 32700)").await;
    let carried = world.carry(&["small"]).await;
    assert_eq!((carried[0].after.last_value, carried[0].margin), (32_706, 6));
    run(&world.source, "SELECT setval('public.small_id_seq', 32766)").await;
    let carried = world.carry(&["small"]).await;
    assert_eq!((carried[0].after.last_value, carried[0].margin), (32_766, 0));
    assert_eq!(next(&world.target, "public.small_id_seq").await, 32_767);
    assert_eq!(
        spent(&world.target, "public.small_id_seq").await,
        SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED
    );
}

#[tokio::test]
async fn a_sequence_with_nothing_left_is_named() {
    let ddl =
        "CREATE TABLE small (id smallserial PRIMARY KEY); CREATE SEQUENCE down INCREMENT BY -1 MINVALUE -5;
        CREATE TABLE downward (id bigint PRIMARY KEY DEFAULT nextval('down'));
        CREATE TABLE narrow (id int PRIMARY KEY); CREATE SEQUENCE wide OWNED BY narrow.id;
        ALTER TABLE narrow ALTER id SET DEFAULT nextval('wide')";
    let mut world = World::new(ddl, ddl).await;
    // One is left; it is not lost.
    run(&world.source, "SELECT setval('public.small_id_seq', 32767, false), setval('public.down', -5)").await;
    // What its column holds is what counts.
    run(&world.source, "SELECT setval('public.wide', 2147483647)").await;
    let sequences = world.pair(&["small", "downward", "narrow"]).await;
    assert_eq!(sequences.unready().len(), 2, "{:?}", sequences.unready());
    says(sequences.unready(), &["public.down", "has given its last value on the source"]);
    says(sequences.unready(), &["public.wide", "has given its last value on the source"]);
    let carried = world.carry_paired(&sequences, segue_postgres::birth::Direction::Forward).await;
    assert_eq!(carried.len(), 1);
    assert_eq!(next(&world.target, "public.small_id_seq").await, 32_767);
}

#[tokio::test]
async fn a_sequence_that_is_spent_after_the_look_is_spent_on_the_new_side_too() {
    let ddl = "CREATE TABLE small (id smallserial PRIMARY KEY)";
    let mut world = World::new(ddl, ddl).await;
    let sequences = world.pair(&["small"]).await;
    run(&world.source, "SELECT setval('public.small_id_seq', 32767)").await;
    world.carry_paired(&sequences, segue_postgres::birth::Direction::Forward).await;
    assert_eq!(
        spent(&world.target, "public.small_id_seq").await,
        SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED
    );
}

#[tokio::test]
async fn a_circle_is_followed_past_its_end_and_back() {
    let ddl = "CREATE SEQUENCE ring MINVALUE 1 MAXVALUE 100 CYCLE;
        CREATE TABLE t (id bigint PRIMARY KEY, no int DEFAULT nextval('ring'));
        CREATE SEQUENCE gnir INCREMENT BY -2 MINVALUE 1 MAXVALUE 100 START 100 CYCLE;
        CREATE TABLE u (id bigint PRIMARY KEY, no int DEFAULT nextval('gnir'))";
    let mut world = World::new(ddl, ddl).await;
    run(&world.source, "SELECT setval('public.ring', 100), setval('public.gnir', 4)").await;
    // The target's own stand is no reason: what it gave last is what the source gave long ago.
    run(&world.target, "SELECT setval('public.ring', 70)").await;
    let carried = world.carry(&["t", "u"]).await;
    assert_eq!((carried[0].after.last_value, carried[0].margin), (10, 10));
    assert_eq!(next(&world.target, "public.ring").await, 11);
    // 4, 2, then 100, 98, 96, 94: what the sequence itself would have done.
    assert_eq!(carried[1].margin, 5);
    for _ in 0..5 {
        next(&world.source, "public.gnir").await;
    }
    assert_eq!(last(&world.source, "public.gnir").await, carried[1].after.last_value);
    run(&world.source, "SELECT setval('public.ring', 5)").await;
    let sequences = world.pair(&["t", "u"]).await;
    world.carry_paired(&sequences, segue_postgres::birth::Direction::Forward).await;
    let once = (last(&world.target, "public.ring").await, last(&world.target, "public.gnir").await);
    world.carry_paired(&sequences, segue_postgres::birth::Direction::Forward).await;
    assert_eq!((last(&world.target, "public.ring").await, last(&world.target, "public.gnir").await), once);
    assert_eq!(once.0, 15);
}

#[tokio::test]
async fn a_margin_does_not_end_among_rows_that_were_put_there_by_hand() {
    let ddl = "CREATE TABLE t (id bigserial PRIMARY KEY, v text); CREATE TABLE u (id bigserial PRIMARY KEY, v text)";
    let mut world = World::new(ddl, ddl).await;
    run(
        &world.source,
        "INSERT INTO public.t (v) SELECT 'x' FROM generate_series(1, 10);
         INSERT INTO public.t SELECT n, 'by hand' FROM generate_series(1011, 1050) n;
         INSERT INTO public.u (v) SELECT 'x' FROM generate_series(1, 10); INSERT INTO public.u VALUES (1000000, 'x')",
    )
    .await;
    let sequences = world.pair(&["t", "u"]).await;
    let carried = world.carry_paired(&sequences, segue_postgres::birth::Direction::Forward).await;
    assert_eq!(carried[0].after, Stand { last_value: 10, is_called: true }, "as it would have gone on there");
    assert_eq!(carried[1].after.last_value, 1010, "they are far away");
    run(&world.source, "SELECT setval('public.t_id_seq', 1050)").await;
    let carried = world.carry_paired(&sequences, segue_postgres::birth::Direction::Forward).await;
    assert_eq!(carried[0].after.last_value, 2050, "they are behind");
}

#[tokio::test]
async fn a_sequence_that_was_never_used_gives_its_first_values_to_the_old_side_only() {
    let ddl =
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY (START WITH 7 INCREMENT BY 10) PRIMARY KEY)";
    let mut world = World::new(ddl, ddl).await;
    let carried = world.carry(&["t"]).await;
    assert_eq!(carried[0].old, Stand { last_value: 7, is_called: false });
    assert_eq!(next(&world.target, "public.t_id_seq").await, 10_007);
}

#[tokio::test]
async fn the_whole_range_can_be_walked_without_overflow() {
    let ddl = "CREATE SEQUENCE up MINVALUE -9223372036854775808 START -9223372036854775808;
        CREATE TABLE t (id bigint PRIMARY KEY DEFAULT nextval('up'));
        CREATE SEQUENCE leap INCREMENT BY 9223372036854775807 MINVALUE -9223372036854775808 START 0;
        CREATE TABLE u (id bigint PRIMARY KEY DEFAULT nextval('leap'))";
    let mut world = World::new(ddl, ddl).await;
    run(&world.target, "SELECT setval('public.up', 9223372036854775807)").await;
    next(&world.source, "public.leap").await;
    let carried = world.carry(&["t", "u"]).await;
    assert_eq!(carried[0].after.last_value, i64::MAX, "never moved back");
    assert_eq!((carried[1].after.last_value, carried[1].margin), (0, 0));
    assert_eq!(next(&world.target, "public.leap").await, i64::MAX);
}
