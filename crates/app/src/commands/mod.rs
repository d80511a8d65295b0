//! The commands that reach a migration through its control database. Each ends with an [`Exit`].

pub(crate) mod cancel;
pub(crate) mod complete;
pub(crate) mod contain;
pub(crate) mod init;
pub(crate) mod journal;
pub(crate) mod order;
pub(crate) mod plan;
pub(crate) mod reads;
pub(crate) mod status;
pub(crate) mod switch;
pub(crate) mod verify;
pub(crate) mod wait;

use crate::exit::Exit;
use crate::sides::Sides;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_postgres::control::Control;
use serde_json::Value;
use std::io::Write;

/// Shows a fault, as text or as an object, and ends with it.
pub(crate) fn fault(fault: &Fault, json: bool) -> Exit {
    let fault = &ended_by(fault.clone());
    if json {
        print_json(&fault_object(fault));
    } else {
        complain(&format!("segue: {fault}\n"));
    }
    Exit::of(fault)
}

/// Shows what is wrong with a command line, which is text already, and ends with that.
pub(crate) fn misused(text: &str, json: bool) -> Exit {
    if json {
        let what = text.split("\n\nUsage:").next().unwrap_or(text).trim();
        let next = "`segue help COMMAND` says how it is written";
        let what = what.strip_prefix("error: ").unwrap_or(what);
        return fault(&Fault::operator("SEGUE-USAGE", what, next), json);
    }
    complain(&format!("{}\n", text.trim_end()));
    Exit::Usage
}

/// A driver tries again by itself; a command that has ended does not.
fn ended_by(mut fault: Fault) -> Fault {
    if fault.recovery == Recovery::Retry && fault.next_step.is_empty() {
        fault.next_step =
            "this command does not try again: mend it, then give the command once more".to_owned();
    }
    fault
}

/// A fault as an object.
pub(crate) fn fault_object(fault: &Fault) -> Value {
    serde_json::json!({ "fault": fault.what, "code": fault.code, "next_step": fault.next_step })
}

/// Prints one object.
pub(crate) fn print_json(value: &Value) {
    print(&format!("{value}\n"));
}

/// Prints text. A reader that has seen enough, as `head` does, is no fault.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints to standard error. That nobody reads it changes nothing.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// The control database of `spec`, without making anything there.
pub(crate) async fn control(spec: &Spec) -> Outcome<Control> {
    let sides = Sides::of(spec)?;
    let found = Control::find(&sides.control, spec.name.as_str()).await?;
    found.ok_or_else(|| never_run(spec))
}

/// Nobody has run this migration, or it was cancelled, which leaves nothing.
pub(crate) fn never_run(spec: &Spec) -> Fault {
    Fault::operator(
        "SEGUE-NEVER-RUN",
        format!(
            "nothing is known of migration {} here: it was never run, or it was cancelled",
            spec.name.as_str()
        ),
        "start it with `segue run`",
    )
}

/// Who asks: user and host.
pub(crate) fn asker() -> String {
    let user =
        std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "someone".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

/// What follows from a fault that the driver gets over by itself, for whoever had given it an order.
const PASSES: &str = "`segue run` goes on by itself, and `segue status` says what it waits for; then give the command once more";

/// The fault inside an answer, if the driver answered with one.
pub(crate) fn fault_in(answer: &Value) -> Option<Fault> {
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let what = text("fault")?;
    // Codes are part of the program, but for those of a driver that is another process. A command shows one such
    // fault and ends with it.
    let code = text("code").map_or("SEGUE-ANSWER", |code| String::leak(code.to_owned()));
    let next = text("next_step").filter(|next| !next.is_empty()).unwrap_or(PASSES);
    Some(Fault::operator(code, what, next))
}

/// The driver answered with something that this build cannot read.
pub(crate) fn unreadable(error: &serde_json::Error) -> Fault {
    Fault::operator(
        "SEGUE-ANSWER",
        format!("the driver's answer cannot be read: {error}"),
        "use the same version of segue for the command and for `segue run`; what was asked was carried out all the same",
    )
}
