//! Net effect: many changes of one table, in commit order, collapsed to at most one per key.
//!
//! Pure. Only for tables whose key has bytewise equality; whatever cannot be collapsed safely is refused,
//! to be written row by row.

use crate::change::{Action, Change, Row, Value};
use crate::key::{KeyIncomplete, KeyText, rank};
use crate::table::{Key, Table};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The net effect on a table, in the order in which it must be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// Keys whose row exists on the target and must go.
    pub deletes: Vec<KeyText>,
    /// Rows that exist on the target, grouped by which columns they carry.
    pub updates: Vec<UpdateGroup>,
    /// Rows that exist on the target under another key, grouped likewise. Each goes to a key that no row has after the deletes.
    pub moves: Vec<MoveGroup>,
    /// Rows that must be absent on the target (after the deletes and moves).
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

/// Rows that change their keys, and set the same columns.
///
/// They stay the rows that they are: what the target has in columns of its own, and large values that did not travel, go with them.
#[derive(Debug, PartialEq, Eq)]
pub struct MoveGroup {
    /// The columns that are set, ascending; those of the key are among them.
    pub set: Vec<usize>,
    /// The key that each has on the target, and the row: full-width, only `set` is meaningful.
    pub rows: Vec<(KeyText, Row)>,
}

impl Net {
    /// Number of rows touched.
    pub fn rows(&self) -> usize {
        let updated = self.updates.iter().map(|g| g.rows.len()).sum::<usize>();
        let moved = self.moves.iter().map(|g| g.rows.len()).sum::<usize>();
        self.deletes.len() + updated + moved + self.inserts.len()
    }
}

/// What the batch does about one key.
struct Held {
    /// The row that the target had under this key must go, wherever it was meanwhile.
    removed: bool,
    /// The row as the batch leaves it, and where it is on the target; `None`: absent.
    now: Option<(Row, Place)>,
}

/// Where a row is on the target when the batch begins.
enum Place {
    /// Nowhere.
    New,
    /// Under the key that it has now.
    Here,
    /// Under another one.
    At(Box<KeyText>),
}

/// Collapses `changes`, all of `table`, in commit order. `None`: they must be written row by row, in order.
pub fn collapse<'a>(
    table: &Table,
    changes: impl IntoIterator<Item = &'a Change>,
) -> Result<Option<Net>, KeyIncomplete> {
    match table.key() {
        Some(key) if key.bytewise => collapse_keyed(table, key, changes),
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

/// `None` when the changes do not fit together, or rows change their keys in a way that only their order makes possible.
fn collapse_keyed<'a>(
    table: &Table,
    key: &Key,
    changes: impl IntoIterator<Item = &'a Change>,
) -> Result<Option<Net>, KeyIncomplete> {
    let mut held: HashMap<KeyText, Held> = HashMap::new();
    let mut any_moved = false;
    for change in changes {
        let fits = match &change.action {
            Action::Insert { new } => put(&mut held, KeyText::of(key, new)?, new.clone(), Place::New),
            Action::Delete { old } => delete(&mut held, KeyText::of(key, old)?),
            Action::Update { old, new } => {
                let new_key = KeyText::of(key, new)?;
                let old_key = match old {
                    Some(old) => KeyText::of(key, old)?,
                    None => new_key.clone(),
                };
                if old_key == new_key {
                    update(&mut held, new_key, new)
                } else {
                    any_moved = true;
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
    if any_moved && !can_be_moved(table, &held) {
        return Ok(None);
    }
    // Neighbours are met one after the other in the target's index and table (a few hundredths of a drain), and a batch is
    // written in the same order every time.
    held.sort_by_cached_key(|(text, _)| rank(&key.order, text));
    Ok(Some(emit(table, key, held)))
}

/// Puts a row where there must be none.
fn put(held: &mut HashMap<KeyText, Held>, key: KeyText, row: Row, place: Place) -> bool {
    match held.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Held { removed: false, now: Some((row, place)) });
            true
        }
        Entry::Occupied(mut entry) if entry.get().now.is_none() => {
            entry.get_mut().now = Some((row, place));
            true
        }
        Entry::Occupied(_) => false,
    }
}

/// `false`: it is absent already.
fn delete(held: &mut HashMap<KeyText, Held>, key: KeyText) -> bool {
    let first = match held.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Held { removed: true, now: None });
            return true;
        }
        Entry::Occupied(mut entry) => match entry.get_mut().now.take() {
            Some((_, Place::Here)) => {
                entry.get_mut().removed = true;
                return true;
            }
            Some((_, Place::New)) => return true,
            Some((_, Place::At(first))) => first,
            None => return false,
        },
    };
    // It has an entry since the row has left it.
    if let Some(entry) = held.get_mut(&*first) {
        entry.removed = true;
    }
    true
}

fn update(held: &mut HashMap<KeyText, Held>, key: KeyText, new: &Row) -> bool {
    match held.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(Held { removed: false, now: Some((new.clone(), Place::Here)) });
            true
        }
        Entry::Occupied(mut entry) => match &mut entry.get_mut().now {
            Some((row, _)) => {
                overlay(row, new);
                true
            }
            None => false,
        },
    }
}

fn rekey(held: &mut HashMap<KeyText, Held>, old: KeyText, new_key: KeyText, new: &Row) -> bool {
    let left = match held.entry(old.clone()) {
        Entry::Vacant(entry) => {
            entry.insert(Held { removed: false, now: None });
            (new.clone(), Place::Here)
        }
        Entry::Occupied(mut entry) => match entry.get_mut().now.take() {
            Some((mut row, place)) => {
                overlay(&mut row, new);
                (row, place)
            }
            None => return false,
        },
    };
    let (row, place) = match left {
        (row, Place::Here) => (row, Place::At(Box::new(old))),
        (row, Place::At(first)) if *first == new_key => (row, Place::Here),
        left => left,
    };
    put(held, new_key, row, place)
}

/// Whether the rows that change their keys can do so all at once: none goes where another one of them is, nor carries a
/// column that cannot be set.
fn can_be_moved(table: &Table, held: &[(KeyText, Held)]) -> bool {
    let moved = || {
        held.iter().filter_map(|(to, one)| match &one.now {
            Some((row, Place::At(from))) => Some((to, row, &**from)),
            Some((_, Place::New | Place::Here)) | None => None,
        })
    };
    let left: HashSet<&KeyText> = moved().map(|(_, _, from)| from).collect();
    let is_fixed = |row: &Row| {
        table.columns.iter().zip(row.iter()).any(|(c, value)| c.identity_always && *value != Value::Unchanged)
    };
    moved().all(|(to, row, _)| !left.contains(to) && !is_fixed(row))
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
    let mut updates: HashMap<Vec<usize>, Vec<Row>> = HashMap::new();
    let mut moves: HashMap<Vec<usize>, Vec<(KeyText, Row)>> = HashMap::new();
    for (text, Held { removed, now }) in held {
        if removed {
            net.deletes.push(text);
        }
        match now {
            Some((row, Place::Here)) => {
                let set = |i: &usize| {
                    row[*i] != Value::Unchanged
                        && !key.columns.contains(i)
                        && !table.columns[*i].identity_always
                };
                let set: Vec<usize> = (0..row.len()).filter(set).collect();
                updates.entry(set).or_default().push(row);
            }
            Some((row, Place::At(from))) => {
                let set: Vec<usize> = (0..row.len()).filter(|&i| row[i] != Value::Unchanged).collect();
                moves.entry(set).or_default().push((*from, row));
            }
            Some((row, Place::New)) => net.inserts.push(row),
            None => {}
        }
    }
    net.updates = updates.into_iter().map(|(set, rows)| UpdateGroup { set, rows }).collect();
    net.updates.sort_by(|a, b| a.set.cmp(&b.set));
    net.moves = moves.into_iter().map(|(set, rows)| MoveGroup { set, rows }).collect();
    net.moves.sort_by(|a, b| a.set.cmp(&b.set));
    net
}

#[cfg(test)]
mod tests;
