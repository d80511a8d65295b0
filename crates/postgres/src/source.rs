//! The source side of a PostgreSQL migration: sessions and statements behind the engine's [`Source`] port.

use crate::connect::Endpoint;
use crate::copy::{PgReader, Relations, places};
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::{Outcome, Source};
use segue_model::key::KeyText;
use segue_model::position::Position;
use segue_model::seam::Seam;
use segue_model::table::{Table, UnitId};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

/// The source.
pub struct PgSource {
    endpoint: Endpoint,
    migration: String,
    relations: Arc<dyn Relations>,
    /// One session for short questions and signals, opened when first needed. Signals are emitted one at a time,
    /// so that their numbers ascend in commit order.
    session: Mutex<Option<Arc<Client>>>,
}

impl PgSource {
    /// Runs `ask` in the shared session, opening it anew if it was lost.
    async fn session(&self) -> Outcome<Arc<Client>> {
        let mut session = self.session.lock().await;
        match &*session {
            Some(client) if !client.is_closed() => Ok(client.clone()),
            _ => {
                let client = Arc::new(self.endpoint.connect("source").await?);
                *session = Some(client.clone());
                Ok(client)
            }
        }
    }
}
