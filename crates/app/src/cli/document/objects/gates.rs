//! The gates, as `status` has them.

use crate::report::GateState;
use segue_model::spec::Profile;
use segue_model::switch::gates::{Bounds, Gate, asks};

pub(super) fn the_gate() -> GateState {
    let gate = Gate::LongTransactions;
    GateState {
        gate,
        green: false,
        since_us: 1_700_000_000_000_000,
        why: "transactions are older than 10 s: pid 4712 (app, 'report') for 3 min".into(),
        next: "wait for them, or end them".into(),
        protects_data: false,
        asks: asks(gate, &Bounds::of(Profile::Prod)),
        not_asked: String::new(),
    }
}
