//! A number that a statement of the operator's returns. It runs read-only, in a session of its own, and not for long.
//!
//! Whatever keeps it from being had is said in words and is no fault: who measures decides what that means.

use crate::connect::Endpoint;
use futures_util::StreamExt as _;
use std::time::Duration;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// How long the server works on the statement at most …
const STATEMENT_MS_MAX: u64 = 3_000;
/// … and how long it is waited for at most, connecting included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks one database for numbers.
#[derive(Debug)]
pub struct Gauge {
    endpoint: Endpoint,
    /// What the session is called on the server.
    session: &'static str,
    client: Option<Client>,
}

impl Gauge {
    /// Opens no session yet; `session` says what it is for.
    pub fn of(endpoint: Endpoint, session: &'static str) -> Gauge {
        Gauge { endpoint, session, client: None }
    }

    /// The number that `sql` returns: one statement, one row, one column. Or why there is none.
    pub async fn number(&mut self, sql: &str) -> Result<f64, String> {
        // After a look that did not come to its end nobody knows what the session is doing: another one is opened.
        let client = self.client.take().filter(|client| !client.is_closed());
        let look = async {
            let client = match client {
                Some(client) => client,
                None => self.session().await?,
            };
            let number = look(&client, sql).await;
            client.batch_execute("ROLLBACK").await.map_err(words)?;
            Ok::<_, String>((client, number))
        };
        let looked = tokio::time::timeout(PATIENCE, look).await;
        let (client, number) = looked.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
        self.client = Some(client);
        number
    }

    async fn session(&self) -> Result<Client, String> {
        let client = self.endpoint.connect(self.session).await.map_err(|fault| fault.what)?;
        // Names mean what they mean to a session that has set nothing.
        let bounds = format!(
            "SET search_path = \"$user\", public; SET default_transaction_read_only = on; SET statement_timeout = {STATEMENT_MS_MAX};
             SET lock_timeout = {STATEMENT_MS_MAX}; SET idle_in_transaction_session_timeout = {}",
            PATIENCE.as_millis()
        );
        client.batch_execute(&bounds).await.map_err(words)?;
        Ok(client)
    }
}

async fn look(client: &Client, sql: &str) -> Result<f64, String> {
    client.batch_execute("BEGIN READ ONLY").await.map_err(words)?;
    // Only one statement can be prepared: a second one cannot end the transaction that it runs in.
    let statement = client.prepare(sql).await.map_err(words)?;
    match statement.columns().len() {
        1 => {}
        0 => return Err("the statement returns nothing".to_owned()),
        columns => return Err(format!("it returns {columns} columns, not one")),
    }
    // As text, whatever the type.
    let messages = client.simple_query_raw(sql).await.map_err(words)?;
    let mut messages = std::pin::pin!(messages);
    let mut only: Option<SimpleQueryRow> = None;
    while let Some(message) = messages.next().await {
        if let SimpleQueryMessage::Row(row) = message.map_err(words)?
            && only.replace(row).is_some()
        {
            // The rest is thrown away as it comes.
            return Err("it returns more than one row".to_owned());
        }
    }
    let Some(row) = only else { return Err("it returns no row".to_owned()) };
    let Some(text) = row.get(0) else { return Err("it returns NULL".to_owned()) };
    let number: Option<f64> = text.trim().parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("it returns `{text}`, which is no number"))
}

fn words(error: tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned())
}
