//! The commands that move the writes, against a driver that answers what the test wants: exit codes, text, objects.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

use segue_postgres::connect::Endpoint;
use segue_postgres::control::{Acquired, Command as Order, Control, Lease, shut_out};
use segue_testkit::{Cluster, Options};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::Duration;

/// How long a command may take to ask.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control database, and a driver that is this test.
struct Stage {
    cluster: Cluster,
    control: Control,
    lease: Lease,
    dir: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Stage {
        let cluster = Cluster::start(Options::default()).await;
        let url = cluster.url("postgres");
        let endpoint = Endpoint::parse(&url).unwrap();
        let control = Control::connect(&endpoint, "test").await.unwrap();
        let Acquired::Lease(lease) = control.acquire("the test").await.unwrap() else {
            panic!("somebody else drives")
        };
        shut_out(&endpoint, "test", lease.token, true).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let spec = format!(
            "migration: test\nprofile: dev\nsource: {{ postgres: \"{}\" }}\ntarget: {{ postgres: \"{url}\" }}\n\
             tables: [t]\n",
            cluster.url("template1")
        );
        std::fs::write(dir.path().join("segue.yaml"), spec).unwrap();
        Stage { cluster, control, lease, dir }
    }

    /// Runs a command; the driver reports `progress`, then gives `answer`. What was asked, and how the command ended.
    async fn play(&self, arguments: &[&str], progress: &[Value], answer: Value) -> (Order, Output) {
        let mut command = self.command(arguments);
        let mut ended = tokio::task::spawn_blocking(move || command.output().unwrap());
        let order = tokio::select! {
            order = self.next_order() => order,
            ended = &mut ended => panic!("it ended before it asked: {}", err(&ended.unwrap())),
        };
        self.control.beat(&self.lease).await.unwrap();
        for body in progress {
            self.control.progress(&self.lease, order.id, body).await.unwrap();
        }
        self.control.answer(&self.lease, order.id, &answer).await.unwrap();
        (order, ended.await.unwrap())
    }

    async fn next_order(&self) -> Order {
        let listener = self.control.listen_for_commands().await.unwrap();
        let next = self.control.next_command(&self.lease, &listener);
        tokio::time::timeout(PATIENCE, next).await.expect("it asks").unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
        command.args(arguments).arg("-f").arg(self.dir.path().join("segue.yaml"));
        command
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn switched(outcome: &str, owner: &str) -> Value {
    json!({ "outcome": outcome, "owner": owner, "epoch": 2, "stall_ms": 12.3,
        "steps": [{ "step": "fence", "took_ms": 3.1 }], "sequences": 4, "compared_under_fence": 10, "divergences": [] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_ends_with_the_code_of_its_outcome_and_prints_it() {
    let stage = Stage::new().await;
    let progress = [
        json!({ "doing": "arm", "waits_for": "pid 7" }),
        json!({ "steps": [{ "step": "arm", "took_ms": 1.0 }] }),
    ];
    let line = ["switch", "writes", "--override", "lag", "--override", "drift", "--reason", "agreed"];
    let (order, ended) = stage.play(&line, &progress, switched("switched", "target")).await;
    assert_eq!((ended.status.code(), order.verb.as_str()), (Some(0), "switch"), "{}", err(&ended));
    let overrides = json!([{ "gate": "lag", "reason": "agreed" }, { "gate": "drift", "reason": "agreed" }]);
    assert_eq!(order.arguments, json!({ "rehearse": false, "overrides": overrides }));
    assert!(out(&ended).starts_with("the target owns the writes now (epoch 2)"), "{}", out(&ended));

    let line = ["switch", "writes", "--dry-run", "--json"];
    let (order, ended) = stage.play(&line, &[], switched("rehearsed", "source")).await;
    assert_eq!((ended.status.code(), &order.arguments["rehearse"]), (Some(0), &json!(true)));
    assert_eq!(serde_json::from_str::<Value>(&out(&ended)).unwrap(), switched("rehearsed", "source"));

    let blocker = json!({ "gate": "lag", "why": "2 s", "next": "wait", "may_be_overridden": true });
    let refused = json!({ "outcome": "refused", "blockers": [blocker] });
    let (_, ended) = stage.play(&["switch", "writes"], &[], refused.clone()).await;
    assert_eq!(ended.status.code(), Some(3));
    assert!(
        out(&ended).contains("\n  lag: 2 s; next: wait (or, with your name to it: --override lag"),
        "{}",
        out(&ended)
    );
    let (order, ended) = stage.play(&["reverse", "--json"], &[], refused.clone()).await;
    assert_eq!((ended.status.code(), order.verb.as_str()), (Some(3), "reverse"));
    assert_eq!(serde_json::from_str::<Value>(&out(&ended)).unwrap(), refused);

    let undone = json!({ "outcome": "undone", "owner": "source", "why": "a lock", "blockers_of_lock": ["pid 7"],
        "stall_ms": 400.0, "next_step": "wait for it" });
    let (_, ended) = stage.play(&["switch", "writes"], &[], undone).await;
    assert_eq!(ended.status.code(), Some(1));
    for part in ["the source takes writes again, after 400 ms", "lock held by pid 7", "next: wait for it"] {
        assert!(out(&ended).contains(part), "{part}: {}", out(&ended));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_keeps_its_code_and_one_that_leaves_the_order_open_says_so() {
    let stage = Stage::new().await;
    let unknown =
        json!({ "fault": "the driver does not know it", "code": "SEGUE-VERB", "next_step": "update" });
    let (_, ended) = stage.play(&["switch", "writes", "--json"], &[], unknown.clone()).await;
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(serde_json::from_str::<Value>(&out(&ended)).unwrap(), unknown);

    let died = json!({ "fault": "it has died", "code": "SEGUE-DRIVER-DIED", "next_step": "ask again" });
    let (_, ended) = stage.play(&["reverse"], &[], died).await;
    assert_eq!(ended.status.code(), Some(1));
    assert!(err(&ended).contains("`segue status` says who owns the writes"), "{}", err(&ended));

    let (_, ended) = stage.play(&["switch", "writes"], &[], json!({ "outcome": "maybe" })).await;
    assert_eq!(ended.status.code(), Some(1));
    assert!(err(&ended).contains("SEGUE-ANSWER"), "{}", err(&ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn completing_and_containing_end_with_the_code_of_their_outcome() {
    let stage = Stage::new().await;
    let line = ["complete", "--archive", "/backup", "--drop-source", "--window", "2s", "--json"];
    let completed = json!({ "outcome": "completed", "proofs": [], "removed": ["source: slot"], "archived": [],
        "dropped": ["t"], "kept": [] });
    let (order, ended) = stage.play(&line, &[], completed.clone()).await;
    assert_eq!((ended.status.code(), order.verb.as_str()), (Some(0), "complete"), "{}", err(&ended));
    let arguments =
        json!({ "rehearse": false, "archive": "/backup", "drop_source": true, "window_ms": 2000 });
    assert_eq!(order.arguments, arguments);
    assert_eq!(serde_json::from_str::<Value>(&out(&ended)).unwrap(), completed);
    let blocker =
        json!({ "gate": "unused", "why": "it is read", "next": "move it", "may_be_overridden": false });
    let refused = json!({ "outcome": "refused", "blockers": [blocker] });
    let (order, ended) = stage.play(&["complete", "--dry-run"], &[], refused).await;
    assert_eq!((ended.status.code(), &order.arguments["rehearse"]), (Some(3), &json!(true)));
    assert!(out(&ended).contains("  unused: it is read; next: move it\n"), "{}", out(&ended));

    let contained = json!({ "owner": "source", "stopped": ["the copy"], "took_ms": 8.0, "watch": [],
        "resume": "segue resume" });
    let (order, ended) = stage.play(&["contain"], &[], contained).await;
    assert_eq!((ended.status.code(), order.verb.as_str()), (Some(0), "contain"), "{}", err(&ended));
    assert!(out(&ended).contains("the copy") && out(&ended).contains("`segue resume`"), "{}", out(&ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_no_driver_is_settled_without_one() {
    let stage = Stage::new().await;
    stage.control.release(&stage.lease).await.unwrap();
    for line in [&["switch", "writes"][..], &["reverse"], &["complete"], &["contain"]] {
        let ended = stage.command(line).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{line:?}");
        assert!(err(&ended).contains("SEGUE-NO-DRIVER"), "{line:?}: {}", err(&ended));
    }
    let ended = stage.command(&["switch", "reads", "10", "--json"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert_eq!(serde_json::from_str::<Value>(&out(&ended)).unwrap()["code"], "SEGUE-NO-ROUTER");
    let ended =
        stage.command(&["switch", "writes", "--override", "verified", "--reason", "hurry"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(err(&ended).contains("protects data"), "{}", err(&ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_interrupted_says_that_the_order_goes_on() {
    let stage = Stage::new().await;
    let mut command = stage.command(&["switch", "writes"]);
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    let order = stage.next_order().await;
    stage.control.beat(&stage.lease).await.unwrap();
    // It listens for its answer from the moment it has been given its number, and for the signal from then on.
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    listens_for_an_answer(&stage).await;
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", err(&ended));
    let said = err(&ended);
    assert!(said.contains("SEGUE-NOT-AWAITED") && said.contains("goes on all the same"), "{said}");
    // Nobody has taken the order back.
    stage.control.answer(&stage.lease, order.id, &json!({})).await.unwrap();
}

async fn listens_for_an_answer(stage: &Stage) {
    let client = stage.cluster.connect("postgres").await;
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query ILIKE 'LISTEN%segue_answer%')";
    while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Somebody's stand-by that is quicker than the cancel.
#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_migration_that_somebody_goes_on_driving_is_given_up() {
    let stage = Stage::new().await;
    let beating = async {
        loop {
            stage.control.beat(&stage.lease).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let (order, ended) = tokio::select! {
        played = stage.play(&["cancel"], &[], json!({ "done": "it stops" })) => played,
        () = beating => unreachable!("it beats on"),
    };
    assert_eq!((order.verb.as_str(), ended.status.code()), ("stop", Some(1)), "{}", err(&ended));
    let said = err(&ended);
    assert!(said.contains("SEGUE-LEASE") && said.contains("the test still drives the migration"), "{said}");
    assert!(said.contains("next: stop every `segue run`"), "{said}");
}
