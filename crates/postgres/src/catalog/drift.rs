//! What changed in the source's catalog since it was read, which the change stream does not announce: partitions that
//! were attached or detached, columns and definitions that were altered. Polled.

use super::{SourceRelation, hash, refusal, shape};
use crate::birth::{bounded_lock, enter};
use crate::error::fault_of;
use crate::numbered;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::change::Leaf;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use segue_model::table::{Table, TableId, UnitId};
use std::collections::{HashMap, HashSet};
use tokio_postgres::{Client, Row};

/// A partition that was attached since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The table it now belongs to.
    pub table: TableId,
    /// The leaf; its unit is the next free number, to be stored by the caller before it is used.
    pub relation: SourceRelation,
}

/// What changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Leaves that are new.
    pub attached: Vec<Attached>,
    /// Leaves that are detached or dropped.
    pub detached: Vec<SourceRelation>,
    /// Leaves that another condition describes now, with that one: their bounds were changed, or their siblings.
    pub rebound: Vec<SourceRelation>,
    /// Relations whose rows ALTER TABLE has written anew, perhaps with other values: nothing of that is in the stream.
    /// (VACUUM FULL, CLUSTER and TRUNCATE replace the file, too, but leave the columns alone.)
    pub rewritten: Vec<QualifiedName>,
    /// Changes that the migration cannot follow.
    pub faults: Vec<Fault>,
}

/// The form of the source's relations at one moment, to compare a later one with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shapes(HashMap<u32, Shape>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    root: u32,
    name: QualifiedName,
    partitioned: bool,
    /// A default partition, or below one: what is a row of it depends on its siblings.
    loose: bool,
    bound: Option<String>,
    file: u32,
    /// Number of the names, types and numbers of all columns.
    columns: i64,
    /// Which version of the catalog's row describes each column, by number. Not of columns whose value is still missing
    /// from old rows: any rewrite puts it there, and changes that catalog row.
    column_versions: HashMap<i16, String>,
    replica_identity: String,
}

/// One light query without a lock on any table, so that it may run every few seconds beside DDL.
const SHAPES: &str = "
    WITH RECURSIVE tree(root, oid, loose) AS (
        SELECT c.oid, c.oid, false FROM unnest($1::text[], $2::text[]) w(nspname, relname)
          JOIN pg_namespace n ON n.nspname = w.nspname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname
        UNION ALL
        SELECT t.root, i.inhrelid, t.loose OR coalesce(pg_get_expr(b.relpartbound, b.oid) = 'DEFAULT', false)
          FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p'
          JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class b ON b.oid = i.inhrelid)
    SELECT t.root, c.oid, n.nspname, c.relname, c.relkind = 'p' AS partitioned, t.loose,
           pg_get_expr(c.relpartbound, c.oid) AS bound, c.relfilenode, c.relreplident::text,
           coalesce((SELECT hashtextextended(string_agg(concat_ws(',', a.attnum, quote_ident(a.attname), a.atttypid, a.atttypmod,
                        a.attgenerated, a.attidentity, a.attnotnull), ';' ORDER BY a.attnum), 0)
               FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), 0) AS columns,
           ARRAY(SELECT a.attnum FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND NOT a.atthasmissing ORDER BY a.attnum) AS columns_there,
           ARRAY(SELECT a.xmin::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND NOT a.atthasmissing ORDER BY a.attnum) AS column_versions
      FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     ORDER BY n.nspname, c.relname";

fn shape_of(row: &Row) -> Shape {
    Shape {
        root: row.get("root"),
        name: QualifiedName::new(row.get::<_, &str>("nspname"), row.get::<_, &str>("relname")),
        partitioned: row.get("partitioned"),
        loose: row.get("loose"),
        bound: row.get("bound"),
        file: row.get("relfilenode"),
        columns: row.get("columns"),
        column_versions: {
            let there: Vec<i16> = row.get("columns_there");
            there.into_iter().zip(row.get::<_, Vec<String>>("column_versions")).collect()
        },
        replica_identity: row.get("relreplident"),
    }
}

impl Shapes {
    /// Whether what is a row of the leaf depends on its siblings: a default partition, or below one.
    pub fn is_loose(&self, oid: u32) -> bool {
        self.0.get(&oid).is_some_and(|shape| shape.loose)
    }

    /// The number of the table of this name, itself and no leaf of another one.
    pub fn number_of(&self, name: &QualifiedName) -> Option<u32> {
        self.0.iter().find(|(oid, shape)| **oid == shape.root && shape.name == *name).map(|(oid, _)| *oid)
    }

    /// Whether there is a partitioned table of this name.
    pub fn is_partitioned(&self, name: &QualifiedName) -> bool {
        self.0.values().any(|shape| shape.partitioned && shape.name == *name)
    }

    /// Whether the tree of partitions below `root` is another one than `other`'s.
    fn differs_below(&self, root: u32, other: &Shapes) -> bool {
        let tree = |shapes: &Shapes| -> HashMap<u32, Option<String>> {
            let below = shapes.0.iter().filter(|(_, shape)| shape.root == root);
            below.map(|(oid, shape)| (*oid, shape.bound.clone())).collect()
        };
        tree(self) != tree(other)
    }
}

/// The form of all relations of `tables` now.
pub async fn shapes(source: &Client, tables: &[Table]) -> Outcome<Shapes> {
    let schemas: Vec<&str> = tables.iter().map(|t| t.source.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.source.name.as_str()).collect();
    let rows = source.query(SHAPES, &[&schemas, &names]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking for changes of the tables"))?;
    Ok(Shapes(rows.iter().map(|row| (row.get("oid"), shape_of(row))).collect()))
}

/// What changed between `was` and now. `relations` are those that the stream knows, later ones included; `side` is what
/// the side they are on is called.
pub async fn drift(
    source: &Client,
    side: &str,
    tables: &[Table],
    relations: &[SourceRelation],
    was: &Shapes,
) -> Outcome<(Drift, Shapes)> {
    let now = shapes(source, tables).await?;
    let mut drift = Drift::default();
    let mut by_root: HashMap<u32, &Table> = HashMap::new();
    for table in tables {
        match now.number_of(&table.source) {
            Some(oid) => drop(by_root.insert(oid, table)),
            None => drift.faults.push(nameless(&table.source, side)),
        }
    }
    // A leaf can have gone from one of our tables to another.
    let is_elsewhere = |relation: &SourceRelation, shape: &Shape| {
        relation.leaf.is_some() && by_root.get(&shape.root).is_none_or(|table| table.id != relation.table)
    };
    for relation in relations {
        match now.0.get(&relation.oid) {
            Some(shape) if is_elsewhere(relation, shape) => drift.detached.push(relation.clone()),
            Some(shape) => compare(side, relation, was.0.get(&relation.oid), shape, &mut drift),
            None if relation.leaf.is_some() => drift.detached.push(relation.clone()),
            // There is none of its name, which has been said.
            None if by_root.values().all(|table| table.id != relation.table) => {}
            None => drift.faults.push(refusal(
                "SEGUE-DDL-DRIFT",
                &relation.name,
                format!("is another table than before on the {side}: the one that migrates was renamed"),
                "give it its name back, or cancel the migration",
            )),
        }
    }
    let next = relations.iter().map(|r| r.unit.0).chain(tables.iter().map(|t| t.id.0)).max();
    let mut next = next.map_or(0, |unit| unit.saturating_add(1));
    let known = |oid: &u32| relations.iter().any(|r| r.oid == *oid);
    let mut fresh: Vec<_> = now.0.iter().filter(|(oid, shape)| !shape.partitioned && !known(oid)).collect();
    fresh.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    for (oid, shape) in fresh {
        let Some(table) = by_root.get(&shape.root) else { continue };
        // Gone again already: no matter.
        let Some(leaf) = leaf(source, *oid, shape, table, &now).await? else { continue };
        let leaf = Some(leaf);
        let relation =
            SourceRelation { oid: *oid, table: table.id, unit: UnitId(next), leaf, name: shape.name.clone() };
        drift.attached.push(Attached { table: table.id, relation });
        next = next.saturating_add(1);
    }
    for relation in relations.iter().filter(|relation| relation.leaf.is_some()) {
        let Some(shape) = now.0.get(&relation.oid) else { continue };
        if is_elsewhere(relation, shape) {
            continue;
        }
        let Some(table) = by_root.get(&shape.root).filter(|_| now.differs_below(shape.root, was)) else {
            continue;
        };
        let bound_changed = was.0.get(&relation.oid).is_some_and(|was| was.bound != shape.bound);
        if !shape.loose && !bound_changed {
            continue;
        }
        let Some(leaf) = leaf(source, relation.oid, shape, table, &now).await? else { continue };
        if relation.leaf.as_ref().is_some_and(|was| was.condition != leaf.condition) {
            drift.rebound.push(SourceRelation { leaf: Some(leaf), ..relation.clone() });
        }
    }
    Ok((drift, now))
}

/// There is no table of this name.
pub fn nameless(table: &QualifiedName, side: &str) -> Fault {
    let what = format!("was dropped or renamed on the {side}");
    refusal("SEGUE-DDL-DRIFT", table, what, "give it its name back, or cancel the migration")
}

fn compare(side: &str, relation: &SourceRelation, was: Option<&Shape>, now: &Shape, drift: &mut Drift) {
    let Some(was) = was else { return };
    if was.columns != now.columns || was.replica_identity != now.replica_identity {
        let what = format!("was altered on the {side} (columns, types or replica identity)");
        let next_step =
            "undo the change, or cancel the migration and start again with the new form on both sides";
        drift.faults.push(refusal("SEGUE-DDL-DRIFT", &relation.name, what, next_step));
    }
    let altered =
        |(column, was): (&i16, &String)| now.column_versions.get(column).is_some_and(|now| now != was);
    if was.file != now.file && was.column_versions.iter().any(altered) {
        drift.rewritten.push(now.name.clone());
    }
}

async fn leaf(
    source: &Client,
    oid: u32,
    shape: &Shape,
    table: &Table,
    now: &Shapes,
) -> Outcome<Option<Leaf>> {
    let sql = "SELECT coalesce(pg_get_partition_constraintdef(oid), 'true') FROM pg_class WHERE oid = $1 AND relispartition";
    let row = source.query_opt(sql, &[&oid]).await;
    let row = row.map_err(|e| fault_of(&e).during(format_args!("reading the bounds of {}", shape.name)))?;
    let condition: Option<String> = row.map(|row| row.get(0));
    let Some(condition) = condition else { return Ok(None) };
    let names: HashMap<u32, QualifiedName> =
        now.0.iter().filter(|(_, s)| s.partitioned).map(|(oid, s)| (*oid, s.name.clone())).collect();
    let hashes = hash::read(source, &names.keys().copied().collect::<Vec<u32>>()).await?;
    let partitioned = shape::Partitioned { names: &names, hashes: &hashes };
    // What the other side's tables are like is not known here, so none of them is asked.
    let condition =
        shape::leaf_condition(&condition, partitioned, (&table.source, &table.target), |_, _| false);
    Ok(Some(Leaf { name: shape.name.to_string(), condition }))
}

/// Adds the leaf of this number to the publication, under a lock that waits for its writers: whatever is written to it
/// after this returns is in the stream. Harmless if it is there already; `false` if there is no such leaf any more.
/// `authority` is the migration and its token.
pub async fn join_publication(
    (source, side): (&Client, &str),
    authority: (&str, i64),
    publication: &str,
    leaf: u32,
) -> Outcome<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                       WHERE p.pubname = $2 AND r.prrelid = c.oid),
               c.relreplident = 'f' OR EXISTS (SELECT FROM pg_index i
                       WHERE i.indrelid = c.oid AND i.indimmediate AND i.indisvalid
                         AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
          FROM pg_class c WHERE c.oid = $1";
    let mut tries = 0;
    loop {
        let named = numbered::name_of(source, leaf).await.map_err(|e| fault_of(&e))?;
        let found = source.query_opt(sql, &[&leaf, &publication]).await.map_err(|e| fault_of(&e))?;
        let Some((name, found)) = named.zip(found) else { return Ok(false) };
        let (is_published, can_be_identified): (bool, bool) = (found.get(0), found.get(1));
        if is_published {
            return Ok(true);
        }
        if !can_be_identified {
            let what =
                "was attached without a usable replica identity: publishing it would make its updates fail";
            let next_step = format!(
                "on the {side}: ALTER TABLE {} REPLICA IDENTITY FULL; or give it the key of its table",
                name.sql()
            );
            return Err(refusal("SEGUE-NO-KEY", &name, what, next_step));
        }
        let add = format!(
            "BEGIN; {}; SET LOCAL lock_timeout = '100ms'; LOCK TABLE ONLY {table} IN SHARE ROW EXCLUSIVE MODE; {};
             ALTER PUBLICATION {} ADD TABLE ONLY {table}; COMMIT",
            enter(authority),
            numbered::still_called(leaf, &name),
            quote_ident(publication),
            table = name.sql()
        );
        tries += 1;
        match bounded_lock(source, &add).await {
            Ok(()) => return Ok(true),
            Err(fault) if numbered::has_moved_on(&fault) && tries < numbered::TRIES => {}
            Err(fault) => {
                let during = format!("changing the publication {publication} for {}", name.sql());
                return Err(fault.during(during));
            }
        }
    }
}

/// The relations that the publication holds now, by number.
///
/// At a restart, a relation that [`super::read`] lists and that is not among these was attached while nobody looked:
/// its rows were never copied nor streamed, and it needs a unit of its own as if [`drift`] had found it.
pub async fn published(source: &Client, publication: &str) -> Outcome<HashSet<u32>> {
    let sql = "SELECT r.prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1";
    let rows = source.query(sql, &[&publication]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("reading the publication"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
