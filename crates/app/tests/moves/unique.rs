//! A secondary unique index on the target, while values move between rows.

use crate::gate::{Gate, applied, create, ends_equal, play, small_regions, stream_waits};
use crate::support::Pair;

const DDL: &str = "CREATE TABLE public.t (id int PRIMARY KEY, place int UNIQUE, note text)";
const FILL: &str =
    "INSERT INTO public.t SELECT id, id, 'row ' || id FROM generate_series(1, 60000) id; ANALYZE public.t";

/// Each row takes the place of the one before it, by way of no place at all.
fn shift(ids: &[i64]) -> String {
    let mut sql = String::from("BEGIN; CREATE TEMP TABLE was ON COMMIT DROP AS SELECT id, place FROM t;");
    let all: Vec<String> = ids.iter().map(ToString::to_string).collect();
    sql.push_str(&format!("UPDATE t SET place = NULL WHERE id IN ({});", all.join(",")));
    for (n, id) in ids.iter().enumerate() {
        let from = ids[(n + 1) % ids.len()];
        sql.push_str(&format!("UPDATE t SET place = (SELECT place FROM was WHERE id = {from}), note = note || '>' WHERE id = {id};"));
    }
    sql + "COMMIT"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_value_may_move_between_rows_at_any_time() {
    let pair = Pair::start(&["public.t"]).await;
    small_regions(&pair, &["public.t"]);
    create(&pair, DDL, FILL).await;
    let gate = Gate::set(&pair, 0).await;
    let run = pair.run();
    gate.reached(&run, 0).await;
    // While the first region is being copied.
    play(&pair, &[shift(&[10, 59_990, 30_000]), shift(&[11, 12, 13])]).await;
    stream_waits(&pair, &run).await;
    gate.open(1).await;
    applied(&pair, &run).await;
    // A row that the application's changes must pass through is held on the target: the stream falls behind …
    let target = pair.target.connect("postgres").await;
    target.batch_execute("BEGIN; SELECT FROM t WHERE id = 20 FOR UPDATE").await.unwrap();
    play(
        &pair,
        &[
            shift(&[20, 59_980]),
            shift(&[21, 59_981, 40_000]),
            "DELETE FROM t WHERE id = 22; INSERT INTO t VALUES (70000, 22, 'heir')".into(),
        ],
    )
    .await;
    // … and whatever has not been copied yet arrives with values that the target still has in other rows.
    gate.open_wide().await;
    gate.passed(&run).await;
    target.batch_execute("ROLLBACK").await.unwrap();
    pair.reaches(&run, "following").await;
    // In one batch, set-wise writing must not stumble over the order of the rows.
    run.freeze();
    play(
        &pair,
        &[
            shift(&[30, 31]),
            shift(&[31, 59_970, 32]),
            shift(&[59_970, 31]),
            "UPDATE t SET place = 70000 WHERE id = 40; UPDATE t SET place = 40 WHERE id = 41".into(),
        ],
    )
    .await;
    run.thaw();
    ends_equal(&pair, &run, &gate, &["public"]).await;
}
