//! `segue contain`: the emergency order that stops everything that writes to the side that does not own the writes.

use super::switch::took;
use super::{asker, control, fault, fault_in, print, print_json, unreadable};
use crate::drive::switch::answer::Contained;
use crate::exit::Exit;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use serde_json::json;
use std::time::Duration;

/// It takes a second at most. A driver that is silent for longer has to be ended by hand, and soon.
const PATIENCE: Duration = Duration::from_secs(5);

/// Contains the migration.
pub(crate) async fn run(spec: &Spec, json: bool) -> Exit {
    match ask(spec).await {
        Ok(contained) => {
            if json {
                print_json(&json!(contained));
            } else {
                print(&render(&contained));
            }
            Exit::Done
        }
        Err(f) => fault(&f, json),
    }
}

async fn ask(spec: &Spec) -> Outcome<Contained> {
    let control = control(spec).await?;
    let driver = control.live_driver().await.map_err(without_driver)?.holder;
    let id = control.ask("contain", &json!({}), &asker()).await.map_err(without_driver)?;
    let answer = control.await_answer(id, PATIENCE, |_| {}).await.map_err(|fault| silent(fault, &driver))?;
    if let Some(fault) = fault_in(&answer) {
        return Err(silent(fault, &driver));
    }
    serde_json::from_value(answer).map_err(|e| unreadable(&e))
}

/// Whatever is wrong: an operator in an emergency needs a way that works.
fn silent(mut fault: Fault, driver: &str) -> Fault {
    let separator = if fault.next_step.is_empty() { "" } else { ". " };
    fault.next_step = format!(
        "{}{separator}If it has to stop now, end {driver}: what Segue writes ends with it, and nothing is lost; \
         end stand-bys first",
        fault.next_step
    );
    fault
}

/// Nobody is there to be asked. Then nothing is written either, unless a stopped process wakes up or one is started.
fn without_driver(fault: Fault) -> Fault {
    if fault.code != "SEGUE-NO-DRIVER" {
        return fault;
    }
    let next = "nothing of this migration is written while no driver runs; end a `segue run` that is only stopped, \
        and start none until it may go on";
    Fault::operator(fault.code, fault.what, next)
}

fn render(contained: &Contained) -> String {
    let list = |lines: &[String]| -> String { lines.iter().map(|line| format!("  {line}\n")).collect() };
    let head = if contained.stopped.is_empty() {
        "nothing had to be stopped".to_owned()
    } else {
        format!("stopped within {}:", took(contained.took_ms))
    };
    let watch = if contained.watch.is_empty() {
        String::new()
    } else {
        format!("watch meanwhile:\n{}", list(&contained.watch))
    };
    format!(
        "{head}\n{}writes are owned by: {}\n{watch}to go on: `{}`\n",
        list(&contained.stopped),
        contained.owner.name(),
        contained.resume
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Owner;

    #[test]
    fn it_says_what_was_stopped_what_to_watch_and_how_to_go_on() {
        let contained = Contained {
            owner: Owner::Source,
            stopped: vec!["the copy (2 workers)".into(), "the stream to the target".into()],
            took_ms: 87.0,
            watch: vec!["the source keeps its log: 3.0 GiB free".into()],
            resume: "segue resume".into(),
        };
        assert_eq!(
            render(&contained),
            "stopped within 87.0 ms:\n  the copy (2 workers)\n  the stream to the target\nwrites are owned by: source\n\
             watch meanwhile:\n  the source keeps its log: 3.0 GiB free\nto go on: `segue resume`\n"
        );
    }

    #[test]
    fn without_a_driver_the_operator_is_not_told_to_start_one() {
        let fault = Fault::operator("SEGUE-NO-DRIVER", "nobody drives", "start it with `segue run`");
        let told = without_driver(fault);
        assert!(told.next_step.contains("start none") && !told.next_step.contains("start it"), "{told}");
    }

    #[test]
    fn a_silent_driver_is_named_so_that_it_can_be_ended() {
        let told = silent(Fault::operator("SEGUE-NO-ANSWER", "no answer", "wait"), "db1 process 7");
        assert!(
            told.next_step.starts_with("wait. ") && told.next_step.contains("end db1 process 7"),
            "{told}"
        );
    }
}
