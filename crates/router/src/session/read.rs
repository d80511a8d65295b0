//! Reads that the follower serves: which ones, that they show what their session has seen, and the way back to the owner.
//!
//! A read goes there only as a whole group of messages that is all there, with nothing behind it, and is kept until its
//! answer begins: whatever goes wrong before that, the owner answers it. A transaction that says that it only reads goes as
//! a unit, and returns to the owner at the first statement that is not proved to be a read.

use super::{End, Link, Session};
use crate::classify::{Class, StatementKind, Unit, Why};
use crate::frames::{self, Fields};
use crate::pipeline::Pipeline;
use crate::reads;
use segue_model::switch::Side;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// A longer group is the owner's: it would have to be kept.
pub(super) const GROUP_BYTES_MAX: usize = 64 * 1024;
/// Opening a connection to the follower is not a read's own time, but it is waited for no longer.
const OPENING_MAX: Duration = Duration::from_secs(1);
/// Ending a transaction on the follower.
const ROLLBACK_MAX: Duration = Duration::from_secs(1);

/// A transaction that the follower serves.
pub(super) struct Reading {
    /// What the client opened it with, to be said to the owner if it has to return.
    opened_by: Option<Box<[u8]>>,
    /// The group that is under way was proved to be a read.
    pub(super) proved: bool,
    /// Of the group's commands so many end before the first read's answer begins.
    pub(super) preludes: usize,
    /// So many groups that do nothing come before it.
    pub(super) empties: usize,
    /// So many ReadyForQuery are owed for what was proved, and not sent for yet.
    pub(super) unsent: usize,
    deadline: Pin<Box<Sleep>>,
}

/// What a group of messages is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Group {
    /// Its end is not there yet.
    Partial,
    /// The owner's; of a statement that begins as a read does, why.
    Owner(Option<Why>),
    Reads(Reads),
}

/// A group that is proved to do nothing but read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reads {
    /// The text that begins a read-only transaction in it.
    opens: Option<Box<[u8]>>,
    /// It ends a transaction.
    ends: bool,
    /// Groups before it that do nothing but close what was prepared: some clients do that whenever they speak next.
    empties: usize,
    /// Statements that are executed and read.
    reads: usize,
    /// The last one of them.
    pub(super) class: Option<Arc<Class>>,
    /// Why one that begins as a read does is none.
    refused: Option<Why>,
}

impl Session {
    /// A transaction begins: whether the follower is to serve it, and can. `false`: it is the owner's.
    pub(super) async fn begin_reading(&mut self) -> Result<bool, End> {
        if std::mem::take(&mut self.stays) {
            return Ok(false);
        }
        let wanted = self.shared.feeds.reads.borrow().clone();
        // The share is the target's; once it owns the writes, it serves everything.
        let side = Side::Target;
        if !wanted.is_any()
            && let Some(unwanted) = self.aside.take()
        {
            self.end_link(unwanted, true);
        }
        if !wanted.is_any() || self.route.owner == side || !self.may_read_elsewhere() {
            return Ok(false);
        }
        let in_text = reads::tenant_in(&self.input[..self.input.len().min(GROUP_BYTES_MAX)]);
        let tenant = in_text.or_else(|| self.tenant());
        if !wanted.chooses_target(tenant.as_deref(), self.lot) {
            return Ok(false);
        }
        let group = match self.group(&self.input) {
            Group::Reads(group) => group,
            Group::Owner(why) => {
                why.inspect(|why| self.shared.served.kept(*why));
                return Ok(false);
            }
            Group::Partial => return Ok(false),
        };
        // A commit without a transaction is a warning of the owner's.
        if group.ends && group.opens.is_none() || (group.reads == 0 && group.opens.is_none()) {
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
        if !self.link_reader(side).await? {
            return Ok(false);
        }
        let limit = self.config.reads.answer_max;
        self.cell.enter_reading();
        self.shared.counters.reads.add_one();
        let preludes = usize::from(group.opens.is_some() && group.reads > 0);
        self.reading = Some(Reading {
            opened_by: group.opens,
            proved: true,
            preludes,
            empties: group.empties,
            unsent: group.empties + 1,
            deadline: Box::pin(tokio::time::sleep(limit)),
        });
        (self.active, self.lone.first) = (true, true);
        Ok(true)
    }

    /// Whether this session is the same on any server, as far as reads can tell.
    pub(super) fn may_read_elsewhere(&self) -> bool {
        let reported = |name: &[u8]| self.told.get(name).unwrap_or_default();
        self.pin.is_none()
            && !self.settings.pins()
            && !self.unlike
            && reported(b"standard_conforming_strings") == b"on"
            && (reported(b"client_encoding") == b"UTF8" || self.input.is_ascii())
            && !self.settings.reads_differ()
    }

    /// Whom the session's statements are for, if it says so.
    fn tenant(&self) -> Option<String> {
        self.settings.tenant().or_else(|| self.tenant_at_start.clone())
    }

    /// Whether the follower shows everything that the session has seen, perhaps after a moment.
    async fn shows_enough(&mut self, tenant: Option<&str>) -> Result<bool, End> {
        let seen = self.seen.max(tenant.and_then(|tenant| self.shared.tenants.seen(tenant)));
        let epoch = self.route.epoch;
        let oldest = Instant::now().checked_sub(self.config.reads.stale_max);
        let shows = move |fresh: &Option<reads::Fresh>| {
            fresh.is_some_and(|fresh| fresh.epoch == epoch && Some(fresh.as_of) > seen.max(oldest))
        };
        let mut fresh = self.shared.feeds.fresh.clone();
        if shows(&fresh.borrow()) {
            return Ok(true);
        }
        let limit = self.config.reads.wait_max;
        if limit.is_zero() {
            return Ok(false);
        }
        let waiting = tokio::time::timeout(limit, async move { fresh.wait_for(shows).await.is_ok() });
        Ok(self.in_queue(waiting).await?.is_some_and(|waited| waited == Ok(true)))
    }

    /// Sees to it that there is a server of the follower; `false`: there is none now.
    async fn link_reader(&mut self, side: Side) -> Result<bool, End> {
        let linked = tokio::time::timeout(OPENING_MAX, self.link(side)).await;
        match linked {
            Ok(Ok(())) if self.link.as_ref().is_some_and(|link| link.server.side == side) => {}
            // Another route, which may lead elsewhere.
            Ok(Ok(())) => return Ok(false),
            Ok(Err(end @ (End::ClientGone | End::Client(_)))) => return Err(end),
            Ok(Err(End::Refused(refusal))) if matches!(refusal.code, "57014" | "57P01") => {
                // It is the client that gives up, or the router that ends.
                return Err(End::Refused(refusal));
            }
            Ok(Err(_)) | Err(_) => {
                self.fail(Failure::Unreachable);
                return Ok(false);
            }
        }
        self.uses_both |= !self.is_shared();
        let is_alike = self.link.as_ref().is_some_and(|link| link.server.parameters.reads_as(&self.told));
        if !is_alike {
            // Its answers would be written in another way.
            tracing::warn!(user = %self.startup.user, "the sides write values in different ways: reads stay with the owner");
            self.unlike = true;
            self.leave_link();
        }
        Ok(is_alike)
    }

    fn fail(&mut self, failure: Failure) {
        self.shared.counters.reads_failed.add_one();
        if self.shared.breaker.failed(Instant::now()) {
            tracing::warn!(why = %failure, "reads go to the owner for a while: the follower does not serve them");
        }
    }

    /// What a group of messages at the beginning of `input` is.
    pub(super) fn group(&self, input: &[u8]) -> Group {
        let mut group = Reads { opens: None, ends: false, empties: 0, reads: 0, class: None, refused: None };
        let mut parsed: Vec<(&[u8], &[u8])> = Vec::new();
        let mut bound: Vec<(&[u8], Option<Arc<Class>>)> = Vec::new();
        let (mut rest, mut starts) = (input, true);
        if input.len() > GROUP_BYTES_MAX {
            return Group::Owner(None);
        }
        loop {
            let head = match frames::head(rest) {
                Ok(Some(head)) if head.bytes <= GROUP_BYTES_MAX => head,
                Ok(None) => return Group::Partial,
                _ => return Group::Owner(None),
            };
            let Some(behind) = rest.get(head.bytes..) else { return Group::Partial };
            let mut fields = Fields::of(&rest[..head.bytes]);
            let taken = match head.tag {
                b'Q' if starts && behind.is_empty() => fields.string().ok().and_then(|text| {
                    let class = self.shared.classifier.class(text);
                    group.takes(&class, text).then_some(())
                }),
                b'P' => fields
                    .string()
                    .and_then(|name| Ok((name, fields.string()?)))
                    .ok()
                    .map(|both| parsed.push(both)),
                b'B' => fields.string().and_then(|portal| Ok((portal, fields.string()?))).ok().and_then(
                    |(portal, name)| {
                        let text = self.text_of(&parsed, name)?;
                        let class = self.shared.classifier.class(text);
                        let known = group.takes(&class, text).then_some(class)?;
                        bound.push((portal, Some(known)));
                        Some(())
                    },
                ),
                b'E' => fields.string().ok().and_then(|portal| {
                    let is_bound = bound.iter().any(|(name, _)| *name == portal);
                    // One that is open in a transaction of reads was proved to be a read when it was bound.
                    let is_open = self.reading.is_some() && self.portals.contains_key(portal);
                    (is_bound || is_open).then(|| group.reads += usize::from(!is_bound))
                }),
                b'D' | b'C' => Some(()),
                b'S' if behind.is_empty() => return Group::Reads(group),
                b'S' if parsed.is_empty() && bound.is_empty() => {
                    group.empties += 1;
                    Some(())
                }
                _ => None,
            };
            if taken.is_none() {
                return Group::Owner(group.refused);
            }
            if head.tag == b'Q' {
                return Group::Reads(group);
            }
            (rest, starts) = (behind, head.tag == b'S');
        }
    }

    fn text_of<'a>(&'a self, parsed: &[(&[u8], &'a [u8])], name: &[u8]) -> Option<&'a [u8]> {
        let of_group = parsed.iter().rev().find(|(known, _)| *known == name).map(|(_, text)| *text);
        of_group.or_else(|| self.statements.get(name).map(|statement| statement.text()))
    }

    /// Within a transaction of reads, before its next group: `None`: it is not all there yet; `false`: it is the owner's.
    pub(super) fn proves_next(&mut self, run: usize) -> Option<bool> {
        let group = self.group(&self.input[run..]);
        let empties = match group {
            Group::Partial if self.input.len() - run <= GROUP_BYTES_MAX => return None,
            Group::Reads(reads) if reads.opens.is_none() => Some(reads.empties),
            Group::Reads(_) | Group::Partial | Group::Owner(_) => None,
        };
        let is_read = empties.is_some();
        if let Some(empties) = empties {
            let limit = self.config.reads.answer_max;
            if let Some(reading) = &mut self.reading {
                (reading.proved, reading.preludes) = (true, 0);
                (reading.empties, reading.unsent) = (empties, empties + 1);
                reading.deadline.as_mut().reset((Instant::now() + limit).into());
            }
            self.lone.first = true;
        }
        Some(is_read)
    }

    /// A Sync or a Query goes to the follower.
    pub(super) fn note_boundary(&mut self) {
        if let Some(reading) = &mut self.reading {
            reading.unsent = reading.unsent.saturating_sub(1);
        }
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
            self.resume_on_owner(reading.opened_by).await
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
        self.link = self.aside.take();
        if is_clean { self.aside = Some(link) } else { self.end_link(link, false) }
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
    /// yet. Only READ COMMITTED gets here, where each statement has a snapshot of its own.
    pub(super) async fn return_to_owner(&mut self) -> Result<(), End> {
        let Some(reading) = self.reading.take() else { return Ok(()) };
        self.shared.counters.reads_returned.add_one();
        (self.lone.armed, self.active) = (false, false);
        self.pipeline = Pipeline::default();
        self.shared.gate.leave(&self.cell);
        if let Some(mut link) = self.link.take() {
            let ended = tokio::time::timeout(ROLLBACK_MAX, link.server.ask(&["ROLLBACK"])).await;
            let is_clean = matches!(ended, Ok(Ok(None)));
            self.leave_reader(link, is_clean);
        }
        self.resume_on_owner(reading.opened_by).await
    }

    async fn resume_on_owner(&mut self, opened_by: Option<Box<[u8]>>) -> Result<(), End> {
        let open_portals = std::mem::take(&mut self.portals);
        if !self.enter_owner().await? {
            let why = "a transaction of reads could not go on where the writes are";
            return Err(End::Refused(crate::frames::Refusal::fatal("08006", why).hint("Connect again.")));
        }
        let (Some(link), Some(begin)) = (&mut self.link, opened_by) else { return Ok(()) };
        if let Some(why) = link.server.ask(&[&begin]).await? {
            let why = format!("a transaction of reads could not go on where the writes are: {why}");
            return Err(End::Refused(crate::frames::Refusal::fatal("40001", why).hint("Try again.")));
        }
        link.server.statements.drop_unnamed();
        drop(open_portals);
        self.pipeline = Pipeline::in_transaction();
        (self.active, self.lone.first) = (true, false);
        Ok(())
    }

    /// A transaction has ended: what does that say of the follower, and what must it show from now on?
    pub(super) fn settle_reading(&mut self) {
        match self.reading.take() {
            Some(_) => {
                self.shared.breaker.succeeded();
                if !self.is_shared() {
                    // Between transactions a session depends on the owner alone.
                    std::mem::swap(&mut self.link, &mut self.aside);
                }
            }
            None => {
                let now = Instant::now();
                self.seen = Some(now);
                if let Some(tenant) = self.tenant_in_text.take().or_else(|| self.tenant()) {
                    self.shared.tenants.saw(&tenant, now);
                }
            }
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

impl Reads {
    /// Whether it is one read and a transaction of its own.
    pub(super) fn is_lone(&self) -> bool {
        self.reads == 1 && self.opens.is_none() && !self.ends && self.empties == 0
    }

    /// Whether another statement may be among the group, and what it does there.
    fn takes(&mut self, class: &Arc<Class>, text: &[u8]) -> bool {
        match class.unit {
            Unit::Read if !self.ends => {
                self.reads += 1;
                self.class = Some(Arc::clone(class));
                true
            }
            Unit::BeginReadOnly if self.opens.is_none() && self.reads == 0 && !self.ends => {
                self.opens = Some(text.into());
                true
            }
            Unit::End if !self.ends => {
                self.ends = true;
                true
            }
            Unit::Owner(why) if class.kind == StatementKind::Select => {
                self.refused = Some(why);
                false
            }
            Unit::Read | Unit::BeginReadOnly | Unit::End | Unit::Owner(_) => false,
        }
    }
}
