//! Verifications in the schema `segue` of the control database.

use crate::birth::Direction;
use crate::connect::Endpoint;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::verify::ports::{Begun, DivergenceId, Store, VerificationId, VerifiedRange};
use segue_engine::verify::report::{DIVERGENCES_MAX, Report, Request};
use segue_model::divergence::Divergence;
use segue_model::key::KeyText;
use segue_model::table::TableId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{Client, Row, Transaction};

/// Keeps verifications of one migration.
pub struct PgStore {
    endpoint: Endpoint,
    migration: String,
    direction: Direction,
    session: Mutex<Option<Client>>,
}

fn to_json(value: &impl Serialize) -> Outcome<String> {
    serde_json::to_string(value)
        .map_err(|e| Fault::bug("SEGUE-VERIFY-STORE", format!("a result cannot be stored: {e}")))
}

fn from_json<T: DeserializeOwned>(row: &Row, column: usize) -> Outcome<T> {
    serde_json::from_str(row.get(column))
        .map_err(|e| Fault::bug("SEGUE-VERIFY-STORE", format!("a stored result cannot be read: {e}")))
}

fn table_number(id: TableId) -> i32 {
    i32::try_from(id.0).unwrap_or(i32::MAX)
}

impl PgStore {
    /// In the database at `endpoint`, whose schema `segue` exists. Rows are compared with those that the stream of
    /// `direction` comes from.
    pub fn new(endpoint: Endpoint, migration: String, direction: Direction) -> Self {
        PgStore { endpoint, migration, direction, session: Mutex::new(None) }
    }

    async fn session(&self) -> Outcome<MutexGuard<'_, Option<Client>>> {
        let mut session = self.session.lock().await;
        if session.as_ref().is_none_or(Client::is_closed) {
            *session = Some(self.endpoint.connect("verify").await?);
        }
        Ok(session)
    }

    async fn insert(
        &self,
        transaction: &Transaction<'_>,
        id: Option<VerificationId>,
        divergences: &[Divergence],
    ) -> Outcome<Vec<DivergenceId>> {
        let mut numbers = Vec::with_capacity(divergences.len());
        for d in divergences {
            let key = d.key.as_ref().map(to_json).transpose()?;
            let insert = "INSERT INTO segue.divergence (migration, verification, table_id, key, class, repaired, body) \
                 VALUES ($1, $2, $3, $4::text::jsonb, $5, $6, $7::text::jsonb) RETURNING no";
            let class = d.difference.class.to_string();
            let id = id.map(|id| id.0);
            let row = transaction
                .query_one(
                    insert,
                    &[
                        &self.migration,
                        &id,
                        &table_number(d.table_id),
                        &key,
                        &class,
                        &d.repaired,
                        &to_json(d)?,
                    ],
                )
                .await
                .map_err(|e| fault_of(&e))?;
            numbers.push(DivergenceId(row.get(0)));
        }
        Ok(numbers)
    }

    async fn ranges(client: &Client, id: VerificationId) -> Outcome<BTreeMap<TableId, Vec<VerifiedRange>>> {
        let select = "SELECT table_id, coalesce(lower, 'null')::text, coalesce(upper, 'null')::text, counts::text \
             FROM segue.verified_range WHERE verification = $1";
        let mut ranges: BTreeMap<TableId, Vec<VerifiedRange>> = BTreeMap::new();
        for row in client.query(select, &[&id.0]).await.map_err(|e| fault_of(&e))? {
            let table: i32 = row.get(0);
            let lower: Option<KeyText> = from_json(&row, 1)?;
            let range = VerifiedRange { lower, upper: from_json(&row, 2)?, counts: from_json(&row, 3)? };
            ranges.entry(TableId(table.unsigned_abs())).or_default().push(range);
        }
        Ok(ranges)
    }

    async fn divergences(client: &Client, id: VerificationId) -> Outcome<Vec<Divergence>> {
        let select = format!(
            "SELECT body::text FROM segue.divergence WHERE verification = $1 ORDER BY no LIMIT {DIVERGENCES_MAX}"
        );
        let rows = client.query(&select, &[&id.0]).await.map_err(|e| fault_of(&e))?;
        rows.iter().map(|row| from_json(row, 0)).collect()
    }
}

impl Store for PgStore {
    async fn begin(&self, request: &Request, tables: &[TableId]) -> Outcome<Begun> {
        let session = self.session().await?;
        let Some(client) = session.as_ref() else { return Err(lost()) };
        let mode = to_json(&request.mode)?.trim_matches('"').to_owned();
        let numbers: Vec<i32> = tables.iter().map(|t| table_number(*t)).collect();
        let direction = self.direction.as_str();
        if request.resume {
            // Ranges cut along the other side's keys would not fit, and those of an earlier copy, or from before something
            // was written past a fence, say nothing any more.
            let select = "SELECT id FROM segue.verification v WHERE v.migration = $1 AND v.mode = $2 AND v.tables = $3 \
                 AND v.ended_at IS NULL AND v.body ->> 'direction' = $4 AND v.started_at > coalesce((SELECT max(j.at) \
                 FROM segue.journal j WHERE j.migration = $1 AND j.kind IN ('born', 'stray')), '-infinity') \
                 ORDER BY v.id DESC LIMIT 1";
            let found = client.query_opt(select, &[&self.migration, &mode, &numbers, &direction]).await;
            if let Some(row) = found.map_err(|e| fault_of(&e))? {
                let id = VerificationId(row.get(0));
                let (ranges, divergences) =
                    (PgStore::ranges(client, id).await?, PgStore::divergences(client, id).await?);
                return Ok(Begun { id, ranges, divergences });
            }
        }
        let insert = "INSERT INTO segue.verification (migration, mode, tables, body) \
             VALUES ($1, $2, $3, jsonb_build_object('request', $4::text::jsonb, 'direction', $5::text)) \
             RETURNING id";
        let row = client
            .query_one(insert, &[&self.migration, &mode, &numbers, &to_json(request)?, &direction])
            .await
            .map_err(|e| fault_of(&e))?;
        Ok(Begun { id: VerificationId(row.get(0)), ranges: BTreeMap::new(), divergences: Vec::new() })
    }

    async fn verified(
        &self,
        id: VerificationId,
        table: TableId,
        range: &VerifiedRange,
        divergences: &[Divergence],
    ) -> Outcome<()> {
        let mut session = self.session().await?;
        let Some(client) = session.as_mut() else { return Err(lost()) };
        let transaction = client.transaction().await.map_err(|e| fault_of(&e))?;
        let insert = "INSERT INTO segue.verified_range (verification, table_id, lower, upper, counts) \
             VALUES ($1, $2, $3::text::jsonb, $4::text::jsonb, $5::text::jsonb)";
        let bound = |key: &Option<KeyText>| key.as_ref().map(to_json).transpose();
        let (lower, upper) = (bound(&range.lower)?, bound(&range.upper)?);
        transaction
            .execute(insert, &[&id.0, &table_number(table), &lower, &upper, &to_json(&range.counts)?])
            .await
            .map_err(|e| fault_of(&e))?;
        self.insert(&transaction, Some(id), divergences).await?;
        transaction.commit().await.map_err(|e| fault_of(&e))
    }

    async fn diverged(&self, divergences: &[Divergence]) -> Outcome<Vec<DivergenceId>> {
        let mut session = self.session().await?;
        let Some(client) = session.as_mut() else { return Err(lost()) };
        let transaction = client.transaction().await.map_err(|e| fault_of(&e))?;
        let numbers = self.insert(&transaction, None, divergences).await?;
        transaction.commit().await.map_err(|e| fault_of(&e))?;
        Ok(numbers)
    }

    async fn found_equal(&self, ids: &[DivergenceId]) -> Outcome<()> {
        let session = self.session().await?;
        let Some(client) = session.as_ref() else { return Err(lost()) };
        let numbers: Vec<i64> = ids.iter().map(|id| id.0).collect();
        let update = "UPDATE segue.divergence d SET equal_at = clock_timestamp() FROM segue.divergence n \
             WHERE n.no = ANY ($2) AND n.migration = $1 AND d.migration = $1 AND d.table_id = n.table_id \
               AND d.key = n.key AND d.no <= n.no AND d.verification IS NULL AND d.equal_at IS NULL";
        client.execute(update, &[&self.migration, &numbers]).await.map_err(|e| fault_of(&e))?;
        Ok(())
    }

    async fn end(&self, id: VerificationId, report: &Report) -> Outcome<()> {
        let session = self.session().await?;
        let Some(client) = session.as_ref() else { return Err(lost()) };
        let update = "UPDATE segue.verification SET ended_at = clock_timestamp(), \
             body = body || jsonb_build_object('report', $2::text::jsonb - 'divergences') WHERE id = $1";
        client.execute(update, &[&id.0, &to_json(report)?]).await.map_err(|e| fault_of(&e))?;
        Ok(())
    }
}

fn lost() -> Fault {
    Fault::retry("SEGUE-CONNECTION", "the session with the control database was lost")
}
