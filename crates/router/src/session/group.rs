//! What a group of messages is: a Query, or everything up to a Sync. Whether all of it is there, and proved to only read.

use super::Session;
use crate::classify::{Class, Classifier, StatementKind, Unit, Why};
use crate::frames::{self, Fields, Head, Malformed};
use crate::reads;
use crate::statements::OfClient;
use std::sync::Arc;

/// A longer group is the owner's: it would have to be kept.
pub(super) const GROUP_BYTES_MAX: usize = 64 * 1024;

/// So is one of more messages: as a whole it must have room among what may be owed, with a Parse and a Close for each.
const GROUP_MESSAGES_MAX: usize = 1_024;

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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reads {
    /// So long is it.
    pub(super) bytes: usize,
    /// The text that begins a read-only transaction in it.
    pub(super) opens: Option<Box<[u8]>>,
    /// It ends a transaction.
    pub(super) ends: bool,
    /// Groups before it that do nothing but close what was prepared: some clients do that whenever they speak next.
    pub(super) empties: usize,
    /// Statements that are executed and read.
    pub(super) reads: usize,
    /// The last one of them.
    pub(super) class: Option<Arc<Class>>,
    /// Whom a comment in it says that it is for.
    pub(super) tenant: Option<String>,
    /// Why one that begins as a read does is none.
    refused: Option<Why>,
}

impl Reads {
    /// Whether it is one read and a transaction of its own.
    pub(super) fn is_lone(&self) -> bool {
        self.reads == 1 && self.opens.is_none() && !self.ends && self.empties == 0
    }

    /// Whether another statement may be among the group, and what it does there.
    fn takes(&mut self, class: &Arc<Class>, text: &[u8]) -> bool {
        if self.tenant.is_none() {
            self.tenant = reads::tenant_in(text);
        }
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
            Unit::Owner(why) => {
                self.refused = Some(why).filter(|_| class.kind == StatementKind::Select);
                false
            }
            Unit::Read | Unit::BeginReadOnly | Unit::End => false,
        }
    }
}

/// Looks at the messages one after the other.
struct Scan<'a> {
    classifier: &'a Classifier,
    statements: &'a OfClient,
    group: Reads,
    parsed: Vec<(&'a [u8], &'a [u8])>,
    /// Portals, and whether each was executed.
    bound: Vec<(&'a [u8], bool)>,
}

impl Session {
    /// What the group of messages at the beginning of `input` is.
    pub(super) fn group(&self, input: &[u8]) -> Group {
        let mut scan = Scan {
            classifier: &self.shared.classifier,
            statements: &self.statements,
            group: Reads::default(),
            parsed: Vec::new(),
            bound: Vec::new(),
        };
        let (mut rest, mut starts, mut messages) = (input, true, 0);
        loop {
            let head = match frames::head(rest) {
                Ok(Some(head)) => head,
                Ok(None) => return Group::Partial,
                Err(_) => return Group::Owner(None),
            };
            let end = input.len() - rest.len() + head.bytes;
            messages += 1;
            if end > GROUP_BYTES_MAX || messages > GROUP_MESSAGES_MAX {
                return Group::Owner(None);
            }
            let Some(behind) = rest.get(head.bytes..) else { return Group::Partial };
            match scan.message(head, &rest[..head.bytes], starts) {
                Ok(true) => {}
                Ok(false) | Err(_) => return Group::Owner(scan.group.refused),
            }
            if head.tag == b'Q' || head.tag == b'S' && !scan.is_empty() {
                return scan.end(end, behind);
            }
            (rest, starts) = (behind, head.tag == b'S');
            if starts {
                scan.group.empties += 1;
                if behind.is_empty() {
                    return Group::Owner(None);
                }
            }
        }
    }
}

impl<'a> Scan<'a> {
    fn is_empty(&self) -> bool {
        self.parsed.is_empty() && self.bound.is_empty()
    }

    /// Its end has come. Whatever was bound must be executed, since a portal is not there on the other side, and nothing may
    /// come behind it.
    fn end(mut self, bytes: usize, behind: &[u8]) -> Group {
        if !behind.is_empty() || self.bound.iter().any(|(_, is_executed)| !is_executed) {
            return Group::Owner(None);
        }
        self.group.bytes = bytes;
        Group::Reads(self.group)
    }

    /// One message; `false`: it makes the group the owner's. `starts`: nothing of the group came before it.
    fn message(&mut self, head: Head, frame: &'a [u8], starts: bool) -> Result<bool, Malformed> {
        let mut fields = Fields::of(frame);
        Ok(match head.tag {
            b'Q' if starts => self.takes(fields.string()?),
            b'P' => {
                let (name, text) = (fields.string()?, fields.string()?);
                self.parsed.push((name, text));
                // What is parsed and not executed is looked at by the server all the same.
                match self.classifier.class(text).unit {
                    Unit::Read | Unit::BeginReadOnly | Unit::End => true,
                    Unit::Owner(_) => self.takes(text),
                }
            }
            b'B' => {
                let (portal, name) = (fields.string()?, fields.string()?);
                self.bound.push((portal, false));
                match self.text_of(name) {
                    Some(text) => self.takes(text),
                    None => false,
                }
            }
            b'E' => {
                let (portal, rows_max) = (fields.string()?, fields.int()?);
                let bound = self.bound.iter_mut().rev().find(|(known, _)| *known == portal);
                // A part of the rows leaves a portal open, for a group that comes later.
                bound.filter(|_| rows_max == 0).map(|bound| bound.1 = true).is_some()
            }
            // To be sent again, a group must find what it began with.
            b'C' => self.is_empty() || fields.byte()? == b'P',
            b'D' | b'S' => true,
            _ => false,
        })
    }

    fn takes(&mut self, text: &[u8]) -> bool {
        let class = self.classifier.class(text);
        self.group.takes(&class, text)
    }

    fn text_of(&self, name: &[u8]) -> Option<&'a [u8]> {
        let of_group = self.parsed.iter().rev().find(|(known, _)| *known == name).map(|(_, text)| *text);
        of_group.or_else(|| self.statements.get(name).map(|statement| statement.text()))
    }
}
