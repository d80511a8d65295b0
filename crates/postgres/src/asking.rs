//! Asking a server the same thing again and again, without it being read and planned each time.
//!
//! What a process looks at twice a second is a few catalog queries, each of which takes the server ten times as long to plan
//! as to run. This module knows nothing of what is asked.

use crate::connect::Endpoint;
use segue_engine::ports::Outcome;
use std::collections::HashMap;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

/// A session that can be asked.
pub trait Asked {
    /// All rows of the answer. The error is the server's or the connection's.
    fn rows(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<Vec<Row>, Error>> + Send;

    /// The one row of the answer; no row is an error, and several are.
    fn row(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<Row, Error>> + Send;

    /// The row of the answer, if there is one; several are an error.
    fn row_if_any(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> impl Future<Output = Result<Option<Row>, Error>> + Send;
}

impl Asked for Client {
    async fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.query(sql, parameters).await
    }

    async fn row(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.query_one(sql, parameters).await
    }

    async fn row_if_any(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, Error> {
        self.query_opt(sql, parameters).await
    }
}

/// Has a session plan what it is asked at the first time and never again, instead of five times: for what finds few rows, by
/// the same way whatever their names, while somebody waits.
pub(crate) const PLANNED_ONCE: &str = "SET plan_cache_mode = force_generic_plan";

/// A session that keeps what it was asked, prepared, as long as it lives: for few texts, asked often.
pub struct Remembering {
    client: Client,
    prepared: Mutex<HashMap<String, Statement>>,
}

impl Remembering {
    /// Opens a session as [`Endpoint::connect`] does.
    pub async fn connect(endpoint: &Endpoint, purpose: &str) -> Outcome<Remembering> {
        Ok(Remembering::of(endpoint.connect(purpose).await?))
    }

    /// A session that is open.
    pub fn of(client: Client) -> Remembering {
        Remembering { client, prepared: Mutex::default() }
    }

    async fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        let known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        // Asked twice at once it is prepared twice, and the later one is kept.
        let statement = self.client.prepare(sql).await?;
        self.prepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Deref for Remembering {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Remembering {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Asked for Remembering {
    async fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.client.query(&self.prepared(sql).await?, parameters).await
    }

    async fn row(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.client.query_one(&self.prepared(sql).await?, parameters).await
    }

    async fn row_if_any(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>, Error> {
        self.client.query_opt(&self.prepared(sql).await?, parameters).await
    }
}
