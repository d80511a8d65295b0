//! The records of a completion, and what is said of what was seen of the source.

use super::judge::{Judged, judge_record};
use super::*;
use segue_model::traffic::{Look, Own, Record};
use segue_postgres::control::NewEntry;

const S: i64 = 1_000_000;

fn begun(drop_source: bool) -> Begun {
    let order = CompleteOrder { drop_source, ..CompleteOrder::default() };
    Begun {
        order,
        by: "ada".into(),
        proofs: Vec::new(),
        tables: vec!["public.t".into()],
        removes: vec!["target: fence of 1 table".into(), "source: fence of 1 table".into()],
        archived: None,
    }
}

fn entry(kind: &str, body: Value) -> Entry {
    let entry = NewEntry { version: 1, actor: "a".into(), kind: kind.into(), body };
    Entry { seq: 1, at_us: 0, entry }
}

#[test]
fn the_journal_says_how_far_a_completion_is() {
    assert_eq!(Life::of(&[entry("switched", json!({}))]), Ok(Life::Open));
    let mut journal = vec![entry(COMPLETING, json!(begun(false)))];
    assert_eq!(Life::of(&journal), Ok(Life::Completing(Box::new(begun(false)))));
    let refused = |journal: &[Entry]| Life::of(journal).and_then(|life| life.is_open()).map_err(|f| f.code);
    assert_eq!(refused(&journal), Err("SEGUE-COMPLETING"));
    journal.push(entry(ARCHIVED, json!({ "files": ["/a/t.dump"] })));
    let archived = Begun { archived: Some(vec!["/a/t.dump".into()]), ..begun(false) };
    assert_eq!(Life::of(&journal), Ok(Life::Completing(Box::new(archived))));
    journal.push(entry(COMPLETED, json!(Ended::default())));
    assert_eq!(Life::of(&journal), Ok(Life::Completed(Ended::default())));
    assert_eq!(refused(&journal), Err("SEGUE-COMPLETED"));
}

#[test]
fn a_record_that_is_not_understood_is_not_taken_for_none() {
    let unknown = Life::of(&[entry(COMPLETING, json!({ "order": { "only": "t" } }))]);
    assert_eq!(unknown.map_err(|fault| fault.code), Err("SEGUE-FORMAT"));
}

#[test]
fn the_fence_of_the_source_stays_with_its_tables_and_is_said_to() {
    let kept = begun(false).ended(Vec::new());
    assert_eq!((kept.removed.len(), kept.dropped.len(), kept.kept.len()), (1, 0, 2));
    let dropped = begun(true).ended(Vec::new());
    assert_eq!((dropped.removed.len(), dropped.dropped.len(), dropped.kept.len()), (2, 1, 0));
}

fn judged(look: Look, own: Own, window_s: u64) -> Judged {
    let mut record = Record::begin(2, Look { at_us: 0, ..Look::default() }, Own::default());
    record.observe(Look { at_us: 100 * S, ..Look::default() }, Own::default());
    record.observe(look, own);
    let mut judged = Judged::default();
    judge_record(&record, 190 * S, Duration::from_secs(window_s), &mut judged);
    judged
}

#[test]
fn what_was_not_watched_for_long_enough_says_how_long_that_takes() {
    let judged = judged(Look { at_us: 200 * S, ..Look::default() }, Own::default(), 250);
    assert_eq!(judged.blockers[0].gate, "window");
    assert_eq!(judged.blockers[0].next, "wait another 1min, or ask with a shorter --window");
}

#[test]
fn a_refused_write_is_said_with_its_time_and_the_next_step() {
    let look = Look { at_us: 200 * S, refused: 3, refused_at_us: Some(195 * S), ..Look::default() };
    let judged = judged(look, Own::default(), 10);
    let blocked = &judged.blockers[0];
    assert_eq!((blocked.gate.as_str(), judged.blockers.len()), ("refused-writes", 1));
    assert_eq!(blocked.why, "5s ago: 3 write(s) were refused by its fence");
}

#[test]
fn a_proof_of_no_reads_says_for_how_long_reads_could_not_be_told_apart() {
    let own = Own { applied: 7, ..Own::default() };
    let judged = judged(Look { at_us: 200 * S, ..Look::default() }, own, 10);
    assert!(judged.blockers.is_empty());
    let reads = judged.proofs.iter().find(|proof| proof.question.starts_with("reads")).unwrap();
    assert!(
        reads.found.starts_with("none since 20s ago at least; reads cannot be told apart"),
        "{}",
        reads.found
    );
}
