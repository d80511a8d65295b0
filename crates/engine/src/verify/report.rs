//! What is asked of a verification, and what it answers. Everything here is serialised as it is.

use super::ports::RangeCounts;
use segue_model::divergence::Divergence;
use segue_model::table::TableId;
use serde::{Deserialize, Serialize};

/// Differences listed in a report; all are counted, and all are stored.
pub const DIVERGENCES_MAX: usize = 1000;
/// Hot keys listed for one table.
pub const HOT_KEYS_MAX: usize = 100;

/// How to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Row counts.
    Aggregate,
    /// Every row, by digests of key ranges.
    #[default]
    Digest,
    /// Random rows, field by field.
    Sample,
}

/// What to do about a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// Report it.
    #[default]
    Report,
    /// Report it with the statement that would mend it.
    DryRun,
    /// Write the owner's row over it, then compare again.
    Write,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// How to compare.
    pub mode: Mode,
    /// What to do about differences.
    pub repair: Repair,
    /// Continue a verification that was cut off.
    pub resume: bool,
    /// At most so many rows in one range.
    pub range_rows_max: u64,
    /// Ranges compared at the same time.
    pub ranges_at_once: usize,
    /// Rows picked of each table in mode sample.
    pub sample_rows: u64,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            mode: Mode::Digest,
            repair: Repair::Report,
            resume: false,
            range_rows_max: 100_000,
            ranges_at_once: 2,
            sample_rows: 1000,
        }
    }
}

/// What a verification found out about one table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableReport {
    /// Its number.
    pub table_id: u32,
    /// Its name on the source.
    pub table: String,
    /// Rows the owner's statistics promise.
    pub rows_estimated: u64,
    /// Ranges compared and stored.
    pub ranges: u64,
    /// Of them compared by an earlier process.
    pub ranges_resumed: u64,
    /// What comparing them came to.
    pub counts: RangeCounts,
    /// Some of the rows that changed too often to be settled: to be compared again, at the latest under the fence.
    pub hot_keys: Vec<String>,
    /// Columns of either side that were not compared, because they do not travel: each side computes them, or keeps them for
    /// itself.
    #[serde(default)]
    pub columns_not_compared: Vec<String>,
    /// Mode aggregate: what counting came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
    /// Everything asked about the table has been compared.
    pub complete: bool,
}

impl TableReport {
    /// Whether the table was counted, and nothing was left open.
    fn counts_agree(&self) -> bool {
        self.counted.as_ref().is_some_and(|counted| counted.settled)
    }
}

/// What counting a table on both sides came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Rows on the owner.
    pub owner: u64,
    /// Rows on the other side.
    pub other: u64,
    /// The counts were equal while the owner's did not change. Otherwise nothing is proved either way.
    pub settled: bool,
    /// What to do next, when not settled.
    pub advice: String,
}

/// What a verification found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How it compared.
    pub mode: Mode,
    /// Per table, in the order they were asked for.
    pub tables: Vec<TableReport>,
    /// The first [`DIVERGENCES_MAX`] differences.
    pub divergences: Vec<Divergence>,
    /// Differences confirmed, listed or not.
    pub divergent: u64,
    /// Rows compared; a count compares none.
    #[serde(rename = "rows_compared")]
    pub rows: u64,
    /// Rows that could not be settled.
    pub hot: u64,
    /// Divergent per compared row, repaired ones not counted.
    pub drift: f64,
    /// How long this process took, in milliseconds.
    pub took_ms: u64,
    /// Everything asked has been compared.
    pub complete: bool,
}

impl Report {
    /// Whether every row was compared and is equal, but for [`TableReport::columns_not_compared`]. A hot row was not compared, so it is not called equal; and a count, or a
    /// sample, compares no more than it looks at.
    pub fn is_equal(&self) -> bool {
        self.mode == Mode::Digest && self.hot == 0 && self.shows_no_difference()
    }

    /// Whether everything asked was gone through and no difference is left, hot rows aside.
    pub fn shows_no_difference(&self) -> bool {
        self.complete
            && self.tables.iter().all(|t| t.counts.divergent == t.counts.repaired)
            && (self.mode != Mode::Aggregate || self.tables.iter().all(TableReport::counts_agree))
    }

    /// The report about table `id`.
    pub(super) fn table(&mut self, id: TableId) -> Option<&mut TableReport> {
        self.tables.iter_mut().find(|t| t.table_id == id.0)
    }

    /// Draws the totals from the tables.
    pub(super) fn total(&mut self) {
        let sum = |f: fn(&RangeCounts) -> u64| self.tables.iter().map(|t| f(&t.counts)).sum::<u64>();
        let (rows, hot, divergent, repaired) =
            (sum(|c| c.rows), sum(|c| c.hot), sum(|c| c.divergent), sum(|c| c.repaired));
        (self.rows, self.hot, self.divergent) = (rows, hot, divergent);
        self.drift = if rows == 0 { 0.0 } else { divergent.saturating_sub(repaired) as f64 / rows as f64 };
    }
}
