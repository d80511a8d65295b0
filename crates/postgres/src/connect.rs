//! Opening sessions: where a server is, how to reach it, and the settings every session of ours has.

use crate::error::fault_of;
use segue_engine::ports::Outcome;
use std::fmt;
use tokio_postgres::{Client, Config, NoTls};

/// Where a database is and how to log in. Never shows its password.
#[derive(Clone)]
pub struct Endpoint {
    config: Config,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match self.config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            Some(tokio_postgres::config::Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let user = self.config.get_user().unwrap_or_default();
        write!(f, "{user}@{host}:{port}/{}", self.config.get_dbname().unwrap_or(user))
    }
}

/// Settings that pin how values are written as text, whatever the role or database has set.
pub const PINNED_SETTINGS: &str = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; \
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET TimeZone = 'UTC'; SET lc_monetary = 'C'; SET xmloption = 'content'; \
    SET search_path = pg_catalog; SET row_security = off; SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET default_transaction_isolation = 'read committed'; \
    SET default_transaction_read_only = off; SET default_transaction_deferrable = off; SET synchronize_seqscans = off";

impl Endpoint {
    /// Reads a connection URL or a `key=value` string.
    pub fn parse(text: &str) -> Result<Endpoint, tokio_postgres::Error> {
        Ok(Endpoint { config: text.parse()? })
    }

    /// Opens a session with [`PINNED_SETTINGS`], named `segue <purpose>` on the server.
    pub async fn connect(&self, purpose: &str) -> Outcome<Client> {
        let mut config = self.config.clone();
        config.application_name(format!("segue {purpose}"));
        config.keepalives_idle(std::time::Duration::from_secs(10));
        let lost = |e| fault_of(&e).during(format_args!("connecting to {self}"));
        let (client, connection) = config.connect(NoTls).await.map_err(lost)?;
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("session ended: {e}");
            }
        });
        client.batch_execute(PINNED_SETTINGS).await.map_err(lost)?;
        Ok(client)
    }

    /// The parsed configuration, for the replication transport.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
