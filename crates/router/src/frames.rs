//! Frames of the wire protocol, both directions: tag, length, bounds; what the router says itself; the fields of errors.
//!
//! It does no I/O, and does not know in which order frames may come: that is [`pipeline`](crate::pipeline).

use bytes::{BufMut, BytesMut};
use std::ffi::CStr;

/// A tag and a length that counts itself.
pub(crate) const HEADER_BYTES: usize = 5;
/// No server makes or takes a longer frame.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Bytes that are not the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A length that cannot be.
    #[error("a frame of type {tag:?} claims a length of {length} bytes")]
    Length {
        /// The frame's type.
        tag: char,
        /// What it claims.
        length: u32,
    },
    /// A field runs past the end of its frame, or has no end.
    #[error("a frame of type {0:?} ends inside one of its fields")]
    Short(char),
    /// A type that has no place here.
    #[error("a frame of type {0:?} is out of place")]
    OutOfPlace(char),
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) tag: u8,
    /// Of the whole frame, tag and length included.
    pub(crate) bytes: usize,
}

/// The head at the beginning of `buffer`, or `None` where it is not all there.
pub(crate) fn head(buffer: &[u8]) -> Result<Option<Head>, Malformed> {
    let [tag, a, b, c, d, ..] = *buffer else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    match length as usize {
        bytes @ 4..FRAME_BYTES_MAX => Ok(Some(Head { tag, bytes: bytes + 1 })),
        _ => Err(Malformed::Length { tag: tag as char, length }),
    }
}

/// Reads the fields of one frame's body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of a whole frame.
    pub(crate) fn of(frame: &'a [u8]) -> Fields<'a> {
        let tag = frame.first().copied().unwrap_or_default();
        Fields { tag, rest: frame.get(HEADER_BYTES..).unwrap_or_default() }
    }

    /// The fields of a frame's body, whose head was taken off.
    pub(crate) fn of_body(tag: u8, body: &'a [u8]) -> Fields<'a> {
        Fields { tag, rest: body }
    }

    /// The error for what is not as it must be.
    pub(crate) fn short(&self) -> Malformed {
        Malformed::Short(self.tag as char)
    }

    /// What has not been read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.rest.split_first().ok_or(self.short())?;
        self.rest = rest;
        Ok(first)
    }

    pub(crate) fn int(&mut self) -> Result<u32, Malformed> {
        let (four, rest) = self.rest.split_first_chunk::<4>().ok_or(self.short())?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*four))
    }

    pub(crate) fn short_int(&mut self) -> Result<u16, Malformed> {
        let (two, rest) = self.rest.split_first_chunk::<2>().ok_or(self.short())?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*two))
    }

    /// The next `length` bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(self.short())?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A value with its length before it; `None`: null.
    pub(crate) fn value(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.int()? {
            u32::MAX => Ok(None),
            length => Ok(Some(self.bytes(length as usize)?)),
        }
    }

    /// A string, without the zero byte that ends it.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        // It looks at many bytes at once.
        let string = CStr::from_bytes_until_nul(self.rest).map_err(|_| self.short())?.to_bytes();
        self.rest = &self.rest[string.len() + 1..];
        Ok(string)
    }
}

/// Appends a frame, whose body `fill` writes.
pub(crate) fn put(into: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    into.put_u8(tag);
    put_untagged(into, fill);
}

/// Appends a frame that has no tag, as the first one of a connection.
pub(crate) fn put_untagged(into: &mut BytesMut, fill: impl FnOnce(&mut BytesMut)) {
    let start = into.len();
    into.put_u32(0);
    fill(into);
    let length = u32::try_from(into.len() - start).unwrap_or(u32::MAX);
    into[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a string and its zero byte. A zero byte inside would end it early, so it ends there.
pub(crate) fn put_string(into: &mut BytesMut, string: &[u8]) {
    let end = string.iter().position(|&byte| byte == 0).unwrap_or(string.len());
    into.put_slice(&string[..end]);
    into.put_u8(0);
}

pub(crate) fn put_query(into: &mut BytesMut, sql: &[u8]) {
    put(into, b'Q', |body| put_string(body, sql));
}

pub(crate) fn put_parameter(into: &mut BytesMut, name: &[u8], value: &[u8]) {
    put(into, b'S', |body| {
        put_string(body, name);
        put_string(body, value);
    });
}

pub(crate) fn put_ready(into: &mut BytesMut, status: u8) {
    put(into, b'Z', |body| body.put_u8(status));
}

/// What the router itself tells a client that it cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Whether the connection ends with it.
    pub(crate) fatal: bool,
    /// SQLSTATE.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn fatal(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { fatal: true, code, message: message.into(), hint: None }
    }

    pub(crate) fn error(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { fatal: false, code, message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: &'static str) -> Refusal {
        self.hint = Some(hint);
        self
    }

    pub(crate) fn put(&self, into: &mut BytesMut) {
        let severity: &[u8] = if self.fatal { b"FATAL" } else { b"ERROR" };
        put(into, b'E', |body| {
            let mut field = |tag: u8, value: &[u8]| {
                body.put_u8(tag);
                put_string(body, value);
            };
            field(b'S', severity);
            field(b'V', severity);
            field(b'C', self.code.as_bytes());
            field(b'M', self.message.as_bytes());
            if let Some(hint) = self.hint {
                field(b'H', hint.as_bytes());
            }
            body.put_u8(0);
        });
    }
}

/// The value of one field of an ErrorResponse (a whole frame); empty where it has none.
pub(crate) fn error_field(frame: &[u8], wanted: u8) -> Result<&[u8], Malformed> {
    let mut fields = Fields::of(frame);
    loop {
        match fields.byte()? {
            0 => return Ok(&[]),
            tag => {
                let value = fields.string()?;
                if tag == wanted {
                    return Ok(value);
                }
            }
        }
    }
}

/// Whether an ErrorResponse is the fence's refusal: the code alone proves nothing, since a standby gives it too.
pub(crate) fn is_fence(frame: &[u8]) -> bool {
    let code = error_field(frame, b'C').unwrap_or_default();
    code == b"25006" && error_field(frame, b'n').is_ok_and(|constraint| constraint.starts_with(b"segue:"))
}

/// Whether the server closes the connection behind an ErrorResponse.
pub(crate) fn is_fatal(frame: &[u8]) -> bool {
    matches!(error_field(frame, b'V'), Ok(b"FATAL" | b"PANIC"))
}

/// Code and message of an ErrorResponse, for people.
pub(crate) fn describe_error(frame: &[u8]) -> String {
    let field = |tag| String::from_utf8_lossy(error_field(frame, tag).unwrap_or_default()).into_owned();
    format!("{} (SQLSTATE {})", field(b'M'), field(b'C'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_head_is_awaited_until_it_is_whole() {
        assert_eq!(head(b""), Ok(None));
        assert_eq!(head(b"Q\0\0\0"), Ok(None));
        assert_eq!(head(b"Q\0\0\0\x04"), Ok(Some(Head { tag: b'Q', bytes: 5 })));
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for length in [0u32, 3, 1 << 30, u32::MAX] {
            let mut frame = vec![b'Q'];
            frame.extend(length.to_be_bytes());
            assert_eq!(head(&frame), Err(Malformed::Length { tag: 'Q', length }));
        }
    }

    #[test]
    fn what_is_put_can_be_read() {
        let mut out = BytesMut::new();
        Refusal::fatal("57P01", "going").hint("later").put(&mut out);
        assert_eq!(head(&out), Ok(Some(Head { tag: b'E', bytes: out.len() })));
        assert_eq!(error_field(&out, b'C'), Ok(&b"57P01"[..]));
        assert_eq!(error_field(&out, b'M'), Ok(&b"going"[..]));
        assert_eq!(error_field(&out, b'H'), Ok(&b"later"[..]));
        assert_eq!(error_field(&out, b'x'), Ok(&b""[..]));
        assert!(!is_fence(&out) && is_fatal(&out));
    }

    #[test]
    fn only_code_and_constraint_together_are_the_fence() {
        for (code, constraint, fence) in [
            ("25006", "segue:m", true),
            ("25006", "", false),
            ("25006", "other", false),
            ("23505", "segue:m", false),
        ] {
            let mut out = BytesMut::new();
            put(&mut out, b'E', |body| {
                for (tag, value) in [(b'C', code), (b'n', constraint)] {
                    body.put_u8(tag);
                    put_string(body, value.as_bytes());
                }
                body.put_u8(0);
            });
            assert_eq!(is_fence(&out), fence, "{code} {constraint}");
        }
    }

    #[test]
    fn a_field_without_an_end_is_an_error() {
        let mut out = BytesMut::new();
        put(&mut out, b'E', |body| body.put_slice(b"Cabc"));
        assert_eq!(error_field(&out, b'M'), Err(Malformed::Short('E')));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = head(&bytes);
            let _ = error_field(&bytes, b'C');
            let _ = is_fence(&bytes);
            let _ = describe_error(&bytes);
            let mut fields = Fields::of(&bytes);
            while fields.string().is_ok() && fields.int().is_ok() && fields.byte().is_ok() {}
        }
    }
}
