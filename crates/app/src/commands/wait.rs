//! `segue wait STAGE`: returns when the migration has got there.

use super::status::look;
use super::{fault, print_json};
use crate::exit::Exit;
use crate::report::RunState;
use crate::sides::Sides;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_model::stage::Stage;
use segue_postgres::control::Control;
use serde_json::Value;
use std::time::{Duration, Instant};

/// How often it looks.
const LOOK: Duration = Duration::from_millis(200);
/// A driver that was started together with this command may need this long to show up; until then a fault that was there
/// before may be an earlier one's.
const GRACE: Duration = Duration::from_secs(15);

/// Waits until `stage` is reached.
pub(crate) async fn run(spec: &Spec, stage: Stage, timeout: Option<Duration>, json: bool) -> Exit {
    match reach(spec, stage, timeout).await {
        Ok(()) => {
            if json {
                print_json(&object(stage));
            }
            Exit::Done
        }
        Err(f) => fault(&f, json),
    }
}

/// The stage that was waited for, as an object.
pub(crate) fn object(stage: Stage) -> Value {
    serde_json::json!({ "stage": stage })
}

async fn reach(spec: &Spec, stage: Stage, timeout: Option<Duration>) -> Outcome<()> {
    let began = Instant::now();
    let sides = Sides::of(spec)?;
    let mut control: Option<Control> = None;
    let mut now = Stage::Planned;
    let mut was_driven = false;
    loop {
        if control.is_none() {
            control = Control::find(&sides.control, spec.name.as_str()).await?;
        }
        let seen = match &control {
            Some(control) => look(control).await?,
            None => None,
        };
        let mut dead = true;
        let is_late = timeout.is_some_and(|limit| began.elapsed() >= limit);
        if let Some(seen) = seen {
            now = seen.status.stage;
            dead = !seen.alive;
            was_driven |= seen.alive;
            if now.has_reached(stage) {
                return Ok(());
            }
            if let RunState::Failed { fault, next_step, .. } = seen.status.run
                && dead
                && (was_driven || is_late || began.elapsed() >= GRACE)
            {
                return Err(Fault::operator("SEGUE-FAILED", fault, next_step));
            }
        }
        if is_late {
            let waited = began.elapsed().as_secs();
            let what = format!("stage {stage} was not reached in {waited} s; the migration is {now}");
            return Err(Fault::operator("SEGUE-TIMEOUT", what, "see `segue status` for what it waits for"));
        }
        if dead && began.elapsed() >= GRACE {
            let what = format!("nobody drives migration {}; it is {now}", spec.name.as_str());
            return Err(Fault::operator("SEGUE-NO-DRIVER", what, "start it with `segue run`"));
        }
        tokio::time::sleep(LOOK).await;
    }
}
