//! What `--json` prints where a command ends with a fault.

use super::{Field, Object, shown};
use crate::commands;
use crate::load::LoadError;
use segue_engine::fault::Fault;
use segue_model::spec::Spec;
use serde_json::Value;

/// The object of a fault.
pub(in super::super) fn fault() -> Object {
    let fault = Fault::operator(
        "SEGUE-NO-DRIVER",
        "nobody drives migration orders-move: db1 process 4711 ended 12 s ago",
        "start it with `segue run`, on any machine that reaches the databases",
    );
    let fields: &[Field] = &[
        ("code", "the fault's code; see [Faults](#faults)"),
        ("fault", "what happened, to what"),
        ("next_step", "what to do; empty when Segue goes on by itself"),
    ];
    shown("A fault (`run` adds it as its last line):", commands::fault_object(&fault), fields)
}

/// A spec with a slip of the pen.
const WRONG: &str = "migration: orders-move\nprofil: staging\nsource: { postgres: 'postgres://db1/shop' }\n\
                     target: { postgres: 'postgres://db2/shop' }\ntables: [public.orders]\n";

/// The object of a spec that is wrong.
pub(in super::super) fn wrong_spec() -> Object {
    let refused = Spec::parse("segue.yaml", WRONG, &|_| None).err();
    let object = refused.map_or(Value::Null, |error| LoadError::Refused(error).object());
    let fields: &[Field] = &[
        ("code", "`SEGUE-SPEC`; where the file cannot be read, `SEGUE-SPEC-FILE`, without `problems`"),
        ("fault", "what is wrong, a line for each problem"),
        ("next_step", "what to do"),
        ("problems", "everything that is wrong"),
        ("problems[].file", "the file, as it was given"),
        ("problems[].line", "the line, from 1"),
        ("problems[].column", "the column, from 1, in characters"),
        ("problems[].message", "what is wrong"),
        ("problems[].help", "what to do about that; empty where the message says it"),
    ];
    shown("A spec that is wrong (exit code 2, and nothing was done):", object, fields)
}
