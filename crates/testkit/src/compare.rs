//! A whole-database comparer that owes nothing to the product's own verification.
//!
//! It reads every column of every row through the type's output function (exact: trailing blanks, scales, NULL
//! against the empty text) under pinned settings, adds the type's binary form where both servers are of one major,
//! and compares tables as multisets of such row images: keys, indexes and collations play no part.
//!
//! Each side sums up its rows' digests first, without order; only tables whose sums differ are sorted by the servers
//! and merged here, through cursors, so memory stays bounded by a few batches.

use std::collections::BTreeMap;
use std::fmt;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

/// A schema and a table, unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// The schema's name.
    pub schema: String,
    /// The table's name.
    pub name: String,
}

impl Table {
    /// A table by its names, as the catalogs have them.
    pub fn new(schema: &str, name: &str) -> Table {
        Table { schema: schema.to_owned(), name: name.to_owned() }
    }

    fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.schema, self.name)
    }
}

/// A row that one side has more often than the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The row: per column its name, a length and its text, `-` for NULL.
    pub row: String,
    /// How often the source has it.
    pub source_count: u64,
    /// How often the target has it.
    pub target_count: u64,
}

/// What the comparison of one table found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableReport {
    /// The table on the source.
    pub source: Table,
    /// The table on the target.
    pub target: Table,
    /// Rows on the source.
    pub source_rows: u64,
    /// Rows on the target.
    pub target_rows: u64,
    /// Rows too many or too few, on either side, counted with their repetitions.
    pub differences: u64,
    /// The first of them.
    pub examples: Vec<Difference>,
    /// Why the rows could not be compared: a missing table, other columns.
    pub mismatch: Option<String>,
}

/// What the comparison of two databases found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One entry per pair.
    pub tables: Vec<TableReport>,
}

impl Report {
    /// Whether nothing differs. A comparison of no tables at all is not equality.
    pub fn is_equal(&self) -> bool {
        !self.tables.is_empty() && self.unequal().next().is_none()
    }

    /// The tables that differ.
    pub fn unequal(&self) -> impl Iterator<Item = &TableReport> {
        self.tables.iter().filter(|table| table.differences > 0 || table.mismatch.is_some())
    }

    /// Rows compared, on the source.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.source_rows).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} tables, {} rows", self.tables.len(), self.rows())?;
        for table in self.unequal() {
            let TableReport { source, target, source_rows, target_rows, differences, .. } = table;
            writeln!(
                formatter,
                "{source} ({source_rows}) → {target} ({target_rows}): {differences} differences"
            )?;
            if let Some(mismatch) = &table.mismatch {
                writeln!(formatter, "  {mismatch}")?;
            }
            for Difference { row, source_count, target_count } in &table.examples {
                let row: String = row.chars().take(300).collect();
                writeln!(
                    formatter,
                    "  {source_count} × on the source, {target_count} × on the target: {row}"
                )?;
            }
        }
        Ok(())
    }
}

/// Examples kept per table.
const EXAMPLES_MAX: usize = 10;
/// Rows fetched at once: few where rows are large.
const FETCH_ROWS_MAX: u64 = 1_000;
const FETCH_BYTES_AIM: usize = 4 * 1024 * 1024;

/// Everything that changes how a value is written, the same on both sides whatever the servers' defaults.
const PINNED: &str = "
    SET search_path = ''; SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres';
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET xmloption = 'content';
    SET row_security = off; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
    SET client_encoding = 'UTF8'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Compares all user tables of the given schemas, those that only one side has included. Both connections should be
/// of roles that see all rows; each side is read in one snapshot.
///
/// # Errors
/// Those of the connections and servers.
pub async fn schemas(source: &Client, target: &Client, schemas: &[&str]) -> Result<Report, Error> {
    let mut all: BTreeMap<Table, ()> = BTreeMap::new();
    for side in [source, target] {
        for schema in schemas {
            // Partitions are read through their root.
            let rows = side
                .query(
                    "SELECT c.relname::text FROM pg_catalog.pg_class c
                     JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
                     WHERE s.nspname::text = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition",
                    &[schema],
                )
                .await?;
            all.extend(rows.iter().map(|row| (Table::new(schema, row.get(0)), ())));
        }
    }
    let pairs: Vec<(Table, Table)> = all.into_keys().map(|table| (table.clone(), table)).collect();
    tables(source, target, &pairs).await
}

/// Compares pairs of tables; see [`schemas`].
///
/// # Errors
/// Those of the connections and servers.
pub async fn tables(source: &Client, target: &Client, pairs: &[(Table, Table)]) -> Result<Report, Error> {
    tokio::try_join!(source.batch_execute(PINNED), target.batch_execute(PINNED))?;
    let one_major = major(source).await? == major(target).await?;
    let mut report = Report::default();
    for (from, to) in pairs {
        report.tables.push(table(source, target, from, to, one_major).await?);
    }
    for side in [source, target] {
        side.batch_execute("COMMIT; RESET ALL").await?;
    }
    Ok(report)
}

async fn table(
    source: &Client,
    target: &Client,
    from: &Table,
    to: &Table,
    one_major: bool,
) -> Result<TableReport, Error> {
    let mut report = TableReport {
        source: from.clone(),
        target: to.clone(),
        source_rows: 0,
        target_rows: 0,
        differences: 0,
        examples: Vec::new(),
        mismatch: None,
    };
    let (source_columns, target_columns) = tokio::try_join!(columns(source, from), columns(target, to))?;
    report.mismatch = mismatch(&source_columns, &target_columns);
    if report.mismatch.is_some() {
        return Ok(report);
    }
    let image = image(&source_columns, &target_columns, one_major);
    let (source_sum, target_sum) = tokio::try_join!(sum(source, from, &image), sum(target, to, &image))?;
    (report.source_rows, report.target_rows) = (source_sum.0, target_sum.0);
    if source_sum != target_sum {
        merge(source, target, &image, &mut report).await?;
        if report.differences == 0 {
            report.mismatch = Some("the digests differ, the rows do not: the comparer is wrong".to_owned());
        }
    }
    Ok(report)
}

/// A column's type, by name, and the function that writes its binary form where that does not depend on the server.
type Columns = BTreeMap<String, (String, Option<String>)>;

async fn columns(client: &Client, table: &Table) -> Result<Columns, Error> {
    // Built-in types only: others carry object ids of their own server in their binary form. And not those whose
    // text is the value itself, byte by byte or digit by digit: the second look would double the cost for nothing.
    let rows = client
        .query(
            "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
                    CASE WHEN t.oid < 16384 AND t.typname !~ '^_?(reg|acl|pg_|oid)' AND t.typtype IN ('b', 'r', 'm')
                              AND t.typname NOT IN ('bool', 'int2', 'int4', 'int8', 'text', 'varchar', 'bpchar', 'name',
                                                    'uuid', 'bytea', 'date', 'timestamp', 'timestamptz', 'json',
                                                    'refcursor')
                         THEN nullif(t.typsend::pg_catalog.oid, 0)::pg_catalog.regproc::text END
             FROM pg_catalog.pg_attribute a
             JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
             JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
             JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
             WHERE s.nspname::text = $1 AND c.relname::text = $2 AND a.attnum > 0 AND NOT a.attisdropped",
            &[&table.schema, &table.name],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

fn mismatch(source: &Columns, target: &Columns) -> Option<String> {
    match (source.is_empty(), target.is_empty()) {
        (true, true) => return None,
        (true, false) => return Some("the source has no such table, or it has no columns".to_owned()),
        (false, true) => return Some("the target has no such table, or it has no columns".to_owned()),
        (false, false) => {}
    }
    let only = |one: &Columns, other: &Columns| {
        one.keys().filter(|name| !other.contains_key(*name)).cloned().collect::<Vec<_>>()
    };
    let (lacking, extra) = (only(source, target), only(target, source));
    if lacking.is_empty() && extra.is_empty() {
        return None;
    }
    Some(format!("columns only on the source {lacking:?}, only on the target {extra:?}"))
}

/// The expression for a row's image: each value behind its length, so that no two rows share one.
fn image(source: &Columns, target: &Columns, one_major: bool) -> String {
    let mut parts = Vec::new();
    for (name, (source_type, send)) in source {
        let column = format!("t.{}", quote(name));
        // `%s` is the output function itself; a cast to text would strip the blanks of a `char(n)`.
        let text = format!("pg_catalog.format('%s', {column})");
        let label = name.replace('\'', "''");
        let mut part = format!("' {label}=' || pg_catalog.octet_length({text}) || ':' || {text}");
        let same_type = target.get(name).is_some_and(|(target_type, _)| target_type == source_type);
        if let Some(send) = send.as_ref().filter(|_| one_major && same_type) {
            let send = if send.contains('.') { send.clone() } else { format!("pg_catalog.{send}") };
            part.push_str(&format!(" || '#' || pg_catalog.md5({send}({column}))"));
        }
        // Against a bare NULL this asks for the value itself, also of a composite with only NULLs inside.
        parts.push(format!("CASE WHEN {column} IS NOT DISTINCT FROM NULL THEN ' {label}=-' ELSE {part} END"));
    }
    if parts.is_empty() { "''".to_owned() } else { balanced(&parts) }
}

/// Concatenates by halves: a chain of 1,600 would nest as deep.
fn balanced(parts: &[String]) -> String {
    match parts {
        [one] => one.clone(),
        _ => {
            let (left, right) = parts.split_at(parts.len() / 2);
            format!("({} || {})", balanced(left), balanced(right))
        }
    }
}

/// Row count and the sum of all digests, as text: exact, and blind to order.
async fn sum(client: &Client, table: &Table, image: &str) -> Result<(u64, String), Error> {
    let half = |from: u32| {
        format!("sum(('x' || pg_catalog.substr(digest, {from}, 16))::pg_catalog.bit(64)::pg_catalog.int8)")
    };
    let sql = format!(
        "SELECT count(*), {} || '/' || {} FROM (SELECT pg_catalog.md5({image}) AS digest FROM {} t OFFSET 0) d",
        half(1),
        half(17),
        table.quoted()
    );
    let messages = client.simple_query(&sql).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.expect("an aggregate has a row");
    let count = row.get(0).and_then(|count| count.parse().ok()).expect("a count");
    Ok((count, row.get(1).unwrap_or_default().to_owned()))
}

async fn merge(source: &Client, target: &Client, image: &str, report: &mut TableReport) -> Result<(), Error> {
    let mut left = Cursor::open(source, &report.source, image).await?;
    let mut right = Cursor::open(target, &report.target, image).await?;
    loop {
        let (one, other) = tokio::try_join!(left.peek(), right.peek())?;
        let row = match (one, other) {
            (None, None) => break,
            (Some(row), None) | (None, Some(row)) => row,
            (Some(one), Some(other)) => one.min(other),
        };
        let (source_count, target_count) = (left.take_all(&row).await?, right.take_all(&row).await?);
        if source_count != target_count {
            report.differences += source_count.abs_diff(target_count);
            if report.examples.len() < EXAMPLES_MAX {
                report.examples.push(Difference { row, source_count, target_count });
            }
        }
    }
    left.close().await?;
    right.close().await
}

/// A server's rows in the order of their images' bytes, fetched in batches.
struct Cursor<'a> {
    client: &'a Client,
    batch: std::vec::IntoIter<String>,
    next: Option<String>,
    fetch_rows: u64,
    ended: bool,
}

impl Cursor<'_> {
    async fn open<'a>(client: &'a Client, table: &Table, image: &str) -> Result<Cursor<'a>, Error> {
        let table = table.quoted();
        client
            .batch_execute(&format!(
                "DECLARE comparison CURSOR FOR SELECT image FROM (SELECT {image} AS image FROM {table} t OFFSET 0) i \
                 ORDER BY image COLLATE pg_catalog.\"C\""
            ))
            .await?;
        Ok(Cursor { client, batch: Vec::new().into_iter(), next: None, fetch_rows: 16, ended: false })
    }

    async fn peek(&mut self) -> Result<Option<String>, Error> {
        if self.next.is_none() {
            if self.batch.as_slice().is_empty() && !self.ended {
                self.fetch().await?;
            }
            self.next = self.batch.next();
        }
        Ok(self.next.clone())
    }

    async fn fetch(&mut self) -> Result<(), Error> {
        let rows = self.client.query(&format!("FETCH {} FROM comparison", self.fetch_rows), &[]).await?;
        let batch: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        self.ended = batch.is_empty();
        let bytes: usize = batch.iter().map(String::len).sum();
        self.fetch_rows = if bytes > FETCH_BYTES_AIM { self.fetch_rows / 2 } else { self.fetch_rows * 2 };
        self.fetch_rows = self.fetch_rows.clamp(1, FETCH_ROWS_MAX);
        self.batch = batch.into_iter();
        Ok(())
    }

    /// Passes all repetitions of a row and counts them.
    async fn take_all(&mut self, row: &str) -> Result<u64, Error> {
        let mut count = 0;
        while self.peek().await?.as_deref() == Some(row) {
            self.next = None;
            count += 1;
        }
        Ok(count)
    }

    async fn close(self) -> Result<(), Error> {
        self.client.batch_execute("CLOSE comparison").await
    }
}

async fn major(client: &Client) -> Result<i32, Error> {
    let row = client.query_one("SELECT pg_catalog.current_setting('server_version_num')::int4", &[]).await?;
    Ok(row.get::<_, i32>(0) / 10_000)
}

fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
