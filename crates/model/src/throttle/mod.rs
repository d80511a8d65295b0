//! How much of the servers is left to Segue while others need them: signals go in, shares come out.
//!
//! Whoever uses the servers is served first, the stream second, comparisons third, and the copy last; so the copy yields
//! first. Who measures a signal, by which clock, and how a share is kept to, is elsewhere.

mod governor;
mod observed;
mod share;

pub use governor::{Decided, Facts, Governor, Shares};
pub use observed::{Probes, Trail};
pub use share::Share;

use crate::switch::Side;
use crate::switch::rollback::Limit;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// How far a standby is behind its server, in milliseconds.
    ReplicaLag,
    /// The age of the oldest change that is not applied, in milliseconds.
    ApplyLag,
    /// Log that a server keeps for Segue, in bytes.
    RetainedWal,
    /// Sessions of others that are doing something.
    ActiveSessions,
    /// Sessions of others that wait for a lock.
    LockWaits,
    /// How long a server takes to answer the look itself, in milliseconds.
    Answer,
    /// 99th percentile of how long a small write takes to be durable, in milliseconds.
    ProbeWrite,
    /// The number that a statement of the operator's returns.
    Query,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 8] = [
        Signal::ReplicaLag,
        Signal::ApplyLag,
        Signal::RetainedWal,
        Signal::ActiveSessions,
        Signal::LockWaits,
        Signal::Answer,
        Signal::ProbeWrite,
        Signal::Query,
    ];

    /// As people see it.
    pub const fn name(self) -> &'static str {
        match self {
            Signal::ReplicaLag => "replica_lag",
            Signal::ApplyLag => "apply_lag",
            Signal::RetainedWal => "retained_wal",
            Signal::ActiveSessions => "active_sessions",
            Signal::LockWaits => "lock_waits",
            Signal::Answer => "answer",
            Signal::ProbeWrite => "probe_write",
            Signal::Query => "query",
        }
    }

    /// A value as people read it.
    pub fn show(self, value: f64) -> String {
        match self {
            Signal::ReplicaLag | Signal::ApplyLag | Signal::Answer | Signal::ProbeWrite => show_ms(value),
            Signal::RetainedWal => show_bytes(value),
            Signal::ActiveSessions | Signal::LockWaits | Signal::Query => value.to_string(),
        }
    }

    /// Whether it gets better when less is written to the side that it is measured on. What the stream itself is late with
    /// does not, and the log that is kept for it least of all.
    const fn is_eased_by_the_stream(self) -> bool {
        match self {
            Signal::ApplyLag | Signal::RetainedWal => false,
            Signal::ReplicaLag
            | Signal::ActiveSessions
            | Signal::LockWaits
            | Signal::Answer
            | Signal::ProbeWrite
            | Signal::Query => true,
        }
    }
}

fn show_ms(ms: f64) -> String {
    if ms < 1000.0 {
        return format!("{ms:.0} ms");
    }
    let text = format!("{:.1}", ms / 1000.0);
    format!("{} s", text.strip_suffix(".0").unwrap_or(&text))
}

fn show_bytes(bytes: f64) -> String {
    const MIB: f64 = 1_048_576.0;
    let (value, unit) =
        if bytes >= 1024.0 * MIB { (bytes / 1024.0 / MIB, "GiB") } else { (bytes / MIB, "MiB") };
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// A signal, and where it is measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Watched {
    /// What is measured.
    pub signal: Signal,
    /// On which side; `None`: in the control database.
    pub side: Option<Side>,
    /// The standby's name, or that of the operator's statement; empty for a signal that a side has one of.
    pub name: String,
}

impl Watched {
    /// A signal that each side has one of.
    pub fn on(signal: Signal, side: Side) -> Watched {
        Watched { signal, side: Some(side), name: String::new() }
    }

    /// What it is called.
    pub fn what(&self) -> String {
        match self.signal {
            Signal::Query => format!("query {}", self.name),
            other => other.name().to_owned(),
        }
    }

    /// Where it is measured.
    pub fn place(&self) -> String {
        let side = self.side.map_or("control database", Side::name);
        match self.signal {
            Signal::ReplicaLag => format!("{} ({side})", self.name),
            _ => format!("the {side}"),
        }
    }
}

/// How far a signal may go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// It is too high from here on.
    From(f64),
    /// As the operator says.
    Of(Limit),
}

impl Bound {
    /// A value has to be away from the limit by this part of it before the signal may end.
    const MARGIN: f64 = 0.2;

    fn is_exceeded(self, value: f64) -> bool {
        match self {
            Bound::From(limit) => value >= limit,
            Bound::Of(limit) => limit.is_exceeded(value),
        }
    }

    /// Clearly within the limit.
    fn is_calm(self, value: f64) -> bool {
        match self {
            Bound::From(limit) => value <= limit - limit.abs() * Self::MARGIN,
            Bound::Of(Limit::Above(limit)) => value <= limit - limit.abs() * Self::MARGIN,
            Bound::Of(Limit::Below(limit)) => value >= limit + limit.abs() * Self::MARGIN,
        }
    }

    /// The limit itself.
    pub fn number(self) -> f64 {
        match self {
            Bound::From(limit) | Bound::Of(Limit::Above(limit) | Limit::Below(limit)) => limit,
        }
    }

    /// How `value` compares with it, as people read it.
    fn compare(self, signal: Signal, value: f64) -> String {
        let is = match (self, self.is_exceeded(value)) {
            (Bound::From(_), true) => ">=",
            (Bound::From(_), false) | (Bound::Of(Limit::Below(_)), true) => "<",
            (Bound::Of(Limit::Above(_)), true) => ">",
            (Bound::Of(Limit::Above(_)), false) => "<=",
            (Bound::Of(Limit::Below(_)), false) => ">=",
        };
        format!("{} {is} {}", signal.show(value), signal.show(self.number()))
    }
}

/// What one look at a signal has come to.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// A number.
    Value(f64),
    /// The same over a while, of which the newest part was within the limit: no reason to yield more, nor to come back.
    Fading(f64),
    /// It could not be had just now: in which words.
    Unknown(String),
    /// It is not shown to Segue's role, and will not be: what to do about that.
    Hidden(String),
}

/// Why something yields, or does not come back yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// Which signal, and where.
    pub watched: Watched,
    /// Its last value.
    pub value: Option<f64>,
    /// How far it may go.
    pub bound: Bound,
    /// For how long it has been so.
    pub lasts: Duration,
    /// Why it cannot be measured, if it cannot.
    pub missing: Option<String>,
    /// It is beyond its limit, or has not been measured for too long; else it has been, and is not calm for long enough.
    pub is_beyond: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reason { watched, value, bound, lasts, missing, is_beyond } = self;
        let (what, place, lasts) = (watched.what(), watched.place(), format!("{} s", lasts.as_secs()));
        match (missing, value) {
            (Some(why), _) => write!(f, "{what} cannot be measured on {place} for {lasts}: {why}"),
            (None, Some(value)) if *is_beyond => {
                write!(f, "{what} {} on {place} for {lasts}", bound.compare(watched.signal, *value))
            }
            (None, Some(value)) => write!(
                f,
                "{what} {} on {place} again; it began {lasts} ago",
                bound.compare(watched.signal, *value)
            ),
            (None, None) => write!(f, "{what} was not measured on {place} for {lasts}"),
        }
    }
}

#[cfg(test)]
mod tests;
