//! A confirmed difference between the two sides: what it is, and what it looks like it came from.
//!
//! Classifying never decides whether rows differ (every difference of the text form is one); it only gives the
//! operator the likely cause, so that a hundred differences can be told apart at a glance.

mod cause;

use crate::change::{Row, Value};
use crate::key::KeyText;
use crate::position::Position;
use crate::table::{Column, Table, TableId};
use cause::cause_of;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// Bytes of one value that are kept with a difference; the rest is counted, not kept.
pub const EXCERPT_BYTES_MAX: usize = 2048;

/// What kind of difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The owner has the row, the other side lacks it.
    Missing,
    /// The other side has a row that the owner lacks.
    Extra,
    /// Values differ, for no recognised reason or for several.
    Changed,
    /// The same text in another encoding or normalisation, or with a byte order mark.
    Encoding,
    /// The same number or moment with other digits: scale, rounding, fraction of a second.
    Precision,
    /// The same moment read in another time zone.
    TimeZone,
    /// NULL against an empty or zero value.
    NullDefault,
    /// One value is the beginning of the other.
    Truncation,
    /// Equal but for spaces at the end.
    TrailingSpace,
    /// Equal but for upper and lower case.
    Case,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Missing => "missing",
            Class::Extra => "extra",
            Class::Changed => "changed",
            Class::Encoding => "encoding",
            Class::Precision => "precision",
            Class::TimeZone => "time zone",
            Class::NullDefault => "null/default",
            Class::Truncation => "truncation",
            Class::TrailingSpace => "trailing space",
            Class::Case => "case",
        })
    }
}

/// One differing column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDifference {
    /// Its name on the source.
    pub column: String,
    /// The likely cause.
    pub class: Class,
    /// The owner's value, cut to an excerpt; `None` is NULL.
    pub owner: Option<String>,
    /// The other side's value, cut to an excerpt; `None` is NULL.
    pub other: Option<String>,
}

/// What two rows that should be equal differ in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The row's class: its columns' if they all agree, else [`Class::Changed`].
    pub class: Class,
    /// The differing columns; none where a row is missing or extra.
    pub columns: Vec<ColumnDifference>,
}

/// A confirmed difference, as it is reported and stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The table's number.
    pub table_id: TableId,
    /// The table's name on the source.
    pub table: String,
    /// The row's key; `None` in a table without one.
    pub key: Option<KeyText>,
    /// What differs.
    #[serde(flatten)]
    pub difference: Difference,
    /// The owner's row, each value cut to an excerpt, in the order of the table's columns.
    pub owner_row: Option<Vec<Option<String>>>,
    /// The other side's row likewise.
    pub other_row: Option<Vec<Option<String>>>,
    /// How many such rows the owner has: 0 or 1 with a key that nobody has dropped.
    pub owner_rows: u64,
    /// How many such rows the other side has.
    pub other_rows: u64,
    /// Hash of the owner's row as the digests use it; 0 without a row.
    pub owner_hash: i64,
    /// Hash of the other side's row.
    pub other_hash: i64,
    /// Where the owner's log ended when the difference was confirmed.
    pub owner_position: Position,
    /// Where the other side's log ended.
    pub other_position: Position,
    /// The statement that would mend it, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// It was repaired and found equal afterwards.
    #[serde(default)]
    pub repaired: bool,
    /// Why it could not be repaired, and what to do about that, where it was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.key.as_ref().map_or_else(|| "a row".to_owned(), |key| format!("row {key}"));
        write!(f, "{} {row}: {}", self.table, self.difference.class)?;
        if self.key.is_none() || self.owner_rows.max(self.other_rows) > 1 {
            write!(f, " ({} on the owner, {} on the other side)", self.owner_rows, self.other_rows)?;
        }
        let shown = |v: &Option<String>| v.as_ref().map_or_else(|| "NULL".to_owned(), |v| format!("{v:?}"));
        for c in &self.difference.columns {
            write!(
                f,
                "; {} is {} on the owner, {} on the other side",
                c.column,
                shown(&c.owner),
                shown(&c.other)
            )?;
        }
        f.write_str(if self.repaired { " (repaired)" } else { "" })
    }
}

/// Compares two readings of one row; `None` when their text forms are equal or both are absent.
pub fn classify(table: &Table, owner: Option<&Row>, other: Option<&Row>) -> Option<Difference> {
    let (owner, other) = match (owner, other) {
        (None, None) => return None,
        (Some(_), None) => return Some(Difference { class: Class::Missing, columns: Vec::new() }),
        (None, Some(_)) => return Some(Difference { class: Class::Extra, columns: Vec::new() }),
        (Some(owner), Some(other)) => (owner, other),
    };
    let differing = table.columns.iter().zip(owner.iter().zip(other.iter()));
    let columns: Vec<ColumnDifference> = differing
        .filter(|(_, (owner, other))| owner != other)
        .map(|(column, (owner, other))| column_difference(column, owner, other))
        .collect();
    let first = columns.first()?.class;
    let class = if columns.iter().all(|c| c.class == first) { first } else { Class::Changed };
    Some(Difference { class, columns })
}

fn column_difference(column: &Column, owner: &Value, other: &Value) -> ColumnDifference {
    ColumnDifference {
        column: column.source.clone(),
        class: cause_of(&column.target_type, owner.text().map(|t| &t[..]), other.text().map(|t| &t[..])),
        owner: excerpt(owner),
        other: excerpt(other),
    }
}

/// A row as it is kept with a difference.
pub fn excerpts(row: &Row) -> Vec<Option<String>> {
    row.iter().map(excerpt).collect()
}

fn excerpt(value: &Value) -> Option<String> {
    let text = value.text()?;
    if text.len() <= EXCERPT_BYTES_MAX {
        return Some(String::from_utf8_lossy(text).into_owned());
    }
    let head: Cow<'_, str> = String::from_utf8_lossy(&text[..EXCERPT_BYTES_MAX]);
    Some(format!("{}… ({} bytes in all)", head.trim_end_matches('\u{FFFD}'), text.len()))
}

#[cfg(test)]
mod tests;
