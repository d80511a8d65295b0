//! The database's side of a switch: who owns the writes, and the fence that keeps everybody else's out.
//!
//! *Ownership* is a row in each of the two databases ([`Row`]); what may become of it, and why, is
//! [`segue_model::switch::ownership`]'s, and the calls here do the same to what is stored. The *fence* is one statement trigger on every table
//! of the migration, roots and leaves, made long before ([`prepare`]) and at rest while the side owns the writes. It is
//! catalog state, so that no snapshot is too old to see it, and it holds its deadline as a literal: past it, the first
//! late writer takes the tables back, whoever is dead or stopped by then. See [`sql`] for the text and the order of locks.
//!
//! [`Side`] has one call for each change of ownership. Each is one transaction in one message: token, locks, comparison,
//! change. Each compares state, epoch and attempt, can be repeated, and answers with a value ([`Answer`]); a
//! [`Fault`] means that nothing was changed, unless it is [`Recovery::Ambiguous`](segue_engine::fault::Recovery).
//!
//! This module decides nothing: when to fence, flip or give up, and that a marker was applied, is its caller's business.
//!
//! What the fence cannot see: sessions under the replica role, which Segue's own streams are, and other subscriptions'
//! too ([`bypasses`]); sequences (see [`crate::sequences`]); and tables attached after [`prepare`], which the fence refuses
//! to go without.
//!
//! # Rights
//!
//! * [`prepare`], [`Side::fence`] and all that turns triggers on or off: ownership of every table (`ALTER TABLE`), or
//!   membership in the role that owns them, and CREATE on the schema `segue`;
//! * [`autovacuum`]: ownership of every table;
//! * [`Side::flip`]: the schema `segue` alone;
//! * names and statements of blockers, and where standbys are: `pg_read_all_stats`, without it only process numbers;
//! * applications need nothing: a trigger's function runs with the rights of its owner.

pub mod autovacuum;
mod blockers;
mod ownership;
mod prepare;
mod sql;
mod standbys;

pub use blockers::blockers;
pub use ownership::{Answer, Row, row};
pub(crate) use prepare::removal;
pub use prepare::{Removed, Role, bare, bypasses, prepare, remove, retire, tree};
pub(crate) use sql::DDL;

use crate::asking::{PLANNED_ONCE, Remembering};
use crate::birth::{Blocker, Direction, enter};
use crate::connect::{Endpoint, Warnings};
use crate::error::fault_of;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::sqltext::quote_literal;
use segue_model::switch::ownership::{Attempt, Epoch, FenceId};
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

/// How often it is looked who holds the locks that a call waits for.
const LOOK: Duration = Duration::from_millis(50);
/// Lifting a fence and opening wait for locks no longer than this: writers wait meanwhile, and it goes without, too.
const OPEN_LOCK_MS: u32 = 100;
/// Tables whose fences could not be put to rest at once are tried one by one, each this often …
const REST_TRIES: u32 = 20;
/// … for so long, in which its writers wait behind us, …
const REST_LOCK_MS: u32 = 50;
/// … with a pause for them in between.
const REST_PAUSE: Duration = Duration::from_millis(100);
/// How long a session may take to get ready: nobody waits for it.
const READY_MAX: Duration = Duration::from_secs(5);
/// What a database says in which nothing was ever prepared for a fence.
const NO_FENCES: [SqlState; 2] = [SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_FUNCTION];

/// Times that one switch may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the fence to its deadline, past which a late writer takes the tables back.
    pub hold: Duration,
    /// For all table locks of one call together: writers that come meanwhile wait. Never longer than the server's
    /// `deadlock_timeout` allows.
    pub lock: Duration,
    /// How long before the deadline a flip is too late.
    pub margin: Duration,
    /// Past this, the answer to a call is not waited for any longer, and its outcome is unknown.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            hold: Duration::from_secs(2),
            lock: Duration::from_millis(400),
            margin: Duration::from_millis(200),
            answer: Duration::from_secs(10),
        }
    }
}

/// What the stream that leads to the new owner has applied there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The highest signal.
    pub signal: u64,
    /// The checkpoint that was committed with it, or a later one.
    pub position: Position,
}

/// One side of a migration, with the sessions that change its ownership under one token.
///
/// After an ambiguous fault it is of no use: take a new token, and open another.
pub struct Side {
    client: Client,
    warnings: Warnings,
    /// Of `client`, on the server.
    pid: i32,
    watcher: Remembering,
    migration: String,
    token: i64,
    tables: Vec<QualifiedName>,
    limits: Limits,
}

impl Side {
    /// Opens the sessions. `tables` are the roots that must be fenced, by their names on this side.
    pub async fn open_sessions(
        endpoint: &Endpoint,
        (migration, token): (&str, i64),
        tables: Vec<QualifiedName>,
        limits: Limits,
    ) -> Outcome<Side> {
        let ((client, warnings), watcher) =
            tokio::try_join!(endpoint.connect_heard("fence"), Remembering::connect(endpoint, "fence watch"))?;
        // A host that is gone is noticed within the hold, and a process that was stopped between two statements holds
        // nothing for longer than half of it.
        let settings = format!(
            "SET tcp_user_timeout = {hold}; SET idle_in_transaction_session_timeout = {}; SET statement_timeout = {hold}; {PLANNED_ONCE}",
            millis(limits.hold / 2).max(1),
            hold = millis(limits.hold).max(1),
        );
        client.batch_execute(&settings).await.map_err(|e| fault_of(&e))?;
        watcher.batch_execute(PLANNED_ONCE).await.map_err(|e| fault_of(&e))?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(|e| fault_of(&e))?.get(0);
        Ok(Side { client, warnings, pid, watcher, migration: migration.to_owned(), token, tables, limits })
    }

    /// The ownership row as it is now; `None` without one.
    pub async fn row(&self) -> Outcome<Option<Row>> {
        // One round trip, since it is asked between all steps while writers wait.
        match self.watcher.simple_query(&format!("SELECT segue.ownership({})", self.name())).await {
            Ok(messages) => ownership::read(&messages),
            Err(error) if error.code().is_some_and(|code| NO_FENCES.contains(code)) => Ok(None),
            Err(error) => Err(fault_of(&error)),
        }
    }

    /// Who holds the locks that a fence, or the rest of one, would wait for now.
    pub async fn blockers(&self) -> Outcome<Vec<Blocker>> {
        blockers(&self.watcher, &self.migration, self.pid).await
    }

    /// Shuts out writers: the owner, or a fence of its, with `last` as its epoch and its last fence becomes fenced by
    /// `attempt`, with a marker in the stream. One try; [`Answer::Blocked`] changed nothing.
    pub async fn fence(&self, last: FenceId, attempt: Attempt) -> Outcome<Answer> {
        self.fence_within(last, attempt, self.limits.lock).await
    }

    /// Has the session read and plan what [`Side::fence`] and [`Side::open`] look at, while everybody writes. Locks and
    /// changes nothing; a table that is to be fenced and cannot be yet is a fault, as there. May be left undone.
    pub async fn get_ready(&self) -> Outcome<()> {
        let ready = format!("SELECT segue.get_ready({}, {})", self.name(), self.roots());
        let sql = format!(
            "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; {ready}",
            self.lock_ms(),
            millis(READY_MAX)
        );
        self.transaction("getting ready", &sql).await.map(drop)
    }

    /// As [`Side::fence`], with another time for all locks together. A writer that holds one table's lock and waits for
    /// another's that is ours keeps us waiting until that time is up, with everybody behind: several short tries get
    /// past it, one long try does not.
    pub async fn fence_within(&self, last: FenceId, attempt: Attempt, lock: Duration) -> Outcome<Answer> {
        let lock_ms = u32::try_from(millis(lock)).unwrap_or(u32::MAX).min(self.lock_ms()).max(1);
        let call = format!(
            "segue.fence({}, {}, {}, {}, {attempt}, {}, {})",
            self.name(),
            self.roots(),
            last.epoch,
            last.attempt,
            millis(self.limits.hold),
            lock_ms,
        );
        self.call("fencing", &call).await
    }

    /// Lifts the fence, and the side is the owner again. Never fails for a lock: where one cannot be had, the triggers
    /// stay enabled and let everybody pass, until [`Side::rest`].
    pub async fn unfence(&self, FenceId { epoch, attempt }: FenceId) -> Outcome<Answer> {
        let call = |lock_ms| {
            format!("segue.unfence({}, {}, {epoch}, {attempt}, {lock_ms})", self.name(), self.roots())
        };
        self.with_or_without_locks("lifting the fence", call).await
    }

    /// The point of no return, on the old owner: under this very fence it hands over, unless the fence's deadline is
    /// nearer than the margin, or a table was attached since the fence. See [`Side::is_durable`] for what to ask next.
    pub async fn flip(&self, FenceId { epoch, attempt }: FenceId) -> Outcome<Answer> {
        let margin = millis(self.limits.margin);
        let call = format!("segue.flip({}, {}, {epoch}, {attempt}, {margin})", self.name(), self.roots());
        self.call("handing the writes over", &call).await
    }

    /// Whether all that was committed here before is on the standbys that must have it: commits once more, and hears
    /// whether the server gave up waiting for them. Needed after a flip that was inherited, or whose own wait was cut
    /// short ([`Side::was_warned`]).
    pub async fn is_durable(&self) -> Outcome<bool> {
        let before = self.warnings.heard();
        let sql = format!(
            "UPDATE segue.owner SET changed_at = clock_timestamp() WHERE migration = {} RETURNING 'true'",
            self.name()
        );
        // Without a row nothing is written, and a commit that writes nothing waits for nobody.
        let wrote = self.transaction("committing once more", &sql).await?.as_deref() == Some("true");
        Ok(wrote && self.warnings.heard() == before)
    }

    /// Whether a commit of these sessions came back without the standbys that it should have waited for.
    pub fn was_warned(&self) -> bool {
        self.warnings.heard() > 0
    }

    /// Makes this side the owner of the epoch after the one that the other side has handed over under `fence`, if its row
    /// is below that and the fence's marker has been `applied` here: the checkpoint of the stream in `direction` is
    /// compared in the same transaction, which a server that was restored fails. Attempts are counted on from the fence's.
    /// Never fails for a lock, as [`Side::unfence`].
    pub async fn open(
        &self,
        fence: FenceId,
        marker: u64,
        direction: Direction,
        applied: Applied,
    ) -> Outcome<Answer> {
        if applied.signal < marker {
            let why =
                format!("signal {} was applied here, and the fence's marker is {marker}", applied.signal);
            return Ok(Answer::Refused { found: self.row().await?, why });
        }
        let call = |lock_ms| {
            format!(
                "segue.open({}, {}, {}, {}, {}::pg_lsn, {lock_ms})",
                self.name(),
                fence.epoch,
                fence.attempt,
                quote_literal(direction.as_str()),
                quote_literal(&applied.position.to_string()),
            )
        };
        self.with_or_without_locks("opening the new owner", call).await
    }

    /// Closes a side that does not own the writes, without a deadline, as the follower of the owner of epoch `successor`:
    /// one that has handed over before that, or that follows already. Also closes what was attached since.
    pub async fn become_follower(&self, successor: Epoch) -> Outcome<Answer> {
        let call = format!(
            "segue.become_follower({}, {successor}, {}, {})",
            self.name(),
            self.roots(),
            self.lock_ms()
        );
        self.call("fencing the follower", &call).await
    }

    /// Whether some table's trigger is enabled here.
    pub async fn is_awake(&self) -> Outcome<bool> {
        let sql = "SELECT EXISTS (SELECT FROM segue.fence_carriers($1) c WHERE c.enabled <> 'D')";
        let row = self.watcher.query_one(sql, &[&self.migration]).await;
        Ok(row.map_err(|e| fault_of(&e))?.get(0))
    }

    /// Puts the fence of an owner to rest, table by table, where it is not yet; `fence` is its epoch and its last fence.
    /// Returns the tables that it could not lock: there, each write still looks at the ownership row.
    pub async fn rest(&self, FenceId { epoch, attempt }: FenceId) -> Outcome<Vec<QualifiedName>> {
        let sql = "SELECT c.relation, n.nspname, k.relname FROM segue.fence_carriers($1) c
              JOIN pg_class k ON k.oid = c.relation JOIN pg_namespace n ON n.oid = k.relnamespace WHERE c.enabled <> 'D'";
        let rows = self.watcher.query(sql, &[&self.migration]).await.map_err(|e| fault_of(&e))?;
        let mut awake = Vec::new();
        for row in &rows {
            let call =
                format!("SELECT segue.rest({}, {}, {epoch}, {attempt})", self.name(), row.get::<_, u32>(0));
            let sql = format!("SET LOCAL lock_timeout = {REST_LOCK_MS}; {call}");
            let mut tries = 0;
            loop {
                match self.transaction("putting the fence to rest", &sql).await {
                    Ok(_) => break,
                    Err(fault) if fault.code == "SEGUE-LOCKED" && tries < REST_TRIES => {
                        tries += 1;
                        tokio::time::sleep(REST_PAUSE).await;
                    }
                    Err(fault) if fault.code == "SEGUE-LOCKED" => {
                        awake.push(QualifiedName::new(row.get::<_, &str>(1), row.get::<_, &str>(2)));
                        break;
                    }
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(awake)
    }

    /// First with the tables' locks, so that the triggers are at rest when writers come; then without, since writers
    /// must not wait for whoever holds one.
    async fn with_or_without_locks(&self, step: &str, call: impl Fn(u32) -> String) -> Outcome<Answer> {
        match self.call(step, &call(self.lock_ms().min(OPEN_LOCK_MS))).await? {
            Answer::Blocked { .. } => self.call(step, &call(0)).await,
            answer @ (Answer::Done(_) | Answer::AlreadyDone(_) | Answer::Refused { .. }) => Ok(answer),
        }
    }

    /// Makes one call, and looks meanwhile who is in its way.
    async fn call(&self, step: &str, call: &str) -> Outcome<Answer> {
        let sql = format!("SET LOCAL lock_timeout = {}; SELECT {call}", self.lock_ms());
        let work = self.transaction(step, &sql);
        let mut work = std::pin::pin!(work);
        let mut seen = Vec::new();
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = tokio::time::sleep(LOOK) => {}
            }
            tokio::select! {
                done = &mut work => break done,
                found = self.blockers() => {
                    let found = found.unwrap_or_default();
                    seen = if found.is_empty() { seen } else { found };
                }
            }
        };
        match done {
            Ok(Some(text)) => Answer::parse(&text),
            Ok(None) => Err(Fault::bug("SEGUE-FENCE", format!("{step}: no answer"))),
            Err(fault) if fault.code == "SEGUE-LOCKED" => Ok(Answer::Blocked { by: seen, what: fault.what }),
            Err(fault) => Err(fault),
        }
    }

    /// One message: the whole transaction happens, or none of it. Returns the last value that came.
    async fn transaction(&self, step: &str, sql: &str) -> Outcome<Option<String>> {
        let enter = enter((&self.migration, self.token));
        let sql = format!("BEGIN ISOLATION LEVEL READ COMMITTED; {enter}; {sql}; COMMIT");
        let done = tokio::time::timeout(self.limits.answer, self.client.simple_query(&sql)).await;
        let unknown = |what: String| Fault::ambiguous("SEGUE-FENCE-UNKNOWN", format!("{step}: {what}"));
        let messages = match done {
            Err(_) => return Err(unknown(format!("no answer within {} ms", millis(self.limits.answer)))),
            Ok(Err(error)) => {
                if is_lost(&error) {
                    return Err(unknown(fault_of(&error).what));
                }
                // It answered, so the transaction has failed, and can only be given up.
                self.client.batch_execute("ROLLBACK").await.map_err(|e| unknown(fault_of(&e).what))?;
                return Err(refusal(step, &error));
            }
            Ok(Ok(messages)) => messages,
        };
        let last = messages.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        });
        Ok(last.flatten())
    }

    fn name(&self) -> String {
        quote_literal(&self.migration)
    }

    fn roots(&self) -> String {
        let names: Vec<String> = self.tables.iter().map(|table| quote_literal(&table.sql())).collect();
        format!("ARRAY[{}]::text[]", names.join(", "))
    }

    fn lock_ms(&self) -> u32 {
        u32::try_from(millis(self.limits.lock)).unwrap_or(u32::MAX).clamp(1, i32::MAX as u32)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The session ended before, or while, the transaction did: it may have committed.
fn is_lost(error: &Error) -> bool {
    let fatal = |db: &tokio_postgres::error::DbError| {
        use tokio_postgres::error::Severity;
        matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
    };
    error.as_db_error().is_none_or(fatal)
}

fn refusal(step: &str, error: &Error) -> Fault {
    let fault = fault_of(error).during(step);
    let passing = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::T_R_DEADLOCK_DETECTED,
        // The time for the statement, which is longer than the one for its locks.
        SqlState::QUERY_CANCELED,
        // A table was dropped while its lock was waited for.
        SqlState::UNDEFINED_TABLE,
    ];
    if error.code().is_some_and(|code| passing.contains(code)) {
        return Fault { recovery: Recovery::Retry, code: "SEGUE-LOCKED", ..fault };
    }
    if error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) {
        return Fault { recovery: Recovery::Operator, code: "SEGUE-NOT-FENCED", ..fault };
    }
    fault
}
