//! Reads that the follower serves: which ones, that they show what their session has seen, and the way back to the owner.
//!
//! A read goes there only as a whole group of messages that is all there, with nothing behind it, and is kept until its
//! answer begins: whatever goes wrong before that, the owner answers it. A transaction that says that it only reads goes as
//! a unit, and returns to the owner at the first statement that is not proved to be a read.

use super::group::{GROUP_BYTES_MAX, Group};
use super::link::{shutting_down, within};
use super::{End, Link, Session};
use crate::frames::Refusal;
use crate::gate::{DRAIN, END};
use crate::pipeline::Pipeline;
use crate::reads;
use segue_model::switch::Side;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// Opening a connection to the follower is not a read's own time, but it is waited for no longer.
const OPENING_MAX: Duration = Duration::from_secs(1);
/// Ending a transaction on the follower.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);

/// Makes a transaction fail, and says in the server's log why.
const FAILS: &str = "SELECT 'a transaction that has failed on the follower'::pg_catalog.int4";

/// The share is the target's; once it owns the writes, it serves everything.
const READER: Side = Side::Target;

/// A transaction that the follower serves.
pub(super) struct Reading {
    /// What the client opened it with, to be said to the owner if it has to return.
    opened_by: Option<Box<[u8]>>,
    /// Whom it is for.
    tenant: Option<String>,
    /// The group that is under way was proved to be a read.
    pub(super) proved: bool,
    /// Of the group's commands so many end before the first read's answer begins.
    pub(super) preludes: usize,
    /// Its length.
    pub(super) bytes: usize,
    /// So many groups that do nothing come before it.
    pub(super) empties: usize,
    /// So many ReadyForQuery are owed for what was proved, and not sent for yet.
    pub(super) unsent: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Session {
    /// A transaction begins: which reads the follower serves, if the session could be among those whom it serves.
    pub(super) fn wants_reading(&mut self) -> Option<Arc<reads::Reads>> {
        if std::mem::take(&mut self.stays) {
            return None;
        }
        if !self.shared.feeds.reads.borrow().is_any() {
            if let Some(unwanted) = self.aside.take_if(|aside| aside.reads) {
                self.end_link(*unwanted, true);
            }
            return None;
        }
        let may = self.route.owner != READER && self.may_read_elsewhere();
        may.then(|| Arc::clone(&self.shared.feeds.reads.borrow()))
    }

    /// Whether the follower is to serve the transaction that begins, and can. `false`: it is the owner's.
    pub(super) async fn begin_reading(&mut self, wanted: Arc<reads::Reads>) -> Result<bool, End> {
        let group = match self.group(&self.input) {
            Group::Reads(group) => group,
            Group::Owner(why) => {
                why.inspect(|why| self.shared.served.kept(*why));
                return Ok(false);
            }
            Group::Partial => return Ok(false),
        };
        // A commit without a transaction is a warning of the owner's.
        if group.opens.is_none() && (group.ends || group.reads == 0) {
            return Ok(false);
        }
        self.reads_owner = group.opens.is_none().then_some(group.empties + 1);
        let tenant = group.tenant.clone().or_else(|| self.tenant());
        if !wanted.chooses_target(tenant.as_deref(), self.lot) {
            return Ok(false);
        }
        if !self.shows_enough(tenant.as_deref()).await? {
            self.shared.counters.reads_too_early.add_one();
            return Ok(false);
        }
        if !self.shared.breaker.admits(Instant::now()) {
            self.shared.counters.reads_not_admitted.add_one();
            return Ok(false);
        }
        if !self.link_reader().await? {
            return Ok(false);
        }
        let limit = self.config.reads.answer_max;
        self.cell.enter_reading();
        self.shared.counters.reads.add_one();
        let preludes = usize::from(group.opens.is_some() && group.reads > 0);
        self.reads_owner = None;
        self.reading = Some(Box::new(Reading {
            opened_by: group.opens,
            tenant,
            proved: true,
            preludes,
            bytes: group.bytes,
            empties: group.empties,
            unsent: group.empties + 1,
            deadline: Box::pin(tokio::time::sleep(limit)),
        }));
        Ok(true)
    }

    /// Whether this session is the same on any server, as far as reads can tell.
    pub(super) fn may_read_elsewhere(&self) -> bool {
        let reported = |name: &[u8]| self.told.get(name).unwrap_or_default();
        self.pin.is_none()
            && !self.settings.pins()
            && !self.unlike
            && !self.differs_at_start
            && reported(b"standard_conforming_strings") == b"on"
            && (reported(b"client_encoding") == b"UTF8" || self.input.is_ascii())
            && !self.settings.reads_differ()
    }

    /// Whom the session's statements are for, if it says so.
    pub(super) fn tenant(&self) -> Option<String> {
        self.settings.tenant().or_else(|| self.tenant_at_start.clone())
    }

    /// What the follower must show before it serves this session and tenant.
    fn shows(&self, tenant: Option<&str>) -> impl Fn(&Option<reads::Fresh>) -> bool + Send + use<> {
        let seen = self.seen.max(tenant.and_then(|tenant| self.shared.tenants.seen(tenant)));
        let oldest = Instant::now().checked_sub(self.config.reads.stale_max);
        let epoch = self.route.epoch;
        move |fresh| fresh.is_some_and(|fresh| fresh.epoch == epoch && Some(fresh.as_of) > seen.max(oldest))
    }

    /// Whether the follower shows everything that the session has seen, perhaps after a moment. Who has just written is not
    /// made to wait: the owner serves it as fast as ever. Who only reads comes back to the follower by that.
    async fn shows_enough(&mut self, tenant: Option<&str>) -> Result<bool, End> {
        let shows = self.shows(tenant);
        let mut fresh = self.shared.feeds.fresh.clone();
        if shows(&fresh.borrow()) {
            return Ok(true);
        }
        let limit = self.config.reads.wait_max;
        if self.has_written || limit.is_zero() {
            return Ok(false);
        }
        let waiting = tokio::time::timeout(limit, async move { fresh.wait_for(shows).await.is_ok() });
        Ok(self.in_queue(waiting).await?.is_some_and(|waited| waited == Ok(true)))
    }

    /// Sees to it that there is a server of the follower; `false`: there is none now.
    async fn link_reader(&mut self) -> Result<bool, End> {
        let linked = tokio::time::timeout(OPENING_MAX, self.link(READER)).await;
        let is_linked = self.link.as_ref().is_some_and(|link| link.server.side == READER);
        let outcome = match linked {
            Ok(Ok(())) if is_linked => {
                self.uses_both |= !self.is_shared();
                let parameters = self.link.as_ref().map(|link| Arc::clone(&link.server.parameters));
                if parameters.is_some_and(|parameters| parameters.reads_as(&self.told)) {
                    return Ok(true);
                }
                self.differs("they write values in different ways");
                Ok(false)
            }
            // Another route, which may lead elsewhere.
            Ok(Ok(())) => Ok(false),
            _ if self.cell.flags() & (DRAIN | END) != 0 => Err(End::Refused(shutting_down())),
            Ok(Err(end @ (End::ClientGone | End::Client(_)))) => Err(end),
            // It is the client that gives up.
            Ok(Err(End::Refused(refusal))) if refusal.code == "57014" => Err(End::Refused(refusal)),
            Ok(Err(End::NotTaken(why))) => {
                self.differs(&why);
                Ok(false)
            }
            Ok(Err(_)) | Err(_) => {
                self.fail(Failure::Unreachable);
                Ok(false)
            }
        };
        self.take_back_owners();
        outcome
    }

    /// What the session depends on is not the same on both sides: it is left alone until it sets something else.
    fn differs(&mut self, why: &str) {
        tracing::info!(user = %self.startup.user, why, "a session's reads stay with the owner: the sides differ");
        self.unlike = true;
    }

    /// The session's own server on the owner's side is at hand again, and what served reads is not needed.
    fn take_back_owners(&mut self) {
        self.leave_link();
        if let Some(owners) = self.aside.take_if(|aside| !aside.reads)
            && let Some(reader) = self.link.replace(*owners)
        {
            self.end_link(reader, true);
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.shared.counters.reads_failed.add_one();
        if self.shared.breaker.failed(Instant::now()) {
            tracing::warn!(why = %failure, "reads go to the owner for a while: the follower does not serve them");
        }
    }

    /// Within a transaction of reads, before its next group: `None`: it is not all there yet; `false`: it is the owner's.
    pub(super) fn proves_next(&mut self, run: usize) -> Option<bool> {
        let group = match self.group(&self.input[run..]) {
            Group::Partial if self.input.len() - run <= GROUP_BYTES_MAX => return None,
            Group::Reads(group) if group.opens.is_none() => group,
            Group::Reads(_) | Group::Partial | Group::Owner(_) => return Some(false),
        };
        if self.pipeline.is_in_failed_transaction() {
            // What ends it and does nothing else can go on here, and is not sent again; the owner judges all the rest.
            let only_ends = group.ends && group.reads == 0;
            if let Some(reading) = self.reading.as_mut().filter(|_| only_ends) {
                (reading.proved, reading.empties) = (true, group.empties);
                reading.unsent = group.empties + 1;
            }
            self.lone.first = false;
            return Some(only_ends);
        }
        let tenant = self.reading.as_ref().and_then(|reading| reading.tenant.clone());
        let is_served = !self.shared.feeds.reads.borrow().contained
            && self.shows(tenant.as_deref())(&self.shared.feeds.fresh.borrow());
        if !is_served && !group.ends {
            return Some(false);
        }
        let limit = self.config.reads.answer_max;
        if let Some(reading) = &mut self.reading {
            (reading.proved, reading.preludes, reading.bytes) = (true, 0, group.bytes);
            (reading.empties, reading.unsent) = (group.empties, group.empties + 1);
            reading.deadline.as_mut().reset((Instant::now() + limit).into());
        }
        self.lone.first = true;
        Some(true)
    }

    /// A Sync or a Query goes to the follower.
    pub(super) fn note_boundary(&mut self) {
        if let Some(reading) = &mut self.reading {
            reading.unsent = reading.unsent.saturating_sub(1);
        }
        // What comes behind the owner's read may be more than one.
        self.reads_owner = self.reads_owner.and_then(|left| left.checked_sub(1));
    }

    /// Whether the follower has been asked and has not begun to answer in time.
    pub(super) fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let armed = self.lone.armed;
        self.reading.as_mut().is_some_and(|reading| armed && reading.deadline.as_mut().poll(cx).is_ready())
    }

    /// Nothing of the answer was passed on: the owner answers instead.
    pub(super) async fn fall_back(&mut self, failure: Failure) -> Result<(), End> {
        let Some(reading) = self.reading.take() else { return Ok(()) };
        self.shared.counters.reads_repeated.add_one();
        match failure {
            // Whether it is the follower's fault is known once the owner has answered.
            Failure::Refused => self.suspects = true,
            _ => self.fail(failure),
        }
        let mut again = std::mem::take(&mut self.lone.bytes);
        again.extend_from_slice(&self.input);
        self.input = again;
        (self.lone.armed, self.server_rest) = (false, 0);
        let is_clean =
            failure == Failure::Refused && reading.opened_by.is_none() && self.lone.parsed.is_empty();
        for serial in self.lone.parsed.drain(..) {
            self.statements.forget(serial);
        }
        let in_transaction = self.pipeline.is_in_transaction() && reading.opened_by.is_some();
        if let Some(link) = &mut self.link {
            // Which of them came to be is not known: they are parsed again where they are needed.
            self.pipeline.owed_statements().for_each(|id| link.server.statements.remove(id));
        }
        self.pipeline = Pipeline::default();
        self.pending.clear();
        self.sampling = None;
        self.tally.take_back();
        (self.last_bound, self.active, self.stays) = (None, false, true);
        self.shared.gate.leave(&self.cell);
        if let Some(link) = self.link.take() {
            match failure {
                Failure::Late => self.cancel_reader(link),
                _ => self.leave_reader(link, is_clean),
            }
        }
        if in_transaction {
            self.resume_on_owner(reading.opened_by, false).await
        } else {
            self.portals.clear();
            Ok(())
        }
    }

    /// A server has served reads, or has not; the session's own on the owner's side takes its place. `is_clean`: it has
    /// answered everything, and no transaction is open. Else it is nobody's any more.
    fn leave_reader(&mut self, link: Link, is_clean: bool) {
        if self.is_shared() {
            return self.end_link(link, is_clean);
        }
        self.link = self.aside.take().map(|owners| *owners);
        if is_clean { self.aside = Some(Box::new(link)) } else { self.end_link(link, false) }
    }

    /// The server may be at work on it still: closing the connection does not stop what runs.
    fn cancel_reader(&mut self, link: Link) {
        let key = link.server.cancel.clone();
        self.leave_reader(link, false);
        let Some(key) = key else { return };
        let limit = self.config.limits.connect_max;
        tokio::spawn(async move {
            if let Err(error) = key.send(limit).await {
                tracing::debug!(%error, "a late read could not be cancelled");
            }
        });
    }

    /// A statement comes that is not proved to be a read: the transaction goes on with the owner, where nothing of it was done
    /// yet, and has failed there too if it has failed here. Only READ COMMITTED gets here, where each statement has a snapshot
    /// of its own.
    pub(super) async fn return_to_owner(&mut self) -> Result<(), End> {
        let Some(reading) = self.reading.take() else { return Ok(()) };
        self.shared.counters.reads_returned.add_one();
        (self.lone.armed, self.active) = (false, false);
        let has_failed = self.pipeline.is_in_failed_transaction();
        self.pipeline = Pipeline::default();
        self.shared.gate.leave(&self.cell);
        if let Some(mut link) = self.link.take() {
            let ended = tokio::time::timeout(ROLLBACK_MAX, link.server.ask(&["ROLLBACK"])).await;
            let is_clean = matches!(ended, Ok(Ok(None)));
            link.server.statements.drop_unnamed();
            self.leave_reader(link, is_clean);
        }
        self.resume_on_owner(reading.opened_by, has_failed).await
    }

    /// The follower is gone between two statements of a transaction of reads, of which nothing is owed.
    pub(super) async fn resume_after_loss(&mut self) -> Result<(), End> {
        let Some(reading) = self.reading.take() else { return Ok(()) };
        self.fail(Failure::Lost);
        (self.lone.armed, self.active, self.server_rest) = (false, false, 0);
        self.pipeline = Pipeline::default();
        self.shared.gate.leave(&self.cell);
        if let Some(link) = self.link.take() {
            self.leave_reader(link, false);
        }
        self.resume_on_owner(reading.opened_by, false).await
    }

    /// Whether a transaction of reads is open, and nothing is owed of it.
    pub(super) fn rests_reading(&self) -> bool {
        let is_open = self.pipeline.is_in_transaction() && !self.pipeline.is_in_failed_transaction();
        self.reading.is_some() && is_open && self.pipeline.owes_nothing() && self.client_rest == 0
    }

    async fn resume_on_owner(&mut self, opened_by: Option<Box<[u8]>>, has_failed: bool) -> Result<(), End> {
        if self.leaving {
            // Nobody would ever end it there.
            return Err(End::Left);
        }
        self.portals.clear();
        if !self.enter_owner().await? {
            let why = "a transaction of reads could not go on where the writes are";
            return Err(End::Refused(Refusal::fatal("08006", why).hint("Connect again.")));
        }
        let (Some(link), Some(begin)) = (&mut self.link, opened_by) else { return Ok(()) };
        let limit = self.config.limits.connect_max;
        if let Some(why) = within(limit, link.server.ask(&[&begin])).await? {
            let why = format!("a transaction of reads could not go on where the writes are: {why}");
            return Err(End::Refused(Refusal::fatal("40001", why).hint("Try again.")));
        }
        if has_failed {
            within(limit, link.server.ask(&[FAILS])).await?;
        }
        link.server.statements.drop_unnamed();
        self.pipeline =
            if has_failed { Pipeline::in_failed_transaction() } else { Pipeline::in_transaction() };
        (self.active, self.lone.first) = (true, false);
        Ok(())
    }

    /// An owner has answered `now`: whoever reads elsewhere must be shown as much.
    pub(super) fn saw_owner(&mut self, now: Instant) {
        // What is prepared or closed shows nothing.
        if self.reading.is_some() || !self.executes {
            return;
        }
        self.seen = Some(now);
        self.has_written = self.reads_owner.is_none();
        if !self.has_written {
            return;
        }
        self.shared.tenants.saw_all(&self.named, now);
        if let Some(tenant) = self.tenant() {
            self.shared.tenants.saw(&tenant, now);
        }
    }

    /// A transaction has ended.
    pub(super) fn settle_reading(&mut self) {
        self.named.clear();
        (self.reads_owner, self.executes) = (None, false);
        if self.reading.take().is_none() {
            return;
        }
        self.shared.breaker.succeeded();
        if !self.is_shared() {
            // Between transactions a session depends on the owner alone.
            let reader = self.link.take().map(Box::new);
            self.link = std::mem::replace(&mut self.aside, reader).map(|owners| *owners);
        }
    }

    /// The owner has answered what the follower refused.
    pub(super) fn judge_follower(&mut self, failed: bool) {
        if std::mem::take(&mut self.suspects) && !failed {
            self.fail(Failure::Refused);
        }
    }
}

/// Why the follower did not serve a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("it cannot be reached")]
    Unreachable,
    #[error("it does not answer in time")]
    Late,
    #[error("its connection is lost")]
    Lost,
    #[error("it refuses what the owner answers")]
    Refused,
}
