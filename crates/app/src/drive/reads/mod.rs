//! Orders that move reads or have them compared, and the rules that are in force.
//!
//! Rules are a row in the control database, by which routers go; each change is journaled. More reads for the follower is what
//! gates are asked about and an emergency forbids; fewer are never refused. What a router makes of the rules is its own affair.

pub(crate) mod answer;

use super::Driver;
use super::complete::fault_json;
use super::service::Service;
use answer::{MirrorOrder, ReadsAnswer, ReadsOrder};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::switch::gates::{self, Move, Override};
use segue_model::switch::reads::ReadRules;
use segue_postgres::control::{Command, Lease};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

/// Orders that wait while another one is judged.
const ORDERS_MAX: usize = 16;

/// Orders on their way to whoever carries them out, one after the other.
pub(super) struct ReadOrders {
    pub(super) sender: mpsc::Sender<Command>,
    receiver: Mutex<mpsc::Receiver<Command>>,
}

impl Default for ReadOrders {
    fn default() -> ReadOrders {
        let (sender, receiver) = mpsc::channel(ORDERS_MAX);
        ReadOrders { sender, receiver: Mutex::new(receiver) }
    }
}

impl Driver {
    /// Changes the rules that are in force, and journals that; returns them as they were and as they are. One at a time: an
    /// emergency must not be taken back by an order that read the rules before it.
    async fn change_reads(
        &self,
        lease: &Lease,
        why: Value,
        change: impl FnOnce(&ReadRules) -> Outcome<ReadRules>,
    ) -> Outcome<(ReadRules, ReadRules)> {
        let _one_at_a_time = self.changing_reads.lock().await;
        let before = self.control.reads().await?;
        let after = change(&before)?;
        if after != before {
            let mut body = json!({ "from": before, "to": after });
            if let (Value::Object(body), Value::Object(why)) = (&mut body, why) {
                body.extend(why);
            }
            // In one transaction with the rules: whoever dies here leaves both behind, or neither.
            let _one_record_at_a_time = self.recording.lock().await;
            let last = self.control.last_record().await?;
            self.control.append_reads(lease, last, &self.entry("reads", body), &after).await?;
        }
        Ok((before, after))
    }

    /// Nothing is asked of the follower any more, or again what the rules say. Returns whether anything was.
    pub(super) async fn contain_reads(&self, lease: &Lease, by: &str, contained: bool) -> Outcome<bool> {
        let change = |rules: &ReadRules| Ok(ReadRules { contained, ..rules.clone() });
        let (before, _) = self.change_reads(lease, json!({ "by": by }), change).await?;
        Ok(before.moves_any() || before.mirror_percent > 0)
    }

    /// The migration ends: every read is the owner's.
    pub(super) async fn end_reads(&self, lease: &Lease) -> Outcome<()> {
        let why = json!({ "by": self.holder });
        self.change_reads(lease, why, |_| Ok(ReadRules::default())).await.map(drop)
    }
}

impl Service<'_> {
    /// Carries out one order after the other. First of all what an earlier process may not have lived to tell: an emergency,
    /// or its end.
    pub(super) async fn read_orders(&self) -> Outcome<String> {
        let Service { driver, lease, .. } = self;
        driver.contain_reads(lease, &driver.holder, driver.throttle.limits().contained).await?;
        let mut orders = self.read_orders.receiver.lock().await;
        while let Some(command) = orders.recv().await {
            let answer = match command.verb.as_str() {
                "mirror" => self.mirror(&command).await,
                _ => self.move_reads(&command).await,
            };
            let answer = answer.map_or_else(|fault| fault_json(&fault), |answer| json!(answer));
            driver.control.answer(lease, command.id, &answer).await?;
        }
        std::future::pending().await
    }

    async fn move_reads(&self, command: &Command) -> Outcome<ReadsAnswer> {
        let Service { driver, lease, .. } = self;
        let order: ReadsOrder = read(&command.arguments)?;
        let overrides = order
            .overrides(&command.asked_by)
            .map_err(|e| Fault::operator("SEGUE-OVERRIDE", e.to_string(), "ask again without it"))?;
        let before = driver.control.reads().await?;
        if before.with_share(order.percent, &order.tenants).move_more_than(&before) {
            let owner = self.may_ask_the_follower()?;
            if owner == Side::Target {
                let what = "the target owns the writes, and serves every read";
                return Err(Fault::operator("SEGUE-READS-MOVED", what, "nothing is left to be moved"));
            }
            let what = if before.moves_any() { Move::MoreReads } else { Move::FirstReads };
            let blockers = self.blockers_of_reads(owner, what, &overrides).await?;
            if !blockers.is_empty() {
                let body = json!({ "by": command.asked_by, "order": order, "blockers": blockers });
                driver.record(lease, "reads-refused", body).await?;
                return Ok(ReadsAnswer::refused(&blockers));
            }
        }
        let why = json!({ "by": command.asked_by, "overrides": overrides });
        let change = |now: &ReadRules| {
            let rules = now.with_share(order.percent, &order.tenants);
            self.unless_contained(now, rules.move_more_than(now))?;
            Ok(rules)
        };
        let (before, after) = driver.change_reads(lease, why, change).await?;
        Ok(ReadsAnswer::set(&before, &after, driver.control.routers().await?.len()))
    }

    async fn mirror(&self, command: &Command) -> Outcome<ReadsAnswer> {
        let Service { driver, lease, .. } = self;
        let order: MirrorOrder = read(&command.arguments)?;
        if order.percent > driver.control.reads().await?.mirror_percent {
            self.may_ask_the_follower()?;
        }
        let now_us = driver.control.now_us().await?;
        let change = |now: &ReadRules| {
            self.unless_contained(now, order.percent > now.mirror_percent)?;
            Ok(now.with_mirror(order.percent, now_us))
        };
        let (before, after) = driver.change_reads(lease, json!({ "by": command.asked_by }), change).await?;
        Ok(ReadsAnswer::set(&before, &after, driver.control.routers().await?.len()))
    }

    /// Who owns the writes, if there are routers, and a side that follows.
    fn may_ask_the_follower(&self) -> Outcome<Side> {
        has_router(&self.driver.spec)?;
        let stage = self.flows.stage();
        if !stage.has_reached(Stage::Following) {
            let what = format!("the migration is {stage}: not everything is copied yet");
            let next = "`segue wait following`, then ask again";
            return Err(Fault::operator("SEGUE-NOT-FOLLOWING", what, next));
        }
        if let Some(why) = self.driver.throttle.limits().paused {
            let what =
                format!("the migration is paused ({why}): what is read on the other side would grow old");
            return Err(Fault::operator("SEGUE-PAUSED", what, "`segue resume`, then ask again"));
        }
        let owner = *self.flows.owner.borrow();
        owner.ok_or_else(|| {
            Fault::operator(
                "SEGUE-NOT-OWNER",
                "it is being decided which side owns the writes",
                "ask again when `segue status` names the owner",
            )
        })
    }

    fn unless_contained(&self, now: &ReadRules, is_more: bool) -> Outcome<()> {
        if now.contained && is_more {
            let what = "the migration is contained: nothing is asked of the side that follows";
            return Err(Fault::operator("SEGUE-PAUSED", what, "`segue resume`, then ask again"));
        }
        Ok(())
    }

    async fn blockers_of_reads(
        &self,
        owner: Side,
        what: Move,
        overrides: &[Override],
    ) -> Outcome<Vec<gates::Blocker>> {
        let measured = self.switch.measured(owner).await?;
        let mut gates = self.gates.lock().await;
        // Nothing that somebody looked at earlier.
        gates.expire();
        let evidence = gates.look(measured).await?;
        Ok(gates::blockers(what, &self.driver.spec.switch.gates, &evidence, overrides))
    }
}

fn read<T: DeserializeOwned>(arguments: &Value) -> Outcome<T> {
    serde_json::from_value(arguments.clone()).map_err(|e| {
        let what = format!("the order cannot be read: {e}");
        Fault::operator(
            "SEGUE-VERB",
            what,
            "use the same version of segue for the command and for `segue run`",
        )
    })
}

/// Reads are moved and compared by routers.
pub(crate) fn has_router(spec: &Spec) -> Outcome<()> {
    if spec.router.is_some() {
        return Ok(());
    }
    let next = "add `router: { listen: 127.0.0.1:6432, users: FILE }`, have applications connect there, then ask again";
    Err(Fault::operator("SEGUE-NO-ROUTER", "the spec has no section `router`", next))
}
