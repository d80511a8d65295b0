//! By which right a session writes to the target.

use crate::birth::{Direction, origin_name};

/// Whose rows are written, and by which right.
#[derive(Clone, Debug)]
pub struct Authority {
    /// The migration.
    pub migration: String,
    /// Which way its stream runs.
    pub direction: Direction,
    /// The fencing token of this process.
    pub token: i64,
    /// The slot's incarnation: the checkpoint is bound to it.
    pub incarnation: i64,
}

impl Authority {
    /// The replication origin that marks what is written.
    pub fn origin(&self) -> String {
        origin_name(&self.migration, self.direction)
    }
}
