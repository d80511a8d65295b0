//! Short orders to the driver: pause, resume, throttle.

use super::{asker, control, fault, fault_in, print, print_json};
use crate::exit::Exit;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use serde_json::Value;
use std::time::Duration;

/// An order is answered at once; a driver that needs longer is stuck.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Gives the driver an order and prints its answer.
pub(crate) async fn run(spec: &Spec, verb: &str, arguments: &Value, json: bool) -> Exit {
    match give(spec, verb, arguments).await {
        Ok(answer) => {
            if json {
                print_json(&answer);
            } else if let Some(done) = answer.get("done").and_then(Value::as_str) {
                print(&format!("{done}\n"));
            }
            Exit::Done
        }
        Err(f) => fault(&f, json),
    }
}

/// Gives the driver an order; its own fault becomes ours.
pub(crate) async fn give(spec: &Spec, verb: &str, arguments: &Value) -> Outcome<Value> {
    let control = control(spec).await?;
    let id = control.ask(verb, arguments, &asker()).await?;
    let answer = control.await_answer(id, ANSWER_PATIENCE, |_| {}).await?;
    fault_in(&answer).map_or(Ok(answer), Err)
}
