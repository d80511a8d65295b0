//! Two answers to one statement: whether they are the same, and if not, in what they differ.
//!
//! It is pure, and does not know which side is right. It tells of values only what it is allowed to.

use super::report::{ColumnPair, MismatchKind};
use super::rows::{Column, Rows, Values, values};
use super::value::{Rule, Tolerance, USER_TYPE_MIN};
use crate::classify::Order;
use crate::frames::Malformed;
use std::collections::HashMap;

/// Columns of a row that are told; the first ones say where to look.
const COLUMNS_MAX: usize = 8;
/// Bytes of a value that are shown.
const SHOWN_BYTES_MAX: usize = 128;
/// Pairs of rows that are tried where values may differ a little: beyond that they count as different.
const PAIRS_MAX: usize = 1_000_000;

/// How answers are compared.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Way {
    pub(super) tolerance: Tolerance,
    pub(super) show_values: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `order_unproven`: the order differs, by keys that the answer does not show.
    Same {
        order_unproven: bool,
    },
    Differs(Difference),
}

/// In what the other answer differs from the one that was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) kind: MismatchKind,
    pub(super) served_rows: usize,
    pub(super) other_rows: usize,
    pub(super) columns: Vec<ColumnPair>,
}

/// Holds `other` against what was served.
pub(super) fn compare(served: &Rows, other: &Rows, order: &Order, way: &Way) -> Result<Verdict, Malformed> {
    let differs = |kind, columns| {
        let (served_rows, other_rows) = (served.len(), other.len());
        Ok(Verdict::Differs(Difference { kind, served_rows, other_rows, columns }))
    };
    let (mine, theirs) = (served.columns()?, other.columns()?);
    if let Some(what) = columns_differ(mine.as_deref(), theirs.as_deref()) {
        return differs(MismatchKind::ColumnsDiffer(what), Vec::new());
    }
    if other.is_cut() {
        return differs(MismatchKind::Larger, Vec::new());
    }
    if served.has_same_bytes(other) {
        return Ok(Verdict::Same { order_unproven: false });
    }
    let table = Table::new(theirs.or(mine).unwrap_or_default(), way);
    let (mine, theirs) = (table.rows(served)?, table.rows(other)?);
    let (Some(mine), Some(theirs)) = (mine, theirs) else {
        let what = "a row has another number of values".to_owned();
        return differs(MismatchKind::ColumnsDiffer(what), Vec::new());
    };
    let (missing, extra) = table.unmatched(&mine, &theirs);
    if missing.is_empty() && extra.is_empty() {
        return match table.first_out_of_order(&mine, &theirs, order) {
            Some(Misplaced::Proven(columns)) => differs(MismatchKind::OrderDiffers, columns),
            Some(Misplaced::Unproven) => Ok(Verdict::Same { order_unproven: true }),
            None => Ok(Verdict::Same { order_unproven: false }),
        };
    }
    let (kind, columns) = table.difference(&mine, &theirs, &missing, &extra);
    differs(kind, columns)
}

/// Only what both answers tell of their columns is compared.
fn columns_differ(served: Option<&[Column<'_>]>, other: Option<&[Column<'_>]>) -> Option<String> {
    let (Some(served), Some(other)) = (served, other) else { return None };
    if served.len() != other.len() {
        return Some(format!("{} and {}", served.len(), other.len()));
    }
    served.iter().zip(other).find_map(|(served, other)| {
        let name = || String::from_utf8_lossy(served.name).into_owned();
        let both_users = served.type_oid.min(other.type_oid) >= USER_TYPE_MIN;
        if served.name != other.name {
            Some(format!("{} and {}", name(), String::from_utf8_lossy(other.name)))
        } else if served.type_oid != other.type_oid && !both_users {
            Some(format!("{} is of type {} and {}", name(), served.type_oid, other.type_oid))
        } else if served.is_binary != other.is_binary {
            Some(format!("{} is in another format", name()))
        } else {
            None
        }
    })
}

/// Rows that are in another order.
enum Misplaced {
    /// Not the one that was asked for: the keys of the first such row.
    Proven(Vec<ColumnPair>),
    Unproven,
}

/// A row, and the bytes that it came as.
struct Row<'a> {
    body: &'a [u8],
    values: Values<'a>,
}

/// The columns of both answers, and how each is compared.
struct Table<'a> {
    columns: Vec<Column<'a>>,
    rules: Vec<Rule>,
    show_values: bool,
}

impl<'a> Table<'a> {
    fn new(columns: Vec<Column<'a>>, way: &Way) -> Table<'a> {
        let rule = |column: &Column<'_>| Rule::of(column.type_oid, column.is_binary, &way.tolerance);
        Table { rules: columns.iter().map(rule).collect(), columns, show_values: way.show_values }
    }

    /// `None`: a row that has not these columns.
    fn rows<'r>(&self, rows: &'r Rows) -> Result<Option<Vec<Row<'r>>>, Malformed> {
        let mut read = Vec::with_capacity(rows.len());
        for body in rows.iter() {
            let values = values(body)?;
            if values.len() != self.columns.len() {
                return Ok(None);
            }
            read.push(Row { body, values });
        }
        Ok(Some(read))
    }

    fn same_value(&self, column: usize, a: &Row<'_>, b: &Row<'_>) -> bool {
        self.rules[column].same(a.values[column], b.values[column])
    }

    fn same_row(&self, a: &Row<'_>, b: &Row<'_>) -> bool {
        a.body == b.body || (0..self.rules.len()).all(|column| self.same_value(column, a, b))
    }

    /// The rows, by their places, that have no partner on the other side.
    fn unmatched(&self, mine: &[Row<'_>], theirs: &[Row<'_>]) -> (Vec<usize>, Vec<usize>) {
        let mut open: HashMap<&[u8], Vec<usize>> = HashMap::with_capacity(mine.len());
        // From behind, so that the first of equal rows finds the first partner.
        mine.iter().enumerate().rev().for_each(|(at, row)| open.entry(row.body).or_default().push(at));
        let mut is_extra = |row: &Row<'_>| open.get_mut(row.body).is_none_or(|places| places.pop().is_none());
        let mut extra: Vec<usize> =
            theirs.iter().enumerate().filter(|(_, row)| is_extra(row)).map(|(at, _)| at).collect();
        let mut missing: Vec<usize> = open.into_values().flatten().collect();
        missing.sort_unstable();
        if self.rules.iter().any(|rule| *rule != Rule::Bytes) {
            self.match_nearly(mine, theirs, &mut missing, &mut extra);
        }
        (missing, extra)
    }

    /// Takes out the pairs that are the same although their bytes differ.
    fn match_nearly(
        &self,
        mine: &[Row<'_>],
        theirs: &[Row<'_>],
        missing: &mut Vec<usize>,
        extra: &mut Vec<usize>,
    ) {
        // Only rows with the same bytes in all other columns can be partners.
        let strict = |row: &Row<'_>| -> Vec<Option<Vec<u8>>> {
            let strict = row.values.iter().zip(&self.rules).filter(|(_, rule)| **rule == Rule::Bytes);
            strict.map(|(value, _)| value.map(<[u8]>::to_vec)).collect()
        };
        let mut open: HashMap<_, Vec<usize>> = HashMap::new();
        extra.iter().for_each(|&at| open.entry(strict(&theirs[at])).or_default().push(at));
        let mut tried = 0;
        missing.retain(|&at| {
            let Some(places) = open.get_mut(&strict(&mine[at])) else { return true };
            let partner = places.iter().position(|&place| {
                tried += 1;
                tried <= PAIRS_MAX && self.same_row(&mine[at], &theirs[place])
            });
            partner.map(|partner| places.remove(partner)).is_none()
        });
        *extra = open.into_values().flatten().collect();
        extra.sort_unstable();
    }

    /// The rows are the same: whether their order is, too. Rows that tie may come in any order.
    fn first_out_of_order(&self, mine: &[Row<'_>], theirs: &[Row<'_>], order: &Order) -> Option<Misplaced> {
        let mut pairs = mine.iter().zip(theirs);
        match order {
            Order::None => None,
            Order::Keys(keys) if keys.iter().all(|key| *key < self.columns.len()) => {
                let same = |(a, b): &(&Row<'_>, &Row<'_>)| keys.iter().all(|key| self.same_value(*key, a, b));
                let (a, b) = pairs.find(|pair| !same(pair))?;
                let differs = keys.iter().copied().filter(|key| !self.same_value(*key, a, b));
                Some(Misplaced::Proven(self.pairs(differs, Some(a), Some(b))))
            }
            Order::Keys(_) | Order::Hidden => {
                pairs.any(|(a, b)| !self.same_row(a, b)).then_some(Misplaced::Unproven)
            }
        }
    }

    fn difference(
        &self,
        mine: &[Row<'_>],
        theirs: &[Row<'_>],
        missing: &[usize],
        extra: &[usize],
    ) -> (MismatchKind, Vec<ColumnPair>) {
        let all = 0..self.columns.len();
        let first_missing = missing.first().map(|at| &mine[*at]);
        if mine.len() > theirs.len() {
            let kind = MismatchKind::RowsMissing(mine.len() - theirs.len());
            return (kind, self.pairs(all, first_missing, None));
        }
        if mine.len() < theirs.len() {
            let kind = MismatchKind::RowsTooMany(theirs.len() - mine.len());
            return (kind, self.pairs(all, None, extra.first().map(|at| &theirs[*at])));
        }
        // As many on both sides: the row that is most like the first is most likely what became of it.
        let nearest = first_missing.and_then(|row| {
            let others = extra.iter().take(PAIRS_MAX / COLUMNS_MAX.max(all.len())).map(|at| &theirs[*at]);
            let alike = |other: &&Row<'_>| all.clone().filter(|i| self.same_value(*i, row, other)).count();
            // The first of the most alike, where `max_by_key` would give the last.
            others.rev().max_by_key(alike)
        });
        let differing = all.filter(|column| match (first_missing, nearest) {
            (Some(a), Some(b)) => !self.same_value(*column, a, b),
            _ => true,
        });
        let pairs = self.pairs(differing, first_missing, nearest);
        let first = pairs.first().map(|pair| pair.name.clone()).unwrap_or_default();
        (MismatchKind::ValuesDiffer(first), pairs)
    }

    fn pairs(
        &self,
        columns: impl Iterator<Item = usize>,
        served: Option<&Row<'_>>,
        other: Option<&Row<'_>>,
    ) -> Vec<ColumnPair> {
        let told = |row: Option<&Row<'_>>, at: usize| match row {
            None => "no such row".to_owned(),
            Some(row) => tell(row.values[at], self.columns[at].is_binary, self.show_values),
        };
        let pair = |at: usize| ColumnPair {
            name: bounded(&String::from_utf8_lossy(self.columns[at].name), SHOWN_BYTES_MAX),
            served: told(served, at),
            other: told(other, at),
        };
        columns.take(COLUMNS_MAX).map(pair).collect()
    }
}

/// A value where it may be shown, else how long it is.
pub(super) fn tell(value: Option<&[u8]>, is_binary: bool, show_values: bool) -> String {
    match value {
        None => "null".to_owned(),
        Some(value) if !show_values => format!("{} bytes", value.len()),
        Some(value) => {
            let start = &value[..value.len().min(SHOWN_BYTES_MAX)];
            let text = if is_binary {
                start.iter().take(SHOWN_BYTES_MAX / 2).map(|byte| format!("{byte:02x}")).collect()
            } else {
                String::from_utf8_lossy(start).into_owned()
            };
            bounded(&text, SHOWN_BYTES_MAX)
        }
    }
}

/// The beginning of a text.
pub(super) fn bounded(text: &str, bytes_max: usize) -> String {
    let end = (0..=text.len().min(bytes_max)).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests;
