//! What a gate asks for in numbers, for people: a bound that is not seen cannot be questioned.

use super::judge::{percent_of_ppm, words};
use super::{Bounds, Gate};

/// What a gate asks for, with its bounds; empty for one that has none.
pub fn asks(gate: Gate, bounds: &Bounds) -> String {
    match gate {
        Gate::Lag if bounds.lag_window.is_zero() => format!("a lag of at most {} ms", bounds.lag_ms_max),
        Gate::Lag => format!(
            "a lag of at most {} ms in 99 of 100 samples over {}",
            bounds.lag_ms_max,
            words(bounds.lag_window)
        ),
        Gate::Drift => {
            let window = if bounds.drift_window.is_zero() {
                "since the last verification".to_owned()
            } else {
                format!("over {}", words(bounds.drift_window))
            };
            format!(
                "less than {} of the compared rows diverged {window}",
                percent_of_ppm(bounds.drift_ppm_below)
            )
        }
        Gate::Matches => bounds.matches_asked().map_or_else(String::new, |window| {
            format!(
                "at least {} of the repeated reads answered alike over {}",
                percent_of_ppm(bounds.matches_ppm_min),
                words(window)
            )
        }),
        Gate::Verified => {
            format!("each table compared in full, at most {} ago", words(bounds.verified_age_max))
        }
        Gate::WayBack => format!("the opposite stream at most {} bytes behind", bounds.way_back_bytes_max),
        Gate::Rehearsal => bounds.rehearsal_age_max.map_or_else(String::new, |age_max| {
            format!("a rehearsal that succeeded at most {} ago", words(age_max))
        }),
        Gate::LongTransactions => {
            format!("no transaction older than {}", words(bounds.transaction_age_max))
        }
        Gate::Replicas => format!("replicas less than {} ms behind", bounds.replica_lag_ms_max),
        Gate::Connections => {
            format!("{} % more connections than are needed", bounds.spare_connections_percent_min)
        }
        Gate::Mirror
        | Gate::Divergences
        | Gate::Sequences
        | Gate::Ddl
        | Gate::Parity
        | Gate::Wraparound
        | Gate::Sessions
        | Gate::Fence => String::new(),
    }
}

/// Why a gate is green without any evidence, if it is.
pub fn not_asked(gate: Gate, bounds: &Bounds) -> Option<&'static str> {
    match gate {
        Gate::Matches if !bounds.has_router => {
            Some("the spec has no `router`, by which alone reads are repeated")
        }
        Gate::Matches if bounds.matches_window.is_none() => {
            Some("the profile does not ask for repeated reads")
        }
        Gate::Rehearsal if bounds.rehearsal_age_max.is_none() => {
            Some("the profile does not ask for a rehearsal")
        }
        Gate::Lag
        | Gate::Drift
        | Gate::Matches
        | Gate::Mirror
        | Gate::Verified
        | Gate::Divergences
        | Gate::WayBack
        | Gate::Sequences
        | Gate::Rehearsal
        | Gate::Ddl
        | Gate::Parity
        | Gate::LongTransactions
        | Gate::Replicas
        | Gate::Connections
        | Gate::Wraparound
        | Gate::Sessions
        | Gate::Fence => None,
    }
}
