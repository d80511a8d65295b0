//! What a router prints, and what it says of itself.

use super::{Object, shown};
use serde_json::{Value, json};

/// A router in the status.
pub(super) fn seat() -> Value {
    json!({
        "listen": "127.0.0.1:6432", "owner": "source", "epoch": 1, "held": false, "clients": 12, "parked": 0,
        "id": "db1 process 4712 1f2e3d4c5b6a7988", "revision": 3_000_001,
    })
}

/// What `segue router` prints.
pub(in crate::cli::document) fn router() -> Vec<Object> {
    vec![
        shown(
            "At its start:",
            json!({
                "listen": "127.0.0.1:6432", "owner": "source", "epoch": 1, "pool": "session", "auth": "scram",
                "tls": "none",
            }),
            &[
                ("listen", "where it listens"),
                ("owner", "who owns the writes: `source` or `target`"),
                ("epoch", "as of which hand-over"),
                ("pool", "`session` or `transaction`"),
                ("auth", "`scram` or `trust`"),
                ("tls", "towards applications: `none`, `optional` or `required`"),
            ],
        ),
        shown(
            "Whenever the writes go elsewhere:",
            json!({ "owner": "target", "epoch": 2 }),
            &[("owner", "who owns them now"), ("epoch", "as of which hand-over")],
        ),
        shown(
            "What is worth saying once:",
            crate::drive::message("the router hears from the control database again"),
            &[("message", "the text")],
        ),
    ]
}
