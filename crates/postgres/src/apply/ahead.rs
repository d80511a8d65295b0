//! Reading ahead: rows that are about to be changed are brought into the target's memory by another session, while the one that
//! applies is busy with the batch before.
//!
//! A hint, and nothing else: nothing waits for it, nothing fails with it, and what it reads decides nothing
//! (docs/adr/0016-rows-are-read-before-they-are-changed.md).

use super::facts;
use super::pieces::{Pieces, Work};
use super::sql::Target;
use super::value::Param;
use crate::connect::Endpoint;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::table::Table;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_postgres::{Client, Statement};

/// Fewer rows of one statement are found as quickly by who changes them.
const ROWS_MIN: u64 = 200;
/// Statements that wait. Of more, the last would be read when they have long been applied.
const WAITING_MAX: usize = 32;
/// How long it is believed whether a table is large, and how long a server that refuses is left alone.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// * plans: as in the session that applies; a row is read, not only found in the index;
/// * nobody is kept waiting, and what waits for somebody is given up.
const SETTINGS: &str = "SET default_transaction_read_only = on; SET statement_timeout = '5s'; SET lock_timeout = '200ms'; \
    SET plan_cache_mode = force_generic_plan; SET jit = off; SET max_parallel_workers_per_gather = 0; SET enable_seqscan = off; \
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off";

/// Whether a table and its indexes are large beside what the server keeps in its own memory; `$1` is its name.
const IS_LARGE: &str = "\
    SELECT coalesce((SELECT sum(pg_relation_size(relid) + pg_indexes_size(relid)) FROM pg_partition_tree($1::text::regclass) WHERE isleaf),
                    pg_relation_size($1::text::regclass) + pg_indexes_size($1::text::regclass))
           > pg_size_bytes(current_setting('shared_buffers')) / 2";

/// The session that reads ahead; there is none until it is needed.
pub struct Ahead {
    endpoint: Endpoint,
    queue: OnceLock<mpsc::Sender<Wanted>>,
}

/// Rows that will be changed.
struct Wanted {
    table: Arc<Table>,
    /// An array of each key column's values.
    keys: Vec<Param>,
}

impl Ahead {
    /// Reads on the server behind `endpoint`.
    pub fn new(endpoint: Endpoint) -> Ahead {
        Ahead { endpoint, queue: OnceLock::new() }
    }

    /// Has the rows read that `net` changes or removes, if they are many and nothing is in the way. Returns at once.
    pub fn offer(&self, table: &Arc<Table>, net: &Pieces) {
        let Some(key) = table.key() else { return };
        for piece in &net.0 {
            let is_found_by_key = matches!(piece.work, Work::Delete | Work::Update(_));
            if !is_found_by_key || !piece.many || piece.rows < ROWS_MIN {
                continue;
            }
            let keys = piece.params.iter().take(key.columns.len()).cloned().collect();
            // Full: it is behind, and what comes now would be read too late.
            let _ = self.queue().try_send(Wanted { table: table.clone(), keys });
        }
    }

    fn queue(&self) -> &mpsc::Sender<Wanted> {
        self.queue.get_or_init(|| {
            let (queue, wanted) = mpsc::channel(WAITING_MAX);
            tokio::spawn(read_all(self.endpoint.clone(), wanted));
            queue
        })
    }
}

/// Reads until nobody asks any more.
async fn read_all(endpoint: Endpoint, mut wanted: mpsc::Receiver<Wanted>) {
    let (mut session, mut refused): (Option<Session>, Option<Instant>) = (None, None);
    while let Some(next) = wanted.recv().await {
        if refused.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            continue;
        }
        refused = None;
        let read = async {
            let open = match session.take() {
                Some(open) => open,
                None => Session::open(&endpoint).await?,
            };
            session.insert(open).read(&next).await
        };
        if let Err(fault) = read.await {
            tracing::debug!("rows are not read before they are changed, for a while: {fault}");
            (session, refused) = (None, Some(Instant::now()));
        }
    }
}

struct Session {
    client: Client,
    /// By name and key columns: the statement, if the table is large, and when that was looked at.
    tables: HashMap<(String, Vec<String>), (Option<Statement>, Instant)>,
}

impl Session {
    async fn open(endpoint: &Endpoint) -> Outcome<Session> {
        let client = endpoint.connect("read ahead").await?;
        client.batch_execute(SETTINGS).await.map_err(|e| fault_of(&e))?;
        Ok(Session { client, tables: HashMap::new() })
    }

    async fn read(&mut self, wanted: &Wanted) -> Outcome<()> {
        let table = &wanted.table;
        let name = (super::qualified(table), facts::key_columns(table));
        let known = self.tables.get(&name).filter(|(_, looked)| looked.elapsed() < LOOK_AGAIN);
        let statement = match known {
            Some((statement, _)) => statement.clone(),
            None => {
                let statement = self.statement(table).await?;
                self.tables.insert(name, (statement.clone(), Instant::now()));
                statement
            }
        };
        let Some(statement) = statement else { return Ok(()) };
        let read = self.client.execute_raw(&statement, &wanted.keys).await;
        read.map(drop).map_err(|e| fault_of(&e).during(format_args!("reading rows of {}", table.target)))
    }

    /// What reads rows of a table; none if it is small: it is in memory, and reading it twice is work for nothing.
    async fn statement(&self, table: &Table) -> Outcome<Option<Statement>> {
        let during = |e: tokio_postgres::Error| fault_of(&e).during("looking how large a table is");
        let is_large = self.client.query_one(IS_LARGE, &[&super::qualified(table)]).await.map_err(during)?;
        if !is_large.get::<_, bool>(0) {
            return Ok(None);
        }
        let without = || Fault::bug("SEGUE-AHEAD", "a table without a key is read by its key");
        let key = table.key().ok_or_else(without)?;
        let facts = facts::look_up(&self.client, table).await?;
        let sql = Target { table, facts: &facts, staged: false }.count_many(key);
        self.client.prepare(&sql).await.map(Some).map_err(|e| fault_of(&e))
    }
}
