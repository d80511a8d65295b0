//! Conversations, as servers hold them.

use super::*;
use proptest::prelude::*;

const PARSE: Owed = Owed::Parse { statement: 1, serial: 7 };
const OURS: Owed = Owed::Parse { statement: 9, serial: 0 };

fn after(messages: &[Owed]) -> Pipeline {
    let mut pipeline = Pipeline::default();
    messages.iter().for_each(|message| pipeline.sent(*message));
    pipeline
}

/// Feeds the answers' types; `Z` stands for ready and idle, `z` for ready and in a transaction, `!` for failed.
fn answers(pipeline: &mut Pipeline, tags: &str) -> Vec<Answer> {
    tags.bytes()
        .map(|tag| {
            let (tag, first) = match tag {
                b'Z' => (b'Z', b'I'),
                b'z' => (b'Z', b'T'),
                b'!' => (b'Z', b'E'),
                tag => (tag, 0),
            };
            pipeline.received(tag, first).unwrap_or_else(|error| panic!("{error} in {tags}"))
        })
        .collect()
}

#[test]
fn a_simple_query_owes_until_it_is_ready() {
    for tags in ["TDDCZ", "CZ", "IZ", "EZ", "TDDEZ", "CTDCNZ", "GCZ", "GEZ", "HddcCZ"] {
        let mut pipeline = after(&[Owed::Query]);
        assert!(!pipeline.is_idle());
        let said = answers(&mut pipeline, tags);
        assert_eq!(said.last(), Some(&Answer::Ready(Status::Idle)), "{tags}");
        assert!(pipeline.is_idle(), "{tags}");
    }
}

#[test]
fn an_open_transaction_is_not_idle() {
    let mut pipeline = after(&[Owed::Query]);
    answers(&mut pipeline, "Cz");
    assert!(!pipeline.is_idle());
    pipeline.sent(Owed::Query);
    answers(&mut pipeline, "E!");
    assert_eq!(pipeline.status, Status::Failed);
    pipeline.sent(Owed::Query);
    answers(&mut pipeline, "CZ");
    assert!(pipeline.is_idle());
}

#[test]
fn an_extended_group_is_answered_in_order() {
    let mut pipeline = after(&[PARSE, Owed::Bind, Owed::Describe, Owed::Execute, Owed::Sync]);
    answers(&mut pipeline, "12TDDC");
    assert!(!pipeline.is_idle());
    answers(&mut pipeline, "Z");
    assert!(pipeline.is_idle());

    let mut pipeline = after(&[PARSE, Owed::Describe, Owed::Sync]);
    answers(&mut pipeline, "1tnZ");
    assert!(pipeline.is_idle());
}

#[test]
fn a_portal_is_suspended_and_goes_on() {
    let mut pipeline =
        after(&[Owed::Bind, Owed::Execute, Owed::Execute, Owed::Close { ours: false }, Owed::Sync]);
    answers(&mut pipeline, "2DDsDDC3Z");
    assert!(pipeline.is_idle());
}

#[test]
fn an_error_drops_what_was_sent_up_to_the_sync() {
    let mut pipeline =
        after(&[PARSE, Owed::Bind, Owed::Execute, Owed::Sync, Owed::Bind, Owed::Execute, Owed::Sync]);
    answers(&mut pipeline, "EZ");
    assert_eq!(pipeline.take_lost(), [Lost { statement: 1, serial: 7 }]);
    assert!(!pipeline.is_idle());
    answers(&mut pipeline, "2DCZ");
    assert!(pipeline.is_idle());
}

#[test]
fn an_error_before_the_sync_is_sent_skips_until_it_is() {
    let mut pipeline = after(&[PARSE, Owed::Bind]);
    answers(&mut pipeline, "1E");
    assert!(pipeline.take_lost().is_empty() && !pipeline.is_idle() && pipeline.in_group());
    for message in [Owed::Execute, PARSE, Owed::Close { ours: false }] {
        pipeline.sent(message);
    }
    assert_eq!(pipeline.take_lost(), [Lost { statement: 1, serial: 7 }]);
    pipeline.sent(Owed::Sync);
    answers(&mut pipeline, "Z");
    assert!(pipeline.is_idle());
}

#[test]
fn what_the_router_asked_for_is_not_the_clients() {
    let mut pipeline = after(&[Owed::Close { ours: true }, OURS, Owed::Bind, Owed::Execute, Owed::Sync]);
    assert_eq!(answers(&mut pipeline, "312")[..], [Answer::Ours, Answer::Ours, Answer::Pass]);
    let mut pipeline = after(&[OURS, Owed::Bind, Owed::Execute, Owed::Sync]);
    assert_eq!(answers(&mut pipeline, "E"), [Answer::Pass], "an error is always the client's");
    assert_eq!(pipeline.take_lost(), [Lost { statement: 9, serial: 0 }]);
}

#[test]
fn syncs_before_copied_data_are_ignored_as_servers_do() {
    // libpq: the whole group with its Sync, then data, and a second Sync.
    let mut pipeline = after(&[PARSE, Owed::Bind, Owed::Execute, Owed::Sync]);
    answers(&mut pipeline, "12G");
    pipeline.sent(Owed::Sync);
    pipeline.sent(Owed::CopyEnd);
    pipeline.sent(Owed::Sync);
    answers(&mut pipeline, "CZ");
    assert!(pipeline.is_idle());

    // All at once, before anything was answered.
    let mut pipeline = after(&[Owed::Bind, Owed::Execute, Owed::Sync, Owed::CopyEnd, Owed::Sync]);
    answers(&mut pipeline, "2GCZ");
    assert!(pipeline.is_idle());

    // The COPY fails before it takes data: the first Sync counts, and so does the second.
    let mut pipeline = after(&[Owed::Bind, Owed::Execute, Owed::Sync, Owed::CopyEnd, Owed::Sync]);
    answers(&mut pipeline, "2EZZ");
    assert!(pipeline.is_idle());
}

#[test]
fn a_copy_that_fails_half_way_waits_for_the_sync_behind_it() {
    let mut pipeline = after(&[Owed::Bind, Owed::Execute, Owed::Sync]);
    answers(&mut pipeline, "2GE");
    assert!(!pipeline.is_idle());
    pipeline.sent(Owed::CopyEnd);
    pipeline.sent(Owed::Sync);
    answers(&mut pipeline, "Z");
    assert!(pipeline.is_idle());
}

#[test]
fn a_simple_copy_that_fails_ignores_the_end_that_follows() {
    let mut pipeline = after(&[Owed::Query]);
    answers(&mut pipeline, "GEZ");
    assert!(pipeline.is_idle());
    pipeline.sent(Owed::CopyEnd);
    pipeline.sent(Owed::Query);
    answers(&mut pipeline, "CZ");
    assert!(pipeline.is_idle());
}

#[test]
fn notices_come_at_any_time() {
    let mut pipeline = Pipeline::default();
    assert_eq!(answers(&mut pipeline, "NAS"), [Answer::Pass; 3]);
    assert!(pipeline.is_idle());
}

#[test]
fn groups_and_boundaries_are_told_apart() {
    let mut pipeline = Pipeline::default();
    assert!(!pipeline.in_group() && !pipeline.awaits_ready());
    pipeline.sent(Owed::Bind);
    assert!(pipeline.in_group() && !pipeline.awaits_ready());
    pipeline.sent(Owed::Sync);
    assert!(!pipeline.in_group() && pipeline.awaits_ready());
}

#[test]
fn answers_that_nobody_asked_for_are_a_violation() {
    for (messages, tag) in [
        (&[][..], b'C'),
        (&[], b'Z'),
        (&[Owed::Query], b'1'),
        (&[Owed::Bind, Owed::Sync], b'C'),
        (&[Owed::Bind, Owed::Sync], b'Z'),
        (&[Owed::Query], b'R'),
    ] {
        assert_eq!(after(messages).received(tag, b'I'), Err(Unasked(tag as char)), "{messages:?} {tag}");
    }
    assert!(after(&[Owed::Sync]).received(b'Z', b'x').is_err());
}

fn message() -> impl Strategy<Value = Owed> {
    prop_oneof![
        Just(Owed::Query),
        Just(PARSE),
        Just(OURS),
        Just(Owed::Bind),
        Just(Owed::Describe),
        Just(Owed::Execute),
        Just(Owed::Close { ours: false }),
        Just(Owed::Sync),
        Just(Owed::CopyEnd),
        Just(Owed::Call),
    ]
}

proptest! {
    /// Whatever comes in whatever order, the count of boundaries is that of the queue, and nothing panics.
    #[test]
    fn counts_hold_in_every_order(steps in proptest::collection::vec(
        prop_oneof![message().prop_map(Ok), (any::<proptest::sample::Index>(), prop_oneof![Just(b'I'), Just(b'T'), Just(b'E')])
            .prop_map(Err)], 0..60)) {
        let mut pipeline = Pipeline::default();
        for step in steps {
            match step {
                Ok(message) => pipeline.sent(message),
                Err((index, status)) => {
                    let tags = b"ZE123tTnDdcCIsVGHWNAS";
                    if pipeline.received(tags[index.index(tags.len())], status).is_err() {
                        return Ok(());
                    }
                }
            }
            let boundaries = pipeline.owed.iter().filter(|owed| is_boundary(**owed)).count();
            prop_assert_eq!(boundaries, pipeline.boundaries);
        }
    }
}
