//! What the tables have on one side and lack on the other, and the statements that mend it. Pure.
//!
//! Compared is what an application would miss: how rows are found (indexes), what rows may be (constraints, and whether they
//! hold for the rows that are there), what happens to them (triggers, rules, defaults, what columns are computed by), who may
//! see and change them (owners, privileges, row-level security), how values are given (sequences), and what people are told
//! (comments). Names of indexes and constraints matter only where two would be called the same.
//!
//! Partitions are compared with those of the same name; a target that is cut otherwise is compared as a whole.

mod constraints;
mod indexes;
mod rest;

pub(super) use indexes::object;

use super::facts::{Facts, IndexFacts, Relation};
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_literal;
use std::collections::{HashMap, HashSet};

/// What kind of thing is lacking, in the order in which it can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An index of a table or a leaf.
    Index,
    /// An index of a partitioned table, whose parts are made before.
    PartitionedIndex,
    /// An index of a partition that is not part of the partitioned table's.
    AttachedIndex,
    /// A check, an exclusion, NOT NULL, or a unique constraint that can be deferred.
    Constraint,
    /// A foreign key.
    ForeignKey,
    /// A column's default.
    Default,
    /// What a column is computed by.
    Generated,
    /// How a sequence counts.
    Sequence,
    /// Extended statistics.
    Statistics,
    /// A trigger.
    Trigger,
    /// A rule.
    Rule,
    /// A policy of row-level security.
    Policy,
    /// Row-level security itself.
    RowSecurity,
    /// What the log says of a changed row.
    ReplicaIdentity,
    /// The index that CLUSTER goes by.
    Cluster,
    /// Who owns it.
    Owner,
    /// What a role may do.
    Privilege,
    /// A comment.
    Comment,
    /// A publication of the application's that the table is in.
    Publication,
}

impl Kind {
    /// Whether it depends on roles, which each server has for itself.
    pub(super) fn is_of_roles(self) -> bool {
        match self {
            Kind::Owner | Kind::Privilege => true,
            Kind::Index
            | Kind::PartitionedIndex
            | Kind::AttachedIndex
            | Kind::Constraint
            | Kind::ForeignKey
            | Kind::Default
            | Kind::Generated
            | Kind::Sequence
            | Kind::Statistics
            | Kind::Trigger
            | Kind::Rule
            | Kind::Policy
            | Kind::RowSecurity
            | Kind::ReplicaIdentity
            | Kind::Cluster
            | Kind::Comment
            | Kind::Publication => false,
        }
    }

    /// Whether it is made with a table. What is published is for somebody who follows the other side; it is moved by whoever
    /// knows that, when the writes move. Generated columns come with their table, and are not made anew over its rows.
    pub(super) fn is_made(self) -> bool {
        !matches!(self, Kind::Publication | Kind::Generated)
    }

    /// Whether it is asked of tables that Segue has not made. How the log speaks of rows is each stream's own matter, and
    /// checked with its plan.
    pub(super) fn is_for_all(self) -> bool {
        !matches!(self, Kind::ReplicaIdentity | Kind::Cluster)
    }
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// The side that lacks it, and on which the remedy is run: `source` or `target`.
    pub side: &'static str,
    /// The table there.
    pub table: QualifiedName,
    /// The thing, with its kind: `index orders_by_customer`.
    pub object: String,
    /// What is the matter with it: `is missing`.
    pub what: String,
    /// The statements that make it equal, to be run one after the other, each by itself.
    pub remedy: Vec<String>,
}

impl Finding {
    /// Whether it is about which rows there may be, or what happens to them.
    pub fn is_of_rows(&self) -> bool {
        match self.kind {
            Kind::Constraint | Kind::ForeignKey | Kind::Trigger | Kind::Rule | Kind::Generated => true,
            Kind::Index | Kind::PartitionedIndex => !self.object.starts_with("index "),
            Kind::AttachedIndex
            | Kind::Default
            | Kind::Sequence
            | Kind::Statistics
            | Kind::Policy
            | Kind::RowSecurity
            | Kind::ReplicaIdentity
            | Kind::Cluster
            | Kind::Owner
            | Kind::Privilege
            | Kind::Comment
            | Kind::Publication => false,
        }
    }

    /// In one line, without the remedy.
    pub fn words(&self) -> String {
        format!("{}: {} {} on the {}", self.table, self.object, self.what, self.side)
    }
}

/// A table or partition, and its counterpart.
struct Pair<'a> {
    from: &'a Relation,
    /// `None`: it is still to be made.
    to: Option<&'a Relation>,
    name: QualifiedName,
    /// As the other server writes its name.
    shown: String,
    kind: char,
    /// Its root has the same partitions on both sides.
    whole: bool,
}

/// The comparison at work.
struct Comparison<'a> {
    from: &'a Facts,
    to: &'a Facts,
    side: &'static str,
    /// By the number on the side that is compared with.
    pairs: HashMap<u32, Pair<'a>>,
    /// The indexes of the side that is compared with, by number.
    indexes: HashMap<u32, &'a IndexFacts>,
    /// Indexes are made beside writers, or, in a table that nobody has yet, at once.
    beside_writers: bool,
    /// Columns that a root computes in another way, and so its parts.
    computed_otherwise: HashSet<(usize, String)>,
    /// With the table's steps below its root.
    found: Vec<(Finding, i32)>,
}

/// How the comparison is meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// The side that is compared and mended.
    pub(super) side: &'static str,
    /// Indexes are made beside writers.
    pub(super) beside_writers: bool,
}

/// What `to` lacks of `from`, in the order in which it can be made. `names` are pairs of tables; both facts were read for
/// them, in their order.
pub(super) fn compare(
    from: &Facts,
    to: &Facts,
    names: &[(QualifiedName, QualifiedName)],
    manner: Manner,
) -> Vec<Finding> {
    let Manner { side, beside_writers } = manner;
    let pairs = pairs(from, to, names);
    let indexes = from.indexes.iter().map(|index| (index.oid, index)).collect();
    let (computed_otherwise, found) = (HashSet::new(), Vec::new());
    let mut comparison =
        Comparison { from, to, side, pairs, indexes, beside_writers, computed_otherwise, found };
    for relation in &from.relations {
        let Some(pair) = comparison.pairs.remove(&relation.oid) else { continue };
        comparison.indexes(&pair);
        comparison.constraints(&pair);
        comparison.rest(&pair);
        comparison.pairs.insert(relation.oid, pair);
    }
    comparison.privileges();
    let mut found = comparison.found;
    // Parts before what they are part of; among equals in the order in which they were met.
    found.sort_by_key(|(finding, level)| (finding.kind, std::cmp::Reverse(*level)));
    found.into_iter().map(|(finding, _)| finding).collect()
}

impl Comparison<'_> {
    fn find(&mut self, pair: &Pair<'_>, kind: Kind, object: String, what: &str, remedy: Vec<String>) {
        let (side, table, what) = (self.side, pair.name.clone(), what.to_owned());
        self.found.push((Finding { kind, side, table, object, what, remedy }, pair.from.level));
    }

    /// A comment that differs, if there is one to make. `on` is what COMMENT ON calls the thing.
    fn comment(&mut self, pair: &Pair<'_>, on: &str, from: Option<&String>, to: Option<&String>) {
        if let Some(comment) = from.filter(|comment| to != Some(comment)) {
            let remedy = vec![format!("COMMENT ON {on} IS {}", quote_literal(comment))];
            self.find(pair, Kind::Comment, format!("the comment on {on}"), "is not the same", remedy);
        }
    }
}

/// How many relations each root has, itself among them.
fn parts(facts: &Facts) -> HashMap<usize, usize> {
    let mut parts = HashMap::new();
    for relation in &facts.relations {
        *parts.entry(relation.root).or_default() += 1;
    }
    parts
}

/// The counterpart of each table and partition; partitions that the other side does not have by name are left out.
fn pairs<'a>(
    from: &'a Facts,
    to: &'a Facts,
    names: &[(QualifiedName, QualifiedName)],
) -> HashMap<u32, Pair<'a>> {
    let (from_roots, to_roots) = (from.roots(), to.roots());
    let there: HashMap<&QualifiedName, &Relation> = to.relations.iter().map(|r| (&r.name, r)).collect();
    let mut pairs = HashMap::new();
    let mut matched: HashMap<usize, usize> = HashMap::new();
    for relation in &from.relations {
        let (Some(root), Some((_, root_name))) = (from_roots.get(&relation.root), names.get(relation.root))
        else {
            continue;
        };
        let name = if relation.level == 0 {
            root_name.clone()
        } else {
            let same = relation.name.schema == root.name.schema;
            let schema = if same { &root_name.schema } else { &relation.name.schema };
            QualifiedName::new(schema, &relation.name.name)
        };
        let counterpart = there.get(&name).copied().filter(|to| to.root == relation.root);
        if counterpart.is_none() && to_roots.contains_key(&relation.root) {
            continue;
        }
        *matched.entry(relation.root).or_default() += 1;
        let shown = match counterpart {
            Some(to) => to.shown.clone(),
            None if name == relation.name => relation.shown.clone(),
            None => name.sql(),
        };
        let kind = counterpart.map_or(relation.kind, |to| to.kind);
        pairs.insert(relation.oid, Pair { from: relation, to: counterpart, name, shown, kind, whole: false });
    }
    let (from_parts, to_parts) = (parts(from), parts(to));
    for pair in pairs.values_mut() {
        let root = pair.from.root;
        let all = matched.get(&root);
        pair.whole =
            all == from_parts.get(&root) && (!to_roots.contains_key(&root) || all == to_parts.get(&root));
    }
    pairs
}

#[cfg(test)]
mod tests;
