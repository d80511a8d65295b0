//! From the client to the server: what is understood, what is renamed, and what has to be said before.

use super::link::shutting_down;
use super::tally;
use super::{Dropped, End, Session, WAITING_BYTES_MAX};
use crate::effects::{self, Change, Effects, Ending, Parsing, Pin};
use crate::frames::{self, Fields, Head, Malformed, Refusal, put_query};
use crate::gate::DRAIN;
use crate::pipeline::Owed;
use crate::reads;
use crate::serve::PoolMode;
use crate::statements::shared_id;
use bytes::Buf;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    /// Nothing, before there is more.
    Wait,
    /// A transaction wants to begin.
    Begin,
    /// A transaction of reads cannot go on where it is.
    Return,
}

/// What became of one frame.
pub(super) enum Frame {
    /// It goes as it is.
    Pass,
    /// Something else went, and it does not.
    Replaced,
    /// It is not all there yet.
    Unfinished,
}

impl Session {
    /// Moves what the client sent towards the server.
    pub(super) fn forward(&mut self) -> Result<Forward, End> {
        self.kept_back = false;
        if self.leaving {
            return Ok(Forward::Wait);
        }
        // The bytes at the beginning of `input` that go as they are.
        let mut run = 0;
        let next = loop {
            if self.client_rest > 0 {
                run = self.pass_rest(run);
                if self.client_rest > 0 {
                    break Forward::Wait;
                }
            }
            self.wanted_bytes = 0;
            let Some(head) = frames::head(&self.input[run..]).map_err(End::client)? else {
                break Forward::Wait;
            };
            if !is_of_client(head.tag) {
                return Err(End::client(Malformed::OutOfPlace(head.tag as char)));
            }
            if self.discarding {
                self.discard(head);
                continue;
            }
            if head.tag == b'X' {
                if !self.active {
                    return Err(End::Left);
                }
                // What was sent before it is still to be done, but nobody is there for whom it would be repeated.
                self.leaving = true;
                self.lone.armed = false;
                run += head.bytes;
                break Forward::Wait;
            }
            if !self.active {
                match self.outside(head)? {
                    Some(next) => break next,
                    None => continue,
                }
            }
            if self.must_wait(run) {
                self.kept_back = true;
                break Forward::Wait;
            }
            if self.reading.as_ref().is_some_and(|reading| !reading.proved) {
                match self.proves_next(run) {
                    Some(true) => {}
                    Some(false) => break Forward::Return,
                    None => {
                        self.wanted_bytes = run + super::group::GROUP_BYTES_MAX + 1;
                        break Forward::Wait;
                    }
                }
            }
            match self.frame(run, head)? {
                Frame::Pass => {
                    let there = self.input.len() - run;
                    self.client_rest = head.bytes.saturating_sub(there);
                    run += head.bytes.min(there);
                }
                Frame::Replaced => run = 0,
                Frame::Unfinished => break Forward::Wait,
            }
        };
        self.send(run);
        self.forget_lost();
        Ok(next)
    }

    /// Moves the first `run` bytes to the server.
    pub(super) fn send(&mut self, run: usize) {
        if let Some(link) = &mut self.link {
            link.out.take(&mut self.input, run);
        }
    }

    /// The rest of a frame that began earlier; it is dropped where the router has answered it.
    fn pass_rest(&mut self, run: usize) -> usize {
        let now = self.client_rest.min(self.input.len() - run);
        self.client_rest -= now;
        if self.active {
            return run + now;
        }
        self.input.advance(now);
        run
    }

    /// A message outside of a transaction: whether it begins one.
    fn outside(&mut self, head: Head) -> Result<Option<Forward>, End> {
        match head.tag {
            // Nothing is owed for these, and a COPY that they belonged to has failed.
            b'H' | b'd' | b'c' | b'f' => {
                self.client_rest = head.bytes;
                Ok(None)
            }
            _ if self.input.len() < head.bytes.min(WAITING_BYTES_MAX) => {
                // A server is not kept for a client that is still speaking.
                self.wanted_bytes = head.bytes.min(WAITING_BYTES_MAX);
                Ok(Some(Forward::Wait))
            }
            _ if self.cell.flags() & DRAIN != 0 => Err(End::Refused(shutting_down())),
            _ => Ok(Some(Forward::Begin)),
        }
    }

    /// After an answer of the router's own, everything up to the next Sync is dropped.
    fn discard(&mut self, head: Head) {
        // A Query that was answered is gone already: whatever comes now is new, unless it belongs to an extended group.
        match head.tag {
            b'S' => {
                frames::put_ready(self.to_client.buffer(), b'I');
                self.discarding = false;
            }
            b'X' => {
                self.discarding = false;
                return;
            }
            _ => {}
        }
        self.client_rest = head.bytes;
    }

    pub(super) fn must_wait(&self, run: usize) -> bool {
        let waiting = self.link.as_ref().map_or(0, |link| link.out.len());
        match self.reading.as_ref().map(|reading| reading.unsent) {
            // What comes next is looked at once the follower has answered this.
            Some(0) if self.pipeline.awaits_ready() => return true,
            // A group that is kept goes as a whole, and there is room for it: what stayed here would be sent twice if the
            // owner answers instead.
            Some(1..) => return false,
            Some(0) | None => {}
        }
        if waiting + run >= 2 * WAITING_BYTES_MAX || self.pipeline.is_full() {
            return true;
        }
        // Whether names mean something still is known once the server has thrown them away, or has not.
        if self.dropped.as_ref().is_some_and(|dropped| self.pipeline.boundaries() >= dropped.boundaries) {
            return true;
        }
        // Behind an unanswered boundary a new transaction would begin, perhaps on another owner.
        self.pipeline.awaits_ready()
            && !self.pipeline.in_group()
            && self.routes.has_changed().unwrap_or(false)
    }

    /// Waits for a whole frame, as long as one may be.
    pub(super) fn whole(&mut self, run: usize, head: Head) -> Result<bool, End> {
        if head.bytes > self.config.limits.statement_bytes_max {
            let message = format!("a statement of {} bytes is longer than the router takes", head.bytes);
            return Err(End::Refused(Refusal::fatal("54000", message)));
        }
        if self.input.len() - run >= head.bytes {
            return Ok(true);
        }
        self.wanted_bytes = run + head.bytes;
        Ok(false)
    }

    fn frame(&mut self, run: usize, head: Head) -> Result<Frame, End> {
        self.keep_lone(run);
        let owed = match head.tag {
            b'Q' => return self.query(run, head),
            b'P' => return self.parse(run, head),
            b'B' => return self.bind(run, head),
            b'D' | b'C' => return self.describe_or_close(run, head),
            b'E' => {
                if !self.whole(run, head)? {
                    return Ok(Frame::Unfinished);
                }
                self.note_execution(run).map_err(End::client)?;
                Owed::Execute
            }
            b'S' => {
                self.note_boundary();
                Owed::Sync
            }
            b'F' => {
                self.executes = true;
                Owed::Call
            }
            b'c' | b'f' => Owed::CopyEnd,
            _ => return Ok(Frame::Pass),
        };
        self.pipeline.sent(owed);
        Ok(Frame::Pass)
    }

    /// At the beginning of a transaction: whether it is a statement that could be sent again.
    fn keep_lone(&mut self, run: usize) {
        let is_first = self.pipeline.is_idle() || self.reading.is_some() && self.pipeline.owes_nothing();
        if std::mem::take(&mut self.lone.first) && run == 0 && is_first {
            match &self.reading {
                Some(reading) => self.lone.keep_read(&self.input[..reading.bytes.min(self.input.len())]),
                None => self.lone.keep(&self.input),
            }
            self.lone.armed = !self.lone.bytes.is_empty();
        } else if self.pipeline.awaits_ready() && self.reading.as_ref().is_none_or(|read| read.unsent == 0) {
            // Something is sent behind it: sent again, it would come after that.
            self.lone.armed = false;
        }
    }

    /// What the statement does to the session, if it succeeds.
    fn note(&mut self, effects: &Effects) {
        self.lone.armed &= effects.repeatable || self.reading.is_some();
        self.executes = true;
        self.note_parsing(effects);
        effects.tenants.iter().for_each(|tenant| self.named.insert(tenant));
        if !self.pending.note(effects, self.pipeline.boundaries()) {
            self.pin(Pin::Size);
        }
        if let Some(pin) = effects.pin {
            self.pin(pin);
        }
        if effects.endings.iter().any(|(_, ending)| *ending == Ending::RollbackTo) && self.pending.roll_back()
        {
            // Which of the changes are taken back is the server's knowledge.
            self.pin(Pin::Setting);
        }
    }

    /// What is parsed from here on is parsed by what was said, if that holds for certain: within a transaction that is open.
    fn note_parsing(&mut self, effects: &Effects) {
        let is_certain =
            self.pipeline.is_in_transaction() && !self.pipeline.awaits_ready() && effects.endings.is_empty();
        match effects.parsing {
            Parsing::Same if effects.endings.is_empty() || self.parsed_by.now == self.parsed_by.settled => {}
            Parsing::By(said) if is_certain => self.parsed_by.now = self.parsed_by.now.rotate_left(1) ^ said,
            Parsing::By(_) | Parsing::Unknown | Parsing::Same => {
                self.parsed_by.now = self.shared.texts.unknown_parsing();
            }
        }
    }

    fn note_execution(&mut self, run: usize) -> Result<(), Malformed> {
        let portal = Fields::of(&self.input[run..]).string()?;
        let statement =
            if portal.is_empty() { &self.last_bound } else { self.portals.get(portal).unwrap_or(&None) };
        match statement.clone() {
            Some(statement) => {
                let class = statement.class.get_or_init(|| self.shared.classifier.class(statement.text()));
                self.note_class(class, tally::trace_in(statement.text()));
                if let Some(tenant) = reads::tenant_in(statement.text()) {
                    self.named.insert(&tenant);
                }
                self.note(&statement.effects);
                self.note_on_server(&statement.effects.changes);
            }
            None => (self.lone.armed, self.executes) = (false, true),
        }
        Ok(())
    }

    /// Statements that SQL throws away.
    fn note_on_server(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::DeallocateAll | Change::DiscardAll => {
                    let named = self.statements.take_named();
                    let on_server = self.link.as_mut().map(|link| link.server.statements.take());
                    let dropped = Dropped {
                        boundaries: self.pipeline.boundaries() + 1,
                        named,
                        on_server: on_server.unwrap_or_default(),
                    };
                    // Of several, the first has all there was.
                    self.dropped.get_or_insert(dropped);
                }
                Change::Deallocate { name } => self.note_deallocated(name.as_bytes()),
                _ => {}
            }
        }
    }

    fn note_deallocated(&mut self, name: &[u8]) {
        let (is_shared, removed) = (self.config.pool == PoolMode::Transaction, self.statements.remove(name));
        let Some(link) = &mut self.link else { return };
        match removed {
            Some(statement) if !is_shared => link.server.statements.remove(statement.id),
            // Executed, it is not said by its name.
            Some(_) => drop(link.server.statements.take()),
            // Somebody's, perhaps, who parses it again then.
            None if is_shared => shared_id(name).into_iter().for_each(|id| link.server.statements.remove(id)),
            None => {}
        }
    }

    fn query(&mut self, run: usize, head: Head) -> Result<Frame, End> {
        if !self.whole(run, head)? {
            return Ok(Frame::Unfinished);
        }
        let text = Fields::of(&self.input[run..run + head.bytes]).string().map_err(End::client)?;
        let (class, trace) = (self.shared.classifier.class(text), tally::trace_in(text));
        let effects = class.plain.map_or_else(|| effects::read(text), Effects::none);
        let deallocates = self.is_shared().then(|| deallocating(text, &effects)).flatten();
        if let Some(tenant) = reads::tenant_in(text) {
            self.named.insert(&tenant);
        }
        self.note_class(&class, trace);
        if let Some(link) = &mut self.link {
            link.server.statements.drop_unnamed();
        }
        self.note(&effects);
        let deallocated = deallocates.and_then(|text| self.deallocated(&text));
        self.note_on_server(&effects.changes);
        self.note_boundary();
        self.pipeline.sent(Owed::Query);
        let Some(sql) = deallocated else { return Ok(Frame::Pass) };
        self.send(run);
        self.input.advance(head.bytes);
        if let Some(link) = &mut self.link {
            put_query(link.out.buffer(), &sql);
        }
        Ok(Frame::Replaced)
    }

    /// What a shared server is told instead of a text, where a name that it deallocates is one of the protocol's: the same, but
    /// for that.
    fn deallocated(&mut self, text: &[u8]) -> Option<Vec<u8>> {
        let (mut sql, mut copied) = (Vec::new(), 0);
        for (span, name) in effects::deallocations(text) {
            let Some(said) = self.deallocate(&name) else { continue };
            sql.extend_from_slice(&text[copied..span.start]);
            sql.extend(said);
            copied = span.end;
        }
        sql.extend_from_slice(&text[copied..]);
        (copied > 0).then_some(sql)
    }

    /// What a shared server is told instead of `DEALLOCATE name`; `None`: the name is none of the protocol's.
    fn deallocate(&mut self, name: &str) -> Option<Vec<u8>> {
        let statement = self.statements.remove(name.as_bytes())?;
        let link = self.link.as_mut()?;
        if link.server.statements.uses(&statement) {
            link.server.statements.remove(statement.id);
            return Some([b"DEALLOCATE ", &statement.server_name[..]].concat());
        }
        // It is not there. This is answered as it would be, and costs others no more than to parse again.
        link.server.statements.take();
        Some(b"DEALLOCATE ALL".to_vec())
    }
}

/// The text, if it deallocates by name.
fn deallocating(text: &[u8], effects: &Effects) -> Option<Vec<u8>> {
    effects.changes.iter().any(|change| matches!(change, Change::Deallocate { .. })).then(|| text.to_vec())
}

fn is_of_client(tag: u8) -> bool {
    matches!(tag, b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'S' | b'H' | b'F' | b'd' | b'c' | b'f' | b'X')
}
