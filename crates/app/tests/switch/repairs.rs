//! `segue verify --repair` where the target has a unique column beside the key.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_keep_each_other_out_are_repaired_or_named_and_the_driver_lives_on() {
    let (pair, run) = following().await;
    pair.source.execute("UPDATE public.t SET v = 'mail' || id WHERE id <= 10").await;
    row(&pair.target, "mail10").await;
    pair.target.execute("CREATE UNIQUE INDEX mail ON public.t (v) WHERE v LIKE 'mail%'").await;
    let past = pair.target.connect("postgres").await;
    // Somebody has replaced row 1: its value is taken by one that the owner does not have.
    past.batch_execute(
        "SET session_replication_role = replica; DELETE FROM public.t WHERE id = 1;
         INSERT INTO public.t VALUES (5000, 'mail1');
         UPDATE public.t SET v = 'other' WHERE id = 4; UPDATE public.t SET v = 'mail4' WHERE id = 3",
    )
    .await
    .unwrap();
    let mended = json(&pair.segue(&["verify", "--repair", "--json"], 0));
    assert_eq!((&mended["divergent"], &mended["equal"]), (&4.into(), &true.into()), "{mended:#}");
    // Two rows have each other's values: neither fits while the other one is there.
    past.batch_execute(
        "BEGIN; UPDATE public.t SET v = 'x' WHERE id = 1; UPDATE public.t SET v = 'mail1' WHERE id = 2;
         UPDATE public.t SET v = 'mail2' WHERE id = 1; COMMIT; DELETE FROM public.t WHERE id = 3",
    )
    .await
    .unwrap();
    let left = json(&pair.segue(&["verify", "--repair", "--json"], 4));
    let tables = left["tables"].as_array().unwrap();
    let repaired = tables.iter().filter_map(|table| table["counts"]["repaired"].as_u64()).sum::<u64>();
    assert_eq!((repaired, &left["divergent"]), (1, &3.into()), "{left:#}");
    let refused: Vec<&str> =
        left["divergences"].as_array().unwrap().iter().filter_map(|d| d["refused"].as_str()).collect();
    assert_eq!(refused.len(), 2, "{left:#}");
    assert!(
        refused.iter().all(|why| why.contains("SQLSTATE 23505") && why.contains("delete one")),
        "{left:#}"
    );
    // The stream has gone on, and takes what comes of these rows as before.
    pair.source.execute("UPDATE public.t SET v = 'later' WHERE id = 1").await;
    takes(&pair.source, "newest").await;
    row(&pair.target, "newest").await;
    row(&pair.target, "later").await;
    assert!(!run.lines().join("\n").contains("trying again"), "{}", run.lines().join("\n"));
    pair.segue(&["verify", "--repair"], 0);
}

/// The row that is repaired gets a value that another row has had for a moment, in what the stream has not brought yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_while_it_is_repaired_does_not_get_into_the_streams_way() {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(TABLES).await;
    pair.source.execute("INSERT INTO public.t (v) SELECT 'mail' || n FROM generate_series(1, 100) n").await;
    let (run, stops) = pair.run_stopping("none");
    pair.reaches(&run, "following").await;
    row(&pair.target, "mail100").await;
    pair.target.execute("CREATE UNIQUE INDEX mail ON public.t (v)").await;
    assert_eq!(pair.plant("UPDATE public.t SET v = 'spoilt' WHERE id = 1").await, 1);
    stops.at("repair.begun");
    let verify = Process::start(pair.command(&["verify", "--repair"]));
    run.stopped_at("repair.begun", PATIENCE).await.unwrap();
    // So much between the two that no batch holds both of them.
    let source = pair.source.connect("postgres").await;
    source.batch_execute("SET synchronous_commit = off").await.unwrap();
    for statement in [
        "UPDATE public.t SET v = 'prize' WHERE id = 2",
        "DO $$ BEGIN FOR n IN 1..12000 LOOP UPDATE public.t SET v = 'busy' || n WHERE id = 50; COMMIT; END LOOP; END $$",
        "UPDATE public.t SET v = 'loser' WHERE id = 2",
        "UPDATE public.t SET v = 'prize' WHERE id = 1",
    ] {
        source.batch_execute(statement).await.unwrap();
    }
    run.thaw();
    let ended = verify.wait(PATIENCE).await.unwrap();
    assert_eq!(ended.code(), Some(0), "{}", verify.lines().join("\n"));
    takes(&pair.source, "newest").await;
    row(&pair.target, "newest").await;
    row(&pair.target, "prize").await;
    pair.segue(&["verify"], 0);
    assert!(!run.lines().join("\n").contains("trying again"), "{}", run.lines().join("\n"));
}
