//! Relations by number, in statements that need a name.
//!
//! Partitions are renamed freely, and one name can belong to one of them now and to another a moment later. Whatever is
//! done by name is therefore done under a lock, and only after it was seen that the lock is on the right relation: a
//! relation that is locked keeps its name.

use segue_engine::fault::Fault;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_literal;
use tokio_postgres::{Client, Error};

/// How often a name that has moved on is looked up again.
pub(crate) const TRIES: u32 = 5;

/// What the table of this number is called now; `None` if there is none.
pub(crate) async fn name_of(client: &Client, oid: u32) -> Result<Option<QualifiedName>, Error> {
    let sql = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = $1 AND c.relkind = 'r'";
    let row = client.query_opt(sql, &[&oid]).await?;
    Ok(row.map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))))
}

/// A statement, to stand behind the lock: it fails, as if there were no such table, if the name is not that relation's.
pub(crate) fn still_called(oid: u32, name: &QualifiedName) -> String {
    let name = name.sql();
    let body = format!(
        "BEGIN IF to_regclass({})::oid IS DISTINCT FROM {oid}::oid THEN
             RAISE EXCEPTION USING ERRCODE = 'undefined_table', MESSAGE = {};
         END IF; END",
        quote_literal(&name),
        quote_literal(&format!("{name} is another relation than a moment ago")),
    );
    format!("DO {}", quote_literal(&body))
}

/// Whether a statement failed because the name in it is no relation's, or another one's.
pub(crate) fn has_moved_on(fault: &Fault) -> bool {
    fault.code == "SEGUE-SCHEMA-CHANGED"
}
