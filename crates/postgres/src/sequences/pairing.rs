//! Which sequence of the new side takes over from which of the old one, and why one cannot. Decided without I/O.
//!
//! Two sequences belong together because mapped columns use them, whatever they are called. A sequence that nothing in
//! the catalog uses is known to programs by its name only, and so it is paired by its name, if its schema is one of the
//! tables'.

use super::lift::{RowsAhead, Rule};
use super::read::{Column, Count, Sequence, Side, Use};
use crate::birth::Direction;
use segue_model::name::QualifiedName;
use segue_model::table::Table;
use std::collections::BTreeSet;

/// A sequence of the old side, and the one that goes on from it on the new side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// On the old side.
    pub from: QualifiedName,
    /// On the new side.
    pub to: QualifiedName,
    /// The columns of the old side that use it, such as `public.orders.id`; none if it is known by its name only.
    pub used_by: Vec<String>,
    pub(super) from_oid: u32,
    pub(super) to_oid: u32,
    /// As the sequences were when they were looked at.
    pub(super) counts: (Count, Count),
    pub(super) rule: Rule,
    /// Integer columns with a unique index, in which rows may stand ahead of the sequence: table and column.
    pub(super) unique: Vec<(QualifiedName, String)>,
    pub(super) rows: Option<RowsAhead>,
}

/// What comes of two catalogs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Paired {
    pub(super) pairs: Vec<Pair>,
    /// In words.
    pub(super) unready: Vec<String>,
    /// In words.
    pub(super) remarks: Vec<String>,
}

/// A use of a sequence by a mapped column, on its way to a pair.
struct Wish<'a> {
    from: &'a Sequence,
    to: &'a Sequence,
    used_by: Vec<String>,
    /// The widest of its columns; `None`: at least one bounds nothing.
    range: Option<(i64, i64)>,
    unique: Vec<(QualifiedName, String)>,
}

/// Pairs what `old` and `new` have, for `tables` of a plan whose rows travel in `direction`.
pub(super) fn pair(old: &Side, new: &Side, tables: &[Table], direction: Direction) -> Paired {
    let (here, there) = (direction.from_side(), direction.to_side());
    let mut paired = Paired::default();
    let mut wishes: Vec<Wish<'_>> = Vec::new();
    for (no, table) in tables.iter().enumerate() {
        for column in &table.columns {
            let Some(facts) = old.columns.get(&(no, column.source.clone())) else { continue };
            let label = format!("{}.{}", table.source, column.source);
            let (target, landing) = (
                format!("{}.{}", table.target, column.target),
                new.columns.get(&(no, column.target.clone())),
            );
            if let Some(shown) = &facts.hidden {
                paired.unready.push(format!(
                    "the default of {label} on the {here} names its sequence as text: {shown}; name it as a regclass \
                     constant, so that it can be found"
                ));
            }
            for used in &facts.uses {
                let Some(from) = old.sequences.get(&used.sequence) else { continue };
                let is_beside = !used.generates && facts.uses.iter().any(|other| other.generates);
                match counterpart((used, is_beside), from, landing, new, &table.target.schema) {
                    Ok(to) => wish(
                        &mut wishes,
                        Wish {
                            from,
                            to,
                            used_by: vec![label.clone()],
                            range: facts.range,
                            unique: (facts.unique && facts.range.is_some())
                                .then(|| (table.source.clone(), column.source.clone()))
                                .into_iter()
                                .collect(),
                        },
                    ),
                    Err(Missing::Unready(why)) => paired.unready.push(format!(
                        "{label} uses the sequence {} on the {here}, and on the {there} {target} {why}",
                        from.name
                    )),
                    Err(Missing::Remark(why)) => paired.remarks.push(format!(
                        "the sequence {} of {label} is not carried to the {there}: there {target} {why}",
                        from.name
                    )),
                }
            }
        }
    }
    let by_name = loose(old, new, tables, there, &mut paired.remarks);
    for wish in wishes {
        match made(&wish, direction) {
            Ok(pair) => paired.pairs.push(pair),
            Err(why) => paired.unready.extend(why),
        }
    }
    for wish in by_name {
        match made(&wish, direction) {
            Ok(pair) => paired.pairs.push(pair),
            Err(why) => {
                paired.remarks.extend(why.into_iter().map(|why| format!("{why} (no column uses it)")))
            }
        }
    }
    paired
}

/// The same two sequences are one pair, however many columns use them.
fn wish<'a>(wishes: &mut Vec<Wish<'a>>, new: Wish<'a>) {
    match wishes.iter_mut().find(|w| (w.from.oid, w.to.oid) == (new.from.oid, new.to.oid)) {
        Some(known) => {
            known.range = known.range.zip(new.range).map(|(a, b)| (a.0.min(b.0), a.1.max(b.1)));
            known.used_by.extend(new.used_by);
            known.unique.extend(new.unique);
        }
        None => wishes.push(new),
    }
}

/// Why a column's sequence has no counterpart.
enum Missing {
    Unready(&'static str),
    Remark(&'static str),
}

/// The sequence that goes on for `used`, by way of the column that its values land in. `is_beside`: the column takes its
/// values from another one, and only owns this.
fn counterpart<'a>(
    (used, is_beside): (&Use, bool),
    from: &Sequence,
    landing: Option<&Column>,
    new: &'a Side,
    schema: &str,
) -> Result<&'a Sequence, Missing> {
    let Some(landing) = landing else { return Err(Missing::Unready("is not there")) };
    if used.generates && !landing.has_default {
        return Err(Missing::Unready("has no default, so that inserts without it would fail"));
    }
    let of_leaf = |a: &Use| match (&a.leaf, &used.leaf) {
        (Some(a), Some(b)) => a.name == b.name,
        _ => false,
    };
    let mut candidates: Vec<&Use> = landing.uses.iter().filter(|a| of_leaf(a)).collect();
    if candidates.is_empty() {
        candidates = landing.uses.iter().filter(|a| a.leaf.is_none()).collect();
    }
    // What feeds the column on the one side goes on in what feeds it on the other, and what lies beside it does not.
    if used.generates || is_beside {
        candidates.retain(|a| a.generates == used.generates);
    }
    let mut found: Vec<&Sequence> =
        candidates.iter().filter_map(|a| new.sequences.get(&a.sequence)).collect();
    if found.len() > 1 {
        found.retain(|to| to.name.name == from.name.name);
    }
    match found.as_slice() {
        [to] => return Ok(to),
        [] => {}
        [..] => {
            return Err(Missing::Unready("uses several sequences, and it is not clear which one goes on"));
        }
    }
    if !candidates.is_empty() {
        return Err(Missing::Unready("uses several sequences, and none has this name"));
    }
    if landing.hidden.is_some() {
        return Err(Missing::Unready(
            "has a default that names its sequence as text: name it as a regclass constant",
        ));
    }
    if used.generates && landing.constant {
        return Err(Missing::Unready("has a default that is the same for every row"));
    }
    if used.generates {
        return Err(Missing::Remark("has a default that takes no sequence"));
    }
    // No default uses it, so it is a program that asks for its values, by its name.
    let named =
        new.named(&QualifiedName::new(schema, from.name.name.clone())).filter(|to| !is_beside || to.loose);
    named.ok_or(Missing::Remark(
        "owns none to go on with, and none has this name; a program that asks it for values would fail",
    ))
}

/// Sequences that no column uses, and their namesakes.
fn loose<'a>(
    old: &'a Side,
    new: &'a Side,
    tables: &[Table],
    there: &str,
    remarks: &mut Vec<String>,
) -> Vec<Wish<'a>> {
    let mut wishes = Vec::new();
    for from in old.loose() {
        let schemas: BTreeSet<&str> = tables
            .iter()
            .filter(|table| table.source.schema == from.name.schema)
            .map(|table| table.target.schema.as_str())
            .collect();
        let found: Vec<&Sequence> = schemas
            .iter()
            .filter_map(|schema| new.named(&QualifiedName::new(*schema, from.name.name.clone())))
            .collect();
        match found.as_slice() {
            [to] if !(from.count.cycle || to.count.cycle) => {
                wishes.push(Wish { from, to, used_by: Vec::new(), range: None, unique: Vec::new() });
            }
            [_] => remarks.push(format!(
                "the sequence {} is not carried: no column uses it, and it begins anew at its end",
                from.name
            )),
            [] => remarks.push(format!(
                "no column uses the sequence {}, and the {there} has none of this name: if the application asks it for \
                 values, make it there",
                from.name
            )),
            [..] => remarks.push(format!(
                "no column uses the sequence {}, and the {there} has several of this name: none is set",
                from.name
            )),
        }
    }
    wishes
}

/// The pair, or why the new side's sequence cannot go on where the old one's ends.
fn made(wish: &Wish<'_>, direction: Direction) -> Result<Pair, Vec<String>> {
    let (here, there) = (direction.from_side(), direction.to_side());
    let Wish { from, to, .. } = wish;
    let (old, new) = (&from.count, &to.count);
    let mut why = Vec::new();
    for (side, sequence) in [(here, from), (there, to)] {
        for right in &sequence.lacks {
            let on = if right.contains(" ON ") {
                String::new()
            } else {
                format!(" ON SEQUENCE {}", sequence.name.sql())
            };
            why.push(format!(
                "the sequence {} cannot be {} on the {side} without a right: GRANT {right}{on} to Segue's role",
                sequence.name,
                if right == "UPDATE" { "set" } else { "read" },
            ));
        }
    }
    if old.increment != new.increment {
        why.push(format!(
            "the sequence {} counts by {} on the {here}, and {} counts by {} on the {there}",
            from.name, old.increment, to.name, new.increment
        ));
    }
    if old.cycle != new.cycle {
        let (one, other) = if old.cycle { (here, there) } else { (there, here) };
        why.push(format!(
            "the sequence {} begins anew at its end on the {one} (CYCLE), and fails there on the {other}",
            from.name
        ));
    }
    // Sequences of old servers are wider than their columns; in a circle it is their own end that they turn at.
    let held = wish.range.filter(|_| !old.cycle).unwrap_or((i64::MIN, i64::MAX));
    let (low, high) = (old.min.max(held.0), old.max.min(held.1));
    let (first, end) = if old.increment > 0 { (low, high) } else { (high, low) };
    let holds = |value: i64| (new.min..=new.max).contains(&value);
    if !holds(end) || old.cycle && !holds(first) {
        why.push(format!(
            "the sequence {} on the {there} gives values from {} to {}, and {} on the {here} from {low} to {high}",
            to.name, new.min, new.max, from.name
        ));
    }
    if !why.is_empty() {
        return Err(why);
    }
    Ok(Pair {
        from: from.name.clone(),
        to: to.name.clone(),
        used_by: wish.used_by.clone(),
        from_oid: from.oid,
        to_oid: to.oid,
        counts: (*old, *new),
        rule: Rule::of(old, first, end),
        unique: wish.unique.clone(),
        rows: None,
    })
}
