//! Who drives the migration: a lease judged by the database's clock, kept by a heartbeat in a row of its own.
//!
//! The lease decides who *should* work; that nobody else *can* is the token's business ([`super::shut_out`]), which
//! is why a lease may expire while its holder is only slow.
//!
//! A holder that dies should not be waited for. Each process that may drive therefore holds a session-level advisory
//! lock of its own, on the session on which its heart beats, and the lease names that lock's key. The server releases
//! it when the process is gone. A lease whose lock is free is free, except shortly after a start of the server, which
//! ended everybody's sessions. A live holder that only lost its session takes the lock again with its next request.

use super::{Control, superseded};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use std::time::Duration;
use tokio_postgres::{Row, Transaction};

/// Without a heartbeat for this long, a lease can be taken over.
pub const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often the holder calls [`Control::beat`]: four may be lost.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// The right to drive the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The fencing token: to be raised in every database ([`super::shut_out`]) before anything is read.
    pub token: i64,
}

/// Who drives the migration, or did last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// As it named itself: host and process.
    pub holder: String,
    /// Its token.
    pub token: i64,
    /// How long it has held the lease.
    pub held_ms: i64,
    /// How long ago its last heartbeat was.
    pub beat_ms_ago: i64,
    /// It gave the lease back.
    pub released: bool,
}

impl Driver {
    /// Whether it holds the lease and its heart beats.
    pub fn is_alive(&self) -> bool {
        !self.released && u128::try_from(self.beat_ms_ago).unwrap_or(0) < LEASE_TTL.as_millis()
    }
}

/// What asking for the lease came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours.
    Lease(Lease),
    /// Another process holds it: stand by, and ask again.
    Standby(Driver),
}

const DRIVER: &str = "SELECT l.holder, l.token, l.alive_key, l.released_at IS NOT NULL AS released,
        (extract(epoch FROM clock_timestamp() - l.taken_at) * 1000)::bigint AS held_ms,
        (extract(epoch FROM clock_timestamp() - coalesce(h.beat_at, l.taken_at)) * 1000)::bigint AS beat_ms_ago
   FROM segue.lease l LEFT JOIN segue.heartbeat h ON h.migration = l.migration AND h.token = l.token
  WHERE l.migration = $1";

fn driver(row: &Row) -> Driver {
    Driver {
        holder: row.get("holder"),
        token: row.get("token"),
        held_ms: row.get("held_ms"),
        beat_ms_ago: row.get("beat_ms_ago"),
        released: row.get("released"),
    }
}

/// Whether the holder with this key has no session any more. Asked under the lock of the lease.
async fn is_gone(
    transaction: &Transaction<'_>,
    alive_key: Option<i64>,
) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT clock_timestamp() - pg_postmaster_start_time() > $2::bigint * interval '1 millisecond'
                  AND pg_try_advisory_xact_lock($1)";
    let ttl_ms = i64::try_from(LEASE_TTL.as_millis()).unwrap_or(i64::MAX);
    match alive_key {
        Some(key) => Ok(transaction.query_one(sql, &[&key, &ttl_ms]).await?.get(0)),
        None => Ok(false),
    }
}

impl Control {
    /// Takes the lease if nobody holds it, or its holder is gone or its heart has stopped. `holder` is for people: host and process.
    ///
    /// The token grows with every take-over, and follows the clock in milliseconds, so that it grows also when the rows were
    /// removed: no more than one a millisecond is ever taken.
    pub async fn acquire(&self, holder: &str) -> Outcome<Acquired> {
        // A session of its own: a take-over that was cut short must not leave a transaction open in the shared one.
        let mut client = self.endpoint.connect("lease").await?;
        let failed = |e| self.failed(&e);
        let transaction = client.transaction().await.map_err(failed)?;
        // A taker that is stopped or cut off in here must not keep all others out.
        let bound = format!("SET LOCAL idle_in_transaction_session_timeout = {}", LEASE_TTL.as_millis());
        transaction.batch_execute(&bound).await.map_err(failed)?;
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended('segue:lease:' || $1, 0))";
        transaction.execute(lock, &[&self.migration]).await.map_err(failed)?;
        let found = transaction.query_opt(DRIVER, &[&self.migration]).await.map_err(failed)?;
        if let Some(row) = &found
            && driver(row).is_alive()
            && !is_gone(&transaction, row.get("alive_key")).await.map_err(failed)?
        {
            return Ok(Acquired::Standby(driver(row)));
        }
        let take = "INSERT INTO segue.lease AS l (migration, holder, token, taken_at, alive_key)
             VALUES ($1, $2, greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint,
                         1 + coalesce((SELECT t.token FROM segue.token t WHERE t.migration = $1), 0)), clock_timestamp(), $3)
             ON CONFLICT (migration) DO UPDATE SET holder = excluded.holder, taken_at = excluded.taken_at,
                 released_at = NULL, token = greatest(l.token + 1, excluded.token), alive_key = excluded.alive_key
             RETURNING token";
        let taken = transaction.query_one(take, &[&self.migration, &holder, &self.alive_key]).await;
        let row = taken.map_err(failed)?;
        let token: i64 = row.get(0);
        let beat = "INSERT INTO segue.heartbeat VALUES ($1, $2, clock_timestamp())
             ON CONFLICT (migration) DO UPDATE SET token = excluded.token, beat_at = excluded.beat_at";
        transaction.execute(beat, &[&self.migration, &token]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        self.endpoint.keep(client);
        Ok(Acquired::Lease(Lease { token }))
    }

    /// A new, higher token for a holder that starts over, so that what is still on its way under the old one is shut
    /// out. Fails for good once the lease was taken over.
    ///
    /// An earlier try whose answer was lost does no harm: the lease is found by the process's own key. The token follows
    /// the clock, so that it grows also when the control database was restored to an older state.
    pub async fn renew(&self) -> Outcome<Lease> {
        let sql = "WITH mine AS (UPDATE segue.lease SET taken_at = clock_timestamp(),
                     token = greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint, token + 1)
                 WHERE migration = $1 AND alive_key = $2 AND released_at IS NULL RETURNING token),
             beat AS (UPDATE segue.heartbeat h SET token = mine.token, beat_at = clock_timestamp()
                 FROM mine WHERE h.migration = $1)
             SELECT token FROM mine";
        let row = self.row(sql, &[&self.migration, &self.alive_key]).await?;
        row.map(|row| Lease { token: row.get(0) }).ok_or_else(|| superseded(&self.migration))
    }

    /// Shows that the holder lives. Fails for good once the lease was taken over.
    pub async fn beat(&self, lease: &Lease) -> Outcome<()> {
        let sql = "UPDATE segue.heartbeat SET beat_at = clock_timestamp() WHERE migration = $1 AND token = $2
             RETURNING token";
        let row = self.row(sql, &[&self.migration, &lease.token]).await?;
        row.map(drop).ok_or_else(|| superseded(&self.migration))
    }

    /// Gives the lease back, so that the next process need not wait. Harmless if it was taken over.
    pub async fn release(&self, lease: &Lease) -> Outcome<()> {
        let sql = "UPDATE segue.lease SET released_at = clock_timestamp() WHERE migration = $1 AND token = $2
             RETURNING token";
        self.row(sql, &[&self.migration, &lease.token]).await.map(drop)
    }

    /// Gives back whatever lease this process holds.
    pub async fn hand_back(&self) -> Outcome<()> {
        let sql =
            "UPDATE segue.lease SET released_at = clock_timestamp() WHERE migration = $1 AND alive_key = $2
             RETURNING token";
        self.row(sql, &[&self.migration, &self.alive_key]).await.map(drop)
    }

    /// Who drives the migration, or did last; `None`: nobody ever.
    pub async fn driver(&self) -> Outcome<Option<Driver>> {
        Ok(self.row(DRIVER, &[&self.migration]).await?.as_ref().map(driver))
    }

    /// The living driver, or a fault that says when it was last alive and how to start one.
    pub async fn live_driver(&self) -> Outcome<Driver> {
        let found = self.driver().await?;
        let what = match &found {
            Some(driver) if driver.is_alive() => return Ok(driver.clone()),
            None => format!("nobody drives migration {}, and nothing is known of it here", self.migration),
            Some(driver) if driver.released => format!(
                "nobody drives migration {}: {} ended {} s ago",
                self.migration,
                driver.holder,
                driver.beat_ms_ago / 1000
            ),
            Some(driver) => format!(
                "nobody drives migration {}: {} was last alive {} s ago",
                self.migration,
                driver.holder,
                driver.beat_ms_ago / 1000
            ),
        };
        Err(Fault::operator(
            "SEGUE-NO-DRIVER",
            what,
            "start it with `segue run`, on any machine that reaches the databases",
        ))
    }
}
