//! Every type and every shape of table, backfilled and streamed, between servers of several versions.
//!
//! The real binary on real servers; what arrives is judged by the independent comparer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails is a failed test")]

mod every_type;
mod large;
mod route;
mod shapes;
#[path = "../support/mod.rs"]
mod support;
