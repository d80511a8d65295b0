//! Reading ahead: rows that are about to be changed are brought into the target's memory by another session, while the one that
//! applies is busy with the batch before.
//!
//! A hint, and nothing else: nothing waits for it but what needs a table for itself, nothing fails with it, and what it reads decides nothing
//! (docs/adr/0016-rows-are-read-before-they-are-changed.md).

use super::facts;
use super::pieces::{Pieces, Work};
use super::sql::Target;
use super::value::Param;
use crate::connect::Endpoint;
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::table::Table;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_postgres::{Client, Statement};

/// Fewer rows of one statement are found as quickly by who changes them.
const ROWS_MIN: u64 = TRIED as u64;
/// Statements that wait. Of more, the last would be read when they have long been applied.
const WAITING_MAX: usize = 8;
/// Rows that are read to see how long one takes.
const TRIED: u32 = 200;
/// Rows that are read at once: on a slow disk more would take longer than a statement may.
const READ_MAX: u32 = 500;
/// How long it is believed how fast a table is read, and how long a server that refuses is left alone.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// A row that takes as long is not in the memory of the server or its system: there 10 µs are many, on processors that others use 30,
/// and a fast disk takes 80.
pub const ROW_SLOW: Duration = Duration::from_micros(60);

/// * plans: rows are found by key and read page by page, with pages asked for ahead of their turn;
/// * nobody is kept waiting, and what waits for somebody is given up.
const SETTINGS: &str = "SET default_transaction_read_only = on; SET statement_timeout = '1s'; SET lock_timeout = '200ms'; \
    SET plan_cache_mode = force_generic_plan; SET jit = off; SET max_parallel_workers_per_gather = 0; SET enable_seqscan = off; \
    SET enable_indexscan = off; SET enable_indexonlyscan = off";
/// Pages that are asked for ahead of their turn: none, to learn how long one takes, and many.
const AHEAD: [&str; 2] = ["SET effective_io_concurrency = 0", "SET effective_io_concurrency = 64"];

/// The session that reads ahead; there is none until it is needed.
pub struct Ahead {
    endpoint: Endpoint,
    row_slow: Duration,
    queue: OnceLock<mpsc::Sender<Wanted>>,
}

/// Rows that will be changed.
struct Wanted {
    table: Arc<Table>,
    /// An array of their keys.
    keys: Param,
    rows: u32,
}

impl Ahead {
    /// Reads on the server behind `endpoint` where rows take `row_slow` each or longer: with none, everywhere.
    pub fn new(endpoint: Endpoint, row_slow: Duration) -> Ahead {
        Ahead { endpoint, row_slow, queue: OnceLock::new() }
    }

    /// Has the rows read that `net` changes or removes, if they are many and nothing is in the way. Returns at once.
    pub fn offer(&self, table: &Arc<Table>, net: &Pieces) {
        // Of a key of several columns no list can be given to an index.
        if table.key().is_none_or(|key| key.columns.len() != 1) {
            return;
        }
        for piece in &net.0 {
            let is_found_by_key = matches!(piece.work, Work::Delete | Work::Update(_));
            if !is_found_by_key || !piece.many || piece.rows < ROWS_MIN {
                continue;
            }
            let Some(keys) = piece.params.first().cloned() else { continue };
            let rows = u32::try_from(piece.rows).unwrap_or(u32::MAX);
            // Full: it is behind, and what comes now would be read too late.
            let _ = self.queue().try_send(Wanted { table: table.clone(), keys, rows });
        }
    }

    fn queue(&self) -> &mpsc::Sender<Wanted> {
        self.queue.get_or_init(|| {
            let (queue, wanted) = mpsc::channel(WAITING_MAX);
            tokio::spawn(read_all(self.endpoint.clone(), self.row_slow, wanted));
            queue
        })
    }
}

/// Reads until nobody asks any more; what was asked for before that is not read then.
async fn read_all(endpoint: Endpoint, row_slow: Duration, mut wanted: mpsc::Receiver<Wanted>) {
    let (mut session, mut refused): (Option<Session>, Option<Instant>) = (None, None);
    while let Some(next) = wanted.recv().await.filter(|_| !wanted.is_closed()) {
        if refused.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            continue;
        }
        refused = None;
        let read = async {
            let open = match session.take() {
                Some(open) => open,
                None => Session::open(&endpoint).await?,
            };
            session.insert(open).read(&next, row_slow, || wanted.is_closed()).await
        };
        if let Err(fault) = read.await {
            tracing::debug!("rows are not read before they are changed, for a while: {fault}");
            (session, refused) = (None, Some(Instant::now()));
        }
    }
}

struct Session {
    client: Client,
    /// By name and key columns.
    tables: HashMap<(String, Vec<String>), Known>,
}

/// What is known of a table.
struct Known {
    /// Reads rows of it, which come from a disk; `None`: they are left alone.
    statement: Option<Statement>,
    looked: Instant,
}

impl Session {
    async fn open(endpoint: &Endpoint) -> Outcome<Session> {
        let client = endpoint.connect("read ahead").await?;
        client.batch_execute(SETTINGS).await.map_err(|e| fault_of(&e))?;
        Ok(Session { client, tables: HashMap::new() })
    }

    /// Reads rows if those of their table come from a disk, until `is_over`. Whether they do is told by reading some, once in a while:
    /// what is in memory is read in no time by who changes it, and to read it twice is work for nothing.
    async fn read(&mut self, wanted: &Wanted, row_slow: Duration, is_over: impl Fn() -> bool) -> Outcome<()> {
        let table = &wanted.table;
        let name = (super::qualified(table), facts::key_columns(table));
        let known = self.tables.get(&name).filter(|known| known.looked.elapsed() < LOOK_AGAIN);
        let statement = match known {
            Some(known) => known.statement.clone(),
            None => {
                let statement = self.try_reading(wanted, row_slow).await?;
                self.tables.insert(name, Known { statement: statement.clone(), looked: Instant::now() });
                statement
            }
        };
        let Some(statement) = statement else { return Ok(()) };
        for first in (1..=wanted.rows).step_by(READ_MAX as usize) {
            if is_over() {
                break;
            }
            self.read_some(&statement, wanted, first, first + READ_MAX - 1).await?;
        }
        Ok(())
    }

    /// Reads the rows of a part of the keys, which are counted from 1.
    async fn read_some(&self, statement: &Statement, wanted: &Wanted, first: u32, last: u32) -> Outcome<()> {
        let bounds = [first, last].map(|at| Param::text(at.to_string()));
        let read = self.client.query_one(statement, &[&wanted.keys, &bounds[0], &bounds[1]]).await;
        read.map(drop)
            .map_err(|e| fault_of(&e).during(format_args!("reading rows of {}", wanted.table.target)))
    }

    /// What reads rows of a table, if the server takes `row_slow` or longer for one; none for a key whose lists cannot be written.
    async fn try_reading(&self, wanted: &Wanted, row_slow: Duration) -> Outcome<Option<Statement>> {
        let table = &wanted.table;
        let facts = facts::look_up(&self.client, table).await?;
        let target = Target { table, facts: &facts, own: &[], staged: false };
        let Some(sql) = table.key().and_then(|key| target.read_listed(key)) else { return Ok(None) };
        let during = |e| fault_of(&e).during(format_args!("preparing to read rows of {}", table.target));
        let statement = self.client.prepare(&sql).await.map_err(during)?;
        self.client.batch_execute(AHEAD[0]).await.map_err(during)?;
        // The first time it is planned, which many partitions make long; of no rows, so that only the way and the plan's start are in it
        // the second time.
        self.read_some(&statement, wanted, 1, 0).await?;
        let began = Instant::now();
        self.read_some(&statement, wanted, 1, 0).await?;
        let way = began.elapsed();
        self.read_some(&statement, wanted, 1, TRIED).await?;
        let each = began.elapsed().saturating_sub(2 * way) / TRIED;
        self.client.batch_execute(AHEAD[1]).await.map_err(during)?;
        Ok((each >= row_slow).then_some(statement))
    }
}
