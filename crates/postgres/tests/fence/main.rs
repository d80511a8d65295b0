//! The fence and the ownership row on real servers: who is refused, who passes, and who owns the writes afterwards.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod arming;
mod blocked;
mod concurrent;
mod expired;
mod model;
mod opened;
mod ownership;
mod refused;
mod removed;
mod traffic;
mod world;
