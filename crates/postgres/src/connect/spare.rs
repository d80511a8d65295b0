//! Sessions that whoever opened them needs no longer, for whoever needs one next.
//!
//! A start asks each server a few short questions in a dozen places. A session for each is a process that the server makes,
//! which then reads the catalog into its caches: most of what a start cost.

use super::Endpoint;
use segue_model::sqltext::quote_literal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;

/// So long a session is kept for somebody else: nobody idles on a server for long, and what an address leads to may change.
const KEPT: Duration = Duration::from_secs(3);
/// So many are kept.
const SPARES_MAX: usize = 6;
/// A session that does not take its new name within this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The sessions that are kept, shared by all clones of an [`Endpoint`], marked or not.
#[derive(Clone, Default)]
pub(super) struct Spares(Arc<Mutex<Vec<Spare>>>);

struct Spare {
    since: Instant,
    /// The migration whose lock it holds.
    mark: Option<String>,
    client: Client,
}

impl Spares {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Spare>> {
        // Whatever happened to another holder, the list is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_old(&self) {
        self.lock().retain(|spare| spare.since.elapsed() < KEPT && !spare.client.is_closed());
    }

    /// The one that was kept last, of those with this mark.
    fn take(&self, mark: Option<&String>) -> Option<Client> {
        self.drop_old();
        let mut kept = self.lock();
        let at = kept.iter().rposition(|spare| spare.mark.as_ref() == mark)?;
        Some(kept.remove(at).client)
    }
}

impl Endpoint {
    /// Gives back a session from [`Endpoint::connect`]: the next one that is asked for soon is this one, under another name.
    ///
    /// For sessions that are as they were when they were opened: no transaction is open or asked for, nothing was set, and
    /// nothing is locked, listened to, or to be answered. One of a [marked](Endpoint::marked) place is for the same mark.
    pub fn keep(&self, client: Client) {
        let spares = self.spares.clone();
        {
            let mut kept = spares.lock();
            if kept.len() >= SPARES_MAX {
                return;
            }
            kept.push(Spare { since: Instant::now(), mark: self.mark.clone(), client });
        }
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            spares.drop_old();
        });
    }

    /// Ends the sessions that are kept: the address may lead to another server by now.
    pub fn forget(&self) {
        self.spares.lock().clear();
    }

    /// A session that was kept, under its new name, if there is one that answers.
    pub(super) async fn spare(&self, application_name: &str) -> Option<Client> {
        let client = self.spares.take(self.mark.as_ref())?;
        let rename = format!("SET application_name = {}", quote_literal(application_name));
        let renamed = tokio::time::timeout(PATIENCE, client.batch_execute(&rename)).await;
        matches!(renamed, Ok(Ok(()))).then_some(client)
    }
}
