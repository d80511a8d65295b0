//! Two servers whose rows say which one they are from, and a router whose reads are all the target's.

use super::{Running, config};
use segue_router::{Catalog, ClientAuth, Config, Fresh, PoolMode, Reads};
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Two servers whose rows say which one they are from, and a router whose reads are all the target's.
pub(crate) struct Pair {
    pub(crate) source: Cluster,
    pub(crate) target: Cluster,
    pub(crate) router: Running,
}

impl Pair {
    pub(crate) async fn start(mode: PoolMode) -> Pair {
        Pair::start_with(mode, |_| {}).await
    }

    pub(crate) async fn start_with(mode: PoolMode, change: impl FnOnce(&mut Config)) -> Pair {
        let (source, target) =
            tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
        target.execute(&format!("ALTER ROLE postgres PASSWORD '{}'", source.password())).await;
        for (server, side) in [(&source, "source"), (&target, "target")] {
            let rows =
                format!("CREATE TABLE t (id int PRIMARY KEY, side text); INSERT INTO t VALUES (1, '{side}')");
            server.execute(&rows).await;
        }
        let mut config = config(&source, &target, mode);
        config.auth = ClientAuth::Trust;
        change(&mut config);
        let router = Running::start(config, source.password()).await;
        let pair = Pair { source, target, router };
        pair.learn().await;
        pair.share(100);
        pair.shows_all();
        pair
    }

    pub(crate) async fn learn(&self) {
        let known = self.source.scalar(Catalog::SQL).await.unwrap();
        let catalog = Catalog::read(&known, &[("public".into(), "t".into())]).unwrap();
        self.router.catalog.send_replace(Some(Arc::new(catalog)));
    }

    pub(crate) fn share(&self, share_percent: u8) {
        self.router.reads.send_replace(Arc::new(Reads { share_percent, ..Reads::default() }));
    }

    /// The follower shows whatever anybody may have seen.
    pub(crate) fn shows_all(&self) {
        self.shows(Instant::now() + Duration::from_secs(3600));
    }

    pub(crate) fn shows(&self, as_of: Instant) {
        let epoch = self.router.routes.borrow().epoch;
        self.router.fresh.send_replace(Some(Fresh { epoch, as_of }));
    }

    /// Until the router has heard of the catalog.
    pub(crate) async fn client(&self) -> Client {
        let client = self.router.connect().await;
        while side(&client).await != "target" {
            tokio::task::yield_now().await;
        }
        client
    }
}

pub(crate) const READ: &str = "SELECT side FROM t WHERE id = 1";

pub(crate) async fn simple(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.unwrap_or_default()
}

pub(crate) async fn side(client: &Client) -> String {
    simple(client, READ).await
}
