//! Values as statement parameters: always text, never part of the statement.

use bytes::{BufMut, Bytes, BytesMut};
use segue_model::change::Value;
use std::error::Error;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

/// A parameter in the text form of whatever type the statement gives it.
#[derive(Clone, Debug)]
pub(super) enum Param {
    /// One value.
    One(Value),
    /// The text of an array whose delimiter is a comma.
    Array(Bytes),
}

/// Values with more text than this do not travel as parameters, of which the client holds two more copies at once.
pub(super) const LARGE_BYTES_MIN: usize = 8 << 20;

impl Param {
    /// The text of a value that is too large to be a parameter.
    pub(super) fn large(&self) -> Option<&Bytes> {
        match self {
            Param::One(Value::Text(text)) if text.len() > LARGE_BYTES_MIN => Some(text),
            Param::One(_) | Param::Array(_) => None,
        }
    }

    /// An array of values.
    pub(super) fn many<'v>(values: impl IntoIterator<Item = &'v Value>) -> Param {
        let mut out = BytesMut::new();
        match put_array(values, &mut out) {
            Ok(()) => Param::Array(out.freeze()),
            // Cannot be written either, and says so.
            Err(NotCarried) => Param::One(Value::Unchanged),
        }
    }

    /// Text in it.
    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Param::One(value) => value.len_bytes(),
            Param::Array(text) => text.len(),
        }
    }

    pub(super) fn text(text: impl Into<String>) -> Param {
        Param::One(Value::Text(text.into().into()))
    }
}

impl ToSql for Param {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Param::One(Value::Null) => return Ok(IsNull::Yes),
            Param::One(Value::Text(text)) => out.put_slice(text),
            Param::Array(text) => out.put_slice(text),
            Param::One(Value::Unchanged) => return Err(NotCarried.into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A parameter of a statement that finds the large ones elsewhere: those are NULL here.
#[derive(Debug)]
pub(super) struct Staged<'a>(pub(super) &'a Param);

impl ToSql for Staged<'_> {
    fn to_sql(&self, sql_type: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        if self.0.large().is_some() { Ok(IsNull::Yes) } else { self.0.to_sql(sql_type, out) }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A value that the stream did not carry is to be written.
#[derive(Debug, thiserror::Error)]
#[error("a value that the stream did not carry")]
struct NotCarried;

/// `{"a","b",NULL}`: every value in quotes, so that nothing in it has a meaning.
fn put_array<'v>(values: impl IntoIterator<Item = &'v Value>, out: &mut BytesMut) -> Result<(), NotCarried> {
    out.put_u8(b'{');
    for (i, value) in values.into_iter().enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        match value {
            Value::Null => out.put_slice(b"NULL"),
            Value::Unchanged => return Err(NotCarried),
            Value::Text(text) => put_quoted(text, out),
        }
    }
    out.put_u8(b'}');
    Ok(())
}

fn put_quoted(text: &[u8], out: &mut BytesMut) {
    out.reserve(text.len() + 2);
    out.put_u8(b'"');
    for piece in text.split_inclusive(|b| matches!(b, b'"' | b'\\')) {
        match piece.split_last() {
            Some((special @ (b'"' | b'\\'), before)) => {
                out.put_slice(before);
                out.put_u8(b'\\');
                out.put_u8(*special);
            }
            _ => out.put_slice(piece),
        }
    }
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_quote_every_value() {
        let text = |t: &'static str| Value::Text(t.into());
        let values = vec![text("a"), Value::Null, text("NULL"), text(""), text(r#"q"\x,{}"#)];
        let mut out = BytesMut::new();
        Param::many(&values).to_sql(&Type::TEXT_ARRAY, &mut out).unwrap();
        assert_eq!(&out[..], br#"{"a",NULL,"NULL","","q\"\\x,{}"}"#);
    }

    #[test]
    fn what_the_stream_did_not_carry_is_never_written() {
        for param in [Param::One(Value::Unchanged), Param::many([&Value::Unchanged])] {
            assert!(param.to_sql(&Type::TEXT, &mut BytesMut::new()).is_err());
        }
    }
}
