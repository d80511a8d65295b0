//! Writers: applications that write to either side whenever it lets them.

use super::state::*;
use super::world::{Event, World};
use segue_model::switch::guard::{Answer, Literal, late};
use segue_model::switch::ownership::{Ownership, take_back};

impl World {
    /// What a writer is told past the literal.
    pub(crate) fn late(&self, row: Ownership, now_us: i64) -> Answer {
        match (late(Some(row), now_us), row) {
            (Answer::TakeBack(_), _) if self.without.late_writers_take_back => Answer::Accept,
            (_, Ownership::Follower { .. }) if self.without.follower_refuses_late_writers => Answer::Accept,
            (answer, _) => answer,
        }
    }

    /// Whether a statement that begins now would go through.
    pub(crate) fn accepts(&self, db: &Db) -> bool {
        match db.guard.literal(db.now_us()) {
            Literal::Passes => true,
            Literal::Refuses => false,
            Literal::AsksRow => self.late(db.row, db.now_us()) != Answer::Refuse,
        }
    }

    /// A writer's statement takes the tables' lock and meets the trigger.
    pub(crate) fn begin(&self, state: &mut State, writer: usize, side: usize) -> Option<()> {
        let owner = match state.writers[writer].at {
            At::Away => None,
            At::Snapshot { side: at, owner } if at == side => Some(owner),
            At::Snapshot { .. } | At::Asking { .. } | At::Writing { .. } => return None,
        };
        if state.tables_locked(side) {
            return None;
        }
        let db = &state.dbs[side];
        state.writers[writer].at = match (db.guard.literal(db.now_us()), owner) {
            (Literal::Passes, _) => At::Writing { side, lock: Lock::None },
            (Literal::AsksRow, owner) => At::Asking { side, owner },
            (Literal::Refuses, Some(_)) => At::Away,
            (Literal::Refuses, None) => return None,
        };
        Some(())
    }

    /// A writer past the literal reads the row.
    pub(crate) fn ask(&self, state: &mut State, writer: usize) -> Option<()> {
        let At::Asking { side, owner } = state.writers[writer].at else { return None };
        let db = &state.dbs[side];
        let mut row = db.row;
        let is_owner = matches!(row, Ownership::Owner { .. });
        let plain = self.without.trigger_locks_row;
        if plain && owner == Some(true) {
            row = Ownership::FIRST_OWNER;
        }
        let answer = self.late(row, db.now_us());
        let lock = match answer {
            Answer::Accept if plain => Lock::None,
            Answer::Accept | Answer::Refuse => Lock::Share,
            Answer::TakeBack(_) => Lock::Update,
        };
        let waits = match lock {
            Lock::None => false,
            Lock::Share => !plain && (state.row_locked(side) || state.row_held(side, false)),
            Lock::Update => state.row_locked(side) || state.row_held(side, true),
        };
        if waits {
            return None;
        }
        // A row that has changed since the snapshot cannot be locked in it.
        let too_old = !plain && owner.is_some_and(|was| was != is_owner);
        let refused = too_old || answer == Answer::Refuse;
        state.writers[writer].at = if refused { At::Away } else { At::Writing { side, lock } };
        Some(())
    }

    pub(crate) fn end_of_writer(state: &mut State, writer: usize, commits: bool) -> Option<()> {
        let At::Writing { side, lock } = state.writers[writer].at else { return None };
        state.writers[writer].at = At::Away;
        if commits {
            state.writers[writer].left -= 1;
            let db = &mut state.dbs[side];
            if lock == Lock::Update {
                db.row = take_back(db.row, db.now_us().max(DEADLINE_US)).ok()?;
            }
            db.log.push(Entry::Write);
            db.rows += 1;
            state.acknowledged += 1;
        }
        Some(())
    }

    pub(crate) fn writer_events(&self, state: &State, events: &mut Vec<Event>) {
        for (i, writer) in state.writers.iter().enumerate() {
            // Of writers in the same place, one stands for all.
            if writer.left == 0 || (i > 0 && state.writers[i - 1] == *writer) {
                continue;
            }
            match writer.at {
                At::Away => {
                    for side in SIDES {
                        events.push(Event::Begin(i, side));
                        if self.snapshots {
                            events.push(Event::Snapshot(i, side));
                        }
                    }
                }
                At::Snapshot { side, .. } => events.push(Event::Begin(i, side)),
                At::Asking { .. } => events.push(Event::Ask(i)),
                At::Writing { .. } => events.extend([Event::Commit(i), Event::Rollback(i)]),
            }
        }
    }
}
