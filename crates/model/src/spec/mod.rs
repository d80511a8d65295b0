//! The spec: the one file that describes a migration, from its text to an immutable value.
//!
//! The way: YAML (`document`) → variables (`environment`) → values of known form (`raw`, `read`) → bounds, defaults and
//! cross-checks (`validate`) → [`Spec`]. Each step reports what it finds and lets the next one go on with the rest, so
//! that one [`SpecError`] names all mistakes. Neither the file nor the environment is read here, and no server is asked.

mod bounds;
mod document;
mod environment;
mod gates;
mod problem;
mod quantity;
mod raw;
mod read;
mod rollback;
mod router;
mod schema;
mod secret;
mod selection;
mod throttle;
mod validate;

use std::fmt;
use std::time::Duration;

use crate::switch::gates::Bounds;
use serde::{Deserialize, Serialize};

pub use environment::Lookup;
pub use problem::{Place, Problem, SpecError};
pub use quantity::{QuantityError, ShownBytes, ShownDuration, parse_bytes, parse_duration};
pub use rollback::{Database, Measure, Rollback, RollbackTrigger};
pub use router::{
    ListenError, Router, RouterAuth, RouterMirror, RouterPool, RouterReads, RouterTls, parse_listen,
};
pub use schema::json_schema;
pub use secret::{ConnectionUrl, ConnectionUrlError, redact};
pub use selection::{Mapping, Selection, SelectionError, TableChoice, TableEntry};
pub use throttle::{Throttle, ThrottleQuery};

/// A migration as its spec describes it, checked and complete; made by [`Spec::parse`] only.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Spec {
    /// The migration's name.
    pub name: MigrationName,
    /// What kind of servers it runs on.
    pub profile: Profile,
    /// Where the tables are when the migration is planned.
    pub source: ConnectionUrl,
    /// Where they go.
    pub target: ConnectionUrl,
    /// Where the journal, the lease and the commands are; the target unless the spec says otherwise.
    pub control: ConnectionUrl,
    /// Which tables move.
    pub selection: Selection,
    /// How regions are copied.
    pub copy: Copy,
    /// How changes are applied.
    pub apply: Apply,
    /// What may be used up.
    pub limits: Limits,
    /// When Segue yields by itself.
    pub throttle: Throttle,
    /// How the sides are compared.
    pub verify: Verify,
    /// How writes are handed over.
    pub switch: Switch,
    /// What the tables are kept safe from meanwhile.
    pub guard: Guard,
    /// What is made of the target's schema.
    pub schema: TargetSchema,
    /// What takes a switch back.
    pub rollback: Rollback,
    /// Where applications connect instead of the database, if they do.
    pub router: Option<Router>,
}

impl Spec {
    /// Reads the spec in `text`. `file` is what problems call it; `lookup` is the environment.
    pub fn parse(file: &str, text: &str, lookup: Lookup<'_>) -> Result<Self, SpecError> {
        let mut problems = problem::Problems::new(file, text);
        let spec = document::read(text, &mut problems).and_then(|mut node| {
            environment::expand_all(&mut node, lookup, &mut problems);
            let raw = <raw::RawSpec as read::Read>::read(node, &mut problems)?;
            validate::validate(raw, &mut problems)
        });
        problems.finish(spec)
    }
}

/// How regions are copied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copy {
    /// How many regions are copied at a time; at least 1.
    pub workers: usize,
    /// How long one region's copy should last.
    pub region_target: Duration,
}

/// How changes are applied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Apply {
    /// The most row data that one target transaction gathers; at most half of [`Limits::memory_bytes_max`].
    pub batch_bytes_max: u64,
}

/// What a migration may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The log that the source may keep before the backfill yields to the stream.
    pub retained_wal_bytes_max: u64,
    /// The memory for rows in flight.
    pub memory_bytes_max: u64,
}

/// How the sides are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verify {
    /// Whether keys touched by the stream are compared again all the time.
    pub live: bool,
    /// How many keys a second that may be.
    pub live_keys_per_second_max: u64,
    /// How many rows one digest covers.
    pub range_rows: u64,
}

/// How writes are handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Switch {
    /// How long writes may be held up before the hand-over is undone.
    pub max_write_hold: Duration,
    /// Whether sessions may lose what they hold and cannot take along.
    pub accept_session_state: bool,
    /// How much the gates ask for before reads or writes are moved.
    pub gates: Bounds,
}

/// What the tables are kept safe from while they move.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Guard {
    /// Whether DDL that the stream cannot follow is refused where the tables are, if Segue's role may do that.
    pub ddl: bool,
}

/// What is made of the target's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetSchema {
    /// Which tables are created there.
    pub create: Create,
}

/// Which tables Segue creates on the target, as the source has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Create {
    /// None; the default: they are there before the migration begins.
    None,
    /// Those that are not there.
    Missing,
}

impl Create {
    pub(crate) const ALL: [Self; 2] = [Self::None, Self::Missing];

    /// As a spec spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Create::None => "none",
            Create::Missing => "missing",
        }
    }
}

/// The name of a migration: `^[a-z][a-z0-9-]{0,39}$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct MigrationName(String);

impl MigrationName {
    /// The most characters of a name. With every prefix and suffix of Segue it stays a PostgreSQL identifier.
    pub const CHARS_MAX: usize = 40;

    /// `text` as a name, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let is_name = text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.len() <= Self::CHARS_MAX
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name with `_` for `-`: what slots, publications and origins are called after. No two names share one.
    pub fn identifier(&self) -> String {
        self.0.replace('-', "_")
    }
}

impl fmt::Display for MigrationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of servers a migration runs on; decides defaults, never what is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A developer's machine.
    Dev,
    /// Servers like the real ones, without real users.
    Staging,
    /// The real ones; the default.
    Prod,
}

impl Profile {
    pub(crate) const ALL: [Self; 3] = [Self::Dev, Self::Staging, Self::Prod];

    /// The profile as a spec spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Profile::Dev => "dev",
            Profile::Staging => "staging",
            Profile::Prod => "prod",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
