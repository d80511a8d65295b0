//! `segue plan`: everything that can be known before anything is touched. It asks both servers, and changes nothing.

use super::{fault, print, print_json};
use crate::cli::{GrantsFor, Plan as Asked};
use crate::drive::plan::pairs;
use crate::exit::Exit;
use crate::report::plan::{self, Estimate, Plan, PlannedTable, WayBack};
use crate::sides::Sides;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::spec::{Create, Spec};
use segue_model::switch::Side;
use segue_model::table::{Table, TableId};
use segue_postgres::birth::Direction;
use segue_postgres::catalog::{self, Catalog};
use segue_postgres::changes::{About, Change, On, Step, changes};
use segue_postgres::connect::Endpoint;
use segue_postgres::error::fault_of;
use segue_postgres::preflight::{self, Checked, Finding, Looks, Verdict};
use segue_postgres::sequences::Sequences;
use segue_postgres::{estimate, fence, grants, target_schema};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_postgres::Client;

/// Over which the growth of the source's log is measured.
const LOG_WINDOW: Duration = Duration::from_secs(1);
/// What the role is called where the spec's is a superuser.
const ROLE: &str = "segue";

/// Makes the plan, or tells the grants.
pub(crate) async fn run(spec: &Spec, asked: &Asked, json: bool) -> Exit {
    if asked.schema_only_plan {
        return match schema_only(spec, json).await {
            Ok(()) => Exit::Done,
            Err(f) => fault(&f, json),
        };
    }
    if let Some(whose) = asked.grants {
        return match tell_grants(spec, whose, asked.role.as_deref(), json).await {
            Ok(()) => Exit::Done,
            Err(f) => fault(&f, json),
        };
    }
    let plan = match make(spec).await {
        Ok(plan) => plan,
        Err(f) => return fault(&f, json),
    };
    if json {
        print_json(&object(&plan));
    } else {
        print(&plan::render(&plan, asked.all));
    }
    if plan.may_begin { Exit::Done } else { Exit::GateRefused }
}

/// A plan as an object.
pub(crate) fn object(plan: &Plan) -> Value {
    json!(plan)
}

async fn make(spec: &Spec) -> Outcome<Plan> {
    let sides = Sides::of(spec)?;
    let (mut source, mut target) =
        tokio::try_join!(sides.source.connect("plan"), sides.target.connect("plan"))?;
    let pairs = pairs(spec, &source).await?;
    let left_out = left_out(&pairs, &catalog::all_tables(&source).await?);
    let reached = sides.target.address();
    let looks = Looks::read(&mut source, &mut target, asked_of(spec, &reached, &pairs)).await?;
    let (mut catalog, mut back) = (looks.catalog().clone(), looks.back().clone());
    let there: BTreeSet<TableId> = catalog.tables.iter().map(|table| table.id).collect();
    // Side by side, as each takes seconds where there are thousands of tables.
    let (mut checks, (created, mut changes), made) = tokio::try_join!(
        preflight::check_all(&looks),
        created(spec, &sides, &pairs),
        made(spec, &sides, &pairs, &there)
    )?;
    checks.extend(created);
    // What cannot be paired is among the checks' findings.
    let sequences = looks.sequences().await;
    let mut sequences: Vec<QualifiedName> =
        sequences.iter().flat_map(|all| all.pairs()).map(|pair| pair.to.clone()).collect();
    drop(looks);
    let way_back = way_back(spec, &back);
    let clients = (&source, &target);
    sequences.extend(made.sequences.iter().cloned());
    let fenced = fenced(clients, &catalog, &made).await?;
    for catalog in [&mut catalog, &mut back] {
        add(catalog, &made.catalog);
    }
    changes.extend(all_changes(spec, &sides, clients, (&catalog, &back), (&fenced, &sequences)).await?);
    let estimate = measured(spec, &source, &catalog).await?;
    let planned = |table: &Table| PlannedTable {
        source: table.source.to_string(),
        target: table.target.to_string(),
        rows: table.estimate.rows,
        bytes: table.estimate.bytes,
        one_region: table.one_region.clone().unwrap_or_default(),
    };
    Ok(Plan {
        migration: spec.name.to_string(),
        source: sides.source.to_string(),
        target: sides.target.to_string(),
        control: sides.control.to_string(),
        may_begin: preflight::verdict(&checks) < Verdict::Refuse,
        checks,
        tables: catalog.tables.iter().map(planned).collect(),
        left_out,
        estimate,
        steps: plan::life(&spec.switch.gates),
        changes,
        way_back,
    })
}

/// The tables among `all` that do not move, in the schemas of those that do.
fn left_out(pairs: &[(QualifiedName, QualifiedName)], all: &[QualifiedName]) -> Vec<String> {
    let moved: BTreeSet<&QualifiedName> = pairs.iter().map(|(from, _)| from).collect();
    let schemas: BTreeSet<&str> = moved.iter().map(|name| name.schema.as_str()).collect();
    all.iter()
        .filter(|name| schemas.contains(name.schema.as_str()) && !moved.contains(name))
        .map(ToString::to_string)
        .collect()
}

/// Tables that the target lacks, as they will be there: as they are on the source, under the same names.
#[derive(Default)]
struct Made {
    catalog: Catalog,
    /// Those that go along with the writes.
    sequences: Vec<QualifiedName>,
    /// What carries the fence.
    carriers: Vec<QualifiedName>,
}

/// What will be made beside the tables that are `there`.
async fn made(
    spec: &Spec,
    sides: &Sides,
    pairs: &[(QualifiedName, QualifiedName)],
    there: &BTreeSet<TableId>,
) -> Outcome<Made> {
    if !creates_missing(spec) {
        return Ok(Made::default());
    }
    let mut source = sides.source.connect("plan").await?;
    let mut catalog = catalog::as_made(&mut source, pairs).await?;
    catalog.tables.retain(|table| !there.contains(&table.id) && table.source == table.target);
    let left: BTreeSet<TableId> = catalog.tables.iter().map(|table| table.id).collect();
    catalog.relations.retain(|relation| left.contains(&relation.table));
    let names: Vec<QualifiedName> = catalog.tables.iter().map(|table| table.source.clone()).collect();
    // The source's sequences are what those of the target will be like.
    let sequences = Sequences::pair(&source, &source, &catalog.tables, Direction::Forward);
    let (sequences, carriers) = tokio::try_join!(sequences, fence::tree(&source, &names))?;
    let sequences = sequences.pairs().iter().map(|pair| pair.to.clone()).collect();
    Ok(Made { catalog, sequences, carriers: carriers.into_iter().map(|(_, name)| name).collect() })
}

/// What carries the fence on the source and on the target, of the tables that are there and of those that will be.
async fn fenced(
    (source, target): (&Client, &Client),
    there: &Catalog,
    made: &Made,
) -> Outcome<[Vec<QualifiedName>; 2]> {
    let names = there.tables.iter().map(|table| (table.source.clone(), table.target.clone()));
    let (from, to): (Vec<_>, Vec<_>) = names.unzip();
    let (from, to) = tokio::try_join!(fence::tree(source, &from), fence::tree(target, &to))?;
    let with_made = |tree: Vec<(u32, QualifiedName)>| {
        tree.into_iter().map(|(_, name)| name).chain(made.carriers.iter().cloned()).collect()
    };
    Ok([with_made(from), with_made(to)])
}

/// Adds the tables that are not there yet.
fn add(catalog: &mut Catalog, made: &Catalog) {
    catalog.tables.extend(made.tables.iter().cloned());
    catalog.relations.extend(made.relations.iter().cloned());
    catalog.tables.sort_by_key(|table| table.id);
}

fn asked_of<'a>(
    spec: &'a Spec,
    target: &'a str,
    pairs: &'a [(QualifiedName, QualifiedName)],
) -> preflight::Asked<'a> {
    preflight::Asked {
        migration: spec.name.as_str(),
        target,
        pairs,
        profile: spec.profile,
        copy_workers: spec.copy.workers,
        retained_wal_bytes_max: spec.limits.retained_wal_bytes_max,
        max_write_hold: spec.switch.max_write_hold,
        replicas_ignored: &spec.throttle.replicas_ignored,
        guard_ddl: spec.guard.ddl,
        way_back: true,
        creates_missing: creates_missing(spec),
    }
}

/// Whether tables that the target lacks are made there.
fn creates_missing(spec: &Spec) -> bool {
    match spec.schema.create {
        Create::Missing => true,
        Create::None => false,
    }
}

/// The statements that make the tables which the target lacks, where the spec wants that; what keeps them from being made is
/// refused by a check.
async fn created(
    spec: &Spec,
    sides: &Sides,
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<(Option<Checked>, Vec<Change>)> {
    if !creates_missing(spec) {
        return Ok((None, Vec::new()));
    }
    let preview = target_schema::preview(&sides.source, &sides.target, pairs).await;
    let mut checked = Checked {
        check: "target-schema",
        asks: "can the tables that the target lacks be made as the source has them?",
        findings: Vec::new(),
    };
    let statements = match preview {
        Ok(statements) => statements,
        Err(fault) if fault.recovery == Recovery::Operator => {
            let what = format!("{} [{}]", fault.what, fault.code);
            let remedy = fault.next_step;
            checked.findings.push(Finding {
                verdict: Verdict::Refuse,
                side: None,
                object: None,
                what,
                remedy,
            });
            Vec::new()
        }
        Err(fault) => return Err(fault),
    };
    let what = "the tables it lacks, as the source has them: keys now, the rest after the copy";
    let change = |sql| Change { step: Step::Prepare, on: On::Target, what, sql };
    Ok((Some(checked), statements.into_iter().map(change).collect()))
}

/// Tells the statements by which missing tables would be created.
async fn schema_only(spec: &Spec, json: bool) -> Outcome<()> {
    let sides = Sides::of(spec)?;
    let pairs = pairs(spec, &sides.source.connect("plan").await?).await?;
    let statements = target_schema::preview(&sides.source, &sides.target, &pairs).await?;
    if json {
        print_json(&schema_object(&statements));
        return Ok(());
    }
    if !creates_missing(spec) {
        print("-- the spec does not say `schema: { create: missing }`: this is not run by itself\n");
    }
    if statements.is_empty() {
        print("-- no table is missing on the target\n");
    }
    print(&statements.iter().map(|sql| format!("{sql}\n")).collect::<String>());
    Ok(())
}

/// What is printed of a schema, as an object.
pub(crate) fn schema_object(statements: &[String]) -> Value {
    json!({ "schema": statements })
}

/// Whether changes could travel back, and if not, why: said before anything starts.
fn way_back(spec: &Spec, back: &Catalog) -> WayBack {
    let is_seen_to = |fault: &Fault| creates_missing(spec) && preflight::is_missing_on_target(fault);
    let reasons: Vec<&Fault> = back.refusals.iter().filter(|fault| !is_seen_to(fault)).collect();
    if reasons.is_empty() {
        let sentence = "Until `segue complete`, `segue reverse` takes the writes back to the source, with every row that was written \
            on the target: a change stream of its own runs back, is made before the first switch, and is kept.";
        return WayBack { is_possible: true, sentence: sentence.to_owned() };
    }
    let reasons: Vec<String> =
        reasons.iter().map(|fault| format!("{} ({})", fault.what, fault.next_step)).collect();
    let sentence = format!(
        "Forward-only after the write switch, which is therefore refused until this is mended: {}",
        reasons.join("; ")
    );
    WayBack { is_possible: false, sentence }
}

async fn all_changes(
    spec: &Spec,
    sides: &Sides,
    (source, target): (&Client, &Client),
    (catalog, back): (&Catalog, &Catalog),
    ([on_source, on_target], sequences): (&[Vec<QualifiedName>; 2], &[QualifiedName]),
) -> Outcome<Vec<Change>> {
    let mut guarded = Vec::new();
    for (side, client) in [(Side::Source, source), (Side::Target, target)] {
        if spec.guard.ddl && is_superuser(client).await? {
            guarded.push(side);
        }
    }
    let (from, to) = tokio::try_join!(major(source), major(target))?;
    let is_apart =
        ![&sides.source, &sides.target].iter().any(|side| side.to_string() == sides.control.to_string());
    changes(&About {
        migration: spec.name.as_str(),
        tables: &catalog.tables,
        source: &catalog.relations,
        target: &back.relations,
        fenced: [on_source, on_target],
        sequences,
        majors: [from, to],
        has_control: is_apart,
        guarded: &guarded,
        copy_workers: spec.copy.workers,
    })
}

/// The server's major version.
async fn major(client: &Client) -> Outcome<i32> {
    let sql = "SELECT current_setting('server_version_num')::int / 10000";
    Ok(client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0))
}

/// Whether the role of this session may make event triggers.
async fn is_superuser(client: &Client) -> Outcome<bool> {
    let sql = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
    Ok(client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0))
}

async fn measured(spec: &Spec, source: &Client, catalog: &Catalog) -> Outcome<Estimate> {
    let tables = &catalog.tables[..];
    let names: Vec<QualifiedName> = tables.iter().map(|table| table.source.clone()).collect();
    let table = tables.iter().max_by_key(|table| table.estimate.bytes);
    // Of a partitioned table any part will do.
    let largest =
        table.and_then(|table| catalog.relations.iter().find(|relation| relation.table == table.id));
    let read_bytes_per_s = match largest {
        // A role that may not read is among the checks' findings.
        Some(relation) => match estimate::read_bytes_per_s(source, &relation.name).await {
            Err(fault) if fault.code == "SEGUE-PRIVILEGE" => None,
            rate => rate?,
        },
        None => None,
    };
    let measured = Estimate {
        rows: tables.iter().map(|table| table.estimate.rows).sum(),
        bytes: tables.iter().map(|table| table.estimate.bytes).sum(),
        index_bytes: estimate::index_bytes(source, &names).await?,
        copy_workers: spec.copy.workers,
        read_bytes_per_s: read_bytes_per_s.unwrap_or(0),
        log_bytes_per_s: estimate::log_bytes_per_s(source, LOG_WINDOW).await?,
        retained_log_bytes_max: spec.limits.retained_wal_bytes_max,
        ..Estimate::default()
    };
    Ok(measured.conclude())
}

/// One side's grants, as they are printed.
struct Told {
    on: On,
    place: String,
    role: String,
    grants: grants::Grants,
}

async fn tell_grants(spec: &Spec, whose: GrantsFor, role: Option<&str>, json: bool) -> Outcome<()> {
    let sides = Sides::of(spec)?;
    let source = sides.source.connect("plan").await?;
    let pairs = pairs(spec, &source).await?;
    let (sources, targets): (Vec<QualifiedName>, Vec<QualifiedName>) = pairs.into_iter().unzip();
    let mut all = Vec::new();
    if whose.includes(On::Source) {
        all.push(told(&sides.source, On::Source, role, (&sources, None)).await?);
    }
    if whose.includes(On::Target) {
        let made_as_on = creates_missing(spec).then_some(&source);
        all.push(told(&sides.target, On::Target, role, (&targets, made_as_on)).await?);
    }
    if whose.includes(On::Control) && !sides.control_is_target {
        all.push(told(&sides.control, On::Control, role, (&[], None)).await?);
    }
    if json {
        print_json(&grants_object(&all));
    } else {
        print(&grants_text(&all));
    }
    Ok(())
}

async fn told(
    endpoint: &Endpoint,
    on: On,
    role: Option<&str>,
    tables: (&[QualifiedName], Option<&Client>),
) -> Outcome<Told> {
    let client = endpoint.connect("plan").await?;
    let row = client.query_one("SELECT current_user::text", &[]).await.map_err(|e| fault_of(&e))?;
    let current: String = row.get(0);
    let role = match role {
        Some(role) => role.to_owned(),
        None if is_superuser(&client).await? => ROLE.to_owned(),
        None => current,
    };
    let grants = grants::missing(&client, on, &role, tables).await?;
    Ok(Told { on, place: endpoint.to_string(), role, grants })
}

fn grants_object(all: &[Told]) -> Value {
    let side = |told: &Told| {
        json!({
            "side": told.on,
            "role": told.role,
            "statements": told.grants.statements,
            "remarks": told.grants.remarks,
        })
    };
    json!({ "grants": all.iter().map(side).collect::<Vec<_>>() })
}

fn grants_text(all: &[Told]) -> String {
    let mut text = String::new();
    for told in all {
        let place = told.place.split_once('@').map_or(told.place.as_str(), |(_, place)| place);
        text.push_str(&format!(
            "-- on the {} ({place}), as a superuser, for the role {}\n",
            told.on.name(),
            told.role
        ));
        for remark in &told.grants.remarks {
            text.push_str(&format!("-- {remark}\n"));
        }
        if told.grants.statements.is_empty() {
            text.push_str("-- nothing is missing\n");
        }
        for statement in &told.grants.statements {
            text.push_str(&format!("{statement};\n"));
        }
    }
    text
}

/// An example for the documentation.
pub(crate) fn grants_example() -> Value {
    let grants = grants::Grants {
        statements: vec!["CREATE ROLE segue LOGIN REPLICATION".to_owned()],
        remarks: vec!["set a password, in psql: \\password segue".to_owned()],
    };
    let told = Told { on: On::Source, place: String::new(), role: ROLE.to_owned(), grants };
    grants_object(&[told])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_of_the_schemas_that_something_moves_from() {
        let name = |schema: &str, table: &str| QualifiedName::new(schema, table);
        let pairs = [(name("shop", "a"), name("crm", "a"))];
        let all = [name("crm", "x"), name("shop", "a"), name("shop", "b")];
        assert_eq!(left_out(&pairs, &all), ["shop.b"]);
    }

    #[test]
    fn grants_are_a_script_for_psql() {
        let grants =
            grants::Grants { statements: vec!["GRANT a TO b".into()], remarks: vec!["see to it".into()] };
        let on = On::Target;
        let some = Told { on, place: "postgres@db2:5432/shop".into(), role: "b".into(), grants };
        let none = Told { grants: grants::Grants::default(), ..some_like(&some) };
        assert_eq!(
            grants_text(&[some, none]),
            "-- on the target (db2:5432/shop), as a superuser, for the role b\n-- see to it\nGRANT a TO b;\n\
             -- on the target (db2:5432/shop), as a superuser, for the role b\n-- nothing is missing\n"
        );
    }

    fn some_like(told: &Told) -> Told {
        Told { on: told.on, place: told.place.clone(), role: told.role.clone(), grants: told.grants.clone() }
    }
}
