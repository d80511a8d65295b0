//! Prepared statements on their way to the server: named as the server knows them, and parsed there where they are missing.

use super::forward::Frame;
use super::{End, Session};
use crate::effects;
use crate::frames::{Fields, Head, Refusal, put, put_string};
use crate::pipeline::Owed;
use crate::serve::PoolMode;
use crate::statements::{Statement, shared_name};
use bytes::{Buf, BufMut};
use std::sync::Arc;

/// A Bind's two names are looked for in so many bytes.
const NAMES_BYTES_MAX: usize = 8 * 1024;
/// More are not remembered: each holds the server's memory too.
const PORTALS_MAX: usize = 1_024;
/// No statement has this name on a shared server: closing it is answered, and does nothing.
const NO_STATEMENT: &[u8] = b"segue_0";
/// The statement that failed or was refused before it was given a number.
const NO_ID: u64 = 0;
const NO_SERIAL: u64 = u64::MAX;

impl Session {
    pub(super) fn parse(&mut self, run: usize, head: Head) -> Result<Frame, End> {
        if !self.whole(run, head)? {
            return Ok(Frame::Unfinished);
        }
        let frame = &self.input[run..run + head.bytes];
        let mut fields = Fields::of(frame);
        let name = fields.string().map_err(End::client)?;
        let body = fields.rest();
        let text = fields.string().map_err(End::client)?;
        let is_shared = self.config.pool == PoolMode::Transaction;
        let known = self.statements.parsed_by(name, self.parsed_by.now, &self.shared.texts);
        let statement = match &known {
            // A name that is in use: the server says so itself, and what it means stays.
            Some(known) if !name.is_empty() && (!is_shared || known.body[..] != *body) => {
                return Ok(self.parse_again(run, head, &Arc::clone(known)));
            }
            Some(known) if known.body[..] == *body => Arc::clone(known),
            _ if is_shared => match self.deallocating(name, body) {
                Some(statement) => statement,
                None if name.is_empty() => self.shared.texts.own(name, body, effects::read(text)),
                None => self.shared.texts.shared(self.parsed_by.now, body, || effects::read(text)),
            },
            _ => self.shared.texts.own(name, body, effects::read(text)),
        };
        let Some(serial) = self.statements.insert(name, Arc::clone(&statement)) else {
            return Err(End::Refused(Refusal::fatal("53400", "too many prepared statements")));
        };
        Ok(self.send_parse(run, head, &statement, serial))
    }

    /// What a shared server is told to parse instead of a DEALLOCATE of one of the protocol's names. Whether the server has it
    /// is known once it is executed: it throws away whatever it has, which costs others no more than to parse again.
    fn deallocating(&self, name: &[u8], body: &[u8]) -> Option<Arc<Statement>> {
        let text_bytes = body.iter().position(|byte| *byte == 0)?;
        let (text, types) = body.split_at(text_bytes);
        let deallocated = effects::deallocation(text)?;
        self.statements.get(deallocated.as_bytes()).filter(|_| !deallocated.is_empty())?;
        let effects = effects::read(text);
        let body = [b"DEALLOCATE ALL", types].concat();
        Some(match name {
            b"" => self.shared.texts.own(name, &body, effects),
            _ => self.shared.texts.own_on_shared(&body, effects),
        })
    }

    /// A Parse under a name that means something already.
    fn parse_again(&mut self, run: usize, head: Head, known: &Arc<Statement>) -> Frame {
        let was_sent = self.ensure(run, known);
        self.pipeline.sent(Owed::Parse { statement: NO_ID, serial: NO_SERIAL });
        if self.is_shared() {
            let run = if was_sent { 0 } else { run };
            let mut fields = Fields::of(&self.input[run..run + head.bytes]);
            // It was read before.
            let _ = fields.string();
            let body = fields.rest().to_vec();
            self.replace_parse(run, head, &known.server_name, &body);
            return Frame::Replaced;
        }
        if was_sent { self.pass_replaced(head) } else { Frame::Pass }
    }

    fn send_parse(&mut self, run: usize, head: Head, statement: &Arc<Statement>, serial: u64) -> Frame {
        let owed = Owed::Parse { statement: statement.id, serial };
        if !(self.is_shared() || self.uses_both) || statement.server_name.is_empty() {
            if let Some(link) = &mut self.link {
                let _ = link.server.statements.insert(statement, false);
            }
            if !statement.server_name.is_empty() {
                self.lone.armed &= self.pin.is_none();
                self.lone.parsed.push(serial);
            }
            self.pipeline.sent(owed);
            if !self.input[..run + head.bytes].ends_with(&statement.body) {
                self.replace_parse(run, head, b"", &statement.body);
                return Frame::Replaced;
            }
            return Frame::Pass;
        }
        if !self.is_shared() {
            self.lone.armed &= self.pin.is_none();
            self.lone.parsed.push(serial);
        }
        self.send(run);
        self.make_room(statement);
        self.pipeline.sent(owed);
        self.replace_parse(0, head, &statement.server_name, &statement.body);
        Frame::Replaced
    }

    /// Sends another name, and perhaps another body, with the Parse at `run`; what is before it goes first.
    fn replace_parse(&mut self, run: usize, head: Head, name: &[u8], body: &[u8]) {
        self.send(run);
        self.input.advance(head.bytes);
        if let Some(link) = &mut self.link {
            put(link.out.buffer(), b'P', |out| {
                put_string(out, name);
                out.put_slice(body);
            });
        }
    }

    fn close_on_server(&mut self, server_name: &[u8]) {
        self.pipeline.sent(Owed::Close { ours: true });
        if let Some(link) = &mut self.link {
            put(link.out.buffer(), b'C', |out| {
                out.put_u8(b'S');
                put_string(out, server_name);
            });
        }
    }

    /// Before a Parse: the name is made free, whether or not it is taken, and so is the place of another statement.
    fn make_room(&mut self, statement: &Statement) {
        let is_shared = self.is_shared();
        let Some(link) = &mut self.link else { return };
        let evicted = link.server.statements.insert(statement, is_shared);
        if !statement.server_name.is_empty() {
            self.close_on_server(&statement.server_name);
        }
        if let Some(evicted) = evicted {
            self.close_on_server(&shared_name(evicted));
        }
    }

    /// Sees to it that the server has a statement; `true`: what was before it was sent, and `run` is 0 now.
    fn ensure(&mut self, run: usize, statement: &Arc<Statement>) -> bool {
        let Some(link) = &mut self.link else { return false };
        if link.server.statements.uses(statement) {
            return false;
        }
        self.send(run);
        self.make_room(statement);
        self.pipeline.sent(Owed::Parse { statement: statement.id, serial: 0 });
        if let Some(link) = &mut self.link {
            put(link.out.buffer(), b'P', |out| {
                put_string(out, &statement.server_name);
                out.put_slice(&statement.body);
            });
        }
        true
    }

    pub(super) fn bind(&mut self, run: usize, head: Head) -> Result<Frame, End> {
        let frame = &self.input[run..(run + head.bytes).min(self.input.len())];
        let mut fields = Fields::of(frame);
        let names = fields.string().and_then(|portal| Ok((portal, fields.string()?)));
        let (portal, name) = match names {
            Ok(names) => names,
            Err(_) if frame.len() < head.bytes.min(NAMES_BYTES_MAX) => {
                self.wanted_bytes = run + head.bytes.min(NAMES_BYTES_MAX);
                return Ok(Frame::Unfinished);
            }
            Err(error) => return Err(End::client(error)),
        };
        let after_names = frame.len() - fields.rest().len();
        let statement = self.statements.parsed_by(name, self.parsed_by.now, &self.shared.texts);
        let rename = statement.as_ref().filter(|statement| *statement.server_name != *name);
        let renamed = rename.map(|statement| {
            let bytes = head.bytes - name.len() + statement.server_name.len() - 1;
            let mut start = Vec::with_capacity(64);
            start.put_u8(b'B');
            start.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
            start.put_slice(portal);
            start.put_u8(0);
            start.put_slice(&statement.server_name);
            start.put_u8(0);
            start
        });
        let portal: Option<Box<[u8]>> = (!portal.is_empty()).then(|| portal.into());
        let was_sent = statement.as_ref().is_some_and(|statement| self.ensure(run, statement));
        match portal {
            None => self.last_bound = statement,
            Some(_) if self.portals.len() >= PORTALS_MAX => {
                return Err(End::Refused(Refusal::fatal("53400", "too many portals in one transaction")));
            }
            Some(name) => drop(self.portals.insert(name, statement)),
        }
        self.pipeline.sent(Owed::Bind);
        let run = if was_sent { 0 } else { run };
        let Some(start) = renamed else {
            return Ok(if was_sent { self.pass_replaced(head) } else { Frame::Pass });
        };
        self.send(run);
        self.input.advance(after_names);
        if let Some(link) = &mut self.link {
            link.out.buffer().put_slice(&start);
        }
        self.client_rest = head.bytes - after_names;
        Ok(Frame::Replaced)
    }

    /// Passes the frame at the beginning of `input`, after something was said before it.
    fn pass_replaced(&mut self, head: Head) -> Frame {
        self.client_rest = head.bytes;
        Frame::Replaced
    }

    pub(super) fn describe_or_close(&mut self, run: usize, head: Head) -> Result<Frame, End> {
        if !self.whole(run, head)? {
            return Ok(Frame::Unfinished);
        }
        let mut fields = Fields::of(&self.input[run..run + head.bytes]);
        let of_statement = fields.byte().map_err(End::client)? == b'S';
        let name = fields.string().map_err(End::client)?;
        let owed = if head.tag == b'D' { Owed::Describe } else { Owed::Close { ours: false } };
        if !of_statement {
            self.pipeline.sent(owed);
            return Ok(Frame::Pass);
        }
        let name = name.to_vec();
        if head.tag == b'C' {
            return Ok(self.close(run, head, &name));
        }
        let statement = self.statements.parsed_by(&name, self.parsed_by.now, &self.shared.texts);
        let Some(statement) = statement else {
            self.pipeline.sent(owed);
            return Ok(Frame::Pass);
        };
        let was_sent = self.ensure(run, &statement);
        self.pipeline.sent(owed);
        if *statement.server_name != *name {
            self.replace_named(if was_sent { 0 } else { run }, head, &statement.server_name);
            return Ok(Frame::Replaced);
        }
        Ok(if was_sent { self.pass_replaced(head) } else { Frame::Pass })
    }

    fn close(&mut self, run: usize, head: Head, name: &[u8]) -> Frame {
        self.pipeline.sent(Owed::Close { ours: false });
        let Some(statement) = self.statements.remove(name) else { return Frame::Pass };
        if *statement.server_name == *name {
            if let Some(link) = &mut self.link {
                link.server.statements.remove(statement.id);
            }
            return Frame::Pass;
        }
        // The statement itself stays, for others who share it.
        self.replace_named(run, head, NO_STATEMENT);
        Frame::Replaced
    }

    /// Sends a Describe or Close with another statement's name.
    fn replace_named(&mut self, run: usize, head: Head, name: &[u8]) {
        self.send(run);
        self.input.advance(head.bytes);
        if let Some(link) = &mut self.link {
            put(link.out.buffer(), head.tag, |out| {
                out.put_u8(b'S');
                put_string(out, name);
            });
        }
    }

    /// Statements whose Parse failed, or was never looked at, are not there.
    pub(super) fn forget_lost(&mut self) {
        for lost in self.pipeline.take_lost() {
            if let Some(link) = &mut self.link {
                link.server.statements.remove(lost.statement);
            }
            if lost.serial != 0 {
                self.statements.forget(lost.serial);
            }
            if let Some(dropped) = &mut self.dropped {
                dropped.named.forget(lost.serial);
                dropped.on_server.remove(lost.statement);
            }
        }
    }
}
