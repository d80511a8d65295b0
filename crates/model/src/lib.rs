//! Pure values and decisions of a Segue migration.
//!
//! Nothing here reads a file, a clock, an environment or a socket; whatever a decision depends on is passed in.

pub mod change;
pub mod divergence;
pub mod key;
pub mod name;
pub mod net;
pub mod position;
pub mod region;
pub mod route;
pub mod seam;
pub mod spec;
pub mod sqltext;
pub mod stage;
pub mod switch;
pub mod table;
pub mod throttle;
pub mod traffic;
