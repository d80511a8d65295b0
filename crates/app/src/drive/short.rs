//! Orders that are carried out at once, and how an attempt comes to its end when it is told to.

use super::complete::fault_json;
use super::service::Service;
use super::{contain, throttle};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::throttle::Limits;
use segue_model::switch::Side;
use segue_postgres::control::Command;
use serde_json::{Value, json};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long a hand-over that is under way is waited for by whoever ends the attempt: to be undone …
const REST_PATIENCE: Duration = Duration::from_secs(1);
/// … or, while nobody may take the writes, to be finished.
const CLOSED_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at which of the two it is.
const REST_LOOK: Duration = Duration::from_millis(50);

enum Obeyed {
    GoOn(Value),
    End(Value, String),
}

impl Service<'_> {
    /// Returns why, once the process is told to end and nothing of a hand-over is left behind.
    pub(super) async fn told_to_end(&self) -> String {
        let why = self.driver.told_to_stop().await;
        self.come_to_rest(&why).await;
        why
    }

    /// Has a hand-over that is under way undone, or, past the point of no return, finished: nobody would take the writes
    /// until somebody starts another process.
    async fn come_to_rest(&self, why: &str) {
        if !self.switch.give_up(why).await {
            return;
        }
        let began = Instant::now();
        let mut over = pin!(self.switch.is_over());
        loop {
            tokio::select! {
                () = &mut over => return,
                () = sleep(REST_LOOK) => {}
            }
            let is_closed = self.driver.nobody_owns.load(Ordering::Relaxed);
            if began.elapsed() > if is_closed { CLOSED_PATIENCE } else { REST_PATIENCE } {
                return;
            }
        }
    }

    /// Carries out a short order; returns why the attempt ends, if it does.
    pub(super) async fn short(&self, command: &Command) -> Outcome<Option<String>> {
        if command.verb == "stop" {
            self.come_to_rest(&format!("stopped by {}", command.asked_by)).await;
        }
        let (answer, end) = match self.obey(command) {
            Ok(Obeyed::GoOn(answer)) => (answer, None),
            Ok(Obeyed::End(answer, why)) => (answer, Some(why)),
            Err(fault) => (fault_json(&fault), None),
        };
        if end.is_none() {
            let body =
                json!({ "command": command.verb, "arguments": command.arguments, "by": command.asked_by });
            self.driver.record(self.lease, "command", body).await?;
        }
        if command.verb == "resume" {
            self.driver.contain_reads(self.lease, &command.asked_by, false).await?;
        }
        self.driver.control.answer(self.lease, command.id, &answer).await?;
        Ok(end)
    }

    fn obey(&self, command: &Command) -> Outcome<Obeyed> {
        let limits = &self.driver.throttle;
        let done = match command.verb.as_str() {
            "pause" => {
                let reason = command.arguments.get("reason").and_then(Value::as_str);
                let paused = contain::paused_by(&command.asked_by, reason);
                limits.change(|limits| limits.paused = Some(paused));
                "paused: the copy and the stream stand still; the source keeps its log until `segue resume`"
            }
            "resume" => {
                limits.change(Limits::resume);
                for side in Side::ALL {
                    if let Some(flow) = self.flows.landing_on(side) {
                        flow.verifying.hold(None);
                    }
                }
                "resumed"
            }
            "throttle" => throttle::obey(self.driver, &command.arguments),
            "stop" => {
                let why = format!("stopped by {}", command.asked_by);
                return Ok(Obeyed::End(json!({ "done": "stopped" }), why));
            }
            other => {
                return Err(Fault::operator(
                    "SEGUE-VERB",
                    format!("the driver does not know the command `{other}`"),
                    "use the same version of segue for the command and for `segue run`",
                ));
            }
        };
        Ok(Obeyed::GoOn(json!({ "done": done })))
    }
}
