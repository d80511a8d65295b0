//! Looks at one side: a session that is kept open, opened again when it was lost, and given up when it does not answer.

use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::switch::Side;
use segue_model::switch::environment::Activity;
use segue_model::switch::gates::{Difference, Replica};
use segue_postgres::asking::Remembering;
use segue_postgres::catalog::{self, columns::ColumnForms};
use segue_postgres::connect::Endpoint;
use segue_postgres::fence;
use segue_postgres::health::{self, StatefulSession};
use segue_postgres::target_schema::{self, Finding};
use std::collections::BTreeMap;
use std::time::Duration;

/// No single question may take longer on the server …
const QUESTION_MAX: Duration = Duration::from_secs(2);
/// … and no look, connecting included, keeps the driver for longer.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// A vacuum against wraparound that is due within so many transactions may come at any moment.
const WRAPAROUND_TRANSACTIONS: i64 = 100_000;

/// What the side tells that owns the writes.
#[derive(Debug, Default)]
pub(super) struct OldSide {
    /// Who is in the fence's way: for how long, and in words.
    pub(super) transactions: Option<Vec<(Duration, String)>>,
    /// Who holds what cannot move.
    pub(super) sessions_with_state: Option<Vec<StatefulSession>>,
    /// Tables on which such a vacuum runs or is due; `None` before the fence was made, by which tables are found.
    pub(super) wraparound_vacuums: Option<Vec<String>>,
    /// The application's sessions.
    pub(super) application_sessions: u64,
}

/// Columns by table, and troubles.
pub(super) struct SlowLook {
    /// The columns of its tables.
    pub(super) columns: BTreeMap<QualifiedName, ColumnForms>,
    /// Troubles of the server.
    pub(super) trouble: Vec<String>,
    /// What writes past its fence.
    pub(super) past_fence: Vec<String>,
}

/// A side that is looked at.
pub(super) struct Watch {
    endpoint: Endpoint,
    client: Option<Remembering>,
}

impl Watch {
    pub(super) fn of(endpoint: Endpoint) -> Watch {
        Watch { endpoint, client: None }
    }

    /// Takes the session, or opens one. It is given back by [`Watch::bounded`] after a look that came to its end.
    async fn session(&mut self) -> Outcome<Remembering> {
        match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => Ok(client),
            None => health::session(&self.endpoint, QUESTION_MAX).await,
        }
    }

    /// One look, within its time. After one that failed nobody knows what the session is doing.
    async fn bounded<T>(&mut self, look: impl AsyncFnOnce(&mut Remembering) -> Outcome<T>) -> Outcome<T> {
        let work = async {
            let mut client = self.session().await?;
            let found = look(&mut client).await?;
            Ok((client, found))
        };
        let (client, found) = tokio::time::timeout(LOOK_MAX, work).await.map_err(|_| late())??;
        self.client = Some(client);
        Ok(found)
    }

    /// Looks at the side that owns the writes.
    pub(super) async fn old_side(&mut self, migration: &str, tables: &[QualifiedName]) -> Outcome<OldSide> {
        self.bounded(async |client| {
            let transactions = health::transactions(client, tables).await?;
            let transactions = transactions.iter().map(|t| (t.age.unwrap_or(Duration::MAX), t.to_string()));
            Ok(OldSide {
                transactions: Some(transactions.collect()),
                sessions_with_state: Some(health::sessions_with_state(client).await?),
                wraparound_vacuums: wraparound_vacuums(client, migration).await?,
                application_sessions: health::application_sessions(client).await?,
            })
        })
        .await
    }

    /// Looks at the side that will own them: its replicas, and how many sessions it has room for.
    pub(super) async fn new_side(&mut self) -> Outcome<(Vec<Replica>, u64)> {
        self.bounded(async |client| {
            let replicas = health::replicas(client).await?;
            let replicas = replicas.into_iter().map(|r| Replica { name: r.name, lag_ms: r.lag_ms });
            Ok((replicas.collect(), health::free_connections(client).await?))
        })
        .await
    }

    /// What its database has done so far.
    pub(super) async fn activity(&mut self) -> Outcome<Activity> {
        self.bounded(async |client| health::activity(client).await).await
    }

    /// Looks at what changes rarely.
    pub(super) async fn slowly(&mut self, migration: &str, tables: &[QualifiedName]) -> Outcome<SlowLook> {
        self.bounded(async |client| {
            let columns = catalog::columns::columns(client, tables).await?;
            let mut trouble = health::old_trouble(client).await?;
            trouble.extend(fence::bare(client, migration, tables).await?);
            let past_fence = fence::bypasses(client, migration).await?;
            Ok(SlowLook { columns, trouble, past_fence })
        })
        .await
    }
}

async fn wraparound_vacuums(client: &Remembering, migration: &str) -> Outcome<Option<Vec<String>>> {
    if !health::is_fence_made(client, migration).await? {
        return Ok(None);
    }
    let running = fence::autovacuum::running(client, migration).await?;
    let mut found: Vec<String> =
        running.into_iter().filter(|one| one.against_wraparound).map(|one| one.by.to_string()).collect();
    let due = fence::autovacuum::due_against_wraparound(client, migration, WRAPAROUND_TRANSACTIONS).await?;
    found.extend(due.into_iter().map(|table| format!("due on {table}")));
    Ok(Some(found))
}

/// Why the tables could not be planned now, from where their rows are to where they go.
pub(super) async fn refusals(
    (source, target): (&mut Watch, &mut Watch),
    pairs: &[(QualifiedName, QualifiedName)],
    owner: Side,
) -> Outcome<Vec<String>> {
    let catalog = source
        .bounded(async |from| {
            target
                .bounded(async |to| match owner {
                    Side::Source => catalog::read(from, to, pairs).await,
                    Side::Target => catalog::read_reverse(from, to, pairs).await,
                })
                .await
        })
        .await?;
    Ok(catalog.refusals.into_iter().map(|fault| fault.what).collect())
}

/// What the target's tables have not of what the source's have.
pub(super) async fn parity(
    (source, target): (&mut Watch, &mut Watch),
    pairs: &[(QualifiedName, QualifiedName)],
) -> Outcome<Vec<Difference>> {
    let found = source
        .bounded(async |from| target.bounded(async |to| target_schema::parity(from, to, pairs).await).await)
        .await?;
    Ok(found.iter().map(difference).collect())
}

fn difference(finding: &Finding) -> Difference {
    Difference {
        what: finding.words(),
        remedy: format!("on the {}: {};", finding.side, finding.remedy.join("; ")),
        of_rows: finding.is_of_rows(),
    }
}

fn late() -> Fault {
    Fault::retry("SEGUE-LATE", format!("no answer within {} s", LOOK_MAX.as_secs()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "in a test a panic is a failed test")]

    use super::*;
    use segue_testkit::proxy::Proxy;
    use segue_testkit::{Cluster, Options};

    #[tokio::test]
    async fn a_side_that_hangs_keeps_a_look_for_its_time_only_and_the_next_has_a_session_of_its_own() {
        let cluster = Cluster::start(Options::default()).await;
        let proxy = Proxy::start(cluster.port()).await;
        let endpoint = Endpoint::parse(&cluster.url_through(proxy.port(), "postgres")).expect("a URL");
        let mut watch = Watch::of(endpoint);
        watch.activity().await.expect("it answers");
        proxy.freeze();
        let began = std::time::Instant::now();
        let late = watch.activity().await.expect_err("nothing passes");
        assert_eq!(late.code, "SEGUE-LATE");
        assert!(began.elapsed() < 2 * LOOK_MAX, "{:?}", began.elapsed());
        proxy.thaw();
        watch.activity().await.expect("it answers again");
        assert_eq!(proxy.accepted(), 2);
    }
}
