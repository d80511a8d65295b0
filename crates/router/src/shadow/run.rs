//! One statement on one server: in a transaction that can write nothing, bounded in time and bytes, and its plan.
//!
//! It always speaks the extended protocol, in which one Parse takes one statement: whatever stands behind a semicolon
//! cannot be run. It does not know which side it is on.

use super::Sample;
use super::plan;
use super::rows::{Rows, values};
use crate::frames::{self, Fields, HEADER_BYTES, Malformed, put, put_query};
use crate::settings::Parameters;
use crate::stream::FrameError;
use crate::upstream::Server;
use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// A statement may take so long; what takes longer is not repeated to compare it.
pub(super) const STATEMENT_MAX: Duration = Duration::from_secs(5);
/// The whole run may: the server ends the statement itself, unless it cannot be reached.
const RUN_MAX: Duration = Duration::from_secs(STATEMENT_MAX.as_secs() + 2);
/// A description of as many columns as there can be, and an error's text, have room.
const FRAME_BYTES_MIN: usize = 256 * 1024;
const EXPLAIN: &[u8] = b"EXPLAIN (COSTS OFF) ";

/// What a server answers to a statement.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) answer: Result<Rows, SqlError>,
    /// The beginning of its transaction included, which is sent with it.
    pub(super) took: Duration,
    /// Only where it was asked for, and could be had.
    pub(super) plan: Option<String>,
}

/// An error that the statement ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SqlError {
    pub(super) code: String,
    pub(super) message: String,
}

impl SqlError {
    fn read(frame: &[u8]) -> SqlError {
        let field =
            |tag| String::from_utf8_lossy(frames::error_field(frame, tag).unwrap_or_default()).into_owned();
        SqlError { code: field(b'C'), message: field(b'M') }
    }

    /// Whether it is the server's state rather than the statement that is wrong, or that nothing may be written here:
    /// nothing follows from it for the answer.
    pub(super) fn tells_nothing(&self) -> bool {
        let class = self.code.get(..2).unwrap_or_default();
        // A statement that was cancelled took too long, which is an answer.
        matches!(class, "08" | "53" | "58" | "XX" | "40")
            || (class == "57" && self.code != "57014")
            || matches!(self.code.as_str(), "25006" | "55P03")
    }
}

/// Why a server is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the connection: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("no answer within {} s", RUN_MAX.as_secs())]
    Timeout,
    #[error("no transaction can be opened: {} (SQLSTATE {})", .0.message, .0.code)]
    NoTransaction(SqlError),
}

/// A parameter's value, and whether it is binary.
type Parameter<'a> = (Option<&'a [u8]>, bool);

/// A statement as the extended protocol has it.
pub(super) struct Statement {
    text: Bytes,
    /// Behind the text's zero byte in a Parse.
    parameter_types: Bytes,
    /// Behind both names in a Bind.
    bind: Bytes,
}

impl Statement {
    pub(super) fn of(sample: &Sample) -> Result<Statement, Malformed> {
        // Without types, without parameters, and everything as text: what a simple query has.
        const NONE: Bytes = Bytes::from_static(&[0; 2]);
        let bind = sample.bind.clone().unwrap_or(Bytes::from_static(&[0; 6]));
        let Some(parse) = &sample.parse else {
            let end = sample.text.iter().position(|&byte| byte == 0).unwrap_or(sample.text.len());
            return Ok(Statement {
                text: Bytes::copy_from_slice(&sample.text[..end]),
                parameter_types: NONE,
                bind,
            });
        };
        let length = Fields::of_body(b'P', parse).string()?.len();
        Ok(Statement { text: parse.slice(..length), parameter_types: parse.slice(length + 1..), bind })
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(super) fn parameters(&self) -> Result<Vec<Parameter<'_>>, Malformed> {
        let mut fields = Fields::of_body(b'B', &self.bind);
        let formats = (0..fields.short_int()?).map(|_| fields.short_int()).collect::<Result<Vec<_>, _>>()?;
        let count = usize::from(fields.short_int()?);
        let format = |at: usize| *formats.get(if formats.len() == 1 { 0 } else { at }).unwrap_or(&0) != 0;
        (0..count).map(|at| Ok((fields.value()?, format(at)))).collect()
    }

    /// The Bind, with its results as text whatever the client wished.
    fn bind_for_text(&self) -> Result<Vec<u8>, Malformed> {
        let mut fields = Fields::of_body(b'B', &self.bind);
        for _ in 0..fields.short_int()? {
            fields.short_int()?;
        }
        for _ in 0..fields.short_int()? {
            fields.value()?;
        }
        let kept = self.bind.len() - fields.rest().len();
        Ok([&self.bind[..kept], &[0; 2]].concat())
    }

    fn put(&self, prefix: &[u8], bind: &[u8], out: &mut BytesMut) {
        put_statement(out, &[prefix, &self.text], &self.parameter_types, bind);
        put(out, b'S', |_| {});
    }
}

/// A statement up to its Execute; its text is in parts.
fn put_statement(out: &mut BytesMut, text: &[&[u8]], parameter_types: &[u8], bind: &[u8]) {
    put(out, b'P', |body| {
        body.put_u8(0);
        text.iter().for_each(|part| body.put_slice(part));
        body.put_u8(0);
        body.put_slice(parameter_types);
    });
    put(out, b'B', |body| {
        body.put_slice(&[0; 2]);
        body.put_slice(bind);
    });
    put(out, b'D', |body| body.put_slice(b"P\0"));
    put(out, b'E', |body| body.put_slice(&[0; 5]));
}

/// Whatever a read could leave behind, as a setting or a cursor, goes with it.
fn put_rollback(out: &mut BytesMut) {
    put_query(out, b"ROLLBACK");
}

/// Runs a statement; the server is as it was before, or it is `Broken`. An answer that is cut short leaves the server
/// in the middle of it, so that it is not given back.
pub(super) async fn run(
    mut server: Server,
    statement: &Statement,
    bytes_max: usize,
    explain: bool,
) -> Result<(Ran, Option<Server>), Broken> {
    let running = async {
        let ran = Conversation { server: &mut server, bytes_max }.run(statement, explain).await?;
        let is_cut = ran.answer.as_ref().is_ok_and(Rows::is_cut);
        Ok((ran, (!is_cut).then_some(server)))
    };
    tokio::time::timeout(RUN_MAX, running).await.unwrap_or(Err(Broken::Timeout))
}

/// Commands before the statement.
const PRELUDES: usize = 2;

/// A transaction's beginning and the statement, as one group with one Sync: where the transaction does not begin as it must, the
/// server skips the statement. Sent at once, since what a repeated read costs is its round trips.
fn in_transaction(statement: &Statement) -> BytesMut {
    // One statement needs no better isolation, whose predicate locks would be a burden for nothing.
    let preludes: [&str; PRELUDES] = [
        "BEGIN TRANSACTION ISOLATION LEVEL READ COMMITTED READ ONLY",
        &format!("SET LOCAL statement_timeout = {}", STATEMENT_MAX.as_millis()),
    ];
    let mut out = BytesMut::with_capacity(512 + statement.text.len() + statement.bind.len());
    for sql in preludes {
        put_statement(&mut out, &[sql.as_bytes()], &[0; 2], &[0; 6]);
    }
    statement.put(b"", &statement.bind, &mut out);
    out
}

/// What a server answered up to a ReadyForQuery.
struct Answer {
    rows: Rows,
    refused: Option<SqlError>,
    /// So many commands were done.
    commands: usize,
}

struct Conversation<'a> {
    server: &'a mut Server,
    bytes_max: usize,
}

impl Conversation<'_> {
    async fn run(&mut self, statement: &Statement, explain: bool) -> Result<Ran, Broken> {
        let mut out = in_transaction(statement);
        if !explain {
            put_rollback(&mut out);
        }
        let began = Instant::now();
        self.send(&out).await?;
        let Answer { rows, refused, commands } = self.answer().await?;
        let took = began.elapsed();
        if rows.is_cut() {
            return Ok(Ran { answer: Ok(rows), took, plan: None });
        }
        let answer = match refused {
            Some(error) if commands < PRELUDES => return Err(Broken::NoTransaction(error)),
            Some(error) => Err(error),
            None => Ok(rows),
        };
        let plan = if explain && answer.is_ok() { self.explain(statement).await? } else { None };
        if explain {
            out.clear();
            put_rollback(&mut out);
            self.send(&out).await?;
        }
        match self.answer().await?.refused {
            None => Ok(Ran { answer, took, plan }),
            Some(error) => Err(Broken::NoTransaction(error)),
        }
    }

    /// The statement's plan; `None`: it has none that can be told.
    async fn explain(&mut self, statement: &Statement) -> Result<Option<String>, Broken> {
        let mut out = BytesMut::new();
        statement.put(EXPLAIN, &statement.bind_for_text()?, &mut out);
        self.send(&out).await?;
        let Answer { rows, refused: None, .. } = self.answer().await? else { return Ok(None) };
        let mut lines = Vec::new();
        for row in rows.iter() {
            let line = values(row)?.first().copied().flatten().unwrap_or_default();
            lines.push(String::from_utf8_lossy(line).into_owned());
        }
        Ok((!lines.is_empty()).then(|| plan::without_constants(&lines.join("\n"))))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.server.stream.write_all(bytes).await?;
        Ok(self.server.stream.flush().await?)
    }

    /// Everything up to the next ReadyForQuery; an answer that is too large is not read to its end.
    async fn answer(&mut self) -> Result<Answer, Broken> {
        let mut answer = Answer { rows: Rows::new(self.bytes_max), refused: None, commands: 0 };
        loop {
            let frame = match self.frame().await {
                Err(FrameError::TooLong('D', _, _)) => {
                    answer.rows.cut();
                    return Ok(answer);
                }
                frame => frame?,
            };
            match frame[0] {
                b'D' if !answer.rows.push(&frame[HEADER_BYTES..]) => return Ok(answer),
                b'T' => answer.rows.describe(&frame[HEADER_BYTES..]),
                b'E' => answer.refused = answer.refused.or(Some(SqlError::read(&frame))),
                b'S' => Parameters::note(&mut self.server.parameters, &frame)?,
                b'C' => answer.commands += 1,
                b'Z' => return Ok(answer),
                b'D' | b'1' | b'2' | b'I' | b'N' | b'A' | b'n' => {}
                // CopyData among them, which no read has.
                other => return Err(Malformed::OutOfPlace(other as char).into()),
            }
        }
    }

    async fn frame(&mut self) -> Result<Bytes, FrameError> {
        let server = &mut *self.server;
        server.stream.frame_within(&mut server.input, self.bytes_max.max(FRAME_BYTES_MIN)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(bind: &[u8]) -> Statement {
        Statement {
            text: Bytes::from_static(b"a"),
            parameter_types: Bytes::from_static(&[0; 2]),
            bind: Bytes::copy_from_slice(bind),
        }
    }

    #[test]
    fn a_plan_is_asked_for_as_text_with_the_same_parameters() {
        // One format for both parameters, the second of them null, and two result formats.
        let parameters = b"\0\x01\0\x01\0\x02\0\0\0\x02xy\xff\xff\xff\xff";
        let bind = [&parameters[..], b"\0\x02\0\x01\0\x01"].concat();
        let statement = statement(&bind);
        assert_eq!(statement.bind_for_text(), Ok([&parameters[..], b"\0\0"].concat()));
        assert_eq!(statement.parameters(), Ok(vec![(Some(&b"xy"[..]), true), (None, true)]));
    }

    #[test]
    fn a_statement_is_skipped_where_its_transaction_does_not_begin() {
        let out = in_transaction(&statement(&[0; 6]));
        let (mut rest, mut tags) = (&out[..], String::new());
        while let Some(head) = frames::head(rest).unwrap() {
            tags.push(head.tag.into());
            rest = &rest[head.bytes..];
        }
        assert_eq!((tags.as_str(), rest), ("PBDEPBDEPBDES", &[][..]), "one Sync, behind all");
    }

    #[test]
    fn a_bind_that_ends_early_is_an_error() {
        let statement = statement(b"\0\0\0\x01\0\0\0\x02x");
        assert!(statement.bind_for_text().is_err() && statement.parameters().is_err());
    }

    #[test]
    fn errors_of_the_servers_state_tell_nothing_of_the_answer() {
        for (code, nothing) in [
            ("53300", true),
            ("57P01", true),
            ("57014", false),
            ("25006", true),
            ("40001", true),
            ("22012", false),
            ("42P01", false),
            ("", false),
        ] {
            let error = SqlError { code: code.into(), message: String::new() };
            assert_eq!(error.tells_nothing(), nothing, "{code}");
        }
    }
}
