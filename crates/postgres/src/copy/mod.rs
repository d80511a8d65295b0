//! Copying a region: `COPY … TO STDOUT` under a snapshot on the source, `COPY … FROM STDIN` on the target.
//!
//! Both sides agree on one form for a table ([`CopyForm::of`]); the bytes pass through undecoded.

mod compare;
mod reader;
mod writer;

pub(crate) use reader::places;
pub use reader::{PgReader, Place, Relations};
pub use writer::{PgWriter, UnitConditions};

use segue_model::key::KeyText;
use segue_model::region::Extent;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::table::{Column, Table, Transport};

/// The form of the bytes between the two COPY statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyForm {
    Binary,
    Text,
}

impl CopyForm {
    /// Binary where every column's binary form means the same on both servers.
    fn of(table: &Table) -> CopyForm {
        let binary = |c: &Column| c.transport == Transport::Binary;
        if table.columns.iter().all(binary) { CopyForm::Binary } else { CopyForm::Text }
    }

    fn sql(self) -> &'static str {
        match self {
            CopyForm::Binary => "(FORMAT binary)",
            CopyForm::Text => "(FORMAT text)",
        }
    }
}

/// Which side's names a condition uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

fn column_name(column: &Column, side: Side) -> &str {
    match side {
        Side::Source => &column.source,
        Side::Target => &column.target,
    }
}

/// The table's columns as a list.
pub(crate) fn column_list(table: &Table, side: Side) -> String {
    let names: Vec<String> = table.columns.iter().map(|c| quote_ident(column_name(c, side))).collect();
    names.join(", ")
}

/// The key columns, quoted; none without a key.
pub(crate) fn key_names(table: &Table, side: Side) -> Vec<String> {
    let columns = table.key().map_or(&[][..], |key| &key.columns);
    columns.iter().map(|&c| quote_ident(column_name(&table.columns[c], side))).collect()
}

/// A key as a list of literals of the columns' types.
pub(crate) fn key_literals(table: &Table, key: &KeyText) -> String {
    let types = table.key().into_iter().flat_map(|k| &k.columns).map(|&c| &table.columns[c].target_type);
    let literal = |(text, sql_type): (&bytes::Bytes, &String)| {
        // Standing alone, these names mean a length of one and would cut the value.
        let sql_type = match sql_type.as_str() {
            "character" | "char" => "pg_catalog.bpchar",
            "bit" => "pg_catalog.\"bit\"",
            other => other,
        };
        format!("{}::{sql_type}", quote_literal(&String::from_utf8_lossy(text)))
    };
    key.0.iter().zip(types).map(literal).collect::<Vec<_>>().join(", ")
}

/// The condition that the rows of `extent`, and only those, fulfil on `side`.
pub(crate) fn extent_condition(table: &Table, extent: &Extent, side: Side) -> String {
    let keys = key_names(table, side).join(", ");
    let compare =
        |operator: &str, key: &KeyText| format!("({keys}) {operator} ({})", key_literals(table, key));
    match extent {
        Extent::Range { lower: None, upper: None } => "true".to_owned(),
        Extent::Range { lower: Some(lower), upper: None } => compare(">", lower),
        Extent::Range { lower: None, upper: Some(upper) } => compare("<=", upper),
        Extent::Range { lower: Some(lower), upper: Some(upper) } => {
            format!("{} AND {}", compare(">", lower), compare("<=", upper))
        }
        Extent::Key(key) => compare("=", key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::name::QualifiedName;
    use segue_model::table::{ArrayForm, Estimate, Identity, Key, KeyOrder, TableId};

    fn table() -> Table {
        let column = |name: &str, target_type: &str| Column {
            source: name.into(),
            target: name.into(),
            target_type: target_type.into(),
            transport: Transport::Binary,
            array: ArrayForm::Typed,
            nullable: true,
            identity_always: false,
        };
        Table {
            id: TableId(0),
            source: QualifiedName::new("public", "t"),
            target: QualifiedName::new("public", "t"),
            columns: vec![column("a", "integer"), column("b\"x", "text")],
            identity: Identity::Key(Key {
                columns: vec![0, 1],
                order: vec![KeyOrder::Integer, KeyOrder::Bytes],
                ordered_alike: true,
                bytewise: true,
                target_deferrable: false,
            }),
            one_region: None,
            estimate: Estimate::default(),
        }
    }

    #[test]
    fn a_range_is_compared_as_a_row_with_quoted_names_and_literals() {
        let key = |a: &'static str, b: &'static str| KeyText::from_texts([a, b]);
        let range = Extent::Range { lower: Some(key("1", "o'x")), upper: Some(key("2", "z")) };
        assert_eq!(
            extent_condition(&table(), &range, Side::Source),
            r#"("a", "b""x") > ('1'::integer, 'o''x'::text) AND ("a", "b""x") <= ('2'::integer, 'z'::text)"#
        );
        assert_eq!(extent_condition(&table(), &Extent::ALL, Side::Source), "true");
    }

    #[test]
    fn one_column_without_a_portable_form_makes_the_whole_copy_text() {
        let mut t = table();
        assert_eq!(CopyForm::of(&t), CopyForm::Binary);
        t.columns[1].transport = Transport::Text;
        assert_eq!(CopyForm::of(&t), CopyForm::Text);
    }
}
