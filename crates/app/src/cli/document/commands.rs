//! How each command can end, which faults matter to it, and which objects it prints.

use super::objects::{self, Object};
use crate::exit::Exit;

/// What clap does not know of a command.
pub(super) struct Facts {
    /// Its full name.
    pub(super) command: &'static str,
    /// How it can end, and when.
    pub(super) ends: &'static [(Exit, &'static str)],
    /// Codes of faults that an operator is most likely to meet here.
    pub(super) faults: &'static [&'static str],
    /// What `--json` prints.
    pub(super) objects: fn() -> Vec<Object>,
}

/// What is known of a command.
pub(super) fn of(name: &str) -> Option<&'static Facts> {
    FACTS.iter().find(|facts| facts.command == name)
}

const USAGE: (Exit, &str) = (Exit::Usage, "the command line or the spec is wrong; nothing was done");
const ORDERED: &[(Exit, &str)] = &[
    (Exit::Done, "the driver has done it"),
    (Exit::Fault, "the driver refused it, or there is none"),
    USAGE,
];
const MOVED: &[(Exit, &str)] = &[
    (
        Exit::Done,
        "the writes have moved, or had before; with --dry-run, the rehearsal went to its end and was undone",
    ),
    (Exit::Fault, "it was undone, and the owner takes writes as before; or a fault"),
    (Exit::Usage, "the command line or the spec is wrong, or a gate that protects data was to be overridden"),
    (
        Exit::GateRefused,
        "gates are red; no write was moved, or kept waiting, and each gate is printed with the next step",
    ),
];
const DRIVEN: &[&str] = &["SEGUE-NO-DRIVER", "SEGUE-NEVER-RUN", "SEGUE-VERB"];
const FOLLOWED: &[&str] = &[
    "SEGUE-NO-DRIVER",
    "SEGUE-DRIVER-DIED",
    "SEGUE-NO-ANSWER",
    "SEGUE-NOT-AWAITED",
    "SEGUE-WITHDRAWN",
    "SEGUE-COMPLETED",
    "SEGUE-COMPLETING",
    "SEGUE-VERB",
    "SEGUE-WAY-BACK-LOST",
];

/// Of orders that ask something of the side that follows.
const READING: &[&str] = &[
    "SEGUE-NO-ROUTER",
    "SEGUE-NOT-FOLLOWING",
    "SEGUE-PAUSED",
    "SEGUE-READS-MOVED",
    "SEGUE-NO-DRIVER",
    "SEGUE-NEVER-RUN",
    "SEGUE-VERB",
];

/// Of the order that ends a migration: it is followed, and may meet what keeps the source's tables.
const ENDING: &[&str] = &[
    "SEGUE-NO-DRIVER",
    "SEGUE-DRIVER-DIED",
    "SEGUE-NO-ANSWER",
    "SEGUE-NOT-AWAITED",
    "SEGUE-WITHDRAWN",
    "SEGUE-COMPLETING",
    "SEGUE-VERB",
];

/// One line for each command.
pub(super) const FACTS: &[Facts] = &[
    Facts {
        command: "init",
        ends: &[
            (Exit::Done, "the spec is written"),
            (Exit::Fault, "a server cannot be asked, or the file cannot be written"),
            (Exit::Usage, "the command line is wrong; nothing was done"),
        ],
        faults: &["SEGUE-SPEC-FILE", "SEGUE-CONNECTION", "SEGUE-LOGIN"],
        objects: objects::init,
    },
    Facts {
        command: "plan",
        ends: &[
            (Exit::Done, "nothing stands in the way; or the grants were printed"),
            (Exit::Fault, "a server cannot be asked"),
            USAGE,
            (Exit::GateRefused, "a check refuses; each is printed with its remedy"),
        ],
        faults: &["SEGUE-CONNECTION", "SEGUE-LOGIN", "SEGUE-SELECTION"],
        objects: objects::plan,
    },
    Facts {
        command: "run",
        ends: &[
            (
                Exit::Done,
                "the stage of --until is reached; or it was told to end, by a signal or by `segue cancel`",
            ),
            (Exit::Fault, "a person is needed; what does not need one is tried again"),
            USAGE,
        ],
        faults: &[
            "SEGUE-PLAN",
            "SEGUE-PLAN-CHANGED",
            "SEGUE-NOT-EMPTY",
            "SEGUE-NO-KEY",
            "SEGUE-PRIVILEGE",
            "SEGUE-LOGIN",
            "SEGUE-CONNECTION",
            "SEGUE-WAL-LEVEL",
            "SEGUE-DDL-DRIFT",
            "SEGUE-ROW",
            "SEGUE-LOCKED",
            "SEGUE-DISK-FULL",
            "SEGUE-SLOT-LOST",
            "SEGUE-SLOT-REMADE",
            "SEGUE-PUBLICATION-LOST",
            "SEGUE-TIMELINE",
            "SEGUE-SOURCE-BEHIND",
            "SEGUE-CHECKPOINT-BEHIND",
            "SEGUE-OTHER-SERVER",
            "SEGUE-OTHER-TARGET",
            "SEGUE-STREAM-INTACT",
            "SEGUE-NO-STREAM",
            "SEGUE-TARGET-OWNS",
            "SEGUE-SUPERSEDED",
        ],
        objects: objects::run,
    },
    Facts {
        command: "router",
        ends: &[
            (Exit::Done, "it was told to end, and transactions had finished or had their time"),
            (Exit::Fault, "it cannot listen, or it is not known who owns the writes"),
            USAGE,
        ],
        faults: &[
            "SEGUE-ROUTER",
            "SEGUE-ROUTER-USERS",
            "SEGUE-ROUTER-TLS",
            "SEGUE-LISTEN",
            "SEGUE-NO-ROUTE",
            "SEGUE-ROUTE",
        ],
        objects: objects::router,
    },
    Facts {
        command: "status",
        ends: &[(Exit::Done, "it was shown, also when no driver is alive"), (Exit::Fault, "a fault"), USAGE],
        faults: &["SEGUE-NEVER-RUN", "SEGUE-STATUS", "SEGUE-CONNECTION"],
        objects: objects::status,
    },
    Facts {
        command: "verify",
        ends: &[
            (
                Exit::Done,
                "no difference in all rows, but for a few that never stood still; with --mode aggregate or sample, in what that looks at",
            ),
            (Exit::Fault, "a fault; or too many rows never stood still for anything to be said"),
            USAGE,
            (Exit::Divergence, "a difference was found; with --repair, one that is still there"),
        ],
        faults: &[
            "SEGUE-NOT-FOLLOWING",
            "SEGUE-PAUSED",
            "SEGUE-NO-TABLE",
            "SEGUE-COMPLETED",
            "SEGUE-NO-DRIVER",
        ],
        objects: objects::verify,
    },
    Facts { command: "pause", ends: ORDERED, faults: DRIVEN, objects: objects::done },
    Facts { command: "resume", ends: ORDERED, faults: DRIVEN, objects: objects::done },
    Facts { command: "throttle", ends: ORDERED, faults: DRIVEN, objects: objects::done },
    Facts { command: "switch writes", ends: MOVED, faults: FOLLOWED, objects: objects::switch },
    Facts {
        command: "switch reads",
        ends: &[
            (Exit::Done, "the rules are in force"),
            (Exit::Fault, "the driver refused it, or there is none"),
            (
                Exit::Usage,
                "the command line or the spec is wrong, or a gate that protects data was to be overridden",
            ),
            (Exit::GateRefused, "gates are red; nothing was changed, and each is printed with the next step"),
        ],
        faults: READING,
        objects: objects::reads,
    },
    Facts { command: "mirror", ends: ORDERED, faults: READING, objects: objects::mirror },
    Facts { command: "reverse", ends: MOVED, faults: FOLLOWED, objects: objects::reverse },
    Facts {
        command: "contain",
        ends: &[
            (Exit::Done, "everything that could write to the side that does not own the writes is stopped"),
            (Exit::Fault, "a fault; the message says how to stop it by hand"),
            USAGE,
        ],
        faults: &["SEGUE-NO-DRIVER", "SEGUE-NO-ANSWER", "SEGUE-VERB"],
        objects: objects::contain,
    },
    Facts {
        command: "complete",
        ends: &[
            (Exit::Done, "it is completed, or was before; with --dry-run, it could be"),
            (Exit::Fault, "a fault"),
            USAGE,
            (
                Exit::GateRefused,
                "the source cannot be done without yet; nothing was changed, and each reason is printed",
            ),
        ],
        faults: ENDING,
        objects: objects::complete,
    },
    Facts {
        command: "cancel",
        ends: &[
            (Exit::Done, "nothing of Segue's is left on either side"),
            (Exit::Fault, "a fault; given again, it goes on where it was"),
            USAGE,
        ],
        faults: &[
            "SEGUE-LEASE",
            "SEGUE-LOCKED",
            "SEGUE-NOTHING-FILLED",
            "SEGUE-SWITCHED",
            "SEGUE-OTHER-SOURCE",
            "SEGUE-OTHER-TARGET",
            "SEGUE-CONNECTION",
        ],
        objects: objects::cancel,
    },
    Facts {
        command: "wait",
        ends: &[
            (Exit::Done, "the stage is reached"),
            (Exit::Fault, "--timeout has passed, the driver failed, or none is alive"),
            USAGE,
        ],
        faults: &["SEGUE-TIMEOUT", "SEGUE-FAILED", "SEGUE-NO-DRIVER"],
        objects: objects::wait,
    },
    Facts {
        command: "journal",
        ends: &[(Exit::Done, "it was shown"), (Exit::Fault, "a fault"), USAGE],
        faults: &["SEGUE-NEVER-RUN", "SEGUE-CONNECTION"],
        objects: objects::journal,
    },
    Facts {
        command: "schema",
        ends: &[(Exit::Done, "it was printed"), (Exit::Fault, "standard output cannot be written"), USAGE],
        faults: &[],
        objects: Vec::new,
    },
    Facts {
        command: "demo",
        ends: &[
            (Exit::Done, "both sides are equal and no acknowledged write is lost"),
            (Exit::Fault, "it could not be carried out"),
            USAGE,
            (Exit::Divergence, "the sides differ, or an acknowledged write is lost"),
        ],
        faults: &[],
        objects: objects::demo,
    },
];
