//! What the engine asks of a database: the two sides of the wall.
//!
//! Adapters implement these for one kind of database. All of them are cancel-safe in one sense only: a value
//! whose future was dropped half-way must be dropped too.

use crate::fault::Fault;
use bytes::Bytes;
use segue_model::change::{Change, TransactionHead};
use segue_model::key::KeyText;
use segue_model::name::QualifiedName;
use segue_model::net::Net;
use segue_model::position::Position;
use segue_model::region::{CopiedRegion, Extent};
use segue_model::seam::{Seam, Xid};
use segue_model::table::{Table, TableId, UnitId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

/// A result whose error is a [`Fault`].
pub type Outcome<T> = Result<T, Fault>;

/// One thing the change stream delivers, in commit order, a transaction never interrupted by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// A transaction begins.
    Begin(TransactionHead),
    /// It changed something.
    Change(Change),
    /// It contains a signal that [`Source::signal`] emitted.
    Signal(u64),
    /// It ends. `end` is the position after its commit record: what may be acknowledged once it is applied.
    Commit {
        /// Position after the commit record.
        end: Position,
    },
    /// Between transactions: everything before this position has been delivered.
    Idle {
        /// That position.
        position: Position,
    },
}

/// How far a stream has come, as it is stored on the side its rows land on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Everything that ends at or before it has been applied.
    pub position: Position,
    /// Transactions skipped for regions that had not begun, and that no snapshot has shown yet.
    pub skipped: BTreeMap<UnitId, Vec<Xid>>,
}

/// The side that changes are captured from.
pub trait Source: Send + Sync + 'static {
    /// A running change stream.
    type Stream: ChangeStream;
    /// A session that reads regions.
    type Reader: RegionReader;

    /// Opens the change stream after `from`. Transactions that end at or before `from` are not delivered.
    fn stream(&self, from: Position) -> impl Future<Output = Outcome<Self::Stream>> + Send;
    /// Opens a session for reading regions.
    fn reader(&self) -> impl Future<Output = Outcome<Self::Reader>> + Send;
    /// What a snapshot taken now contains.
    fn seam(&self) -> impl Future<Output = Outcome<Seam>> + Send;
    /// Commits a signal and returns its number; the stream will deliver it as [`StreamEvent::Signal`].
    /// Numbers ascend in commit order, over restarts too.
    fn signal(&self) -> impl Future<Output = Outcome<u64>> + Send;
    /// For each key, how many of `bounds` (ascending) the source orders before it.
    fn places(
        &self,
        table: &Table,
        bounds: &[KeyText],
        keys: &[KeyText],
    ) -> impl Future<Output = Outcome<Vec<usize>>> + Send;
    /// Where the log ends now (what has been written, flushed or not).
    fn log_end(&self) -> impl Future<Output = Outcome<Position>> + Send;
    /// What has changed about the tables that the stream does not say. Asked every few seconds; says the same again
    /// until it is dealt with. Changes of a part that is said to be gone are not delivered from then on.
    fn drift(&self) -> impl Future<Output = Outcome<Vec<Drift>>> + Send;
    /// Makes `part` a part of the stream: whatever is written to it after this is delivered, as its unit's, and
    /// whatever was written before shows in every new snapshot. `false`: it is no part any more. Can be repeated.
    fn adopt(&self, part: &Part) -> impl Future<Output = Outcome<bool>> + Send;
    /// Takes a part that is gone out of the stream: commits a signal that carries what removes its rows on the target,
    /// in that very transaction, and returns its number. Can be repeated.
    fn leave(&self, part: &Part) -> impl Future<Output = Outcome<u64>> + Send;
    /// Whether parts of `table` may come and go.
    fn has_parts(&self, table: &Table) -> bool;
    /// What `table` is made of in the newest snapshot, if the stream follows exactly that; `None` while a part has come
    /// or gone and the stream does not know. Two equal answers: no part came or went in between, nor away and back.
    fn parts(&self, table: &Table) -> impl Future<Output = Outcome<Option<String>>> + Send;
}

/// A part of a table with a place of its own on the source: a leaf of a partitioned table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The unit whose regions decide about its rows: of its own, if it came after the stream was born.
    pub unit: UnitId,
    /// Its table.
    pub table: TableId,
    /// Its number on the source.
    pub relation: u32,
    /// Its name on the source.
    pub name: QualifiedName,
    /// The condition that its rows, and only its rows, fulfil; in the language of the adapters.
    pub condition: String,
}

impl Part {
    /// Whether it came after the stream was born.
    pub fn is_late(&self) -> bool {
        self.unit != UnitId::from(self.table)
    }
}

/// A change of the source that its stream does not announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// A part has come: it is neither copied nor streamed yet.
    Attached(Part),
    /// Another condition tells a part's rows now, since other parts came or went: it must be stored before they are
    /// dealt with.
    Rebound(Part),
    /// A part is gone: its rows must go, too.
    Detached(Part),
    /// The rows of this table, or of this part, were written anew by a change of its definition: values may have changed
    /// without an event. Said once.
    Rewritten(QualifiedName),
    /// Something the migration cannot follow.
    Fault(Fault),
}

/// A running change stream.
pub trait ChangeStream: Send {
    /// The next event. Events of one transaction come without an event of another between them.
    fn next(&mut self) -> impl Future<Output = Outcome<StreamEvent>> + Send;
    /// The way to tell the source what is durable on the other side and need not be kept.
    fn acknowledger(&self) -> Acknowledger;
}

/// Tells a source that everything up to a position is durable on the other side.
#[derive(Clone)]
pub struct Acknowledger(std::sync::Arc<dyn Fn(Position) + Send + Sync>);

impl Acknowledger {
    /// An acknowledger that hands positions to `tell`, from any thread, never blocking.
    pub fn new(tell: impl Fn(Position) + Send + Sync + 'static) -> Self {
        Acknowledger(std::sync::Arc::new(tell))
    }

    /// Everything up to `position` is durable.
    pub fn acknowledge(&self, position: Position) {
        (self.0)(position);
    }
}

/// A session on the source that reads regions, one after the other.
pub trait RegionReader: Send {
    /// The key of the row that lies `rows` rows after `lower`, if it lies before `upper`; `None`: the range ends before.
    fn bound_after(
        &mut self,
        table: &Table,
        unit: UnitId,
        within: &Extent,
        rows: u64,
    ) -> impl Future<Output = Outcome<Option<KeyText>>> + Send;
    /// Begins a snapshot that no TRUNCATE or rewrite of `unit` can fall into. Returns what it contains, and a log
    /// position that covers the end of every transaction in it.
    fn begin(
        &mut self,
        table: &Table,
        unit: UnitId,
    ) -> impl Future<Output = Outcome<(Seam, Position)>> + Send;
    /// Starts reading the rows of `extent` under the snapshot, in the copy form both adapters share.
    fn copy(
        &mut self,
        table: &Table,
        unit: UnitId,
        extent: &Extent,
    ) -> impl Future<Output = Outcome<()>> + Send;
    /// What tells the rows of `extent` under the snapshot from others.
    fn digest(
        &mut self,
        table: &Table,
        unit: UnitId,
        extent: &Extent,
    ) -> impl Future<Output = Outcome<RegionDigest>> + Send;
    /// Which version of the row with `key` the snapshot shows, as [`Reading::version`](crate::verify::ports::Reading::version)
    /// of the same side has it; empty where there is none.
    fn version(
        &mut self,
        table: &Table,
        unit: UnitId,
        key: &KeyText,
    ) -> impl Future<Output = Outcome<String>> + Send;
    /// The next piece (tens of KiB), `None` at the end.
    fn next_piece(&mut self) -> impl Future<Output = Outcome<Option<Bytes>>> + Send;
    /// Ends the snapshot, whether or not everything was read.
    fn end(&mut self) -> impl Future<Output = Outcome<()>> + Send;
    /// Waits, in this very session, until the log is durable on the source up to `position`.
    fn durable(&mut self, position: Position) -> impl Future<Output = Outcome<()>> + Send;
}

/// The side that changes land on.
pub trait Target: Send + Sync + 'static {
    /// A session that writes regions.
    type Writer: RegionWriter;
    /// A session that applies batches.
    type Applier: Applier;

    /// Opens a session for writing regions.
    fn writer(&self) -> impl Future<Output = Outcome<Self::Writer>> + Send;
    /// Opens the session that applies the stream.
    fn applier(&self) -> impl Future<Output = Outcome<Self::Applier>> + Send;
    /// The rows that `net` changes will be changed soon: brings them near, beside everything else. A hint: it does not wait, and
    /// cannot fail.
    fn warm(&self, _table: &Arc<Table>, _net: &<Self::Applier as Applier>::Encoded) {}
    /// What is stored about this stream. It is durable, also what an earlier process committed without waiting for it.
    fn stored(&self) -> impl Future<Output = Outcome<Stored>> + Send;
    /// The number of the region stored last; numbers ascend.
    fn last_region(&self) -> impl Future<Output = Outcome<i64>> + Send;
    /// Forgets the stored regions up to number `last` and remembers that the backfill is done: the stream has passed
    /// their seams.
    fn forget_regions(&self, last: i64) -> impl Future<Output = Outcome<()>> + Send;
    /// Stores a part, durably, before the stream has anything of it. Can be repeated.
    fn store_part(&self, part: &Part) -> impl Future<Output = Outcome<()>> + Send;
    /// Remembers that the part's copy is in the stream's hands.
    fn part_followed(&self, part: &Part) -> impl Future<Output = Outcome<()>> + Send;
    /// Remembers that the part's rows are gone, and forgets its regions.
    fn part_left(&self, part: &Part) -> impl Future<Output = Outcome<()>> + Send;
}

/// What a target has stored about a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// How far it was applied.
    pub checkpoint: Checkpoint,
    /// The backfill is done; regions that are stored all the same are overrides by later repairs.
    pub backfilled: bool,
    /// The stream was made anew over rows that an earlier one had brought: regions find them on the target.
    pub over_rows: bool,
    /// The copied regions of every unit, in the order in which they were stored.
    pub regions: BTreeMap<UnitId, Vec<StoredRegion>>,
    /// Parts that came after the stream was born and are not in its hands yet.
    pub parts: Vec<Part>,
}

/// A stored region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRegion {
    /// Which rows, under which snapshot.
    pub copied: CopiedRegion,
    /// Rows.
    pub rows: u64,
    /// Bytes copied.
    pub bytes: u64,
}

/// What is stored with a region's rows, in the same transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionRecord {
    /// Its unit.
    pub unit: UnitId,
    /// Which rows.
    pub extent: Extent,
    /// Under which snapshot.
    pub seam: Seam,
    /// The log position that covers the end of every transaction in the seam.
    pub covered_by: Position,
    /// Bytes copied.
    pub bytes: u64,
    /// How long the copy took, in milliseconds.
    pub took_ms: u64,
}

/// What tells the rows of a region from others: two servers with equal digests have equal rows (but for 2⁻⁶⁴), unequal ones
/// say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionDigest {
    /// How many.
    pub rows: u64,
    /// Sum of the rows' hashes.
    pub sum: String,
    /// Their bytes, about; not compared.
    pub bytes: u64,
}

/// What the rows of a region find where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// Nothing: there must be no row of the extent.
    Nothing,
    /// Rows that are removed first.
    Replaced,
    /// Rows most of which are right: only what differs is removed and written.
    Compared,
}

/// A session on the target that writes regions, one after the other.
pub trait RegionWriter: Send {
    /// Begins the region's transaction (with the token check) and starts taking rows; `onto` says what becomes of rows of
    /// `extent` that are already there.
    fn begin(
        &mut self,
        table: &Table,
        unit: UnitId,
        extent: &Extent,
        onto: Onto,
    ) -> impl Future<Output = Outcome<()>> + Send;
    /// Begins the region's transaction (with the token check) if the rows of `extent` that are there already have this digest:
    /// then nothing is to be written, and `commit` ends it. `false`: they have not, and nothing has begun.
    fn begin_equal(
        &mut self,
        table: &Table,
        unit: UnitId,
        extent: &Extent,
        digest: &RegionDigest,
    ) -> impl Future<Output = Outcome<bool>> + Send;
    /// Whether one row of the table can keep out another one that has another key: by a value that only one may have. Asked
    /// between regions.
    fn has_rivals(&mut self, table: &Table) -> impl Future<Output = Outcome<bool>> + Send;
    /// Writes a piece as the reader delivered it.
    fn write(&mut self, piece: Bytes) -> impl Future<Output = Outcome<()>> + Send;
    /// Ends the rows; returns how many there were. Nothing is committed yet.
    fn finish(&mut self) -> impl Future<Output = Outcome<u64>> + Send;
    /// Stores the record and commits, durably. After an ambiguous fault it may be committed; after any other one it is not.
    fn commit(&mut self, record: &RegionRecord) -> impl Future<Output = Outcome<()>> + Send;
    /// Throws everything since `begin` away.
    fn abandon(&mut self) -> impl Future<Output = Outcome<()>> + Send;
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Until it and every commit before it is durable.
    Now,
    /// For nothing: a later commit makes it durable. Until then a crash of the server may undo it, with its checkpoint and
    /// everything after it.
    Later,
}

/// Why a step of a batch did not work.
#[derive(Debug)]
pub enum ApplyError {
    /// Rows were not as the changes require (a duplicate, a missing row): replay row by row, or report.
    Mismatch(Mismatch),
    /// Anything else.
    Fault(Fault),
}

impl From<Fault> for ApplyError {
    fn from(fault: Fault) -> Self {
        ApplyError::Fault(fault)
    }
}

/// A change that does not fit the rows on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The target table.
    pub table: String,
    /// The key, if one row is known to be meant.
    pub key: Option<String>,
    /// What was expected and what was found; values as text.
    pub what: String,
}

/// The session that applies the stream. One target transaction is `begin` … `commit`.
///
/// The steps between them are written in the order of the calls. After an error the transaction is over;
/// `rollback` must be called before the next `begin`.
pub trait Applier: Send + 'static {
    /// A net effect in the form in which it is sent.
    type Encoded: Send + Sync;

    /// Encodes the net effect on one table. Pure: it is done beside the session, while that is busy with the batch before.
    fn encode(table: &Table, net: Net) -> Outcome<Self::Encoded>;
    /// Begins a transaction: token check, replica role, origin. May be sent together with the first step.
    fn begin(&mut self) -> impl Future<Output = Result<(), ApplyError>> + Send;
    /// Writes the net effect on one table, set-wise: deletes, updates, changes of keys, inserts. Counts must come out exactly. May be sent
    /// together with what comes after it; then a later call, at the latest `commit`, says what does not fit, and nothing
    /// is committed.
    fn net(
        &mut self,
        table: &Table,
        net: &Self::Encoded,
    ) -> impl Future<Output = Result<(), ApplyError>> + Send;
    /// Writes changes of one table one by one, in order (TRUNCATE included), each tested for presence.
    fn in_order(
        &mut self,
        table: &Table,
        changes: &[Change],
    ) -> impl Future<Output = Result<(), ApplyError>> + Send;
    /// Moves the checkpoint from `from` to `to` (a compare-and-swap) and commits.
    fn commit(
        &mut self,
        from: Position,
        to: &Checkpoint,
        durability: Durability,
    ) -> impl Future<Output = Result<(), ApplyError>> + Send;
    /// Gives the transaction up.
    fn rollback(&mut self) -> impl Future<Output = Outcome<()>> + Send;
}
