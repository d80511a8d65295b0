//! Pure values and decisions of a Segue migration.
//!
//! Nothing here reads a file, a clock, an environment or a socket; whatever a decision depends on is passed in.

pub mod name;
pub mod spec;
pub mod sqltext;
