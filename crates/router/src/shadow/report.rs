//! What shadow reads have found, for people and for gates: plain values, read once.
//!
//! Nothing of the data is in them unless it was configured that values are shown.

use crate::stats::Histogram;
use segue_model::switch::Side;
use std::fmt;
use std::time::Duration;

/// What shadow reads have found since the router began. Every sample that was offered is counted once: among
/// `compared`, `noise`, `stale`, `failed`, `queue_full` or `too_large`, or it is still waiting.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShadowCounts {
    /// Answers of both sides that could be held against each other: `equal` and `mismatched`.
    pub compared: u64,
    /// Both sides gave the same answer.
    pub equal: u64,
    /// The sides answer differently, and each did so again.
    pub mismatched: u64,
    /// Of `mismatched`: the same rows, in another order than the statement asks for.
    pub order_differs: u64,
    /// Of `equal`: the same rows in another order, by keys that the answer does not show, so that both may be right.
    pub order_unproven: u64,
    /// The same side did not answer the same again: its rows change too fast, or the statement leaves it to chance.
    pub noise: u64,
    /// The side that follows did not catch up in time.
    pub stale: u64,
    /// The statement could not be run: no connection, a setting that is refused, a server without resources.
    pub failed: u64,
    /// Dropped, because too many others waited.
    pub queue_full: u64,
    /// Dropped, because the answer was too large to be kept.
    pub too_large: u64,
    /// Reads that the other side took much longer for, as measured once.
    pub slower: u64,
    /// How long the source took for the reads that were compared.
    pub source: Histogram,
    /// How long the target took for them.
    pub target: Histogram,
    /// The most frequent first.
    pub mismatches: Vec<Mismatch>,
    /// Mismatches of statements of which no sample is kept, because too many others are.
    pub not_kept: u64,
    /// Where the other side loses most time, first.
    pub slow_reads: Vec<SlowRead>,
}

/// Statements of one shape that the sides answer differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Names the shape.
    pub fingerprint: u64,
    /// The statement without its constants.
    pub shape: String,
    /// How often.
    pub count: u64,
    /// Some of them.
    pub samples: Vec<MismatchSample>,
}

/// One mismatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MismatchSample {
    /// Which side answered the client.
    pub served_by: Side,
    /// In what the other side's answer differs from that.
    pub kind: MismatchKind,
    /// Rows that the client got.
    pub served_rows: usize,
    /// Rows of the other side, as far as they were read.
    pub other_rows: usize,
    /// The first row that differs: the columns in which it does. Where there is no such row on one side, all columns.
    pub columns: Vec<ColumnPair>,
    /// A reason other than the data.
    pub note: Option<&'static str>,
    /// The statement as it was sent, with its parameters; only where values are shown.
    pub statement: Option<String>,
}

/// What one column of a row is on both sides: the value where values are shown, else how long it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnPair {
    /// The column's name.
    pub name: String,
    /// As the client got it.
    pub served: String,
    /// As the other side has it.
    pub other: String,
}

/// In what the other side's answer differs from the one that the client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MismatchKind {
    /// It has so many rows fewer.
    RowsMissing(usize),
    /// It has so many rows more.
    RowsTooMany(usize),
    /// It has as many rows, with other values; the first such column.
    ValuesDiffer(String),
    /// It has the same rows in another order than the statement asks for.
    OrderDiffers,
    /// It has other columns.
    ColumnsDiffer(String),
    /// It is larger than is read.
    Larger,
    /// It is an error, with this SQLSTATE, and the message where values are shown.
    Error {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: Option<String>,
    },
}

impl fmt::Display for MismatchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MismatchKind::RowsMissing(rows) => write!(f, "rows missing ({rows})"),
            MismatchKind::RowsTooMany(rows) => write!(f, "rows too many ({rows})"),
            MismatchKind::ValuesDiffer(column) => write!(f, "values differ in column {column}"),
            MismatchKind::OrderDiffers => f.write_str("order differs"),
            MismatchKind::ColumnsDiffer(what) => write!(f, "columns differ: {what}"),
            MismatchKind::Larger => f.write_str("the other side's answer is much larger"),
            MismatchKind::Error { code, message: None } => {
                write!(f, "error on one side: SQLSTATE {code}")
            }
            MismatchKind::Error { code, message: Some(message) } => {
                write!(f, "error on one side: {message} (SQLSTATE {code})")
            }
        }
    }
}

/// Statements of one shape that the other side takes much longer for, in its worst case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowRead {
    /// Names the shape.
    pub fingerprint: u64,
    /// The statement without its constants.
    pub shape: String,
    /// Which side answered the client.
    pub served_by: Side,
    /// What that side took at most, of two times.
    pub served: Duration,
    /// What the other side took at least, of two times.
    pub other: Duration,
    /// The plan of the side that answered, without costs, numbers and constants; `None` where there is none.
    pub served_plan: Option<String>,
    /// The other side's.
    pub other_plan: Option<String>,
}

impl SlowRead {
    /// What is lost each time.
    pub fn lost(&self) -> Duration {
        self.other.saturating_sub(self.served)
    }
}
