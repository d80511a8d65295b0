//! The control database of a migration: who drives it, what it was asked, what it decided.
//!
//! Everything that several processes must agree on goes through rows here, judged by the database's clock: the
//! lease and its heartbeat, commands and answers (with NOTIFY to shorten the wait, never instead of a look at the
//! row), the journal, the last status. What the rows mean is the engine's business; bodies are plain JSON.

mod command;
mod journal;
mod lease;
mod reads;
mod routes;
mod samples;
mod standing;
mod token;

pub use command::{Answer, Command};
pub use journal::{Entry, NewEntry};
pub use lease::{Acquired, Driver, HEARTBEAT, LEASE_TTL, Lease};
pub use reads::ToldReads;
pub use routes::{ROUTER_TTL, RouterReport, RouterSeat, Routing, Told};
pub use samples::{NewSample, StoredSample};
pub use standing::{Standing, Verified};
pub use token::{Holder, shut_out};

use crate::connect::Endpoint;
use crate::error::fault_of;
use crate::schema;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

/// A first session that was lost is opened again, so often in all …
const TRIES_MAX: u32 = 3;
/// … after so long, and longer each time.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// One migration's rows in its control database. Opens its session again when it was lost; a request that was
/// under way then fails with a fault that can be retried.
pub struct Control {
    endpoint: Endpoint,
    migration: String,
    session: Mutex<Option<Session>>,
    /// Key of the session-level advisory lock that shows that this process lives; `None`: it will never drive.
    alive_key: Option<i64>,
}

struct Session {
    client: Arc<Client>,
    /// It holds the lock of `alive_key`.
    shown: bool,
}

impl Control {
    /// Connects, and makes the schema if it is not there.
    pub async fn connect(endpoint: &Endpoint, migration: &str) -> Outcome<Control> {
        let client = Control::at_home(endpoint).await?;
        // Two processes never share a key: not even two that have host name and process number in common, as
        // containers may.
        let sql = "SELECT hashtextextended(format('segue:alive:%s:%s:%s', $1::text, clock_timestamp(), random()), 0)";
        let row = client.query_one(sql, &[&migration]).await.map_err(|e| fault_of(&e))?;
        let control = Control::over(endpoint, migration, client, Some(row.get(0)));
        control.session().await?;
        Ok(control)
    }

    /// A session where the schema is. Who can log in does not give up because that session was lost, or two met in making it.
    async fn at_home(endpoint: &Endpoint) -> Outcome<Client> {
        let mut tries = 1;
        loop {
            let mut client = endpoint.connect("control").await?;
            match schema::ensure(&mut client).await {
                Ok(()) => return Ok(client),
                Err(fault) if fault.recovery == Recovery::Retry && tries < TRIES_MAX => {
                    tracing::warn!("{fault}: trying again");
                    tokio::time::sleep(TRY_AGAIN * tries).await;
                    tries += 1;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Whether a segue has ever run here.
    pub async fn is_known(endpoint: &Endpoint) -> Outcome<bool> {
        let client = endpoint.connect("control").await?;
        let sql = "SELECT to_regclass('segue.journal') IS NOT NULL";
        let there = client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0);
        endpoint.keep(client);
        Ok(there)
    }

    /// Connects without making anything; `None` if no segue has ever run here.
    pub async fn find(endpoint: &Endpoint, migration: &str) -> Outcome<Option<Control>> {
        if !Control::is_known(endpoint).await? {
            return Ok(None);
        }
        let client = endpoint.connect("control").await?;
        Ok(Some(Control::over(endpoint, migration, client, None)))
    }

    fn over(endpoint: &Endpoint, migration: &str, client: Client, alive_key: Option<i64>) -> Control {
        Control {
            endpoint: endpoint.clone(),
            migration: migration.to_owned(),
            session: Mutex::new(Some(Session { client: Arc::new(client), shown: false })),
            alive_key,
        }
    }

    /// The migration.
    pub fn migration(&self) -> &str {
        &self.migration
    }

    async fn session(&self) -> Outcome<Arc<Client>> {
        let mut slot = self.session.lock().await;
        if slot.as_ref().is_none_or(|session| session.client.is_closed()) {
            let client = Arc::new(self.endpoint.connect("control").await?);
            *slot = Some(Session { client, shown: false });
        }
        let Some(session) = &mut *slot else { return Err(Fault::bug("SEGUE-CONTROL", "no session")) };
        if let (Some(key), false) = (self.alive_key, session.shown) {
            // Refused while the server still believes in a session of ours that was cut off: asked again next time.
            let sql = "SELECT pg_try_advisory_lock($1)";
            let row = session.client.query_one(sql, &[&key]).await.map_err(|e| self.failed(&e))?;
            session.shown = row.get(0);
        }
        Ok(session.client.clone())
    }

    fn failed(&self, error: &tokio_postgres::Error) -> Fault {
        fault_of(error).during(format_args!("in the control database of migration {}", self.migration))
    }

    async fn row(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Outcome<Option<Row>> {
        self.session().await?.query_opt(sql, parameters).await.map_err(|e| self.failed(&e))
    }

    async fn rows(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Outcome<Vec<Row>> {
        self.session().await?.query(sql, parameters).await.map_err(|e| self.failed(&e))
    }

    /// The time by the control database's clock, in microseconds since 1970.
    pub async fn now_us(&self) -> Outcome<i64> {
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let row = self.row(sql, &[]).await?;
        row.map(|row| row.get(0)).ok_or_else(|| Fault::bug("SEGUE-CONTROL", "the clock gave no answer"))
    }

    /// Stores what the driver has to report. Refused once a later driver has reported.
    pub async fn publish_status(&self, lease: &Lease, body: &Value) -> Outcome<()> {
        let sql = "INSERT INTO segue.status AS s (migration, token, at, body)
             VALUES ($1, $2, clock_timestamp(), $3::text::jsonb)
             ON CONFLICT (migration) DO UPDATE SET token = excluded.token, at = excluded.at, body = excluded.body
              WHERE s.token <= excluded.token RETURNING token";
        let row = self.row(sql, &[&self.migration, &lease.token, &body.to_string()]).await?;
        row.map(drop).ok_or_else(|| superseded(&self.migration))
    }

    /// What was last reported, and how many milliseconds ago.
    pub async fn read_status(&self) -> Outcome<Option<(Value, i64)>> {
        let sql = "SELECT body::text, (extract(epoch FROM clock_timestamp() - at) * 1000)::bigint
               FROM segue.status WHERE migration = $1";
        let row = self.row(sql, &[&self.migration]).await?;
        row.map(|row| Ok((json(row.get(0))?, row.get(1)))).transpose()
    }
}

fn json(text: &str) -> Outcome<Value> {
    serde_json::from_str(text)
        .map_err(|e| Fault::bug("SEGUE-CONTROL", format!("a stored body is not JSON: {e}")))
}

fn superseded(migration: &str) -> Fault {
    Fault::operator(
        "SEGUE-SUPERSEDED",
        format!("another segue process has taken migration {migration} over"),
        "let it work, and stop this one",
    )
}
