//! Messages in orders that no driver sends: the router answers as the server does, byte for byte but for names.
//!
//! `SEGUE_SEED` replays a printed seed; `SEGUE_SOAK` runs many more rounds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use rand::prelude::*;
use rand::rngs::StdRng;
use segue_router::{ClientAuth, PoolMode};
use segue_testkit::{Cluster, Options};
use support::wire::{Wire, frame, told};
use support::{Running, config};

const TEXTS: &[&str] = &[
    "SELECT 1",
    "SELECT $1::int",
    "SELECT generate_series(1, 5)",
    "INSERT INTO w VALUES (1)",
    "INSERT INTO w SELECT generate_series(1, 3) RETURNING i",
    "SELECT 1/0",
    "SELECT nonsense",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "",
    "SELEC",
    "COPY (SELECT generate_series(1, 3)) TO STDOUT",
    "SET work_mem = '1MB'",
    "SHOW work_mem",
    "RESET work_mem",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "PREPARE p AS SELECT 7",
    "EXECUTE p",
    "DEALLOCATE p",
    "DEALLOCATE ALL",
    "DISCARD ALL",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 10)",
    "FETCH 2 FROM c",
    "CREATE TEMP TABLE own (i int)",
    "SELECT count(*) FROM own",
    "DO $$ BEGIN RAISE NOTICE 'hm'; END $$",
];

const STRINGS: &[&str] = &[
    "SELECT 1; SELECT 2",
    "INSERT INTO w VALUES (2); SELECT 1/0; SELECT 3",
    "BEGIN; INSERT INTO w VALUES (3)",
    "COMMIT; SELECT 4",
    "BEGIN; SET work_mem = '2MB'; ROLLBACK; SHOW work_mem",
    ";;",
];

/// What one session sends, round after round.
struct Sender {
    random: StdRng,
    /// Statements are given a name once, and used by it within their group or in a later round. The router says without
    /// waiting what a name means: one whose Parse is sent and fails still has its meaning until that is known.
    named: usize,
    /// Those of earlier rounds.
    settled: usize,
}

type Message = (String, Vec<u8>);

impl Sender {
    fn text(&mut self) -> &'static str {
        TEXTS.choose(&mut self.random).unwrap()
    }

    /// One of the last rounds' names, or one that means nothing.
    fn name(&mut self) -> String {
        match self.random.random_range(0..5) {
            back if back < self.settled => format!("s{}", self.settled - back),
            _ => "none".into(),
        }
    }

    /// A Parse of the unnamed statement, or under a new name.
    fn parse(&mut self) -> (String, Message) {
        let text = self.text();
        let mut name = String::new();
        if self.random.random_bool(0.6) {
            self.named += 1;
            name = format!("s{}", self.named);
        }
        let bytes = frame(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"]);
        (name.clone(), (format!("Parse {name:?} {text:?}"), bytes))
    }

    fn bind(&mut self, portal: &str, statement: &str) -> Message {
        let has_value = self.random.random_bool(0.2);
        let values: &[u8] = if has_value { b"\0\0\0\x01\0\0\0\x0242\0\0" } else { b"\0\0\0\0\0\0" };
        let names = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0"].concat();
        (format!("Bind {portal:?} {statement:?} {has_value}"), frame(b'B', &[&names, values]))
    }

    fn execute(&mut self, portal: &str) -> Message {
        let rows = *[0u32, 0, 2].choose(&mut self.random).unwrap();
        (format!("Execute {portal:?} {rows}"), frame(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()]))
    }

    fn message(&mut self) -> Message {
        let portal = *["", "", "", "p"].choose(&mut self.random).unwrap();
        match self.random.random_range(0..27) {
            0..4 => self.parse().1,
            4..7 => {
                let name = self.name();
                self.bind(portal, &name)
            }
            7..10 => self.execute(portal),
            10 => {
                let name = self.name();
                (format!("Describe {name:?}"), frame(b'D', &[b"S", name.as_bytes(), b"\0"]))
            }
            11 => (format!("Describe portal {portal:?}"), frame(b'D', &[b"P", portal.as_bytes(), b"\0"])),
            12 => (format!("Close portal {portal:?}"), frame(b'C', &[b"P", portal.as_bytes(), b"\0"])),
            13..17 => ("Sync".into(), frame(b'S', &[])),
            17 => ("Flush".into(), frame(b'H', &[])),
            18..23 => {
                let text =
                    *[TEXTS, STRINGS].choose(&mut self.random).unwrap().choose(&mut self.random).unwrap();
                (format!("Query {text:?}"), frame(b'Q', &[text.as_bytes(), b"\0"]))
            }
            23 => ("CopyData".into(), frame(b'd', &[b"8\n"])),
            24 => ("CopyData, broken".into(), frame(b'd', &[b"x\n"])),
            25 => ("CopyDone".into(), frame(b'c', &[])),
            _ => ("CopyFail".into(), frame(b'f', &[b"no\0"])),
        }
    }

    /// A group as drivers send it, so that rounds get somewhere. The unnamed statement is used nowhere else: it goes with
    /// the next simple query, and the router makes it anew.
    fn group(&mut self) -> Vec<Message> {
        let (name, parse) = self.parse();
        let portal = *["", "", "p"].choose(&mut self.random).unwrap();
        let mut group = vec![parse, self.bind(portal, &name)];
        if self.random.random_bool(0.3) {
            group.push((format!("Describe {name:?}"), frame(b'D', &[b"S", name.as_bytes(), b"\0"])));
        }
        group.push(self.execute(portal));
        if self.random.random_bool(0.7) {
            group.push(("Sync".into(), frame(b'S', &[])));
        }
        group
    }

    /// A COPY from the client, with its Sync early as libpq sends it, or not; perhaps it fails, or is given up.
    fn copy(&mut self) -> Vec<Message> {
        let simple = self.random.random_bool(0.5);
        let mut group = match simple {
            true => vec![("Query COPY".into(), frame(b'Q', &[b"COPY w FROM STDIN; SELECT 5\0"]))],
            false => vec![
                ("Parse COPY".into(), frame(b'P', &[b"\0COPY w FROM STDIN\0\0\0"])),
                ("Bind COPY".into(), frame(b'B', &[b"\0\0\0\0\0\0\0\0"])),
                ("Execute COPY".into(), frame(b'E', &[b"\0\0\0\0\0"])),
            ],
        };
        if !simple && self.random.random() {
            group.push(("Sync, early".into(), frame(b'S', &[])));
        }
        for _ in 0..self.random.random_range(0..3) {
            let data: &[u8] = if self.random.random_bool(0.2) { b"x\n" } else { b"8\n" };
            group.push((format!("CopyData {}", data.escape_ascii()), frame(b'd', &[data])));
        }
        group.push(match self.random.random_bool(0.7) {
            true => ("CopyDone".into(), frame(b'c', &[])),
            false => ("CopyFail".into(), frame(b'f', &[b"no\0"])),
        });
        if !simple {
            group.push(("Sync".into(), frame(b'S', &[])));
        }
        group
    }

    fn round(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        self.settled = self.named;
        if self.random.random_bool(0.3) {
            let name = self.name();
            messages.push(match self.random.random() {
                true => (format!("Close {name:?}"), frame(b'C', &[b"S", name.as_bytes(), b"\0"])),
                // Under a name that means something, unless that failed; the same text again would be taken as it is.
                false => {
                    self.named += 1;
                    let (name, text) = (format!("s{}", self.named - 1), format!("SELECT {}", self.named));
                    let body = [name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"];
                    (format!("Parse {name:?} {text:?}"), frame(b'P', &body))
                }
            });
            messages.push(("Sync".into(), frame(b'S', &[])));
        }
        for _ in 0..self.random.random_range(1..12) {
            if self.random.random_bool(0.4) {
                messages.extend(self.group());
            } else if self.random.random_bool(0.1) {
                messages.extend(self.copy());
            } else {
                messages.push(self.message());
            }
        }
        messages
    }
}

/// Sends a round in pieces cut anywhere, and returns everything that comes back until the server has seen the end of it.
async fn answers(wire: &mut Wire, bytes: &[u8], cuts: &[usize]) -> Vec<String> {
    let mut sent = 0;
    for &cut in cuts {
        wire.send(&bytes[sent..cut]).await;
        tokio::task::yield_now().await;
        sent = cut;
    }
    // A COPY that is open ends, a group that is open ends, and then comes what every state refuses in its own words.
    let end = [frame(b'f', &[b"the end\0"]), frame(b'S', &[]), frame(b'Q', &[b"the_end\0"])].concat();
    wire.send(&[&bytes[sent..], &end].concat()).await;
    let mut frames =
        wire.until(|(tag, body)| *tag == b'E' && body.windows(7).any(|window| window == b"the_end")).await;
    frames.extend(wire.until(|(tag, _)| *tag == b'Z').await);
    wire.send(&frame(b'Q', &[b"ROLLBACK\0"])).await;
    frames.extend(wire.until(|(tag, _)| *tag == b'Z').await);
    wire.send(&frame(b'Q', &[b"SELECT count(*), sum(i) FROM w\0"])).await;
    frames.extend(wire.until(|(tag, _)| *tag == b'Z').await);
    frames.iter().filter_map(told).map(without_shared_names).collect()
}

/// In an error a shared statement has the name that it has on servers: the only trace that sharing leaves.
fn without_shared_names(said: String) -> String {
    // It is freed before it is given, and so the first message that disturbs a COPY is another one.
    if let Some((before, _)) = said.split_once("unexpected message type ") {
        return format!("{before}unexpected message type");
    }
    let Some((before, after)) = said.split_once("prepared statement \"") else { return said };
    let (_, after) = after.split_once('"').unwrap();
    format!("{before}prepared statement ?{after}")
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_is_answered_as_the_server_answers_it() {
    let soak = std::env::var_os("SEGUE_SOAK").is_some();
    // The same orders each time, so that a change is to blame for what fails; other ones in a soak.
    let seed: u64 = match std::env::var("SEGUE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) if soak => u64::from(rand::random::<u32>()),
        Err(_) => 1,
    };
    println!("SEGUE_SEED={seed}");
    let cluster = Cluster::start(Options::default()).await;
    let mut ports = Vec::new();
    let mut routers = Vec::new();
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let mut config = config(&cluster, &cluster, mode);
        config.auth = ClientAuth::Trust;
        let router = Running::start(config, cluster.password()).await;
        ports.push(router.handle.address().port());
        routers.push(router);
    }
    let databases = ["wire_direct", "wire_session", "wire_shared"];
    // Copies of one, in which the table has the same number.
    let server = cluster.connect("template1").await;
    server.batch_execute("CREATE TABLE w (i int)").await.unwrap();
    drop(server);
    for database in databases {
        cluster.execute(&format!("CREATE DATABASE {database}")).await;
    }
    for number in 0..if soak { 1_500 } else { 6 } {
        let seed = seed + number;
        let mut sender = Sender { random: StdRng::seed_from_u64(seed), named: 0, settled: 0 };
        let mut wires = vec![Wire::direct(&cluster, databases[0]).await];
        for (port, database) in ports.iter().zip(&databases[1..]) {
            wires.push(Wire::through(*port, database).await);
        }
        // Several rounds in one session: what one leaves behind is the next one's.
        let mut history = Vec::new();
        for _ in 0..8 {
            let (names, bytes): (Vec<String>, Vec<Vec<u8>>) = sender.round().into_iter().unzip();
            let bytes = bytes.concat();
            let mut cuts: Vec<usize> = (0..sender.random.random_range(0..4))
                .map(|_| sender.random.random_range(0..=bytes.len()))
                .collect();
            cuts.sort_unstable();
            history.push(names);
            let mut all = Vec::new();
            for wire in &mut wires {
                all.push(answers(wire, &bytes, &cuts).await);
            }
            for (said, pool) in all[1..].iter().zip(["session", "transaction"]) {
                assert_eq!(said, &all[0], "SEGUE_SEED={seed}, {pool} pooling:\n{history:#?}");
            }
        }
    }
    drop(routers);
}
