//! A client's session on one of the servers: statements prepared once, and errors by what they mean to the client.

use std::collections::HashMap;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use crate::demo::servers;

/// How the constraint begins that a refusal names; the migration follows.
const FENCE: &str = "segue:";

/// Why a transaction did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The server refused, or the connection broke, before COMMIT: nothing happened.
    #[error("{}", in_words(.0))]
    Failed(#[from] tokio_postgres::Error),
    /// A row that this client alone writes was not as it left it.
    #[error("a row was not there: {0}")]
    Missing(&'static str),
}

impl LoadError {
    /// The server does not take the application's writes: they are to go to the other one. SQLSTATE 25006 alone is no
    /// proof of that, since a server that is read-only for another reason says the same: the constraint names Segue.
    pub(super) fn is_elsewhere(&self) -> bool {
        match self {
            LoadError::Failed(error) => error.as_db_error().is_some_and(|db| {
                *db.code() == SqlState::READ_ONLY_SQL_TRANSACTION
                    && db.constraint().is_some_and(|name| name.starts_with(FENCE))
            }),
            LoadError::Missing(_) => false,
        }
    }
}

/// Error kinds have to be few, so that they can be counted: no values.
fn in_words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None if error.is_closed() => "the connection was lost".to_owned(),
        None => error.to_string(),
    }
}

pub(super) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    prepared: HashMap<&'static str, Statement>,
}

impl Session {
    pub(super) async fn open(url: &str) -> Result<Self, LoadError> {
        Ok(Self { client: servers::connect(url).await?, prepared: HashMap::new() })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// BEGIN, COMMIT and the like.
    pub(super) async fn control(&self, command: &str) -> Result<(), LoadError> {
        Ok(self.client.batch_execute(command).await?)
    }

    async fn prepare(&mut self, sql: &'static str) -> Result<Statement, LoadError> {
        if let Some(statement) = self.prepared.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.prepared.insert(sql, statement.clone());
        Ok(statement)
    }

    /// A statement that has to write something.
    pub(super) async fn write(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<(), LoadError> {
        let statement = self.prepare(sql).await?;
        match self.client.execute(&statement, parameters).await? {
            0 => Err(LoadError::Missing(sql)),
            _ => Ok(()),
        }
    }

    /// A read that is a transaction of its own, sent in one go.
    pub(super) async fn read(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, LoadError> {
        Ok(self.client.query_typed(sql, parameters).await?)
    }

    /// A statement that writes a row and tells about it.
    pub(super) async fn write_returning(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Row, LoadError> {
        let statement = self.prepare(sql).await?;
        self.client.query_opt(&statement, parameters).await?.ok_or(LoadError::Missing(sql))
    }
}
