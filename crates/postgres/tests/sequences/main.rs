//! Sequences on real servers: what the new owner gives after the writes were handed over, and what cannot be carried.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod carried;
mod edges;
mod named;
mod world;
