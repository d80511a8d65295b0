//! What piled up while nobody ran arrives once, wherever whoever reads it is killed.
#![cfg(feature = "killpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use support::fire::{Fire, seed};

/// Some ten megabytes of log, in transactions of a row each, and one of many.
async fn pile_up(fire: &Fire, round: u32) {
    let source = &fire.pair.source;
    let base = round * 100_000;
    let small = format!(
        "DO $$ BEGIN FOR n IN 1 .. 4000 LOOP INSERT INTO shop.noise VALUES ({base} + n, repeat(md5(n::text), 20)); COMMIT; END LOOP; END $$"
    );
    source.execute(&small).await;
    let large = format!(
        "INSERT INTO shop.noise SELECT {base} + n, md5(n::text) FROM generate_series(10001, 60000) n"
    );
    source.execute(&large).await;
    source.execute(&format!("UPDATE shop.noise SET v = 'again' WHERE id % 3 = 0 AND id > {base}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_arrives_once_wherever_its_reader_is_killed() {
    let fire = Fire::start(2_000, seed(), 100).await;
    fire.pair.both("CREATE TABLE shop.noise (id int PRIMARY KEY, v text)").await;
    let run = fire.pair.run();
    fire.pair.reaches(&run, "following").await;
    fire.pair.stop(&run).await;
    for (round, passage) in [1, 2, 3, 2].into_iter().enumerate() {
        pile_up(&fire, round as u32).await;
        fire.dies_at("backlog.relayed", passage).await;
    }
    let run = fire.pair.run();
    fire.settle(&run).await;
}
