//! What a server sends in a walsender session, cut out of its bytes. No I/O.

use crate::error::{Report, fault_of_report};
use bytes::{Buf, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{self, Message};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use tokio_postgres::error::SqlState;

/// A server cannot build a larger message than 1 GiB; the slack is for headers.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + (1 << 20);
/// Tag and length.
const HEADER_BYTES: usize = 5;

/// One thing that a copy-both stream delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A piece of the plugin's output: one message.
    Data {
        /// The message.
        payload: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// Everything that committed before it has been sent.
        log_end: Position,
        /// The server ends the session soon if nothing is answered.
        reply_requested: bool,
    },
}

/// A message of the server.
pub(super) enum Backend {
    /// Any message of the ordinary protocol that is not singled out below.
    Ordinary(Message),
    /// The stream begins.
    CopyBoth,
    /// A piece of it.
    CopyData(Bytes),
    /// The server ended it.
    CopyDone,
    /// The server refused, or gave up.
    Error(Fault),
    /// Notices and parameters: of no consequence here.
    Aside,
}

impl Backend {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Backend::Ordinary(_) => "an answer to a query",
            Backend::CopyBoth => "the start of a stream",
            Backend::CopyData(_) => "a piece of a stream",
            Backend::CopyDone => "the end of a stream",
            Backend::Error(_) => "an error",
            Backend::Aside => "a notice",
        }
    }
}

/// The fault for bytes that the protocol does not have.
pub(super) fn broken(what: &str) -> Fault {
    Fault::retry("SEGUE-PROTOCOL", format!("replication session: {what}"))
}

/// Cuts the first message off `buffer`; `None` (with room reserved for the rest) if it is not complete yet.
pub(super) fn cut(buffer: &mut BytesMut) -> Outcome<Option<Backend>> {
    if buffer.len() < HEADER_BYTES {
        return Ok(None);
    }
    let tag = buffer[0];
    let len = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
    if !(4..=MESSAGE_BYTES_MAX).contains(&len) {
        return Err(broken(&format!("a message of {len} bytes")));
    }
    if buffer.len() < len + 1 {
        buffer.reserve(len + 1 - buffer.len());
        return Ok(None);
    }
    Ok(Some(match tag {
        b'W' => {
            buffer.advance(len + 1);
            Backend::CopyBoth
        }
        b'd' => {
            let mut message = buffer.split_to(len + 1).freeze();
            message.advance(HEADER_BYTES);
            Backend::CopyData(message)
        }
        b'c' => {
            buffer.advance(len + 1);
            Backend::CopyDone
        }
        b'N' | b'S' | b'A' => {
            buffer.advance(len + 1);
            Backend::Aside
        }
        _ => match Message::parse(buffer).map_err(|e| broken(&e.to_string()))? {
            None => return Ok(None),
            Some(Message::ErrorResponse(body)) => Backend::Error(reported(&body)),
            Some(message) => Backend::Ordinary(message),
        },
    }))
}

/// The fault behind an ErrorResponse.
fn reported(body: &backend::ErrorResponseBody) -> Fault {
    let [mut severity, mut code, mut message, mut detail, mut hint] = [const { String::new() }; 5];
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'S' => severity = value,
            b'C' => code = value,
            b'M' => message = value,
            b'D' => detail = value,
            b'H' => hint = value,
            _ => {}
        }
    }
    fault_of_report(&Report {
        severity: &severity,
        code: &SqlState::from_code(&code),
        message: &message,
        detail: Some(detail.as_str()).filter(|d| !d.is_empty()),
        context: None,
        hint: Some(hint.as_str()).filter(|h| !h.is_empty()),
    })
}

/// Reads the inside of a piece of the stream.
pub(super) fn frame(mut data: Bytes) -> Outcome<Frame> {
    let kind = data.first().copied();
    match kind {
        // start, end, time
        Some(b'w') if data.len() >= 25 => {
            data.advance(25);
            Ok(Frame::Data { payload: data })
        }
        // end, time, reply
        Some(b'k') if data.len() == 18 => {
            data.advance(1);
            let log_end = Position(data.get_u64());
            data.advance(8);
            Ok(Frame::Keepalive { log_end, reply_requested: data.get_u8() != 0 })
        }
        Some(kind @ (b'w' | b'k')) => {
            Err(broken(&format!("a `{}` frame of {} bytes", char::from(kind), data.len())))
        }
        Some(kind) => Err(broken(&format!("unknown kind of frame `{}`", char::from(kind).escape_default()))),
        None => Err(broken("an empty frame")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use segue_testkit::instructions::HotLoop;
    use std::hint::black_box;

    const FRAMES: usize = 1_000;

    /// What a server sends: messages as long as a change of pgbench's, and a sign of life now and then.
    fn sent() -> Vec<u8> {
        let mut out = Vec::new();
        for index in 0..FRAMES {
            let inside = match index % 100 {
                99 => [&b"k"[..], &[0; 17]].concat(),
                _ => [&b"w"[..], &[0; 24], &vec![b'U'; 60 + index % 80]].concat(),
            };
            out.put_u8(b'd');
            out.put_u32(inside.len() as u32 + 4);
            out.extend(inside);
        }
        out
    }

    #[test]
    fn cutting_keeps_its_instructions() {
        let sent = sent();
        let mut buffer = BytesMut::new();
        let cut_all = || {
            // As much at once as a read brings.
            for read in sent.chunks(16 * 1024) {
                buffer.extend_from_slice(read);
                while let Some(message) = cut(&mut buffer).unwrap() {
                    let Backend::CopyData(data) = message else { panic!("a piece") };
                    black_box(frame(data).unwrap());
                }
            }
        };
        HotLoop {
            name: "cut",
            test: concat!(module_path!(), "::cutting_keeps_its_instructions"),
            item: "frame",
            items: FRAMES,
            rounds: 3,
        }
        .keeps_its_instructions(cut_all);
    }

    #[test]
    fn frames_are_cut_only_when_complete_and_share_the_buffer() {
        let mut buffer =
            BytesMut::from(&b"d\0\0\0\x1ew\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03"[..]);
        assert!(cut(&mut buffer).unwrap().is_none());
        buffer.extend_from_slice(b"Bd");
        let Some(Backend::CopyData(data)) = cut(&mut buffer).unwrap() else { panic!("a piece") };
        assert_eq!(frame(data).unwrap(), Frame::Data { payload: Bytes::from_static(b"B") });
        assert_eq!(&buffer[..], b"d");
    }

    #[test]
    fn keepalives_carry_their_position_and_whether_an_answer_is_wanted() {
        let data = Bytes::from_static(b"k\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\x01");
        assert_eq!(frame(data).unwrap(), Frame::Keepalive { log_end: Position(9), reply_requested: true });
    }

    #[test]
    fn unknown_or_short_frames_and_oversized_messages_are_refused() {
        for data in [&b""[..], b"w\0", b"k\0\0", b"s123"] {
            let fault = frame(Bytes::from_static(data)).map(drop).unwrap_err();
            assert_eq!(fault.code, "SEGUE-PROTOCOL", "{data:?}");
        }
        assert!(cut(&mut BytesMut::from(&b"d\x7f\xff\xff\xff"[..])).is_err());
        assert!(cut(&mut BytesMut::from(&b"d\0\0\0\x03"[..])).is_err());
    }

    #[test]
    fn an_error_becomes_a_fault_with_its_code() {
        let mut buffer = BytesMut::from(&b"E\0\0\0\x1dSFATAL\0C57P01\0Mbye bye\0\0"[..]);
        let len = (buffer.len() - 1) as u32;
        buffer[1..5].copy_from_slice(&len.to_be_bytes());
        let Some(Backend::Error(fault)) = cut(&mut buffer).unwrap() else { panic!("an error") };
        assert_eq!(fault.recovery, segue_engine::fault::Recovery::Retry);
        assert!(fault.what.contains("bye bye"), "{fault}");
    }
}
