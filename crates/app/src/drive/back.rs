//! The way back: makes the opposite stream once it is wanted, and keeps it running.
//!
//! It is made by the first order to hand writes over, a rehearsal too, and stays from then on. Not earlier: from its
//! birth on, the target decodes everything that is applied there, and keeps its log.
//!
//! As long as the source owns the writes nothing can be lost with it, so its end is an alarm and not the migration's:
//! what is left of it is removed, and it can be made anew. Once the target owns them it is the only one there will ever be:
//! what is left of it stays, and is tried again, while the migration goes on without it and can be completed.

use super::flow::{self, Flow, Flows, PgRun};
use super::switch::rows;
use super::{Driver, guard, plan};
use segue_engine::admission::Admissions;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_postgres::asking::Remembering;
use segue_postgres::birth::{self, Direction, WaitReport};
use segue_postgres::catalog::{Catalog, server};
use segue_postgres::control::Lease;
use segue_postgres::fence;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The code of a table that was changed in a way that a stream cannot follow.
const DRIFT: &str = "SEGUE-DDL-DRIFT";
/// Between two tries to have a lock that somebody holds.
const LOCK_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether commits on the target wait for Segue.
const GUARD: Duration = Duration::from_secs(1);

/// How far the way back is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BackState {
    /// Nobody has wanted it yet.
    NotArmed,
    /// It is being made.
    Arming {
        /// What that waits for; empty: nothing.
        waits_for: String,
    },
    /// It runs.
    Armed,
    /// It has ended, or could not be made.
    Lost(Fault),
}

/// Between two tries to go on with one that stands still, if nobody asks for it before.
const STANDS_STILL: Duration = Duration::from_secs(15);

/// Longer than it takes to notice what a stream cannot go on with: partitions that came are looked for every other second.
const PROVEN: Duration = Duration::from_secs(5);

/// Why one run of it is over.
enum Ended {
    Fault(Fault),
    /// A table has parts on the target that it does not know.
    Outdated(QualifiedName),
}

/// The way back of one attempt.
pub(super) struct WayBack<'d> {
    driver: &'d Driver,
    lease: &'d Lease,
    wanted: watch::Sender<bool>,
    /// A table of which it does not have all parts, once it is to be made anew for that.
    outdated: watch::Sender<Option<QualifiedName>>,
    state: watch::Sender<BackState>,
    /// Why it stands still, as was said last.
    stands_still: Mutex<Option<Fault>>,
}

impl<'d> WayBack<'d> {
    /// Nothing is made or run yet.
    pub(super) fn new(driver: &'d Driver, lease: &'d Lease) -> WayBack<'d> {
        let (wanted, state) = (watch::Sender::new(false), watch::Sender::new(BackState::NotArmed));
        let outdated = watch::Sender::new(None);
        WayBack { driver, lease, wanted, outdated, state, stands_still: Mutex::default() }
    }

    /// Has it made, if it is not there. What comes of it is told to the receiver.
    pub(super) fn want(&self) -> watch::Receiver<BackState> {
        let mut state = self.state.subscribe();
        if matches!(&*state.borrow_and_update(), BackState::NotArmed | BackState::Lost(_)) {
            self.state.send_replace(BackState::Arming { waits_for: String::new() });
        }
        self.wanted.send_replace(true);
        state
    }

    /// Has it made anew, since partitions of `table` came or went on the target. Only for whoever has the turn of the switch,
    /// and found the source to own the writes: as long as it is there no hand-over is under way that would need it.
    pub(super) fn renew(&self, table: QualifiedName) {
        self.note(&format!("anew, since partitions of {table} came or went on the target"));
        self.outdated.send_replace(Some(table));
    }

    /// How far it is, as it changes.
    pub(super) fn watch(&self) -> watch::Receiver<BackState> {
        self.state.subscribe()
    }

    /// How far it is.
    pub(super) fn state(&self) -> BackState {
        self.state.borrow().clone()
    }

    /// Keeps it running for as long as the attempt lasts. Ends with the fault that ends the attempt, too.
    pub(super) async fn run(&self, flows: &Flows) -> Fault {
        loop {
            let ended = self.once(flows).await;
            flows.reverse.send_replace(None);
            let fault = match ended {
                Ok(Ended::Outdated(table)) => match self.begin_anew(&table).await {
                    Ok(()) => continue,
                    Err(fault) => return fault,
                },
                Ok(Ended::Fault(fault)) | Err(fault) => fault,
            };
            let passes = matches!(fault.recovery, Recovery::Retry | Recovery::Ambiguous);
            if passes || fault.code == server::SYNC_STANDBY {
                return fault;
            }
            let done = if flows.has_the_newest(Side::Source) {
                self.lose(while_the_source_owns(fault)).await
            } else if *flows.owner.borrow() == Some(Side::Target) {
                self.stand_still(while_the_target_owns(fault)).await
            } else {
                return fault;
            };
            if let Err(fault) = done {
                return fault;
            }
        }
    }

    /// It cannot go on, and what was written on the target is not on the source. That is said, and nothing is removed: what
    /// stopped it may be undone. Ends when it is to be tried again.
    async fn stand_still(&self, fault: Fault) -> Outcome<()> {
        let is_new = {
            let mut said = self.stands_still.lock().unwrap_or_else(PoisonError::into_inner);
            let before = said.replace(fault.clone());
            before.is_none_or(|before| (before.code, before.what) != (fault.code, fault.what.clone()))
        };
        if is_new {
            self.driver.screen.say(&format!(
                "the way back stands still, so the writes cannot go back to the source; it is tried again: {fault}"
            ));
            let body = json!({ "code": fault.code, "fault": fault.what, "next_step": fault.next_step });
            self.driver.record(self.lease, "way-back-stopped", body).await?;
        }
        let mut wanted = self.wanted.subscribe();
        self.wanted.send_replace(false);
        self.state.send_replace(BackState::Lost(fault));
        let asked = wanted.wait_for(|wanted| *wanted);
        // Whether somebody asks or not, it is tried again.
        let _ = tokio::time::timeout(STANDS_STILL, asked).await;
        Ok(())
    }

    fn stands_still(&self) -> bool {
        self.stands_still.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// One that had stood still is armed when it has brought everything, and what had stopped it would have been met again.
    /// Ends with a fault only.
    async fn goes_on(&self, flow: &Flow) -> Fault {
        let proven = async {
            // Whether the stream has ended is for others to say.
            while let Err(fault) = flow.verifying.passed().await {
                if fault.recovery != Recovery::Retry {
                    return Err(fault);
                }
                tokio::time::sleep(PROVEN).await;
            }
            tokio::time::sleep(PROVEN).await;
            self.stands_still.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.driver.screen.say("the way back goes on");
            self.driver.record(self.lease, "way-back-resumed", json!({})).await
        };
        if let Err(fault) = proven.await {
            return fault;
        }
        self.state.send_replace(BackState::Armed);
        std::future::pending().await
    }

    /// It has ended while nothing depends on it: says so, and removes what is left, so that it can be made anew.
    async fn lose(&self, fault: Fault) -> Outcome<()> {
        self.driver.screen.say(&format!("the way back is lost, nothing else is: {fault}"));
        let body = json!({ "code": fault.code, "fault": fault.what, "next_step": fault.next_step });
        self.driver.record(self.lease, "way-back-lost", body).await?;
        self.remove().await?;
        killpoint::pass("lost.removed");
        self.wanted.send_replace(false);
        self.state.send_replace(BackState::Lost(fault));
        Ok(())
    }

    /// Nothing was written on the target yet: what was made is removed, and made again with what is there now.
    async fn begin_anew(&self, table: &QualifiedName) -> Outcome<()> {
        self.driver.record(self.lease, "way-back-renewed", json!({ "table": table.to_string() })).await?;
        self.remove().await?;
        killpoint::pass("outdated.removed");
        self.wanted.send_replace(true);
        Ok(())
    }

    /// Removes what is left of it on both sides.
    async fn remove(&self) -> Outcome<()> {
        let Driver { spec, sides, .. } = self.driver;
        let (source, target) =
            tokio::try_join!(sides.source.connect("way back"), sides.target.connect("way back"))?;
        birth::drop_reverse(&source, &target, (spec.name.as_str(), self.lease.token)).await?;
        sides.source.keep(source);
        sides.target.keep(target);
        // What is made next has all parts that there are.
        self.outdated.send_replace(None);
        Ok(())
    }

    /// From what is stored to the end of one run; what ended it, or why it could not begin.
    async fn once(&self, flows: &Flows) -> Outcome<Ended> {
        let Driver { spec, sides, .. } = self.driver;
        let source = sides.source.connect("way back").await?;
        if birth::known(&source, spec.name.as_str(), Direction::Reverse).await?.is_none() {
            self.wanted_in_time(flows).await?;
        }
        self.note("");
        let (run, flow, unguarded) = self.arm(source).await?;
        flows.reverse.send_replace(Some(flow.clone()));
        let stood_still = self.stands_still();
        if !stood_still {
            self.state.send_replace(BackState::Armed);
        }
        Ok(Ended::Fault(tokio::select! {
            fault = self.goes_on(&flow), if stood_still => fault,
            fault = run.run() => fault,
            fault = self.guard_commits(&flow) => fault,
            fault = guard::insist(self.driver, self.lease, unguarded) => fault,
            () = flow.verifying.run_live() => Fault::bug("SEGUE-TASK", "live verification has ended"),
            table = self.is_outdated() => return Ok(Ended::Outdated(table)),
        }))
    }

    /// Waits until it is wanted, and can be made: never while the target has the newest writes, as it would miss those that
    /// were made before.
    async fn wanted_in_time(&self, flows: &Flows) -> Outcome<()> {
        let gone = || Fault::bug("SEGUE-WAY-BACK", "nobody is left to want the way back");
        loop {
            if flows.has_the_newest(Side::Target) {
                self.wanted.send_replace(false);
                self.state.send_replace(BackState::Lost(too_late()));
            }
            let (mut wanted, mut giving) = (self.wanted.subscribe(), flows.giving.subscribe());
            let may_open = self.state() == BackState::NotArmed;
            tokio::select! {
                wanted = wanted.wait_for(|wanted| *wanted) => drop(wanted.map_err(|_| gone())?),
                // Whoever opens the target waits for it, and nothing was written there yet: an earlier process has died while
                // it removed one.
                giving = giving.wait_for(|giving| *giving == Some(Side::Source)), if may_open => {
                    drop(giving.map_err(|_| gone())?);
                }
            }
            if !flows.has_the_newest(Side::Target) {
                break;
            }
        }
        let mut stage = flows.forward.stage.clone();
        stage.wait_for(|stage| *stage == Stage::Following).await.map(drop).map_err(|_| gone())
    }

    /// Makes the stream, or finds it, and opens it. Also returns the target's guard against DDL, if a lock has kept it.
    async fn arm(&self, source: tokio_postgres::Client) -> Outcome<(PgRun, Arc<Flow>, Option<guard::Held>)> {
        let Driver { spec, sides, .. } = self.driver;
        let authority = (spec.name.as_str(), self.lease.token);
        let target = sides.target.connect("way back").await?;
        server::never_a_standby(&target).await.map_err(|f| f.during("the way back"))?;
        let catalog = plan::plan_back(spec, sides).await?;
        self.fence_owner(&source, &catalog).await?;
        // Its tables come from the target: whoever changes them there would stop this stream.
        let sources = guard::sources(&catalog.tables);
        let unguarded = guard::prepare(self.driver, self.lease, Side::Target, &sources).await?;
        let was_known = birth::known(&source, authority.0, Direction::Reverse).await?.is_some();
        let report = |wait: WaitReport| self.note(&wait.to_string());
        let (from, _) = flow::ends(self.driver, Direction::Reverse);
        let identity = birth::reverse(&source, &from, authority, &catalog.relations, report).await?;
        if !was_known {
            self.driver.record(self.lease, "way-back-armed", json!({ "slot": identity.slot })).await?;
        }
        let admission = rows::admission(&source, &target, authority.0, Direction::Reverse).await?;
        let admissions = Arc::new(Admissions::new(admission));
        let (run, flow) =
            flow::open(self.driver, self.lease.token, catalog, (identity, None), admissions).await?;
        Ok((run, flow, unguarded))
    }

    /// Makes the fence of the side that takes the writes, at rest. A lock that somebody holds is waited for.
    async fn fence_owner(&self, source: &tokio_postgres::Client, catalog: &Catalog) -> Outcome<()> {
        let Driver { spec, sides, .. } = self.driver;
        let authority = (spec.name.as_str(), self.lease.token);
        // Its tables come from the target: here the target is where the rows come from.
        let tables: Vec<_> = catalog.tables.iter().map(|table| table.target.clone()).collect();
        let elsewhere = sides.target.address();
        loop {
            match fence::prepare(source, authority, &tables, fence::Role::Owner, &elsewhere).await {
                Ok(_) => return Ok(()),
                Err(fault) if fault.code == "SEGUE-LOCKED" => self.note(&fault.what),
                Err(fault) => return Err(fault),
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    async fn is_outdated(&self) -> QualifiedName {
        let mut outdated = self.outdated.subscribe();
        let told = outdated.wait_for(Option::is_some).await.ok().and_then(|table| table.clone());
        match told {
            Some(table) => table,
            None => std::future::pending().await,
        }
    }

    fn note(&self, waits_for: &str) {
        let state = BackState::Arming { waits_for: waits_for.to_owned() };
        let stands_still = self.stands_still();
        self.state.send_if_modified(|now| {
            // That it is tried again is no news.
            let changed = *now != state && !(stands_still && matches!(now, BackState::Lost(_)));
            if changed {
                *now = state;
            }
            changed
        });
    }

    /// As for the stream forward: nobody's commit on the target is to wait for Segue.
    async fn guard_commits(&self, flow: &Flow) -> Fault {
        let look = async {
            let client = Remembering::connect(&self.driver.sides.target, "guard").await?;
            loop {
                if let Some(fault) = server::synchronous_walsender(&client, &flow.slot).await? {
                    return Ok::<Fault, Fault>(fault);
                }
                tokio::time::sleep(GUARD).await;
            }
        };
        match look.await {
            Ok(fault) | Err(fault) => fault,
        }
    }
}

/// It has ended for good. Another server may be no more than a wrong address.
fn is_gone(fault: &Fault) -> bool {
    birth::is_lost(fault) && fault.code != "SEGUE-OTHER-SERVER"
}

/// What is done about it while the source owns the writes. What its stream says of itself is meant for the stream to the target:
/// neither `--new-stream` nor beginning anew is for this one.
fn while_the_source_owns(fault: Fault) -> Fault {
    const AGAIN: &str = "`segue switch writes`, with or without --dry-run, makes the way back anew";
    let next_step = if is_gone(&fault) {
        AGAIN.to_owned()
    } else if fault.code == DRIFT {
        format!("undo the change on the target, unless it is a partition that came or went; then {AGAIN}")
    } else if fault.next_step.is_empty() {
        AGAIN.to_owned()
    } else {
        format!("{}. Then {AGAIN}", fault.next_step)
    };
    Fault { next_step, ..fault }
}

/// What is done about it while the target owns the writes: a stream that is made anew would not bring what was written meanwhile.
fn while_the_target_owns(fault: Fault) -> Fault {
    const NOTHING: &str = "nothing leads back to the source: the writes stay on the target, and `segue complete` ends the migration \
                           there, when it is time";
    let next_step = if is_gone(&fault) {
        NOTHING.to_owned()
    } else if fault.code == DRIFT {
        format!(
            "undo the change on the target: the way back is tried again by itself, and goes on, unless rows were written meanwhile \
             that it cannot read. Then, or where the change has to stay, {NOTHING}"
        )
    } else {
        return fault;
    };
    Fault { next_step, ..fault }
}

/// It was lost while the writes were handed over, and the target has taken them.
fn too_late() -> Fault {
    Fault::operator(
        "SEGUE-WAY-BACK-LOST",
        "the way back was lost before the target took the writes: what was written there since is not on the source, and a \
         stream that is made now would not bring it",
        "the writes stay on the target; `segue complete` ends the migration there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_a_way_back_leads_to_nothing_that_refuses_it() {
        let drift = Fault::operator(DRIFT, "t has a column", "drop it, then `segue run --new-stream`");
        let slot = Fault::operator("SEGUE-SLOT-LOST", "the slot is gone", "`segue run --new-stream`");
        let level = Fault::operator("SEGUE-WAL-LEVEL", "wal_level is replica", "set it to logical");
        for fault in [drift, slot] {
            let (early, late) = (while_the_source_owns(fault.clone()), while_the_target_owns(fault));
            assert!(!early.next_step.contains("--new-stream") && !late.next_step.contains("--new-stream"));
            assert!(early.next_step.ends_with("makes the way back anew"), "{early}");
            assert!(late.next_step.contains("`segue complete`"), "{late}");
        }
        assert_eq!(while_the_target_owns(level.clone()), level);
        let early = while_the_source_owns(level);
        assert!(early.next_step.starts_with("set it to logical. Then `segue switch writes`"), "{early}");
    }
}
