//! Removing everything that a migration made.

use super::{Direction, origin_name, stream_name};
use crate::error::fault_of;
use crate::fence::{self, Removed};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use std::time::Duration;
use tokio_postgres::Client;

/// Tables of the schema `segue` whose rows belong to one migration.
const TABLES: &[&str] = &[
    "lease",
    "heartbeat",
    "signal",
    "slot",
    "stream",
    "region",
    "unit",
    "command",
    "status",
    "journal",
    "divergence",
    "verification",
    "owner",
    "autovacuum",
    "token",
];

/// How long a session that still streams from the slot is waited for after it was told to end.
const RELEASE_TRIES: u32 = 50;

/// Removes slots, publications and origins of `migration` from both databases, and `drop_tables` on the target. Can be
/// repeated. Returns what was removed, a line each. What Segue remembers of the migration stays: [`forget`] it last.
///
/// The caller holds the migration's token, so that no other process makes anything meanwhile. A control database of
/// its own is passed like a target without tables. `report` is called again and again while somebody reads a fenced table
/// and keeps its fence from being removed.
pub async fn drop_objects(
    source: &Client,
    target: &Client,
    migration: &str,
    drop_tables: &[QualifiedName],
    mut report: impl FnMut(&Fault),
) -> Outcome<Vec<String>> {
    let mut done = Vec::new();
    for (side, client) in [("source", source), ("target", target)] {
        let removed = remove(client, migration, side, &mut report).await;
        done.extend(removed.map_err(|f| f.during(format_args!("removing Segue's objects from the {side}")))?);
    }
    for table in drop_tables {
        let sql = format!("DROP TABLE IF EXISTS {}", table.sql());
        let there: bool = target
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table.sql()])
            .await
            .map_err(|e| fault_of(&e))?
            .get(0);
        if there {
            target
                .batch_execute(&sql)
                .await
                .map_err(|e| fault_of(&e).during(format_args!("dropping {table}")))?;
            done.push(format!("target: table {table}"));
        }
    }
    Ok(done)
}

async fn remove(
    client: &Client,
    migration: &str,
    side: &str,
    report: &mut impl FnMut(&Fault),
) -> Outcome<Vec<String>> {
    // With bounded locks, table by table: dropping the schema would take the triggers along, and wait for all readers
    // with everybody else behind.
    let mut fences = Removed::default();
    while let Err(fault) = fence::remove(client, migration, &mut fences).await {
        if fault.code != "SEGUE-LOCKED" {
            return Err(fault);
        }
        report(&fault);
    }
    let mut done = Vec::new();
    for (count, what) in [(fences.fences, "fence"), (fences.autovacuum, "autovacuum's settings")] {
        let tables = if count == 1 { "table" } else { "tables" };
        done.extend((count > 0).then(|| format!("{side}: {what} of {count} {tables}")));
    }
    for direction in [Direction::Forward, Direction::Reverse] {
        let name = stream_name(migration, direction)?;
        if drop_slot(client, &name).await? {
            done.push(format!("{side}: replication slot {name}"));
        }
        if exists(client, "pg_publication", "pubname", &name).await? {
            let sql = format!(
                "SET lock_timeout = '30s'; DROP PUBLICATION IF EXISTS {}; SET lock_timeout = 0",
                quote_ident(&name)
            );
            client.batch_execute(&sql).await.map_err(|e| fault_of(&e))?;
            done.push(format!("{side}: publication {name}"));
        }
        let origin = origin_name(migration, direction);
        if exists(client, "pg_replication_origin", "roname", &origin).await? {
            drop_origin(client, &origin).await?;
            done.push(format!("{side}: replication origin {origin}"));
        }
    }
    Ok(done)
}

async fn exists(client: &Client, catalog: &str, column: &str, name: &str) -> Outcome<bool> {
    let sql = format!("SELECT EXISTS (SELECT FROM {catalog} WHERE {column} = $1)");
    Ok(client.query_one(&sql, &[&name]).await.map_err(|e| fault_of(&e))?.get(0))
}

/// Drops a slot; a session that still uses it is ended first.
async fn drop_slot(client: &Client, name: &str) -> Outcome<bool> {
    let sql =
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()";
    for _ in 0..RELEASE_TRIES {
        let Some(row) = client.query_opt(sql, &[&name]).await.map_err(|e| fault_of(&e))? else {
            return Ok(false);
        };
        if let Some(pid) = row.get::<_, Option<i32>>(0) {
            client.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.map_err(|e| fault_of(&e))?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        match client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await {
            Ok(_) => return Ok(true),
            // Someone was quicker, either way; look again.
            Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE) => {}
            Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_OBJECT) => {
                return Ok(false);
            }
            Err(e) => return Err(fault_of(&e)),
        }
    }
    Err(Fault::operator(
        "SEGUE-SLOT-ACTIVE",
        format!("the replication slot {name} is still in use"),
        "stop the process that streams from it (pg_replication_slots.active_pid), then cancel again",
    ))
}

/// Drops an origin; a session that has it set up is given a moment to end.
async fn drop_origin(client: &Client, name: &str) -> Outcome<()> {
    for _ in 0..RELEASE_TRIES {
        match client.execute("SELECT pg_replication_origin_drop($1)", &[&name]).await {
            Ok(_) => return Ok(()),
            Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(e) => return Err(fault_of(&e)),
        }
    }
    Err(Fault::operator(
        "SEGUE-ORIGIN-ACTIVE",
        format!("the replication origin {name} is still in use"),
        "stop the process that applies this migration's changes, then cancel again",
    ))
}

/// Removes this migration's rows, and the schema if nobody else has any.
pub async fn forget(client: &Client, migration: &str) -> Outcome<Option<String>> {
    let failed = |e| fault_of(&e);
    let sql = "SELECT to_regclass('segue.format') IS NOT NULL";
    if !client.query_one(sql, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(None);
    }
    // Against a schema that is just being made or looked at by another migration.
    client
        .batch_execute("BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('segue:schema', 0))")
        .await
        .map_err(failed)?;
    let removed = forget_locked(client, migration).await;
    let end = if removed.is_ok() { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await.map_err(failed)?;
    removed
}

async fn forget_locked(client: &Client, migration: &str) -> Outcome<Option<String>> {
    let mut removed = 0;
    let mut others = Vec::new();
    for table in TABLES {
        let table = format!("segue.{table}");
        let there: bool = client
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table])
            .await
            .map_err(|e| fault_of(&e))?
            .get(0);
        if there {
            let sql = format!("DELETE FROM {table} WHERE migration = $1");
            removed += client.execute(&sql, &[&migration]).await.map_err(|e| fault_of(&e))?;
            others.push(format!("EXISTS (SELECT FROM {table})"));
        }
    }
    let used = format!("SELECT {}", if others.is_empty() { "false".to_owned() } else { others.join(" OR ") });
    if client.query_one(&used, &[]).await.map_err(|e| fault_of(&e))?.get(0) {
        return Ok((removed > 0).then(|| format!("{removed} rows in the schema segue")));
    }
    client
        .batch_execute("SET LOCAL client_min_messages = warning; DROP SCHEMA segue CASCADE")
        .await
        .map_err(|e| fault_of(&e))?;
    Ok(Some("the schema segue".to_owned()))
}
