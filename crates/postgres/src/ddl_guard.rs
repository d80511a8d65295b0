//! The guard against DDL: event triggers on the side whose tables are followed, which refuse what the change stream cannot
//! follow, with a message that says what it would have changed and what to do instead.
//!
//! What the stream can follow, and what does not concern it, passes: parts that are made, attached, detached, emptied or
//! dropped, indexes that identify nothing, triggers, grants, comments, settings. For the rest each table has a fingerprint
//! ([`sql`]), taken when the guard is installed and compared when a command ends that touched the table, so that it
//! does not matter which of PostgreSQL's many commands it was. A leaf counts from the moment it is published; until then
//! it is whatever its maker makes of it.
//!
//! Event triggers may be made by superusers only (on managed services, by their admin role). Without them DDL is still
//! noticed ([`crate::catalog::drift`], [`crate::stream`]), after the fact. So is what the guard does not see: sessions under
//! the replica role, or with `event_triggers` off, fire none.

mod sql;

pub(crate) use sql::DDL;

use crate::birth::{Authority, Direction, enter, stream_name};
use crate::error::fault_of;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use sql::Names;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// How long a lock is waited for, once. No table of the application's is locked here, only what the guard has noted of it;
/// but that is held by DDL that somebody has run and not committed, a leaf detached for instance.
const LOCK_MS: u32 = 1_000;

/// Whether DDL is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// The guard is in place.
    Installed,
    /// It is not, and why, in words; DDL is noticed only.
    NotAllowed(String),
}

/// Makes the guard of `tables` (roots, by their names in this database), and takes their form as it is now for what must
/// not be changed. Can be repeated, and must be whenever that form has changed by agreement. A guard that somebody has
/// disabled stays so. A lock that is not had at once is `SEGUE-LOCKED`: what was there before stays, and when to try again
/// is the caller's matter.
pub async fn install(
    client: &Client,
    authority: Authority<'_>,
    tables: &[QualifiedName],
) -> Outcome<Guarded> {
    let during = |fault: Fault| fault.during("guarding the tables against DDL");
    let names = Names::of(authority.0);
    let tables: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let found = look(client, &names, &tables).await.map_err(during)?;
    match at_once(client, &statements(authority, &names, &found, &tables)?).await {
        Ok(()) => {}
        Err(fault) if fault.code == "SEGUE-PRIVILEGE" => {
            let why = "event triggers are made by superusers only (on a managed service, by its admin role)";
            return Ok(Guarded::NotAllowed(format!("{why}: {}", fault.what)));
        }
        Err(fault) => return Err(during(fault)),
    }
    if found.disabled {
        let switch = names.switch();
        return Ok(Guarded::NotAllowed(format!(
            "somebody has disabled the event trigger {switch}; ALTER EVENT TRIGGER {switch} ENABLE puts it back to work"
        )));
    }
    if found.deaf {
        let why = "the server runs no event triggers (event_triggers = off)";
        return Ok(Guarded::NotAllowed(why.to_owned()));
    }
    Ok(Guarded::Installed)
}

/// What is there before the guard is installed.
struct Found {
    /// Event triggers of its names.
    triggers: Vec<String>,
    /// The switch is off.
    disabled: bool,
    /// The server runs no event triggers.
    deaf: bool,
    /// The table of fingerprints belongs to another role.
    foreign: bool,
}

/// Looks at what is there, and refuses `tables` that are not.
async fn look(client: &Client, names: &Names, tables: &[String]) -> Outcome<Found> {
    let sql = "SELECT array(SELECT evtname::text FROM pg_event_trigger WHERE evtname = ANY ($1)),
            EXISTS (SELECT FROM pg_event_trigger WHERE evtname = $2 AND evtenabled = 'D'),
            coalesce(current_setting('event_triggers', true), 'on') <> 'on',
            EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
                     WHERE c.oid = to_regclass('segue.guarded') AND r.rolname <> current_user),
            (SELECT t FROM unnest($3::text[]) t WHERE to_regclass(t) IS NULL LIMIT 1)";
    let triggers: Vec<&str> = names.triggers.iter().map(|(name, _)| name.as_str()).collect();
    let row =
        client.query_one(sql, &[&triggers, &names.switch(), &tables]).await.map_err(|e| fault_of(&e))?;
    if let Some(missing) = row.get::<_, Option<String>>(4) {
        return Err(Fault::operator(
            "SEGUE-SCHEMA-CHANGED",
            format!("{missing} is gone"),
            "put it back, or cancel the migration",
        ));
    }
    Ok(Found { triggers: row.get(0), disabled: row.get(1), deaf: row.get(2), foreign: row.get(3) })
}

/// One transaction under the token: the function, the event triggers that are not there yet, the fingerprints.
fn statements(authority: Authority<'_>, names: &Names, found: &Found, tables: &[String]) -> Outcome<String> {
    let migration = authority.0;
    let missing = names.triggers.iter().filter(|(name, _)| !found.triggers.contains(name));
    let triggers: String = missing.map(|trigger| event_trigger(names, trigger) + ";\n").collect();
    // The function trusts no relation that another role could exchange.
    let own = if found.foreign { "ALTER TABLE segue.guarded OWNER TO CURRENT_USER;" } else { "" };
    Ok(format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; {enter}; SET LOCAL lock_timeout = {LOCK_MS};
         {make};
         {owned};
         {triggers} {own}
         {remember}; COMMIT",
        enter = enter(authority),
        make = sql::function(migration, &publications(migration)?),
        owned = owned(names),
        remember = sql::remember(migration, tables),
    ))
}

fn publications(migration: &str) -> Outcome<[String; 2]> {
    Ok([stream_name(migration, Direction::Forward)?, stream_name(migration, Direction::Reverse)?])
}

fn event_trigger(names: &Names, (name, event): &(String, &str)) -> String {
    let (name, function) = (quote_ident(name), quote_ident(&names.function));
    format!("CREATE EVENT TRIGGER {name} ON {event} EXECUTE FUNCTION segue.{function}()")
}

/// One that another role made runs with this one's rights from here on.
fn owned(names: &Names) -> String {
    format!("ALTER FUNCTION segue.{}() OWNER TO CURRENT_USER", quote_ident(&names.function))
}

/// The statements that make a guard where there is none.
pub(crate) fn statements_of(migration: &str) -> Outcome<Vec<String>> {
    let names = Names::of(migration);
    let mut all = vec![sql::function(migration, &publications(migration)?), owned(&names)];
    all.extend(names.triggers.iter().map(|trigger| event_trigger(&names, trigger)));
    Ok(all)
}

/// The statements that remove one.
pub(crate) fn removal_of(migration: &str) -> Vec<String> {
    let names = Names::of(migration);
    let mut all: Vec<String> = names
        .triggers
        .iter()
        .map(|(name, _)| format!("DROP EVENT TRIGGER IF EXISTS {}", quote_ident(name)))
        .collect();
    all.push(format!("DROP FUNCTION IF EXISTS segue.{}()", quote_ident(&names.function)));
    all
}

/// Whether there is any of it.
pub async fn is_there(client: &Client, migration: &str) -> Outcome<bool> {
    let names = Names::of(migration);
    let triggers: Vec<&str> = names.triggers.iter().map(|(name, _)| name.as_str()).collect();
    let looked = "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = ANY ($1))";
    let row = client.query_one(looked, &[&triggers]).await;
    Ok(row.map_err(|e| fault_of(&e).during("looking for the guard against DDL"))?.get(0))
}

/// Takes the guard away. Can be repeated; returns whether there was any. The caller holds the migration's token, and tries
/// again when a lock was not had at once (`SEGUE-LOCKED`).
pub async fn remove(client: &Client, migration: &str) -> Outcome<bool> {
    let during = |fault: Fault| fault.during("removing the guard against DDL");
    let names = Names::of(migration);
    let triggers: Vec<&str> = names.triggers.iter().map(|(name, _)| name.as_str()).collect();
    let function = format!("segue.{}()", quote_ident(&names.function));
    let looked = "SELECT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = ANY ($1)) OR to_regprocedure($2) IS NOT NULL,
            to_regclass('segue.guarded') IS NOT NULL";
    let row = client.query_one(looked, &[&triggers, &function]).await.map_err(|e| during(fault_of(&e)))?;
    let (there, remembered): (bool, bool) = (row.get(0), row.get(1));
    if !there {
        return Ok(false);
    }
    let mut sql = format!(
        "BEGIN; SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL client_min_messages = warning; {};",
        removal_of(migration).join("; ")
    );
    if remembered {
        sql.push_str(&format!("DELETE FROM segue.guarded WHERE migration = {};", quote_literal(migration)));
    }
    at_once(client, &format!("{sql} COMMIT")).await.map_err(during)?;
    Ok(true)
}

/// Runs a transaction once.
async fn at_once(client: &Client, sql: &str) -> Outcome<()> {
    let Err(error) = client.batch_execute(sql).await else { return Ok(()) };
    // Nothing to roll back if the connection is gone; the next request says so.
    client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
    let fault = fault_of(&error);
    let passing = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
    if error.code().is_some_and(|code| passing.contains(code)) {
        return Err(Fault { recovery: Recovery::Retry, code: "SEGUE-LOCKED", ..fault });
    }
    Err(fault)
}
