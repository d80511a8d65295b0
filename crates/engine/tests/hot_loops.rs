//! What every change goes through here takes as many instructions as it did: routing while the copy runs, and collapsing.
//!
//! The changes are those of pgbench's transaction (TPC-B): an account, a teller and a branch are updated, and a row of
//! the history is inserted.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use segue_engine::regions::{Regions, Told};
use segue_model::change::{Action, Change, Row, Value};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::net::collapse;
use segue_model::region::UnitRegions;
use segue_model::seam::{Seam, Xid, Xid32};
use segue_model::table::{ArrayForm, Column, Estimate, Identity, Key, KeyOrder, Table, TableId, Transport};
use segue_testkit::instructions::HotLoop;
use std::hint::black_box;

const TRANSACTIONS: usize = 500;
/// Of one transaction.
const CHANGES: usize = 4;
const ACCOUNTS: usize = 100_000;

fn table(id: u32, name: &str, columns: &[(&str, &str)], is_keyed: bool) -> Table {
    let column = |(name, target_type): &(&str, &str)| Column {
        source: (*name).to_owned(),
        target: (*name).to_owned(),
        target_type: (*target_type).to_owned(),
        transport: Transport::Binary,
        array: ArrayForm::Typed,
        nullable: true,
        identity_always: false,
    };
    let order = vec![KeyOrder::Integer];
    let key = Key { columns: vec![0], order, ordered_alike: true, bytewise: true, target_deferrable: false };
    Table {
        id: TableId(id),
        source: QualifiedName::new("public", name),
        target: QualifiedName::new("public", name),
        columns: columns.iter().map(column).collect(),
        identity: if is_keyed { Identity::Key(key) } else { Identity::WholeRow },
        one_region: None,
        estimate: Estimate::default(),
    }
}

/// In the order of a transaction's changes.
fn tables() -> [Table; CHANGES] {
    let (int, text, time) = ("integer", "character", "timestamp without time zone");
    let [account, teller, branch] = ["a", "t", "b"].map(|of| [format!("{of}id"), format!("{of}balance")]);
    [
        table(
            0,
            "pgbench_accounts",
            &[(&account[0], int), ("bid", int), (&account[1], int), ("filler", text)],
            true,
        ),
        table(
            1,
            "pgbench_tellers",
            &[(&teller[0], int), ("bid", int), (&teller[1], int), ("filler", text)],
            true,
        ),
        table(2, "pgbench_branches", &[(&branch[0], int), (&branch[1], int), ("filler", text)], true),
        table(
            3,
            "pgbench_history",
            &[("tid", int), ("bid", int), ("aid", int), ("delta", int), ("mtime", time), ("filler", text)],
            false,
        ),
    ]
}

fn row(values: &[&str]) -> Row {
    let value = |text: &&str| {
        if text.is_empty() { Value::Null } else { Value::Text(text.as_bytes().to_vec().into()) }
    };
    values.iter().map(value).collect()
}

/// The changes of transaction `n`. Accounts lie all over the table, tellers and branches come again and again.
fn transaction(n: usize) -> [Change; CHANGES] {
    let text = |number: usize| number.to_string();
    let (account, teller) = (text(n * 7_919 % ACCOUNTS + 1), text(n % 10 + 1));
    let balance = text(n * 37 % 5_000);
    let filler = " ".repeat(84);
    let update = |new| Action::Update { old: None, new };
    let history = [&teller, "1", &account, &balance, "2026-01-02 03:04:05.678901", ""];
    let actions = [
        update(row(&[&account, "1", &balance, &filler])),
        update(row(&[&teller, "1", &balance, ""])),
        update(row(&["1", &balance, ""])),
        Action::Insert { new: row(&history) },
    ];
    let mut id = 0;
    actions.map(|action| {
        id += 1;
        Change { table: TableId(id - 1), unit: TableId(id - 1).into(), action }
    })
}

fn seam(xid: u64) -> Seam {
    Seam::new(Xid(xid), Xid(xid), Vec::new())
}

/// The accounts' copy is half done, in a hundred ranges under snapshots of their own, most of them older than the stream;
/// the small tables are copied, and the history is not begun.
fn half_copied(first_xid: u64) -> Regions {
    let mut accounts = UnitRegions::new(vec![KeyOrder::Integer]);
    for range in 1..=100 {
        let (gap, _) = accounts.next_gap().unwrap();
        let upper = KeyText::from_texts([(range * ACCOUNTS / 200).to_string()]);
        let (id, _) = accounts.begin(gap, Some(upper)).unwrap();
        accounts.offer_seam(id, seam(first_xid + range as u64)).unwrap();
        accounts.copied(id);
    }
    let followed = || UnitRegions::followed(vec![KeyOrder::Integer]);
    let history = UnitRegions::new(Vec::new());
    let units = [accounts, followed(), followed(), history];
    let units = (0..).map(|id| TableId(id).into()).zip(units).collect();
    Regions::new(units, Xid(first_xid))
}

#[test]
fn routing_keeps_its_instructions() {
    let tables = tables();
    let transactions: Vec<_> = (0..TRANSACTIONS).map(transaction).collect();
    let (regions, told) = (half_copied(1_000), Told::new());
    let route = || {
        for (xid, changes) in (1_000..).map(Xid32).zip(&transactions) {
            for (table, change) in tables.iter().zip(changes) {
                black_box(regions.route(table, xid, black_box(change), &told)).unwrap();
            }
        }
    };
    HotLoop {
        name: "route",
        test: concat!(module_path!(), "::routing_keeps_its_instructions"),
        item: "change",
        items: TRANSACTIONS * CHANGES,
        rounds: 2,
    }
    .keeps_its_instructions(route);
}

#[test]
fn collapsing_keeps_its_instructions() {
    let tables = tables();
    let transactions: Vec<_> = (0..TRANSACTIONS).map(transaction).collect();
    let of_table = |table: usize| transactions.iter().map(|changes| &changes[table]).collect::<Vec<_>>();
    let batches: Vec<_> = (0..CHANGES).map(of_table).collect();
    let collapse = || {
        for (table, changes) in tables.iter().zip(&batches) {
            let net = collapse(table, black_box(changes).iter().copied()).unwrap();
            assert!(black_box(net).is_some());
        }
    };
    HotLoop {
        name: "collapse",
        test: concat!(module_path!(), "::collapsing_keeps_its_instructions"),
        item: "change",
        items: TRANSACTIONS * CHANGES,
        // More than of the others: in which order a hash table gives up its rows makes a difference to the allocator.
        rounds: 8,
    }
    .keeps_its_instructions(collapse);
}
