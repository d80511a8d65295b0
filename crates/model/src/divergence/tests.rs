//! What differences look like, as tables.

use super::*;
use crate::table::fixtures::keyed;

fn cause(sql_type: &str, owner: &str, other: &str) -> Class {
    let both = |a: &str, b: &str| cause_of(sql_type, Some(a.as_bytes()), Some(b.as_bytes()));
    let class = both(owner, other);
    assert_eq!(class, both(other, owner), "the same in both directions: {owner:?} {other:?}");
    class
}

#[test]
fn a_difference_shows_what_it_came_from() {
    for (sql_type, owner, other, class) in [
        ("text", "abc", "abc  ", Class::TrailingSpace),
        ("text", "Abc", "abC", Class::Case),
        ("public.citext", "Grün", "GRÜN", Class::Case),
        ("character varying", "a longer text", "a longer", Class::Truncation),
        ("bytea", "\\x0102ff", "\\x0102", Class::Truncation),
        ("text", "abc", "\u{FEFF}abc", Class::Encoding),
        ("text", "é", "Ã©", Class::Encoding),
        ("text", "5 €", "5 â‚¬", Class::Encoding),
        ("text", "Zürich", "Z?rich", Class::Encoding),
        ("text", "é", "e\u{301}", Class::Encoding),
        ("text", "abc", "abd", Class::Changed),
        ("numeric", "1.0", "1.00", Class::Precision),
        ("numeric", "2.345", "2.35", Class::Precision),
        ("numeric", "2.345", "2.34", Class::Precision),
        ("numeric", "9.99", "10", Class::Precision),
        ("numeric", "0.00", "-0.001", Class::Precision),
        ("numeric", "1.5", "-1.5", Class::Changed),
        ("numeric", "1.0", "1.1", Class::Changed),
        ("numeric", "NaN", "1.1", Class::Changed),
        ("integer", "12", "123", Class::Changed),
        ("double precision", "0.1", "0.10000000000000002", Class::Precision),
        ("double precision", "0.1", "0.2", Class::Changed),
        ("real", "0.1", "0.10000001", Class::Precision),
        ("timestamp with time zone", "2026-01-01 00:00:00+00", "2026-01-01 05:30:00+00", Class::TimeZone),
        ("timestamp without time zone", "2026-03-01 01:00:00", "2026-02-28 23:00:00", Class::TimeZone),
        (
            "timestamp without time zone",
            "2026-01-01 00:00:00.123456",
            "2026-01-01 00:00:00.123",
            Class::Precision,
        ),
        ("timestamp without time zone", "2026-01-01 00:00:00.9996", "2026-01-01 00:00:01", Class::Precision),
        ("timestamp without time zone", "2026-01-01 00:00:00", "2026-01-01 00:00:07", Class::Changed),
        ("timestamp without time zone", "0001-01-01 00:00:00 BC", "0001-01-01 01:00:00 BC", Class::TimeZone),
        ("time without time zone", "10:00:00", "12:00:00", Class::TimeZone),
        ("timestamp with time zone", "infinity", "2026-01-01 05:30:00+00", Class::Changed),
        ("jsonb", "{\"a\": 1}", "{\"a\": 2}", Class::Changed),
        ("public.mood", "happy", "sad", Class::Changed),
    ] {
        assert_eq!(cause(sql_type, owner, other), class, "{sql_type}: {owner:?} against {other:?}");
    }
}

#[test]
fn null_against_an_empty_or_zero_value_is_a_default() {
    for default in ["", "0", "0.00", "f", "{}", "1970-01-01 00:00:00+00"] {
        assert_eq!(cause_of("text", Some(default.as_bytes()), None), Class::NullDefault, "{default:?}");
        assert_eq!(cause_of("text", None, Some(default.as_bytes())), Class::NullDefault, "{default:?}");
    }
    for value in ["x", "10", "."] {
        assert_eq!(cause_of("text", Some(value.as_bytes()), None), Class::Changed, "{value:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_an_encoding() {
    assert_eq!(cause_of("text", Some(b"\xE9"), Some("é".as_bytes())), Class::Encoding);
}

fn row(values: [Option<&str>; 3]) -> Row {
    let value = |v: Option<&str>| v.map_or(Value::Null, |t| Value::Text(t.to_owned().into()));
    values.into_iter().map(value).collect()
}

#[test]
fn a_row_has_the_class_its_columns_share() {
    let table = keyed();
    let owner = row([Some("1"), Some("x"), Some("y")]);
    assert_eq!(classify(&table, Some(&owner), Some(&owner)), None);
    assert_eq!(classify(&table, None, None), None);
    let class =
        |other: Option<&Row>| classify(&table, Some(&owner), other).map(|d| (d.class, d.columns.len()));
    assert_eq!(class(None), Some((Class::Missing, 0)));
    assert_eq!(class(Some(&row([Some("1"), Some("x "), Some("y ")]))), Some((Class::TrailingSpace, 2)));
    assert_eq!(class(Some(&row([Some("1"), Some("x "), Some("Y")]))), Some((Class::Changed, 2)));
    assert_eq!(classify(&table, None, Some(&owner)).map(|d| d.class), Some(Class::Extra));
}

#[test]
fn a_divergence_survives_its_stored_form_and_long_values_are_cut() {
    let table = keyed();
    let long = "ä".repeat(EXCERPT_BYTES_MAX);
    let (owner, other) = (row([Some("1"), Some(&long), None]), row([Some("1"), Some("x"), None]));
    let divergence = Divergence {
        table_id: table.id,
        table: table.source.to_string(),
        key: Some(KeyText::from_texts(["1"])),
        difference: classify(&table, Some(&owner), Some(&other)).expect("they differ"),
        owner_row: Some(excerpts(&owner)),
        other_row: None,
        owner_rows: 1,
        other_rows: 1,
        owner_hash: -5,
        other_hash: 7,
        owner_position: Position(1),
        other_position: Position(2),
        remedy: None,
        repaired: false,
        refused: None,
    };
    let kept = divergence.difference.columns[0].owner.as_deref().expect("not NULL");
    assert!(
        kept.len() < EXCERPT_BYTES_MAX + 40
            && kept.ends_with(&format!("({} bytes in all)", 2 * EXCERPT_BYTES_MAX))
    );
    let stored = serde_json::to_string(&divergence).expect("serialises");
    assert_eq!(serde_json::from_str::<Divergence>(&stored).expect("reads back"), divergence);
}
