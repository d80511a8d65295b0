//! Reading a backlog by SQL, before the walsender sends what comes after it.
//!
//! A walsender sends each message by itself, and looks for an answer at each record of the log: that is most of what a backlog
//! costs the source, four fifths for short transactions. `pg_logical_slot_get_binary_changes` decodes with the same code, and
//! answers in full buffers. It also moves its slot, so it is given a temporary copy of ours, which vanishes with the session:
//! ours moves with what is acknowledged, as ever.
//!
//! A call decodes all it is asked for before it answers, holding a snapshot meanwhile, so it is asked for little at a time. What
//! it cannot do, or not cheaply, is left to the walsender, which begins where the last call has ended: at a position between
//! records, with every transaction that commits before it delivered.

use super::Frame;
use super::pump::Out;
use crate::connect::Endpoint;
use crate::error::fault_of;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use segue_engine::fault::Fault;
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::sqltext::quote_literal;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, CopyOutStream};

/// Where less than this has piled up, all is left to the walsender: a session and a slot take longer.
pub(super) const WORTH_BYTES: u64 = 8 << 20;
/// Log that is read by one call, at first and at most; more, if as much has to be read again for what it began in.
const SPAN_BYTES: (u64, u64) = (1 << 20, 64 << 20);
/// A slot's log is read again from where the oldest transaction began, by each call. Where that is more than this, a transaction is
/// large or open for long, and the rest is left to the walsender: its answer would be a file on the source. More where that is bounded.
const AGAIN_BYTES_MAX: (u64, u64) = (256 << 20, 1 << 30);
/// Bound of such a file, where we may set it.
const FILE_LIMIT: &str = "SET temp_file_limit = '4GB'";
/// What one call should answer, about; a transaction is never divided.
const ANSWER_BYTES: u64 = 12 << 20;
/// Where a call has answered more than this, values are large, or transactions: the source would keep them in files.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Changes that a call is asked for before it is known how large they are, and at most.
const CHANGES: (u64, u64) = (20_000, 500_000);
/// An answer that nobody takes is given up by the source after this long.
const UNTAKEN_MS_MAX: u32 = 120_000;
/// Minor releases since which a slot may be moved without its changes being sent: before, a slot that was moved let go of rows
/// of the catalog that it needed later (commit "Fix xmin advancement during fast_forward decoding" of April 2025, for 13 and
/// later). They are also later than those in which pgoutput left something behind in each call (15.3).
const SOUND_SINCE: [(i32, i32); 6] = [(12, i32::MAX), (13, 21), (14, 18), (15, 13), (16, 9), (17, 5)];
/// Log that the source may keep although it was acknowledged.
const KEPT_BYTES_MAX: u64 = 128 << 20;
/// How long the walsender is kept waiting for what is to be durable first.
const DURABLE_WITHIN: Duration = Duration::from_secs(2);
/// Frames are handed on in batches of about this.
const BATCH_BYTES: usize = 64 << 10;

/// A session with a copy of the slot.
pub(super) struct Backlog {
    client: Client,
    slot: String,
    copy: String,
    publications: String,
    /// Up to here everything was delivered.
    at: Position,
    /// Where the next call begins to read.
    reads_from: Position,
    flushed: Position,
    /// Up to here the slot itself was moved.
    advanced: Position,
    asked: Asked,
    /// Most that is read again.
    again_max: u64,
}

/// What the next call is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    /// Bytes of log.
    span: u64,
    changes: u64,
}

impl Backlog {
    /// Opens the session and copies `slot`. `None`: the server refuses.
    pub(super) async fn open(
        endpoint: &Endpoint,
        slot: &str,
        from: Position,
        publications: String,
    ) -> Outcome<Option<Backlog>> {
        if BROKEN.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let client = match endpoint.connect("backlog").await {
            Ok(client) => client,
            // Where there is no room for one more session, there is for the walsender's.
            Err(fault) => {
                tracing::debug!("the walsender sends the backlog: {fault}");
                return Ok(None);
            }
        };
        if !is_sound(&client).await? {
            return Ok(None);
        }
        let limit = format!("SET tcp_user_timeout = {UNTAKEN_MS_MAX}");
        client.batch_execute(&limit).await.map_err(|e| fault_of(&e))?;
        let again_max = match client.batch_execute(FILE_LIMIT).await {
            Ok(()) => AGAIN_BYTES_MAX.1,
            Err(_) => AGAIN_BYTES_MAX.0,
        };
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(|e| fault_of(&e))?;
        let copy = format!("segue_backlog_{}", pid.get::<_, i32>(0));
        let make = "SELECT pg_copy_logical_replication_slot($1, $2, true)";
        let made = client.query(make, &[&slot, &copy]).await;
        // It is ours from `from` on, which is where the slot stands, or after it.
        let moved = match made {
            Ok(_) => client.query(MOVE, &[&copy, &PgLsn::from(from.0)]).await,
            refused => refused,
        };
        if let Err(error) = moved {
            return refused(&error, "copying the slot").map(|()| None);
        }
        let mut backlog = Backlog {
            client,
            slot: slot.to_owned(),
            copy,
            publications,
            at: from,
            reads_from: from,
            flushed: from,
            advanced: from,
            asked: Asked { span: SPAN_BYTES.0, changes: CHANGES.0 },
            again_max,
        };
        backlog.look().await?;
        Ok(Some(backlog))
    }

    /// Delivers what there is, and returns where the walsender is to go on.
    pub(super) async fn deliver(mut self, out: &Out) -> Outcome<Position> {
        let (mut is_last, mut answered) = (false, Answered::default());
        while !is_last && answered.bytes <= ANSWER_BYTES_MAX {
            self.settle().await?;
            if self.again() > self.again_max {
                break;
            }
            // What nobody takes yet is not asked for: the source holds a snapshot until it is taken, and gives it up at last.
            out.has_room(ANSWER_BYTES as u32).await.ok_or_else(unwanted)?;
            let (before, end) = (self.at, self.flushed);
            let Some(rows) = self.ask().await? else { return Ok(self.at) };
            answered = relay(rows, out).await?;
            killpoint::pass("backlog.relayed");
            self.look().await?;
            if self.at <= before {
                break;
            }
            // What was written since this call is the walsender's: each further call would read all of it again.
            is_last = self.at >= end;
            self.asked = self.asked.after(answered);
            let idle = Frame::Keepalive { log_end: self.at, reply_requested: false };
            out.send(VecDeque::from([idle]), size_of::<Frame>()).await.ok_or_else(unwanted)?;
            let acknowledged = *out.acknowledged.borrow();
            if acknowledged.0.saturating_sub(self.advanced.0) > KEPT_BYTES_MAX {
                self.advance(acknowledged).await?;
            }
        }
        self.catch_up(out).await?;
        Ok(self.at)
    }

    /// A call, or a move, leaves the copy's beginning at the first of the server's notes that it comes by, however many there are: to be
    /// moved to where it is makes it the last one. That costs less than what each further call would read again.
    async fn settle(&mut self) -> Outcome<()> {
        if self.again() <= SPAN_BYTES.1 {
            return Ok(());
        }
        match self.client.query(MOVE, &[&self.copy, &PgLsn::from(self.at.0)]).await {
            Ok(_) => self.look().await,
            Err(error) => refused(&error, "moving the copy"),
        }
    }

    /// Moves the slot to where the walsender is to begin, if everything before is durable in time: the walsender reads the log from
    /// where the slot stands, which costs it more than to move the slot there, and would cost it now.
    async fn catch_up(&mut self, out: &Out) -> Outcome<()> {
        // How far the copy's beginning is behind says nothing of the slot's.
        if self.at.0.saturating_sub(self.advanced.0) < WORTH_BYTES {
            return Ok(());
        }
        let (mut acknowledged, at) = (out.acknowledged.clone(), self.at);
        // Where rows are still copied nothing may be acknowledged for long, and what waits for the stream must not wait for it.
        let is_durable = acknowledged.wait_for(|position| *position >= at);
        let _ = tokio::time::timeout(DURABLE_WITHIN, is_durable).await;
        let acknowledged = *out.acknowledged.borrow();
        // The first time its beginning is only moved to the first place that it comes by; the second time to the last.
        self.advance(acknowledged).await?;
        self.advance(acknowledged).await
    }

    /// Log that the next call reads again.
    fn again(&self) -> u64 {
        self.at.0.saturating_sub(self.reads_from.0)
    }

    /// Has the next part decoded. `None`: the server cannot, and nothing of it was delivered.
    async fn ask(&mut self) -> Outcome<Option<Rows>> {
        let upto = Position(self.at.0 + self.asked.span.max(self.again()));
        let sql = format!(
            "COPY (SELECT data FROM pg_logical_slot_get_binary_changes({}, '{upto}', {}, 'proto_version', '1', \
             'publication_names', {})) TO STDOUT (FORMAT binary)",
            quote_literal(&self.copy),
            self.asked.changes,
            self.publications
        );
        let stream = match self.client.copy_out(&sql).await {
            Ok(stream) => stream,
            Err(error) => return refused(&error, "decoding").map(|()| None),
        };
        let mut rows = Rows { stream: Box::pin(stream), begun: None };
        // The answer begins when all of it was decoded.
        match rows.stream.next().await {
            Some(Err(error)) => refused(&error, "decoding").map(|()| None),
            Some(Ok(first)) => {
                rows.begun = Some(first);
                Ok(Some(rows))
            }
            None => Ok(Some(rows)),
        }
    }

    /// Where the copy stands now.
    async fn look(&mut self) -> Outcome<()> {
        let sql = "SELECT confirmed_flush_lsn, restart_lsn, pg_current_wal_flush_lsn() FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.client.query_one(sql, &[&self.copy]).await;
        let row = row.map_err(|e| fault_of(&e).during("looking how far the backlog was read"))?;
        let [at, reads_from, flushed] = [0, 1, 2].map(|i| Position(row.get::<_, PgLsn>(i).into()));
        (self.at, self.reads_from, self.flushed) = (self.at.max(at), reads_from, flushed);
        Ok(())
    }

    /// Moves the slot, as nobody streams from it meanwhile.
    async fn advance(&mut self, acknowledged: Position) -> Outcome<()> {
        self.advanced = acknowledged;
        match self.client.query(MOVE, &[&self.slot, &PgLsn::from(acknowledged.0)]).await {
            Ok(_) => Ok(()),
            // Somebody else has it for a moment; the walsender moves it at the latest.
            Err(error) => refused(&error, "moving the slot"),
        }
    }
}

/// A slot that stands further on stays where it is.
const MOVE: &str =
    "SELECT CASE WHEN confirmed_flush_lsn <= $2 THEN pg_replication_slot_advance(slot_name, $2)::text END
      FROM pg_replication_slots WHERE slot_name = $1";

/// Set when an answer was broken off by the server: what was asked for would be broken off again. This process does without then.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Whether this server may be asked.
async fn is_sound(client: &Client) -> Outcome<bool> {
    let version = client.query_one("SELECT current_setting('server_version_num')::int", &[]).await;
    let version: i32 = version.map_err(|e| fault_of(&e))?.get(0);
    let (major, minor) = (version / 10_000, version % 10_000);
    Ok(SOUND_SINCE.iter().all(|(of, since)| *of != major || minor >= *since))
}

/// What the server refuses is no fault: there is another way. A session that is gone, or was ended, is one.
fn refused(error: &tokio_postgres::Error, step: &str) -> Outcome<()> {
    if ends_session(error) {
        return Err(fault_of(error).during(format_args!("{step}, to read a backlog by SQL")));
    }
    tracing::debug!("the walsender sends the backlog: {step}: {error}");
    Ok(())
}

fn ends_session(error: &tokio_postgres::Error) -> bool {
    let ends =
        |said: &DbError| matches!(said.parsed_severity(), None | Some(Severity::Fatal | Severity::Panic));
    error.as_db_error().is_none_or(ends)
}

fn unwanted() -> Fault {
    Fault::retry("SEGUE-CONNECTION", "nobody reads the stream any more")
}

impl Asked {
    /// What to ask for after a call that has answered so much.
    fn after(self, answered: Answered) -> Asked {
        let fitting = (ANSWER_BYTES * answered.changes).checked_div(answered.bytes);
        let fitting = fitting.unwrap_or(CHANGES.1).clamp(1, CHANGES.1);
        let span = match answered.bytes {
            // A transaction that has not ended, which each call reads again from its beginning.
            0 => self.span * 8,
            bytes if bytes > ANSWER_BYTES => (self.span * ANSWER_BYTES / bytes).max(1 << 16),
            _ => (self.span * 2).min(SPAN_BYTES.1),
        };
        Asked { span: span.min(AGAIN_BYTES_MAX.0), changes: fitting.min(self.changes * 4) }
    }
}

/// How much a call has answered.
#[derive(Clone, Copy, Debug, Default)]
struct Answered {
    changes: u64,
    bytes: u64,
}

/// The answer of one call.
struct Rows {
    stream: Pin<Box<CopyOutStream>>,
    /// Its first piece.
    begun: Option<Bytes>,
}

/// Hands on everything that was answered.
async fn relay(mut rows: Rows, out: &Out) -> Outcome<Answered> {
    let (mut values, mut answered) = (Values::default(), Answered::default());
    let (mut frames, mut bytes) = (VecDeque::new(), 0);
    loop {
        let piece = match rows.begun.take() {
            Some(first) => Some(first),
            None => rows.stream.next().await.transpose().map_err(|error| {
                if ends_session(&error) {
                    return fault_of(&error).during("reading a backlog");
                }
                BROKEN.store(true, Ordering::Relaxed);
                broken(&error.to_string())
            })?,
        };
        let is_end = piece.is_none();
        if let Some(piece) = piece {
            values.push(piece);
            while let Some(payload) = values.next()? {
                answered.changes += 1;
                answered.bytes += payload.len() as u64;
                bytes += payload.len() + size_of::<Frame>();
                frames.push_back(Frame::Data { payload });
            }
        }
        if bytes >= BATCH_BYTES || is_end && !frames.is_empty() {
            out.send(std::mem::take(&mut frames), bytes).await.ok_or_else(unwanted)?;
            bytes = 0;
        }
        if is_end {
            return if values.is_complete { Ok(answered) } else { Err(broken("it ends too early")) };
        }
    }
}

fn broken(what: &str) -> Fault {
    Fault::retry("SEGUE-PROTOCOL", format!("reading a backlog: {what}"))
}

/// Cuts rows of one value out of what COPY sends in its binary form (manual, "COPY", "Binary Format").
#[derive(Default)]
struct Values {
    rest: Bytes,
    has_begun: bool,
    is_complete: bool,
}

/// Signature, flags, and the length of an extension.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = 11 + 4 + 4;

impl Values {
    fn push(&mut self, piece: Bytes) {
        if self.rest.is_empty() {
            self.rest = piece;
            return;
        }
        let mut joined = BytesMut::with_capacity(self.rest.len() + piece.len());
        joined.extend_from_slice(&self.rest);
        joined.extend_from_slice(&piece);
        self.rest = joined.freeze();
    }

    fn next(&mut self) -> Outcome<Option<Bytes>> {
        if !self.has_begun {
            if self.rest.len() < HEADER_BYTES {
                return Ok(None);
            }
            if !self.rest.starts_with(SIGNATURE) || self.rest[11..HEADER_BYTES] != [0; 8] {
                return Err(broken("it does not begin as COPY does"));
            }
            self.rest.advance(HEADER_BYTES);
            self.has_begun = true;
        }
        let mut ahead = &self.rest[..];
        if self.is_complete || ahead.len() < 2 {
            return if self.is_complete && !ahead.is_empty() {
                Err(broken("more than all"))
            } else {
                Ok(None)
            };
        }
        match ahead.get_i16() {
            -1 => {
                self.rest.advance(2);
                self.is_complete = true;
                self.next()
            }
            1 if ahead.len() < 4 => Ok(None),
            1 => {
                let length = usize::try_from(ahead.get_i32()).map_err(|_| broken("a row without a value"))?;
                if ahead.len() < length {
                    return Ok(None);
                }
                self.rest.advance(6);
                Ok(Some(self.rest.split_to(length)))
            }
            columns => Err(broken(&format!("a row of {columns} columns"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn sent(values: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [SIGNATURE, &[0; 8]].concat();
        for value in values {
            bytes.extend(1_i16.to_be_bytes());
            bytes.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
            bytes.extend(*value);
        }
        bytes.extend((-1_i16).to_be_bytes());
        bytes
    }

    fn cut(pieces: &[&[u8]]) -> Outcome<(Vec<Vec<u8>>, bool)> {
        let (mut values, mut found) = (Values::default(), Vec::new());
        for piece in pieces {
            values.push(Bytes::copy_from_slice(piece));
            while let Some(value) = values.next()? {
                found.push(value.to_vec());
            }
        }
        Ok((found, values.is_complete))
    }

    #[test]
    fn values_are_cut_out_wherever_the_pieces_end() {
        let values: [&[u8]; 3] = [b"one", b"", b"three"];
        let sent = sent(&values);
        let expected: Vec<Vec<u8>> = values.iter().map(|value| value.to_vec()).collect();
        for first in 0..sent.len() {
            for second in first..sent.len() {
                let pieces = [&sent[..first], &sent[first..second], &sent[second..]];
                assert_eq!(cut(&pieces).unwrap(), (expected.clone(), true), "{first} {second}");
            }
        }
        assert!(!cut(&[&sent[..sent.len() - 1]]).unwrap().1, "an end that is missing is noticed");
    }

    #[test]
    fn what_copy_does_not_send_is_refused() {
        let two_columns = [SIGNATURE, &[0; 8], &[0, 2]].concat();
        let null = [SIGNATURE, &[0; 8], &[0, 1], &[255; 4]].concat();
        let more = [&sent(&[])[..], b"x"].concat();
        for bytes in [&b"PGCOPY\n\xff\r\n\0\0\0\0\x01\0\0\0\0"[..], &two_columns, &null, &more] {
            assert!(cut(&[bytes]).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_call_is_asked_for_as_much_as_fits() {
        let next = |(changes, bytes), asked| {
            let asked = Asked { span: SPAN_BYTES.0, changes: asked };
            asked.after(Answered { changes, bytes }).changes
        };
        assert_eq!(next((20_000, 1 << 20), 20_000), 80_000, "small ones: more, but not all at once");
        assert_eq!(next((20_000, 200 << 20), 20_000), 1200, "large ones: fewer");
        assert_eq!(next((1, 200 << 20), 20_000), 1, "but one");
        assert_eq!(next((0, 0), 400_000), CHANGES.1, "none");
        let mut asked = Asked { span: SPAN_BYTES.0, changes: CHANGES.0 };
        for _ in 0..10 {
            asked = asked.after(Answered { changes: 100, bytes: 100 });
        }
        assert_eq!(asked, Asked { span: SPAN_BYTES.1, changes: CHANGES.1 });
        let nothing = asked.after(Answered::default());
        // The end of a large one is looked for in greater steps.
        assert_eq!(nothing.span, AGAIN_BYTES_MAX.0);
        assert_eq!(nothing.after(Answered { changes: 1, bytes: 1 }).span, SPAN_BYTES.1);
        let large = asked.after(Answered { changes: 1000, bytes: 4 * ANSWER_BYTES });
        assert_eq!(
            large,
            Asked { span: SPAN_BYTES.1 / 4, changes: 250 },
            "in smaller ones where values are large"
        );
    }
}
