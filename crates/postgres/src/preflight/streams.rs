//! Other replication on both servers: publications, subscriptions, slots, replicas, and what a failover would leave.

use super::{Finding, Looks, Verdict};
use crate::health;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::switch::Side;
use std::collections::{BTreeMap, BTreeSet};

/// Publications of the tables other than our own: which tables each sends.
async fn published(looks: &Looks<'_>, side: Side) -> Outcome<BTreeMap<String, BTreeSet<QualifiedName>>> {
    let sql = "SELECT DISTINCT p.pubname::text, n.nspname::text, c.relname::text
           FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_publication_tables p ON p.schemaname = n.nspname AND p.tablename = c.relname ORDER BY 1, 2, 3";
    let own = looks.own_names();
    let mut found: BTreeMap<String, BTreeSet<QualifiedName>> = BTreeMap::new();
    for row in looks.ask_tables(side, sql).await? {
        let name: String = row.get(0);
        if !own.contains(&name) {
            found
                .entry(name)
                .or_default()
                .insert(QualifiedName::new(row.get::<_, &str>(1), row.get::<_, &str>(2)));
        }
    }
    Ok(found)
}

/// Whoever subscribes to the tables on the source hears nothing any more once the target owns them.
pub(super) async fn publications(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let there = published(looks, Side::Target).await?;
    let mut found = Vec::new();
    for (name, tables) in published(looks, Side::Source).await? {
        if there.contains_key(&name) {
            continue;
        }
        let what = format!(
            "the publication {name} sends {} from the source: after the switch its subscribers hear nothing more of them",
            shown(tables.iter().map(ToString::to_string))
        );
        let tables: Vec<String> = tables.iter().map(|table| looks.counterpart(table).sql()).collect();
        let remedy = format!(
            "CREATE PUBLICATION {} FOR TABLE {}; -- and let its subscribers follow the target after the switch",
            quote_ident(&name),
            tables.join(", ")
        );
        found.push(Finding::warn(Side::Target, what, remedy).about(name));
    }
    found.extend(there.keys().map(|name| {
        let what =
            format!("the publication {name} on the target sends its subscribers all that Segue writes there");
        let note = Finding::note(what, "nothing, if they are meant to have it");
        Finding { side: Some(Side::Target), ..note }.about(name)
    }));
    for side in Side::ALL {
        found.extend(of_segues_own(looks, side).await?);
    }
    Ok(found)
}

/// Publications of somebody else that send Segue's own tables along: native subscribers do not have those, and stop there.
async fn of_segues_own(looks: &Looks<'_>, side: Side) -> Outcome<Vec<Finding>> {
    // From 15 on a schema's tables can be published as such.
    let version = "SELECT current_setting('server_version_num')::int >= 150000";
    let by_schema = match looks.ask(side, version).await?.first().is_some_and(|row| row.get(0)) {
        true => {
            "EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_namespace n ON n.oid = s.pnnspid
                      WHERE s.pnpubid = p.oid AND n.nspname = 'segue')"
        }
        false => "false",
    };
    let sql = format!(
        "SELECT p.pubname::text, p.puballtables FROM pg_publication p WHERE p.puballtables OR {by_schema} ORDER BY 1"
    );
    let (mut found, own) = (Vec::new(), looks.own_names());
    for row in looks.ask(side, &sql).await? {
        let (name, sends_all): (String, bool) = (row.get(0), row.get(1));
        if own.contains(&name) {
            continue;
        }
        let sends = if sends_all { "all tables, Segue's own too" } else { "Segue's own tables" };
        let what = format!(
            "the publication {name} on the {side} sends {sends}: a native subscriber that lacks the tables of the schema segue fails at \
             their first row, again and again, and its slot keeps the {side}'s log. Where nobody subscribes to it, it does no harm"
        );
        let remedy = "before `segue run`, let its subscribers follow a publication that lists their tables, instead of ALL TABLES or \
             the schema segue; or make the tables of the schema segue on the subscriber first, as \
             `pg_dump --schema-only -n segue` writes them where Segue has run";
        found.push(Finding::warn(side, what, remedy).about(name));
    }
    Ok(found)
}

/// So many names are shown.
const NAMES_MAX: usize = 5;

fn shown(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let names: Vec<String> = names.take(NAMES_MAX).collect();
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}

/// A subscription writes like Segue's streams do, past every fence: two writers of one table.
pub(super) async fn subscriptions(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let sql = "SELECT s.subname::text, array_agg(c.relname::text ORDER BY c.relname) FILTER (WHERE c.oid IS NOT NULL)
           FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
           LEFT JOIN pg_subscription_rel r ON r.srsubid = s.oid AND r.srrelid IN (SELECT oid FROM tree)
           LEFT JOIN pg_class c ON c.oid = r.srrelid
          WHERE s.subenabled AND (r.srrelid IS NOT NULL OR NOT EXISTS (SELECT FROM pg_subscription_rel x WHERE x.srsubid = s.oid))
          GROUP BY 1 ORDER BY 1";
    let mut found = Vec::new();
    for side in Side::ALL {
        for row in looks.ask_tables(side, sql).await? {
            let (name, tables): (&str, Option<Vec<String>>) = (row.get(0), row.get(1));
            let whose = tables
                .map_or_else(|| "tables that it does not name yet".to_owned(), |t| shown(t.into_iter()));
            let what = match side {
                Side::Source => format!(
                    "the subscription {name} writes into {whose} on the source: it goes on after the switch, as no fence stops it, and \
                     its rows are strays then"
                ),
                Side::Target => format!(
                    "the subscription {name} writes into {whose} on the target as well as Segue: rows would collide, and the sides differ"
                ),
            };
            let remedy = format!("ALTER SUBSCRIPTION {} DISABLE;", quote_ident(name));
            found.push(Finding::warn(side, what, remedy).about(name));
        }
    }
    Ok(found)
}

/// A slot that nobody reads keeps log until the disk is full, and rows from being cleaned up; a migration makes more of
/// both.
pub(super) async fn slots(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    let own = looks.own_names();
    for side in Side::ALL {
        for slot in health::slots(looks.client(side)).await? {
            let Some(trouble) = slot.trouble().filter(|_| !own.contains(&slot.name)) else { continue };
            let remedy = format!(
                "SELECT pg_drop_replication_slot({}); -- if whoever it is for does not come back",
                quote_literal(&slot.name)
            );
            found.push(Finding::warn(side, format!("{side}: {trouble}"), remedy).about(slot.name));
        }
    }
    Ok(found)
}

/// A replica further behind than this is behind already, before a backfill makes it so.
const REPLICA_LAG_MS_MAX: u64 = 1_000;

/// A copy at full speed is more log than a replica that is behind can take; whoever reads there sees old rows, and on the
/// target a gate of the switch stays red.
pub(super) async fn replicas(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let (mut found, mut names) = (Vec::new(), Vec::new());
    for side in Side::ALL {
        for replica in health::replicas(looks.client(side)).await? {
            names.push(replica.name.clone());
            let may_be_late = looks.asked.replicas_ignored.contains(&replica.name);
            // What is hidden is said by another check.
            if replica.lag_ms > REPLICA_LAG_MS_MAX && replica.lag_ms < u64::MAX && !may_be_late {
                let what = format!("the {side}'s replica {} is {} ms behind", replica.name, replica.lag_ms);
                let remedy = "let it catch up first; SELECT * FROM pg_stat_replication; shows where it is held up. One that is \
                     meant to be late (recovery_min_apply_delay) holds the copy up for ever, unless the spec's \
                     throttle.replicas_ignored names it";
                found.push(Finding::warn(side, what, remedy).about(replica.name));
            }
        }
    }
    let there = if names.is_empty() { "none".to_owned() } else { shown(names.iter().cloned()) };
    for name in looks.asked.replicas_ignored.iter().filter(|name| !names.contains(name)) {
        let what = format!(
            "throttle.replicas_ignored names {name}, and no replica of either side is called so now (there: {there}): the copy would \
             wait for the one that is meant"
        );
        let remedy = "name it as application_name in pg_stat_replication does, or take it out of the spec";
        found.push(Finding { verdict: Verdict::Warn, ..Finding::note(what, remedy) }.about(name));
    }
    Ok(found)
}

/// The stream's slot is on one server. A standby that takes over has none, and the changes since are in no slot.
pub(super) async fn failover(looks: &Looks<'_>) -> Outcome<Vec<Finding>> {
    let mut found = Vec::new();
    for side in looks.sending() {
        let standbys = health::replicas(looks.client(side)).await?;
        if standbys.is_empty() {
            continue;
        }
        let names = shown(standbys.into_iter().map(|standby| standby.name));
        let what = format!(
            "the {side} has standbys ({names}), and the stream's slot is on the primary alone, unless a standby keeps it in step: \
             without that a failover loses the stream. Nothing is lost in silence, but the copied rows have to be compared, or \
             copied, again. And a standby that is promoted before it has received a hand-over takes writes that the other side \
             has, too: those that keep up are waited for, others are named"
        );
        let remedy = "plan no failover of that server for the time of the migration, or take one into account; from 17 on a \
             standby keeps the slot in step with sync_replication_slots and hot_standby_feedback on, a dbname in its \
             primary_conninfo, and its own slot in this server's synchronized_standby_slots: then the stream goes on there by itself";
        found.push(Finding::warn(side, what, remedy));
    }
    Ok(found)
}
