//! Rows that move: between keys, regions, partitions and unique values, at every stage of both.
//!
//! Each test plays a named schedule on real servers with the real binary, and ends with the independent comparer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a failed test")]

mod gate;
mod hash_leaves;
mod loose_keys;
mod own_columns;
mod partitions;
#[path = "../support/mod.rs"]
mod support;
mod swaps;
mod unique;
