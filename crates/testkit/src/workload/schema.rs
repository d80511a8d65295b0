//! The workload's tables: a shop in which every shape that migrations stumble over occurs, and its first rows.
//!
//! Every row that a client may write has a number `n`, by which the oracle knows it whatever its key is, and a
//! `version`: 0 for a seeded row, else the sequence number of the transaction that wrote it last.

use tokio_postgres::{Client, Error};

/// What a shape does besides carrying a version; each has a rule for the state it leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Plain,
    /// A numeric key whose scale changes while its value does not.
    Rescaled,
    /// Rows that move between partitions when they are written.
    Moving,
    /// A large text that most updates leave alone.
    Document,
    /// A key that changes and is swapped with another's.
    Relocating,
    /// No key; rows may be there several times.
    Keyless,
}

/// One table, and the SQL that writes it. `{n}` is a row's number, `{v}` the version written.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) table: &'static str,
    pub(super) kind: Kind,
    /// Of an insert: `SELECT` list over a series `n`.
    columns: &'static str,
    values: &'static str,
    /// Of an update, besides the version.
    change: &'static str,
    /// Finds row `{n}` by its key.
    at: &'static str,
    /// What the oracle remembers of a row, as text.
    pub(super) state: &'static str,
    /// Seeded rows, in thousandths of all.
    share: u64,
    /// Bounds on the seeded rows: for tables that are about something else than size.
    seeded_max: u64,
}

pub(super) const ORDERS: usize = 0;
pub(super) const ITEMS: usize = 1;
pub(super) const SCRATCH: usize = 2;
/// From here on shapes are independent of each other and written by the general operations.
pub(super) const FIRST_GENERAL: usize = 3;

/// An order's items, numbered `order * 2` and `order * 2 + 1`.
pub(super) const ITEMS_PER_ORDER: u64 = 2;
const NO_BOUND: u64 = u64::MAX;

pub(super) const SHAPES: &[Shape] = &[
    Shape {
        table: "shop.orders",
        kind: Kind::Plain,
        columns: "id, n, version, status, tags, attributes, total, valid",
        values: "n, n, {v}, (enum_range(NULL::shop.order_status))[1 + n % 4], \
                 ARRAY['a' || n % 7, NULL, 'ü, \"q\"'], \
                 jsonb_build_object('n', n, 'list', jsonb_build_array(1, n % 5, NULL)), (n % 1000)::numeric / 4, \
                 tstzrange('2024-01-01 00:00Z', '2024-01-01 00:00Z'::timestamptz + n % 500 * interval '1 hour')",
        change: "status = (enum_range(NULL::shop.order_status))[1 + {v} % 4], tags = ARRAY['v{v}']",
        at: "id = {n}",
        state: "version::text",
        share: 80,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.order_item",
        kind: Kind::Plain,
        columns: "order_id, line, n, version, quantity, price",
        values: "n / 2, (n % 2)::smallint, n, {v}, (1 + n % 9)::int, (n % 10000)::numeric / 100",
        change: "quantity = ({v} % 1000)::int",
        at: "order_id = {n} / 2 AND line = {n} % 2",
        state: "version::text",
        share: 160,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.scratch",
        kind: Kind::Plain,
        columns: "id, n, version, note",
        values: "n, n, {v}, 'scratch ' || n",
        change: "note = 'v{v}'",
        at: "id = {n}",
        state: "version::text",
        share: 10,
        seeded_max: 500,
    },
    Shape {
        table: "shop.session",
        kind: Kind::Plain,
        columns: "id, n, version, agent, seen, flags",
        values: "md5(n::text)::uuid, n, {v}, 'agent ' || n % 97, \
                 timestamptz '2024-01-01 00:00Z' + n % 1000000 * interval '1 second', (n % 256)::int::bit(8)",
        change: "agent = 'agent v{v}', flags = NULL",
        at: "id = md5({n}::text)::uuid",
        state: "version::text",
        share: 250,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.setting",
        kind: Kind::Plain,
        columns: "name, n, version, value",
        values: "(ARRAY['Ärger ', 'zebra-', 'Zebra_', 'école.'])[1 + n % 4] || n, n, {v}, 'value ' || n",
        change: "value = nullif('v{v}', 'v' || {v} / 10 * 10)",
        at: "name = (ARRAY['Ärger ', 'zebra-', 'Zebra_', 'école.'])[1 + {n} % 4] || {n}",
        state: "version::text",
        share: 150,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.membership",
        kind: Kind::Plain,
        columns: "org, member, n, version, role",
        values: "(n % 97)::int, n, n, {v}, CASE WHEN n % 3 > 0 THEN 'role ' || n % 3 END",
        change: "role = 'v{v}'",
        at: "org = {n} % 97 AND member = {n}",
        state: "version::text",
        share: 80,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.\"Größen Tabelle\"",
        kind: Kind::Plain,
        columns: "\"Schlüssel\", n, version, \"select\", \"Mixed Case\"",
        values: "n, n, {v}, E'tab\\there' || n % 13, json_build_object('größe', n)",
        change: "\"select\" = E'line\\nv{v}'",
        at: "\"Schlüssel\" = {n}",
        state: "version::text",
        share: 30,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.rate",
        kind: Kind::Rescaled,
        columns: "amount, n, version, label",
        values: "round(n::numeric / 8, (3 + {v} % 4)::int), n, {v}, 'rate ' || n",
        change: "amount = round(amount, (3 + {v} % 4)::int)",
        at: "amount = {n}::numeric / 8",
        state: "scale(amount) || ':' || version",
        share: 40,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.event",
        kind: Kind::Moving,
        columns: "id, day, n, version, payload",
        values: "n, date '2024-01-01' + ((n + {v}) % 120)::int, n, {v}, 'event ' || n % 1009",
        change: "day = date '2024-01-01' + ((n + {v}) % 120)::int",
        at: "id = {n}",
        state: "day - date '2024-01-01' || ':' || version",
        share: 200,
        seeded_max: NO_BOUND,
    },
    Shape {
        table: "shop.document",
        kind: Kind::Document,
        columns: "id, n, version, body_version, title, body",
        values: "n, n, {v}, {v}, 'document ' || n, repeat(md5(n || ':' || {v}), (100 + n % 200)::int)",
        change: "title = 'title v{v}'",
        at: "id = {n}",
        state: "version || ':' || body_version",
        share: 5,
        seeded_max: 20_000,
    },
    Shape {
        table: "shop.relocating",
        kind: Kind::Relocating,
        columns: "key, n, version, body",
        values: "n, n, {v}, repeat(md5(n::text), 90)",
        change: "n = n",
        at: "key = {n}",
        state: "key || ':' || version",
        share: 5,
        seeded_max: 20_000,
    },
    Shape {
        table: "shop.keyless",
        kind: Kind::Keyless,
        columns: "n, version, note, measured",
        values: "n, {v}, CASE WHEN n % 2 = 0 THEN 'note ' || n END, n::float8 / 3",
        change: "note = nullif('v{v}', 'v' || {v} / 3 * 3)",
        at: "n = {n}",
        state: "string_agg(version::text, ',' ORDER BY version)",
        share: 1,
        seeded_max: 200,
    },
];

impl Shape {
    /// Inserts the rows numbered from `lo` to `hi`.
    pub(super) fn insert(&self, lo: u64, hi: u64, version: u64) -> String {
        let values = self.values.replace("{v}", &version.to_string());
        format!(
            "INSERT INTO {} ({}) SELECT {values} FROM generate_series({lo}::bigint, {hi}::bigint) AS n",
            self.table, self.columns
        )
    }

    /// Writes the version and what goes with it into row `n`; `extra` are further assignments.
    pub(super) fn update(&self, n: u64, version: u64, extra: &str) -> String {
        let change = self.change.replace("{v}", &version.to_string());
        format!("UPDATE {} SET version = {version}, {change}{extra} WHERE {}", self.table, self.at(n))
    }

    pub(super) fn delete(&self, n: u64) -> String {
        format!("DELETE FROM {} WHERE {}", self.table, self.at(n))
    }

    /// `n` is also the key of those tables that have one number for both.
    pub(super) fn at(&self, n: u64) -> String {
        self.at.replace("{n}", &format!("{n}::bigint"))
    }

    /// The state of row `n` after an insert.
    pub(super) fn inserted(&self, n: u64, version: u64) -> String {
        match self.kind {
            Kind::Plain | Kind::Keyless => version.to_string(),
            Kind::Rescaled => format!("{}:{version}", 3 + version % 4),
            Kind::Moving => format!("{}:{version}", (n + version) % 120),
            Kind::Document => format!("{version}:{version}"),
            Kind::Relocating => format!("{n}:{version}"),
        }
    }

    /// The state of row `n` after a plain update of a row that was in `state`.
    pub(super) fn updated(&self, n: u64, version: u64, state: &str) -> String {
        match self.kind {
            Kind::Plain | Kind::Rescaled | Kind::Moving => self.inserted(n, version),
            Kind::Document => format!("{version}:{}", state.rsplit(':').next().unwrap_or_default()),
            Kind::Relocating => format!("{}:{version}", state.split(':').next().unwrap_or_default()),
            Kind::Keyless => vec![version.to_string(); state.split(',').count()].join(","),
        }
    }
}

/// Makes the schema `shop` with its fifteen tables, empty. The target of a migration is made in the same way.
pub async fn create(client: &Client) -> Result<(), Error> {
    client.batch_execute(DDL).await
}

const DDL: &str = r#"
CREATE SCHEMA shop;
CREATE TYPE shop.order_status AS ENUM ('new', 'paid', 'sent', 'returned');
CREATE DOMAIN shop.price AS numeric(12, 2) CHECK (VALUE >= 0);

CREATE TABLE shop.seeded (shape text PRIMARY KEY, lo bigint NOT NULL, hi bigint NOT NULL);
CREATE TABLE shop.account (id int PRIMARY KEY, owner text NOT NULL, balance numeric(14, 2) NOT NULL);
CREATE TABLE shop.ledger (
    client int, seq bigint, id bigint GENERATED ALWAYS AS IDENTITY,
    from_account int, to_account int, amount numeric(14, 2), written timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (client, seq));
CREATE TABLE shop.orders (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL,
    status shop.order_status NOT NULL, tags text[], attributes jsonb, total shop.price, valid tstzrange);
CREATE TABLE shop.order_item (
    order_id bigint REFERENCES shop.orders ON DELETE CASCADE, line smallint, n bigint NOT NULL,
    version bigint NOT NULL, quantity int NOT NULL, price shop.price NOT NULL,
    amount numeric GENERATED ALWAYS AS (quantity * price) STORED,
    PRIMARY KEY (order_id, line));
CREATE TABLE shop.scratch (id bigint PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL, note text);
CREATE TABLE shop.session (
    id uuid PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL, agent text, seen timestamptz, flags bit(8));
CREATE TABLE shop.setting (name text PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL, value text);
CREATE TABLE shop.membership (
    org int, member bigint, n bigint NOT NULL, version bigint NOT NULL, role varchar(40), PRIMARY KEY (member, org));
CREATE TABLE shop."Größen Tabelle" (
    "Schlüssel" bigint PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL, "select" text, "Mixed Case" json);
CREATE TABLE shop.rate (amount numeric PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL, label text);
CREATE TABLE shop.event (
    id bigint, day date, n bigint NOT NULL, version bigint NOT NULL, payload text, PRIMARY KEY (id, day)
) PARTITION BY RANGE (day);
CREATE TABLE shop.event_2024_01 PARTITION OF shop.event FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE shop.event_2024_02 PARTITION OF shop.event FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
CREATE TABLE shop.event_2024_03 PARTITION OF shop.event FOR VALUES FROM ('2024-03-01') TO ('2024-04-01');
CREATE TABLE shop.event_later PARTITION OF shop.event DEFAULT;
CREATE TABLE shop.document (
    id bigint PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL, body_version bigint NOT NULL,
    title text, body text NOT NULL);
ALTER TABLE shop.document ALTER body SET STORAGE EXTERNAL;
CREATE TABLE shop.relocating (key bigint PRIMARY KEY, n bigint NOT NULL, version bigint NOT NULL, body text NOT NULL);
ALTER TABLE shop.relocating ALTER body SET STORAGE EXTERNAL;
CREATE TABLE shop.keyless (n bigint NOT NULL, version bigint NOT NULL, note text, measured float8);
ALTER TABLE shop.keyless REPLICA IDENTITY FULL;
"#;

/// What every account starts with.
pub(super) const OPENING_BALANCE: u64 = 1_000;

/// Fills empty tables with about `rows` rows in all, by the server's own means: two million take some seconds.
pub async fn seed_data(client: &Client, rows: u64) -> Result<(), Error> {
    let accounts = (rows / 100).clamp(2, 1_000);
    client
        .batch_execute(&format!(
            "BEGIN;
             INSERT INTO shop.account SELECT id, 'owner ' || id, {OPENING_BALANCE} FROM generate_series(1, {accounts}) id;
             INSERT INTO shop.seeded VALUES ('account', 1, {accounts})"
        ))
        .await?;
    let count_of = |shape: &Shape| (rows * shape.share / 1_000).clamp(1, shape.seeded_max);
    for (index, shape) in SHAPES.iter().enumerate() {
        let (lo, hi) = match index {
            ITEMS => {
                let orders = count_of(&SHAPES[ORDERS]);
                (ITEMS_PER_ORDER, orders * ITEMS_PER_ORDER + ITEMS_PER_ORDER - 1)
            }
            _ => (1, count_of(shape)),
        };
        client.batch_execute(&shape.insert(lo, hi, 0)).await?;
        let table = shape.table;
        client.batch_execute(&format!("INSERT INTO shop.seeded VALUES ('{table}', {lo}, {hi})")).await?;
    }
    client.batch_execute("COMMIT; ANALYZE").await
}

/// Which rows were seeded: accounts, and per shape the numbers from-to (empty if `lo > hi`).
#[derive(Debug, Clone)]
pub(super) struct Seeded {
    pub(super) accounts: u64,
    pub(super) ranges: Vec<(u64, u64)>,
}

impl Seeded {
    pub(super) async fn read(client: &Client) -> Result<Seeded, Error> {
        let rows = client.query("SELECT shape, lo, hi FROM shop.seeded", &[]).await?;
        let find = |name: &str| {
            rows.iter().find(|row| row.get::<_, &str>(0) == name).map_or((1, 0), |row| {
                (row.get::<_, i64>(1).unsigned_abs(), row.get::<_, i64>(2).unsigned_abs())
            })
        };
        Ok(Seeded {
            accounts: find("account").1,
            ranges: SHAPES.iter().map(|shape| find(shape.table)).collect(),
        })
    }

    pub(super) fn contains(&self, shape: usize, n: u64) -> bool {
        (self.ranges[shape].0..=self.ranges[shape].1).contains(&n)
    }
}
