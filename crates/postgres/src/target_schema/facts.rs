//! What one side's catalogs say about everything that belongs to the tables: one query for each kind of object, whatever
//! the number of tables. Decides nothing.
//!
//! Definitions are the server's own words (`pg_get_indexdef` and its like), settled ([`settled`]) and with the names of the
//! object itself and of its table taken out, so that they can be compared between servers and said again with other names.

mod attached;

use crate::definition::settled;
use crate::error::fault_of;
use attached::{
    RULES, SCHEMA_GRANTS, STATISTICS, TABLE_GRANTS, attached, grants, policies, publications, published,
    schemas, sequences, triggers_sql,
};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use std::collections::HashMap;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

/// A table, or a partition of one.
#[derive(Clone, Debug)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) name: QualifiedName,
    /// The name as this server writes it in definitions.
    pub(super) shown: String,
    /// `relkind`: `r` or `p`, or what else has the name.
    pub(super) kind: char,
    /// Place in the list that was asked for.
    pub(super) root: usize,
    /// Steps below the root.
    pub(super) level: i32,
    /// `relreplident`.
    pub(super) replica_identity: char,
    pub(super) row_security: (bool, bool),
    pub(super) owner: String,
    pub(super) comment: Option<String>,
}

/// A column.
#[derive(Clone, Debug)]
pub(super) struct ColumnFacts {
    pub(super) table: u32,
    pub(super) name: String,
    pub(super) not_null: bool,
    /// Not of a generated column.
    pub(super) default: Option<String>,
    pub(super) generated: Option<Generated>,
    pub(super) comment: Option<String>,
}

/// How a column is computed from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generated {
    /// Its type with modifiers, as SQL.
    pub(super) sql_type: String,
    pub(super) expression: String,
    /// When it is read, and not when its row is written.
    pub(super) is_virtual: bool,
}

/// The constraint that an index carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) name: String,
    /// `p`, `u` or `x`.
    pub(super) kind: char,
    pub(super) definition: String,
    pub(super) deferrable: bool,
    pub(super) comment: Option<String>,
}

/// An index.
#[derive(Clone, Debug)]
pub(super) struct IndexFacts {
    pub(super) oid: u32,
    pub(super) table: u32,
    pub(super) name: String,
    pub(super) kind: char,
    /// From ` USING` on.
    pub(super) definition: String,
    pub(super) unique: bool,
    pub(super) valid: bool,
    pub(super) replica_identity: bool,
    pub(super) clustered: bool,
    /// Immediate, not partial, without expressions, all columns NOT NULL.
    pub(super) may_identify: bool,
    pub(super) columns: i16,
    pub(super) constraint: Option<Carried>,
    /// The index of the partitioned table that it is part of.
    pub(super) parent: Option<u32>,
    pub(super) comment: Option<String>,
}

impl IndexFacts {
    /// A CREATE INDEX CONCURRENTLY has failed, or is at work. An index of a partitioned table is not valid, either, before
    /// all its parts are attached.
    pub(super) fn is_cut_short(&self) -> bool {
        self.kind == 'i' && !self.valid
    }
}

/// A check or a foreign key.
#[derive(Clone, Debug)]
pub(super) struct ConstraintFacts {
    pub(super) table: u32,
    pub(super) name: String,
    /// `c` or `f`.
    pub(super) kind: char,
    /// Without NOT VALID.
    pub(super) definition: String,
    pub(super) valid: bool,
    /// The table that a foreign key refers to: its number, and its name as this server writes it.
    pub(super) refers_to: Option<(u32, String)>,
    /// It comes with the one of the partitioned table.
    pub(super) inherited: bool,
    pub(super) comment: Option<String>,
}

/// A trigger, a rule, a policy or an object of extended statistics.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) table: u32,
    /// Of statistics with its schema, and quoted where needed.
    pub(super) name: String,
    /// The whole statement that makes it.
    pub(super) definition: String,
    /// It acts for ordinary sessions (`tgenabled` O or A); always true for what cannot be turned off.
    pub(super) enabled: bool,
    /// It acts on replicated rows too, Segue's among them.
    pub(super) always: bool,
    pub(super) comment: Option<String>,
}

/// A sequence that belongs to a column.
#[derive(Clone, Debug)]
pub(super) struct SequenceFacts {
    pub(super) oid: u32,
    pub(super) table: u32,
    pub(super) column: String,
    pub(super) name: QualifiedName,
    /// What ALTER SEQUENCE says of it.
    pub(super) definition: String,
    pub(super) identity: bool,
    pub(super) comment: Option<String>,
}

/// One privilege of one role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    /// On what: `TABLE`, `SEQUENCE`, `SCHEMA`.
    pub(super) kind: &'static str,
    /// The table or sequence.
    pub(super) oid: u32,
    /// A column of the table.
    pub(super) column: Option<String>,
    /// `None` is PUBLIC.
    pub(super) grantee: Option<String>,
    pub(super) privilege: String,
    pub(super) grantable: bool,
}

/// A schema that holds one of the tables.
#[derive(Clone, Debug)]
pub(super) struct SchemaFacts {
    pub(super) oid: u32,
    pub(super) name: String,
    /// It may do everything there without a grant.
    pub(super) owner: String,
}

/// Something of one table.
pub(super) trait OfTable {
    /// The table's number.
    fn table(&self) -> u32;
}

macro_rules! of_table {
    ($($kind:ty),*) => { $(impl OfTable for $kind { fn table(&self) -> u32 { self.table } })* };
}
of_table!(ColumnFacts, IndexFacts, ConstraintFacts, Attached, SequenceFacts);

impl OfTable for (u32, String) {
    fn table(&self) -> u32 {
        self.0
    }
}

/// Those of one table, among all in the order of their tables' numbers: there may be as many as there are columns of ten
/// thousand partitions.
pub(super) fn of<T: OfTable>(all: &[T], table: Option<u32>) -> &[T] {
    let Some(table) = table else { return &[] };
    let rest = &all[all.partition_point(|one| one.table() < table)..];
    &rest[..rest.partition_point(|one| one.table() == table)]
}

fn in_order<T: OfTable>(mut all: Vec<T>) -> Vec<T> {
    all.sort_by_key(OfTable::table);
    all
}

/// Everything about the tables on one side; each list of what belongs to one is in the order of their numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// `server_version_num`.
    pub(super) version: i32,
    /// Roots and their partitions, roots first.
    pub(super) relations: Vec<Relation>,
    pub(super) columns: Vec<ColumnFacts>,
    pub(super) indexes: Vec<IndexFacts>,
    pub(super) constraints: Vec<ConstraintFacts>,
    pub(super) triggers: Vec<Attached>,
    pub(super) rules: Vec<Attached>,
    pub(super) policies: Vec<Attached>,
    pub(super) statistics: Vec<Attached>,
    pub(super) sequences: Vec<SequenceFacts>,
    pub(super) grants: Vec<Grant>,
    pub(super) schemas: Vec<SchemaFacts>,
    /// Publications of tables by name, each with the table; not of all tables, nor Segue's.
    pub(super) published: Vec<(u32, String)>,
    /// Every publication that there is.
    pub(super) publications: Vec<String>,
}

impl Facts {
    /// Those that were asked for and are there, by their place in the list.
    pub(super) fn roots(&self) -> HashMap<usize, &Relation> {
        self.relations.iter().filter(|r| r.level == 0).map(|r| (r.root, r)).collect()
    }

    /// Reads all of it. Inside a transaction of the caller's it sees what that has made.
    pub(super) async fn read(client: &Client, names: &[QualifiedName]) -> Outcome<Facts> {
        let version = rows(client, "SELECT current_setting('server_version_num')::int", &[]).await?;
        let version: i32 = version.first().map_or(0, |row| row.get(0));
        let relations = relations(client, names).await?;
        let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
        let shown: HashMap<u32, String> = relations.iter().map(|r| (r.oid, r.shown.clone())).collect();
        let sequences = sequences(client, &oids).await?;
        let mut granted = grants(client, "TABLE", TABLE_GRANTS, &oids).await?;
        let of_sequences: Vec<u32> = sequences.iter().map(|sequence| sequence.oid).collect();
        granted.extend(grants(client, "SEQUENCE", TABLE_GRANTS, &of_sequences).await?);
        let schemas = schemas(client, &oids).await?;
        let of_schemas: Vec<u32> = schemas.iter().map(|schema| schema.oid).collect();
        granted.extend(grants(client, "SCHEMA", SCHEMA_GRANTS, &of_schemas).await?);
        let triggers = triggers_sql(version);
        let statistics = if version >= 170_000 {
            "coalesce(s.stxstattarget, -1)"
        } else if version >= 130_000 {
            "s.stxstattarget"
        } else {
            "-1"
        };
        let statistics = STATISTICS.replace("{target}", statistics);
        Ok(Facts {
            version,
            columns: in_order(columns(client, &oids).await?),
            indexes: in_order(indexes(client, &oids, &shown).await?),
            constraints: in_order(constraints(client, &oids).await?),
            triggers: in_order(attached(client, &triggers, &oids).await?),
            rules: in_order(attached(client, RULES, &oids).await?),
            policies: in_order(policies(client, &oids).await?),
            statistics: in_order(attached(client, &statistics, &oids).await?),
            sequences: in_order(sequences),
            grants: granted,
            schemas,
            published: in_order(published(client, &oids).await?),
            publications: publications(client).await?,
            relations,
        })
    }
}

async fn rows(client: &Client, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Outcome<Vec<Row>> {
    client.query(sql, parameters).await.map_err(|e| fault_of(&e))
}

fn char_at(row: &Row, name: &str) -> char {
    row.get::<_, &str>(name).chars().next().unwrap_or(' ')
}

async fn relations(client: &Client, names: &[QualifiedName]) -> Outcome<Vec<Relation>> {
    let sql = "WITH asked AS (
             SELECT a.place, c.oid AS root, c.relkind FROM unnest($1::text[]) WITH ORDINALITY AS a(name, place)
               JOIN pg_class c ON c.oid = to_regclass(a.name)),
         tree AS (
             SELECT place, root AS oid, 0 AS level FROM asked
              UNION ALL
             SELECT a.place, t.relid::oid, t.level FROM asked a, LATERAL pg_partition_tree(a.root) t
              WHERE a.relkind = 'p' AND t.level > 0)
         SELECT t.place, t.oid, t.level, n.nspname::text, c.relname::text, c.relkind::text AS kind,
                quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS shown,
                c.relreplident::text AS identity, c.relrowsecurity, c.relforcerowsecurity,
                pg_get_userbyid(c.relowner)::text AS owner, obj_description(c.oid, 'pg_class') AS comment
           FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
          ORDER BY t.level, t.place, n.nspname, c.relname";
    let names: Vec<String> = names.iter().map(QualifiedName::sql).collect();
    let found = rows(client, sql, &[&names]).await?;
    Ok(found
        .iter()
        .map(|row| Relation {
            oid: row.get("oid"),
            name: QualifiedName::new(row.get::<_, &str>("nspname"), row.get::<_, &str>("relname")),
            shown: row.get("shown"),
            kind: char_at(row, "kind"),
            // Counted from 1 by the server.
            root: usize::try_from(row.get::<_, i64>("place")).unwrap_or(1) - 1,
            level: row.get("level"),
            replica_identity: char_at(row, "identity"),
            row_security: (row.get("relrowsecurity"), row.get("relforcerowsecurity")),
            owner: row.get("owner"),
            comment: row.get("comment"),
        })
        .collect())
}

async fn columns(client: &Client, oids: &[u32]) -> Outcome<Vec<ColumnFacts>> {
    let sql =
        "SELECT a.attrelid, a.attname::text, a.attnotnull, pg_get_expr(d.adbin, d.adrelid) AS expression,
                col_description(a.attrelid, a.attnum) AS comment, a.attgenerated::text AS generated,
                format_type(a.atttypid, a.atttypmod) AS sql_type
           FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
          WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum";
    let found = rows(client, sql, &[&oids]).await?;
    let column = |row: &Row| {
        let expression = row.get::<_, Option<&str>>("expression").map(settled);
        let how: &str = row.get("generated");
        let (default, computed) = if how.is_empty() { (expression, None) } else { (None, expression) };
        let generated = computed.map(|expression| Generated {
            sql_type: row.get("sql_type"),
            expression,
            is_virtual: how == "v",
        });
        let (table, name, not_null) = (row.get("attrelid"), row.get("attname"), row.get("attnotnull"));
        ColumnFacts { table, name, not_null, default, generated, comment: row.get("comment") }
    };
    Ok(found.iter().map(column).collect())
}

async fn indexes(client: &Client, oids: &[u32], shown: &HashMap<u32, String>) -> Outcome<Vec<IndexFacts>> {
    let sql = "SELECT i.indexrelid, i.indrelid, c.relname::text AS name, quote_ident(c.relname) AS quoted,
                c.relkind::text AS kind, pg_get_indexdef(i.indexrelid) AS definition, i.indisunique,
                i.indisvalid AND i.indisready AS valid, i.indisreplident, i.indisclustered, i.indnkeyatts,
                i.indisunique AND i.indimmediate AND i.indpred IS NULL AND NOT 0 = ANY (i.indkey::int2[])
                    AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND NOT a.attnotnull
                                       AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) AS may_identify,
                k.conname::text AS constraint_name, k.contype::text AS constraint_kind,
                pg_get_constraintdef(k.oid) AS constraint_definition, k.condeferrable,
                obj_description(k.oid, 'pg_constraint') AS constraint_comment,
                (SELECT h.inhparent FROM pg_inherits h WHERE h.inhrelid = i.indexrelid LIMIT 1) AS parent,
                obj_description(i.indexrelid, 'pg_class') AS comment
           FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
                     AND k.contype IN ('p', 'u', 'x')
          WHERE i.indrelid = ANY ($1) AND i.indislive ORDER BY i.indrelid, c.relname";
    let found = rows(client, sql, &[&oids]).await?;
    let index = |row: &Row| {
        let (table, whole): (u32, String) = (row.get("indrelid"), row.get("definition"));
        // `CREATE [UNIQUE] INDEX name ON [ONLY] table USING …`: both names may hold anything.
        let quoted: &str = row.get("quoted");
        let names = ["", "ONLY "]
            .map(|only| format!("{quoted} ON {only}{}", shown.get(&table).map_or("", String::as_str)));
        let rest = names.iter().find_map(|names| whole.split_once(names.as_str()));
        let constraint = row.get::<_, Option<String>>("constraint_name").map(|name| Carried {
            name,
            kind: char_at(row, "constraint_kind"),
            definition: settled(row.get("constraint_definition")),
            deferrable: row.get("condeferrable"),
            comment: row.get("constraint_comment"),
        });
        IndexFacts {
            oid: row.get("indexrelid"),
            table,
            name: row.get("name"),
            kind: char_at(row, "kind"),
            definition: settled(rest.map_or(whole.as_str(), |(_, rest)| rest)),
            unique: row.get("indisunique"),
            valid: row.get("valid"),
            replica_identity: row.get("indisreplident"),
            clustered: row.get("indisclustered"),
            may_identify: row.get("may_identify"),
            columns: row.get("indnkeyatts"),
            constraint,
            parent: row.get("parent"),
            comment: row.get("comment"),
        }
    };
    Ok(found.iter().map(index).collect())
}

async fn constraints(client: &Client, oids: &[u32]) -> Outcome<Vec<ConstraintFacts>> {
    // A foreign key to a partitioned table has a row for each of its partitions, too: those are the server's matter.
    let sql = "SELECT k.conrelid, k.conname::text AS name, k.contype::text AS kind, k.convalidated,
                pg_get_constraintdef(k.oid) AS definition, k.confrelid,
                quote_ident(n.nspname) || '.' || quote_ident(r.relname) AS refers_to,
                CASE k.contype WHEN 'f' THEN k.conparentid <> 0 ELSE NOT k.conislocal OR k.coninhcount > 0 END
                    AS inherited,
                obj_description(k.oid, 'pg_constraint') AS comment
           FROM pg_constraint k LEFT JOIN pg_constraint p ON p.oid = k.conparentid
                LEFT JOIN pg_class r ON r.oid = k.confrelid LEFT JOIN pg_namespace n ON n.oid = r.relnamespace
          WHERE k.conrelid = ANY ($1)
            AND (k.contype = 'c' OR k.contype = 'f' AND (k.conparentid = 0 OR p.conrelid <> k.conrelid))
          ORDER BY k.conrelid, k.conname";
    let found = rows(client, sql, &[&oids]).await?;
    Ok(found
        .iter()
        .map(|row| {
            let definition: &str = row.get("definition");
            let refers_to: Option<String> = row.get("refers_to");
            ConstraintFacts {
                table: row.get("conrelid"),
                name: row.get("name"),
                kind: char_at(row, "kind"),
                definition: settled(definition.trim_end_matches(" NOT VALID")),
                valid: row.get("convalidated"),
                refers_to: refers_to.map(|name| (row.get("confrelid"), name)),
                inherited: row.get("inherited"),
                comment: row.get("comment"),
            }
        })
        .collect())
}
