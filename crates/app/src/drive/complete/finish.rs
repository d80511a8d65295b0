//! What is done once a completion is in the journal: step by step, each of which can be repeated, until the end is there, too.
//!
//! No stream runs any more. Whoever starts a driver meanwhile or after a crash comes here, and does nothing else.

use super::{ARCHIVED, Begun, COMPLETED, Completion, Life, OVER, archive, fault_json};
use crate::drive::Driver;
use crate::drive::switch::answer::Ended;
use crate::drive::switch::rows::contradiction;
use crate::report::{Owner, RunState, SlotState, Status};
use segue_engine::fault::Fault;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::stage::Stage;
use segue_model::switch::ownership::Ownership;
use segue_postgres::birth;
use segue_postgres::control::{Command, Lease};
use segue_postgres::fence;
use serde_json::json;
use std::convert::Infallible;
use std::path::Path;
use tokio_postgres::Client;

/// Carries a completion to its end, and answers `asked`, if somebody waits for it. Returns what is said then.
pub(in crate::drive) async fn finish(
    (driver, lease): (&Driver, &Lease),
    begun: &Begun,
    asked: Option<Command>,
) -> Outcome<String> {
    driver.screen.say("completing the migration: the way back is given up");
    let ended = tokio::select! {
        ended = steps(driver, lease, begun) => ended?,
        refused = refuse_others(driver, lease) => match refused? {},
    };
    if let Some(command) = asked {
        // Whoever asked may have gone; the journal has it.
        let _ = driver.control.answer(lease, command.id, &json!(Completion::Completed(ended))).await;
    }
    Ok(OVER.to_owned())
}

async fn steps(driver: &Driver, lease: &Lease, begun: &Begun) -> Outcome<Ended> {
    let Driver { spec, sides, screen, .. } = driver;
    let migration = spec.name.as_str();
    let mut said = String::new();
    let mut report = |fault: &Fault| {
        if said != fault.what {
            screen.say(&format!("{fault}; it goes on when that is over"));
            said.clone_from(&fault.what);
        }
    };
    let (source, target) =
        tokio::try_join!(sides.source.connect("complete"), sides.target.connect("complete"))?;
    owns_nothing(&source, migration).await?;
    driver.end_reads(lease).await?;
    // Nothing is read from the slots any more, and an archive may take hours, in which the owner would keep its log for one.
    for (side, client) in [("target", &target), ("source", &source)] {
        birth::end_streams(client, migration, side).await?;
    }
    killpoint::pass("complete.streams");
    let files = match (begun.directory(), &begun.archived) {
        (_, Some(files)) => files.clone(),
        (None, None) => Vec::new(),
        // The guards against DDL stay for it: it reads the tables as they were planned.
        (Some(directory), None) => write_archive(driver, lease, begun, directory).await?,
    };
    birth::close_source(&source, migration, &mut report).await?;
    killpoint::pass("complete.source");
    birth::close_target(&target, migration, &mut report).await?;
    killpoint::pass("complete.target");
    if begun.order.drop_source {
        let authority = (migration, lease.token);
        birth::drop_source_tables(&source, authority, &begun.names()?, &mut report).await?;
        killpoint::pass("complete.dropped");
    }
    for (client, keeps_fence) in [(&source, !begun.order.drop_source), (&target, false)] {
        birth::forget_all_but_records(client, migration, keeps_fence).await?;
        // Where nothing is left to be remembered, the schema goes, too.
        if !keeps_fence && !birth::has_records(client, migration).await? {
            birth::forget(client, migration).await?;
        }
    }
    killpoint::pass("complete.forgotten");
    let ended = begun.ended(files);
    let mut body = json!(ended);
    body["target"] = sides.target.address().into();
    driver.record(lease, COMPLETED, body).await?;
    killpoint::pass("complete.recorded");
    publish(driver, lease).await?;
    Ok(ended)
}

/// Nothing is taken from a source that owns the writes, whatever the journal says.
async fn owns_nothing(source: &Client, migration: &str) -> Outcome<()> {
    let row = fence::row(source, migration).await?;
    match row.map(|row| row.ownership) {
        // Without a row its tables are gone, or forgotten already.
        None | Some(Ownership::Follower { .. } | Ownership::HandedOver { .. }) => Ok(()),
        Some(Ownership::Owner { .. } | Ownership::Fenced { .. }) => Err(contradiction(
            "the journal says that the migration is being completed, and the source that it owns the writes",
        )),
    }
}

async fn write_archive(
    driver: &Driver,
    lease: &Lease,
    begun: &Begun,
    directory: &Path,
) -> Outcome<Vec<String>> {
    driver.screen.say(&format!("archiving the source's tables to {}", directory.display()));
    let files = archive::write(driver, begun, directory).await?;
    killpoint::pass("complete.archived");
    driver.record(lease, ARCHIVED, json!({ "files": files })).await?;
    Ok(files)
}

/// The last report, which stays.
pub(in crate::drive) async fn publish(driver: &Driver, lease: &Lease) -> Outcome<()> {
    let Some((body, _)) = driver.control.read_status().await? else { return Ok(()) };
    // One that this build cannot read is left as it is: the journal says the same.
    let Ok(status) = serde_json::from_value::<Status>(body) else { return Ok(()) };
    let status = Status {
        stage: Stage::Completed,
        owner: Owner::Target,
        run: RunState::Stopped,
        slot: SlotState::default(),
        warnings: Vec::new(),
        way_back: Default::default(),
        gates: Vec::new(),
        trouble: Vec::new(),
        rollback: Vec::new(),
        throttle: Default::default(),
        ..status
    };
    driver.control.publish_status(lease, &json!(status)).await
}

/// Answers everybody who wants something else meanwhile: there is nothing else any more.
async fn refuse_others(driver: &Driver, lease: &Lease) -> Outcome<Infallible> {
    let listener = driver.control.listen_for_commands().await?;
    loop {
        let command = driver.control.next_command(lease, &listener).await?;
        let life = Life::of(&driver.control.journal(0).await?)?;
        let refused =
            life.is_open().err().unwrap_or_else(|| Fault::bug("SEGUE-COMPLETE", "the record is gone"));
        driver.control.answer(lease, command.id, &fault_json(&refused)).await?;
    }
}
