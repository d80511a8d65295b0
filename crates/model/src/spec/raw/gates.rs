//! The section `switch.gates` as it is written.

use schemars::JsonSchema;

use crate::spec::bounds;
use crate::spec::document::Node;
use crate::spec::problem::Problems;
use crate::spec::read::{At, Fields, Read, Span};

section! {
    /// How much is asked of the gates before reads or writes are moved.
    RawGates ("`gates`", required: []) {
        /// `lag`: the stream's lag is at most this, in 99 of 100 samples. By default 1 s in prod and staging, 5 s in dev.
        #[schemars(extend("minimum" = bounds::GATE_LAG.min, "maximum" = bounds::GATE_LAG.max, "default" = "1s"))]
        lag_ms_max: Span,
        /// `lag`: for so long it has been watched; 0 is the last sample. By default 10 min in prod, 1 min in staging, 0 in dev.
        #[schemars(extend(
            "minimum" = bounds::GATE_LAG_WINDOW.min, "maximum" = bounds::GATE_LAG_WINDOW.max, "default" = "10min"
        ))]
        lag_window_ms: Span,
        /// `drift`: over so long the share of compared rows that differ is counted; 0 is since the last verification. By default
        /// 72 h in prod, 1 h in staging, 0 in dev.
        #[schemars(extend(
            "minimum" = bounds::GATE_DRIFT_WINDOW.min, "maximum" = bounds::GATE_DRIFT_WINDOW.max, "default" = "72h"
        ))]
        drift_window_ms: Span,
        /// `matches`: for so long repeated reads have answered alike; only with `router`, which repeats them. By default 24 h in
        /// prod, 1 h in staging, and not asked for in dev.
        #[schemars(extend(
            "minimum" = bounds::GATE_MATCHES_WINDOW.min, "maximum" = bounds::GATE_MATCHES_WINDOW.max, "default" = "24h"
        ))]
        matches_window_ms: Span,
        /// `verified`: each table was compared in full at most so long ago. By default 24 h in prod and staging, 168 h in dev.
        #[schemars(extend(
            "minimum" = bounds::GATE_VERIFIED_AGE.min, "maximum" = bounds::GATE_VERIFIED_AGE.max, "default" = "24h"
        ))]
        verified_age_ms_max: Span,
        /// `rehearsal`: one succeeded at most so long ago. By default 168 h in prod, 720 h in staging, and not asked for in dev.
        #[schemars(extend(
            "minimum" = bounds::GATE_REHEARSAL_AGE.min, "maximum" = bounds::GATE_REHEARSAL_AGE.max, "default" = "168h"
        ))]
        rehearsal_age_ms_max: Span,
        /// `long-transactions`: no transaction that the fence would wait for is older. By default 10 s in prod, 30 s in staging,
        /// 1 min in dev.
        #[schemars(extend(
            "minimum" = bounds::GATE_TRANSACTION_AGE.min, "maximum" = bounds::GATE_TRANSACTION_AGE.max, "default" = "10s"
        ))]
        transaction_age_ms_max: Span,
        /// `replicas`: replicas of the new side are less than this behind.
        #[schemars(extend(
            "minimum" = bounds::GATE_REPLICA_LAG.min, "maximum" = bounds::GATE_REPLICA_LAG.max, "default" = 50
        ))]
        replica_lag_ms_max: Span,
    }
}
