//! The plan's facts: which tables there are, how each source table becomes a target table, and why one cannot.
//!
//! [`read`] asks both servers a handful of questions for all tables together; everything that is decided from the
//! answers is decided without I/O, in the modules below. Nothing here changes either database.

mod collation;
mod column_type;
pub mod columns;
pub mod drift;
pub(crate) mod hash;
mod identity;
mod read;
pub mod server;
mod shape;

pub(crate) use shape::ONE_SNAPSHOT_BYTES_MAX;

use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::change::Leaf;
use segue_model::name::QualifiedName;
use segue_model::table::{Table, TableId, UnitId};
use std::collections::HashSet;
use std::fmt::Display;
use tokio_postgres::Client;

/// A source relation whose changes are published: a table, or a leaf of a partitioned one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRelation {
    /// Its number on the source, as the change stream names it.
    pub oid: u32,
    /// Its table.
    pub table: TableId,
    /// The unit whose regions decide about its rows.
    pub unit: UnitId,
    /// Set for a leaf of a partitioned table.
    pub leaf: Option<Leaf>,
    /// Its name.
    pub name: QualifiedName,
}

/// What both catalogs say about the tables of a migration.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The tables that can be moved, numbered by their place in the list asked for.
    pub tables: Vec<Table>,
    /// Their relations on the source.
    pub relations: Vec<SourceRelation>,
    /// Why tables cannot be moved; empty when all can.
    pub refusals: Vec<Fault>,
    /// What the operator should know beforehand.
    pub warnings: Vec<String>,
}

/// A refusal about one table: `table what`.
fn refusal(
    code: &'static str,
    table: &QualifiedName,
    what: impl Display,
    next_step: impl Into<String>,
) -> Fault {
    Fault::operator(code, format!("{table} {what}"), next_step)
}

/// Reads both catalogs for pairs of source and target tables, in the order that numbers them.
pub async fn read(
    source: &mut Client,
    target: &mut Client,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Catalog> {
    let from: Vec<&QualifiedName> = pairs.iter().map(|(from, _)| from).collect();
    let to: Vec<&QualifiedName> = pairs.iter().map(|(_, to)| to).collect();
    let (source, target) = tokio::join!(
        read::read("source", source, &from, &["SELECT"]),
        read::read("target", target, &to, LANDING),
    );
    let source = source.map_err(|f| f.during("reading the source's catalog"))?;
    let target = target.map_err(|f| f.during("reading the target's catalog"))?;
    Ok(joined(&source, &target, pairs))
}

/// Why the source's tables cannot be moved, whatever the target's are like.
pub(crate) async fn source_alone(source: &mut Client, tables: &[QualifiedName]) -> Outcome<Vec<Fault>> {
    let names: Vec<&QualifiedName> = tables.iter().collect();
    let side = read::read("source", source, &names, &["SELECT"]).await?;
    let pairs: Vec<_> = tables.iter().map(|table| (table.clone(), table.clone())).collect();
    Ok(joined(&side, &side, &pairs).refusals)
}

/// The plan of tables that are made on the target as the source has them.
pub async fn as_made(source: &mut Client, pairs: &[(QualifiedName, QualifiedName)]) -> Outcome<Catalog> {
    let names: Vec<&QualifiedName> = pairs.iter().map(|(from, _)| from).collect();
    let side = read::read("source", source, &names, &["SELECT"]).await?;
    Ok(joined(&side, &side, pairs))
}

/// What the role must be allowed on tables that rows land in.
const LANDING: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/// The plan of the way back: the same pairs, in the same order, with the sides exchanged. Tables have the same numbers as
/// in [`read()`]; `source` and `target` in a table of it mean where its rows come from and where they land.
///
/// Refusals are about the way back, with the sides called by their names. What matters only while a table is filled is
/// left out: all rows are there.
pub async fn read_reverse(
    source: &mut Client,
    target: &mut Client,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Catalog> {
    let of_source: Vec<&QualifiedName> = pairs.iter().map(|(from, _)| from).collect();
    let of_target: Vec<&QualifiedName> = pairs.iter().map(|(_, to)| to).collect();
    let (source, target) = tokio::join!(
        read::read("source", source, &of_source, LANDING),
        read::read("target", target, &of_target, &["SELECT"]),
    );
    let source = source.map_err(|f| f.during("reading the source's catalog"))?;
    let target = target.map_err(|f| f.during("reading the target's catalog"))?;
    let back: Vec<_> = pairs.iter().map(|(from, to)| (to.clone(), from.clone())).collect();
    let mut catalog = joined(&target, &source, &back);
    catalog.warnings.clear();
    for table in &mut catalog.tables {
        table.one_region = None;
    }
    Ok(catalog)
}

/// The plan from one side's tables to the other's.
fn joined(from: &read::Side, to: &read::Side, pairs: &[(QualifiedName, QualifiedName)]) -> Catalog {
    let mut catalog = Catalog { refusals: named_twice(pairs), ..Catalog::default() };
    for (at, (source, target)) in pairs.iter().enumerate() {
        let built = shape::build(from, to, at, (source, target));
        catalog.tables.extend(built.table);
        catalog.relations.extend(built.relations);
        catalog.refusals.extend(built.refusals);
        catalog.warnings.extend(built.warnings);
    }
    let mut seen = HashSet::new();
    for relation in &catalog.relations {
        if !seen.insert(relation.oid) {
            let what = "is listed by itself and as a partition of a listed table";
            catalog.refusals.push(refusal(
                "SEGUE-TWICE",
                &relation.name,
                what,
                "list the partitioned table only",
            ));
        }
    }
    catalog
}

fn named_twice(pairs: &[(QualifiedName, QualifiedName)]) -> Vec<Fault> {
    let mut found = Vec::new();
    let (mut sources, mut targets) = (HashSet::new(), HashSet::new());
    for (from, to) in pairs {
        if !sources.insert(from) {
            found.push(refusal("SEGUE-TWICE", from, "is listed twice", "list it once"));
        } else if !targets.insert(to) {
            found.push(refusal("SEGUE-TWICE", to, "is the target of two tables", "give each its own target"));
        }
    }
    found
}

/// Every table of the source that a wildcard can mean, sorted by name: permanent and unlogged tables and partitioned
/// ones, but not partitions (they belong to their table) nor what an extension, the server or Segue itself made.
pub async fn all_tables(source: &Client) -> Outcome<Vec<QualifiedName>> {
    let sql = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition
            AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'segue')
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                               AND d.deptype = 'e')
          ORDER BY 1, 2";
    let rows =
        source.query(sql, &[]).await.map_err(|e| fault_of(&e).during("listing the source's tables"))?;
    let mut found: Vec<QualifiedName> =
        rows.iter().map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect();
    // By bytes, whatever collation the catalog's names have.
    found.sort();
    Ok(found)
}

/// A refusal for every target table that holds rows: Segue would mix its rows with them.
pub async fn nonempty_targets(target: &Client, tables: &[Table]) -> Outcome<Vec<Fault>> {
    let during = |e| fault_of(&e).during("looking for rows in the target's tables");
    // To read from a table with thousands of partitions locks every one of them: asked only where a file is not empty. Some
    // extensions keep a table's rows elsewhere, and its file empty.
    let sql = "WITH RECURSIVE tree(no, oid) AS (
            SELECT a.no, to_regclass(a.name)::oid FROM unnest($1::text[]) WITH ORDINALITY a(name, no)
             UNION ALL
            SELECT t.no, i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid)
        SELECT DISTINCT t.no - 1 FROM tree t LEFT JOIN pg_class c ON c.oid = t.oid LEFT JOIN pg_am m ON m.oid = c.relam
         WHERE c.relkind IS DISTINCT FROM 'p'
           AND NOT coalesce(c.relkind = 'r' AND m.amname = 'heap' AND pg_relation_size(c.oid) = 0
                   AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname IN ('citus', 'timescaledb')), false) ORDER BY 1";
    let names: Vec<String> = tables.iter().map(|table| table.target.sql()).collect();
    let mut found = Vec::new();
    for row in target.query(sql, &[&names]).await.map_err(during)? {
        let Some(table) = usize::try_from(row.get::<_, i64>(0)).ok().and_then(|no| tables.get(no)) else {
            continue;
        };
        let sql = format!("SELECT EXISTS (SELECT FROM {})", table.target.sql());
        if target.query_one(&sql, &[]).await.map_err(during)?.get(0) {
            let next_step = format!(
                "on the target: TRUNCATE {}; -- if nobody needs the rows (where a migration of this table was completed, they are the \
                 only newest ones); with the tables that refer to it in the same statement",
                table.target.sql()
            );
            let what = "already holds rows on the target";
            found.push(refusal("SEGUE-NOT-EMPTY", &table.target, what, next_step));
        }
    }
    Ok(found)
}
