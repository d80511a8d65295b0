//! The way back beside a hand-over: partitions that it lacks, slots that are lost, and deaths in between.

use super::{dies_switching, following, json, refuses, row, takes};
use crate::support::{self, PATIENCE, Pair, orders};
use segue_testkit::Cluster;
use segue_testkit::kill::{Process, kill_at, was_killed};
use std::time::{Duration, Instant};

/// Has a partition come to both sides once the way back is there, with rows.
async fn comes_late(pair: &Pair) {
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let late = "CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (1000) TO (2000)";
    pair.target.execute(late).await;
    pair.source.execute(late).await;
    pair.source.execute("INSERT INTO public.p SELECT i, 'late' FROM generate_series(1000, 1499) i").await;
}

/// The writes move to the target, in as many tries as it takes, and the late partition with them, there and back.
async fn late_partition_moves(pair: &Pair, run: &Process) {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = tokio::select! {
            answer = orders::ask(&pair.target, "switch", orders::for_real()) => answer,
            ended = run.wait(2 * PATIENCE) => panic!("{ended:?}: {}", run.lines().join("\n")),
        };
        if answer["outcome"] == "switched" || answer["outcome"] == "already" {
            break;
        }
        assert!(Instant::now() < until, "{answer:#}\n{}", run.lines().join("\n"));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(pair.target.scalar("SELECT count(*) FROM public.p").await.as_deref(), Some("1000"));
    let client = pair.source.connect("postgres").await;
    let refused = client.batch_execute("INSERT INTO public.p VALUES (1999, 'lost')").await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("25006"));
    // The way back has it, too.
    pair.target.execute("INSERT INTO public.p VALUES (1998, 'there')").await;
    let there = "SELECT count(*) FROM public.p WHERE id = 1998";
    support::slow::until("the way back brings it", async || {
        assert_eq!(run.status(), None, "{}", run.lines().join("\n"));
        pair.source.scalar(there).await.as_deref() == Some("1")
    })
    .await;
}

/// A partition that is attached while the migration follows is fenced and followed before writes are handed over.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_came_late_is_handed_over_too() {
    let (pair, run) = following().await;
    comes_late(&pair).await;
    late_partition_moves(&pair, &run).await;
}

/// Killed when the way back that lacked the partition is gone, and the next one not there yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_was_to_be_made_anew_is_made_by_the_next_process() {
    let (pair, run) = following().await;
    comes_late(&pair).await;
    pair.stop(&run).await;
    dies_switching(&pair, "outdated.removed").await;
    late_partition_moves(&pair, &pair.run()).await;
}

/// Drops the slots of a server, as soon as the process that read from them is seen to be gone.
async fn loses_its_slot(server: &Cluster) {
    let until = Instant::now() + PATIENCE;
    while server.scalar("SELECT bool_or(active) FROM pg_replication_slots").await.as_deref() == Some("t") {
        assert!(Instant::now() < until, "the slot is still in use");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
}

/// After the point of no return nobody but the new owner can take the writes: it does, with or without a way back. But a way
/// back that was made anew would miss what it took first: there is none, now and after a restart, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn the_new_owner_opens_although_the_way_back_is_lost_just_then() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    drop(run);
    let order = dies_switching(&pair, "switch.flip.after").await;
    refuses(&pair.source, &pair.target).await;
    refuses(&pair.target, &pair.source).await;
    loses_its_slot(&pair.target).await;
    let run = pair.run();
    pair.reaches(&run, "switched").await;
    takes(&pair.target, "taken").await;
    refuses(&pair.source, &pair.target).await;
    assert!(orders::answer_now(&pair.target, order).await.is_some());
    assert!(pair.segue(&["journal"], 0).contains("way-back-lost"));
    no_way_back(&pair).await;
    pair.stop(&run).await;
    let run = pair.run();
    // The stage is the one of before.
    support::slow::until("the next driver drives", async || {
        let held = pair.target.scalar("SELECT released_at IS NULL FROM segue.lease").await;
        held.as_deref() == Some("t")
    })
    .await;
    pair.reaches(&run, "switched").await;
    no_way_back(&pair).await;
    takes(&pair.target, "taken again").await;
    refuses(&pair.source, &pair.target).await;
    // What is gone already keeps nobody from giving it up.
    let proof = pair.segue(&["complete", "--dry-run"], 0);
    assert!(proof.contains("the source as a copy: it is none"), "{proof}");
}

/// Killed after that point while what is left of the lost way back is removed: nothing was written on the target yet, so the
/// next process makes another before it opens the target, and what is written there arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_was_lost_just_before_the_new_owner_opens_is_made_first() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    drop(run);
    let nobody_takes = async || {
        refuses(&pair.source, &pair.target).await;
        refuses(&pair.target, &pair.source).await;
    };
    dies_switching(&pair, "switch.flip.after").await;
    nobody_takes().await;
    loses_its_slot(&pair.target).await;
    let mut dying = pair.command(&["run"]);
    kill_at(&mut dying, "lost.removed", 1);
    let dying = Process::start(dying);
    assert!(was_killed(dying.wait(PATIENCE).await.expect("it dies")), "{}", dying.lines().join("\n"));
    nobody_takes().await;
    let run = pair.run();
    pair.reaches(&run, "switched").await;
    takes(&pair.target, "taken").await;
    row(&pair.source, "taken").await;
    let reversed = json(&pair.segue(&["reverse", "--json"], 0));
    assert_eq!(reversed["owner"], "source", "{reversed:#}");
    pair.assert_equal(&["public"]).await;
}

/// Partitions come and go on the new owner every night. The way back cannot follow that: it stands still and is said to, over a
/// restart too, while all else goes on; undone, it goes on where it stood, and writes go back.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_stands_still_at_a_partition_of_the_new_owner_and_goes_on_when_it_is_gone() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    let moved = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(moved["outcome"], "switched", "{moved:#}");
    pair.target
        .execute("CREATE TABLE public.tonight PARTITION OF public.p FOR VALUES FROM (5000) TO (6000)")
        .await;
    takes(&pair.target, "meanwhile").await;
    let is = async |wanted: &str| {
        support::slow::until(&format!("the way back is {wanted}"), async || {
            json(&pair.segue(&["status", "--json"], 0))["way_back"]["is"] == wanted
        })
        .await;
    };
    is("lost").await;
    assert_eq!(run.status(), None, "{}", run.lines().join("\n"));
    pair.stop(&run).await;
    let run = pair.run();
    run.wait_for("the way back stands still", PATIENCE).await.unwrap();
    is("lost").await;
    let status = json(&pair.segue(&["status", "--json"], 0));
    let why = status["way_back"]["why"].as_str().unwrap_or_default();
    assert!(why.contains("public.tonight"), "{status:#}");
    assert!(why.contains("; next: undo the change on the target"), "{status:#}");
    let refused = json(&pair.segue(&["reverse", "--json"], 1));
    assert_eq!(refused["code"], "SEGUE-DDL-DRIFT", "{refused:#}");
    // Nobody is sent in circles: what helps is said, and not what refuses it.
    let next = refused["next_step"].as_str().unwrap();
    assert!(next.contains("`segue complete`") && !next.contains("--new-stream"), "{refused:#}");
    is("lost").await;
    let compared = json(&pair.segue(&["verify", "--json"], 1));
    assert_eq!(compared["code"], "SEGUE-STANDS-STILL", "{compared:#}");
    assert!(compared["fault"].as_str().unwrap().contains("public.tonight"), "{compared:#}");
    let proof = pair.segue(&["complete", "--dry-run"], 0);
    assert!(proof.contains("the source as a copy: it is none"), "{proof}");
    assert_eq!(run.status(), None, "{}", run.lines().join("\n"));
    pair.target.execute("DROP TABLE public.tonight").await;
    is("armed").await;
    row(&pair.source, "meanwhile").await;
    let journal = pair.segue(&["journal"], 0);
    assert!(journal.contains("way-back-stopped") && journal.contains("way-back-resumed"), "{journal}");
    let reversed = json(&pair.segue(&["reverse", "--json"], 0));
    assert_eq!(reversed["owner"], "source", "{reversed:#}");
    pair.assert_equal(&["public"]).await;
}

/// The writes cannot be moved back to a source that does not have all of them, and nobody is told otherwise.
async fn no_way_back(pair: &Pair) {
    let status = json(&pair.segue(&["status", "--json"], 0));
    assert_eq!(
        (&status["owner"], &status["way_back"]["is"]),
        (&"target".into(), &"lost".into()),
        "{status:#}"
    );
    let refused = json(&pair.segue(&["reverse", "--json"], 1));
    assert_eq!(refused["code"], "SEGUE-WAY-BACK-LOST", "{refused:#}");
    let slots = pair.target.scalar("SELECT count(*) FROM pg_replication_slots").await;
    assert_eq!(slots.as_deref(), Some("0"), "it was made anew");
}

/// The slot on the source is lost while the target owns the writes. Nothing that was written depends on it: a start goes on,
/// says so, and writes go back.
#[tokio::test(flavor = "multi_thread")]
async fn writes_go_back_although_the_stream_to_the_target_is_lost() {
    let (pair, run) = following().await;
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    drop(run);
    // The old side is not closed for good yet.
    let order = dies_switching(&pair, "switch.opened").await;
    loses_its_slot(&pair.source).await;

    let run = pair.run();
    pair.reaches(&run, "switched").await;
    assert!(orders::answer_now(&pair.target, order).await.is_some());
    run.wait_for("the stream to the target is lost, nothing else is", PATIENCE).await.unwrap();
    takes(&pair.target, "taken").await;
    row(&pair.source, "taken").await;
    refuses(&pair.source, &pair.target).await;
    let status = json(&pair.segue(&["status", "--json"], 0));
    assert_eq!(status["owner"], "target", "{status:#}");
    assert_eq!(status["way_back"]["is"], "lost", "{status:#}");
    let said = run.lines().join("\n");
    assert!(said.contains("`segue reverse`") && !said.contains("--drop-target-tables"), "{said}");
    let closed = "SELECT state FROM segue.owner";
    let until = Instant::now() + PATIENCE;
    while pair.source.scalar(closed).await.as_deref() != Some("follower") {
        assert!(Instant::now() < until, "the source is not closed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // There are two ways out: to stay, and to go back.
    let proof = pair.segue(&["complete", "--dry-run"], 0);
    assert!(
        proof.contains("writes past the source's fence, since the stream to the target is lost"),
        "{proof}"
    );
    let reversed = json(&pair.segue(&["reverse", "--json"], 0));
    assert_eq!(
        (&reversed["outcome"], &reversed["owner"]),
        (&"switched".into(), &"source".into()),
        "{reversed:#}"
    );
    row(&pair.source, "taken").await;
    takes(&pair.source, "back").await;
    refuses(&pair.target, &pair.source).await;
    // From here on a new stream is needed, which has to be asked for.
    let ended = run.wait(PATIENCE).await.expect("it ends");
    let said = run.lines().join("\n");
    assert_eq!(ended.code(), Some(1), "{said}");
    assert!(said.contains("SEGUE-SLOT-LOST") && said.contains("--new-stream"), "{said}");
    assert_eq!(pair.source.scalar("SELECT state FROM segue.owner").await.as_deref(), Some("owner"));
    assert_eq!(pair.target.scalar("SELECT state FROM segue.owner").await.as_deref(), Some("follower"));
    pair.source.execute("DELETE FROM public.t WHERE v = 'taken'").await;
    let (_run, _) = pair.renewed().await;
    pair.caught_up().await;
    pair.assert_equal(&["public"]).await;
}
