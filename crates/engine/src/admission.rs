//! What a stream may apply, told to it while it runs, and what was therefore not applied.
//!
//! Holds the answer and the record; the rule is in [`segue_model::switch::admission`], and who owns the writes is found
//! out elsewhere. One [`Admissions`] belongs to one stream and outlives its runs.

use crate::fault::Fault;
use crate::follow::spool::Changes;
use crate::ports::Outcome;
use segue_model::change::{Action, Change, TransactionHead};
use segue_model::key::KeyText;
use segue_model::position::Position;
pub use segue_model::switch::admission::{Admission, Judgement};
use segue_model::table::{Table, TableId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Strays that are kept in full; more are only counted.
const STRAYS_MAX: usize = 100;
/// Tables of a stray that are named.
const TABLES_MAX: usize = 20;
/// Keys of a table that are named …
const KEYS_MAX: usize = 5;
/// … each with at most this many characters.
const KEY_CHARS_MAX: usize = 200;

/// What of its side's log a stream may apply, as it changes, and what strays it has met.
#[derive(Debug)]
pub struct Admissions {
    admission: watch::Sender<Admission>,
    strays: Arc<Strays>,
}

impl Admissions {
    /// A handle that says `admission` until it is told otherwise.
    pub fn new(admission: Admission) -> Admissions {
        Admissions { admission: watch::Sender::new(admission), strays: Arc::default() }
    }

    /// What it says now.
    pub fn get(&self) -> Admission {
        *self.admission.borrow()
    }

    /// Tells the stream. What it has judged before is on its way: a signal sent after this has passed behind it.
    pub fn set(&self, admission: Admission) {
        self.admission.send_replace(admission);
    }

    /// Watches it.
    pub fn subscribe(&self) -> watch::Receiver<Admission> {
        self.admission.subscribe()
    }

    /// Waits until it is decided.
    pub async fn decided(&self) -> Admission {
        let mut admission = self.subscribe();
        let decided = admission.wait_for(|admission| *admission != Admission::Undecided).await;
        // Never an error: the sender is ours.
        decided.map_or(Admission::Undecided, |decided| *decided)
    }

    /// What was not applied.
    pub fn strays(&self) -> Arc<Strays> {
        self.strays.clone()
    }

    /// A fault unless the side that the stream comes from owns the writes: `what` cannot be done otherwise.
    pub(crate) fn owner_only(&self, what: &str) -> Outcome<()> {
        let (why, next) = match self.get() {
            Admission::All | Admission::From(_) => return Ok(()),
            Admission::Nothing => (
                "the side that this stream comes from does not own the writes, and its rows would be written over the \
                 owner's",
                "ask for it in the direction of the stream that comes from the owner",
            ),
            Admission::Undecided => (
                "it is being decided which side owns the writes",
                "ask again when `segue status` names the owner",
            ),
        };
        Err(Fault::operator("SEGUE-NOT-OWNER", format!("{what}: {why}"), next))
    }
}

/// How much was not applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrayCounts {
    /// Transactions with changes.
    pub transactions: u64,
    /// Changes of rows, and truncates.
    pub changes: u64,
}

/// A transaction that was committed on a side which did not own the writes, by somebody whom its fence did not stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// Where its commit record begins in that side's log.
    pub commit: Position,
    /// When it committed there, in microseconds since the Unix epoch.
    pub committed_at_us: i64,
    /// Its number there, the low 32 bits.
    pub xid: u32,
    /// How many changes it made.
    pub changes: u64,
    /// To which tables, at most the first 20 of the plan.
    pub tables: Vec<StrayTable>,
}

/// What a stray changed in one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrayTable {
    /// Its name on the side that was written to.
    pub table: String,
    /// How many changes.
    pub changes: u64,
    /// The first keys, as text, at most 5; `all rows` for a truncate, nothing for a table without a key.
    pub keys: Vec<String>,
}

/// Strays that nobody was told of before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewStrays {
    /// All of them.
    pub counts: StrayCounts,
    /// The newest 100 of them, oldest first.
    pub strays: Vec<Stray>,
}

/// The strays of one stream.
///
/// The stream's checkpoint passes no stray that was not told: whoever runs a stream takes [`Strays::untold`] as they
/// come, writes them down durably, and says so by [`Strays::told`]. Killed between the two, they are met and told again.
#[derive(Debug, Default)]
pub struct Strays {
    state: Mutex<State>,
    counts: watch::Sender<StrayCounts>,
    told: watch::Sender<StrayCounts>,
}

#[derive(Debug, Default)]
struct State {
    /// The newest, oldest first.
    latest: VecDeque<Stray>,
    /// Of them nobody was told of so many.
    untold: usize,
    /// Where the last one was committed.
    last: Option<Position>,
}

impl Strays {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A record that lost an entry in a panic is still a record.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there were since this process began.
    pub fn counts(&self) -> StrayCounts {
        *self.counts.borrow()
    }

    /// Watches how many there were.
    pub fn subscribe(&self) -> watch::Receiver<StrayCounts> {
        self.counts.subscribe()
    }

    /// The newest 100, oldest first.
    pub fn latest(&self) -> Vec<Stray> {
        self.lock().latest.iter().cloned().collect()
    }

    /// Those that nobody was told of, if there are any. They stay untold until [`Strays::told`].
    pub fn untold(&self) -> Option<NewStrays> {
        let state = self.lock();
        let (all, told) = (self.counts(), *self.told.borrow());
        if all == told {
            return None;
        }
        let counts = StrayCounts {
            transactions: all.transactions - told.transactions,
            changes: all.changes - told.changes,
        };
        let from = state.latest.len() - state.untold;
        Some(NewStrays { counts, strays: state.latest.range(from..).cloned().collect() })
    }

    /// What [`Strays::untold`] gave is written down durably: the checkpoint may pass it.
    pub fn told(&self, told: &NewStrays) {
        let mut state = self.lock();
        self.told.send_modify(|all| {
            all.transactions += told.counts.transactions;
            all.changes += told.counts.changes;
        });
        let left = self.counts().transactions - self.told.borrow().transactions;
        state.untold = usize::try_from(left).unwrap_or(STRAYS_MAX).min(STRAYS_MAX);
    }

    /// Whether all that were met are told.
    pub(crate) fn is_all_told(&self) -> bool {
        *self.told.borrow() == self.counts()
    }

    /// Waits until all that were met before are told.
    pub(crate) async fn all_told(&self) {
        let met = self.counts().transactions;
        // Never an error: the sender is ours.
        let _ = self.told.subscribe().wait_for(|told| told.transactions >= met).await;
    }

    /// Records one. A run that begins again meets those again whose checkpoint was not durable: they count once.
    fn record(&self, stray: Stray) {
        let mut state = self.lock();
        if state.last.is_some_and(|last| stray.commit <= last) {
            return;
        }
        if state.untold == 0 {
            // The first that nobody knows of; the others are counted, and told with it.
            tracing::warn!("a write on the side that does not own the writes was not applied: {stray:?}");
        }
        state.last = Some(stray.commit);
        let changes = stray.changes;
        if state.latest.len() == STRAYS_MAX {
            state.latest.pop_front();
        }
        state.latest.push_back(stray);
        state.untold = (state.untold + 1).min(STRAYS_MAX);
        // Under the lock: whoever tells them finds counts and list in step.
        self.counts.send_modify(|counts| {
            counts.transactions += 1;
            counts.changes += changes;
        });
    }

    /// Records a transaction that is not applied. One on disk is read piece by piece.
    pub(crate) fn met(
        &self,
        head: TransactionHead,
        changes: &Changes,
        tables: &BTreeMap<TableId, Arc<Table>>,
    ) -> Outcome<()> {
        let mut met: BTreeMap<TableId, StrayTable> = BTreeMap::new();
        for index in 0..changes.pieces() {
            for change in changes.piece(index)? {
                let table = tables.get(&change.table);
                let stray = met.entry(change.table).or_insert_with(|| StrayTable {
                    table: table
                        .map_or_else(|| format!("table {}", change.table.0), |t| t.source.to_string()),
                    changes: 0,
                    keys: Vec::new(),
                });
                stray.changes += 1;
                if stray.keys.len() < KEYS_MAX
                    && let Some(key) = table.and_then(|table| key_of(table, &change))
                    && !stray.keys.contains(&key)
                {
                    stray.keys.push(key);
                }
            }
        }
        self.record(Stray {
            commit: head.commit,
            committed_at_us: head.committed_at_us,
            xid: head.xid.0,
            changes: changes.count(),
            tables: met.into_values().take(TABLES_MAX).collect(),
        });
        Ok(())
    }
}

/// The key of the row that was changed, as it was before if the key itself changed.
fn key_of(table: &Table, change: &Change) -> Option<String> {
    let row = match &change.action {
        Action::Insert { new } | Action::Update { old: None, new } => new,
        Action::Update { old: Some(old), .. } | Action::Delete { old } => old,
        Action::Truncate { leaf: None, .. } => return Some("all rows".into()),
        Action::Truncate { leaf: Some(leaf), .. } => return Some(format!("all rows of {}", leaf.name)),
    };
    let key = KeyText::of(table.key()?, row).ok()?.to_string();
    Some(match key.char_indices().nth(KEY_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &key[..end]),
        None => key,
    })
}
