//! Source and target for PostgreSQL.
//!
//! Owns every statement that Segue sends to a PostgreSQL server and every byte it reads from one.

pub mod connect;
pub mod copy;
pub mod error;
pub mod schema;
pub mod verify;
