//! One copy of equal profiles, and of equal traits.

use std::{hash::Hash, sync::Arc};

use crate::containers::{CowVec, SlotTable, hash_of};

#[derive(Clone, Debug)]
struct Entry<T, R> {
    value: Arc<T>,
    resolved: Arc<R>,
    users: u32,
}

/// Values that are kept once however many use them, each with what was made of it.
#[derive(Clone, Debug)]
pub(crate) struct Pool<T, R> {
    entries: CowVec<Option<Entry<T, R>>>,
    table: SlotTable,
    free: Vec<u32>,
}

impl<T, R> Default for Pool<T, R> {
    fn default() -> Self {
        Self { entries: CowVec::default(), table: SlotTable::default(), free: Vec::new() }
    }
}

impl<T: Hash + Eq + Clone, R: Clone> Pool<T, R> {
    /// The slot of an equal value.
    pub(crate) fn find(&self, value: &T) -> Option<u32> {
        self.table.find(hash_of(value), |slot| self.get(slot).is_some_and(|known| **known == *value))
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Arc<T>> {
        self.entries.get(slot as usize)?.as_ref().map(|entry| &entry.value)
    }

    pub(crate) fn resolved(&self, slot: u32) -> Option<&Arc<R>> {
        self.entries.get(slot as usize)?.as_ref().map(|entry| &entry.resolved)
    }

    /// Counts a user of a value that is there.
    pub(crate) fn join(&mut self, slot: u32) {
        if let Some(entry) = self.entries[slot as usize].as_mut() {
            entry.users += 1;
        }
    }

    /// Adds a value that is not there, with its first user.
    pub(crate) fn add(&mut self, value: Arc<T>, resolved: R) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        let hash = hash_of(&*value);
        self.entries[slot as usize] = Some(Entry { value, resolved: Arc::new(resolved), users: 1 });
        let entries = &self.entries;
        self.table
            .insert(hash, slot, |slot| entries[slot as usize].as_ref().map_or(0, |e| hash_of(&*e.value)));
        slot
    }

    /// A user is gone. Returns what was made of the value if it was the last.
    pub(crate) fn leave(&mut self, slot: u32) -> Option<Arc<R>> {
        let entry = self.entries[slot as usize].as_mut()?;
        entry.users -= 1;
        if entry.users > 0 {
            return None;
        }
        let hash = hash_of(&*entry.value);
        let entries = &self.entries;
        let hash_in = |slot: u32| entries[slot as usize].as_ref().map_or(0, |e| hash_of(&*e.value));
        self.table.remove(hash, slot, hash_in);
        self.free.push(slot);
        self.entries[slot as usize].take().map(|entry| entry.resolved)
    }
}
