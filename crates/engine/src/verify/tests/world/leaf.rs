//! A part of the owner that comes and goes outside the log.

use super::{Rows, Stored, World};
use rand::Rng;

/// A part of the owner, the rows with these keys, that comes and goes outside the log; the other side learns of it later,
/// by other ways.
#[derive(Debug)]
pub(super) struct Leaf {
    /// What is in it while it is off.
    rows: Rows,
    on_owner: bool,
    on_other: bool,
    /// The other side has passed over changes of it, and must let it go before it takes it again.
    noticed: bool,
    /// The other side's copy has everything before this place of the log.
    joined_at: usize,
    /// How often it came or went.
    moves: u64,
}

pub(super) fn of_leaf(key: i64) -> bool {
    key < 0
}

impl Leaf {
    /// Whether the owner's rows are the table's.
    pub(super) fn is_there(&self) -> bool {
        self.on_owner
    }

    /// What the table is made of, if both sides are made of the same.
    pub(super) fn made_of(&self) -> Option<String> {
        (self.on_owner == self.on_other && !self.noticed).then(|| self.moves.to_string())
    }
}

impl World {
    /// Lets a few rows come and go as a whole, and be written to while they are there.
    pub(in crate::verify::tests) fn with_leaf(mut self) -> World {
        let rows: Rows =
            (1..=3).map(|n| (-n, Stored { value: "v1".into(), version: u64::MAX - n as u64 })).collect();
        self.busy.extend([-1, -1, -1, -2]);
        self.owner.extend(rows.clone());
        self.other.extend(rows);
        let leaf = Leaf {
            rows: Rows::new(),
            on_owner: true,
            on_other: true,
            noticed: false,
            joined_at: 0,
            moves: 0,
        };
        self.leaf = Some(leaf);
        self
    }

    /// The owner goes ahead, rarely is back before the other side has noticed, and that takes its time.
    pub(super) fn move_leaf(&mut self) {
        let Some(leaf) = &mut self.leaf else { return };
        let hung = |t: &usize| self.log[*t].writes.iter().any(|(key, _)| of_leaf(*key));
        if self.hung.iter().any(hung) {
            // Their locks are waited for.
            return;
        }
        let behind = leaf.on_owner != leaf.on_other || leaf.noticed;
        if behind && !self.rng.random_ratio(1, 8) {
            self.other.retain(|key, _| !of_leaf(*key));
            leaf.on_other = leaf.on_owner && !leaf.noticed;
            leaf.noticed = false;
            if leaf.on_other {
                self.other.extend(
                    self.owner.iter().filter(|(key, _)| of_leaf(**key)).map(|(k, s)| (*k, s.clone())),
                );
                leaf.joined_at = self.log.len();
            }
            return;
        }
        leaf.on_owner = !leaf.on_owner;
        leaf.moves += 1;
        if leaf.on_owner {
            self.owner.append(&mut leaf.rows);
        } else {
            leaf.rows = self.owner.extract_if(.., |key, _| of_leaf(*key)).collect();
        }
    }

    /// Whether a change of the leaf is for the other side; one that is found gone is passed over from then on.
    pub(super) fn carries(&mut self, number: usize) -> bool {
        let Some(leaf) = &mut self.leaf else { return true };
        leaf.noticed |= leaf.on_other && !leaf.on_owner;
        leaf.on_other && !leaf.noticed && number >= leaf.joined_at
    }
}
