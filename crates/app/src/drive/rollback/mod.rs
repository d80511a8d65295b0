//! Rollback triggers: measures after a switch what the spec names, tells people, and takes the switch back.
//!
//! The decision is pure and lives in the model ([`segue_model::switch::rollback`]). Armed only while the target owns the
//! writes, and for a while: from the switch on, whatever restarts there are. What trips a trigger is in the journal before
//! anything is done about it, so that a later process goes on, and never fires for the same switch again. A reversal is
//! an order like any other; the switch carries it out, with its gates and its records.

mod past;
mod sample;

use super::Driver;
use super::flow::Flows;
use super::gates;
use super::switch::Order;
use super::switch::answer::{Answer, Progress};
use crate::report::RollbackState;
use past::Past;
use sample::{Drift, Measured, add, compared};
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::spec::{Measure, RollbackTrigger};
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::switch::decide::Asked;
use segue_model::switch::gates::Share;
use segue_model::switch::ownership::Epoch;
use segue_model::switch::rollback::{Evidence, Then, Verdict, Watch};
use segue_postgres::control::{Lease, StoredSample};
use segue_postgres::fence;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// How often it is looked whether a sample is due.
const TICK: Duration = Duration::from_millis(250);
/// What was compared for so long before the switch says what the drift was then.
const BEFORE: Duration = Duration::from_secs(3600);
/// What is stored within this time after the switch may have been compared before it.
const STORED_LATE_US: i64 = 12_000_000;
/// A reversal that was refused or undone is tried again after this time …
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// … and so often in all; then people are told.
const TRIES_MAX: u32 = 12;
/// What fired longer ago, while nobody ran to act upon it, is not acted upon any more: people are told.
const FIRED_MAX: Duration = Duration::from_secs(600);

/// The rollback triggers of one attempt.
pub(super) struct Rollback<'d> {
    driver: &'d Driver,
    lease: &'d Lease,
    flows: Arc<Flows>,
    orders: mpsc::Sender<Order>,
    shown: Mutex<Vec<RollbackState>>,
}

/// Why the triggers of a switch are not looked at any longer.
#[derive(PartialEq, Eq)]
enum Over {
    /// The time for it is up.
    Disarmed,
    /// The writes have changed hands.
    Moved,
}

impl<'d> Rollback<'d> {
    /// Nothing is armed yet. Reversals are ordered through `orders`.
    pub(super) fn new(
        (driver, lease): (&'d Driver, &'d Lease),
        flows: Arc<Flows>,
        orders: mpsc::Sender<Order>,
    ) -> Rollback<'d> {
        Rollback { driver, lease, flows, orders, shown: Mutex::default() }
    }

    /// The armed triggers, and what they have measured last.
    pub(super) fn state(&self) -> Vec<RollbackState> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Watches after each switch, as long as the attempt lasts. Ends with a fault.
    pub(super) async fn run(&self) -> Fault {
        let run = async {
            if self.triggers().is_empty() {
                return std::future::pending::<Outcome<std::convert::Infallible>>().await;
            }
            self.try_out().await;
            loop {
                self.owned_by(Side::Target).await;
                let over = tokio::select! {
                    over = self.watch() => over?,
                    () = self.owned_by(Side::Source) => Over::Moved,
                };
                self.show(Vec::new());
                if over == Over::Disarmed {
                    self.owned_by(Side::Source).await;
                }
            }
        };
        match run.await {
            Err(fault) => fault,
            Ok(never) => match never {},
        }
    }

    fn triggers(&self) -> &'d [RollbackTrigger] {
        &self.driver.spec.rollback.triggers
    }

    fn show(&self, states: Vec<RollbackState>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = states;
    }

    async fn owned_by(&self, side: Side) {
        if self.flows.owner.subscribe().wait_for(|owner| *owner == Some(side)).await.is_err() {
            std::future::pending().await
        }
    }

    /// Before a switch: asks every query once, so that one that cannot be answered is known while there is time.
    async fn try_out(&self) {
        let mut stage = self.flows.forward.stage.clone();
        tokio::select! {
            _ = stage.wait_for(|stage| *stage == Stage::Following) => {}
            () = self.owned_by(Side::Target) => return,
        }
        for trigger in self.triggers() {
            let Measure::Query { sql, on } = &trigger.measure else { continue };
            if let Err(why) = sample::gauge(&self.driver.sides, *on).number(sql).await {
                self.driver.warnings.say(format!(
                    "the rollback trigger {} has no sample now, and would not trip after a switch: {why}",
                    trigger.name
                ));
            }
        }
    }

    /// How often the writes had changed hands when the target got them.
    async fn epoch(&self) -> Outcome<Epoch> {
        let client = self.driver.sides.target.connect("rollback").await?;
        let row = fence::row(&client, self.driver.spec.name.as_str()).await?;
        let gone = || Fault::retry("SEGUE-NO-OWNER", "the target's ownership row cannot be found");
        row.map(|row| row.ownership.epoch()).ok_or_else(gone)
    }

    /// Watches after one switch.
    async fn watch(&self) -> Outcome<Over> {
        let epoch = self.epoch().await?;
        let past = Past::of(&self.driver.control.journal(0).await?, epoch);
        let (since_us, mut drift) = self.arm(epoch, &past).await?;
        let now_us = self.driver.control.now_us().await?;
        let gone = Duration::from_micros(u64::try_from(now_us - since_us).unwrap_or(0));
        let until = Instant::now() + self.driver.spec.rollback.watch.saturating_sub(gone);
        if let Some((name, fired_us)) = past.unfinished() {
            let is_fresh =
                now_us.saturating_sub(fired_us) <= i64::try_from(FIRED_MAX.as_micros()).unwrap_or(i64::MAX);
            let is_asked = |t: &RollbackTrigger| t.name == name && t.rule.then == Then::Reverse;
            let is_asked = self.triggers().iter().any(is_asked);
            if !is_asked || !is_fresh || Instant::now() >= until {
                let why = "nobody ran to take the switch back while it was fresh, or the spec does not ask for it any more";
                self.give_up(epoch, name, past.tries(), why).await?;
            } else if self.reverse(epoch, name, past.tries()).await? {
                return Ok(Over::Moved);
            }
        }
        let mut watch = Watch::new(self.triggers().iter().map(|t| t.rule), past.triggered.is_some());
        for (at, trigger) in self.triggers().iter().enumerate() {
            if past.alerting.contains(&trigger.name) {
                watch.was_alerting(at);
            }
        }
        let mut measured: Vec<Measured<'_>> =
            self.triggers().iter().map(|trigger| Measured::new(trigger, &self.driver.sides)).collect();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while Instant::now() < until {
            ticks.tick().await;
            if !measured.iter().any(Measured::is_due) {
                continue;
            }
            let now = self.drift(&mut drift).await?;
            let looks = measured.iter_mut().enumerate().filter(|(_, one)| one.is_due());
            let looks = looks.map(|(at, one)| async move { (at, one.look(now).await) });
            for (at, sample) in futures_util::future::join_all(looks).await {
                let verdict = watch.look(at, sample);
                if self.act(epoch, &self.triggers()[at], verdict).await? == Some(Over::Moved) {
                    return Ok(Over::Moved);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            let states = measured.iter().zip(watch.triggers()).map(|(one, trigger)| one.state(trigger, left));
            self.show(states.collect());
        }
        Ok(Over::Disarmed)
    }

    /// Since when the triggers of this switch are armed, and the drift of that moment. Written down the first time.
    async fn arm(&self, epoch: Epoch, past: &Past) -> Outcome<(i64, Drift)> {
        let control = &self.driver.control;
        let live = self.live();
        if let Some((armed_us, at_switch)) = past.armed {
            // An earlier process, or attempt, has compared since then: what it stored.
            let window = self.driver.spec.rollback.watch;
            let stored = control.samples(gates::DRIFT, window).await?;
            let earlier = sum(&stored, armed_us.saturating_add(STORED_LATE_US));
            let drift = Drift { armed_us, at_switch, earlier, base: live, now: Share::default() };
            return Ok((past.since_us(armed_us), drift));
        }
        let (stored, verified) = tokio::try_join!(
            control.samples(gates::DRIFT, BEFORE),
            control.samples(gates::VERIFICATIONS, BEFORE)
        )?;
        let at_switch = add(sum(&stored, i64::MIN), sum(&verified, i64::MIN));
        let names: Vec<&str> = self.triggers().iter().map(|trigger| trigger.name.as_str()).collect();
        let body = json!({ "epoch": epoch, "triggers": names, "at_switch": compared(at_switch),
            "watch_ms": self.driver.spec.rollback.watch.as_millis() as u64 });
        self.record("rollback-armed", body).await?;
        let armed_us = control.now_us().await?;
        let drift =
            Drift { armed_us, at_switch, earlier: Share::default(), base: live, now: Share::default() };
        Ok((past.since_us(armed_us), drift))
    }

    /// What live comparison has come to since this attempt began.
    fn live(&self) -> Share {
        let live = self.flows.active().verifying.live();
        Share { part: live.divergent, whole: live.compared }
    }

    /// The drift since the switch, by live comparison and verifications; only rows that were compared since then count.
    async fn drift(&self, drift: &mut Drift) -> Outcome<Drift> {
        if self.triggers().iter().any(|trigger| trigger.measure == Measure::Drift) {
            let window = self.driver.spec.rollback.watch;
            let verified = self.driver.control.samples(gates::VERIFICATIONS, window).await?;
            drift.compared(self.live(), sum(&verified, drift.armed_us));
        }
        Ok(*drift)
    }

    /// Does what a verdict asks for. `Some`: these triggers are not to be looked at any longer.
    async fn act(&self, epoch: Epoch, trigger: &RollbackTrigger, verdict: Verdict) -> Outcome<Option<Over>> {
        match verdict {
            Verdict::Hold => {}
            Verdict::Alert(evidence) => {
                self.record("rollback-alert", told(epoch, trigger, &evidence)).await?;
                self.driver.screen.say(&format!(
                    "rollback trigger {}: alert: {}",
                    trigger.name,
                    words(&evidence, trigger)
                ));
            }
            Verdict::Recovered => {
                self.record("rollback-recovered", json!({ "epoch": epoch, "trigger": trigger.name })).await?;
                self.driver.screen.say(&format!("rollback trigger {}: it has recovered", trigger.name));
            }
            Verdict::Reverse(evidence) => {
                // Another hand-over may have begun and ended between two looks at the owner.
                if self.epoch().await? != epoch {
                    return Ok(Some(Over::Moved));
                }
                self.record("rollback-triggered", told(epoch, trigger, &evidence)).await?;
                let words = words(&evidence, trigger);
                self.driver.screen.say(&format!(
                    "rollback trigger {}: {words}; the writes go back to the source",
                    trigger.name
                ));
                if self.reverse(epoch, &trigger.name, 0).await? {
                    return Ok(Some(Over::Moved));
                }
            }
        }
        Ok(None)
    }

    /// Has the writes moved back; `false`: it was given up. That it was triggered is in the journal; it was tried `tries`
    /// times already, attempts that ended with their order among them: no order is given that is not written down.
    async fn reverse(&self, epoch: Epoch, name: &str, tries: u32) -> Outcome<bool> {
        killpoint::pass("rollback.triggered");
        for attempt in tries + 1..=TRIES_MAX {
            if attempt > 1 {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            let body = json!({ "epoch": epoch, "trigger": name, "attempt": attempt });
            self.record("rollback-ordered", body).await?;
            let Some(why) = self.order(epoch, name).await? else { return Ok(true) };
            let body = json!({ "epoch": epoch, "trigger": name, "attempt": attempt, "why": why });
            self.record("rollback-refused", body).await?;
            self.driver.screen.say(&format!(
                "rollback trigger {name}: the writes could not go back to the source ({attempt} of {TRIES_MAX}): {why}"
            ));
            self.driver.warnings.say(format!("the rollback trigger {name} was held up: {why}"));
        }
        self.give_up(epoch, name, TRIES_MAX, "it was tried often enough").await?;
        Ok(false)
    }

    /// Leaves it to people.
    async fn give_up(&self, epoch: Epoch, name: &str, tries: u32, why: &str) -> Outcome<()> {
        let body = json!({ "epoch": epoch, "trigger": name, "attempts": tries, "why": why });
        self.record("rollback-given-up", body).await?;
        self.driver.warnings.say(format!(
            "the rollback trigger {name} has fired and the target still owns the writes, after {tries} tries ({why}): \
             `segue journal` says what came of them; `segue reverse` tries again"
        ));
        Ok(())
    }

    /// Gives the order of `segue reverse` for this very switch, and returns why it came to nothing, if it did.
    async fn order(&self, epoch: Epoch, name: &str) -> Outcome<Option<String>> {
        let (progress, _) = watch::channel(Progress::default());
        let (answer, answered) = oneshot::channel();
        let by = format!("rollback trigger {name}");
        let (asked, overrides) = (Asked::Reverse, Vec::new());
        let order = Order { asked, from: Side::Target, overrides, of: Some(epoch), by, progress, answer };
        if self.orders.send(order).await.is_err() {
            // The attempt ends; the next one finds in the journal what is to be done.
            return std::future::pending().await;
        }
        match answered.await {
            Ok(Ok(Answer::Switched(_) | Answer::Already(_))) => Ok(None),
            Ok(Ok(Answer::Refused { blockers, .. })) => {
                let blockers: Vec<String> =
                    blockers.iter().map(|b| format!("{}: {}", b.gate, b.why)).collect();
                Ok(Some(blockers.join("; ")))
            }
            Ok(Ok(Answer::Undone(undone))) => Ok(Some(undone.why)),
            Ok(Ok(Answer::Rehearsed(_))) => {
                Err(Fault::bug("SEGUE-SWITCH", "a reversal was answered with a rehearsal"))
            }
            Ok(Err(fault)) => match fault.recovery {
                Recovery::Operator => Ok(Some(fault.what)),
                // It ends the attempt by itself.
                Recovery::Retry | Recovery::Ambiguous | Recovery::Bug => std::future::pending().await,
            },
            Err(_) => std::future::pending().await,
        }
    }

    async fn record(&self, kind: &'static str, body: Value) -> Outcome<()> {
        self.driver.record(self.lease, kind, body).await.map(drop)
    }
}

/// What samples stored after a moment come to.
fn sum(samples: &[StoredSample], after_us: i64) -> Share {
    let later = samples.iter().filter(|sample| sample.at_us > after_us);
    later.fold(Share::default(), |all, one| add(all, Share { part: one.part, whole: one.whole }))
}

/// The record of what tripped a trigger.
fn told(epoch: Epoch, trigger: &RollbackTrigger, evidence: &Evidence) -> Value {
    let measured = match &trigger.measure {
        Measure::Drift => json!("drift since the switch, in parts per million"),
        Measure::Query { sql, on } => json!({ "query": sql, "on": on.name() }),
    };
    json!({ "epoch": epoch, "trigger": trigger.name, "then": trigger.rule.then, "measured": measured,
        "limit": trigger.rule.limit.to_string(), "values": evidence.values,
        "every_ms": trigger.every.as_millis() as u64 })
}

fn words(evidence: &Evidence, trigger: &RollbackTrigger) -> String {
    let values: Vec<String> = evidence.values.iter().map(f64::to_string).collect();
    format!("{} in a row {}: {}", values.len(), trigger.rule.limit, values.join(", "))
}

/// What the status warns of: triggers that have told people, and have not recovered.
pub(super) fn warnings(states: &[RollbackState]) -> impl Iterator<Item = String> {
    states.iter().filter(|state| state.alerting).map(|state| {
        let value = state.value.unwrap_or_default();
        let instead =
            if state.then == Then::Reverse { "; this switch was to be taken back before" } else { "" };
        format!("the rollback trigger {} alerts: {value}, {}{instead}", state.name, state.limit)
    })
}
