//! What a status looks like, and that the object is stable.

use super::*;
use segue_engine::progress::{TableProgress, Wait};

/// A run in the middle of its copy, with one warning.
pub(crate) fn status() -> Status {
    let table = |name: &str, rows, complete| TableProgress {
        table: name.into(),
        rows,
        bytes: rows * 100,
        regions: 1,
        rows_estimated: 1000,
        complete,
    };
    let progress = Snapshot {
        running_ms: 1000,
        tables: vec![table("public.a", 250, false), table("public.b", 1000, true)],
        waits: vec![Wait { who: "copy".into(), reason: "because".into(), since_ms: 1500 }],
        ..Snapshot::default()
    };
    Status {
        migration: "m".into(),
        stage: Stage::Backfilling,
        owner: Owner::Source,
        run: RunState::Running,
        source: "a@h:1/x".into(),
        target: "b@h:2/y".into(),
        driver: "host 1".into(),
        token: 3,
        progress,
        slot: SlotState::default(),
        live: LiveVerification::default(),
        warnings: vec!["look out".into()],
        way_back: WayBackState::default(),
        gates: Vec::new(),
        trouble: vec!["source: the slot x is read by nobody".into()],
        rollback: Vec::new(),
        throttle: ThrottleState::default(),
    }
}

#[test]
fn the_screen_says_what_is_copied_what_is_left_and_what_is_waited_for() {
    let before = Snapshot::default();
    let status = status();
    let text = render(&status, Some(Rates::between(&before, &status.progress))).join("\n");
    for part in [
        "m  backfilling  running  owner source",
        "1 of 2 tables  1250 of about 2000 rows  1250 rows/s",
        "about 1 s left",
        "public.a                         #####...............  25 %  250 rows  24.4 KiB",
        "copy waits 1.5 s: because",
        "trouble: source: the slot x is read by nobody",
        "warning: look out",
    ] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    assert!(!text.contains("public.b "), "complete tables are summed up");
}

fn gates() -> Vec<GateState> {
    let gate = |gate: Gate, why: &str| GateState {
        gate,
        green: why.is_empty(),
        since_us: 7,
        why: why.into(),
        next: if why.is_empty() { String::new() } else { "do that".into() },
        protects_data: gate.line().protects_data,
        asks: String::new(),
        not_asked: String::new(),
    };
    let matches = GateState { not_asked: "nobody repeats reads".into(), ..gate(Gate::Matches, "") };
    vec![gate(Gate::Verified, ""), matches, gate(Gate::Lag, "it is high"), gate(Gate::Parity, "one lacks")]
}

#[test]
fn a_migration_that_follows_says_how_many_gates_are_open_and_why_the_others_are_not() {
    let following = Status { stage: Stage::Following, gates: gates(), ..status() };
    let lines = render(&following, None);
    let shown: Vec<&str> = lines.iter().map(String::as_str).filter(|line| line.contains("gate")).collect();
    assert_eq!(
        shown,
        [
            "  gates  2 of 4 green",
            "  gate lag               red: it is high; do that",
            "  gate parity            red: one lacks; do that",
            "  gate matches           not asked for: nobody repeats reads",
        ]
    );
    let early = render(&Status { gates: gates(), ..status() }, None);
    assert!(!early.iter().any(|line| line.contains("gate")), "a copy under way has other worries: {early:?}");
    let unmeasured = render(&Status { stage: Stage::Following, ..status() }, None);
    assert!(!unmeasured.iter().any(|line| line.contains("gate")));
}

#[test]
fn the_way_back_is_shown_as_far_as_it_is() {
    for (is, why, shown) in [
        (WayBackIs::NotArmed, "", "way back  not armed"),
        (WayBackIs::Arming, "waits for pid 7", "way back  being armed waits for pid 7"),
        (WayBackIs::Armed, "", "way back  armed  lag 9 B / 3 ms"),
        (WayBackIs::Lost, "no slot", "way back  LOST: no slot"),
    ] {
        let way_back = WayBackState { is, why: why.into(), lag_bytes: 9, lag_ms: 3 };
        let lines = render(&Status { stage: Stage::Following, way_back, ..status() }, None);
        assert!(lines.iter().any(|line| line.contains(shown)), "{shown} in {lines:?}");
    }
}

#[test]
fn a_switched_migration_looks_like_a_following_one_that_the_target_owns() {
    let switched = Status { stage: Stage::Switched, owner: Owner::Target, ..status() };
    let text = render(&switched, None).join("\n");
    for part in
        ["m  switched  running  owner target", "  stream  lag 0 B / 0 ms", "  target keeps 0 B of log"]
    {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
}

#[test]
fn a_report_from_before_there_was_an_owner_is_the_sources() {
    let mut object = serde_json::json!(status());
    object.as_object_mut().unwrap().remove("owner");
    assert_eq!(serde_json::from_value::<Status>(object).unwrap().owner, Owner::Source);
}

#[test]
fn the_object_round_trips() {
    let status = Status { gates: gates(), ..status() };
    let mut object = serde_json::to_value(&status).unwrap();
    assert_eq!(object["gates"][2]["gate"], "lag");
    assert_eq!(serde_json::from_value::<Status>(object.clone()).unwrap(), status);
    let object = object.as_object_mut().unwrap();
    object.remove("gates");
    object.remove("trouble");
    object.remove("rollback");
    object.remove("throttle");
    let earlier: Status = serde_json::from_value(object.clone().into()).unwrap();
    assert_eq!((earlier.gates, earlier.trouble), (vec![], vec![]), "a driver of before knew no gates");
    assert_eq!(earlier.throttle, ThrottleState::default(), "… and did not yield by itself");
}

#[test]
fn bytes_read_well() {
    assert_eq!([bytes_text(0), bytes_text(1536), bytes_text(3 << 30)], ["0 B", "1.5 KiB", "3.0 GiB"]);
}
