//! Writing a region over rows that are there already: it is laid beside them, and only what differs is touched.
//!
//! Rows are compared by their text under the settings that every session of ours has, as a change of the stream would
//! bring them; no operator of a type is asked. First everything goes that the region does not have, then everything
//! comes that is not there: a value that moved from one row to another is never in its own way. What a row has in columns
//! that do not travel is kept meanwhile, by its key, and comes back with it.

use super::{Side, column_list, column_name};
use segue_engine::ports::RegionDigest;
use segue_model::sqltext::quote_ident;
use segue_model::table::{Column, Table};
use tokio_postgres::Row;

/// The statements for one table.
pub(super) struct Comparison<'a> {
    pub(super) table: &'a Table,
    /// The target as rows are removed from it: with `ONLY` where others inherit from it.
    pub(super) relation: &'a str,
    /// The condition of the rows that the region answers for.
    pub(super) condition: &'a str,
    /// Columns that only the target has, quoted, of rows with a key; those of others are not told from each other.
    pub(super) own: &'a [String],
}

/// Where a region's rows lie beside the table, for as long as the session lives.
pub(super) fn beside(table: &Table) -> String {
    format!("pg_temp.segue_region_{}", table.id.0)
}

/// Makes that place, once a session; it is empty at the beginning of every transaction.
pub(super) fn make_beside(table: &Table) -> String {
    format!(
        "SET LOCAL client_min_messages = warning; CREATE TEMPORARY TABLE IF NOT EXISTS segue_region_{} ON COMMIT DELETE ROWS \
         AS SELECT {} FROM {} WITH NO DATA",
        table.id.0,
        column_list(table, Side::Target),
        table.target.sql()
    )
}

/// Where rows that go lie with their key and what they have in `own` columns, until the transaction ends.
fn kept(table: &Table) -> String {
    format!("pg_temp.segue_kept_{}", table.id.0)
}

/// Makes that place.
pub(super) fn make_kept(table: &Table, own: &[String]) -> String {
    let columns: Vec<String> = own.iter().enumerate().map(|(n, c)| format!(", t.{c} AS o{n}")).collect();
    format!(
        "CREATE TEMPORARY TABLE segue_kept_{} ON COMMIT DROP AS SELECT NULL::text AS k{} FROM {} AS t WITH NO DATA",
        table.id.0,
        columns.concat(),
        table.target.sql()
    )
}

/// What tells rows from others, wherever they are: how many, the sum of the hashes of their text, and its bytes. One row of
/// three columns.
pub(super) fn digest(table: &Table, side: Side, from: &str, condition: &str) -> String {
    format!(
        "SELECT count(*), coalesce(sum(hashtextextended(i, 0)), 0)::text, coalesce(sum(octet_length(i)), 0)::bigint FROM \
         (SELECT ROW({})::text COLLATE \"C\" AS i FROM {from} WHERE {condition} OFFSET 0) s",
        column_list(table, side)
    )
}

/// A digest's row as a value.
pub(super) fn digest_of(row: &Row) -> RegionDigest {
    let count = |i| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
    RegionDigest { rows: count(0), sum: row.get(1), bytes: count(2) }
}

/// Bounds of a few rows, or of millions: never row by row.
pub(super) const PLANNER: &str = "SET LOCAL enable_nestloop = off; SET LOCAL jit = off";

impl Comparison<'_> {
    fn text_of(&self, alias: &str, columns: impl Iterator<Item = usize>) -> String {
        let named = |n: usize| {
            let column: &Column = &self.table.columns[n];
            format!("{alias}.{}", quote_ident(column_name(column, Side::Target)))
        };
        format!("(ROW({})::text COLLATE \"C\")", columns.map(named).collect::<Vec<_>>().join(", "))
    }

    fn row(&self, alias: &str) -> String {
        self.text_of(alias, 0..self.table.columns.len())
    }

    /// The text of a row's key.
    fn key(&self, alias: &str) -> String {
        self.text_of(alias, self.table.key().into_iter().flat_map(|key| key.columns.iter().copied()))
    }

    /// `more`, then each row's text, and its number among those with the same one: without a key, rows can be there many
    /// times. Whoever takes from it names the columns, as the table's own can have any name.
    fn numbered(&self, from: &str, condition: &str, more: &str) -> String {
        let row = self.row("x");
        format!(
            "(SELECT {more}{row}, row_number() OVER (PARTITION BY {row}) FROM {from} AS x WHERE {condition})"
        )
    }

    /// Removes what the region does not have. Returns how many rows, and of how many the region has the key.
    pub(super) fn remove(&self) -> String {
        let Comparison { table, relation, condition, own } = self;
        let beside = beside(table);
        if table.key().is_none() {
            return format!(
                "WITH gone AS (DELETE FROM {relation} AS t WHERE (t.tableoid, t.ctid) IN (SELECT h.o, h.c \
                     FROM {} h(o, c, i, n) WHERE NOT EXISTS (SELECT FROM {} w(i, n) WHERE w.i = h.i AND w.n = h.n)) \
                     RETURNING 1) \
                 SELECT count(*), 0::bigint FROM gone",
                self.numbered(relation, condition, "x.tableoid, x.ctid, "),
                self.numbered(&beside, "true", "")
            );
        }
        let keeps = if own.is_empty() {
            String::new()
        } else {
            let keys = self.key("s");
            format!(
                ", kept AS (INSERT INTO {} SELECT * FROM gone WHERE k IN (SELECT {keys} FROM {beside} s))",
                kept(table)
            )
        };
        let with_own: Vec<String> =
            own.iter().enumerate().map(|(n, column)| format!(", t.{column} AS o{n}")).collect();
        format!(
            "WITH gone AS (DELETE FROM {relation} AS t WHERE {condition} \
                 AND NOT EXISTS (SELECT FROM {beside} s WHERE {} = {}) RETURNING {} AS k{}){keeps} \
             SELECT count(*), count(*) FILTER (WHERE k IN (SELECT {} FROM {beside} s)) FROM gone",
            self.row("s"),
            self.row("t"),
            self.key("t"),
            with_own.concat(),
            self.key("s"),
        )
    }

    /// Writes what is not there. Returns how many rows.
    pub(super) fn write(&self) -> String {
        let Comparison { table, relation, condition, own } = self;
        let (beside, columns) = (beside(table), column_list(table, Side::Target));
        let overriding = if table.columns.iter().any(|column| column.identity_always) {
            " OVERRIDING SYSTEM VALUE"
        } else {
            ""
        };
        let named = |alias: &str| {
            let column = |c: &Column| format!("{alias}.{}", quote_ident(column_name(c, Side::Target)));
            table.columns.iter().map(column).collect::<Vec<_>>().join(", ")
        };
        let (from, values, missing) = match table.key() {
            Some(_) => (
                format!("{beside} AS s"),
                named("s"),
                format!(
                    "NOT EXISTS (SELECT FROM {relation} AS t WHERE {condition} AND {} = {})",
                    self.row("t"),
                    self.row("s")
                ),
            ),
            None => {
                let numbers: Vec<String> = (0..table.columns.len()).map(|n| format!("c{n}")).collect();
                let rows = self.numbered(&beside, "true", &(named("x") + ", "));
                (
                    format!("{rows} AS s({}, i, n)", numbers.join(", ")),
                    numbers.join(", "),
                    format!(
                        "NOT EXISTS (SELECT FROM {} h(i, n) WHERE h.i = s.i AND h.n = s.n)",
                        self.numbered(relation, condition, "")
                    ),
                )
            }
        };
        let into = table.target.sql();
        if own.is_empty() {
            return format!(
                "WITH come AS (INSERT INTO {into} ({columns}){overriding} SELECT {values} FROM {from} WHERE {missing} RETURNING 1) \
                 SELECT count(*) FROM come"
            );
        }
        let (kept, key) = (kept(table), self.key("s"));
        let back: Vec<String> = (0..own.len()).map(|n| format!(", h.o{n}")).collect();
        format!(
            "WITH back AS (INSERT INTO {into} ({columns}, {}) OVERRIDING SYSTEM VALUE \
                 SELECT {values}{} FROM {from} JOIN {kept} h ON h.k = {key} WHERE {missing} RETURNING 1), \
             come AS (INSERT INTO {into} ({columns}){overriding} \
                 SELECT {values} FROM {from} WHERE {missing} AND NOT EXISTS (SELECT FROM {kept} h WHERE h.k = {key}) RETURNING 1) \
             SELECT (SELECT count(*) FROM back) + (SELECT count(*) FROM come)",
            own.join(", "),
            back.concat()
        )
    }
}
