//! What one server's catalogs say about the tables: one query for each kind of fact, whatever the number of tables.
//!
//! Uses only columns that every supported server has; decides nothing.

use super::collation::Collation;
use super::hash::{self, Hashes};
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use std::collections::HashMap;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Transaction};

/// Facts about the whole server and database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// As `server_version_num`: 150004.
    pub(super) version: i32,
    /// `server_encoding`.
    pub(super) encoding: String,
    /// Segue's role there.
    pub(super) role: String,
}

impl Server {
    pub(super) fn major(&self) -> i32 {
        self.version / 10_000
    }
}

/// One table, partitioned table or leaf.
#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) name: QualifiedName,
    /// `relkind`, `relpersistence`, `relreplident`.
    pub(super) kind: char,
    pub(super) persistence: char,
    pub(super) replica_identity: char,
    /// A policy applies to the role that Segue logs in with.
    pub(super) row_security: bool,
    /// The role that owns it.
    pub(super) owner: String,
    /// Membership in that one would make the role a superuser.
    pub(super) owner_is_superuser: bool,
    /// The role owns it, or is a member of the owner.
    pub(super) owned: bool,
    /// Privileges the role lacks, of those asked for.
    pub(super) lacks: Vec<String>,
    pub(super) rows: f64,
    pub(super) bytes: i64,
    /// The partition constraint of a leaf.
    pub(super) condition: Option<String>,
}

/// One column of a table (not of its leaves).
#[derive(Clone, Debug)]
pub(super) struct ColumnFacts {
    pub(super) name: String,
    pub(super) type_oid: u32,
    pub(super) typmod: i32,
    pub(super) not_null: bool,
    pub(super) has_default: bool,
    /// `a`lways, by `d`efault, or none.
    pub(super) identity: Option<char>,
    pub(super) generated: bool,
    /// With modifiers, for people and for remedies.
    pub(super) shown_type: String,
    /// Where its type has one.
    pub(super) collation: Option<Collation>,
}

/// One type that a column uses, directly or inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TypeFacts {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    /// For SQL, qualified where needed, without modifiers.
    pub(super) sql: String,
    /// `typtype`.
    pub(super) kind: char,
    /// Element of a true array type.
    pub(super) element: Option<u32>,
    /// The type that a domain is over, and its modifier.
    pub(super) base: Option<(u32, i32)>,
    /// The same for people.
    pub(super) base_shown: String,
    pub(super) has_array: bool,
    pub(super) has_binary: bool,
    pub(super) of_extension: bool,
    /// Of an enum, in order.
    pub(super) labels: Vec<String>,
    /// Types of a composite's attributes, of a range's bounds, of a multirange's ranges.
    pub(super) parts: Vec<u32>,
    /// The modifiers of those, -1 where there is none.
    pub(super) part_typmods: Vec<i32>,
    /// Those types with their modifiers, for people.
    pub(super) parts_shown: Vec<String>,
    /// Names of a composite's attributes.
    pub(super) part_names: Vec<String>,
}

/// A unique or exclusion index.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub(super) name: String,
    /// Key columns; an expression leaves a gap, see `plain`.
    pub(super) columns: Vec<String>,
    pub(super) unique: bool,
    pub(super) primary: bool,
    pub(super) replica_identity: bool,
    pub(super) exclusion: bool,
    pub(super) immediate: bool,
    /// Valid, ready, not partial, no expressions.
    pub(super) plain: bool,
    pub(super) all_not_null: bool,
    /// It belongs to an index of the partitioned table.
    pub(super) inherited: bool,
    pub(super) constraint: Option<String>,
    pub(super) pages: i32,
}

/// Everything about the tables on one server.
pub(super) struct Side {
    /// `source` or `target`: where the tables were when the migration was planned.
    pub(super) label: &'static str,
    pub(super) server: Server,
    /// In the order asked for; `None` where there is no such relation.
    pub(super) roots: Vec<Option<Relation>>,
    /// By the root's oid: the table itself, or the leaves of a partitioned one, by name.
    pub(super) relations: HashMap<u32, Vec<Relation>>,
    /// Every partitioned table in the trees, roots included.
    pub(super) partitioned: HashMap<u32, QualifiedName>,
    /// How the keys of those are hashed that are partitioned by hash.
    pub(super) hashes: Hashes,
    pub(super) columns: HashMap<u32, Vec<ColumnFacts>>,
    pub(super) types: HashMap<u32, TypeFacts>,
    pub(super) indexes: HashMap<u32, Vec<Index>>,
}

fn char_at(row: &Row, name: &str) -> char {
    row.get::<_, &str>(name).chars().next().unwrap_or(' ')
}

async fn rows(
    transaction: &Transaction<'_>,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Outcome<Vec<Row>> {
    transaction.query(sql, parameters).await.map_err(|e| fault_of(&e))
}

/// Reads all facts about `names` under one snapshot. `privileges` are those the role must have on each.
pub(super) async fn read(
    label: &'static str,
    client: &mut Client,
    names: &[&QualifiedName],
    privileges: &[&str],
) -> Outcome<Side> {
    let transaction = client
        .build_transaction()
        .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await
        .map_err(|e| fault_of(&e))?;
    // Sizes and partition bounds need a lock; a table that is locked for long is named, not waited for.
    transaction.batch_execute("SET LOCAL lock_timeout = '20s'").await.map_err(|e| fault_of(&e))?;
    let server = server(&transaction).await?;
    let roots = roots(&transaction, names, privileges).await?;
    let root_oids: Vec<u32> = roots.iter().flatten().map(|r| r.oid).collect();
    let (relations, partitioned) = leaves(&transaction, &root_oids, privileges).await?;
    let hashes = hash::read(&transaction, &partitioned.keys().copied().collect::<Vec<u32>>()).await?;
    let columns = columns(&transaction, &server, &root_oids).await?;
    let used: Vec<u32> = columns.values().flatten().map(|c| c.type_oid).collect();
    let types = types(&transaction, &server, &used).await?;
    let mut all = root_oids;
    all.extend(relations.values().flatten().map(|r| r.oid));
    let indexes = indexes(&transaction, &all).await?;
    transaction.rollback().await.map_err(|e| fault_of(&e))?;
    Ok(Side { label, server, roots, relations, partitioned, hashes, columns, types, indexes })
}

async fn server(transaction: &Transaction<'_>) -> Outcome<Server> {
    let sql = "SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding,
            current_user::text AS role";
    let found = rows(transaction, sql, &[]).await?;
    let nothing = || (0_i32, String::new(), String::new());
    let (version, encoding, role) =
        found.first().map_or_else(nothing, |row| (row.get("version"), row.get("encoding"), row.get("role")));
    Ok(Server { version, encoding, role })
}

/// Columns of a relation; `$2` are privileges.
const RELATION: &str =
    "c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
    row_security_active(c.oid) AS row_security, pg_has_role(c.relowner, 'USAGE') AS owned,
    pg_get_userbyid(c.relowner)::text AS owner,
    (SELECT w.rolsuper FROM pg_roles w WHERE w.oid = c.relowner) AS owner_is_superuser,
    ARRAY(SELECT p FROM unnest($2::text[]) p WHERE NOT has_table_privilege(c.oid, p)) AS lacks";

fn relation(row: &Row) -> Relation {
    Relation {
        oid: row.get("oid"),
        name: QualifiedName::new(row.get::<_, &str>("nspname"), row.get::<_, &str>("relname")),
        kind: char_at(row, "relkind"),
        persistence: char_at(row, "relpersistence"),
        replica_identity: char_at(row, "relreplident"),
        row_security: row.get("row_security"),
        owner: row.get("owner"),
        owner_is_superuser: row.get("owner_is_superuser"),
        owned: row.get("owned"),
        lacks: row.get("lacks"),
        rows: f64::from(row.get::<_, f32>("reltuples")),
        bytes: row.get("bytes"),
        condition: row.get("condition"),
    }
}

async fn roots(
    transaction: &Transaction<'_>,
    names: &[&QualifiedName],
    privileges: &[&str],
) -> Outcome<Vec<Option<Relation>>> {
    let schemas: Vec<&str> = names.iter().map(|n| n.schema.as_str()).collect();
    let tables: Vec<&str> = names.iter().map(|n| n.name.as_str()).collect();
    let sql = format!(
        "SELECT w.no, {RELATION}, c.reltuples, 0::bigint AS bytes, NULL::text AS condition
           FROM unnest($1::text[], $3::text[]) WITH ORDINALITY w(nspname, relname, no)
           JOIN pg_namespace n ON n.nspname = w.nspname
           JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname"
    );
    let mut found: Vec<Option<Relation>> = vec![None; names.len()];
    for row in rows(transaction, &sql, &[&schemas, &privileges, &tables]).await? {
        let no: i64 = row.get("no");
        if let Some(slot) = usize::try_from(no - 1).ok().and_then(|at| found.get_mut(at)) {
            *slot = Some(relation(&row));
        }
    }
    Ok(found)
}

/// Relations that hold rows by root, and the names of partitioned tables.
pub(super) type Leaves = (HashMap<u32, Vec<Relation>>, HashMap<u32, QualifiedName>);

/// The tables themselves, and the leaves of partitioned ones however deep. Inheritance children are not followed.
pub(super) async fn leaves(
    transaction: &Transaction<'_>,
    roots: &[u32],
    privileges: &[&str],
) -> Outcome<Leaves> {
    let sql = format!(
        "WITH RECURSIVE tree(root, oid) AS (
             SELECT r, r FROM unnest($1::oid[]) r
             UNION ALL
             SELECT t.root, i.inhrelid FROM tree t JOIN pg_class p ON p.oid = t.oid AND p.relkind = 'p'
               JOIN pg_inherits i ON i.inhparent = t.oid)
         SELECT t.root, {RELATION}, c.reltuples,
                CASE WHEN c.relkind = 'r' THEN pg_table_size(c.oid) ELSE 0 END AS bytes,
                CASE WHEN t.root <> c.oid THEN coalesce(pg_get_partition_constraintdef(c.oid), 'true') END AS condition
           FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
          ORDER BY n.nspname, c.relname"
    );
    let (mut found, mut partitioned): Leaves = Leaves::default();
    for row in rows(transaction, &sql, &[&roots, &privileges]).await? {
        let root: u32 = row.get("root");
        let relation = relation(&row);
        if relation.kind == 'p' {
            partitioned.insert(relation.oid, relation.name);
        } else {
            found.entry(root).or_default().push(relation);
        }
    }
    Ok((found, partitioned))
}

/// The collations that columns of `relations` have, by number; the default one with what the database says of it.
async fn collations(
    transaction: &Transaction<'_>,
    server: &Server,
    relations: &[u32],
) -> Outcome<HashMap<u32, Collation>> {
    let of_database =
        if server.major() >= 15 { "pg_database_collation_actual_version(d.oid)" } else { "NULL::text" };
    // A row as JSON has the columns that this version has.
    let sql = format!(
        "SELECT c.oid, c.deterministic,
                coalesce(c.j ->> 'datlocprovider', c.j ->> 'collprovider', 'c') AS provider,
                coalesce(c.j ->> 'datcollate', c.j ->> 'collcollate', '') AS collate,
                coalesce(c.j ->> 'datctype', c.j ->> 'collctype', '') AS ctype,
                coalesce(c.j ->> 'datlocale', c.j ->> 'daticulocale', c.j ->> 'colllocale', c.j ->> 'colliculocale', '') AS locale,
                coalesce(c.j ->> 'daticurules', c.j ->> 'collicurules', '') AS rules,
                CASE WHEN c.actual = coalesce(c.j ->> 'datcollversion', c.j ->> 'collversion') THEN c.actual END AS version
           FROM (SELECT l.oid, l.collisdeterministic AS deterministic,
                        CASE WHEN l.collprovider = 'd' THEN to_jsonb(d) ELSE to_jsonb(l) END AS j,
                        CASE WHEN l.collprovider = 'd' THEN {of_database} ELSE pg_collation_actual_version(l.oid) END AS actual
                   FROM pg_collation l CROSS JOIN pg_database d
                  WHERE d.datname = current_database()
                    AND l.oid IN (SELECT a.attcollation FROM pg_attribute a
                                   WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped)) c"
    );
    let found = rows(transaction, &sql, &[&relations]).await?;
    let collation = |row: &Row| Collation {
        provider: char_at(row, "provider"),
        collate: row.get("collate"),
        ctype: row.get("ctype"),
        locale: row.get("locale"),
        rules: row.get("rules"),
        version: row.get("version"),
        deterministic: row.get("deterministic"),
        encoding: server.encoding.clone(),
    };
    Ok(found.iter().map(|row| (row.get("oid"), collation(row))).collect())
}

async fn columns(
    transaction: &Transaction<'_>,
    server: &Server,
    relations: &[u32],
) -> Outcome<HashMap<u32, Vec<ColumnFacts>>> {
    let collations = collations(transaction, server, relations).await?;
    let sql = "SELECT a.attrelid, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef,
                a.attidentity::text, a.attgenerated::text, format_type(a.atttypid, a.atttypmod) AS shown_type,
                a.attcollation
           FROM pg_attribute a
          WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
          ORDER BY a.attrelid, a.attnum";
    let mut found: HashMap<u32, Vec<ColumnFacts>> = HashMap::new();
    for row in rows(transaction, sql, &[&relations]).await? {
        found.entry(row.get("attrelid")).or_default().push(ColumnFacts {
            name: row.get("attname"),
            type_oid: row.get("atttypid"),
            typmod: row.get("atttypmod"),
            not_null: row.get("attnotnull"),
            has_default: row.get("atthasdef"),
            identity: row.get::<_, &str>("attidentity").chars().next(),
            generated: !row.get::<_, &str>("attgenerated").is_empty(),
            shown_type: row.get("shown_type"),
            collation: collations.get(&row.get::<_, u32>("attcollation")).cloned(),
        });
    }
    Ok(found)
}

async fn types(
    transaction: &Transaction<'_>,
    server: &Server,
    used: &[u32],
) -> Outcome<HashMap<u32, TypeFacts>> {
    let multirange = if server.version >= 140_000 {
        "UNION ALL SELECT r.rngmultitypid, r.rngtypid, -1, '', 0 FROM pg_range r"
    } else {
        ""
    };
    let sql = format!(
        "WITH RECURSIVE part(whole, oid, typmod, name, no) AS (
             SELECT t.oid, t.typelem, -1, '', 0 FROM pg_type t WHERE t.typelem <> 0
             UNION ALL SELECT t.oid, t.typbasetype, t.typtypmod, '', 0 FROM pg_type t WHERE t.typbasetype <> 0
             UNION ALL SELECT t.oid, a.atttypid, a.atttypmod, a.attname::text, a.attnum FROM pg_type t
               JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
              WHERE t.typtype = 'c'
             UNION ALL SELECT r.rngtypid, r.rngsubtype, -1, '', 0 FROM pg_range r {multirange}),
         closure(oid) AS (
             SELECT unnest($1::oid[]) UNION SELECT p.oid FROM closure c JOIN part p ON p.whole = c.oid)
         SELECT t.oid, n.nspname, t.typname, format_type(t.oid, -1) AS sql, t.typtype::text, t.typbasetype,
                t.typtypmod, format_type(t.typbasetype, t.typtypmod) AS base_shown,
                t.typarray <> 0 AS has_array, t.typsend <> 0 AND t.typreceive <> 0 AS has_binary,
                coalesce(e.oid, 0::oid) AS element,
                EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
                           AND d.deptype = 'e') AS of_extension,
                ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels,
                ARRAY(SELECT p.oid FROM part p WHERE p.whole = t.oid AND t.typtype IN ('c', 'r', 'm') ORDER BY p.no) AS parts,
                ARRAY(SELECT p.typmod FROM part p WHERE p.whole = t.oid AND t.typtype IN ('c', 'r', 'm') ORDER BY p.no) AS part_typmods,
                ARRAY(SELECT format_type(p.oid, p.typmod) FROM part p
                       WHERE p.whole = t.oid AND t.typtype IN ('c', 'r', 'm') ORDER BY p.no) AS parts_shown,
                ARRAY(SELECT p.name FROM part p WHERE p.whole = t.oid AND t.typtype = 'c' ORDER BY p.no) AS part_names
           FROM closure c JOIN pg_type t ON t.oid = c.oid LEFT JOIN pg_type e ON e.typarray = t.oid
           JOIN pg_namespace n ON n.oid = t.typnamespace"
    );
    let mut found = HashMap::new();
    for row in rows(transaction, &sql, &[&used]).await? {
        let (element, base): (u32, u32) = (row.get("element"), row.get("typbasetype"));
        let facts = TypeFacts {
            oid: row.get("oid"),
            schema: row.get("nspname"),
            name: row.get("typname"),
            sql: row.get("sql"),
            kind: char_at(&row, "typtype"),
            element: (element != 0).then_some(element),
            base: (base != 0).then(|| (base, row.get("typtypmod"))),
            base_shown: row.get("base_shown"),
            has_array: row.get("has_array"),
            has_binary: row.get("has_binary"),
            of_extension: row.get("of_extension"),
            labels: row.get("labels"),
            parts: row.get("parts"),
            part_typmods: row.get("part_typmods"),
            parts_shown: row.get("parts_shown"),
            part_names: row.get("part_names"),
        };
        found.insert(facts.oid, facts);
    }
    Ok(found)
}

async fn indexes(transaction: &Transaction<'_>, relations: &[u32]) -> Outcome<HashMap<u32, Vec<Index>>> {
    let sql = "SELECT i.indrelid, c.relname, i.indisunique, i.indisprimary, i.indisreplident, i.indisexclusion,
                i.indimmediate, c.relpages, c.relispartition AS inherited,
                i.indisvalid AND i.indisready AND i.indpred IS NULL AND i.indexprs IS NULL AS plain,
                k.columns, coalesce(k.all_not_null, false) AS all_not_null,
                (SELECT o.conname FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid
                    AND o.contype IN ('p', 'u', 'x') LIMIT 1) AS constraint
           FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
          CROSS JOIN LATERAL (
                SELECT coalesce(array_agg(a.attname::text ORDER BY x.no), '{}') AS columns,
                       bool_and(a.attnotnull) AS all_not_null
                  FROM unnest(i.indkey) WITH ORDINALITY x(attnum, no)
                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = x.attnum
                 WHERE x.no <= i.indnkeyatts) k
          WHERE i.indrelid = ANY($1) AND (i.indisunique OR i.indisexclusion) AND i.indislive
          ORDER BY i.indrelid, c.relname";
    let mut found: HashMap<u32, Vec<Index>> = HashMap::new();
    for row in rows(transaction, sql, &[&relations]).await? {
        found.entry(row.get("indrelid")).or_default().push(Index {
            name: row.get("relname"),
            columns: row.get("columns"),
            unique: row.get("indisunique"),
            primary: row.get("indisprimary"),
            replica_identity: row.get("indisreplident"),
            exclusion: row.get("indisexclusion"),
            immediate: row.get("indimmediate"),
            plain: row.get("plain"),
            all_not_null: row.get("all_not_null"),
            inherited: row.get("inherited"),
            constraint: row.get("constraint"),
            pages: row.get("relpages"),
        });
    }
    Ok(found)
}
