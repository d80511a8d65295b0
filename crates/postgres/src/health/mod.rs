//! How a server is: what the gates of a switch ask of it, and what a person should be told about it.
//!
//! Each function is one look: a single cheap query on the catalogs and the statistics, which takes no lock on any table
//! and changes nothing. Segue's own sessions, which carry its name, are left out of every answer about sessions. This
//! module judges nothing; what is enough is the gates' business.
//!
//! Names, statements and ages of other roles' sessions are shown to members of `pg_read_all_stats` only. Where something
//! is hidden, the answer says so and never takes it for young, small or absent.

mod activity;
mod load;
mod replicas;
mod sessions;
mod slots;
mod transactions;

pub use activity::activity;
pub use load::{Load, load};
pub use replicas::{Replica, Standing, replicas, standings};
pub use sessions::{StatefulSession, application_sessions, free_connections, sessions_with_state};
pub use slots::{Slot, slots};
pub use transactions::{Transaction, transactions};

use crate::asking::{Asked, Remembering};
use crate::connect::Endpoint;
use crate::error::fault_of;
use segue_engine::ports::Outcome;
use segue_model::sqltext::quote_literal;
use std::time::Duration;

/// What a session of Segue's is called on the server; see [`Endpoint::connect`].
const OURS: &str = "coalesce(a.application_name, '') LIKE 'segue %'";
/// Someone who has said nothing for so long with a transaction open is in everybody's way.
const IDLE_MS_MAX: i64 = 60_000;
/// A replica that is further behind is worth a word whether or not it is about to be used.
const REPLICA_LAG_MS_MAX: u64 = 1_000;

/// Opens a session for looks at a server, none of which may take longer than `limit`.
pub async fn session(endpoint: &Endpoint, limit: Duration) -> Outcome<Remembering> {
    let client = Remembering::connect(endpoint, "health").await?;
    let limit_ms = limit.as_millis().max(1);
    let bound = format!("SET statement_timeout = {limit_ms}; SET lock_timeout = {limit_ms}");
    client.batch_execute(&bound).await.map_err(|e| fault_of(&e))?;
    Ok(client)
}

/// What is wrong with this server already, whatever Segue does, a line each: roles that hide what is going on, sessions
/// that have been idle in a transaction for more than a minute, prepared transactions, slots that keep log or rows for
/// nobody or have lost them, and replicas that are behind. In all databases of the server.
pub async fn old_trouble(client: &impl Asked) -> Outcome<Vec<String>> {
    let mut found: Vec<String> = blindness(client).await?.into_iter().collect();
    found.extend(transactions::lingering(client, IDLE_MS_MAX).await?);
    found.extend(slots(client).await?.iter().filter_map(Slot::trouble));
    // What is hidden has been said above.
    let is_behind = |replica: &Replica| replica.lag_ms > REPLICA_LAG_MS_MAX && replica.lag_ms < u64::MAX;
    let behind = replicas(client).await?.into_iter().filter(is_behind);
    found.extend(
        behind.map(|replica| format!("the replica {} is {} ms behind", replica.name, replica.lag_ms)),
    );
    Ok(found)
}

/// What to grant, if this role cannot see what other roles' sessions do.
pub async fn blindness(client: &impl Asked) -> Outcome<Option<String>> {
    let sql = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), quote_ident(current_user)";
    let row = client.row(sql, &[]).await.map_err(|e| fault_of(&e))?;
    let (sees, role): (bool, &str) = (row.get(0), row.get(1));
    Ok((!sees).then(|| {
        format!("the role {role} cannot see what other sessions do: GRANT pg_read_all_stats TO {role}")
    }))
}

/// Whether the fence of `migration` has been made in this database: what is asked by its tables has no answer before.
pub async fn is_fence_made(client: &impl Asked, migration: &str) -> Outcome<bool> {
    let sql = format!("SELECT EXISTS (SELECT FROM segue.fence_carriers({}))", quote_literal(migration));
    Ok(client.row(&sql, &[]).await.map_err(|e| fault_of(&e))?.get(0))
}
