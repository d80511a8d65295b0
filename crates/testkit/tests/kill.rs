//! A program under test is heard, frozen, killed, and never left behind.

use segue_testkit::kill::{Process, Stops, kill_at, report_points, was_killed};
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// A program that follows the convention of kill points, in shell.
fn program() -> Command {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        r#"point() {
             [ -z "$SEGUE_KILL_REPORT" ] || echo "killpoint $1" >&2
             eval "passed_$1=\$((passed_$1 + 1))"
             eval "[ \"\$1:\$passed_$1\" != \"$SEGUE_KILL_AT\" ]" || kill -9 $$
             if [ "$(cat "$SEGUE_STOP_FILE" 2>/dev/null)" = "$1" ]; then
                 rm "$SEGUE_STOP_FILE"; echo "stopped at $1" >&2; kill -STOP $$
             fi
           }
           point begun
           for i in 1 2 3; do point copied; echo "copied $i"; done
           [ -z "$LINGER" ] || { echo lingering; while :; do sleep 0.05; echo tick; done; }
           exit 3"#,
    ]);
    command
}

#[tokio::test]
async fn output_and_end_are_reported() {
    let process = Process::start(program());
    assert_eq!(process.wait_for("copied 3", SOON).await.expect("a line"), "copied 3");
    assert_eq!(process.wait(SOON).await.expect("an end").code(), Some(3));
    let error = process.wait_for("never said", SOON).await.expect_err("it has ended").to_string();
    assert!(error.contains("never said") && error.contains("copied 2"), "{error}");
}

#[tokio::test]
async fn all_it_said_is_there_at_its_end_but_a_child_that_lives_on_is_not_waited_for() {
    let mut talking = Command::new("sh");
    talking.args(["-c", "seq 20000 >&2; seq 20001 40000"]);
    let process = Process::start(talking);
    process.wait(SOON).await.expect("an end");
    assert_eq!(process.lines().len(), 40_000);

    let mut leaving = Command::new("sh");
    leaving.args(["-c", "sleep 30 & echo gone"]);
    let process = Process::start(leaving);
    process.wait(SOON).await.expect("an end");
    assert_eq!(process.lines(), ["gone"]);
}

#[tokio::test]
async fn it_kills_itself_at_the_chosen_passage_of_a_point() {
    let mut reporting = program();
    report_points(&mut reporting);
    let process = Process::start(reporting);
    process.wait(SOON).await.expect("an end");
    let passed = process.points_passed();
    assert_eq!((passed.get("begun"), passed.get("copied")), (Some(&1), Some(&3)));

    let mut killed = program();
    kill_at(&mut killed, "copied", 2);
    let process = Process::start(killed);
    assert!(was_killed(process.wait(SOON).await.expect("an end")));
    process.wait_for("copied 1", SOON).await.expect("what it said before");
    assert!(process.wait_for("copied 2", SOON).await.is_err());
}

#[tokio::test]
async fn it_can_be_frozen_thawed_and_killed() {
    let mut lingering = program();
    lingering.env("LINGER", "1");
    let process = Process::start(lingering);
    process.wait_for("lingering", SOON).await.expect("a line");
    process.freeze();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mark = process.mark();
    assert!(process.wait_for_since(mark, "tick", Duration::from_millis(300)).await.is_err());
    process.thaw();
    process.wait_for_since(mark, "tick", SOON).await.expect("it goes on");
    assert!(process.wait(Duration::from_millis(50)).await.is_err());
    process.kill9();
    assert!(was_killed(process.status().expect("it is gone")));
}

#[tokio::test]
async fn it_freezes_itself_at_each_chosen_point() {
    let (mut command, dir) = (program(), tempfile::tempdir().expect("a directory"));
    let stops = Stops::of(&mut command, dir.path().join("stop"));
    stops.at("begun");
    let process = Process::start(command);
    process.stopped_at("begun", SOON).await.expect("frozen at the first point");
    assert_eq!(process.lines().len(), 1, "it does nothing there");
    stops.at("copied");
    process.thaw();
    process.stopped_at("copied", SOON).await.expect("frozen at the second point");
    assert!(process.wait_for("copied 1", Duration::ZERO).await.is_err());
    process.thaw();
    assert_eq!(process.wait(SOON).await.expect("an end").code(), Some(3));
}
