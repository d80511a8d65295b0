//! Making the tables that the target lacks, as the source has them, up to the point at which rows can arrive.
//!
//! All of it is one transaction, which also remembers what it has made: killed before its commit there is nothing, after
//! it there are no missing tables any more. What slows rows down, or has no meaning before they are there (other indexes,
//! foreign keys, triggers, …), is made by [`super::finish`] after the copy.
//!
//! What the tables need is made along if the target lacks it: schemas, types, domains, functions, sequences. Extensions and
//! tables that are not moved are not: they are named, and nothing is made.

use super::archive::{self, Archive, Dumped, Entry, Tools};
use super::compare::{Finding, Kind, Manner, compare};
use super::facts::{Facts, IndexFacts, of};
use super::needs::{self, Attire, Need, Relation};
use super::{Made, remember};
use crate::birth::{Authority, enter};
use crate::connect::Endpoint;
use crate::error::fault_of;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use std::collections::{BTreeSet, HashMap, HashSet};
use tokio_postgres::{Client, Row};

/// One thing that is made, as it is shown when it fails.
#[derive(Clone, Debug)]
struct Step {
    what: String,
    sql: String,
}

/// Everything that will be made before the copy, in order.
#[derive(Default)]
pub(super) struct Making {
    /// The pairs whose tables are missing, both names alike.
    pub(super) pairs: Vec<(QualifiedName, QualifiedName)>,
    steps: Vec<Step>,
    made: Vec<Made>,
    /// Owners, privileges and comments of what is made along.
    attire: Vec<Attire>,
    /// The source's side of the comparison.
    from: Facts,
}

impl Making {
    /// The statements.
    pub(super) fn statements(&self) -> impl Iterator<Item = &str> {
        let attire = self.attire.iter().flat_map(|one| one.remedy.iter());
        self.steps.iter().map(|step| step.sql.as_str()).chain(attire.map(String::as_str))
    }

    /// Keys that the stream needs from its beginning, made in tables that are empty still, so at once.
    pub(super) fn keys(&self, to: &Facts) -> Vec<Finding> {
        let identities = identities(&self.from);
        let is_key = |finding: &Finding| {
            matches!(finding.kind, Kind::Index | Kind::PartitionedIndex | Kind::AttachedIndex)
                && identities.get(&finding.table).is_some_and(|objects| objects.contains(&finding.object))
        };
        self.compared(to).into_iter().filter(is_key).collect()
    }

    /// What is made after the copy, as far as it is known before.
    pub(super) fn rest(&self, keys: &[Finding]) -> Vec<Finding> {
        let manner = Manner { side: "target", beside_writers: true };
        let all = compare(&self.from, &Facts::default(), &self.pairs, manner);
        let keys: HashSet<String> = keys.iter().map(Finding::words).collect();
        let is_key = |finding: &Finding| keys.contains(&finding.words());
        let is_left =
            |finding: &Finding| finding.kind.is_made() && !is_key(finding) && !self.is_said(finding);
        all.into_iter().filter(is_left).collect()
    }

    /// Whether the statement of its table makes it: pg_dump writes the checks into it that hold for every row.
    fn is_said(&self, finding: &Finding) -> bool {
        let Some(name) = finding.object.strip_prefix("check ").filter(|_| finding.kind == Kind::Constraint)
        else {
            return false;
        };
        let (table, check) = (
            format!("CREATE TABLE {} ", finding.table.sql()),
            format!("CONSTRAINT {} CHECK ", quote_ident(name)),
        );
        self.steps.iter().any(|step| step.sql.starts_with(&table) && step.sql.contains(&check))
    }

    fn compared(&self, to: &Facts) -> Vec<Finding> {
        compare(&self.from, to, &self.pairs, Manner { side: "target", beside_writers: false })
    }
}

/// By table, how findings call the index that identifies its rows.
fn identities(facts: &Facts) -> HashMap<QualifiedName, Vec<String>> {
    let identity = |relation: &super::facts::Relation| {
        let own = || of(&facts.indexes, Some(relation.oid)).iter();
        let is_primary = |index: &IndexFacts| index.constraint.as_ref().is_some_and(|c| c.kind == 'p');
        let mut keys: Vec<&IndexFacts> = own().filter(|i| is_primary(i) || i.replica_identity).collect();
        if keys.is_empty() && relation.replica_identity == 'f' {
            let may_be = |i: &&IndexFacts| i.may_identify && !i.is_cut_short();
            keys.extend(own().filter(may_be).min_by_key(|i| (i.columns, i.name.clone())));
        }
        (relation.name.clone(), keys.into_iter().map(super::compare::object).collect())
    };
    facts.relations.iter().map(identity).collect()
}

/// What the target lacks of `pairs`, and how it will be made; changes nothing. Refuses what cannot be made.
pub(super) async fn plan(
    source: &Endpoint,
    target: &Endpoint,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Making> {
    let (mut on_source, on_target) = tokio::try_join!(source.connect("schema"), target.connect("schema"))?;
    let targets: Vec<QualifiedName> = pairs.iter().map(|(_, to)| to.clone()).collect();
    let there =
        Facts::read(&on_target, &targets).await.map_err(|f| f.during("reading the target's catalog"))?;
    let roots = there.roots();
    let missing: Vec<(QualifiedName, QualifiedName)> = pairs
        .iter()
        .enumerate()
        .filter(|(at, _)| !roots.contains_key(at))
        .map(|(_, pair)| pair.clone())
        .collect();
    if missing.is_empty() {
        return Ok(Making::default());
    }
    let sources: Vec<QualifiedName> = missing.iter().map(|(from, _)| from.clone()).collect();
    let from =
        Facts::read(&on_source, &sources).await.map_err(|f| f.during("reading the source's catalog"))?;
    let mut refusals = renamed(&missing);
    refusals.extend(crate::catalog::source_alone(&mut on_source, &sources).await?);
    refusals.extend(role_refusals(&on_target, &from).await?);
    refusals.extend(half_there(&on_target, &from).await?);
    let oids: Vec<u32> = from.relations.iter().map(|relation| relation.oid).collect();
    let needs = needs::missing(&on_target, needs::of(&on_source, &oids).await?).await?;
    refusals.extend(needs.iter().filter_map(unmakeable));
    if !refusals.is_empty() {
        return Err(together(refusals));
    }
    let tools = Tools::find(&on_source, major(&on_source).await?, major(&on_target).await?).await?;
    let (steps, made) = written_down(&tools, (source, &on_source), &from, &needs).await?;
    let attire = needs::attire(&on_source, &needs).await?;
    Ok(Making { pairs: missing, steps, made, attire, from })
}

/// Many refusals as one fault.
fn together(mut refusals: Vec<Fault>) -> Fault {
    if refusals.len() == 1 {
        return refusals.remove(0);
    }
    let lines: Vec<String> = refusals
        .iter()
        .map(|f| format!("\n  - {} [{}]\n    next: {}", f.what, f.code, f.next_step))
        .collect();
    Fault::operator(
        "SEGUE-TARGET-SCHEMA",
        format!(
            "{} things keep the tables from being created on the target:{}",
            refusals.len(),
            lines.concat()
        ),
        "mend them, then start again; nothing has been changed",
    )
}

fn refusal(what: String, next_step: String) -> Fault {
    Fault::operator("SEGUE-TARGET-SCHEMA", what, next_step)
}

fn renamed(missing: &[(QualifiedName, QualifiedName)]) -> Vec<Fault> {
    let other = missing.iter().filter(|(from, to)| from != to);
    let refused = other.map(|(from, to)| {
        refusal(
            format!("{to} does not exist on the target, and cannot be created there: on the source it is called {from}"),
            format!("create {to} yourself, with the columns and the primary key of {from}; then start again"),
        )
    });
    refused.collect()
}

/// Row-level security is made along, and must not hide rows from Segue.
async fn role_refusals(target: &Client, from: &Facts) -> Outcome<Option<Fault>> {
    let Some(secured) = from.relations.iter().find(|relation| relation.row_security.0) else {
        return Ok(None);
    };
    let sql =
        "SELECT rolsuper OR rolbypassrls, current_user::text FROM pg_roles WHERE rolname = current_user";
    let row = target.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?;
    if row.get(0) {
        return Ok(None);
    }
    let role = quote_ident(row.get(1));
    Ok(Some(refusal(
        format!(
            "{} has row-level security, which would apply to Segue's role on the target, too",
            secured.name
        ),
        format!("on the target, as a superuser: ALTER ROLE {role} BYPASSRLS;"),
    )))
}

/// Partitions whose names are taken while their table is missing.
async fn half_there(target: &Client, from: &Facts) -> Outcome<Vec<Fault>> {
    let parts: Vec<_> = from.relations.iter().filter(|relation| relation.level > 0).collect();
    let names: Vec<String> = parts.iter().map(|part| part.name.sql()).collect();
    let sql = "SELECT a.at FROM unnest($1::text[]) WITH ORDINALITY a(name, at)
                WHERE to_regclass(a.name) IS NOT NULL ORDER BY a.at";
    let taken = target.query(sql, &[&names]).await.map_err(|e| fault_of(&e))?;
    // Counted from 1 by the server.
    let at = |row: &Row| usize::try_from(row.get::<_, i64>(0) - 1).ok();
    let taken = taken.iter().filter_map(|row| parts.get(at(row)?));
    let refused = taken.map(|part| {
        refusal(
            format!(
                "{} is on the target already, but not the table that it is a partition of on the source",
                part.name
            ),
            format!("on the target, if it is not needed: DROP TABLE {};", part.name.sql()),
        )
    });
    Ok(refused.collect())
}

/// Why something that is needed is not made along.
fn unmakeable(need: &Need) -> Option<Fault> {
    let Need { kind, identity, .. } = need;
    if kind == "extension" {
        return Some(refusal(
            format!("the tables need the extension {identity}, which the target does not have"),
            format!(
                "on the target: CREATE EXTENSION {identity}; (its package has to be installed on that server)"
            ),
        ));
    }
    if need.relation == Some(Relation::Rows) {
        return Some(refusal(
            format!(
                "the tables need the {kind} {identity}, which is neither on the target nor among the tables that move"
            ),
            format!(
                "list {identity} under `tables`, too, or create it on the target (a foreign key to it, a column of its row type, \
                 or an inherited table needs it)"
            ),
        ));
    }
    None
}

async fn major(client: &Client) -> Outcome<i32> {
    let sql = "SELECT current_setting('server_version_num')::int / 10000";
    Ok(client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0))
}

/// The steps, as the source's own definitions say them, and what they make.
async fn written_down(
    tools: &Tools,
    (source, on_source): (&Endpoint, &Client),
    from: &Facts,
    needs: &[Need],
) -> Outcome<(Vec<Step>, Vec<Made>)> {
    let (sequences, others): (Vec<&Need>, Vec<&Need>) =
        needs.iter().partition(|need| need.relation.is_some());
    let mut names: Vec<QualifiedName> = from.relations.iter().map(|relation| relation.name.clone()).collect();
    let mut oids: Vec<u32> = from.relations.iter().map(|relation| relation.oid).collect();
    for sequence in &sequences {
        let name = QualifiedName::parse(&sequence.identity);
        names.push(name.map_err(|e| Fault::bug("SEGUE-CATALOG", format!("{}: {e}", sequence.identity)))?);
        oids.push(sequence.object.1);
    }
    let objects = needs::belonging(on_source, &oids).await?;
    let beside = needs::beside(on_source, &oids).await?;
    // pg_dump asks the server once for each name that it is given. But what belongs to an extension it takes however it is
    // called, and that may not be ours to lock.
    let all = match beside.len() < names.len() {
        true => {
            let all = tools.dump(source, &Dumped::AllBut(beside)).await;
            all.inspect_err(|fault| tracing::debug!("the tables are named to pg_dump: {fault}")).ok()
        }
        false => None,
    };
    let (archive, along_with) = match all {
        Some(all) => (all, None),
        None if others.is_empty() => (tools.dump(source, &Dumped::Only(names)).await?, None),
        None => {
            let dump = |what| async move { tools.dump(source, &what).await };
            (dump(Dumped::Only(names)).await?, Some(dump(Dumped::NoTables).await?))
        }
    };
    let entries = archive.contents().await?;
    let (mut steps, late) = match &along_with {
        _ if others.is_empty() => Default::default(),
        Some(apart) => along(apart, apart.contents().await?, &others).await?,
        None => along(&archive, entries.clone(), &others).await?,
    };
    steps.extend(steps_of(&archive, &archive::making(entries, &objects)).await?);
    steps.extend(late);
    Ok((steps, all_made(from, &sequences, &others)))
}

async fn steps_of(archive: &Archive, entries: &[Entry]) -> Outcome<Vec<Step>> {
    let statements = archive.statements(entries).await?;
    let step = |(entry, sql): (&Entry, String)| Step { what: entry.what.clone(), sql };
    Ok(entries.iter().zip(statements).map(step).collect())
}

/// The steps that make `others`: those before the tables, and those that are made of the tables' rows.
async fn along(
    archive: &Archive,
    mut entries: Vec<Entry>,
    others: &[&Need],
) -> Outcome<(Vec<Step>, Vec<Step>)> {
    entries.retain(|entry| others.iter().any(|need| need.object == entry.object));
    if let Some(need) = others.iter().find(|n| !entries.iter().any(|e| e.object == n.object)) {
        return Err(refusal(
            format!(
                "the tables need the {} {}, which pg_dump does not write down by itself",
                need.kind, need.identity
            ),
            "create it on the target, then start again".to_owned(),
        ));
    }
    let is_of_rows = |entry: &Entry| others.iter().any(|need| need.object == entry.object && need.of_rows);
    let (late, early): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_of_rows);
    Ok((steps_of(archive, &early).await?, steps_of(archive, &late).await?))
}

/// What the steps make, in the order in which it can be dropped, read backwards.
fn all_made(from: &Facts, sequences: &[&Need], others: &[&Need]) -> Vec<Made> {
    let made = |need: &Need| Made { kind: need.kind.clone(), identity: need.identity.clone(), table: None };
    let mut all: Vec<Made> = others.iter().filter(|n| !n.of_rows).map(|need| made(need)).collect();
    all.sort_by_key(|made| made.kind != "schema");
    all.extend(sequences.iter().map(|need| made(need)));
    all.extend(from.relations.iter().map(|relation| Made {
        kind: "table".to_owned(),
        identity: relation.name.sql(),
        table: Some(relation.name.clone()),
    }));
    all.extend(others.iter().filter(|n| n.of_rows).map(|need| made(need)));
    all
}

/// Makes what is missing of `pairs` on the target, if anything is, and returns what the operator should know. The caller
/// has raised the token on the target, and no stream of the migration is known there.
pub async fn create(
    source: &Endpoint,
    target: &Endpoint,
    authority: Authority<'_>,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Created> {
    let making = plan(source, target, pairs).await?;
    if making.pairs.is_empty() {
        return Ok(Created::default());
    }
    let client = target.connect("schema").await?;
    let made = make(&client, authority, &making).await;
    if made.is_err() {
        // The connection may be what was lost; then there is nothing to roll back.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    let warnings = made.map_err(|f| f.during("creating the tables on the target"))?;
    killpoint::pass("schema.created");
    let tables = making.pairs.iter().map(|(_, to)| to.clone()).collect();
    Ok(Created { tables, warnings })
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// The tables, without their partitions.
    pub tables: Vec<QualifiedName>,
    /// What could not be made as it is on the source, and how it can be.
    pub warnings: Vec<String>,
}

async fn make(client: &Client, authority: Authority<'_>, making: &Making) -> Outcome<Vec<String>> {
    let begin = format!(
        "BEGIN; {}; SET LOCAL search_path = ''; SET LOCAL check_function_bodies = false; \
         SET LOCAL client_min_messages = warning; SET LOCAL standard_conforming_strings = on; SET LOCAL lock_timeout = '20s'",
        enter(authority)
    );
    client.batch_execute(&begin).await.map_err(|e| fault_of(&e))?;
    for Step { what, sql } in &making.steps {
        client.batch_execute(sql).await.map_err(|e| unmade(fault_of(&e), what))?;
    }
    killpoint::pass("schema.tables");
    // The definitions have been said in a session of a newer pg_dump's taste; ours is read with our own.
    let names: Vec<QualifiedName> = making.pairs.iter().map(|(_, to)| to.clone()).collect();
    client.batch_execute("SET LOCAL search_path = pg_catalog").await.map_err(|e| fault_of(&e))?;
    let bare = Facts::read(client, &names).await?;
    for finding in making.keys(&bare) {
        for sql in &finding.remedy {
            client.batch_execute(sql).await.map_err(|e| unmade(fault_of(&e), &finding.object))?;
        }
    }
    let keyed = Facts::read(client, &names).await?;
    let mut warnings = BTreeSet::new();
    for Attire { what, remedy } in &making.attire {
        warnings.extend(tried(client, what, remedy).await?);
    }
    for finding in making.compared(&keyed).into_iter().filter(|finding| finding.kind.is_of_roles()) {
        warnings.extend(tried(client, &finding.words(), &finding.remedy).await?);
    }
    remember(client, authority.0, &making.made).await?;
    killpoint::pass("schema.remembered");
    client.batch_execute("COMMIT").await.map_err(|e| fault_of(&e))?;
    Ok(warnings.into_iter().collect())
}

/// Runs what depends on a role within the transaction, and says what the operator can do where there is no such role.
async fn tried(client: &Client, what: &str, remedy: &[String]) -> Outcome<Option<String>> {
    client.batch_execute("SAVEPOINT role").await.map_err(|e| fault_of(&e))?;
    for sql in remedy {
        let Err(error) = client.batch_execute(sql).await else { continue };
        let fault = fault_of(&error);
        if fault.recovery != Recovery::Operator {
            return Err(fault);
        }
        client.batch_execute("ROLLBACK TO role").await.map_err(|e| fault_of(&e))?;
        return Ok(Some(warning(what, remedy, &fault)));
    }
    client.batch_execute("RELEASE role").await.map_err(|e| fault_of(&e))?;
    Ok(None)
}

/// What could not be made, why, and the SQL that makes it.
pub(super) fn warning(what: &str, remedy: &[String], fault: &Fault) -> String {
    format!("{what}: {}; on the target, once that is mended: {};", fault.what, remedy.join("; "))
}

fn unmade(fault: Fault, what: &str) -> Fault {
    let fault = fault.during(what);
    match fault.recovery {
        Recovery::Operator => {
            let next = format!(
                "mend it, then start again; nothing has been changed on the target. {}",
                fault.next_step
            );
            Fault { next_step: next.trim().to_owned(), ..fault }
        }
        Recovery::Retry | Recovery::Ambiguous | Recovery::Bug => fault,
    }
}
