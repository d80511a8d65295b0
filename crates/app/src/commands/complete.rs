//! `segue complete`: ask the driver to give the way back up, and show what proves that the source is not needed.

use super::switch::{Steps, refused};
use super::{control, fault, order, print, print_json, unreadable};
use crate::cli::Complete;
use crate::drive::complete::{self, Life};
use crate::drive::switch::answer::{CompleteOrder, Completion, Ended};
use crate::exit::Exit;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use serde_json::json;

/// What follows from a driver that died over the order, or is not waited for any longer.
const AFTER: &str = "A driver that takes over finishes what was begun; `segue status` says whether the migration is completed, and \
     giving the order again is harmless";

/// Completes the migration, or says what that would take.
pub(crate) async fn run(spec: &Spec, asked: &Complete, json: bool) -> Exit {
    match ask(spec, asked, json).await {
        Ok(answer) => {
            if json {
                print_json(&json!(answer));
            } else {
                print(&render(&answer));
            }
            answer.exit()
        }
        Err(f) => fault(&f, json),
    }
}

fn order(asked: &Complete) -> CompleteOrder {
    CompleteOrder {
        rehearse: asked.dry_run,
        archive: asked.archive.clone(),
        drop_source: asked.drop_source,
        window_ms: asked.window.map(|window| u64::try_from(window.as_millis()).unwrap_or(u64::MAX)),
    }
}

async fn ask(spec: &Spec, asked: &Complete, json: bool) -> Outcome<Completion> {
    if let Life::Completed(ended) = complete::life(&control(spec).await?).await? {
        return Ok(Completion::Already(ended));
    }
    let mut steps = Steps::new(json);
    let body = json!(order(asked));
    let answer = order::follow(spec, "complete", &body, AFTER, |progress| steps.show(progress)).await;
    steps.end();
    serde_json::from_value(answer?).map_err(|e| unreadable(&e))
}

fn render(answer: &Completion) -> String {
    match answer {
        Completion::Completed(ended) => format!(
            "completed: the target owns the writes for good, and there is no way back\n{}",
            details(ended, "removed")
        ),
        Completion::Rehearsed(ended) => format!(
            "nothing was changed; the migration can be completed\n{}next: `segue complete`, with the same options\n",
            details(ended, "would remove")
        ),
        Completion::Already(_) => "the migration is completed already; nothing was done\n".to_owned(),
        Completion::Refused { blockers } => refused(blockers, "nothing was changed"),
    }
}

fn details(ended: &Ended, removed: &str) -> String {
    let proofs: String = ended.proofs.iter().map(|p| format!("  {}: {}\n", p.question, p.found)).collect();
    let list = |what: &str, lines: &[String]| -> String {
        lines.iter().map(|line| format!("  {what} {line}\n")).collect()
    };
    let tables: Vec<String> = ended.dropped.iter().map(|table| format!("source: table {table}")).collect();
    format!(
        "{proofs}{}{}{}{}",
        list("archived to", &ended.archived),
        list(removed, &ended.removed),
        list(removed, &tables),
        list("kept", &ended.kept)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::switch::answer::Proof;
    use std::time::Duration;

    fn ended() -> Ended {
        Ended {
            proofs: vec![Proof { question: "reads of the source".into(), found: "none for 72 h".into() }],
            removed: vec!["source: replication slot segue_m_fwd".into()],
            archived: vec!["/backup/public.t.copy".into()],
            dropped: vec!["public.t".into()],
            kept: vec!["source: the fence".into()],
        }
    }

    #[test]
    fn a_completion_shows_its_proofs_and_everything_that_is_gone() {
        assert_eq!(
            render(&Completion::Completed(ended())),
            "completed: the target owns the writes for good, and there is no way back\n  \
               reads of the source: none for 72 h\n  archived to /backup/public.t.copy\n  \
               removed source: replication slot segue_m_fwd\n  removed source: table public.t\n  kept source: the fence\n"
        );
    }

    #[test]
    fn a_rehearsal_removes_nothing_and_says_so() {
        let text = render(&Completion::Rehearsed(ended()));
        assert!(
            text.starts_with("nothing was changed;") && text.contains("would remove source: table public.t"),
            "{text}"
        );
        assert!(!text.contains("\n  removed"), "{text}");
    }

    #[test]
    fn the_order_says_what_was_asked_and_leaves_the_window_to_the_driver() {
        let asked = Complete { dry_run: true, archive: None, drop_source: true, window: None };
        let expected = json!({ "rehearse": true, "archive": null, "drop_source": true, "window_ms": null });
        assert_eq!(json!(order(&asked)), expected);
        let asked = Complete { window: Some(Duration::from_secs(2)), ..asked };
        assert_eq!(order(&asked).window_ms, Some(2000));
    }
}
