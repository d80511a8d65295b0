//! The tables of the application, and what must hold of them at the end.

use super::super::pair::{DATABASE, Pair, must};
use super::clients::Ack;
use std::collections::HashSet;
use tokio_postgres::Client;

/// As in TPC-B.
pub(super) const TELLERS_OF_BRANCH: u64 = 10;
/// A tenth of TPC-B's.
pub(super) const ACCOUNTS_OF_BRANCH: u64 = 10_000;
/// Three hundred thousand accounts, and few enough clients for each branch that they do not only wait for each other.
const BRANCHES: u64 = 30;

/// Made in this order, as `pgbench -i` does: not the order in which a transaction writes to them.
const TABLES: &str = "CREATE TABLE history (write bigint PRIMARY KEY, teller bigint, branch bigint, account bigint,
        delta bigint, made timestamptz DEFAULT clock_timestamp(), filler char(22));
    CREATE TABLE teller (id bigint PRIMARY KEY, branch bigint, balance bigint NOT NULL, filler char(84)) WITH (fillfactor = 80);
    CREATE TABLE account (id bigint PRIMARY KEY, branch bigint, balance bigint NOT NULL, filler char(84)) WITH (fillfactor = 90);
    CREATE TABLE branch (id bigint PRIMARY KEY, balance bigint NOT NULL, filler char(88)) WITH (fillfactor = 80)";

/// The application, where it comes through a router or a pooler: these have one password for both sides.
pub(super) const APP: &str = "app";
pub(super) const PASSWORD: &str = "on both sides";

/// How large the application is.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    pub(super) branches: u64,
    /// The tables of events, each with a sequence.
    pub(super) events: Vec<String>,
}

impl Schema {
    /// With `tables` in total, at a share of the whole size.
    pub(super) fn new(tables: usize, scaled: impl Fn(u64) -> u64) -> Schema {
        let events = (4..tables.max(5)).map(|no| format!("event_{}", no - 3)).collect();
        Schema { branches: scaled(BRANCHES), events }
    }

    pub(super) fn tables(&self) -> Vec<&str> {
        let fixed = ["history", "teller", "account", "branch"];
        fixed.into_iter().chain(self.events.iter().map(String::as_str)).collect()
    }

    pub(super) fn rows(&self) -> u64 {
        self.branches * (1 + TELLERS_OF_BRANCH + ACCOUNTS_OF_BRANCH)
    }

    /// Makes the tables on both sides, and fills the source's.
    pub(super) async fn make(&self, pair: &Pair) {
        let events = self.events.iter().map(|table| {
            format!(
                "CREATE TABLE {table} (id bigserial PRIMARY KEY, write bigint NOT NULL UNIQUE, note text)"
            )
        });
        let floor =
            "CREATE TABLE floor (id int PRIMARY KEY, n bigint NOT NULL); INSERT INTO floor VALUES (1, 0)";
        let tables: Vec<String> = [TABLES.to_owned(), floor.to_owned()].into_iter().chain(events).collect();
        for server in [&pair.source, &pair.target] {
            let client = Pair::connect(server, DATABASE).await;
            must(client.batch_execute(&tables.join("; ")).await, "make the tables");
            let app = format!(
                "CREATE ROLE {APP} LOGIN PASSWORD '{PASSWORD}';
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {APP};
                 GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {APP}"
            );
            must(client.batch_execute(&app).await, "make the application's role");
        }
        let source = Pair::connect(&pair.source, DATABASE).await;
        for (table, each) in [("teller", TELLERS_OF_BRANCH), ("account", ACCOUNTS_OF_BRANCH)] {
            let rows = self.branches * each;
            let fill = format!(
                "INSERT INTO {table} SELECT i, (i - 1) / {each} + 1, 0, '' FROM generate_series(1, {rows}) AS i"
            );
            must(source.batch_execute(&fill).await, "fill a table");
        }
        let fill =
            format!("INSERT INTO branch SELECT i, 0, '' FROM generate_series(1, {}) AS i", self.branches);
        must(source.batch_execute(&fill).await, "fill a table");
        must(source.batch_execute("VACUUM (ANALYZE, FREEZE)").await, "vacuum");
    }

    /// How many of the acknowledged writes a side does not have. Panics unless its balances add up: a transfer that was
    /// made twice, or in part, shows there.
    pub(super) async fn lost(&self, side: &Client, acks: &[Ack]) -> usize {
        let sums = "SELECT s.delta, s.a = s.delta AND s.t = s.delta AND s.b = s.delta FROM (SELECT
            (SELECT coalesce(sum(delta), 0) FROM history) AS delta, (SELECT sum(balance) FROM account) AS a,
            (SELECT sum(balance) FROM teller) AS t, (SELECT sum(balance) FROM branch) AS b) s";
        let row = must(side.query_one(sums, &[]).await, "add up");
        assert!(row.get::<_, bool>(1), "the balances do not add up to the history");
        let transfers = writes(side, "SELECT write FROM history").await;
        let each: Vec<String> =
            self.events.iter().map(|table| format!("SELECT write FROM {table}")).collect();
        let lone = writes(side, &each.join(" UNION ALL ")).await;
        let is_there = |ack: &&Ack| if ack.is_lone { &lone } else { &transfers }.contains(&ack.write);
        acks.iter().filter(|ack| !is_there(ack)).count()
    }
}

async fn writes(side: &Client, sql: &str) -> HashSet<i64> {
    must(side.query(sql, &[]).await, "read the writes").iter().map(|row| row.get(0)).collect()
}
