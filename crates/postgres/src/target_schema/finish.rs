//! Making the rest of what the source's tables have, once their rows are there: indexes, constraints, triggers and all else.
//!
//! There is no list of steps: what is still lacking is found by comparing both sides, so that whoever starts again after a
//! crash goes on where things are. The stream applies meanwhile. Indexes are built beside its writes, several tables at a
//! time; whatever needs a lock that would keep it waiting is tried for a moment, again and again. Only tables that Segue has
//! made are touched.

use super::compare::{Finding, Kind, Manner, compare};
use super::create::warning;
use super::facts::Facts;
use super::made;
use crate::birth::{Authority, enter};
use crate::connect::Endpoint;
use crate::error::fault_of;
use futures_util::StreamExt;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_postgres::Client;

/// Comparisons until everything is there. What one pass makes the next one may ask comments for.
const PASSES_MAX: usize = 4;
/// The stream, and readers behind us, wait at most this long for a lock of ours, each time.
const LOCK_MS: u32 = 2_000;
/// Between two tries for it.
const LOCK_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at how far the indexes are.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// What sessions that build are called on the server.
const BUILDER: &str = "index";

/// What is told of the work while it is done; `None` when nothing is to be said any more.
pub type Say<'s> = &'s (dyn Fn(Option<String>) + Send + Sync);

/// Makes what is lacking of the tables that Segue has made, up to `builders` indexes at a time, and remembers that it is
/// done. Returns what could not be made as it is on the source, and how it can be. Both ends are marked as the migration's.
pub async fn finish(
    (source, target): (&Endpoint, &Endpoint),
    authority: Authority<'_>,
    pairs: &[(QualifiedName, QualifiedName)],
    builders: usize,
    say: Say<'_>,
) -> Outcome<Vec<String>> {
    let (on_source, on_target) = tokio::try_join!(source.connect("finish"), target.connect("finish"))?;
    let tables: Vec<QualifiedName> =
        made(&on_target, authority.0).await?.into_iter().filter_map(|made| made.table).collect();
    let pairs: Vec<_> = pairs.iter().filter(|(_, to)| tables.contains(to)).cloned().collect();
    let mut warnings = quieted(&on_source, &pairs).await?;
    // Once warned of, tried no more.
    let mut given_up: BTreeMap<String, String> = BTreeMap::new();
    let mut told = Told::default();
    for pass in 0.. {
        let lacking: Vec<Finding> = lacking(&on_source, &on_target, &pairs)
            .await?
            .into_iter()
            .filter(|finding| finding.kind.is_made() && !only_drops(finding))
            .filter(|finding| !given_up.contains_key(&finding.words()))
            .collect();
        let (again, lacking): (Vec<_>, Vec<_>) = lacking.into_iter().partition(|one| told.has(one));
        given_up.extend(again.iter().map(|finding| (finding.words(), otherwise(finding))));
        if lacking.is_empty() {
            break;
        }
        if pass == PASSES_MAX {
            return Err(unequal(&lacking));
        }
        for finding in &lacking {
            told.add(finding);
        }
        let (indexes, rest): (Vec<_>, Vec<_>) =
            lacking.into_iter().partition(|finding| finding.kind == Kind::Index);
        build((target, &on_target), authority, indexes, builders, say).await?;
        for finding in rest {
            say(Some(format!(
                "the rest of the target's schema is made: {} of {}",
                finding.object, finding.table
            )));
            if let Err(fault) = mend(&on_target, authority, &finding, say).await {
                let warning = tolerable(&finding, &fault).ok_or_else(|| unmade(&finding, fault))?;
                given_up.insert(finding.words(), warning);
            }
            killpoint::pass("schema.mended");
        }
    }
    say(None);
    let done = format!(
        "BEGIN; {}; UPDATE segue.target_schema SET finished_at = clock_timestamp() WHERE migration = {}; COMMIT",
        enter(authority),
        quote_literal(authority.0)
    );
    on_target.batch_execute(&done).await.map_err(|e| fault_of(&e))?;
    killpoint::pass("schema.finished");
    warnings.extend(given_up.into_values());
    Ok(warnings)
}

/// What was made in this run, in the source's own words. What is found lacking once more is as equal as those make it, and
/// would be made, or dropped and made, again and again: a server may write down in other words what it was told.
#[derive(Default)]
struct Told {
    words: BTreeSet<String>,
    objects: BTreeSet<(Kind, QualifiedName, String)>,
}

impl Told {
    fn add(&mut self, finding: &Finding) {
        self.words.insert(finding.words());
        self.objects.insert(Told::object(finding));
    }

    fn has(&self, finding: &Finding) -> bool {
        let makes_room = finding.remedy.len() > 1 && finding.remedy.first().is_some_and(|sql| drops(sql));
        self.words.contains(&finding.words()) || makes_room && self.objects.contains(&Told::object(finding))
    }

    fn object(finding: &Finding) -> (Kind, QualifiedName, String) {
        (finding.kind, finding.table.clone(), finding.object.clone())
    }
}

fn drops(sql: &str) -> bool {
    sql.starts_with("DROP ") || sql.starts_with("ALTER TABLE ") && sql.contains(" DROP ")
}

/// What is there on the target only is somebody else's, and stays: the gate names it. What has to make room for another is
/// dropped and made in one.
fn only_drops(finding: &Finding) -> bool {
    !finding.remedy.is_empty() && finding.remedy.iter().all(|sql| drops(sql))
}

/// Triggers that act on replicated rows, too, act on Segue's: they are made to act on the application's only.
async fn quieted(source: &Client, pairs: &[(QualifiedName, QualifiedName)]) -> Outcome<Vec<String>> {
    let sources: Vec<QualifiedName> = pairs.iter().map(|(from, _)| from.clone()).collect();
    let from = Facts::read(source, &sources).await?;
    let always = from.triggers.iter().filter(|trigger| trigger.always);
    let warned = always.filter_map(|trigger| {
        let table = from.relations.iter().find(|relation| relation.oid == trigger.table)?;
        let (name, state) = (quote_ident(&trigger.name), if trigger.enabled { "ALWAYS" } else { "REPLICA" });
        Some(format!(
            "{}: the trigger {} acts on replicated rows, too, on the source; on the target it was made so that it does not act on \
             Segue's. Once the migration is completed: ALTER TABLE {} ENABLE {state} TRIGGER {name};",
            table.name, trigger.name, table.shown
        ))
    });
    Ok(warned.collect())
}

async fn lacking(
    source: &Client,
    target: &Client,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Vec<Finding>> {
    let (from, to) = super::both(source, target, pairs).await?;
    Ok(compare(&from, &to, pairs, Manner { side: "target", beside_writers: true }))
}

/// Indexes, those of one table one after the other: two at a time would wait for each other.
async fn build(
    (target, watcher): (&Endpoint, &Client),
    authority: Authority<'_>,
    indexes: Vec<Finding>,
    builders: usize,
    say: Say<'_>,
) -> Outcome<()> {
    let (all, done) = (indexes.len(), AtomicUsize::new(0));
    let mut tables: BTreeMap<QualifiedName, Vec<Finding>> = BTreeMap::new();
    for index in indexes {
        tables.entry(index.table.clone()).or_default().push(index);
    }
    let built = async {
        let done = &done;
        let mut working = futures_util::stream::iter(tables.into_values())
            .map(|of_table| async move {
                let client = target.connect(BUILDER).await?;
                for index in of_table {
                    let mended = mend(&client, authority, &index, say).await;
                    mended.map_err(|fault| unmade(&index, fault))?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Outcome::Ok(())
            })
            .buffer_unordered(builders.max(1));
        while let Some(result) = working.next().await {
            result?;
        }
        Ok(())
    };
    let watching = async {
        loop {
            let now = progress(watcher).await.unwrap_or_default();
            let done = done.load(Ordering::Relaxed);
            say(Some(format!(
                "the rest of the target's schema is made: {done} of {all} indexes are built{now}"
            )));
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    };
    tokio::select! {
        built = built => built,
        never = watching => never,
    }
}

/// What the server says of the indexes that are being built.
async fn progress(watcher: &Client) -> Outcome<String> {
    let sql = "SELECT string_agg(format('%s (%s%s)', coalesce(c.relname::text, 'one'), p.phase,
                    CASE WHEN greatest(p.blocks_total, p.tuples_total) > 0 THEN format(', %s %%',
                        CASE WHEN p.blocks_total > 0 THEN p.blocks_done * 100 / p.blocks_total
                             ELSE p.tuples_done * 100 / p.tuples_total END)
                         WHEN p.current_locker_pid > 0 THEN format(' of pid %s', p.current_locker_pid) ELSE '' END),
                ', ' ORDER BY c.relname)
           FROM pg_stat_progress_create_index p JOIN pg_stat_activity a USING (pid)
                LEFT JOIN pg_class c ON c.oid = p.index_relid
          WHERE p.datname = current_database() AND starts_with(a.application_name, $1)";
    let name = format!("segue {BUILDER}");
    let row = watcher.query_one(sql, &[&name]).await.map_err(|e| fault_of(&e))?;
    Ok(row.get::<_, Option<String>>(0).map_or_else(String::new, |now| format!("; now {now}")))
}

/// Statements that take long do not wait for a moment only; they hold no lock that keeps writers.
fn is_long(sql: &str) -> bool {
    sql.contains(" VALIDATE CONSTRAINT ") || sql.contains(" INDEX CONCURRENTLY ")
}

/// Runs a remedy, each statement by itself.
async fn mend(client: &Client, authority: Authority<'_>, finding: &Finding, say: Say<'_>) -> Outcome<()> {
    for sql in &finding.remedy {
        if is_long(sql) {
            client.batch_execute(sql).await.map_err(|e| fault_of(&e))?;
            killpoint::pass("schema.index");
            continue;
        }
        let sql = format!("BEGIN; {}; SET LOCAL lock_timeout = {LOCK_MS}; {sql}; COMMIT", enter(authority));
        loop {
            let Err(error) = client.batch_execute(&sql).await else { break };
            let fault = fault_of(&error);
            client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
            if fault.code != "SEGUE-LOCKED" {
                return Err(fault);
            }
            say(Some(format!(
                "the rest of the target's schema is made: {} of {} waits for a lock that somebody has on the table",
                finding.object, finding.table
            )));
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }
    Ok(())
}

/// What is wanting is a role, or a right of Segue's: nothing that the rows depend on. So is a comment on what was left out.
fn tolerable(finding: &Finding, fault: &Fault) -> Option<String> {
    let of_roles = finding.kind.is_of_roles() || matches!(finding.kind, Kind::Policy | Kind::Comment);
    (of_roles && fault.recovery == Recovery::Operator && fault.code != "SEGUE-SUPERSEDED")
        .then(|| warning(&finding.words(), &finding.remedy, fault))
}

fn unmade(finding: &Finding, fault: Fault) -> Fault {
    let fault = fault.during(format_args!("making {} of {} on the target", finding.object, finding.table));
    if fault.recovery != Recovery::Operator || fault.code == "SEGUE-SUPERSEDED" {
        return fault;
    }
    let next = format!(
        "mend what it names, then `segue run` goes on; or make it yourself on the target: {};",
        finding.remedy.join("; ")
    );
    Fault { next_step: next, ..fault }
}

/// What was told, and is not found as it was told.
fn otherwise(finding: &Finding) -> String {
    format!(
        "{}, though it was made there as the source says it: its server writes that down in other words, or somebody changes it; \
         it is not made again. See whether both mean the same, as the gate `parity` cannot",
        finding.words()
    )
}

fn unequal(lacking: &[Finding]) -> Fault {
    let first: Vec<String> = lacking.iter().take(5).map(Finding::words).collect();
    let remedy: Vec<&str> =
        lacking.iter().take(5).flat_map(|f| f.remedy.iter().map(String::as_str)).collect();
    Fault::operator(
        "SEGUE-TARGET-SCHEMA",
        format!("the target's tables do not become what the source's are: {}", first.join("; ")),
        format!("see whether somebody else changes them; on the target: {};", remedy.join("; ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(what: &str, remedy: &[&str]) -> Finding {
        Finding {
            kind: Kind::Constraint,
            side: "target",
            table: QualifiedName::new("public", "t"),
            object: "check c".to_owned(),
            what: what.to_owned(),
            remedy: remedy.iter().map(|sql| (*sql).to_owned()).collect(),
        }
    }

    #[test]
    fn nothing_is_dropped_that_was_just_made() {
        let (add, drop) =
            ("ALTER TABLE t ADD CONSTRAINT c CHECK (v)", "ALTER TABLE public.t DROP CONSTRAINT c");
        let another = finding("is another one", &[drop, add]);
        let mut told = Told::default();
        assert!(!told.has(&another), "what was there before may be another one indeed");
        told.add(&finding("is missing", &[add]));
        assert!(told.has(&another));
        assert!(told.has(&finding("is missing", &[add])), "and nothing is made twice");
        // What more there is to do with what was made is done.
        let validate = ["ALTER TABLE public.t VALIDATE CONSTRAINT c"];
        assert!(!told.has(&finding("is not validated", &validate)));
        let other = Finding { object: "check d".to_owned(), ..another };
        assert!(!told.has(&other));
    }
}
