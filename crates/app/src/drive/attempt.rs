//! One attempt at a migration, under one token: shut earlier processes out, read what is durable, make the stream if
//! there is none, run until something ends it.

use super::service::Service;
use super::verifying::Verifying;
use super::{Driver, plan};
use segue_engine::fault::Fault;
use segue_engine::follow::{self, build::BatchLimits};
use segue_engine::killpoint;
use segue_engine::migration::{Run, Settings};
use segue_engine::ports::Outcome;
use segue_model::stage::Stage;
use segue_postgres::authority::Authority;
use segue_postgres::birth::{self, Direction, StreamIdentity, WaitReport};
use segue_postgres::catalog::{self, Catalog};
use segue_postgres::control::{HEARTBEAT, Lease, shut_out};

use segue_postgres::leaves;
use segue_postgres::schema;
use segue_postgres::source::PgSource;
use segue_postgres::target::PgTarget;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Transactions in one batch at most: it bounds how much is replayed row by row after a conflict.
const BATCH_TRANSACTIONS_MAX: usize = 5_000;

/// One attempt.
pub(super) struct Attempt<'d> {
    pub(super) driver: &'d Driver,
    pub(super) lease: &'d Lease,
}

impl Attempt<'_> {
    /// Runs until it is told to end, and says by whom; or until a fault.
    pub(super) async fn run(&self) -> Outcome<String> {
        let (run, service) = tokio::select! {
            prepared = self.prepare() => prepared?,
            fault = self.keep_lease() => return Err(fault),
            never = self.name_standby() => match never {},
        };
        tokio::select! {
            fault = run.run() => Err(fault),
            ended = service.serve() => ended,
        }
    }

    /// Beats the heart while nothing else does; ends only when the lease is lost.
    async fn keep_lease(&self) -> Fault {
        loop {
            if let Err(fault) = self.driver.control.beat(self.lease).await {
                return fault;
            }
            tokio::time::sleep(HEARTBEAT).await;
        }
    }

    /// Says, once, that what is being prepared waits on the source for a standby: it goes on when that answers.
    async fn name_standby(&self) -> Infallible {
        let mut said = String::new();
        loop {
            tokio::time::sleep(HEARTBEAT).await;
            let look = async {
                let client = self.driver.sides.source.connect("watch").await?;
                catalog::server::waits_for_standby(&client).await
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

    async fn prepare(&self) -> Outcome<(Run<PgSource, PgTarget>, Service<'_>)> {
        let Driver { spec, sides, control, .. } = self.driver;
        let migration = spec.name.as_str();
        let journal = control.journal(0).await?;
        if journal.iter().any(|entry| entry.entry.kind == "preparing") {
            self.driver.begun.store(true, Ordering::Relaxed);
        }
        catalog::server::never_a_standby(&sides.source.connect("plan").await?).await?;
        for endpoint in sides.written() {
            schema::ensure(&mut endpoint.connect("schema").await?).await?;
            for holder in shut_out(endpoint, migration, self.lease.token, true).await? {
                self.driver.screen.say(&format!("ended a transaction of an earlier process: {holder:?}"));
            }
        }
        let orphaned = json!({ "fault": "the driver that took this command has died", "code": "SEGUE-DRIVER-DIED",
            "next_step": "ask again: another driver has taken over" });
        control.answer_orphans(self.lease, &orphaned).await?;
        let catalog = plan::plan(spec, sides).await?;
        let journal = control.journal(0).await?;
        let target = sides.target.connect("stream").await?;
        let identity = match birth::known(&target, migration, Direction::Forward).await? {
            Some((identity, checkpoint)) => {
                self.driver.check_unchanged(&journal, &catalog.tables)?;
                let source = sides.source.connect("stream").await?;
                birth::resume_check(&source, &identity, checkpoint).await?;
                identity
            }
            None => self.give_birth(&catalog, &target).await?,
        };
        self.open(catalog, identity).await
    }

    /// Makes the stream: publication, slot, barrier, and the target's row that binds them.
    async fn give_birth(
        &self,
        catalog: &Catalog,
        target: &tokio_postgres::Client,
    ) -> Outcome<StreamIdentity> {
        let Driver { spec, sides, screen, .. } = self.driver;
        let filled = catalog::nonempty_targets(target, &catalog.tables).await?;
        match filled.len() {
            0 => {}
            1 => return Err(filled[0].clone()),
            count => return Err(plan::together(count, &filled)),
        }
        let body = json!({ "plan": plan::remembered(&catalog.tables) });
        self.driver.record(self.lease, "preparing", body.clone()).await?;
        self.driver.begun.store(true, Ordering::Relaxed);
        let (migration, token) = (spec.name.as_str(), self.lease.token);
        let mut said = String::new();
        let report = |wait: WaitReport| {
            let text = wait.to_string();
            if text != said {
                screen.say(&text);
                said = text;
            }
        };
        let identity = birth::birth(
            &sides.source.marked(migration),
            migration,
            Direction::Forward,
            token,
            &catalog.relations,
            report,
        )
        .await?;
        self.driver.record(self.lease, "born", body).await?;
        leaves::remember_born(target, &identity, token, &catalog.relations).await?;
        birth::claim(target, token, &identity).await?;
        killpoint::pass("birth.claimed");
        Ok(identity)
    }

    async fn open(
        &self,
        catalog: Catalog,
        identity: StreamIdentity,
    ) -> Outcome<(Run<PgSource, PgTarget>, Service<'_>)> {
        let Driver { spec, sides, throttle, .. } = self.driver;
        let token = self.lease.token;
        let tables: Vec<_> = catalog.tables.into_iter().map(Arc::new).collect();
        let authority = Authority {
            migration: identity.migration.clone(),
            direction: identity.direction,
            token,
            incarnation: identity.incarnation,
        };
        let slot = identity.slot.clone();
        let (source, target) =
            (sides.source.marked(spec.name.as_str()), sides.target.marked(spec.name.as_str()));
        let known = {
            let (from, to) = (source.connect("leaves").await?, target.connect("leaves").await?);
            leaves::settle(&from, &to, &identity, token, tables.len(), &catalog.relations).await?
        };
        let source = PgSource::open(source, identity, token, &tables, known).await?;
        let target = PgTarget::new(target, authority);
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let settings = Settings {
            workers: spec.copy.workers,
            region_target: spec.copy.region_target,
            follow: follow::Limits {
                memory_bytes_max: bytes(spec.limits.memory_bytes_max),
                batch: BatchLimits {
                    bytes_max: bytes(spec.apply.batch_bytes_max),
                    transactions_max: BATCH_TRANSACTIONS_MAX,
                },
            },
        };
        let (source, target) = (Arc::new(source), Arc::new(target));
        let run = Run::prepare(source, target, tables, throttle.clone(), settings).await?;
        let stage = *run.stage().borrow();
        let kind = if stage == Stage::Following { "following" } else { "backfilling" };
        self.driver.record(self.lease, kind, json!({ "token": token })).await?;
        let service = Service {
            driver: self.driver,
            lease: self.lease,
            progress: run.progress(),
            stage: run.stage(),
            slot,
            warnings: catalog.warnings,
            verifying: Verifying::open(self.driver, run.handles()).await?,
        };
        Ok((run, service))
    }
}
