//! One attempt at a migration, under one token: shut earlier processes out, read what is durable, make the stream if
//! there is none, run until something ends it.

use super::back::WayBack;
use super::complete::finish::{finish, publish};
use super::complete::{Begun, Completer, Life, over};
use super::flow::{self, Flows, PgRun, lost_while_idle};
use super::gates::Gates;
use super::journal::{Journal, Scribe};
use super::rollback::Rollback;
use super::service::Service;
use super::stream::Found;
use super::switch::{Switch, rows};
use super::traffic::Traffic;
use super::{Driver, contain, guard, plan, target_schema, throttle};
use crate::report::{RunState, Status};
use futures_util::future::try_join_all;
use segue_engine::admission::Admissions;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::progress::{Snapshot, Wait};
use segue_model::name::QualifiedName;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_postgres::birth::{self, Direction, StreamIdentity};
use segue_postgres::catalog::{Catalog, server};
use segue_postgres::connect::Endpoint;
use segue_postgres::control::{Command, HEARTBEAT, Lease, shut_out};
use segue_postgres::fence;
use segue_postgres::health;
use segue_postgres::stream::Opening;
use serde_json::json;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Client;

/// How long records may take that are still to be written when an attempt ends.
const RECORDS_PATIENCE: Duration = Duration::from_secs(2);

/// A side that does not say within this time what is wrong with it is not waited for.
const TROUBLE_PATIENCE: Duration = Duration::from_secs(3);

/// Everything that runs side by side until one of them ends the attempt.
struct Ready<'d> {
    /// The source's guard against DDL, if a lock has kept it.
    unguarded: Option<guard::Held>,
    run: PgRun,
    flows: Arc<Flows>,
    back: Arc<WayBack<'d>>,
    switch: Arc<Switch<'d>>,
    service: Service<'d>,
    rollback: Arc<Rollback<'d>>,
    traffic: Arc<Traffic<'d>>,
    completer: Completer<'d>,
    scribe: Scribe,
}

/// Why an attempt was meant to end.
enum Ended {
    /// It was told to.
    Told(String),
    /// The migration is to be completed, which is in the journal; whoever asked waits for the answer.
    Completing(Box<(Begun, Command)>),
}

/// One attempt.
pub(super) struct Attempt<'d> {
    pub(super) driver: &'d Driver,
    pub(super) lease: &'d Lease,
    /// Set while the stream is being made: what that waits for, if anything.
    making: Mutex<Option<Making>>,
}

/// The making of a stream, as `status` shows it.
#[derive(Clone)]
struct Making {
    since: Instant,
    waits_for: String,
}

impl<'d> Attempt<'d> {
    /// An attempt under this lease.
    pub(super) fn new(driver: &'d Driver, lease: &'d Lease) -> Self {
        Attempt { driver, lease, making: Mutex::default() }
    }

    /// Runs until it is told to end, and says by whom; or until a fault.
    pub(super) async fn run(&self) -> Outcome<String> {
        let ended = self.run_to_end().await;
        if let Err(fault) = &ended
            && fault.code == server::SYNC_STANDBY
        {
            self.release_commits().await.map_err(|f| f.during(fault))?;
        }
        ended
    }

    /// Nobody's commit is to wait for Segue any longer, on either side.
    async fn release_commits(&self) -> Outcome<()> {
        let Driver { spec, sides, .. } = self.driver;
        for (side, direction) in [(&sides.source, Direction::Forward), (&sides.target, Direction::Reverse)] {
            let client = side.connect("guard").await?;
            server::release_commits(&client, &birth::stream_name(spec.name.as_str(), direction)?).await?;
        }
        Ok(())
    }

    async fn run_to_end(&self) -> Outcome<String> {
        let over = tokio::select! {
            over = self.past_the_end() => over?,
            fault = self.keep_lease() => return Err(fault),
            why = self.driver.told_to_stop() => return Ok(why),
        };
        if let Some(over) = over {
            return Ok(over);
        }
        let ready = tokio::select! {
            prepared = self.prepare() => prepared?,
            fault = self.keep_lease() => return Err(fault),
            never = self.name_standby() => match never {},
            why = self.driver.told_to_stop() => return Ok(why),
        };
        let Ready { unguarded, run, flows, back, switch, service, rollback, traffic, completer, scribe } =
            ready;
        let (over, is_over) = oneshot::channel();
        // On the heap, so that it is gone, with whatever it holds, once it is not waited for any longer.
        let mut writing = Box::pin(scribe.run((self.driver, self.lease), is_over));
        let mut is_writing = true;
        let ended = tokio::select! {
            fault = self.forward(run, &flows, &switch) => Err(fault),
            fault = back.run(&flows) => Err(fault),
            fault = guard::insist(self.driver, self.lease, unguarded) => Err(fault),
            fault = switch.run() => Err(fault),
            fault = rollback.run() => Err(fault),
            wrote = &mut writing => {
                is_writing = false;
                Err(wrote.err().unwrap_or_else(|| Fault::bug("SEGUE-JOURNAL", "its writer has ended")))
            }
            never = traffic.run() => match never {},
            begun = completer.run() => begun.map(Box::new).map(Ended::Completing),
            ended = service.serve() => ended.map(Ended::Told),
        };
        switch.retreat().await;
        // What could not be written now is told by the rows.
        drop(over);
        if is_writing {
            let _ = tokio::time::timeout(RECORDS_PATIENCE, writing).await;
        }
        let (begun, command) = match ended? {
            Ended::Told(why) => return Ok(why),
            Ended::Completing(begun) => *begun,
        };
        let complete = async {
            // What a stream has sent last may still be under way.
            try_join_all(self.driver.sides.written().into_iter().map(|side| self.take_over(side))).await?;
            finish((self.driver, self.lease), &begun, Some(command)).await
        };
        tokio::select! {
            over = complete => over,
            fault = self.keep_lease() => Err(fault),
            why = self.driver.told_to_stop() => Ok(why),
        }
    }

    /// A migration that is completed has nothing left to run, and one that is being completed is finished: it has no
    /// streams any more. `None`: it is neither.
    async fn past_the_end(&self) -> Outcome<Option<String>> {
        let Driver { sides, control, .. } = self.driver;
        let journal = control.journal(0).await?;
        let begun = match Life::of(&journal)? {
            Life::Open => return Ok(None),
            Life::Completed(_) => {
                // The process that wrote the record may not have lived to report it.
                publish(self.driver, self.lease).await?;
                return Ok(Some(over(&journal)));
            }
            Life::Completing(begun) => begun,
        };
        self.driver.begun.store(true, Ordering::Relaxed);
        let (source, target) = tokio::try_join!(sides.source.connect("plan"), sides.target.connect("plan"))?;
        self.only_target(&source, &target).await?;
        try_join_all(sides.written().into_iter().map(|side| self.take_over(side))).await?;
        self.answer_orphans().await?;
        finish((self.driver, self.lease), &begun, None).await.map(Some)
    }

    /// Refuses a target that the migration does not go to, before whoever drives it to the right one is shut out.
    async fn only_target(&self, source: &Client, target: &Client) -> Outcome<()> {
        let Driver { spec, sides, .. } = self.driver;
        birth::only_target(source, (target, &sides.target.address()), spec.name.as_str()).await
    }

    /// Writes down on both sides which target the migration goes to.
    pub(super) async fn pair(&self, target: &Client) -> Outcome<()> {
        let Driver { spec, sides, .. } = self.driver;
        let source = sides.source.connect("plan").await?;
        let authority = (spec.name.as_str(), self.lease.token);
        birth::pair(&source, (target, &sides.target.address()), authority).await?;
        sides.source.keep(source);
        Ok(())
    }

    /// What an earlier process took and did not answer, nobody else will.
    async fn answer_orphans(&self) -> Outcome<()> {
        let orphaned = json!({ "fault": "the driver could not finish this: it died, or lost a server or a connection meanwhile", "code": "SEGUE-DRIVER-DIED",
            "next_step": "see in `segue status` how things are, then ask again" });
        self.driver.control.answer_orphans(self.lease, &orphaned).await?;
        let stale = json!({ "fault": "nobody took the order while it was waited for: nothing was begun", "code": "SEGUE-WITHDRAWN",
            "next_step": "ask again" });
        self.driver.control.answer_stale(self.lease, &stale).await?;
        Ok(())
    }

    /// Runs the stream from the source to the target. As long as the target owns the writes, what ends it for a person is
    /// an alarm: the application does not depend on it, but writes cannot be handed to the target again. It ends the attempt
    /// once the source owns them.
    async fn forward(&self, run: PgRun, flows: &Flows, switch: &Switch<'_>) -> Fault {
        let was_lost = flows.lost.borrow().clone();
        let fault = match was_lost {
            Some(fault) => fault,
            None => run.run().await,
        };
        if !flows.has_the_newest(Side::Target) {
            return fault;
        }
        let Some(told) = lost_while_idle(&fault) else { return fault };
        self.driver.screen.say(&format!("the stream to the target is lost, nothing else is: {told}"));
        self.driver.warnings.say(format!("the stream to the target has ended: {told}"));
        flows.lost.send_replace(Some(fault.clone()));
        // An error: the sender is ours.
        let _ = flows.owner.subscribe().wait_for(|owner| *owner == Some(Side::Source)).await.map(drop);
        switch.is_over().await;
        fault
    }

    /// Beats the heart while nothing else does; ends only when the lease is lost.
    async fn keep_lease(&self) -> Fault {
        loop {
            if let Err(fault) = self.driver.control.beat(self.lease).await {
                return fault;
            }
            let making = self.making.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(making) = making
                && let Err(fault) = self.publish(making).await
            {
                return fault;
            }
            tokio::time::sleep(HEARTBEAT).await;
        }
    }

    /// Shows that the stream is being made, and what that waits for.
    async fn publish(&self, making: Making) -> Outcome<()> {
        let since_ms = making.since.elapsed().as_millis() as u64;
        let wait = Wait { who: "birth".into(), reason: making.waits_for, since_ms };
        let waits = if wait.reason.is_empty() { Vec::new() } else { vec![wait] };
        let status = Status {
            progress: Snapshot { waits, ..Snapshot::default() },
            ..self.driver.early_status(Stage::Preparing, self.lease.token, RunState::Running)
        };
        self.driver.control.publish_status(self.lease, &json!(status)).await
    }

    /// Says, once, that what is being prepared waits on the source for a standby: it goes on when that answers.
    async fn name_standby(&self) -> Infallible {
        let mut said = String::new();
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            let look = async {
                let client = self.driver.sides.source.connect("watch").await?;
                server::waits_for_standby(&client).await
            };
            match look.await {
                Ok(Some(what)) if what != said => {
                    self.driver.screen.say(&format!("on the source {what}; Segue goes on when it does"));
                    said = what;
                }
                // What cannot be looked at now is met by the preparation itself, which says so.
                Ok(_) | Err(_) => {}
            }
        }
    }

    async fn prepare(&self) -> Outcome<Ready<'d>> {
        let Driver { spec, sides, control, .. } = self.driver;
        sides.forget();
        let mut journal = control.journal(0).await?;
        if journal.iter().any(|entry| entry.entry.kind == "preparing") {
            self.driver.begun.store(true, Ordering::Relaxed);
        }
        contain::restore(self.driver, &journal);
        throttle::restore(self.driver, &journal);
        let source = sides.source.connect("plan").await?;
        server::never_a_standby(&source).await?;
        let target = sides.target.connect("stream").await?;
        self.only_target(&source, &target).await?;
        if self.gives_up_restored(&journal).await? {
            journal = control.journal(0).await?;
        }
        try_join_all(sides.written().into_iter().map(|side| self.take_over(side))).await?;
        self.answer_orphans().await?;
        sides.source.keep(source);
        target_schema::create_missing(self.driver, self.lease).await?;
        let (catalog, found) = tokio::try_join!(plan::plan(spec, sides), self.find(&target, &journal))?;
        if !matches!(found, Found::Nothing) {
            self.pair(&target).await?;
        }
        match found {
            Found::Stream(identity, opening) => {
                self.driver.check_unchanged(&control.journal(0).await?, &catalog.tables)?;
                let (tables, sources) = (targets(&catalog), guard::sources(&catalog.tables));
                let opened = self.open(catalog, identity, opening.map(Some));
                let guarded = guard::prepare(self.driver, self.lease, Side::Source, &sources);
                let fenced = self.fence_follower(&tables, &target);
                let ((), unguarded, opened) = tokio::try_join!(fenced, guarded, opened)?;
                Ok(Ready { unguarded, ..opened })
            }
            Found::Nothing => {
                let (identity, unguarded) = self.give_birth(&catalog, &target).await?;
                Ok(Ready { unguarded, ..self.open(catalog, identity, Ok(None)).await? })
            }
            Found::Lost(lost) => {
                self.driver.check_unchanged(&journal, &catalog.tables)?;
                let (identity, unguarded) = self.renew(&catalog, &target, &lost).await?;
                Ok(Ready { unguarded, ..self.open(catalog, identity, Ok(None)).await? })
            }
        }
    }

    /// Shuts earlier processes out of a database, and makes Segue's schema what it should be.
    pub(super) async fn take_over(&self, side: &Endpoint) -> Outcome<()> {
        let migration = self.driver.spec.name.as_str();
        for holder in shut_out(side, migration, self.lease.token, true).await? {
            self.driver.screen.say(&format!("ended a transaction of an earlier process: {holder:?}"));
        }
        Ok(())
    }

    /// Says, once, what is wrong with the servers already: what is left open there is what the stream's birth waits for.
    pub(super) async fn tell_trouble(&self) {
        let Driver { sides, screen, told_trouble, .. } = self.driver;
        if told_trouble.swap(true, Ordering::Relaxed) {
            return;
        }
        let look = async |endpoint| {
            let look = async {
                let client = health::session(endpoint, TROUBLE_PATIENCE).await?;
                health::old_trouble(&client).await
            };
            // What cannot be looked at now is met by what comes next, which says so.
            tokio::time::timeout(TROUBLE_PATIENCE, look).await.unwrap_or(Ok(Vec::new())).unwrap_or_default()
        };
        let (source, target) = tokio::join!(look(&sides.source), look(&sides.target));
        for (side, found) in [(Side::Source, source), (Side::Target, target)] {
            found.iter().for_each(|what| screen.say(&format!("warning: {side}: {what}")));
        }
    }

    /// Shuts everybody but Segue's streams out of the target's tables, for as long as it follows.
    pub(super) async fn fence_follower(&self, tables: &[QualifiedName], target: &Client) -> Outcome<()> {
        let Driver { spec, sides, .. } = self.driver;
        let authority = (spec.name.as_str(), self.lease.token);
        let elsewhere = sides.source.address();
        fence::prepare(target, authority, tables, fence::Role::Follower, &elsewhere).await?;
        Ok(())
    }

    /// Remembers what the making of the stream waits for.
    pub(super) fn note(&self, waits_for: &str) {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let since = making.as_ref().map_or_else(Instant::now, |m| m.since);
        *making = Some(Making { since, waits_for: waits_for.to_owned() });
    }

    async fn open(
        &self,
        catalog: Catalog,
        identity: StreamIdentity,
        opening: Result<Option<Opening>, Fault>,
    ) -> Outcome<Ready<'d>> {
        let Driver { spec, sides, control, .. } = self.driver;
        let (driver, lease) = (self.driver, self.lease);
        let (source, target) =
            tokio::try_join!(sides.source.connect("switch"), sides.target.connect("switch"))?;
        let migration = spec.name.as_str();
        let (rows, admission) = tokio::try_join!(
            rows::both(&source, &target, migration),
            rows::admission(&source, &target, migration, Direction::Forward)
        )?;
        sides.source.keep(source);
        sides.target.keep(target);
        driver.nobody_owns.store(rows.owner().is_none(), Ordering::Relaxed);
        let catalog_warnings = catalog.warnings.clone();
        let admissions = Arc::new(Admissions::new(admission));
        let (opening, lost) = match opening {
            Ok(opening) => (opening, None),
            Err(lost) => (None, Some(lost)),
        };
        let (run, forward) =
            flow::open(driver, lease.token, catalog, (identity, opening), admissions).await?;
        let (owner, giving) = (watch::Sender::new(rows.owner()), watch::Sender::new(rows.giving()));
        let (reverse, lost) = (watch::Sender::new(None), watch::Sender::new(lost));
        let flows = Arc::new(Flows { forward, reverse, owner, giving, lost });
        driver.record(lease, flows.stage().name(), json!({ "token": lease.token })).await?;
        let (journal, scribe) = Journal::after(&control.journal(0).await?);
        let back = Arc::new(WayBack::new(driver, lease));
        let gates = Gates::open(driver, lease).await?;
        let comparisons = gates.comparisons();
        let gates = Arc::new(tokio::sync::Mutex::new(gates));
        let (orders, ordered) = mpsc::channel(1);
        let switch = Arc::new(
            Switch::open((driver, lease), flows.clone(), back.clone(), gates.clone(), journal, ordered)
                .await?,
        );
        let rollback = Arc::new(Rollback::new((driver, lease), flows.clone(), orders.clone()));
        let traffic = Arc::new(Traffic::new((driver, lease), flows.clone()));
        let (completions, to_complete) = mpsc::channel(1);
        let completer = Completer::new(
            (driver, lease),
            flows.clone(),
            switch.clone(),
            gates.clone(),
            traffic.clone(),
            to_complete,
        );
        let service = Service {
            driver,
            lease,
            flows: flows.clone(),
            back: back.clone(),
            switch: switch.clone(),
            gates,
            rollback: rollback.clone(),
            orders,
            completions,
            read_orders: Default::default(),
            warnings: catalog_warnings,
            comparisons,
            seen: std::sync::Mutex::default(),
            slot: watch::Sender::default(),
        };
        Ok(Ready { unguarded: None, run, flows, back, switch, service, rollback, traffic, completer, scribe })
    }
}

/// The target's tables.
pub(super) fn targets(catalog: &Catalog) -> Vec<QualifiedName> {
    catalog.tables.iter().map(|table| table.target.clone()).collect()
}
