//! The migration itself, blind to which database it moves.
//!
//! Owns the order of things: copy, follow, verify, and what happens when any of it fails. It holds no SQL and
//! knows no database; it speaks to both through [`ports`], and leaves every decision that can be pure to
//! `segue-model`.

pub mod admission;
pub mod backfill;
pub mod fault;
pub mod follow;
pub mod killpoint;
mod leaves;
pub mod migration;
pub mod moving;
pub mod ports;
pub mod progress;
pub mod regions;
pub mod throttle;
pub mod verify;
