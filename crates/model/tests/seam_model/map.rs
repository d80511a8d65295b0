//! The program's own map of regions as a value a checker can compare, and its rows and changes.

use crate::source::{Rows, Shot, Write};
use segue_model::change::{Action, Change, Row, Value};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::region::{CopiedRegion, Extent, RegionId, UnitRegions};
use segue_model::route::{Routed, ToldPlaces, route};
use segue_model::seam::{Xid, Xid32};
use segue_model::table::{ArrayForm, Column, Estimate, Identity, Key, KeyOrder, Table, TableId, Transport};
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

/// The keys of the two rows; a region ends between them.
const KEYS: [&str; 2] = ["5", "15"];
const BOUND: &str = "10";
/// What the stream's numbers are widened by; any number in use would do.
const NEAR: Xid = Xid(1 << 32);

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let column = |name: &str, target_type: &str| Column {
        source: name.into(),
        target: name.into(),
        target_type: target_type.into(),
        transport: Transport::Binary,
        array: ArrayForm::Typed,
        nullable: true,
        identity_always: false,
    };
    let order = vec![KeyOrder::Integer];
    Table {
        id: TableId(0),
        source: QualifiedName::new("public", "t"),
        target: QualifiedName::new("public", "t"),
        columns: vec![column("id", "integer"), column("a", "text")],
        identity: Identity::Key(Key {
            columns: vec![0],
            order,
            ordered_alike: true,
            bytewise: true,
            target_deferrable: false,
        }),
        one_region: None,
        estimate: Estimate::default(),
    }
});

/// A map, shared by all states that have the same one.
///
/// Two maps are the same if their `Debug` forms are: those show every field, also what the map keeps to itself.
#[derive(Clone)]
pub(crate) struct Map {
    unit: Arc<UnitRegions>,
    print: Arc<str>,
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        self.print == other.print
    }
}
impl Eq for Map {}
impl Hash for Map {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.print.hash(state);
    }
}
impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.print)
    }
}

impl Map {
    fn of(unit: UnitRegions) -> Map {
        let print = format!("{unit:?}").into();
        Map { unit: Arc::new(unit), print }
    }

    /// As a start finds it (`copying` in the engine's `migration.rs`).
    pub(crate) fn restore(copied: [Option<&Shot>; 2], skipped: &[u64]) -> Map {
        let region = |(at, shot): (usize, Option<&Shot>)| {
            Some(CopiedRegion { extent: extent(at), seam: shot?.seam() })
        };
        let copied = copied.into_iter().enumerate().filter_map(region).collect();
        let skipped: BTreeSet<Xid> = skipped.iter().copied().map(Xid).collect();
        let unit = UnitRegions::restore(vec![KeyOrder::Integer], copied, skipped);
        Map::of(unit.expect("two regions side by side"))
    }

    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut UnitRegions) -> T) -> T {
        let mut unit = (*self.unit).clone();
        let out = change(&mut unit);
        *self = Map::of(unit);
        out
    }

    /// The region that a worker would begin next.
    pub(crate) fn next_gap(&self) -> Option<(usize, RegionId)> {
        let (id, gap) = self.unit.next_gap()?;
        let Extent::Range { lower, .. } = gap else { panic!("a gap is a range") };
        Some((usize::from(lower.is_some()), id))
    }

    /// Marks region `at`, which begins where the gap `id` does.
    pub(crate) fn begin(&mut self, at: usize, id: RegionId) -> RegionId {
        let Extent::Range { upper, .. } = extent(at) else { panic!("a region is a range") };
        let (id, marked) = self.change(|unit| unit.begin(id, upper)).expect("the gap was there");
        assert_eq!(marked, extent(at));
        id
    }

    pub(crate) fn skipped(&self) -> Vec<u64> {
        self.unit.skipped().iter().map(|x| x.0).collect()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.unit.is_complete()
    }

    /// What becomes of `write` of transaction `x`. `Err`: it has to wait.
    pub(crate) fn route(&mut self, x: u64, write: Write) -> Result<Option<Write>, ()> {
        let x = Xid32(x as u32).widen(NEAR);
        let change = to_change(write);
        let routed = self.change(|unit| route(&TABLE, unit, x, &change, &ToldPlaces::new()));
        match routed.expect("a whole key") {
            Routed::Apply(left) => Ok(Some(from_change(&left))),
            Routed::Drop => Ok(None),
            Routed::Wait => Err(()),
            Routed::Locate(_) | Routed::CopyKey(_) => panic!("integers have a place, and no value is large"),
        }
    }
}

fn extent(at: usize) -> Extent {
    let bound = Some(KeyText::from_texts([BOUND]));
    match at {
        0 => Extent::Range { lower: None, upper: bound },
        _ => Extent::Range { lower: bound, upper: None },
    }
}

fn row(key: u8, value: Option<u8>) -> Row {
    let text = |text: String| Value::Text(text.into());
    let value = value.map_or(Value::Null, |v| text(v.to_string()));
    [text(KEYS[usize::from(key)].into()), value].into()
}

fn to_change(write: Write) -> Change {
    let action = match write {
        Write::Insert(key, value) => Action::Insert { new: row(key, Some(value)) },
        Write::Update(key, value) => Action::Update { old: None, new: row(key, Some(value)) },
        Write::Delete(key) => Action::Delete { old: row(key, None) },
        Write::Rekey { from, to, value } => {
            Action::Update { old: Some(row(from, None)), new: row(to, Some(value)) }
        }
    };
    Change { table: TABLE.id, unit: TABLE.id.into(), action }
}

fn from_change(change: &Change) -> Write {
    let text = |row: &Row, column: usize| match &row[column] {
        Value::Text(text) => std::str::from_utf8(text).expect("text").to_owned(),
        Value::Null | Value::Unchanged => panic!("{change:?} carries its row"),
    };
    let key = |row: &Row| KEYS.iter().position(|k| *k == text(row, 0)).expect("a known key") as u8;
    let value = |row: &Row| text(row, 1).parse().expect("a number");
    match &change.action {
        Action::Insert { new } => Write::Insert(key(new), value(new)),
        Action::Update { old: None, new } => Write::Update(key(new), value(new)),
        Action::Update { old: Some(old), new } => {
            Write::Rekey { from: key(old), to: key(new), value: value(new) }
        }
        Action::Delete { old } => Write::Delete(key(old)),
        Action::Truncate { .. } => panic!("nothing truncates here"),
    }
}

/// The region of a key is the one with its number.
pub(crate) fn regions_of(write: Write) -> impl Iterator<Item = usize> {
    (0..Rows::default().len()).filter(move |at| write.touches(*at as u8))
}
