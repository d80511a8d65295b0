//! Servers: what becomes of a request, step by step, and of everything that runs when a server dies.

use super::state::*;
use super::world::World;
use segue_model::switch::guard::Guard;
use segue_model::switch::ownership::{
    Attempt, Epoch, Ownership, become_follower, fence, flip, open, unfence,
};
use segue_model::switch::token;

impl World {
    /// The follower's guard.
    pub(crate) fn followers_guard(&self) -> Guard {
        if self.without.follower_is_fenced_forever { Guard::Until(DEADLINE_US) } else { Guard::Forever }
    }

    /// The server goes on with a request; `None` while it has to wait for a lock.
    pub(crate) fn run(&self, state: &mut State, of: Option<usize>, mut request: Request) -> Option<()> {
        let side = request.side;
        let row_is_free = !state.row_locked(side) && !state.row_held(side, true);
        let db = &state.dbs[side];
        match request.stage {
            Stage::Sent => {
                let unchecked = (self.without.token_on_target && side == 1)
                    || (self.without.unfence_compares && matches!(request.op, Op::Unfence(_)));
                if !unchecked && token::admit(request.token, db.token).is_err() {
                    state.set_request(of, None);
                    if let Some(driver) = of {
                        shut_out(&mut state.drivers[driver]);
                    }
                    return Some(());
                }
                request.stage = Stage::Admitted;
            }
            Stage::Admitted => match request.op {
                Op::Flip(fence) if self.without.clock_after_lock && !request.checked => {
                    if flip(db.row, fence, db.now_us(), MARGIN_US).is_err() {
                        state.set_request(of, None);
                        return Some(());
                    }
                    request.checked = true;
                }
                Op::Flip(_) => {
                    row_is_free.then_some(())?;
                    request.stage = Stage::Row;
                }
                Op::Fence { .. } if self.without.refence_locks && db.guard != Guard::Off => {
                    request.stage = Stage::Tables;
                }
                Op::Fence { .. } | Op::Unfence(_) | Op::Open(_) | Op::Follow(_) => {
                    (!state.written(side) && !state.tables_locked(side)).then_some(())?;
                    (request.stage, request.tables) = (Stage::Tables, true);
                }
            },
            Stage::Tables => {
                row_is_free.then_some(())?;
                request.stage = Stage::Row;
            }
            Stage::Row => {
                self.commit(&mut state.dbs[side], request);
                state.set_request(of, None);
                return Some(());
            }
        }
        state.set_request(of, Some(request));
        Some(())
    }

    /// The checks under the row's lock, and the commit; a refusal changes nothing.
    pub(crate) fn commit(&self, db: &mut Db, request: Request) {
        match request.op {
            Op::Fence { last, new } => {
                if let Ok(row) = fence(db.row, last, Attempt(u64::from(new)), DEADLINE_US) {
                    (db.row, db.guard, db.late) = (row, Guard::Until(DEADLINE_US), false);
                    db.log.extend(row.fence_id().map(Entry::Marker));
                }
            }
            Op::Unfence(id) => {
                let blind = Ownership::Owner { epoch: id.epoch, attempt: id.attempt };
                let row = if self.without.unfence_compares { Ok(blind) } else { unfence(db.row, id) };
                if let Ok(row) = row {
                    (db.row, db.guard, db.late) = (row, Guard::Off, false);
                }
            }
            Op::Flip(id) => {
                let now_us = if request.checked { EARLY } else { db.now_us() };
                let pretended =
                    Ownership::Fenced { epoch: id.epoch, attempt: id.attempt, deadline_us: DEADLINE_US };
                let same_epoch = self.without.flip_compares && db.row.epoch() == id.epoch;
                let row = if same_epoch { pretended } else { db.row };
                if let Ok(row) = flip(row, id, now_us, MARGIN_US) {
                    db.durable = self.without.flip_is_synchronous.then_some(db.row);
                    db.row = row;
                }
            }
            Op::Open(id) => {
                let applied = if self.without.open_looks_for_marker { Some(id) } else { db.applied };
                let lowest = Ownership::Follower { epoch: Epoch(0) };
                let row = if self.without.open_compares { lowest } else { db.row };
                if let Ok(row) = open(row, id, applied) {
                    (db.row, db.guard, db.late) = (row, Guard::Off, false);
                }
            }
            Op::Follow(successor) => {
                if let Ok(row) = become_follower(db.row, Epoch(successor)) {
                    (db.row, db.guard) = (row, self.followers_guard());
                    db.late = db.late && db.guard != Guard::Forever;
                }
            }
        }
    }

    pub(crate) fn raise(&self, state: &mut State, driver: usize, side: usize) -> Option<()> {
        let presented = state.drivers[driver].token?;
        let half = self.without.token_on_target && side == 1;
        if !half {
            for (of, request) in state.requests().collect::<Vec<_>>() {
                if request.side == side && request.stage != Stage::Sent {
                    // The taker waits for the shared locks, and ends what outlasts it.
                    (!self.without.idle_time_out).then_some(())?;
                    end(state, of);
                }
            }
            match token::raise(presented, state.dbs[side].token) {
                Ok(token) => state.dbs[side].token = token,
                Err(_) => {
                    shut_out(&mut state.drivers[driver]);
                    return Some(());
                }
            }
        }
        state.drivers[driver].reached[side] = true;
        Some(())
    }

    pub(crate) fn apply(state: &mut State, from: usize) -> Option<()> {
        if state.dbs[from].log.is_empty() {
            return None;
        }
        match state.dbs[from].log.remove(0) {
            Entry::Write => state.dbs[1 - from].rows += 1,
            Entry::Marker(id) => state.dbs[1 - from].applied = Some(id),
        }
        Some(())
    }

    pub(crate) fn crash(state: &mut State, side: usize) {
        state.crashes_left -= 1;
        if let Some(row) = state.dbs[side].durable.take() {
            state.dbs[side].row = row;
        }
        for writer in &mut state.writers {
            match writer.at {
                At::Snapshot { side: at, .. }
                | At::Asking { side: at, .. }
                | At::Writing { side: at, .. }
                    if at == side =>
                {
                    writer.at = At::Away;
                }
                _ => {}
            }
        }
        for (of, request) in state.requests().collect::<Vec<_>>() {
            if request.side == side {
                end(state, of);
            }
        }
    }
}

/// The driver does not know what became of its request, or was superseded: it may do nothing without a new token.
pub(crate) fn shut_out(driver: &mut Driver) {
    driver.token = None;
    driver.reached = [false; 2];
    driver.seen = [None; 2];
}

pub(crate) fn end(state: &mut State, of: Option<usize>) {
    state.set_request(of, None);
    if let Some(driver) = of {
        shut_out(&mut state.drivers[driver]);
    }
}
