//! `segue cancel`: stops the driver, if there is one, and removes everything that Segue made on both sides.

use super::{complain, fault, order, print, print_json};
use crate::drive::complete::{self, Life};
use crate::drive::switch::rows;
use crate::drive::{holder, plan};
use crate::exit::Exit;
use crate::report::Owner;
use crate::sides::Sides;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::spec::Spec;
use segue_model::switch::Side;
use segue_model::switch::reads::ReadRules;
use segue_postgres::birth;
use segue_postgres::control::{Acquired, Control, Entry, HEARTBEAT, Lease, shut_out};
use segue_postgres::target_schema;
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// A driver that was told to stop gives the lease back within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cancels the migration.
pub(crate) async fn run(spec: &Spec, drop_target_tables: bool, json: bool) -> Exit {
    match cancel(spec, drop_target_tables).await {
        Ok(cancelled) => {
            if json {
                print_json(&object(&cancelled.removed, cancelled.owner));
            } else {
                print(&render(&cancelled, drop_target_tables));
            }
            Exit::Done
        }
        Err(f) => fault(&f, json),
    }
}

/// What cancelling came to.
#[derive(Default)]
struct Cancelled {
    removed: Vec<String>,
    /// Who owns the writes; `None`: nothing is there that knows.
    owner: Option<Owner>,
    /// What nothing tells any more from here on.
    last_words: String,
}

/// What was removed, and who owns the writes, as an object.
pub(crate) fn object(removed: &[String], owner: Option<Owner>) -> Value {
    serde_json::json!({ "removed": removed, "owner": owner })
}

fn render(cancelled: &Cancelled, drop_target_tables: bool) -> String {
    let Cancelled { removed, last_words, .. } = cancelled;
    if removed.is_empty() {
        return "nothing was left of it on either side\n".to_owned();
    }
    let kept =
        if drop_target_tables { "" } else { "the target's tables and their rows were left as they are\n" };
    format!("removed:\n  {}\n{kept}{last_words}", removed.join("\n  "))
}

/// Who owns the writes, by the journal that is about to go, and what is said of that.
fn owner(journal: &[Entry]) -> Outcome<(Owner, String)> {
    let Life::Completed(ended) = Life::of(journal)? else { return Ok((Owner::Source, String::new())) };
    let source = if ended.dropped.is_empty() {
        ", and only its tables have the newest rows. The source's tables can be written again; their rows are as they were then"
    } else {
        ""
    };
    let winner = complete::winner(journal).unwrap_or_default();
    Ok((Owner::Target, format!("{winner}{source}. Nothing of Segue's tells that any more\n")))
}

async fn cancel(spec: &Spec, drop_target_tables: bool) -> Outcome<Cancelled> {
    let sides = Sides::of(spec)?;
    let migration = spec.name.as_str();
    let source = sides.source.connect("cancel").await?;
    let target = sides.target.connect("cancel").await?;
    let ends = Ends { source: &source, target: &target, reached: &sides.target.address() };
    // Cancelling makes what it needs there, to remove it again.
    if Control::find(&sides.control, migration).await?.is_none() {
        if !birth::is_there(&source, migration).await? && !birth::is_there(&target, migration).await? {
            return Ok(Cancelled::default());
        }
        ends.are_a_pair(migration).await?;
    }
    let control = Control::connect(&sides.control, migration).await?;
    // Whatever can be refused is refused before anything is stopped.
    if drop_target_tables {
        let ours = ours(&control, &target).await?;
        birth::may_drop_target(&target, migration, &ours.filled).await?;
    }
    may_remove(&control, ends, drop_target_tables).await?;
    if control.driver().await?.is_some_and(|driver| driver.is_alive()) {
        match order::give(spec, "stop", &serde_json::json!({})).await {
            Ok(_) => {}
            // It has died just now, and is as good as stopped.
            Err(fault) if ["SEGUE-NO-DRIVER", "SEGUE-WITHDRAWN"].contains(&fault.code) => {
                // One that is alive has not taken the order: it is busy with what comes before.
                if control.driver().await?.is_some_and(|driver| driver.is_alive()) {
                    return Err(fault);
                }
            }
            Err(fault) => return Err(fault),
        }
    }
    let lease = take_lease(&control).await?;
    let mut removed = tokio::select! {
        removed = remove(&sides, &control, ends, &lease, drop_target_tables) => removed,
        fault = keep(&control, &lease) => Err(fault),
    };
    if let Err(fault) = &mut removed {
        let _ = control.release(&lease).await;
        if fault.recovery == Recovery::Operator {
            fault
                .next_step
                .push_str(". Nobody drives it now, and reads go to the owner: `segue run` goes on");
        }
    }
    let mut removed = removed?;
    let (owner, last_words) = owner(&control.journal(0).await?)?;
    // Last of all, and with nobody beating any more: the lease is part of it, and so are the names of the tables that
    // must go. Killed before, another cancel finds both.
    let mut all = vec![("source", source), ("target", target)];
    if !sides.control_is_target {
        all.push(("control database", sides.control.connect("cancel").await?));
    }
    for (side, client) in &all {
        removed.extend(birth::forget(client, migration).await?.map(|line| format!("{side}: {line}")));
    }
    Ok(Cancelled { removed, owner: Some(owner), last_words })
}

/// Sessions to both sides, and how the target is reached.
#[derive(Clone, Copy)]
struct Ends<'a> {
    source: &'a Client,
    target: &'a Client,
    reached: &'a str,
}

impl Ends<'_> {
    /// Refuses a target that the migration does not go to: what is on the source is another one's then.
    async fn are_a_pair(self, migration: &str) -> Outcome<()> {
        birth::only_each_other(self.source, (self.target, self.reached), migration).await
    }
}

/// Whether the migration can be given up as it is now.
async fn may_remove(control: &Control, ends: Ends<'_>, drop_target_tables: bool) -> Outcome<()> {
    let life = complete::life(control).await?;
    match life {
        Life::Open => {
            ends.are_a_pair(control.migration()).await?;
            source_has_the_newest(ends.source, ends.target, control.migration()).await
        }
        Life::Completing(_) => life.is_open(),
        // Its tables are the application's.
        Life::Completed(_) if drop_target_tables => Err(Fault::operator(
            "SEGUE-COMPLETED",
            "the migration is completed: the target's tables are the only ones, and are not dropped",
            "cancel without --drop-target-tables: that removes what completing has kept on the source",
        )),
        Life::Completed(_) => Ok(()),
    }
}

/// Refuses once writes were handed over: without its fence the source would take writes, beside the target and without the
/// newest rows.
async fn source_has_the_newest(source: &Client, target: &Client, migration: &str) -> Outcome<()> {
    let rows = rows::both(source, target, migration).await?;
    if rows.owner() == Some(Side::Source) {
        return Ok(());
    }
    Err(Fault::operator(
        "SEGUE-SWITCHED",
        "the writes were handed over to the target: the newest rows are there, and the source must not take writes",
        "`segue reverse` first, then cancel; or end the migration with `segue complete`",
    ))
}

/// Keeps the lease, so that no stand-by begins anew what is being removed; ends only when it is lost.
async fn keep(control: &Control, lease: &Lease) -> Fault {
    loop {
        if let Err(fault) = control.beat(lease).await {
            return fault;
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

async fn remove(
    sides: &Sides,
    control: &Control,
    ends: Ends<'_>,
    lease: &Lease,
    drop_target_tables: bool,
) -> Outcome<Vec<String>> {
    let (migration, Ends { source, target, .. }) = (control.migration(), ends);
    for endpoint in sides.written() {
        shut_out(endpoint, migration, lease.token, true).await?;
    }
    // Routers read nothing on the other side any more, from before it stops to follow.
    control.set_reads(lease, &ReadRules::default()).await?;
    // Nothing of an earlier process is under way any more: what the rows say now stays so.
    may_remove(control, ends, drop_target_tables).await?;
    let mut said = false;
    let mut report = |fault: &Fault| {
        if !said {
            complain(&format!("segue: {fault}; it goes on when that is over\n"));
            said = true;
        }
    };
    let mut removed = Vec::new();
    if drop_target_tables {
        // First: the fence tells which tables they are.
        let (Ours { filled, made }, authority) = (ours(control, target).await?, (migration, lease.token));
        let mut dropped = birth::drop_unfilled(target, authority, &made, &mut report).await?;
        dropped.extend(birth::drop_target_tables(target, authority, &filled, &mut report).await?);
        killpoint::pass("cancel.dropped");
        removed.extend(dropped.iter().map(|table| format!("target: table {table}")));
    }
    removed.extend(birth::drop_objects(source, target, migration, report).await?);
    if drop_target_tables {
        removed.extend(target_schema::drop_made(target, migration).await?);
    }
    Ok(removed)
}

/// The target's tables that are Segue's to drop: not what the spec says now, but what it has filled and what it has created.
struct Ours {
    /// They have its fence.
    filled: Vec<QualifiedName>,
    /// The others that it has made: it was killed before it fenced or filled them, or the spec names them no more.
    made: Vec<QualifiedName>,
}

async fn ours(control: &Control, target: &Client) -> Outcome<Ours> {
    let made = target_schema::made(target, control.migration()).await?;
    let mut made: Vec<QualifiedName> = made.into_iter().filter_map(|made| made.table).collect();
    let filled = match plan::filled_tables(&control.journal(0).await?) {
        Err(fault) if fault.code == "SEGUE-NOTHING-FILLED" && !made.is_empty() => Vec::new(),
        filled => filled?,
    };
    // A partition that was made goes with its table.
    let with_them = birth::with_all_below(target, &filled).await?;
    made.retain(|table| !filled.contains(table) && !with_them.contains(table));
    Ok(Ours { filled, made })
}

async fn take_lease(control: &Control) -> Outcome<Lease> {
    let began = Instant::now();
    loop {
        match control.acquire(&holder()).await? {
            Acquired::Lease(lease) => return Ok(lease),
            Acquired::Standby(other) if began.elapsed() > PATIENCE => {
                return Err(Fault::operator(
                    "SEGUE-LEASE",
                    format!("{} still drives the migration (a stand-by may have taken over)", other.holder),
                    "stop every `segue run` of this migration, then cancel again",
                ));
            }
            Acquired::Standby(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
