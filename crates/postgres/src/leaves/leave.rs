//! Taking a leaf that is gone out of the stream, at one place of it.
//!
//! One transaction on the source: writers of the leaf, and of every leaf that could hold rows of its range now, are shut
//! out; the publication loses the leaf; and a signal says which rows go on the target. Whatever was written before is in
//! the stream before the signal, whatever is written later comes after it.

use crate::birth::{StreamIdentity, enter};
use crate::connect::Endpoint;
use crate::copy::{Side, key_names};
use crate::error::fault_of;
use crate::numbered::{name_of, still_called};
use crate::stream::{Gone, Left, Note};
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::{Outcome, Part};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::table::Table;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Keys that a signal carries at most: it is one value of the log, and held in memory on its way.
const SPARED_MAX: usize = 20_000;
/// Writers of the leaves wait at most this long for each try.
const LOCK_TIMEOUT: &str = "500ms";
/// How often the locks are tried before it is said who holds them.
const TRIES: u32 = 6;
/// Between tries, for those who waited.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(300);

/// The statement that emits a signal, for use within a transaction under the token.
pub(crate) fn signal_sql(migration: &str, note: Option<&str>) -> String {
    let note = note.map_or_else(|| "NULL".to_owned(), |note| format!("{}::jsonb", quote_literal(note)));
    format!(
        "INSERT INTO segue.signal AS s (migration, id, at, note) VALUES ({}, 1, clock_timestamp(), {note}) \
         ON CONFLICT (migration) DO UPDATE SET id = s.id + 1, at = excluded.at, note = excluded.note RETURNING id",
        quote_literal(migration)
    )
}

/// A leaf that may hold rows of another one's range.
#[derive(Clone, Debug)]
pub(super) struct Loose {
    pub(super) part: Part,
}

/// How the attempt to leave ended.
#[derive(Debug)]
pub(super) enum Leaving {
    /// With this signal.
    Signal(u64),
    /// This leaf holds more rows of the range than can be spared one by one: it must leave first, and come back.
    First(Part),
}

/// What a leave needs to know.
pub(super) struct Leave<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) stream: &'a StreamIdentity,
    pub(super) token: i64,
    pub(super) table: &'a Table,
    pub(super) part: &'a Part,
    pub(super) loose: &'a [Loose],
}

enum Refused {
    Locked(Fault),
    Fault(Fault),
}

impl From<tokio_postgres::Error> for Refused {
    fn from(error: tokio_postgres::Error) -> Refused {
        let fault = fault_of(&error);
        // A name that was right a moment ago is no more: look again.
        let passing = ["55P03", "40P01", "42P01", "42704"];
        match error.code() {
            Some(state) if passing.contains(&state.code()) => Refused::Locked(fault),
            _ => Refused::Fault(fault),
        }
    }
}

impl Leave<'_> {
    pub(super) async fn run(&self) -> Outcome<Leaving> {
        let client = self.endpoint.connect("leaves").await?;
        let mut last = None;
        for _ in 0..TRIES {
            match self.attempt(&client).await {
                Ok(leaving) => return Ok(leaving),
                Err(Refused::Fault(fault)) => return Err(self.during(fault)),
                Err(Refused::Locked(fault)) => last = Some(fault),
            }
            client.batch_execute("ROLLBACK").await.map_err(|e| fault_of(&e))?;
            tokio::time::sleep(PAUSE).await;
        }
        let relations = std::iter::once(self.part.relation).chain(self.loose.iter().map(|l| l.part.relation));
        let what = last.map_or_else(String::new, |fault| fault.what);
        Err(locked(&client, &relations.collect::<Vec<_>>(), &what).await)
    }

    fn during(&self, fault: Fault) -> Fault {
        fault.during(format_args!("taking {} out of the stream", self.part.name))
    }

    async fn attempt(&self, client: &Client) -> Result<Leaving, Refused> {
        let authority = (self.stream.migration.as_str(), self.token);
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = local; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';
             SET LOCAL idle_in_transaction_session_timeout = '10s'; {}",
            enter(authority)
        );
        client.batch_execute(&begin).await?;
        if self.has_left(client).await? {
            let gone = Gone { unit: self.part.unit, relation: self.part.relation };
            return self.emit(client, &Note::HasLeft(gone)).await.map(Leaving::Signal);
        }
        // By number: the names of the plan may be old.
        let names = self.lock(client).await?;
        let mut spared = Vec::new();
        for (loose, name) in self.loose.iter().zip(&names.loose) {
            let Some(name) = name else { continue };
            match self.rows_of_range(client, name).await? {
                Some(keys) if spared.len() + keys.len() <= SPARED_MAX => spared.extend(keys),
                Some(_) | None => return self.first(client, loose.part.clone()).await,
            }
        }
        self.unpublish(client, names.leaf.as_ref()).await?;
        self.bury(client).await?;
        self.emit(client, &Note::Left(Left::of(self.part, spared))).await.map(Leaving::Signal)
    }

    async fn first(&self, client: &Client, part: Part) -> Result<Leaving, Refused> {
        client.batch_execute("ROLLBACK").await?;
        Ok(Leaving::First(part))
    }

    async fn has_left(&self, client: &Client) -> Result<bool, Refused> {
        let sql = "SELECT EXISTS (SELECT FROM segue.unit WHERE migration = $1 AND direction = $2 AND unit = $3 AND relation_oid = $4 AND left_at IS NOT NULL)";
        let unit = i32::try_from(self.part.unit.0).unwrap_or(i32::MAX);
        let (migration, direction) = (&self.stream.migration, self.stream.direction.as_str());
        Ok(client.query_one(sql, &[migration, &direction, &unit, &self.part.relation]).await?.get(0))
    }

    async fn lock(&self, client: &Client) -> Result<Names, Refused> {
        let leaf = name_of(client, self.part.relation).await?;
        let mut loose = Vec::new();
        for other in self.loose {
            loose.push(name_of(client, other.part.relation).await?);
        }
        let relations = std::iter::once(self.part).chain(self.loose.iter().map(|loose| &loose.part));
        for (part, name) in relations.zip(std::iter::once(&leaf).chain(&loose)) {
            let Some(name) = name else { continue };
            let still = still_called(part.relation, name);
            let sql = format!("LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE; {still}", name.sql());
            client.batch_execute(&sql).await?;
        }
        Ok(Names { leaf, loose })
    }

    /// Keys of the rows of the leaf's range that another leaf holds, or `None` if they are too many or have no key.
    async fn rows_of_range(
        &self,
        client: &Client,
        name: &QualifiedName,
    ) -> Result<Option<Vec<KeyText>>, Refused> {
        // It means the same here as on the target, but for a hash that only the target's table can be asked for: beside hash partitions
        // there is no default one.
        let condition = &self.part.condition;
        let keys = key_names(self.table, Side::Source);
        let texts: Vec<String> = keys.iter().map(|key| format!("{key}::text")).collect();
        let shown = if texts.is_empty() { "''".to_owned() } else { texts.join(", ") };
        let sql =
            format!("SELECT {shown} FROM ONLY {} WHERE {condition} LIMIT {}", name.sql(), SPARED_MAX + 1);
        let rows = client.query(&sql, &[]).await?;
        if rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let key = |row: &tokio_postgres::Row| {
            KeyText::from_texts((0..texts.len()).map(|i| row.get::<_, String>(i)))
        };
        Ok((!texts.is_empty() && rows.len() <= SPARED_MAX).then(|| rows.iter().map(key).collect()))
    }

    async fn unpublish(&self, client: &Client, leaf: Option<&QualifiedName>) -> Result<(), Refused> {
        let Some(leaf) = leaf else { return Ok(()) };
        let publication = &self.stream.publication;
        let sql = "SELECT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
              WHERE p.pubname = $1 AND r.prrelid = $2)";
        if client.query_one(sql, &[publication, &self.part.relation]).await?.get(0) {
            let sql =
                format!("ALTER PUBLICATION {} DROP TABLE ONLY {}", quote_ident(publication), leaf.sql());
            client.batch_execute(&sql).await?;
        }
        Ok(())
    }

    /// Remembers, in the transaction itself, that the leaf has left: it must not be said twice, since by then its range
    /// may belong to another leaf.
    async fn bury(&self, client: &Client) -> Result<(), Refused> {
        let Part { unit, table, relation, name, condition } = self.part;
        let sql = format!(
            "INSERT INTO segue.unit (migration, direction, unit, table_id, relation_oid, schema, name, condition, left_at)
             VALUES ({}, {}, {}, {}, {relation}, {}, {}, {}, clock_timestamp())
             ON CONFLICT (migration, direction, unit, relation_oid) DO UPDATE SET left_at = excluded.left_at",
            quote_literal(&self.stream.migration),
            quote_literal(self.stream.direction.as_str()),
            unit.0,
            table.0,
            quote_literal(&name.schema),
            quote_literal(&name.name),
            quote_literal(condition)
        );
        Ok(client.batch_execute(&sql).await?)
    }

    /// Emits the signal and commits.
    async fn emit(&self, client: &Client, note: &Note) -> Result<u64, Refused> {
        let note = serde_json::to_string(note).map_err(|e| {
            Refused::Fault(Fault::bug("SEGUE-SIGNAL", format!("a note cannot be written: {e}")))
        })?;
        let answers = client.simple_query(&signal_sql(&self.stream.migration, Some(&note))).await?;
        let id = answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0).and_then(|id| id.parse().ok()),
            _ => None,
        });
        let id = id.ok_or_else(|| {
            Refused::Fault(Fault::bug("SEGUE-SIGNAL", "a signal was emitted without a number"))
        })?;
        client.batch_execute("COMMIT").await.map_err(|e| {
            let fault = fault_of(&e);
            Refused::Fault(match fault.recovery {
                Recovery::Retry => Fault::ambiguous("SEGUE-COMMIT-UNKNOWN", fault.what),
                Recovery::Operator | Recovery::Ambiguous | Recovery::Bug => fault,
            })
        })?;
        Ok(id)
    }
}

struct Names {
    leaf: Option<QualifiedName>,
    loose: Vec<Option<QualifiedName>>,
}

/// A lock that could not be had, and who holds it.
pub(super) async fn locked(client: &Client, relations: &[u32], what: &str) -> Fault {
    let sql = "SELECT string_agg(DISTINCT format('pid %s (%s, ''%s'', %s)', a.pid, a.usename, a.application_name, a.state),
                 ', ')
          FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.relation = ANY($1) AND l.granted AND l.pid <> pg_backend_pid()
           AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')";
    let holders = client.query_one(sql, &[&relations]).await;
    let holders: Option<String> = holders.ok().and_then(|row| row.get(0));
    let holders = holders.unwrap_or_else(|| "nobody any more".to_owned());
    Fault::retry("SEGUE-LOCKED", format!("waits for a lock that is held by {holders} ({what})"))
}
