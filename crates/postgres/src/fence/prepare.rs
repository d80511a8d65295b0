//! Making the fence long before it is needed, and taking it away.
//!
//! A trigger is made under SHARE ROW EXCLUSIVE, which readers do not notice, but dropped under ACCESS EXCLUSIVE, which
//! they do: dropping is for the end alone. All locks are bounded, tried again, and their holders named.

use super::{autovacuum, blockers, row};
use crate::birth::{Authority, enter};
use crate::error::fault_of;
use crate::traffic::TREE;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::switch::ownership::Ownership;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// Writers of one table wait behind us at most this long, each time.
const LOCK_MS: u32 = 200;
/// How often one table is tried before it is said who holds it.
const TRIES: u32 = 12;
/// Between tries, for those who waited.
const PAUSE: Duration = Duration::from_millis(250);

/// What a side is when its fence is made for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes the writes: owner of epoch 1. Its fence is at rest.
    Owner,
    /// It follows: its fence is closed from the first moment on.
    Follower,
}

/// Makes the ownership row, the fence's function, and one trigger on each of `tables` and on all that is below them.
///
/// What is there already is left as it is, a closed fence closed: to be repeated whenever a table was attached. `elsewhere`
/// says, in the message of a refused write, where writes go. Returns the ownership that the side has now, whatever `role`
/// says, and the tables that were given a trigger.
pub async fn prepare(
    client: &Client,
    authority: Authority<'_>,
    tables: &[QualifiedName],
    role: Role,
    elsewhere: &str,
) -> Outcome<(Ownership, Vec<QualifiedName>)> {
    let (state, first) = match role {
        Role::Owner => ("owner", Ownership::FIRST_OWNER),
        Role::Follower => ("follower", Ownership::FIRST_FOLLOWER),
    };
    let relations = tree(client, tables).await?;
    let name = quote_literal(authority.0);
    let make = format!(
        "SELECT segue.make_fence({name}, {}, {}, {})",
        quote_literal(state),
        first.epoch(),
        quote_literal(elsewhere)
    );
    bounded(client, authority, &make, (&[], LOCK_MS)).await.map_err(|f| f.during("preparing the fence"))?;
    let carriers = "SELECT relation FROM segue.fence_carriers($1)";
    let carriers = client.query(carriers, &[&authority.0]).await.map_err(|e| fault_of(&e))?;
    let carriers: BTreeSet<u32> = carriers.iter().map(|row| row.get(0)).collect();
    let mut made = Vec::new();
    for (relation, table) in relations.into_iter().filter(|(relation, _)| !carriers.contains(relation)) {
        let add = format!("SELECT segue.add_fence({name}, {relation})");
        let added = bounded(client, authority, &add, (&[relation], LOCK_MS)).await;
        if added.map_err(|f| f.during(format_args!("making the fence of {table}")))? {
            made.push(table);
        }
    }
    let row = row(client, authority.0).await?;
    let row = row.ok_or_else(|| Fault::bug("SEGUE-FENCE", "the ownership row vanished"))?;
    Ok((row.ownership, made))
}

/// The relations that carry the fence of `tables`: these, and all that is below them, by number and name.
pub async fn tree(client: &Client, tables: &[QualifiedName]) -> Outcome<Vec<(u32, QualifiedName)>> {
    let sql = format!(
        "{TREE} SELECT c.oid, n.nspname, c.relname, c.relkind::text FROM tree t JOIN pg_class c ON c.oid = t.relation
          JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY c.relkind <> 'p', c.oid"
    );
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let rows = client.query(&sql, &[&names]).await.map_err(|e| fault_of(&e))?;
    let mut found = Vec::new();
    for row in &rows {
        let name = QualifiedName::new(row.get::<_, &str>(1), row.get::<_, &str>(2));
        if !["r", "p"].contains(&row.get::<_, &str>(3)) {
            return Err(Fault::operator(
                "SEGUE-NOT-FENCED",
                format!("{name} is not an ordinary table: writes to it cannot be shut out"),
                "take it out of the spec, or detach it from its table",
            ));
        }
        found.push((row.get(0), name));
    }
    match tables.iter().find(|table| !found.iter().any(|(_, name)| name == *table)) {
        None => Ok(found),
        Some(missing) => Err(Fault::operator(
            "SEGUE-SCHEMA-CHANGED",
            format!("{missing} is gone"),
            "put it back, or cancel the migration",
        )),
    }
}

/// Runs `call` under the token with a bounded lock, some times. Returns whether it returned true. Where the lock on
/// `relations` cannot be had, its holders are named.
pub(super) async fn bounded(
    client: &Client,
    authority: Authority<'_>,
    call: &str,
    (relations, lock_ms): (&[u32], u32),
) -> Outcome<bool> {
    let sql = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; {}; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = {lock_ms}; {call}; COMMIT",
        enter(authority)
    );
    let mut tries = 0;
    loop {
        let error = match client.simple_query(&sql).await {
            Ok(messages) => {
                return Ok(messages.iter().rev().any(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0) == Some("t"),
                    _ => false,
                }));
            }
            Err(error) => error,
        };
        // Looked at while the culprit is probably still there.
        let passing = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
        if !error.code().is_some_and(|code| passing.contains(code)) {
            return Err(fault_of(&error));
        }
        tries += 1;
        if tries == TRIES {
            return Err(held(client, relations, &fault_of(&error)).await);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn held(client: &Client, relations: &[u32], fault: &Fault) -> Fault {
    let by = blockers::holders(client, relations, 0, true).await.unwrap_or_default();
    let by: Vec<String> = by.iter().map(ToString::to_string).collect();
    let by = if by.is_empty() { "nobody any more".to_owned() } else { by.join(", ") };
    Fault::retry("SEGUE-LOCKED", format!("waits for a lock that is held by {by} ({})", fault.what))
}

/// Ways around the fence, a line each, for a gate and for the watch afterwards: subscriptions that write its tables, and
/// tables of a side that is closed whose trigger somebody has disabled.
pub async fn bypasses(client: &Client, migration: &str) -> Outcome<Vec<String>> {
    let sql = "
        SELECT format('the subscription %I writes %s, and the fence lets it pass', s.subname, c.sql_name)
          FROM segue.fence_carriers($1) c JOIN pg_subscription_rel r ON r.srrelid = c.relation
          JOIN pg_subscription s ON s.oid = r.srsubid AND s.subenabled
        UNION ALL
        SELECT format('the trigger %I of %s is not enabled, and this side is %s', c.trigger_name, c.sql_name, o.state)
          FROM segue.fence_carriers($1) c JOIN segue.owner o ON o.migration = $1 AND o.state <> 'owner'
         WHERE c.enabled <> 'O'";
    let rows = client.query(sql, &[&migration]).await.map_err(|e| fault_of(&e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Partitions of a side that is closed which came since and carry no fence yet, in words. The next hand-over gives them theirs.
pub async fn bare(client: &Client, migration: &str, tables: &[QualifiedName]) -> Outcome<Option<String>> {
    let sql = "
        SELECT format('%s of this side, which is %s, has no fence yet: what is written there reaches nobody', bare, o.state)
          FROM segue.owner o, segue.unfenced($1, $2) bare
         WHERE o.migration = $1 AND o.state IN ('follower', 'handed_over') AND bare IS NOT NULL";
    let tables: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let row = client.query_opt(sql, &[&migration, &tables]).await.map_err(|e| fault_of(&e))?;
    Ok(row.map(|row| row.get(0)))
}

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Tables whose fence is gone.
    pub fences: usize,
    /// Tables whose settings of autovacuum were put back.
    pub autovacuum: usize,
}

/// Takes the fence away: autovacuum's settings put back, triggers, function and row. Can be repeated: where a lock cannot be
/// had in time, its holders are named (`SEGUE-LOCKED`), and the rest stays. What was removed is added to `done`. The caller
/// holds the migration's token, and means it: a follower is open afterwards.
pub async fn remove(client: &Client, migration: &str, done: &mut Removed) -> Outcome<()> {
    let there = "SELECT to_regclass('segue.owner') IS NOT NULL";
    if !client.query_one(there, &[]).await.map_err(|e| fault_of(&e))?.get::<_, bool>(0) {
        return Ok(());
    }
    done.autovacuum += autovacuum::put_back(client, migration).await?.len();
    let carriers = "SELECT relation, sql_name, trigger_name FROM segue.fence_carriers($1)";
    for row in client.query(carriers, &[&migration]).await.map_err(|e| fault_of(&e))? {
        let (relation, table, trigger): (u32, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let sql = format!("DROP TRIGGER IF EXISTS {} ON {table}", quote_ident(trigger));
        without_token(client, &sql, &[relation])
            .await
            .map_err(|f| f.during(format_args!("removing the fence of {table}")))?;
        done.fences += 1;
    }
    let sql = format!(
        "{}; DELETE FROM segue.owner WHERE migration = {}",
        removal(migration).join("; "),
        quote_literal(migration)
    );
    without_token(client, &sql, &[]).await
}

/// The statements that remove what the triggers needed.
pub(crate) fn removal(migration: &str) -> [String; 2] {
    let name = |what: &str| quote_ident(&format!("{what}_{migration}"));
    [
        format!("DROP FUNCTION IF EXISTS segue.{}()", name("fence")),
        format!("DROP SEQUENCE IF EXISTS segue.{}, segue.{}", name("refused"), name("refused_at")),
    ]
}

/// Closes the fence of a side for good: its tables go on refusing writes, and say that the migration is completed. Can be
/// repeated; where no fence is, nothing is done. Autovacuum's settings are put back. Returns how many tables carry it.
pub async fn retire(client: &Client, migration: &str) -> Outcome<usize> {
    let failed = |e| fault_of(&e).during("closing the fence for good");
    let there = "SELECT to_regprocedure(format('segue.%I()', 'fence_' || $1)) IS NOT NULL";
    if !client.query_one(there, &[&migration]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(0);
    }
    autovacuum::put_back(client, migration).await?;
    client.execute("SELECT segue.retire_fence($1)", &[&migration]).await.map_err(failed)?;
    let carriers = "SELECT count(*) FROM segue.fence_carriers($1)";
    let count: i64 = client.query_one(carriers, &[&migration]).await.map_err(failed)?.get(0);
    Ok(usize::try_from(count).unwrap_or(0))
}

/// As [`bounded`], for an end at which the token may be gone already.
async fn without_token(client: &Client, sql: &str, relations: &[u32]) -> Outcome<()> {
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL client_min_messages = warning; {sql}; COMMIT"
    );
    match crate::birth::bounded_lock(client, &sql).await {
        Err(fault) if fault.code == "SEGUE-LOCKED" => Err(held(client, relations, &fault).await),
        done => done,
    }
}
