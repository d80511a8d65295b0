//! The governor against time that is only told.

use super::*;
use proptest::prelude::*;

const LOOK: Duration = Duration::from_millis(500);
const BACKFILLING: Facts = Facts { backfilling: true, lands_on: Some(Side::Target) };
const FOLLOWING: Facts = Facts { backfilling: false, lands_on: Some(Side::Target) };
const LIMIT: Bound = Bound::From(1_000.0);

/// A governor, and the time.
struct World {
    governor: Governor,
    now: Duration,
    facts: Facts,
    begun: Vec<String>,
    ended: Vec<Watched>,
}

fn replica(side: Side) -> Watched {
    Watched { signal: Signal::ReplicaLag, side: Some(side), name: "replica-2".into() }
}

impl World {
    /// As it is under way: the log that is kept is known.
    fn begin(facts: Facts) -> World {
        let (governor, now) = (Governor::default(), Duration::from_secs(100));
        World { governor, now, facts, begun: Vec::new(), ended: Vec::new() }
    }

    fn decide(&mut self) -> Shares {
        let decided = self.governor.decide(self.now, self.facts);
        self.begun.extend(decided.begun.iter().map(Reason::to_string));
        self.ended.extend(decided.ended);
        decided.shares
    }

    /// For so many looks, two a second, `watched` is read as `reading`, and little log is kept.
    fn looks(&mut self, count: u32, watched: &Watched, reading: &Reading) -> Shares {
        for _ in 0..count {
            self.now += LOOK;
            let retained = Watched::on(Signal::RetainedWal, Side::Source);
            if *watched != retained {
                self.governor.look(self.now, &retained, LIMIT, Reading::Value(1.0));
            }
            self.governor.look(self.now, watched, LIMIT, reading.clone());
            self.decide();
        }
        self.governor.shares()
    }

    fn values(&mut self, seconds: u32, watched: &Watched, value: f64) -> Shares {
        self.looks(seconds * 2, watched, &Reading::Value(value))
    }

    fn why(&self) -> Vec<String> {
        self.governor.reasons(self.now).iter().map(Reason::to_string).collect()
    }
}

fn percent(shares: Shares) -> [u8; 3] {
    [shares.backfill.percent(), shares.verify.percent(), shares.stream.percent()]
}

#[test]
fn every_signal_makes_the_copy_yield_within_a_look_and_says_which_it_is() {
    let texts = [
        "replica_lag 1.8 s >= 1 s on replica-2 (source) for 0 s",
        "apply_lag 1.8 s >= 1 s on the source for 0 s",
        "retained_wal 1.8 GiB >= 1 GiB on the source for 0 s",
        "active_sessions 1800 >= 1000 on the source for 0 s",
        "lock_waits 1800 >= 1000 on the source for 0 s",
        "answer 1.8 s >= 1 s on the source for 0 s",
        "probe_write 1.8 s >= 1 s on the source for 0 s",
        "query checkout p99 1800 > 1000 on the source for 0 s",
    ];
    for (signal, text) in Signal::ALL.into_iter().zip(texts) {
        let mut world = World::begin(BACKFILLING);
        let name = match signal {
            Signal::ReplicaLag => "replica-2",
            Signal::Query => "checkout p99",
            _ => "",
        };
        let watched = Watched { signal, side: Some(Side::Source), name: name.into() };
        let (bound, value) = match signal {
            Signal::Query => (Bound::Of(Limit::Above(1_000.0)), 1_800.0),
            Signal::RetainedWal => (Bound::From(f64::from(1 << 30)), 1.8 * f64::from(1 << 30)),
            _ => (LIMIT, 1_800.0),
        };
        assert_eq!(world.decide(), Shares::default());
        world.governor.look(world.now, &watched, bound, Reading::Value(value));
        let shares = world.decide();
        assert!(shares.backfill <= Share::FULL.halved(), "{signal:?}");
        assert_eq!((world.why(), world.begun.clone()), (vec![text.to_owned()], vec![text.to_owned()]));
        assert_eq!(world.ended, []);
    }
}

#[test]
fn a_query_may_have_its_limit_below() {
    let mut world = World::begin(BACKFILLING);
    let watched = Watched { signal: Signal::Query, side: None, name: "free".into() };
    let bound = Bound::Of(Limit::Below(10.0));
    world.governor.look(world.now, &watched, bound, Reading::Value(10.0));
    assert_eq!(world.decide(), Shares::default());
    world.governor.look(world.now, &watched, bound, Reading::Value(9.5));
    assert_eq!(percent(world.decide()), [50, 100, 100]);
    assert_eq!(world.why(), ["query free 9.5 < 10 on the control database for 0 s"]);
}

#[test]
fn the_copy_yields_first_then_comparisons_then_the_stream_which_never_stops() {
    let mut world = World::begin(BACKFILLING);
    let watched = replica(Side::Target);
    let mut seen = Vec::new();
    for _ in 0..13 {
        seen.push(percent(world.looks(1, &watched, &Reading::Value(5_000.0))));
    }
    let copy = [[50, 100, 100], [25, 100, 100], [13, 100, 100], [7, 100, 100], [0, 100, 100]];
    let comparisons = [[0, 50, 100], [0, 25, 100], [0, 13, 100], [0, 7, 100], [0, 0, 100]];
    assert_eq!((&seen[..5], &seen[5..10]), (&copy[..], &comparisons[..]));
    assert_eq!(seen[10..], [[0, 0, 50], [0, 0, 25], [0, 0, 25]]);

    // It comes back in the opposite order.
    let mut order = Vec::new();
    for _ in 0..200 {
        let before = world.governor.shares();
        let now = world.looks(1, &watched, &Reading::Value(0.0));
        assert!(now.stream.is_full() || now.verify == before.verify && now.backfill == before.backfill);
        assert!(now.verify >= now.backfill);
        order.push(now);
    }
    assert!(order.last().is_some_and(|shares| shares.are_full()));
}

#[test]
fn what_is_not_there_yields_for_nothing() {
    let mut world = World::begin(FOLLOWING);
    assert_eq!(percent(world.looks(1, &replica(Side::Source), &Reading::Value(5_000.0))), [50, 50, 100]);
}

#[test]
fn the_stream_yields_only_where_that_helps_and_never_while_log_piles_up() {
    let own_side = |signal| Watched::on(signal, Side::Target);
    for (watched, yields) in [
        (replica(Side::Target), true),
        (own_side(Signal::LockWaits), true),
        (own_side(Signal::ActiveSessions), true),
        (own_side(Signal::Answer), true),
        (replica(Side::Source), false),
        (Watched::on(Signal::LockWaits, Side::Source), false),
        (own_side(Signal::ApplyLag), false),
        (Watched { signal: Signal::Query, side: None, name: "q".into() }, false),
    ] {
        let shares = World::begin(FOLLOWING).values(30, &watched, 5_000.0);
        assert_eq!(percent(shares)[..2], [0, 0], "{watched:?}");
        assert_eq!(!shares.stream.is_full(), yields, "{watched:?}");
    }
    let mut world = World::begin(FOLLOWING);
    let retained = Watched::on(Signal::RetainedWal, Side::Source);
    assert_eq!(percent(world.values(30, &replica(Side::Target), 5_000.0)), [0, 0, 25]);
    for (what, reading) in [
        ("half of what may be kept", Reading::Value(500.0)),
        ("it is not known how much is kept", Reading::Unknown("no answer".into())),
    ] {
        world.governor.look(world.now, &retained, LIMIT, reading);
        world.governor.look(world.now, &replica(Side::Target), LIMIT, Reading::Value(5_000.0));
        world.now += LOOK;
        assert!(world.decide().stream.is_full(), "{what}");
        assert_eq!(percent(world.values(1, &replica(Side::Target), 5_000.0)), [0, 0, 25], "it may again");
    }
    world.facts.lands_on = None;
    assert!(world.decide().stream.is_full(), "nobody owns the writes: somebody waits for the stream");
}

#[test]
fn what_has_yielded_comes_back_by_itself() {
    let mut world = World::begin(BACKFILLING);
    let watched = replica(Side::Source);
    assert_eq!(percent(world.values(2, &watched, 2_000.0)), [7, 100, 100]);
    assert_eq!(percent(world.values(3, &watched, 100.0)), [7, 100, 100], "it may come again");
    assert_eq!(world.why(), ["replica_lag 100 ms < 1 s on replica-2 (source) again; it began 4 s ago"]);
    assert_eq!(percent(world.values(1, &watched, 100.0)), [13, 100, 100]);
    assert_eq!((world.ended.clone(), world.why()), (vec![watched.clone()], vec![]));
    assert_eq!(percent(world.values(8, &watched, 100.0)), [63, 100, 100], "step by step");
    assert_eq!(world.values(7, &watched, 100.0), Shares::default());
    assert_eq!(world.begun.len(), 1);
}

#[test]
fn a_signal_that_flaps_is_one_signal_and_gives_nothing_back() {
    let mut world = World::begin(BACKFILLING);
    let watched = replica(Side::Source);
    let mut before = Share::FULL;
    for _ in 0..60 {
        world.values(1, &watched, 1_000.0);
        let now = world.values(2, &watched, 0.0).backfill;
        assert!(now <= before);
        before = now;
    }
    assert!(before.is_nothing());
    assert_eq!((world.begun.len(), world.ended.len()), (1, 0));
}

#[test]
fn just_within_its_limit_a_signal_ends_late() {
    let mut world = World::begin(BACKFILLING);
    let watched = replica(Side::Source);
    world.values(3, &watched, 1_000.0);
    assert!(world.values(29, &watched, 999.0).backfill.is_nothing());
    assert!(!world.values(3, &watched, 999.0).backfill.is_nothing());
}

#[test]
fn what_cannot_be_measured_changes_nothing_for_a_while_and_then_counts_as_too_much() {
    let lost = Reading::Unknown("no answer within 1.8 s".into());
    let watched = Watched::on(Signal::LockWaits, Side::Source);
    let mut world = World::begin(BACKFILLING);
    assert_eq!(percent(world.values(1, &watched, 2_000.0)), [25, 100, 100]);
    assert_eq!(percent(world.looks(20, &watched, &lost)), [25, 100, 100], "neither less nor more");
    assert_eq!(percent(world.looks(2, &watched, &lost)), [7, 100, 100]);
    let text = "lock_waits cannot be measured on the source for 10 s: no answer within 1.8 s";
    assert_eq!(world.why(), [text]);
    assert!(world.values(4, &watched, 0.0).backfill > Share::LEAST, "and over when it can be");

    let mut world = World::begin(BACKFILLING);
    world.values(1, &watched, 0.0);
    world.looks(5, &watched, &lost);
    assert_eq!(
        (world.values(1, &watched, 0.0), world.why()),
        (Shares::default(), vec![]),
        "one that was lost"
    );
    let nonsense = Reading::Value(f64::NAN);
    world.looks(30, &watched, &nonsense);
    assert_eq!(world.why().len(), 1, "no number is no sample");
}

#[test]
fn one_look_lowers_once_however_old_it_grows() {
    let mut world = World::begin(BACKFILLING);
    let slow = Watched { signal: Signal::Query, side: None, name: "every ten seconds".into() };
    world.governor.look(world.now, &slow, LIMIT, Reading::Value(2_000.0));
    for _ in 0..20 {
        world.now += LOOK;
        assert_eq!(percent(world.decide()), [50, 100, 100]);
    }
    for _ in 0..20 {
        world.governor.look(world.now, &slow, LIMIT, Reading::Value(2_000.0));
        world.decide();
    }
    assert_eq!(percent(world.governor.shares()), [25, 100, 100], "and not more often than it can show");
}

#[test]
fn a_single_slow_write_lowers_once_and_holds_until_it_is_forgotten() {
    let mut world = World::begin(BACKFILLING);
    let watched = Watched::on(Signal::ProbeWrite, Side::Source);
    world.looks(1, &watched, &Reading::Value(2_000.0));
    assert_eq!(percent(world.looks(30, &watched, &Reading::Fading(2_000.0))), [50, 100, 100]);
    assert_eq!(world.why(), ["probe_write 2 s >= 1 s on the source for 15 s"]);
    assert_eq!(world.looks(40, &watched, &Reading::Value(1.0)), Shares::default());
}

#[test]
fn the_bound_of_the_log_stops_the_copy_at_once_also_when_nothing_else_counts() {
    for automatic in [true, false] {
        let mut world = World::begin(BACKFILLING);
        world.governor.set_automatic(automatic);
        let retained = Watched::on(Signal::RetainedWal, Side::Source);
        let shares = world.looks(1, &retained, &Reading::Value(1_000.0));
        assert!(shares.backfill.is_nothing() && shares.stream.is_full(), "automatic {automatic}");
        assert_eq!(world.why(), ["retained_wal 0 MiB >= 0 MiB on the source for 0 s"]);
        let shares = world.values(60, &retained, 100.0);
        assert_eq!((shares, world.ended.len()), (Shares::default(), 1), "automatic {automatic}");
    }
}

#[test]
fn without_automatic_limits_all_is_given_back_at_once_until_they_count_again() {
    let mut world = World::begin(BACKFILLING);
    let watched = replica(Side::Source);
    assert!(world.values(3, &watched, 9_000.0).backfill.is_nothing());
    world.governor.set_automatic(false);
    assert_eq!((world.decide(), world.why()), (Shares::default(), vec![]));
    assert_eq!(world.values(9, &watched, 9_000.0), Shares::default());
    world.governor.set_automatic(true);
    assert!(world.values(3, &watched, 9_000.0).backfill.is_nothing());
    assert_eq!(world.why(), ["replica_lag 9 s >= 1 s on replica-2 (source) for 14 s"]);
}

#[test]
fn a_standby_that_is_gone_is_waited_for_if_it_was_late_and_forgotten_then() {
    let mut world = World::begin(BACKFILLING);
    let look = |world: &mut World, found: &[(&str, f64)]| {
        world.now += LOOK;
        let found = found.iter().map(|(name, lag)| ((*name).to_owned(), Reading::Value(*lag)));
        world.governor.look_at_replicas(world.now, Side::Source, LIMIT, found.collect::<Vec<_>>());
        world.decide()
    };
    assert_eq!(percent(look(&mut world, &[("a", 0.0), ("b", 2_000.0)])), [50, 100, 100]);
    for _ in 0..20 {
        assert_eq!(percent(look(&mut world, &[("a", 0.0)])), [50, 100, 100], "neither less nor more");
    }
    assert_eq!(world.ended, []);
    for _ in 0..2 {
        look(&mut world, &[]);
    }
    assert_eq!((world.ended.len(), world.why()), (1, vec![]));
    world.governor.replicas_unknown(world.now, Side::Source, "no answer");
    assert_eq!(world.why(), Vec::<String>::new(), "of none that is known");
}

#[test]
fn what_is_hidden_is_named_and_counts_for_nothing() {
    let mut world = World::begin(BACKFILLING);
    let watched = Watched::on(Signal::ActiveSessions, Side::Target);
    let hidden = Reading::Hidden("GRANT pg_read_all_stats TO segue".into());
    assert_eq!(world.looks(60, &watched, &hidden), Shares::default());
    let text = "active_sessions is not watched on the target: GRANT pg_read_all_stats TO segue";
    assert_eq!(world.governor.unwatched(), [text]);
    world.values(1, &watched, 1.0);
    assert!(world.governor.unwatched().is_empty());
}

#[test]
fn a_signal_that_is_not_measured_any_more_holds_nothing() {
    let mut world = World::begin(BACKFILLING);
    let watched = Watched::on(Signal::ProbeWrite, Side::Source);
    world.values(2, &watched, 9_000.0);
    world.governor.forget(&watched);
    assert_eq!((world.why().len(), world.decide().are_full()), (0, false));
    assert_eq!(world.ended, [watched]);
    let other = Watched::on(Signal::Answer, Side::Source);
    assert!(world.values(20, &other, 1.0).are_full());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is read in whatever order, the stream goes on, comparisons come before the copy, and all is given back
    /// once all is well.
    #[test]
    fn nothing_yields_for_ever_or_out_of_turn(
        steps in proptest::collection::vec((0usize..8, 0u8..4, any::<bool>(), 1u64..3_000), 1..200)
    ) {
        let mut world = World::begin(BACKFILLING);
        let mut seen = Vec::new();
        for (signal, kind, on_source, later_ms) in steps {
            world.now += Duration::from_millis(later_ms);
            let side = if on_source { Side::Source } else { Side::Target };
            let watched = Watched::on(Signal::ALL[signal], side);
            let reading = match kind {
                0 => Reading::Value(0.0),
                1 => Reading::Value(5_000.0),
                2 => Reading::Unknown("lost".into()),
                _ => Reading::Hidden("grant it".into()),
            };
            world.governor.look(world.now, &watched, LIMIT, reading);
            let shares = world.decide();
            prop_assert!(shares.stream >= Share::LEAST_OF_A_STREAM && shares.verify >= shares.backfill);
            seen.push(watched);
        }
        for _ in 0..200 {
            world.now += LOOK;
            for watched in &seen {
                world.governor.look(world.now, watched, LIMIT, Reading::Value(0.0));
            }
            world.decide();
        }
        prop_assert!(world.governor.shares().are_full() && world.why().is_empty());
    }
}
