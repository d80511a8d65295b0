//! Removing everything that a migration made.

use super::{Authority, Direction, origin_name, stream_name, under_token};
use crate::ddl_guard;
use crate::error::fault_of;
use crate::fence::{self, Removed};
use crate::origin;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::sqltext::{quote_ident, quote_literal};
use std::time::Duration;
use tokio_postgres::Client;

/// Tables of the schema `segue` whose rows belong to one migration.
pub(super) const TABLES: &[&str] = &[
    "lease",
    "heartbeat",
    "signal",
    "slot",
    "pair",
    "stream",
    "region",
    "renewal",
    "unit",
    "command",
    "status",
    "journal",
    "divergence",
    "verification",
    "sample",
    "owner",
    "autovacuum",
    "guarded",
    "target_schema",
    "traffic",
    "route",
    "router",
    "reads",
    "token",
];

/// How long a session that still streams from the slot is waited for after it was told to end.
const RELEASE_TRIES: u32 = 50;

/// Removes slots, publications, origins and fences of `migration` from both databases. Can be repeated. Returns what was
/// removed, a line each. What Segue remembers of the migration stays: [`forget`] it last.
///
/// The caller holds the migration's token, so that no other process makes anything meanwhile. A control database of
/// its own is passed like a target without tables. `report` is called again and again while somebody reads a fenced table
/// and keeps its fence from being removed, or has not committed DDL that the guard against DDL has noted.
pub async fn drop_objects(
    source: &Client,
    target: &Client,
    migration: &str,
    mut report: impl FnMut(&Fault),
) -> Outcome<Vec<String>> {
    let mut done = Vec::new();
    // The source's ownership row last: whoever cancels again after a crash sees by it that the writes are there.
    for (side, client) in [("target", target), ("source", source)] {
        let removed = remove(client, migration, side, &mut report).await;
        done.extend(removed.map_err(|f| f.during(format_args!("removing Segue's objects from the {side}")))?);
    }
    Ok(done)
}

/// Gives the way back up, without the rest of the migration: before writes were switched, or to make it anew. What was
/// written on the target and has not arrived will not reach the source. Can be repeated, after a crash at any point too.
///
/// The origin stays, as its rows may still be on their way through the forward stream; so does the slot's number, which
/// goes on growing.
pub async fn drop_reverse(source: &Client, target: &Client, authority: Authority<'_>) -> Outcome<()> {
    let during = |fault: Fault| fault.during("giving up the way back");
    let whose = format!(
        "WHERE migration = {} AND direction = {}",
        quote_literal(authority.0),
        quote_literal(Direction::Reverse.as_str())
    );
    let forget =
        ["stream", "region", "renewal", "unit"].map(|table| format!("DELETE FROM segue.{table} {whose}"));
    // First of all it is no stream any more that could be resumed.
    for client in [source, target] {
        under_token(client, authority, &forget.join("; ")).await.map_err(during)?;
    }
    let name = stream_name(authority.0, Direction::Reverse)?;
    // By name, which the next process's has, too: not a moment after it has taken over.
    drop_slot_as(target, &name, Some(authority)).await.map_err(during)?;
    let publication =
        format!("SET LOCAL lock_timeout = '30s'; DROP PUBLICATION IF EXISTS {}", quote_ident(&name));
    under_token(target, authority, &publication).await.map(drop).map_err(during)
}

/// Takes the guard against DDL away, and tells `report` as long as somebody's lock is in the way. Returns whether there
/// was any.
pub(super) async fn unguard(
    client: &Client,
    migration: &str,
    report: &mut impl FnMut(&Fault),
) -> Outcome<bool> {
    loop {
        match ddl_guard::remove(client, migration).await {
            Err(fault) if fault.code == "SEGUE-LOCKED" => report(&fault),
            removed => return removed,
        }
    }
}

/// Everything of `migration` that is no row of the schema `segue`, on one side.
pub(super) async fn remove(
    client: &Client,
    migration: &str,
    side: &str,
    report: &mut impl FnMut(&Fault),
) -> Outcome<Vec<String>> {
    let mut done = Vec::new();
    // First: nothing of what follows is to be refused by it.
    if unguard(client, migration, report).await? {
        done.push(format!("{side}: guard against DDL"));
    }
    // With bounded locks, table by table: dropping the schema would take the triggers along, and wait for all readers
    // with everybody else behind.
    let mut fences = Removed::default();
    while let Err(fault) = fence::remove(client, migration, &mut fences).await {
        if fault.code != "SEGUE-LOCKED" {
            return Err(fault);
        }
        report(&fault);
    }
    for (count, what) in [(fences.fences, "fence"), (fences.autovacuum, "autovacuum's settings")] {
        let tables = if count == 1 { "table" } else { "tables" };
        done.extend((count > 0).then(|| format!("{side}: {what} of {count} {tables}")));
    }
    done.extend(remove_streams(client, migration, side).await?);
    Ok(done)
}

/// Slots, publications and origins.
pub(super) async fn remove_streams(client: &Client, migration: &str, side: &str) -> Outcome<Vec<String>> {
    let mut done = Vec::new();
    for direction in [Direction::Forward, Direction::Reverse] {
        let name = stream_name(migration, direction)?;
        if drop_slot(client, &name).await? {
            done.push(format!("{side}: replication slot {name}"));
        }
        if drop_publication(client, &name).await? {
            done.push(format!("{side}: publication {name}"));
        }
    }
    // After both slots: nobody reads any more what was written under them.
    for direction in [Direction::Forward, Direction::Reverse] {
        let stream = origin_name(migration, direction);
        let sql = "SELECT roname FROM pg_replication_origin WHERE starts_with(roname, $1) ORDER BY roname";
        let found = client.query(sql, &[&stream]).await.map_err(|e| fault_of(&e))?;
        let found = found.iter().map(|row| row.get::<_, String>(0));
        for origin in found.filter(|name| origin::is_of(name, &stream)) {
            drop_origin(client, &origin).await?;
            done.push(format!("{side}: replication origin {origin}"));
        }
    }
    Ok(done)
}

async fn drop_publication(client: &Client, name: &str) -> Outcome<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
    let there = client.query_one(sql, &[&name]).await.map_err(|e| fault_of(&e))?.get(0);
    if there {
        let sql = format!(
            "SET lock_timeout = '30s'; DROP PUBLICATION IF EXISTS {}; SET lock_timeout = 0",
            quote_ident(name)
        );
        client.batch_execute(&sql).await.map_err(|e| fault_of(&e))?;
    }
    Ok(there)
}

async fn drop_slot(client: &Client, name: &str) -> Outcome<bool> {
    drop_slot_as(client, name, None).await
}

/// Drops a slot; a session that still uses it is ended first. Both as long as the token is the newest, if one is given.
async fn drop_slot_as(client: &Client, name: &str, authority: Option<Authority<'_>>) -> Outcome<bool> {
    let run = async |sql: String| match authority {
        Some(authority) => under_token(client, authority, &sql).await.map(drop),
        None => client.batch_execute(&sql).await.map_err(|e| fault_of(&e)),
    };
    let sql =
        "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()";
    for _ in 0..RELEASE_TRIES {
        let Some(row) = client.query_opt(sql, &[&name]).await.map_err(|e| fault_of(&e))? else {
            return Ok(false);
        };
        if let Some(pid) = row.get::<_, Option<i32>>(0) {
            run(format!("SELECT pg_terminate_backend({pid})")).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        match run(format!("SELECT pg_drop_replication_slot({})", quote_literal(name))).await {
            Ok(()) => return Ok(true),
            // Someone was quicker, either way; look again.
            Err(fault) if fault.code == "SEGUE-IN-USE" => {}
            Err(fault) => {
                let there = client.query_opt(sql, &[&name]).await.map_err(|e| fault_of(&e))?;
                return if there.is_some() { Err(fault) } else { Ok(false) };
            }
        }
    }
    Err(Fault::operator(
        "SEGUE-SLOT-ACTIVE",
        format!("the replication slot {name} is still in use"),
        "stop the process that streams from it (pg_replication_slots.active_pid), then try again",
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
        "stop the process that applies this migration's changes, then try again",
    ))
}

/// Whether there is anything of a migration's in a database, or Segue's schema, of whichever migration.
pub async fn is_there(client: &Client, migration: &str) -> Outcome<bool> {
    let both = [Direction::Forward, Direction::Reverse];
    let names =
        both.map(|direction| stream_name(migration, direction)).into_iter().collect::<Outcome<Vec<_>>>()?;
    let origins = both.map(|direction| origin_name(migration, direction)).to_vec();
    // Somebody may have dropped the schema, and left what keeps the log.
    let sql = "SELECT to_regclass('segue.format') IS NOT NULL
        OR EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = ANY ($1) AND database = current_database())
        OR EXISTS (SELECT FROM pg_publication WHERE pubname = ANY ($1))
        OR EXISTS (SELECT FROM pg_replication_origin o, unnest($2::text[]) n WHERE starts_with(o.roname, n))";
    Ok(client.query_one(sql, &[&names, &origins]).await.map_err(|e| fault_of(&e))?.get(0))
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
