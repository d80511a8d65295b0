//! What belongs to a table besides its rows: defaults, generated and identity columns, sequences, partitions, children,
//! large objects, and the numbers of its types.

use super::{Finding, Looks, Verdict};
use crate::catalog::hash;
use crate::definition::settled;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use segue_model::switch::Side;
use std::collections::{BTreeMap, BTreeSet};

/// What fills a column that a statement leaves out.
struct Filled {
    /// `attgenerated`; empty if it is not generated.
    generated: String,
    identity: String,
    /// A default, or the expression of a generated column.
    expression: Option<String>,
    shown_type: String,
}

impl Filled {
    fn is_generated(&self) -> bool {
        !self.generated.is_empty()
    }
}

type Columns = BTreeMap<(i64, String), Filled>;

async fn filled(looks: &Looks<'_>) -> Outcome<[Columns; 2]> {
    let sql = "SELECT t.no, a.attname::text, a.attgenerated::text, a.attidentity::text, pg_get_expr(d.adbin, d.adrelid),
                format_type(a.atttypid, a.atttypmod)
           FROM root t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
           LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum";
    let columns = |rows: Vec<tokio_postgres::Row>| -> Columns {
        let column = |row: &tokio_postgres::Row| {
            let (generated, identity) = (row.get(2), row.get(3));
            let expression = row.get::<_, Option<&str>>(4).map(settled);
            let filled = Filled { generated, identity, expression, shown_type: row.get(5) };
            ((row.get(0), row.get(1)), filled)
        };
        rows.iter().map(column).collect()
    };
    Ok(looks.ask_both(sql).await?.map(columns))
}

/// Columns of the same name on both sides.
fn pairs([source, target]: &[Columns; 2]) -> impl Iterator<Item = (&(i64, String), &Filled, &Filled)> {
    source.iter().filter_map(|(column, here)| Some((column, here, target.get(column)?)))
}

/// A default on one side only: the same INSERT leaves another row after the switch.
pub(super) async fn defaults(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for ((no, column), here, there) in pairs(&filled(looks).await?) {
        let is_plain = |f: &Filled| !f.is_generated() && f.identity.is_empty();
        // Values of sequences are the sequences' check's, by whatever name they are called.
        let counts = |f: &Filled| f.expression.as_ref().is_some_and(|text| text.contains("nextval("));
        if !is_plain(here)
            || !is_plain(there)
            || here.expression == there.expression
            || counts(here) && counts(there)
        {
            continue;
        }
        let table = looks.table(Side::Target, *no);
        let shown = |f: &Filled| f.expression.clone().unwrap_or_else(|| "none".to_owned());
        let what = format!(
            "the default of {table}.{column} is {} on the source and {} on the target: inserts without it write something else \
             after the switch",
            shown(here),
            shown(there)
        );
        let alter = format!("ALTER TABLE {} ALTER COLUMN {}", table.sql(), quote_ident(column));
        let remedy = match &here.expression {
            Some(expression) => format!("{alter} SET DEFAULT {expression};"),
            None => format!("{alter} DROP DEFAULT;"),
        };
        found.push(Finding::warn(Side::Target, what, remedy).about(table));
    }
    Ok(found)
}

/// The log does not carry a generated column: each side computes it, and should compute the same. That one side computes
/// what the other stores is refused with the columns.
pub(super) async fn generated(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let version = looks.ask(Side::Target, "SELECT current_setting('server_version_num')::int").await?;
    let version: i32 = version.first().map_or(0, |row| row.get(0));
    let [source, target] = filled(looks).await?;
    let mut found = Vec::new();
    for (key, here) in source.iter().filter(|(_, here)| here.is_generated()) {
        let there = target.get(key);
        if there.is_some_and(|there| !there.is_generated() || there.expression == here.expression) {
            continue;
        }
        let (no, name) = key;
        let (table, computed) = (looks.table(Side::Target, *no), here.expression.as_deref().unwrap_or("?"));
        let what = match there.and_then(|there| there.expression.as_ref()) {
            Some(there) => format!(
                "{table}.{name} is computed as {computed} on the source and as {there} on the target: the values differ"
            ),
            None => format!(
                "{table}.{name} is computed as {computed} on the source, and is not there on the target: what reads it fails \
                 after the switch"
            ),
        };
        let (alter, column) = (format!("ALTER TABLE {}", table.sql()), quote_ident(name));
        let stored = if here.generated == "v" && version >= 180_000 { "VIRTUAL" } else { "STORED" };
        let form = &here.shown_type;
        let add = format!("{alter} ADD COLUMN {column} {form} GENERATED ALWAYS AS ({computed}) {stored};");
        let remedy = match there {
            Some(_) if version >= 170_000 => {
                format!("{alter} ALTER COLUMN {column} SET EXPRESSION AS ({computed});")
            }
            Some(_) => format!("{alter} DROP COLUMN {column}; {add}"),
            None => add,
        };
        found.push(Finding::warn(Side::Target, what, remedy).about(table));
    }
    Ok(found)
}

/// What a row has in a column of the target's own is nowhere else. It goes where the row goes, and ends where that comes anew.
pub(super) async fn only_on_target(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let [here, there] = filled(looks).await?;
    let mut own: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
    for (place, column) in &there {
        if !column.is_generated() && !here.contains_key(place) {
            own.entry(place.0).or_default().push(&place.1);
        }
    }
    let sql = "SELECT t.no FROM root t JOIN pg_class c ON c.oid = t.oid WHERE c.relkind = 'p'";
    let parted = looks.ask_pairs(Side::Source, sql).await?;
    let parted: BTreeSet<i64> = parted.iter().map(|row| row.get(0)).collect();
    let finding = |(no, columns): (i64, Vec<&str>)| {
        let (from, table) = (looks.table(Side::Source, no), looks.table(Side::Target, no));
        let is_keyless = looks.catalog().tables.iter().any(|t| t.target == table && t.key().is_none());
        let mut anew = vec!["is inserted"];
        if parted.contains(&no) {
            anew.push("an UPDATE on the source moves to another partition, which the log has as a deletion and an insertion");
        }
        if is_keyless {
            anew.push("is repaired, as the table has no key");
        }
        let what = format!(
            "{table} has columns on the target only ({}). A row keeps what it has there when it changes, its key too; one that {} has \
             their defaults there",
            columns.join(", "),
            anew.join(", or ")
        );
        let remedy = format!(
            "fill them after the switch, or have them travel: ALTER TABLE {} ADD COLUMN … on the source, too",
            from.sql()
        );
        let finding = Finding::warn(Side::Target, what, remedy).about(&table);
        Finding { verdict: if anew.len() > 1 { Verdict::Warn } else { Verdict::Pass }, ..finding }
    };
    Ok(own.into_iter().map(finding).collect())
}

/// Rows of a partition that is emptied by itself, or leaves, are gone where they were: on the other side only its bound can tell them.
pub(super) async fn hashed(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for (side, catalog) in [(Side::Source, looks.catalog()), (Side::Target, looks.back())] {
        for table in &catalog.tables {
            let mut leaves = catalog.relations.iter().filter(|relation| relation.table == table.id);
            if !leaves.any(|r| r.leaf.as_ref().is_some_and(|leaf| hash::is_untold(&leaf.condition))) {
                continue;
            }
            let what = format!(
                "{} is partitioned on the {side} by the hash of a key that each server hashes to another number (an enum, say, or text of a \
                 collation that is not deterministic): when one of its partitions is emptied by itself, attached, detached or dropped, the \
                 stream stops, as which rows of the {} are its own cannot be told",
                table.source,
                side.other()
            );
            let remedy = match side {
                Side::Source => {
                    "empty partitions by DELETE, or the whole table; where it has happened, `segue run --new-stream` compares all rows and \
                     goes on"
                }
                Side::Target => "after the switch empty partitions by DELETE, or the whole table",
            };
            found.push(Finding::warn(side, what, remedy).about(&table.source));
        }
    }
    Ok(found)
}

/// An identity column on one side only: inserts without the column fail after the switch, or with it.
pub(super) async fn identity(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for ((no, column), here, there) in pairs(&filled(looks).await?) {
        if here.identity == there.identity || here.expression.is_some() || there.expression.is_some() {
            continue;
        }
        let words = |kind: &str| match kind {
            "a" => "GENERATED ALWAYS",
            "d" => "GENERATED BY DEFAULT",
            _ => "no",
        };
        let table = looks.table(Side::Target, *no);
        let (is, should) = (words(&there.identity), words(&here.identity));
        let what = format!(
            "{table}.{column} is {should} identity column on the source, and {is} identity column on the target"
        );
        let alter = format!("ALTER TABLE {} ALTER COLUMN {}", table.sql(), quote_ident(column));
        let remedy = match (here.identity.as_str(), there.identity.as_str()) {
            ("", _) => format!("{alter} DROP IDENTITY;"),
            (_, "") => format!("{alter} ADD {should} AS IDENTITY;"),
            _ => format!("{alter} SET {should};"),
        };
        found.push(Finding::warn(Side::Target, what, remedy).about(table));
    }
    Ok(found)
}

/// A sequence is in no stream. One that cannot be set on the target is a red gate of the switch: keys would be given twice.
pub(super) async fn sequences(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let paired = looks.sequences().await?;
    let remedy = "make the sequence there as it is on the source, let the column's default name it, and grant Segue's role \
                  SELECT and UPDATE on it";
    let unready = paired.unready().iter().map(|what| Finding::warn(Side::Target, what, remedy));
    let remarks = paired.remarks().iter().map(|what| Finding {
        side: Some(Side::Target),
        ..Finding::note(what, "set it by hand after the switch, if something uses it")
    });
    Ok(unready.chain(remarks).collect())
}

/// A partition with its bound, and those of its parents.
const BOUNDS: &str = ", path(no, oid, bounds) AS (
        SELECT no, oid, ARRAY[]::text[] FROM root
        UNION ALL SELECT p.no, i.inhrelid, p.bounds || (pg_get_expr(c.relpartbound, c.oid) COLLATE \"default\")
          FROM path p JOIN pg_class r ON r.oid = p.oid AND r.relkind = 'p' JOIN pg_inherits i ON i.inhparent = p.oid
          JOIN pg_class c ON c.oid = i.inhrelid)
    SELECT p.no, p.bounds, n.nspname, c.relname, c.relkind = 'p' AS partitioned
      FROM path p JOIN pg_class c ON c.oid = p.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY p.no, p.bounds";

/// A row for which the target has no partition cannot be applied: the stream stops there.
pub(super) async fn partitions(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    type Bounds = BTreeSet<(i64, Vec<String>)>;
    let [here, there] = looks.ask_both(BOUNDS).await?;
    let bounds = |rows: &[tokio_postgres::Row]| -> Bounds {
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let is_root = |row: &&tokio_postgres::Row| row.get::<_, Vec<String>>("bounds").is_empty();
    let (known, mut found) = (bounds(&there), Vec::new());
    for root in there.iter().filter(is_root).filter(|row| row.get("partitioned")) {
        let no: i64 = root.get("no");
        let table = looks.table(Side::Target, no);
        if known.contains(&(no, vec!["DEFAULT".to_owned()])) {
            continue;
        }
        let parts = here.iter().filter(|row| row.get::<_, i64>("no") == no && !is_root(row));
        let parts: Vec<&tokio_postgres::Row> = parts.collect();
        if parts.is_empty() {
            let what = format!(
                "{table} is partitioned on the target only, without a default partition: a row that fits none stops the stream"
            );
            let default = QualifiedName::new(&table.schema, format!("{}_default", table.name));
            let remedy = format!("CREATE TABLE {} PARTITION OF {} DEFAULT;", default.sql(), table.sql());
            found.push(Finding::warn(Side::Target, what, remedy).about(&table));
        }
        for part in parts {
            let bounds: Vec<String> = part.get("bounds");
            let above = (no, bounds[..bounds.len() - 1].to_vec());
            // Said once, for the highest that is missing.
            if known.contains(&(no, bounds.clone())) || !known.contains(&above) {
                continue;
            }
            let (schema, name, bound): (&str, &str, &str) =
                (part.get("nspname"), part.get("relname"), bounds.last().map_or("", String::as_str));
            let named = QualifiedName::new(schema, name);
            let what = format!(
                "{table} has no partition {bound} on the target, as {named} is on the source: its rows could not be applied"
            );
            let part_there = QualifiedName::new(&table.schema, name);
            let remedy = if bounds.len() == 1 && !part.get::<_, bool>("partitioned") {
                format!("CREATE TABLE {} PARTITION OF {} {bound};", part_there.sql(), table.sql())
            } else {
                format!(
                    "make the partitions below {table} on the target as they are on the source, or a default partition"
                )
            };
            found.push(Finding::warn(Side::Target, what, remedy).about(&table));
        }
    }
    Ok(found)
}

/// Rows of inheritance children are read through their parent, but are not the parent's: they stay behind.
pub(super) async fn inheritance(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT t.no, n.nspname, c.relname FROM root t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'r'
           JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid NOT IN (SELECT oid FROM root) ORDER BY 1, 2, 3";
    let mut found = Vec::new();
    for (side, rows) in Side::ALL.into_iter().zip(looks.ask_both(sql).await?) {
        for row in &rows {
            let table = looks.table(side, row.get(0));
            let child = QualifiedName::new(row.get::<_, &str>(1), row.get::<_, &str>(2));
            let what = format!(
                "{child} inherits from {table} on the {side}, and is not migrated: its rows, which a read of {table} shows, stay \
                 where they are"
            );
            let remedy = format!(
                "ALTER TABLE {} NO INHERIT {}; -- or list it in the spec as a table of its own",
                child.sql(),
                table.sql()
            );
            found.push(Finding::warn(side, what, remedy).about(&child));
        }
    }
    Ok(found)
}

/// A large object is stored apart from the row that names it; the number travels, the object does not.
pub(super) async fn large_objects(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let objects = looks
        .ask(Side::Source, "SELECT count(*) FROM (SELECT FROM pg_largeobject_metadata LIMIT 100000) o")
        .await?;
    let objects: i64 = objects.first().map_or(0, |row| row.get(0));
    if objects == 0 {
        return Ok(Vec::new());
    }
    let sql = "SELECT t.no, a.attname::text FROM root t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
           JOIN pg_type y ON y.oid = a.atttypid
          WHERE y.typname = 'lo' OR coalesce(nullif(y.typbasetype, 0), y.oid) = 'oid'::regtype ORDER BY 1, 2";
    let rows = looks.ask_tables(Side::Source, sql).await?;
    let finding = |row: &tokio_postgres::Row| {
        let (table, column) = (looks.table(Side::Source, row.get(0)), row.get::<_, &str>(1));
        let what = format!(
            "{table}.{column} may name large objects, of which the source has {objects}: the numbers travel, the objects do not"
        );
        let (sql, column, bytes) =
            (table.sql(), quote_ident(column), quote_ident(&format!("{column}_bytes")));
        let remedy = format!(
            "keep them in the row, on both sides: ALTER TABLE {sql} ADD COLUMN {bytes} bytea; UPDATE {sql} SET {bytes} = lo_get({column});"
        );
        Finding::warn(Side::Source, what, remedy).about(&table)
    };
    Ok(rows.iter().map(finding).collect())
}

/// A driver asks once what number a type has, and goes on with it. Types that users made have other numbers on the other
/// server.
pub(super) async fn type_numbers(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT DISTINCT y.typname::text, y.oid FROM root t
           JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
           JOIN pg_type u ON u.oid = a.atttypid CROSS JOIN LATERAL (VALUES (u.oid), (u.typelem)) x(oid)
           JOIN pg_type y ON y.oid = x.oid
          WHERE y.oid >= 16384 AND y.typcategory <> 'A' ORDER BY 1";
    let [here, there] = looks
        .ask_both(sql)
        .await?
        .map(|rows| -> BTreeMap<String, u32> { rows.iter().map(|row| (row.get(0), row.get(1))).collect() });
    let differ: Vec<&str> = here
        .iter()
        .filter(|(name, oid)| there.get(*name).is_some_and(|o| o != *oid))
        .map(|(name, _)| name.as_str())
        .collect();
    if differ.is_empty() {
        return Ok(Vec::new());
    }
    let what = format!(
        "the types {} have other numbers (OIDs) on the target: a client that remembers them over its session misreads values in binary \
         form after the switch",
        differ.join(", ")
    );
    let remedy = "let clients look types up by name in each session, or end their sessions at the switch; nothing is to be changed on \
                  the servers";
    Ok(vec![Finding::warn(Side::Target, what, remedy)])
}
