//! The statements of the applier, as text. Pure.
//!
//! The target table is always `t`, parameters that hold many rows are always `s` with columns `c0`, `c1`, …

use super::facts::Facts;
use super::qualified;
use segue_model::sqltext::quote_ident;
use segue_model::table::{ArrayForm, Column, Key, Table};
use std::fmt::Write;

/// What is known of one target table beyond its plan.
#[derive(Clone, Debug)]
pub(super) struct Target<'a> {
    pub(super) table: &'a Table,
    pub(super) facts: &'a Facts,
    /// Columns that only the target has, quoted: a row that is taken away and put back keeps what it has there. Needs to be known where
    /// that may happen.
    pub(super) own: &'a [String],
    /// Parameters of statements for one row may lie in [`LARGE`] instead.
    pub(super) staged: bool,
}

/// Where large values lie while their row is written: `v` is the parameter `$no`, which is NULL then.
pub(super) const LARGE: &str = "pg_temp.segue_large";

/// The type's name as a cast that keeps the whole value: some names mean a length of one when they stand alone.
fn cast_type(column: &Column) -> &str {
    match column.target_type.as_str() {
        "character" | "char" => "pg_catalog.bpchar",
        "bit" => "pg_catalog.\"bit\"",
        other => other,
    }
}

/// As planned, except for types of which `unnest` or an array's text makes something else: a composite is taken apart
/// into columns (and any type of the user's may be one), and the values of a `box[]` are not separated by commas.
/// Casting from text is right for every type.
fn array_form(column: &Column) -> ArrayForm {
    match column.target_type.as_str() {
        "box" => ArrayForm::CastText,
        qualified if qualified.contains('.') => ArrayForm::CastText,
        _ => column.array,
    }
}

fn list(items: impl IntoIterator<Item = String>, between: &str) -> String {
    let mut text = String::new();
    for item in items {
        if !text.is_empty() {
            text.push_str(between);
        }
        text.push_str(&item);
    }
    text
}

impl Target<'_> {
    fn column(&self, i: usize) -> String {
        quote_ident(&self.table.columns[i].target)
    }

    /// The table whose rows are read, changed and removed. Tables that inherit from it have rows of their own.
    fn relation(&self) -> String {
        let name = qualified(self.table);
        if self.facts.partitioned { name } else { format!("ONLY {name}") }
    }

    /// `$n` with the column's type.
    fn param(&self, i: usize, n: usize) -> String {
        let cast = cast_type(&self.table.columns[i]);
        if self.staged {
            format!("coalesce(${n}::text, (SELECT v FROM {LARGE} WHERE no = {n}))::{cast}")
        } else {
            format!("${n}::{cast}")
        }
    }

    /// `$n` to be assigned to a column. Without a cast: the parameter takes the column's own type, length and all.
    fn assigned(&self, i: usize, n: usize) -> String {
        if self.staged { self.param(i, n) } else { format!("${n}") }
    }

    /// `unnest($1::integer[], …) AS s(c0, …)` over these columns, parameters from `first` on.
    fn many(&self, columns: &[usize], first: usize) -> String {
        let arrays = columns.iter().enumerate().map(|(n, &i)| {
            let column = &self.table.columns[i];
            match array_form(column) {
                ArrayForm::Typed => format!("${}::{}[]", first + n, cast_type(column)),
                ArrayForm::CastText => format!("${}::text[]", first + n),
            }
        });
        let names = (0..columns.len()).map(|n| format!("c{n}"));
        format!("unnest({}) AS s({})", list(arrays, ", "), list(names, ", "))
    }

    /// Column `i` of the table, which is the `n`th of `s`.
    fn many_value(&self, i: usize, n: usize) -> String {
        let column = &self.table.columns[i];
        match array_form(column) {
            ArrayForm::Typed => format!("s.c{n}"),
            ArrayForm::CastText => format!("s.c{n}::{}", cast_type(column)),
        }
    }

    /// `t.k = …` for every key column, by the equality of its type; `value` gives the other side.
    fn key_is(&self, key: &Key, value: impl Fn(usize, usize) -> String) -> String {
        self.key_compares(key, "=", value)
    }

    fn key_compares(&self, key: &Key, sign: &str, value: impl Fn(usize, usize) -> String) -> String {
        let tests = key.columns.iter().enumerate().map(|(n, &i)| {
            format!("t.{} OPERATOR({}.{sign}) {}", self.column(i), self.facts.key_schemas[n], value(i, n))
        });
        list(tests, " AND ")
    }

    /// `t.k` lies after (or before) the key in the parameters from `first` on, column by column.
    pub(super) fn key_beyond(&self, key: &Key, sign: &str, last_sign: &str, first: usize) -> String {
        let mut text = String::new();
        for (n, &i) in key.columns.iter().enumerate().rev() {
            let compare = |sign: &str| {
                format!(
                    "t.{} OPERATOR({}.{sign}) {}",
                    self.column(i),
                    self.facts.key_schemas[n],
                    self.param(i, first + n)
                )
            };
            text = if text.is_empty() {
                compare(last_sign)
            } else {
                format!("({} OR ({} AND {text}))", compare(sign), compare("="))
            };
        }
        text
    }

    pub(super) fn delete_one(&self, key: &Key) -> String {
        let is = self.key_is(key, |i, n| self.param(i, n + 1));
        format!("DELETE FROM {} AS t WHERE {is}", self.relation())
    }

    pub(super) fn delete_many(&self, key: &Key) -> String {
        let is = self.key_is(key, |i, n| self.many_value(i, n));
        format!("DELETE FROM {} AS t USING {} WHERE {is}", self.relation(), self.many(&key.columns, 1))
    }

    fn all_columns(&self) -> String {
        list((0..self.table.columns.len()).map(|i| self.column(i)), ", ")
    }

    /// `INSERT INTO … (columns)`; a table without columns has no list.
    fn insert_into(&self, columns: &str) -> String {
        format!("INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE", qualified(self.table))
    }

    pub(super) fn insert_one(&self) -> String {
        if self.table.columns.is_empty() {
            return format!("INSERT INTO {} DEFAULT VALUES", qualified(self.table));
        }
        let values = list((0..self.table.columns.len()).map(|i| self.assigned(i, i + 1)), ", ");
        format!("{} VALUES ({values})", self.insert_into(&self.all_columns()))
    }

    pub(super) fn insert_many(&self) -> String {
        let all: Vec<usize> = (0..self.table.columns.len()).collect();
        let values = list(all.iter().map(|&i| self.many_value(i, i)), ", ");
        format!("{} SELECT {values} FROM {}", self.insert_into(&self.all_columns()), self.many(&all, 1))
    }

    /// Parameters: the key, then `set`.
    pub(super) fn update_one(&self, key: &Key, set: &[usize]) -> String {
        let first = key.columns.len() + 1;
        let is = self.key_is(key, |i, n| self.param(i, n + 1));
        let set = set
            .iter()
            .enumerate()
            .map(|(n, &i)| format!("{} = {}", self.column(i), self.assigned(i, first + n)));
        format!("UPDATE {} AS t SET {} WHERE {is}", self.relation(), list(set, ", "))
    }

    /// Parameters: the key, then `set`, each as an array.
    pub(super) fn update_many(&self, key: &Key, set: &[usize]) -> String {
        let width = key.columns.len();
        let is = self.key_is(key, |i, n| self.many_value(i, n));
        let columns: Vec<usize> = key.columns.iter().chain(set).copied().collect();
        let set = set
            .iter()
            .enumerate()
            .map(|(n, &i)| format!("{} = {}", self.column(i), self.many_value(i, width + n)));
        format!(
            "UPDATE {} AS t SET {} FROM {} WHERE {is}",
            self.relation(),
            list(set, ", "),
            self.many(&columns, 1)
        )
    }

    /// One row for each of the given keys that is there.
    pub(super) fn present_many(&self, key: &Key) -> String {
        let is = self.key_is(key, |i, n| self.many_value(i, n));
        format!(
            "SELECT FROM {} WHERE EXISTS (SELECT FROM {} AS t WHERE {is})",
            self.many(&key.columns, 1),
            self.relation()
        )
    }

    /// One row if there is one with the first key that does not have the second one. Parameters: the two keys, of which one value can be
    /// written in two ways.
    pub(super) fn taken_by_another(&self, key: &Key) -> String {
        let is = self.key_is(key, |i, n| self.param(i, n + 1));
        let itself = self.key_is(key, |i, n| self.param(i, key.columns.len() + n + 1));
        format!("SELECT FROM {} AS t WHERE {is} AND NOT ({itself})", self.relation())
    }

    /// Reads all rows whose keys are in a part of a list. Parameters: the list, and the numbers of its first and last key. `None` for a
    /// key of several columns, and one of whose type no list can be made of text.
    pub(super) fn read_listed(&self, key: &Key) -> Option<String> {
        let [i] = key.columns[..] else { return None };
        if array_form(&self.table.columns[i]) != ArrayForm::Typed {
            return None;
        }
        let list = |_, _| format!("ANY (($1::{}[])[$2::int:$3::int])", cast_type(&self.table.columns[i]));
        // `ctid`: of a row that is only counted its page is not read where all of it is visible to all.
        Some(format!("SELECT count(t.ctid) FROM {} AS t WHERE {}", self.relation(), self.key_is(key, list)))
    }

    /// Moves a row by removing and inserting it, where an identity column that cannot be updated must change.
    /// Parameters: the old key, then the columns of `set`; the others stay as they are.
    pub(super) fn move_one(&self, key: &Key, set: &[usize]) -> String {
        let is = self.key_is(key, |i, n| self.param(i, n + 1));
        self.put_back(&is, set, key.columns.len() + 1)
    }

    /// Takes away the row that `is` meant, and puts it back with `set` as the parameters from `first` on say.
    fn put_back(&self, is: &str, set: &[usize], first: usize) -> String {
        let value = |i: usize| match set.iter().position(|&s| s == i) {
            Some(n) => self.param(i, first + n),
            None => format!("gone.{}", self.column(i)),
        };
        let travelling = (0..self.table.columns.len()).map(|i| (self.column(i), value(i)));
        let own = self.own.iter().map(|column| (column.clone(), format!("gone.{column}")));
        let (columns, values): (Vec<String>, Vec<String>) = travelling.chain(own).unzip();
        let gone = format!("DELETE FROM {} AS t WHERE {is} RETURNING t.*", self.relation());
        let insert = self.insert_into(&list(columns, ", "));
        format!("WITH gone AS ({gone}) {insert} SELECT {} FROM gone", list(values, ", "))
    }

    /// The place of one row that equals the whole image in the parameters from 1 on. As records: without the casts the
    /// rows would be compared column by column, each by an operator `*=` of its own type.
    fn whole(&self) -> String {
        let count = self.table.columns.len();
        let row = list((0..count).map(|i| format!("t.{}", self.column(i))), ", ");
        let image = list((0..count).map(|i| self.param(i, i + 1)), ", ");
        format!(
            "(t.tableoid, t.ctid) = (SELECT t.tableoid, t.ctid FROM {} AS t \
             WHERE ROW({row})::record OPERATOR(pg_catalog.*=) ROW({image})::record LIMIT 1)",
            self.relation()
        )
    }

    pub(super) fn delete_whole(&self) -> String {
        format!("DELETE FROM {} AS t WHERE {}", self.relation(), self.whole())
    }

    /// Parameters: the whole old image, then `set`.
    pub(super) fn update_whole(&self, set: &[usize]) -> String {
        let first = self.table.columns.len() + 1;
        let set = set
            .iter()
            .enumerate()
            .map(|(n, &i)| format!("{} = {}", self.column(i), self.assigned(i, first + n)));
        format!("UPDATE {} AS t SET {} WHERE {}", self.relation(), list(set, ", "), self.whole())
    }

    /// As [`Target::move_one`], of a row with the whole old image: that in place of the key.
    pub(super) fn move_whole(&self, set: &[usize]) -> String {
        self.put_back(&self.whole(), set, self.table.columns.len() + 1)
    }

    /// The row with a key as one text, for people.
    pub(super) fn show_one(&self, key: &Key) -> String {
        let is = self.key_is(key, |i, n| self.param(i, n + 1));
        let shown = list((0..self.table.columns.len()).map(|i| format!("t.{}", self.column(i))), ", ");
        format!("SELECT left(ROW({shown})::text, 1000) FROM {} AS t WHERE {is} LIMIT 1", self.relation())
    }

    pub(super) fn truncate(&self) -> String {
        format!("TRUNCATE {}", self.relation())
    }

    /// Removes the rows that fulfil all conditions.
    pub(super) fn delete_where(&self, conditions: &[String]) -> String {
        let mut sql = format!("DELETE FROM {} AS t", self.relation());
        for (i, condition) in conditions.iter().enumerate() {
            let _ = write!(sql, " {} ({condition})", if i == 0 { "WHERE" } else { "AND" });
        }
        sql
    }

    /// The row's key is none of those in the parameters from `first` on.
    pub(super) fn key_not_among(&self, key: &Key, first: usize) -> String {
        let is = self.key_is(key, |i, n| self.many_value(i, n));
        format!("NOT EXISTS (SELECT FROM {} WHERE {is})", self.many(&key.columns, first))
    }

    pub(super) fn key_equals(&self, key: &Key, first: usize) -> String {
        self.key_is(key, |i, n| self.param(i, first + n))
    }
}
