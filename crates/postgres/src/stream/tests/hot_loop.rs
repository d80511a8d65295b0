//! From messages to changes: it takes as many instructions as it did.

use super::*;
use crate::pgoutput::tests::encode;
use segue_testkit::instructions::HotLoop;
use std::hint::black_box;

const TRANSACTIONS: usize = 100;
/// Of one transaction.
const CHANGES: usize = 4;
const NAMES: [&str; CHANGES] = ["pgbench_accounts", "pgbench_tellers", "pgbench_branches", "pgbench_history"];
const COLUMNS: [&[&str]; CHANGES] = [
    &["aid", "bid", "abalance", "filler"],
    &["tid", "bid", "tbalance", "filler"],
    &["bid", "bbalance", "filler"],
    &["tid", "bid", "aid", "delta", "mtime", "filler"],
];
const HISTORY: usize = CHANGES - 1;

fn oid(table: usize) -> u32 {
    16_384 + table as u32
}

/// The tables of pgbench, as a plan has them.
fn pgbench() -> StreamPlan {
    let relation = |at: usize| {
        let key = Key {
            columns: vec![0],
            order: vec![KeyOrder::Integer],
            ordered_alike: true,
            bytewise: true,
            target_deferrable: false,
        };
        let identity = if at == HISTORY { Identity::WholeRow } else { Identity::Key(key) };
        let template = keyed().columns.remove(0);
        let name = QualifiedName::new("public", NAMES[at]);
        let columns = COLUMNS[at].iter().map(|name| Column {
            source: (*name).into(),
            target: (*name).into(),
            ..template.clone()
        });
        let table = Table {
            id: TableId(at as u32),
            source: name.clone(),
            target: name,
            columns: columns.collect(),
            ..table(identity)
        };
        let unit = UnitId::from(table.id);
        let plan = RelationPlan { table: Arc::new(table), unit, leaf: None, loose: false, expected: vec![] };
        (oid(at), Arc::new(plan))
    };
    StreamPlan { relations: (0..CHANGES).map(relation).collect(), ..plan_of(keyed()) }
}

fn descriptions() -> impl Iterator<Item = Message> {
    (0..CHANGES).map(|at| {
        let identity = if at == HISTORY { ReplicaIdentity::Full } else { ReplicaIdentity::Default };
        let columns = COLUMNS[at].iter().enumerate();
        let columns = columns.map(|(index, name)| column(name, index == 0 || at == HISTORY)).collect();
        let (schema, name) = ("public".into(), NAMES[at].into());
        Message::Relation(Relation { oid: oid(at), schema, name, identity, columns })
    })
}

/// What pgbench's transaction `n` (TPC-B) becomes.
fn tpc_b(n: usize) -> Vec<Message> {
    let (account, teller, balance) = (n * 7_919 % 100_000 + 1, n % 10 + 1, n * 37 % 5_000);
    let filler = " ".repeat(84);
    let full = |values: &[&str]| -> Row {
        let value = |text: &&str| match text.is_empty() {
            true => Value::Null,
            false => Value::Text(Bytes::copy_from_slice(text.as_bytes())),
        };
        values.iter().map(value).collect()
    };
    let [account, teller, balance] = [account, teller, balance].map(|number| number.to_string());
    let update =
        |at: usize, values: &[&str]| Message::Update { relation: oid(at), old: None, new: full(values) };
    let history = [&teller, "1", &account, &balance, "2026-01-02 03:04:05.678901", ""];
    let body = vec![
        update(0, &[&account, "1", &balance, &filler]),
        update(1, &[&teller, "1", &balance, ""]),
        update(2, &["1", &balance, ""]),
        Message::Insert { relation: oid(HISTORY), new: full(&history) },
    ];
    transaction(1_000 + 100 * n as u64, body)
}

#[test]
fn decoding_keeps_its_instructions() {
    let (_hold, plan) = watch::channel(Arc::new(pgbench()));
    let mut reader = Reader::new(plan, Position(0));
    let mut out = VecDeque::new();
    // Each relation is described once, before its first row.
    for description in descriptions() {
        reader.read(description, &mut out).unwrap();
    }
    let messages: Vec<Bytes> = (0..TRANSACTIONS).flat_map(tpc_b).map(|message| encode(&message)).collect();
    let decode = || {
        for message in &messages {
            let message = pgoutput::decode(black_box(message).clone()).unwrap();
            reader.read(message, &mut out).unwrap();
            while let Some(event) = out.pop_front() {
                black_box(event);
            }
        }
    };
    HotLoop {
        name: "decode",
        test: concat!(module_path!(), "::decoding_keeps_its_instructions"),
        item: "change",
        items: TRANSACTIONS * CHANGES,
        rounds: 2,
    }
    .keeps_its_instructions(decode);
}
