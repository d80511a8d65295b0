//! The SQL of reading one table of one side for comparison. Both sides must use the same form.
//!
//! A row's image is `record_send(ROW(…))`: exact to the representation (`1.0` is not `1.00`), with each value's length,
//! so that neither NULL and `''` nor neighbouring columns can be taken for each other. `record_send` writes the number
//! of each column's type, so columns whose type has another number on the other server go in as text.

use crate::copy::{Side, extent_condition, key_literals, key_names};
use segue_engine::verify::ports::Item;
use segue_model::change::{Row, Value};
use segue_model::region::Extent;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::table::{Column, Identity, Table};

/// What makes 64 bits of an image `i`. Cheapest first; both sides must have it and come to the same results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HashForm {
    /// From PostgreSQL 14 on.
    Record,
    /// From 11 on.
    Text,
    /// Always and everywhere the same, and three times as slow.
    Md5,
}

impl HashForm {
    pub(super) const ALL: [HashForm; 3] = [HashForm::Record, HashForm::Text, HashForm::Md5];

    /// The hash of the bytea expression `image`.
    pub(super) fn of(self, image: &str) -> String {
        match self {
            HashForm::Record => format!("hash_record_extended(ROW({image}), 0)"),
            HashForm::Text => format!("hashtextextended(encode({image}, 'hex') COLLATE \"C\", 0)"),
            HashForm::Md5 => format!("('x' || left(md5({image}), 16))::bit(64)::bigint"),
        }
    }

    /// One text that is equal on two servers if the form hashes alike there, for images of many lengths.
    pub(super) fn probe(self) -> String {
        format!(
            "SELECT string_agg(h::text, ',' ORDER BY o) FROM (SELECT o, {} AS h FROM \
             (SELECT o, decode(repeat('a7', o), 'hex') AS i FROM generate_series(0, 40) o) s) s",
            self.of("i")
        )
    }
}

/// How one table of one side is read.
#[derive(Clone)]
pub(super) struct TableForm {
    pub(super) side: Side,
    /// What stands behind FROM, named `t`.
    pub(super) from: String,
    /// Whether each column goes into the image as text.
    pub(super) as_text: Vec<bool>,
    pub(super) hash: HashForm,
    /// Columns that are not in the image.
    pub(super) uncompared: Vec<String>,
}

/// Which rows a version is made of: a row version that was replaced never comes back under the same three numbers.
pub(crate) const VERSION: &str = "t.tableoid::text || t.ctid::text || t.xmin::text";

pub(super) fn name_on(column: &Column, side: Side) -> &str {
    match side {
        Side::Source => &column.source,
        Side::Target => &column.target,
    }
}

impl TableForm {
    fn column(&self, column: &Column) -> String {
        format!("t.{}", quote_ident(name_on(column, self.side)))
    }

    fn columns(&self, table: &Table) -> Vec<String> {
        table.columns.iter().map(|c| self.column(c)).collect()
    }

    fn image(&self, table: &Table) -> String {
        let whole = table.identity == Identity::WholeRow;
        let value = |(c, as_text): (&Column, &bool)| {
            // Without a key nothing but the hash is compared, so it must be of the text, as settling rows is.
            let cast = if *as_text || whole { "::text" } else { "" };
            format!("{}{cast}", self.column(c))
        };
        let values: Vec<String> = table.columns.iter().zip(&self.as_text).map(value).collect();
        format!("record_send(ROW({}))", values.join(", "))
    }

    fn keys(&self, table: &Table) -> Vec<String> {
        key_names(table, self.side).iter().map(|k| format!("t.{k}")).collect()
    }

    /// `image AS i` of the rows that fulfil `condition`, with `more` beside it; kept together by OFFSET 0, so that
    /// the image is made once.
    fn images(&self, table: &Table, more: &str, condition: &str) -> String {
        let Self { from, .. } = self;
        format!("(SELECT {} AS i{more} FROM {from} WHERE {condition} OFFSET 0) s", self.image(table))
    }

    pub(super) fn bound_after(&self, table: &Table, within: &Extent, rows: u64) -> String {
        let keys = self.keys(table).join(", ");
        let condition = extent_condition(table, within, self.side);
        format!("SELECT {keys} FROM {} WHERE {condition} ORDER BY {keys} OFFSET {rows} LIMIT 1", self.from)
    }

    pub(super) fn digest(&self, table: &Table, within: &Extent) -> String {
        let condition = extent_condition(table, within, self.side);
        format!(
            "SELECT count(*), coalesce(sum(h), 0), coalesce(sum(b), 0) FROM \
             (SELECT {} AS h, octet_length(i) AS b FROM {}) s",
            self.hash.of("i"),
            self.images(table, "", &condition)
        )
    }

    pub(super) fn hashes(&self, table: &Table, within: &Extent) -> String {
        let condition = extent_condition(table, within, self.side);
        let keys = self.keys(table);
        let named: Vec<String> = keys.iter().enumerate().map(|(n, k)| format!(", {k} AS k{n}")).collect();
        let names: Vec<String> = (0..keys.len()).map(|n| format!(", k{n}")).collect();
        format!(
            "SELECT {}, octet_length(i){} FROM {}",
            self.hash.of("i"),
            names.concat(),
            self.images(table, &named.concat(), &condition)
        )
    }

    pub(super) fn buckets(&self, table: &Table, buckets: u32) -> String {
        format!(
            "SELECT h & {}, count(*), sum(h), sum(b) FROM (SELECT {} AS h, octet_length(i) AS b FROM {}) s GROUP BY 1",
            buckets - 1,
            self.hash.of("i"),
            self.images(table, "", "true")
        )
    }

    pub(super) fn bucket_images(&self, table: &Table, buckets: u32, wanted: &[u32]) -> String {
        let wanted: Vec<String> = wanted.iter().map(u32::to_string).collect();
        format!(
            "SELECT h, count(*), max(b) FROM (SELECT {} AS h, octet_length(i) AS b FROM {}) s \
             WHERE h & {} IN ({}) GROUP BY 1",
            self.hash.of("i"),
            self.images(table, "", "true"),
            buckets - 1,
            wanted.join(", ")
        )
    }

    /// The rows of the keys among `items`, each with its place in `items` as `v.n`.
    fn joined(&self, table: &Table, items: &[Item]) -> Option<String> {
        let values: Vec<String> = items
            .iter()
            .enumerate()
            .filter_map(|(n, item)| match item {
                Item::Key(key) => Some(format!("({n}, {})", key_literals(table, key))),
                Item::Image(_) => None,
            })
            .collect();
        let keys = self.keys(table);
        let names: Vec<String> = (0..keys.len()).map(|n| format!("k{n}")).collect();
        let equal: Vec<String> = keys.iter().zip(&names).map(|(k, n)| format!("{k} = v.{n}")).collect();
        (!values.is_empty()).then(|| {
            format!(
                "(VALUES {}) AS v(n, {}) JOIN {} ON {}",
                values.join(", "),
                names.join(", "),
                self.from,
                equal.join(" AND ")
            )
        })
    }

    /// Place, hash, bytes and version of each key's row.
    pub(super) fn read_keys(&self, table: &Table, items: &[Item]) -> Option<String> {
        let joined = self.joined(table, items)?;
        Some(format!(
            "SELECT n, {}, octet_length(i), version FROM \
             (SELECT v.n, {} AS i, {VERSION} AS version FROM {joined} OFFSET 0) s",
            self.hash.of("i"),
            self.image(table)
        ))
    }

    /// Place, version and every column of each key's row.
    pub(super) fn rows_of_keys(&self, table: &Table, items: &[Item]) -> Option<String> {
        let joined = self.joined(table, items)?;
        Some(format!("SELECT v.n, {VERSION}, {} FROM {joined}", self.columns(table).join(", ")))
    }

    /// Hash, number, bytes and version of each image's rows. A sum of hashes stands for the set of their versions.
    pub(super) fn read_images(&self, table: &Table, items: &[Item]) -> Option<String> {
        Some(format!(
            "SELECT h, count(*), max(b), sum(hashtextextended(version, 0)) FROM \
             (SELECT {} AS h, octet_length(i) AS b, version FROM {}) s WHERE h IN ({}) GROUP BY 1",
            self.hash.of("i"),
            self.images(table, &format!(", {VERSION} AS version"), "true"),
            hashes_of(items)?
        ))
    }

    /// Hash and every column of one row of each image.
    pub(super) fn rows_of_images(&self, table: &Table, items: &[Item]) -> Option<String> {
        let columns = self.columns(table);
        let named: Vec<String> = columns.iter().enumerate().map(|(n, c)| format!(", {c} AS c{n}")).collect();
        let names: Vec<String> = (0..columns.len()).map(|n| format!(", c{n}")).collect();
        Some(format!(
            "SELECT DISTINCT ON (h) h{} FROM (SELECT {} AS h{} FROM {}) s WHERE h IN ({})",
            names.concat(),
            self.hash.of(&self.image(table)),
            named.concat(),
            self.from,
            hashes_of(items)?
        ))
    }

    pub(super) fn count(&self) -> String {
        format!("SELECT count(*) FROM {}", self.from)
    }

    /// About `rows` random keys, or hashes where there is no key.
    pub(super) fn sample(&self, table: &Table, rows: u64) -> String {
        let what = match &table.identity {
            Identity::Key(_) => self.keys(table).join(", "),
            Identity::WholeRow => self.hash.of(&self.image(table)),
        };
        // More than wanted, because blocks are picked and not rows, and the estimate may be old.
        let percent = (rows as f64 * 400.0 / table.estimate.rows.max(1) as f64).clamp(0.001, 100.0);
        format!(
            "SELECT {what} FROM {} TABLESAMPLE SYSTEM ({percent}) ORDER BY random() LIMIT {rows}",
            self.from
        )
    }

    /// The statement that gives this side the owner's row.
    pub(super) fn remedy(&self, table: &Table, owner: Option<&Row>, here: Option<&Row>) -> String {
        let name = match self.side {
            Side::Source => table.source.sql(),
            Side::Target => table.target.sql(),
        };
        let delete = |row: &Row| match &table.identity {
            Identity::Key(_) => format!("DELETE FROM {name} WHERE {};", self.is_row(table, row)),
            Identity::WholeRow => format!(
                "DELETE FROM {name} WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM {name} WHERE {} LIMIT 1);",
                self.is_row(table, row)
            ),
        };
        let changed = |owner: &Row, here: &Row| -> Vec<usize> {
            (0..table.columns.len()).filter(|&c| owner.get(c) != here.get(c)).collect()
        };
        match (owner, here) {
            (None, None) => String::new(),
            (None, Some(here)) => delete(here),
            (Some(owner), None) => self.insert(table, &name, owner),
            (Some(owner), Some(here)) => {
                let changed = changed(owner, here);
                // The row itself is right, and there more than once.
                if changed.is_empty() || changed.iter().any(|&c| table.columns[c].identity_always) {
                    return format!("{} {}", delete(here), self.insert(table, &name, owner));
                }
                let set = |&c: &usize| {
                    let column = &table.columns[c];
                    format!("{} = {}", quote_ident(name_on(column, self.side)), literal(owner.get(c)))
                };
                let set: Vec<String> = changed.iter().map(set).collect();
                format!("UPDATE {name} SET {} WHERE {};", set.join(", "), self.is_row(table, here))
            }
        }
    }

    fn insert(&self, table: &Table, name: &str, row: &Row) -> String {
        let names: Vec<String> = table.columns.iter().map(|c| quote_ident(name_on(c, self.side))).collect();
        let values: Vec<String> = (0..table.columns.len()).map(|n| literal(row.get(n))).collect();
        let identity = table.columns.iter().any(|c| c.identity_always);
        let overriding = if identity { " OVERRIDING SYSTEM VALUE" } else { "" };
        format!("INSERT INTO {name} ({}){overriding} VALUES ({});", names.join(", "), values.join(", "))
    }

    /// The condition that finds `row`.
    fn is_row(&self, table: &Table, row: &Row) -> String {
        let condition = |(n, c): (usize, &Column)| {
            let name = quote_ident(name_on(c, self.side));
            match (&table.identity, row.get(n)) {
                (Identity::Key(key), _) if !key.columns.contains(&n) => None,
                (Identity::Key(_), value) => Some(format!("{name} = {}", literal(value))),
                // By its text, because not every type has an equality, and not every equality is exact.
                (Identity::WholeRow, Some(value @ Value::Text(_))) => {
                    Some(format!("format('%s', {name}) = {}", literal(Some(value))))
                }
                (Identity::WholeRow, _) => Some(format!("{name} IS NOT DISTINCT FROM NULL")),
            }
        };
        let conditions: Vec<String> = table.columns.iter().enumerate().filter_map(condition).collect();
        conditions.join(" AND ")
    }
}

/// Without a type: the column's own is taken, with its modifiers.
fn literal(value: Option<&Value>) -> String {
    match value.and_then(Value::text) {
        Some(text) => quote_literal(&String::from_utf8_lossy(text)),
        None => "NULL".to_owned(),
    }
}

fn hashes_of(items: &[Item]) -> Option<String> {
    let hash = |item: &Item| match item {
        Item::Image(hash) => Some(hash.to_string()),
        Item::Key(_) => None,
    };
    let hashes: Vec<String> = items.iter().filter_map(hash).collect();
    (!hashes.is_empty()).then(|| hashes.join(", "))
}
