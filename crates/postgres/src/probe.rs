//! A small write, to see how long a commit takes on a server just now.
//!
//! It overwrites the one row of its migration in a table of Segue's own, which no stream carries and nobody reads; so it
//! needs no token: one of a process that was superseded harms nothing.

use crate::connect::Endpoint;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Statement};

/// How long the server works on it at most …
const STATEMENT_MS_MAX: u64 = 2_000;
/// … and how long it is waited for: a commit that waits for a standby is not ended by the server alone.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a session may take to be there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

const WRITE: &str = "INSERT INTO segue.probe (migration, at) VALUES ($1, clock_timestamp())
     ON CONFLICT (migration) DO UPDATE SET at = excluded.at";

/// Writes to one server, again and again.
#[derive(Debug)]
pub struct Probe {
    endpoint: Endpoint,
    migration: String,
    session: Option<(Client, Statement)>,
}

impl Probe {
    /// Opens no session yet.
    pub fn of(endpoint: Endpoint, migration: &str) -> Probe {
        Probe { endpoint, migration: migration.to_owned(), session: None }
    }

    /// How long it took until the row was durable; or, if it was not in time, how long it was waited for. Or why there is
    /// no telling: without a session, or with one that fails for another reason, no write was measured.
    pub async fn write(&mut self) -> Result<Duration, String> {
        // After a write that did not come to its end nobody knows what the session is doing: another one is opened.
        let session = self.session.take().filter(|(client, _)| !client.is_closed());
        let (client, statement) = match session {
            Some(session) => session,
            None => {
                let opened = tokio::time::timeout(CONNECT_PATIENCE, self.open()).await;
                opened.map_err(|_| format!("no session within {} s", CONNECT_PATIENCE.as_secs()))??
            }
        };
        let began = Instant::now();
        let write = async { client.execute(&statement, &[&self.migration]).await };
        match tokio::time::timeout(PATIENCE, write).await {
            Ok(Ok(_)) => {
                let took = began.elapsed();
                self.session = Some((client, statement));
                Ok(took)
            }
            // Cancelled by the server for the time it took: so long, at least, it was.
            Ok(Err(error)) if error.code() == Some(&tokio_postgres::error::SqlState::QUERY_CANCELED) => {
                Ok(began.elapsed())
            }
            Ok(Err(error)) => {
                Err(error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned()))
            }
            Err(_) => Ok(began.elapsed()),
        }
    }

    async fn open(&self) -> Result<(Client, Statement), String> {
        let client = self.endpoint.connect("probe").await.map_err(|fault| fault.what)?;
        let words = |e: tokio_postgres::Error| {
            e.as_db_error().map_or_else(|| e.to_string(), |db| db.message().to_owned())
        };
        let bounds = format!("SET statement_timeout = {STATEMENT_MS_MAX}");
        client.batch_execute(&bounds).await.map_err(words)?;
        let statement = client.prepare(WRITE).await.map_err(words)?;
        Ok((client, statement))
    }
}
