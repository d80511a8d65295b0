//! Keeping DDL that the stream cannot follow away from the tables, as the spec wants it and as far as each side lets us.
//!
//! A migration never waits for its guard. What the guard notes of the tables may be locked by DDL that somebody has not
//! committed; then the stream starts without it, `status` says so, and it is made once the lock is free. Changes that
//! are made meanwhile are noticed as without a guard.

use super::Driver;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::switch::Side;
use segue_model::table::Table;
use segue_postgres::control::Lease;
use segue_postgres::ddl_guard::{self, Guarded};
use std::time::Duration;

/// Between two tries for a lock that somebody holds.
const PAUSE: Duration = Duration::from_secs(2);

/// A guard that could not be made, or removed, because of a lock.
pub(super) struct Held {
    side: Side,
    tables: Vec<QualifiedName>,
}

/// Installs the guard of one side's `tables`, or takes it away where the spec wants none. Where it cannot be had, that
/// is a warning: changes are noticed all the same. Where a lock is in the way it is a warning, too, and [`insist`] goes on.
pub(super) async fn prepare(
    driver: &Driver,
    lease: &Lease,
    side: Side,
    tables: &[QualifiedName],
) -> Outcome<Option<Held>> {
    let Err(fault) = settle(driver, lease, side, tables).await else { return Ok(None) };
    if fault.code != "SEGUE-LOCKED" {
        return Err(fault);
    }
    driver.warnings.say(warning(driver, side));
    Ok(Some(Held { side, tables: tables.to_vec() }))
}

/// Goes on with what a lock has kept, until it is done; ends only with a fault.
pub(super) async fn insist(driver: &Driver, lease: &Lease, held: Option<Held>) -> Fault {
    let Some(Held { side, tables }) = held else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PAUSE).await;
        match settle(driver, lease, side, &tables).await {
            Ok(()) => std::future::pending().await,
            Err(fault) if fault.code == "SEGUE-LOCKED" => {}
            Err(fault) => return fault,
        }
    }
}

/// That a lock is in the way.
fn warning(driver: &Driver, side: Side) -> String {
    let what = if driver.spec.guard.ddl { "is not up to date" } else { "is not removed" };
    format!(
        "the guard of the {side} against changes of the tables (DDL) {what} yet, as somebody holds a lock, by DDL that is not \
         committed for instance; it is tried again, and nothing else waits for it"
    )
}

/// Makes the guard what the spec wants it to be, if no lock is in the way (`SEGUE-LOCKED`); an attempt before this one
/// may have warned of that.
async fn settle(driver: &Driver, lease: &Lease, side: Side, tables: &[QualifiedName]) -> Outcome<()> {
    let migration = driver.spec.name.as_str();
    let endpoint = match side {
        Side::Source => &driver.sides.source,
        Side::Target => &driver.sides.target,
    };
    let client = endpoint.marked(migration).connect("ddl guard").await?;
    if !driver.spec.guard.ddl {
        ddl_guard::remove(&client, migration).await?;
    } else if let Guarded::NotAllowed(why) =
        ddl_guard::install(&client, (migration, lease.token), tables).await?
    {
        driver.warnings.say(format!(
            "changes of the tables on the {side} (DDL) are not refused, but stop the migration when they happen: {why}"
        ));
    }
    driver.warnings.take_back(&warning(driver, side));
    Ok(())
}

/// The tables by their names on the side that their rows come from.
pub(super) fn sources(tables: &[Table]) -> Vec<QualifiedName> {
    tables.iter().map(|table| table.source.clone()).collect()
}
