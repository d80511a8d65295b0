//! The bounds of the gates: those of each profile, which a spec may move (`switch: { gates: … }`).

use crate::spec::Profile;
use std::time::Duration;

/// How much is enough. Windows reach back from the moment of the evidence; a window of zero is the last sample alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The 99th percentile of the stream's lag is at most this, in milliseconds.
    pub lag_ms_max: u64,
    /// Over this window.
    pub lag_window: Duration,
    /// Divergent rows among compared ones stay below this, in parts per million.
    pub drift_ppm_below: u64,
    /// Over this window.
    pub drift_window: Duration,
    /// Repeated reads that answered alike are at least this, in parts per million.
    pub matches_ppm_min: u64,
    /// Over this window; `None`: the profile does not ask for it.
    pub matches_window: Option<Duration>,
    /// The spec has a router. Reads are repeated by routers only: without one nobody is asked for repeated reads.
    pub has_router: bool,
    /// Between two samples, and since the last one, at most this much time may pass: what was not watched is not known.
    pub gap_max: Duration,
    /// The last full verification ended at most this long ago.
    pub verified_age_max: Duration,
    /// The opposite stream is at most this far behind, in bytes.
    pub way_back_bytes_max: u64,
    /// The last successful rehearsal was at most this long ago; `None`: none is asked for.
    pub rehearsal_age_max: Option<Duration>,
    /// The oldest transaction on the owner's tables is at most this old. The fence waits for it, and while it waits, new
    /// writers wait behind it.
    pub transaction_age_max: Duration,
    /// Replicas of the new side are at most this far behind, in milliseconds.
    pub replica_lag_ms_max: u64,
    /// Connections that are free on the new side beyond those that will be needed, in percent of these.
    pub spare_connections_percent_min: u64,
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3600)
}

const PROD: Bounds = Bounds {
    lag_ms_max: 1000,
    lag_window: seconds(600),
    drift_ppm_below: 10,
    drift_window: hours(72),
    matches_ppm_min: 999_900,
    matches_window: Some(hours(24)),
    has_router: true,
    gap_max: seconds(300),
    verified_age_max: hours(24),
    way_back_bytes_max: 16 << 20,
    rehearsal_age_max: Some(hours(7 * 24)),
    transaction_age_max: seconds(10),
    replica_lag_ms_max: 50,
    spare_connections_percent_min: 20,
};

impl Bounds {
    /// No window is longer, whatever a spec says: what was measured before it is of no more use.
    pub const WINDOW_MAX: Duration = PROD.drift_window;
    /// The lag's window is no longer: it has a sample a second.
    pub const LAG_WINDOW_MAX: Duration = hours(1);

    /// The bounds of a profile, with a router. What protects data is the same in all of them but for its age.
    pub const fn of(profile: Profile) -> Bounds {
        match profile {
            Profile::Prod => PROD,
            Profile::Staging => Bounds {
                lag_window: seconds(60),
                drift_window: hours(1),
                matches_window: Some(hours(1)),
                rehearsal_age_max: Some(hours(30 * 24)),
                transaction_age_max: seconds(30),
                spare_connections_percent_min: 10,
                ..PROD
            },
            Profile::Dev => Bounds {
                lag_ms_max: 5000,
                lag_window: Duration::ZERO,
                drift_window: Duration::ZERO,
                matches_window: None,
                verified_age_max: hours(7 * 24),
                rehearsal_age_max: None,
                transaction_age_max: seconds(60),
                spare_connections_percent_min: 0,
                ..PROD
            },
        }
    }

    /// How long repeated reads have to have answered alike; `None`: nobody is asked for them.
    pub fn matches_asked(&self) -> Option<Duration> {
        self.matches_window.filter(|_| self.has_router)
    }
}
