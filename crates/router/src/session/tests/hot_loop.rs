//! A query's way through the router and back takes as many instructions as it did: everything between two reads of a
//! socket and the writes behind them.

use super::*;
use crate::frames::{HEADER_BYTES, put, put_parameter, put_ready, put_string};
use crate::upstream::Upstream;
use crate::{Config, Heard, Limits, ReadLimits, Router, ShadowConfig, Users};
use bytes::BufMut;
use segue_model::switch::ownership::Epoch;
use segue_model::switch::route::Route;
use segue_testkit::instructions::HotLoop;
use std::hint::black_box;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

const QUERIES: usize = 100;
const TEXT: &[u8] = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1";

/// Answers one login as a server that trusts everybody, and keeps the connection.
async fn let_in(server: TcpListener) -> TcpStream {
    let mut stream = server.accept().await.unwrap().0;
    let length = stream.read_u32().await.unwrap() as usize;
    stream.read_exact(&mut vec![0; length - 4]).await.unwrap();
    let mut out = BytesMut::new();
    put(&mut out, b'R', |body| body.put_u32(0));
    for (name, value) in [("client_encoding", "UTF8"), ("standard_conforming_strings", "on")] {
        put_parameter(&mut out, name.as_bytes(), value.as_bytes());
    }
    put(&mut out, b'K', |body| body.put_u64(7));
    put_ready(&mut out, b'I');
    stream.write_all(&out).await.unwrap();
    stream
}

fn config(server: &TcpListener) -> Config {
    let address = server.local_addr().unwrap();
    let upstream = Arc::new(Upstream { host: address.ip().to_string(), port: address.port(), tls: None });
    Config {
        auth: crate::ClientAuth::Trust,
        users: Users::default(),
        tls: None,
        pool: PoolMode::Session,
        source: Arc::clone(&upstream),
        target: upstream,
        databases: None,
        limits: Limits::default(),
        reads: ReadLimits::default(),
        shadow: ShadowConfig::default(),
    }
}

/// A session that is logged in, and the other ends of its two connections, which say nothing more.
async fn session() -> (Session, [TcpStream; 2]) {
    let listen = || TcpListener::bind("127.0.0.1:0");
    let (server, door) = (listen().await.unwrap(), listen().await.unwrap());
    let routes = tokio::sync::watch::channel(Heard::now(1, Route::to(Side::Source, Epoch(1)))).1;
    let router = Router::bind("127.0.0.1:0".parse().unwrap(), config(&server), routes).await.unwrap();
    let let_in = tokio::spawn(let_in(server));
    let mut client = TcpStream::connect(door.local_addr().unwrap()).await.unwrap();
    let mut startup = BytesMut::new();
    crate::startup::put_startup(&mut startup, "ann", "shop", std::iter::empty());
    client.write_all(&startup).await.unwrap();
    let session = login::accept(door.accept().await.unwrap().0, router.shared()).await;
    (session.unwrap().expect("it wants a session"), [client, let_in.await.unwrap()])
}

/// What a client sends comes in, goes to the server, and is answered.
async fn ask(session: &mut Session, asked: &[u8], answered: &[u8]) {
    session.input.extend_from_slice(asked);
    while session.forward().unwrap() == Forward::Begin {
        session.begin().await.unwrap();
    }
    let link = session.link.as_mut().unwrap();
    assert!(link.out.len() >= asked.len());
    black_box(std::mem::take(&mut link.out));
    link.server.input.extend_from_slice(answered);
    assert_eq!(session.back().unwrap(), Back::Idle);
    session.at_boundary().await.unwrap();
    assert_eq!(session.to_client.len(), answered.len());
    black_box(std::mem::take(&mut session.to_client));
}

/// As libpq prepares a statement, and what the server says to that.
fn parse() -> [BytesMut; 2] {
    let (mut asked, mut answered) = (BytesMut::new(), BytesMut::new());
    put(&mut asked, b'P', |body| {
        put_string(body, b"P_0");
        put_string(body, TEXT);
        body.put_u16(0);
    });
    put(&mut asked, b'S', |_| {});
    put(&mut answered, b'1', |_| {});
    put_ready(&mut answered, b'I');
    [asked, answered]
}

/// As libpq executes it, for account `n`.
fn execute(n: usize) -> [BytesMut; 2] {
    let (mut asked, mut answered) = (BytesMut::new(), BytesMut::new());
    let value = |body: &mut BytesMut, text: &str| {
        body.put_u32(text.len() as u32);
        body.put_slice(text.as_bytes());
    };
    put(&mut asked, b'B', |body| {
        body.put_slice(b"\0P_0\0\0\0\0\x01");
        value(body, &(n * 7_919 % 100_000 + 1).to_string());
        body.put_slice(b"\0\x01\0\0");
    });
    put(&mut asked, b'D', |body| body.put_slice(b"P\0"));
    put(&mut asked, b'E', |body| body.put_slice(b"\0\0\0\0\0"));
    put(&mut asked, b'S', |_| {});
    put(&mut answered, b'2', |_| {});
    put(&mut answered, b'T', |body| {
        body.put_u16(1);
        put_string(body, b"abalance");
        body.put_slice(&[0; 18]);
    });
    put(&mut answered, b'D', |body| {
        body.put_u16(1);
        value(body, &(n * 37 % 5_000).to_string());
    });
    put(&mut answered, b'C', |body| put_string(body, b"SELECT 1"));
    put_ready(&mut answered, b'I');
    assert!(asked.len() > 4 * HEADER_BYTES);
    [asked, answered]
}

#[test]
fn relaying_keeps_its_instructions() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut session, _others) = runtime.block_on(session());
    session.to_client = Out::default();
    let [asked, answered] = parse();
    runtime.block_on(ask(&mut session, &asked, &answered));
    let queries: Vec<_> = (0..QUERIES).map(execute).collect();
    let relay = || {
        runtime.block_on(async {
            for [asked, answered] in &queries {
                ask(&mut session, black_box(asked), answered).await;
            }
        });
    };
    HotLoop {
        name: "frame",
        test: concat!(module_path!(), "::relaying_keeps_its_instructions"),
        item: "query",
        items: QUERIES,
        rounds: 3,
    }
    .keeps_its_instructions(relay);
}
