//! Giving the way back up, with the real binary between two real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_engine::verify::ports::{Comparable, Digest};
use segue_model::name::QualifiedName;
use segue_model::region::Extent;
use segue_postgres::catalog;
use segue_postgres::connect::Endpoint;
use segue_postgres::verify::PgSides;
use segue_testkit::cluster::StandbyOptions;
use segue_testkit::kill::Process;
use segue_testkit::{Cluster, Options, compare};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{PATIENCE, Pair, orders, slow};

const TABLES: &str = "CREATE TABLE public.t (id bigserial PRIMARY KEY, v text);
    CREATE TABLE public.p (id bigint NOT NULL, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (100);
    CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES FROM (100) TO (1000)";

/// Everything of Segue outside of its schema that a server has.
const LEFT: &str = "SELECT coalesce(string_agg(what, ', ' ORDER BY what), '') FROM (
      SELECT 'slot ' || slot_name AS what FROM pg_replication_slots
      UNION ALL SELECT 'publication ' || pubname FROM pg_publication
      UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
      UNION ALL SELECT 'trigger on ' || tgrelid::regclass FROM pg_trigger WHERE tgname LIKE 'segue%'
      UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
      UNION ALL SELECT 'autovacuum of ' || oid::regclass FROM pg_class
                 WHERE array_to_string(reloptions, ' ') LIKE '%autovacuum_enabled%') w";

/// A migration whose writes are on the target.
async fn switched_between(source: Options) -> (Pair, Process) {
    let pair = Pair::with(source, Options::default(), &["public.t", "public.p"]).await;
    pair.both(TABLES).await;
    pair.source.execute("INSERT INTO public.t (v) SELECT 'seed' FROM generate_series(1, 1000)").await;
    pair.source.execute("INSERT INTO public.p SELECT n, 'part' FROM generate_series(1, 500) n").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    let answer = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(answer["outcome"], "switched", "{answer:#}\n{}", run.lines().join("\n"));
    pair.target.execute("INSERT INTO public.t (v) VALUES ('on the target')").await;
    (pair, run)
}

async fn switched() -> (Pair, Process) {
    switched_between(Options::default()).await
}

fn order() -> Value {
    json!({})
}

async fn complete(pair: &Pair, arguments: Value) -> Value {
    orders::ask(&pair.target, "complete", arguments).await
}

/// The reasons of a refusal, one text.
fn reasons(answer: &Value) -> String {
    assert_eq!(answer["outcome"], "refused", "{answer:#}");
    let blockers = answer["blockers"].as_array().unwrap().iter();
    blockers.map(|b| format!("{}: {}\n", b["gate"].as_str().unwrap(), b["why"].as_str().unwrap())).collect()
}

async fn ended_well(run: &Process) {
    let status = run.wait(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}\n{}", run.lines().join("\n"));
    assert!(
        run.lines().iter().any(|l| l.contains("the migration is completed")),
        "{}",
        run.lines().join("\n")
    );
}

/// What a client is told that writes to the source.
async fn refused_write(source: &Cluster) -> String {
    let client = source.connect("postgres").await;
    let error = client.batch_execute("INSERT INTO public.t (v) VALUES ('lost')").await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "25006");
    format!("{} {}", error.message(), error.hint().unwrap_or_default())
}

/// Does something again and again until it is told to end.
fn again_and_again(client: tokio_postgres::Client, sql: &'static str) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            // A refused write is what is to be seen.
            let _ = client.batch_execute(sql).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_nothing_left_on_the_target_and_a_closed_copy_on_the_source() {
    let (pair, run) = switched().await;
    let before = (pair.source.scalar(LEFT).await, pair.target.scalar(LEFT).await);
    let dry: Value = serde_json::from_str(&pair.segue(&["complete", "--dry-run", "--json"], 0)).unwrap();
    assert_eq!(dry["outcome"], "rehearsed", "{dry:#}");
    assert_eq!((pair.source.scalar(LEFT).await, pair.target.scalar(LEFT).await), before);
    let text = pair.segue(&["complete"], 0);
    assert!(text.contains("completed") && text.contains("kept source: the fence"), "{text}");
    assert!(text.contains("reads of the source's tables: none since"), "{text}");
    ended_well(&run).await;
    assert_eq!(pair.target.scalar(LEFT).await.as_deref(), Some(""));
    let fences = ["p", "p1", "p2", "t"].map(|table| format!("trigger on {table}")).join(", ");
    assert_eq!(pair.source.scalar(LEFT).await, Some(fences));
    let told = refused_write(&pair.source).await;
    assert!(told.contains("is completed") && told.contains(&pair.target.port().to_string()), "{told}");
    pair.target.execute("INSERT INTO public.t (v) VALUES ('for good'); TRUNCATE public.p").await;
    assert_eq!(pair.source.scalar("SELECT count(*) FROM public.t").await.as_deref(), Some("1001"));

    // What was done stays known, and is done once.
    ended_well(&pair.run()).await;
    assert!(pair.segue(&["status"], 0).contains("completed"));
    assert!(pair.segue(&["journal"], 0).contains("completed"));
    pair.segue(&["wait", "completed", "--timeout", "5s"], 0);
    let again: Value = serde_json::from_str(&pair.segue(&["complete", "--json"], 0)).unwrap();
    assert_eq!(
        (again["outcome"].as_str(), &again["removed"]),
        (Some("already"), &dry["removed"]),
        "{again:#}"
    );
    pair.segue(&["reverse"], 1);
    pair.segue(&["cancel", "--drop-target-tables"], 1);
    pair.segue(&["cancel"], 0);
    assert_eq!(pair.source.scalar(LEFT).await.as_deref(), Some(""));
    let schema = "SELECT to_regnamespace('segue') IS NULL";
    assert_eq!(pair.source.scalar(schema).await.as_deref(), Some("t"));
    assert_eq!(pair.target.scalar(schema).await.as_deref(), Some("t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_refused_before_the_writes_have_moved_and_while_nothing_arrives() {
    let pair = Pair::start(&["public.t", "public.p"]).await;
    pair.both(TABLES).await;
    pair.source.execute("INSERT INTO public.t (v) VALUES ('seed')").await;
    let run = pair.run();
    pair.reaches(&run, "following").await;
    assert!(reasons(&complete(&pair, order()).await).contains("owner: "));
    pair.segue(&["verify"], 0);
    let answer = orders::ask(&pair.target, "switch", orders::for_real()).await;
    assert_eq!(answer["outcome"], "switched", "{answer:#}");
    pair.segue(&["pause"], 0);
    assert!(reasons(&complete(&pair, order()).await).contains("way-back: "));
    pair.segue(&["resume"], 0);
    assert_eq!(complete(&pair, order()).await["outcome"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_refused_while_clients_use_the_source_and_names_them() {
    let (pair, run) = switched().await;
    let writer = pair.source.connect("postgres").await;
    writer.batch_execute("SET application_name = 'old writer'").await.unwrap();
    let writing = again_and_again(writer, "INSERT INTO public.t (v) VALUES ('lost')");
    let answer = complete(&pair, order()).await;
    let why = reasons(&answer);
    assert!(why.contains("refused-writes: ") && why.contains("were refused by its fence"), "{why}");
    assert!(why.contains("old writer") && why.contains("public.t"), "{why}");
    writing.abort();

    let reader = pair.source.connect("postgres").await;
    reader.batch_execute("SET application_name = 'old report'").await.unwrap();
    let reading = again_and_again(reader, "SELECT count(*) FROM public.p");
    let why = reasons(&complete(&pair, order()).await);
    assert!(why.contains("sessions: ") && why.contains("old report"), "{why}");
    reading.abort();

    let holder = pair.source.connect("postgres").await;
    holder
        .batch_execute("SET application_name = 'old batch'; BEGIN; SELECT 1 FROM public.t; SELECT 2")
        .await
        .unwrap();
    let why = reasons(&complete(&pair, order()).await);
    assert!(why.contains("old batch") && why.contains("holds a lock on public.t"), "{why}");
    drop(holder);

    // Somebody who is there for something else is in nobody's way.
    let bystander = pair.source.connect("postgres").await;
    bystander.batch_execute("SET application_name = 'exporter'; SELECT 1").await.unwrap();
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = complete(&pair, order()).await;
        if answer["outcome"] == "completed" || Instant::now() > until {
            break answer;
        }
    };
    assert_eq!(answer["outcome"], "completed", "{answer:#}");
    let proofs = answer["proofs"].to_string();
    assert!(proofs.contains("exporter") && proofs.contains("; before that, "), "{answer:#}");
    ended_well(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_names_the_replicas_on_which_nobody_has_looked() {
    let (pair, _run) = switched().await;
    let _replica = Cluster::standby_of(&pair.source, StandbyOptions::named("reports")).await;
    let answer = complete(&pair, json!({ "rehearse": true })).await;
    assert_eq!(answer["outcome"], "rehearsed", "{answer:#}");
    assert!(
        answer["proofs"].to_string().contains("on the source's replica reports: ask there"),
        "{answer:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_is_waited_for_and_outlives_the_driver() {
    let (pair, run) = switched().await;
    let why = reasons(&complete(&pair, json!({ "window_ms": 3_600_000 })).await);
    assert!(why.contains("window: the source is watched only since"), "{why}");
    run.kill9();
    refused_write(&pair.source).await;
    let run = pair.run();
    let why = reasons(&complete(&pair, json!({ "window_ms": 3_600_000 })).await);
    assert!(why.contains("refused-writes: "), "seen although no driver watched: {why}");
    assert_eq!(complete(&pair, order()).await["outcome"], "completed", "{}", run.lines().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_it_has_begun_is_read_anew_when_that_is_not_known() {
    let (pair, run) = switched().await;
    // Its session ends with the record: nobody can say whether that was written.
    pair.target
        .execute(
            "CREATE FUNCTION public.cut() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END';
             CREATE TRIGGER cut BEFORE INSERT ON segue.journal FOR EACH ROW WHEN (NEW.kind = 'completing')
                 EXECUTE FUNCTION public.cut()",
        )
        .await;
    let mark = run.mark();
    let answer = complete(&pair, order()).await;
    assert_eq!(answer["code"], "SEGUE-DRIVER-DIED", "the attempt has ended: {answer:#}");
    run.wait_for_since(mark, "trying again", PATIENCE).await.unwrap();
    pair.target.execute("DROP TRIGGER cut ON segue.journal").await;
    assert_eq!(complete(&pair, order()).await["outcome"], "completed", "{}", run.lines().join("\n"));
    ended_well(&run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ordered_while_it_is_judged_goes_first() {
    let (pair, _run) = switched().await;
    let asked = orders::order(&pair.target, "complete", &order()).await;
    // It watches the source for longer than that.
    let contained = orders::ask(&pair.target, "contain", Value::Null).await;
    assert_eq!(contained["owner"], "target", "{contained:#}");
    assert!(reasons(&orders::answer(&pair.target, asked).await).contains("way-back: "));
    pair.segue(&["resume"], 0);
    let asked = orders::order(&pair.target, "complete", &order()).await;
    let reversed = orders::ask(&pair.target, "reverse", orders::for_real()).await;
    assert_eq!(reversed["outcome"], "switched", "{reversed:#}");
    assert!(reasons(&orders::answer(&pair.target, asked).await).contains("owner: "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_past_the_fence_is_seen_also_by_the_next_driver() {
    let (pair, run) = switched().await;
    let insistent = pair.source.connect("postgres").await;
    let planted = "SET session_replication_role = replica;
        INSERT INTO public.t (id, v) SELECT n, 'past' FROM generate_series(50001, 70000) n";
    insistent.batch_execute(planted).await.unwrap();
    let window = json!({ "window_ms": 60_000 });
    let why = reasons(&complete(&pair, window.clone()).await);
    assert!(why.contains("strays: ") && why.contains("written past its fence"), "{why}");
    let told = "SELECT count(*) FROM segue.journal WHERE kind = 'stray'";
    slow::until("it is in the journal", async || pair.target.scalar(told).await.as_deref() == Some("1"))
        .await;
    // As if the driver had died before it could look.
    run.kill9();
    pair.target.execute("DELETE FROM segue.traffic").await;
    let _run = pair.run();
    let why = reasons(&complete(&pair, window).await);
    assert!(why.contains("strays: ") && why.contains("written past its fence"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn source_tables_are_dropped_when_wanted_and_nothing_that_depends_on_them() {
    let (pair, run) = switched().await;
    pair.source
        .execute(
            "CREATE TABLE public.other (id bigint REFERENCES public.t); CREATE VIEW public.seen AS SELECT v FROM public.p",
        )
        .await;
    let drop_source = json!({ "drop_source": true });
    let why = reasons(&complete(&pair, json!({ "drop_source": true, "rehearse": true })).await);
    assert!(why.contains("the foreign key") && why.contains("of public.other refers to public.t"), "{why}");
    assert!(why.contains("the view public.seen reads public.p"), "{why}");
    assert_eq!(reasons(&complete(&pair, drop_source.clone()).await), why);
    pair.source.execute("DROP TABLE public.other; DROP VIEW public.seen").await;
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = complete(&pair, drop_source.clone()).await;
        if answer["outcome"] == "completed" || Instant::now() > until {
            break answer;
        }
    };
    assert_eq!(answer["dropped"], json!(["public.t", "public.p"]), "{answer:#}");
    ended_well(&run).await;
    assert_eq!(pair.source.scalar(LEFT).await.as_deref(), Some(""));
    let gone = "SELECT concat(to_regclass('public.t'), to_regclass('public.p1'), to_regnamespace('segue'))";
    assert_eq!(pair.source.scalar(gone).await.as_deref(), Some(""));
    assert_eq!(pair.target.scalar("SELECT count(*) FROM public.t").await.as_deref(), Some("1001"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_holds_what_the_source_had_and_shows_no_password() {
    let (pair, run) = switched().await;
    run.terminate();
    run.wait(PATIENCE).await.unwrap();
    let (mut command, seen) = overheard(&pair).await;
    let run = Process::start({
        command.args(["run", "-f"]).arg(pair.spec());
        command
    });
    pair.reaches(&run, "switched").await;
    let archive = pair.dir.path().join("archive");
    let asked = json!({ "archive": archive, "drop_source": true });
    let why = reasons(&complete(&pair, asked.clone()).await);
    assert!(why.contains("archive: ") && why.contains("is no directory"), "{why}");
    std::fs::create_dir(&archive).unwrap();
    pair.source.execute("CREATE DATABASE restored").await;
    let answer = complete(&pair, asked).await;
    assert_eq!(answer["outcome"], "completed", "{answer:#}\n{}", run.lines().join("\n"));
    ended_well(&run).await;
    let [dump, list, manifest] = [0, 1, 2].map(|at| answer["archived"][at].as_str().unwrap().to_owned());
    let manifest: Value = serde_json::from_str(&std::fs::read_to_string(manifest).unwrap()).unwrap();
    let rows: Vec<_> =
        manifest["tables"].as_array().unwrap().iter().map(|t| t["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows.iter().sum::<u64>(), 1501, "{manifest:#}");
    for file in std::fs::read_dir(&archive).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "the application's data are nobody else's: {mode:o}");
    }
    let said = std::fs::read_to_string(seen).unwrap();
    assert!(said.contains("--format=custom") && !said.contains(pair.source.password()), "{said}");
    let output = Command::new(programs(&pair).await.join("pg_restore"))
        .args(["--exit-on-error", "--use-list", &list, "--dbname", &pair.source.url("restored"), &dump])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (restored, target) = (pair.source.connect("restored").await, pair.target.connect("postgres").await);
    let report = compare::schemas(&restored, &target, &["public"]).await.unwrap();
    assert!(report.is_equal(), "{report}");
    for (table, digest) in digests(&pair).await {
        let of_manifest =
            manifest["tables"].as_array().unwrap().iter().find(|t| t["table"] == table).unwrap();
        assert_eq!(
            (of_manifest["rows"].as_u64(), &of_manifest["digest"]),
            (Some(digest.rows), &json!(digest.sum.to_string()))
        );
    }
}

/// The source's own programs.
async fn programs(pair: &Pair) -> PathBuf {
    PathBuf::from(pair.source.scalar("SELECT setting FROM pg_config WHERE name = 'BINDIR'").await.unwrap())
}

/// The binary, with a `pg_dump` in its path that notes what it was called with, and after which somebody writes past the
/// fence; and where it notes that.
async fn overheard(pair: &Pair) -> (Command, PathBuf) {
    let (bin, seen) = (pair.dir.path().join("bin"), pair.dir.path().join("seen"));
    std::fs::create_dir(&bin).unwrap();
    let real = programs(pair).await;
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$*\" >> {seen}\n[ \"$1\" = --version ] && exec {real}/pg_dump \"$@\"\n\
         {real}/pg_dump \"$@\" || exit 1\nexec {real}/psql -qXc \"SET session_replication_role = replica; \
         INSERT INTO public.t (id, v) VALUES (100000, 'late')\"\n",
        seen = seen.display(),
        real = real.display()
    );
    std::fs::write(bin.join("pg_dump"), script).unwrap();
    std::fs::set_permissions(bin.join("pg_dump"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(real.join("pg_restore"), bin.join("pg_restore")).unwrap();
    let path = std::env::join_paths(
        [bin].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
    command.env("PATH", path.unwrap());
    (command, seen)
}

/// The digests of the restored tables, as a verification against the target would have them.
async fn digests(pair: &Pair) -> Vec<(String, Digest)> {
    let ends =
        [pair.source.url("restored"), pair.target.url("postgres")].map(|url| Endpoint::parse(&url).unwrap());
    let names = ["public.t", "public.p"].map(|name| QualifiedName::parse(name).unwrap());
    let pairs: Vec<_> = names.iter().map(|name| (name.clone(), name.clone())).collect();
    let (mut from, mut to) = (ends[0].connect("test").await.unwrap(), ends[1].connect("test").await.unwrap());
    let catalog = catalog::read(&mut from, &mut to, &pairs).await.unwrap();
    let tables: Vec<_> = catalog.tables.into_iter().map(Arc::new).collect();
    let sides = PgSides::open(&ends[0], &ends[1], &tables).await.unwrap();
    let mut digests = Vec::new();
    for table in &tables {
        digests.push((table.source.to_string(), sides.source.digest(table, &Extent::ALL).await.unwrap()));
    }
    digests
}

#[cfg(feature = "killpoints")]
mod killed {
    use super::*;
    use segue_engine::killpoint;
    use segue_testkit::kill;

    /// One migration, whose driver is killed at one point after the other.
    #[tokio::test(flavor = "multi_thread")]
    async fn killed_at_any_point_it_only_goes_forward() {
        let (pair, run) = switched().await;
        run.terminate();
        run.wait(PATIENCE).await.unwrap();
        let archive = pair.dir.path().join("archive");
        std::fs::create_dir(&archive).unwrap();
        let mut points = killpoint::ALL.iter().filter(|point| point.starts_with("complete."));
        let first = points.next().unwrap();
        let run = killed_at(&pair, first);
        pair.reaches(&run, "switched").await;
        orders::order(&pair.target, "complete", &json!({ "archive": archive, "drop_source": true })).await;
        dies(&run, first).await;
        // Nothing is taken from a source that owns the writes, whatever the journal says.
        pair.source.execute("UPDATE segue.owner SET state = 'owner'").await;
        let run = pair.run();
        run.wait_for("SEGUE-OWNERSHIP", PATIENCE).await.unwrap();
        assert_eq!(run.wait(PATIENCE).await.unwrap().code(), Some(1));
        pair.source.execute("UPDATE segue.owner SET state = 'follower'").await;
        pair.segue(&["reverse"], 1);
        for point in points {
            // Whatever was left undone, nobody goes back.
            orders::order(&pair.target, "reverse", &orders::for_real()).await;
            dies(&killed_at(&pair, point), point).await;
        }
        ended_well(&pair.run()).await;
        pair.segue(&["reverse"], 1);
        pair.segue(&["wait", "completed", "--timeout", "5s"], 0);
        for side in [&pair.source, &pair.target] {
            assert_eq!(side.scalar(LEFT).await.as_deref(), Some(""));
        }
        let gone =
            "SELECT concat(to_regclass('public.t'), to_regclass('public.p'), to_regnamespace('segue'))";
        assert_eq!(pair.source.scalar(gone).await.as_deref(), Some(""));
        assert_eq!(std::fs::read_dir(&archive).unwrap().count(), 3);
        assert_eq!(pair.target.scalar("SELECT count(*) FROM public.t").await.as_deref(), Some("1001"));
    }

    fn killed_at(pair: &Pair, point: &str) -> Process {
        let mut command = pair.command(&["run"]);
        kill::kill_at(&mut command, point, 1);
        Process::start(command)
    }

    async fn dies(run: &Process, point: &str) {
        let status = run.wait(PATIENCE).await.unwrap();
        assert!(kill::was_killed(status), "{point}: {status}\n{}", run.lines().join("\n"));
    }
}
