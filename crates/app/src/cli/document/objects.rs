//! What `--json` prints, as values of the types that are printed, with the meaning of each field.

mod fault;
mod gates;
mod plan;
mod routing;
mod throttle;

pub(super) use fault::{fault, wrong_spec};
pub(super) use plan::{init, plan};
pub(super) use routing::{mirror, reads, router, status};

use crate::commands;
use crate::drive::switch::answer::{Answer, Blocked, Completion, Contained, Ended, Moved, Proof, StepTook};
use crate::report::{
    LiveVerification, Owner, RollbackState, RunState, SlotState, Status, WayBackIs, WayBackState,
};
use segue_engine::progress::{Snapshot, TableProgress, Wait};
use segue_engine::verify::ports::RangeCounts;
use segue_engine::verify::report::{Report, TableReport};
use segue_model::position::Position;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_model::switch::gates::{Blocker, Gate, Red};
use segue_model::switch::ownership::Epoch;
use segue_model::switch::rollback::Then;
use segue_model::switch::steps::Step;
use segue_postgres::control::{Entry, NewEntry};
use serde_json::{Value, json};
use std::time::Duration;

/// A path such as `tables[].rows`, and what is there. One that ends with `.*` stands for everything below it as well.
type Field = (&'static str, &'static str);

/// An object as a command prints it.
pub(super) struct Object {
    /// When it is printed.
    pub(super) when: String,
    /// An example.
    pub(super) value: Value,
    /// Its fields; empty: those of another object that `when` names.
    pub(super) fields: &'static [Field],
}

fn shown(when: &str, value: Value, fields: &'static [Field]) -> Object {
    Object { when: when.to_owned(), value, fields }
}

fn the_status() -> Status {
    let table = TableProgress {
        table: "public.orders".into(),
        rows: 1_250_000,
        bytes: 180_000_000,
        regions: 12,
        rows_estimated: 2_000_000,
        complete: false,
    };
    let wait = Wait { who: "copy".into(), reason: "paused by ada@db1: lunch".into(), since_ms: 1500 };
    let progress = Snapshot {
        running_ms: 60_000,
        tables: vec![table],
        transactions: 52_000,
        changes: 91_000,
        dropped: 310,
        stream_bytes: 14_000_000,
        replays: 0,
        received: Position(24_020_208),
        applied: Position(24_019_000),
        lag_bytes: 1208,
        lag_ms: 3,
        latency_ms: [2.9, 17.0, 90.0],
        waits: vec![wait],
    };
    Status {
        migration: "orders-move".into(),
        stage: Stage::Backfilling,
        owner: Owner::Source,
        run: RunState::Running,
        source: "segue@db1:5432/shop".into(),
        target: "segue@db2:5432/shop".into(),
        driver: "db2 process 4711".into(),
        token: 1_700_000_000_000,
        progress,
        slot: SlotState {
            name: "segue_orders_move_fwd".into(),
            retained_bytes: 1 << 20,
            retained_bytes_max: 10 << 30,
            wal_status: "reserved".into(),
            signal: 812,
        },
        live: LiveVerification { compared: 4000, hot: 2, divergent: 0, open: 0 },
        warnings: vec!["public.events is copied under one snapshot".into()],
        way_back: WayBackState { is: WayBackIs::Armed, why: String::new(), lag_bytes: 0, lag_ms: 0 },
        gates: vec![gates::the_gate()],
        trouble: vec!["source: pid 4712 (app, 'report') is idle in transaction for 3 min".into()],
        rollback: vec![RollbackState {
            name: "checkout errors".into(),
            then: Then::Reverse,
            limit: "above 50".into(),
            value: Some(3.0),
            missing: String::new(),
            beyond: 0,
            samples: 3,
            alerting: false,
            armed_ms: 3_540_000,
        }],
        throttle: throttle::the_state(),
    }
}

const STATUS: &[Field] = &[
    ("throttle.*", throttle::FIELDS),
    ("way_back", "the stream from the side that does not own the writes"),
    ("way_back.is", "`not_armed`, `arming`, `armed` or `lost`"),
    ("way_back.why", "what arming waits for, or why it was lost and what to do"),
    ("way_back.lag_bytes", "bytes of that side's log that are not applied"),
    ("way_back.lag_ms", "age of the oldest change that is not applied"),
    ("gates", "what has to hold before the next hand-over of writes, as it was last measured"),
    ("gates[].gate", "its name, as `--override` takes it"),
    ("gates[].green", "it holds"),
    ("gates[].since_us", "since when it has been so, in microseconds since 1970"),
    ("gates[].why", "why it does not hold"),
    ("gates[].next", "what to do about that"),
    ("gates[].protects_data", "it cannot be overridden"),
    ("gates[].asks", "what it asks for, with the bounds of profile and spec; empty for one that has none"),
    ("gates[].not_asked", "why it holds although nothing was measured for it; empty where it is asked for"),
    ("rollback", "the rollback triggers of the spec, while they are armed: for a while after a switch"),
    ("rollback[].name", "its name"),
    ("rollback[].then", "what it does when it trips: `alert` or `reverse`"),
    ("rollback[].limit", "beyond which value it trips"),
    ("rollback[].value", "the last sample; null before the first"),
    ("rollback[].missing", "why the last look had no sample; empty if it had one"),
    ("rollback[].beyond", "how many samples in a row were beyond the limit"),
    ("rollback[].samples", "how many in a row trip it"),
    ("rollback[].alerting", "it has alerted, and has not recovered since"),
    ("rollback[].armed_ms", "for how long it is armed from now on"),
    ("trouble", "what is wrong with the servers, whatever Segue does"),
    ("migration", "the migration"),
    ("stage", "`planned`, `preparing`, `backfilling`, `following`, `switched`, `completed` or `cancelled`"),
    (
        "owner",
        "who takes the writes: `source`, `target`, or `ambiguous` while a hand-over's outcome is not known",
    ),
    (
        "run.*",
        "`is`: `running`, `stopped`, `paused` (with `why`), `retrying` (with `fault`) or `failed` (with `code`, `fault` and `next_step`)",
    ),
    ("source", "where from, without the password"),
    ("target", "where to"),
    ("driver", "host and process of `segue run`"),
    ("token", "the driver's fencing token; grows with every attempt"),
    ("progress", "the copy and the stream"),
    ("progress.running_ms", "how long this process has driven"),
    ("progress.tables", "the copy, by table, biggest first"),
    ("progress.tables[].table", "its name on the source"),
    ("progress.tables[].rows", "rows copied and committed"),
    ("progress.tables[].bytes", "their bytes"),
    ("progress.tables[].regions", "regions committed"),
    ("progress.tables[].rows_estimated", "rows that the source's statistics promise"),
    ("progress.tables[].complete", "every region of it is copied"),
    ("progress.transactions", "transactions applied by this process"),
    ("progress.changes", "row changes applied"),
    ("progress.dropped", "row changes passed over, because a copy has them"),
    ("progress.stream_bytes", "bytes of row images received"),
    ("progress.replays", "batches that were repeated row by row"),
    ("progress.received", "how far the log was received"),
    ("progress.applied", "how far it is applied, durably"),
    ("progress.lag_bytes", "received and not yet durable"),
    ("progress.lag_ms", "age of the oldest change known not to be durable, sent or not; 0 without one"),
    (
        "progress.latency_ms",
        "commit to durable on the other side, over the last minute: median, 99th percentile, maximum",
    ),
    ("progress.waits", "what is waited for"),
    ("progress.waits[].who", "who waits: `copy`, `stream`, `birth`, …"),
    ("progress.waits[].reason", "for what, and why"),
    ("progress.waits[].since_ms", "for how long by now"),
    ("slot", "the replication slot of the stream"),
    ("slot.name", "its name"),
    ("slot.retained_bytes", "log that the server keeps because of it"),
    ("slot.retained_bytes_max", "`limits.retained_wal_bytes_max` of the spec; beyond it the copy yields"),
    ("slot.signal", "the last of Segue's signals on the source that was applied on the target"),
    ("slot.wal_status", "`reserved`, `extended`, `unreserved` or `lost`; empty before PostgreSQL 13"),
    ("live", "rows compared as they are applied, since the process began"),
    ("live.compared", "keys compared"),
    ("live.hot", "keys that changed too often to be compared"),
    ("live.divergent", "differences confirmed"),
    ("live.open", "of them, and of those found under a fence, those not found equal since"),
    ("warnings", "what an operator should know"),
];

pub(super) fn run() -> Vec<Object> {
    vec![
        shown(
            "Every few seconds, and whenever stage, owner or run state change:",
            json!(the_status()),
            STATUS,
        ),
        shown(
            "What is worth saying once:",
            crate::drive::message("standing by: db1 process 4711 drives migration orders-move"),
            &[("message", "the text")],
        ),
    ]
}

pub(super) fn verify() -> Vec<Object> {
    let counts = RangeCounts { rows: 2_000_000, digests: 24, unsettled: 3, ..RangeCounts::default() };
    let table = TableReport {
        table_id: 1,
        table: "public.orders".into(),
        rows_estimated: 2_000_000,
        ranges: 20,
        counts,
        complete: true,
        ..TableReport::default()
    };
    let report =
        Report { tables: vec![table], rows: 2_000_000, took_ms: 2700, complete: true, ..Report::default() };
    vec![shown("The report:", commands::verify::object(&report), VERIFY)]
}

const VERIFY: &[Field] = &[
    ("equal", "every row was compared, and none differs in a column that travels"),
    ("mode", "`aggregate`, `digest` or `sample`"),
    ("tables", "each table that was asked for"),
    ("tables[].table_id", "its number in the migration"),
    ("tables[].table", "its name on the source"),
    ("tables[].rows_estimated", "rows that the owner's statistics promise"),
    ("tables[].ranges", "ranges compared"),
    ("tables[].ranges_resumed", "of them, those that an earlier driver compared"),
    (
        "tables[].counts.*",
        "`rows` compared, `digests` read, rows `unsettled` at first, `hot` ones left, of them those `forgotten`, which no switch \
         compares for lack of room, `divergent` and `repaired` ones; \
         what reading the `owner` and the `other` side cost, each in `ms`, `rows` and `bytes`",
    ),
    ("tables[].hot_keys", "some of the rows that changed too often to be compared"),
    ("tables[].columns_not_compared", "columns that do not travel: generated, or only on one side"),
    ("tables[].complete", "all of it was gone through; with `--mode aggregate`, `counted` has both counts"),
    (
        "divergences",
        "the differences, a thousand at most: table, key, class, differing columns, both rows, with --repair \
         --dry-run the `remedy`, and with --repair why a row was `refused`",
    ),
    ("divergent", "how many there are"),
    ("rows_compared", "rows compared"),
    ("hot", "rows that changed too often to be compared"),
    ("drift", "differing rows among those compared; repaired ones are not counted"),
    ("took_ms", "how long it took"),
    ("complete", "everything asked for was gone through"),
];

pub(super) fn done() -> Vec<Object> {
    let done = json!(commands::order::Done { done: "resumed".into() });
    vec![shown("What the driver did:", done, &[("done", "in words")])]
}

fn moved(owner: Side, epoch: u64) -> Moved {
    let took = [
        (Step::Arm, 1_230_000),
        (Step::Hold, 0),
        (Step::Fence, 3100),
        (Step::Drain, 4200),
        (Step::Settle, 1900),
        (Step::Flip, 1400),
        (Step::Open, 1700),
    ];
    Moved {
        steps: took.map(|(step, us)| StepTook::new(step, Duration::from_micros(us))).to_vec(),
        sequences: 4,
        compared_under_fence: 10,
        unlike_baseline: vec![
            "source: 900 rows are written in a second, 200 in the baseline: the drain takes longer at a peak"
                .into(),
        ],
        standbys_without: vec!["east".into()],
        way_back_armed: true,
        ..Moved::to(owner, Epoch(epoch)).stalled(Duration::from_micros(12_300))
    }
}

const ARMED: &str = "the way back was armed for this, and stays so; absent where it was there before";

const MOVED: &[Field] = &[
    ("outcome", "`switched`; with --dry-run `rehearsed`; `already` when nothing had to be done"),
    ("owner", "who owns the writes now: `source` or `target`"),
    ("epoch", "raised by every hand-over; the first owner has 1"),
    ("stall_ms", "how long no side took writes; in a rehearsal, what a real switch would cost"),
    ("steps", "the steps that were taken, in order; a rehearsal ends with `settle`"),
    ("steps[].step", "`arm`, `hold`, `fence`, `drain`, `settle`, `flip` or `open`"),
    ("steps[].took_ms", "how long it took"),
    ("sequences", "sequences that were set on the new side"),
    (
        "compared_under_fence",
        "rows that were compared while nobody could write: those that never stood still before",
    ),
    ("divergences", "of them, those that differ, as [`verify`](#segue-verify) has them"),
    ("unlike_baseline", "what was unusual about the old owner's activity; absent if nothing was"),
    ("standbys_without", "standbys of the old owner without the hand-over: promoted, they take writes again"),
    ("way_back_armed", ARMED),
];

const REFUSED: &[Field] = &[
    ("outcome", "`refused`: no write was moved, or kept waiting"),
    ("blockers", "every gate that is red"),
    ("blockers[].gate", "its name, as `--override` takes it"),
    ("blockers[].why", "what was found, with the measured value and the bound"),
    ("blockers[].next", "what to do, or what will happen by itself"),
    (
        "blockers[].may_be_overridden",
        "it does not protect data: an operator may go through it, with a reason",
    ),
    ("way_back_armed", ARMED),
];

const UNDONE: &[Field] = &[
    ("outcome", "`undone`: it began, could not go on, and nothing is left of it"),
    ("owner", "who owns the writes, as before"),
    ("why", "what kept it from going on"),
    ("blockers_of_lock", "who held the locks that were waited for"),
    ("stall_ms", "how long no side took writes"),
    ("next_step", "what to do"),
];

pub(super) fn switch() -> Vec<Object> {
    let red =
        Red { why: "no rehearsal has succeeded".into(), next: "`segue switch writes --dry-run`".into() };
    let blocker = Blocker { gate: Gate::Rehearsal, red, may_be_overridden: true };
    let undone = Answer::undone(
        Side::Source,
        "public.orders could not be locked within 400 ms",
        vec!["pid 4242 (app, idle in transaction for 8 s)".into()],
        Duration::from_millis(400),
        "end that transaction, or wait for it, then switch again",
    );
    vec![
        shown("With exit code 0:", json!(Answer::Switched(moved(Side::Target, 2))), MOVED),
        shown("With exit code 3:", json!(Answer::refused([&blocker]).arming(true)), REFUSED),
        shown("With exit code 1, beside a fault:", json!(undone), UNDONE),
    ]
}

pub(super) fn reverse() -> Vec<Object> {
    let value = json!(Answer::already(Side::Source, Epoch(3)));
    vec![shown("The objects of [`switch writes`](#segue-switch-writes), such as:", value, &[])]
}

pub(super) fn complete() -> Vec<Object> {
    let proof = Proof {
        question: "reads of the source's tables".into(),
        found: "none since 72h ago at least".into(),
    };
    let ended = Ended {
        proofs: vec![proof],
        removed: vec!["source: publication segue_orders_move_fwd".into()],
        archived: vec!["/backup/orders/orders-move-source.dump".into()],
        dropped: Vec::new(),
        kept: vec!["source: the tables with their rows, as they were at the end".into()],
    };
    let blocked = Blocked {
        gate: "sessions".into(),
        why: "12min ago: the last statement of report (psql) at 10.0.0.7, process 4242 names public.orders"
            .into(),
        next: "point that client at the target, or end its session".into(),
        may_be_overridden: false,
    };
    let refused = json!(Completion::Refused { blockers: vec![blocked] });
    let fields: &[Field] = &[
        ("outcome", "`completed`; with --dry-run `rehearsed`; `already` when it was completed before"),
        ("proofs", "what shows that the source is not needed any more"),
        ("proofs[].question", "what was asked"),
        ("proofs[].found", "what was found, with the measured value"),
        ("removed", "Segue's own objects that are gone; with --dry-run, that would go"),
        ("archived", "files that the source's rows were written to"),
        ("dropped", "the source's tables that are gone; with --dry-run, that would go"),
        ("kept", "what stays, and how it goes"),
    ];
    vec![
        shown("With exit code 0:", json!(Completion::Completed(ended)), fields),
        shown("With exit code 3, in the fields of [`switch writes`](#segue-switch-writes):", refused, &[]),
    ]
}

pub(super) fn contain() -> Vec<Object> {
    let contained = Contained {
        owner: Owner::Source,
        stopped: vec!["the copy (4 workers)".into(), "the stream to the target".into()],
        took_ms: 87.0,
        watch: vec!["the source keeps its log for Segue meanwhile".into()],
        resume: "segue resume".into(),
    };
    let fields: &[Field] = &[
        ("owner", "who takes the writes, as in [`run`](#segue-run)"),
        ("stopped", "what was stopped, in words"),
        ("took_ms", "how long that took"),
        ("watch", "what has to be watched until it goes on"),
        ("resume", "the command that makes it go on"),
    ];
    vec![shown("What was stopped:", json!(contained), fields)]
}

pub(super) fn cancel() -> Vec<Object> {
    let removed = ["source: replication slot segue_orders_move_fwd".to_owned()];
    let fields: &[Field] = &[("removed", "each with its side"), ("owner", "who takes the writes, if known")];
    vec![shown("What was removed:", commands::cancel::object(&removed, Some(Owner::Source)), fields)]
}

pub(super) fn wait() -> Vec<Object> {
    let fields: &[Field] = &[("stage", "the stage that was waited for")];
    vec![shown("When it is reached:", commands::wait::object(Stage::Following), fields)]
}

pub(super) fn journal() -> Vec<Object> {
    let entry = NewEntry {
        version: 1,
        actor: "db2 process 4711".into(),
        kind: "command".into(),
        body: json!({ "command": "pause", "arguments": { "reason": "lunch" }, "by": "ada@db1" }),
    };
    let fields: &[Field] = &[
        ("seq", "the record's number"),
        ("at_us", "when, in microseconds since 1970, by the control database's clock"),
        ("version", "of the body's form"),
        ("actor", "who decided"),
        ("kind", "what was decided"),
        ("body.*", "the particulars, by kind"),
    ];
    let entry = Entry { seq: 7, at_us: 1_700_000_000_000_000, entry };
    vec![shown("One object for each record:", commands::journal::object(&entry), fields)]
}

pub(super) fn demo() -> Vec<Object> {
    let fields: &[Field] = &[
        (
            "clean",
            "the sides are equal, no acknowledged write is lost, no read was stale, what was planted was found and mended, \
             nothing was left behind",
        ),
        ("copied.*", "`rows` and `bytes` that were copied, in how many `seconds`, and the rate"),
        ("streamed.*", "`transactions` and `changes` that were streamed until the writes changed hands"),
        ("lag_ms.*", "commit to durable on the target: `p50`, `p99` and `max`"),
        ("last_write_after_ms", "until the last write was on the target"),
        (
            "verified.*",
            "`rows_compared` and `hot` rows under load, at first, before reads moved, and while the target owned the writes, \
             and when the load had ended; and `divergences`",
        ),
        (
            "writes.*",
            "transactions `acknowledged` and `per_second`, those of `unknown` outcome, `rows_checked`, how many are \
             `lost` by the owner's account, with examples, how many `differ_on_the_other_side`, and `errors` by kind",
        ),
        (
            "reads.*",
            "reads that clients `browsed` and their `latency_ms`; those for a row that their visitor had just written \
             (`read_back`) and how many did not show that (`stale`, with examples); rows `planted` on the target alone, how \
             often answers `differed` by that in which `statement`, `found_after_ms`, and how many were `mended`; answers \
             `compared_afterwards` and those that `differ_afterwards`",
        ),
        ("reads.shares", "each share that the target was to serve"),
        (
            "reads.shares[].*",
            "the `percent`, reads `answered` meanwhile and those `by_target`; what clients waited (`latency_ms`), `stale` \
             reads, and `errors` by kind",
        ),
        ("hand_overs", "each time that the writes changed hands, the rehearsal first"),
        ("hand_overs[].what", "in which direction"),
        ("hand_overs[].stall_ms", "how long no side took writes, by Segue's account"),
        (
            "hand_overs[].gap_ms",
            "the longest time in which no client's write was acknowledged, from a second before the order to a second \
             after its answer",
        ),
        (
            "hand_overs[].latency_ms.*",
            "what clients waited in that time, from the first try to the acknowledgement: `p50`, `p99` and `max`; null \
             if nothing was acknowledged",
        ),
        ("hand_overs[].errors.*", "how often clients met which kind of error in that time"),
        ("hand_over_latency_ms.*", "`latency_ms` of all hand-overs together"),
        ("left_behind", "what of Segue's was left after `cancel`; null with --keep"),
        ("seconds", "how long the demo took"),
    ];
    vec![shown("At the end:", crate::demo::example(), fields)]
}
