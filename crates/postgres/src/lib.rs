//! Source and target for PostgreSQL.
//!
//! Owns every statement that Segue sends to a PostgreSQL server and every byte it reads from one.

pub mod birth;
pub mod catalog;
pub mod connect;
pub mod control;
pub mod error;
pub mod schema;
