//! What a signal can carry beside its number: that a leaf has left, at this very place of the stream.

use segue_engine::ports::Part;
use segue_model::change::{Action, Change, Leaf};
use segue_model::key::KeyText;
use segue_model::region::Extent;
use segue_model::table::{TableId, UnitId};
use serde::{Deserialize, Serialize};

/// The note of a signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// A leaf has left the stream: nothing of it comes after this.
    Left(Left),
    /// It has left before, and was said to: nothing of it is still to come.
    HasLeft(Gone),
}

/// A leaf of which the stream has seen the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Its unit.
    pub unit: UnitId,
    /// Its number on the source.
    pub relation: u32,
}

/// A leaf that has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its table.
    pub table: TableId,
    /// Its unit.
    pub unit: UnitId,
    /// Its number on the source.
    pub relation: u32,
    /// Its name there.
    pub name: String,
    /// The condition that its rows fulfil.
    pub condition: String,
    /// Keys of rows in other leaves that fulfil it as well: they came after the leaf was detached.
    pub spared: Vec<KeyText>,
}

impl Left {
    /// The note of `part`.
    pub fn of(part: &Part, spared: Vec<KeyText>) -> Left {
        Left {
            table: part.table,
            unit: part.unit,
            relation: part.relation,
            name: part.name.to_string(),
            condition: part.condition.clone(),
            spared,
        }
    }

    /// What removes its rows on the target.
    ///
    /// A leaf that came late has no map that could still judge this: whether its copy was ever there or not, what
    /// fulfils its condition now goes.
    pub(super) fn change(self) -> Change {
        let unit = if self.unit == UnitId::from(self.table) { self.unit } else { UnitId::OUTSIDE };
        let leaf = Some(Leaf { name: self.name, condition: self.condition });
        let within = Some(vec![(Extent::ALL, self.spared)]);
        Change { table: self.table, unit, action: Action::Truncate { leaf, within } }
    }
}
