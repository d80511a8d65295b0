//! Single hash partitions are emptied, and leave, while the target is not partitioned at all.

use crate::gate::{applied, play, unnoticed};
use crate::support::{PATIENCE, Pair};
use std::time::{Duration, Instant};

const SOURCE: &str = "CREATE TABLE public.t (id bigint PRIMARY KEY, v text) PARTITION BY HASH (id); \
    CREATE TABLE public.t_0 PARTITION OF public.t FOR VALUES WITH (MODULUS 3, REMAINDER 0); \
    CREATE TABLE public.t_1 PARTITION OF public.t FOR VALUES WITH (MODULUS 3, REMAINDER 1); \
    CREATE TABLE public.t_2 PARTITION OF public.t FOR VALUES WITH (MODULUS 3, REMAINDER 2); \
    CREATE TYPE public.kind AS ENUM ('a', 'b', 'c', 'd'); \
    CREATE TABLE public.e (id bigint, v public.kind, PRIMARY KEY (id, v)) PARTITION BY HASH (v); \
    CREATE TABLE public.e_0 PARTITION OF public.e FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
    CREATE TABLE public.e_1 PARTITION OF public.e FOR VALUES WITH (MODULUS 2, REMAINDER 1)";
const TARGET: &str = "CREATE TABLE public.t (id bigint PRIMARY KEY, v text); \
    CREATE TYPE public.other AS ENUM ('x'); CREATE TYPE public.kind AS ENUM ('a', 'b', 'c', 'd'); \
    CREATE TABLE public.e (id bigint, v public.kind, PRIMARY KEY (id, v))";
const FILL: &str = "INSERT INTO public.t SELECT id, 'row ' || id FROM generate_series(1, 1000) id; \
    INSERT INTO public.e SELECT id, (ARRAY['a', 'b', 'c', 'd'])[1 + id % 4]::public.kind FROM generate_series(1, 1000) id";

/// Waits until both sides have the same rows.
async fn both_have(pair: &Pair, table: &str) {
    let rows = format!(
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(concat_ws(',', id, v), ' ' ORDER BY id, v)), '') FROM public.{table}"
    );
    let until = Instant::now() + PATIENCE;
    loop {
        let (source, target) = (pair.source.scalar(&rows).await, pair.target.scalar(&rows).await);
        if source == target {
            return;
        }
        assert!(Instant::now() < until, "{table}: {source:?} on the source, {target:?} on the target");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_partition_is_emptied_where_the_target_has_none() {
    let pair = Pair::start(&["public.t", "public.e"]).await;
    pair.source.execute(SOURCE).await;
    pair.source.execute(FILL).await;
    pair.target.execute(TARGET).await;
    let planned = pair.segue(&["plan"], 0).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(planned.contains("public.e is partitioned on the source by the hash of a key"), "{planned}");
    assert!(!planned.contains("public.t is partitioned on the source by the hash"), "{planned}");
    let run = pair.run();
    pair.reaches(&run, "following").await;
    let insert =
        |from: u32| format!("INSERT INTO t SELECT id, 'new' FROM generate_series({from}, {from} + 99) id");
    play(&pair, &["TRUNCATE t_1".to_owned(), insert(2_000)]).await;
    applied(&pair, &run).await;
    both_have(&pair, "t").await;
    let emptied = format!("BEGIN; {}; TRUNCATE t_0; {}; COMMIT", insert(4_000), insert(5_000));
    unnoticed(&pair, &run, &[insert(3_000), emptied]).await;
    applied(&pair, &run).await;
    both_have(&pair, "t").await;
    // It leaves, and comes back with what was written to it meanwhile.
    let detached = ["ALTER TABLE t DETACH PARTITION t_2", "UPDATE t SET v = v || '!'"];
    play(&pair, &detached.map(str::to_owned)).await;
    both_have(&pair, "t").await;
    let attached = [
        "UPDATE t_2 SET v = v || '?'",
        "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES WITH (MODULUS 3, REMAINDER 2)",
    ];
    play(&pair, &attached.map(str::to_owned)).await;
    both_have(&pair, "t").await;

    // An enum's hash is another one on each server: a new stream compares.
    play(&pair, &["TRUNCATE e_0".to_owned()]).await;
    let said = pair.refused(&run, "SEGUE-HASH-LEAF").await;
    assert!(said.contains("public.e_0 was emptied") && said.contains("segue run --new-stream"), "{said}");
    let (run, _) = pair.renewed().await;
    play(&pair, &["INSERT INTO e VALUES (5000, 'a')".to_owned()]).await;
    applied(&pair, &run).await;
    both_have(&pair, "e").await;
    both_have(&pair, "t").await;
}
