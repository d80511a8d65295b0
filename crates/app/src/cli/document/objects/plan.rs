//! What `segue init --json` and `segue plan --json` print.

use super::{Field, Object, shown};
use crate::commands;
use crate::report::plan::{self, Estimate, Plan, PlannedTable, WayBack};
use segue_model::name::QualifiedName;
use segue_model::spec::Profile;
use segue_model::switch::Side;
use segue_model::switch::gates::Bounds;
use segue_postgres::changes::{Change, On, Step};
use segue_postgres::inventory::{Decision, Listed};
use segue_postgres::preflight::{Checked, Finding, Verdict};
use std::path::Path;

pub(in super::super) fn init() -> Vec<Object> {
    let decision = Decision {
        what: "is unlogged: its changes are in no log, and cannot be followed".into(),
        choices: vec!["ALTER TABLE \"public\".\"visit\" SET LOGGED;".into(), "leave it out".into()],
        can_move: false,
    };
    let name = QualifiedName::new("public", "visit");
    let table = Listed { name, rows: 0, bytes: 0, decisions: vec![decision] };
    let fields: &[Field] = &[
        ("spec", "the file"),
        ("tables", "how many tables move as it is written"),
        ("decisions", "what has to be decided"),
        ("decisions[].table", "about which table"),
        ("decisions[].what", "what is the matter"),
        ("decisions[].choices", "what can be done, the best first; statements are for the source"),
        ("decisions[].can_move", "it is among those that move, whatever is decided"),
    ];
    vec![shown("What was written:", commands::init::object(Path::new("segue.yaml"), &[table]), fields)]
}

pub(in super::super) fn plan() -> Vec<Object> {
    let finding = Finding {
        verdict: Verdict::Refuse,
        side: Some(Side::Source),
        object: None,
        what: "wal_level is replica on the source, not logical [SEGUE-WAL-LEVEL]".into(),
        remedy: "ALTER SYSTEM SET wal_level = 'logical'; and restart it".into(),
    };
    let check = Checked {
        check: "wal-level",
        asks: "does the source write what a stream needs?",
        findings: vec![finding],
    };
    let table = PlannedTable {
        source: "public.orders".into(),
        target: "public.orders".into(),
        rows: 2_000_000,
        bytes: 310 << 20,
        one_region: String::new(),
    };
    let estimate = Estimate {
        rows: 2_000_000,
        bytes: 310 << 20,
        index_bytes: 45 << 20,
        copy_workers: 2,
        read_bytes_per_s: 80 << 20,
        log_bytes_per_s: 1 << 20,
        retained_log_bytes_max: 10 << 30,
        ..Estimate::default()
    };
    let change = Change {
        step: Step::Prepare,
        on: On::Source,
        what: "the change stream",
        sql: "SELECT pg_create_logical_replication_slot('segue_orders_move_fwd', 'pgoutput')".into(),
    };
    let plan = Plan {
        migration: "orders-move".into(),
        source: "segue@db1:5432/shop".into(),
        target: "segue@db2:5432/shop".into(),
        control: "segue@db2:5432/shop".into(),
        may_begin: false,
        checks: vec![check],
        tables: vec![table],
        left_out: vec!["public.audit".into()],
        estimate: estimate.conclude(),
        steps: plan::life(&Bounds::of(Profile::Prod)).into_iter().take(1).collect(),
        changes: vec![change],
        way_back: WayBack { is_possible: true, sentence: "Until `segue complete`, …".into() },
    };
    vec![
        shown("The plan:", commands::plan::object(&plan), PLAN),
        shown(
            "With `--schema-only-plan`:",
            commands::plan::schema_object(&["CREATE TABLE public.orders (…);".to_owned()]),
            &[("schema", "the statements, in the order in which they are run")],
        ),
        shown("With `--grants`:", commands::plan::grants_example(), GRANTS),
    ]
}

const PLAN: &[Field] = &[
    ("migration", "its name"),
    ("source", "where the tables are"),
    ("target", "where they go"),
    ("control", "where journal and commands are"),
    ("may_begin", "no check refuses"),
    ("checks", "every check; one without findings has passed"),
    ("checks[].check", "its name"),
    ("checks[].asks", "the question that it asks"),
    ("checks[].findings", "what it has found, the worst first"),
    (
        "checks[].findings[].verdict",
        "`refuse`: `segue run` will not begin; `warn`: something will be in the way later; `pass`: to be known",
    ),
    ("checks[].findings[].side", "`source` or `target`, where it is one of them"),
    ("checks[].findings[].object", "the table, role, slot or other object, where it is one"),
    ("checks[].findings[].what", "what was found, and why it matters"),
    ("checks[].findings[].remedy", "what to do: SQL for that side, a setting, a command, or words"),
    ("tables", "the tables that move"),
    ("tables[].source", "its name on the source"),
    ("tables[].target", "its name on the target"),
    ("tables[].rows", "rows, by the source's statistics"),
    ("tables[].bytes", "bytes on disk, without indexes"),
    ("tables[].one_region", "why it is copied in one piece; empty: region by region"),
    (
        "left_out",
        "tables in the schemas of these that do not move; references and triggers that lead there are among the findings",
    ),
    (
        "estimate.*",
        "`rows`, `bytes`, `index_bytes` there are; what a connection reads (`read_bytes_per_s`, 0: too few rows to tell), and so \
         the shortest time of the copy with so many `copy_workers` (`copy_s_min`); `log_bytes_per_s` that the source writes now, \
         what it may have to keep (`retained_log_bytes`, at most `retained_log_bytes_max`); the room needed on the target (`target_bytes`)",
    ),
    ("steps", "the life of the migration"),
    ("steps[].command", "the command that does it; empty: the one before goes on"),
    ("steps[].what", "what it does"),
    ("steps[].step", "the `changes[].step` that belong to it, if any do"),
    ("changes", "every statement that changes something on a server, but for rows"),
    ("changes[].step", "when: `prepare`, `copy`, `arm`, `switch`, `complete`, `cancel`"),
    ("changes[].on", "`source`, `target` or `control`"),
    ("changes[].what", "what it is for"),
    ("changes[].sql", "as it is run"),
    ("way_back", "the rollback boundary of this very migration"),
    ("way_back.is_possible", "writes can go back after a switch"),
    ("way_back.sentence", "until when and how, or why not"),
];

const GRANTS: &[Field] = &[
    ("grants", "each side that was asked for"),
    ("grants[].side", "`source`, `target` or `control`"),
    ("grants[].role", "the role that is meant"),
    ("grants[].statements", "for a superuser to run, in this order"),
    ("grants[].remarks", "what no statement can give"),
];
