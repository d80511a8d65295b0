//! Source and target for PostgreSQL.
//!
//! Owns every statement that Segue sends to a PostgreSQL server and every byte it reads from one.

pub mod apply;
pub mod asking;
pub mod authority;
pub mod birth;
pub mod catalog;
pub mod changes;
pub mod client_programs;
pub mod connect;
pub mod control;
pub mod copy;
pub mod ddl_guard;
mod definition;
pub mod error;
pub mod estimate;
pub mod fence;
pub mod grants;
pub mod health;
pub mod inventory;
pub mod leaves;
pub mod measure;
mod numbered;
mod origin;
pub mod passage;
pub mod pgoutput;
pub mod preflight;
pub mod probe;
pub mod replication;
pub mod schema;
pub mod sequences;
pub mod source;
pub mod stream;
pub mod target;
pub mod target_schema;
pub mod traffic;
pub mod verify;
