//! The source side of a PostgreSQL migration: sessions and statements behind the engine's [`Source`] port.

use crate::birth::StreamIdentity;
use crate::connect::Endpoint;
use crate::copy::{PgReader, places};
use crate::error::fault_of;
use crate::leaves::{self, Book, Known};
use crate::stream::{Opening, PgStream, StreamSource};
use segue_engine::fault::Fault;
use segue_engine::ports::{Drift, Outcome, Part, Source};
use segue_model::key::KeyText;
use segue_model::position::Position;
use segue_model::seam::Seam;
use segue_model::table::Table;
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

/// The source of one stream, under one token.
pub struct PgSource {
    endpoint: Endpoint,
    identity: StreamIdentity,
    token: i64,
    book: Arc<Book>,
    /// One session for short questions and signals, opened when first needed.
    session: Mutex<Option<Arc<Client>>>,
    /// The stream, if it is being opened already.
    opening: Mutex<Option<Opening>>,
}

impl PgSource {
    /// The source behind `endpoint`, whose relations were settled to be `known`. Its stream may be on its way already.
    pub async fn open(
        endpoint: Endpoint,
        identity: StreamIdentity,
        token: i64,
        tables: &[Arc<Table>],
        known: Known,
        opening: Option<Opening>,
    ) -> Outcome<PgSource> {
        let book = Book::open(endpoint.clone(), identity.clone(), token, tables, known).await?;
        let (book, opening) = (Arc::new(book), Mutex::new(opening));
        Ok(PgSource { endpoint, identity, token, book, session: Mutex::new(None), opening })
    }

    /// The shared session, opened anew if it was lost.
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

impl Source for PgSource {
    type Stream = PgStream;
    type Reader = PgReader;

    async fn stream(&self, from: Position) -> Outcome<PgStream> {
        let on_its_way = self.opening.lock().await.take().filter(|opening| opening.from() == from);
        let open = || Opening::begin(StreamSource::of(self.endpoint.clone(), &self.identity), from);
        let stream = on_its_way.unwrap_or_else(open).stream(self.book.plan()).await?;
        Ok(stream.watched_by(self.book.clone()))
    }

    async fn reader(&self) -> Outcome<PgReader> {
        PgReader::open(&self.endpoint, self.book.clone()).await
    }

    async fn seam(&self) -> Outcome<Seam> {
        let client = self.session().await?;
        // The text form is the same before PostgreSQL 13, under another name.
        let sql = "SELECT CASE WHEN current_setting('server_version_num')::int >= 130000 \
                   THEN 'pg_current_snapshot()' ELSE 'txid_current_snapshot()' END";
        let function: String = client.query_one(sql, &[]).await.map_err(|e| fault_of(&e))?.get(0);
        let row =
            client.query_one(&format!("SELECT {function}::text"), &[]).await.map_err(|e| fault_of(&e))?;
        let seam: String = row.get(0);
        seam.parse().map_err(|e| Fault::bug("SEGUE-SNAPSHOT", format!("{e}")))
    }

    async fn signal(&self) -> Outcome<u64> {
        let client = self.session().await?;
        // One message, so one implicit transaction that an error ends. `local`: a signal says where the log is; it need not be on a standby, and must not wait for one.
        let sql = format!(
            "SET LOCAL synchronous_commit = local; SELECT segue.enter({migration}, {token}); {}",
            leaves::signal_sql(&self.identity.migration, None),
            migration = segue_model::sqltext::quote_literal(&self.identity.migration),
            token = self.token,
        );
        let answers =
            client.simple_query(&sql).await.map_err(|e| fault_of(&e).during("emitting a signal"))?;
        let id = answers.iter().find_map(|answer| match answer {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                row.try_get("id").ok().flatten().and_then(|id| id.parse().ok())
            }
            _ => None,
        });
        id.ok_or_else(|| Fault::bug("SEGUE-SIGNAL", "a signal was emitted without a number"))
    }

    async fn places(&self, table: &Table, bounds: &[KeyText], keys: &[KeyText]) -> Outcome<Vec<usize>> {
        places(&*self.session().await?, table, bounds, keys).await
    }

    async fn drift(&self) -> Outcome<Vec<Drift>> {
        self.book.drift().await
    }

    async fn adopt(&self, part: &Part) -> Outcome<bool> {
        self.book.adopt(part).await
    }

    async fn leave(&self, part: &Part) -> Outcome<u64> {
        self.book.leave(part).await
    }

    fn has_parts(&self, table: &Table) -> bool {
        self.book.has_parts(table)
    }

    async fn parts(&self, table: &Table) -> Outcome<Option<String>> {
        self.book.parts(table).await
    }

    async fn log_end(&self) -> Outcome<Position> {
        let client = self.session().await?;
        let row = client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await;
        let end: PgLsn = row.map_err(|e| fault_of(&e))?.get(0);
        Ok(Position(end.into()))
    }
}
