//! Net effect: many changes of one table, in commit order, collapsed to at most one per key.
//!
//! Pure. Only for tables whose key has bytewise equality; whatever cannot be collapsed safely is refused,
//! to be written row by row.

use crate::change::{Action, Change, Row, Value};
use crate::key::{KeyIncomplete, KeyText, rank};
use crate::table::{Key, Table};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// The net effect on a table, in the order in which it must be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// Keys whose row exists on the target and must go.
    pub deletes: Vec<KeyText>,
    /// Rows that exist on the target, grouped by which columns they carry.
    pub updates: Vec<UpdateGroup>,
    /// Rows that must be absent on the target (after the deletes).
    pub inserts: Vec<Row>,
}

/// Updates that set the same columns.
#[derive(Debug, PartialEq, Eq)]
pub struct UpdateGroup {
    /// The columns that are set, ascending; key columns are not among them.
    pub set: Vec<usize>,
    /// Full-width rows; only key columns and `set` are meaningful.
    pub rows: Vec<Row>,
}

impl Net {
    /// Number of rows touched.
    pub fn rows(&self) -> usize {
        self.deletes.len() + self.updates.iter().map(|g| g.rows.len()).sum::<usize>() + self.inserts.len()
    }
}

/// The row of one key as the batch leaves it.
struct Held {
    /// The row was on the target when the batch began.
    existed: bool,
    /// It was deleted in between, so its first image is of no use.
    replaced: bool,
    /// `None`: absent.
    now: Option<Row>,
}

/// Collapses `changes`, all of `table`, in commit order. `None`: they must be written row by row, in order.
pub fn collapse<'a>(
    table: &Table,
    changes: impl IntoIterator<Item = &'a Change>,
) -> Result<Option<Net>, KeyIncomplete> {
    match table.key() {
        Some(key) if key.bytewise => Ok(collapse_keyed(key, changes)?.map(|held| emit(table, key, held))),
        _ => {
            let insert = |c: &Change| match &c.action {
                Action::Insert { new } => Some(new.clone()),
                Action::Update { .. } | Action::Delete { .. } | Action::Truncate { .. } => None,
            };
            let inserts: Option<Vec<Row>> = changes.into_iter().map(insert).collect();
            Ok(inserts.map(|inserts| Net { inserts, ..Net::default() }))
        }
    }
}

/// `None` when the changes do not fit together or an unchanged value would have to be fetched.
fn collapse_keyed<'a>(
    key: &Key,
    changes: impl IntoIterator<Item = &'a Change>,
) -> Result<Option<Vec<(KeyText, Held)>>, KeyIncomplete> {
    let mut held: HashMap<KeyText, Held> = HashMap::new();
    for change in changes {
        let fits = match &change.action {
            Action::Insert { new } => insert(&mut held, KeyText::of(key, new)?, new.clone()),
            Action::Delete { old } => delete(&mut held, KeyText::of(key, old)?).is_some(),
            Action::Update { old, new } => {
                let new_key = KeyText::of(key, new)?;
                let old_key = match old {
                    Some(old) => KeyText::of(key, old)?,
                    None => new_key.clone(),
                };
                if old_key == new_key {
                    update(&mut held, new_key, new)
                } else {
                    rekey(&mut held, old_key, new_key, new)
                }
            }
            Action::Truncate { .. } => false,
        };
        if !fits {
            return Ok(None);
        }
    }
    let mut held: Vec<(KeyText, Held)> = held.into_iter().collect();
    // Neighbours are met one after the other in the target's index and table (a few hundredths of a drain), and a batch is
    // written in the same order every time.
    held.sort_by_cached_key(|(text, _)| rank(&key.order, text));
    Ok(Some(held))
}

fn insert(held: &mut HashMap<KeyText, Held>, key: KeyText, new: Row) -> bool {
    match held.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Held { existed: false, replaced: false, now: Some(new) });
            true
        }
        Entry::Occupied(mut entry) if entry.get().now.is_none() => {
            entry.get_mut().now = Some(new);
            true
        }
        Entry::Occupied(_) => false,
    }
}

/// Removes the row; returns its image in the batch (`Some(None)` when the batch has none), `None` if it is already absent.
fn delete(held: &mut HashMap<KeyText, Held>, key: KeyText) -> Option<Option<Row>> {
    match held.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Held { existed: true, replaced: true, now: None });
            Some(None)
        }
        Entry::Occupied(mut entry) => {
            let row = entry.get_mut().now.take()?;
            entry.get_mut().replaced = true;
            Some(Some(row))
        }
    }
}

fn update(held: &mut HashMap<KeyText, Held>, key: KeyText, new: &Row) -> bool {
    match held.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Held { existed: true, replaced: false, now: Some(new.clone()) });
            true
        }
        Entry::Occupied(mut entry) => match &mut entry.get_mut().now {
            Some(row) => {
                overlay(row, new);
                true
            }
            None => false,
        },
    }
}

fn rekey(held: &mut HashMap<KeyText, Held>, old: KeyText, new_key: KeyText, new: &Row) -> bool {
    let Some(earlier) = delete(held, old) else { return false };
    let mut row = new.clone();
    if let Some(earlier) = earlier {
        row = earlier;
        overlay(&mut row, new);
    }
    !row.contains(&Value::Unchanged) && insert(held, new_key, row)
}

/// Writes `new` over `row`, keeping what `new` does not carry.
fn overlay(row: &mut Row, new: &Row) {
    if !new.contains(&Value::Unchanged) {
        row.clone_from(new);
        return;
    }
    for (held, value) in Arc::make_mut(row).iter_mut().zip(new.iter()) {
        if *value != Value::Unchanged {
            held.clone_from(value);
        }
    }
}

fn emit(table: &Table, key: &Key, held: Vec<(KeyText, Held)>) -> Net {
    let mut net = Net::default();
    let mut groups: HashMap<Vec<usize>, Vec<Row>> = HashMap::new();
    for (text, Held { existed, replaced, now }) in held {
        if existed && replaced {
            net.deletes.push(text);
        }
        match now {
            Some(row) if existed && !replaced => {
                let set = |i: &usize| {
                    row[*i] != Value::Unchanged
                        && !key.columns.contains(i)
                        && !table.columns[*i].identity_always
                };
                let set: Vec<usize> = (0..row.len()).filter(set).collect();
                groups.entry(set).or_default().push(row);
            }
            Some(row) => net.inserts.push(row),
            None => {}
        }
    }
    net.updates = groups.into_iter().map(|(set, rows)| UpdateGroup { set, rows }).collect();
    net.updates.sort_by(|a, b| a.set.cmp(&b.set));
    net
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_key_change_with_a_full_row_moves_it() {
        let n = net(vec![rekey("1", "2 x y")]);
        assert_eq!((n.deletes, n.inserts), (vec![KeyText::from_texts(["1"])], vec![row("2 x y")]));
        let n = net(vec![upd("1 x y"), rekey("1", "2 z ~")]);
        assert_eq!(n.inserts, vec![row("2 z y")]);
    }

    #[test]
    fn what_cannot_be_collapsed_stays_in_order() {
        for changes in [
            vec![rekey("1", "2 z ~")],
            vec![ins("1 x y"), ins("1 x y")],
            vec![del("1"), del("1")],
            vec![del("1"), upd("1 x y")],
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
                for r in n.inserts {
                    let k = String::from_utf8(r[0].text().unwrap().to_vec()).unwrap();
                    prop_assert!(out.insert(k, r).is_none());
                }
                prop_assert_eq!(out, rows);
            }
        }
    }
}
