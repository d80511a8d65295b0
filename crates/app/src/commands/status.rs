//! `segue status`: what the driver last reported, and whether it is alive.

use super::reads::in_force;
use super::{control, fault, never_run, print, print_json};
use crate::drive::complete;
use crate::exit::Exit;
use crate::report::{MirrorSeat, Rates, ReadsSeat, RunState, Status, render};
use crate::terminal::{columns, erase, rows_of};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Spec;
use segue_model::stage::Stage;
use segue_model::switch::reads::ReadRules;
use segue_postgres::control::{Control, RouterReport};
use serde_json::Value;
use std::io::IsTerminal;
use std::time::Duration;

/// How often `--watch` looks.
const LOOK: Duration = Duration::from_secs(1);

/// A report that is older than this says so, whoever drives.
const AGE_TOLD: Duration = Duration::from_secs(5);

/// What is known of a migration now.
pub(crate) struct Seen {
    /// The last report.
    pub(crate) status: Status,
    /// How old it is.
    pub(crate) age_ms: i64,
    /// Somebody drives it.
    pub(crate) alive: bool,
    /// The routers that were heard of lately, as they see it.
    pub(crate) routers: Vec<Value>,
    /// Which reads are moved, and which are compared.
    pub(crate) reads: ReadRules,
}

/// Reads the last report. `None`: nothing was reported yet.
pub(crate) async fn look(control: &Control) -> Outcome<Option<Seen>> {
    let Some((body, age_ms)) = control.read_status().await? else { return Ok(None) };
    let mut status: Status = serde_json::from_value(body).map_err(|e| {
        Fault::operator(
            "SEGUE-STATUS",
            format!("the stored status cannot be read: {e}"),
            "use the same version of segue for the command and for `segue run`",
        )
    })?;
    let alive = control.driver().await?.is_some_and(|d| d.is_alive());
    if !alive && status.run == RunState::Running {
        status.run = RunState::Stopped;
    }
    // A control database that was made by an earlier version knows of none.
    let routers = control.routers().await.unwrap_or_default();
    let routers = routers.into_iter().map(router).collect();
    let reads = control.reads().await?;
    Ok(Some(Seen { status, age_ms, alive, routers, reads }))
}

/// What a router says of itself, with who says it.
fn router(report: RouterReport) -> Value {
    let mut object = report.body;
    object["id"] = report.id.into();
    object["revision"] = report.revision.into();
    object
}

/// A router in a line, and what it says of reads in others.
fn router_lines(router: &Value) -> Vec<String> {
    let text = |name: &str| router[name].as_str().unwrap_or("?").to_owned();
    let count = |name: &str| router[name].as_u64().unwrap_or_default();
    let mut line = format!(
        "  router {} ({}): writes to the {} (epoch {}), {} client(s)",
        text("listen"),
        text("id"),
        text("owner"),
        count("epoch"),
        count("clients")
    );
    if router["held"] == true || count("parked") > 0 {
        line.push_str(&format!(", {} transaction(s) held", count("parked")));
    }
    let mut lines = vec![line];
    // One of another version may say it in another way: then it is in the object alone.
    let reads: ReadsSeat = serde_json::from_value(router["reads"].clone()).unwrap_or_default();
    let mirror: MirrorSeat = serde_json::from_value(router["mirror"].clone()).unwrap_or_default();
    lines.extend(reads.line());
    lines.extend(mirror.lines());
    lines
}

/// A look as an object.
pub(crate) fn object(seen: &Seen) -> Value {
    let mut object = serde_json::json!(seen.status);
    object["alive"] = seen.alive.into();
    object["age_ms"] = seen.age_ms.into();
    object["routers"] = seen.routers.clone().into();
    object["reads"] = serde_json::json!(seen.reads);
    object
}

/// Shows the status once, or again and again.
pub(crate) async fn run(spec: &Spec, watch: bool, json: bool) -> Exit {
    match show(spec, watch, json).await {
        Ok(()) => Exit::Done,
        Err(f) => fault(&f, json),
    }
}

async fn show(spec: &Spec, watch: bool, json: bool) -> Outcome<()> {
    let control = control(spec).await?;
    let mut before: Option<Status> = None;
    let mut drawn = 0;
    loop {
        let seen = look(&control).await?.ok_or_else(|| never_run(spec))?;
        if json {
            print_json(&object(&seen));
        } else {
            let rates = before.as_ref().map(|b| Rates::between(&b.progress, &seen.status.progress));
            let mut lines = render(&seen.status, rates);
            if seen.reads != ReadRules::default() {
                lines.push(format!("  reads  {}", in_force(&seen.reads)));
            }
            lines.extend(seen.routers.iter().flat_map(router_lines));
            if seen.status.stage == Stage::Completed {
                lines
                    .extend(complete::winner(&control.journal(0).await?).map(|winner| format!("  {winner}")));
            }
            let age_s = seen.age_ms / 1000;
            if seen.alive && seen.age_ms > AGE_TOLD.as_millis() as i64 {
                lines.push(format!("  this was reported {age_s} s ago; nothing has been since"));
            }
            if !seen.alive && seen.status.stage != Stage::Completed {
                lines.push(format!("  no `segue run` is alive; this is what it reported {age_s} s ago. Start it again to go on"));
            }
            print(&format!("{}{}\n", erase(drawn), lines.join("\n")));
            drawn = if std::io::stdout().is_terminal() { rows_of(&lines, columns()) } else { 0 };
        }
        if !watch {
            return Ok(());
        }
        before = Some(seen.status);
        tokio::time::sleep(LOOK).await;
    }
}
