//! Switch: how long nobody's write is acknowledged while the writes change sides, there and back a hundred times, under
//! clients that write all the time: that come to both sides by themselves, and that know of one address only.

mod by_hand;
mod clients;
mod found;
mod routed;
mod schema;

use super::Options;
use super::digest::HASHED;
use super::pair::{DATABASE, Pair, must, until_true};
use super::report::verdict;
use clients::{CLIENTS, Clients, Speech, TRANSACTIONS_PER_SECOND};
use found::{Found, Hand, Outcome};
use schema::{APP, PASSWORD, Schema};
use segue_testkit::kill::Process;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// Half of them there, half of them back.
const SWITCHES: u64 = 100;
/// Of so many tables, all with a fence, some with a sequence …
const TABLES: usize = 5;
/// … and of so many, with a part of the switches.
const TABLES_MANY: usize = 50;
const PART_WITH_MANY: u64 = 4;
/// Between two of them, and what is looked at to know how it is without.
const QUIET: Duration = Duration::from_millis(700);
/// Between two looks for the answer: not the clients' business, and not in what is measured.
const LOOK: Duration = Duration::from_millis(10);
/// A gate that is red stays so no longer than its window.
const GATES_PATIENCE: Duration = Duration::from_secs(300);
/// No hand-over takes so long, done or undone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);
/// What a hand-over cannot do without, one after the other: the fence and the hand-over on the old owner, the fence's
/// marker and the opening on the new one. `true` is the old owner.
const FLOOR: [bool; 4] = [true, false, true, false];
/// What `segue run` says once its router listens, before the port.
const ROUTER_LISTENS: &str = "the router listens on 127.0.0.1:";
const ROUTER_PATIENCE: Duration = Duration::from_secs(10);
const GAP_P50_MS: f64 = 60.0;
const GAP_P99_MS: f64 = 250.0;

pub(super) async fn measure(options: &Options) -> String {
    let switches = options.scaled(SWITCHES);
    let few = back_and_forth(options, TABLES, switches, Way::Direct).await;
    let many = back_and_forth(options, TABLES_MANY, (switches / PART_WITH_MANY).max(2), Way::Direct).await;
    let routed = routed::measure(options).await;
    let mut text = format!(
        "The writes are handed over and back under {CLIENTS} clients that together write {TRANSACTIONS_PER_SECOND} \
         transactions a second (three of four: five statements on four tables, as TPC-B has them, else a lone insert). A \
         client that is refused with SQLSTATE 25006 asks the other side 5 ms later, in turn: half of them keep a session \
         on both sides, the others connect anew each time. The gap is the longest time around a hand-over without any acknowledged write; \
         a client's wait is the longest time that one transaction took, with all its tries. The floor is what a hand-over \
         cannot do without: {} durable commits in a row, on two servers, under the same load.\n\n",
        FLOOR.len(),
    );
    for (found, tables) in [(&few, TABLES), (&many, TABLES_MANY)] {
        text.push_str(&format!("### {tables} tables\n\n{}\n", found.text()));
    }
    text.push_str(&verdict("Gap, p50 ms", few.gap_ms(0.5), GAP_P50_MS, false));
    text.push_str(&verdict("\nGap, p99 ms", few.gap_ms(0.99), GAP_P99_MS, false));
    text.push_str(&verdict("\nAcknowledged writes lost", (few.lost + many.lost) as f64, 0.0, false));
    text.push_str(&format!("\n{routed}"));
    text
}

/// How the clients come to the servers.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// To each by its own address.
    Direct,
    /// Through the router of `segue run`, with this pool.
    Router(&'static str),
}

impl Way {
    /// What the spec has of it.
    fn section(self, pair: &Pair) -> String {
        let Way::Router(pool) = self else { return String::new() };
        let users = pair.source.socket_dir().join("router-users");
        must(std::fs::write(&users, format!("\"{APP}\" \"{PASSWORD}\"\n")), "write the router's users");
        format!("router: {{ listen: \"127.0.0.1:0\", users: \"{}\", pool: {pool} }}\n", users.display())
    }

    async fn clients(self, pair: &Pair, process: &Process, schema: &Schema) -> Clients {
        let Way::Router(pool) = self else {
            let urls = [&pair.source, &pair.target].map(|server| server.url(DATABASE));
            return Clients::start(&urls, schema, Speech::Prepared);
        };
        let line = must(process.wait_for(ROUTER_LISTENS, ROUTER_PATIENCE).await, "wait for the router");
        let digits = line
            .split(ROUTER_LISTENS)
            .nth(1)
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        let port = digits.and_then(|digits| digits.parse().ok());
        let url = app_url(port.unwrap_or_else(|| panic!("no port in {line:?}")));
        // As it is behind PgBouncer in the same mode.
        let speech = if pool == "transaction" { Speech::Unnamed } else { Speech::Prepared };
        Clients::start(&[url.clone(), url], schema, speech)
    }
}

/// How the application comes to its database behind a local port.
fn app_url(port: u16) -> String {
    format!("host=127.0.0.1 port={port} user={APP} password='{PASSWORD}' dbname={DATABASE}")
}

async fn back_and_forth(options: &Options, tables: usize, switches: u64, way: Way) -> Found {
    let pair = Pair::start().await;
    let schema = Schema::new(tables, |whole| options.scaled(whole));
    schema.make(&pair).await;
    pair.write_spec_with("dev", DATABASE, &schema.tables(), &way.section(&pair));
    eprintln!("bench: {tables} tables, {} rows: copying and comparing", schema.rows());
    let process = pair.segue(&["run"]);
    pair.segue_to_end(&["wait", "following"]).await;
    pair.segue_to_end(&["verify"]).await;
    let clients = way.clients(&pair, &process, &schema).await;
    let mut found = Found::default();
    let mut driver = Driver::connect(&pair).await;
    let floor = Floor::connect(&pair).await;
    for number in 0..switches {
        sleep(QUIET).await;
        let hand = driver.hand_over().await;
        eprintln!("bench: {} of {switches}: {}", number + 1, hand.line());
        if matches!(hand.outcome, Outcome::Fault(_)) {
            eprintln!("bench: what segue said:\n{}", process.lines().join("\n"));
        }
        found.hands.push(hand);
        found.floor_ms.push(floor.take(driver.owner).await);
    }
    // Back where it began, whatever was undone on the way.
    while driver.owner != "source" {
        driver.hand_over().await;
    }
    found.seen(clients.finish().await);
    let owner = Pair::connect(&pair.source, DATABASE).await;
    found.lost = schema.lost(&owner, &found.acks).await;
    assert_alike(&pair, &schema).await;
    assert!(process.status().is_none(), "segue has ended:\n{}", process.lines().join("\n"));
    pair.end_segue(process).await;
    found
}

/// Both sides have the same rows, once what was written last has arrived.
async fn assert_alike(pair: &Pair, schema: &Schema) {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    for table in schema.tables() {
        let statement = HASHED.replace("{table}", table);
        let sum: String = must(source.query_one(&statement, &[]).await, "hash the source").get(0);
        until_true(&target, &format!("SELECT ({statement}) = '{sum}'")).await;
    }
}

/// Gives orders, and knows who owns the writes by the answers.
struct Driver {
    control: Client,
    owner: &'static str,
}

impl Driver {
    async fn connect(pair: &Pair) -> Driver {
        let control = Pair::connect(&pair.target, DATABASE).await;
        Driver { control, owner: "source" }
    }

    /// One hand-over. One that does not begin because a gate is red is asked for again.
    async fn hand_over(&mut self) -> Hand {
        let verb = if self.owner == "source" { "switch" } else { "reverse" };
        let began = Instant::now();
        loop {
            let asked = Instant::now();
            let answer = must(timeout(ANSWER_PATIENCE, self.ask(verb)).await, "wait for the answer");
            let hand = Hand { asked, answered: Instant::now(), outcome: Outcome::of(&answer) };
            if let Some(owner) = answer["owner"].as_str() {
                self.owner = if owner == "source" { "source" } else { "target" };
            }
            let Outcome::Refused(why) = &hand.outcome else { return hand };
            assert!(began.elapsed() < GATES_PATIENCE, "{verb} is refused: {why}");
            sleep(QUIET).await;
        }
    }

    async fn ask(&self, verb: &str) -> Value {
        let sql = "WITH asked AS (INSERT INTO segue.command (migration, verb, arguments, asked_by)
                 VALUES ('bench', $1, $2::text::jsonb, 'bench') RETURNING id)
             SELECT id, pg_notify('segue_command', 'bench') FROM asked";
        let arguments = json!({ "rehearse": false, "overrides": [] }).to_string();
        let id: i64 = must(self.control.query_one(sql, &[&verb, &arguments]).await, "give an order").get(0);
        let sql = "SELECT answer::text FROM segue.command WHERE id = $1";
        loop {
            let row = must(self.control.query_one(sql, &[&id]).await, "look for the answer");
            if let Some(answer) = row.get::<_, Option<&str>>(0) {
                return must(serde_json::from_str(answer), "read the answer");
            }
            sleep(LOOK).await;
        }
    }
}

/// Sessions for bare commits.
struct Floor {
    source: Client,
    target: Client,
}

impl Floor {
    async fn connect(pair: &Pair) -> Floor {
        let (source, target) =
            tokio::join!(Pair::connect(&pair.source, DATABASE), Pair::connect(&pair.target, DATABASE));
        Floor { source, target }
    }

    /// Milliseconds, as if `owner` handed over.
    async fn take(&self, owner: &str) -> f64 {
        let (old, new) =
            if owner == "source" { (&self.source, &self.target) } else { (&self.target, &self.source) };
        let began = Instant::now();
        for is_old in FLOOR {
            let server = if is_old { old } else { new };
            must(server.batch_execute("UPDATE floor SET n = n + 1").await, "commit");
        }
        began.elapsed().as_secs_f64() * 1000.0
    }
}
