//! The seat in the control database: routes are heard there, and what the router made of them is said.
//!
//! Without the control database the last route is served, and a statement that meets a fence has the ownership rows asked.

use super::findings::Findings;
use super::owner::{Found, Owners};
use super::statistics::statistics;
use super::{News, Plan, Say};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::switch::route::Route;
use segue_postgres::connect::Endpoint;
use segue_postgres::control::{ROUTER_TTL, RouterReport, RouterSeat, Told, ToldReads};
use segue_router::{Handle, Heard, Reads};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// How often it says that it is there, and looks whether it has missed anything.
const REPORT_EVERY: Duration = Duration::from_millis(ROUTER_TTL.as_millis() as u64 / 3);
/// A control database that takes longer is as good as gone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries to take a seat.
const SEAT_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at the ownership rows while statements wait for what they say.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// After a statement has met a fence, the rows are looked at for so long; the next one begins anew.
const LOOK_MAX: Duration = Duration::from_secs(15);

/// A router's seat.
pub(super) struct Seat {
    id: String,
    migration: String,
    control: Endpoint,
    max_write_hold: Duration,
    owners: Owners,
    routes: watch::Sender<Heard>,
    reads: watch::Sender<Arc<Reads>>,
    findings: Findings,
    handle: Handle,
    say: Say,
    /// The rules for reads that were read last, understood or not.
    last_reads: Mutex<Option<i64>>,
    /// What is told is to be read now.
    read_now: Notify,
    /// The revision that was read last, applied or not.
    last_read: Mutex<Option<i64>>,
    /// The control database cannot be asked, and that was said.
    is_cut_off: AtomicBool,
}

/// Where the router hears what was told.
pub(super) struct Senders {
    pub(super) routes: watch::Sender<Heard>,
    pub(super) reads: watch::Sender<Arc<Reads>>,
}

impl Seat {
    pub(super) fn new(plan: &Plan, owners: Owners, told: Senders, handle: Handle, say: Say) -> Seat {
        let Senders { routes, reads } = told;
        Seat {
            id: format!("{} {:016x}", crate::drive::holder(), rand::random::<u64>()),
            migration: plan.spec.name.as_str().to_owned(),
            control: plan.sides.control.clone(),
            max_write_hold: plan.spec.switch.max_write_hold,
            owners,
            routes,
            reads,
            findings: Findings::default(),
            handle,
            say,
            last_reads: Mutex::default(),
            read_now: Notify::new(),
            last_read: Mutex::default(),
            is_cut_off: AtomicBool::new(false),
        }
    }

    /// Keeps the seat until the router has ended, and leaves it.
    pub(super) async fn run(self, mut ended: watch::Receiver<bool>) {
        let mut seat = None;
        tokio::select! {
            never = self.keep(&mut seat) => match never {},
            never = self.heed_fences() => match never {},
            _ = ended.wait_for(|ended| *ended) => {}
        }
        if let Some(seat) = seat {
            let _ = timeout(ANSWER_PATIENCE, seat.leave(&self.id)).await;
        }
    }

    /// Takes a seat, and another one whenever it is lost.
    async fn keep(&self, slot: &mut Option<RouterSeat>) -> Infallible {
        loop {
            let lost = match RouterSeat::take(&self.control, &self.migration).await {
                Ok(Some(seat)) => self.sit(slot.insert(seat)).await.err(),
                // Nobody has run the migration yet.
                Ok(None) => None,
                Err(fault) => Some(fault),
            };
            *slot = None;
            if let Some(fault) = lost
                && !self.is_cut_off.swap(true, Ordering::Relaxed)
            {
                let text = format!("the router serves the last route, without the control database: {fault}");
                (self.say)(&News::text(text));
            }
            sleep(SEAT_AGAIN).await;
        }
    }

    /// Hears routes and reports, until the seat is lost.
    async fn sit(&self, seat: &RouterSeat) -> Outcome<Infallible> {
        let mut taken = self.handle.taken();
        let (mut kept, mut reported, mut found) = (None, None, json!({}));
        loop {
            // Asked together: a hold waits for nothing else.
            let (told, reads) = tokio::join!(in_time(seat.told()), in_time(seat.reads()));
            if let Some(told) = told? {
                self.hear(told).await;
            }
            if self.hear_reads(reads)? {
                // Whoever gave the order sees in the report that it is heard, and what came of the rules before it.
                reported = None;
            }
            if self.is_cut_off.swap(false, Ordering::Relaxed) {
                (self.say)(&News::text("the router hears from the control database again".to_owned()));
            }
            loop {
                // All that it did by an earlier route is over, once.
                let taken_now = *taken.borrow_and_update();
                if taken_now.running == 0 {
                    kept = Some(taken_now.revision);
                }
                let left = reported.map_or(Duration::ZERO, |(said, at): (Option<i64>, Instant)| {
                    if said == kept { REPORT_EVERY.saturating_sub(at.elapsed()) } else { Duration::ZERO }
                });
                if left.is_zero() {
                    // What it made of a route is waited for; what it has found meanwhile is not, and takes its time.
                    if reported.is_none_or(|(_, at)| at.elapsed() >= REPORT_EVERY) {
                        found = self.found();
                    }
                    in_time(seat.report(&self.report(kept, &found))).await?;
                    reported = Some((kept, Instant::now()));
                    continue;
                }
                tokio::select! {
                    waited = seat.wait(left) => {
                        waited?;
                        break;
                    }
                    () = self.read_now.notified() => break,
                    changed = taken.changed() => if changed.is_err() {
                        return std::future::pending().await;
                    },
                }
            }
        }
    }

    /// What became of everything that was served.
    fn found(&self) -> Value {
        let (rules, shadow) = (self.reads.borrow().clone(), self.handle.shadow());
        json!({
            "reads": self.findings.reads(&self.handle, &rules),
            "mirror": self.findings.mirror(&shadow, &rules),
            "statistics": statistics(&self.handle, shadow),
        })
    }

    /// `kept`: the revision by which everything goes that is under way.
    fn report(&self, kept: Option<i64>, found: &Value) -> RouterReport {
        let heard = self.routes.borrow().clone();
        let held = heard.held_until.is_some_and(|until| until > Instant::now());
        RouterReport {
            id: self.id.clone(),
            // Not yet: less than any that is told.
            revision: kept.unwrap_or(heard.revision - 1),
            body: json!({
                "listen": self.handle.address().to_string(),
                "owner": heard.owner,
                "epoch": heard.epoch,
                "held": held,
                "clients": self.handle.clients(),
                "parked": self.handle.parked(),
                "reads": found["reads"],
                "mirror": found["mirror"],
                "statistics": found["statistics"],
            }),
        }
    }

    /// A route was told.
    async fn hear(&self, told: Told) {
        let is_new = {
            let mut last = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
            last.replace(told.revision) != Some(told.revision)
        };
        let now = self.routes.borrow().clone();
        if !is_new || now.revision == told.revision {
            return;
        }
        let heard = Heard::now(told.revision, told.route);
        if heard.epoch >= now.epoch {
            self.take(heard);
        } else if let Found::Open(route) | Found::Fenced(route) = self.owners.look().await {
            // Told by whoever did not know better; or another migration goes by the name of an old one.
            self.take(Heard::now(told.revision, route));
        }
    }

    /// Rules for reads were told. Those that cannot be understood leave every read with the owner: they may be what keeps
    /// somebody from a stale answer. Returns whether they are others than before.
    fn hear_reads(&self, told: Outcome<Option<ToldReads>>) -> Outcome<bool> {
        let (reads, mirror_since_us) = match told {
            // None were ever set, or the migration has ended: nothing is moved.
            Ok(None) => {
                *self.last_reads.lock().unwrap_or_else(PoisonError::into_inner) = None;
                (Reads::default(), 0)
            }
            Ok(Some(told)) => {
                let mut last = self.last_reads.lock().unwrap_or_else(PoisonError::into_inner);
                if last.replace(told.revision) == Some(told.revision) {
                    return Ok(false);
                }
                let rules = told.rules;
                let reads = Reads {
                    share_percent: rules.share_percent,
                    tenants: rules.tenants,
                    mirror_percent: rules.mirror_percent,
                    contained: rules.contained,
                };
                (reads, rules.mirror_since_us)
            }
            Err(fault) if fault.code == "SEGUE-READS" => {
                let contained = Reads { contained: true, ..Reads::default() };
                if **self.reads.borrow() != contained {
                    (self.say)(&News::text(format!("every read goes to the owner: {fault}")));
                }
                *self.last_reads.lock().unwrap_or_else(PoisonError::into_inner) = None;
                (contained, 0)
            }
            Err(fault) => return Err(fault),
        };
        self.findings.compare_since(mirror_since_us, &self.handle);
        let is_new = **self.reads.borrow() != reads;
        if is_new {
            (self.say)(&News::text(in_words(&reads)));
            self.reads.send_replace(Arc::new(reads));
        }
        Ok(is_new)
    }

    fn take(&self, heard: Heard) {
        let old = self.routes.send_replace(heard.clone());
        if (old.owner, old.epoch) != (heard.owner, heard.epoch) {
            let (owner, epoch) = (heard.owner, heard.epoch.0);
            let text = format!("the router sends the writes to the {owner} (epoch {epoch})");
            (self.say)(&News { text, object: json!({ "owner": owner, "epoch": epoch }) });
        }
    }

    /// Whenever a statement has met a fence: is there another route?
    async fn heed_fences(&self) -> Infallible {
        loop {
            self.handle.met_fence().await;
            self.read_now.notify_one();
            let since = Instant::now();
            let mut fenced_since = None;
            while since.elapsed() < LOOK_MAX {
                let before = self.routes.borrow().clone();
                let found = self.owners.look().await;
                if *self.routes.borrow() != before {
                    break;
                }
                match found {
                    Found::Open(route) => {
                        self.go_by(&before, route);
                        break;
                    }
                    // Past its deadline the first writer that comes opens it.
                    Found::Fenced(route) => {
                        let began = *fenced_since.get_or_insert_with(Instant::now);
                        if began.elapsed() > self.max_write_hold {
                            self.go_by(&before, route);
                            break;
                        }
                    }
                    Found::Unknown => {}
                }
                sleep(LOOK_AGAIN).await;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The rows say so. Whoever waits for another route looks again, also if it is the same one.
    fn go_by(&self, before: &Heard, route: Route) {
        let is_held = before.held_until.is_some_and(|until| until > Instant::now());
        let is_same = (route.owner, route.epoch) == (before.owner, before.epoch);
        if !(is_held && is_same) {
            self.take(Heard::now(before.revision, route));
        }
    }
}

/// What is served where, as it is said.
fn in_words(reads: &Reads) -> String {
    if reads.contained {
        return "the router sends every read to the owner: the migration is contained".to_owned();
    }
    let Reads { share_percent, tenants, mirror_percent, .. } = reads;
    let rules = match tenants.len() {
        0 => String::new(),
        n => format!(", with rules for {n} tenant(s)"),
    };
    format!(
        "the target serves {share_percent} % of the reads{rules}; {mirror_percent} % are compared on both sides"
    )
}

async fn in_time<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    match timeout(ANSWER_PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(Fault::retry(
            "SEGUE-CONNECTION",
            format!("the control database has not answered for {} s", ANSWER_PATIENCE.as_secs()),
        )),
    }
}
