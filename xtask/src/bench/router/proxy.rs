//! What is measured, each as a process of its own: this program once more, as a relay or as the router.
//!
//! The router is the crate, in the runtime that `segue router` has, with a route that never changes. What `segue router`
//! does beside it (it asks its seat for another route a few times a second) is no part of a query's way.

use super::super::pair::{DATABASE, must};
use segue_model::switch::Side;
use segue_model::switch::ownership::Epoch;
use segue_model::switch::route::Route;
use segue_router::{
    Catalog, ClientAuth, Config, Feeds, Fresh, Heard, Limits, PoolMode, ReadLimits, Reads, Router, Secret,
    ShadowConfig, Upstream, Users,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// More than are measured at once.
pub(super) const CLIENTS_MAX: usize = 5_000;
/// Server connections of a pool, which PgBouncer has by default.
pub(super) const POOL_SIZE: usize = 20;
/// How the password comes to the process: as programs of PostgreSQL are given it.
pub(super) const PASSWORD: &str = "PGPASSWORD";
/// The router that repeats reads, as the process is called.
pub(super) const MIRROR: &str = "mirror";
/// How many of them.
pub(super) const MIRROR_PERCENT: u8 = 10;
/// How often it is said that everything is shown, and what has been compared.
const SHOWN_EVERY: Duration = Duration::from_millis(50);
/// What is said of that, before how many were compared, and how many were the same.
pub(super) const COMPARED: &str = "compared ";
/// What is said once it listens, before its address.
pub(super) const LISTENS: &str = "listening on ";

/// What this program is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Relay,
    Router(PoolMode),
    /// In transaction mode: it tells reads from writes, and repeats some of them.
    Mirror,
}

/// Serves on a port of its own until it is killed; the arguments are what to be, and the server's port.
pub(in super::super) fn serve(arguments: &[String]) -> Result<(), String> {
    let [what, port] = arguments else { return Err("wanted: what to be, and a port".to_owned()) };
    let what = match what.as_str() {
        "relay" => What::Relay,
        "session" => What::Router(PoolMode::Session),
        "transaction" => What::Router(PoolMode::Transaction),
        MIRROR => What::Mirror,
        other => return Err(format!("nothing is called `{other}`")),
    };
    let port = port.parse().map_err(|error| format!("the port: {error}"))?;
    let runtime = segue_router::runtime().map_err(|error| format!("cannot start: {error}"))?;
    // As `segue router` does: what accepts runs beside the sessions, not on the thread that waits for the end.
    let serving = runtime.spawn(async move {
        match what {
            What::Relay => relay(port).await,
            What::Router(pool) => route(port, pool, Feeds::none()).await.run().await,
            What::Mirror => mirror(port).await,
        }
    });
    runtime.block_on(serving).map_err(|error| error.to_string())
}

fn say(address: SocketAddr) {
    println!("{LISTENS}{address}");
}

/// The floor: bytes are moved, and not looked at.
async fn relay(port: u16) {
    let listener = must(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await, "listen");
    say(must(listener.local_addr(), "listen"));
    loop {
        let (mut client, _) = must(listener.accept().await, "accept");
        tokio::spawn(async move {
            let mut server = must(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await, "connect");
            for stream in [&client, &server] {
                must(stream.set_nodelay(true), "set TCP_NODELAY");
            }
            // Either may close as it likes.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

/// The server is both sides: what is repeated is the same, and always shown.
async fn mirror(port: u16) {
    let password = must(std::env::var(PASSWORD), PASSWORD);
    let url = format!("postgres://postgres:{password}@127.0.0.1:{port}/{DATABASE}");
    let client = must(segue_testkit::cluster::connect(&url).await, "connect");
    let known: String = must(client.query_one(Catalog::SQL, &[]).await, "read the catalog").get(0);
    let catalog = Catalog::read(&known, &[("public".to_owned(), "pgbench_accounts".to_owned())]);
    let wanted = Reads { mirror_percent: MIRROR_PERCENT, ..Reads::default() };
    let (_reads, reads) = watch::channel(Arc::new(wanted));
    let (shown, fresh) = watch::channel(None);
    let (_catalog, catalog) = watch::channel(Some(Arc::new(must(catalog, "read the catalog"))));
    let router = route(port, PoolMode::Transaction, Feeds { reads, fresh, catalog }).await;
    let handle = router.handle();
    let shows = async {
        let mut said = 0;
        loop {
            shown.send_replace(Some(Fresh { epoch: Epoch(1), as_of: Instant::now() }));
            tokio::time::sleep(SHOWN_EVERY).await;
            let shadow = handle.shadow();
            if shadow.compared != said {
                println!("{COMPARED}{} {}", shadow.compared, shadow.equal);
                said = shadow.compared;
            }
        }
    };
    tokio::join!(router.run(), shows);
}

/// A router that listens.
async fn route(port: u16, pool: PoolMode, feeds: Feeds) -> Router {
    let upstream = Arc::new(Upstream { host: Ipv4Addr::LOCALHOST.to_string(), port, tls: None });
    let mut users = Users::default();
    users.insert("postgres", Secret::Password(must(std::env::var(PASSWORD), PASSWORD)));
    let config = Config {
        auth: ClientAuth::Scram,
        users,
        tls: None,
        pool,
        source: Arc::clone(&upstream),
        target: upstream,
        databases: None,
        limits: Limits { clients_max: CLIENTS_MAX, connections_max: POOL_SIZE, ..Limits::default() },
        reads: ReadLimits::default(),
        shadow: ShadowConfig::default(),
    };
    let (_routes, routes) = watch::channel(Heard::now(1, Route::to(Side::Source, Epoch(1))));
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let router = must(Router::bind_reading(listen, config, routes, feeds).await, "listen");
    say(router.handle().address());
    router
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_cannot_be_is_refused() {
        for line in ["", "relay", "relay x", "haproxy 1", "relay 1 2"] {
            let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert!(serve(&arguments).is_err(), "{line}");
        }
    }
}
