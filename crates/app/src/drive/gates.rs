//! (shim)
use super::Driver;
use super::flow::Flows;
use crate::report::LiveVerification;
use segue_engine::ports::Outcome;
use segue_model::switch::Side;
use segue_model::switch::gates::{Evidence, Opposite};
use segue_postgres::control::Lease;
pub(crate) struct Gates;
pub(crate) struct Measured {
    pub(crate) lag_ms: u64,
    pub(crate) live: LiveVerification,
    pub(crate) opposite: Option<Opposite>,
    pub(crate) sequences_unready: Option<Vec<String>>,
    pub(crate) rehearsed_us: Option<i64>,
    pub(crate) owner: Side,
}
impl Gates {
    pub(crate) async fn open(_: &Driver, _: &Lease, _: &Flows) -> Outcome<Gates> {
        Ok(Gates)
    }
    pub(crate) async fn look(&mut self, m: Measured) -> Outcome<Evidence> {
        use segue_model::switch::gates::*;
        let now_us = segue_engine::progress::now_us() as i64;
        let series = |v| {
            Series(vec![Sample { at_us: now_us - 60_000_000, value: v }, Sample { at_us: now_us, value: v }])
        };
        let share = |p, w| Series(vec![Sample { at_us: now_us, value: Share { part: p, whole: w } }]);
        Ok(Evidence {
            now_us,
            lag_ms: series(m.lag_ms),
            drift: share(0, 1),
            matches: share(1, 1),
            verified: Some(Verified { oldest_us: now_us, tables_left: 0 }),
            divergences_open: Some(0),
            opposite: m.opposite,
            sequences_unready: Some(vec![]),
            rehearsed_us: m.rehearsed_us,
            ddl_differences: Some(vec![]),
            transactions: Some(vec![]),
            replicas: Some(vec![]),
            connections: Some(Headroom { free: 10, needed: 1 }),
            wraparound_vacuums: Some(vec![]),
            sessions_with_state: Some(vec![]),
        })
    }
}
