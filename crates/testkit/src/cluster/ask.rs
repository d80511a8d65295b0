//! Short questions to a server, by a session that is kept between them.
//!
//! Tests ask all the time whether something has come about yet, and to begin a session costs a server more than most answers do.

use super::Cluster;
use std::sync::PoisonError;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

impl Cluster {
    /// The first column of the first row, as text; `None` for NULL or no row. Database `postgres`. Nothing that a session
    /// keeps may be asked for.
    ///
    /// # Panics
    /// If the statement fails.
    pub async fn scalar(&self, sql: &str) -> Option<String> {
        self.try_scalar(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}\n{}", self.log_tail(10)))
    }

    /// As [`scalar`](Cluster::scalar), or says why not.
    pub async fn try_scalar(&self, sql: &str) -> Result<Option<String>, Error> {
        let kept = self.asking.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(client) = kept.filter(|client| !client.is_closed()) {
            match self.ask(client, sql).await {
                // The server was stopped since.
                Err(error) if error.as_db_error().is_none_or(|told| told.severity() == "FATAL") => {}
                answered => return answered,
            }
        }
        self.ask(self.try_connect("postgres").await?, sql).await
    }

    async fn ask(&self, client: Client, sql: &str) -> Result<Option<String>, Error> {
        let messages = client.simple_query(sql).await?;
        // Whoever asks meanwhile has another one.
        *self.asking.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        });
        Ok(row.flatten())
    }
}
