//! Orders to the driver: short ones (pause, resume, throttle), and such as take their time and are followed.

use super::{asker, control, fault, fault_in, print, print_json, unreadable};
use crate::drive::complete::{self, Life};
use crate::exit::Exit;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_postgres::control::Control;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// An order is answered at once; a driver that needs longer is stuck.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// An order that takes its time is waited for as long as the driver says something at least this often. It waits for
/// the oldest transaction of a server, which may be hours old; that the driver is alive is looked at all the time.
const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// So long the control database may be away while an answer is waited for: a server that restarts, or fails over.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// Between two tries to reach it.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What the driver answers to a short order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// What it did, in words.
    pub(crate) done: String,
}

/// Gives the driver an order and prints its answer.
pub(crate) async fn run(spec: &Spec, verb: &str, arguments: &Value, json: bool) -> Exit {
    let answer = give(spec, verb, arguments).await;
    match answer.and_then(|answer| serde_json::from_value::<Done>(answer).map_err(|e| unreadable(&e))) {
        Ok(answer) => {
            if json {
                print_json(&json!(answer));
            } else {
                print(&format!("{}\n", answer.done));
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

/// Gives the driver an order that takes its time, and shows how far it is. It goes on when nobody waits any more, so
/// every fault from here on says where to look; `after` is what follows from a driver that died over it.
pub(crate) async fn follow(
    spec: &Spec,
    verb: &str,
    arguments: &Value,
    after: &str,
    on_progress: impl FnMut(&Value) + Send,
) -> Outcome<Value> {
    let control = control(spec).await?;
    let life = complete::life(&control).await?;
    if let Life::Completed(_) = &life {
        // No driver is left to say so.
        life.is_open()?;
    }
    let id = control.ask(verb, arguments, &asker()).await?;
    let heard = tokio::select! {
        heard = hear(&control, id, on_progress) => heard,
        _ = tokio::signal::ctrl_c() => Err(Fault::operator(
            "SEGUE-NOT-AWAITED",
            format!("interrupted: the answer to `{verb}` is not waited for any longer"),
            "the order goes on all the same: see `segue status` and `segue journal`",
        )),
    };
    let heard = heard.and_then(|answer| fault_in(&answer).map_or(Ok(answer), Err));
    heard.map_err(|fault| left_alone(fault, after))
}

/// The answer to command `id`. The control database may be away meanwhile: the order is a row there, and is not lost.
async fn hear(control: &Control, id: i64, mut on_progress: impl FnMut(&Value) + Send) -> Outcome<Value> {
    let mut last = Value::Null;
    let mut away_since: Option<Instant> = None;
    loop {
        let mut is_news = false;
        let heard = control.await_answer(id, SILENCE_MAX, |progress| {
            is_news |= last != *progress;
            if last != *progress {
                last = progress.clone();
                on_progress(progress);
            }
        });
        let fault = match heard.await {
            Ok(answer) => return Ok(answer),
            Err(fault) => fault,
        };
        match fault.recovery {
            Recovery::Operator if fault.code == "SEGUE-NO-ANSWER" && is_news => away_since = None,
            Recovery::Operator | Recovery::Bug => return Err(fault),
            Recovery::Retry | Recovery::Ambiguous => {
                let since = if is_news { None } else { away_since };
                let since = since.unwrap_or_else(Instant::now);
                if since.elapsed() > AWAY_MAX {
                    return Err(fault);
                }
                away_since = Some(since);
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// A fault that leaves open what has become of the order, with what follows from that.
fn left_alone(mut fault: Fault, after: &str) -> Fault {
    let is_open = match fault.recovery {
        Recovery::Retry | Recovery::Ambiguous => true,
        Recovery::Operator => {
            ["SEGUE-NO-DRIVER", "SEGUE-DRIVER-DIED", "SEGUE-NO-ANSWER", "SEGUE-NOT-AWAITED"]
                .contains(&fault.code)
        }
        Recovery::Bug => false,
    };
    if is_open {
        let separator = if fault.next_step.is_empty() { "" } else { ". " };
        fault.next_step = format!("{}{separator}{after}", fault.next_step);
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_leaves_the_order_open_says_what_follows_and_no_other_does() {
        let died = Fault::operator("SEGUE-DRIVER-DIED", "it has died", "ask again");
        assert_eq!(left_alone(died, "look").next_step, "ask again. look");
        assert_eq!(left_alone(Fault::retry("SEGUE-CONNECTION", "lost"), "look").next_step, "look");
        let verb = Fault::operator("SEGUE-VERB", "unknown", "use the same version");
        assert_eq!(left_alone(verb, "look").next_step, "use the same version");
    }
}
