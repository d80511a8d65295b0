//! Where routers send the application's statements, as the driver tells them.
//!
//! A hint, not a decision: who owns the writes is in the ownership rows, and the fences keep everybody to it. A router that
//! has heard nothing new goes on with what it has; the worst that comes of it is a refused write, which it repeats.

use super::Side;
use super::ownership::Epoch;
use serde::{Deserialize, Serialize};

/// What a router needs to know of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Who takes the writes.
    pub owner: Side,
    /// As of which epoch of the ownership.
    pub epoch: Epoch,
    /// Nothing is to be begun now, as the writes are about to be handed over: for so many milliseconds at most, after
    /// which the route counts as if this were not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_ms_max: Option<u64>,
    /// The writes are about to leave this owner, or it is given up within so many milliseconds: who goes to it until then
    /// will soon want a connection on the other side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_ms_max: Option<u64>,
}

impl Route {
    /// To this side, and nothing is held.
    pub const fn to(owner: Side, epoch: Epoch) -> Route {
        Route { owner, epoch, hold_ms_max: None, leaves_ms_max: None }
    }

    /// The same, as it is told some time before the hold.
    #[must_use]
    pub const fn leaving(self, ms_max: u64) -> Route {
        Route { leaves_ms_max: Some(ms_max), ..self }
    }

    /// The same, while what is new is held.
    #[must_use]
    pub const fn held(self, ms_max: u64) -> Route {
        Route { hold_ms_max: Some(ms_max), ..self }
    }

    /// The same, so much later: nobody who hears of a hold late holds for longer.
    #[must_use]
    pub const fn aged(self, ms: u64) -> Route {
        let (hold_ms_max, leaves_ms_max) = (left(self.hold_ms_max, ms), left(self.leaves_ms_max, ms));
        Route { hold_ms_max, leaves_ms_max, ..self }
    }
}

/// What is left of a time.
const fn left(ms_max: Option<u64>, ms: u64) -> Option<u64> {
    match ms_max {
        Some(max) if max > ms => Some(max - ms),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_told_in_a_form_that_is_kept() {
        let route = Route::to(Side::Target, Epoch(4));
        let text = serde_json::to_string(&route).unwrap();
        assert_eq!(text, r#"{"owner":"target","epoch":4}"#);
        assert_eq!(serde_json::from_str::<Route>(&text).unwrap(), route);
        let text = serde_json::to_string(&route.held(2000)).unwrap();
        assert_eq!(text, r#"{"owner":"target","epoch":4,"hold_ms_max":2000}"#);
        assert_eq!(serde_json::from_str::<Route>(&text).unwrap(), route.held(2000));
        let leaving = route.leaving(900);
        let text = serde_json::to_string(&leaving).unwrap();
        assert_eq!(text, r#"{"owner":"target","epoch":4,"leaves_ms_max":900}"#);
        assert_eq!(serde_json::from_str::<Route>(&text).unwrap(), leaving);
        assert_eq!((leaving.aged(500), leaving.aged(900)), (route.leaving(400), route));
        assert_eq!(route.held(2000).aged(500), route.held(1500));
        assert_eq!(route.held(2000).aged(2000), route);
        assert!(serde_json::from_str::<Route>(r#"{"owner":"target","epoch":4,"mirror":3}"#).is_err());
    }
}
