//! Asks a server whether every acknowledged write is there, and nothing that was never committed.

use std::collections::HashMap;
use std::fmt;

use tokio_postgres::{Client, Error};

use super::memory::{Entry, Memory, Place};
use crate::demo::DemoError;

/// Enough to see a pattern.
const SHOWN_MAX: usize = 10;
/// Rows asked for with one statement.
const CHUNK: usize = 10_000;

/// What all clients of a load remember.
#[derive(Debug)]
pub(crate) struct Oracle {
    memories: Vec<Memory>,
}

/// What a server said.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Rows of the ledger and of other tables that were looked for.
    pub(crate) checked: u64,
    /// How many of them, or of the rules that hold across rows, are not as acknowledged.
    pub(crate) lost: u64,
    /// The first of those.
    pub(crate) shown: Vec<Lost>,
}

/// An acknowledged write that is not there, or something there that nobody committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    place: String,
    expected: Option<String>,
    found: Option<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |state: &Option<String>| state.clone().unwrap_or_else(|| "no row".to_owned());
        write!(f, "{}: expected {}, found {}", self.place, shown(&self.expected), shown(&self.found))
    }
}

impl Verdict {
    fn compare(&mut self, place: impl FnOnce() -> String, expected: Option<String>, found: Option<String>) {
        self.checked += 1;
        if expected != found {
            self.lost += 1;
            if self.shown.len() < SHOWN_MAX {
                self.shown.push(Lost { place: place(), expected, found });
            }
        }
    }
}

impl Oracle {
    pub(super) fn new(memories: Vec<Memory>) -> Self {
        Self { memories }
    }

    /// Transactions whose COMMIT was answered.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.memories.iter().map(|memory| memory.acknowledged).sum()
    }

    /// Transactions whose COMMIT got no answer.
    pub(crate) fn unknown(&self) -> u64 {
        self.memories.iter().map(|memory| memory.unknown).sum()
    }

    /// Checks a server in one snapshot: the one that was written to, or the one that the data were moved to.
    pub(crate) async fn check(&self, client: &Client) -> Result<Verdict, DemoError> {
        self.ask(client).await.map_err(|error| DemoError::sql("looking for acknowledged writes", &error))
    }

    async fn ask(&self, client: &Client) -> Result<Verdict, Error> {
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let mut verdict = Verdict::default();
        for memory in &self.memories {
            ledger(client, memory, &mut verdict).await?;
            for place in Place::ALL {
                rows(client, memory, place, &mut verdict).await?;
            }
        }
        rules(client, &mut verdict).await?;
        client.batch_execute("COMMIT").await?;
        Ok(verdict)
    }
}

/// Each acknowledged row of the ledger, value for value; and no others.
async fn ledger(client: &Client, memory: &Memory, verdict: &mut Verdict) -> Result<(), Error> {
    let sql = "SELECT number, from_account, to_account, (amount * 100)::bigint FROM shop.ledger \
               WHERE writer = $1 AND number > $2 AND number <= $3";
    let statement = client.prepare(sql).await?;
    let shown = |entry: &Entry| format!("{} cents from {} to {}", entry.cents, entry.from, entry.to);
    let mut after = 0_i64;
    let chunks =
        memory.entries.chunks(CHUNK).map(|chunk| (chunk, chunk.last().map_or(0, |last| last.number)));
    // Beyond the last acknowledged number only what was rolled back or left open can be.
    for (chunk, up_to) in chunks.chain([(&[] as &[Entry], i64::MAX)]) {
        let mut found = HashMap::new();
        for row in client.query(&statement, &[&memory.writer, &after, &up_to]).await? {
            let entry = Entry {
                number: row.try_get(0)?,
                from: row.try_get(1)?,
                to: row.try_get(2)?,
                cents: row.try_get(3)?,
            };
            found.insert(entry.number, entry);
        }
        let place = |number| move || format!("ledger row {number} of client {}", memory.writer);
        for entry in chunk {
            let there = found.remove(&entry.number);
            verdict.compare(place(entry.number), Some(shown(entry)), there.as_ref().map(shown));
        }
        for entry in found.values().filter(|entry| !memory.open_entries.contains(&entry.number)) {
            verdict.compare(place(entry.number), None, Some(shown(entry)));
        }
        after = up_to;
    }
    Ok(())
}

async fn rows(client: &Client, memory: &Memory, place: Place, verdict: &mut Verdict) -> Result<(), Error> {
    let statement = client.prepare(state_sql(place)).await?;
    let known: Vec<(&str, &Option<String>)> = memory
        .rows
        .iter()
        .filter(|(row, _)| row.0 == place && !memory.open_rows.contains(row))
        .map(|(row, state)| (row.1.as_str(), state))
        .collect();
    for chunk in known.chunks(CHUNK) {
        let keys: Vec<&str> = chunk.iter().map(|(key, _)| *key).collect();
        let mut found: HashMap<String, String> = HashMap::new();
        for row in client.query(&statement, &[&keys]).await? {
            found.insert(row.try_get(0)?, row.try_get(1)?);
        }
        for (key, state) in chunk {
            let place = || format!("{place:?} {key}").to_lowercase();
            verdict.compare(place, (*state).clone(), found.remove(*key));
        }
    }
    Ok(())
}

/// Key and state, as the clients put it, of the rows with the keys `$1`.
pub(super) fn state_sql(place: Place) -> &'static str {
    match place {
        Place::Customers => {
            "SELECT k, email::text FROM unnest($1::text[]) AS k JOIN shop.customers ON id = k::bigint"
        }
        Place::Orders => {
            "SELECT k, status || ' ' || (total * 100)::bigint || ' ' || \
             (SELECT count(*) FROM shop.order_items WHERE order_id = id) \
             FROM unnest($1::text[]) AS k JOIN shop.orders ON id = k::bigint"
        }
        // The large text must be the one that belongs to the checksum.
        Place::Documents => {
            "SELECT k, revision || CASE WHEN md5(body) = checksum THEN '' ELSE ' with another body' END \
             FROM unnest($1::text[]) AS k JOIN shop.documents ON id = k::bigint"
        }
        Place::Events => {
            "SELECT k, string_agg((day - date '2025-01-01') || ' ' || kind, ', ') \
             FROM unnest($1::text[]) AS k JOIN shop.events ON id = k::bigint GROUP BY k"
        }
        Place::Sessions => {
            "SELECT k, hits::text FROM unnest($1::text[]) AS k \
             JOIN shop.sessions ON id = md5('session ' || k)::uuid"
        }
        Place::Tags => "SELECT k, uses::text FROM unnest($1::text[]) AS k JOIN shop.tags ON tag = k",
        Place::Audit => {
            "SELECT k, count(*) || ' ' || string_agg(DISTINCT what, ', ') \
             FROM unnest($1::text[]) AS k JOIN shop.audit ON number = k::bigint GROUP BY k"
        }
        Place::Sizes => {
            "SELECT k, \"Länge\" || ' ' || width || ' ' || \"Fläche\" \
             FROM unnest($1::text[]) AS k JOIN shop.\"Größen & Maße\" ON \"Nr\" = k::bigint"
        }
    }
}

/// What holds across rows. Writer 0's ledger is the past, which the opening balances already know.
async fn rules(client: &Client, verdict: &mut Verdict) -> Result<(), Error> {
    let rules = [
        ("the sum of all balances", "SELECT sum(opening)::text, sum(balance)::text FROM shop.accounts"),
        (
            "accounts whose balance is not what the ledger says",
            "SELECT '0', count(*)::text FROM shop.accounts LEFT JOIN ( \
                 SELECT account, sum(amount) AS moved FROM ( \
                     SELECT from_account AS account, -amount AS amount FROM shop.ledger WHERE writer > 0 \
                     UNION ALL SELECT to_account, amount FROM shop.ledger WHERE writer > 0) AS both_ways \
                 GROUP BY account) AS ledger ON account = id \
             WHERE balance <> opening + coalesce(moved, 0)",
        ),
        (
            "documents whose text does not belong to them",
            "SELECT '0', count(*)::text FROM shop.documents WHERE md5(body) <> checksum",
        ),
    ];
    for (rule, sql) in rules {
        let row = client.query_one(sql, &[]).await?;
        verdict.compare(|| rule.to_owned(), row.try_get(0)?, row.try_get(1)?);
    }
    Ok(())
}
