//! Room: slots, senders, origins, log, connections, locks, disk, and how long one snapshot is held.

use super::{Finding, Looks, Verdict};
use crate::birth::{Direction, origin_name};
use crate::catalog::ONE_SNAPSHOT_BYTES_MAX;
use segue_engine::ports::Outcome;
use segue_model::spec::Profile;
use segue_model::sqltext::quote_ident;
use segue_model::switch::Side;
use std::time::Duration;

/// A stream needs a slot and a walsender where it comes from, and an origin where it lands; making it fails without, when
/// everything else is prepared. Segue starts no workers of the server.
pub(super) async fn limits(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    let own = looks.own_names();
    for side in looks.sending() {
        let sql = "SELECT current_setting('max_replication_slots')::int8, current_setting('max_wal_senders')::int8,
                ARRAY(SELECT slot_name::text FROM pg_replication_slots), (SELECT count(*) FROM pg_stat_replication)";
        for row in looks.ask(side, sql).await? {
            let (slots, senders, used): (i64, i64, Vec<String>) = (row.get(0), row.get(1), row.get(2));
            let is_ours = used.iter().any(|slot| own.contains(slot));
            let taken = i64::try_from(used.len()).unwrap_or(i64::MAX);
            let verdict = if side == Side::Source { Verdict::Refuse } else { Verdict::Warn };
            if slots <= taken && !is_ours {
                let what = format!(
                    "all {slots} replication slots of the {side} are taken, and the stream needs one"
                );
                let remedy = format!(
                    "ALTER SYSTEM SET max_replication_slots = {}; -- and restart it, or drop a slot",
                    taken + 4
                );
                found.push(Finding {
                    verdict,
                    ..Finding::warn(side, what, remedy).about("max_replication_slots")
                });
            }
            let free = senders - row.get::<_, i64>(3);
            // No room at all on the source is a refusal of `segue run` already.
            if free < 1 && side == Side::Target || free == 1 && !is_ours {
                let what = format!(
                    "the {side} has room for {free} more WAL sender(s): the stream, and a standby that reconnects, need one each"
                );
                let remedy = format!("ALTER SYSTEM SET max_wal_senders = {}; -- and restart it", senders + 4);
                found.push(Finding::warn(side, what, remedy).about("max_wal_senders"));
            }
        }
    }
    for side in looks.landing() {
        found.extend(origins(looks, side).await?);
    }
    Ok(found)
}

/// A replication origin that is in use takes one of a fixed number of places, which a server without any left says only
/// when the first row is applied.
async fn origins(looks: &Looks<'_>, side: Side) -> Outcome<Option<Finding>> {
    let may = "SELECT has_table_privilege('pg_replication_origin_status', 'SELECT')
                  AND has_function_privilege('pg_show_replication_origin_status()', 'EXECUTE')";
    let may = looks.ask(side, may).await?.first().is_some_and(|row| row.get(0));
    // Those that were only made take no place; without the right to see which are used, all are counted.
    let names = if may {
        "external_id FROM pg_replication_origin_status"
    } else {
        "roname FROM pg_replication_origin"
    };
    // From 18 on origins have a limit of their own.
    let sql = format!(
        "SELECT coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int8,
             ARRAY(SELECT {names})"
    );
    let rows = looks.ask(side, &sql).await?;
    let Some((most, used)) =
        rows.first().map(|row| (row.get::<_, i64>(0), row.get::<_, Vec<Option<String>>>(1)))
    else {
        return Ok(None);
    };
    let own = [Direction::Forward, Direction::Reverse]
        .map(|direction| origin_name(looks.asked.migration, direction));
    let is_ours = used.iter().flatten().any(|origin| own.contains(origin));
    // A server without any place is refused by `segue run`.
    if is_ours || most < 1 || i64::try_from(used.len()).unwrap_or(i64::MAX) < most {
        return Ok(None);
    }
    let what =
        format!("all {most} replication origins of the {side} are taken, and what lands there needs one");
    let remedy = format!(
        "ALTER SYSTEM SET max_replication_slots = {}; -- and restart it (18: max_active_replication_origins), or drop an origin that \
         nothing uses: pg_replication_origin_drop(name)",
        most + 4
    );
    Ok(Some(Finding::warn(side, what, remedy).about("replication origins")))
}

/// A slot keeps log for whoever reads it, without end if nobody does. Segue's backfill yields before that gets too much,
/// but a Segue that is stopped yields to nobody; and a server that lets go sooner ends the migration.
pub(super) async fn kept_log(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    let yields_mib = looks.asked.retained_wal_bytes_max >> 20;
    let wanted_mib = yields_mib.saturating_mul(2).max(1);
    let remedy =
        format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{wanted_mib}MB'; SELECT pg_reload_conf();");
    for side in looks.sending() {
        let sql = "SELECT s.name, s.setting::int8 FROM pg_settings s
              WHERE s.name IN ('max_slot_wal_keep_size', 'idle_replication_slot_timeout')";
        for row in looks.ask(side, sql).await? {
            let (name, setting): (&str, i64) = (row.get(0), row.get(1));
            let (what, remedy) = match name {
                "max_slot_wal_keep_size" if setting < 0 => (
                    format!(
                        "the {side} keeps log for a slot without a bound: while Segue is stopped for long, its disk fills. Segue \
                         itself yields at {yields_mib} MiB, and never drops the slot"
                    ),
                    remedy.as_str(),
                ),
                "max_slot_wal_keep_size" if u64::try_from(setting).is_ok_and(|mib| mib < wanted_mib) => (
                    format!(
                        "the {side} takes the log from a slot that holds more than {setting} MiB, and Segue yields at {yields_mib} \
                         MiB only: the stream could be lost before, or soon after"
                    ),
                    remedy.as_str(),
                ),
                "idle_replication_slot_timeout" if setting > 0 => (
                    format!(
                        "the {side} invalidates slots that nobody reads for a while: a Segue that is stopped would lose its stream"
                    ),
                    "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
                ),
                _ => continue,
            };
            found.push(Finding::warn(side, what, remedy).about(name));
        }
    }
    Ok(found)
}

/// Sessions of Segue's on one side beside its copy workers: streams, appliers and what reads ahead of them, watchers,
/// control.
const OWN_SESSIONS: u64 = 13;

/// How many sessions one side takes.
struct Pool {
    most: i64,
    free: u64,
    database: String,
    /// The database's own limit is what counts.
    is_database: bool,
}

async fn pool(looks: &Looks<'_>, side: Side) -> Outcome<Option<Pool>> {
    let sql = "SELECT current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
                    - coalesce(current_setting('reserved_connections', true)::int8, 0), d.datconnlimit::int8, d.datname::text
           FROM pg_database d WHERE d.datname = current_database()";
    let free = crate::health::free_connections(looks.client(side)).await?;
    Ok(looks.ask(side, sql).await?.first().map(|row| {
        let (server, own): (i64, i64) = (row.get(0), row.get(1));
        let is_database = (0..server).contains(&own);
        Pool { most: if is_database { own } else { server }, free, database: row.get(2), is_database }
    }))
}

/// The application's pools come with all their sessions at once when the writes do, beside Segue's own. A target that
/// refuses them makes of the switch an outage.
pub(super) async fn connections(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let (Some(source), Some(target)) = (pool(looks, Side::Source).await?, pool(looks, Side::Target).await?)
    else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    let raise = |pool: &Pool, to: i64| {
        if pool.is_database {
            format!("ALTER DATABASE {} CONNECTION LIMIT {to};", quote_ident(&pool.database))
        } else {
            // Beside those that are kept for superusers.
            format!("ALTER SYSTEM SET max_connections = {}; -- and restart it", to + 3)
        }
    };
    let percent = match looks.asked.profile {
        Profile::Prod => 150,
        Profile::Dev | Profile::Staging => 100,
    };
    let wanted = (source.most.saturating_mul(percent) + 99) / 100;
    if target.most < wanted {
        let what = format!(
            "the target takes {} sessions and the source {}: with the profile {} it should take {wanted}, as the application's \
             pools are on both sides around a switch",
            target.most, source.most, looks.asked.profile
        );
        found.push(Finding::warn(Side::Target, what, raise(&target, wanted)));
    }
    let own = OWN_SESSIONS + u64::try_from(looks.asked.copy_workers).unwrap_or(u64::MAX / 2);
    for (side, pool) in [(Side::Source, &source), (Side::Target, &target)] {
        if pool.free < own {
            let what = format!(
                "the {side} has room for {} more sessions, and Segue itself may need {own}",
                pool.free
            );
            let more = i64::try_from(own - pool.free).unwrap_or(0);
            found.push(Finding::warn(side, what, raise(pool, pool.most + more)));
        }
    }
    Ok(found)
}

/// What making a table takes beside the lock on it: its TOAST table and that one's index, its key, its sequence.
const LOCKS_OF_A_NEW_TABLE: i64 = 6;

/// What a hand-over takes for each table and partition while writes are held, in µs: a lock, and a trigger that is enabled, on
/// both sides. (5,600 of them were held for 1.8 s.)
const HELD_US: i64 = 400;

/// A hand-over locks every table and partition in one transaction, and so does making them. A server has room for so many
/// locks, and says only in the middle of it that there is no more; and each takes its time.
pub(super) async fn locks(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT current_setting('max_locks_per_transaction')::int8,
                current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8,
                (SELECT count(DISTINCT oid) FROM tree), (SELECT count(*) FROM root)";
    let mut found = Vec::new();
    let mut on_source = 0;
    for side in Side::ALL {
        for row in looks.ask_tables(side, sql).await? {
            let (each, sessions, relations): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            if side == Side::Source {
                on_source = relations;
                found.extend(hold(relations, looks.asked.max_write_hold));
            }
            let pairs = i64::try_from(looks.asked.pairs.len()).unwrap_or(i64::MAX);
            let missing = if looks.asked.creates_missing { pairs - row.get::<_, i64>(3) } else { 0 };
            // Those that are missing are taken to have as many partitions as others.
            let made = on_source * LOCKS_OF_A_NEW_TABLE * missing / pairs.max(1);
            let (needed, why) = if made > relations {
                (made, "making the tables in one transaction")
            } else {
                (relations, "handing the writes over")
            };
            // Others have locks, too.
            if needed <= each * sessions * 4 / 5 {
                continue;
            }
            let what = format!(
                "{why} takes {needed} locks at once on the {side}, one for each table and partition or more, and that server has room \
                 for {} by everybody together: it would fail there",
                each * sessions
            );
            let wanted = (needed * 3 / 2 / sessions.max(1)).max(each) / 64 * 64 + 64;
            let remedy = format!("ALTER SYSTEM SET max_locks_per_transaction = {wanted}; -- and restart it");
            found.push(Finding::warn(side, what, remedy).about("max_locks_per_transaction"));
        }
    }
    Ok(found)
}

fn hold(relations: i64, allowed: Duration) -> Option<Finding> {
    let held_ms = relations * HELD_US / 1000;
    let allowed_ms = i64::try_from(allowed.as_millis()).unwrap_or(i64::MAX);
    if held_ms <= allowed_ms / 2 {
        return None;
    }
    let what = format!(
        "a switch locks {relations} tables and partitions one after the other, and would hold writes for about {held_ms} ms; {allowed_ms} \
         ms are allowed, with everything else that happens meanwhile: it would be undone"
    );
    // A minute is the most that a spec may allow.
    let wanted_ms = ((held_ms * 4 / 1000 + 1) * 1000).min(60_000);
    let remedy = format!("in the spec: switch: {{ max_write_hold_ms: {wanted_ms} }}");
    Some(Finding::warn(Side::Source, what, remedy).about("switch.max_write_hold_ms"))
}

/// From this on somebody should have looked at the target's disk.
const LARGE_BYTES: u64 = 10 << 30;

/// A full disk on the target stops the migration, and everything else there. What is free on a disk no server tells by SQL;
/// what will be needed can be said.
pub(super) async fn disk(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let tables: u64 = looks.catalog().tables.iter().map(|table| table.estimate.bytes).sum();
    let sql = "SELECT coalesce(sum(CASE WHEN c.relkind IN ('r', 'm') THEN pg_indexes_size(c.oid) ELSE 0 END), 0)::int8
           FROM tree t JOIN pg_class c ON c.oid = t.oid";
    let indexes = looks.ask_tables(Side::Source, sql).await?;
    let indexes = indexes.first().map_or(0, |row| u64::try_from(row.get::<_, i64>(0)).unwrap_or(0));
    let what = format!(
        "the tables take {} MiB on the source, their indexes {} MiB: the target needs as much, and as much log again until its \
         next checkpoints. How much is free there no server tells",
        tables >> 20,
        indexes >> 20
    );
    let remedy =
        "look at the target's disk: df -h on its data directory and pg_wal, or the service's metrics";
    let verdict = if tables + indexes >= LARGE_BYTES { Verdict::Warn } else { Verdict::Pass };
    Ok(vec![Finding { verdict, side: Some(Side::Target), ..Finding::note(what, remedy) }])
}

/// A table that cannot be cut is copied under one snapshot, which keeps the source from cleaning up for as long.
pub(super) async fn snapshots(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let tables = looks.catalog().tables.iter();
    let large = tables.filter(|table| table.estimate.bytes > ONE_SNAPSHOT_BYTES_MAX);
    let finding = |table: &segue_model::table::Table| {
        let why = table.one_region.as_ref()?;
        let what = format!(
            "{} ({} MiB) is copied under one snapshot, because {why}: the source cannot clean up old rows meanwhile",
            table.source,
            table.estimate.bytes >> 20
        );
        let remedy =
            "give it a primary key, and make its other unique indexes on the target after the backfill";
        Some(Finding::warn(Side::Source, what, remedy).about(&table.source))
    };
    Ok(large.filter_map(finding).collect())
}
