//! The router: a proxy for PostgreSQL's wire protocol, which applications connect to instead of the database.
//!
//! One task for each client owns its socket and, while it is linked, a server's; bytes are relayed in whole runs of
//! frames, and only what must be understood is decoded. What decides is pure and does no I/O ([`pipeline`], [`effects`],
//! [`statements`], [`settings`], [`frames`], [`startup`], [`auth`]); what does I/O is in [`session`] and [`serve`].
//!
//! It knows nothing of a migration's stages, and reads no journal: its [`Routes`] are given to it, and what it says
//! of them is [`Taken`].

mod auth;
mod breaker;
mod classify;
mod effects;
mod frames;
mod gate;
#[cfg(any(test, fuzzing))]
#[allow(missing_docs, unreachable_pub, reason = "for the fuzzer, which is outside of the crate")]
pub mod hostile;
mod lexer;
mod pipeline;
mod pool;
mod reads;
mod route;
mod runtime;
mod serve;
mod served;
mod session;
mod settings;
mod shadow;
mod startup;
mod statements;
mod stats;
mod stream;
mod upstream;

pub use auth::{ClientAuth, Secret, Users, UsersError, Verifier};
pub use breaker::BreakerState;
pub use classify::{Catalog, CatalogError};
pub use effects::Pin;
pub use reads::{Feeds, Fresh, ReadLimits, Reads};
pub use route::{Heard, Routes, Taken};
pub use runtime::runtime;
pub use serve::{Config, Databases, Handle, Limits, PoolMode, Router, ServeError, Tls};
pub use served::{KindTimes, Served, Uses};
pub use shadow::{ColumnPair, Mismatch, MismatchKind, MismatchSample, ShadowConfig, ShadowCounts, SlowRead};
pub use stats::{Counts, Histogram};
pub use upstream::{Upstream, UpstreamTls};
