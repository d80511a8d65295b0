//! Two sides and a stream between them, in memory: every call to a port lets a seeded workload go on around it.
//!
//! The owner's commits reach the log before they are visible; the other side applies the log with a lag, in batches.

mod kept;
mod leaf;

use crate::fault::Fault;
use crate::ports::Outcome;
use crate::verify::ports::{Comparable, Digest, FullRow, Hashed, Item, Passage, Reading, Repaired, Repairer};
pub(super) use kept::Kept;
use leaf::{Leaf, of_leaf};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segue_model::change::{Row, Value};
use segue_model::key::KeyText;
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::table::{Identity, Table};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Barrier;

/// Which rules of the world are broken on purpose, to show that the tests would notice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Broken {
    /// Signals come back before they were applied.
    pub(super) passed: bool,
    /// Nobody waits until the owner shows what was applied.
    pub(super) shown: bool,
    /// Versions are the contents.
    pub(super) versions: bool,
    /// Nobody asks what the owner is made of.
    pub(super) parts: bool,
}

#[derive(Clone, Debug)]
struct Stored {
    value: String,
    version: u64,
}

type Rows = BTreeMap<i64, Stored>;

#[derive(Debug)]
struct Transaction {
    writes: Vec<(i64, Option<String>)>,
}

pub(super) struct World {
    rng: StdRng,
    owner: Rows,
    other: Rows,
    log: Vec<Transaction>,
    applied: usize,
    hung: Vec<usize>,
    versions: u64,
    /// The workload writes to these rows only.
    busy: Vec<i64>,
    values: u32,
    leaf: Option<Leaf>,
    broken: Broken,
    /// The other side takes no value twice.
    pub(super) unique: bool,
}

impl World {
    pub(super) fn new(seed: u64, rows: i64, busy: impl IntoIterator<Item = i64>) -> World {
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            owner: Rows::new(),
            other: Rows::new(),
            log: Vec::new(),
            applied: 0,
            hung: Vec::new(),
            versions: 0,
            busy: busy.into_iter().collect(),
            values: 3,
            leaf: None,
            broken: Broken::default(),
            unique: false,
        };
        for key in 0..rows {
            let value = format!("v{}", key % 7);
            world.versions += 1;
            let stored = Stored { value, version: world.versions };
            world.owner.insert(key, stored.clone());
            world.other.insert(key, stored);
        }
        world
    }

    pub(super) fn breaking(mut self, broken: Broken) -> World {
        self.broken = broken;
        self
    }

    /// Nobody writes any more, and everything written has been applied.
    pub(super) fn quiet(mut self) -> World {
        self.busy.clear();
        while !self.hung.is_empty() {
            self.show(0);
        }
        while self.applied < self.log.len() {
            self.apply();
        }
        self
    }

    /// Changes a row of the other side behind everybody's back.
    pub(super) fn plant(&mut self, key: i64, value: Option<&str>) {
        self.versions += 1;
        let version = self.versions;
        match value {
            Some(value) => self.other.insert(key, Stored { value: value.into(), version }),
            None => self.other.remove(&key),
        };
    }

    fn write(rows: &mut Rows, versions: &mut u64, writes: &[(i64, Option<String>)]) {
        for (key, value) in writes {
            *versions += 1;
            match value {
                Some(value) => rows.insert(*key, Stored { value: value.clone(), version: *versions }),
                None => rows.remove(key),
            };
        }
    }

    fn commit(&mut self) {
        let locked: BTreeSet<i64> =
            self.hung.iter().flat_map(|t| self.log[*t].writes.iter().map(|(key, _)| *key)).collect();
        let free: Vec<i64> = self.busy.iter().copied().filter(|key| !locked.contains(key)).collect();
        let mut writes = BTreeMap::new();
        for _ in 0..self.rng.random_range(1..3) {
            let Some(&key) = free.get(self.rng.random_range(0..free.len().max(1))) else { return };
            if of_leaf(key) && self.leaf.as_ref().is_none_or(|leaf| !leaf.is_there()) {
                continue;
            }
            let delete = self.owner.contains_key(&key) && self.rng.random_ratio(1, 3);
            let value = (!delete).then(|| format!("v{}", self.rng.random_range(0..self.values)));
            writes.insert(key, value);
        }
        self.log.push(Transaction { writes: writes.into_iter().collect() });
        self.hung.push(self.log.len() - 1);
        if self.rng.random_ratio(2, 3) {
            self.show(self.hung.len() - 1);
        }
    }

    fn show(&mut self, at: usize) {
        let number = self.hung.remove(at);
        World::write(&mut self.owner, &mut self.versions, &self.log[number].writes);
    }

    /// Lets the world go on a little.
    fn steps(&mut self, max: u32) {
        for _ in 0..self.rng.random_range(0..=max) {
            match self.rng.random_range(0..6) {
                0 | 1 if !self.busy.is_empty() => self.commit(),
                2 if !self.hung.is_empty() => {
                    let at = self.rng.random_range(0..self.hung.len());
                    self.show(at);
                }
                3 => self.apply(),
                4 if self.rng.random_ratio(1, 6) => self.move_leaf(),
                _ => {}
            }
        }
    }

    fn apply(&mut self) {
        let until = (self.applied + self.rng.random_range(1..8)).min(self.log.len());
        for number in self.applied..until {
            let mut writes = self.log[number].writes.clone();
            if writes.iter().any(|(key, _)| of_leaf(*key)) && !self.carries(number) {
                writes.retain(|(key, _)| !of_leaf(*key));
            }
            World::write(&mut self.other, &mut self.versions, &writes);
        }
        self.applied = until;
    }
}

/// How a side orders its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Number,
    /// As text, backwards: no bound of the other order makes sense in it.
    TextBackwards,
}

/// One side of a world.
pub(super) struct Side {
    world: Arc<Mutex<World>>,
    is_owner: bool,
    order: Order,
    /// Rows are read when so many readings are under way.
    pub(super) together: Option<Barrier>,
}

pub(super) fn sides(world: World, order: Order) -> (Arc<Mutex<World>>, Side, Side) {
    let world = Arc::new(Mutex::new(world));
    let owner = Side { world: world.clone(), is_owner: true, order: Order::Number, together: None };
    let other = Side { world: world.clone(), is_owner: false, order, together: None };
    (world, owner, other)
}

fn number(key: &KeyText) -> i64 {
    std::str::from_utf8(&key.0[0]).expect("text").parse().expect("a number")
}

fn hash_of(value: &str, key: Option<i64>) -> i64 {
    let mut hasher = DefaultHasher::new();
    (value, key).hash(&mut hasher);
    hasher.finish() as i64
}

impl Side {
    fn before(&self, a: i64, b: i64) -> bool {
        match self.order {
            Order::Number => a < b,
            Order::TextBackwards => a.to_string() > b.to_string(),
        }
    }

    fn contains(&self, within: &Extent, key: i64) -> bool {
        let Extent::Range { lower, upper } = within else { return false };
        lower.as_ref().is_none_or(|l| self.before(number(l), key))
            && upper.as_ref().is_none_or(|u| !self.before(number(u), key))
    }

    /// One statement: the world goes on before and after it, not during it.
    fn look<T>(&self, look: impl FnOnce(&Rows, Broken) -> T) -> T {
        let mut world = self.world.lock().expect("no panic");
        world.steps(3);
        let rows = if self.is_owner { &world.owner } else { &world.other };
        let out = look(rows, world.broken);
        world.steps(3);
        out
    }

    fn keyed(&self, within: &Extent, rows: &Rows) -> Vec<(i64, Stored)> {
        let mut rows: Vec<(i64, Stored)> = rows
            .iter()
            .filter(|(key, _)| self.contains(within, **key))
            .map(|(k, s)| (*k, s.clone()))
            .collect();
        if self.order == Order::TextBackwards {
            rows.sort_by_key(|(key, _)| std::cmp::Reverse(key.to_string()));
        }
        rows
    }
}

fn digest(hashes: impl IntoIterator<Item = i64>) -> Digest {
    let mut digest = Digest::default();
    for hash in hashes {
        digest.rows += 1;
        digest.sum += i128::from(hash);
        digest.bytes += 10;
    }
    digest
}

fn reading(found: &[(&i64, &Stored)], hash: i64, broken: Broken) -> Reading {
    let version =
        |(_, s): &(&i64, &Stored)| if broken.versions { s.value.clone() } else { s.version.to_string() };
    let mut versions: Vec<String> = found.iter().map(version).collect();
    versions.sort();
    let rows = found.len() as u64;
    Reading { rows, hash: if rows == 0 { 0 } else { hash }, bytes: 10, version: versions.join(",") }
}

fn read_item(item: &Item, rows: &Rows, broken: Broken) -> Reading {
    match item {
        Item::Key(key) => {
            let found: Vec<_> = rows.get_key_value(&number(key)).into_iter().collect();
            let hash = found.first().map_or(0, |(key, s)| hash_of(&s.value, Some(**key)));
            reading(&found, hash, broken)
        }
        Item::Image(hash) => {
            let found: Vec<_> = rows.iter().filter(|(_, s)| hash_of(&s.value, None) == *hash).collect();
            reading(&found, *hash, broken)
        }
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned().into())
}

impl Comparable for Side {
    async fn bound_after(&self, _: &Table, within: &Extent, rows: u64) -> Outcome<Option<KeyText>> {
        let bound = self.look(|all, _| self.keyed(within, all).get(rows as usize).map(|(key, _)| *key));
        Ok(bound.map(|key| KeyText::from_texts([key.to_string()])))
    }

    async fn digest(&self, _: &Table, within: &Extent) -> Outcome<Digest> {
        Ok(self.look(|all, _| {
            digest(self.keyed(within, all).into_iter().map(|(key, s)| hash_of(&s.value, Some(key))))
        }))
    }

    async fn hashes(&self, _: &Table, within: &Extent) -> Outcome<Vec<Hashed>> {
        let hashed = |(key, s): (i64, Stored)| Hashed {
            item: Item::Key(KeyText::from_texts([key.to_string()])),
            rows: 1,
            hash: hash_of(&s.value, Some(key)),
            bytes: 10,
        };
        Ok(self.look(|all, _| self.keyed(within, all).into_iter().map(hashed).collect()))
    }

    async fn buckets(&self, _: &Table, buckets: u32) -> Outcome<BTreeMap<u32, Digest>> {
        let mut found: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
        let hashes: Vec<i64> = self.look(|all, _| all.values().map(|s| hash_of(&s.value, None)).collect());
        for hash in hashes {
            found.entry(hash as u32 & (buckets - 1)).or_default().push(hash);
        }
        Ok(found.into_iter().map(|(bucket, hashes)| (bucket, digest(hashes))).collect())
    }

    async fn images(&self, _: &Table, buckets: u32, wanted: &[u32]) -> Outcome<Vec<Hashed>> {
        let mut found: BTreeMap<i64, u64> = BTreeMap::new();
        let hashes: Vec<i64> = self.look(|all, _| all.values().map(|s| hash_of(&s.value, None)).collect());
        for hash in hashes.into_iter().filter(|h| wanted.contains(&(*h as u32 & (buckets - 1)))) {
            *found.entry(hash).or_default() += 1;
        }
        Ok(found
            .into_iter()
            .map(|(hash, rows)| Hashed { item: Item::Image(hash), rows, hash, bytes: 10 })
            .collect())
    }

    async fn read(&self, _: &Table, items: &[Item]) -> Outcome<Vec<Reading>> {
        if let Some(together) = &self.together {
            together.wait().await;
        }
        Ok(self.look(|all, broken| items.iter().map(|item| read_item(item, all, broken)).collect()))
    }

    async fn rows(&self, _: &Table, items: &[Item]) -> Outcome<Vec<Option<FullRow>>> {
        Ok(self.look(|all, broken| {
            let full = |item: &Item| {
                let (key, stored) = match item {
                    Item::Key(key) => all.get_key_value(&number(key))?,
                    Item::Image(hash) => all.iter().find(|(_, s)| hash_of(&s.value, None) == *hash)?,
                };
                let row: Row = Arc::new([text(&key.to_string()), text(&stored.value)]);
                Some(FullRow { row, version: read_item(item, all, broken).version })
            };
            items.iter().map(full).collect()
        }))
    }

    async fn count(&self, _: &Table) -> Outcome<u64> {
        Ok(self.look(|all, _| all.len() as u64))
    }

    async fn sample(&self, table: &Table, rows: u64) -> Outcome<Vec<Item>> {
        let keyless = table.identity == Identity::WholeRow;
        let item = |(key, s): (&i64, &Stored)| match keyless {
            true => Item::Image(hash_of(&s.value, None)),
            false => Item::Key(KeyText::from_texts([key.to_string()])),
        };
        let items: BTreeSet<Item> = self.look(|all, _| all.iter().map(item).take(rows as usize).collect());
        Ok(items.into_iter().collect())
    }

    async fn position(&self) -> Outcome<Position> {
        Ok(Position(self.look(|_, _| 1)))
    }

    fn uncompared(&self, _: &Table) -> Vec<String> {
        let own = if self.is_owner { "of the owner" } else { "of the other side" };
        vec![own.to_owned(), "of both".to_owned()]
    }

    fn remedy(&self, _: &Table, owner: Option<&Row>, here: Option<&Row>) -> String {
        format!("{:?} instead of {:?}", owner.is_some(), here.is_some())
    }
}

/// The stream between the sides of a world.
pub(super) struct Stream(pub(super) Arc<Mutex<World>>);

impl Stream {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no panic")
    }
}

impl Passage for Stream {
    async fn passed(&self) -> Outcome<()> {
        let mut world = self.world();
        world.log.push(Transaction { writes: Vec::new() });
        let end = world.log.len();
        while world.applied < end && !world.broken.passed {
            world.steps(4);
        }
        Ok(())
    }

    async fn shown(&self) -> Outcome<bool> {
        let mut world = self.world();
        let applied = world.applied;
        while world.hung.iter().any(|t| *t < applied) && !world.broken.shown {
            world.steps(4);
        }
        Ok(true)
    }

    async fn parts(&self, _: &Table) -> Outcome<Option<String>> {
        let mut world = self.world();
        if world.leaf.is_some() {
            world.steps(4);
        }
        Ok(match &world.leaf {
            Some(leaf) if !world.broken.parts => leaf.made_of(),
            Some(_) | None => Some(String::new()),
        })
    }
}

impl Repairer for Stream {
    async fn repair(&self, _: &Table, extent: &Extent, _: Option<&str>) -> Outcome<Repaired> {
        let mut world = self.world();
        let keys: Vec<i64> = match extent {
            Extent::Key(key) => vec![number(key)],
            Extent::Range { .. } => world.owner.keys().chain(world.other.keys()).copied().collect(),
        };
        for key in keys {
            let value = world.owner.get(&key).map(|s| s.value.clone());
            let holds = |(at, s): (&i64, &Stored)| *at != key && Some(&s.value) == value.as_ref();
            if world.unique && world.other.iter().any(holds) {
                return Ok(Repaired::Refused(Fault::operator("SEGUE-TEST", "the value is taken", "free it")));
            }
            world.plant(key, value.as_deref());
        }
        Ok(Repaired::Copied)
    }
}
