//! The one table of the fakes, its rows, and its keys.

use bytes::Bytes;
use segue_model::change::{Row, Value};
use segue_model::key::{KeyText, compare};
use segue_model::name::QualifiedName;
use segue_model::region::Extent;
use segue_model::table::*;
use std::cmp::Ordering;
use std::collections::BTreeMap;

pub type Rows = BTreeMap<i64, (String, String)>;

pub fn table() -> Table {
    let column = |name: &str, sql_type: &str| Column {
        source: name.into(),
        target: name.into(),
        target_type: sql_type.into(),
        transport: Transport::Binary,
        array: ArrayForm::Typed,
        nullable: false,
        identity_always: false,
    };
    Table {
        id: TableId(0),
        source: QualifiedName::new("public", "t"),
        target: QualifiedName::new("public", "t"),
        columns: vec![column("id", "bigint"), column("a", "text"), column("big", "text")],
        identity: Identity::Key(Key {
            columns: vec![0],
            order: vec![KeyOrder::Integer],
            ordered_alike: true,
            bytewise: true,
            target_deferrable: false,
        }),
        one_region: None,
        estimate: Estimate::default(),
    }
}

pub fn text(s: &str) -> Value {
    Value::Text(Bytes::copy_from_slice(s.as_bytes()))
}
pub fn row(id: i64, a: &str, big: Option<&str>) -> Row {
    vec![text(&id.to_string()), text(a), big.map_or(Value::Unchanged, text)].into()
}
pub fn id_of(key: &KeyText) -> i64 {
    std::str::from_utf8(&key.0[0]).unwrap().parse().unwrap()
}
pub fn parse(row: &Row) -> (i64, Option<String>, Option<String>) {
    let get = |i: usize| row[i].text().map(|b| String::from_utf8(b.to_vec()).unwrap());
    (get(0).unwrap().parse().unwrap(), get(1), get(2))
}
pub fn key(id: i64) -> KeyText {
    KeyText::from_texts([id.to_string()])
}
pub fn within(extent: &Extent, id: i64) -> bool {
    let order = [KeyOrder::Integer];
    match extent {
        Extent::Key(k) => id_of(k) == id,
        Extent::Range { lower, upper } => {
            lower.as_ref().is_none_or(|l| compare(&order, l, &key(id)) == Some(Ordering::Less))
                && upper.as_ref().is_none_or(|u| compare(&order, &key(id), u) != Some(Ordering::Greater))
        }
    }
}
