//! What verifying asks of the two sides, of the stream between them, and of the place where results are kept.

use super::report::{Report, Request};
use crate::fault::Fault;
use crate::ports::Outcome;
use segue_model::change::Row;
use segue_model::divergence::Divergence;
use segue_model::key::KeyText;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::table::{Table, TableId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;

/// What is compared one by one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// The row with this key, by the key type's own equality.
    Key(KeyText),
    /// All rows whose whole image has this hash, in a table without a key.
    Image(i64),
}

/// A range's digest: unequal digests mean unequal rows, or rows in flight; equal ones equal rows (but for 2⁻⁶⁴).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Rows.
    pub rows: u64,
    /// Sum of the rows' hashes: independent of their order, and not blind to pairs as XOR would be.
    pub sum: i128,
    /// Bytes of the rows in the form that is hashed; not compared.
    pub bytes: u64,
}

impl Digest {
    /// Whether both sides have the same rows.
    pub fn same(&self, other: &Digest) -> bool {
        (self.rows, self.sum) == (other.rows, other.sum)
    }
}

/// One row of a list of hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// Which row, or which rows.
    pub item: Item,
    /// How many rows: 1 with a key.
    pub rows: u64,
    /// Its hash.
    pub hash: i64,
    /// Its bytes.
    pub bytes: u64,
}

/// What a side has for one [`Item`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// How many rows; 0: none. More than one with a key only where the side has lost its key.
    pub rows: u64,
    /// Their hash, or the sum of them; 0 when there is none.
    pub hash: i64,
    /// Bytes of one of them.
    pub bytes: u64,
    /// Which versions of rows these are. Two readings of one side with equal versions saw the same rows, and a row
    /// version that is gone never comes back. Empty for none.
    pub version: String,
}

impl Reading {
    /// Whether both sides have the same content.
    pub fn same(&self, other: &Reading) -> bool {
        self.rows == other.rows && (self.rows == 0 || self.hash == other.hash)
    }
}

/// A row in full, and the version it was read in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullRow {
    /// Every travelling column, as its type's output function writes it under the pinned settings.
    pub row: Row,
    /// As [`Reading::version`].
    pub version: String,
}

/// One side of a comparison: reads rows through the mapping, each call a short statement with a snapshot of its own.
pub trait Comparable: Send + Sync + 'static {
    /// The key of the row that lies `rows` rows into `within`, in this side's own order; `None`: it has fewer.
    fn bound_after(
        &self,
        table: &Table,
        within: &Extent,
        rows: u64,
    ) -> impl Future<Output = Outcome<Option<KeyText>>> + Send;
    /// The digest of the rows of `within`.
    fn digest(&self, table: &Table, within: &Extent) -> impl Future<Output = Outcome<Digest>> + Send;
    /// Every row of `within` with its hash.
    fn hashes(&self, table: &Table, within: &Extent) -> impl Future<Output = Outcome<Vec<Hashed>>> + Send;
    /// Digests of all rows by the low bits of their hash: `buckets` (a power of two) of them, empty ones left out.
    /// For tables without a key.
    fn buckets(
        &self,
        table: &Table,
        buckets: u32,
    ) -> impl Future<Output = Outcome<BTreeMap<u32, Digest>>> + Send;
    /// Every image of the named buckets with its hash and how often it occurs.
    fn images(
        &self,
        table: &Table,
        buckets: u32,
        wanted: &[u32],
    ) -> impl Future<Output = Outcome<Vec<Hashed>>> + Send;
    /// What is there for each item, in one snapshot, in the order of `items`.
    fn read(&self, table: &Table, items: &[Item]) -> impl Future<Output = Outcome<Vec<Reading>>> + Send;
    /// The rows in full, in one snapshot; of several with one image, or one key, any one with the versions of all.
    fn rows(
        &self,
        table: &Table,
        items: &[Item],
    ) -> impl Future<Output = Outcome<Vec<Option<FullRow>>>> + Send;
    /// How many rows there are.
    fn count(&self, table: &Table) -> impl Future<Output = Outcome<u64>> + Send;
    /// About `rows` rows picked at random.
    fn sample(&self, table: &Table, rows: u64) -> impl Future<Output = Outcome<Vec<Item>>> + Send;
    /// Where this side's log ends now.
    fn position(&self) -> impl Future<Output = Outcome<Position>> + Send;
    /// This side's columns that no comparison sees, because they do not travel: generated ones, and those the mapping leaves out.
    fn uncompared(&self, table: &Table) -> Vec<String>;
    /// The statement that would give *this* side the owner's row; `here` is the row it has, `owner` itself if it has it more
    /// than once.
    fn remedy(&self, table: &Table, owner: Option<&Row>, here: Option<&Row>) -> String;
}

/// The stream between the two sides, as far as settling needs it.
pub trait Passage: Send + Sync + 'static {
    /// Returns when everything that the owner showed before the call has been applied on the other side.
    fn passed(&self) -> impl Future<Output = Outcome<()>> + Send;
    /// Returns `true` once the owner shows, in every new snapshot, whatever the other side had applied before the call;
    /// `false` if it does not for a long while (a commit waits for a synchronous standby).
    fn shown(&self) -> impl Future<Output = Outcome<bool>> + Send;
    /// What the owner's table is made of, while both sides are made of the same; `None` while a part of it is on its way
    /// in or out: its rows are then on one side only, and none of them is a difference. Two equal answers: no part came
    /// or went in between.
    fn parts(&self, table: &Table) -> impl Future<Output = Outcome<Option<String>>> + Send;
}

/// What a repair came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// The rows are the owner's, durably.
    Copied,
    /// The other side does not take them as it is now, for this reason; nothing was changed.
    Refused(Fault),
}

/// Writes the owner's rows over differences.
pub trait Repairer: Send + Sync + 'static {
    /// Copies the rows of `extent` again, through the same path as the stream.
    ///
    /// `seen`, of a single row: the version that the owner has shown ([`Reading::version`]) before a call of [`Passage::passed`]
    /// that has returned since. Where other rows can keep it out, it is copied only if it has stood still.
    fn repair(
        &self,
        table: &Table,
        extent: &Extent,
        seen: Option<&str>,
    ) -> impl Future<Output = Outcome<Repaired>> + Send;
}

/// A range whose rows have been compared, unsettled ones settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedRange {
    /// Exclusive lower bound.
    pub lower: Option<KeyText>,
    /// Inclusive upper bound.
    pub upper: Option<KeyText>,
    /// What comparing it came to.
    pub counts: RangeCounts,
}

/// What comparing a range came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeCounts {
    /// Rows compared: the larger of both sides' counts.
    pub rows: u64,
    /// Ranges read, with those they were halved into.
    pub digests: u64,
    /// Rows that were unequal at first.
    pub unsettled: u64,
    /// Rows that changed too often to be settled.
    pub hot: u64,
    /// Of them those that nobody remembers, for lack of room: no fence will have them compared.
    #[serde(default)]
    pub forgotten: u64,
    /// Differences confirmed.
    pub divergent: u64,
    /// Of them repaired and found equal afterwards.
    pub repaired: u64,
    /// What reading the owner cost.
    pub owner: Cost,
    /// What reading the other side cost.
    pub other: Cost,
}

impl RangeCounts {
    /// Adds another range's counts.
    pub fn add(&mut self, more: &RangeCounts) {
        self.rows += more.rows;
        self.digests += more.digests;
        self.unsettled += more.unsettled;
        self.hot += more.hot;
        self.forgotten += more.forgotten;
        self.divergent += more.divergent;
        self.repaired += more.repaired;
        self.owner.add(more.owner);
        self.other.add(more.other);
    }
}

/// What reading one side cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Time its statements took, in milliseconds.
    pub ms: u64,
    /// Rows it read.
    pub rows: u64,
    /// Bytes of those rows.
    pub bytes: u64,
}

impl Cost {
    /// Adds another cost.
    pub fn add(&mut self, more: Cost) {
        self.ms += more.ms;
        self.rows += more.rows;
        self.bytes += more.bytes;
    }
}

/// The number of a verification in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VerificationId(pub i64);

/// The number of a difference in its store: what is found later has a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DivergenceId(pub i64);

/// A verification as the store has it at its beginning.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Its number.
    pub id: VerificationId,
    /// Ranges that an earlier process compared, in no particular order.
    pub ranges: BTreeMap<TableId, Vec<VerifiedRange>>,
    /// Differences it confirmed in them, at most [`DIVERGENCES_MAX`](super::report::DIVERGENCES_MAX).
    pub divergences: Vec<Divergence>,
}

/// Where verifications are kept.
pub trait Store: Send + Sync + 'static {
    /// Begins a verification; with [`Request::resume`] it continues the latest unfinished one of the same mode and
    /// tables, if there is one.
    fn begin(&self, request: &Request, tables: &[TableId]) -> impl Future<Output = Outcome<Begun>> + Send;
    /// Stores a compared range together with the differences found in it.
    fn verified(
        &self,
        id: VerificationId,
        table: TableId,
        range: &VerifiedRange,
        divergences: &[Divergence],
    ) -> impl Future<Output = Outcome<()>> + Send;
    /// Stores differences found outside a verification, and returns their numbers in the same order.
    fn diverged(&self, divergences: &[Divergence])
    -> impl Future<Output = Outcome<Vec<DivergenceId>>> + Send;
    /// The rows of these differences have been found equal since: they, and what was found of the same rows before, are open
    /// no more. Only those found outside a verification are meant: a verification's are closed by another one.
    fn found_equal(&self, ids: &[DivergenceId]) -> impl Future<Output = Outcome<()>> + Send;
    /// Ends a verification.
    fn end(&self, id: VerificationId, report: &Report) -> impl Future<Output = Outcome<()>> + Send;
}
