//! Keeping DDL that the stream cannot follow away from the tables, as the spec wants it and as far as the source lets us.

use super::Driver;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::switch::Side;
use segue_model::table::Table;
use segue_postgres::control::Lease;
use segue_postgres::ddl_guard::{self, Guarded};

/// Installs the guard of one side's `tables`, or takes it away where the spec wants none. Where it cannot be had, that
/// is a warning: changes are noticed all the same.
pub(super) async fn prepare(
    driver: &Driver,
    lease: &Lease,
    side: Side,
    tables: &[QualifiedName],
) -> Outcome<()> {
    let migration = driver.spec.name.as_str();
    let endpoint = match side {
        Side::Source => &driver.sides.source,
        Side::Target => &driver.sides.target,
    };
    let client = endpoint.marked(migration).connect("ddl guard").await?;
    if !driver.spec.guard.ddl {
        ddl_guard::remove(&client, migration).await?;
        return Ok(());
    }
    match ddl_guard::install(&client, (migration, lease.token), tables).await? {
        Guarded::Installed => {}
        Guarded::NotAllowed(why) => driver.warnings.say(format!(
            "changes of the tables on the {side} (DDL) are not refused, but stop the migration when they happen: {why}"
        )),
    }
    Ok(())
}

/// The tables by their names on the side that their rows come from.
pub(super) fn sources(tables: &[Table]) -> Vec<QualifiedName> {
    tables.iter().map(|table| table.source.clone()).collect()
}
