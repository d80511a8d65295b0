//! What looks at a side prove, as statements.

use super::*;

const S: i64 = 1_000_000;

fn look(at_s: i64, scans: i64) -> Look {
    let tables = [("public.t".to_owned(), Counters { scans, changes: 0 })].into();
    Look { at_us: at_s * S, tables, ..Look::default() }
}

fn own(applied: u64) -> Own {
    Own { token: 1, applied, ..Own::default() }
}

/// Quiet since the beginning, past the time in which our own doings are counted.
fn quiet() -> Record {
    let mut record = Record::begin(2, look(0, 5), own(0));
    record.observe(look(20, 5), own(0));
    record
}

/// What stands against it: `None` for not having been watched for long enough.
fn kinds(record: &Record, from_s: i64, window_s: u64) -> Vec<Option<Kind>> {
    let kind = |a| match a {
        Against::NotWatched { .. } => None,
        Against::Used { kind, .. } => Some(kind),
    };
    record.against(from_s * S, Duration::from_secs(window_s)).into_iter().map(kind).collect()
}

#[test]
fn nothing_stands_against_a_side_that_was_watched_and_not_used() {
    let record = quiet();
    assert_eq!(kinds(&record, 20, 20), []);
    assert_eq!(kinds(&record, 20, 21), [None], "it was not watched for so long");
}

#[test]
fn a_scan_counts_as_a_read_where_it_cannot_be_ours() {
    let mut record = quiet();
    record.observe(look(25, 6), own(0));
    assert_eq!(kinds(&record, 26, 5), [Some(Kind::Read)]);
    assert_eq!(kinds(&record, 40, 5), [], "that was before the window");
}

#[test]
fn scans_while_the_stream_writes_and_shortly_after_are_said_to_prove_nothing() {
    let mut record = quiet();
    record.observe(look(25, 9), own(1));
    record.observe(look(30, 10), own(1));
    assert_eq!(kinds(&record, 30, 5), []);
    // From the beginning until 20, when what was before could still be counted; then until 30.
    assert_eq!(record.blind_by_stream, Some(Blind { total_us: 30 * S, first_us: 0, last_us: 30 * S }));
    record.observe(look(45, 10), own(1));
    record.observe(look(50, 11), own(1));
    assert_eq!(kinds(&record, 50, 5), [Some(Kind::Read)], "later they do");
}

#[test]
fn scans_while_rows_are_compared_are_told_apart_from_those_of_the_stream() {
    let mut record = quiet();
    record.observe(look(25, 9), Own { verifications: 1, verifying: true, ..own(0) });
    record.observe(look(30, 12), Own { verifications: 1, ..own(0) });
    assert_eq!(kinds(&record, 30, 10), []);
    assert_eq!(
        record.blind_by_verification,
        Some(Blind { total_us: 10 * S, first_us: 20 * S, last_us: 30 * S })
    );
}

#[test]
fn refused_writes_and_strays_count_whatever_the_stream_does() {
    let mut record = quiet();
    let refused = Look { refused: 2, refused_at_us: Some(24 * S), ..look(25, 9) };
    record.observe(refused.clone(), own(1));
    assert_eq!(kinds(&record, 25, 3), [Some(Kind::RefusedWrite)]);
    record.observe(Look { at_us: 26 * S, ..refused }, Own { strays: 1, ..own(1) });
    assert_eq!(kinds(&record, 26, 1), [Some(Kind::Stray)]);
}

#[test]
fn a_session_counts_when_it_holds_a_lock_or_was_just_busy_with_the_tables() {
    let mut record = quiet();
    let t: BTreeSet<String> = ["public.t".to_owned()].into();
    let named = Session { who: "ann".into(), busy_at_us: 21 * S, names: t.clone(), ..Session::default() };
    let by = Session { who: "bob".into(), busy_at_us: 29 * S, ..Session::default() };
    record.observe(Look { sessions: vec![named, by.clone()], ..look(30, 5) }, own(0));
    assert_eq!(kinds(&record, 30, 5), [], "idle for longer than the window");
    assert_eq!(kinds(&record, 30, 10), [Some(Kind::Session)]);
    assert_eq!(record.bystanders(), ["bob"]);
    record.observe(Look { sessions: vec![Session { holds: t, ..by }], ..look(35, 5) }, own(0));
    assert_eq!(kinds(&record, 35, 1), [Some(Kind::Session)]);
}

#[test]
fn statistics_that_were_reset_begin_the_window_anew_and_keep_what_was_seen() {
    let mut record = quiet();
    record.observe(Look { refused: 1, refused_at_us: Some(24 * S), ..look(25, 5) }, own(0));
    record.observe(Look { reset_at_us: Some(26 * S), refused: 1, ..look(30, 0) }, own(0));
    assert_eq!((record.since_us, record.restarted.is_some()), (30 * S, true));
    assert_eq!(kinds(&record, 30, 8), [None, Some(Kind::RefusedWrite)]);
    let mut record = quiet();
    record.observe(look(25, 4), own(0));
    assert_eq!(record.since_us, 25 * S, "counters that went down");
}

#[test]
fn what_moved_while_no_process_watched_is_a_read_and_at_a_quick_restart_is_not() {
    let other = Own { token: 2, ..Own::default() };
    let mut record = quiet();
    record.observe(look(40, 6), other);
    assert_eq!(kinds(&record, 40, 10), [], "the process before it may have written");
    let mut record = quiet();
    record.observe(look(400, 6), other);
    assert_eq!(kinds(&record, 400, 100), [Some(Kind::Read)]);
}

#[test]
fn a_refused_write_whose_time_is_that_of_an_earlier_one_counts_as_of_now() {
    let mut record = quiet();
    let first = Look { refused: 1, refused_at_us: Some(25 * S), ..look(30, 5) };
    record.observe(first.clone(), own(0));
    record.observe(Look { at_us: 900 * S, refused: 2, ..first }, own(0));
    assert_eq!(kinds(&record, 900, 100), [Some(Kind::RefusedWrite)]);
}

#[test]
fn what_a_stream_wrote_over_a_long_time_without_a_look_proves_nothing_of_sessions_either() {
    let mut record = quiet();
    record.observe(look(400, 9), own(1));
    record.observe(look(405, 9), own(2));
    let blind = Blind { total_us: 380 * S, first_us: 20 * S, last_us: 400 * S };
    assert_eq!(record.unwatched, Some(blind));
}

#[test]
fn strays_that_only_the_journal_knows_of_count() {
    let mut record = quiet();
    record.told_of_strays(2, 15 * S);
    assert_eq!(kinds(&record, 20, 10), [Some(Kind::Stray)]);
}

#[test]
fn production_is_watched_for_a_week_and_never_for_less_than_an_hour() {
    assert_eq!(window(Profile::Prod), Duration::from_secs(604_800));
    assert_eq!(window_min(Profile::Prod), Duration::from_secs(3_600));
    assert_eq!((window(Profile::Dev), window_min(Profile::Staging)), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn a_statement_names_a_table_by_a_whole_word() {
    let tables: BTreeSet<String> = ["public.t".to_owned(), "crm.\"Big\"".to_owned()].into();
    assert_eq!(named_in("SELECT * FROM T WHERE x", &tables).len(), 1);
    assert_eq!(named_in("select * from crm.\"Big\"", &tables).len(), 1);
    assert_eq!(named_in("SELECT at FROM tt, t_2", &tables).len(), 0);
}
