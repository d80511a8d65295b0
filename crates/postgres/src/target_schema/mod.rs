//! The target's tables, made as the source has them, and compared with them.
//!
//! * [`create`] makes tables that are missing, with what they need and the key that the stream finds rows by, in one
//!   transaction. Their definitions are `pg_dump`'s.
//! * [`finish()`] makes the rest once the rows are there, beside the stream.
//! * [`parity`] says what one side's tables have and the other's lack, with the SQL that mends it; [`preview`] what the two
//!   above would run.
//!
//! What was made is remembered in `segue.target_schema`, so that it can be dropped again, and nothing else. It does not
//! know when any of this is to happen, and never changes a table that it has not made.

mod archive;
mod compare;
mod create;
mod facts;
mod finish;
mod needs;

pub use compare::{Finding, Kind};
pub use create::{Created, create};
pub use finish::{Say, finish};

use crate::connect::Endpoint;
use crate::error::fault_of;
use compare::{Manner, compare};
use facts::Facts;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// One object that Segue has made on the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// As DROP calls it, but for its case.
    pub kind: String,
    /// Its name as SQL, with its arguments.
    pub identity: String,
    /// The name of a table, in parts.
    pub table: Option<QualifiedName>,
}

impl Made {
    /// The statement that takes it away again, and nothing along with it.
    pub fn drop_sql(&self) -> String {
        format!("DROP {} IF EXISTS {}", self.kind.to_uppercase(), self.identity)
    }
}

/// Both sides' facts, for pairs of source and target tables.
async fn both(
    source: &Client,
    target: &Client,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<(Facts, Facts)> {
    let sources: Vec<QualifiedName> = pairs.iter().map(|(from, _)| from.clone()).collect();
    let targets: Vec<QualifiedName> = pairs.iter().map(|(_, to)| to.clone()).collect();
    let (from, to) = tokio::join!(Facts::read(source, &sources), Facts::read(target, &targets));
    let during = |side: &'static str| {
        move |f: Fault| f.during(format_args!("reading what belongs to the {side}'s tables"))
    };
    Ok((from.map_err(during("source"))?, to.map_err(during("target"))?))
}

/// What the target's tables lack of the source's, or have for themselves to an application's harm, and the SQL that makes
/// them equal. Tables that are missing altogether are not named: they are the plan's matter.
///
/// Changes nothing. Segue's own fence is no difference; nor are tablespaces, storage parameters, and the replica identity.
pub async fn parity(
    source: &Client,
    target: &Client,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Vec<Finding>> {
    let (from, to) = both(source, target, pairs).await?;
    let there = to.roots();
    let is_there = |table: &QualifiedName| {
        pairs.iter().enumerate().all(|(at, (_, to))| to != table || there.contains_key(&at))
    };
    let found = compare(&from, &to, pairs, Manner { side: "target", beside_writers: true });
    Ok(found.into_iter().filter(|finding| finding.kind.is_for_all() && is_there(&finding.table)).collect())
}

/// The statements that a start with `schema: { create: missing }` would run on the target, in order: those before the copy,
/// and those after it. Changes nothing, and refuses what the start would refuse.
pub async fn preview(
    source: &Endpoint,
    target: &Endpoint,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Vec<String>> {
    let making = create::plan(source, target, pairs).await?;
    let mut statements: Vec<String> = making.statements().map(|sql| terminated(sql.to_owned())).collect();
    let keys = making.keys(&Facts::default());
    statements.extend(keys.iter().flat_map(|key| key.remedy.iter().cloned()).map(terminated));
    statements.extend(making.rest(&keys).into_iter().flat_map(|finding| finding.remedy).map(terminated));
    // What several tables need, of a schema or a role, is said once.
    let mut said = HashSet::new();
    statements.retain(|sql| said.insert(sql.clone()));
    Ok(statements)
}

fn terminated(mut sql: String) -> String {
    if !sql.ends_with(';') {
        sql.push(';');
    }
    sql
}

/// Adds to what is remembered; within the transaction that makes it.
async fn remember(client: &Client, migration: &str, made: &[Made]) -> Outcome<()> {
    let sql = "INSERT INTO segue.target_schema AS s (migration, made, made_at) VALUES ($1, $2::text::jsonb, clock_timestamp())
         ON CONFLICT (migration) DO UPDATE SET made = s.made || excluded.made, made_at = excluded.made_at, finished_at = NULL";
    let body = serde_json::to_string(made)
        .map_err(|e| Fault::bug("SEGUE-CATALOG", format!("what was made cannot be written down: {e}")))?;
    client.execute(sql, &[&migration, &body]).await.map_err(|e| fault_of(&e))?;
    Ok(())
}

/// What Segue has made on the target for this migration, in the order of its making; nothing if it has not.
pub async fn made(target: &Client, migration: &str) -> Outcome<Vec<Made>> {
    let during = |e| fault_of(&e).during("reading what was made on the target");
    let there = target.query_one("SELECT to_regclass('segue.target_schema') IS NOT NULL", &[]).await;
    if !there.map_err(during)?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let sql = "SELECT made::text FROM segue.target_schema WHERE migration = $1";
    let row = target.query_opt(sql, &[&migration]).await.map_err(during)?;
    let Some(row) = row else { return Ok(Vec::new()) };
    serde_json::from_str(row.get(0))
        .map_err(|e| Fault::bug("SEGUE-CATALOG", format!("segue.target_schema cannot be read: {e}")))
}

/// Drops what Segue has made beside tables, newest first, and returns what went and what stays: whatever somebody else has
/// come to depend on is left, as nothing is dropped along. Can be repeated.
pub async fn drop_made(target: &Client, migration: &str) -> Outcome<Vec<String>> {
    let mut done = Vec::new();
    let mut left: Vec<Made> = made(target, migration).await?.into_iter().rev().collect();
    left.retain(|made| made.table.is_none());
    // What is needed by another is free to go once that has gone.
    loop {
        let before = left.len();
        for made in std::mem::take(&mut left) {
            match target.batch_execute(&made.drop_sql()).await {
                Ok(()) => done.push(format!("target: {} {}", made.kind, made.identity)),
                Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
                    left.push(made)
                }
                Err(error) => {
                    let step = format!("dropping the {} {}", made.kind, made.identity);
                    return Err(fault_of(&error).during(step));
                }
            }
        }
        if left.is_empty() || left.len() == before {
            break;
        }
    }
    let kept = left.iter().map(|made| {
        format!("target: (not {} {}, which something else depends on)", made.kind, made.identity)
    });
    done.extend(kept);
    Ok(done)
}

/// Whether [`finish()`] has still something to do.
pub async fn is_unfinished(target: &Client, migration: &str) -> Outcome<bool> {
    let sql = "SELECT EXISTS (SELECT FROM segue.target_schema WHERE migration = $1 AND finished_at IS NULL)";
    let row = target.query_one(sql, &[&migration]).await;
    Ok(row.map_err(|e| fault_of(&e).during("reading what was made on the target"))?.get(0))
}
