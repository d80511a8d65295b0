//! The end of a migration that has succeeded: what Segue made goes, and the source's tables too, if that is wanted.
//!
//! Every call can be repeated after a crash at any point, and finds what is left. The order of them, and whether they may
//! be made at all, is the caller's; the caller holds the migration's token, and no stream runs any more.

use super::end::{TABLES, remove, remove_streams, unguard};
use super::{Direction, origin_name, stream_name};
use crate::ddl_guard;
use crate::error::fault_of;
use crate::fence;
use crate::origin;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use tokio_postgres::Client;

/// Rows that somebody may want to read after the end: how it went, what was found equal, where routers go, and which target
/// the migration went to.
const RECORDS: &[&str] = &[
    "route",
    "router",
    "lease",
    "heartbeat",
    "command",
    "status",
    "journal",
    "divergence",
    "verification",
    "sample",
    "traffic",
    "token",
    // Not to another target under this name, as long as the source is closed.
    "pair",
];

/// What Segue has on one side outside of its schema, as it is named when it is removed. Changes nothing.
pub async fn listed(client: &Client, migration: &str, side: &str) -> Outcome<Vec<String>> {
    let failed = |e| fault_of(&e).during("looking what Segue has made");
    let mut found = Vec::new();
    if ddl_guard::is_there(client, migration).await? {
        found.push(format!("{side}: guard against DDL"));
    }
    let fenced = "SELECT count(*) FROM segue.fence_carriers($1)";
    let fenced: i64 = client.query_one(fenced, &[&migration]).await.map_err(failed)?.get(0);
    let tables = if fenced == 1 { "table" } else { "tables" };
    found.extend((fenced > 0).then(|| format!("{side}: fence of {fenced} {tables}")));
    for direction in [Direction::Forward, Direction::Reverse] {
        let name = stream_name(migration, direction)?;
        let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database()),
                EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
        let row = client.query_one(sql, &[&name]).await.map_err(failed)?;
        found.extend(row.get::<_, bool>(0).then(|| format!("{side}: replication slot {name}")));
        found.extend(row.get::<_, bool>(1).then(|| format!("{side}: publication {name}")));
    }
    for direction in [Direction::Forward, Direction::Reverse] {
        let stream = origin_name(migration, direction);
        let sql = "SELECT roname FROM pg_replication_origin WHERE starts_with(roname, $1) ORDER BY roname";
        let rows = client.query(sql, &[&stream]).await.map_err(failed)?;
        let names = rows.iter().map(|row| row.get::<_, String>(0));
        let ours = names.filter(|name| origin::is_of(name, &stream));
        found.extend(ours.map(|name| format!("{side}: replication origin {name}")));
    }
    Ok(found)
}

/// Takes the slots, publications and origins of both streams off one side.
pub async fn end_streams(client: &Client, migration: &str, side: &str) -> Outcome<Vec<String>> {
    let removed = remove_streams(client, migration, side).await;
    removed.map_err(|f| f.during(format_args!("ending the streams on the {side}")))
}

/// Takes everything off the target that slows its tables down or keeps its log: it is an ordinary database again.
/// `report` hears who keeps a lock that is waited for.
pub async fn close_target(
    target: &Client,
    migration: &str,
    mut report: impl FnMut(&Fault),
) -> Outcome<Vec<String>> {
    let removed = remove(target, migration, "target", &mut report).await;
    removed.map_err(|f| f.during("removing Segue's objects from the target"))
}

/// Takes the streams' ends off the source. Its fence stays, closed for good: nobody follows what would be written there.
/// `report` hears of a lock that the guard against DDL waits for.
pub async fn close_source(
    source: &Client,
    migration: &str,
    mut report: impl FnMut(&Fault),
) -> Outcome<Vec<String>> {
    let close = async {
        // First of all: from here on its fence asks no row any more.
        fence::retire(source, migration).await?;
        let mut done = Vec::new();
        if unguard(source, migration, &mut report).await? {
            done.push("source: guard against DDL".to_owned());
        }
        done.extend(remove_streams(source, migration, "source").await?);
        Ok(done)
    };
    close.await.map_err(|f: Fault| f.during("removing Segue's objects from the source"))
}

/// Forgets what streams were made of, and keeps what tells how it went. `keeps_fence`: the ownership row stays as well.
pub async fn forget_all_but_records(client: &Client, migration: &str, keeps_fence: bool) -> Outcome<()> {
    let failed = |e| fault_of(&e).during("forgetting the streams");
    let stays = |table: &str| RECORDS.contains(&table) || (keeps_fence && table == "owner");
    for table in TABLES.iter().copied().filter(|table| !stays(table)) {
        let table = format!("segue.{table}");
        let there = "SELECT to_regclass($1) IS NOT NULL";
        if client.query_one(there, &[&table]).await.map_err(failed)?.get::<_, bool>(0) {
            let sql = format!("DELETE FROM {table} WHERE migration = $1");
            client.execute(&sql, &[&migration]).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether the journal is kept here: this is the migration's control database, by whatever address.
pub async fn has_records(client: &Client, migration: &str) -> Outcome<bool> {
    let sql = "SELECT EXISTS (SELECT FROM segue.journal WHERE migration = $1)";
    let row = client.query_one(sql, &[&migration]).await;
    Ok(row.map_err(|e| fault_of(&e).during("looking where the journal is"))?.get(0))
}
