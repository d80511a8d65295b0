//! Making a leaf that was attached a part of the stream.

use super::leave::locked;
use crate::birth::StreamIdentity;
use crate::catalog::drift::join_publication;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::{Outcome, Part};
use segue_model::name::QualifiedName;
use segue_model::table::Table;
use std::collections::HashSet;
use tokio_postgres::Client;

/// What the catalog says about a leaf now.
pub(super) struct Facts {
    pub(super) name: QualifiedName,
    kind: String,
    persistence: String,
    identity: String,
    key: Vec<String>,
}

/// The leaf's facts, if it is still below its table.
pub(super) async fn facts(client: &Client, table: &Table, part: &Part) -> Outcome<Option<Facts>> {
    let sql = "SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
                ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid
                        AND a.attnum = ANY(i.indkey::int2[])
                       WHERE i.indrelid = c.oid AND i.indimmediate AND i.indisvalid
                         AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END) AS key
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.oid = $1 AND c.relispartition AND pg_partition_root(c.oid) = to_regclass($2)";
    let row =
        client.query_opt(sql, &[&part.relation, &table.source.sql()]).await.map_err(|e| fault_of(&e))?;
    Ok(row.map(|row| Facts {
        name: QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
        kind: row.get(2),
        persistence: row.get(3),
        identity: row.get(4),
        key: row.get(5),
    }))
}

/// Whether changes of the leaf can be followed as those of its table are.
pub(super) fn check(side: &str, table: &Table, facts: &Facts) -> Outcome<()> {
    let name = &facts.name;
    let drift = |what: &str, next_step: String| {
        Err(Fault::operator("SEGUE-DDL-DRIFT", format!("{name} {what}"), next_step))
    };
    if facts.kind != "r" || facts.persistence != "p" {
        let what =
            "was attached and is not a permanent table: its changes are not in the log that Segue follows";
        let next_step = format!(
            "on the {side}: ALTER TABLE {0} SET LOGGED; or ALTER TABLE … DETACH PARTITION {0}; then start again",
            name.sql()
        );
        return drift(what, next_step);
    }
    let full = format!("on the {side}: ALTER TABLE {} REPLICA IDENTITY FULL; then start again", name.sql());
    let Some(key) = table.key() else {
        if facts.identity == "f" {
            return Ok(());
        }
        let what = "was attached without REPLICA IDENTITY FULL, which the other leaves of its table have";
        return drift(what, full);
    };
    let wanted: HashSet<&str> = key.columns.iter().map(|&i| table.columns[i].source.as_str()).collect();
    let found: HashSet<&str> = facts.key.iter().map(String::as_str).collect();
    if facts.identity == "f" || wanted == found {
        return Ok(());
    }
    let columns: Vec<&str> = key.columns.iter().map(|&i| table.columns[i].source.as_str()).collect();
    let what = format!(
        "was attached with another replica identity than ({}), by which its table migrates",
        columns.join(", ")
    );
    drift(&what, full)
}

/// Adds the leaf to the publication; `false` if it is gone.
///
/// Under SHARE ROW EXCLUSIVE: every writer of the leaf that came before has ended then. A transaction gives up its locks
/// only after it shows in new snapshots, so whatever such a writer left is in every copy that begins later; and whatever
/// is written after the lock is in the stream. Nobody is in between, so no further barrier is needed.
pub(super) async fn join(client: &Client, stream: &StreamIdentity, token: i64, part: &Part) -> Outcome<bool> {
    let (authority, side) = ((stream.migration.as_str(), token), stream.direction.from_side());
    match join_publication((client, side), authority, &stream.publication, part.relation).await {
        Err(fault) if fault.code == "SEGUE-LOCKED" => {
            Err(locked(client, &[part.relation], &fault.what).await)
        }
        done => done,
    }
}
