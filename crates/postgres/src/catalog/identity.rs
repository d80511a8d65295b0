//! What identifies a row: the replica identity of the source's relations, and the index behind it on the target. No I/O.

use super::read::{Index, Relation, Side};
use super::refusal;
use segue_engine::fault::Fault;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;

/// What the old images of changes carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// These columns, in the order of the index behind them.
    Key(Vec<String>),
    /// The whole row, and nothing smaller identifies it.
    WholeRow,
}

/// The keys one relation offers, the best one first.
struct Offer {
    keys: Vec<Vec<String>>,
    /// Old images are whole rows: any key will do, or none.
    full: bool,
}

fn indexes(side: &Side, oid: u32) -> &[Index] {
    side.indexes.get(&oid).map_or(&[], Vec::as_slice)
}

/// Unique, at once, for every row, on columns that are NOT NULL and travel.
fn is_usable(index: &Index, travelling: &[&str]) -> bool {
    index.unique
        && index.immediate
        && index.plain
        && index.all_not_null
        && !index.columns.is_empty()
        && index.columns.iter().all(|column| travelling.contains(&column.as_str()))
}

/// Usable indexes, the primary key first, then the narrowest.
fn usable<'a>(side: &'a Side, oid: u32, travelling: &[&str]) -> Vec<&'a Index> {
    let mut found: Vec<&Index> = indexes(side, oid).iter().filter(|i| is_usable(i, travelling)).collect();
    found.sort_by_key(|i| (!i.primary, i.columns.len(), i.pages));
    found
}

fn same_columns(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().all(|column| b.contains(column))
}

fn index_remedy(relation: &Relation, index: &Index) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY USING INDEX {};", relation.name.sql(), quote_ident(&index.name))
}

fn full_remedy(name: &QualifiedName) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY FULL;", name.sql())
}

/// The key that the old images of one relation carry, or why there is none.
fn offer(side: &Side, relation: &Relation, travelling: &[&str]) -> Result<Offer, Fault> {
    let usable = usable(side, relation.oid, travelling);
    let all = indexes(side, relation.oid);
    let chosen = match relation.replica_identity {
        'f' => {
            return Ok(Offer { keys: usable.iter().map(|i| i.columns.clone()).collect(), full: true });
        }
        'i' => all.iter().find(|i| i.replica_identity),
        'd' => all.iter().find(|i| i.primary),
        _ => None,
    };
    let Some(chosen) = chosen else {
        let what = match relation.replica_identity {
            'n' => "has REPLICA IDENTITY NOTHING: its updates and deletes could not be repeated",
            'i' => "has lost the index of its replica identity: its updates and deletes cannot be repeated",
            _ => "has no primary key: its updates and deletes could not be repeated",
        };
        return Err(refusal("SEGUE-NO-KEY", &relation.name, what, remedy(side, relation, &usable)));
    };
    if !chosen.immediate {
        let constraint = chosen.constraint.as_deref().unwrap_or(&chosen.name);
        let what = format!(
            "is identified by the deferrable constraint {constraint}, which PostgreSQL cannot use for replication: \
             updates would fail on the {} as soon as the table is published",
            side.label
        );
        return Err(refusal("SEGUE-DEFERRABLE-KEY", &relation.name, what, remedy(side, relation, &usable)));
    }
    if !is_usable(chosen, travelling) {
        let what = format!("is identified by the index {}, which does not cover every row", chosen.name);
        return Err(refusal("SEGUE-NO-KEY", &relation.name, what, remedy(side, relation, &usable)));
    }
    Ok(Offer { keys: vec![chosen.columns.clone()], full: false })
}

fn remedy(side: &Side, relation: &Relation, usable: &[&Index]) -> String {
    let side = side.label;
    match usable.first() {
        Some(index) => format!("on the {side}: {}", index_remedy(relation, index)),
        None => format!(
            "on the {side}: {} -- or, better, add a primary key: this way every update and delete writes the whole old row to the log",
            full_remedy(&relation.name)
        ),
    }
}

/// What identifies the rows of `root` in the stream, agreed between all its relations.
pub(super) fn carried(
    side: &Side,
    root: &Relation,
    relations: &[Relation],
    travelling: &[&str],
) -> Result<Carried, Vec<Fault>> {
    let mut offers = Vec::new();
    let mut faults = Vec::new();
    for relation in relations {
        match offer(side, relation, travelling) {
            Ok(offer) => offers.push(offer),
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    if root.kind == 'p' {
        // A leaf's index says nothing about other leaves: the key must be unique in the whole table.
        let keys: Vec<_> = usable(side, root.oid, travelling).iter().map(|i| i.columns.clone()).collect();
        offers.push(Offer { keys, full: offers.iter().all(|offer| offer.full) && !offers.is_empty() });
    }
    let first = offers.iter().find(|offer| !offer.full).or(offers.first());
    let agreed = first.and_then(|first| {
        first
            .keys
            .iter()
            .find(|key| offers.iter().all(|offer| offer.keys.iter().any(|other| same_columns(key, other))))
    });
    match agreed {
        Some(key) => Ok(Carried::Key(key.clone())),
        None if !offers.is_empty() && offers.iter().all(|offer| offer.full) => Ok(Carried::WholeRow),
        None => {
            let remedies: Vec<String> = relations.iter().map(|r| full_remedy(&r.name)).collect();
            let what = "has no key that is unique in the whole table and that all its partitions use as replica identity";
            let next_step = format!(
                "on the {}: {} -- or, better, add a primary key to the partitioned table",
                side.label,
                remedies.join(" ")
            );
            Err(vec![refusal("SEGUE-NO-KEY", &root.name, what, next_step)])
        }
    }
}

/// How the target backs a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// Only a deferrable constraint does.
    pub(super) deferrable: bool,
}

/// The unique index behind `key` (target names) on the target table.
pub(super) fn backing(target: &Side, table: &Relation, key: &[String]) -> Result<Backing, Fault> {
    let matching = |index: &&Index| index.unique && index.plain && same_columns(&index.columns, key);
    let found: Vec<&Index> = indexes(target, table.oid).iter().filter(matching).collect();
    if found.is_empty() {
        let columns: Vec<String> = key.iter().map(|column| quote_ident(column)).collect();
        let next_step = format!(
            "on the {}: ALTER TABLE {} ADD PRIMARY KEY ({});",
            target.label,
            table.name.sql(),
            columns.join(", ")
        );
        let what = format!(
            "has no unique index on ({}) on the {}: rows could not be found there",
            key.join(", "),
            target.label
        );
        return Err(refusal("SEGUE-TARGET-KEY", &table.name, what, next_step));
    }
    Ok(Backing { deferrable: !found.iter().any(|index| index.immediate) })
}

/// Names of target indexes that rows of different regions could collide in while the backfill runs.
pub(super) fn colliding(target: &Side, relations: &[&Relation], key: Option<&[String]>) -> Vec<String> {
    let may_collide = |index: &&Index| {
        // Rows with different keys cannot collide in an index that holds the whole key.
        let holds_key = key.is_some_and(|key| key.iter().all(|column| index.columns.contains(column)));
        !index.inherited && (index.exclusion || index.unique && !holds_key)
    };
    let found = relations.iter().flat_map(|r| indexes(target, r.oid).iter().filter(may_collide));
    let mut names: Vec<String> = found.map(|index| index.name.clone()).collect();
    names.sort();
    names.dedup();
    names
}
