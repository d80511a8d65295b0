//! The demo's shop: its tables, and the rows that are there before anybody migrates.
//!
//! Rows are made by the server itself, by formula: the same scale gives the same shop. Who writes to it later, and what
//! must then be true, is known to `load`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio_postgres::Client;

use super::DemoError;
use super::servers::Server;

const TABLES: &str = include_str!("tables.sql");
const KEYS: &str = include_str!("keys.sql");

/// The products that every visitor sees first.
pub(super) const FRONT_PAGE: std::ops::RangeInclusive<i32> = 1..=12;

/// How many rows the shop has: thousandths of the two million and some that `--scale 1` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    thousandths: u64,
}

impl Size {
    pub(super) fn of_scale(scale: f64) -> Self {
        Self { thousandths: (scale * 1_000.0) as u64 }
    }

    /// Just enough for a test.
    #[cfg(test)]
    pub(super) const TINY: Self = Self { thousandths: 10 };

    /// The rows of a table that has `rows` at scale 1.
    fn of(self, rows: u64) -> u64 {
        (rows * self.thousandths / 1_000).max(100)
    }

    pub(super) fn customers(self) -> u64 {
        self.of(150_000)
    }

    pub(super) fn products(self) -> u64 {
        self.of(20_000)
    }

    pub(super) fn accounts(self) -> u64 {
        self.of(10_000)
    }

    pub(super) fn orders(self) -> u64 {
        self.of(400_000)
    }

    pub(super) fn documents(self) -> u64 {
        self.of(3_000)
    }

    pub(super) fn events(self) -> u64 {
        self.of(400_000)
    }

    pub(super) fn sessions(self) -> u64 {
        self.of(150_000)
    }

    pub(super) fn tags(self) -> u64 {
        self.of(30_000)
    }

    pub(super) fn audit(self) -> u64 {
        self.of(10_000)
    }

    pub(super) fn sizes(self) -> u64 {
        self.of(20_000)
    }

    /// The rows of the whole shop.
    pub(super) fn rows(self) -> u64 {
        parts(self).iter().map(|part| part.rows).sum()
    }
}

/// Changes one price on the front page, as somebody would who gets past a fence.
pub(super) async fn change_a_price(server: &Server) -> Result<(), DemoError> {
    let doing = "changing a price";
    let client = server.connect().await?;
    run(&client, doing, "SET session_replication_role = replica").await?;
    let id = (FRONT_PAGE.start() + FRONT_PAGE.end()) / 2;
    let sql = "UPDATE shop.products SET price = price + 1 WHERE id = $1";
    let changed = client.execute(sql, &[&id]).await.map_err(|error| DemoError::sql(doing, &error))?;
    if changed == 1 {
        return Ok(());
    }
    let what = format!("product {id} is there {changed} times");
    Err(DemoError::Sql { doing, what })
}

/// How many tables the shop has; partitions do not count.
pub(super) fn tables() -> usize {
    TABLES.lines().filter(|line| line.starts_with("CREATE TABLE") && !line.contains("PARTITION OF")).count()
}

/// The rows of one table, as one statement makes them.
struct Part {
    /// Table and columns.
    into: &'static str,
    /// The select list over `n`; `{customers}` and `{products}` stand for how many there are.
    values: &'static str,
    rows: u64,
}

fn part(rows: u64, into: &'static str, values: &'static str) -> Part {
    Part { into, values, rows }
}

/// Everything that is filled, what takes longest first. `n` counts from 1.
fn parts(size: Size) -> Vec<Part> {
    vec![
        part(
            size.orders() * 2,
            "order_items (order_id, line, product_id, quantity, price)",
            "(n + 1) / 2, 1 + n % 2, 1 + n * 31 % {products}, 1 + n % 5, (n % 20000) / 100.0",
        ),
        part(
            size.orders(),
            "orders (id, customer_id, status, total, placed_at, delivery)",
            "n, 1 + n * 7919 % {customers}, (enum_range(NULL::shop.order_status))[1 + n % 5], (n % 90000) / 100.0, \
             timestamptz '2025-01-01 00:00Z' + n * interval '11 seconds', n % 9 * interval '1 day'",
        ),
        part(
            size.events(),
            "events (id, day, kind, details)",
            "n, date '2025-01-01' + (n % 150)::int, (ARRAY['seen', 'clicked', 'searched', 'left'])[1 + n % 4], \
             jsonb_build_object('page', n % 977, 'ms', n % 61, 'from', CASE WHEN n % 7 = 0 THEN 'mail' END)",
        ),
        part(
            size.documents(),
            "documents (id, revision, title, checksum, body)",
            "n, 0, 'Terms, version ' || n, md5(body), body FROM (SELECT n, (SELECT string_agg(md5(n || ':' || i), '') \
             FROM generate_series(1, 100 + n % 500) AS i) AS body",
        ),
        part(
            size.customers(),
            "customers (id, email, name, born, preferences, joined)",
            "n, 'customer' || n || '@example.com', \
             (ARRAY['Ada', 'Bjørn', 'Chloé', 'Đorđe', 'Émile', '花子', 'Łukasz', 'Zoë'])[1 + n % 8] || ' ' || n, \
             CASE WHEN n % 11 > 0 THEN date '1945-01-01' + (n % 23000)::int END, \
             jsonb_build_object('language', (ARRAY['de', 'en', 'fr', 'ja'])[1 + n % 4], 'news', n % 3 = 0), \
             timestamptz '2019-06-01 00:00Z' + n * interval '17 minutes'",
        ),
        part(
            size.customers() + size.customers() / 3,
            "addresses (id, customer_id, street, city, country, place)",
            "n, 1 + (n - 1) % {customers}, 'Hauptstraße ' || n % 200, \
             (ARRAY['Köln', 'Kraków', '東京'])[1 + n % 3], (ARRAY['DE', 'PL', 'JP'])[1 + n % 3], point(n % 180, n % 90)",
        ),
        part(
            size.sessions(),
            "sessions (id, hits, agent, payload, seen_at)",
            "md5('session ' || n)::uuid, 0, ('10.' || n % 250 || '.0.' || n % 199)::inet, \
             decode(md5(n::text), 'hex'), timestamptz '2025-05-01 00:00Z' + n * interval '3 seconds'",
        ),
        part(
            size.of(100_000),
            "ledger (writer, number, from_account, to_account, amount, written_at)",
            "0, n, 1 + n % 97, 1 + n % 89, (n % 5000) / 100.0, \
             timestamptz '2025-01-01 00:00Z' + n * interval '1 minute'",
        ),
        part(
            size.tags(),
            "tags (tag, uses)",
            "(ARRAY['Ähre-', 'zebra ', 'Zebra_', 'école.'])[1 + n % 4] || n, 0",
        ),
        part(
            size.products(),
            "products (id, category_id, title, price, weight, labels, attributes, on_sale)",
            "n, 1 + n % 200, 'Product ' || n, (n % 9000) / 100.0 + 1, CASE WHEN n % 9 > 0 THEN n::numeric / 7 END, \
             ARRAY['label ' || n % 17, NULL, 'a, \"b\"'], jsonb_build_object('colour', n % 12, 'sizes', \
             jsonb_build_array('S', 'M', n % 50)), daterange(date '2025-01-01', date '2025-01-01' + (n % 90)::int)",
        ),
        part(size.sizes(), "\"Größen & Maße\" (\"Länge\", width)", "n % 500, n % 300"),
        part(size.accounts(), "accounts (id, opening, balance)", "n, 1000, 1000"),
        part(size.audit(), "audit (number, what)", "n, 'order ' || n || ' was looked at'"),
        part(200, "categories (id, parent_id, name)", "n, nullif(n / 6, 0), 'Category ' || n"),
    ]
}

impl Part {
    fn sql(&self, size: Size) -> String {
        let values = self
            .values
            .replace("{customers}", &size.customers().to_string())
            .replace("{products}", &size.products().to_string());
        let series = format!("FROM generate_series(1::bigint, {}) AS n", self.rows);
        // One part nests its series in a subquery.
        let close = if values.contains("FROM (SELECT") { ") AS made" } else { "" };
        format!("INSERT INTO shop.{} SELECT {values} {series}{close}", self.into)
    }
}

/// Makes the tables with their keys, empty.
pub(super) async fn create_empty(server: &Server) -> Result<(), DemoError> {
    let client = server.connect().await?;
    for sql in [TABLES, KEYS] {
        run(&client, "making the shop's tables on the target", sql).await?;
    }
    Ok(())
}

/// Makes the tables and all their rows; `progress` hears the rows made so far.
pub(super) async fn create_full(
    server: &Server,
    size: Size,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), DemoError> {
    let client = server.connect().await?;
    run(&client, "making the shop's tables on the source", TABLES).await?;
    let parts: Vec<Part> = parts(size);
    let (next, made) = (AtomicUsize::new(0), AtomicU64::new(0));
    let filler = async || -> Result<(), DemoError> {
        let client = server.connect().await?;
        // Nobody relies on these rows yet.
        run(&client, "filling the shop", "SET synchronous_commit = off").await?;
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            run(&client, "filling the shop", &part.sql(size)).await?;
            progress(made.fetch_add(part.rows, Ordering::Relaxed) + part.rows);
        }
        Ok(())
    };
    // What takes longest is order_items; the others share the second core.
    tokio::try_join!(filler(), filler(), filler())?;
    finish(server, size).await
}

/// Keys, sequences and statistics.
async fn finish(server: &Server, size: Size) -> Result<(), DemoError> {
    let client = server.connect().await?;
    run(&client, "making the shop's keys", "SET maintenance_work_mem = '128MB'").await?;
    run(&client, "making the shop's keys", KEYS).await?;
    let sequences = format!(
        "SELECT setval(pg_get_serial_sequence('shop.customers', 'id'), {}), \
         setval(pg_get_serial_sequence('shop.addresses', 'id'), {}), \
         setval(pg_get_serial_sequence('shop.orders', 'id'), {}), setval('shop.event_id', {})",
        size.customers(),
        size.customers() * 2,
        size.orders(),
        size.events()
    );
    run(&client, "setting the shop's sequences", &sequences).await?;
    run(&client, "analysing the shop's tables", "ANALYZE").await
}

async fn run(client: &Client, doing: &'static str, sql: &str) -> Result<(), DemoError> {
    client.batch_execute(sql).await.map_err(|error| DemoError::sql(doing, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shop_is_as_large_and_as_varied_as_promised() {
        assert!(Size::of_scale(1.0).rows() >= 2_000_000, "{}", Size::of_scale(1.0).rows());
        assert_eq!(Size::of_scale(3.0).orders(), 3 * Size::of_scale(1.0).orders());
        assert_eq!(tables(), parts(Size::TINY).len(), "every table has rows");
        assert!(tables() >= 10);
    }
}
