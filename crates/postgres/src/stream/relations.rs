//! What the relations of the stream are to this migration: the strict relation cache.
//!
//! A RELATION message is checked against the plan when the first row of it arrives, and again when the plan changes.

use super::Rows;
use super::note::Note;
use crate::pgoutput::{Relation, RelationOid, ReplicaIdentity};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::change::{Action, Change, Leaf, Row};
use segue_model::key::KeyText;
use segue_model::region::Extent;
use segue_model::table::{Table, TableId, UnitId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::watch;

/// What the relations of a source are to a migration.
#[derive(Clone, Debug, Default)]
pub struct StreamPlan {
    /// The migration: signals of other migrations are ignored.
    pub migration: String,
    /// The number of `segue.signal` on the source.
    pub signal: RelationOid,
    /// The tables, or the leaves of partitioned ones, that migrate.
    pub relations: HashMap<RelationOid, Arc<RelationPlan>>,
    /// Relations that are no longer ours: detached leaves.
    pub ignored: HashSet<RelationOid>,
    /// Leaves that are gone and whose end the stream may not have reached, by relation and unit.
    pub departed: HashMap<(RelationOid, UnitId), Departed>,
    /// The replication origin of the opposite stream: what it has written here came from the other side.
    pub own_origin: Option<String>,
}

/// A leaf that is gone.
#[derive(Clone, Debug)]
pub struct Departed {
    /// Its table.
    pub table: TableId,
    /// How the target finds its rows.
    pub leaf: Leaf,
}

/// One relation that migrates.
#[derive(Clone, Debug)]
pub struct RelationPlan {
    /// The table that its rows belong to.
    pub table: Arc<Table>,
    /// The unit whose regions decide about its rows.
    pub unit: UnitId,
    /// Set for a leaf of a partitioned table: how the target finds its rows.
    pub leaf: Option<Leaf>,
    /// It may hold rows of the range of a leaf that is gone: a default partition.
    pub loose: bool,
    /// What its columns were when it was planned, one for each of [`Table::columns`]; empty: not known, so the
    /// first description in the stream counts.
    pub expected: Vec<Expectation>,
}

/// The type of a source column when the migration was planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Number of the type.
    pub type_oid: u32,
    /// Its modifier, −1 for none. A difference here is no drift: the values stay valid text of the type.
    pub type_modifier: i32,
}

/// A relation as its rows arrive, joined with its plan.
pub(super) struct Shape {
    pub(super) plan: Arc<RelationPlan>,
    /// Its name on the source.
    name: String,
    /// For each of the table's columns, where its value stands in a row of the stream.
    place: Vec<usize>,
    /// Values in a row of the stream.
    width: usize,
    /// The stream's order is the table's order.
    straight: bool,
}

impl Shape {
    /// Puts a row of the stream in the order of the table's columns.
    pub(super) fn arrange(&self, row: Row) -> Outcome<Row> {
        if row.len() != self.width {
            return Err(Fault::bug(
                "SEGUE-PGOUTPUT",
                format!("{}: a row with {} values, described with {}", self.name, row.len(), self.width),
            ));
        }
        if self.straight {
            return Ok(row);
        }
        Ok(self.place.iter().map(|&i| row[i].clone()).collect())
    }

    pub(super) fn identity_changed(&self, what: &str) -> Fault {
        drift(
            format!(
                "{}: {what}: its replica identity has changed since the migration was planned",
                self.name
            ),
            "put the replica identity back as it was, then resume",
        )
    }
}

/// What a relation is.
pub(super) enum Found {
    /// One that migrates.
    Table(Arc<Shape>),
    /// `segue.signal`.
    Signal,
    /// One that the plan knows and does not want.
    Ignored,
}

pub(super) struct Relations {
    plan: watch::Receiver<Arc<StreamPlan>>,
    held: Arc<StreamPlan>,
    described: HashMap<RelationOid, Relation>,
    shapes: HashMap<RelationOid, Arc<Shape>>,
    /// Types at the first description, for relations whose plan does not know them.
    first_types: HashMap<RelationOid, HashMap<String, u32>>,
    /// Leaves whose end this stream has passed.
    passed: HashSet<(RelationOid, UnitId)>,
}

fn drift(what: String, next_step: impl Into<String>) -> Fault {
    Fault::operator("SEGUE-DDL-DRIFT", what, next_step)
}

/// The log keeps the rows of the time between.
fn as_it_was(what: &str) -> String {
    format!(
        "{what}, then `segue run --new-stream`, which compares all rows and repairs those that differ; or `segue cancel`, \
         change both sides alike, and begin anew"
    )
}

fn full_name(relation: &Relation) -> String {
    let schema = if relation.schema.is_empty() { "pg_catalog" } else { &relation.schema };
    format!("{schema}.{}", relation.name)
}

impl Relations {
    pub(super) fn new(mut plan: watch::Receiver<Arc<StreamPlan>>) -> Relations {
        let held = plan.borrow_and_update().clone();
        Relations {
            plan,
            held,
            described: HashMap::new(),
            shapes: HashMap::new(),
            first_types: HashMap::new(),
            passed: HashSet::new(),
        }
    }

    /// The plan as it is now.
    pub(super) fn plan(&mut self) -> &StreamPlan {
        // An error means that nobody can change it any more.
        if self.plan.has_changed().unwrap_or(false) {
            self.held = self.plan.borrow_and_update().clone();
            self.shapes.clear();
        }
        &self.held
    }

    pub(super) fn describe(&mut self, relation: Relation) {
        self.shapes.remove(&relation.oid);
        self.described.insert(relation.oid, relation);
    }

    /// What `oid` is, for a row of it.
    pub(super) fn find(&mut self, oid: RelationOid) -> Outcome<Found> {
        let plan = self.plan();
        if plan.signal == oid {
            return Ok(Found::Signal);
        }
        let planned = plan.relations.get(&oid).cloned();
        let ignored = plan.ignored.contains(&oid);
        if let Some(shape) = self.shapes.get(&oid) {
            return Ok(Found::Table(shape.clone()));
        }
        match planned {
            Some(planned) => {
                let shape = Arc::new(self.shape(oid, planned)?);
                self.shapes.insert(oid, shape.clone());
                Ok(Found::Table(shape))
            }
            None if ignored => Ok(Found::Ignored),
            None => Err(self.unknown(oid)),
        }
    }

    /// The plan of a truncated relation, `None` if it is not ours.
    pub(super) fn truncated(&mut self, oid: RelationOid) -> Outcome<Option<Arc<RelationPlan>>> {
        let plan = self.plan();
        match plan.relations.get(&oid) {
            Some(planned) => Ok(Some(planned.clone())),
            None if plan.signal == oid || plan.ignored.contains(&oid) => Ok(None),
            None => Err(self.unknown(oid)),
        }
    }

    fn unknown(&self, oid: RelationOid) -> Fault {
        let name = self.described.get(&oid).map_or_else(|| format!("number {oid}"), full_name);
        Fault::operator(
            "SEGUE-UNKNOWN-RELATION",
            format!("the change stream has rows of {name}, which this migration does not know"),
            format!("take {name} out of the migration's publication, or plan the migration again with it"),
        )
    }

    fn described(&self, oid: RelationOid) -> Outcome<&Relation> {
        self.described.get(&oid).ok_or_else(|| {
            Fault::bug("SEGUE-PGOUTPUT", format!("rows of relation {oid}, which was never described"))
        })
    }

    /// Joins the description with the plan, or names what has drifted.
    fn shape(&mut self, oid: RelationOid, plan: Arc<RelationPlan>) -> Outcome<Shape> {
        let relation = self.described(oid)?;
        let name = full_name(relation);
        let table = &plan.table;
        if let Some(added) =
            relation.columns.iter().find(|c| !table.columns.iter().any(|t| t.source == c.name))
        {
            return Err(drift(
                format!("{name}: the column {} came after the migration was planned", added.name),
                as_it_was("drop the column again"),
            ));
        }
        let mut place = Vec::with_capacity(table.columns.len());
        for column in &table.columns {
            let found = relation.columns.iter().position(|c| c.name == column.source).ok_or_else(|| {
                drift(
                    format!("{name}: the column {} is gone or has another name", column.source),
                    as_it_was("put the column back under its name"),
                )
            })?;
            place.push(found);
        }
        check_types(relation, &plan, &place, self.first_types.get(&oid))?;
        check_identity(relation, table, &place)?;
        let width = relation.columns.len();
        let straight = place.iter().copied().eq(0..width);
        let first: HashMap<String, u32> =
            relation.columns.iter().map(|c| (c.name.clone(), c.type_oid)).collect();
        self.first_types.entry(oid).or_insert(first);
        Ok(Shape { plan, name, place, width, straight })
    }

    /// Leaves of `table` that are gone, and whose end is still to come.
    fn departed(&mut self, table: TableId) -> Vec<Leaf> {
        self.plan();
        let departed = self.held.departed.iter().filter(|(whose, _)| !self.passed.contains(*whose));
        departed.filter(|(_, gone)| gone.table == table).map(|(_, gone)| gone.leaf.clone()).collect()
    }

    /// The stream has reached the end of a leaf.
    pub(super) fn has_left(&mut self, relation: RelationOid, unit: UnitId) {
        self.passed.insert((relation, unit));
    }

    /// What has to go before a row takes its place in a leaf like the default partition. A row whose key lies in the range of a leaf
    /// that is gone can only have come after that leaf was detached: the target may still have that leaf's row.
    pub(super) fn make_room(
        &mut self,
        plan: &RelationPlan,
        action: &Action,
    ) -> Outcome<impl Iterator<Item = Change> + use<>> {
        let incomplete = |e| Fault::bug("SEGUE-KEY-MISSING", format!("{}: {e}", plan.table.source));
        let key = match (plan.table.key(), action) {
            (Some(key), Action::Insert { new }) => Some(KeyText::of(key, new).map_err(incomplete)?),
            // An old image does not mean another key: with REPLICA IDENTITY FULL there is always one, and the row stays.
            (Some(key), Action::Update { old: Some(old), new }) => {
                let (before, now) = (KeyText::of(key, old), KeyText::of(key, new).map_err(incomplete)?);
                (before.map_err(incomplete)? != now).then_some(now)
            }
            (Some(_), Action::Update { old: None, .. } | Action::Delete { .. } | Action::Truncate { .. })
            | (None, _) => None,
        };
        let departed = if key.is_some() { self.departed(plan.table.id) } else { Vec::new() };
        let (table, unit) = (plan.table.id, plan.unit);
        Ok(departed.into_iter().filter_map(move |leaf| {
            let within = Some(vec![(Extent::Key(key.clone()?), Vec::new())]);
            Some(Change { table, unit, action: Action::Truncate { leaf: Some(leaf), within } })
        }))
    }

    /// Whether these are all leaves of a table, with regions of their own for none of them, and none has gone whose rows are
    /// still there.
    pub(super) fn is_all_of(&mut self, table: TableId, relations: &[RelationOid]) -> bool {
        let plan = self.plan();
        let mut leaves = plan.relations.iter().filter(|(_, planned)| planned.table.id == table);
        leaves.all(|(oid, planned)| relations.contains(oid) && planned.unit == UnitId::from(table))
            && self.departed(table).is_empty()
    }

    /// What a TRUNCATE of a relation empties: not the rows of leaves that are gone, whose end is still to come.
    pub(super) fn emptied(&mut self, plan: &RelationPlan) -> Option<Leaf> {
        let leaf = plan.leaf.clone()?;
        let departed = if plan.loose { self.departed(plan.table.id) } else { Vec::new() };
        let condition = departed.iter().fold(leaf.condition, |condition, gone| {
            format!("({condition}) AND ({}) IS NOT TRUE", gone.condition)
        });
        Some(Leaf { condition, ..leaf })
    }

    /// The number of a signal and its note, if the row is one for this migration.
    pub(super) fn signal(&mut self, oid: RelationOid, rows: &Rows) -> Outcome<Option<(u64, Option<Note>)>> {
        let (Rows::Insert { new } | Rows::Update { new, .. }) = rows else { return Ok(None) };
        let described = self.described(oid)?;
        let value = |name: &str| {
            let at = described.columns.iter().position(|c| c.name == name)?;
            std::str::from_utf8(new.get(at)?.text()?).ok()
        };
        let (Some(migration), Some(id)) = (value("migration"), value("id").and_then(|id| id.parse().ok()))
        else {
            return Err(Fault::bug("SEGUE-SIGNAL", "a row of segue.signal cannot be read"));
        };
        if migration != self.held.migration {
            return Ok(None);
        }
        let note = value("note").map(serde_json::from_str).transpose();
        let unknown = |e| Fault::bug("SEGUE-SIGNAL", format!("the note of signal {id} cannot be read: {e}"));
        Ok(Some((id, note.map_err(unknown)?)))
    }
}

fn check_types(
    relation: &Relation,
    plan: &RelationPlan,
    place: &[usize],
    first: Option<&HashMap<String, u32>>,
) -> Outcome<()> {
    for (i, (column, &at)) in plan.table.columns.iter().zip(place).enumerate() {
        let found = relation.columns[at].type_oid;
        let expected = plan
            .expected
            .get(i)
            .map(|e| e.type_oid)
            .or_else(|| first.and_then(|first| first.get(&column.source).copied()));
        if expected.is_some_and(|expected| expected != found) {
            let name = full_name(relation);
            return Err(drift(
                format!(
                    "{name}: the column {} has another type than when the migration was planned",
                    column.source
                ),
                as_it_was("change the type back"),
            ));
        }
    }
    Ok(())
}

/// Updates and deletes must come with what identifies their row.
fn check_identity(relation: &Relation, table: &Table, place: &[usize]) -> Outcome<()> {
    let name = full_name(relation);
    let changed = |what: String, next_step: &str| Err(drift(format!("{name}: {what}"), next_step));
    match table.key() {
        None if relation.identity == ReplicaIdentity::Full => Ok(()),
        None => changed(
            "its replica identity is no longer FULL".into(),
            &format!("ALTER TABLE {name} REPLICA IDENTITY FULL, then resume"),
        ),
        Some(key) => match key.columns.iter().find(|&&c| !relation.columns[place[c]].in_identity) {
            None => Ok(()),
            Some(&missing) => changed(
                format!(
                    "its replica identity no longer has the key column {}",
                    table.columns[missing].source
                ),
                "put the replica identity back to the key that the migration uses, then resume",
            ),
        },
    }
}
