//! What one side's catalog says about the sequences of a migration's tables.
//!
//! A column takes its values from a sequence in one of three ways: it is an identity column, its default (or its domain's)
//! names the sequence, or it owns the sequence and a program asks for values. A default that names its sequence as text,
//! a trigger, or a function that calls `nextval` is not to be seen in a catalog.

use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use std::collections::{BTreeMap, HashMap};
use tokio_postgres::Client;

/// How a sequence counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) increment: i64,
    pub(super) min: i64,
    pub(super) max: i64,
    pub(super) cache: i64,
    pub(super) cycle: bool,
}

/// A sequence on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) oid: u32,
    pub(super) name: QualifiedName,
    pub(super) count: Count,
    /// What our role may not do with it, as GRANT says it.
    pub(super) lacks: Vec<String>,
    /// No column owns it, and no default names it.
    pub(super) loose: bool,
}

/// A column that uses a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) sequence: u32,
    /// The leaf, where the sequence is a leaf's own.
    pub(super) leaf: Option<QualifiedName>,
    /// Inserts without the column take a value; else the column only owns the sequence.
    pub(super) generates: bool,
}

/// A column of a table (of the root, if partitioned).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Column {
    /// Inserts without it are given a value.
    pub(super) has_default: bool,
    /// The default calls `nextval`, and names no sequence that the catalog knows.
    pub(super) hidden: Option<String>,
    /// The default is the same for every row.
    pub(super) constant: bool,
    /// Of an integer column.
    pub(super) range: Option<(i64, i64)>,
    /// A unique index begins with it.
    pub(super) unique: bool,
    pub(super) uses: Vec<Use>,
}

/// One side.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    /// By table, as they were asked for, and name.
    pub(super) columns: HashMap<(usize, String), Column>,
    pub(super) sequences: BTreeMap<u32, Sequence>,
}

impl Side {
    /// Sequences that nothing in the catalog uses.
    pub(super) fn loose(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.values().filter(|sequence| sequence.loose)
    }

    pub(super) fn named(&self, name: &QualifiedName) -> Option<&Sequence> {
        self.sequences.values().find(|sequence| sequence.name == *name)
    }
}

const TREE: &str = "WITH RECURSIVE tree(no, root, oid) AS (
        SELECT w.no, c.oid, c.oid FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w(nspname, relname, no)
          JOIN pg_namespace n ON n.nspname = w.nspname
          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname
         UNION ALL
        SELECT t.no, t.root, i.inhrelid FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_inherits i ON i.inhparent = t.oid)";

const COLUMNS: &str = "SELECT t.no - 1 AS no, a.attname,
        a.attidentity <> '' OR a.atthasdef AND a.attgenerated = '' OR y.typdefault IS NOT NULL AS has_default,
        CASE coalesce(nullif(y.typbasetype, 0), y.oid)
            WHEN 'int2'::regtype THEN 2 WHEN 'int4'::regtype THEN 4 WHEN 'int8'::regtype THEN 8 ELSE 0 END AS bytes,
        EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                   AND i.indkey[0] = a.attnum) AS is_unique,
        (SELECT pg_get_expr(f.adbin, f.adrelid) FROM pg_attrdef f
          WHERE f.adrelid = t.oid AND f.adnum = a.attnum AND a.attgenerated = '') AS shown_default
   FROM tree t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
   JOIN pg_type y ON y.oid = a.atttypid
  WHERE t.oid = t.root";

/// The dependencies of columns, their defaults and their domains' on sequences.
const USES: &str = "SELECT u.no - 1 AS no, u.attname, u.sequence, u.generates, n.nspname, c.relname, u.oid <> u.root AS is_leaf
   FROM (SELECT t.no, t.root, t.oid, a.attname, d.objid AS sequence, d.deptype = 'i' AS generates
           FROM tree t JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
            AND d.refobjsubid > 0 AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
           JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
         UNION ALL
         SELECT t.no, t.root, t.oid, a.attname, d.refobjid, true
           FROM tree t JOIN pg_attrdef f ON f.adrelid = t.oid
           JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
            AND d.refclassid = 'pg_class'::regclass
           JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = f.adnum AND a.attgenerated = ''
         UNION ALL
         SELECT t.no, t.root, t.oid, a.attname, d.refobjid, true
           FROM tree t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.atthasdef
           JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = a.atttypid
            AND d.refclassid = 'pg_class'::regclass) u
   JOIN pg_class s ON s.oid = u.sequence AND s.relkind = 'S'
   JOIN pg_class c ON c.oid = u.oid JOIN pg_namespace n ON n.oid = c.relnamespace
  ORDER BY u.no, u.attname, is_leaf, n.nspname, c.relname, u.sequence, u.generates DESC";

/// Those that are used, and those that nothing uses in the schemas of the tables. (On old servers a sequence has a row
/// type, which depends on it internally.)
const SEQUENCES: &str = "SELECT c.oid, n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
        array_remove(ARRAY[
            CASE WHEN NOT has_schema_privilege(n.oid, 'USAGE') THEN 'USAGE ON SCHEMA ' || quote_ident(n.nspname) END,
            CASE WHEN NOT has_sequence_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
            CASE WHEN $3 AND NOT has_sequence_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END], NULL) AS lacks,
        c.oid <> ALL($1) AS loose
   FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = ANY($1) OR n.nspname = ANY($2) AND c.relpersistence <> 't' AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i', 'e')
        UNION ALL
        SELECT FROM pg_depend d WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
           AND d.classid IN ('pg_attrdef'::regclass, 'pg_type'::regclass) AND d.deptype = 'n')";

/// The server's own `nextval`, and not a function with a longer name or in a schema of its own.
fn calls_nextval(shown: &str) -> bool {
    let of_a_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '"' | '$');
    shown.match_indices("nextval(").any(|(at, _)| !shown[..at].ends_with(of_a_name))
}

/// Reads one side's catalog about `tables`. `to_set`: the sequences are to be set there, not only read.
pub(super) async fn read(client: &Client, tables: &[&QualifiedName], to_set: bool) -> Outcome<Side> {
    let schemas: Vec<&str> = tables.iter().map(|name| name.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|name| name.name.as_str()).collect();
    let mut side = Side::default();
    let number = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i64>("no")).unwrap_or(usize::MAX);
    let of_columns = format!("{TREE} {COLUMNS}");
    for row in client.query(&of_columns, &[&schemas, &names]).await.map_err(|e| fault_of(&e))? {
        let shown: Option<String> = row.get("shown_default");
        let column = Column {
            has_default: row.get("has_default"),
            // Whatever differs from row to row calls something.
            constant: shown.as_ref().is_some_and(|shown| !shown.contains('(')),
            hidden: shown.filter(|shown| calls_nextval(shown)),
            range: match row.get::<_, i32>("bytes") {
                2 => Some((i16::MIN.into(), i16::MAX.into())),
                4 => Some((i32::MIN.into(), i32::MAX.into())),
                8 => Some((i64::MIN, i64::MAX)),
                _ => None,
            },
            unique: row.get("is_unique"),
            uses: Vec::new(),
        };
        side.columns.insert((number(&row), row.get("attname")), column);
    }
    let of_uses = format!("{TREE} {USES}");
    let mut used = Vec::new();
    for row in client.query(&of_uses, &[&schemas, &names]).await.map_err(|e| fault_of(&e))? {
        let Some(column) = side.columns.get_mut(&(number(&row), row.get("attname"))) else { continue };
        let sequence: u32 = row.get("sequence");
        let leaf = QualifiedName::new(row.get::<_, &str>("nspname"), row.get::<_, &str>("relname"));
        let found = Use {
            sequence,
            leaf: row.get::<_, bool>("is_leaf").then_some(leaf),
            generates: row.get("generates"),
        };
        if found.generates {
            column.hidden = None;
        }
        // Leaves have their root's defaults, and a serial column's default and ownership are one use.
        if !column.uses.iter().any(|use_| use_.sequence == sequence) {
            column.uses.push(found);
        }
        used.push(sequence);
    }
    for row in client.query(SEQUENCES, &[&used, &schemas, &to_set]).await.map_err(|e| fault_of(&e))? {
        let sequence = Sequence {
            oid: row.get("oid"),
            name: QualifiedName::new(row.get::<_, &str>("nspname"), row.get::<_, &str>("relname")),
            count: Count {
                increment: row.get("seqincrement"),
                min: row.get("seqmin"),
                max: row.get("seqmax"),
                cache: row.get("seqcache"),
                cycle: row.get("seqcycle"),
            },
            lacks: row.get("lacks"),
            loose: row.get("loose"),
        };
        side.sequences.insert(sequence.oid, sequence);
    }
    Ok(side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_nextval_counts() {
        for (shown, found) in [
            ("nextval('s'::text)", true),
            ("(1 + nextval(('s'::text)::regclass))", true),
            ("public.nextval('s'::text)", false),
            ("my_nextval('s'::text)", false),
            ("'x'::text", false),
        ] {
            assert_eq!(calls_nextval(shown), found, "{shown}");
        }
    }
}
