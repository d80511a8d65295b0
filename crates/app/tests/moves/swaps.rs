//! Keys swapped in one transaction with large values that the updates do not carry.

use crate::gate::{Gate, applied, create, ends_equal, play, small_regions, stream_waits, unnoticed};
use crate::support::Pair;

const DDL: &str = "CREATE TABLE public.t (id bigint PRIMARY KEY, note text, big text, more text); \
                   ALTER TABLE public.t ALTER big SET STORAGE EXTERNAL, ALTER more SET STORAGE EXTERNAL";

/// In every five hundred rows the first twenty have values that are stored out of line, each one its own.
const FILL: &str = "INSERT INTO public.t SELECT id, 'note ' || id, large(id, 'a'), large(id, 'b') FROM generate_series(1, 100000) id; \
                    ANALYZE public.t";
const LARGE: &str = "CREATE FUNCTION large(id bigint, salt text) RETURNS text LANGUAGE sql AS $$ \
    SELECT CASE WHEN id % 500 < 20 THEN (SELECT string_agg(md5(salt || id || '/' || n), '') FROM generate_series(1, 90) n) \
                ELSE salt || id END $$";

/// Where a row's key lies while the gate is at region one: copied, being copied, not begun.
struct Zones {
    copied: i64,
    copying: i64,
    ahead: i64,
}

impl Zones {
    async fn of(gate: &Gate) -> Zones {
        let upper = gate.upper().await;
        println!("the first region ends with {upper}");
        Zones { copied: 500, copying: (upper / 500 + 1) * 500, ahead: 99_500 }
    }
}

/// The three rows at these keys take each other's place, by way of `aside`. With `touched`, the middle row's small
/// value changes on the way, and one of its large values: the other one is still not carried.
fn rotate(a: i64, b: i64, c: i64, aside: i64, touched: bool) -> String {
    let touch = |id: i64| match touched {
        true => format!("UPDATE t SET note = note || '!', more = 'short now' WHERE id = {id};"),
        false => String::new(),
    };
    let go = |from: i64, to: i64| format!("UPDATE t SET id = {to} WHERE id = {from};");
    let steps = [
        go(a, aside),
        touch(b),
        go(b, a),
        touch(a),
        go(c, b),
        go(aside, c),
        format!("UPDATE t SET note = note || '.' WHERE id = {b};"),
    ];
    format!("BEGIN; {} COMMIT", steps.concat())
}

/// Rotations between all pairs of zones that `zones` lists; `first` makes each use rows of its own.
fn rotations(zones: &[i64], first: i64) -> Vec<String> {
    let mut schedule = Vec::new();
    let mut row = first;
    for &a in zones {
        for &b in zones {
            let c = zones[(row as usize) % zones.len()];
            for (aside, touched) in [(-row, false), (1_000_000 + row, true)] {
                schedule.push(rotate(a + row * 500, b + row * 500 + 1, c + row * 500 + 2, aside, touched));
                // Back again, and once more: chains within one batch.
                schedule.push(rotate(c + row * 500 + 2, a + row * 500, b + row * 500 + 1, aside, false));
                schedule.push(rotate(a + row * 500, b + row * 500 + 1, c + row * 500 + 2, aside, touched));
            }
            row += 1;
        }
    }
    schedule
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_keys_keep_the_large_values_of_their_rows() {
    let pair = Pair::start(&["public.t"]).await;
    small_regions(&pair, &["public.t"]);
    create(&pair, DDL, &format!("{LARGE}; {FILL}")).await;
    let gate = Gate::set(&pair, 1).await;
    let run = pair.run();
    gate.reached(&run, 1).await;
    let zones = Zones::of(&gate).await;

    // Between what is copied and what has not begun: large values come from a side whose events are dropped.
    let schedule = rotations(&[zones.copied, zones.ahead - 10_000], 0);
    play(&pair, &schedule[..8]).await;
    applied(&pair, &run).await;
    assert!(gate.single_rows().await > 0, "rows arrive without their large values and are copied singly");
    // The snapshots of single rows then show more than the transaction that asked for them.
    unnoticed(&pair, &run, &schedule[8..]).await;
    applied(&pair, &run).await;

    // All three at once. The stream must wait for the region before the gate.
    unnoticed(&pair, &run, &rotations(&[zones.copying, zones.copied, zones.ahead - 20_000], 6)).await;
    stream_waits(&pair, &run).await;
    gate.open(2).await;
    applied(&pair, &run).await;
    gate.open_wide().await;
    pair.reaches(&run, "following").await;

    // Afterwards every event applies: one by one, and many in one batch.
    let after = rotations(&[zones.copied, zones.copying, zones.ahead - 30_000], 16);
    play(&pair, &after[..20]).await;
    applied(&pair, &run).await;
    unnoticed(&pair, &run, &after[20..]).await;
    applied(&pair, &run).await;
    // Batches that are collapsed: what an update does not carry has been carried before, or stays as it is. In one of
    // them keys change as well.
    let grown = |id: i64| {
        format!(
            "BEGIN; UPDATE t SET big = large({id} * 500, 'c') WHERE id = {id}; \
             UPDATE t SET note = note || '+' WHERE id = {id}; COMMIT"
        )
    };
    let moved = |id: i64| {
        format!(
            "BEGIN; UPDATE t SET big = large({id} * 500, 'd'), more = large({id} * 500, 'e') WHERE id = {id}; \
             UPDATE t SET id = -{id} WHERE id = {id}; COMMIT"
        )
    };
    unnoticed(&pair, &run, &(90_000..90_020).map(grown).collect::<Vec<_>>()).await;
    applied(&pair, &run).await;
    unnoticed(&pair, &run, &(90_500..90_520).map(moved).collect::<Vec<_>>()).await;
    ends_equal(&pair, &run, &gate, &["public"]).await;
}
