//! The gates as statements.

use super::*;
use crate::spec::Profile;
use proptest::prelude::*;
use std::time::Duration;

const HOUR_US: i64 = 3_600_000_000;
const MINUTE_US: i64 = 60_000_000;
const NOW_US: i64 = 1_000 * HOUR_US;
const PROFILES: [Profile; 3] = [Profile::Dev, Profile::Staging, Profile::Prod];
const MOVES: [Move; 4] = [FirstReads, MoreReads, Writes, Reverse];

/// One sample a minute for so many hours, up to now.
fn minutes<T: Copy>(hours: i64, value: T) -> Series<T> {
    let at = (0..=hours * 60).rev().map(|ago| NOW_US - ago * MINUTE_US);
    Series(at.map(|at_us| Sample { at_us, value }).collect())
}

fn good() -> Evidence {
    Evidence {
        now_us: NOW_US,
        lag_ms: minutes(1, 20),
        drift: minutes(72, Share { part: 0, whole: 1000 }),
        matches: minutes(24, Share { part: 1000, whole: 1000 }),
        mirrored: Some(Mirrored::default()),
        verified: Some(Verified { oldest_us: NOW_US - HOUR_US, tables_left: 0 }),
        divergences_open: Some(0),
        opposite: Some(Opposite { is_armed: true, is_lost: false, behind_bytes: 0, stands_still: false }),
        sequences_unready: Some(vec![]),
        rehearsed_us: Some(NOW_US - HOUR_US),
        ddl_differences: Some(vec![]),
        parity: Some(vec![]),
        transactions: Some(vec![(Duration::from_secs(1), "pid 7".to_owned())]),
        replicas: Some(vec![Replica { name: "b".to_owned(), lag_ms: 49 }]),
        connections: Some(Headroom { free: 120, needed: 100 }),
        wraparound_vacuums: Some(vec![]),
        sessions_with_state: Some(vec![]),
        ways_past_fence: Some(vec![]),
    }
}

fn why(gate: Gate, profile: Profile, evidence: &Evidence) -> String {
    match judge(gate, &Bounds::of(profile), evidence) {
        Verdict::Green { .. } => "green".to_owned(),
        Verdict::Red(red) => {
            assert!(!red.next.is_empty());
            red.why
        }
    }
}

#[test]
fn the_table_is_complete_and_its_names_are_read_back() {
    for line in TABLE {
        assert_eq!(line.gate.line(), &line);
        assert_eq!(line.name.parse(), Ok(line.gate));
        assert_eq!(serde_json::to_value(line.gate).unwrap(), line.name);
    }
    assert!("speed".parse::<Gate>().is_err());
}

#[test]
fn good_evidence_opens_everything() {
    for profile in PROFILES {
        for what in MOVES {
            assert_eq!(blockers(what, &Bounds::of(profile), &good(), &[]), [], "{what:?} {profile}");
        }
    }
}

#[test]
fn what_was_not_measured_is_red() {
    for what in MOVES {
        let none = Evidence { now_us: NOW_US, ..Evidence::default() };
        let asked = TABLE.iter().filter(|line| line.asked_by.contains(&what)).count();
        assert_eq!(blockers(what, &Bounds::of(Profile::Prod), &none, &[]).len(), asked);
    }
}

#[test]
fn compared_reads_may_differ_as_often_as_is_allowed_and_where_none_are_compared_nobody_is_asked_for_them() {
    let why = |part, whole, differ_ppm_max| {
        let differ = Share { part, whole };
        let mirrored =
            Mirrored { differ, differ_ppm_max, worst: "SELECT a (3 times)".into(), is_unreadable: false };
        why(Gate::Mirror, Profile::Prod, &Evidence { mirrored: Some(mirrored), ..good() })
    };
    assert_eq!(
        (why(0, 0, 0), why(0, 9, 0), why(1, 100, 10_000)),
        ("green".into(), "green".into(), "green".into())
    );
    assert_eq!(
        why(3, 1000, 1_000),
        "3 of 1000 compared reads differ (0.3000 %), 0.1 % may; most often: SELECT a (3 times)"
    );
    let mirrored = Some(Mirrored { is_unreadable: true, ..Mirrored::default() });
    let unreadable = Evidence { mirrored, ..good() };
    assert!(matches!(judge(Gate::Mirror, &Bounds::of(Profile::Dev), &unreadable), Verdict::Red(_)));
}

fn difference(what: &str, of_rows: bool) -> Difference {
    Difference { what: format!("{what} is missing"), remedy: format!("on the target: make {what};"), of_rows }
}

#[test]
fn what_makes_tables_equal_is_said_in_sql_and_may_be_refused_with_a_reason() {
    let both = vec![difference("index i", false), difference("check c", true)];
    let expected =
        "the new side's tables have not what the old side's have: check c is missing, index i is missing";
    assert_eq!(why(Gate::Parity, Profile::Prod, &Evidence { parity: Some(both), ..good() }), expected);
    let evidence = Evidence { parity: Some(vec![difference("index i", false)]), ..good() };
    let closed = blockers(Writes, &Bounds::of(Profile::Prod), &evidence, &[]);
    assert_eq!(closed[0].red.next, "make them equal, or accept it: on the target: make index i;");
    let accepted = Override::new(Gate::Parity, "ann", "it is not needed there").unwrap();
    assert_eq!(blockers(Writes, &Bounds::of(Profile::Prod), &evidence, &[accepted]), []);
    assert_eq!(
        blockers(Reverse, &Bounds::of(Profile::Prod), &evidence, &[]),
        [],
        "who goes back is not asked"
    );
}

fn opposite(is_armed: bool, is_lost: bool, behind_bytes: u64) -> Evidence {
    Evidence { opposite: Some(Opposite { is_armed, is_lost, behind_bytes, stands_still: false }), ..good() }
}

#[test]
fn each_gate_is_closed_by_its_own_evidence() {
    let cases: [(Gate, Evidence, &str); 13] = [
        (
            Gate::Lag,
            Evidence { lag_ms: minutes(1, 1001), ..good() },
            "the 99th percentile of the lag over 10 min is 1001 ms, of 1000 ms allowed",
        ),
        (
            Gate::Verified,
            Evidence { verified: Some(Verified { oldest_us: NOW_US, tables_left: 2 }), ..good() },
            "2 table(s) have not been compared in full",
        ),
        (
            Gate::Verified,
            Evidence {
                verified: Some(Verified { oldest_us: NOW_US - 25 * HOUR_US, tables_left: 0 }),
                ..good()
            },
            "the last full verification is 25 h old, of 24 h allowed",
        ),
        (Gate::Divergences, Evidence { divergences_open: Some(3), ..good() }, "3 divergence(s) are open"),
        (Gate::WayBack, opposite(false, false, 0), "the opposite stream is not armed"),
        (
            Gate::WayBack,
            opposite(false, true, 0),
            "the opposite stream is lost: after this, writes could not be moved again",
        ),
        (
            Gate::WayBack,
            opposite(true, false, 1 << 30),
            "the opposite stream is 1073741824 bytes behind, of 16777216 allowed",
        ),
        (Gate::Rehearsal, Evidence { rehearsed_us: None, ..good() }, "no rehearsal has succeeded"),
        (
            Gate::LongTransactions,
            Evidence { transactions: Some(vec![(Duration::from_secs(90), "pid 7".to_owned())]), ..good() },
            "transactions are older than 10 s: pid 7 for 90 s",
        ),
        (
            Gate::Replicas,
            Evidence { replicas: Some(vec![Replica { name: "b".to_owned(), lag_ms: 50 }]), ..good() },
            "replicas of the new side are 50 ms or more behind: b by 50 ms",
        ),
        (
            Gate::Connections,
            Evidence { connections: Some(Headroom { free: 119, needed: 100 }), ..good() },
            "119 connections are free on the new side, 100 and 20 % to spare are needed",
        ),
        (
            Gate::Ddl,
            Evidence { ddl_differences: Some((0..7).map(|n| format!("t{n}")).collect()), ..good() },
            "the tables are not those of the plan: t0, t1, t2, t3, t4 and 2 more",
        ),
        (
            Gate::Wraparound,
            Evidence { wraparound_vacuums: Some(vec!["t".to_owned()]), ..good() },
            "a vacuum that prevents wraparound is running: t",
        ),
    ];
    for (gate, evidence, expected) in cases {
        assert_eq!(why(gate, Profile::Prod, &evidence), expected);
        let others = blockers(Writes, &Bounds::of(Profile::Prod), &evidence, &[]);
        assert!(others.iter().all(|blocker| blocker.gate == gate), "{gate} alone: {others:?}");
    }
}

#[test]
fn drift_is_counted_over_the_whole_window() {
    let share = |part| Evidence { drift: minutes(72, Share { part, whole: 100_000 }), ..good() };
    assert_eq!(why(Gate::Drift, Profile::Prod, &share(0)), "green");
    assert_eq!(
        why(Gate::Drift, Profile::Prod, &share(1)),
        "4321 of 432100000 compared rows diverged (0.0010 %), it must be below 0.001 %",
        "the bound itself is too much"
    );
    let mut once = share(0);
    once.drift.0[5].value.part = 10_000;
    assert_ne!(why(Gate::Drift, Profile::Prod, &once), "green", "three days ago");
    assert_eq!(why(Gate::Drift, Profile::Staging, &once), "green", "an hour is enough there");
}

#[test]
fn a_window_is_covered_without_a_gap_or_not_at_all() {
    let young = Evidence { drift: minutes(71, Share { part: 0, whole: 9 }), ..good() };
    assert_eq!(why(Gate::Drift, Profile::Prod, &young), "measured without a gap for 71 h of 72 h");
    let mut gap = good();
    gap.drift.0.retain(|sample| (NOW_US - sample.at_us) / HOUR_US != 3);
    assert_eq!(
        why(Gate::Drift, Profile::Prod, &gap),
        "measured without a gap for 180 min of 72 h".replace("180 min", "3 h")
    );
    let stale = Evidence { now_us: NOW_US + HOUR_US, ..good() };
    assert_eq!(why(Gate::Drift, Profile::Dev, &stale), "it has not been measured");
    let idle = Evidence { drift: minutes(72, Share::default()), ..good() };
    assert_eq!(why(Gate::Drift, Profile::Prod, &idle), "no row was compared in the window");
}

#[test]
fn reads_go_further_when_they_match_in_9999_of_10000() {
    let share = |part| Evidence { matches: minutes(24, Share { part, whole: 10_000 }), ..good() };
    assert_eq!(why(Gate::Matches, Profile::Prod, &share(9_999)), "green");
    assert!(why(Gate::Matches, Profile::Prod, &share(9_998)).contains("it must be 99.99 %"));
    let first = blockers(FirstReads, &Bounds::of(Profile::Prod), &share(0), &[]);
    assert_eq!(first, [], "before the first share there is nothing to match");
}

#[test]
fn on_a_developers_machine_seconds_are_enough_and_no_rehearsal_is_asked_for() {
    let last = |at_us| Series(vec![Sample { at_us, value: 20 }]);
    let share = |part| Series(vec![Sample { at_us: NOW_US, value: Share { part, whole: 10 } }]);
    let fresh = Evidence {
        lag_ms: last(NOW_US - 2_000_000),
        drift: share(0),
        // Without a router no read is repeated.
        matches: Series::default(),
        rehearsed_us: None,
        ..good()
    };
    assert_eq!(blockers(Writes, &Bounds::of(Profile::Dev), &fresh, &[]), []);
    let unarmed = Evidence { opposite: None, verified: None, ..fresh };
    let closed: Vec<Gate> =
        blockers(Writes, &Bounds::of(Profile::Dev), &unarmed, &[]).iter().map(|b| b.gate).collect();
    assert_eq!(closed, [Gate::Verified, Gate::WayBack], "data is protected there too");
}

#[test]
fn without_a_router_nobody_is_asked_for_repeated_reads() {
    let none = Evidence { matches: Series::default(), ..good() };
    for profile in PROFILES {
        let bounds = Bounds { has_router: false, ..Bounds::of(profile) };
        for what in MOVES {
            assert_eq!(blockers(what, &bounds, &none, &[]), [], "{what:?} {profile}");
        }
        assert!(not_asked(Gate::Matches, &bounds).is_some_and(|why| why.contains("no `router`")));
    }
    assert_eq!(why(Gate::Matches, Profile::Prod, &none), "it has not been measured", "with one they are");
}

#[test]
fn a_gate_says_what_it_asks_for_and_one_that_is_not_asked_for_is_the_only_one_green_without_evidence() {
    let none = Evidence { now_us: NOW_US, ..Evidence::default() };
    for bounds in PROFILES.map(Bounds::of) {
        for line in TABLE {
            let green = matches!(judge(line.gate, &bounds, &none), Verdict::Green { .. });
            assert_eq!(green, not_asked(line.gate, &bounds).is_some(), "{} {bounds:?}", line.name);
            assert!(!green || asks(line.gate, &bounds).is_empty(), "{}", line.name);
        }
    }
    let bounds = Bounds { lag_window: Duration::from_secs(90), lag_ms_max: 250, ..Bounds::of(Profile::Prod) };
    assert_eq!(asks(Gate::Lag, &bounds), "a lag of at most 250 ms in 99 of 100 samples over 90 s");
    assert_eq!(asks(Gate::Verified, &bounds), "each table compared in full, at most 24 h ago");
    assert_eq!(
        asks(Gate::Drift, &Bounds::of(Profile::Dev)),
        "less than 0.001 % of the compared rows diverged since the last verification"
    );
}

#[test]
fn an_override_needs_a_name_and_a_reason_and_never_opens_what_protects_data() {
    let (actor, reason) = ("ada", "rehearsed on the twin");
    for line in TABLE {
        let made = Override::new(line.gate, actor, reason);
        assert_eq!(made.is_err(), line.protects_data, "{}", line.name);
    }
    assert_eq!(Override::new(Gate::Lag, " ", reason), Err(OverrideRefused::Unexplained(Gate::Lag)));
    assert_eq!(Override::new(Gate::Lag, actor, ""), Err(OverrideRefused::Unexplained(Gate::Lag)));

    let bad = Evidence { rehearsed_us: None, opposite: None, ..good() };
    let rehearsal = Override::new(Gate::Rehearsal, actor, reason).unwrap();
    let forged = Override { gate: Gate::WayBack, ..rehearsal.clone() };
    let left = blockers(Writes, &Bounds::of(Profile::Prod), &bad, &[rehearsal, forged]);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].to_string(), "way-back: it has not been measured; let `segue run` run until it has");
}

#[test]
fn the_way_back_asks_for_what_makes_it_work() {
    let asked = |gate: Gate| gate.line().asked_by.contains(&Reverse);
    // Whoever goes back is in trouble: nothing else may stand in the way.
    let asked: Vec<Gate> = TABLE.iter().map(|line| line.gate).filter(|gate| asked(*gate)).collect();
    assert_eq!(asked, [Gate::WayBack, Gate::Sequences]);
}

#[test]
fn a_gate_that_stays_green_remembers_since_when() {
    let green = |since_us| Verdict::Green { since_us };
    let red = || Verdict::Red(Red { why: String::new(), next: String::new() });
    assert_eq!(green(5).after(Some(&green(3))), green(3));
    assert_eq!(green(5).after(Some(&red())), green(5));
    assert_eq!(green(5).after(None), green(5));
    assert_eq!(red().after(Some(&green(3))), red());
}

#[test]
fn an_age_that_cannot_be_seen_is_never_young_enough() {
    let hidden = vec![(Duration::MAX, "pid 7, hidden".to_owned())];
    let evidence = Evidence { transactions: Some(hidden), ..good() };
    for profile in PROFILES {
        let why = why(Gate::LongTransactions, profile, &evidence);
        assert!(why.ends_with(": pid 7, hidden"), "{why}");
    }
}

#[test]
fn writes_do_not_go_where_their_stream_stands_still() {
    let mut evidence = opposite(true, false, 0);
    evidence.opposite = evidence.opposite.map(|opposite| Opposite { stands_still: true, ..opposite });
    let why = why(Gate::WayBack, Profile::Prod, &evidence);
    assert!(why.contains("stands still"), "{why}");
}

#[test]
fn what_is_hidden_about_a_replica_is_never_small_enough() {
    let hidden = vec![Replica { name: "b".to_owned(), lag_ms: u64::MAX }];
    let why = why(Gate::Replicas, Profile::Prod, &Evidence { replicas: Some(hidden), ..good() });
    assert!(why.ends_with(": b by what is shown to pg_read_all_stats only"), "{why}");
}

#[test]
fn evidence_from_the_future_does_not_stay_young() {
    let ahead = |us| Some(Verified { oldest_us: NOW_US + us, tables_left: 0 });
    let why = why(Gate::Verified, Profile::Prod, &Evidence { verified: ahead(2 * HOUR_US), ..good() });
    assert_eq!(why, "the last full verification lies 2 h in the future: the clock was put back");
    let evidence = Evidence { verified: ahead(1_000_000), ..good() };
    assert_eq!(blockers(Move::Writes, &Bounds::of(Profile::Prod), &evidence, &[]), [], "a second is no step");
}

#[test]
fn no_window_is_longer_than_the_longest() {
    for bounds in PROFILES.map(Bounds::of) {
        let all = [Some(bounds.lag_window), Some(bounds.drift_window), bounds.matches_window];
        assert!(all.into_iter().flatten().all(|window| window <= Bounds::WINDOW_MAX), "{bounds:?}");
        assert!(bounds.lag_window <= Bounds::LAG_WINDOW_MAX, "{bounds:?}");
    }
}

/// Good evidence, made bad for one gate alone.
fn bad_for(gate: Gate) -> Evidence {
    let mut evidence = good();
    match gate {
        Gate::Lag => evidence.lag_ms = minutes(1, 60_000),
        Gate::Drift => evidence.drift = minutes(72, Share { part: 1, whole: 1000 }),
        Gate::Matches => evidence.matches = minutes(24, Share { part: 900, whole: 1000 }),
        Gate::Mirror => {
            let differ = Share { part: 1, whole: 1000 };
            evidence.mirrored = Some(Mirrored { differ, ..Mirrored::default() });
        }
        Gate::Verified => evidence.verified = Some(Verified { oldest_us: NOW_US, tables_left: 1 }),
        Gate::Divergences => evidence.divergences_open = Some(1),
        Gate::WayBack => {
            evidence.opposite =
                Some(Opposite { is_armed: false, is_lost: false, behind_bytes: 0, stands_still: false })
        }
        Gate::Sequences => evidence.sequences_unready = Some(vec!["public.s".to_owned()]),
        Gate::Rehearsal => evidence.rehearsed_us = Some(NOW_US - 1_000 * HOUR_US),
        Gate::Ddl => evidence.ddl_differences = Some(vec!["public.t has lost a column".to_owned()]),
        Gate::Parity => evidence.parity = Some(vec![difference("index i", false)]),
        Gate::LongTransactions => {
            evidence.transactions = Some(vec![(Duration::from_secs(3600), "pid 7".to_owned())]);
        }
        Gate::Replicas => {
            evidence.replicas = Some(vec![Replica { name: "b".to_owned(), lag_ms: 60_000 }]);
        }
        Gate::Connections => evidence.connections = Some(Headroom { free: 99, needed: 100 }),
        Gate::Wraparound => evidence.wraparound_vacuums = Some(vec!["public.t".to_owned()]),
        Gate::Sessions => evidence.sessions_with_state = Some(vec!["pid 7 holds a lock".to_owned()]),
        Gate::Fence => evidence.ways_past_fence = Some(vec!["source: the subscription s".to_owned()]),
    }
    evidence
}

#[test]
fn each_gate_blocks_the_moves_that_ask_for_it_and_no_other_gate_is_red_for_it() {
    for line in TABLE {
        for profile in PROFILES {
            for what in MOVES {
                let bounds = Bounds::of(profile);
                let is_asked = line.asked_by.contains(&what)
                    && (line.gate != Gate::Matches || bounds.matches_window.is_some())
                    && (line.gate != Gate::Rehearsal || bounds.rehearsal_age_max.is_some());
                let found = blockers(what, &Bounds::of(profile), &bad_for(line.gate), &[]);
                let named: Vec<Gate> = found.iter().map(|blocker| blocker.gate).collect();
                let expected: &[Gate] = if is_asked { &[line.gate] } else { &[] };
                assert_eq!(named, expected, "{} for {what:?} in {profile}", line.name);
                assert!(found.iter().all(|blocker| blocker.may_be_overridden != line.protects_data));
            }
        }
    }
}

#[test]
fn writes_ask_for_every_gate_and_the_way_back_for_those_that_make_it_work() {
    let asked = |what| TABLE.iter().filter(|line| line.asked_by.contains(&what)).count();
    assert_eq!((asked(Writes), asked(Reverse)), (17, 2));
}

proptest! {
    #[test]
    fn a_window_counts_as_covered_only_with_samples_all_through_it(
        mut at in prop::collection::vec(0i64..100, 0..30), window in 0u64..100, gap in 1u64..30,
    ) {
        at.sort_unstable();
        let series = Series(at.iter().map(|at_us| Sample { at_us: *at_us, value: () }).collect());
        let (window_, gap_max) = (Duration::from_micros(window), Duration::from_micros(gap));
        let (samples, covers) = series.within(window_, gap_max, 100);
        // Every moment, and every one between two, has a sample at most a gap before it.
        let (window, gap) = (window as i64, gap as i64);
        let near = |half: i64| at.iter().any(|at| (half - 2 * gap..=half).contains(&(2 * at)));
        let all_through = (2 * (100 - window)..=200).all(near);
        prop_assert_eq!(!samples.is_empty() && covers >= window_, all_through && !samples.is_empty());
    }
}
