//! From the server to the client: what is the client's, what the router asked for, and what a refusal was.

use super::link::note_parameter;
use super::read::Failure;
use super::{End, Session, WAITING_BYTES_MAX};
use crate::frames::{self, HEADER_BYTES};
use crate::pipeline::{Answer, Status};
use bytes::Buf;
use std::sync::Arc;
use std::time::Instant;

/// A frame up to this length is awaited as a whole; of a longer one nothing is looked at.
const LOOKED_AT_MAX: usize = WAITING_BYTES_MAX;

/// A prepared statement that is not there.
const UNKNOWN_STATEMENT: &[u8] = b"26000";

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    /// Nothing, before there is more.
    Wait,
    /// Nothing is owed, and no transaction is open.
    Idle,
    /// The fence refused a lone statement, and nothing of it was passed on.
    Refused,
    /// The follower did not serve a read, and nothing of it was passed on.
    Unread(Failure),
}

/// What the beginning of an answer says of a lone statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It cannot be told yet.
    Open,
    /// It was answered.
    Answered,
    /// The fence refused it, in so many bytes.
    Fenced(usize),
    /// The follower refused it, in so many bytes.
    Unread(usize),
    /// The follower takes leave instead of answering.
    Lost,
}

impl Session {
    /// Moves what the server said towards the client.
    pub(super) fn back(&mut self) -> Result<Back, End> {
        if self.lone.armed {
            let Some(link) = &mut self.link else { return Ok(Back::Wait) };
            let verdict = match &self.reading {
                Some(reading) => verdict_of_read(&link.server.input, reading.preludes, reading.empties),
                None => verdict(&link.server.input),
            };
            match verdict {
                Verdict::Open => return Ok(Back::Wait),
                Verdict::Unread(bytes) => {
                    link.server.input.advance(bytes);
                    return Ok(Back::Unread(Failure::Refused));
                }
                Verdict::Lost => return Ok(Back::Unread(Failure::Lost)),
                Verdict::Fenced(bytes) => {
                    link.server.input.advance(bytes);
                    return Ok(Back::Refused);
                }
                Verdict::Answered => self.lone.is_answered(),
            }
        }
        // The bytes at the beginning of the server's input that are the client's.
        let mut run = 0;
        let next = loop {
            match self.answer(&mut run)? {
                Some(Back::Idle) => break Back::Idle,
                Some(_) => break Back::Wait,
                None => {}
            }
        };
        if let Some(link) = &mut self.link {
            self.to_client.take(&mut link.server.input, run);
        }
        Ok(next)
    }

    /// One frame; `None`: there may be more.
    fn answer(&mut self, run: &mut usize) -> Result<Option<Back>, End> {
        let rests_reading = self.rests_reading();
        let Some(link) = &mut self.link else { return Ok(Some(Back::Wait)) };
        let input = &link.server.input[*run..];
        if self.server_rest > 0 {
            let now = self.server_rest.min(input.len());
            self.server_rest -= now;
            *run += now;
            return Ok((self.server_rest > 0).then_some(Back::Wait));
        }
        let Some(head) = frames::head(input).map_err(End::Garbled)? else { return Ok(Some(Back::Wait)) };
        let in_parts = matches!(head.tag, b'D' | b'd') && self.sampling.is_none();
        let passes_in_parts = in_parts || head.bytes > LOOKED_AT_MAX;
        if input.len() < head.bytes && !passes_in_parts {
            return Ok(Some(Back::Wait));
        }
        let first = input.get(HEADER_BYTES).copied().unwrap_or_default();
        let failed = self.pipeline.has_failed();
        let answer = match self.pipeline.received(head.tag, first) {
            Ok(answer) => answer,
            Err(_) if head.tag == b'E' && rests_reading => return Err(End::ServerGone),
            // A server's last words are asked for by nobody.
            Err(_) if head.tag == b'E' => Answer::Pass,
            Err(unasked) => return Err(unasked.into()),
        };
        match input.get(..head.bytes) {
            Some(frame) => Session::note_answer(&mut self.sampling, frame),
            // It is too long to be kept.
            None => self.sampling = None,
        }
        if head.tag == b'S' && input.len() >= head.bytes {
            note_parameter(&mut link.server.parameters, &input[..head.bytes])?;
            if self.reading.is_none() {
                self.told = Arc::clone(&link.server.parameters);
            }
        }
        if head.tag == b'G' {
            // Behind it the server waits for data, and the client must not wait for the server.
            self.dropped.take_if(|dropped| dropped.boundaries == 1);
        }
        if head.tag == b'E' {
            self.server_said_why = frames::is_fatal(input);
            let error = &input[..head.bytes.min(input.len())];
            if frames::is_fence(error) {
                self.shared.met_fence.notify_one();
            }
            if frames::error_field(error, b'C') == Ok(UNKNOWN_STATEMENT) {
                // Somebody may have thrown away what the router believes to be there, by means that it does not see.
                link.server.statements.take();
            }
        }
        if answer == Answer::Ours {
            self.to_client.take(&mut link.server.input, *run);
            *run = 0;
            link.server.input.advance(head.bytes);
            return Ok(None);
        }
        let now = head.bytes.min(input.len());
        self.server_rest = head.bytes - now;
        *run += now;
        match answer {
            Answer::Ready(status) => self.ready(status, failed),
            _ if head.tag == b'E' => self.forget_lost(),
            _ => {}
        }
        Ok((matches!(answer, Answer::Ready(_)) && self.pipeline.is_idle()).then_some(Back::Idle))
    }

    /// Whether statements were thrown away, once the server has come so far.
    fn settle_dropped(&mut self, failed: bool) {
        let Some(dropped) = &mut self.dropped else { return };
        dropped.boundaries -= 1;
        // A Query that was skipped behind an error owes nothing, and was counted.
        let is_told = dropped.boundaries == 0 || self.pipeline.owes_nothing();
        let Some(dropped) = self.dropped.take_if(|_| is_told) else { return };
        if failed {
            self.statements.put_back(dropped.named);
            if let Some(link) = &mut self.link {
                link.server.statements.put_back(dropped.on_server);
            }
        }
    }

    fn ready(&mut self, status: Status, failed: bool) {
        self.settle_dropped(failed);
        self.pending.answered(self.pipeline.owes_nothing());
        if self.pipeline.owes_nothing() {
            self.judge_follower(failed);
        }
        let now = Instant::now();
        self.tally(now);
        if self.pipeline.owes_nothing() && status == Status::Idle {
            self.end_sample();
        } else {
            // Others would be taken for a part of its answer.
            self.sampling = None;
        }
        if let Some(reading) = &mut self.reading {
            reading.proved = false;
        }
        if failed || status != Status::Idle {
            self.settle_prepared(failed);
        }
        let had_failed = std::mem::replace(&mut self.transaction_failed, status == Status::Failed);
        self.settle(status, failed, had_failed);
        // Whom the session is for from here on has seen it as well.
        self.saw_owner(now);
    }
}

/// Looks at the answer of a lone statement, up to the first thing that tells.
fn verdict(mut input: &[u8]) -> Verdict {
    let whole = input.len();
    let mut fenced = false;
    while let Ok(Some(head)) = frames::head(input) {
        let open = if whole > LOOKED_AT_MAX { Verdict::Answered } else { Verdict::Open };
        let is_open = matches!(head.tag, b'1' | b'2' | b'3' | b't' | b'T' | b'n' | b'N');
        if !is_open && !matches!(head.tag, b'E' | b'Z') {
            return Verdict::Answered;
        }
        let (Some(frame), Some(rest)) = (input.get(..head.bytes), input.get(head.bytes..)) else {
            return open;
        };
        match head.tag {
            b'E' if !frames::is_fence(frame) => return Verdict::Answered,
            b'E' => fenced = true,
            b'Z' if fenced && frame.get(HEADER_BYTES) == Some(&b'I') => {
                return Verdict::Fenced(whole - rest.len());
            }
            b'Z' => return Verdict::Answered,
            _ => {}
        }
        input = rest;
    }
    if whole > LOOKED_AT_MAX { Verdict::Answered } else { Verdict::Open }
}

/// Looks at the answer of a read, up to the first thing that the client must have seen once it is passed on. So many
/// groups that do nothing and commands that begin a transaction come first.
fn verdict_of_read(mut input: &[u8], mut preludes: usize, mut empties: usize) -> Verdict {
    let whole = input.len();
    let mut refused = false;
    while let Ok(Some(head)) = frames::head(input) {
        let open = if whole > LOOKED_AT_MAX { Verdict::Answered } else { Verdict::Open };
        let is_prelude = head.tag == b'C' && preludes > 0;
        if !is_prelude && !matches!(head.tag, b'1' | b'2' | b'3' | b't' | b'T' | b'n' | b'N' | b'E' | b'Z') {
            return Verdict::Answered;
        }
        let (Some(frame), Some(rest)) = (input.get(..head.bytes), input.get(head.bytes..)) else {
            return open;
        };
        preludes -= usize::from(is_prelude);
        match head.tag {
            // The client, or a limit of its own, has cancelled it.
            b'E' if frames::error_field(frame, b'C') == Ok(b"57014") => return Verdict::Answered,
            // The connection's end follows, and no ReadyForQuery.
            b'E' if frames::is_fatal(frame) => return Verdict::Lost,
            b'E' => refused = true,
            b'Z' if empties > 0 => empties -= 1,
            b'Z' if refused => return Verdict::Unread(whole - rest.len()),
            b'Z' => return Verdict::Answered,
            _ => {}
        }
        input = rest;
    }
    if whole > LOOKED_AT_MAX { Verdict::Answered } else { Verdict::Open }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{put, put_ready, put_string};
    use bytes::{BufMut, BytesMut};

    fn conversation(tags: &str) -> BytesMut {
        let mut out = BytesMut::new();
        for tag in tags.bytes() {
            match tag {
                // An error that is the fence's, and one that is not.
                b'F' | b'E' => put(&mut out, b'E', |body| {
                    body.put_slice(b"C25006\0");
                    if tag == b'F' {
                        body.put_u8(b'n');
                        put_string(body, b"segue:m");
                    }
                    body.put_u8(0);
                }),
                b'Z' => put_ready(&mut out, b'I'),
                b'z' => put_ready(&mut out, b'E'),
                tag => put(&mut out, tag, |_| {}),
            }
        }
        out
    }

    #[test]
    fn only_the_fences_refusal_before_anything_else_is_one() {
        for (tags, fenced) in [
            ("FZ", true),
            ("12TFZ", true),
            ("NFZ", true),
            ("EZ", false),
            ("CFZ", false),
            ("12DFZ", false),
            ("Fz", false),
        ] {
            let input = conversation(tags);
            let expected = if fenced { Verdict::Fenced(input.len()) } else { Verdict::Answered };
            assert_eq!(verdict(&input), expected, "{tags}");
        }
    }

    #[test]
    fn of_a_read_any_refusal_before_the_first_row_is_one() {
        for (tags, preludes, empties, refused) in [
            ("EZ", 0, 0, true),
            ("12TEZ", 0, 0, true),
            ("12TDEZ", 0, 0, false),
            ("12TCZ", 0, 0, false),
            ("CEz", 1, 0, true),
            ("CEz", 0, 0, false),
            ("12C12TEz", 1, 0, true),
            ("3Z2EZ", 0, 1, true),
            ("3Z2DCZ", 0, 1, false),
        ] {
            let input = conversation(tags);
            let expected = if refused { Verdict::Unread(input.len()) } else { Verdict::Answered };
            assert_eq!(verdict_of_read(&input, preludes, empties), expected, "{tags}");
        }
    }

    #[test]
    fn it_is_open_until_it_can_be_told() {
        let input = conversation("12FZ");
        for bytes in 0..input.len() {
            assert_eq!(verdict(&input[..bytes]), Verdict::Open, "{bytes}");
        }
    }

    #[test]
    fn a_long_answer_is_not_kept() {
        let mut input = BytesMut::new();
        put(&mut input, b'T', |body| body.put_bytes(0, 2 * LOOKED_AT_MAX));
        assert_eq!(verdict(&input[..LOOKED_AT_MAX + 1]), Verdict::Answered);
    }
}
