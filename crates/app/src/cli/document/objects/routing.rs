//! What a router prints, and what it says of itself.

use super::{Field, Object, shown, the_status};
use crate::commands;
use crate::commands::status::Seen;
use crate::drive::reads::answer::{ReadsAnswer, RulesSet};
use crate::drive::switch::answer::Blocked;
use crate::report::{Latency, MirrorSeat, MismatchSeat, ReadsSeat, ServedSeat, StatsSeat, TimesSeat};
use segue_model::switch::Side;
use segue_model::switch::reads::ReadRules;
use serde_json::{Value, json};

const LOOK: &[Field] = &[
    ("alive", "a `segue run` is alive"),
    ("age_ms", "how old the report is; all other fields are those of [`run`](#segue-run)"),
    ("routers", "each router that was heard of within three seconds"),
    ("routers[].id", "host, process and a number that no other router has"),
    ("routers[].listen", "where it listens"),
    ("routers[].owner", "where it sends the writes: `source` or `target`"),
    ("routers[].epoch", "as of which hand-over"),
    ("routers[].held", "it holds what is new, for a hand-over"),
    ("routers[].clients", "applications' connections"),
    ("routers[].parked", "transactions that wait for a hand-over"),
    (
        "routers[].reads.*",
        "what became of reads since it began: the `share_percent` it goes by, the number of `tenants` with rules, `contained`; \
         reads `served` by the follower, gone to the owner as it was `too_early` or the breaker had opened before (`not_admitted`), \
         times that the follower `failed`, reads that were `repeated` on the owner; the `breaker` (`closed`, `open` or \
         `half-open`) and how often it has `opened`; SELECTs that each side has answered, movable or not (`selects_source`, \
         `selects_target`)",
    ),
    (
        "routers[].mirror.*",
        "what comparing reads has come to, since it was turned on (`since_us`) or the router began: the `percent` it goes by; \
         reads `compared`, of them `equal` and `mismatched`; reads that answer in two ways on one side (`noise`), for which \
         the follower was `stale`, that `failed` there, or were `dropped` for want of room; what both sides took for them (the repeated one with its BEGIN) \
         since the router began (`source_ms`, `target_ms`: `p50`, `p99`, `max`); and `mismatches`, the most frequent first: \
         the `statement` without its constants, its `count`, `why` it differs, and what to do `next`",
    ),
    (
        "routers[].statistics.*",
        "how it does since it began: `times` that each `side` took for each `kind` of statement (`count`, and `ms` with `p50`, \
         `p99`, `max`); how long transactions were parked (`parked_ms`); sessions that were bound to their server connection \
         (`pins`); shared connections (`pools`: `side`, `user`, `database`, `used`, `idle`, `max`); why statements that look like \
         reads stayed with the owner (`kept`); what was `served`, the last use of the source first: `user`, `application`, \
         `kind`, the `statement` without its constants, how often each side served it and how long ago (`source`, `source_ms_ago`, `target`, \
         `target_ms_ago`); and `slow_reads`, that the other side takes much longer for, with the plans of both",
    ),
    (
        "routers[].revision",
        "the last of the driver's words to routers by which all goes that is under way there: a number of 64 bits",
    ),
    ("reads", "which reads routers are told to move and to compare"),
    ("reads.share_percent", "how much the target serves while the source owns the writes"),
    ("reads.tenants.*", "tenants that one side serves, whatever the share"),
    ("reads.mirror_percent", "how many are compared"),
    ("reads.mirror_since_us", "since when, in microseconds since 1970; 0 while none are"),
    ("reads.contained", "`segue contain` has sent every read to the owner, until `segue resume`"),
];

pub(in crate::cli::document) fn status() -> Vec<Object> {
    let routers = vec![seat()];
    let seen = Seen { status: the_status(), age_ms: 420, alive: true, routers, reads: rules() };
    let mut value = commands::status::object(&seen);
    if let Some(object) = value.as_object_mut() {
        object.retain(|name, _| LOOK.iter().any(|(field, _)| field == name));
    }
    vec![shown(
        "The object of [`run`](#segue-run), with some more fields; with --watch one a second:",
        value,
        LOOK,
    )]
}

/// A router in the status.
pub(super) fn seat() -> Value {
    json!({
        "listen": "127.0.0.1:6432", "owner": "source", "epoch": 1, "held": false, "clients": 12, "parked": 0,
        "id": "db1 process 4712 1f2e3d4c5b6a7988", "revision": 1_700_000_000_000_000_001i64,
        "reads": the_reads(), "mirror": the_mirror(), "statistics": the_statistics(),
    })
}

fn the_reads() -> ReadsSeat {
    ReadsSeat {
        share_percent: 10,
        tenants: 1,
        served: 48_000,
        too_early: 310,
        repeated: 2,
        failed: 2,
        breaker: "closed".into(),
        selects_source: 431_000,
        selects_target: 48_000,
        ..ReadsSeat::default()
    }
}

fn the_statistics() -> StatsSeat {
    let served = ServedSeat {
        user: "shop".into(),
        application: "cart".into(),
        kind: "select".into(),
        statement: "SELECT balance FROM account WHERE id = $1".into(),
        source: 9_100,
        source_ms_ago: Some(4),
        target: 48_000,
        target_ms_ago: Some(1),
    };
    let ms = Latency { p50: 0.4, p99: 2.1, max: 14.0 };
    StatsSeat {
        times: vec![TimesSeat { side: Side::Source, kind: "select".into(), count: 9_100, ms }],
        kept: [("about_server".to_owned(), 12)].into(),
        served: vec![served],
        ..StatsSeat::default()
    }
}

fn the_mirror() -> MirrorSeat {
    let mismatch = MismatchSeat {
        statement: "SELECT balance FROM account WHERE id = $1".into(),
        count: 3,
        why: "the target's answer, beside the source's: values differ in column balance; 1 rows on the source, 1 on the \
              target; balance: 2 bytes / 3 bytes"
            .into(),
        next: "compare the tables it reads with `segue verify`".into(),
    };
    MirrorSeat {
        percent: 5,
        since_us: 1_700_000_000_000_000,
        compared: 2_400,
        equal: 2_397,
        mismatched: 3,
        noise: 4,
        source_ms: Latency { p50: 0.4, p99: 2.1, max: 14.0 },
        target_ms: Latency { p50: 0.5, p99: 2.0, max: 11.0 },
        mismatches: vec![mismatch],
        ..MirrorSeat::default()
    }
}

fn rules() -> ReadRules {
    ReadRules {
        share_percent: 10,
        tenants: [("acme".to_owned(), Side::Target)].into(),
        mirror_percent: 5,
        mirror_since_us: 1_700_000_000_000_000,
        contained: false,
    }
}

const RULES_SET: &[Field] = &[
    ("outcome", "`set`"),
    ("before.*", "the rules as they were, as in the `reads` of [`status`](#segue-status)"),
    ("now.*", "the rules as they are"),
    ("routers", "routers that were heard of lately"),
];

fn set() -> Object {
    let set = RulesSet { before: ReadRules::default(), now: rules(), routers: 2 };
    shown("With exit code 0:", json!(ReadsAnswer::Set(set)), RULES_SET)
}

/// What `segue switch reads` prints.
pub(in crate::cli::document) fn reads() -> Vec<Object> {
    let blocker = Blocked {
        gate: "lag".into(),
        why: "the lag is 9000 ms, of 5000 ms allowed".into(),
        next: "see in `segue status` what holds the stream back".into(),
        may_be_overridden: true,
    };
    let refused = json!(ReadsAnswer::Refused { blockers: vec![blocker] });
    let fields: &[Field] = &[
        ("outcome", "`refused`: nothing was changed"),
        ("blockers.*", "every gate that is red, as [`switch writes`](#segue-switch-writes) has them"),
    ];
    vec![set(), shown("With exit code 3:", refused, fields)]
}

/// What `segue mirror` prints.
pub(in crate::cli::document) fn mirror() -> Vec<Object> {
    vec![set()]
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
