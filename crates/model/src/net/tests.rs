//! What many changes come to, change by change, and for any of them.

use super::*;
use crate::table::fixtures::keyed;
use crate::table::{Identity, TableId};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn value(text: &str) -> Value {
    match text {
        "~" => Value::Unchanged,
        "-" => Value::Null,
        text => Value::Text(Bytes::copy_from_slice(text.as_bytes())),
    }
}
fn row(text: &str) -> Row {
    text.split(' ').map(value).collect()
}
fn change(action: Action) -> Change {
    Change { table: TableId(0), unit: TableId(0).into(), action }
}
fn ins(new: &str) -> Change {
    change(Action::Insert { new: row(new) })
}
fn upd(new: &str) -> Change {
    change(Action::Update { old: None, new: row(new) })
}
fn rekey(old: &str, new: &str) -> Change {
    change(Action::Update { old: Some(row(&format!("{old} - -"))), new: row(new) })
}
fn del(old: &str) -> Change {
    change(Action::Delete { old: row(&format!("{old} - -")) })
}
fn net(changes: Vec<Change>) -> Net {
    collapse(&keyed(), &changes).expect("keys are complete").expect("should collapse")
}

#[test]
fn an_update_after_an_insert_is_an_insert() {
    let n = net(vec![ins("1 x y"), upd("1 z ~")]);
    assert_eq!((n.inserts, n.deletes.len(), n.updates.len()), (vec![row("1 z y")], 0, 0));
}

#[test]
fn unchanged_values_keep_an_earlier_image_or_stay_out_of_the_update() {
    let n = net(vec![upd("1 x ~"), upd("2 x y"), upd("2 z ~")]);
    let groups: Vec<_> = n.updates.iter().map(|g| (g.set.clone(), g.rows.clone())).collect();
    assert_eq!(groups, vec![(vec![1], vec![row("1 x ~")]), (vec![1, 2], vec![row("2 z y")])]);
}

#[test]
fn insert_and_delete_cancel_and_delete_and_insert_replace() {
    assert_eq!(net(vec![ins("1 x y"), del("1")]).rows(), 0);
    let n = net(vec![del("1"), ins("1 x y")]);
    assert_eq!((n.deletes.len(), n.inserts), (1, vec![row("1 x y")]));
}

/// What moves, each as `from > row`.
fn moves(net: &Net) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        Value::Null => "-".to_owned(),
        Value::Unchanged => "~".to_owned(),
    };
    let shown = |(from, row): &(KeyText, Row)| {
        format!("{from} > {}", row.iter().map(text).collect::<Vec<_>>().join(" "))
    };
    net.moves.iter().flat_map(|group| group.rows.iter().map(shown)).collect()
}

#[test]
fn a_key_change_moves_the_row_that_is_there() {
    let n = net(vec![rekey("1", "2 x y")]);
    assert_eq!((moves(&n), n.rows()), (vec!["(1) > 2 x y".to_owned()], 1));
    assert_eq!(n.moves[0].set, [0, 1, 2]);
    let n = net(vec![upd("1 x y"), rekey("1", "2 z ~")]);
    assert_eq!(moves(&n), ["(1) > 2 z y"]);
    // What did not travel stays as it is, wherever the row goes.
    let n = net(vec![rekey("1", "2 z ~"), rekey("2", "3 ~ ~"), upd("3 ~ w")]);
    assert_eq!((moves(&n), n.rows()), (vec!["(1) > 3 z w".to_owned()], 1));
    let n = net(vec![rekey("1", "2 z ~")]);
    assert_eq!((moves(&n), &n.moves[0].set[..]), (vec!["(1) > 2 z ~".to_owned()], &[0, 1][..]));
}

#[test]
fn what_a_moved_row_leaves_behind_is_free() {
    let n = net(vec![rekey("1", "2 x y"), ins("1 n m")]);
    assert_eq!((moves(&n), n.inserts), (vec!["(1) > 2 x y".to_owned()], vec![row("1 n m")]));
    // The row that was there is gone first.
    let n = net(vec![del("2"), rekey("1", "2 x y")]);
    assert_eq!((moves(&n), n.deletes), (vec!["(1) > 2 x y".to_owned()], vec![KeyText::from_texts(["2"])]));
    // Of a row that has moved and goes, the one on the target goes.
    let n = net(vec![rekey("1", "2 x y"), rekey("2", "3 x y"), del("3")]);
    assert_eq!((n.rows(), n.deletes), (1, vec![KeyText::from_texts(["1"])]));
    // A new row is written where it ends, and one that comes back has not moved.
    let n = net(vec![ins("1 x y"), rekey("1", "2 z ~")]);
    assert_eq!((n.rows(), n.inserts), (1, vec![row("2 z y")]));
    let n = net(vec![rekey("1", "9 ~ ~"), rekey("9", "1 z ~")]);
    assert_eq!((n.rows(), n.updates), (1, vec![UpdateGroup { set: vec![1], rows: vec![row("1 z ~")] }]));
}

#[test]
fn rows_that_take_each_others_keys_do_so_in_order() {
    for changes in [
        vec![rekey("2", "3 x y"), rekey("1", "2 x y")],
        vec![rekey("1", "9 x y"), rekey("2", "1 x y"), rekey("9", "2 x y")],
    ] {
        assert_eq!(collapse(&keyed(), &changes), Ok(None));
    }
}

#[test]
fn a_column_that_cannot_be_set_moves_in_order() {
    let mut table = keyed();
    table.columns[1].identity_always = true;
    assert_eq!(collapse(&table, &[rekey("1", "2 x y")]), Ok(None));
    assert_eq!(collapse(&table, &[rekey("1", "2 ~ y")]).map(|net| net.map(|n| n.rows())), Ok(Some(1)));
    table.columns[0].identity_always = true;
    assert_eq!(collapse(&table, &[rekey("1", "2 ~ y")]), Ok(None));
}

#[test]
fn what_cannot_be_collapsed_stays_in_order() {
    for changes in [
        vec![ins("1 x y"), ins("1 x y")],
        vec![del("1"), del("1")],
        vec![del("1"), upd("1 x y")],
        vec![del("1"), rekey("1", "2 x y")],
        vec![ins("2 x y"), rekey("1", "2 x y")],
    ] {
        assert_eq!(collapse(&keyed(), &changes), Ok(None));
    }
}

#[test]
fn keys_without_bytewise_equality_are_never_collapsed() {
    let mut table = keyed();
    if let Identity::Key(key) = &mut table.identity {
        key.bytewise = false;
    }
    let changes = vec![del("1.0"), ins("1.00 x y")];
    assert_eq!(collapse(&table, &changes), Ok(None));
}

#[test]
fn a_missing_key_value_is_an_error() {
    assert_eq!(collapse(&keyed(), &[upd("- x y")]), Err(KeyIncomplete { column: 0 }));
}

/// Applies changes one by one to a map, the way a table would.
fn replay(changes: &[Change], rows: &mut BTreeMap<String, Row>) -> bool {
    let key = |row: &Row| String::from_utf8(row[0].text().unwrap().to_vec()).unwrap();
    for c in changes {
        match &c.action {
            Action::Insert { new } => {
                if rows.insert(key(new), new.clone()).is_some() {
                    return false;
                }
            }
            Action::Delete { old } => {
                if rows.remove(&key(old)).is_none() {
                    return false;
                }
            }
            Action::Update { old, new } => {
                let Some(mut r) = rows.remove(&key(old.as_ref().unwrap_or(new))) else { return false };
                overlay(&mut r, new);
                if rows.insert(key(new), r).is_some() {
                    return false;
                }
            }
            Action::Truncate { .. } => rows.clear(),
        }
    }
    true
}

proptest! {
    #[test]
    fn the_net_effect_equals_the_replay(ops in proptest::collection::vec((0u8..4, 0u8..5, 0u8..5, any::<bool>()), 0..40)) {
        let start: BTreeMap<String, Row> = (0..3).map(|k| (k.to_string(), row(&format!("{k} s{k} t{k}")))).collect();
        let mut rows = start.clone();
        let mut changes = Vec::new();
        for (i, (op, k, k2, partial)) in ops.into_iter().enumerate() {
            let tail = if partial { format!("v{i} ~") } else { format!("v{i} w{i}") };
            let c = match op {
                0 => ins(&format!("{k} v{i} w{i}")),
                1 => upd(&format!("{k} {tail}")),
                2 => del(&k.to_string()),
                _ => rekey(&k.to_string(), &format!("{k2} {tail}")),
            };
            let mut next = rows.clone();
            if replay(std::slice::from_ref(&c), &mut next) {
                rows = next;
                changes.push(c);
            }
        }
        if let Some(n) = collapse(&keyed(), &changes).unwrap() {
            let mut out = start;
            let text = |k: &KeyText| String::from_utf8(k.0[0].to_vec()).unwrap();
            for k in &n.deletes { prop_assert!(out.remove(&text(k)).is_some()); }
            for g in &n.updates { for r in &g.rows {
                let k = String::from_utf8(r[0].text().unwrap().to_vec()).unwrap();
                overlay(out.get_mut(&k).expect("must exist"), r);
            } }
            for g in n.moves {
                let gone: Vec<Row> = g.rows.iter()
                    .map(|(from, _)| out.remove(&text(from)).expect("must exist")).collect();
                for (mut there, (from, r)) in gone.into_iter().zip(g.rows) {
                    overlay(&mut there, &r);
                    let k = String::from_utf8(r[0].text().unwrap().to_vec()).unwrap();
                    prop_assert!(k != text(&from));
                    prop_assert!(out.insert(k, there).is_none());
                }
            }
            for r in n.inserts {
                let k = String::from_utf8(r[0].text().unwrap().to_vec()).unwrap();
                prop_assert!(out.insert(k, r).is_none());
            }
            prop_assert_eq!(out, rows);
        }
    }
}
