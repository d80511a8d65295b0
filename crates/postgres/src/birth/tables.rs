//! Dropping tables: those that the migration has moved or filled, and nothing that only has their names.

use super::end::unguard;
use super::{Authority, bounded_lock, enter};
use crate::error::fault_of;
use crate::fence;
use crate::traffic::TREE;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_literal;
use tokio_postgres::Client;

/// Readers and writers of a table that is dropped wait behind us at most this long, each time.
const DROP_LOCK_MS: u32 = 500;

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
    if fence::row(source, migration).await?.is_some() {
        let last = format!("DELETE FROM segue.owner WHERE migration = {}", quote_literal(migration));
        let refusal = |what: String, next: &str| {
            Fault::operator("SEGUE-DROP-SOURCE", what, format!("{next}; then `segue run` goes on"))
        };
        drop_ours(source, authority, (tables, &last), refusal, &mut report).await?;
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

/// Drops those of the target's tables that are there, all of them or none, while the fence still tells which are the
/// migration's; so it comes before anything else is removed there. As [`drop_source_tables`] else. Returns them.
pub async fn drop_target_tables(
    target: &Client,
    authority: Authority<'_>,
    tables: &[QualifiedName],
    mut report: impl FnMut(&Fault),
) -> Outcome<Vec<QualifiedName>> {
    let there = existing(target, tables).await?;
    if there.is_empty() {
        return Ok(there);
    }
    if fence::row(target, authority.0).await?.is_none() {
        let what =
            "Segue's own objects are gone from the target: nothing tells any more whose the tables are";
        let next = "cancel without --drop-target-tables, and drop by hand what is to go";
        return Err(Fault::operator("SEGUE-DROP-TARGET", what, next));
    }
    unguard(target, authority.0, &mut report).await?;
    drop_ours(target, authority, (&there, "SELECT 1"), kept, &mut report).await?;
    Ok(there)
}

/// Drops tables that Segue has made and not filled, as [`drop_target_tables`] does others. They may have no fence yet: it is
/// their emptiness that tells.
pub async fn drop_unfilled(
    target: &Client,
    authority: Authority<'_>,
    tables: &[QualifiedName],
    mut report: impl FnMut(&Fault),
) -> Outcome<Vec<QualifiedName>> {
    let there = existing(target, tables).await?;
    if !there.is_empty() {
        let names: Vec<String> = there.iter().map(QualifiedName::sql).collect();
        let sql = format!(
            "BEGIN; {}; SET LOCAL lock_timeout = {DROP_LOCK_MS}; {}; DROP TABLE IF EXISTS {} RESTRICT; COMMIT",
            enter(authority),
            locked_and_empty(&names),
            names.join(", ")
        );
        while let Err(fault) = bounded_lock(target, &sql).await {
            match fault.recovery {
                Recovery::Retry if fault.code == "SEGUE-LOCKED" => report(&fault),
                Recovery::Retry | Recovery::Ambiguous | Recovery::Bug => return Err(fault),
                Recovery::Operator => {
                    return Err(kept(fault.what, "see what is in them, and what depends on them"));
                }
            }
        }
    }
    Ok(there)
}

/// The target's tables stay.
fn kept(what: String, next: &str) -> Fault {
    let next = format!("{next}; then cancel again, or without --drop-target-tables");
    Fault::operator("SEGUE-DROP-TARGET", what, next)
}

/// Why [`drop_target_tables`] would refuse, as far as can be seen without a lock. Changes nothing.
pub async fn may_drop_target(target: &Client, migration: &str, tables: &[QualifiedName]) -> Outcome<()> {
    let there = existing(target, tables).await?;
    if there.is_empty() || fence::row(target, migration).await?.is_none() {
        return Ok(());
    }
    if let Some(other) = stranger(target, migration, &there).await? {
        return Err(kept(not_ours(&other), WHAT_IT_IS));
    }
    match dependents(target, &there).await?.into_iter().next() {
        Some(dependent) => Err(kept(dependent, "drop that first")),
        None => Ok(()),
    }
}

/// What is said of a table without the fence, and what to do about it.
fn not_ours(other: &str) -> String {
    format!("{other} is not what was moved, or came to it since: it does not carry the migration's fence")
}
const WHAT_IT_IS: &str = "see what it is: give a table another name, DETACH or DROP a partition (one that came since, and is to go \
     along, gets its fence when `segue run` is started once)";

/// Those of `tables` that there are, and all partitions below them.
pub async fn with_all_below(client: &Client, tables: &[QualifiedName]) -> Outcome<Vec<QualifiedName>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "{TREE} SELECT n.nspname, c.relname FROM tree t JOIN pg_class c ON c.oid = t.relation
          JOIN pg_namespace n ON n.oid = c.relnamespace"
    );
    let rows = client.query(&sql, &[&names]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking which partitions there are"))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect())
}

/// Those of `tables` that there are.
async fn existing(client: &Client, tables: &[QualifiedName]) -> Outcome<Vec<QualifiedName>> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = "SELECT n.at FROM unnest($1::text[]) WITH ORDINALITY n(name, at) WHERE to_regclass(n.name) IS NOT NULL
          ORDER BY n.at";
    let rows = client.query(sql, &[&names]).await;
    let rows = rows.map_err(|e| fault_of(&e).during("looking which tables there are"))?;
    let at = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i64>(0)).ok()?.checked_sub(1);
    Ok(rows.iter().filter_map(at).filter_map(|at| tables.get(at).cloned()).collect())
}

/// Drops tables that all carry the fence, and runs `last`, in one transaction under the token. What it cannot drop is for
/// a person to look at: a `refusal` says what, and what to do about it.
async fn drop_ours(
    client: &Client,
    authority: Authority<'_>,
    (tables, last): (&[QualifiedName], &str),
    refusal: impl Fn(String, &str) -> Fault,
    report: &mut impl FnMut(&Fault),
) -> Outcome<()> {
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let sql = format!(
        "BEGIN; {enter}; SET LOCAL lock_timeout = {DROP_LOCK_MS}; SET LOCAL client_min_messages = warning; {}; \
         DROP TABLE IF EXISTS {} RESTRICT; {last}; COMMIT",
        locked_and_ours(authority.0, &names),
        names.join(", "),
        enter = enter(authority)
    );
    loop {
        if let Some(other) = stranger(client, authority.0, tables).await? {
            return Err(refusal(not_ours(&other), WHAT_IT_IS));
        }
        let Err(fault) = bounded_lock(client, &sql).await else { return Ok(()) };
        let fault = fault.during("dropping the tables");
        match fault.recovery {
            Recovery::Retry if fault.code == "SEGUE-LOCKED" => report(&fault),
            Recovery::Retry | Recovery::Ambiguous | Recovery::Bug => return Err(fault),
            Recovery::Operator => {
                return Err(refusal(fault.what, "see what depends on them, or who owns them"));
            }
        }
    }
}

/// One of `tables`, or of what is below them, that does not carry the fence: it is not what was moved.
pub async fn stranger(client: &Client, migration: &str, tables: &[QualifiedName]) -> Outcome<Option<String>> {
    let sql = format!(
        "{TREE} SELECT t.relation::regclass::text FROM tree t
          WHERE NOT EXISTS (SELECT FROM segue.fence_carriers($2) c WHERE c.relation = t.relation) ORDER BY 1 LIMIT 1"
    );
    let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
    let row = client.query_opt(&sql, &[&names, &migration]).await;
    let row = row.map_err(|e| fault_of(&e).during("looking whose the tables are"))?;
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

/// A statement that locks what has these names, and fails if a row is in any of it.
fn locked_and_empty(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote_literal(name)).collect();
    let body = format!(
        "DECLARE name text; filled boolean; BEGIN
             FOREACH name IN ARRAY ARRAY[{}]::text[] LOOP
                 CONTINUE WHEN to_regclass(name) IS NULL;
                 EXECUTE 'LOCK TABLE ' || name || ' IN ACCESS EXCLUSIVE MODE';
                 EXECUTE 'SELECT EXISTS (SELECT FROM ' || name || ')' INTO filled;
                 IF filled THEN
                     RAISE EXCEPTION '% has rows, and Segue has written none into it', name
                         USING ERRCODE = 'object_not_in_prerequisite_state';
                 END IF;
             END LOOP;
         END",
        names.join(", ")
    );
    format!("DO {}", quote_literal(&body))
}

/// What keeps tables from being dropped, a line each: foreign keys of other tables, views, and tables that
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
