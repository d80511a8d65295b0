//! The guard against DDL on real servers: what is refused, what passes, and how the guard comes and goes.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod installed;
mod refused;
mod removed;
mod statements;
mod world;
