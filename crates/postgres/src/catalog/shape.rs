//! From the facts of both catalogs to one [`Table`], or to every reason why not. No I/O.

use super::hash::{self, Hashes};
use super::identity::{self, Carried};
use super::read::{ColumnFacts, Relation, Side};
use super::{SourceRelation, column_type, refusal};
use segue_engine::fault::Fault;
use segue_model::change::Leaf;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::table::{Column, Estimate, Identity, Key, Table, TableId, UnitId};
use std::collections::HashMap;

/// What became of one pair of names.
#[derive(Default)]
pub(super) struct Built {
    pub(super) table: Option<Table>,
    pub(super) relations: Vec<SourceRelation>,
    pub(super) refusals: Vec<Fault>,
    pub(super) warnings: Vec<String>,
}

/// Bytes of a row that was never analyzed.
const ROW_BYTES_GUESSED: u64 = 100;

/// One pair of tables and where its facts are.
struct Pair<'a> {
    source: &'a Side,
    target: &'a Side,
    from: &'a Relation,
    to: &'a Relation,
}

/// Builds table number `at`, which becomes unit `at` as well.
pub(super) fn build(
    source: &Side,
    target: &Side,
    at: usize,
    names: (&QualifiedName, &QualifiedName),
) -> Built {
    let mut built = Built::default();
    let (from, to) = match (&source.roots[at], &target.roots[at]) {
        (Some(from), Some(to)) => (from, to),
        (from, _) => {
            built.refusals.push(missing(source, from.is_some(), target, names));
            return built;
        }
    };
    let pair = Pair { source, target, from, to };
    let relations = source.relations.get(&from.oid).map_or(&[][..], Vec::as_slice);
    built.refusals.extend(relation_refusals(&pair, relations));
    let columns = columns(&pair, &mut built);
    let travelling: Vec<&str> = columns.iter().map(|(_, from, _)| from.name.as_str()).collect();
    let carried = match identity::carried(source, from, relations, &travelling) {
        Ok(carried) => carried,
        Err(faults) => {
            built.refusals.extend(faults);
            return built;
        }
    };
    let id = TableId(u32::try_from(at).unwrap_or(u32::MAX));
    let (identity, one_region) = match identity(&pair, &carried, &columns) {
        Ok(found) => found,
        Err(fault) => {
            built.refusals.push(fault);
            return built;
        }
    };
    built.relations = relations.iter().map(|relation| source_relation(&pair, relation, id.into())).collect();
    let estimate = estimate(relations);
    if let Some(why) = one_region.as_ref().filter(|_| estimate.bytes > ONE_SNAPSHOT_BYTES_MAX) {
        built.warnings.push(one_snapshot(&from.name, &estimate, why));
    }
    if built.refusals.is_empty() {
        built.table = Some(Table {
            id,
            source: from.name.clone(),
            target: to.name.clone(),
            columns: columns.into_iter().map(|(column, _, _)| column).collect(),
            identity,
            one_region,
            estimate,
        });
    }
    built
}

/// A table above this that is copied as one region is worth a warning.
pub(crate) const ONE_SNAPSHOT_BYTES_MAX: u64 = 256 << 20;
/// What a copy is sure to do in a second, for the estimate in that warning.
const COPY_BYTES_PER_S: u64 = 50 << 20;

/// A large table of one region holds a snapshot for all of its copy.
fn one_snapshot(name: &QualifiedName, estimate: &Estimate, why: &str) -> String {
    format!(
        "{name} (about {} MiB) is copied under one snapshot, because {why}: until that is done, for some {} s, the source \
         cannot clean up old rows. With a primary key, and its other unique indexes on the target made after the backfill, \
         it is copied in small pieces",
        estimate.bytes >> 20,
        estimate.bytes / COPY_BYTES_PER_S + 1
    )
}

fn missing(
    source: &Side,
    source_exists: bool,
    target: &Side,
    (from, to): (&QualifiedName, &QualifiedName),
) -> Fault {
    if !source_exists {
        let next_step = "correct the name in the spec, or create the table";
        let what = format!("does not exist on the {}", source.label);
        return refusal("SEGUE-NO-TABLE", from, what, next_step);
    }
    let quoted = quote_literal(&from.sql());
    refusal(
        "SEGUE-NO-TABLE",
        to,
        format!("does not exist on the {}", target.label),
        format!(
            "let Segue create it, with `schema: {{ create: missing }}` in the spec; or \
             pg_dump --schema-only --table {quoted} \"${}_URL\" | psql \"${}_URL\"",
            source.label.to_uppercase(),
            target.label.to_uppercase()
        ),
    )
}

/// The published relation.
fn source_relation(pair: &Pair<'_>, relation: &Relation, unit: UnitId) -> SourceRelation {
    let Pair { source, target, from, to } = pair;
    let partitioned = Partitioned { names: &source.partitioned, hashes: &source.hashes };
    let is_alike = |here: u32, there: &QualifiedName| {
        let hashes = source.hashes.get(&here);
        target.partitioned.iter().any(|(oid, name)| name == there && target.hashes.get(oid) == hashes)
    };
    let told = |condition: &String| leaf_condition(condition, partitioned, (&from.name, &to.name), is_alike);
    let leaf = |condition: &String| Leaf { name: relation.name.to_string(), condition: told(condition) };
    SourceRelation {
        oid: relation.oid,
        table: TableId(unit.0),
        unit,
        name: relation.name.clone(),
        leaf: relation.condition.as_ref().map(leaf),
    }
}

/// The partitioned tables of the source, by number.
#[derive(Clone, Copy)]
pub(super) struct Partitioned<'a> {
    pub(super) names: &'a HashMap<u32, QualifiedName>,
    pub(super) hashes: &'a Hashes,
}

/// A leaf's partition constraint as the target can evaluate it. `is_alike`: whether the target's table of this name is
/// partitioned as the source's of this number is.
pub(super) fn leaf_condition(
    condition: &str,
    partitioned: Partitioned<'_>,
    roots: (&QualifiedName, &QualifiedName),
    is_alike: impl Fn(u32, &QualifiedName) -> bool,
) -> String {
    hash::told(condition, partitioned.hashes, |oid| {
        target_of(oid, partitioned.names, roots).filter(|name| is_alike(oid, name))
    })
}

/// The target's table for a partitioned source table: of the same name below the root.
fn target_of(
    oid: u32,
    partitioned: &HashMap<u32, QualifiedName>,
    (from, to): (&QualifiedName, &QualifiedName),
) -> Option<QualifiedName> {
    let name = partitioned.get(&oid)?;
    if name == from {
        return Some(to.clone());
    }
    let schema = if name.schema == from.schema { &to.schema } else { &name.schema };
    Some(QualifiedName::new(schema, &name.name))
}

fn estimate(relations: &[Relation]) -> Estimate {
    let bytes: u64 = relations.iter().map(|r| u64::try_from(r.bytes).unwrap_or(0)).sum();
    // -1 or 0: never analyzed. A float of the catalog, far below 2^53.
    let counted: u64 = relations.iter().map(|r| r.rows.max(0.0) as u64).sum();
    let rows = if counted == 0 { bytes / ROW_BYTES_GUESSED } else { counted };
    Estimate { rows, bytes }
}

fn relation_refusals(pair: &Pair<'_>, relations: &[Relation]) -> Vec<Fault> {
    let mut found = Vec::new();
    let (source, target) = (pair.source.label, pair.target.label);
    let sources = relations.iter().chain((pair.from.kind == 'p').then_some(pair.from));
    for relation in sources {
        found.extend(kind_refusal(relation, source));
        if relation.row_security {
            let what = format!(
                "has row-level security that applies to Segue's role on the {source}: copy and verification would miss rows"
            );
            let next_step = bypass(pair.source, source);
            found.push(refusal("SEGUE-ROW-SECURITY", &relation.name, what, next_step));
        }
        if !relation.owned {
            let what =
                format!("does not belong to Segue's role on the {source}: only its owner can publish it");
            let role = quote_ident(&pair.source.server.role);
            let next_step = if relation.owner_is_superuser {
                format!(
                    "`segue plan --grants={source}` prints what gives it an owner that is no superuser, and that to {role}"
                )
            } else {
                format!("on the {source}: GRANT {} TO {role};", quote_ident(&relation.owner))
            };
            found.push(refusal("SEGUE-PRIVILEGE", &relation.name, what, next_step));
        }
        found.extend(lacking(pair.source, relation));
    }
    let leaves = pair.target.relations.get(&pair.to.oid).map_or(&[][..], Vec::as_slice);
    found.extend(kind_refusal(pair.to, target));
    found
        .extend(leaves.iter().filter(|leaf| leaf.oid != pair.to.oid).filter_map(|l| kind_refusal(l, target)));
    if pair.to.row_security {
        let what = format!("has row-level security that applies to Segue's role on the {target}");
        let next_step = bypass(pair.target, target);
        found.push(refusal("SEGUE-ROW-SECURITY", &pair.to.name, what, next_step));
    }
    found.extend(lacking(pair.target, pair.to));
    found
}

/// How Segue's role is shown all rows.
fn bypass(facts: &Side, side: &str) -> String {
    let role = quote_ident(&facts.server.role);
    format!(
        "on the {side}: ALTER ROLE {role} BYPASSRLS; -- or log in as the owner without FORCE ROW LEVEL SECURITY"
    )
}

fn lacking(facts: &Side, relation: &Relation) -> Option<Fault> {
    let (side, role) = (facts.label, quote_ident(&facts.server.role));
    if relation.lacks.is_empty() {
        return None;
    }
    let privileges = relation.lacks.join(", ");
    let what = format!("cannot be used by Segue's role on the {side}: it lacks {privileges}");
    let next_step = format!("on the {side}: GRANT {privileges} ON {} TO {role};", relation.name.sql());
    Some(refusal("SEGUE-PRIVILEGE", &relation.name, what, next_step))
}

fn kind_refusal(relation: &Relation, side: &str) -> Option<Fault> {
    let (kind, next_step) = match (relation.kind, relation.persistence) {
        ('r' | 'p', 'p') => return None,
        ('r' | 'p', 'u') => (
            "an unlogged table",
            format!("on the {side}: ALTER TABLE {} SET LOGGED; -- or leave it out", relation.name.sql()),
        ),
        ('r' | 'p', _) => ("a temporary table", "leave it out".to_owned()),
        ('v', _) => ("a view", "leave it out: views move with the schema, not with the rows".to_owned()),
        ('m', _) => ("a materialized view", "leave it out, and REFRESH it after the move".to_owned()),
        ('f', _) => ("a foreign table", "leave it out: its rows are in another database".to_owned()),
        _ => ("not a table", "leave it out".to_owned()),
    };
    let what = format!("is {kind} on the {side}: its changes are not in the log that Segue follows");
    Some(refusal("SEGUE-NOT-A-TABLE", &relation.name, what, next_step))
}

type Travelling<'a> = Vec<(Column, &'a ColumnFacts, &'a ColumnFacts)>;

/// The columns that travel, each with both sides' facts.
fn columns<'a>(pair: &Pair<'a>, built: &mut Built) -> Travelling<'a> {
    let of = |side: &'a Side, root: &Relation| side.columns.get(&root.oid).map_or(&[][..], Vec::as_slice);
    let (sources, targets) = (of(pair.source, pair.from), of(pair.target, pair.to));
    let mut travelling = Vec::new();
    for from in sources {
        let to = targets.iter().find(|to| to.name == from.name);
        if let Some(fault) = column_refusal(pair, from, to) {
            built.refusals.push(fault);
        } else if let (Some(to), false) = (to, from.generated) {
            travelling.push((column(pair, from, to), from, to));
            if column_type::may_name_large_objects(pair.source, from) {
                built.warnings.push(format!(
                    "{}.{} may hold numbers of large objects: the numbers travel, the objects do not",
                    pair.from.name, from.name
                ));
            }
            if from.identity != to.identity {
                built.warnings.push(format!(
                    "{}.{} is not the same kind of identity column on both sides",
                    pair.from.name, from.name
                ));
            }
        }
    }
    for extra in targets.iter().filter(|to| !sources.iter().any(|from| from.name == to.name)) {
        if extra.not_null && !extra.has_default && extra.identity.is_none() && !extra.generated {
            let column = quote_ident(&extra.name);
            let side = pair.target.label;
            let what = format!("has the column {column} on the {side} only, NOT NULL and without a default");
            let next_step = format!(
                "on the {side}: ALTER TABLE {} ALTER COLUMN {column} DROP NOT NULL; -- or give it a default",
                pair.to.name.sql()
            );
            built.refusals.push(refusal("SEGUE-COLUMN", &pair.to.name, what, next_step));
        }
    }
    travelling
}

fn column(pair: &Pair<'_>, from: &ColumnFacts, to: &ColumnFacts) -> Column {
    Column {
        source: from.name.clone(),
        target: to.name.clone(),
        target_type: pair.target.types.get(&to.type_oid).map(|t| t.sql.clone()).unwrap_or_default(),
        transport: column_type::transport(pair.source, pair.target, from, to),
        array: column_type::array_form(pair.target, to),
        nullable: !to.not_null,
        identity_always: to.identity == Some('a'),
    }
}

fn column_refusal(pair: &Pair<'_>, from: &ColumnFacts, to: Option<&ColumnFacts>) -> Option<Fault> {
    let column = quote_ident(&from.name);
    let (source, target) = (pair.source.label, pair.target.label);
    let alter = format!("on the {target}: ALTER TABLE {}", pair.to.name.sql());
    let (what, next_step) = match to {
        None if from.generated => return None,
        None => (
            format!("has no column {column} on the {target}"),
            format!("{alter} ADD COLUMN {column} {};", from.shown_type),
        ),
        Some(to) if from.generated && to.generated => return None,
        Some(to) if from.generated => (
            format!(
                "computes the column {column} on the {source}, and stores it plainly on the {target}: the log does not carry it"
            ),
            format!(
                "{alter} DROP COLUMN {column}; and add it as GENERATED ALWAYS AS (…) {}",
                if to.not_null { "NOT NULL" } else { "STORED" }
            ),
        ),
        Some(to) if to.generated => (
            format!(
                "computes the column {column} on the {target}, and stores it plainly on the {source}: values could differ"
            ),
            format!("{alter} ALTER COLUMN {column} DROP EXPRESSION;"),
        ),
        Some(to) => {
            if let Some(why) = column_type::mismatch(pair.source, pair.target, from, to) {
                let remedy = column_type::missing_labels(pair.source, pair.target, from, to)
                    .or_else(|| column_type::made_anew(pair.source, pair.target, from, to));
                (
                    format!("has the column {column} in another form on the {target}: {why}"),
                    remedy.unwrap_or_else(|| {
                        format!("{alter} ALTER COLUMN {column} TYPE {};", from.shown_type)
                    }),
                )
            } else if to.not_null && !from.not_null {
                (
                    format!("has the column {column} NOT NULL on the {target} only"),
                    format!(
                        "{alter} ALTER COLUMN {column} DROP NOT NULL; -- or set it NOT NULL on the {source}"
                    ),
                )
            } else {
                return None;
            }
        }
    };
    Some(refusal("SEGUE-COLUMN", &pair.from.name, what, next_step))
}

/// The identity of the table's rows, and why it must be copied as one region.
fn identity(
    pair: &Pair<'_>,
    carried: &Carried,
    columns: &Travelling<'_>,
) -> Result<(Identity, Option<String>), Fault> {
    let leaves = pair.target.relations.get(&pair.to.oid).map_or(&[][..], Vec::as_slice);
    let targets: Vec<&Relation> =
        std::iter::once(pair.to).chain(leaves.iter().filter(|l| l.oid != pair.to.oid)).collect();
    let Carried::Key(key) = carried else {
        return Ok((Identity::WholeRow, Some("it has no key".to_owned())));
    };
    let backing = identity::backing(pair.target, pair.to, key)?;
    let places: Vec<usize> = key
        .iter()
        .filter_map(|name| columns.iter().position(|(column, _, _)| column.source == *name))
        .collect();
    let facts = |at: &usize| (columns[*at].1, columns[*at].2);
    let loose = places.iter().copied().find(|at| {
        let (from, to) = facts(at);
        !column_type::is_bytewise(pair.source, pair.target, from, to)
    });
    let colliding = identity::colliding(pair.target, &targets, Some(key));
    let one_region = match (loose, colliding.first()) {
        (Some(at), _) => {
            let column = columns[at].1;
            Some(format!(
                "equal values of its key column {} ({}) can be written differently",
                column.name, column.shown_type
            ))
        }
        (None, Some(_)) => {
            Some(format!("the target must keep {} unique while rows arrive", colliding.join(", ")))
        }
        (None, None) => None,
    };
    let key = Key {
        order: places.iter().map(|at| column_type::key_order(pair.source, facts(at).0)).collect(),
        ordered_alike: places
            .iter()
            .map(facts)
            .all(|(from, to)| column_type::orders_alike(pair.source, pair.target, from, to)),
        columns: places,
        bytewise: loose.is_none(),
        target_deferrable: backing.deferrable,
    };
    Ok((Identity::Key(key), one_region))
}
