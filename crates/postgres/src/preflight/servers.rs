//! Two servers beside each other: encodings, collations, extensions, clocks, and who runs them.

use super::{Finding, Looks};
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::switch::Side;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes in a database without an encoding are text in none: one such value stops the copy, or comes out as another.
pub(super) async fn encoding(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let rows = looks.ask(Side::Source, "SELECT current_setting('server_encoding') = 'SQL_ASCII'").await?;
    let is_unknown = rows.iter().any(|row| row.get(0));
    let what = "the source's encoding is SQL_ASCII: it takes any bytes for text, and the first value that is no UTF-8 \
                stops the copy";
    let remedy =
        "find such values first, for example with convert_from(column::bytea, 'UTF8'), and mend them";
    Ok(is_unknown.then(|| Finding::warn(Side::Source, what, remedy)).into_iter().collect())
}

/// How one database orders its text.
struct Ordered {
    database: String,
    /// Provider and locale.
    by: String,
    recorded: Option<String>,
    actual: Option<String>,
}

/// A collation in use by a column: its name, the version it was made with, and the library's now.
type Used = BTreeMap<QualifiedName, (Option<String>, Option<String>)>;

async fn ordered(looks: &Looks<'_>, side: Side) -> Outcome<(Ordered, Used)> {
    let version = "SELECT current_setting('server_version_num')::int >= 150000";
    let knows: bool = looks.ask(side, version).await?.first().is_some_and(|row| row.get(0));
    let actual = if knows { "pg_database_collation_actual_version(d.oid)" } else { "NULL::text" };
    // A row as JSON has the columns that this version has.
    let sql = format!(
        "SELECT d.datname::text, concat_ws(' ', CASE to_jsonb(d) ->> 'datlocprovider' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END,
                d.datcollate, nullif(d.datctype, d.datcollate), to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale'),
                to_jsonb(d) ->> 'datcollversion', {actual}
           FROM pg_database d WHERE d.datname = current_database()"
    );
    let rows = looks.ask(side, &sql).await?;
    let default = rows.first().map(|row| Ordered {
        database: row.get(0),
        by: row.get(1),
        recorded: row.get(2),
        actual: row.get(3),
    });
    let nowhere = || Ordered { database: String::new(), by: String::new(), recorded: None, actual: None };
    let sql = "SELECT DISTINCT n.nspname, l.collname, l.collversion, pg_collation_actual_version(l.oid)
           FROM root t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
           JOIN pg_collation l ON l.oid = a.attcollation AND l.collprovider <> 'd'
           JOIN pg_namespace n ON n.oid = l.collnamespace";
    let used = looks.ask_pairs(side, sql).await?;
    let used = used.iter().map(|row| {
        (QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)), (row.get(2), row.get(3)))
    });
    Ok((default.unwrap_or_else(nowhere), used.collect()))
}

/// Two versions that are both known, and not the same.
fn unequal<'v>(a: Option<&'v String>, b: Option<&'v String>) -> Option<(&'v str, &'v str)> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => Some((a, b)),
        _ => None,
    }
}

/// The order of text decides where a range of keys ends, what an index finds, and what ORDER BY answers. It comes from a
/// library of the system that changes with it: an index that was built under another version finds less than there is.
pub(super) async fn collations(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let (source, source_used) = ordered(looks, Side::Source).await?;
    let (target, target_used) = ordered(looks, Side::Target).await?;
    let mut found = Vec::new();
    for (side, default, used) in
        [(Side::Source, &source, &source_used), (Side::Target, &target, &target_used)]
    {
        let database = quote_ident(&default.database);
        if let Some((was, is)) = unequal(default.recorded.as_ref(), default.actual.as_ref()) {
            let what = format!(
                "the {side}'s text indexes were built under version {was} of its collation, and the system now has {is}: they \
                 may miss rows, and let equal ones pass"
            );
            let remedy =
                format!("REINDEX DATABASE {database}; ALTER DATABASE {database} REFRESH COLLATION VERSION;");
            found.push(Finding::warn(side, what, remedy).about(&default.database));
        }
        for (name, (recorded, actual)) in used {
            let Some((was, is)) = unequal(recorded.as_ref(), actual.as_ref()) else { continue };
            let what = format!(
                "the collation {name} was made under version {was} on the {side}, and the system now has {is}: indexes on \
                 columns that use it may miss rows"
            );
            let remedy =
                format!("REINDEX DATABASE {database}; ALTER COLLATION {} REFRESH VERSION;", name.sql());
            found.push(Finding::warn(side, what, remedy).about(name));
        }
    }
    let mut differ = Vec::new();
    if source.by != target.by {
        differ.push(format!(
            "the default collation is {} on the source and {} on the target",
            source.by, target.by
        ));
    } else if let Some((a, b)) = unequal(source.actual.as_ref(), target.actual.as_ref()) {
        differ.push(format!(
            "the default collation {} has version {a} on the source and {b} on the target",
            source.by
        ));
    }
    for (name, (_, actual)) in &source_used {
        let there = target_used.get(name).and_then(|(_, actual)| actual.as_ref());
        if let Some((a, b)) = unequal(actual.as_ref(), there) {
            differ.push(format!("the collation {name} has version {a} on the source and {b} on the target"));
        }
    }
    found.extend(differ.into_iter().map(|what| {
        let what = format!(
            "{what}: text is ordered otherwise after the switch. Segue leaves each order to the server it belongs to; what the \
             application sorts, and where its pages end, may change"
        );
        let remedy = "make the target's database anew from template0 with the source's locale (CREATE DATABASE … TEMPLATE \
                      template0 LOCALE …), or on a system with the same library; or see that nothing depends on the order";
        Finding::warn(Side::Target, what, remedy)
    }));
    Ok(found)
}

/// Types, operators and functions of an extension are not in the tables: without it, or with an older one, statements that
/// worked fail after the switch.
pub(super) async fn extensions(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let installed = "SELECT e.extname::text, e.extversion, n.nspname::text FROM pg_extension e
          JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql' ORDER BY 1";
    let here = looks.ask(Side::Source, installed).await?;
    let there: BTreeMap<String, String> =
        looks.ask(Side::Target, installed).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    let can_be: BTreeSet<String> = looks
        .ask(Side::Target, "SELECT name::text FROM pg_available_extensions")
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let mut found = Vec::new();
    for row in &here {
        let (name, version, schema): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let finding = match there.get(name) {
            Some(other) if other == version => continue,
            Some(other) => {
                let what = format!(
                    "the extension {name} has version {version} on the source and {other} on the target"
                );
                let (side, wanted) = if is_older(other, version) {
                    (Side::Target, version)
                } else {
                    (Side::Source, other.as_str())
                };
                let remedy =
                    format!("ALTER EXTENSION {} UPDATE TO {};", quote_ident(name), quote_literal(wanted));
                Finding::warn(side, what, remedy)
            }
            None => {
                let what = format!("the extension {name} of the source is not there on the target");
                let remedy = if can_be.contains(name) {
                    let (name, schema) = (quote_ident(name), quote_ident(schema));
                    format!("CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION {name} SCHEMA {schema};")
                } else {
                    format!(
                        "install the package of the extension {name} on the target's server, then CREATE EXTENSION"
                    )
                };
                Finding::warn(Side::Target, what, remedy)
            }
        };
        found.push(finding.about(name));
    }
    Ok(found)
}

/// Versions of extensions, compared by their numbers.
fn is_older(a: &str, b: &str) -> bool {
    let numbers =
        |text: &str| -> Vec<u64> { text.split(['.', '-']).map_while(|part| part.parse().ok()).collect() };
    numbers(a) < numbers(b)
}

/// A skew above this is worth a word.
const SKEW_MS_MAX: i64 = 1_000;

/// No clock decides who owns a row. But what the application writes with `now()` would jump at the switch, and ages in
/// `status` and in the journal would be wrong.
pub(super) async fn clocks(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for side in Side::ALL {
        let client = looks.client(side);
        let statement = client.prepare("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").await;
        let statement = statement.map_err(|e| fault_of(&e))?;
        let asked = Instant::now();
        let theirs: i64 = client.query_one(&statement, &[]).await.map_err(|e| fault_of(&e))?.get(0);
        let took_ms = i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX);
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let ahead_ms = theirs - i64::try_from(ours).unwrap_or(i64::MAX);
        // The answer was made at some moment while it was waited for.
        if ahead_ms > SKEW_MS_MAX || ahead_ms < -SKEW_MS_MAX - took_ms {
            let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
            let what = format!("the {side}'s clock is {} ms {direction} this machine's", ahead_ms.abs());
            let remedy =
                "let all three keep time by the same servers (chronyc tracking shows how far one is off)";
            found.push(Finding::warn(side, what, remedy));
        }
    }
    Ok(found)
}

/// Roles that a managed service makes, the service, and how it grants what only a superuser could.
const SERVICES: [(&str, &str, &str); 4] = [
    (
        "rds_superuser",
        "Amazon RDS or Aurora",
        "logical replication: rds.logical_replication = 1 in the parameter group, then reboot. Segue's role: GRANT rds_superuser, \
         rds_replication. Event triggers may be made by rds_superuser; where session_replication_role may not be set, use the \
         master user",
    ),
    (
        "cloudsqlsuperuser",
        "Google Cloud SQL",
        "logical replication: the flag cloudsql.logical_decoding = on, then restart. Segue's role: ALTER ROLE … REPLICATION as \
         a member of cloudsqlsuperuser. Event triggers need cloudsqlsuperuser; without them DDL is noticed, not refused",
    ),
    (
        "alloydbsuperuser",
        "Google AlloyDB",
        "logical replication: the flag alloydb.logical_decoding = on, then restart. Segue's role: ALTER ROLE … REPLICATION as a \
         member of alloydbsuperuser. Without event triggers DDL is noticed, not refused",
    ),
    (
        "azure_pg_admin",
        "Azure Database for PostgreSQL",
        "logical replication: the server parameter wal_level = logical, then restart. Segue's role: ALTER ROLE … REPLICATION as a \
         member of azure_pg_admin. Without event triggers DDL is noticed, not refused",
    ),
];

/// Where nobody is a superuser, ALTER SYSTEM and some grants are another's to make; the other checks name what is missing,
/// this one how it is had there.
pub(super) async fn managed(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for side in Side::ALL {
        let roles: BTreeSet<String> = looks
            .ask(side, "SELECT rolname::text FROM pg_roles")
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect();
        let services = SERVICES.iter().filter(|(role, _, _)| roles.contains(*role));
        found.extend(services.map(|(role, service, how)| {
            let what = format!(
                "the {side} looks like {service} (it has a role {role}), where ALTER SYSTEM is not for us"
            );
            Finding { side: Some(side), ..Finding::note(what, *how) }.about(role)
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_extensions_are_compared_by_their_numbers() {
        assert!(is_older("1.9", "1.10") && is_older("1.4", "1.6") && is_older("2", "2.1"));
        assert!(!is_older("1.10", "1.9") && !is_older("3.1", "3.1"));
    }
}
