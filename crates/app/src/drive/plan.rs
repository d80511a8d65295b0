//! From the spec and both catalogs to what will be moved; and whether it is still what was begun.

use super::Driver;
use crate::sides::Sides;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::spec::{Create, Mapping, Spec};
use segue_model::table::Table;
use segue_postgres::birth::{self, Direction};
use segue_postgres::catalog::{self, Catalog};
use segue_postgres::control::Entry;
use segue_postgres::preflight;
use segue_postgres::target_schema;
use serde_json::{Value, json};

/// Reads both catalogs and refuses what cannot be moved, all reasons together.
pub(crate) async fn plan(spec: &Spec, sides: &Sides) -> Outcome<Catalog> {
    plan_without(spec, sides, |_| false).await
}

/// As [`plan`], leaving out refusals that something is done about.
async fn plan_without(spec: &Spec, sides: &Sides, is_seen_to: fn(&Fault) -> bool) -> Outcome<Catalog> {
    let (mut source, mut target) =
        tokio::try_join!(sides.source.connect("plan"), sides.target.connect("plan"))?;
    let pairs = pairs(spec, &source).await?;
    let refusals = server_refusals(&source, &target).await?;
    let mut catalog = catalog::read(&mut source, &mut target, &pairs).await?;
    sides.source.keep(source);
    sides.target.keep(target);
    catalog.refusals.retain(|fault| !is_seen_to(fault));
    in_order(catalog, refusals)
}

async fn server_refusals(
    source: &tokio_postgres::Client,
    target: &tokio_postgres::Client,
) -> Outcome<Vec<Fault>> {
    let mut refusals = catalog::server::source_refusals(source).await?;
    refusals.extend(catalog::server::target_refusals(source, target).await?);
    Ok(refusals)
}

/// Refuses servers between which nothing can be moved.
pub(super) async fn servers(source: &tokio_postgres::Client, target: &tokio_postgres::Client) -> Outcome<()> {
    in_order(Catalog::default(), server_refusals(source, target).await?).map(drop)
}

/// The plan of the way back: the same tables, with the sides exchanged.
pub(super) async fn plan_back(spec: &Spec, sides: &Sides) -> Outcome<Catalog> {
    let (mut source, mut target) =
        tokio::try_join!(sides.source.connect("plan"), sides.target.connect("plan"))?;
    let pairs = pairs(spec, &source).await?;
    let refusals = catalog::server::reverse_refusals(&source, &target).await?;
    let catalog = catalog::read_reverse(&mut source, &mut target, &pairs).await?;
    sides.source.keep(source);
    sides.target.keep(target);
    in_order(catalog, refusals).map_err(|f| f.during("the way back"))
}

/// Every table that moves, and where it goes.
pub(crate) async fn pairs(
    spec: &Spec,
    source: &tokio_postgres::Client,
) -> Outcome<Vec<(QualifiedName, QualifiedName)>> {
    let mappings = mappings(spec, source).await?;
    Ok(mappings.into_iter().map(|Mapping { source, target }| (source, target)).collect())
}

/// The catalog, if nothing stands in its way.
fn in_order(mut catalog: Catalog, mut refusals: Vec<Fault>) -> Outcome<Catalog> {
    refusals.append(&mut catalog.refusals);
    match refusals.len() {
        0 => Ok(catalog),
        1 => Err(refusals.remove(0)),
        count => Err(together(count, &refusals)),
    }
}

/// A fault if a table already has rows on the target, where nothing was copied yet.
pub(super) async fn nothing_filled(target: &tokio_postgres::Client, tables: &[Table]) -> Outcome<()> {
    let filled = catalog::nonempty_targets(target, tables).await?;
    match &filled[..] {
        [] => Ok(()),
        [one] => Err(one.clone()),
        several => Err(together(several.len(), several)),
    }
}

/// All that a first start is refused for, looked at before anything is made.
pub(super) async fn may_begin(spec: &Spec, sides: &Sides) -> Outcome<()> {
    let (source, target) = tokio::try_join!(sides.source.connect("plan"), sides.target.connect("plan"))?;
    birth::only_target(&source, (&target, &sides.target.address()), spec.name.as_str()).await?;
    let catalog = match spec.schema.create {
        Create::None => plan(spec, sides).await?,
        Create::Missing => {
            let catalog = plan_without(spec, sides, preflight::is_missing_on_target).await?;
            let pairs = pairs(spec, &source).await?;
            // What cannot be made is refused before anything is.
            target_schema::preview(&sides.source, &sides.target, &pairs).await?;
            catalog
        }
    };
    // The control database can be a new one, and the stream not.
    if birth::is_known(&target, spec.name.as_str(), Direction::Forward).await? {
        return Ok(());
    }
    // First: nobody is to be told to empty tables that have the newest rows.
    birth::source_owns(&source, spec.name.as_str()).await?;
    nothing_filled(&target, &catalog.tables).await?;
    sides.target.keep(target);
    birth::in_the_way(&source, spec.name.as_str()).await?;
    sides.source.keep(source);
    Ok(())
}

/// Many refusals as one fault.
pub(crate) fn together(count: usize, refusals: &[Fault]) -> Fault {
    let lines: Vec<String> = refusals
        .iter()
        .map(|f| format!("\n  - {} [{}]\n    next: {}", f.what, f.code, f.next_step))
        .collect();
    Fault::operator(
        "SEGUE-PLAN",
        // The last step is to be copied without the code behind it.
        format!("{count} things stand in the way:{}\n  {count} in all", lines.concat()),
        "mend them, then start again; nothing has been changed",
    )
}

/// What is remembered of a plan when its stream is born.
pub(crate) fn remembered(tables: &[Table]) -> Value {
    let table = |t: &Table| {
        let columns: Vec<&str> = t.columns.iter().map(|c| c.source.as_str()).collect();
        json!({ "id": t.id.0, "source": t.source.to_string(), "target": t.target.to_string(), "columns": columns })
    };
    json!({ "tables": tables.iter().map(table).collect::<Vec<_>>() })
}

impl Driver {
    /// Whether the plan is still the one whose stream was born: table numbers are stored with regions.
    pub(super) fn check_unchanged(&self, journal: &[Entry], tables: &[Table]) -> Outcome<()> {
        let Some(born) = journal.iter().rev().find(|e| e.entry.kind == "born") else { return Ok(()) };
        if born.entry.body.get("plan") == Some(&remembered(tables)) {
            return Ok(());
        }
        Err(Fault::operator(
            "SEGUE-PLAN-CHANGED",
            "the tables or columns are no longer those that the migration was begun with: the spec, or a table, has changed",
            "put the spec or the table back as it was; or `segue cancel` and begin anew",
        ))
    }
}

/// The target tables that this migration has filled: those its stream was born with.
pub(crate) fn filled_tables(journal: &[Entry]) -> Outcome<Vec<QualifiedName>> {
    let Some(born) = journal.iter().rev().find(|e| e.entry.kind == "born") else {
        return Err(Fault::operator(
            "SEGUE-NOTHING-FILLED",
            "this migration has never filled a table, so there is none to drop",
            "cancel without --drop-target-tables",
        ));
    };
    let tables = born.entry.body.pointer("/plan/tables").and_then(Value::as_array);
    let name = |table: &Value| table.get("target").and_then(Value::as_str).map(QualifiedName::parse);
    let unreadable =
        || Fault::bug("SEGUE-JOURNAL", "the journal's record of the stream's birth cannot be read");
    tables
        .ok_or_else(unreadable)?
        .iter()
        .map(|table| name(table).and_then(Result::ok).ok_or_else(unreadable))
        .collect()
}

async fn mappings(spec: &Spec, source: &tokio_postgres::Client) -> Outcome<Vec<Mapping>> {
    let all = catalog::all_tables(source).await?;
    spec.selection.resolve(&all).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Fault::operator("SEGUE-SELECTION", lines.join("\n  "), "correct `tables` in the spec")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_postgres::control::NewEntry;

    fn entry(kind: &str, body: Value) -> Entry {
        Entry { seq: 1, at_us: 0, entry: NewEntry { version: 1, actor: "a".into(), kind: kind.into(), body } }
    }

    #[test]
    fn only_tables_that_were_filled_are_dropped() {
        let tables = json!({ "plan": { "tables": [{ "target": "public.a" }, { "target": "crm.\"B\"" }] } });
        let names = filled_tables(&[entry("born", tables)]).unwrap();
        assert_eq!(names, [QualifiedName::new("public", "a"), QualifiedName::new("crm", "B")]);
    }

    #[test]
    fn a_migration_that_never_began_drops_nothing() {
        assert_eq!(filled_tables(&[entry("preparing", json!({}))]).unwrap_err().code, "SEGUE-NOTHING-FILLED");
    }
}
