//! The application: clients that write where the writes are, go to the other side when a fence refuses them, and remember
//! every write that was acknowledged.

use super::super::pair::{DATABASE, Pair, must};
use super::schema::{ACCOUNTS_OF_BRANCH, Schema, TELLERS_OF_BRANCH};
use segue_testkit::{Cluster, cluster};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep};
use tokio_postgres::{Client, Error, Statement};

/// Clients at once.
pub(super) const CLIENTS: u32 = 12;
/// What they write together, in a second, when nothing holds them up.
pub(super) const TRANSACTIONS_PER_SECOND: u32 = 200;
/// Between being refused on one side and asking the other one.
const PAUSE: Duration = Duration::from_millis(5);
/// Of so many transactions one is a lone insert, with a value of a sequence.
const LONE_INSERT: u64 = 4;
/// `read_only_sql_transaction`, which is what a fence says.
const FENCED: &str = "25006";
/// `unique_violation`: the write whose answer was lost had been made.
const THERE_ALREADY: &str = "23505";

/// A write that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    /// Its number: unique over all clients.
    pub(super) write: i64,
    /// A lone insert, or a transfer.
    pub(super) is_lone: bool,
    /// Whether the client keeps a session on each side, or gives the one up and connects to the other.
    pub(super) keeps_sessions: bool,
    /// When its transaction was first begun.
    pub(super) began: Instant,
    /// When it was known to be committed.
    pub(super) at: Instant,
}

/// What the clients have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) acks: Vec<Ack>,
    /// By SQLSTATE, or `connection`.
    pub(super) errors: BTreeMap<String, u64>,
}

/// Clients that write.
pub(super) struct Clients {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

impl Clients {
    pub(super) fn start(pair: &Pair, schema: &Schema) -> Clients {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Seen>>::default());
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            let one = One {
                number,
                urls: [&pair.source, &pair.target].map(|server: &Cluster| server.url(DATABASE)),
                sessions: [None, None],
                side: 0,
                schema: schema.clone(),
                dice: Dice(u64::from(number) + 1),
                seen: seen.clone(),
            };
            tasks.spawn(one.write_until(stop.clone()));
        }
        Clients { tasks, stop, seen }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets each finish what it is at.
    pub(super) async fn finish(mut self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            must(ended, "a client");
        }
        std::mem::take(&mut *self.seen())
    }
}

/// A session with its statements.
struct Session {
    client: Client,
    transfer: [Statement; 5],
    lone: Vec<Statement>,
}

impl Session {
    async fn open(url: &str, schema: &Schema) -> Result<Session, Error> {
        let client = cluster::connect(url).await?;
        let transfer = [
            client.prepare("UPDATE account SET balance = balance + $1 WHERE id = $2").await?,
            client.prepare("SELECT balance FROM account WHERE id = $1").await?,
            client.prepare("UPDATE teller SET balance = balance + $1 WHERE id = $2").await?,
            client.prepare("UPDATE branch SET balance = balance + $1 WHERE id = $2").await?,
            client
                .prepare(
                    "INSERT INTO history (write, teller, branch, account, delta) VALUES ($1, $2, $3, $4, $5)",
                )
                .await?,
        ];
        let mut lone = Vec::new();
        for table in &schema.events {
            let sql = format!("INSERT INTO {table} (write, note) VALUES ($1, 'an event') RETURNING id");
            lone.push(client.prepare(&sql).await?);
        }
        Ok(Session { client, transfer, lone })
    }

    async fn write(&self, order: &Order) -> Result<(), Error> {
        if let Some(table) = order.lone {
            return self.client.query_one(&self.lone[table], &[&order.write]).await.map(drop);
        }
        let done = self.transfer(order).await;
        if done.is_err() && !self.client.is_closed() {
            self.client.batch_execute("ROLLBACK").await?;
        }
        done
    }

    async fn transfer(&self, order: &Order) -> Result<(), Error> {
        let Order { write, account, teller, branch, delta, .. } = order;
        let [to_account, read, to_teller, to_branch, remember] = &self.transfer;
        self.client.batch_execute("BEGIN").await?;
        self.client.execute(to_account, &[delta, account]).await?;
        self.client.query_one(read, &[account]).await?;
        self.client.execute(to_teller, &[delta, teller]).await?;
        self.client.execute(to_branch, &[delta, branch]).await?;
        self.client.execute(remember, &[write, teller, branch, account, delta]).await?;
        self.client.batch_execute("COMMIT").await
    }
}

/// One transaction, repeated as it is until it is done.
struct Order {
    write: i64,
    /// A lone insert into this table of events.
    lone: Option<usize>,
    account: i64,
    teller: i64,
    branch: i64,
    delta: i64,
}

/// One client.
struct One {
    number: u32,
    urls: [String; 2],
    sessions: [Option<Session>; 2],
    /// Where the last write was taken.
    side: usize,
    schema: Schema,
    dice: Dice,
    seen: Arc<Mutex<Seen>>,
}

impl One {
    fn keeps_sessions(&self) -> bool {
        self.number.is_multiple_of(2)
    }

    async fn write_until(mut self, stop: Arc<AtomicBool>) {
        let period = Duration::from_secs(1) * CLIENTS / TRANSACTIONS_PER_SECOND;
        // Spread, so that they do not all write at once.
        let first = tokio::time::Instant::now() + period * self.number / CLIENTS;
        let mut ticks = interval_at(first, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        for count in 0.. {
            ticks.tick().await;
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let order = self.order(count);
            let began = Instant::now();
            while let Err(kind) = self.try_on(self.side, &order).await {
                let is_there = kind == THERE_ALREADY;
                self.met(kind);
                if is_there {
                    break;
                }
                sleep(PAUSE).await;
            }
            let (write, at) = (order.write, Instant::now());
            let ack = Ack {
                write,
                is_lone: order.lone.is_some(),
                keeps_sessions: self.keeps_sessions(),
                began,
                at,
            };
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).acks.push(ack);
        }
    }

    fn order(&mut self, count: i64) -> Order {
        let branch = self.dice.below(self.schema.branches);
        let lone = (self.dice.below(LONE_INSERT) == 0)
            .then(|| self.dice.below(self.schema.events.len() as u64) as usize);
        let of_branch = |dice: &mut Dice, each: u64| (branch * each + dice.below(each)).cast_signed() + 1;
        Order {
            write: count * i64::from(CLIENTS) + i64::from(self.number),
            lone,
            account: of_branch(&mut self.dice, ACCOUNTS_OF_BRANCH),
            teller: of_branch(&mut self.dice, TELLERS_OF_BRANCH),
            branch: branch.cast_signed() + 1,
            delta: self.dice.below(10_000).cast_signed() - 5_000,
        }
    }

    /// The error is its kind. A side that refuses, or is gone, is left for the other one.
    async fn try_on(&mut self, side: usize, order: &Order) -> Result<(), String> {
        let done = match &self.sessions[side] {
            Some(session) => session.write(order).await,
            None => match Session::open(&self.urls[side], &self.schema).await {
                Ok(session) => self.sessions[side].insert(session).write(order).await,
                Err(error) => Err(error),
            },
        };
        let Err(error) = done else { return Ok(()) };
        let kind = error.code().map_or_else(|| "connection".to_owned(), |code| code.code().to_owned());
        let is_fenced = kind == FENCED;
        if is_fenced || error.as_db_error().is_none() {
            self.side = 1 - side;
        }
        if (is_fenced && !self.keeps_sessions()) || error.as_db_error().is_none() {
            self.sessions[side] = None;
        }
        Err(kind)
    }

    fn met(&self, kind: String) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.errors.entry(kind).or_default() += 1;
    }
}

/// Numbers that look random, the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}
