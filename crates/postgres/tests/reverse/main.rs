//! The way back on real servers: what an application writes on the target travels to the source, beside the stream that
//! goes the other way.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod born;
mod both;
mod origins;
mod planned;
mod strays;
mod world;
