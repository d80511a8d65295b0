//! Reading either side for comparison, and keeping what comparing came to.
//!
//! Owns every statement of a verification; which ranges, when, and what unequal rows mean is the engine's.

mod form;
mod store;

pub use store::PgStore;

use crate::connect::Endpoint;
use crate::copy::Side;
use crate::error::fault_of;
pub(crate) use form::VERSION;
use form::{HashForm, TableForm, name_on};
use futures_util::future::try_join_all;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_engine::verify::ports::{Comparable, Digest, FullRow, Hashed, Item, Reading};
use segue_model::change::{Row, Value};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::sqltext::{quote_ident, quote_literal};
use segue_model::table::{Table, TableId, Transport};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// Sessions one side may have open for comparing.
const SESSIONS_MAX: usize = 6;
/// The first number of an object that is not the same on every server (`FirstNormalObjectId`).
const FIRST_USER_OID: u32 = 16_384;
/// Ranges must be read by index whatever the statistics say, expressions of hundreds of columns are not worth
/// compiling, and a comparison takes one processor at a time.
const PLANNER: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
     SET max_parallel_workers_per_gather = 0";
/// In front of statements that must read the whole table anyway.
const WHOLE_TABLE: &str = "SET LOCAL enable_seqscan = on; ";

/// One side of a comparison.
pub struct PgComparable {
    endpoint: Endpoint,
    forms: BTreeMap<TableId, TableForm>,
    /// Schemas whose operators compare keys of their types.
    settings: String,
    idle: Mutex<Vec<Client>>,
    sessions: Semaphore,
}

/// Both sides of a comparison, in one form that suits both servers.
pub struct PgSides {
    /// The source.
    pub source: Arc<PgComparable>,
    /// The target.
    pub target: Arc<PgComparable>,
}

/// One moment of one side, for as long as the session lives; other sessions can read as of it, too.
pub struct Moment {
    /// Reads as of that moment. What it holds must not end before others have begun to.
    pub session: Client,
    /// The snapshot's name, for `SET TRANSACTION SNAPSHOT`.
    pub name: String,
    /// Compares as of that moment.
    pub side: PgComparable,
}

/// What one server's catalog says about a table.
struct Catalog {
    partitioned: bool,
    /// By name: the type's number and schema.
    columns: HashMap<String, (u32, String)>,
    /// Schemas of the key columns' types, other than `pg_catalog`.
    key_schemas: Vec<String>,
}

impl Catalog {
    /// Columns that do not travel, by name.
    fn uncompared(&self, table: &Table, side: Side) -> Vec<String> {
        let travels = |name: &&String| table.columns.iter().any(|c| name_on(c, side) == name.as_str());
        let mut names: Vec<String> = self.columns.keys().filter(|name| !travels(name)).cloned().collect();
        names.sort_unstable();
        names
    }
}

impl PgSides {
    /// Looks at both servers and settles how `tables` are read on both.
    pub async fn open(source: &Endpoint, target: &Endpoint, tables: &[Arc<Table>]) -> Outcome<PgSides> {
        let (on_source, on_target) = tokio::try_join!(source.connect("verify"), target.connect("verify"))?;
        let (source_client, target_client) = (&on_source, &on_target);
        let catalogs = tables.iter().map(|table| async move {
            tokio::try_join!(
                catalog(source_client, table, &table.source, Side::Source),
                catalog(target_client, table, &table.target, Side::Target),
            )
        });
        let (hash, catalogs) = tokio::try_join!(common_hash(&on_source, &on_target), try_join_all(catalogs))?;
        let mut forms = [BTreeMap::new(), BTreeMap::new()];
        let mut schemas = BTreeSet::new();
        for (table, (source, target)) in tables.iter().zip(catalogs) {
            let catalogs = [source, target];
            schemas.extend(catalogs.iter().flat_map(|catalog| catalog.key_schemas.iter().cloned()));
            let column_type = |at: usize, name: &str| catalogs[at].columns.get(name).map_or(0, |c| c.0);
            let as_text: Vec<bool> = table
                .columns
                .iter()
                .map(|c| {
                    let types = (column_type(0, &c.source), column_type(1, &c.target));
                    c.transport == Transport::Text || types.0 != types.1 || types.0 >= FIRST_USER_OID
                })
                .collect();
            let sides = [(Side::Source, &table.source), (Side::Target, &table.target)];
            for (at, (side, name)) in sides.into_iter().enumerate() {
                let only = if catalogs[at].partitioned { "" } else { "ONLY " };
                let from = format!("{only}{} AS t", name.sql());
                let (as_text, uncompared) = (as_text.clone(), catalogs[at].uncompared(table, side));
                forms[at].insert(table.id, TableForm { side, from, as_text, hash, uncompared });
            }
        }
        let path: Vec<String> = schemas.iter().map(|s| format!(", {}", quote_ident(s))).collect();
        let settings = format!("{PLANNER}; SET search_path = pg_catalog{}", path.concat());
        let [source_forms, target_forms] = forms;
        let side = |endpoint: &Endpoint, forms| {
            Arc::new(PgComparable {
                endpoint: endpoint.clone(),
                forms,
                settings: settings.clone(),
                idle: Mutex::default(),
                sessions: Semaphore::new(SESSIONS_MAX),
            })
        };
        Ok(PgSides { source: side(source, source_forms), target: side(target, target_forms) })
    }
}

/// What a server answers, `None` if it refuses: it does not have the hash, or forbids it. A session that was lost says nothing
/// about either.
async fn answer(client: &Client, probe: &str) -> Outcome<Option<Vec<SimpleQueryMessage>>> {
    match client.simple_query(probe).await {
        Ok(messages) => Ok(Some(messages)),
        Err(error) => match fault_of(&error) {
            fault if fault.recovery == Recovery::Retry => Err(fault.during("looking for a common hash")),
            _ => Ok(None),
        },
    }
}

/// The cheapest hash that both servers have and agree on.
async fn common_hash(source: &Client, target: &Client) -> Outcome<HashForm> {
    for form in HashForm::ALL {
        let probe = form.probe();
        let (Some(a), Some(b)) = (answer(source, &probe).await?, answer(target, &probe).await?) else {
            continue;
        };
        let text = |messages: &[SimpleQueryMessage]| {
            rows_of(messages).next().and_then(|r| r.get(0).map(str::to_owned))
        };
        if text(&a).is_some_and(|a| Some(a) == text(&b)) {
            return Ok(form);
        }
    }
    Err(Fault::operator(
        "SEGUE-VERIFY-HASH",
        "the servers have no hash function that comes to the same result on both",
        "md5 must be permitted on both servers (FIPS mode forbids it), or both must be PostgreSQL 14 or later",
    ))
}

/// Looks a table up.
async fn catalog(client: &Client, table: &Table, name: &QualifiedName, side: Side) -> Outcome<Catalog> {
    let statement = format!(
        "SELECT c.relkind = 'p', a.attname, a.atttypid, n.nspname FROM pg_class c \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_type y ON y.oid = a.atttypid JOIN pg_namespace n ON n.oid = y.typnamespace \
         WHERE c.oid = {}::regclass",
        quote_literal(&name.sql())
    );
    let messages = client.simple_query(&statement).await.map_err(|e| fault_of(&e))?;
    let mut catalog = Catalog { partitioned: false, columns: HashMap::new(), key_schemas: Vec::new() };
    for row in rows_of(&messages) {
        catalog.partitioned = text(row, 0)? == "t";
        catalog.columns.insert(text(row, 1)?.to_owned(), (number(row, 2)?, text(row, 3)?.to_owned()));
    }
    let keys = table.key().into_iter().flat_map(|k| &k.columns);
    let used = keys.filter_map(|&c| catalog.columns.get(name_on(&table.columns[c], side)));
    catalog.key_schemas = used.map(|(_, schema)| schema.clone()).filter(|s| s != "pg_catalog").collect();
    Ok(catalog)
}

fn rows_of(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = &SimpleQueryRow> {
    messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

fn value(row: &SimpleQueryRow, column: usize) -> Outcome<Option<&str>> {
    row.try_get(column).map_err(|e| {
        let what =
            format!("a value that is no text in UTF-8 cannot be compared: {}", crate::error::describe(&e));
        Fault::operator("SEGUE-VERIFY-TEXT", what, "compare tables of databases in SQL_ASCII by other means")
    })
}

fn text(row: &SimpleQueryRow, column: usize) -> Outcome<&str> {
    Ok(value(row, column)?.unwrap_or_default())
}

fn number<T: FromStr>(row: &SimpleQueryRow, column: usize) -> Outcome<T> {
    let text = text(row, column)?;
    text.parse()
        .map_err(|_| Fault::bug("SEGUE-VERIFY-NUMBER", format!("`{text}` is not the number expected")))
}

fn key_of(row: &SimpleQueryRow, columns: std::ops::Range<usize>) -> Outcome<KeyText> {
    let texts = columns.map(|c| text(row, c).map(str::to_owned)).collect::<Outcome<Vec<String>>>()?;
    Ok(KeyText::from_texts(texts))
}

fn full_row(row: &SimpleQueryRow, columns: std::ops::Range<usize>) -> Outcome<Row> {
    let one = |c| Ok(value(row, c)?.map_or(Value::Null, |text| Value::Text(text.to_owned().into())));
    columns.map(one).collect()
}

/// The versions of all rows with one key, in an order of their own: a side whose key was dropped can have several.
fn versions(known: &str, more: &str) -> String {
    let mut all: Vec<&str> = known.split(' ').filter(|version| !version.is_empty()).collect();
    all.push(more);
    all.sort_unstable();
    all.join(" ")
}

impl PgComparable {
    /// The hash that digests are sums of, as SQL over the bytes of a row, `i`.
    pub fn hash(&self) -> String {
        self.forms.values().next().map_or_else(String::new, |form| form.hash.of("i"))
    }

    /// This side as it is now, and stays.
    pub async fn moment(&self) -> Outcome<Moment> {
        let failed = |e| fault_of(&e).during("taking a snapshot");
        let session = self.endpoint.connect("snapshot").await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let keep = format!("SET idle_in_transaction_session_timeout = 0; {begin}");
        session.batch_execute(&keep).await.map_err(failed)?;
        let row = session.query_one("SELECT pg_export_snapshot()", &[]).await.map_err(failed)?;
        let name: String = row.get(0);
        // A session that is opened when the snapshot is gone is refused: none reads as of another moment.
        let settings =
            format!("{}; {begin}; SET TRANSACTION SNAPSHOT {}", self.settings, quote_literal(&name));
        let side = PgComparable {
            endpoint: self.endpoint.clone(),
            forms: self.forms.clone(),
            settings,
            idle: Mutex::default(),
            sessions: Semaphore::new(SESSIONS_MAX),
        };
        Ok(Moment { session, name, side })
    }

    fn form(&self, table: &Table) -> Outcome<&TableForm> {
        let unknown = || {
            Fault::bug(
                "SEGUE-TABLE",
                format!("{} was not known when the comparison was opened", table.source),
            )
        };
        self.forms.get(&table.id).ok_or_else(unknown)
    }

    /// Runs a statement in a session of its own choosing; results come as the types' output functions write them.
    async fn ask(&self, statement: &str) -> Outcome<Vec<SimpleQueryMessage>> {
        let _permit = self.sessions.acquire().await;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let client = match idle.filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => {
                let client = self.endpoint.connect("verify").await?;
                client.batch_execute(&self.settings).await.map_err(|e| fault_of(&e))?;
                client
            }
        };
        let messages = client.simple_query(statement).await.map_err(|e| fault_of(&e))?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        Ok(messages)
    }

    /// Opens sessions beforehand, so that none of the tables waits for one when all are read at once.
    pub async fn be_ready(&self) -> Outcome<()> {
        let sessions = SESSIONS_MAX.min(self.forms.len());
        // All of them begin before the first one ends, so each has a session of its own.
        try_join_all((0..sessions).map(|_| self.ask("SELECT"))).await.map(drop)
    }

    async fn read_images(&self, table: &Table, items: &[Item]) -> Outcome<Vec<Reading>> {
        let mut readings = vec![Reading::default(); items.len()];
        let Some(statement) = self.form(table)?.read_images(table, items) else { return Ok(readings) };
        for row in rows_of(&self.ask(&format!("{WHOLE_TABLE}{statement}")).await?) {
            let hash = number(row, 0)?;
            let (rows, bytes) = (number(row, 1)?, number(row, 2)?);
            let reading = Reading { rows, hash, bytes, version: format!("{rows}:{}", text(row, 3)?) };
            let places = items.iter().zip(&mut readings).filter(|(item, _)| **item == Item::Image(hash));
            places.for_each(|(_, place)| *place = reading.clone());
        }
        Ok(readings)
    }
}

impl Comparable for PgComparable {
    async fn bound_after(&self, table: &Table, within: &Extent, rows: u64) -> Outcome<Option<KeyText>> {
        let messages = self.ask(&self.form(table)?.bound_after(table, within, rows)).await?;
        rows_of(&messages).next().map(|row| key_of(row, 0..row.len())).transpose()
    }

    async fn digest(&self, table: &Table, within: &Extent) -> Outcome<Digest> {
        let messages = self.ask(&self.form(table)?.digest(table, within)).await?;
        let Some(row) = rows_of(&messages).next() else { return Ok(Digest::default()) };
        Ok(Digest { rows: number(row, 0)?, sum: number(row, 1)?, bytes: number(row, 2)? })
    }

    async fn hashes(&self, table: &Table, within: &Extent) -> Outcome<Vec<Hashed>> {
        let messages = self.ask(&self.form(table)?.hashes(table, within)).await?;
        let hashed = |row: &SimpleQueryRow| {
            let item = Item::Key(key_of(row, 2..row.len())?);
            Ok(Hashed { item, rows: 1, hash: number(row, 0)?, bytes: number(row, 1)? })
        };
        rows_of(&messages).map(hashed).collect()
    }

    async fn buckets(&self, table: &Table, buckets: u32) -> Outcome<BTreeMap<u32, Digest>> {
        let statement = self.form(table)?.buckets(table, buckets);
        let messages = self.ask(&format!("{WHOLE_TABLE}{statement}")).await?;
        let bucket = |row: &SimpleQueryRow| {
            let digest = Digest { rows: number(row, 1)?, sum: number(row, 2)?, bytes: number(row, 3)? };
            Ok((number(row, 0)?, digest))
        };
        rows_of(&messages).map(bucket).collect()
    }

    async fn images(&self, table: &Table, buckets: u32, wanted: &[u32]) -> Outcome<Vec<Hashed>> {
        let statement = self.form(table)?.bucket_images(table, buckets, wanted);
        let messages = self.ask(&format!("{WHOLE_TABLE}{statement}")).await?;
        let hashed = |row: &SimpleQueryRow| {
            let hash = number(row, 0)?;
            Ok(Hashed { item: Item::Image(hash), rows: number(row, 1)?, hash, bytes: number(row, 2)? })
        };
        rows_of(&messages).map(hashed).collect()
    }

    async fn read(&self, table: &Table, items: &[Item]) -> Outcome<Vec<Reading>> {
        let Some(statement) = self.form(table)?.read_keys(table, items) else {
            return self.read_images(table, items).await;
        };
        let mut readings = vec![Reading::default(); items.len()];
        for row in rows_of(&self.ask(&statement).await?) {
            if let Some(place) = readings.get_mut(number::<usize>(row, 0)?) {
                place.rows += 1;
                place.hash = place.hash.wrapping_add(number(row, 1)?);
                place.bytes = place.bytes.max(number(row, 2)?);
                place.version = versions(&place.version, text(row, 3)?);
            }
        }
        Ok(readings)
    }

    async fn rows(&self, table: &Table, items: &[Item]) -> Outcome<Vec<Option<FullRow>>> {
        let form = self.form(table)?;
        let mut found = vec![None; items.len()];
        if let Some(statement) = form.rows_of_keys(table, items) {
            for row in rows_of(&self.ask(&statement).await?) {
                if let Some(place) = found.get_mut(number::<usize>(row, 0)?) {
                    let before = place.take().map_or_else(String::new, |row: FullRow| row.version);
                    let version = versions(&before, text(row, 1)?);
                    *place = Some(FullRow { row: full_row(row, 2..row.len())?, version });
                }
            }
        } else if let Some(statement) = form.rows_of_images(table, items) {
            // What the rows are is known by their hash; which ones there are is read beside it.
            let readings = self.read_images(table, items).await?;
            for row in rows_of(&self.ask(&format!("{WHOLE_TABLE}{statement}")).await?) {
                let (hash, content) = (number(row, 0)?, full_row(row, 1..row.len())?);
                let places = items.iter().zip(&readings).zip(&mut found);
                for ((_, reading), place) in places.filter(|((item, _), _)| **item == Item::Image(hash)) {
                    *place = Some(FullRow { row: content.clone(), version: reading.version.clone() });
                }
            }
        }
        Ok(found)
    }

    async fn count(&self, table: &Table) -> Outcome<u64> {
        let messages = self.ask(&format!("{WHOLE_TABLE}{}", self.form(table)?.count())).await?;
        rows_of(&messages).next().map_or(Ok(0), |row| number(row, 0))
    }

    async fn sample(&self, table: &Table, rows: u64) -> Outcome<Vec<Item>> {
        let statement = self.form(table)?.sample(table, rows);
        let messages = self.ask(&format!("{WHOLE_TABLE}{statement}")).await?;
        let item = |row: &SimpleQueryRow| match table.key() {
            Some(_) => Ok(Item::Key(key_of(row, 0..row.len())?)),
            None => Ok(Item::Image(number(row, 0)?)),
        };
        let items: BTreeSet<Item> = rows_of(&messages).map(item).collect::<Outcome<_>>()?;
        Ok(items.into_iter().collect())
    }

    async fn position(&self) -> Outcome<Position> {
        let messages = self.ask("SELECT pg_current_wal_insert_lsn()").await?;
        let position = rows_of(&messages).next().map_or(Ok(""), |row| text(row, 0))?;
        position.parse().map_err(|e| Fault::bug("SEGUE-POSITION", format!("{e}")))
    }

    fn uncompared(&self, table: &Table) -> Vec<String> {
        self.forms.get(&table.id).map_or_else(Vec::new, |form| form.uncompared.clone())
    }

    fn remedy(&self, table: &Table, owner: Option<&Row>, here: Option<&Row>) -> String {
        self.forms.get(&table.id).map_or_else(String::new, |form| form.remedy(table, owner, here))
    }
}
