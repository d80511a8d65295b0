//! What routers are told, and what they answer: a route for each migration, a row for each router, with notifications.
//!
//! Nothing is decided from these rows, so their commits are not waited for: what a crash of the control database takes back
//! is told again, and a router that goes by an old route meets a fence.

use super::{Control, Lease, json, superseded};
use crate::asking::{Asked, PLANNED_ONCE};
use crate::connect::{Endpoint, Listener};
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::switch::route::Route;
use serde_json::Value;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio_postgres::Client;

/// A router that was not heard of for this long is not waited for.
pub const ROUTER_TTL: Duration = Duration::from_secs(3);

const ROUTES: &str = "segue_route";
const ROUTERS: &str = "segue_router";

/// Routes that one holder of the lease may tell. The same whatever a token counts: builds take over from each other.
const ROUTES_OF_A_TOKEN: i64 = 1_000_000;

/// A route, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which one: it grows with each that is told, whoever tells it.
    pub revision: i64,
    /// What it says.
    pub route: Route,
}

/// What a router says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterReport {
    /// Unlike any other router's, as long as the process lives.
    pub id: String,
    /// The route that it keeps to: all that it did by an earlier one is over.
    pub revision: i64,
    /// For people.
    pub body: Value,
}

impl Lease {
    /// The revision before the first one that its holder tells.
    pub fn revision(&self) -> i64 {
        self.token * ROUTES_OF_A_TOKEN
    }
}

/// The driver's end.
pub struct Routing {
    listener: Listener,
    migration: String,
}

/// A router's end.
pub struct RouterSeat {
    pub(super) listener: Listener,
    pub(super) migration: String,
    /// There are rules for reads to be asked for.
    pub(super) has_reads: AtomicBool,
}

impl Control {
    /// The driver's end of what routers are told.
    pub async fn routing(&self) -> Outcome<Routing> {
        let listener = self.endpoint.listen("routers", ROUTERS).await?;
        unhindered(listener.client()).await?;
        let routing = Routing { listener, migration: self.migration.clone() };
        // Whoever waits for a hold does not wait for a plan, too.
        routing.alive().await?;
        Ok(routing)
    }

    /// The routers that were heard of lately.
    pub async fn routers(&self) -> Outcome<Vec<RouterReport>> {
        let rows = self.rows(&alive(), &[&self.migration]).await?;
        rows.iter().map(report).collect()
    }
}

impl Routing {
    /// Tells all routers. Refused once a later one was told: a request that was given up may be carried out late.
    pub async fn tell(&self, told: Told) -> Outcome<()> {
        let sql = "INSERT INTO segue.route AS r (migration, revision, at, body)
             VALUES ($1, $2, clock_timestamp(), $3::text::jsonb)
             ON CONFLICT (migration) DO UPDATE SET revision = excluded.revision, at = excluded.at, body = excluded.body
              WHERE r.revision < excluded.revision RETURNING pg_notify('segue_route', migration)";
        let body = serde_json::to_string(&told.route)
            .map_err(|e| Fault::bug("SEGUE-CONTROL", format!("a route is not JSON: {e}")))?;
        let row = self.listener.client().row_if_any(sql, &[&self.migration, &told.revision, &body]).await;
        let row = row.map_err(|e| fault_of(&e).during("telling routers where to write"))?;
        row.map(drop).ok_or_else(|| superseded(&self.migration))
    }

    async fn alive(&self) -> Outcome<Vec<RouterReport>> {
        let rows = self.listener.client().rows(&alive(), &[&self.migration]).await;
        let rows = rows.map_err(|e| fault_of(&e).during("asking which routers hold"))?;
        rows.iter().map(report).collect()
    }

    /// Waits until every router that lives keeps to the route of this revision, but no longer than `patience`. Returns
    /// those that do not: the fence is for them.
    pub async fn wait_for(&self, revision: i64, patience: Duration) -> Outcome<Vec<RouterReport>> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            let mut others = self.alive().await?;
            others.retain(|router| router.revision < revision);
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if others.is_empty() || left.is_zero() {
                return Ok(others);
            }
            self.listener.wait(left).await?;
        }
    }
}

impl RouterSeat {
    /// Takes a seat in the control database at `endpoint`; `None`: no `segue run` has ever been there for this migration.
    pub async fn take(endpoint: &Endpoint, migration: &str) -> Outcome<Option<RouterSeat>> {
        let listener = endpoint.listen("router", ROUTES).await?;
        unhindered(listener.client()).await?;
        let sql = "SELECT to_regclass('segue.route') IS NOT NULL AND to_regclass('segue.router') IS NOT NULL";
        let row = listener.client().query_one(sql, &[]).await.map_err(|e| fault_of(&e))?;
        let seat =
            RouterSeat { listener, migration: migration.to_owned(), has_reads: AtomicBool::new(false) };
        Ok(row.get::<_, bool>(0).then_some(seat))
    }

    /// The route that was told last, if any was, with what is left of its hold.
    pub async fn told(&self) -> Outcome<Option<Told>> {
        let sql = "SELECT revision, body::text, (extract(epoch FROM clock_timestamp() - at) * 1000)::bigint
               FROM segue.route WHERE migration = $1";
        let row = self.listener.client().row_if_any(sql, &[&self.migration]).await;
        let Some(row) = row.map_err(|e| fault_of(&e).during("asking where to write"))? else {
            return Ok(None);
        };
        let route: Route = serde_json::from_str(row.get(1)).map_err(|e| {
            let what = format!("the route of migration {} cannot be understood: {e}", self.migration);
            Fault::operator("SEGUE-ROUTE", what, "use a router of the same version as `segue run`")
        })?;
        let age_ms = u64::try_from(row.get::<_, i64>(2)).unwrap_or(0);
        Ok(Some(Told { revision: row.get(0), route: route.aged(age_ms) }))
    }

    /// Waits until another route may have been told, but no longer than `limit`.
    pub async fn wait(&self, limit: Duration) -> Outcome<()> {
        self.listener.wait(limit).await
    }

    /// Says how things are; to be said again at least three times in [`ROUTER_TTL`]. Others that were not heard of for long
    /// are forgotten.
    pub async fn report(&self, report: &RouterReport) -> Outcome<()> {
        let sql = "WITH gone AS (DELETE FROM segue.router WHERE migration = $1 AND seen_at < clock_timestamp() - interval '1 hour')
             INSERT INTO segue.router (migration, id, revision, seen_at, body)
             VALUES ($1, $2, $3, clock_timestamp(), $4::text::jsonb)
             ON CONFLICT (migration, id) DO UPDATE SET revision = excluded.revision, seen_at = excluded.seen_at, body = excluded.body
             RETURNING pg_notify('segue_router', migration)";
        let RouterReport { id, revision, body } = report;
        let said =
            self.listener.client().rows(sql, &[&self.migration, id, revision, &body.to_string()]).await;
        said.map(drop).map_err(|e| fault_of(&e).during("reporting a router"))
    }

    /// Gets up: nobody waits for this router any longer.
    pub async fn leave(&self, id: &str) -> Outcome<()> {
        let sql = "DELETE FROM segue.router WHERE migration = $1 AND id = $2";
        let gone = self.listener.client().execute(sql, &[&self.migration, &id]).await;
        gone.map(drop).map_err(|e| fault_of(&e).during("taking a router off the list"))
    }
}

/// Has a session wait for no disk, and for no plan twice.
async fn unhindered(client: &Client) -> Outcome<()> {
    let sql = format!("SET synchronous_commit = off; {PLANNED_ONCE}");
    client.batch_execute(&sql).await.map_err(|e| fault_of(&e))
}

/// Routers that were heard of within [`ROUTER_TTL`].
fn alive() -> String {
    format!(
        "SELECT id, revision, body::text FROM segue.router
          WHERE migration = $1 AND seen_at > clock_timestamp() - interval '{} s' ORDER BY id",
        ROUTER_TTL.as_secs()
    )
}

fn report(row: &tokio_postgres::Row) -> Outcome<RouterReport> {
    Ok(RouterReport { id: row.get(0), revision: row.get(1), body: json(row.get(2))? })
}
