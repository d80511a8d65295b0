//! Keeping DDL that the stream cannot follow away from the tables, as the spec wants it and as far as the source lets us.

use super::Driver;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::table::Table;
use segue_postgres::control::Lease;
use segue_postgres::ddl_guard::{self, Guarded};

/// Installs the guard of the source's `tables`, or takes it away where the spec wants none. Where it cannot be had, that
/// is a warning: changes are noticed all the same.
pub(super) async fn prepare(driver: &Driver, lease: &Lease, tables: &[QualifiedName]) -> Outcome<()> {
    let migration = driver.spec.name.as_str();
    let source = driver.sides.source.marked(migration).connect("ddl guard").await?;
    if !driver.spec.guard.ddl {
        ddl_guard::remove(&source, migration).await?;
        return Ok(());
    }
    match ddl_guard::install(&source, (migration, lease.token), tables).await? {
        Guarded::Installed => {}
        Guarded::NotAllowed(why) => driver.warnings.say(format!(
            "changes of the tables on the source (DDL) are not refused, but stop the migration when they happen: {why}"
        )),
    }
    Ok(())
}

/// The tables by their names on the source.
pub(super) fn sources(tables: &[Table]) -> Vec<QualifiedName> {
    tables.iter().map(|table| table.source.clone()).collect()
}
