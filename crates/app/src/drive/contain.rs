//! The emergency order: everything stops that writes to the side which does not own the writes.
//!
//! The side that owns them is never touched: a hand-over that can be undone is undone, one that cannot goes on, because
//! nobody else can take the writes any more. What is contained stays so over restarts, until `segue resume`.

use super::Driver;
use super::flow::Flows;
use super::switch::Switch;
use super::switch::answer::Contained;
use crate::report::Owner;
use segue_engine::ports::Outcome;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_postgres::control::{Command, Entry, Lease, NewEntry};
use segue_postgres::fence::autovacuum;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The kind of its record.
const CONTAINED: &str = "contained";
/// What is not done in this time is said, and goes on by itself: the order is answered within a second.
const PATIENCE: Duration = Duration::from_millis(300);

/// Stops everything, and says what.
pub(super) async fn contain(
    (driver, lease): (&Driver, &Lease),
    flows: &Flows,
    switch: &Switch<'_>,
    command: &Command,
) -> Outcome<Contained> {
    let began = Instant::now();
    let mut stopped = Vec::new();
    hold(driver, &format!("contained by {}", command.asked_by));
    let active = flows.active();
    let (from, to) = (active.direction.from_side(), active.direction.to_side());
    if flows.stage() == Stage::Backfilling {
        stopped.push(format!("the copy of rows to the {to}"));
    }
    stopped.push(format!("the stream of changes from the {from} to the {to}"));
    for side in Side::ALL {
        if let Some(flow) = flows.landing_on(side) {
            flow.verifying.hold(Some("contained".to_owned()));
        }
    }
    stopped.push("the comparison of rows, and repairs".to_owned());
    let mut watch = vec![format!("the {from} keeps its log meanwhile: see `segue status` for how much")];
    if switch.give_up("contained by an operator").await {
        stopped.push(
            "a hand-over of writes that was under way, unless it was past the point of no return".to_owned(),
        );
    }
    match timeout(PATIENCE, driver.contain_reads(lease, &command.asked_by, true)).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => stopped.push(format!("reads on the {to}: routers send every read to the {from}")),
        // They notice by themselves that it falls behind.
        Ok(Err(_)) | Err(_) => watch.push(format!(
            "routers could not be told to read nothing on the {to}: they stop by themselves when it is \
             `router.reads.stale_max_ms` behind"
        )),
    }
    match timeout(PATIENCE, put_back(driver)).await {
        Ok(Ok(0)) => {}
        Ok(Ok(tables)) => stopped.push(format!("autovacuum is on again as it was for {tables} table(s)")),
        Ok(Err(_)) | Err(_) => {
            watch.push("autovacuum's settings could not be put back yet; the next start does".to_owned());
        }
    }
    let took_ms = began.elapsed().as_secs_f64() * 1000.0;
    let body = json!({ "by": command.asked_by, "stopped": stopped, "took_ms": took_ms });
    driver.record(lease, CONTAINED, body).await?;
    let owner = flows.owner.borrow().map_or(Owner::Ambiguous, Owner::from);
    Ok(Contained { owner, stopped, took_ms, watch, resume: "segue resume".to_owned() })
}

/// A process that starts is as paused, and as contained, as the one before it was.
pub(super) fn restore(driver: &Driver, journal: &[Entry]) {
    let (mut paused, mut contained) = (None, false);
    for NewEntry { kind, body, .. } in journal.iter().map(|entry| &entry.entry) {
        let text = |path: &str| body.pointer(path).and_then(Value::as_str);
        let by = text("/by").unwrap_or("an operator");
        match (kind.as_str(), text("/command")) {
            (CONTAINED, _) => {
                (paused, contained) = (Some(format!("contained by {by}; `segue resume` goes on")), true);
            }
            ("command", Some("pause")) => {
                paused = Some(paused_by(by, text("/arguments/reason")));
            }
            ("command", Some("resume")) => (paused, contained) = (None, false),
            _ => {}
        }
    }
    driver.throttle.change(|limits| (limits.paused, limits.contained) = (paused, contained));
}

/// Why the streams stand still that somebody has paused.
pub(super) fn paused_by(by: &str, reason: Option<&str>) -> String {
    format!("by {by}: {}", reason.unwrap_or("no reason given"))
}

fn hold(driver: &Driver, why: &str) {
    let paused = format!("{why}; `segue resume` goes on");
    driver.throttle.change(|limits| (limits.paused, limits.contained) = (Some(paused), true));
}

async fn put_back(driver: &Driver) -> Outcome<usize> {
    let mut tables = 0;
    for side in [&driver.sides.source, &driver.sides.target] {
        let client = side.connect("contain").await?;
        tables += autovacuum::put_back(&client, driver.spec.name.as_str()).await?.len();
    }
    Ok(tables)
}
