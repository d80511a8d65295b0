//! Tasks of the repository itself: the tidy rules, and the benchmarks.

pub mod bench;
pub mod scale;
pub mod tidy;
