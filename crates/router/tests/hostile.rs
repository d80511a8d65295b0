//! Peers that mean harm, or are broken: others are not disturbed, nobody learns who exists, and memory stays bounded.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is a failed test")]

mod support;

use base64::Engine;
use segue_router::{ClientAuth, Config, PoolMode, Secret, Users};
use segue_testkit::{Cluster, Options};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use support::wire::{Frame, Wire, field, frame, startup};
use support::{Running, config};

/// A router that lets in without a password, and waits for a login half a second.
fn trusting(cluster: &Cluster) -> Config {
    let mut config = config(cluster, cluster, PoolMode::Transaction);
    config.auth = ClientAuth::Trust;
    config.limits.login_max = Duration::from_millis(500);
    config
}

fn said(frames: &[Frame]) -> Vec<String> {
    frames.iter().filter(|(tag, _)| *tag == b'E').map(|(_, body)| field(body, b'C')).collect()
}

/// A login with a wrong password as far as it gets: what was said, with what differs from try to try left out.
async fn attempt(port: u16, user: &str) -> (Vec<String>, String) {
    let mut wire = Wire::open(port).await;
    wire.send(&startup(&[("user", user), ("database", "postgres")])).await;
    let mut rounds = Vec::new();
    let offered = wire.frame().await.unwrap();
    rounds.push(format!("{} {}", offered.0 as char, offered.1.escape_ascii()));
    let first = b"n,,n=,r=clientnonce";
    let length = u32::try_from(first.len()).unwrap().to_be_bytes();
    wire.send(&frame(b'p', &[b"SCRAM-SHA-256\0", &length, first])).await;
    let challenge = wire.frame().await.unwrap();
    let text = String::from_utf8(challenge.1[4..].to_vec()).unwrap();
    let mut attributes = text.split(',');
    let nonce = attributes.next().unwrap().strip_prefix("r=").unwrap().to_owned();
    let salt = attributes.next().unwrap().to_owned();
    rounds.push(format!(
        "{} r={} s={} {:?}",
        challenge.0 as char,
        nonce.len(),
        salt.len(),
        attributes.next()
    ));
    let proof = base64::engine::general_purpose::STANDARD.encode([7; 32]);
    wire.send(&frame(b'p', &[format!("c=biws,r={nonce},p={proof}").as_bytes()])).await;
    for (tag, body) in wire.rest().await {
        rounds.push(format!("{} {}", tag as char, body.escape_ascii()).replace(user, "?"));
    }
    (rounds, salt)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_exists_is_told_neither_by_words_nor_by_rounds_nor_by_salts() {
    let cluster = Cluster::start(Options::default()).await;
    let verifier =
        cluster.scalar("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'").await.unwrap();
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.users = Users::parse(&format!("\"verified\" \"{verifier}\"")).unwrap();
    config.users.insert("ann", Secret::Password("secret".into()));
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let mut seen = BTreeSet::new();
    for user in ["ann", "verified", "nobody", "somebody"] {
        let mut salts = BTreeSet::new();
        for _ in 0..3 {
            let (rounds, salt) = attempt(port, user).await;
            assert_eq!(rounds.len(), 3, "{rounds:?}");
            seen.insert(rounds);
            salts.insert(salt);
        }
        assert_eq!(salts.len(), 1, "a user's salt stays, as a server's does: {user}");
    }
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert_eq!(
        (router.counts().connects, router.counts().sessions),
        (0, 0),
        "no wrong password reaches a server"
    );
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_exists_is_not_told_by_time() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = config(&cluster, &cluster, PoolMode::Transaction);
    config.users.insert("ann", Secret::Password("secret".into()));
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..40 {
        for (user, times) in ["ann", "bob"].iter().zip(&mut times) {
            let began = Instant::now();
            attempt(port, user).await;
            times.push(began.elapsed());
        }
    }
    // The quickest is what the router needs; everything above it is the machine's other work.
    let [known, unknown] = times.map(|times| times.into_iter().min().unwrap());
    // A password is stretched 4,096 times, which costs more than all the rest of a login.
    let (less, more) = (known.min(unknown), known.max(unknown));
    assert!(more < less * 2 + Duration::from_micros(300), "known {known:?}, unknown {unknown:?}");
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dawdles_at_the_door_is_turned_away_and_nobody_waits_for_it() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = trusting(&cluster);
    config.limits.clients_max = 300;
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let client = router.connect().await;
    let packet = startup(&[("user", "postgres"), ("database", "postgres")]);
    // Nothing at all, half a length, and a byte now and then.
    let mut slow = Vec::new();
    for number in 0..200 {
        let mut wire = Wire::open(port).await;
        let bytes = &packet[..number % packet.len()];
        wire.send(bytes).await;
        slow.push((wire, number % packet.len()));
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(700) {
        for (wire, sent) in &mut slow {
            // Never the last one.
            if *sent + 1 < packet.len() {
                wire.send(&packet[*sent..=*sent]).await;
                *sent += 1;
            }
        }
        client.query_one("SELECT 1", &[]).await.unwrap();
        router.connect().await.query_one("SELECT 1", &[]).await.unwrap();
    }
    for (wire, _) in &mut slow {
        assert_eq!(wire.rest().await, [], "each is hung up on");
    }
    assert_eq!(router.counts().refused_logins, 200);
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_half_a_message_keeps_no_server() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = trusting(&cluster);
    config.limits.connections_max = 1;
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let mut half = Vec::new();
    for bytes in [
        &b"Q"[..],
        b"Q\0\0",
        b"Q\0\0\0\x20SELECT",
        b"P\0\0\x01\0a\0SELECT",
        b"B\0\0\0\xff",
        b"d\0\0\xff\xffxx",
    ] {
        let mut wire = Wire::through(port, "postgres").await;
        wire.send(bytes).await;
        half.push(wire);
    }
    let client = router.connect().await;
    for _ in 0..20 {
        client.query_one("SELECT 1", &[]).await.unwrap();
    }
    // One that has gone without a word: its transaction does not stay.
    let mut gone = Wire::through(port, "postgres").await;
    gone.send(&frame(b'Q', &[b"BEGIN\0"])).await;
    gone.until(|(tag, _)| *tag == b'Z').await;
    drop((gone, half));
    client.query_one("SELECT 1", &[]).await.unwrap();
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_sent_half_a_message_is_given_to_nobody() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = trusting(&cluster);
    config.limits.connections_max = 1;
    config.limits.login_max = Duration::from_secs(15);
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let client = router.connect().await;
    for finishes in [true, false] {
        // The Sync is answered, and then nothing is owed for the CopyData that has only begun.
        let mut wire = Wire::through(port, "postgres").await;
        let data = frame(b'd', &[&[b'x'; 100]]);
        wire.send(&[&frame(b'S', &[]), &data[..20]].concat()).await;
        assert_eq!(wire.frame().await.unwrap().0, b'Z');
        if finishes {
            wire.send(&data[20..]).await;
            client.query_one("SELECT 1", &[]).await.unwrap();
            wire.send(&frame(b'Q', &[b"SELECT 1\0"])).await;
            assert_eq!(wire.until(|(tag, _)| *tag == b'Z').await.len(), 4);
        }
        drop(wire);
        client.query_one("SELECT 1", &[]).await.unwrap();
    }
    router.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_out_of_their_place_end_a_session_with_a_reason() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = trusting(&cluster);
    config.limits.statement_bytes_max = 1 << 20;
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let client = router.connect().await;
    // Long enough for a server to be asked for: before that nothing is refused, because nothing is kept.
    let filler = vec![b'x'; 70_000];
    let head = |tag: u8, length: u32| [&[tag][..], &length.to_be_bytes(), &filler].concat();
    for (bytes, code) in [
        (head(b'Q', u32::MAX), "08P01"),
        (head(b'Q', 3), "08P01"),
        (head(b'Q', (1 << 30) - 1), "54000"),
        (head(b'P', 64 << 20), "54000"),
        (frame(b'p', &[b"x"]), "08P01"),
        (frame(b'Z', &[b"I"]), "08P01"),
        (frame(b'R', &[b"\0\0\0\0"]), "08P01"),
        (frame(b'Q', &[b"no end"]), "08P01"),
        (frame(b'P', &[b"a\0no end"]), "08P01"),
        (frame(b'B', &[b"no end"]), "08P01"),
        (frame(b'D', &[b""]), "08P01"),
        (frame(b'C', &[b"Sx"]), "08P01"),
        (frame(b'E', &[b"no end"]), "08P01"),
        (startup(&[("user", "postgres")]), "08P01"),
    ] {
        let mut wire = Wire::through(port, "postgres").await;
        wire.send(&bytes).await;
        assert_eq!(said(&wire.rest().await), [code], "{}", bytes[..bytes.len().min(40)].escape_ascii());
        client.query_one("SELECT 1", &[]).await.unwrap();
    }
    // Before a login nothing but a first packet is taken, and a long one is not awaited.
    for first in [
        &b"\x7f\xff\xff\xff\0\x03\0\0"[..],
        b"Q\0\0\0\x0dSELECT 1\0",
        b"\0\0\x27\x11\0\x03\0\0",
        b"\0\0\0\x08\0\x09\0\0",
    ] {
        let mut wire = Wire::open(port).await;
        wire.send(first).await;
        let codes = said(&wire.rest().await);
        assert!(codes == ["08P01"] || codes == ["0A000"], "{codes:?}");
    }
    router.drain().await;
}

/// Resident memory of this process, in which the router runs.
fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_by_what_is_configured() {
    let cluster = Cluster::start(Options::default()).await;
    let mut config = trusting(&cluster);
    config.limits.statement_bytes_max = 1 << 20;
    config.limits.connections_max = 4;
    config.limits.login_max = Duration::from_secs(15);
    let router = Running::start(config, cluster.password()).await;
    let port = router.handle.address().port();
    let mut wires = Vec::new();
    for _ in 0..40 {
        wires.push(Wire::through(port, "postgres").await);
    }
    let junk = vec![b'x'; 4 << 20];
    let before = memory_bytes();
    // A value of 900 MB is announced, and a part of it sent: it is passed on, or waits in the client's socket.
    let bind =
        [&b"B"[..], &900_000_000u32.to_be_bytes(), b"\0\0\0\0\0\x01", &800_000_000u32.to_be_bytes()].concat();
    let parse = frame(b'P', &[b"\0SELECT $1::text\0\0\0"]);
    let begin = [&parse[..], &bind].concat();
    let sending = wires.iter_mut().map(|wire| {
        let (begin, junk) = (&begin, &junk);
        let sent = async move {
            wire.send(begin).await;
            wire.send(junk).await;
        };
        // Most of them never get a server, and are not read any further.
        tokio::time::timeout(Duration::from_millis(500), sent)
    });
    futures_util::future::join_all(sending).await;
    let after = memory_bytes();
    let grown = after.saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MB for 40 clients");
    // Who reads nothing is not read for: the answer waits in the server.
    drop(wires);
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::through(port, "postgres").await;
        wire.send(&frame(b'Q', &[b"SELECT repeat('x', 1000000) FROM generate_series(1, 200)\0"])).await;
        deaf.push(wire);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let grown = memory_bytes().saturating_sub(before) >> 20;
    assert!(grown < 64, "{grown} MB for 4 clients that do not read");
    drop(deaf);
    router.drain().await;
}
