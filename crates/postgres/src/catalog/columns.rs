//! The columns of tables as one side has them now: light enough to be asked again and again.

use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::table::Table;
use std::collections::BTreeMap;
use tokio_postgres::Client;

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnForm {
    /// Its type with modifiers, as SQL.
    pub sql_type: String,
    /// It takes no NULL.
    pub not_null: bool,
    /// Its value is computed from the others.
    pub generated: bool,
    /// A row that says nothing about it can be written.
    pub optional: bool,
}

/// The columns of a table by name.
pub type ColumnForms = BTreeMap<String, ColumnForm>;

/// The columns of each of `tables` that is there. Takes no lock on them.
pub async fn columns(
    client: &Client,
    tables: &[QualifiedName],
) -> Outcome<BTreeMap<QualifiedName, ColumnForms>> {
    let sql = "SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod) AS sql_type, a.attnotnull,
                a.attgenerated <> '' AS generated, a.atthasdef OR a.attidentity <> '' OR NOT a.attnotnull AS optional
           FROM unnest($1::text[], $2::text[]) w(nspname, relname)
           JOIN pg_namespace n ON n.nspname = w.nspname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname
           LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped";
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = client.query(sql, &[&schemas, &names]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking at the tables' columns"))?;
    let mut found: BTreeMap<QualifiedName, ColumnForms> = BTreeMap::new();
    for row in &rows {
        let table = QualifiedName::new(row.get::<_, &str>("nspname"), row.get::<_, &str>("relname"));
        let columns = found.entry(table).or_default();
        if let Some(name) = row.get::<_, Option<String>>("attname") {
            let form = ColumnForm {
                sql_type: row.get("sql_type"),
                not_null: row.get("attnotnull"),
                generated: row.get("generated"),
                optional: row.get("optional"),
            };
            columns.insert(name, form);
        }
    }
    Ok(found)
}

/// The columns, quoted, that a table has only where its rows land, and whose values nothing but the rows there says: generated ones are
/// not among them. Takes no lock on it.
pub(crate) async fn own(client: &Client, table: &Table) -> Outcome<Vec<String>> {
    let sql = "SELECT quote_ident(a.attname) FROM pg_attribute a WHERE a.attrelid = $1::text::regclass AND a.attnum > 0
          AND NOT a.attisdropped AND a.attgenerated = '' AND NOT a.attname::text = ANY ($2::text[]) ORDER BY a.attnum";
    let travelling: Vec<&str> = table.columns.iter().map(|column| column.target.as_str()).collect();
    let rows = client.query(sql, &[&table.target.sql(), &travelling]).await;
    let rows =
        rows.map_err(|e| fault_of(&e).during(format_args!("looking at the columns of {}", table.target)))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
