//! The target's tables, created from the source's own definitions where the spec wants that: before the stream is born, and
//! the rest of them once everything is copied.
//!
//! When, and who is told. What is made, and how, is [`segue_postgres::target_schema`]'s.

use super::{Driver, plan};
use segue_engine::migration::Finishing;
use segue_engine::ports::Outcome;
use segue_engine::progress::Progress;
use segue_model::name::QualifiedName;
use segue_model::spec::Create;
use segue_model::table::Table;
use segue_postgres::birth::{self, Direction};
use segue_postgres::connect::Endpoint;
use segue_postgres::control::Lease;
use segue_postgres::target_schema::{self, finish};
use serde_json::json;
use std::sync::Arc;

/// Creates the tables that the target lacks, if the spec says so and no stream was born yet: later, a table that is gone is
/// a defect.
pub(super) async fn create_missing(driver: &Driver, lease: &Lease) -> Outcome<()> {
    let Driver { spec, sides, screen, warnings, .. } = driver;
    match spec.schema.create {
        Create::None => return Ok(()),
        Create::Missing => {}
    }
    let migration = spec.name.as_str();
    let target = sides.target.connect("plan").await?;
    if birth::known(&target, migration, Direction::Forward).await?.is_some() {
        return Ok(());
    }
    let source = sides.source.connect("plan").await?;
    plan::servers(&source, &target).await?;
    let pairs = plan::pairs(spec, &source).await?;
    let (from, to) = (sides.source.marked(migration), sides.target.marked(migration));
    let created = target_schema::create(&from, &to, (migration, lease.token), &pairs).await?;
    if created.tables.is_empty() {
        return Ok(());
    }
    screen.say(&format!(
        "created on the target, as the source has them: {}; what rows do not need comes after the copy",
        listed(&created.tables)
    ));
    for warning in created.warnings {
        screen.say(&format!("warning: {warning}"));
        warnings.say(warning);
    }
    let names: Vec<String> = created.tables.iter().map(ToString::to_string).collect();
    driver.record(lease, "schema", json!({ "created": names })).await?;
    Ok(())
}

/// So many tables are named.
const NAMES_MAX: usize = 10;

fn listed(tables: &[QualifiedName]) -> String {
    let named: Vec<String> = tables.iter().take(NAMES_MAX).map(ToString::to_string).collect();
    match tables.len().saturating_sub(NAMES_MAX) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Makes the rest of the tables that were created, once everything is copied.
pub(super) fn finishing(
    driver: &Driver,
    token: i64,
    (source, target): (Endpoint, Endpoint),
    tables: &[Arc<Table>],
    progress: Arc<Progress>,
) -> Finishing {
    let pairs: Vec<_> = tables.iter().map(|table| (table.source.clone(), table.target.clone())).collect();
    let (migration, builders) = (driver.spec.name.as_str().to_owned(), driver.spec.copy.workers);
    let (warnings, screen) = (driver.warnings.clone(), driver.screen.clone());
    Box::pin(async move {
        let say = |what| progress.waiting("schema", what);
        let left = finish((&source, &target), (&migration, token), &pairs, builders, &say).await?;
        screen.say("the target's tables have all that the source's have");
        for warning in left {
            screen.say(&format!("warning: {warning}"));
            warnings.say(warning);
        }
        Ok(())
    })
}
