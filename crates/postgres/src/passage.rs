//! How far the side that follows shows what the owner has committed, for whoever reads there: two sessions, kept open.
//!
//! The checkpoint of a stream is moved in the transaction that writes its rows, to a place at or behind the end of each
//! transaction in it ([`apply`](crate::apply)): a session that sees the checkpoint sees them. It says nothing of tables whose
//! copy is under way, so that a stream with such tables shows nothing.

use crate::birth::{Direction, stream_name};
use crate::connect::Endpoint;
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::switch::Side;
use std::collections::{BTreeMap, HashMap};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Statement};

/// A request that takes longer is given up by the server, too.
const LIMITS: &str =
    "SET statement_timeout = '2s'; SET lock_timeout = '1s'; SET default_transaction_read_only = on";

/// The end of the log, its timeline, and a digest of which relations are parts of which: it changes in the very
/// transaction that attaches one.
const LOG_END: &str = "SELECT pg_current_wal_insert_lsn(), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
    current_setting('wal_block_size')::bigint, pg_size_bytes(current_setting('wal_segment_size')),
    (SELECT coalesce(sum(hashtextextended(i.inhparent || ' ' || i.inhrelid, 0)::numeric) % 1000000007, 0)::bigint
       FROM pg_inherits i), pg_current_wal_flush_lsn()";

const APPLIED: &str = "SELECT s.position, s.timeline FROM segue.stream s
      WHERE s.migration = $1 AND s.direction = $2 AND s.backfilled_at IS NOT NULL AND s.skipped = '{}'
        AND NOT EXISTS (SELECT FROM segue.unit u WHERE u.migration = s.migration AND u.direction = s.direction
                           AND u.unit <> u.table_id AND u.backfilled_at IS NULL AND u.left_at IS NULL)";

/// Tables of a publication with all their rows and columns, and what they are all parts of: a partitioned table all of whose
/// leaves are published.
const PUBLISHED: &str = "WITH published AS MATERIALIZED (
         SELECT r.prrelid AS oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
          WHERE p.pubname = $1 AND to_jsonb(r) ->> 'prqual' IS NULL AND to_jsonb(r) ->> 'prattrs' IS NULL),
     above AS (
         SELECT DISTINCT a.relid AS oid FROM published p
           JOIN pg_class c ON c.oid = p.oid AND c.relispartition, LATERAL pg_partition_ancestors(p.oid) a
          WHERE NOT EXISTS (SELECT FROM pg_partition_tree(a.relid) t
                             WHERE t.isleaf AND t.relid NOT IN (SELECT oid FROM published)))
     SELECT n.nspname::text, c.relname::text FROM (SELECT oid FROM published UNION SELECT oid FROM above) x
       JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname <> 'segue' ORDER BY 1, 2";

/// Where a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// Every commit that was acknowledged before it was asked ends at or before it.
    pub position: Position,
    /// Of which log.
    pub timeline: i32,
    /// Whether the log is written out up to there: only then do streams get that far.
    pub is_flushed: bool,
    /// Another number whenever a table has become, or is no longer, a part of another.
    pub parts: i64,
}

/// How far a stream was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Everything that ends at or before it is shown to whoever begins to read after this was asked.
    pub position: Position,
    /// Of which log.
    pub timeline: i32,
}

impl Applied {
    /// Whether all that was committed before the log ended there is shown.
    pub fn shows(self, end: LogEnd) -> bool {
        self.timeline == end.timeline && self.position >= end.position
    }
}

/// The direction of the stream that comes from this side.
fn direction_from(owner: Side) -> Direction {
    match owner {
        Side::Source => Direction::Forward,
        Side::Target => Direction::Reverse,
    }
}

/// Both servers of a stream, asked again and again.
pub struct Passage {
    owner: (Client, Statement),
    follower: (Client, Statement),
    migration: String,
    direction: Direction,
}

impl Passage {
    /// Between `from`, which is the owner's server, and `to`.
    pub async fn open(from: &Endpoint, to: &Endpoint, migration: &str, owner: Side) -> Outcome<Passage> {
        let session = async |endpoint: &Endpoint, sql: &str| {
            let client = endpoint.connect("router").await?;
            client.batch_execute(LIMITS).await.map_err(|e| fault_of(&e))?;
            let statement = client.prepare(sql).await.map_err(|e| fault_of(&e))?;
            Ok::<_, Fault>((client, statement))
        };
        let (owner_session, follower) = tokio::try_join!(session(from, LOG_END), session(to, APPLIED))?;
        let direction = direction_from(owner);
        Ok(Passage { owner: owner_session, follower, migration: migration.to_owned(), direction })
    }

    /// Where the owner's log ends now.
    pub async fn log_end(&self) -> Outcome<LogEnd> {
        let during = |e| fault_of(&e).during("asking the owner for the end of its log");
        let (client, statement) = &self.owner;
        let row = client.query_one(statement, &[]).await.map_err(during)?;
        let timeline = i32::from_str_radix(row.get(1), 16)
            .map_err(|e| Fault::bug("SEGUE-POSITION", format!("a log file's name has no timeline: {e}")))?;
        let position = u64::from(row.get::<_, PgLsn>(0));
        let bytes = |column| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
        let position = before_page_header(position, bytes(2), bytes(3));
        let is_flushed = u64::from(row.get::<_, PgLsn>(5)) >= position;
        Ok(LogEnd { position: Position(position), timeline, is_flushed, parts: row.get(4) })
    }

    /// Has the owner write its log out. On a server at rest nobody else does so for what is not a commit, as the pruning of a
    /// page by a read, and the end of the log is then where no stream gets to. A transaction that has a number, and has changed
    /// nothing, leaves a record behind which the log is written out within moments.
    pub async fn write_out(&self) -> Outcome<()> {
        let (client, _) = &self.owner;
        let done = client.query_one("SELECT txid_current()", &[]).await;
        done.map(drop).map_err(|e| fault_of(&e).during("having the owner write its log out"))
    }

    /// How far the follower is; `None`: there is no stream to it that shows everything.
    pub async fn applied(&self) -> Outcome<Option<Applied>> {
        let during = |e| fault_of(&e).during("asking the follower how far it is");
        let (client, statement) = &self.follower;
        let row = client.query_opt(statement, &[&self.migration, &self.direction.as_str()]).await;
        Ok(row.map_err(during)?.map(|row| {
            let position = Position(u64::from(row.get::<_, PgLsn>(0)));
            Applied { position, timeline: row.get(1) }
        }))
    }
}

/// The header of a page of the log, and that of the first page of a segment.
const PAGE_HEADER_BYTES: u64 = 24;
const SEGMENT_HEADER_BYTES: u64 = 40;

/// Where the last record ends, given where the next one begins. Those are the same, but where the next one is the first to
/// begin and the only one to lie on its page: between them is the page's header then, which no stream ever says.
fn before_page_header(position: u64, page_bytes: u64, segment_bytes: u64) -> u64 {
    match (position.checked_rem(segment_bytes), position.checked_rem(page_bytes)) {
        (Some(within), _) if within < page_bytes => {
            if within == SEGMENT_HEADER_BYTES {
                position - within
            } else {
                position
            }
        }
        (_, Some(PAGE_HEADER_BYTES)) => position - PAGE_HEADER_BYTES,
        _ => position,
    }
}

/// What of the owner's tables the other side has with all rows and columns: schema and name, roots of partitioned tables among
/// them; and what [`LogEnd::parts`] was before that was read.
pub async fn published(
    client: &Client,
    migration: &str,
    owner: Side,
) -> Outcome<(i64, Vec<(String, String)>)> {
    let during = |e| fault_of(&e).during("reading which tables are published");
    let parts: i64 = client.query_one(LOG_END, &[]).await.map_err(during)?.get(4);
    let name = stream_name(migration, direction_from(owner))?;
    let rows = client.query(PUBLISHED, &[&name]).await.map_err(during)?;
    Ok((parts, rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
}

/// A session for reading the catalog of one side, which is never held up for long.
pub async fn catalog_session(endpoint: &Endpoint) -> Outcome<Client> {
    let client = endpoint.connect("router").await?;
    let limits =
        "SET statement_timeout = '20s'; SET lock_timeout = '2s'; SET default_transaction_read_only = on";
    client.batch_execute(limits).await.map_err(|e| fault_of(&e))?;
    Ok(client)
}

/// Columns whose values come with the number of a type that this database has made itself. A domain's values come as those of
/// what it is made from.
const TYPED_COLUMNS: &str =
    "SELECT DISTINCT n.nspname::text, c.relname::text, format('%I.%I', tn.nspname, b.typname), b.oid
     FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_type t ON t.oid = a.atttypid
     JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
     JOIN pg_namespace tn ON tn.oid = b.typnamespace
    WHERE a.attnum > 0 AND NOT a.attisdropped AND b.oid >= 16384 AND c.relkind IN ('r', 'p')";
const TYPES: &str = "SELECT format('%I.%I', n.nspname, t.typname), t.oid
     FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid >= 16384";

/// Tables of the owner with a column whose type has another number on the follower, or is not there, each with one such type.
/// Clients know types by their numbers, and ask for what they mean once.
pub async fn renumbered(owner: &Client, follower: &Client) -> Outcome<BTreeMap<(String, String), String>> {
    let during = |e| fault_of(&e).during("comparing the numbers of types");
    let known = follower.query(TYPES, &[]).await.map_err(during)?;
    let known: HashMap<String, u32> = known.iter().map(|row| (row.get(0), row.get(1))).collect();
    let columns = owner.query(TYPED_COLUMNS, &[]).await.map_err(during)?;
    let differ = columns.iter().filter(|row| known.get(row.get::<_, &str>(2)) != Some(&row.get::<_, u32>(3)));
    Ok(differ.map(|row| ((row.get(0), row.get(1)), row.get(2))).collect())
}

/// The one value of a statement that returns one text.
pub async fn text(client: &Client, sql: &str) -> Outcome<String> {
    let row = client.query_one(sql, &[]).await;
    Ok(row.map_err(|e| fault_of(&e).during("reading the owner's catalog"))?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_fills_its_page_ends_before_the_next_pages_header() {
        for (begins, ends) in [
            (0x0100_0000, 0x0100_0000),
            (0x0100_2018, 0x0100_2000),
            (0x0100_0028, 0x0100_0000),
            // The end of a record that began on the page before.
            (0x0100_2028, 0x0100_2028),
            (0x0100_2020, 0x0100_2020),
            (0x0100_2ff8, 0x0100_2ff8),
        ] {
            assert_eq!(before_page_header(begins, 8192, 16 << 20), ends, "{begins:#x}");
        }
        assert_eq!(before_page_header(5, 0, 0), 5);
    }

    #[test]
    fn a_stream_shows_what_ends_at_or_before_its_checkpoint_on_the_same_log() {
        let end = LogEnd { position: Position(10), timeline: 3, is_flushed: true, parts: 0 };
        let applied = |position, timeline| Applied { position: Position(position), timeline };
        assert!(applied(10, 3).shows(end) && !applied(9, 3).shows(end));
        assert!(!applied(11, 2).shows(end), "what was applied is of a log that has ended");
    }
}
