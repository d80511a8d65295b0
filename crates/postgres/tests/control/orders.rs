//! Orders to the driver, and what becomes of them when it does not live to answer.

use super::*;

#[tokio::test]
async fn a_command_comes_back_with_progress_and_an_answer() {
    let setting = Setting::new().await;
    let fault = setting.control.ask("pause", &json!({}), "me").await.expect_err("nobody has ever run it");
    assert!(fault.code == "SEGUE-NO-DRIVER" && fault.next_step.contains("segue run"), "{fault}");
    let lease = setting.acquired("one").await;
    let listener = setting.control.listen_for_commands().await.expect("listen");
    let (control, driver_lease) = (setting.control.clone(), lease.clone());
    let driver = tokio::spawn(async move {
        let command = control.next_command(&driver_lease, &listener).await.expect("a command");
        assert_eq!((command.verb.as_str(), &command.arguments), ("verify", &json!({ "table": "t" })));
        for percent in [10, 60] {
            control.progress(&driver_lease, command.id, &json!(percent)).await.expect("progress");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        control.answer(&driver_lease, command.id, &json!({ "ok": true })).await.expect("answer");
    });
    let id = setting.control.ask("verify", &json!({ "table": "t" }), "me").await.expect("ask");
    let seen = Mutex::new(Vec::new());
    let see = |body: &serde_json::Value| seen.lock().expect("seen").push(body.clone());
    let answer = setting.control.await_answer(id, Duration::from_secs(20), see).await.expect("an answer");
    assert_eq!(answer, json!({ "ok": true }));
    assert_eq!(*seen.lock().expect("seen"), [json!(10), json!(60)]);
    driver.await.expect("driver");
    let twice = setting.control.answer(&lease, id, &json!({})).await;
    assert!(twice.is_err(), "a command is answered once");
}

#[tokio::test]
async fn a_command_whose_driver_died_is_answered_by_the_next_one() {
    let setting = Setting::new().await;
    let first = setting.acquired("one").await;
    let listener = setting.control.listen_for_commands().await.expect("listen");
    let id = setting.control.ask("pause", &json!({}), "me").await.expect("ask");
    setting.control.next_command(&first, &listener).await.expect("taken");
    setting.let_the_lease_expire().await;
    let fault = setting.control.await_answer(id, Duration::from_secs(20), |_| {}).await.expect_err("dead");
    assert!(fault.code == "SEGUE-NO-DRIVER" && fault.what.contains("one was last alive"), "{fault}");
    let second = setting.acquired("two").await;
    assert_eq!(
        setting.control.next_command(&first, &listener).await.expect_err("late").code,
        "SEGUE-SUPERSEDED"
    );
    assert_eq!(
        setting.control.answer_orphans(&second, &json!({ "fault": "died" })).await.expect("orphans"),
        1
    );
    let answer = setting.control.await_answer(id, Duration::from_secs(20), |_| {}).await.expect("an answer");
    assert_eq!(answer, json!({ "fault": "died" }));
}

/// Whoever has asked was told that nobody drives: hours later nobody expects it to be done.
#[tokio::test]
async fn an_order_that_nobody_took_is_not_carried_out_by_whoever_drives_next() {
    let setting = Setting::new().await;
    let first = setting.acquired("one").await;
    let given = setting.control.ask("switch", &json!({}), "me").await.expect("ask");
    let kept = setting.control.ask("contain", &json!({}), "me").await.expect("ask");
    setting.let_the_lease_expire().await;
    let limit = Duration::from_secs(20);
    let fault = setting.control.await_answer(given, limit, |_| {}).await.expect_err("nobody drives");
    assert!(fault.code == "SEGUE-WITHDRAWN" && fault.what.contains("one was last alive"), "{fault}");
    let fault = setting.control.await_answer(kept, limit, |_| {}).await.expect_err("nobody drives");
    assert_eq!(fault.code, "SEGUE-NO-DRIVER");
    // Nor are those whose askers are gone, killed, without a word.
    let client = setting.cluster.connect("postgres").await;
    for (verb, minutes) in [("stop", 1), ("complete", 61), ("pause", 600)] {
        let sql = "INSERT INTO segue.command (migration, verb, arguments, asked_by, asked_at)
             VALUES ('m', $1, '{}', 'me', clock_timestamp() - make_interval(mins => $2))";
        client.execute(sql, &[&verb, &minutes]).await.expect("an old order");
    }
    let second = setting.acquired("two").await;
    assert_eq!(setting.control.answer_stale(&first, &json!({})).await.expect("too late"), 0);
    assert_eq!(setting.control.answer_stale(&second, &json!({})).await.expect("stale"), 2);
    let listener = setting.control.listen_for_commands().await.expect("listen");
    for verb in ["contain", "pause"] {
        let command = setting.control.next_command(&second, &listener).await.expect("a command");
        assert_eq!(command.verb, verb, "what stops something is for whoever comes");
    }
    let late = tokio::time::timeout(Duration::from_secs(1), setting.control.next_command(&second, &listener));
    assert!(late.await.is_err(), "nothing else is left");
}

/// The row may be there; to give the order once more without a look could be once too often.
#[tokio::test]
async fn an_order_whose_connection_is_lost_may_have_been_given() {
    let setting = Setting::new().await;
    setting.acquired("one").await;
    let lock = setting.cluster.connect("postgres").await;
    lock.batch_execute("BEGIN; LOCK TABLE segue.command IN ACCESS EXCLUSIVE MODE").await.expect("a lock");
    let cut = async {
        let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE query LIKE '%INSERT INTO segue.command%' AND wait_event_type = 'Lock'";
        while setting.cluster.scalar(waiting).await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (asked, ()) = tokio::join!(async { setting.control.ask("switch", &json!({}), "me").await }, cut);
    let fault = asked.expect_err("the session was ended");
    assert_eq!(fault.code, "SEGUE-ORDER-UNKNOWN", "{fault}");
}
