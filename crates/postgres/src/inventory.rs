//! What a database has to move, for somebody who begins: every table, and what has to be decided about it.
//!
//! One statement on the catalog. Whether a table *can* be moved to a certain target is the plan's matter
//! ([`crate::catalog`]); this knows the source alone.

use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use tokio_postgres::{Client, Row};

/// A table of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: QualifiedName,
    /// Rows, by the statistics.
    pub rows: u64,
    /// Bytes on disk without indexes, partitions included.
    pub bytes: u64,
    /// What has to be decided before it can move.
    pub decisions: Vec<Decision>,
}

/// Something that only a person can decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is the matter.
    pub what: String,
    /// What can be done about it, the best first; statements are for the source.
    pub choices: Vec<String>,
    /// The table can move as it is, if what follows from it is accepted.
    pub can_move: bool,
}

const TABLES: &str = "
    WITH RECURSIVE tree(root, relation) AS (
        SELECT c.oid, c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p', 'f')
        UNION ALL SELECT t.root, i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relation),
    size(root, rows, bytes) AS (
        SELECT t.root, sum(greatest(c.reltuples, 0))::int8, sum(pg_table_size(c.oid))::int8
          FROM tree t JOIN pg_class c ON c.oid = t.relation AND c.relkind = 'r' GROUP BY 1),
    key(relation, name, is_primary, is_identity) AS (
        SELECT i.indrelid, k.relname::text, i.indisprimary, i.indisreplident
          FROM pg_index i JOIN pg_class k ON k.oid = i.indexrelid
         WHERE i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
           AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) WITH ORDINALITY x(no, at)
                             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = x.no
                            WHERE x.at <= i.indnkeyatts AND NOT a.attnotnull))
    SELECT n.nspname::text AS schema, c.relname::text AS name, coalesce(s.rows, 0) AS rows, coalesce(s.bytes, 0) AS bytes,
           c.relkind::text AS kind, c.relpersistence::text AS persistence, c.relreplident::text AS identity,
           EXISTS (SELECT FROM key k WHERE k.relation = c.oid AND k.is_primary) AS has_primary,
           EXISTS (SELECT FROM key k WHERE k.relation = c.oid AND k.is_identity) AS has_identity,
           (SELECT k.name FROM key k WHERE k.relation = c.oid ORDER BY k.name LIMIT 1) AS key,
           (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND y.typname IN ('oid', 'lo')
               AND EXISTS (SELECT FROM pg_largeobject_metadata)) AS large
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN size s ON s.root = c.oid
     WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND NOT c.relispartition
       AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'segue')
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
     ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"";

/// Every table of the database, foreign ones too, in the order of their names.
pub async fn tables(source: &Client) -> Outcome<Vec<Listed>> {
    let rows = source.query(TABLES, &[]).await;
    Ok(rows.map_err(|e| fault_of(&e).during("listing the source's tables"))?.iter().map(listed).collect())
}

fn listed(row: &Row) -> Listed {
    let name = QualifiedName::new(row.get::<_, &str>("schema"), row.get::<_, &str>("name"));
    let count = |column: &str| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
    let mut decisions = Vec::new();
    if row.get::<_, &str>("kind") == "f" {
        decisions.push(foreign());
    } else {
        decisions.extend((row.get::<_, &str>("persistence") == "u").then(|| unlogged(&name)));
        let identity: &str = row.get("identity");
        let identified = match identity {
            "f" => true,
            "i" => row.get("has_identity"),
            "n" => false,
            _ => row.get("has_primary"),
        };
        if !identified {
            decisions.push(keyless(&name, row.get("has_primary"), row.get("key")));
        }
        decisions.extend(row.get::<_, Option<&str>>("large").map(large_objects));
    }
    Listed { name, rows: count("rows"), bytes: count("bytes"), decisions }
}

fn foreign() -> Decision {
    Decision {
        what: "is a foreign table: its rows are on another server, and are not moved".into(),
        choices: vec!["make it on the target by hand".into(), "leave it out".into()],
        can_move: false,
    }
}

fn unlogged(name: &QualifiedName) -> Decision {
    Decision {
        what: "is unlogged: its changes are in no log, and cannot be followed".into(),
        choices: vec![format!("ALTER TABLE {} SET LOGGED;", name.sql()), "leave it out".into()],
        can_move: false,
    }
}

/// Nothing tells its rows apart in the log.
fn keyless(name: &QualifiedName, has_primary: bool, key: Option<&str>) -> Decision {
    let table = name.sql();
    let mut choices = Vec::new();
    if has_primary {
        choices.push(format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT;"));
    } else {
        choices.push(format!("ALTER TABLE {table} ADD PRIMARY KEY (…);"));
        choices.extend(
            key.map(|key| format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {};", quote_ident(key))),
        );
    }
    choices.push(format!(
        "ALTER TABLE {table} REPLICA IDENTITY FULL;  -- every update and delete writes the whole old row to the log"
    ));
    choices.push("leave it out".into());
    Decision {
        what: "has no key in the log that tells its rows apart (primary key, or replica identity)".into(),
        choices,
        can_move: false,
    }
}

fn large_objects(columns: &str) -> Decision {
    Decision {
        what: format!(
            "may refer to large objects ({columns}), which are in no log: the numbers move, the large objects do not"
        ),
        choices: vec![
            "copy them with pg_dump --blobs while nobody writes them; or keep the values in bytea columns"
                .into(),
            "nothing, if these numbers are no large objects'".into(),
        ],
        can_move: true,
    }
}
