//! Keys whose equal values can be written in different ways.

use crate::gate::{Gate, applied, create, ends_equal, play, small_regions, stream_waits, unnoticed};
use crate::support::Pair;

/// So many rows that the last thousands have not begun when the first regions have, if there are several.
const ROWS: u32 = 110_000;

/// A kind of key whose equal values differ as text.
struct Loose {
    key: &'static str,
    /// The key of row number `n`, as SQL.
    text: &'static str,
    /// Three ways to write the key of a row.
    ways: fn(u32) -> [String; 3],
    /// The key of a row that is copied late.
    far: &'static str,
    /// Two ways to write one more key, as far apart as the order of bytes can put them.
    apart: [&'static str; 2],
}

/// A table `t` on both sides.
async fn table(pair: &Pair, Loose { key, text, apart, .. }: &Loose) {
    let ddl = format!(
        "CREATE EXTENSION citext SCHEMA public; CREATE TABLE t (id {key} PRIMARY KEY, note text, big text); \
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL"
    );
    let fill = format!(
        "INSERT INTO t SELECT {text}, 'note ' || n, repeat(md5(n::text), CASE WHEN n % 1000 < 9 THEN 100 ELSE 1 END) \
         FROM generate_series(1, {ROWS}) n; INSERT INTO t VALUES ('{}', 'apart', ''); ANALYZE t",
        apart[0]
    );
    create(pair, &ddl, &fill).await;
}

/// What is done to one key: `ways` are texts of one and the same key.
fn rewritten(ways: [&str; 3]) -> Vec<String> {
    let [a, b, c] = ways;
    let delete = format!("DELETE FROM t WHERE id = '{a}'");
    let insert =
        |key: &str, note: &str| format!("INSERT INTO t VALUES ('{key}', '{note}', repeat('{note}', 4000))");
    let update = |from: &str, to: &str| format!("UPDATE t SET id = '{to}' WHERE id = '{from}'");
    let note = |key: &str| format!("UPDATE t SET note = note || '{key}' WHERE id = '{key}'");
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

/// Moves and rewrites keys while the copy goes on, and after it.
async fn played(loose: Loose) {
    let pair = Pair::start(&["public.t"]).await;
    small_regions(&pair, &["public.t"]);
    table(&pair, &loose).await;
    let Loose { ways, far, apart, .. } = loose;
    let schedule = |n: u32| {
        let ways = ways(n);
        rewritten([&ways[0], &ways[1], &ways[2]])
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
    let mut arrival = vec![format!("UPDATE t SET id = '{}' WHERE id = '{far}'", near[0])];
    arrival.extend(schedule(0));
    unnoticed(&pair, &run, &arrival[..2]).await;
    applied(&pair, &run).await;
    unnoticed(&pair, &run, &arrival[2..]).await;
    applied(&pair, &run).await;
    // The stream stands at a row that is held on the target, while the last rows are copied: with the new writing of a
    // key whose old one the target still has, if the two were copied apart.
    let target = pair.target.connect("postgres").await;
    let hold = format!("BEGIN; SELECT FROM public.t WHERE id = '{}' FOR UPDATE", ways(3)[0]);
    target.batch_execute(&hold).await.unwrap();
    play(&pair, &schedule(3)).await;
    play(
        &pair,
        &[format!(
            "BEGIN; DELETE FROM t WHERE id = '{}'; INSERT INTO t VALUES ('{}', 'again'); COMMIT",
            apart[0], apart[1]
        )],
    )
    .await;
    gate.open_wide().await;
    gate.passed(&run).await;
    target.batch_execute("ROLLBACK").await.unwrap();
    pair.reaches(&run, "following").await;
    play(&pair, &schedule(2)).await;
    unnoticed(&pair, &run, &[schedule(1), schedule(2), schedule(3)].concat()).await;
    ends_equal(&pair, &run, &gate, &["public"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_with_other_scales_are_one_key() {
    let ways = |n| [format!("{n}.0"), format!("{n}.00"), format!("{n}.000")];
    let (far, apart) = ("109001.0", ["109900.5", "109900.50"]);
    played(Loose { key: "numeric", text: "n + 0.0", ways, far, apart }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_either_case_are_one_key() {
    let ways = |n| ["key", "KEY", "kEy"].map(|key| format!("{key}00000{n}"));
    let (far, apart) = ("key109001", ["ZETA", "zeta"]);
    played(Loose { key: "citext", text: "'key' || lpad(n::text, 6, '0')", ways, far, apart }).await;
}

/// Bytes put every `K` before every `k`; the column's collation puts them by number.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_found_by_the_order_of_their_collation() {
    let pair = Pair::start(&["public.t"]).await;
    small_regions(&pair, &["public.t"]);
    create(
        &pair,
        "CREATE TABLE t (id text COLLATE \"en-x-icu\" PRIMARY KEY, note text)",
        "INSERT INTO t SELECT (ARRAY['k', 'K'])[1 + n % 2] || lpad(n::text, 6, '0'), 'note ' || n FROM generate_series(1, 110000) n; ANALYZE t",
    )
    .await;
    let gate = Gate::set(&pair, 1).await;
    let run = pair.run();
    gate.reached(&run, 1).await;
    // The first rows are copied, the last ones have not begun; nothing waits.
    let changed = "UPDATE t SET note = note || '!' WHERE id IN ('K000001', 'k000002', 'K109999', 'k110000')";
    play(&pair, &[changed.to_owned()]).await;
    applied(&pair, &run).await;
    ends_equal(&pair, &run, &gate, &["public"]).await;
}
