//! What the status says of yielding.

use crate::report::{ReasonState, ThrottleState};
use segue_model::switch::Side;
use segue_model::throttle::{Bound, Reason, Signal, Watched};
use std::time::Duration;

pub(super) const FIELDS: &str = "what is left to Segue: `backfill_percent`, `verify_percent` and `stream_percent` by its `automatic` limits, if those \
     count, under the operator's `workers_max` and `bytes_per_s_max`; `reasons`, the signals that are on: which `signal`, what it \
     is measured `on`, its `value` and `limit` (milliseconds, bytes, or a number), for how long (`for_ms`), whether it is \
     `exceeded` now, why it is `missing` (empty if it is not), and all of that as `text`; and those that are `unwatched`, for \
     want of a grant";

pub(super) fn the_state() -> ThrottleState {
    let name = "replica-2".into();
    let reason = Reason {
        watched: Watched { signal: Signal::ReplicaLag, side: Some(Side::Source), name },
        value: Some(1_800.0),
        bound: Bound::From(1_000.0),
        lasts: Duration::from_secs(14),
        missing: None,
        is_beyond: true,
    };
    ThrottleState {
        backfill_percent: 13,
        reasons: vec![ReasonState::of(&reason)],
        ..ThrottleState::default()
    }
}
