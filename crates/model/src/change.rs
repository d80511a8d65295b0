//! Rows and changes as the change stream carries them: text values, nothing decoded.

use crate::position::Position;
use crate::region::Emptied;
use crate::seam::Xid32;
use crate::table::{TableId, UnitId};
use bytes::Bytes;
use std::sync::Arc;

/// One column's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// Out-of-line and not touched by this update: the stream does not carry it.
    Unchanged,
    /// The value's text form, as the type's output function wrote it.
    Text(Bytes),
}

impl Value {
    /// The text, if there is one.
    pub fn text(&self) -> Option<&Bytes> {
        match self {
            Value::Text(text) => Some(text),
            Value::Null | Value::Unchanged => None,
        }
    }

    /// Bytes of text held.
    pub fn len_bytes(&self) -> usize {
        self.text().map_or(0, Bytes::len)
    }
}

/// One value per column of [`Table::columns`](crate::table::Table::columns), in that order.
/// Shared: the net effect, what is replayed row by row, and verification hold the same rows.
pub type Row = Arc<[Value]>;

/// What happened to a row, or to all rows of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A new row; no value is [`Value::Unchanged`].
    Insert {
        /// The row.
        new: Row,
    },
    /// A changed row.
    Update {
        /// The row before: its key columns if the key changed, the whole image under replica identity FULL.
        /// Columns that are not part of it are NULL.
        old: Option<Row>,
        /// The row after.
        new: Row,
    },
    /// A removed row.
    Delete {
        /// Its key columns, or the whole image under replica identity FULL.
        old: Row,
    },
    /// All rows gone.
    Truncate {
        /// Set when only a part of the target table is meant: a leaf of a partitioned table.
        leaf: Option<Leaf>,
        /// `None`: all rows of the table or leaf. During a backfill: only these extents.
        within: Option<Vec<Emptied>>,
    },
}

/// A leaf of a partitioned source table, as the target finds its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its name on the source, for people.
    pub name: String,
    /// The condition that its rows, and only its rows, fulfil; in the language of the adapters.
    pub condition: String,
}

/// One change of one relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table it belongs to.
    pub table: TableId,
    /// The unit whose regions decide about it.
    pub unit: UnitId,
    /// What happened.
    pub action: Action,
}

impl Change {
    /// Roughly how much memory the change holds.
    pub fn len_bytes(&self) -> usize {
        let row = |row: &Row| row.iter().map(|v| v.len_bytes() + size_of::<Value>()).sum::<usize>();
        let held = match &self.action {
            Action::Insert { new } => row(new),
            Action::Update { old, new } => old.as_ref().map_or(0, row) + row(new),
            Action::Delete { old } => row(old),
            Action::Truncate { .. } => 0,
        };
        held + size_of::<Change>()
    }
}

/// Header of a transaction in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionHead {
    /// Its number on the source.
    pub xid: Xid32,
    /// When it committed there, in microseconds since the Unix epoch.
    pub committed_at_us: i64,
    /// Where its commit record begins in the source's log.
    pub commit: Position,
}
