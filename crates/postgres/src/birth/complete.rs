//! The end of a migration that has succeeded: what Segue made goes, and the source's tables too, if that is wanted.
//!
//! Every call can be repeated after a crash at any point, and finds what is left. The order of them, and whether they may
//! be made at all, is the caller's; the caller holds the migration's token, and no stream runs any more.

use super::end::{TABLES, remove, remove_streams, unguard};
use super::{Authority, Direction, bounded_lock, enter, origin_name, stream_name};
use crate::ddl_guard;
use crate::error::fault_of;
use crate::fence;
use crate::origin;
use crate::traffic::TREE;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_literal;
use tokio_postgres::Client;

/// Rows that somebody may want to read after the end: how it went, what was found equal, and where routers go.
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
];

/// Readers and writers of a table that is dropped wait behind us at most this long, each time.
const DROP_LOCK_MS: u32 = 500;

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

/// Drops the source's tables, all of them or none, and what the fence needed. Nothing that depends on them is dropped
/// along: the server refuses. Nor is a table that has only the name of one, or one that was made after they were
/// dropped: the ownership row goes with them, and tells. `report` hears why a lock cannot be had yet.
pub async fn drop_source_tables(
    source: &Client,
    authority: Authority<'_>,
    tables: &[QualifiedName],
    mut report: impl FnMut(&Fault),
) -> Outcome<()> {
    let migration = authority.0;
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "BEGIN; {enter}; SET LOCAL lock_timeout = {DROP_LOCK_MS}; SET LOCAL client_min_messages = warning; {}; \
         DROP TABLE IF EXISTS {} RESTRICT; DELETE FROM segue.owner WHERE migration = {}; COMMIT",
        locked_and_ours(migration, &names),
        names.join(", "),
        quote_literal(migration),
        enter = enter(authority)
    );
    while fence::row(source, migration).await?.is_some() {
        if let Some(other) = stranger(source, migration, tables).await? {
            return Err(Fault::operator(
                "SEGUE-DROP-SOURCE",
                format!(
                    "{other} is not what was moved, or came to it since: it does not carry the migration's fence"
                ),
                "see what it is: give a table another name, DETACH or DROP a partition; then `segue run` goes on",
            ));
        }
        let Err(fault) = bounded_lock(source, &sql).await else { break };
        let fault = fault.during("dropping the source's tables");
        match fault.recovery {
            Recovery::Retry if fault.code == "SEGUE-LOCKED" => report(&fault),
            Recovery::Retry | Recovery::Ambiguous | Recovery::Bug => return Err(fault),
            Recovery::Operator => {
                let next = "see what depends on them, or who owns them; then `segue run` goes on";
                return Err(Fault::operator("SEGUE-DROP-SOURCE", fault.what, next));
            }
        }
    }
    let mut fences = fence::Removed::default();
    while let Err(fault) = fence::remove(source, migration, &mut fences).await {
        if fault.code != "SEGUE-LOCKED" {
            return Err(fault);
        }
        report(&fault);
    }
    Ok(())
}

/// One of `tables`, or of what is below them, that does not carry the fence: it is not what was moved.
pub async fn stranger(source: &Client, migration: &str, tables: &[QualifiedName]) -> Outcome<Option<String>> {
    let sql = format!(
        "{TREE} SELECT t.relation::regclass::text FROM tree t
          WHERE NOT EXISTS (SELECT FROM segue.fence_carriers($2) c WHERE c.relation = t.relation) ORDER BY 1 LIMIT 1"
    );
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let row = source.query_opt(&sql, &[&names, &migration]).await;
    let row = row.map_err(|e| fault_of(&e).during("looking for the source's tables"))?;
    Ok(row.map(|row| row.get(0)))
}

/// A statement that locks what has these names, and fails, as if the lock could not be had, if any of it, or of what is below,
/// does not carry the fence: what was looked at before may have another name by now.
fn locked_and_ours(migration: &str, names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote_literal(name)).collect();
    let names = format!("ARRAY[{}]::text[]", names.join(", "));
    let body = format!(
        "DECLARE name text; BEGIN
             FOREACH name IN ARRAY {names} LOOP
                 IF to_regclass(name) IS NOT NULL THEN
                     EXECUTE 'LOCK TABLE ' || name || ' IN ACCESS EXCLUSIVE MODE';
                 END IF;
             END LOOP;
             IF EXISTS ({tree} SELECT FROM tree t WHERE NOT EXISTS (
                     SELECT FROM segue.fence_carriers({migration}) c WHERE c.relation = t.relation)) THEN
                 RAISE EXCEPTION 'segue: one of the tables is another one than a moment ago' USING ERRCODE = '55P03';
             END IF;
         END",
        tree = TREE.replace("$1", &names),
        migration = quote_literal(migration),
    );
    format!("DO {}", quote_literal(&body))
}

/// What keeps the source's tables from being dropped, a line each: foreign keys of other tables, views, and tables that
/// inherit without being partitions.
pub async fn dependents(source: &Client, tables: &[QualifiedName]) -> Outcome<Vec<String>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "{TREE}
         SELECT format('the foreign key %I of %s refers to %s', k.conname, k.conrelid::regclass, k.confrelid::regclass)
           FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid IN (SELECT relation FROM tree)
            AND k.conrelid NOT IN (SELECT relation FROM tree)
            AND k.conparentid = 0
         UNION
         SELECT format('the %s %s reads %s', CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END,
                       v.oid::regclass, d.refobjid::regclass)
           FROM pg_depend d JOIN pg_rewrite w ON w.oid = d.objid JOIN pg_class v ON v.oid = w.ev_class
          WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'n'
            AND d.refobjid IN (SELECT relation FROM tree) AND v.oid NOT IN (SELECT relation FROM tree)
         UNION
         SELECT format('the table %s inherits from %s, and its rows were not moved', i.inhrelid::regclass, i.inhparent::regclass)
           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent AND c.relkind = 'r'
          WHERE i.inhparent IN (SELECT relation FROM tree)
            AND i.inhrelid NOT IN (SELECT to_regclass(t)::oid FROM unnest($1::text[]) t WHERE to_regclass(t) IS NOT NULL)
          ORDER BY 1"
    );
    let rows = source.query(&sql, &[&names]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking what depends on the source's tables"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
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
