//! Rows that move between partitions, and between regions; partitions that are emptied.

use crate::gate::{Gate, applied, create, ends_equal, play, small_regions, stream_waits, unnoticed};
use crate::support::Pair;

/// Three leaves, one of them a level lower, which know nothing of the regions: those are cut by `id`. The source is asked for
/// the order of places, and the target has the same one: there, too, ranges can be emptied.
const DDL: &str = "CREATE TABLE public.t (id bigint, place text COLLATE \"en-x-icu\", note text, big text, PRIMARY KEY (id, place)) PARTITION BY LIST (place); \
    ALTER TABLE public.t ALTER big SET STORAGE EXTERNAL; \
    CREATE TABLE public.t_a PARTITION OF public.t FOR VALUES IN ('a'); \
    CREATE TABLE public.t_b PARTITION OF public.t FOR VALUES IN ('b', 'B') PARTITION BY RANGE (id); \
    CREATE TABLE public.t_b_all PARTITION OF public.t_b DEFAULT; \
    CREATE TABLE public.t_rest PARTITION OF public.t DEFAULT";
const FILL: &str = "INSERT INTO public.t SELECT id, (ARRAY['a', 'b', 'c'])[1 + id % 3], 'note ' || id, repeat(md5(id::text), CASE WHEN id % 30 < 9 THEN 80 ELSE 1 END) \
    FROM generate_series(1, 200000) id; ANALYZE public.t";

/// A row's number becomes `to`, and its leaf another one if `leaf` says so; with or without a change of its large value.
fn go(from: i64, to: i64, leaf: Option<&str>, big: bool) -> String {
    let mut set = vec![format!("id = {to}"), "note = note || '>'".to_owned()];
    set.extend(leaf.map(|leaf| format!("place = '{leaf}'")));
    if big {
        set.push("big = repeat(big, 2)".to_owned());
    }
    format!("UPDATE t SET {} WHERE id = {from}", set.join(", "))
}

/// Moves from `from` to places just behind `to`, both multiples of 30: within the leaf, to another leaf under the same
/// number, and both at once. `lane` keeps the rows of several calls apart.
fn moves(from: i64, to: i64, lane: i64) -> Vec<String> {
    let from = from + lane * 30;
    let at = |n: i64| to + lane * 30 + n;
    // Every number is taken: it becomes free by deleting its row.
    let free = |n: i64| format!("DELETE FROM t WHERE id = {}", at(n));
    let mut schedule = Vec::new();
    for (n, leaf, big) in [
        (15, None, false),
        (16, Some("a"), false),
        (17, Some("b"), false),
        (18, Some("x"), true),
        (19, None, true),
    ] {
        schedule.push(free(n));
        schedule.push(go(from + n - 15, at(n), leaf, big));
    }
    // From leaf to leaf without another number, and back in one transaction.
    schedule.push(format!(
        "BEGIN; UPDATE t SET place = 'B' WHERE id = {f}; UPDATE t SET place = 'a' WHERE id = {f}; COMMIT",
        f = from + 6
    ));
    schedule.push(format!("UPDATE t SET place = 'c' WHERE id = {}", from + 7));
    // There and back again, by another leaf.
    schedule.push(free(20));
    schedule.push(format!(
        "BEGIN; {}; {}; COMMIT",
        go(from + 8, at(20), Some("B"), false),
        go(at(20), from + 8, Some("c"), false)
    ));
    schedule
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_between_leaves_and_regions_at_every_stage() {
    let pair = Pair::start(&["public.t"]).await;
    small_regions(&pair, &["public.t"]);
    create(&pair, DDL, FILL).await;
    let gate = Gate::set(&pair, 1).await;
    let run = pair.run();
    let (copied, ahead) = (900, 195_000);
    for stage in 1..4_i64 {
        gate.reached(&run, stage).await;
        let lane = stage * 20;
        // At the beginning of the region that is being copied, whose width depends on the machine, in each lane.
        let copying = (gate.upper().await / 30 + 2 - lane) * 30;
        // The four ways between what is copied and what has not begun; nothing has to wait.
        for (n, (from, to)) in
            [(copied, copied + 300), (copied, ahead), (ahead, copied), (ahead, ahead + 300)]
                .into_iter()
                .enumerate()
        {
            let schedule = moves(from, to, lane + n as i64);
            if stage == 1 { play(&pair, &schedule).await } else { unnoticed(&pair, &run, &schedule).await }
        }
        applied(&pair, &run).await;
        // The five ways that touch the region before the gate, another one first each time.
        let mut ways = [
            (copied, copying),
            (copying, copied),
            (copying, copying + 1_500),
            (ahead, copying),
            (copying, ahead),
        ];
        ways.rotate_left(stage as usize);
        for (n, (from, to)) in ways.into_iter().enumerate() {
            unnoticed(&pair, &run, &moves(from, to, lane + 5 + n as i64)).await;
        }
        stream_waits(&pair, &run).await;
        gate.open(stage as u32 + 1).await;
        applied(&pair, &run).await;
    }
    gate.open_wide().await;
    pair.reaches(&run, "following").await;
    play(&pair, &moves(copied, ahead, 90)).await;
    unnoticed(&pair, &run, &[moves(ahead, copied, 91), moves(copied, copied + 300, 92)].concat()).await;
    ends_equal(&pair, &run, &gate, &["public"]).await;
}

/// The source's walsenders do nothing until this is dropped.
struct Held(Vec<String>);

fn signal(name: &str, processes: &[String]) {
    // The shell's own: the program `kill` is not on every machine.
    let kill = format!("kill {name} {}", processes.join(" "));
    let sent = std::process::Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(sent.success(), "kill {name} {processes:?}");
}

fn hold(pair: &Pair) -> Held {
    let walsenders: Vec<String> =
        pair.source.processes("walsender").iter().map(ToString::to_string).collect();
    signal("-STOP", &walsenders);
    Held(walsenders)
}

impl Drop for Held {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

/// Empties `leaf`, with rows of it before, within and after.
fn empty(stage: i64, leaf: &str, place: &str) -> Vec<String> {
    let row = |id: i64| format!("INSERT INTO t VALUES ({id}, '{place}', 'stage {stage}', repeat('s', 3000))");
    vec![
        row(300_000 + stage * 10),
        format!("BEGIN; {}; TRUNCATE {leaf}; {}; COMMIT", row(-stage * 10), row(-stage * 10 - 1)),
        row(-stage * 10 - 2),
        row(300_000 + stage * 10 + 1),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn emptying_a_leaf_empties_that_leaf_whatever_has_been_copied() {
    let pair = Pair::start(&["public.t"]).await;
    small_regions(&pair, &["public.t"]);
    create(&pair, DDL, FILL).await;
    let gate = Gate::set(&pair, 1).await;
    let run = pair.run();
    gate.reached(&run, 1).await;
    // One region is copied, one is being copied, the others have not begun. A row has come out of the leaf's way just
    // before, and one into it, both without their large values, so that they are copied singly and must be spared.
    let mut schedule = vec![
        "UPDATE t SET id = -100000 WHERE id = 180000".to_owned(),
        "UPDATE t SET id = -100001, place = 'b' WHERE id = 180003".to_owned(),
        "UPDATE t SET id = -100002 WHERE id = 180001".to_owned(),
    ];
    schedule.extend(empty(1, "t_a", "a"));
    // The same key again: the copy of that single row shows this one, and the TRUNCATE between must not remove it.
    schedule.push("INSERT INTO t VALUES (-100000, 'a', 'again', repeat('x', 3000))".to_owned());
    schedule.push(
        "UPDATE t SET note = note || '!' WHERE id IN (-100000, -100001, -100002, 5, 6, 7, 190001, 190002)"
            .to_owned(),
    );
    unnoticed(&pair, &run, &schedule).await;
    stream_waits(&pair, &run).await;
    gate.open(2).await;
    applied(&pair, &run).await;
    assert!(gate.single_rows().await > 0, "rows were copied singly");
    // What should have been spared is looked at before the leaf is emptied again: an update that finds no row is a fault.
    let spared = "UPDATE t SET note = note || '?' WHERE id IN (-100000, -100001, -100002)";
    play(&pair, &[spared.to_owned()]).await;
    applied(&pair, &run).await;
    // The stream hears nothing while a leaf is emptied and filled again, and while the next region is copied with that.
    gate.reached(&run, 2).await;
    let upper = gate.upper().await;
    let behind: Vec<i64> = (1..50).map(|n| upper + n * 1_000).collect();
    let walsenders = hold(&pair);
    let mut schedule = empty(2, "t_b", "b");
    let after = [&[10, 199_990], behind.as_slice()].concat();
    schedule.extend(after.iter().map(|id| format!("INSERT INTO t VALUES ({id}, 'B', 'after it')")));
    play(&pair, &schedule).await;
    // The third region was read before; the fourth is read now.
    gate.open(3).await;
    gate.reached(&run, 3).await;
    let third = gate.upper().await;
    gate.open(4).await;
    gate.reached(&run, 4).await;
    let read = third..gate.upper().await;
    assert!(behind.iter().any(|id| read.contains(id)), "a region with the rows that came after it is copied");
    drop(walsenders);
    play(&pair, &["UPDATE t SET note = note || '?' WHERE note = 'after it'".to_owned()]).await;
    // A leaf of the second level, together with one of the first.
    unnoticed(&pair, &run, &empty(3, "t_a, t_b_all", "a")).await;
    stream_waits(&pair, &run).await;
    gate.open_wide().await;
    pair.reaches(&run, "following").await;
    play(&pair, &empty(4, "t_rest", "x")).await;
    unnoticed(
        &pair,
        &run,
        &[empty(5, "t_rest", "y"), empty(6, "t_a", "a"), empty(7, "t_rest", "a")].concat(),
    )
    .await;
    ends_equal(&pair, &run, &gate, &["public"]).await;
    // All leaves, through the root.
    play(&pair, &["TRUNCATE t".to_owned(), "INSERT INTO t VALUES (1, 'a', 'the only row', NULL)".to_owned()])
        .await;
    ends_equal(&pair, &run, &gate, &["public"]).await;
}
