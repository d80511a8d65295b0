//! The spec as it is written: one declaration per section gives its reader and its part of the JSON Schema.
//!
//! Every value has its form here, but nothing is known of its meaning yet: no bounds, no defaults, no cross-checks.

use schemars::JsonSchema;

use super::Profile;
use super::bounds;
use super::document::{Content, Node};
use super::problem::Problems;
use super::read::{At, Bytes, Count, Expression, Expressions, Fields, Number, Read, Span};
use super::rollback::Database;
use crate::switch::rollback::Then;

/// Declares a section: a struct of optional values with their places, read from a map with exactly these keys.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $name:ident ($what:literal, required: [$($required:literal),*]) {
            $( $(#[$field_meta:meta])* $field:ident: $form:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default, JsonSchema)]
        #[schemars(deny_unknown_fields, extend("required" = [$($required),*] as [&str; _]))]
        pub(super) struct $name {
            $( $(#[$field_meta])* pub(super) $field: Option<At<$form>>, )*
        }

        impl $name {
            /// The keys of this section, as they are written.
            pub(super) fn keys() -> Vec<&'static str> {
                vec![$(stringify!($field).trim_start_matches("r#")),*]
            }
        }

        impl Read for $name {
            fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
                let mut fields = Fields::open(node, $what, &Self::keys(), &[$($required),*], problems)?;
                Some(Self {
                    $( $field: fields.take(stringify!($field).trim_start_matches("r#"), problems), )*
                })
            }
        }
    };
}

section! {
    /// One migration: which tables move from where to where. Everything else has a default that is safe.
    RawSpec ("the spec", required: ["migration", "source", "target", "tables"]) {
        /// The migration's name: small letters, digits and `-`, starting with a letter, at most 40 characters. The
        /// replication slot and the publication are named after it.
        #[schemars(extend("pattern" = "^([a-z][a-z0-9-]{0,39}|.*\\$\\{.*)$"))]
        migration: String,
        /// What kind of servers these are; decides the defaults of everything below.
        #[schemars(extend("default" = "prod"))]
        profile: Profile,
        /// Where the tables are now.
        source: RawSide,
        /// Where the tables go.
        target: RawSide,
        /// Where Segue keeps the journal, the lease and commands. By default the target.
        control: RawSide,
        /// The tables to move: names (`schema.table`), patterns (`public.*`), or maps with `from` and `to`.
        #[schemars(extend("minItems" = 1))]
        tables: Vec<RawTable>,
        /// Tables that the patterns under `tables` shall leave out: names or patterns.
        exclude: Vec<At<String>>,
        /// How existing rows are copied.
        copy: RawCopy,
        /// How the stream of changes is written to the target.
        apply: RawApply,
        /// What Segue may use up.
        limits: RawLimits,
        /// How the two sides are compared.
        verify: RawVerify,
        /// How writes are handed over.
        switch: RawSwitch,
        /// What the tables are kept safe from while they move.
        guard: RawGuard,
        /// What takes a switch back, or alerts, when it is measured after the switch. By default nothing does.
        rollback: RawRollback,
    }
}

section! {
    /// One side of the migration.
    RawSide ("a side", required: ["postgres"]) {
        /// How to reach the server: a postgres:// URL or key=value pairs. Keep the password out of the file with
        /// `${NAME}`, which is read from the environment.
        postgres: String,
    }
}

section! {
    /// A table that gets another name on the target, or is mapped column by column.
    RawMapping ("a table", required: ["from"]) {
        /// The table on the source.
        from: String,
        /// The table on the target. By default the same name.
        to: String,
        /// Target column to SQL over the source row. Not supported yet.
        columns: Expressions,
        /// Which source rows move, as SQL. Not supported yet.
        r#where: Expression,
        /// Source column to SQL over the target row, for the way back. Not supported yet.
        reverse: Expressions,
    }
}

section! {
    /// How existing rows are copied.
    RawCopy ("`copy`", required: []) {
        /// How many regions are copied at a time. By default 4 in prod, 2 elsewhere.
        #[schemars(extend("minimum" = bounds::COPY_WORKERS.min, "maximum" = bounds::COPY_WORKERS.max, "default" = 4))]
        workers: Count,
        /// How long the copy of one region, and so its snapshot on the source, should last.
        #[schemars(extend(
            "minimum" = bounds::REGION_TARGET.min, "maximum" = bounds::REGION_TARGET.max, "default" = 1000
        ))]
        region_target_ms: Span,
    }
}

section! {
    /// How the stream of changes is written to the target.
    RawApply ("`apply`", required: []) {
        /// The most row data that one target transaction gathers. At most half of `limits.memory_bytes_max`.
        #[schemars(extend(
            "minimum" = bounds::BATCH_BYTES.min, "maximum" = bounds::BATCH_BYTES.max, "default" = "16MiB"
        ))]
        batch_bytes_max: Bytes,
    }
}

section! {
    /// What Segue may use up.
    RawLimits ("`limits`", required: []) {
        /// The log that the source may keep for Segue before the backfill yields to the stream, and an alert follows.
        #[schemars(extend(
            "minimum" = bounds::RETAINED_WAL_BYTES.min, "maximum" = bounds::RETAINED_WAL_BYTES.max, "default" = "10GiB"
        ))]
        retained_wal_bytes_max: Bytes,
        /// The memory for rows in flight; larger transactions go through the disk.
        #[schemars(extend(
            "minimum" = bounds::MEMORY_BYTES.min, "maximum" = bounds::MEMORY_BYTES.max, "default" = "256MiB"
        ))]
        memory_bytes_max: Bytes,
    }
}

section! {
    /// How the two sides are compared.
    RawVerify ("`verify`", required: []) {
        /// Whether rows touched by the stream are compared again all the time.
        #[schemars(extend("default" = true))]
        live: bool,
        /// How many rows a second the live comparison may read.
        #[schemars(extend(
            "minimum" = bounds::LIVE_KEYS_PER_SECOND.min, "maximum" = bounds::LIVE_KEYS_PER_SECOND.max, "default" = 200
        ))]
        live_keys_per_second_max: Count,
        /// How many rows one digest covers.
        #[schemars(extend(
            "minimum" = bounds::RANGE_ROWS.min, "maximum" = bounds::RANGE_ROWS.max, "default" = 20000
        ))]
        range_rows: Count,
    }
}

section! {
    /// How writes are handed over.
    RawSwitch ("`switch`", required: []) {
        /// How long writes may be held up before the hand-over is undone; also when a fence whose Segue has died opens by
        /// itself.
        #[schemars(extend(
            "minimum" = bounds::MAX_WRITE_HOLD.min, "maximum" = bounds::MAX_WRITE_HOLD.max, "default" = 2000
        ))]
        max_write_hold_ms: Span,
        /// Whether sessions may lose what they hold and cannot take along: advisory locks, temporary tables.
        #[schemars(extend("default" = false))]
        accept_session_state: bool,
    }
}

section! {
    /// What the tables are kept safe from while they move.
    RawGuard ("`guard`", required: []) {
        /// Whether DDL on the tables that the stream cannot follow is refused, by event triggers, if Segue's role may
        /// make them. Without them the migration stops at such a change.
        #[schemars(extend("default" = true))]
        ddl: bool,
    }
}

section! {
    /// What takes a switch back, or alerts.
    RawRollback ("`rollback`", required: ["triggers"]) {
        /// How long after a switch the triggers are armed.
        #[schemars(extend(
            "minimum" = bounds::ROLLBACK_WATCH.min, "maximum" = bounds::ROLLBACK_WATCH.max, "default" = "1h"
        ))]
        watch_ms: Span,
        /// What is measured.
        #[schemars(extend("minItems" = 1))]
        triggers: Vec<At<RawTrigger>>,
    }
}

section! {
    /// One trigger: either `drift_ppm_above`, or `query` with `name` and `above` or `below`.
    RawTrigger ("a trigger", required: ["then"]) {
        /// What it is called in `segue status` and in the journal.
        #[schemars(extend("minLength" = 1))]
        name: String,
        /// Divergent rows among those compared since the switch, in parts per million, if that has grown.
        #[schemars(extend("minimum" = 0))]
        drift_ppm_above: Number,
        /// One statement that returns one number; it runs read-only.
        #[schemars(extend("minLength" = 1))]
        query: String,
        /// The database that is asked. By default the target, which owns the writes then.
        #[schemars(extend("default" = "target"))]
        on: Database,
        /// It trips above this number.
        above: Number,
        /// It trips below this number.
        below: Number,
        /// After so many samples in a row.
        #[schemars(extend(
            "minimum" = bounds::ROLLBACK_SAMPLES.min, "maximum" = bounds::ROLLBACK_SAMPLES.max, "default" = 3
        ))]
        r#for: Count,
        /// How often it is measured.
        #[schemars(extend(
            "minimum" = bounds::ROLLBACK_EVERY.min, "maximum" = bounds::ROLLBACK_EVERY.max, "default" = "5s"
        ))]
        every_ms: Span,
        /// `alert` tells people, `reverse` also hands the writes back to the source.
        then: Then,
    }
}

/// An item of `tables`.
#[derive(Debug)]
pub(super) enum RawTable {
    /// `schema.table` or a pattern.
    Name(At<String>),
    /// A map with `from`.
    Mapping(Box<RawMapping>),
}

impl Read for RawTable {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match node.content {
            Content::Map(_) => RawMapping::read(node, problems).map(Box::new).map(RawTable::Mapping),
            _ => At::read(node, problems).map(RawTable::Name),
        }
    }
}
