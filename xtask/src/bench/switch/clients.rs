//! The application: clients that write where the writes are, go to the other side when a fence refuses them, and remember
//! every write that was acknowledged. Behind a router both sides are one address, and it never refuses.

use super::super::pair::must;
use super::schema::{ACCOUNTS_OF_BRANCH, Schema, TELLERS_OF_BRANCH};
use segue_testkit::cluster;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep};
use tokio_postgres::types::{ToSql, Type};
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
    /// Whose it is.
    pub(super) client: u32,
    /// When its transaction was first begun.
    pub(super) began: Instant,
    /// When it was known to be committed.
    pub(super) at: Instant,
}

impl Ack {
    /// Whether the client keeps a session on each side, or gives the one up and connects to the other.
    pub(super) fn keeps_sessions(&self) -> bool {
        keeps_sessions(self.client)
    }
}

fn keeps_sessions(client: u32) -> bool {
    client.is_multiple_of(2)
}

/// How clients send their statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// Prepared once in each session.
    Prepared,
    /// Parsed each time, without a name: what every pooler takes in transaction mode.
    Unnamed,
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
    /// `urls`: where the writes may be taken; the first one is asked first.
    pub(super) fn start(urls: &[String; 2], schema: &Schema, speech: Speech) -> Clients {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Seen>>::default());
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            let one = One {
                number,
                urls: urls.clone(),
                sessions: [None, None],
                side: 0,
                schema: schema.clone(),
                speech,
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

/// A statement whose parameters are all numbers.
enum Sql {
    Prepared(Statement),
    Unnamed(String),
}

impl Sql {
    async fn ready(client: &Client, speech: Speech, text: &str) -> Result<Sql, Error> {
        match speech {
            Speech::Prepared => Ok(Sql::Prepared(client.prepare(text).await?)),
            Speech::Unnamed => Ok(Sql::Unnamed(text.to_owned())),
        }
    }

    async fn run(&self, client: &Client, values: &[i64]) -> Result<(), Error> {
        let values = values.iter().map(|value| value as &(dyn ToSql + Sync));
        match self {
            Sql::Prepared(statement) => client.query(statement, &values.collect::<Vec<_>>()).await.map(drop),
            Sql::Unnamed(text) => {
                let typed: Vec<_> = values.map(|value| (value, Type::INT8)).collect();
                client.query_typed(text, &typed).await.map(drop)
            }
        }
    }
}

/// What a transfer is made of.
const TRANSFER: [&str; 5] = [
    "UPDATE account SET balance = balance + $1 WHERE id = $2",
    "SELECT balance FROM account WHERE id = $1",
    "UPDATE teller SET balance = balance + $1 WHERE id = $2",
    "UPDATE branch SET balance = balance + $1 WHERE id = $2",
    "INSERT INTO history (write, teller, branch, account, delta) VALUES ($1, $2, $3, $4, $5)",
];

/// A session with its statements.
struct Session {
    client: Client,
    /// As in [`TRANSFER`].
    transfer: Vec<Sql>,
    /// One for each table of events.
    lone: Vec<Sql>,
}

impl Session {
    async fn open(url: &str, schema: &Schema, speech: Speech) -> Result<Session, Error> {
        let client = cluster::connect(url).await?;
        let (mut transfer, mut lone) = (Vec::new(), Vec::new());
        for text in TRANSFER {
            transfer.push(Sql::ready(&client, speech, text).await?);
        }
        for table in &schema.events {
            let text = format!("INSERT INTO {table} (write, note) VALUES ($1, 'an event') RETURNING id");
            lone.push(Sql::ready(&client, speech, &text).await?);
        }
        Ok(Session { client, transfer, lone })
    }

    async fn write(&self, order: &Order) -> Result<(), Error> {
        if let Some(table) = order.lone {
            return self.lone[table].run(&self.client, &[order.write]).await;
        }
        let done = self.transfer(order).await;
        if done.is_err() && !self.client.is_closed() {
            self.client.batch_execute("ROLLBACK").await?;
        }
        done
    }

    async fn transfer(&self, order: &Order) -> Result<(), Error> {
        let &Order { write, account, teller, branch, delta, .. } = order;
        let values: [&[i64]; TRANSFER.len()] = [
            &[delta, account],
            &[account],
            &[delta, teller],
            &[delta, branch],
            &[write, teller, branch, account, delta],
        ];
        self.client.batch_execute("BEGIN").await?;
        for (sql, values) in self.transfer.iter().zip(values) {
            sql.run(&self.client, values).await?;
        }
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
    speech: Speech,
    dice: Dice,
    seen: Arc<Mutex<Seen>>,
}

impl One {
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
            let ack = Ack { write, is_lone: order.lone.is_some(), client: self.number, began, at };
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
            None => match Session::open(&self.urls[side], &self.schema, self.speech).await {
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
        if (is_fenced && !keeps_sessions(self.number)) || error.as_db_error().is_none() {
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
