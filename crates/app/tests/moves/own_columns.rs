//! What only the target has of a row, while its key changes, it is repaired, and a new stream is laid over it.

use crate::gate::{applied, create, play, unnoticed};
use crate::support::Pair;

const DDL: &str = "CREATE TABLE public.t (id bigint PRIMARY KEY, v text, n int DEFAULT 0); \
    CREATE TABLE public.parted (id int, place text, v text, PRIMARY KEY (id, place)) PARTITION BY LIST (place); \
    CREATE TABLE public.parted_a PARTITION OF public.parted FOR VALUES IN ('a'); \
    CREATE TABLE public.parted_b PARTITION OF public.parted FOR VALUES IN ('b')";
const FILL: &str = "INSERT INTO public.t SELECT id, 'row ' || id FROM generate_series(1, 500) id; \
    INSERT INTO public.parted SELECT id, 'a', 'row ' || id FROM generate_series(1, 10) id";
const OWN: &str = "ALTER TABLE public.t ADD mark text DEFAULT 'new', ADD no int GENERATED ALWAYS AS IDENTITY; \
    ALTER TABLE public.parted ADD mark text DEFAULT 'new'";

/// Both sides have the same rows, and each row of the target has the mark that it was given.
async fn marks_are_kept(pair: &Pair) {
    let rows =
        "SELECT count(*) || ' ' || md5(string_agg(concat_ws(',', id, v, n), ' ' ORDER BY id)) FROM public.t";
    let (source, target) = (pair.source.scalar(rows).await, pair.target.scalar(rows).await);
    assert_eq!(source, target);
    let lost = "SELECT coalesce(string_agg(concat_ws(',', id, v, mark, no), ' '), 'none') FROM public.t
        WHERE mark IS DISTINCT FROM concat_ws(' ', no, 'of', v)";
    assert_eq!(pair.target.scalar(lost).await.as_deref(), Some("none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_target_has_of_a_row_stays_with_it() {
    let pair = Pair::start(&["public.t", "public.parted"]).await;
    create(&pair, DDL, FILL).await;
    pair.target.execute(OWN).await;
    let planned = pair.segue(&["plan"], 0).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(planned.contains("public.t has columns on the target only (mark, no)"), "{planned}");
    assert!(planned.contains("moves to another partition"), "{planned}");
    let run = pair.run();
    pair.reaches(&run, "following").await;
    assert_eq!(pair.plant("UPDATE public.t SET mark = concat_ws(' ', no, 'of', v)").await, 500);

    // Keys change one by one, and many in one batch, to free keys and in circles.
    play(&pair, &["UPDATE t SET id = -id WHERE id BETWEEN 101 AND 110".to_owned()]).await;
    applied(&pair, &run).await;
    let mut schedule: Vec<String> =
        (1..60).map(|id| format!("UPDATE t SET id = id + 1000, n = n + 1 WHERE id = {id}")).collect();
    schedule.push("UPDATE t SET id = id + 10000 WHERE id BETWEEN 120 AND 180".to_owned());
    unnoticed(&pair, &run, &schedule).await;
    applied(&pair, &run).await;
    marks_are_kept(&pair).await;
    let swap = |a: i64, b: i64| {
        format!(
            "BEGIN; UPDATE t SET id = 0 WHERE id = {a}; UPDATE t SET id = {a}, n = 7 WHERE id = {b}; \
             UPDATE t SET id = {b} WHERE id = 0; COMMIT"
        )
    };
    unnoticed(&pair, &run, &[swap(200, 201), swap(201, 202), swap(202, 203)]).await;
    applied(&pair, &run).await;
    marks_are_kept(&pair).await;

    // The owner's row is written over what the target has of it, and not over the rest.
    assert_eq!(pair.plant("UPDATE public.t SET v = 'spoilt', n = NULL WHERE id IN (300, 301)").await, 2);
    pair.segue(&["verify", "--repair"], 0);
    marks_are_kept(&pair).await;

    // A new stream finds rows that have changed.
    pair.stop(&run).await;
    let slot = "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots WHERE slot_name = 'segue_test_fwd'";
    assert_eq!(pair.source.scalar(slot).await.as_deref(), Some("1"));
    play(&pair, &["UPDATE t SET n = n + 1 WHERE id BETWEEN 310 AND 400".to_owned()]).await;
    let (run, _) = pair.renewed().await;
    applied(&pair, &run).await;
    marks_are_kept(&pair).await;
}
