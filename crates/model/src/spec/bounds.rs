//! The numbers of a spec: what they are by default in each profile, and how far they may be moved.

use std::time::Duration;

use super::Profile;
use super::problem::Problems;
use super::quantity::{ShownBytes, ShownDuration};
use super::read::At;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOUR_MS: u64 = 3_600_000;

/// What a profile decides. This table is the only place where profiles differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Defaults {
    pub(super) copy_workers: u64,
    pub(super) region_target: Duration,
    pub(super) batch_bytes_max: u64,
    pub(super) retained_wal_bytes_max: u64,
    pub(super) memory_bytes_max: u64,
    pub(super) live: bool,
    pub(super) live_keys_per_second_max: u64,
    pub(super) range_rows: u64,
    pub(super) max_write_hold: Duration,
    pub(super) guard_ddl: bool,
    pub(super) throttle: ThrottleDefaults,
}

/// How far signals may go before Segue yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThrottleDefaults {
    pub(super) replica_lag_ms: u64,
    pub(super) apply_lag_ms: u64,
    pub(super) active_sessions: u64,
    pub(super) lock_waits: u64,
    pub(super) answer_ms: u64,
    pub(super) probe_write: bool,
    pub(super) probe_write_ms: u64,
}

const PROD: Defaults = Defaults {
    copy_workers: 4,
    region_target: Duration::from_millis(1000),
    batch_bytes_max: 16 * MIB,
    retained_wal_bytes_max: 10 * GIB,
    memory_bytes_max: 256 * MIB,
    live: true,
    live_keys_per_second_max: 200,
    range_rows: 20_000,
    max_write_hold: Duration::from_millis(2000),
    guard_ddl: true,
    throttle: ThrottleDefaults {
        replica_lag_ms: 1_000,
        apply_lag_ms: 10_000,
        active_sessions: 100,
        lock_waits: 10,
        answer_ms: 500,
        probe_write: true,
        probe_write_ms: 250,
    },
};

/// Where nobody is served by, there is less to be careful of …
const STAGING_THROTTLE: ThrottleDefaults = ThrottleDefaults {
    replica_lag_ms: 5_000,
    apply_lag_ms: 30_000,
    active_sessions: 200,
    lock_waits: 20,
    answer_ms: 1_000,
    probe_write: true,
    probe_write_ms: 500,
};
/// … and on a machine that everything shares only what stands still is a signal.
const DEV_THROTTLE: ThrottleDefaults = ThrottleDefaults {
    replica_lag_ms: 10_000,
    apply_lag_ms: 60_000,
    active_sessions: 1_000,
    lock_waits: 100,
    answer_ms: 5_000,
    probe_write: false,
    probe_write_ms: 1_000,
};

/// The defaults of a profile: those of prod, with fewer workers where the servers are small, and wider limits where fewer
/// depend on them.
pub(super) const fn defaults(profile: Profile) -> Defaults {
    match profile {
        Profile::Dev => Defaults { copy_workers: 2, throttle: DEV_THROTTLE, ..PROD },
        Profile::Staging => Defaults { copy_workers: 2, throttle: STAGING_THROTTLE, ..PROD },
        Profile::Prod => PROD,
    }
}

/// How the numbers of one key are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    Bytes,
    Milliseconds,
}

impl Unit {
    fn show(self, number: u64) -> String {
        match self {
            Unit::Count => number.to_string(),
            Unit::Bytes => ShownBytes(number).to_string(),
            Unit::Milliseconds => ShownDuration(Duration::from_millis(number)).to_string(),
        }
    }
}

/// The least and the most that the number of a key may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    key: &'static str,
    unit: Unit,
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Bounds {
    /// The number that counts: the written one, if it is within the bounds, else the default (beside a problem).
    pub(super) fn settle<T: Into<u64>>(
        &self,
        written: Option<At<T>>,
        default: u64,
        problems: &mut Problems<'_>,
    ) -> u64 {
        let Some(At { value, place, .. }) = written else { return default };
        let number = value.into();
        if (self.min..=self.max).contains(&number) {
            return number;
        }
        let [shown, min, max] = [number, self.min, self.max].map(|number| self.unit.show(number));
        problems.add_with_help(
            place,
            format!("`{}` cannot be {shown}", self.key),
            format!("from {min} to {max}"),
        );
        default
    }
}

/// Each worker holds a connection on both sides; more than this only takes CPU from the application.
pub(super) const COPY_WORKERS: Bounds = Bounds { key: "copy.workers", unit: Unit::Count, min: 1, max: 64 };
/// Below, the cost of a snapshot is most of a region; above, a region pins the source's xmin for long.
pub(super) const REGION_TARGET: Bounds =
    Bounds { key: "copy.region_target_ms", unit: Unit::Milliseconds, min: 50, max: 60_000 };
/// Below, a batch is a handful of rows; above, one batch holds target locks for seconds.
pub(super) const BATCH_BYTES: Bounds =
    Bounds { key: "apply.batch_bytes_max", unit: Unit::Bytes, min: 64 << 10, max: GIB };
/// Below, a few log segments (16 MiB each) of ordinary jitter would stop the backfill.
pub(super) const RETAINED_WAL_BYTES: Bounds =
    Bounds { key: "limits.retained_wal_bytes_max", unit: Unit::Bytes, min: 256 * MIB, max: 16 << 40 };
/// Below, every larger transaction goes through the disk.
pub(super) const MEMORY_BYTES: Bounds =
    Bounds { key: "limits.memory_bytes_max", unit: Unit::Bytes, min: 64 * MIB, max: 64 * GIB };
/// `verify.live: false` says none; a bound of 0 would say it by accident.
pub(super) const LIVE_KEYS_PER_SECOND: Bounds =
    Bounds { key: "verify.live_keys_per_second_max", unit: Unit::Count, min: 1, max: 100_000 };
/// Below, a digest is one query for few rows; above, one query runs for long.
pub(super) const RANGE_ROWS: Bounds =
    Bounds { key: "verify.range_rows", unit: Unit::Count, min: 100, max: 10_000_000 };
/// Below, a lock that a short transaction holds undoes every hand-over; above, applications time out.
pub(super) const MAX_WRITE_HOLD: Bounds =
    Bounds { key: "switch.max_write_hold_ms", unit: Unit::Milliseconds, min: 500, max: 60_000 };
/// Below, the pace at which it is looked is most of a lag; above, the drain outlasts every hold.
pub(super) const GATE_LAG: Bounds =
    Bounds { key: "switch.gates.lag_ms_max", unit: Unit::Milliseconds, min: 50, max: 60_000 };
/// Above, nothing is kept.
pub(super) const GATE_LAG_WINDOW: Bounds =
    Bounds { key: "switch.gates.lag_window_ms", unit: Unit::Milliseconds, min: 0, max: HOUR_MS };
/// Above, nothing is kept.
pub(super) const GATE_DRIFT_WINDOW: Bounds =
    Bounds { key: "switch.gates.drift_window_ms", unit: Unit::Milliseconds, min: 0, max: 72 * HOUR_MS };
/// Below, a handful of reads decides; above, nothing is kept.
pub(super) const GATE_MATCHES_WINDOW: Bounds = Bounds {
    key: "switch.gates.matches_window_ms",
    unit: Unit::Milliseconds,
    min: 10_000,
    max: 72 * HOUR_MS,
};
/// Below, none is young enough when it has ended; above, it says nothing of the rows as they are.
pub(super) const GATE_VERIFIED_AGE: Bounds = Bounds {
    key: "switch.gates.verified_age_ms_max",
    unit: Unit::Milliseconds,
    min: 60_000,
    max: 7 * 24 * HOUR_MS,
};
/// Below, none is young enough when the switch is ordered; above, it was of another load.
pub(super) const GATE_REHEARSAL_AGE: Bounds = Bounds {
    key: "switch.gates.rehearsal_age_ms_max",
    unit: Unit::Milliseconds,
    min: 60_000,
    max: 30 * 24 * HOUR_MS,
};
/// Below, ordinary transactions close the gate; above, no hold waits for so long.
pub(super) const GATE_TRANSACTION_AGE: Bounds =
    Bounds { key: "switch.gates.transaction_age_ms_max", unit: Unit::Milliseconds, min: 500, max: 600_000 };
/// Below, it measures the network; above, it is no replica that applications read from.
pub(super) const GATE_REPLICA_LAG: Bounds =
    Bounds { key: "switch.gates.replica_lag_ms_max", unit: Unit::Milliseconds, min: 10, max: 600_000 };
/// Below, a trigger is disarmed before it has its samples; above, what happened is not the switch's doing any more.
pub(super) const ROLLBACK_WATCH: Bounds =
    Bounds { key: "rollback.watch_ms", unit: Unit::Milliseconds, min: 10_000, max: 7 * 24 * 3_600_000 };
/// More in a row is a longer pause in other words.
pub(super) const ROLLBACK_SAMPLES: Bounds =
    Bounds { key: "rollback.triggers.for", unit: Unit::Count, min: 1, max: 100 };
/// Below, the queries are a load of their own.
pub(super) const ROLLBACK_EVERY: Bounds =
    Bounds { key: "rollback.triggers.every_ms", unit: Unit::Milliseconds, min: 500, max: 600_000 };
/// Below, the pace at which it is looked is most of a lag; above, nobody waits for such a standby.
pub(super) const REPLICA_LAG: Bounds =
    Bounds { key: "throttle.replica_lag_ms_max", unit: Unit::Milliseconds, min: 100, max: 3_600_000 };
/// Below, a large transaction stops the backfill; above, `limits.retained_wal_bytes_max` is met first.
pub(super) const APPLY_LAG: Bounds =
    Bounds { key: "throttle.apply_lag_ms_max", unit: Unit::Milliseconds, min: 500, max: 24 * 3_600_000 };
/// Above, no server has so many.
pub(super) const ACTIVE_SESSIONS: Bounds =
    Bounds { key: "throttle.active_sessions_max", unit: Unit::Count, min: 1, max: 100_000 };
/// Above, no server has so many.
pub(super) const LOCK_WAITS: Bounds =
    Bounds { key: "throttle.lock_waits_max", unit: Unit::Count, min: 1, max: 100_000 };
/// Below, it measures the network; above, no look takes so long.
pub(super) const ANSWER: Bounds =
    Bounds { key: "throttle.answer_ms_max", unit: Unit::Milliseconds, min: 20, max: 60_000 };
/// Below, it measures the network; above, applications have given up.
pub(super) const PROBE_WRITE: Bounds =
    Bounds { key: "throttle.probe_write_ms_max", unit: Unit::Milliseconds, min: 5, max: 60_000 };
/// Below, the queries are a load of their own.
pub(super) const THROTTLE_EVERY: Bounds =
    Bounds { key: "throttle.queries.every_ms", unit: Unit::Milliseconds, min: 500, max: 600_000 };
/// Each connection is a socket and some kilobytes.
pub(super) const ROUTER_CLIENTS: Bounds =
    Bounds { key: "router.clients_max", unit: Unit::Count, min: 1, max: 1_000_000 };
/// Servers have some hundred for everybody; more than that is a wrong number.
pub(super) const ROUTER_CONNECTIONS: Bounds =
    Bounds { key: "router.connections_max", unit: Unit::Count, min: 1, max: 10_000 };
/// Below, a slow line is locked out; above, sockets are held by whoever says nothing.
pub(super) const ROUTER_LOGIN: Bounds =
    Bounds { key: "router.login_max_ms", unit: Unit::Milliseconds, min: 500, max: 300_000 };
/// Below, a busy server is not reached; above, nobody waits any more.
pub(super) const ROUTER_CONNECT: Bounds =
    Bounds { key: "router.connect_max_ms", unit: Unit::Milliseconds, min: 200, max: 120_000 };
/// Above, nobody waits any more.
pub(super) const ROUTER_QUEUE: Bounds =
    Bounds { key: "router.queue_max_ms", unit: Unit::Milliseconds, min: 100, max: 600_000 };
/// Below, connections are opened all the time; above, servers do not give memory back.
pub(super) const ROUTER_AGE: Bounds =
    Bounds { key: "router.age_max_ms", unit: Unit::Milliseconds, min: 10_000, max: 7 * 24 * 3_600_000 };
/// Above, nobody waits any more.
pub(super) const ROUTER_REFUSED: Bounds =
    Bounds { key: "router.refused_max_ms", unit: Unit::Milliseconds, min: 100, max: 120_000 };
/// Above, whoever ends the router kills it.
pub(super) const ROUTER_DRAIN: Bounds =
    Bounds { key: "router.drain_max_ms", unit: Unit::Milliseconds, min: 100, max: 3_600_000 };
/// PostgreSQL takes no message above 1 GiB.
pub(super) const ROUTER_STATEMENT: Bounds =
    Bounds { key: "router.statement_bytes_max", unit: Unit::Bytes, min: 64 << 10, max: GIB };

/// Below, a read is repeated before a server can have answered; above, a follower that hangs is felt.
pub(super) const ROUTER_ANSWER: Bounds =
    Bounds { key: "router.reads.answer_max_ms", unit: Unit::Milliseconds, min: 10, max: 60_000 };
/// Above, waiting costs more than the owner's answer.
pub(super) const ROUTER_WAIT: Bounds =
    Bounds { key: "router.reads.wait_max_ms", unit: Unit::Milliseconds, min: 0, max: 10_000 };
/// Below, the stream's ordinary pace keeps every read with the owner; above, what is read is long past.
pub(super) const ROUTER_STALE: Bounds =
    Bounds { key: "router.reads.stale_max_ms", unit: Unit::Milliseconds, min: 100, max: 600_000 };
/// Above, it is another moment that is shown.
pub(super) const ROUTER_TIMESTAMP: Bounds =
    Bounds { key: "router.mirror.timestamp_tolerance_ms", unit: Unit::Milliseconds, min: 1, max: 60_000 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::gates::Bounds as Gates;

    #[test]
    fn every_default_is_within_its_bounds() {
        for profile in [Profile::Dev, Profile::Staging, Profile::Prod] {
            let d = defaults(profile);
            let region_ms = u64::try_from(d.region_target.as_millis()).unwrap();
            for (value, bounds) in [
                (d.copy_workers, COPY_WORKERS),
                (region_ms, REGION_TARGET),
                (d.batch_bytes_max, BATCH_BYTES),
                (d.retained_wal_bytes_max, RETAINED_WAL_BYTES),
                (d.memory_bytes_max, MEMORY_BYTES),
                (d.live_keys_per_second_max, LIVE_KEYS_PER_SECOND),
                (d.range_rows, RANGE_ROWS),
                (u64::try_from(d.max_write_hold.as_millis()).unwrap(), MAX_WRITE_HOLD),
                (d.throttle.replica_lag_ms, REPLICA_LAG),
                (d.throttle.apply_lag_ms, APPLY_LAG),
                (d.throttle.active_sessions, ACTIVE_SESSIONS),
                (d.throttle.lock_waits, LOCK_WAITS),
                (d.throttle.answer_ms, ANSWER),
                (d.throttle.probe_write_ms, PROBE_WRITE),
            ] {
                assert!(bounds.min <= value && value <= bounds.max, "{profile}: {value} outside {bounds:?}");
            }
        }
    }

    #[test]
    fn every_default_of_a_gate_is_within_its_bounds_and_no_window_reaches_beyond_what_is_kept() {
        let ms = |of: Duration| u64::try_from(of.as_millis()).unwrap();
        for profile in [Profile::Dev, Profile::Staging, Profile::Prod] {
            let gates = Gates::of(profile);
            for (value, bounds) in [
                (Some(gates.lag_ms_max), GATE_LAG),
                (Some(ms(gates.lag_window)), GATE_LAG_WINDOW),
                (Some(ms(gates.drift_window)), GATE_DRIFT_WINDOW),
                (gates.matches_window.map(ms), GATE_MATCHES_WINDOW),
                (Some(ms(gates.verified_age_max)), GATE_VERIFIED_AGE),
                (gates.rehearsal_age_max.map(ms), GATE_REHEARSAL_AGE),
                (Some(ms(gates.transaction_age_max)), GATE_TRANSACTION_AGE),
                (Some(gates.replica_lag_ms_max), GATE_REPLICA_LAG),
            ] {
                let Some(value) = value else { continue };
                assert!(bounds.min <= value && value <= bounds.max, "{profile}: {value} outside {bounds:?}");
            }
        }
        assert_eq!(GATE_LAG_WINDOW.max, ms(Gates::LAG_WINDOW_MAX));
        assert_eq!([GATE_DRIFT_WINDOW.max, GATE_MATCHES_WINDOW.max], [ms(Gates::WINDOW_MAX); 2]);
    }

    #[test]
    fn safety_is_on_in_every_profile() {
        for profile in [Profile::Dev, Profile::Staging, Profile::Prod] {
            assert!(defaults(profile).live && defaults(profile).guard_ddl);
        }
    }
}
