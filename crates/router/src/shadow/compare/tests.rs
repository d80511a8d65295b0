//! Two answers: rows in any order, keys in theirs, tolerances, and that nothing leaks.

use super::*;
use crate::shadow::rows::tests::{answer, description, row};
use std::time::Duration;

fn verdict(served: &Rows, other: &Rows, order: &Order) -> Verdict {
    compare(served, other, order, &Way::default()).unwrap()
}

fn difference(served: &Rows, other: &Rows, order: &Order, way: &Way) -> Difference {
    match compare(served, other, order, way).unwrap() {
        Verdict::Differs(difference) => difference,
        same => panic!("{same:?}"),
    }
}

fn kind(served: &Rows, other: &Rows) -> String {
    difference(served, other, &Order::None, &Way::default()).kind.to_string()
}

const SAME: Verdict = Verdict::Same { order_unproven: false };
const SHOWN: Way = Way { tolerance: Tolerance { float: None, timestamp: None }, show_values: true };

#[test]
fn without_an_order_rows_are_the_same_in_any() {
    let a = answer(&["a"], &[&["1"], &["2"], &["2"]]);
    let b = answer(&["a"], &[&["2"], &["1"], &["2"]]);
    assert_eq!(verdict(&a, &b, &Order::None), SAME);
    assert_eq!(verdict(&a, &b, &Order::Hidden), Verdict::Same { order_unproven: true });
    assert_eq!(verdict(&a, &b, &Order::Keys(vec![7])), Verdict::Same { order_unproven: true });
    assert_eq!(verdict(&a, &a, &Order::Hidden), SAME);
}

#[test]
fn how_often_a_row_comes_counts() {
    let a = answer(&["a"], &[&["1"], &["2"], &["2"]]);
    let b = answer(&["a"], &[&["1"], &["1"], &["2"]]);
    assert_eq!(kind(&a, &b), "values differ in column a");
    assert_eq!(kind(&a, &answer(&["a"], &[&["1"], &["2"]])), "rows missing (1)");
    assert_eq!(kind(&answer(&["a"], &[]), &a), "rows too many (3)");
}

#[test]
fn keys_come_in_their_order_and_ties_in_any() {
    let keys = Order::Keys(vec![0]);
    let a = answer(&["k", "v"], &[&["1", "x"], &["1", "y"], &["2", "z"]]);
    let ties = answer(&["k", "v"], &[&["1", "y"], &["1", "x"], &["2", "z"]]);
    let wrong = answer(&["k", "v"], &[&["2", "z"], &["1", "x"], &["1", "y"]]);
    assert_eq!(verdict(&a, &ties, &keys), SAME);
    let found = difference(&a, &wrong, &keys, &SHOWN);
    assert_eq!(found.kind, MismatchKind::OrderDiffers);
    assert_eq!((found.columns[0].served.as_str(), found.columns[0].other.as_str()), ("1", "2"));
}

#[test]
fn the_columns_that_differ_are_named_and_values_shown_only_where_they_may_be() {
    let a = answer(&["id", "name", "city"], &[&["1", "ann", "Rome"], &["2", "bob", "Oslo"]]);
    let b = answer(&["id", "name", "city"], &[&["2", "bobby", "Oslo"], &["1", "ann", "Rome"]]);
    let told = difference(&a, &b, &Order::None, &SHOWN);
    assert_eq!(told.kind.to_string(), "values differ in column name");
    let pair = |served: &str, other: &str| {
        vec![ColumnPair { name: "name".into(), served: served.into(), other: other.into() }]
    };
    assert_eq!(told.columns, pair("bob", "bobby"));
    let hidden = difference(&a, &b, &Order::None, &Way::default());
    assert_eq!(hidden.columns, pair("3 bytes", "5 bytes"));
    assert!(!format!("{hidden:?}").contains("bob"));
}

#[test]
fn a_row_that_is_missing_is_told_by_all_its_columns() {
    let a = answer(&["id", "name"], &[&["1", "ann"], &["2", "bob"]]);
    let b = answer(&["id", "name"], &[&["1", "ann"]]);
    let found = difference(&a, &b, &Order::None, &Way::default());
    let told: Vec<_> = found.columns.iter().map(|pair| (&*pair.name, &*pair.served, &*pair.other)).collect();
    assert_eq!(told, [("id", "1 bytes", "no such row"), ("name", "3 bytes", "no such row")]);
    assert_eq!((found.served_rows, found.other_rows), (2, 1));
}

#[test]
fn columns_agree_in_number_name_type_and_format() {
    let described = |columns: &[(&str, u32, bool)]| {
        let mut rows = Rows::new(1 << 10);
        rows.describe(&description(columns));
        rows
    };
    let a = described(&[("a", 23, false)]);
    for (other, told) in [
        (described(&[]), "columns differ: 1 and 0"),
        (described(&[("b", 23, false)]), "columns differ: a and b"),
        (described(&[("a", 20, false)]), "columns differ: a is of type 23 and 20"),
        (described(&[("a", 20_000, false)]), "columns differ: a is of type 23 and 20000"),
        (described(&[("a", 23, true)]), "columns differ: a is in another format"),
    ] {
        assert_eq!(kind(&a, &other), told);
    }
    let of_user = |type_oid| described(&[("a", type_oid, false)]);
    assert_eq!(verdict(&of_user(16_384), &of_user(17_000), &Order::None), SAME);
}

#[test]
fn an_answer_without_a_description_is_compared_by_the_others() {
    let b = answer(&["a"], &[&["1"], &["2"]]);
    let mut a = Rows::new(1 << 10);
    assert!(a.push(&row(&[Some(b"2")])) && a.push(&row(&[Some(b"1")])));
    assert_eq!(verdict(&a, &b, &Order::None), SAME);
    let mut wide = Rows::new(1 << 10);
    assert!(wide.push(&row(&[Some(b"2"), None])));
    assert_eq!(kind(&wide, &b), "columns differ: a row has another number of values");
}

#[test]
fn floats_and_timestamps_may_differ_a_little_where_that_is_configured() {
    let tolerance = Tolerance { float: Some(1e-9), timestamp: Some(Duration::from_millis(1)) };
    let lenient = Way { tolerance, show_values: false };
    let rows = |values: &[(&str, &str, &str)]| {
        let mut rows = Rows::new(1 << 10);
        rows.describe(&description(&[("id", 23, false), ("f", 701, false), ("t", 1_184, false)]));
        for (id, float, at) in values {
            assert!(rows.push(&row(&[id, float, at].map(|value| Some(value.as_bytes())))));
        }
        rows
    };
    let a = rows(&[("1", "0.1", "2024-01-01 00:00:00+00"), ("2", "0.1", "2024-01-01 00:00:00+00")]);
    let near = rows(&[
        ("2", "0.10000000000000002", "2024-01-01 00:00:00+00"),
        ("1", "0.1", "2024-01-01 00:00:00.0005+00"),
    ]);
    let far = rows(&[("2", "0.1000001", "2024-01-01 00:00:00+00"), ("1", "0.1", "2024-01-01 00:00:00+00")]);
    assert_eq!(compare(&a, &near, &Order::None, &lenient), Ok(SAME));
    assert_eq!(kind(&a, &near), "values differ in column t");
    let found = difference(&a, &far, &Order::None, &lenient);
    assert_eq!(found.kind.to_string(), "values differ in column f");
    assert_eq!(compare(&a, &near, &Order::Keys(vec![1]), &lenient), Ok(SAME), "keys are near, too");
}

#[test]
fn null_is_not_empty() {
    let mut a = Rows::new(1 << 10);
    a.describe(&description(&[("a", 25, false)]));
    let mut b = a.clone();
    assert!(a.push(&row(&[None])) && b.push(&row(&[Some(b"")])));
    let found = difference(&a, &b, &Order::None, &Way::default());
    assert_eq!((found.columns[0].served.as_str(), found.columns[0].other.as_str()), ("null", "0 bytes"));
}

#[test]
fn an_answer_that_is_cut_is_larger() {
    let a = answer(&["a"], &[&["1"]]);
    let mut b = a.clone();
    b.cut();
    assert_eq!(kind(&a, &b), MismatchKind::Larger.to_string());
}

#[test]
fn what_is_shown_is_bounded() {
    assert_eq!(tell(Some("é".repeat(1000).as_bytes()), false, true).len(), SHOWN_BYTES_MAX);
    assert_eq!(tell(Some(&[0xab; 1000]), true, true), "ab".repeat(SHOWN_BYTES_MAX / 2));
    let columns: Vec<String> = (0..100).map(|i| format!("c{i}")).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let a = answer(&columns, &[&["1"; 100]]);
    let b = answer(&columns, &[&["2"; 100]]);
    assert_eq!(difference(&a, &b, &Order::None, &SHOWN).columns.len(), COLUMNS_MAX);
}
