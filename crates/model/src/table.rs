//! A table under migration: how a source table becomes a target table, and what identifies a row.
//!
//! Built by a database adapter from both catalogs; everything here is plain data.

use crate::name::QualifiedName;
use serde::{Deserialize, Serialize};

/// The number of a table within its migration. Stable across restarts: it is stored with regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableId(pub u32);

/// A set of source relations that are copied together and share one region map.
///
/// Unit *n* for `n < tables` holds the relations (the table itself or its leaves) that table *n* had when
/// the stream was born. A leaf attached later is a unit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitId(pub u32);

impl UnitId {
    /// No unit: a change that no copy can contain, which therefore always applies.
    pub const OUTSIDE: UnitId = UnitId(u32::MAX);
}

impl From<TableId> for UnitId {
    fn from(table: TableId) -> UnitId {
        UnitId(table.0)
    }
}

/// One source table and the target table it becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its number in this migration.
    pub id: TableId,
    /// Where the rows come from (the root, if partitioned).
    pub source: QualifiedName,
    /// Where the rows go (the root, if partitioned).
    pub target: QualifiedName,
    /// The columns that travel, in the order every [`Row`](crate::change::Row) of this table has.
    /// Generated columns are not among them: each side computes its own.
    pub columns: Vec<Column>,
    /// What identifies a row.
    pub identity: Identity,
    /// Why the table must be copied as one region, if it must.
    pub one_region: Option<String>,
    /// Rows and bytes as the source's statistics estimate them.
    pub estimate: Estimate,
}

/// Size of a table as the source's statistics have it; never used for correctness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Live rows.
    pub rows: u64,
    /// Bytes on disk, TOAST included, indexes not.
    pub bytes: u64,
}

/// One travelling column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Name on the source.
    pub source: String,
    /// Name on the target.
    pub target: String,
    /// Type on the target without modifiers, as SQL (`integer`, `public.mood`), ready to be put into a statement.
    pub target_type: String,
    /// How its values travel in a region's copy.
    pub transport: Transport,
    /// How its values are put into set-wise statements.
    pub array: ArrayForm,
    /// The target column may hold NULL.
    pub nullable: bool,
    /// `GENERATED ALWAYS AS IDENTITY` on the target: can be inserted with an override, not updated.
    pub identity_always: bool,
}

/// The form in which a column's values travel in a region's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// The type's binary form: the same on both servers.
    Binary,
    /// The type's text form: its binary form contains numbers of one server's catalog, or has none.
    Text,
}

/// How many values of one column become one statement parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArrayForm {
    /// As an array of the column's own type.
    Typed,
    /// As `text[]`, cast value by value: the type has no array type or is an array itself.
    CastText,
}

/// What identifies a row in the change stream and on the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// A unique, immediate, complete, NOT NULL key.
    Key(Key),
    /// The whole row image (replica identity FULL without a usable key).
    WholeRow,
}

/// The columns that identify a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Indexes into [`Table::columns`], in the order of the index behind the key.
    pub columns: Vec<usize>,
    /// How each key column's values are ordered on the source.
    pub order: Vec<KeyOrder>,
    /// It is known that the target orders the values of every key column as the source does.
    pub ordered_alike: bool,
    /// Whether equal keys always have equal text: the changes of one key may then be collapsed.
    pub bytewise: bool,
    /// The key is backed by a deferrable constraint on the target, which accepts duplicates silently
    /// under the replica role until commit: absence must be tested.
    pub target_deferrable: bool,
}

/// How values of a key column are ordered on the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyOrder {
    /// Signed integers: compared as numbers.
    Integer,
    /// Text form compares bytewise: uuid, bytea in hex, text under "C".
    Bytes,
    /// date, timestamp, timestamptz in ISO form with UTC: years beyond 9999, BC, ±infinity.
    Moment,
    /// Only the source can tell.
    AskSource,
}

impl Table {
    /// The key, if the table has one.
    pub fn key(&self) -> Option<&Key> {
        match &self.identity {
            Identity::Key(key) => Some(key),
            Identity::WholeRow => None,
        }
    }

    /// Whether it is known that both sides order its keys alike: a range of keys then holds the same keys on both. A table
    /// without a key has no ranges.
    ///
    /// Keys are compared column by column, so all columns must be ordered alike for that. If only the first ones are, two keys
    /// that differ there are still ordered alike; but all keys that have these columns in common with a bound, however many
    /// they are, may lie before the bound on one side and behind it on the other.
    pub fn orders_alike(&self) -> bool {
        self.key().is_some_and(|key| key.ordered_alike)
    }
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// A table `public.t` with integer key `id` and two more columns, for tests of this crate.
    pub(crate) fn keyed() -> Table {
        let column = |name: &str, target_type: &str| Column {
            source: name.into(),
            target: name.into(),
            target_type: target_type.into(),
            transport: Transport::Binary,
            array: ArrayForm::Typed,
            nullable: true,
            identity_always: false,
        };
        Table {
            id: TableId(0),
            source: QualifiedName::new("public", "t"),
            target: QualifiedName::new("public", "t"),
            columns: vec![column("id", "integer"), column("a", "text"), column("b", "text")],
            identity: Identity::Key(Key {
                columns: vec![0],
                order: vec![KeyOrder::Integer],
                ordered_alike: true,
                bytewise: true,
                target_deferrable: false,
            }),
            one_region: None,
            estimate: Estimate::default(),
        }
    }
}
