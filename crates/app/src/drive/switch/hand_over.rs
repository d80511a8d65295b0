//! An order to hand the writes over, as it came by way of the control database: read, given to the switch, answered.

use super::Switch;
use super::answer::{Answer, Progress, SwitchOrder};
use crate::drive::complete::fault_json;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::switch::Side;
use segue_model::switch::decide::Asked;
use segue_model::switch::gates::Override;
use segue_model::switch::ownership::Epoch;
use segue_postgres::control::{Command, Control, Lease};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

/// How far it is is told no more often: each time is a commit, where writes are waited for.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How long it takes to tell whoever has asked for it what came of a hand-over.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What is asked of the switch.
pub(in crate::drive) struct Order {
    /// What is to happen.
    pub(in crate::drive) asked: Asked,
    /// The side that the writes are to leave, or would.
    pub(in crate::drive) from: Side,
    /// Gates the operator goes through.
    pub(in crate::drive) overrides: Vec<Override>,
    /// Only of this epoch the writes are to be moved; `None`: of whichever it is.
    pub(in crate::drive) of: Option<Epoch>,
    /// Who asks.
    pub(in crate::drive) by: String,
    /// Hears how far it is.
    pub(in crate::drive) progress: watch::Sender<Progress>,
    /// Hears what came of it.
    pub(in crate::drive) answer: oneshot::Sender<Outcome<Answer>>,
}

impl Switch<'_> {
    /// For whoever ends the attempt: waits until what is under way is over, and told to whoever asked for it.
    pub(in crate::drive) async fn is_over(&self) {
        let _at_rest = self.at_rest().await;
        let _ = timeout(LAST_WORDS, self.telling.write()).await;
    }

    /// Carries out a command, tells how far it is, and answers.
    pub(in crate::drive) fn carry_out_command(
        &self,
        orders: mpsc::Sender<Order>,
        command: Command,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (control, lease) = (self.driver.control.clone(), self.lease.clone());
        // Not to be had only once the attempt ends: then nobody waits for this.
        let telling = self.telling.clone().try_read_owned();
        async move {
            carry_out(control, lease, orders, command).await;
            drop(telling);
        }
    }
}

async fn carry_out(control: Arc<Control>, lease: Lease, orders: mpsc::Sender<Order>, command: Command) {
    let carried_out = async {
        let (mut steps, answered) = give(&orders, &command).await?;
        let told = async {
            while steps.changed().await.is_ok() {
                let progress = json!(*steps.borrow_and_update());
                // Who asked may not be listening.
                let _ = control.progress(&lease, command.id, &progress).await;
                sleep(PROGRESS_EVERY).await;
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            answer = came_of(answered) => answer,
            never = told => match never {},
        }
    };
    let answer = carried_out.await.map_or_else(|f| fault_json(&f), |answer| json!(answer));
    if let Err(fault) = control.answer(&lease, command.id, &answer).await {
        tracing::warn!("a hand-over could not be answered: {fault}");
    }
}

/// Gives the order; returns what tells how far it is, and what tells what came of it.
async fn give(
    orders: &mpsc::Sender<Order>,
    command: &Command,
) -> Outcome<(watch::Receiver<Progress>, oneshot::Receiver<Outcome<Answer>>)> {
    let wanted: SwitchOrder = serde_json::from_value(command.arguments.clone()).map_err(|e| {
        let what = format!("the order cannot be read: {e}");
        Fault::operator("SEGUE-VERB", what, "use the same version of segue")
    })?;
    let (from, asked) = match command.verb.as_str() {
        "reverse" => (Side::Target, Asked::Reverse),
        _ => (Side::Source, Asked::Switch),
    };
    let asked = if wanted.rehearse { Asked::Rehearse } else { asked };
    let overrides = wanted
        .overrides(&command.asked_by)
        .map_err(|e| Fault::operator("SEGUE-OVERRIDE", e.to_string(), "ask again without it"))?;
    let (progress, steps) = watch::channel(Progress::default());
    let (answer, answered) = oneshot::channel();
    let by = command.asked_by.clone();
    let order = Order { asked, from, overrides, of: None, by, progress, answer };
    orders.send(order).await.map_err(|_| over())?;
    Ok((steps, answered))
}

async fn came_of(answered: oneshot::Receiver<Outcome<Answer>>) -> Outcome<Answer> {
    answered.await.map_err(|_| over())?
}

fn over() -> Fault {
    Fault::retry("SEGUE-SWITCH-OVER", "the attempt ended meanwhile; see `segue status`")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "in a test a panic is a failed test")]

    use super::*;

    fn command() -> Command {
        Command { id: 1, verb: "switch".into(), arguments: json!({}), asked_by: "test".into() }
    }

    #[tokio::test]
    async fn an_order_that_nobody_is_left_to_carry_out_is_said_to_be_over() {
        let (orders, mut received) = mpsc::channel(1);
        let (_steps, answered) = give(&orders, &command()).await.expect("it waits to be taken");
        let order: Order = received.recv().await.expect("an order");
        assert_eq!((order.asked, order.from, order.by.as_str()), (Asked::Switch, Side::Source, "test"));
        // The attempt ends with it in hand, and the next order meets nobody.
        drop((order, received));
        assert_eq!(came_of(answered).await.expect_err("nobody answers").code, "SEGUE-SWITCH-OVER");
        let fault = give(&orders, &command()).await.expect_err("nobody takes it");
        assert_eq!(fault.code, "SEGUE-SWITCH-OVER");
    }
}
