//! Whether anybody still uses the side that does not own the writes: what was seen of it, and what that proves.
//!
//! Writes that the fence refused, and strays, are counted exactly. Reads are not: counters of scans do not say whose they
//! were, and the stream that writes the tables moves them too. So scans count as somebody's only where no stream wrote and
//! nothing was compared; for the rest of the time sessions are the evidence, and how long that was is said.
//!
//! All times are of that side's server. Nothing is asked or stored here.

use crate::spec::Profile;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Servers add what an idle session did to the counters about this late. (Before 15 what it did last may have to wait for
/// its next statement, or its end; sessions are looked at, too.)
const LATE_US: i64 = 12_000_000;
/// Without a look for longer than this, what moved meanwhile is not put down to a stream that was just restarted, and
/// nobody has looked at sessions.
const GAP_US: i64 = 60_000_000;
/// The shortest window that is accepted on production servers.
const PROD_WINDOW_MIN: Duration = Duration::from_secs(3_600);
/// Sessions that are named one by one.
const NAMED_MAX: usize = 5;

/// For how long nothing may have used the old side before it is given up, unless the operator says so: seven days in
/// production, which has a rhythm of weeks; an hour in staging; in dev only what is there at this moment.
pub fn window(profile: Profile) -> Duration {
    match profile {
        Profile::Prod => Duration::from_secs(7 * 24 * 3_600),
        Profile::Staging => Duration::from_secs(3_600),
        Profile::Dev => Duration::ZERO,
    }
}

/// The shortest window that an operator may ask for: an hour in production.
pub fn window_min(profile: Profile) -> Duration {
    match profile {
        Profile::Prod => PROD_WINDOW_MIN,
        Profile::Staging | Profile::Dev => Duration::ZERO,
    }
}

/// What was counted for one table, by the server, since its statistics were reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Scans, of the table or by one of its indexes.
    pub scans: i64,
    /// Rows inserted, updated and deleted. The stream's are among them.
    pub changes: i64,
}

/// A session that is no stream of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// User, application, address and process, in words.
    pub who: String,
    /// When it was busy the last time; now, if it is busy.
    pub busy_at_us: i64,
    /// Tables that it holds a lock on.
    pub holds: BTreeSet<String>,
    /// Tables that its statement, or its last one, names.
    pub names: BTreeSet<String>,
}

/// One look at a side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When, by the server's clock, in microseconds since the Unix epoch.
    pub at_us: i64,
    /// When the statistics were reset, or lost in a crash, the last time.
    pub reset_at_us: Option<i64>,
    /// Writes that the fence has refused so far.
    pub refused: i64,
    /// When it refused the last one.
    pub refused_at_us: Option<i64>,
    /// Roots and leaves, by name.
    pub tables: BTreeMap<String, Counters>,
    /// Everybody else's sessions.
    pub sessions: Vec<Session>,
}

/// What this process has done on that side, and what its streams have met there, since the attempt of this token began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Own {
    /// Which process counts, and which attempt of it.
    pub token: i64,
    /// Transactions that have arrived to be applied there, and again when they were: while one is between, its scans may
    /// be counted already.
    pub applied: u64,
    /// Rows compared there.
    pub compared: u64,
    /// Verifications begun.
    pub verifications: u64,
    /// A verification runs.
    pub verifying: bool,
    /// Writes past the fence that the stream has met.
    pub strays: u64,
}

/// How the side was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A write that the fence has refused.
    RefusedWrite,
    /// A write past the fence.
    Stray,
    /// A scan of a table that was not ours.
    Read,
    /// A session with a lock on a table, or whose statement names one.
    Session,
}

/// The last use of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// Not later than this.
    pub at_us: i64,
    /// Of which table, by whom; in words.
    pub what: String,
}

/// Time for which scans do not say whose they were, all intervals together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blind {
    /// All of it.
    pub total_us: i64,
    /// When that began the first time.
    pub first_us: i64,
    /// When it ended the last time.
    pub last_us: i64,
}

impl Blind {
    fn add(&mut self, from: i64, until: i64) {
        if self.total_us == 0 {
            self.first_us = from;
        }
        (self.total_us, self.last_us) = (self.total_us + until - from, until);
    }
}

/// What was seen of a side since it lost the writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The owner's epoch: another hand-over begins another record.
    pub epoch: u64,
    /// Watched since then.
    pub since_us: i64,
    /// Why not for longer, where that is not the hand-over.
    pub restarted: Option<String>,
    /// The last look.
    pub last: Look,
    /// What we had done until then.
    pub own: Own,
    /// When our own doings may have moved a counter the last time.
    pub own_at_us: i64,
    /// The last use of each kind.
    pub uses: BTreeMap<Kind, Use>,
    /// Where the stream wrote.
    pub blind_by_stream: Option<Blind>,
    /// Where rows were compared.
    pub blind_by_verification: Option<Blind>,
    /// The part of both in which nobody looked at sessions, either.
    #[serde(default)]
    pub unwatched: Option<Blind>,
}

impl Record {
    /// Begins to watch. What this process did just before may still be on its way into the counters.
    pub fn begin(epoch: u64, look: Look, own: Own) -> Record {
        let mut record = Record {
            epoch,
            since_us: look.at_us,
            restarted: None,
            own_at_us: look.at_us,
            last: Look::default(),
            own,
            uses: BTreeMap::new(),
            blind_by_stream: None,
            blind_by_verification: None,
            unwatched: None,
        };
        record.note_sessions(&look);
        record.last = look;
        record
    }

    /// Takes a look along.
    pub fn observe(&mut self, look: Look, own: Own) {
        if let Some(why) = self.lost_count(&look) {
            let mut uses = std::mem::take(&mut self.uses);
            let begun = Record::begin(self.epoch, look, own);
            uses.extend(begun.uses.clone());
            *self = Record { restarted: Some(why), uses, ..begun };
            return;
        }
        let until = look.at_us;
        if look.refused > self.last.refused {
            let what = format!("{} write(s) were refused by its fence", look.refused - self.last.refused);
            // The count comes first: with it, the time may still be that of an earlier one.
            let at_us = look.refused_at_us.filter(|at_us| *at_us >= self.last.at_us).unwrap_or(until);
            self.used(Kind::RefusedWrite, at_us, what);
        }
        let before = if own.token == self.own.token { self.own } else { Own::default() };
        if own.strays > before.strays {
            let what = format!("{} transaction(s) were written past its fence", own.strays - before.strays);
            self.used(Kind::Stray, until, what);
        }
        self.note_scans(&look, own, before);
        self.note_sessions(&look);
        (self.last, self.own) = (look, own);
    }

    /// Scans since the last look: somebody's, unless they may be ours.
    fn note_scans(&mut self, look: &Look, own: Own, before: Own) {
        let (from, until) = (self.last.at_us, look.at_us);
        // A process that has just begun does not know what the one before it did last.
        let is_restarted = own.token != self.own.token && until - from < GAP_US;
        let streamed = own.applied != before.applied || is_restarted;
        let compared = own.compared != before.compared
            || own.verifications != before.verifications
            || own.verifying
            || before.verifying;
        // Asked before this interval counts: what we did in it can arrive late in the next ones.
        let may_be_late = self.own_at_us + LATE_US > from;
        if streamed || compared {
            self.own_at_us = until;
        }
        if streamed || compared || may_be_late {
            let blind = if compared { &mut self.blind_by_verification } else { &mut self.blind_by_stream };
            blind.get_or_insert_default().add(from, until);
            if until - from >= GAP_US {
                self.unwatched.get_or_insert_default().add(from, until);
            }
            return;
        }
        let read = |(name, now): (&String, &Counters)| {
            let before = self.last.tables.get(name).copied().unwrap_or_default();
            (now.scans > before.scans).then(|| name.clone())
        };
        let read: Vec<String> = look.tables.iter().filter_map(read).collect();
        if !read.is_empty() {
            self.used(Kind::Read, until, format!("{} was read", read.join(", ")));
        }
    }

    /// Why counters cannot be compared with those of the look before.
    fn lost_count(&self, look: &Look) -> Option<String> {
        if look.reset_at_us != self.last.reset_at_us {
            return Some("the server's statistics were reset".into());
        }
        let smaller = |(name, before): (&String, &Counters)| {
            look.tables.get(name).is_some_and(|now| now.scans < before.scans || now.changes < before.changes)
        };
        if self.last.tables.iter().any(smaller) || look.refused < self.last.refused {
            return Some("the server's statistics have lost what was counted before".into());
        }
        (look.at_us < self.last.at_us).then(|| "the server's clock was put back".into())
    }

    fn note_sessions(&mut self, look: &Look) {
        for session in &look.sessions {
            if !session.holds.is_empty() {
                let what = format!("{} holds a lock on {}", session.who, list(&session.holds));
                self.used(Kind::Session, look.at_us, what);
            } else if !session.names.is_empty() {
                let what = format!("the last statement of {} names {}", session.who, list(&session.names));
                self.used(Kind::Session, session.busy_at_us, what);
            }
        }
    }

    /// Takes along what the journal tells of strays, which an earlier process may have met after its last look: `count`
    /// of them, the last one at `at_us`.
    pub fn told_of_strays(&mut self, count: u64, at_us: i64) {
        self.used(Kind::Stray, at_us, format!("{count} transaction(s) were written past its fence"));
    }

    fn used(&mut self, kind: Kind, at_us: i64, what: String) {
        if self.uses.get(&kind).is_none_or(|known| known.at_us <= at_us) {
            self.uses.insert(kind, Use { at_us, what });
        }
    }

    /// What stands against giving the side up, if nothing was to use it from `window` before `from_us` on.
    pub fn against(&self, from_us: i64, window: Duration) -> Vec<Against> {
        let window_us = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        let begin_us = from_us.saturating_sub(window_us);
        let mut against = Vec::new();
        if self.since_us > begin_us {
            let left_us = self.since_us.saturating_sub(begin_us);
            against.push(Against::NotWatched { since_us: self.since_us, left_us });
        }
        let recent = self.uses.iter().filter(|(_, last)| last.at_us > begin_us);
        against.extend(recent.map(|(kind, last)| Against::Used { kind: *kind, last: last.clone() }));
        against
    }

    /// Sessions that are there and have not touched the tables, as far as it is seen.
    pub fn bystanders(&self) -> Vec<&str> {
        let stands_by = |s: &&Session| s.holds.is_empty() && s.names.is_empty();
        self.last.sessions.iter().filter(stands_by).map(|s| s.who.as_str()).take(NAMED_MAX).collect()
    }
}

/// Something that stands against giving the side up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Against {
    /// It was not watched for long enough.
    NotWatched {
        /// Since when it is.
        since_us: i64,
        /// How long that has to go on.
        left_us: i64,
    },
    /// It was used.
    Used {
        /// How.
        kind: Kind,
        /// The last time.
        last: Use,
    },
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// Which of `tables` the statement names: as a whole word, whatever its case. The schema need not be there.
pub fn named_in(statement: &str, tables: &BTreeSet<String>) -> BTreeSet<String> {
    let statement = statement.to_lowercase();
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let is_named = |table: &&String| {
        let bare = table.rsplit('.').next().unwrap_or(table).trim_matches('"').to_lowercase();
        statement.match_indices(&bare).any(|(at, found)| {
            !statement[..at].ends_with(word) && !statement[at + found.len()..].starts_with(word)
        })
    };
    tables.iter().filter(is_named).cloned().collect()
}

#[cfg(test)]
mod tests;
