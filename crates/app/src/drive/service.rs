//! What the driver does beside copying and following: heartbeat, status, commands, and watching the source's health.

use super::back::{BackState, WayBack};
use super::complete::fault_json;
use super::flow::Flows;
use super::gates::{BASELINE, Comparisons, Gates};
use super::reads::ReadOrders;
use super::rollback::{self, Rollback};
use super::switch::{self, Order, Switch};
use super::throttle::Yielding;
use super::verifying::VerifyOrder;
use super::{Driver, contain, stream, throttle};
use crate::report::{GateState, Owner, RunState, SlotState, Status, WayBackIs, WayBackState};
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_engine::verify::report::{Report, TableReport};
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_postgres::asking::Remembering;
use segue_postgres::catalog::server;
use segue_postgres::control::{Command, Lease};
use serde_json::{Value, json};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::timeout;

/// How often the heart beats and the status is stored.
const BEAT: Duration = Duration::from_secs(1);
/// How often it is looked whether commits on the source wait for Segue: the longest that one can.
const GUARD: Duration = Duration::from_secs(1);
/// How often what was written past a fence is written down: the longest that a stream waits for that.
const STRAYS: Duration = Duration::from_millis(100);
/// So many of these looks for one at the slot …
const SLOT_LOOKS: u64 = 3;
/// … the last of which is old where the source does not answer.
const SLOT_STALE: Duration = Duration::from_secs(15);
/// How long the first status waits for the first look.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How often the source is given a new number: so much of what it forgets when it is restored can go unnoticed.
const NUMBER: Duration = Duration::from_secs(5);

/// The driver's service during one attempt.
pub(super) struct Service<'d> {
    pub(super) driver: &'d Driver,
    pub(super) lease: &'d Lease,
    pub(super) flows: Arc<Flows>,
    pub(super) back: Arc<WayBack<'d>>,
    pub(super) switch: Arc<Switch<'d>>,
    pub(super) gates: Arc<Mutex<Gates<'d>>>,
    pub(super) rollback: Arc<Rollback<'d>>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) completions: mpsc::Sender<Command>,
    pub(super) read_orders: ReadOrders,
    pub(super) warnings: Vec<String>,
    /// Hears what verifications have compared.
    pub(super) comparisons: Comparisons,
    /// What the gates said last, and what is wrong with the servers.
    pub(super) seen: std::sync::Mutex<(Vec<GateState>, Vec<String>)>,
    /// How the slot was when it was looked at last, and when that was.
    pub(super) slot: watch::Sender<Option<(SlotState, Instant)>>,
}

impl Service<'_> {
    /// Serves until something ends the attempt: `Ok` says why it was meant to end.
    pub(super) async fn serve(&self) -> Outcome<String> {
        let yielding = Yielding::new(self.driver, self.flows.clone());
        tokio::select! {
            ended = self.beat() => ended,
            ended = self.report() => ended,
            ended = self.watch_source() => ended,
            ended = self.commands() => ended,
            ended = self.read_orders() => ended,
            ended = self.stages() => ended,
            ended = self.watch_gates() => ended,
            ended = self.tell_strays() => ended,
            ended = self.number_owner() => ended,
            why = self.told_to_end() => Ok(why),
            never = yielding.run() => match never {},
            () = self.flows.forward.verifying.run_live() => std::future::pending().await,
        }
    }

    /// Journals the stage that the run reaches, and ends at the one that was asked for.
    async fn stages(&self) -> Outcome<String> {
        let (mut forward, mut owner) = (self.flows.forward.stage.clone(), self.flows.owner.subscribe());
        let mut said = self.flows.stage();
        // Its stage changes no more once the stream is lost; who owns the writes may.
        let mut runs = true;
        let mut told = false;
        loop {
            let now = self.flows.stage();
            if now.has_reached(Stage::Following) && !told {
                stream::tell_differences(self.driver, self.lease).await?;
                told = true;
            }
            if self.driver.until.is_some_and(|until| now.has_reached(until)) {
                self.switch.is_over().await;
                self.publish().await?;
                return Ok(format!("stage {now} is reached; `segue run` goes on from here"));
            }
            if now != said {
                self.driver.record(self.lease, now.name(), json!({ "token": self.lease.token })).await?;
                said = now;
            }
            tokio::select! {
                changed = forward.changed(), if runs => runs = changed.is_ok(),
                changed = owner.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }

    /// Measures what the gates of the next hand-over are judged by, from when everything is copied on.
    async fn watch_gates(&self) -> Outcome<String> {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let owner = *self.flows.owner.borrow();
            let Some(owner) = owner.filter(|_| self.flows.stage().has_reached(Stage::Following)) else {
                continue;
            };
            let measured = self.switch.measured(owner).await?;
            let mut gates = self.gates.lock().await;
            gates.look(measured).await?;
            let baseline = gates.new_baseline();
            let states = gates.state(switch::move_from(owner));
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = (states, gates.trouble());
            drop(gates);
            if let Some(baseline) = baseline {
                self.driver.record(self.lease, BASELINE, baseline).await?;
            }
        }
    }

    /// Journals what was written on a side that does not own the writes, and warns of it. A stream waits for it.
    async fn tell_strays(&self) -> Outcome<String> {
        let mut ticks = tokio::time::interval(STRAYS);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for side in Side::ALL {
                let Some(flow) = self.flows.landing_on(side.other()) else { continue };
                let all = flow.admissions.strays();
                let Some(strays) = all.untold() else { continue };
                self.driver.record(self.lease, "stray", json!({ "side": side, "strays": strays })).await?;
                killpoint::pass("stray.told");
                all.told(&strays);
                let count = strays.counts.changes;
                self.driver.warnings.say(format!(
                    "{count} change(s) were written on the {side} past its fence and were not applied to the owner \
                     (`segue journal` lists them as `stray`): the sides differ there; `segue verify --repair` mends it"
                ));
            }
        }
    }

    /// Beats the heart, and does nothing else: a source that hangs must not look like a dead driver.
    async fn beat(&self) -> Outcome<String> {
        loop {
            self.driver.control.beat(self.lease).await?;
            tokio::time::sleep(BEAT).await;
        }
    }

    async fn report(&self) -> Outcome<String> {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A first look takes no time; a source that does not answer is told of without it.
        let _ = timeout(FIRST_LOOK, self.slot.subscribe().wait_for(Option::is_some)).await;
        loop {
            ticks.tick().await;
            self.flows.active().verifying.make_room().await?;
            self.publish().await?;
        }
    }

    /// Looks whether Segue's own walsender has become a standby that commits wait for, and how the slot is. It waits for
    /// nothing but the source: a control database or a target that hangs is when the first matters most.
    async fn watch_source(&self) -> Outcome<String> {
        let client = Remembering::connect(&self.driver.sides.source, "guard").await?;
        let slot = &self.flows.forward.slot;
        for look in 0u64.. {
            if let Some(fault) = server::synchronous_walsender(&client, slot).await? {
                return Err(fault);
            }
            if look % SLOT_LOOKS == 0 {
                let state = server::slot_state(&client, slot).await?;
                let seen = SlotState {
                    name: slot.clone(),
                    retained_bytes: state.retained_bytes,
                    retained_bytes_max: self.driver.spec.limits.retained_wal_bytes_max,
                    wal_status: state.wal_status,
                    signal: 0,
                };
                self.slot.send_replace(Some((seen, Instant::now())));
            }
            tokio::time::sleep(GUARD).await;
        }
        Ok(String::new())
    }

    /// Numbers the owner's history: a source that was restored to what it was between two numbers, and has grown over since,
    /// would else look as if it went on, and a server that sends nothing as if it had nothing to send.
    async fn number_owner(&self) -> Outcome<String> {
        loop {
            let owner = *self.flows.owner.borrow();
            if let Some(flow) = owner.and_then(|owner| self.flows.landing_on(owner.other())) {
                match flow.verifying.number().await {
                    Ok(signal) => flow.progress.signalled(signal),
                    // An owner that takes no row of ours for a while is no reason to stop following it.
                    Err(Fault { recovery: Recovery::Operator, code, what, .. })
                        if code != "SEGUE-SUPERSEDED" =>
                    {
                        tracing::warn!("the owner's history could not be numbered: {what}");
                    }
                    Err(fault) => return Err(fault),
                }
            }
            tokio::time::sleep(NUMBER).await;
        }
    }

    async fn publish(&self) -> Outcome<()> {
        let status = self.status();
        self.driver.screen.show(&status);
        self.driver.control.publish_status(self.lease, &json!(status)).await
    }

    fn status(&self) -> Status {
        let Driver { spec, sides, throttle: limits, holder, .. } = self.driver;
        let run = limits.limits().paused.map_or(RunState::Running, |why| RunState::Paused { why });
        let (gates, trouble) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut warnings = self.warnings.clone();
        warnings.extend(self.driver.warnings.said());
        let rollback = self.rollback.state();
        warnings.extend(rollback::warnings(&rollback));
        let active = self.flows.active();
        warnings.extend(active.verifying.ended());
        let (slot, seen) = self.slot.borrow().clone().unzip();
        let slot = slot.unwrap_or_default();
        if let Some(since) = seen.map(|seen| seen.elapsed()).filter(|since| *since > SLOT_STALE) {
            warnings.push(format!(
                "the source has not told how the slot is for {} s: what is said of it was so then",
                since.as_secs()
            ));
        }
        if slot.retained_bytes > slot.retained_bytes_max && slot.retained_bytes_max > 0 {
            warnings.push(
                "the source keeps more log for the stream than `limits.retained_wal_bytes_max` allows; the backfill yields"
                    .to_owned(),
            );
        }
        let signal = self.flows.forward.progress.watch_applied().borrow().signal;
        Status {
            migration: spec.name.as_str().to_owned(),
            stage: self.flows.stage(),
            owner: self.flows.owner.borrow().map_or(Owner::Ambiguous, Owner::from),
            run,
            source: sides.source.to_string(),
            target: sides.target.to_string(),
            driver: holder.clone(),
            token: self.lease.token,
            progress: active.progress.snapshot(),
            slot: SlotState { signal, ..slot },
            live: active.verifying.live(),
            warnings,
            way_back: self.way_back(),
            gates,
            trouble,
            rollback,
            throttle: throttle::state(self.driver),
        }
    }

    /// The stream that comes from the side which does not own the writes.
    fn way_back(&self) -> WayBackState {
        let owner = self.flows.owner.borrow().unwrap_or(Side::Source);
        let lag = self.flows.landing_on(owner).map(|flow| flow.progress.snapshot());
        let (lag_bytes, lag_ms) = lag.map_or((0, 0), |lag| (lag.lag_bytes, lag.lag_ms));
        if self.flows.has_lost(owner) {
            let why = self.flows.lost.borrow().as_ref().map(|fault| fault.what.clone()).unwrap_or_default();
            return WayBackState { is: WayBackIs::Lost, why, lag_bytes: 0, lag_ms: 0 };
        }
        let (is, why) = match self.back.state() {
            // Without it nothing leads back to the source, whoever owns the writes.
            BackState::Lost(fault) => (WayBackIs::Lost, format!("{}; next: {}", fault.what, fault.next_step)),
            _ if owner == Side::Target => (WayBackIs::Armed, String::new()),
            BackState::NotArmed => (WayBackIs::NotArmed, String::new()),
            BackState::Arming { waits_for } => (WayBackIs::Arming, waits_for),
            BackState::Armed => (WayBackIs::Armed, String::new()),
        };
        WayBackState { is, why, lag_bytes, lag_ms }
    }

    async fn commands(&self) -> Outcome<String> {
        let listener = self.driver.control.listen_for_commands().await?;
        // Ends with the attempt; what it had not answered is answered by the next one.
        let mut verifications = tokio::task::JoinSet::new();
        loop {
            let command = self.driver.control.next_command(self.lease, &listener).await?;
            while verifications.try_join_next().is_some() {}
            let given = matches!(
                command.verb.as_str(),
                "verify" | "switch" | "reverse" | "complete" | "reads" | "mirror"
            );
            if given {
                let body = json!({ "command": command.verb, "arguments": command.arguments, "by": command.asked_by });
                self.driver.record(self.lease, "command", body).await?;
            }
            match command.verb.as_str() {
                "verify" => drop(verifications.spawn(self.verification(command))),
                "switch" | "reverse" => {
                    let orders = self.orders.clone();
                    drop(verifications.spawn(self.switch.carry_out_command(orders, command)));
                }
                "complete" => self.queue(&self.completions, command, "to complete").await?,
                "reads" | "mirror" => self.queue(&self.read_orders.sender, command, "for reads").await?,
                "contain" => {
                    let (driver, lease) = (self.driver, self.lease);
                    let contained =
                        contain::contain((driver, lease), &self.flows, &self.switch, &command).await;
                    let answer =
                        contained.map_or_else(|fault| fault_json(&fault), |contained| json!(contained));
                    self.driver.control.answer(self.lease, command.id, &answer).await?;
                }
                _ => {
                    if let Some(why) = self.short(&command).await? {
                        return Ok(why);
                    }
                }
            }
        }
    }

    /// Hands an order on to whoever carries such orders out, or answers why not.
    async fn queue(&self, queue: &mpsc::Sender<Command>, command: Command, what: &str) -> Outcome<()> {
        let Err((id, busy)) = hand_on(queue, command, what) else { return Ok(()) };
        self.driver.control.answer(self.lease, id, &fault_json(&busy)).await
    }

    /// Why no row can be compared, if nothing that the target writes as the owner arrives on the source.
    fn stands_still(&self) -> Option<Fault> {
        let owner = *self.flows.owner.borrow();
        if owner != Some(Side::Target) || self.flows.landing_on(Side::Source).is_some() {
            return None;
        }
        let (why, next_step) = match self.back.state() {
            BackState::Lost(fault) => (fault.what, fault.next_step),
            BackState::NotArmed | BackState::Arming { .. } | BackState::Armed => {
                ("the way back is being taken up again".to_owned(), "verify again in a moment".to_owned())
            }
        };
        let what = format!(
            "what is written on the target does not arrive on the source, so no row can be compared: {why}"
        );
        Some(Fault::operator("SEGUE-STANDS-STILL", what, next_step))
    }

    /// Carries out a verification and answers it.
    fn verification(&self, command: Command) -> impl Future<Output = ()> + Send + use<> {
        let (control, lease) = (self.driver.control.clone(), self.lease.clone());
        let comparisons = self.comparisons.clone();
        let mut owner = self.flows.owner.subscribe();
        let before = *owner.borrow_and_update();
        let (verifying, stage) = (self.flows.active().verifying.clone(), self.flows.stage());
        let paused = self.driver.throttle.limits().paused;
        let stands_still = self.stands_still();
        async move {
            let report = watch::Sender::new(Report::default());
            let verify = async {
                if !stage.has_reached(Stage::Following) {
                    return Err(Fault::operator(
                        "SEGUE-NOT-FOLLOWING",
                        format!("the migration is {stage}: not everything is copied yet"),
                        "`segue wait following`, then verify",
                    ));
                }
                if let Some(why) = paused {
                    let what = format!(
                        "the migration is paused ({why}): rows in flight could not be told from differences"
                    );
                    return Err(Fault::operator("SEGUE-PAUSED", what, "`segue resume`, then ask again"));
                }
                if let Some(fault) = stands_still {
                    return Err(fault);
                }
                let order: VerifyOrder = serde_json::from_value(command.arguments.clone()).map_err(|e| {
                    Fault::operator(
                        "SEGUE-VERB",
                        format!("the order cannot be read: {e}"),
                        "use the same version of segue",
                    )
                })?;
                let done = verifying.verify(&order, &report).await?;
                comparisons.reported(&done).await?;
                Ok(done)
            };
            let tell = async {
                loop {
                    tokio::time::sleep(BEAT).await;
                    let body = progress_of(&report.borrow().clone());
                    let _ = control.progress(&lease, command.id, &body).await;
                }
            };
            // Under another owner the sides are compared the other way round.
            let moved = async {
                let _ = owner.wait_for(|now| *now != before).await;
                let what = "the writes changed hands while rows were compared";
                Err(Fault::operator("SEGUE-OWNER-CHANGED", what, "verify again"))
            };
            let outcome = tokio::select! {
                outcome = verify => outcome,
                outcome = moved => outcome,
                () = tell => return,
            };
            let answer = outcome.map_or_else(|f| fault_json(&f), |report| json!(report));
            if let Err(fault) = control.answer(&lease, command.id, &answer).await {
                tracing::warn!("a verification could not be answered: {fault}");
            }
        }
    }
}

/// Hands an order on, one at a time; its receiver lives as long as the attempt. Otherwise its number, and why.
fn hand_on(queue: &mpsc::Sender<Command>, command: Command, what: &str) -> Result<(), (i64, Fault)> {
    let Err(refused) = queue.try_send(command) else { return Ok(()) };
    let (TrySendError::Full(command) | TrySendError::Closed(command)) = refused;
    let busy = Fault::operator("SEGUE-BUSY", format!("another order {what} is being judged"), "ask again");
    Err((command.id, busy))
}

/// A verification's progress for the one who asked.
fn progress_of(report: &Report) -> Value {
    let sum = |f: fn(&TableReport) -> u64| report.tables.iter().map(f).sum::<u64>();
    json!({ "rows": sum(|t| t.counts.rows), "rows_estimated": sum(|t| t.rows_estimated.max(t.counts.rows)),
        "divergent": sum(|t| t.counts.divergent) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is a failed test")]

    use super::*;

    #[tokio::test]
    async fn an_order_that_comes_while_another_one_waits_is_told_to_come_again() {
        let order =
            |id| Command { id, verb: "complete".into(), arguments: json!({}), asked_by: "test".into() };
        let (queue, mut orders) = mpsc::channel(1);
        hand_on(&queue, order(1), "to complete").unwrap();
        let (id, busy) = hand_on(&queue, order(2), "to complete").unwrap_err();
        assert_eq!((id, busy.code), (2, "SEGUE-BUSY"));
        assert_eq!(busy.what, "another order to complete is being judged");
        assert_eq!(orders.recv().await.map(|order| order.id), Some(1));
        hand_on(&queue, order(3), "to complete").unwrap();
        assert_eq!(orders.recv().await.map(|order| order.id), Some(3));
    }
}
