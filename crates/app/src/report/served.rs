//! What a router says of everything that it served, as it is stored with its seat: who used which side with what, and how long it took.

use super::Latency;
use segue_model::switch::Side;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the router does, since it began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StatsSeat {
    /// What each side took for each kind of statement.
    pub(crate) times: Vec<TimesSeat>,
    /// How long transactions were parked by holds.
    pub(crate) parked_ms: Latency,
    /// Sessions that were bound to their server connection.
    pub(crate) pins: u64,
    /// Shared server connections.
    pub(crate) pools: Vec<PoolSeat>,
    /// Why statements that look like reads stayed with the owner, while the follower was to serve some.
    pub(crate) kept: BTreeMap<String, u64>,
    /// What the source served last comes first.
    pub(crate) served: Vec<ServedSeat>,
    /// Reads that the other side takes much longer for.
    pub(crate) slow_reads: Vec<SlowSeat>,
}

/// What one side took for statements of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TimesSeat {
    pub(crate) side: Side,
    pub(crate) kind: String,
    pub(crate) count: u64,
    pub(crate) ms: Latency,
}

/// Shared server connections of one user to one database of one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolSeat {
    pub(crate) side: Side,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) used: usize,
    pub(crate) idle: usize,
    pub(crate) max: usize,
}

/// Statements of one shape of one user's application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServedSeat {
    pub(crate) user: String,
    pub(crate) application: String,
    pub(crate) kind: String,
    pub(crate) statement: String,
    /// How often the source served them, and how long ago it was last.
    pub(crate) source: u64,
    pub(crate) source_ms_ago: Option<u64>,
    pub(crate) target: u64,
    pub(crate) target_ms_ago: Option<u64>,
}

/// A read that one side takes much longer for than the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SlowSeat {
    pub(crate) statement: String,
    pub(crate) served_by: Side,
    pub(crate) served_ms: f64,
    pub(crate) other_ms: f64,
    pub(crate) served_plan: Option<String>,
    pub(crate) other_plan: Option<String>,
}

impl ServedSeat {
    /// When the source was used last with it, for people.
    pub(crate) fn last_on_source(&self) -> Option<String> {
        let ago_s = self.source_ms_ago? / 1_000;
        let ServedSeat { user, application, statement, .. } = self;
        let application = if application.is_empty() { String::new() } else { format!(" ({application})") };
        Some(format!("{ago_s} s ago by {user}{application}: {statement}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_who_has_used_the_source_last() {
        let mut seat = ServedSeat {
            user: "shop".into(),
            application: "cart".into(),
            kind: "select".into(),
            statement: "SELECT 1".into(),
            source: 3,
            source_ms_ago: Some(12_900),
            target: 0,
            target_ms_ago: None,
        };
        assert_eq!(seat.last_on_source().as_deref(), Some("12 s ago by shop (cart): SELECT 1"));
        seat.source_ms_ago = None;
        assert_eq!(seat.last_on_source(), None);
    }
}
