//! The spec as it is written: one declaration per section gives its reader and its part of the JSON Schema.
//!
//! Every value has its form here, but nothing is known of its meaning yet: no bounds, no defaults, no cross-checks.

use schemars::JsonSchema;

use super::bounds;
use super::document::{Content, Node};
use super::problem::Problems;
use super::read::{At, Bytes, Count, Expression, Expressions, Fields, Number, Read, Span};
use super::rollback::Database;
use super::router::{RouterAuth, RouterPool};
use super::{Create, Profile};
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
        pub(in crate::spec) struct $name {
            $( $(#[$field_meta])* pub(in crate::spec) $field: Option<At<$form>>, )*
        }

        impl $name {
            /// The keys of this section, as they are written.
            pub(in crate::spec) fn keys() -> Vec<&'static str> {
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

// Behind the macro, which it uses.
mod gates;

pub(super) use gates::RawGates;

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
        /// How far the servers may be loaded before Segue yields by itself.
        throttle: RawThrottle,
        /// How the two sides are compared.
        verify: RawVerify,
        /// How writes are handed over.
        switch: RawSwitch,
        /// What the tables are kept safe from while they move.
        guard: RawGuard,
        /// What is made of the target's schema.
        schema: RawTargetSchema,
        /// What takes a switch back, or alerts, when it is measured after the switch. By default nothing does.
        rollback: RawRollback,
        /// Where applications connect instead of the database, so that they do not notice a switch. By default nowhere.
        router: RawRouter,
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
    /// How far the servers may be loaded before Segue yields by itself: first the backfill, then comparisons, then the stream.
    RawThrottle ("`throttle`", required: []) {
        /// How far a standby of either side may be behind. By default 1 s in prod, 5 s in staging, 10 s in dev.
        #[schemars(extend(
            "minimum" = bounds::REPLICA_LAG.min, "maximum" = bounds::REPLICA_LAG.max, "default" = "1s"
        ))]
        replica_lag_ms_max: Span,
        /// Standbys that may be as far behind as they like, by their `application_name`: those that are meant to be
        /// (`recovery_min_apply_delay`), or that nobody reads from.
        replicas_ignored: Vec<At<String>>,
        /// How old the oldest change may be that is not applied. By default 10 s in prod, 30 s in staging, 1 min in dev.
        #[schemars(extend("minimum" = bounds::APPLY_LAG.min, "maximum" = bounds::APPLY_LAG.max, "default" = "10s"))]
        apply_lag_ms_max: Span,
        /// How many sessions, of all but Segue, may be doing something on either side. By default 100 in prod, 200 in
        /// staging, 1000 in dev.
        #[schemars(extend(
            "minimum" = bounds::ACTIVE_SESSIONS.min, "maximum" = bounds::ACTIVE_SESSIONS.max, "default" = 100
        ))]
        active_sessions_max: Count,
        /// How many of them may wait for locks. By default 10 in prod, 20 in staging, 100 in dev.
        #[schemars(extend("minimum" = bounds::LOCK_WAITS.min, "maximum" = bounds::LOCK_WAITS.max, "default" = 10))]
        lock_waits_max: Count,
        /// How long a side may take to answer the look at all this, with the two or three round trips of the network that it
        /// is made of. By default 500 ms in prod, 1 s in staging, 5 s in dev.
        #[schemars(extend("minimum" = bounds::ANSWER.min, "maximum" = bounds::ANSWER.max, "default" = "500ms"))]
        answer_ms_max: Span,
        /// Whether a row of Segue's own is written once a second on the side that owns the writes, to see how long users wait
        /// for their commits. By default in prod and staging.
        #[schemars(extend("default" = true))]
        probe_write: bool,
        /// How long that may take, as the 99th percentile of the last writes. By default 250 ms in prod, 500 ms in staging,
        /// 1 s in dev.
        #[schemars(extend(
            "minimum" = bounds::PROBE_WRITE.min, "maximum" = bounds::PROBE_WRITE.max, "default" = "250ms"
        ))]
        probe_write_ms_max: Span,
        /// What else is measured, by statements of your own.
        queries: Vec<At<RawThrottleQuery>>,
    }
}

section! {
    /// One statement, and how far its number may go.
    RawThrottleQuery ("an item", required: ["name", "query"]) {
        /// What it is called in `segue status`.
        #[schemars(extend("minLength" = 1))]
        name: String,
        /// One statement that returns one number; it runs read-only.
        #[schemars(extend("minLength" = 1))]
        query: String,
        /// The database that is asked. By default the source.
        #[schemars(extend("default" = "source"))]
        on: Database,
        /// Segue yields above this number.
        above: Number,
        /// Segue yields below this number.
        below: Number,
        /// How often it is measured.
        #[schemars(extend(
            "minimum" = bounds::THROTTLE_EVERY.min, "maximum" = bounds::THROTTLE_EVERY.max, "default" = "1s"
        ))]
        every_ms: Span,
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
        /// How much is asked of the gates before reads or writes are moved; read at the start of `segue run`.
        gates: RawGates,
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
    /// What is made of the target's schema.
    RawTargetSchema ("`schema`", required: []) {
        /// Which tables are created on the target: `none`, or `missing`: those that it does not have, as the source has them,
        /// with all that belongs to them. It takes PostgreSQL's pg_dump, of the source's version or newer.
        #[schemars(extend("default" = "none"))]
        create: Create,
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

section! {
    /// Where applications connect instead of the database, so that they do not notice a switch: by `segue run` itself, and by
    /// any number of `segue router`.
    RawRouter ("`router`", required: ["listen"]) {
        /// Where it listens, as HOST:PORT; the host is an IP address of the machine, or `localhost`.
        listen: String,
        /// How applications prove who they are: by a password (`scram`), or not at all (`trust`, on this machine only).
        #[schemars(extend("default" = "scram"))]
        auth: RouterAuth,
        /// The file of users and their secrets: a line `"name" "secret"` for each, where a secret is a password or what
        /// pg_authid.rolpassword holds. Relative to the spec. Servers are logged in to with them, too.
        users: String,
        /// Whether a connection of an application has a server connection for as long as it lives (`session`) or for each
        /// transaction (`transaction`).
        #[schemars(extend("default" = "session"))]
        pool: RouterPool,
        /// TLS towards applications. By default there is none.
        tls: RawRouterTls,
        /// The most connections of applications at once.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_CLIENTS.min, "maximum" = bounds::ROUTER_CLIENTS.max, "default" = 10000
        ))]
        clients_max: Count,
        /// The most server connections of one user to one database on one side, with `pool: transaction`.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_CONNECTIONS.min, "maximum" = bounds::ROUTER_CONNECTIONS.max, "default" = 20
        ))]
        connections_max: Count,
        /// How long a login may take, from its first byte to its last.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_LOGIN.min, "maximum" = bounds::ROUTER_LOGIN.max, "default" = "15s"
        ))]
        login_max_ms: Span,
        /// How long the opening of a server connection may take.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_CONNECT.min, "maximum" = bounds::ROUTER_CONNECT.max, "default" = "10s"
        ))]
        connect_max_ms: Span,
        /// How long a transaction may wait for a server connection.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_QUEUE.min, "maximum" = bounds::ROUTER_QUEUE.max, "default" = "30s"
        ))]
        queue_max_ms: Span,
        /// How old a shared server connection may get before another one is opened for it.
        #[schemars(extend("minimum" = bounds::ROUTER_AGE.min, "maximum" = bounds::ROUTER_AGE.max, "default" = "1h"))]
        age_max_ms: Span,
        /// How long a statement that met the fence waits for the new owner before the refusal is the application's.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_REFUSED.min, "maximum" = bounds::ROUTER_REFUSED.max, "default" = "10s"
        ))]
        refused_max_ms: Span,
        /// How long transactions are waited for when the router ends.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_DRAIN.min, "maximum" = bounds::ROUTER_DRAIN.max, "default" = "30s"
        ))]
        drain_max_ms: Span,
        /// The longest statement that is taken.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_STATEMENT.min, "maximum" = bounds::ROUTER_STATEMENT.max, "default" = "64MiB"
        ))]
        statement_bytes_max: Bytes,
        /// How reads are served by the side that follows, once `segue switch reads` moves a share of them.
        reads: RawRouterReads,
        /// How reads are compared on both sides, once `segue mirror` repeats a share of them.
        mirror: RawRouterMirror,
    }
}

section! {
    /// How reads are served by the side that follows.
    RawRouterReads ("`reads`", required: []) {
        /// A read that has not begun to be answered by then is repeated on the owner.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_ANSWER.min, "maximum" = bounds::ROUTER_ANSWER.max, "default" = "200ms"
        ))]
        answer_max_ms: Span,
        /// How long a read of a session that has only read waits for the follower to show as much, before it goes to the owner;
        /// one that has written is not made to wait.
        #[schemars(extend("minimum" = bounds::ROUTER_WAIT.min, "maximum" = bounds::ROUTER_WAIT.max, "default" = 50))]
        wait_max_ms: Span,
        /// A follower that shows no more than what was so long ago is not asked, whatever a session has seen.
        #[schemars(extend(
            "minimum" = bounds::ROUTER_STALE.min, "maximum" = bounds::ROUTER_STALE.max, "default" = "2s"
        ))]
        stale_max_ms: Span,
    }
}

section! {
    /// How reads are compared on both sides.
    RawRouterMirror ("`mirror`", required: []) {
        /// By how much of itself a float may differ. By default not in a byte.
        #[schemars(extend("minimum" = 0, "maximum" = 1))]
        float_tolerance: Number,
        /// By how much a timestamp may differ. By default not in a byte.
        #[schemars(extend("minimum" = bounds::ROUTER_TIMESTAMP.min, "maximum" = bounds::ROUTER_TIMESTAMP.max))]
        timestamp_tolerance_ms: Span,
        /// Whether `segue status` shows values and parameters of reads that differ; by default only where they differ.
        #[schemars(extend("default" = false))]
        show_values: bool,
        /// How many of the compared reads may differ before the gate `mirror` closes, in percent.
        #[schemars(extend("minimum" = 0, "maximum" = 100, "default" = 0))]
        mismatch_percent_max: Number,
    }
}

section! {
    /// TLS towards applications.
    RawRouterTls ("`tls`", required: ["certificate", "key"]) {
        /// The file of the certificate and of those that lead to its authority, in PEM form. Relative to the spec.
        certificate: String,
        /// The file of its key, in PEM form. Relative to the spec.
        key: String,
        /// Whether connections without TLS are refused.
        #[schemars(extend("default" = true))]
        required: bool,
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
