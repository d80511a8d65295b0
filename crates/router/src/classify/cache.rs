//! Remembers what was proved, in bounded room.
//!
//! Two generations: a full one becomes the old one, and what is still asked for moves over from it. It does not know
//! what its keys mean.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// So many locks that threads seldom wait for one another.
const SHARDS: usize = 16;

#[derive(Debug)]
pub(super) struct Cache<V> {
    shards: Box<[Mutex<Shard<V>>]>,
    /// Of one generation of one shard.
    entries_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Shard<V> {
    new: HashMap<Box<[u8]>, V>,
    new_bytes: usize,
    old: HashMap<Box<[u8]>, V>,
}

impl<V: Clone> Cache<V> {
    /// Bounds of the whole. What a value takes is counted as `VALUE_BYTES`.
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Cache<V> {
        let shard = || Mutex::new(Shard { new: HashMap::new(), new_bytes: 0, old: HashMap::new() });
        Cache {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            entries_max: (entries_max / SHARDS / 2).max(1),
            bytes_max: bytes_max / SHARDS / 2,
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<V> {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = shard.new.get(key) {
            return Some(value.clone());
        }
        let (key, value) = shard.old.remove_entry(key)?;
        self.put(&mut shard, key, value.clone());
        Some(value)
    }

    pub(super) fn insert(&self, key: &[u8], value: V) {
        let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut shard, key.into(), value);
    }

    fn put(&self, shard: &mut Shard<V>, key: Box<[u8]>, value: V) {
        let bytes = key.len() + super::VALUE_BYTES;
        if shard.new.len() >= self.entries_max || shard.new_bytes + bytes > self.bytes_max {
            shard.old = std::mem::take(&mut shard.new);
            shard.new_bytes = 0;
        }
        if bytes <= self.bytes_max && shard.new.insert(key, value).is_none() {
            shard.new_bytes += bytes;
        }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard<V>> {
        // Only how even they are is at stake: the map of the shard hashes with a seed of its own.
        let tail = key.iter().rev().take(8);
        let sum = tail.fold(key.len(), |sum, &byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        &self.shards[sum % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<V> Cache<V> {
        fn held(&self) -> usize {
            self.shards.iter().map(|shard| shard.lock().unwrap()).map(|s| s.new.len() + s.old.len()).sum()
        }
    }

    #[test]
    fn it_holds_no_more_than_it_may_and_keeps_what_is_asked_for() {
        let cache = Cache::new(320, 32 << 20);
        cache.insert(b"kept", 0);
        for index in 1..10_000u32 {
            cache.insert(&index.to_be_bytes(), index);
            assert_eq!(cache.get(b"kept"), Some(0));
            assert!(cache.held() <= 320);
        }
        assert_eq!(cache.get(&9_999u32.to_be_bytes()), Some(9_999));
        assert_eq!(cache.get(&1u32.to_be_bytes()), None);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let cache = Cache::new(10_000, 1 << 20);
        for index in 0..1_000u32 {
            cache.insert(&[&index.to_be_bytes()[..], &[0; 8_192]].concat(), index);
        }
        assert!(cache.held() <= (1 << 20) / 8_192, "{}", cache.held());
        cache.insert(&vec![0; 1 << 20], 1);
        assert_eq!(cache.get(&vec![0; 1 << 20]), None);
    }
}
