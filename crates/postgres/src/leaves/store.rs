//! What both databases have stored about the leaves of one stream, and what follows from it at a start.

use crate::birth::{StreamIdentity, enter};
use crate::catalog::{SourceRelation, drift};
use crate::error::fault_of;
use segue_engine::ports::{Outcome, Part};
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_literal;
use segue_model::table::{TableId, UnitId};
use std::collections::{HashMap, HashSet};
use tokio_postgres::{Client, Row};

/// The leaves as a start finds them.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Relations that the stream has, or is about to get: units settled, tables that are not partitioned included.
    pub live: Vec<SourceRelation>,
    /// Leaves whose rows must still go, or of which it is not known that they are gone.
    pub left: Vec<Part>,
    /// Which of `live` the publication holds.
    pub joined: HashSet<u32>,
    /// Which of `live` have other bounds than those stored.
    pub rebound: HashSet<u32>,
    /// The next number for a unit.
    pub next_unit: u32,
}

struct StoredLeaf {
    part: Part,
    followed: bool,
}

fn part_of(row: &Row) -> Part {
    let number = |name: &str| u32::try_from(row.get::<_, i32>(name)).unwrap_or(u32::MAX);
    Part {
        unit: UnitId(number("unit")),
        table: TableId(number("table_id")),
        relation: row.get("relation_oid"),
        name: QualifiedName::new(row.get::<_, &str>("schema"), row.get::<_, &str>("name")),
        condition: row.get("condition"),
    }
}

impl SourceRelation {
    /// The leaf as a part, if it is one.
    pub(crate) fn part(&self) -> Option<Part> {
        self.leaf.as_ref().map(|leaf| Part {
            unit: self.unit,
            table: self.table,
            relation: self.oid,
            name: self.name.clone(),
            condition: leaf.condition.clone(),
        })
    }
}

/// Settles which unit each leaf belongs to. `relations` are those that the catalog has now.
///
/// The publication decides which leaves the stream has. One that is neither in it nor stored is new: it is left out
/// here, and found as one that was attached. Nothing is ever counted to its table's unit only because it is there.
pub async fn settle(
    source: &Client,
    target: &Client,
    stream: &StreamIdentity,
    token: i64,
    tables: usize,
    relations: &[SourceRelation],
) -> Outcome<Known> {
    let during = |e| fault_of(&e).during("reading the leaves of this stream");
    let whose = [&stream.migration as &(dyn tokio_postgres::types::ToSql + Sync), &stream.direction.as_str()];
    let sql =
        "SELECT unit, table_id, relation_oid, schema, name, condition, backfilled_at IS NOT NULL AS followed
          FROM segue.unit WHERE migration = $1 AND direction = $2 AND left_at IS NULL";
    let rows = target.query(sql, &whose).await.map_err(during)?;
    let stored = rows.iter().map(|row| StoredLeaf { part: part_of(row), followed: row.get("followed") });
    let mut stored: HashMap<u32, StoredLeaf> = stored.map(|leaf| (leaf.part.relation, leaf)).collect();
    let sql = "SELECT coalesce(max(unit) + 1, 0) FROM segue.unit WHERE migration = $1 AND direction = $2";
    let next: i32 = target.query_one(sql, &whose).await.map_err(during)?.get(0);
    let sql = "SELECT unit, relation_oid FROM segue.unit WHERE migration = $1 AND direction = $2";
    let gone = source.query(sql, &whose).await.map_err(during)?;
    let gone: HashSet<(i32, u32)> = gone.iter().map(|row| (row.get(0), row.get(1))).collect();
    let joined = drift::published(source, &stream.publication).await?;
    let mut known = Known {
        next_unit: u32::try_from(next).unwrap_or(0).max(u32::try_from(tables).unwrap_or(u32::MAX)),
        ..Known::default()
    };
    let mut changed = Vec::new();
    for relation in relations {
        let Some(now) = relation.part() else {
            if !joined.contains(&relation.oid) {
                return Err(super::taken_out(relation, &stream.publication));
            }
            known.live.push(relation.clone());
            continue;
        };
        let published = joined.contains(&relation.oid);
        match stored.remove(&relation.oid) {
            None if published => {
                changed.push(now);
                known.live.push(relation.clone());
            }
            None => {}
            Some(StoredLeaf { part, followed }) => {
                let has_left =
                    gone.contains(&(i32::try_from(part.unit.0).unwrap_or(i32::MAX), part.relation));
                let to_join = part.is_late() && !followed;
                // It may be another table's by now: that one gets it as a new one.
                if has_left || part.table != now.table || !(published || to_join) {
                    known.left.push(part);
                    continue;
                }
                let live = SourceRelation { unit: part.unit, ..relation.clone() };
                if part.condition != now.condition {
                    known.rebound.insert(relation.oid);
                }
                if part.condition != now.condition || part.name != now.name {
                    changed.push(Part { unit: part.unit, ..now });
                }
                known.live.push(live);
            }
        }
    }
    known.left.extend(stored.into_values().map(|leaf| leaf.part));
    remember(target, stream, token, &changed).await?;
    known.joined = joined;
    Ok(known)
}

/// The statement that stores a part on the target.
fn remember_sql(migration: &str, direction: &str, part: &Part) -> String {
    format!(
        "{} ON CONFLICT (migration, direction, unit, relation_oid)
         DO UPDATE SET schema = excluded.schema, name = excluded.name, condition = excluded.condition",
        insert_sql(migration, direction, part)
    )
}

fn insert_sql(migration: &str, direction: &str, part: &Part) -> String {
    let Part { unit, table, relation, name, condition } = part;
    format!(
        "INSERT INTO segue.unit AS u (migration, direction, unit, table_id, relation_oid, schema, name, condition)
         VALUES ({}, {}, {}, {}, {relation}, {}, {}, {})",
        quote_literal(migration),
        quote_literal(direction),
        unit.0,
        table.0,
        quote_literal(&name.schema),
        quote_literal(&name.name),
        quote_literal(condition),
    )
}

/// Stores parts on the target, under the token.
async fn remember(target: &Client, stream: &StreamIdentity, token: i64, parts: &[Part]) -> Outcome<()> {
    let direction = stream.direction.as_str();
    let statements = parts.iter().map(|part| remember_sql(&stream.migration, direction, part)).collect();
    under_token(target, (&stream.migration, token), statements).await
}

/// Stores the leaves that a stream is born with, before the target is bound to it: one that is dropped later is known
/// then, even if nobody looks at that moment. Whatever a birth that was cut short has stored is forgotten.
pub async fn remember_born(
    target: &Client,
    stream: &StreamIdentity,
    token: i64,
    relations: &[SourceRelation],
) -> Outcome<()> {
    under_token(target, (&stream.migration, token), born_sql(stream, relations)).await
}

/// The statements that store the leaves that a stream is born with, and no others.
pub(crate) fn born_sql(stream: &StreamIdentity, relations: &[SourceRelation]) -> Vec<String> {
    let direction = stream.direction.as_str();
    let forget = format!(
        "DELETE FROM segue.unit WHERE migration = {} AND direction = {}",
        quote_literal(&stream.migration),
        quote_literal(direction)
    );
    let parts = relations.iter().filter_map(SourceRelation::part);
    let store = parts.map(|part| remember_sql(&stream.migration, direction, &part));
    std::iter::once(forget).chain(store).collect()
}

/// Remembers on the source that these leaves were found gone, before the stream's reader passes over the first row of them:
/// the next start has them leave as well, even if they are attached again by then. Waits for no standby.
pub(super) async fn remember_gone(
    source: &Client,
    stream: &StreamIdentity,
    token: i64,
    parts: &[Part],
) -> Outcome<()> {
    let direction = stream.direction.as_str();
    let gone = parts.iter().map(|part| {
        let insert = insert_sql(&stream.migration, direction, part);
        format!("{insert} ON CONFLICT (migration, direction, unit, relation_oid) DO NOTHING")
    });
    under(source, (&stream.migration, token), gone.collect(), "local").await
}

async fn under_token(client: &Client, authority: (&str, i64), statements: Vec<String>) -> Outcome<()> {
    under(client, authority, statements, "on").await
}

async fn under(
    client: &Client,
    authority: (&str, i64),
    statements: Vec<String>,
    synchronous_commit: &str,
) -> Outcome<()> {
    if statements.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "BEGIN; {}; SET LOCAL synchronous_commit = {synchronous_commit}; {}; COMMIT",
        enter(authority),
        statements.join("; ")
    );
    if let Err(error) = client.batch_execute(&sql).await {
        client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
        return Err(fault_of(&error).during("storing the leaves of this stream"));
    }
    Ok(())
}

/// Parts that came late and are not in the stream's hands yet, and the conditions of all that came late.
pub(crate) async fn late(
    target: &Client,
    migration: &str,
    direction: &str,
) -> Outcome<(Vec<Part>, Vec<Part>)> {
    let sql = "SELECT unit, table_id, relation_oid, schema, name, condition, backfilled_at IS NOT NULL AS followed
          FROM segue.unit WHERE migration = $1 AND direction = $2 AND left_at IS NULL AND unit <> table_id ORDER BY unit";
    let rows = target.query(sql, &[&migration, &direction]).await.map_err(|e| fault_of(&e))?;
    let pending = rows.iter().filter(|row| !row.get::<_, bool>("followed")).map(part_of).collect();
    Ok((pending, rows.iter().map(part_of).collect()))
}

/// Stores a part on the target.
pub(crate) async fn store(
    target: &Client,
    (migration, direction, token): (&str, &str, i64),
    part: &Part,
) -> Outcome<()> {
    under_token(target, (migration, token), vec![remember_sql(migration, direction, part)]).await
}

/// What is remembered of a part at its end or when its copy was handed over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Followed,
    Left,
}

/// Marks a part on the target.
pub(crate) async fn mark(
    target: &Client,
    (migration, direction, token): (&str, &str, i64),
    part: &Part,
    mark: Mark,
) -> Outcome<()> {
    let column = match mark {
        Mark::Followed => "backfilled_at",
        Mark::Left => "left_at",
    };
    let whose = format!(
        "migration = {} AND direction = {} AND unit = {}",
        quote_literal(migration),
        quote_literal(direction),
        part.unit.0
    );
    let mut statements = vec![format!(
        "UPDATE segue.unit SET {column} = clock_timestamp() WHERE {whose} AND relation_oid = {}",
        part.relation
    )];
    if mark == Mark::Left && part.is_late() {
        statements.push(format!("DELETE FROM segue.region WHERE {whose}"));
    }
    under_token(target, (migration, token), statements).await
}
