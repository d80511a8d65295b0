//! The journal: append-only, numbered without gaps, one writer at a time.

use super::{Control, Lease, json, superseded};
use crate::error::is_superseded;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use serde_json::Value;

/// A record to be appended.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEntry {
    /// Version of the body's format.
    pub version: i32,
    /// Who decided it.
    pub actor: String,
    /// What kind of record it is.
    pub kind: String,
    /// The record.
    pub body: Value,
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its number: 1, 2, 3, …
    pub seq: i64,
    /// When it was written, in microseconds since the Unix epoch by the database's clock.
    pub at_us: i64,
    /// The record.
    pub entry: NewEntry,
}

impl Control {
    /// Appends a record after record number `expected` (0: the first one), durably. Returns its number.
    ///
    /// A lost connection leaves it open whether the record is there: read the journal under a new token.
    pub async fn append(&self, lease: &Lease, expected: i64, entry: &NewEntry) -> Outcome<i64> {
        self.append_with(lease, expected, entry, None).await
    }

    /// As [`append`](Control::append), with a statement of two parameters, of which the first is the migration, in the same
    /// transaction: neither is there without the other.
    pub(super) async fn append_with(
        &self,
        lease: &Lease,
        expected: i64,
        entry: &NewEntry,
        also: Option<(&str, &str)>,
    ) -> Outcome<i64> {
        // A session of its own, so that a half-done transaction never meets another request.
        let mut client = self.endpoint.connect("journal").await?;
        let failed = |e: tokio_postgres::Error| self.failed(&e);
        let transaction = client.transaction().await.map_err(failed)?;
        let entered =
            transaction.execute("SELECT segue.enter($1, $2)", &[&self.migration, &lease.token]).await;
        entered.map_err(|e| match e.as_db_error() {
            Some(db) if is_superseded(db) => superseded(&self.migration),
            _ => self.failed(&e),
        })?;
        let sql = "INSERT INTO segue.journal (migration, seq, version, at, actor, kind, body)
             SELECT $1, $2::bigint + 1, $3, clock_timestamp(), $4, $5, $6::text::jsonb
              WHERE $2::bigint = coalesce((SELECT max(seq) FROM segue.journal WHERE migration = $1), 0)
             ON CONFLICT DO NOTHING";
        let body = entry.body.to_string();
        let made = transaction
            .execute(sql, &[&self.migration, &expected, &entry.version, &entry.actor, &entry.kind, &body])
            .await
            .map_err(failed)?;
        if made == 0 {
            return Err(Fault::ambiguous(
                "SEGUE-JOURNAL-MOVED",
                format!("the journal of migration {} does not end at record {expected}", self.migration),
            ));
        }
        if let Some((sql, parameter)) = also {
            transaction.query_one(sql, &[&self.migration, &parameter]).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(|e| {
            // A refusal is an answer; silence is not.
            if e.as_db_error().is_some() {
                return self.failed(&e);
            }
            Fault::ambiguous("SEGUE-JOURNAL-UNKNOWN", format!("whether record {} was written", expected + 1))
        })?;
        self.endpoint.keep(client);
        Ok(expected + 1)
    }

    /// The number of the last record; 0 without one.
    pub async fn last_record(&self) -> Outcome<i64> {
        let sql = "SELECT coalesce(max(seq), 0) FROM segue.journal WHERE migration = $1";
        let row = self.row(sql, &[&self.migration]).await?;
        row.map(|row| row.get(0)).ok_or_else(|| Fault::bug("SEGUE-CONTROL", "the journal has no end"))
    }

    /// Whether nobody drives this migration over another control database, as far as is known here: a token that somebody has raised
    /// here, without a record of it, was raised by one who does.
    pub async fn is_of_here(&self) -> Outcome<bool> {
        let sql = "SELECT EXISTS (SELECT FROM segue.journal WHERE migration = $1)
                OR NOT EXISTS (SELECT FROM segue.token WHERE migration = $1)";
        let row = self.row(sql, &[&self.migration]).await?;
        Ok(row.is_some_and(|row| row.get(0)))
    }

    /// The records after number `after`, in order.
    pub async fn journal(&self, after: i64) -> Outcome<Vec<Entry>> {
        let sql = "SELECT seq, (extract(epoch FROM at) * 1000000)::bigint, version, actor, kind, body::text
               FROM segue.journal WHERE migration = $1 AND seq > $2 ORDER BY seq";
        let rows = self.rows(sql, &[&self.migration, &after]).await?;
        rows.iter()
            .map(|row| {
                let body = json(row.get(5))?;
                let entry = NewEntry { version: row.get(2), actor: row.get(3), kind: row.get(4), body };
                Ok(Entry { seq: row.get(0), at_us: row.get(1), entry })
            })
            .collect()
    }
}
