//! What Segue's tests stand on: real servers, faults, workloads that remember, and an independent comparer.
//!
//! A dev-dependency only. It depends on no other crate of the workspace, so nothing it says about the product can
//! be the product's own opinion of itself.
//!
//! * [`cluster`]: throw-away PostgreSQL servers of any installed major, their crashes, restores and standbys
//! * [`proxy`]: a network that cuts, delays, throttles and freezes
//! * [`kill`]: programs under test, killed at named points and random moments
//! * [`probe`]: clients that try to write on two servers all the time, and the proof that one owned the writes
//! * [`workload`]: writers that remember every acknowledged write, and the oracle that asks for them
//! * [`compare`]: whole databases, row by row, without trust in the product
//! * [`instructions`]: hot loops, counted and compared with what they took
//!
//! Everything here panics with a full sentence when the *test's own* ground gives way (a server that does not
//! start, a lost temporary directory): a test has no better answer to that. What a test may want to observe comes
//! back as a `Result`.

// Test code: a failure of the harness is a failed test, and the panic's message and place are the report.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod cluster;
pub mod compare;
pub mod instructions;
pub mod kill;
pub mod probe;
pub mod proxy;
pub mod workload;

pub use cluster::{Cluster, Options};
