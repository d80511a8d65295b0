//! Who used which side with what, and when last: counts by user, application and shape of statement, and times by kind.
//!
//! It decides nothing. What is kept is bounded; what is beyond is counted under its user and application alone.

use crate::classify::{Class, StatementKind, Why};
use crate::stats::{Histogram, Times};
use segue_model::switch::Side;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many users with their applications and shapes are told apart.
const ENTRIES_MAX: usize = 2_000;
/// The shape of what is beyond that.
const OTHERS: &str = "(other statements)";

/// One user's and application's statements of one shape.
#[derive(Debug)]
pub(crate) struct Entry {
    user: Box<str>,
    application: Box<str>,
    pub(crate) fingerprint: u64,
    pub(crate) kind: StatementKind,
    shape: Box<str>,
    uses: [SideUses; 2],
}

#[derive(Debug, Default)]
struct SideUses {
    count: AtomicU64,
    /// Since the router began, and one more; 0: never.
    last_ms: AtomicU64,
}

/// Statements of one shape that one user's application was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Who is logged in.
    pub user: String,
    /// `application_name`, as the server reported it.
    pub application: String,
    /// `select`, `insert`, ….
    pub kind: &'static str,
    /// Names the shape.
    pub fingerprint: u64,
    /// The statement without its constants.
    pub shape: String,
    /// By the source.
    pub source: Uses,
    /// By the target.
    pub target: Uses,
}

/// How often, and how long ago it was last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uses {
    /// How often.
    pub count: u64,
    /// How long ago it was last.
    pub last: Option<Duration>,
}

/// How long one side takes for statements of one kind, from the client's last byte to the answer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindTimes {
    /// Which side.
    pub side: Side,
    /// `select`, `insert`, …: the strongest of those that were sent together.
    pub kind: &'static str,
    /// The times.
    pub times: Histogram,
}

/// Kinds in the order of [`StatementKind`]'s own, with the index of their times.
const KINDS: [StatementKind; 10] = [
    StatementKind::Select,
    StatementKind::Set,
    StatementKind::Transaction,
    StatementKind::Other,
    StatementKind::Copy,
    StatementKind::Insert,
    StatementKind::Update,
    StatementKind::Delete,
    StatementKind::Merge,
    StatementKind::Ddl,
];

fn index(side: Side) -> usize {
    usize::from(side == Side::Target)
}

impl Entry {
    /// As of `now` since the router began.
    fn read(&self, now: Duration) -> Served {
        Served {
            user: self.user.clone().into(),
            application: self.application.clone().into(),
            kind: self.kind.name(),
            fingerprint: self.fingerprint,
            shape: self.shape.clone().into(),
            source: self.uses[index(Side::Source)].read(now),
            target: self.uses[index(Side::Target)].read(now),
        }
    }
}

impl SideUses {
    fn read(&self, now: Duration) -> Uses {
        let last_ms = self.last_ms.load(Ordering::Relaxed).checked_sub(1);
        let last = last_ms.map(|ms| now.saturating_sub(Duration::from_millis(ms)));
        Uses { count: self.count.load(Ordering::Relaxed), last }
    }
}

type Key = (Box<str>, Box<str>, u64);

/// Everything that was served.
#[derive(Debug)]
pub(crate) struct Ledger {
    began: Instant,
    entries: Mutex<HashMap<Key, Arc<Entry>>>,
    times: [[Times; KINDS.len()]; 2],
    kept: Mutex<HashMap<Why, u64>>,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            began: Instant::now(),
            entries: Mutex::default(),
            times: Default::default(),
            kept: Mutex::default(),
        }
    }
}

impl Ledger {
    /// Where statements of this class are counted for this user and application.
    pub(crate) fn entry(&self, user: &str, application: &str, class: &Class) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = entries.len() >= ENTRIES_MAX;
        let mut key = (Box::from(user), Box::from(application), class.fingerprint);
        if let Some(known) = entries.get(&key) {
            return Arc::clone(known);
        }
        let mut shape = class.shape.clone();
        if is_full {
            (key.2, shape) = (0, OTHERS.into());
        }
        let entry = |(user, application, fingerprint): Key| {
            Arc::new(Entry {
                user,
                application,
                fingerprint,
                kind: class.kind,
                shape,
                uses: Default::default(),
            })
        };
        // Users and applications are few, or else their names are as good as made up: they share the last place.
        if entries.len() >= 2 * ENTRIES_MAX && !entries.contains_key(&key) {
            key = (Box::from(""), Box::from(""), 0);
        }
        Arc::clone(entries.entry(key.clone()).or_insert_with(|| entry(key)))
    }

    /// A statement was answered by this side.
    pub(crate) fn used(&self, entry: &Entry, side: Side, now: Instant) {
        let uses = &entry.uses[index(side)];
        uses.count.fetch_add(1, Ordering::Relaxed);
        let ms = u64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        uses.last_ms.fetch_max(ms.saturating_add(1), Ordering::Relaxed);
    }

    /// So long did this side take.
    pub(crate) fn took(&self, side: Side, kind: StatementKind, time: Duration) {
        if let Some(at) = KINDS.iter().position(|known| *known == kind) {
            self.times[index(side)][at].add(time);
        }
    }

    /// A statement that looks like a read stays with the owner.
    pub(crate) fn kept(&self, why: Why) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }

    /// Why statements that look like reads stay with the owner, and how many do.
    pub(crate) fn read_kept(&self) -> Vec<(&'static str, u64)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = kept.iter().map(|(why, count)| (why.name(), *count)).collect();
        all.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        all
    }

    /// What was served so far, so much at most: what the source served last comes first.
    pub(crate) fn read(&self, most: usize) -> Vec<Served> {
        let mut entries: Vec<Arc<Entry>> = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.values().map(Arc::clone).collect()
        };
        let on_source = |entry: &Entry| entry.uses[index(Side::Source)].last_ms.load(Ordering::Relaxed);
        entries.sort_by_cached_key(|entry| (std::cmp::Reverse(on_source(entry)), entry.fingerprint));
        let now = self.began.elapsed();
        entries.iter().take(most).map(|entry| entry.read(now)).collect()
    }

    /// How long it took, by side and kind; nothing of what was not served.
    pub(crate) fn read_times(&self) -> Vec<KindTimes> {
        let mut all = Vec::new();
        for side in [Side::Source, Side::Target] {
            for (kind, times) in KINDS.iter().zip(&self.times[index(side)]) {
                let times = times.read();
                if times.count() > 0 {
                    all.push(KindTimes { side, kind: kind.name(), times });
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::Classifier;

    fn class(sql: &str) -> Arc<Class> {
        Classifier::new().class(sql.as_bytes())
    }

    #[test]
    fn uses_are_counted_by_side_and_what_was_used_last_comes_first() {
        let ledger = Ledger::default();
        let entry = |sql: &str| ledger.entry("u", "app", &class(sql));
        let (read, write) = (entry("SELECT 1"), entry("DELETE FROM t WHERE a = 5"));
        assert!(Arc::ptr_eq(&write, &entry("DELETE FROM t WHERE a = 6")));
        assert!(!Arc::ptr_eq(&write, &ledger.entry("u", "other", &class("DELETE FROM t WHERE a = 5"))));
        let now = Instant::now();
        ledger.used(&read, Side::Target, now);
        ledger.used(&write, Side::Source, now);
        ledger.used(&write, Side::Source, now);
        ledger.took(Side::Source, write.kind, Duration::from_millis(3));
        let served = ledger.read(usize::MAX);
        assert_eq!(
            (served[0].kind, served[0].source.count, served[0].target),
            ("delete", 2, Uses::default())
        );
        assert!(served[0].source.last.unwrap() < Duration::from_secs(5) && !served[0].shape.contains('5'));
        let target = served.iter().find(|served| served.kind == "select").unwrap();
        assert_eq!((target.target.count, target.source.last), (1, None));
        let times = ledger.read_times();
        assert_eq!((times.len(), times[0].kind, times[0].side), (1, "delete", Side::Source));
    }

    #[test]
    fn what_is_kept_is_bounded_and_nothing_goes_uncounted() {
        let (ledger, now) = (Ledger::default(), Instant::now());
        for i in 0..ENTRIES_MAX + 50 {
            let class = class(&format!("SELECT a{i}"));
            ledger.used(&ledger.entry("u", "app", &class), Side::Source, now);
        }
        for i in 0..2 * ENTRIES_MAX {
            ledger.used(&ledger.entry("u", &i.to_string(), &class("SELECT 1")), Side::Source, now);
        }
        let served = ledger.read(usize::MAX);
        assert!(served.len() <= 2 * ENTRIES_MAX + 1);
        let total: u64 = served.iter().map(|served| served.source.count).sum();
        assert_eq!(total as usize, 3 * ENTRIES_MAX + 50);
        assert!(served.iter().any(|served| served.shape == OTHERS && served.source.count == 50));
    }

    #[test]
    fn every_kind_has_its_place() {
        let ledger = Ledger::default();
        for kind in KINDS {
            ledger.took(Side::Target, kind, Duration::from_millis(1));
        }
        let names: std::collections::HashSet<_> = ledger.read_times().iter().map(|t| t.kind).collect();
        assert_eq!(names.len(), KINDS.len());
    }
}
