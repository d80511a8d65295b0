//! Routing: what becomes of one change while the backfill runs, as a value.
//!
//! Joins a change with the regions of its unit. Pure; the caller holds the region map's lock.

use crate::change::{Action, Change, Row, Value};
use crate::key::{KeyIncomplete, KeyText};
use crate::region::{Emptied, Extent, Place, UnitRegions, Verdict};
use crate::seam::Xid;
use crate::table::{Key, Table};

/// What to do with a change.
#[derive(Debug, PartialEq, Eq)]
pub enum Routed {
    /// Apply this (the change itself, or what is left of it).
    Apply(Change),
    /// The copy has it.
    Drop,
    /// A region is being copied; ask again when the map has changed.
    Wait,
    /// The change needs places that only the source can tell, for these keys, against the unit's current bounds.
    Locate(Vec<KeyText>),
    /// The row of this key must be copied as a region of its own; then ask again.
    CopyKey(KeyText),
}

/// Places that the source told, keyed by key.
pub type ToldPlaces = std::collections::HashMap<KeyText, Place>;

/// Routes `change` of transaction `x`.
///
/// An answer other than [`Routed::Wait`], [`Routed::Locate`] and [`Routed::CopyKey`] is final: it stays
/// right whatever the regions do afterwards.
pub fn route(
    table: &Table,
    unit: &mut UnitRegions,
    x: Xid,
    change: &Change,
    told: &ToldPlaces,
) -> Result<Routed, KeyIncomplete> {
    let Some(key) = table.key() else { return Ok(route_unkeyed(unit, x, change)) };
    let [old, new] = keys(key, change)?;
    if old.is_none() && new.is_none() {
        return Ok(route_truncate(unit, x, change));
    }
    let mut verdicts = [None, None];
    let mut unplaced = Vec::new();
    for (verdict, key) in verdicts.iter_mut().zip([&old, &new]) {
        let Some(key) = key else { continue };
        let place = unit.place(key).or_else(|| told.get(key).copied());
        match place.and_then(|place| unit.judge(x, Some(key), place)) {
            Some(told) => *verdict = Some(told),
            None => unplaced.push(key.clone()),
        }
    }
    if !unplaced.is_empty() {
        return Ok(Routed::Locate(unplaced));
    }
    Ok(match verdicts {
        [Some(Verdict::Wait), _] | [_, Some(Verdict::Wait)] => Routed::Wait,
        [Some(Verdict::Drop) | None, Some(Verdict::Drop) | None] => Routed::Drop,
        [Some(Verdict::Apply) | None, Some(Verdict::Apply) | None] => Routed::Apply(change.clone()),
        [Some(Verdict::Apply), Some(Verdict::Drop)] => Routed::Apply(leave(table, key, change, old)),
        [Some(Verdict::Drop), Some(Verdict::Apply)] => arrive(change, new),
    })
}

/// The keys by which a change is judged: of the row it takes away, and of the row it brings or alters. None of a TRUNCATE
/// of more than one row.
pub fn keys(key: &Key, change: &Change) -> Result<[Option<KeyText>; 2], KeyIncomplete> {
    Ok(match &change.action {
        Action::Truncate { within: Some(within), .. } => match within.as_slice() {
            // One row makes room for another: judged by its key, as a deletion is.
            [(Extent::Key(only), _)] => [Some(only.clone()), None],
            _ => [None, None],
        },
        Action::Truncate { .. } => [None, None],
        Action::Insert { new } => [None, Some(KeyText::of(key, new)?)],
        Action::Delete { old } => [Some(KeyText::of(key, old)?), None],
        Action::Update { old: None, new } => [None, Some(KeyText::of(key, new)?)],
        Action::Update { old: Some(old), new } => {
            let (old, new) = (KeyText::of(key, old)?, KeyText::of(key, new)?);
            if old == new { [None, Some(new)] } else { [Some(old), Some(new)] }
        }
    })
}

/// The row leaves a region that needs the change for one that does not.
fn leave(table: &Table, key: &Key, change: &Change, old: Option<KeyText>) -> Change {
    let old = old.map_or_else(Row::default, |old| old.into_row(key, table.columns.len()));
    Change { action: Action::Delete { old }, ..change.clone() }
}

/// The row arrives in a region that needs the change from one that does not.
fn arrive(change: &Change, key: Option<KeyText>) -> Routed {
    match (&change.action, key) {
        (Action::Update { new, .. }, Some(key)) if new.contains(&Value::Unchanged) => Routed::CopyKey(key),
        (Action::Update { new, .. }, _) => {
            Routed::Apply(Change { action: Action::Insert { new: new.clone() }, ..change.clone() })
        }
        _ => Routed::Apply(change.clone()),
    }
}

fn route_unkeyed(unit: &mut UnitRegions, x: Xid, change: &Change) -> Routed {
    if matches!(change.action, Action::Truncate { .. }) {
        return route_truncate(unit, x, change);
    }
    let whole = Place { bounds_below: 0, cuts: unit.bounds().1 };
    match unit.judge(x, None, whole) {
        Some(Verdict::Apply) => Routed::Apply(change.clone()),
        Some(Verdict::Drop) => Routed::Drop,
        Some(Verdict::Wait) | None => Routed::Wait,
    }
}

fn route_truncate(unit: &mut UnitRegions, x: Xid, change: &Change) -> Routed {
    let Action::Truncate { leaf, within: asked } = &change.action else {
        return Routed::Apply(change.clone());
    };
    match unit.judge_truncate(x) {
        Err(()) => Routed::Wait,
        Ok(None) => Routed::Apply(change.clone()),
        Ok(Some(within)) => {
            let within = spare(within, asked.as_deref().unwrap_or_default());
            if within.is_empty() {
                return Routed::Drop;
            }
            let action = Action::Truncate { leaf: leaf.clone(), within: Some(within) };
            Routed::Apply(Change { action, ..change.clone() })
        }
    }
}

/// What the map leaves of a TRUNCATE, without the keys that the TRUNCATE itself spares.
fn spare(within: Vec<Emptied>, asked: &[Emptied]) -> Vec<Emptied> {
    let spared: Vec<&KeyText> = asked.iter().flat_map(|(_, spared)| spared).collect();
    let keep = |(extent, _): &Emptied| !matches!(extent, Extent::Key(key) if spared.contains(&key));
    let mut left: Vec<Emptied> = within.into_iter().filter(keep).collect();
    for (_, keys) in left.iter_mut().filter(|(extent, _)| matches!(extent, Extent::Range { .. })) {
        keys.extend(spared.iter().copied().cloned());
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Row;
    use crate::table::fixtures::keyed;
    use crate::table::{Identity, KeyOrder, TableId};
    use bytes::Bytes;

    fn row(text: &str) -> Row {
        let value = |t: &str| match t {
            "~" => Value::Unchanged,
            "-" => Value::Null,
            t => Value::Text(Bytes::copy_from_slice(t.as_bytes())),
        };
        text.split(' ').map(value).collect()
    }
    fn change(action: Action) -> Change {
        Change { table: TableId(0), unit: TableId(0).into(), action }
    }
    fn rekey(old: &str, new: &str) -> Change {
        change(Action::Update { old: Some(row(&format!("{old} - -"))), new: row(new) })
    }
    /// Keys up to 10 copied under a snapshot that ends at 100; the rest has not begun.
    fn half_copied() -> UnitRegions {
        let mut unit = UnitRegions::new(vec![KeyOrder::Integer]);
        let (gap, _) = unit.next_gap().unwrap();
        let (id, _) = unit.begin(gap, Some(KeyText::from_texts(["10"]))).unwrap();
        unit.offer_seam(id, "100:100:".parse().unwrap()).unwrap();
        unit.copied(id);
        unit
    }
    fn routed(unit: &mut UnitRegions, x: u64, change: &Change) -> Routed {
        route(&keyed(), unit, Xid(x), change, &ToldPlaces::new()).unwrap()
    }

    #[test]
    fn a_row_that_leaves_the_copied_part_is_deleted_there() {
        let left = change(Action::Delete { old: row("5 - -") });
        assert_eq!(routed(&mut half_copied(), 100, &rekey("5", "15 x y")), Routed::Apply(left));
    }

    #[test]
    fn a_row_that_arrives_in_the_copied_part_is_inserted_there() {
        let arrived = change(Action::Insert { new: row("5 x y") });
        assert_eq!(routed(&mut half_copied(), 100, &rekey("15", "5 x y")), Routed::Apply(arrived));
    }

    #[test]
    fn a_row_that_arrives_without_its_large_value_is_copied_by_itself() {
        let key = KeyText::from_texts(["5"]);
        let mut unit = half_copied();
        assert_eq!(routed(&mut unit, 100, &rekey("15", "5 x ~")), Routed::CopyKey(key.clone()));
        let id = unit.begin_key(key, Xid(100));
        assert_eq!(routed(&mut unit, 100, &rekey("15", "5 x ~")), Routed::Wait);
        unit.offer_seam(id, "101:101:".parse().unwrap()).unwrap();
        unit.copied(id);
        assert_eq!(routed(&mut unit, 100, &rekey("15", "5 x ~")), Routed::Drop);
    }

    #[test]
    fn a_row_that_stays_in_one_part_follows_that_part() {
        let inside = rekey("5", "6 x ~");
        assert_eq!(routed(&mut half_copied(), 100, &inside), Routed::Apply(inside.clone()));
        assert_eq!(routed(&mut half_copied(), 99, &inside), Routed::Drop);
        assert_eq!(routed(&mut half_copied(), 100, &rekey("15", "16 x ~")), Routed::Drop);
    }

    #[test]
    fn keys_only_the_source_can_order_are_located_once_for_the_current_bounds() {
        let mut table = keyed();
        if let Identity::Key(key) = &mut table.identity {
            key.order = vec![KeyOrder::AskSource];
        }
        let mut unit = UnitRegions::new(vec![KeyOrder::AskSource]);
        let (gap, _) = unit.next_gap().unwrap();
        unit.begin(gap, Some(KeyText::from_texts(["m"]))).unwrap();
        let c = change(Action::Insert { new: row("z x y") });
        let key = KeyText::from_texts(["z"]);
        let mut told = ToldPlaces::new();
        let ask = route(&table, &mut unit, Xid(1), &c, &told).unwrap();
        assert_eq!(ask, Routed::Locate(vec![key.clone()]));
        told.insert(key, Place { bounds_below: 1, cuts: unit.bounds().1 });
        assert_eq!(route(&table, &mut unit, Xid(1), &c, &told).unwrap(), Routed::Drop);
    }

    #[test]
    fn a_leaf_that_left_is_emptied_where_it_was_copied_and_spares_what_came_back() {
        let spared = vec![KeyText::from_texts(["3"])];
        let left = |within| change(Action::Truncate { leaf: None, within: Some(within) });
        let whole = left(vec![(Extent::ALL, spared.clone())]);
        let copied = Extent::Range { lower: None, upper: Some(KeyText::from_texts(["10"])) };
        assert_eq!(routed(&mut half_copied(), 100, &whole), Routed::Apply(left(vec![(copied, spared)])));
        assert_eq!(routed(&mut half_copied(), 99, &whole), Routed::Drop);
        let mut followed = UnitRegions::followed(vec![KeyOrder::Integer]);
        assert_eq!(routed(&mut followed, 100, &whole), Routed::Apply(whole));
    }

    #[test]
    fn a_row_that_makes_room_is_judged_by_its_key() {
        let room = |key: &'static str| {
            let within = Some(vec![(Extent::Key(KeyText::from_texts([key])), vec![])]);
            change(Action::Truncate { leaf: None, within })
        };
        assert_eq!(routed(&mut half_copied(), 100, &room("5")), Routed::Apply(room("5")));
        assert_eq!(routed(&mut half_copied(), 99, &room("5")), Routed::Drop);
        assert_eq!(routed(&mut half_copied(), 100, &room("15")), Routed::Drop);
    }

    #[test]
    fn truncate_waits_for_a_region_in_flight_and_is_narrowed_afterwards() {
        let mut unit = half_copied();
        let (gap, _) = unit.next_gap().unwrap();
        let (id, _) = unit.begin(gap, None).unwrap();
        let truncate = change(Action::Truncate { leaf: None, within: None });
        assert_eq!(routed(&mut unit, 150, &truncate), Routed::Wait);
        unit.offer_seam(id, "160:160:".parse().unwrap()).unwrap();
        unit.copied(id);
        let Routed::Apply(Change { action: Action::Truncate { within: Some(within), .. }, .. }) =
            routed(&mut unit, 150, &truncate)
        else {
            panic!("narrowed")
        };
        assert_eq!(within.len(), 1);
        assert_eq!(routed(&mut unit, 160, &truncate), Routed::Apply(truncate));
    }
}
