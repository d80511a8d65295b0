//! Yielding: how busy the servers are with others is looked at all the time, and Segue takes what is left.
//!
//! What follows from a look is decided in the model ([`segue_model::throttle`]); how a share is kept to is known to the
//! engine's throttle. A look that fails is no fault of the migration: it is taken again, and what is not known for long
//! counts as too much. The operator's limits stay above all this.

mod look;
mod orders;

pub(super) use orders::{obey, restore};

use super::Driver;
use super::flow::Flows;
use crate::report::{ReasonState, ThrottleState};
use futures_util::future::join_all;
use look::{Eye, Seen};
use segue_engine::throttle::Left;
use segue_model::spec::{Database, ThrottleQuery};
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::throttle::{
    Bound, Decided, Facts, Governor, Probes, Reading, Reason, Share, Signal, Trail, Watched,
};
use segue_postgres::health::Load;
use segue_postgres::measure::Gauge;
use segue_postgres::probe::Probe;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{Interval, MissedTickBehavior};

/// How often a side is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it is decided anew.
const DECIDE_EVERY: Duration = Duration::from_millis(250);
/// How often the small write is made.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The governor of one process, over all attempts.
#[derive(Debug)]
pub(crate) struct Governing {
    since: Instant,
    governor: Mutex<Governor>,
}

impl Governing {
    /// Nothing is known yet, and nothing yields.
    pub(super) fn new() -> Governing {
        Governing { since: Instant::now(), governor: Mutex::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Governor, Duration) -> T) -> T {
        // What a panic may have left half done is decided anew in a moment.
        let mut governor = self.governor.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut governor, self.since.elapsed())
    }
}

/// Looks at the servers during one attempt.
pub(super) struct Yielding<'d> {
    driver: &'d Driver,
    flows: Arc<Flows>,
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl<'d> Yielding<'d> {
    /// Begins nothing yet.
    pub(super) fn new(driver: &'d Driver, flows: Arc<Flows>) -> Yielding<'d> {
        Yielding { driver, flows }
    }

    /// Looks and decides, for ever. Each look has its own pace: a server that hangs keeps none but its own waiting.
    pub(super) async fn run(&self) -> Infallible {
        let queries = async {
            join_all(self.driver.spec.throttle.queries.iter().map(|query| self.ask(query))).await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            never = self.watch(Side::Source) => never,
            never = self.watch(Side::Target) => never,
            never = self.probe() => never,
            never = queries => never,
            never = self.govern() => never,
        }
    }

    fn look(&self, watched: &Watched, bound: Bound, reading: Reading) {
        self.driver.governing.with(|governor, now| governor.look(now, watched, bound, reading));
    }

    fn forget(&self, watched: &Watched) {
        self.driver.governing.with(|governor, _| governor.forget(watched));
    }

    async fn watch(&self, side: Side) -> Infallible {
        let endpoint = match side {
            Side::Source => &self.driver.sides.source,
            Side::Target => &self.driver.sides.target,
        };
        let (mut eye, mut trail) = (Eye::of(endpoint.clone()), Trail::default());
        let mut ticks = ticks(LOOK_EVERY);
        loop {
            ticks.tick().await;
            let slot = self.flows.landing_on(side.other()).map(|flow| flow.slot.clone());
            let seen = eye.look(slot.as_deref()).await;
            self.take_in(side, slot.is_some(), seen, &mut trail);
        }
    }

    /// What a look at a side says of its signals.
    fn take_in(&self, side: Side, has_slot: bool, seen: Seen, trail: &mut Trail) {
        let limits = &self.driver.spec.throttle;
        let on = |signal| Watched::on(signal, side);
        let bound = |signal: Signal| {
            Bound::From(match signal {
                Signal::ActiveSessions => limits.active_sessions_max as f64,
                Signal::LockWaits => limits.lock_waits_max as f64,
                Signal::RetainedWal => self.driver.spec.limits.retained_wal_bytes_max as f64,
                Signal::ReplicaLag => ms(limits.replica_lag_max),
                Signal::ApplyLag => ms(limits.apply_lag_max),
                Signal::Answer => ms(limits.answer_max),
                Signal::ProbeWrite | Signal::Query => ms(limits.probe_write_max),
            })
        };
        let look = |signal, reading| self.look(&on(signal), bound(signal), reading);
        if !has_slot {
            self.forget(&on(Signal::RetainedWal));
        }
        let (load, retained_bytes, took, blind) = match seen {
            Seen::Whole { load, retained_bytes, took, blind } => (load, retained_bytes, took, blind),
            Seen::Late(took) => {
                look(Signal::Answer, Reading::Value(ms(took)));
                return self.take_in_nothing(
                    side,
                    has_slot,
                    &format!("no answer within {:.1} s", took.as_secs_f64()),
                );
            }
            Seen::Failed(why) => {
                look(Signal::Answer, Reading::Unknown(why.clone()));
                return self.take_in_nothing(side, has_slot, &why);
            }
        };
        look(Signal::Answer, Reading::Value(ms(took)));
        if let Some(retained) = retained_bytes {
            look(Signal::RetainedWal, Reading::Value(retained as f64));
        }
        let sessions = |count: u64| match &blind {
            Some(grant) if load.is_partly_hidden => Reading::Hidden(grant.clone()),
            Some(_) | None => Reading::Value(count as f64),
        };
        look(Signal::ActiveSessions, sessions(load.active_sessions));
        look(Signal::LockWaits, sessions(load.lock_waits));
        self.driver.governing.with(|governor, now| {
            let replicas = replicas(&load, &limits.replicas_ignored, blind.as_deref(), trail, now);
            governor.look_at_replicas(now, side, bound(Signal::ReplicaLag), replicas);
        });
        self.apply_lag(side, &load, bound(Signal::ApplyLag));
    }

    fn take_in_nothing(&self, side: Side, has_slot: bool, why: &str) {
        let limits = &self.driver.spec;
        let unknown = |signal, bound: f64| {
            self.look(&Watched::on(signal, side), Bound::From(bound), Reading::Unknown(why.to_owned()));
        };
        unknown(Signal::ActiveSessions, limits.throttle.active_sessions_max as f64);
        unknown(Signal::LockWaits, limits.throttle.lock_waits_max as f64);
        if has_slot {
            unknown(Signal::RetainedWal, limits.limits.retained_wal_bytes_max as f64);
        }
        self.driver.governing.with(|governor, now| governor.replicas_unknown(now, side, why));
    }

    /// How late the stream from `side` is, by that server's own clock: commits carry its times.
    fn apply_lag(&self, side: Side, load: &Load, bound: Bound) {
        let watched = Watched::on(Signal::ApplyLag, side.other());
        let flow = self.flows.landing_on(side.other()).filter(|_| *self.flows.owner.borrow() == Some(side));
        let Some(flow) = flow else { return self.forget(&watched) };
        let lag_us = flow.progress.oldest_us().map_or(0, |at| load.clock_us.saturating_sub(at));
        self.look(&watched, bound, Reading::Value(lag_us as f64 / 1000.0));
    }

    /// Writes to the side that owns the writes, as its users do.
    async fn probe(&self) -> Infallible {
        let throttle = &self.driver.spec.throttle;
        if !throttle.probe_write {
            return std::future::pending().await;
        }
        let bound = Bound::From(ms(throttle.probe_write_max));
        let mut ticks = ticks(PROBE_EVERY);
        let mut probing: Option<(Side, Probe, Probes)> = None;
        loop {
            ticks.tick().await;
            let owner = *self.flows.owner.borrow();
            if let Some((side, ..)) = &probing
                && Some(*side) != owner
            {
                self.forget(&Watched::on(Signal::ProbeWrite, *side));
                probing = None;
            }
            let Some(owner) = owner else { continue };
            let (_, probe, taken) = probing.get_or_insert_with(|| {
                let sides = &self.driver.sides;
                let endpoint = if owner == Side::Source { &sides.source } else { &sides.target };
                (owner, Probe::of(endpoint.clone(), self.driver.spec.name.as_str()), Probes::default())
            });
            let reading = match probe.write().await {
                Ok(took) => {
                    taken.took(took);
                    let p99 = ms(taken.p99().unwrap_or(took));
                    if took < throttle.probe_write_max { Reading::Fading(p99) } else { Reading::Value(p99) }
                }
                Err(why) => Reading::Unknown(why),
            };
            self.look(&Watched::on(Signal::ProbeWrite, owner), bound, reading);
        }
    }

    /// Asks one of the operator's queries, again and again.
    async fn ask(&self, query: &ThrottleQuery) {
        let side = match query.on {
            Database::Source => Some(Side::Source),
            Database::Target => Some(Side::Target),
            Database::Control => None,
        };
        let watched = Watched { signal: Signal::Query, side, name: query.name.clone() };
        let mut gauge = Gauge::of(self.driver.sides.of_database(query.on).clone(), "throttle");
        let mut ticks = ticks(query.every);
        loop {
            ticks.tick().await;
            let reading = gauge.number(&query.sql).await.map_or_else(Reading::Unknown, Reading::Value);
            self.look(&watched, Bound::Of(query.limit), reading);
        }
    }

    async fn govern(&self) -> Infallible {
        let mut ticks = ticks(DECIDE_EVERY);
        loop {
            ticks.tick().await;
            let facts = Facts {
                backfilling: self.flows.stage() == Stage::Backfilling,
                lands_on: self.flows.owner.borrow().map(Side::other),
            };
            let (decided, reasons) = self.driver.governing.with(|governor, now| {
                let decided = governor.decide(now, facts);
                (decided, governor.reasons(now))
            });
            self.act(&decided, &reasons);
        }
    }

    /// Lets everything take what is left for it.
    fn act(&self, decided: &Decided, reasons: &[Reason]) {
        for reason in &decided.begun {
            tracing::info!("Segue yields: {reason}");
        }
        for ended in &decided.ended {
            tracing::info!("Segue need not yield any more: {} on {}", ended.what(), ended.place());
        }
        let shares = decided.shares;
        let left = |share: Share, workers| Left { share, workers, why: why(share, reasons) };
        let pieces = left(shares.backfill, self.driver.spec.copy.workers);
        self.driver.throttle.change(|limits| (limits.pieces, limits.stream) = (pieces, shares.stream));
        for side in Side::ALL {
            if let Some(flow) = self.flows.landing_on(side) {
                flow.verifying.leave(left(shares.verify, 1));
            }
        }
    }
}

/// Why not everything is left; what it was lowered for may be over.
fn why(share: Share, reasons: &[Reason]) -> String {
    match reasons.first() {
        _ if share.is_full() => String::new(),
        Some(reason) => reason.to_string(),
        None => "it comes back step by step after it has yielded".to_owned(),
    }
}

/// The standbys of a look, each as late as the worse of what it says and of what its place in the log says.
fn replicas(
    load: &Load,
    ignored: &[String],
    blind: Option<&str>,
    trail: &mut Trail,
    now: Duration,
) -> Vec<(String, Reading)> {
    if let Some(flushed) = load.flushed {
        trail.passed(now, flushed);
    }
    let reading = |standing: &segue_postgres::health::Standing| match (standing.replica.lag_ms, blind) {
        (u64::MAX, grant) => Reading::Hidden(grant.unwrap_or("it says nothing").to_owned()),
        (lag_ms, _) => {
            let behind = standing.replayed.map_or(Duration::ZERO, |place| trail.behind(now, place));
            Reading::Value((lag_ms as f64).max(ms(behind)))
        }
    };
    // Standbys can share a name, and do by default: the one that is worst off counts.
    let mut worst: BTreeMap<String, Reading> = BTreeMap::new();
    for standing in load.standbys.iter().filter(|standing| !ignored.contains(&standing.replica.name)) {
        let now = reading(standing);
        let known = worst.entry(standing.replica.name.clone()).or_insert_with(|| now.clone());
        let is_worse = match (&now, &*known) {
            (Reading::Value(now), Reading::Value(known)) => now > known,
            // What is hidden holds nothing back, and must not hide one that is late.
            (Reading::Value(_), _) => true,
            _ => false,
        };
        if is_worse {
            *known = now;
        }
    }
    worst.into_iter().collect()
}

/// What is left to Segue, and why, as people see it.
pub(super) fn state(driver: &Driver) -> ThrottleState {
    let limits = driver.throttle.limits();
    let (shares, automatic, reasons, unwatched) = driver.governing.with(|governor, now| {
        (governor.shares(), governor.is_automatic(), governor.reasons(now), governor.unwatched())
    });
    ThrottleState {
        automatic,
        workers_max: limits.workers_max.map(|workers| workers as u64),
        bytes_per_s_max: limits.bytes_per_s_max,
        backfill_percent: shares.backfill.percent(),
        verify_percent: shares.verify.percent(),
        stream_percent: shares.stream.percent(),
        reasons: reasons.iter().map(ReasonState::of).collect(),
        unwatched,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_postgres::health::{Replica, Standing};

    fn found(standbys: &[(&str, u64)], ignored: &[String]) -> Vec<(String, Reading)> {
        let standing = |(name, lag_ms): &(&str, u64)| {
            let replica = Replica { name: (*name).to_owned(), lag_ms: *lag_ms };
            Standing { replica, replayed: None, flushed: None }
        };
        let load = Load {
            clock_us: 0,
            active_sessions: 0,
            lock_waits: 0,
            is_partly_hidden: false,
            flushed: None,
            standbys: standbys.iter().map(standing).collect(),
        };
        replicas(&load, ignored, None, &mut Trail::default(), Duration::ZERO)
    }

    #[test]
    fn of_standbys_that_share_a_name_the_latest_counts_wherever_it_stands() {
        for lags in [[9_000, 3], [3, 9_000], [u64::MAX, 9_000], [9_000, u64::MAX]] {
            let found = found(&lags.map(|lag| ("walreceiver", lag)), &[]);
            assert_eq!(found, [("walreceiver".to_owned(), Reading::Value(9_000.0))], "{lags:?}");
        }
    }

    #[test]
    fn a_standby_that_may_be_late_is_not_looked_at() {
        let standbys = [("delayed", 3_600_000), ("other", 5)];
        let found = found(&standbys, &["delayed".to_owned()]);
        assert_eq!(found, [("other".to_owned(), Reading::Value(5.0))]);
    }
}
