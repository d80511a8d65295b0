//! Keys of rows and their order, for types whose order is the same everywhere.

use crate::change::{Row, Value};
use crate::table::{Key, KeyOrder};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;

/// The text of a row's key columns, in the order of [`Key::columns`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyText(pub Box<[Bytes]>);

/// A key column was NULL or missing from a row image that must carry it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("key column number {column} has no value in the change stream")]
pub struct KeyIncomplete {
    /// Index into the table's columns.
    pub column: usize,
}

impl KeyText {
    /// A key from the text of its columns.
    pub fn from_texts<T: Into<Bytes>>(texts: impl IntoIterator<Item = T>) -> KeyText {
        KeyText(texts.into_iter().map(Into::into).collect())
    }

    /// The key of `row`.
    pub fn of(key: &Key, row: &Row) -> Result<KeyText, KeyIncomplete> {
        key.columns
            .iter()
            .map(|&column| row.get(column).and_then(Value::text).cloned().ok_or(KeyIncomplete { column }))
            .collect::<Result<Box<[Bytes]>, _>>()
            .map(KeyText)
    }

    /// A row that carries only this key; every other column is NULL.
    pub fn into_row(self, key: &Key, columns: usize) -> Row {
        let mut row = vec![Value::Null; columns];
        for (&column, text) in key.columns.iter().zip(self.0) {
            row[column] = Value::Text(text);
        }
        row.into()
    }
}

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (i, text) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, String::from_utf8_lossy(text))?;
        }
        f.write_str(")")
    }
}

impl Serialize for KeyText {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.0.iter().map(|b| String::from_utf8_lossy(b)))
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Vec::<String>::deserialize(d).map(KeyText::from_texts)
    }
}

/// Compares two keys as the source does, or `None` where only the source can tell.
pub fn compare(order: &[KeyOrder], a: &KeyText, b: &KeyText) -> Option<Ordering> {
    for ((order, a), b) in order.iter().zip(&a.0).zip(&b.0) {
        let ordering = match order {
            KeyOrder::AskSource => return None,
            KeyOrder::Bytes => a.cmp(b),
            KeyOrder::Integer => integer(a)?.cmp(&integer(b)?),
            KeyOrder::Moment => moment(a)?.cmp(&moment(b)?),
        };
        if ordering != Ordering::Equal {
            return Some(ordering);
        }
    }
    Some(Ordering::Equal)
}

/// What to sort keys by so that they lie about as in an index on them, also where only the source knows the exact order: for
/// speed, not for truth.
pub fn rank(order: &[KeyOrder], key: &KeyText) -> Vec<(Option<i64>, Bytes)> {
    let column = |(order, text): (&KeyOrder, &Bytes)| match order {
        KeyOrder::Integer => (integer(text), Bytes::new()),
        KeyOrder::Bytes | KeyOrder::Moment | KeyOrder::AskSource => (None, text.clone()),
    };
    order.iter().zip(&key.0).map(column).collect()
}

fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Year (negative for BC) and the rest, which sorts bytewise within a year.
fn moment(text: &[u8]) -> Option<(i64, &[u8])> {
    match text {
        b"infinity" => return Some((i64::MAX, b"")),
        b"-infinity" => return Some((i64::MIN, b"")),
        _ => {}
    }
    let (text, bc) = match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let dash = text.iter().position(|&b| b == b'-')?;
    let year = integer(&text[..dash])?;
    Some((if bc { -year } else { year }, &text[dash + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(order: KeyOrder, texts: &[&'static str]) {
        for pair in texts.windows(2) {
            let key = |t: &'static str| KeyText::from_texts([t]);
            assert_eq!(
                compare(&[order], &key(pair[0]), &key(pair[1])),
                Some(Ordering::Less),
                "{} < {}",
                pair[0],
                pair[1]
            );
        }
    }

    #[test]
    fn integers_compare_as_numbers() {
        sorted(
            KeyOrder::Integer,
            &["-9223372036854775808", "-10", "-9", "0", "9", "10", "9223372036854775807"],
        );
    }

    #[test]
    fn moments_compare_across_eras_long_years_and_infinity() {
        sorted(
            KeyOrder::Moment,
            &[
                "-infinity",
                "4713-01-01 BC",
                "0044-03-15 BC",
                "0001-01-01",
                "2026-01-02",
                "10000-01-01",
                "infinity",
            ],
        );
        sorted(
            KeyOrder::Moment,
            &["2026-01-01 00:00:00+00", "2026-01-01 00:00:00.49+00", "2026-01-01 00:00:00.5+00"],
        );
    }

    #[test]
    fn composite_keys_compare_column_by_column() {
        let order = [KeyOrder::Integer, KeyOrder::Bytes];
        let key = |a: &'static str, b: &'static str| KeyText::from_texts([a, b]);
        assert_eq!(compare(&order, &key("9", "z"), &key("10", "a")), Some(Ordering::Less));
        assert_eq!(compare(&order, &key("9", "b"), &key("9", "a")), Some(Ordering::Greater));
    }

    #[test]
    fn only_the_source_orders_other_types() {
        let key = |t: &'static str| KeyText::from_texts([t]);
        assert_eq!(compare(&[KeyOrder::AskSource], &key("a"), &key("b")), None);
    }
}
