//! The reader without a server.

mod hot_loop;

use super::*;
use crate::pgoutput::{Relation, RelationColumn, ReplicaIdentity};
use bytes::Bytes;
use segue_model::change::Leaf;
use segue_model::name::QualifiedName;
use segue_model::table::{
    ArrayForm, Column, Estimate, Identity, Key, KeyOrder, Table, TableId, Transport, UnitId,
};

const T: u32 = 100;
const SIGNAL: u32 = 7;

fn table(identity: Identity) -> Table {
    let column = |name: &str| Column {
        source: name.into(),
        target: name.into(),
        target_type: "text".into(),
        transport: Transport::Binary,
        array: ArrayForm::Typed,
        nullable: true,
        identity_always: false,
    };
    Table {
        id: TableId(3),
        source: QualifiedName::new("public", "t"),
        target: QualifiedName::new("public", "t"),
        columns: vec![column("id"), column("a")],
        identity,
        one_region: None,
        estimate: Estimate::default(),
    }
}

fn keyed() -> Table {
    table(Identity::Key(Key {
        columns: vec![0],
        order: vec![KeyOrder::Bytes],
        ordered_alike: true,
        bytewise: true,
        target_deferrable: false,
    }))
}

fn plan_of(table: Table) -> StreamPlan {
    let relation =
        RelationPlan { table: Arc::new(table), unit: UnitId(3), leaf: None, loose: false, expected: vec![] };
    StreamPlan {
        migration: "m".into(),
        signal: SIGNAL,
        relations: [(T, Arc::new(relation))].into(),
        ignored: [200].into(),
        departed: Default::default(),
        own_origin: Some("segue_m_forward".into()),
    }
}

fn column(name: &str, in_identity: bool) -> RelationColumn {
    RelationColumn { in_identity, name: name.into(), type_oid: 25, type_modifier: -1 }
}

fn relation(identity: ReplicaIdentity, columns: Vec<RelationColumn>) -> Relation {
    Relation { oid: T, schema: "public".into(), name: "t".into(), identity, columns }
}

fn usual() -> Relation {
    relation(ReplicaIdentity::Default, vec![column("id", true), column("a", false)])
}

fn row(text: &str) -> Row {
    text.split(' ')
        .map(|t| match t {
            "~" => Value::Unchanged,
            "-" => Value::Null,
            t => Value::Text(Bytes::copy_from_slice(t.as_bytes())),
        })
        .collect()
}

/// A transaction whose commit record takes bytes `at..at + 10`.
fn transaction(at: u64, body: Vec<Message>) -> Vec<Message> {
    let commit_at = Position(at);
    let mut all = vec![Message::Begin { commit_at, committed_at_us: 1, xid: 9 }];
    all.extend(body);
    all.push(Message::Commit { commit_at, end: Position(at + 10), committed_at_us: 1 });
    all
}

fn read_all(plan: StreamPlan, from: u64, messages: Vec<Message>) -> Outcome<Vec<StreamEvent>> {
    let (_hold, plan) = watch::channel(Arc::new(plan));
    let mut reader = Reader::new(plan, Position(from));
    let mut out = VecDeque::new();
    for message in messages {
        reader.read(message, &mut out)?;
    }
    Ok(out.into())
}

fn actions(plan: StreamPlan, body: Vec<Message>) -> Outcome<Vec<Action>> {
    let events = read_all(plan, 0, transaction(50, body))?;
    Ok(events
        .into_iter()
        .filter_map(|e| match e {
            StreamEvent::Change(change) => Some(change.action),
            _ => None,
        })
        .collect())
}

fn insert(new: &str) -> Message {
    Message::Insert { relation: T, new: row(new) }
}

#[test]
fn transactions_that_end_at_or_before_the_start_are_skipped_by_their_end() {
    let messages = |at| transaction(at, vec![Message::Relation(usual()), insert("1 x")]);
    assert_eq!(read_all(plan_of(keyed()), 60, messages(50)).unwrap(), vec![]);
    let events = read_all(plan_of(keyed()), 60, messages(60)).unwrap();
    let head = TransactionHead { xid: Xid32(9), committed_at_us: 1, commit: Position(60) };
    assert_eq!(events.first(), Some(&StreamEvent::Begin(head)));
    assert_eq!(events.last(), Some(&StreamEvent::Commit { end: Position(70) }));
    // A checkpoint inside a commit record is no place between records.
    let fault = read_all(plan_of(keyed()), 55, messages(50)).unwrap_err();
    assert!(fault.what.contains("across the checkpoint"), "{fault}");
}

#[test]
fn empty_transactions_still_begin_and_end() {
    let events = read_all(plan_of(keyed()), 0, transaction(50, vec![])).unwrap();
    assert_eq!(events.len(), 2);
}

#[test]
fn columns_are_found_by_name_whatever_their_order() {
    let turned = relation(ReplicaIdentity::Default, vec![column("a", false), column("id", true)]);
    let got = actions(plan_of(keyed()), vec![Message::Relation(turned), insert("x 1")]).unwrap();
    assert_eq!(got, vec![Action::Insert { new: row("1 x") }]);
}

#[test]
fn drift_is_raised_by_the_first_row_not_by_the_description() {
    let cases = [
        (relation(ReplicaIdentity::Default, vec![column("id", true)]), "column a is gone"),
        (
            relation(
                ReplicaIdentity::Default,
                vec![column("id", true), column("a", false), column("b", false)],
            ),
            "column b came after",
        ),
        (relation(ReplicaIdentity::Default, vec![column("id", false), column("a", true)]), "key column id"),
    ];
    for (drifted, what) in cases {
        let described = vec![Message::Relation(drifted.clone())];
        assert!(actions(plan_of(keyed()), described).is_ok());
        let fault = actions(plan_of(keyed()), vec![Message::Relation(drifted), insert("1 x")]).unwrap_err();
        assert_eq!(fault.code, "SEGUE-DDL-DRIFT");
        assert!(fault.what.contains(what), "{fault}");
    }
}

#[test]
fn a_type_that_changes_while_the_stream_runs_is_drift() {
    let mut changed = usual();
    changed.columns[1].type_oid = 23;
    let body = vec![Message::Relation(usual()), insert("1 x"), Message::Relation(changed), insert("2 2")];
    let fault = actions(plan_of(keyed()), body).unwrap_err();
    assert!(fault.what.contains("column a has another type"), "{fault}");
}

#[test]
fn the_whole_old_row_fills_what_an_update_did_not_touch() {
    let full = relation(ReplicaIdentity::Full, vec![column("id", true), column("a", true)]);
    let update = Message::Update { relation: T, old: Some(Old::Full(row("1 big"))), new: row("2 ~") };
    let got = actions(plan_of(table(Identity::WholeRow)), vec![Message::Relation(full), update]).unwrap();
    assert_eq!(got, vec![Action::Update { old: Some(row("1 big")), new: row("2 big") }]);
}

#[test]
fn rows_of_unknown_relations_are_a_fault_and_of_detached_leaves_are_not() {
    let other = |oid| Message::Insert { relation: oid, new: row("1") };
    assert_eq!(actions(plan_of(keyed()), vec![other(200)]).unwrap(), vec![]);
    let fault = actions(plan_of(keyed()), vec![other(201)]).unwrap_err();
    assert_eq!(fault.code, "SEGUE-UNKNOWN-RELATION");
    let truncate = Message::Truncate { relations: vec![T, 200], cascade: false, restart_identity: false };
    assert_eq!(
        actions(plan_of(keyed()), vec![truncate]).unwrap(),
        vec![Action::Truncate { leaf: None, within: None }]
    );
}

/// A default partition beside which a leaf, relation 150 of unit 8, was detached; its end is still to come.
fn beside_a_gone_leaf() -> StreamPlan {
    let mut plan = plan_of(keyed());
    let leaf = |condition: &str| Leaf { name: "public.t_rest".into(), condition: condition.into() };
    let rest = RelationPlan { loose: true, leaf: Some(leaf("rest")), ..(*plan.relations[&T]).clone() };
    plan.relations.insert(T, Arc::new(rest));
    plan.departed.insert((150, UnitId(8)), Departed { table: TableId(3), leaf: leaf("gone") });
    plan
}

#[test]
fn room_is_made_for_a_key_that_comes_and_not_for_a_row_that_stays() {
    let full = || Message::Relation(relation(ReplicaIdentity::Full, usual().columns));
    let update =
        |old: &str, new: &str| Message::Update { relation: T, old: Some(Old::Full(row(old))), new: row(new) };
    let truncates = |body: Vec<Message>| {
        let got = actions(beside_a_gone_leaf(), body).unwrap();
        got.iter().filter(|action| matches!(action, Action::Truncate { .. })).count()
    };
    assert_eq!(truncates(vec![full(), insert("1 x")]), 1);
    assert_eq!(truncates(vec![full(), update("1 x", "2 x")]), 1);
    // The row is there, and would be removed.
    assert_eq!(truncates(vec![full(), update("1 x", "1 y")]), 0);
}

#[test]
fn a_leaf_that_has_left_before_spares_no_rows() {
    let mut signals = relation(
        ReplicaIdentity::Default,
        vec![column("migration", true), column("id", false), column("note", false)],
    );
    signals.oid = SIGNAL;
    let has_left = Message::Update {
        relation: SIGNAL,
        old: None,
        new: row(r#"m 5 {"has_left":{"unit":8,"relation":150}}"#),
    };
    let truncate = || Message::Truncate { relations: vec![T], cascade: false, restart_identity: false };
    let emptied =
        actions(beside_a_gone_leaf(), vec![truncate(), Message::Relation(signals), has_left, truncate()]);
    let conditions: Vec<Option<String>> = emptied
        .unwrap()
        .into_iter()
        .filter_map(|action| match action {
            Action::Truncate { leaf, .. } => Some(leaf.map(|leaf| leaf.condition)),
            _ => None,
        })
        .collect();
    // With the other gone the default partition is the whole of the table.
    assert_eq!(conditions, [Some("(rest) AND (gone) IS NOT TRUE".into()), None]);
}

#[test]
fn only_signals_of_this_migration_are_delivered() {
    let mut signals =
        relation(ReplicaIdentity::Default, vec![column("migration", true), column("id", false)]);
    signals.oid = SIGNAL;
    let signal = |new: &str| Message::Update { relation: SIGNAL, old: None, new: row(new) };
    let body = vec![Message::Relation(signals), signal("other 4"), signal("m 5")];
    let events = read_all(plan_of(keyed()), 0, transaction(50, body)).unwrap();
    assert_eq!(events[1], StreamEvent::Signal(5));
    assert_eq!(events.len(), 3);
}

fn origin(name: &str) -> Message {
    Message::Origin { position: Position(1), name: name.into() }
}

#[test]
fn what_the_opposite_stream_wrote_is_a_position_and_nothing_else() {
    let body = vec![origin("segue_m_forward"), Message::Relation(usual()), insert("1 x")];
    let mut messages = transaction(50, body);
    // The relation is not described again: it was, in the transaction that was passed over.
    messages.extend(transaction(70, vec![insert("2 x")]));
    let events = read_all(plan_of(keyed()), 0, messages).unwrap();
    assert_eq!(events[0], StreamEvent::Idle { position: Position(60) });
    assert!(matches!(
        events[1..],
        [StreamEvent::Begin(_), StreamEvent::Change(_), StreamEvent::Commit { .. }]
    ));
}

#[test]
fn what_others_replayed_is_delivered() {
    for others in [origin("somebody_else"), origin("segue_m_reverse")] {
        let body = vec![others, Message::Relation(usual()), insert("1 x")];
        assert_eq!(actions(plan_of(keyed()), body).unwrap().len(), 1);
    }
}

#[test]
fn what_a_nameless_origin_replayed_is_delivered() {
    for own_origin in [Some("segue_m_forward".to_owned()), None] {
        let (_hold, plan) = watch::channel(Arc::new(StreamPlan { own_origin, ..plan_of(keyed()) }));
        let mut reader = Reader::new(plan, Position(0));
        let mut out = VecDeque::new();
        for (at, message) in transaction(50, vec![]).into_iter().enumerate() {
            reader.read(message, &mut out).unwrap();
            if at == 0 {
                reader.nameless(&mut out).unwrap();
            }
        }
        assert!(matches!(out.make_contiguous(), [StreamEvent::Begin(_), StreamEvent::Commit { .. }]));
        assert!(reader.nameless(&mut out).is_err(), "outside a transaction");
    }
}

#[test]
fn an_origin_out_of_place_is_a_fault() {
    for misplaced in [origin("segue_m_forward"), origin("somebody_else")] {
        let late = transaction(50, vec![Message::Relation(usual()), misplaced.clone()]);
        let twice = transaction(50, vec![origin("segue_m_forward"), misplaced.clone()]);
        for messages in [vec![misplaced], late, twice] {
            let fault = read_all(plan_of(keyed()), 0, messages).unwrap_err();
            assert!(fault.what.contains("not at its beginning"), "{fault}");
        }
    }
}

#[test]
fn a_leaf_that_attaches_is_known_from_the_next_row_on() {
    let (change, plan) =
        watch::channel(Arc::new(StreamPlan { migration: "m".into(), ..StreamPlan::default() }));
    let mut reader = Reader::new(plan, Position(0));
    let mut out = VecDeque::new();
    reader.read(Message::Begin { commit_at: Position(1), committed_at_us: 0, xid: 1 }, &mut out).unwrap();
    reader.read(Message::Relation(usual()), &mut out).unwrap();
    assert!(reader.read(insert("1 x"), &mut out).is_err());
    change.send(Arc::new(plan_of(keyed()))).unwrap();
    reader.read(insert("1 x"), &mut out).unwrap();
    assert_eq!(out.len(), 2);
}

#[test]
fn keepalives_count_only_between_transactions() {
    let (_hold, plan) = watch::channel(Arc::new(plan_of(keyed())));
    let mut reader = Reader::new(plan, Position(5));
    let mut out = VecDeque::new();
    assert!(reader.idle(Position(9)).is_some());
    assert!(reader.idle(Position(4)).is_none());
    reader.read(Message::Begin { commit_at: Position(9), committed_at_us: 0, xid: 1 }, &mut out).unwrap();
    assert!(reader.idle(Position(20)).is_none());
}
