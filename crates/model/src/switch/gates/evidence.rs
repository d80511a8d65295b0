//! What was measured, without any opinion about it. `None` is "not measured".

use std::time::Duration;

/// A measurement at a moment, in microseconds since 1970, by the clock of whoever measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<T> {
    /// When.
    pub at_us: i64,
    /// What.
    pub value: T,
}

/// Some of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Some.
    pub part: u64,
    /// All; 0 if there was nothing to count, which is a sample of nothing.
    pub whole: u64,
}

/// Samples, ascending in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series<T>(pub Vec<Sample<T>>);

impl<T> Default for Series<T> {
    fn default() -> Self {
        Series(Vec::new())
    }
}

impl<T> Series<T> {
    /// The samples of the `window` that ends at `now_us`, and how much of it they cover: from the end of the last gap longer
    /// than `gap_max` on. The sample at or before the window's begin belongs to it; a window of zero has the last one.
    pub fn within(&self, window: Duration, gap_max: Duration, now_us: i64) -> (&[Sample<T>], Duration) {
        let begin_us = now_us.saturating_sub(micros(window));
        let mut next_us = now_us;
        let mut first = self.0.len();
        while first > 0 && next_us.saturating_sub(self.0[first - 1].at_us) <= micros(gap_max) {
            first -= 1;
            next_us = self.0[first].at_us;
            if next_us <= begin_us {
                break;
            }
        }
        let covered_us = if first == self.0.len() { 0 } else { now_us.saturating_sub(next_us) };
        (&self.0[first..], Duration::from_micros(u64::try_from(covered_us).unwrap_or(0)).min(window))
    }
}

/// Whole microseconds; what is too long for them is as long as they reach.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// The last full verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// When the oldest of the tables was last compared in full, in microseconds since 1970.
    pub oldest_us: i64,
    /// Tables that have never been compared in full.
    pub tables_left: u64,
}

/// The opposite stream, and whether the one goes on that the writes would follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opposite {
    /// It stands, and has passed its barrier.
    pub is_armed: bool,
    /// It will never run again.
    pub is_lost: bool,
    /// How far it is behind, in bytes.
    pub behind_bytes: u64,
    /// The stream to the side that the writes would go to stands still: what was written since is missing there.
    pub stands_still: bool,
}

/// A replica of the new side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// How far it is behind, in milliseconds; [`u64::MAX`] if that cannot be seen.
    pub lag_ms: u64,
}

/// Connections on the new side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Free ones.
    pub free: u64,
    /// How many will be needed.
    pub needed: u64,
}

/// Reads that were compared on both sides, since that was turned on or a router began, over all routers that live.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirrored {
    /// Those that the sides answer differently, among all.
    pub differ: Share,
    /// More of them than this is too many, in parts per million.
    pub differ_ppm_max: u64,
    /// The statement that differs most often, in words; empty without one.
    pub worst: String,
    /// A router's findings could not be read.
    pub is_unreadable: bool,
}

/// Something that the new side's tables lack, or have for themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In words, with the table and the side.
    pub what: String,
    /// The SQL that mends it, and where it is run.
    pub remedy: String,
    /// It is about which rows there may be.
    pub of_rows: bool,
}

/// Everything that gates are judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The moment of the evidence, in microseconds since 1970.
    pub now_us: i64,
    /// The stream's lag, in milliseconds.
    pub lag_ms: Series<u64>,
    /// Divergent rows among those compared since the sample before.
    pub drift: Series<Share>,
    /// Repeated reads that answered alike among those since the sample before.
    pub matches: Series<Share>,
    /// Reads that were compared.
    pub mirrored: Option<Mirrored>,
    /// The last full verification.
    pub verified: Option<Verified>,
    /// Divergences that are open.
    pub divergences_open: Option<u64>,
    /// The opposite stream.
    pub opposite: Option<Opposite>,
    /// Sequences that cannot be set on the new side, by name.
    pub sequences_unready: Option<Vec<String>>,
    /// When the last rehearsal succeeded.
    pub rehearsed_us: Option<i64>,
    /// What differs from the plan, each in words.
    pub ddl_differences: Option<Vec<String>>,
    /// How the new side's tables differ from the old side's.
    pub parity: Option<Vec<Difference>>,
    /// The transactions on the owner that hold a lock on the tables which the fence would wait for, or wait for one: age, and
    /// in words who it is. An age that cannot be seen is [`Duration::MAX`].
    pub transactions: Option<Vec<(Duration, String)>>,
    /// Replicas of the new side; none is none.
    pub replicas: Option<Vec<Replica>>,
    /// Connections on the new side.
    pub connections: Option<Headroom>,
    /// Tables on which a vacuum that prevents wraparound is running.
    pub wraparound_vacuums: Option<Vec<String>>,
    /// Sessions with state that cannot move, each in words, without those that were accepted.
    pub sessions_with_state: Option<Vec<String>>,
    /// What writes past the fence of either side, each in words.
    pub ways_past_fence: Option<Vec<String>>,
}
