//! `segue run`: the one long-running process of a migration.
//!
//! Takes the lease or stands by, then attempts the migration again and again under a fresh token until it is told to
//! end or a person is needed. Every attempt begins by reading what is durable; there is no other way to recover.

mod attempt;
mod back;
pub(crate) mod complete;
mod contain;
mod ending;
mod flow;
mod gates;
mod guard;
mod journal;
pub(crate) mod plan;
pub(crate) mod reads;
mod rollback;
mod screen;
mod service;
mod short;
mod stream;
pub(crate) mod switch;
mod target_schema;
mod throttle;
mod traffic;
mod verifying;

pub(crate) use screen::message;
pub(crate) use verifying::VerifyOrder;

use crate::exit::Exit;
use crate::report::RunState;
use crate::router;
use crate::sides::Sides;
use attempt::Attempt;
use screen::Screen;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_engine::progress::Warnings;
use segue_engine::throttle::{Limits, Throttle};
use segue_model::spec::Spec;
use segue_model::stage::Stage;
use segue_postgres::control::{Acquired, Control, HEARTBEAT, Lease, NewEntry};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;

/// Pauses between attempts, the last one repeated.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];
/// An attempt that lasted this long makes the next pause short again.
const STEADY: Duration = Duration::from_secs(60);
/// The longest pause while nobody can write: between the hand-over and the opening only Segue can go on.
const PAUSE_WHILE_CLOSED: Duration = Duration::from_millis(500);
/// How long a fault that may pass is tried again although nothing has been begun.
const PATIENCE_AT_START: Duration = Duration::from_secs(10);
/// How long an attempt may take to end when the process is told to.
const PATIENCE_AT_END: Duration = Duration::from_secs(3);
/// How much longer, while nobody may take the writes.
const PATIENCE_WHILE_CLOSED: Duration = Duration::from_secs(20);
/// How long giving the lease back may take: it is free by itself soon.
const PATIENCE_TO_HAND_BACK: Duration = Duration::from_secs(1);
/// Between two tries to reach the control database.
const RENEW_PAUSE: Duration = Duration::from_secs(1);
/// How often a stand-by asks for the lease.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);

/// What the driver works with, over all attempts.
pub(crate) struct Driver {
    /// The validated spec.
    pub(crate) spec: Spec,
    /// The databases.
    pub(crate) sides: Sides,
    /// The control database.
    pub(crate) control: Arc<Control>,
    /// Host and process.
    pub(crate) holder: String,
    /// What the migration may take of the servers.
    pub(crate) throttle: Arc<Throttle>,
    /// What is left to it by those who are served first.
    pub(crate) governing: throttle::Governing,
    /// End when this stage is reached.
    pub(crate) until: Option<Stage>,
    /// What people see.
    pub(crate) screen: Arc<Screen>,
    /// Held while a record is appended: it names the one before it.
    pub(crate) recording: tokio::sync::Mutex<()>,
    /// Held while the rules for reads are changed.
    changing_reads: tokio::sync::Mutex<()>,
    /// When the process began.
    started: Instant,
    /// Both databases were reached once and the plan was found in order: from here on, what passes is waited for.
    pub(crate) begun: AtomicBool,
    /// When it was last looked, no side took the writes.
    pub(crate) nobody_owns: AtomicBool,
    /// What was wrong with the servers before anything began has been said.
    pub(crate) told_trouble: AtomicBool,
    /// What was warned of, by any attempt.
    pub(crate) warnings: Arc<Warnings>,
    /// A lost stream is to be made anew; until the journal has that.
    new_stream: AtomicBool,
    /// Set when the process is told to end: in which words.
    stop: watch::Sender<Option<String>>,
}

/// What is asked of a run beside the migration itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// End when this stage is reached.
    pub(crate) until: Option<Stage>,
    /// Make the stream anew, if it is lost.
    pub(crate) new_stream: bool,
}

/// Runs the migration of `spec`.
pub(crate) async fn run((spec, path): (Spec, &Path), wanted: Wanted, json: bool) -> Exit {
    let driver = match Driver::open(spec, wanted, json).await {
        Ok(driver) => driver,
        Err(fault) => {
            Screen::new(json).fault(&fault);
            return Exit::of(&fault);
        }
    };
    let router = Beside::start(&driver, path);
    let exit = driver.run_until_told().await;
    router.end().await;
    exit
}

/// The router of a driver whose spec has one.
struct Beside(Option<(watch::Sender<bool>, tokio::task::JoinHandle<()>)>);

impl Beside {
    fn start(driver: &Driver, path: &Path) -> Beside {
        if driver.spec.router.is_none() {
            return Beside(None);
        }
        let screen = driver.screen.clone();
        let say: router::Say = Arc::new(move |news: &router::News| screen.say(&news.text));
        match router::Plan::new(&driver.spec, path, None) {
            Ok(plan) => {
                let (stop, told) = watch::channel(false);
                Beside(Some((stop, tokio::spawn(router::beside(plan, say, told)))))
            }
            // What is wrong with the sides is the driver's to say.
            Err(fault) => {
                driver.screen.say(&format!("the router does not serve: {fault}"));
                Beside(None)
            }
        }
    }

    /// Lets transactions finish.
    async fn end(self) {
        if let Some((stop, running)) = self.0 {
            stop.send_replace(true);
            let _ = running.await;
        }
    }
}

impl Driver {
    async fn run_until_told(&self) -> Exit {
        let mut drive = Box::pin(self.drive());
        let signal = tokio::select! {
            exit = &mut drive => return exit,
            signal = interrupted() => signal,
        };
        let why = format!("stopped by {signal}; `segue run` goes on where it was");
        self.stop.send_replace(Some(why.clone()));
        // A hand-over that is under way is undone, and the end is written down.
        if let Ok(exit) = timeout(PATIENCE_AT_END, &mut drive).await {
            return exit;
        }
        if self.nobody_owns.load(Ordering::Relaxed) {
            self.screen
                .say("the writes are being handed over, past the point of no return: that is finished first");
            tokio::select! {
                exit = &mut drive => return exit,
                () = tokio::time::sleep(PATIENCE_WHILE_CLOSED) => {}
                // Whoever asks twice means it.
                _ = interrupted() => {}
            }
        }
        // It may hold what giving the lease back needs.
        drop(drive);
        self.leave(&why).await
    }

    /// Ends without an attempt that could: gives the lease back, if that is possible, and says why.
    async fn leave(&self, why: &str) -> Exit {
        let _ = timeout(PATIENCE_TO_HAND_BACK, self.control.hand_back()).await;
        if self.nobody_owns.load(Ordering::Relaxed) {
            self.screen.fault(&closed());
            return Exit::Fault;
        }
        self.screen.say(why);
        Exit::Done
    }
}

/// Ends when the process is asked to end.
pub(crate) async fn interrupted() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

/// The control database. Where no segue has ever run, nothing is made, anywhere, before the plan is found in order.
async fn control_of(spec: &Spec, sides: &Sides) -> Outcome<Control> {
    if !Control::is_known(&sides.control).await? {
        plan::may_begin(spec, sides).await?;
    }
    Control::connect(&sides.control, spec.name.as_str()).await
}

impl Driver {
    async fn open(spec: Spec, wanted: Wanted, json: bool) -> Outcome<Driver> {
        let sides = Sides::of(&spec)?;
        let (screen, started) = (Arc::new(Screen::new(json)), Instant::now());
        let control = loop {
            match control_of(&spec, &sides).await {
                Ok(control) => break control,
                Err(fault) => match fault.recovery {
                    Recovery::Retry | Recovery::Ambiguous if started.elapsed() < PATIENCE_AT_START => {
                        screen.say(&format!("{fault}; trying again"));
                        tokio::time::sleep(RENEW_PAUSE).await;
                    }
                    Recovery::Retry | Recovery::Ambiguous | Recovery::Operator | Recovery::Bug => {
                        return Err(fault);
                    }
                },
            }
        };
        Ok(Driver {
            spec,
            sides,
            control: Arc::new(control),
            holder: holder(),
            throttle: Arc::new(Throttle::new(Limits::default())),
            governing: throttle::Governing::new(),
            until: wanted.until,
            screen,
            started,
            begun: AtomicBool::new(false),
            nobody_owns: AtomicBool::new(false),
            told_trouble: AtomicBool::new(false),
            warnings: Arc::default(),
            recording: tokio::sync::Mutex::default(),
            changing_reads: tokio::sync::Mutex::default(),
            new_stream: AtomicBool::new(wanted.new_stream),
            stop: watch::Sender::new(None),
        })
    }

    /// Returns, with the words for it, once the process is told to end.
    pub(crate) async fn told_to_stop(&self) -> String {
        let mut stop = self.stop.subscribe();
        match stop.wait_for(Option::is_some).await {
            Ok(words) => words.clone().unwrap_or_default(),
            // The sender is ours.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether what may pass is worth another try. As long as nothing was begun, it is more likely a mistake in the spec
    /// or a server that is not there: the operator should not have to wait for that.
    fn is_patient(&self) -> bool {
        self.begun.load(Ordering::Relaxed) || self.started.elapsed() < PATIENCE_AT_START
    }

    async fn drive(&self) -> Exit {
        let lease = tokio::select! {
            lease = self.lease() => lease,
            why = self.told_to_stop() => {
                self.screen.say(&why);
                return Exit::Done;
            }
        };
        let mut lease = match lease {
            Ok(lease) => lease,
            Err(fault) => return self.give_up(None, &fault).await,
        };
        // The fault of an earlier process may be mended: this one tries again.
        let again = self.tell_run(&lease, |run| match run {
            RunState::Failed { fault, .. } => Some(RunState::Retrying { fault }),
            _ => None,
        });
        let _ = timeout(PATIENCE_TO_HAND_BACK, again).await;
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let fault = match Attempt::new(self, &lease).run().await {
                Ok(_) if self.nobody_owns.load(Ordering::Relaxed) => {
                    return self.give_up(Some(&lease), &closed()).await;
                }
                Ok(why) => {
                    self.screen.say(&why);
                    let _ = self.control.release(&lease).await;
                    return Exit::Done;
                }
                Err(fault) => fault,
            };
            match fault.recovery {
                Recovery::Retry | Recovery::Ambiguous if self.is_patient() => {}
                Recovery::Retry | Recovery::Ambiguous | Recovery::Operator | Recovery::Bug => {
                    let fault = self.superseded(&lease).await.unwrap_or(fault);
                    return self.give_up(Some(&lease), &fault).await;
                }
            }
            failures = if began.elapsed() > STEADY { 1 } else { failures + 1 };
            let mut pause = PAUSES[(failures - 1).min(PAUSES.len() - 1)];
            if self.nobody_owns.load(Ordering::Relaxed) {
                pause = pause.min(PAUSE_WHILE_CLOSED);
            }
            self.screen.say(&format!("{fault}; trying again in {} ms", pause.as_millis()));
            let retrying = RunState::Retrying { fault: fault.to_string() };
            let told = self.tell_run(&lease, |_| Some(retrying));
            let _ = timeout(PATIENCE_TO_HAND_BACK, told).await;
            self.pause(&lease, pause).await;
            let renewed = tokio::select! {
                renewed = self.renew() => renewed,
                why = self.told_to_stop() => return self.leave(&why).await,
            };
            lease = match renewed {
                Ok(lease) => lease,
                Err(fault) => return self.give_up(None, &fault).await,
            };
        }
    }

    /// Takes the lease; stands by as long as another process holds it, also while the control database is away.
    async fn lease(&self) -> Outcome<Lease> {
        let mut said = String::new();
        loop {
            let what = match self.control.acquire(&self.holder).await {
                Ok(Acquired::Lease(lease)) => return Ok(lease),
                Ok(Acquired::Standby(other)) => {
                    // Whoever stands by is there for when things go wrong.
                    self.begun.store(true, Ordering::Relaxed);
                    format!("standing by: {} drives migration {}", other.holder, self.spec.name.as_str())
                }
                Err(fault) => match fault.recovery {
                    Recovery::Retry | Recovery::Ambiguous if self.is_patient() => {
                        format!("waiting for the lease: the control database cannot be reached: {fault}")
                    }
                    Recovery::Retry | Recovery::Ambiguous | Recovery::Operator | Recovery::Bug => {
                        return Err(fault);
                    }
                },
            };
            if what != said {
                self.screen.say(&what);
                said = what;
            }
            tokio::time::sleep(STANDBY_PAUSE).await;
        }
    }

    /// Waits, and keeps the lease meanwhile: a driver that will try again is not dead.
    async fn pause(&self, lease: &Lease, pause: Duration) {
        let until = Instant::now() + pause;
        let beating = async {
            loop {
                // A fault here is that of the next attempt, which says it.
                let _ = self.control.beat(lease).await;
                tokio::time::sleep(HEARTBEAT).await;
            }
        };
        tokio::select! {
            () = beating => {}
            () = tokio::time::sleep_until(until.into()) => {}
            _ = self.told_to_stop() => {}
        }
    }

    /// A new token for the next attempt: requests of the last one that are still on their way are shut out by it.
    async fn renew(&self) -> Outcome<Lease> {
        let mut said = false;
        loop {
            match self.control.renew().await {
                Ok(lease) => return Ok(lease),
                Err(fault) => match fault.recovery {
                    Recovery::Retry | Recovery::Ambiguous => {
                        if !said {
                            self.screen.say(&format!(
                                "the control database cannot be reached: {fault}; trying again"
                            ));
                            said = true;
                        }
                        tokio::time::sleep(RENEW_PAUSE).await;
                    }
                    Recovery::Operator | Recovery::Bug => return Err(fault),
                },
            }
        }
    }

    /// Appends a record to the journal.
    pub(crate) async fn record(&self, lease: &Lease, kind: &str, body: Value) -> Outcome<i64> {
        let _one_at_a_time = self.recording.lock().await;
        let last = self.control.last_record().await?;
        self.control.append(lease, last, &self.entry(kind, body)).await
    }

    fn entry(&self, kind: &str, body: Value) -> NewEntry {
        NewEntry { version: 1, actor: self.holder.clone(), kind: kind.to_owned(), body }
    }
}

/// The run ends, and as far as it knows nobody takes the writes.
fn closed() -> Fault {
    Fault::operator(
        "SEGUE-CLOSED",
        "a hand-over was under way, and it is not known that a side takes the writes: it could be neither undone nor finished",
        "start `segue run` at once, on any machine: it does",
    )
}

/// Host and process, for people.
pub(crate) fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{} process {}", if host.is_empty() { "this host" } else { host }, std::process::id())
}
