//! The switch: handing the writes of a migration from one side to the other, and back.
//!
//! Pure, and complete: the rows that say who owns the writes and every change they may undergo ([`ownership`]),
//! what a fenced table answers a writer ([`guard`]), which process may still ask for anything ([`token`]), the steps
//! ([`steps`]), what comes next given what is known ([`decide`]), what has to hold before it begins ([`gates`]),
//! what takes it back afterwards ([`rollback`]), what of a side's log may be applied to the other one ([`admission`]), which
//! reads go ahead of the writes ([`reads`]), and whether the owner is as it was when all was quiet ([`environment`]).
//! It knows no statement and no connection; each function says what has to be true in the database while it is
//! evaluated, above all which locks are held. `tests/switch_model.rs` explores every interleaving of this very code.

pub mod admission;
pub mod decide;
pub mod environment;
pub mod gates;
pub mod guard;
pub mod ownership;
pub mod reads;
pub mod rollback;
pub mod route;
pub mod steps;
pub mod token;

use serde::{Deserialize, Serialize};
use std::fmt;

/// One of the two databases of a migration; it keeps its name whoever owns the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Where the data was when the migration was planned.
    Source,
    /// Where it goes.
    Target,
}

impl Side {
    /// Both.
    pub const ALL: [Side; 2] = [Side::Source, Side::Target];

    /// The opposite one.
    pub const fn other(self) -> Side {
        match self {
            Side::Source => Side::Target,
            Side::Target => Side::Source,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
