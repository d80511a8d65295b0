//! The same done by hand, as it is done without Segue: a subscription of PostgreSQL's own from the side that has the writes
//! to the other one, clients behind PgBouncer, and the steps of a careful script.
//!
//! The way back is no part of it: before each further hand-over the side that has been left is emptied and copied anew.

use super::super::Options;
use super::super::pair::{DATABASE, Pair, must, until_true};
use super::super::pgbouncer::{PgBouncer, Settings};
use super::clients::{CLIENTS, Clients, Speech};
use super::found::{Found, Hand, Outcome, ms};
use super::schema::{APP, PASSWORD, Schema};
use super::{QUIET, app_url};
use segue_testkit::Cluster;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_postgres::Client;

/// Between two looks whether the subscriber has everything.
pub(super) const LOOK: Duration = Duration::from_millis(5);
/// PgBouncer's own default.
const POOL_SIZE: usize = 20;
/// The subscriber is not that far behind.
const PATIENCE: Duration = Duration::from_secs(60);
/// A row of it is written last.
const MARKER: &str = "CREATE TABLE marker (id bigint PRIMARY KEY)";

/// How it is known that the subscriber has everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// The slot has come to where the log ended after the pause.
    Slot,
    /// A row that was inserted after the pause is there.
    Marker,
}

impl Wait {
    pub(super) fn name(self) -> &'static str {
        match self {
            Wait::Slot => "the slot's position",
            Wait::Marker => "a marker row",
        }
    }
}

/// So many hand-overs, there and back in turn.
pub(super) async fn measure(options: &Options, tables: usize, times: u64, wait: Wait) -> Found {
    let pair = Pair::start().await;
    let schema = Schema::new(tables, |whole| options.scaled(whole));
    schema.make(&pair).await;
    let mut script = Script::start(&pair, &schema, wait).await;
    let url = app_url(script.pooler.port);
    let clients = Clients::start(&[url.clone(), url], &schema, Speech::Unnamed);
    let mut found = Found::default();
    for number in 0..times {
        script.follow().await;
        sleep(QUIET).await;
        let hand = script.hand_over(number.cast_signed()).await;
        eprintln!("bench: {} of {times}: {}", number + 1, hand.line());
        found.hands.push(hand);
        sleep(QUIET).await;
    }
    found.seen(clients.finish().await);
    found.lost = schema.lost(script.owner(), &found.acks).await;
    found
}

/// The script, with its sessions.
struct Script<'p> {
    servers: [&'p Cluster; 2],
    /// On each of them, as superuser.
    sessions: [Client; 2],
    pooler: PgBouncer,
    admin: Client,
    /// Which of the two has the writes.
    owner: usize,
    /// All that is published.
    tables: String,
    wait: Wait,
}

impl<'p> Script<'p> {
    async fn start(pair: &'p Pair, schema: &Schema, wait: Wait) -> Script<'p> {
        let servers = [&pair.source, &pair.target];
        let sessions = [Pair::connect(servers[0], DATABASE).await, Pair::connect(servers[1], DATABASE).await];
        let tables = format!("{}, marker", schema.tables().join(", "));
        for session in &sessions {
            let sql = format!("{MARKER}; CREATE PUBLICATION by_hand FOR TABLE {tables}");
            must(session.batch_execute(&sql).await, "publish");
        }
        let settings = Settings {
            pool_mode: "transaction",
            pool_size: POOL_SIZE,
            clients_max: 2 * CLIENTS as usize,
            user: (APP, PASSWORD),
        };
        let pooler = PgBouncer::start(servers[0], settings).await;
        let url = app_url(pooler.port).replace(DATABASE, "pgbouncer");
        let admin = must(segue_testkit::cluster::connect(&url).await, "connect to PgBouncer's console");
        Script { servers, sessions, pooler, admin, owner: 0, tables, wait }
    }

    /// Of the side that has the writes.
    fn owner(&self) -> &Client {
        &self.sessions[self.owner]
    }

    /// Of the other one.
    fn other(&self) -> &Client {
        &self.sessions[1 - self.owner]
    }

    /// The side without the writes gets all rows anew, and follows.
    async fn follow(&self) {
        let run = async |client: &Client, sql: &str| must(client.batch_execute(sql).await, sql);
        // Its other end is the side that has been left.
        run(self.owner(), "DROP SUBSCRIPTION IF EXISTS by_hand").await;
        run(self.other(), &format!("TRUNCATE {}", self.tables)).await;
        let conninfo = Pair::conninfo(self.servers[self.owner], DATABASE);
        let subscribe = format!("CREATE SUBSCRIPTION by_hand CONNECTION '{conninfo}' PUBLICATION by_hand");
        run(self.other(), &subscribe).await;
        until_true(self.other(), "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel").await;
        run(self.other(), &format!("ANALYZE {}", self.tables)).await;
    }

    /// One hand-over; `number` is written where a marker is.
    async fn hand_over(&mut self, number: i64) -> Hand {
        self.pooler.point_at(self.servers[1 - self.owner]);
        let asked = Instant::now();
        let mut steps = Vec::new();
        let mut since = asked;
        let mut step = |name: &str| {
            let now = Instant::now();
            steps.push((name.to_owned(), ms(std::mem::replace(&mut since, now), now)));
        };
        self.order(&format!("PAUSE {DATABASE}")).await;
        step("pause");
        tokio::join!(self.has_everything(number), self.copy_sequences());
        step("wait");
        self.order("RELOAD").await;
        step("reload");
        self.order(&format!("RESUME {DATABASE}")).await;
        step("resume");
        self.owner = 1 - self.owner;
        let answered = Instant::now();
        Hand { asked, answered, outcome: Outcome::Switched { stall_ms: ms(asked, answered), steps } }
    }

    async fn order(&self, order: &str) {
        must(self.admin.batch_execute(order).await, order);
    }

    async fn has_everything(&self, number: i64) {
        match self.wait {
            Wait::Slot => {
                let end = "SELECT pg_current_wal_lsn()::text";
                let end: String = must(self.owner().query_one(end, &[]).await, end).get(0);
                let sql = format!(
                    "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'by_hand'"
                );
                until(self.owner(), &sql).await;
            }
            Wait::Marker => {
                let insert = format!("INSERT INTO marker VALUES ({number})");
                must(self.owner().batch_execute(&insert).await, &insert);
                until(self.other(), &format!("SELECT EXISTS (SELECT FROM marker WHERE id = {number})")).await;
            }
        }
    }

    async fn copy_sequences(&self) {
        let read = "SELECT sequencename::text, last_value FROM pg_sequences
            WHERE schemaname = 'public' AND last_value IS NOT NULL";
        let rows = must(self.owner().query(read, &[]).await, read);
        let names: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
        let values: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
        let set =
            "SELECT setval(name::regclass, value) FROM unnest($1::text[], $2::bigint[]) AS s (name, value)";
        must(self.other().execute(set, &[&names, &values]).await, set);
    }
}

/// Looks until a statement answers `true`, as often as a script does.
async fn until(client: &Client, sql: &str) {
    let prepared = must(client.prepare(sql).await, sql);
    let deadline = Instant::now() + PATIENCE;
    while !must(client.query_one(&prepared, &[]).await, sql).get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "never true: {sql}");
        sleep(LOOK).await;
    }
}
