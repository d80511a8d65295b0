//! The section `switch.gates`: the bounds of the profile, moved by what is written.

use std::time::Duration;

use super::Profile;
use super::bounds;
use super::problem::Problems;
use super::raw::RawGates;
use super::read::{At, Span};
use crate::switch::gates::Bounds;

/// The bounds that count. Where it adds problems, the spec is refused, whatever it returns.
pub(super) fn validate(
    raw: RawGates,
    profile: Profile,
    has_router: bool,
    problems: &mut Problems<'_>,
) -> Bounds {
    let standard = Bounds { has_router, ..Bounds::of(profile) };
    if let Some(written) = &raw.matches_window_ms
        && !has_router
    {
        problems.add_with_help(
            written.key_place,
            "`switch.gates.matches_window_ms` is about repeated reads, and the spec has no `router` that repeats any",
            "add `router`, or leave this key out",
        );
    }
    Bounds {
        lag_ms_max: bounds::GATE_LAG.settle(raw.lag_ms_max, standard.lag_ms_max, problems),
        lag_window: span(raw.lag_window_ms, bounds::GATE_LAG_WINDOW, standard.lag_window, problems),
        drift_window: span(raw.drift_window_ms, bounds::GATE_DRIFT_WINDOW, standard.drift_window, problems),
        matches_window: asked(
            raw.matches_window_ms,
            bounds::GATE_MATCHES_WINDOW,
            standard.matches_window,
            problems,
        ),
        verified_age_max: span(
            raw.verified_age_ms_max,
            bounds::GATE_VERIFIED_AGE,
            standard.verified_age_max,
            problems,
        ),
        rehearsal_age_max: asked(
            raw.rehearsal_age_ms_max,
            bounds::GATE_REHEARSAL_AGE,
            standard.rehearsal_age_max,
            problems,
        ),
        transaction_age_max: span(
            raw.transaction_age_ms_max,
            bounds::GATE_TRANSACTION_AGE,
            standard.transaction_age_max,
            problems,
        ),
        replica_lag_ms_max: bounds::GATE_REPLICA_LAG.settle(
            raw.replica_lag_ms_max,
            standard.replica_lag_ms_max,
            problems,
        ),
        ..standard
    }
}

fn span(
    written: Option<At<Span>>,
    within: bounds::Bounds,
    standard: Duration,
    problems: &mut Problems<'_>,
) -> Duration {
    let standard_ms = u64::try_from(standard.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(within.settle(written, standard_ms, problems))
}

/// What not every profile asks for; what is written is asked for in all of them.
fn asked(
    written: Option<At<Span>>,
    within: bounds::Bounds,
    standard: Option<Duration>,
    problems: &mut Problems<'_>,
) -> Option<Duration> {
    match written {
        Some(_) => Some(span(written, within, standard.unwrap_or_default(), problems)),
        None => standard,
    }
}
