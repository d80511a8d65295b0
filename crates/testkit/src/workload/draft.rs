//! What a client does next: a whole transaction, thought out before its first statement is sent. Pure, so that a
//! seed always drafts the same for the same memory.

use super::memory::{Change, Memory, RowId};
use super::schema::{FIRST_GENERAL, ITEMS, ITEMS_PER_ORDER, Kind, ORDERS, SCRATCH, SHAPES, Shape};
use rand::Rng;

/// A statement, and how many rows it has to affect if nothing was lost before (`None`: not counted).
pub(super) type Statement = (String, Option<u64>);

/// A transaction without its BEGIN and its last word.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) statements: Vec<Statement>,
    pub(super) changes: Vec<Change>,
    /// Given up with ROLLBACK, on purpose.
    pub(super) rollback: bool,
}

/// How often things happen; see [`Options`](super::Options).
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    pub(super) large_rows: u64,
    pub(super) truncate: bool,
}

pub(super) fn transaction(memory: &mut Memory, rng: &mut impl Rng, seq: u64, habits: Habits) -> Draft {
    let mut pen = Pen { memory, draft: Draft::default(), seq };
    if habits.large_rows > 0 && rng.random_ratio(1, 400) {
        pen.large(rng, habits.large_rows);
    } else {
        for _ in 0..rng.random_range(1..=5) {
            if rng.random_ratio(1, 10) {
                pen.savepoint(rng, habits);
            } else {
                pen.operation(rng, habits);
            }
        }
    }
    pen.draft.rollback = rng.random_ratio(1, 20);
    pen.ledger(rng);
    pen.draft
}

struct Pen<'a> {
    memory: &'a mut Memory,
    draft: Draft,
    seq: u64,
}

impl Pen<'_> {
    fn write(&mut self, sql: String, affected: u64) {
        self.draft.statements.push((sql, Some(affected)));
    }

    fn control(&mut self, sql: &str) {
        self.draft.statements.push((sql.to_owned(), None));
    }

    fn leaves(&mut self, row: RowId, state: Option<String>) {
        self.draft.changes.push(Change::Row(row, state));
    }

    /// As the transaction itself sees the row now.
    fn state(&self, row: RowId) -> Option<String> {
        for change in self.draft.changes.iter().rev() {
            match change {
                Change::Row(changed, state) if *changed == row => return state.clone(),
                Change::Clear(shape) if *shape == row.0 => return None,
                Change::Row(..) | Change::Clear(_) => {}
            }
        }
        self.memory.state(row)
    }

    /// A row that is there and may be written.
    fn existing(&self, shape: usize, rng: &mut impl Rng) -> Option<(u64, String)> {
        (0..8).find_map(|_| {
            let n = self.memory.candidate(shape, rng.random())?;
            let state = self.state((shape, n)).filter(|_| self.memory.is_writable((shape, n)))?;
            Some((n, state))
        })
    }

    fn operation(&mut self, rng: &mut impl Rng, habits: Habits) {
        match rng.random_range(0..10) {
            0 => self.order(rng),
            1 if self.memory.client == 0 => self.scratch(rng, habits),
            _ => {
                let shape = rng.random_range(FIRST_GENERAL..SHAPES.len());
                match rng.random_range(0..10) {
                    0..3 => self.insert(shape, rng),
                    3..8 => self.update(shape, rng),
                    _ => self.delete(shape, rng),
                }
            }
        }
    }

    fn insert(&mut self, shape: usize, rng: &mut impl Rng) {
        let n = self.memory.fresh(1);
        let (sql, mut state) = (SHAPES[shape].insert(n, n, self.seq), SHAPES[shape].inserted(n, self.seq));
        if SHAPES[shape].kind == Kind::Keyless && rng.random_bool(0.5) {
            // The same row twice.
            self.write(sql.clone(), 1);
            state = format!("{state},{state}");
        }
        self.write(sql, 1);
        self.leaves((shape, n), Some(state));
    }

    fn update(&mut self, shape: usize, rng: &mut impl Rng) {
        let Some((n, state)) = self.existing(shape, rng) else { return };
        let (table, seq): (&Shape, u64) = (&SHAPES[shape], self.seq);
        match table.kind {
            Kind::Relocating => self.relocate((shape, n), &state, rng),
            Kind::Document if rng.random_ratio(1, 4) => {
                let body = format!(
                    ", body_version = {seq}, body = repeat(md5(n || ':{seq}'), (100 + n % 200)::int)"
                );
                self.write(table.update(n, seq, &body), 1);
                self.leaves((shape, n), Some(format!("{seq}:{seq}")));
            }
            Kind::Keyless => {
                self.write(table.update(n, seq, ""), state.split(',').count() as u64);
                self.leaves((shape, n), Some(table.updated(n, seq, &state)));
            }
            Kind::Plain | Kind::Rescaled | Kind::Moving | Kind::Document => {
                self.write(table.update(n, seq, ""), 1);
                self.leaves((shape, n), Some(table.updated(n, seq, &state)));
            }
        }
    }

    /// A plain update, a new key, or the keys of two rows swapped; the large value is not touched in any of them.
    fn relocate(&mut self, (shape, n): RowId, state: &str, rng: &mut impl Rng) {
        let (table, seq) = (SHAPES[shape].table, self.seq);
        let key_of = |state: &str| state.split(':').next().unwrap_or_default().to_owned();
        let key = key_of(state);
        let other = if rng.random_ratio(1, 3) { self.existing(shape, rng) } else { None };
        if let Some((other, other_state)) = other.filter(|(other, _)| *other != n) {
            let other_key = key_of(&other_state);
            let mut set = |from: &str, to: &str| {
                let sql = format!("UPDATE {table} SET key = {to}, version = {seq} WHERE key = {from}");
                self.write(sql, 1);
            };
            set(&key, &format!("-{key}"));
            set(&other_key, &key);
            set(&format!("-{key}"), &other_key);
            self.leaves((shape, n), Some(format!("{other_key}:{seq}")));
            self.leaves((shape, other), Some(format!("{key}:{seq}")));
        } else if rng.random_bool(0.5) {
            let new_key = self.memory.fresh(1);
            self.write(format!("UPDATE {table} SET key = {new_key}, version = {seq} WHERE key = {key}"), 1);
            self.leaves((shape, n), Some(format!("{new_key}:{seq}")));
        } else {
            self.write(format!("UPDATE {table} SET version = {seq} WHERE key = {key}"), 1);
            self.leaves((shape, n), Some(format!("{key}:{seq}")));
        }
    }

    fn delete(&mut self, shape: usize, rng: &mut impl Rng) {
        let Some((n, state)) = self.existing(shape, rng) else { return };
        let table = &SHAPES[shape];
        match table.kind {
            Kind::Relocating => {
                let key = state.split(':').next().unwrap_or_default();
                self.write(format!("DELETE FROM {} WHERE key = {key}", table.table), 1);
                self.leaves((shape, n), None);
            }
            Kind::Keyless => {
                // One of the copies, whichever.
                let sql = format!(
                    "DELETE FROM {0} WHERE ctid = (SELECT ctid FROM {0} WHERE {1} ORDER BY version LIMIT 1)",
                    table.table,
                    table.at(n)
                );
                self.write(sql, 1);
                self.leaves((shape, n), state.split_once(',').map(|(_, rest)| rest.to_owned()));
            }
            Kind::Plain | Kind::Rescaled | Kind::Moving | Kind::Document => {
                self.write(table.delete(n), 1);
                self.leaves((shape, n), None);
                if rng.random_ratio(1, 3) {
                    // The same key again in the same transaction (of another scale, in another partition).
                    self.write(table.insert(n, n, self.seq), 1);
                    self.leaves((shape, n), Some(table.inserted(n, self.seq)));
                }
            }
        }
    }

    /// Orders come and go with their items; the second half by the foreign key's cascade.
    fn order(&mut self, rng: &mut impl Rng) {
        let items = |order: u64| order * ITEMS_PER_ORDER..(order + 1) * ITEMS_PER_ORDER;
        let seq = self.seq;
        let existing = self.existing(ORDERS, rng);
        match existing.filter(|(order, _)| items(*order).all(|item| self.memory.is_writable((ITEMS, item)))) {
            Some((order, _)) if rng.random_ratio(2, 3) => {
                self.write(SHAPES[ORDERS].update(order, seq, ""), 1);
                self.leaves((ORDERS, order), Some(seq.to_string()));
                let item = order * ITEMS_PER_ORDER + rng.random_range(0..ITEMS_PER_ORDER);
                self.write(SHAPES[ITEMS].update(item, seq, ""), 1);
                self.leaves((ITEMS, item), Some(seq.to_string()));
            }
            Some((order, _)) if rng.random_bool(0.5) => {
                self.write(SHAPES[ORDERS].delete(order), 1);
                self.leaves((ORDERS, order), None);
                items(order).for_each(|item| self.leaves((ITEMS, item), None));
            }
            _ => {
                let order = self.memory.fresh(1);
                self.write(SHAPES[ORDERS].insert(order, order, seq), 1);
                self.leaves((ORDERS, order), Some(seq.to_string()));
                let range = items(order);
                self.write(SHAPES[ITEMS].insert(range.start, range.end - 1, seq), ITEMS_PER_ORDER);
                range.for_each(|item| self.leaves((ITEMS, item), Some(seq.to_string())));
            }
        }
    }

    /// The one table that is truncated has one writer: only so is it known what its rows are afterwards.
    fn scratch(&mut self, rng: &mut impl Rng, habits: Habits) {
        if !self.memory.is_shape_writable(SCRATCH) {
            return;
        }
        if habits.truncate && rng.random_ratio(1, 20) {
            self.control(&format!("TRUNCATE {}", SHAPES[SCRATCH].table));
            self.draft.changes.push(Change::Clear(SCRATCH));
        }
        match rng.random_range(0..3) {
            0 => self.update(SCRATCH, rng),
            1 => self.delete(SCRATCH, rng),
            _ => drop(self.insert_many(SCRATCH, 3)),
        }
    }

    fn insert_many(&mut self, shape: usize, count: u64) -> (u64, u64) {
        let lo = self.memory.fresh(count);
        let hi = lo + count - 1;
        self.write(SHAPES[shape].insert(lo, hi, self.seq), count);
        for n in lo..=hi {
            self.leaves((shape, n), Some(SHAPES[shape].inserted(n, self.seq)));
        }
        (lo, hi)
    }

    /// Many rows of one table inserted, and then a part of them deleted again.
    fn large(&mut self, rng: &mut impl Rng, rows: u64) {
        let plain = |shape: &usize| matches!(SHAPES[*shape].kind, Kind::Plain | Kind::Moving);
        let choices: Vec<usize> = (FIRST_GENERAL..SHAPES.len()).filter(plain).collect();
        let shape = choices[rng.random_range(0..choices.len())];
        let (lo, hi) = self.insert_many(shape, rng.random_range(rows / 2..=rows).max(2));
        for n in lo..(lo + (hi - lo) / 20) {
            self.write(SHAPES[shape].delete(n), 1);
            self.leaves((shape, n), None);
        }
    }

    /// Operations that are kept, or undone with the rest of the transaction going on.
    fn savepoint(&mut self, rng: &mut impl Rng, habits: Habits) {
        self.control("SAVEPOINT before");
        let kept = self.draft.changes.len();
        for _ in 0..rng.random_range(1..=2) {
            self.operation(rng, habits);
        }
        if rng.random_bool(0.5) {
            self.control("ROLLBACK TO SAVEPOINT before");
            self.draft.changes.truncate(kept);
        }
        self.control("RELEASE SAVEPOINT before");
    }

    /// The entry that says the transaction happened; half of them with money moved between two accounts.
    fn ledger(&mut self, rng: &mut impl Rng) {
        let (client, seq, accounts) = (self.memory.client, self.seq, self.memory.seeded.accounts);
        let columns = "INSERT INTO shop.ledger (client, seq, from_account, to_account, amount) VALUES";
        if accounts < 2 || rng.random_bool(0.5) {
            return self.write(format!("{columns} ({client}, {seq}, NULL, NULL, NULL)"), 1);
        }
        let from = rng.random_range(1..=accounts);
        let to = (from + rng.random_range(0..accounts - 1)) % accounts + 1;
        let amount = format!("{}.{:02}", rng.random_range(0..50), rng.random_range(1..100));
        // Locked in the order of their ids, so that transfers never wait for each other in a circle.
        let mut sides = [(from, format!("- {amount}")), (to, format!("+ {amount}"))];
        sides.sort();
        for (account, delta) in sides {
            self.write(format!("UPDATE shop.account SET balance = balance {delta} WHERE id = {account}"), 1);
        }
        self.write(format!("{columns} ({client}, {seq}, {from}, {to}, {amount})"), 1);
    }
}
