//! What the statements of the applier need to know of a target table beyond its plan.

use super::qualified;
use super::value::Param;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::change::Value;
use segue_model::table::Table;
use tokio_postgres::Client;

/// What is looked up of a target table.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// For each key column, the schema (quoted) of the operators its type is ordered and compared by.
    pub(super) key_schemas: Vec<String>,
    /// Its rows are in its partitions.
    pub(super) partitioned: bool,
}

/// The names of the key columns on the target.
pub(super) fn key_columns(table: &Table) -> Vec<String> {
    let columns = table.key().map_or(&[][..], |key| &key.columns);
    columns.iter().map(|&i| table.columns[i].target.clone()).collect()
}

/// Looks a table up by its name and key columns.
pub(super) async fn look_up(client: &Client, table: &Table) -> Outcome<Facts> {
    let (name, columns) = (qualified(table), key_columns(table));
    let during = |e| fault_of(&e).during(format_args!("looking up {} and its key", table.target));
    let statement = client.prepare(KEY_SCHEMAS).await.map_err(during)?;
    let texts: Vec<Value> = columns.iter().map(|column| Value::Text(column.clone().into())).collect();
    let rows =
        client.query(&statement, &[&Param::text(&name), &Param::many(&texts)]).await.map_err(during)?;
    let key_schemas: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if key_schemas.len() != columns.len() {
        return Err(Fault::operator(
            "SEGUE-SCHEMA-CHANGED",
            format!("{}: the key columns are not as they were planned", table.target),
            "put them back, or plan the table again",
        ));
    }
    let partitioned = client.query_one(PARTITIONED, &[&name]).await.map_err(during)?.get(0);
    Ok(Facts { key_schemas, partitioned })
}

/// Whether a table is partitioned; `$1` is its name.
const PARTITIONED: &str = "SELECT relkind = 'p' FROM pg_class WHERE oid = $1::text::regclass";

/// The schema of the ordering operators of each key column's type; `$1` is the table, `$2` the columns.
const KEY_SCHEMAS: &str = "\
    WITH RECURSIVE base(n, oid) AS (
        SELECT k.n, a.atttypid FROM unnest($2::text[]) WITH ORDINALITY AS k(name, n)
          JOIN pg_attribute a ON a.attrelid = $1::text::regclass AND a.attname = k.name
        UNION ALL
        SELECT b.n, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
    SELECT coalesce((SELECT quote_ident(ns.nspname) FROM pg_opclass c JOIN pg_am am ON am.oid = c.opcmethod AND am.amname = 'btree'
                       JOIN pg_amop o ON o.amopfamily = c.opcfamily AND o.amoplefttype = t.oid AND o.amoprighttype = t.oid
                        AND o.amopstrategy = 3
                       JOIN pg_operator op ON op.oid = o.amopopr JOIN pg_namespace ns ON ns.oid = op.oprnamespace
                      WHERE c.opcdefault AND c.opcintype = t.oid LIMIT 1), 'pg_catalog')
      FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype <> 'd' ORDER BY b.n";
