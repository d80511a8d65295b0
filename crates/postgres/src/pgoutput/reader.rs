//! Reads the fields of one message; every error says what was being read and where.

use super::POSTGRES_EPOCH_US;
use bytes::{Buf, Bytes};
use segue_model::position::Position;

/// A message that is not as the protocol has it. Fatal: a row may be behind it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ended too early.
    #[error("the message ends at byte {at}, within the {field}")]
    Short {
        /// What was being read.
        field: &'static str,
        /// Byte offset within the message.
        at: usize,
    },
    /// The message went on after its last field.
    #[error("{count} bytes are left after the last field, at byte {at}")]
    Trailing {
        /// How many.
        count: usize,
        /// Byte offset within the message.
        at: usize,
    },
    /// A kind of message, row or value that this protocol version does not have here.
    #[error("unknown kind of {what} `{}` at byte {at}", char::from(*.kind).escape_default())]
    Unknown {
        /// Kind of what.
        what: &'static str,
        /// The byte that names it.
        kind: u8,
        /// Byte offset within the message.
        at: usize,
    },
    /// Flags that this protocol version does not have.
    #[error("unknown {field} {flags:#04x} at byte {at}")]
    Flags {
        /// Which flags.
        field: &'static str,
        /// Their value.
        flags: u8,
        /// Byte offset within the message.
        at: usize,
    },
    /// A name that is not UTF-8, although the session's encoding is.
    #[error("the {field} at byte {at} is not UTF-8")]
    NotText {
        /// Which name.
        field: &'static str,
        /// Byte offset within the message.
        at: usize,
    },
}

pub(super) struct Reader {
    rest: Bytes,
    total: usize,
}

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Reader {
        Reader { total: bytes.len(), rest: bytes }
    }

    fn at(&self) -> usize {
        self.total - self.rest.len()
    }

    fn need(&self, field: &'static str, count: usize) -> Result<(), DecodeError> {
        if self.rest.len() < count { Err(DecodeError::Short { field, at: self.total }) } else { Ok(()) }
    }

    /// How many of `count` items of at least `bytes_min` bytes the message can still hold.
    pub(super) fn at_most(&self, count: usize, bytes_min: usize) -> usize {
        count.min(self.rest.len() / bytes_min)
    }

    pub(super) fn kind(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.need(field, 1)?;
        Ok(self.rest.get_u8())
    }

    /// The error for a kind that was read last.
    pub(super) fn unknown(&self, what: &'static str, kind: u8) -> DecodeError {
        DecodeError::Unknown { what, kind, at: self.at() - 1 }
    }

    pub(super) fn expect(&mut self, what: &'static str, kind: u8) -> Result<(), DecodeError> {
        let found = self.kind(what)?;
        if found == kind { Ok(()) } else { Err(self.unknown(what, found)) }
    }

    pub(super) fn flags(&mut self, field: &'static str, known: u8) -> Result<u8, DecodeError> {
        let flags = self.kind(field)?;
        if flags & !known == 0 {
            Ok(flags)
        } else {
            Err(DecodeError::Flags { field, flags, at: self.at() - 1 })
        }
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.need(field, 2)?;
        Ok(self.rest.get_u16())
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.need(field, 4)?;
        Ok(self.rest.get_u32())
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.need(field, 4)?;
        Ok(self.rest.get_i32())
    }

    pub(super) fn position(&mut self, field: &'static str) -> Result<Position, DecodeError> {
        self.need(field, 8)?;
        Ok(Position(self.rest.get_u64()))
    }

    /// A time as microseconds since the Unix epoch.
    pub(super) fn time(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.need(field, 8)?;
        Ok(self.rest.get_i64().saturating_add(POSTGRES_EPOCH_US))
    }

    /// Bytes behind their own 32-bit length.
    pub(super) fn sized(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let len = self.u32(field)? as usize;
        self.need(field, len)?;
        Ok(self.rest.split_to(len))
    }

    /// Text up to a zero byte.
    pub(super) fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let at = self.at();
        let Some(len) = self.rest.iter().position(|&b| b == 0) else {
            return Err(DecodeError::Short { field, at: self.total });
        };
        let text = self.rest.split_to(len);
        self.rest.advance(1);
        String::from_utf8(text.into()).map_err(|_| DecodeError::NotText { field, at })
    }

    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { count, at: self.at() }),
        }
    }
}
