//! The applier's session: its settings, its replication origin, its statements, and how requests are sent together.

use super::sql::LARGE;
use super::value::{Param, Staged};
use crate::connect::{Endpoint, Warnings};
use crate::error::fault_of;
use crate::origin;
use bytes::{BufMut, BytesMut};
use futures_util::SinkExt;
use segue_engine::ports::Outcome;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use tokio_postgres::{Client, Error, Statement};

/// Statements kept prepared. A statement is a few KiB here and a plan there; shapes beyond it are prepared again.
const STATEMENTS_MAX: usize = 256;
/// Parts in which a large value is sent.
const STAGE_BYTES: usize = 1 << 20;

/// * replica: no triggers, no foreign keys, and fences let us pass;
/// * read-only by default: if a BEGIN fails, what was sent behind it must not commit by itself;
/// * plans: rows are found by key, whatever the statistics of a table that is being filled say.
const SETTINGS: &str = "SET session_replication_role = replica; SET plan_cache_mode = force_generic_plan; SET jit = off; \
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET default_transaction_read_only = on";

/// Whether temporary tables may be made, and whether the server could compress page images as fast as it writes them, and
/// was not told to (before 15 it knows slower ways only).
const FOUND: &str = "SELECT has_database_privilege(current_database(), 'TEMPORARY'), \
    coalesce((SELECT setting = 'off' AND enumvals @> '{lz4}' FROM pg_settings WHERE name = 'wal_compression'), false)";
/// Random updates put a whole page into the log for each page that is touched first since a checkpoint; most of what the
/// session waits for is the writing of those. Compressed, it is a fraction, on the target's standbys and in its archive, too.
const COMPRESS: &str = "SELECT set_config('wal_compression', 'lz4', false) \
    WHERE has_parameter_privilege(current_user, 'wal_compression', 'SET')";

/// A request: a statement, its parameters, and how many rows it must find.
pub(super) struct Request {
    pub(super) sql: String,
    pub(super) params: Vec<Param>,
    /// `None`: any number.
    pub(super) rows: Option<u64>,
    /// Text in the parameters.
    pub(super) bytes: usize,
    /// The statement finds large values in [`LARGE`], not in its parameters.
    pub(super) staged: bool,
}

/// The error of one of several requests that were sent together.
pub(super) struct Refused {
    /// Which one; `None`: the beginning of the transaction.
    pub(super) at: Option<usize>,
    pub(super) error: Error,
}

pub(super) struct Session {
    pub(super) client: Client,
    warnings: Warnings,
    /// The role may make temporary tables, so that large values can be staged.
    pub(super) may_stage: bool,
    statements: HashMap<String, (Statement, u64)>,
    clock: u64,
}

impl Session {
    pub(super) async fn open(endpoint: &Endpoint, origin: &str) -> Outcome<Session> {
        let (client, warnings) = endpoint.connect_heard("apply").await?;
        let during = |e: Error| fault_of(&e).during("preparing to apply changes");
        origin::take(&client, origin).await?;
        let found = client.query_one(FOUND, &[]).await.map_err(during)?;
        let may_stage = found.get(0);
        let compress = if found.get(1) { COMPRESS } else { "" };
        client.batch_execute(&format!("{SETTINGS}; {compress}")).await.map_err(during)?;
        Ok(Session { client, warnings, may_stage, statements: HashMap::new(), clock: 0 })
    }

    /// Warnings so far: a commit that gives up waiting for a synchronous standby says so by one, and succeeds.
    pub(super) fn warned(&self) -> u64 {
        self.warnings.heard()
    }

    async fn statement(&mut self, sql: &str) -> Result<Statement, Error> {
        self.clock += 1;
        if let Some((statement, used)) = self.statements.get_mut(sql) {
            *used = self.clock;
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            let oldest =
                self.statements.iter().min_by_key(|(_, (_, used))| *used).map(|(sql, _)| sql.clone());
            oldest.and_then(|sql| self.statements.remove(&sql));
        }
        self.statements.insert(sql.to_owned(), (statement.clone(), self.clock));
        Ok(statement)
    }

    /// Sends `first` (a simple query), all requests and `last` (a simple query whose only row is returned) without waiting
    /// in between. Returns the row counts, and the row. The first error is the one returned: those after it only follow.
    pub(super) async fn send(
        &mut self,
        first: Option<&str>,
        requests: &[Request],
        last: Option<&str>,
    ) -> Result<(Vec<u64>, Option<String>), Refused> {
        if !requests.iter().any(|request| request.staged) {
            return self.send_together(first, requests, last).await;
        }
        // Large values go ahead of their statement, so each statement is waited for.
        if let Some(first) = first {
            self.client.batch_execute(first).await.map_err(|error| Refused { at: None, error })?;
        }
        let mut counts = Vec::with_capacity(requests.len());
        for (i, request) in requests.iter().enumerate() {
            let at = Some(i);
            if request.staged {
                stage(&self.client, request).await.map_err(|error| Refused { at, error })?;
            }
            let one = self.send_together(None, std::slice::from_ref(request), None).await;
            counts.extend(one.map_err(|refused| Refused { at, ..refused })?.0);
        }
        let (_, row) = self.send_together(None, &[], last).await?;
        Ok((counts, row))
    }

    async fn send_together(
        &mut self,
        first: Option<&str>,
        requests: &[Request],
        last: Option<&str>,
    ) -> Result<(Vec<u64>, Option<String>), Refused> {
        let mut statements = Vec::with_capacity(requests.len());
        for (i, request) in requests.iter().enumerate() {
            let statement = self.statement(&request.sql).await;
            statements.push(statement.map_err(|error| Refused { at: Some(i), error })?);
        }
        let client = &self.client;
        type Sent<'a> = Pin<Box<dyn Future<Output = Result<(u64, Option<String>), Error>> + Send + 'a>>;
        let mut sent: Vec<Sent<'_>> = Vec::with_capacity(requests.len() + 2);
        if let Some(first) = first {
            sent.push(Box::pin(async move { client.batch_execute(first).await.map(|()| (0, None)) }));
        }
        for (request, statement) in requests.iter().zip(&statements) {
            sent.push(Box::pin(async move {
                let rows = match request.staged {
                    true => client.execute_raw(statement, request.params.iter().map(Staged)).await,
                    false => client.execute_raw(statement, &request.params).await,
                };
                rows.map(|rows| (rows, None))
            }));
        }
        if let Some(last) = last {
            sent.push(Box::pin(async move {
                let answers = client.simple_query(last).await?;
                let row = answers.iter().find_map(|m| match m {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                });
                Ok((0, row))
            }));
        }
        let mut counts = Vec::with_capacity(requests.len());
        let mut row = None;
        for (n, answer) in in_turn(sent).await.into_iter().enumerate() {
            let at = n.checked_sub(usize::from(first.is_some()));
            let (count, text) = answer.map_err(|error| Refused { at, error })?;
            if at.is_some_and(|at| at < requests.len()) {
                counts.push(count);
            }
            row = text.or(row);
        }
        Ok((counts, row))
    }
}

/// Puts the large values of a request where its statement finds them, a part at a time.
async fn stage(client: &Client, request: &Request) -> Result<(), Error> {
    let make = format!(
        "CREATE TEMP TABLE IF NOT EXISTS {LARGE} (no int NOT NULL, v text NOT NULL); \
         ALTER TABLE {LARGE} ALTER v SET STORAGE EXTERNAL; TRUNCATE {LARGE}"
    );
    client.batch_execute(&make).await?;
    let sink = client.copy_in(&format!("COPY {LARGE} (no, v) FROM STDIN (FORMAT binary)")).await?;
    futures_util::pin_mut!(sink);
    let mut part = BytesMut::from(&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..]);
    for (no, text) in (1..).zip(&request.params).filter_map(|(no, param)| Some((no, param.large()?))) {
        part.put_i16(2);
        part.put_i32(4);
        part.put_i32(no);
        // A server takes no larger value than this number can say.
        part.put_i32(i32::try_from(text.len()).unwrap_or(i32::MAX));
        sink.send(part.split().freeze()).await?;
        let mut rest = text.clone();
        while !rest.is_empty() {
            sink.send(rest.split_to(rest.len().min(STAGE_BYTES))).await?;
        }
    }
    part.put_i16(-1);
    sink.send(part.freeze()).await?;
    sink.finish().await?;
    Ok(())
}

/// Polls each future once, in order, which sends its request; then waits for the answers, which come in the same order.
async fn in_turn<T>(mut futures: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let early: Vec<Option<T>> = poll_fn(|context| {
        let poll =
            |future: &mut Pin<Box<dyn Future<Output = T> + Send + '_>>| match future.as_mut().poll(context) {
                Poll::Ready(answer) => Some(answer),
                Poll::Pending => None,
            };
        Poll::Ready(futures.iter_mut().map(poll).collect())
    })
    .await;
    let mut answers = Vec::with_capacity(early.len());
    for (future, answer) in futures.into_iter().zip(early) {
        answers.push(match answer {
            Some(answer) => answer,
            None => future.await,
        });
    }
    answers
}
