//! Keys whose equal values can be written in different ways.

use crate::gate::{Gate, applied, create, ends_equal, play, small_regions, stream_waits, unnoticed};
use crate::support::Pair;

/// Two tables with the same rows under keys of different kinds.
const DDL: &str = "CREATE EXTENSION citext SCHEMA public; \
    CREATE TABLE public.n (id numeric PRIMARY KEY, note text, big text); ALTER TABLE public.n ALTER big SET STORAGE EXTERNAL; \
    CREATE TABLE public.c (id citext PRIMARY KEY, note text, big text); ALTER TABLE public.c ALTER big SET STORAGE EXTERNAL";
const FILL: &str = "INSERT INTO public.n SELECT id + 0.0, 'note ' || id, repeat(md5(id::text), CASE WHEN id % 1000 < 9 THEN 100 ELSE 1 END) \
      FROM generate_series(1, 60000) id; \
    INSERT INTO public.c SELECT 'key' || lpad(trunc(id)::text, 6, '0'), note, big FROM public.n; ANALYZE public.n; ANALYZE public.c";

/// What is done to one key: `ways` are texts of one and the same key.
fn rewritten(table: &str, ways: [&str; 3]) -> Vec<String> {
    let [a, b, c] = ways;
    let delete = format!("DELETE FROM {table} WHERE id = '{a}'");
    let insert = |key: &str, note: &str| {
        format!("INSERT INTO {table} VALUES ('{key}', '{note}', repeat('{note}', 4000))")
    };
    let update = |from: &str, to: &str| format!("UPDATE {table} SET id = '{to}' WHERE id = '{from}'");
    let note = |key: &str| format!("UPDATE {table} SET note = note || '{key}' WHERE id = '{key}'");
    vec![
        format!("BEGIN; {delete}; {}; COMMIT", insert(b, "x")),
        format!("BEGIN; {}; {delete}; {}; {delete}; {}; COMMIT", note(c), insert(c, "y"), insert(a, "z")),
        // The large value is not carried, the key is another text of the same value.
        update(b, c),
        format!("BEGIN; {}; {}; {}; COMMIT", update(c, b), note(a), update(a, c)),
        format!("BEGIN; {delete}; {}; {}; COMMIT", insert(c, "w"), update(a, b)),
        note(c),
    ]
}

/// `ways` writes key number n in three ways; a row comes from `far` to the place of key number 0.
async fn played(table: &'static str, ways: fn(u32) -> [String; 3], far: &str) {
    let name = format!("public.{table}");
    let pair = Pair::start(&[&name]).await;
    small_regions(&pair, &[&name]);
    create(&pair, DDL, FILL).await;
    let other = if table == "n" { "c" } else { "n" };
    for side in [&pair.source, &pair.target] {
        side.execute(&format!("DROP TABLE public.{other}")).await;
    }
    let schedule = |n: u32| {
        let ways = ways(n);
        rewritten(table, [&ways[0], &ways[1], &ways[2]])
    };
    let gate = Gate::set(&pair, 0).await;
    let run = pair.run();
    gate.reached(&run, 0).await;
    play(&pair, &schedule(1)).await;
    stream_waits(&pair, &run).await;
    gate.open(1).await;
    applied(&pair, &run).await;
    // A row arrives from afar without its large value, and its new key is at once written in another way. Such a table
    // is one region; were it not, the gate would stand between the two places.
    let near = ways(0);
    let mut arrival = vec![format!("UPDATE {table} SET id = '{}' WHERE id = '{far}'", near[0])];
    arrival.extend(schedule(0));
    unnoticed(&pair, &run, &arrival[..2]).await;
    applied(&pair, &run).await;
    unnoticed(&pair, &run, &arrival[2..]).await;
    applied(&pair, &run).await;
    gate.open_wide().await;
    pair.reaches(&run, "following").await;
    play(&pair, &schedule(2)).await;
    unnoticed(&pair, &run, &[schedule(1), schedule(2), schedule(3)].concat()).await;
    ends_equal(&pair, &run, &gate, &["public"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_with_other_scales_are_one_key() {
    played("n", |n| [format!("{n}.0"), format!("{n}.00"), format!("{n}.000")], "59001.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_either_case_are_one_key() {
    played("c", |n| ["key", "KEY", "kEy"].map(|key| format!("{key}00000{n}")), "key059001").await;
}
