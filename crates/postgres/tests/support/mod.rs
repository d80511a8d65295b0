//! A table's plan as these tests need it, read from a live catalog; the product's own planner is tested elsewhere.

#![allow(dead_code, unreachable_pub)]

use segue_model::change::Row;
use segue_model::change::Value;
use segue_model::name::QualifiedName;
use segue_model::table::{ArrayForm, Column, Estimate, Identity, Key, KeyOrder, Table, TableId, Transport};
use tokio_postgres::Client;

/// A table of schema `public`, the same on both sides.
pub async fn table(client: &Client, id: u32, name: &str) -> Table {
    // So that names of types come with their schema.
    client.batch_execute("SET search_path = pg_catalog").await.unwrap();
    let columns = client
        .query(
            "SELECT a.attname::text, format_type(a.atttypid, NULL), a.attnotnull, a.attidentity = 'a', t.typarray = 0 OR t.typcategory = 'A' \
                 OR t.typdelim <> ',' OR t.typtype = 'd' AND t.typbasetype IN (SELECT oid FROM pg_type WHERE typcategory = 'A') \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = ('public.' || quote_ident($1))::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
             ORDER BY a.attnum",
            &[&name],
        )
        .await
        .unwrap();
    let columns: Vec<Column> = columns
        .iter()
        .map(|row| Column {
            source: row.get(0),
            target: row.get(0),
            target_type: row.get(1),
            transport: Transport::Text,
            array: if row.get(4) { ArrayForm::CastText } else { ArrayForm::Typed },
            nullable: !row.get::<_, bool>(2),
            identity_always: row.get(3),
        })
        .collect();
    let key = client
        .query(
            "SELECT a.attname::text, NOT i.indimmediate FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n) \
             JOIN pg_attribute a ON a.attrelid = ('public.' || quote_ident($1))::regclass AND a.attnum = k.attnum \
             WHERE i.indrelid = a.attrelid AND i.indisprimary ORDER BY k.n",
            &[&name],
        )
        .await
        .unwrap();
    client.batch_execute("RESET search_path").await.unwrap();
    let identity = if key.is_empty() {
        Identity::WholeRow
    } else {
        let at = |name: String| columns.iter().position(|c| c.source == name).unwrap();
        Identity::Key(Key {
            columns: key.iter().map(|row| at(row.get(0))).collect(),
            order: vec![KeyOrder::AskSource; key.len()],
            // Of text nothing is known.
            ordered_alike: key.iter().all(|row| columns[at(row.get(0))].target_type != "text"),
            bytewise: true,
            target_deferrable: key.iter().any(|row| row.get(1)),
        })
    };
    Table {
        id: TableId(id),
        source: QualifiedName::new("public", name),
        target: QualifiedName::new("public", name),
        columns,
        identity,
        one_region: None,
        estimate: Estimate::default(),
    }
}

/// `~` unchanged, `-` NULL, anything else text; separated by spaces.
pub fn row(text: &str) -> Row {
    text.split(' ').map(value).collect()
}

pub fn value(text: &str) -> Value {
    match text {
        "~" => Value::Unchanged,
        "-" => Value::Null,
        text => Value::Text(text.to_owned().into()),
    }
}
