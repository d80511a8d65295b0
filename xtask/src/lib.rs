//! Tasks of the repository itself: the tidy rules.

pub mod tidy;
