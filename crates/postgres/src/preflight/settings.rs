//! Settings of servers, databases and roles that the application lives with, and that would change under it.
//!
//! Segue's own sessions pin what they depend on ([`crate::connect::PINNED_SETTINGS`]); of their walsender that cannot be said.

use super::{Finding, Looks};
use crate::catalog::server::counts_segue;
use segue_engine::ports::Outcome;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::switch::Side;
use std::collections::{BTreeMap, BTreeSet};

/// One side's settings, as new sessions get them.
struct Settings {
    side: Side,
    database: String,
    roles: BTreeSet<String>,
    /// Of everybody who has none of their own.
    general: BTreeMap<String, String>,
    /// By role.
    own: BTreeMap<String, BTreeMap<String, String>>,
}

impl Settings {
    async fn read(looks: &Looks<'_>, side: Side) -> Outcome<Settings> {
        // What a session of ours began with, before it pinned anything. A setting of our own role would be among it.
        let general = "SELECT s.name, CASE WHEN s.unit IN ('ms', 's', 'min') THEN s.reset_val || s.unit ELSE s.reset_val END
              FROM pg_settings s";
        let text =
            |row: &tokio_postgres::Row| (row.get(0), row.get::<_, Option<String>>(1).unwrap_or_default());
        let general = looks.ask(side, general).await?.iter().map(text).collect();
        let mut own: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let sql = "SELECT r.rolname::text, c FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) c
              WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
              ORDER BY s.setdatabase";
        for row in looks.ask(side, sql).await? {
            let (role, setting): (String, &str) = (row.get(0), row.get(1));
            if let Some((name, value)) = setting.split_once('=') {
                own.entry(role).or_default().insert(name.to_owned(), value.to_owned());
            }
        }
        let roles = looks.ask(side, "SELECT rolname::text FROM pg_roles").await?;
        let roles = roles.iter().map(|row| row.get(0)).collect();
        let database = looks.ask(side, "SELECT current_database()::text").await?;
        let database = database.first().map(|row| row.get(0)).unwrap_or_default();
        Ok(Settings { side, database, roles, general, own })
    }

    /// What a session of `role` gets, of anybody else for `None`.
    fn of(&self, role: Option<&str>, name: &str) -> &str {
        let own = role.and_then(|role| self.own.get(role)).and_then(|own| own.get(name));
        own.or_else(|| self.general.get(name)).map_or("", String::as_str)
    }

    /// Whoever has settings of their own here, and everybody else.
    fn whose(&self) -> impl Iterator<Item = Option<&str>> {
        std::iter::once(None).chain(self.own.keys().map(|role| Some(role.as_str())))
    }

    fn set(&self, role: Option<&str>, name: &str, value: &str) -> String {
        let (database, name) = (quote_ident(&self.database), quote_ident(name));
        // A list of names is written as one; everything else is one value.
        let value = if name == "\"search_path\"" && !value.is_empty() {
            value.to_owned()
        } else {
            quote_literal(value)
        };
        match role {
            Some(role) => {
                format!("ALTER ROLE {} IN DATABASE {database} SET {name} = {value};", quote_ident(role))
            }
            None => format!("ALTER DATABASE {database} SET {name} = {value};"),
        }
    }
}

async fn both(looks: &Looks<'_>) -> Outcome<[Settings; 2]> {
    Ok([Settings::read(looks, Side::Source).await?, Settings::read(looks, Side::Target).await?])
}

fn by(role: Option<&str>) -> String {
    role.map_or_else(String::new, |role| format!(" for the role {role}"))
}

/// Where `names` are not the same on both sides; `why` it matters.
fn differences([source, target]: &[Settings; 2], names: &[&str], why: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let whose: BTreeSet<Option<&str>> = source.whose().chain(target.whose()).collect();
    // A role that is not there on the target has no settings to compare; its absence is the grants' matter.
    let whose = whose
        .into_iter()
        .filter(|role| role.is_none_or(|r| target.roles.contains(r) && source.roles.contains(r)));
    for role in whose {
        for name in names {
            // A parameter that one version does not have cannot be set there.
            if !source.general.contains_key(*name) || !target.general.contains_key(*name) {
                continue;
            }
            let (here, there) = (source.of(role, name), target.of(role, name));
            let is_general =
                role.is_some() && here == source.of(None, name) && there == target.of(None, name);
            if here == there || is_general {
                continue;
            }
            let what =
                format!("{name} is '{here}' on the source and '{there}' on the target{}: {why}", by(role));
            found.push(Finding::warn(Side::Target, what, target.set(role, name, here)).about(name));
        }
    }
    found
}

/// Under another isolation, statements that were safe together no longer are, or fail and have to be repeated; a database
/// that is read-only by default refuses the first write after the switch.
pub(super) async fn isolation(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let names =
        ["default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"];
    Ok(differences(
        &both(looks).await?,
        &names,
        "the application's transactions would run otherwise after the switch",
    ))
}

/// A timestamp without a zone, a date of `now()`, and every text of a timestamptz depend on it.
pub(super) async fn time_zone(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    Ok(differences(
        &both(looks).await?,
        &["TimeZone"],
        "the application would read and write other times after the switch",
    ))
}

/// What else decides how an unchanged statement is read, and how its answer is written.
pub(super) async fn session_settings(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let names = [
        "search_path",
        "DateStyle",
        "IntervalStyle",
        "bytea_output",
        "extra_float_digits",
        "standard_conforming_strings",
        "lc_monetary",
        "lc_numeric",
        "default_text_search_config",
    ];
    Ok(differences(
        &both(looks).await?,
        &names,
        "unchanged statements would mean, or answer, something else after the switch",
    ))
}

/// The walsender gives a stream up that has not answered for so long: below this a busy moment is enough.
const SENDER_MS_MIN: u64 = 10_000;

/// What ends a statement, or a session that waits within a transaction.
const BOUNDS: [&str; 4] =
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"];

/// A hold lets writes wait for as long as the spec allows. Whoever gives up sooner sees an error where he should have seen
/// a delay.
pub(super) async fn timeouts(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sides = both(looks).await?;
    let hold_ms = u64::try_from(looks.asked.max_write_hold.as_millis()).unwrap_or(u64::MAX);
    let mut found = Vec::new();
    for settings in &sides {
        let side = settings.side;
        for role in settings.whose() {
            for name in BOUNDS {
                let value = settings.of(role, name);
                let is_own = role.is_none() || value != settings.of(None, name);
                if is_own && milliseconds(value).is_some_and(|ms| ms > 0 && ms < hold_ms) {
                    let what = format!(
                        "{name} is {value} on the {side}{}, less than the {hold_ms} ms that a switch may hold writes up: they would \
                         be given up meanwhile",
                        by(role)
                    );
                    let remedy = settings.set(role, name, &format!("{}ms", hold_ms.saturating_mul(2)));
                    found.push(Finding::warn(side, what, remedy).about(name));
                }
            }
        }
        let sender = settings.of(None, "wal_sender_timeout");
        if milliseconds(sender).is_some_and(|ms| ms > 0 && ms < SENDER_MS_MIN) {
            let what = format!(
                "wal_sender_timeout is {sender} on the {side}: the stream would be cut off, and begun again, whenever it is busy \
                 for so long"
            );
            let remedy = "ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();";
            found.push(Finding::warn(side, what, remedy).about("wal_sender_timeout"));
        }
    }
    found.extend(differences(&sides, &BOUNDS, "the application would be given other times after the switch"));
    Ok(found)
}

/// A time as PostgreSQL writes it; without a unit it is in milliseconds.
fn milliseconds(value: &str) -> Option<u64> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let number: u64 = value[..digits].parse().ok()?;
    let factor = match value[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// How many standbys a server's commits wait for; `None`: that is hidden.
async fn waited_for(looks: &Looks<'_>, side: Side) -> Outcome<Option<i64>> {
    let sql = "SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')), count(*) FILTER (WHERE sync_state IS NULL)
          FROM pg_stat_replication";
    let rows = looks.ask(side, sql).await?;
    Ok(rows.first().filter(|row| row.get::<_, i64>(1) == 0).map(|row| row.get(0)))
}

/// Whether an acknowledged write is still there after a crash is decided by these. Segue's own commits always wait until
/// they are durable.
pub(super) async fn synchronous_commit(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    const NAMES: &str = "synchronous_standby_names";
    let sides = both(looks).await?;
    let [source, target] = &sides;
    let mut found = Vec::new();
    for settings in &sides {
        let (side, names) = (settings.side, settings.of(None, NAMES));
        // That Segue is counted is refused by another check.
        if names.is_empty() || counts_segue(names) {
            continue;
        }
        let waits_for = waited_for(looks, side).await?;
        if waits_for == Some(0) {
            let what = format!(
                "{NAMES} = '{names}' on the {side}, and none of them is connected: every commit there waits"
            );
            let remedy = format!(
                "ALTER SYSTEM SET {NAMES} = ''; SELECT pg_reload_conf(); -- or bring the standby back"
            );
            found.push(Finding::warn(side, what, remedy).about(NAMES));
        } else if side == Side::Source && target.of(None, NAMES).is_empty() {
            let what = format!(
                "commits on the source wait for standbys ({NAMES} = '{names}'), and on the target for none: after the switch an \
                 acknowledged write can be lost with one machine"
            );
            let remedy = format!("name the target's standbys in {NAMES} there, or accept it");
            found.push(Finding::warn(Side::Target, what, remedy).about(NAMES));
        }
    }
    let why = "what an acknowledged write survives would change with the switch";
    found.extend(differences(&sides, &["synchronous_commit"], why));
    if source.of(None, "synchronous_commit") == "off" && target.of(None, "synchronous_commit") == "off" {
        let what = "synchronous_commit is off on both sides: a crash can lose writes that were acknowledged, whatever Segue does";
        found.push(Finding::note(what, "set it on where that matters"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        for (text, ms) in [
            ("0", Some(0)),
            ("500", Some(500)),
            ("500ms", Some(500)),
            ("2s", Some(2_000)),
            ("1 min", Some(60_000)),
            ("1h", Some(3_600_000)),
            ("1d", Some(86_400_000)),
            ("", None),
            ("soon", None),
        ] {
            assert_eq!(milliseconds(text), ms, "{text}");
        }
    }
}
