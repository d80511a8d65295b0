//! What must hold for a whole server before a migration starts, and for Segue's own session while it runs.

use crate::asking::Asked;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use std::ops::RangeInclusive;
use std::time::Duration;
use tokio_postgres::{Client, Row};

/// Majors that can be a source.
const SOURCE_MAJORS: RangeInclusive<i32> = 12..=18;
/// Majors that can be a target.
const TARGET_MAJORS: RangeInclusive<i32> = 14..=18;

/// Code of the fault that Segue is, or would be, a standby that commits wait for.
pub const SYNC_STANDBY: &str = "SEGUE-SYNC-STANDBY";

async fn facts(client: &Client, sql: &str) -> Outcome<Row> {
    client.query_one(sql, &[]).await.map_err(|e| fault_of(&e).during("asking a server about itself"))
}

/// Why this server cannot be a source; empty if it can.
pub async fn source_refusals(source: &Client) -> Outcome<Vec<Fault>> {
    sending_refusals(source, "source").await
}

/// Why changes cannot travel back from `target` to `source`; empty if they can.
pub async fn reverse_refusals(source: &Client, target: &Client) -> Outcome<Vec<Fault>> {
    let mut found = sending_refusals(target, "target").await?;
    found.extend(landing_refusals(target, source, ("source", SOURCE_MAJORS)).await?);
    Ok(found)
}

/// Why no stream can come from this server, which is the `side` of the migration.
async fn sending_refusals(source: &Client, side: &str) -> Outcome<Vec<Fault>> {
    let sql = "SELECT current_setting('server_version_num')::int / 10000 AS major, pg_is_in_recovery() AS standby,
            current_setting('wal_level') AS wal_level, current_setting('synchronous_standby_names') AS synchronous,
            current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots) AS slots,
            current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication) AS senders,
            (SELECT r.rolsuper OR r.rolreplication FROM pg_roles r WHERE r.rolname = current_user) AS replication,
            has_database_privilege(current_database(), 'CREATE') AS may_create, current_user::text AS role,
            current_database()::text AS database";
    let row = facts(source, sql).await?;
    let mut found = Vec::new();
    let mut refuse =
        |code, what: String, next_step: String| found.push(Fault::operator(code, what, next_step));
    let (role, database): (&str, &str) = (row.get("role"), row.get("database"));
    let major: i32 = row.get("major");
    if !SOURCE_MAJORS.contains(&major) {
        refuse(
            "SEGUE-VERSION",
            format!("the {side} is PostgreSQL {major}"),
            "sources can be 12 to 18".into(),
        );
    }
    if row.get("standby") {
        let what = format!(
            "the {side} is a standby: on a standby a snapshot does not say which transactions are in progress"
        );
        refuse("SEGUE-STANDBY", what, format!("name the primary in the {side}'s URL"));
    }
    let wal_level: &str = row.get("wal_level");
    if wal_level != "logical" {
        let next_step = format!("on the {side}: ALTER SYSTEM SET wal_level = 'logical'; -- and restart it");
        refuse("SEGUE-WAL-LEVEL", format!("wal_level is {wal_level} on the {side}, not logical"), next_step);
    }
    // One slot of ours may be there already, from a start that went before.
    if row.get::<_, i64>("slots") < 0 || row.get::<_, i64>("senders") < 1 {
        let what = format!("the {side} has no replication slot or WAL sender left");
        let next_step = format!(
            "on the {side}: ALTER SYSTEM SET max_replication_slots = 20; ALTER SYSTEM SET max_wal_senders = 20; -- and restart it, or drop unused slots"
        );
        refuse("SEGUE-LIMIT", what, next_step);
    }
    if !row.get::<_, bool>("replication") {
        let what = format!("the role {role} may not replicate from the {side}");
        refuse("SEGUE-PRIVILEGE", what, format!("on the {side}: ALTER ROLE \"{role}\" REPLICATION;"));
    }
    if !row.get::<_, bool>("may_create") {
        let what =
            format!("the role {role} may not create a publication or a schema in the {side}'s database");
        let next_step = format!("on the {side}: GRANT CREATE ON DATABASE \"{database}\" TO \"{role}\";");
        refuse("SEGUE-PRIVILEGE", what, next_step);
    }
    found.extend(standby_refusal(row.get("synchronous"), side));
    Ok(found)
}

/// A fault if the source would count Segue as a synchronous standby. To be asked before anything is written there: with
/// no other standby, a commit of Segue's own would hang.
pub async fn never_a_standby(source: &Client) -> Outcome<()> {
    let row = facts(source, "SELECT current_setting('synchronous_standby_names')").await?;
    standby_refusal(row.get(0), "source").map_or(Ok(()), Err)
}

fn standby_refusal(setting: &str, side: &str) -> Option<Fault> {
    let name = synchronous_for_segue(setting)?;
    let what = format!(
        "synchronous_standby_names = '{setting}' on the {side} counts Segue's own session as a standby ({name}): \
         the application's commits would wait for Segue"
    );
    let next_step = format!(
        "on the {side}: name the real standbys, for example ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby1)'; SELECT pg_reload_conf();"
    );
    Some(Fault::operator(SYNC_STANDBY, what, next_step))
}

/// Why this server cannot be a target of that source; empty if it can.
pub async fn target_refusals(source: &Client, target: &Client) -> Outcome<Vec<Fault>> {
    landing_refusals(source, target, ("target", TARGET_MAJORS)).await
}

/// Why rows from `source` cannot land on this server, which is the `side` of the migration and can be of these `majors`.
async fn landing_refusals(
    source: &Client,
    target: &Client,
    (side, majors): (&str, RangeInclusive<i32>),
) -> Outcome<Vec<Fault>> {
    let encoding = "SELECT current_setting('server_encoding')";
    let source_encoding: String = facts(source, encoding).await?.get(0);
    let sql =
        "SELECT current_setting('server_version_num')::int / 10000 AS major, pg_is_in_recovery() AS standby,
            current_setting('server_encoding') AS encoding, current_user::text AS role,
            (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) AS superuser,
            has_database_privilege(current_database(), 'CREATE') AS may_create,
            has_function_privilege('pg_replication_origin_session_setup(text)', 'EXECUTE') AS may_origin,
            current_setting('max_replication_slots')::int8 AS slots, current_database()::text AS database";
    let row = facts(target, sql).await?;
    let mut found = Vec::new();
    let mut refuse =
        |code, what: String, next_step: String| found.push(Fault::operator(code, what, next_step));
    let (role, database): (&str, &str) = (row.get("role"), row.get("database"));
    let (major, target_encoding): (i32, &str) = (row.get("major"), row.get("encoding"));
    if !majors.contains(&major) {
        refuse(
            "SEGUE-VERSION",
            format!("the {side} is PostgreSQL {major}"),
            format!("{side}s can be {} to {}", majors.start(), majors.end()),
        );
    }
    if row.get("standby") {
        let next_step = format!("name the primary in the {side}'s URL");
        refuse("SEGUE-STANDBY", format!("the {side} is a standby"), next_step);
    }
    if target_encoding != "UTF8" && target_encoding != source_encoding {
        let what = format!(
            "the {side}'s encoding {target_encoding} cannot hold all text of the other side's {source_encoding}"
        );
        refuse("SEGUE-ENCODING", what, format!("make the {side} database with ENCODING 'UTF8'"));
    }
    if !row.get::<_, bool>("may_create") {
        let what = format!("the role {role} may not create a schema in the {side}'s database");
        let next_step = format!("on the {side}: GRANT CREATE ON DATABASE \"{database}\" TO \"{role}\";");
        refuse("SEGUE-PRIVILEGE", what, next_step);
    }
    let may_set_role = row.get("superuser") || may_set_role(target, major).await?;
    if !may_set_role {
        let what = format!(
            "the role {role} may not set session_replication_role on the {side}: triggers and foreign keys would fire"
        );
        let next_step = if major >= 15 {
            format!("on the {side}: GRANT SET ON PARAMETER session_replication_role TO \"{role}\";")
        } else {
            format!("on the {side}: ALTER ROLE \"{role}\" SUPERUSER; -- before PostgreSQL 15 nobody else may")
        };
        refuse("SEGUE-PRIVILEGE", what, next_step);
    }
    if !row.get::<_, bool>("may_origin") {
        let what = format!("the role {role} may not use replication origins on the {side}");
        let next_step = format!(
            "on the {side}, as superuser: GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), \
             pg_replication_origin_drop(text), pg_replication_origin_oid(text), pg_replication_origin_session_setup(text), \
             pg_replication_origin_session_reset(), pg_replication_origin_xact_setup(pg_lsn, timestamptz) TO \"{role}\";"
        );
        refuse("SEGUE-PRIVILEGE", what, next_step);
    }
    if row.get::<_, i64>("slots") < 1 {
        let next_step =
            format!("on the {side}: ALTER SYSTEM SET max_replication_slots = 10; -- and restart it");
        refuse("SEGUE-LIMIT", format!("the {side} has room for no replication origin"), next_step);
    }
    Ok(found)
}

/// Whether somebody who is no superuser may set the replica role.
async fn may_set_role(server: &Client, major: i32) -> Outcome<bool> {
    let sql = "SELECT has_parameter_privilege('session_replication_role', 'SET')";
    Ok(major >= 15 && facts(server, sql).await?.get(0))
}

/// Whether a server with this `synchronous_standby_names` takes Segue's session for one of them.
pub(crate) fn counts_segue(setting: &str) -> bool {
    synchronous_for_segue(setting).is_some()
}

/// The entry of `synchronous_standby_names` that Segue's session would match, if any.
fn synchronous_for_segue(setting: &str) -> Option<&str> {
    let list = match setting.split_once('(') {
        Some((_, list)) => list.trim_end().trim_end_matches(')'),
        None => setting,
    };
    list.split(',')
        .map(|name| name.trim().trim_matches('"'))
        .find(|name| *name == "*" || name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("segue")))
}

/// A fault if the session that streams from `slot` has become a synchronous standby: commits would wait for Segue.
pub async fn synchronous_walsender(source: &impl Asked, slot: &str) -> Outcome<Option<Fault>> {
    let sql = "SELECT r.application_name, r.sync_state, r.pid, current_setting('synchronous_standby_names') AS setting
           FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid
          WHERE s.slot_name = $1 AND r.sync_state IN ('sync', 'quorum', 'potential')";
    let row = source.row_if_any(sql, &[&slot]).await;
    let row = row.map_err(|e| fault_of(&e).during("looking whether Segue became a standby"))?;
    Ok(row.map(|row| {
        let (name, state, pid, setting): (&str, &str, i32, &str) = (row.get(0), row.get(1), row.get(2), row.get(3));
        Fault::operator(
            SYNC_STANDBY,
            format!("Segue's session '{name}' (pid {pid}) counts as a {state} standby: synchronous_standby_names = '{setting}'"),
            "on the source: name the real standbys in synchronous_standby_names, then SELECT pg_reload_conf();",
        )
    }))
}

/// How long Segue's own end of a stream may take before its walsender is ended from here.
const STREAM_ENDS: Duration = Duration::from_secs(1);

/// Lets commits go that waited for Segue as a standby, once its stream is being closed. Nothing to do without a slot.
///
/// The server looks who may go when a standby reports, and an idle one does so every `wal_receiver_status_interval`
/// (10 s) only: with nobody able to commit, it stays idle. So something is written, for the real standbys to report.
pub async fn release_commits(source: &Client, slot: &str) -> Outcome<()> {
    let during = |e| fault_of(&e).during("releasing commits that waited for Segue");
    let until = tokio::time::Instant::now() + STREAM_ENDS;
    loop {
        let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
        let Some(row) = source.query_opt(sql, &[&slot]).await.map_err(during)? else { return Ok(()) };
        let Some(pid) = row.get::<_, Option<i32>>(0) else { break };
        if tokio::time::Instant::now() > until {
            source.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.map_err(during)?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let write = "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, 'segue', ''); COMMIT";
    source.batch_execute(write).await.map_err(during)
}

/// What to say if sessions of Segue wait on this server for a synchronous standby, as everybody's commits do.
pub async fn waits_for_standby(server: &Client) -> Outcome<Option<String>> {
    let sql = "SELECT current_setting('synchronous_standby_names') FROM pg_stat_activity
          WHERE wait_event = 'SyncRep' AND application_name LIKE 'segue %' AND datname = current_database() LIMIT 1";
    let row = server.query_opt(sql, &[]).await;
    let row = row.map_err(|e| fault_of(&e).during("looking whether commits wait for a standby"))?;
    Ok(row.map(|row| {
        let setting: &str = row.get(0);
        format!("a commit waits for a synchronous standby that does not answer (synchronous_standby_names = '{setting}')")
    }))
}

/// What the source keeps for a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotState {
    /// Bytes of log that the slot holds back.
    pub retained_bytes: u64,
    /// `reserved`, `extended`, `unreserved` or `lost`; empty before PostgreSQL 13.
    pub wal_status: String,
}

/// Looks at a slot. One that does not exist keeps nothing.
pub async fn slot_state(source: &impl Asked, slot: &str) -> Outcome<SlotState> {
    let sql = "SELECT greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0)::bigint,
                  coalesce(to_jsonb(s) ->> 'wal_status', '')
           FROM pg_replication_slots s WHERE s.slot_name = $1";
    let row = source.row_if_any(sql, &[&slot]).await;
    let row = row.map_err(|e| fault_of(&e).during("looking at the slot"))?;
    Ok(row.map_or_else(SlotState::default, |row| SlotState {
        retained_bytes: row.get::<_, Option<i64>>(0).and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
        wal_status: row.get(1),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_match_segues_session_are_found() {
        for (setting, found) in [
            ("", None),
            ("standby1", None),
            ("FIRST 1 (a, b)", None),
            ("*", Some("*")),
            ("FIRST 1 (a, *)", Some("*")),
            ("ANY 1 (\"segue stream\", b)", Some("segue stream")),
            ("Segue", Some("Segue")),
        ] {
            assert_eq!(synchronous_for_segue(setting), found, "{setting}");
        }
    }
}
