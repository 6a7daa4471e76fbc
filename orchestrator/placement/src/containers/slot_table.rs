//! From a key to the slot that has it, where the slots hold the keys.

use std::hash::{Hash, Hasher};

use super::CowVec;

/// No slot here.
const FREE: u32 = u32::MAX;
/// Fewest places; a power of two, as every size.
const PLACES_MIN: usize = 64;

/// An open-addressing table of slots (linear probing): four bytes a place, because keys are only in the slots. Equal keys may
/// be there several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotTable {
    places: CowVec<u32>,
    len: usize,
}

/// Spreads a 128-bit id over 64 bits (the finaliser of splitmix64 over both halves).
pub(crate) fn mix(id: u128) -> u64 {
    let mut x = (id as u64) ^ ((id >> 64) as u64).rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Folds words into one by rotating and multiplying, and spreads the result. Profiles are hashed at every decision, and
/// this takes a fraction of the time of the standard library's keyed hash, whose keys would have to be fixed anyway.
#[derive(Default)]
struct Folding(u64);

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, word: u8) {
        self.write_u64(u64::from(word));
    }
    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    fn finish(&self) -> u64 {
        mix(u128::from(self.0))
    }
}

/// A hash that is the same in every process.
pub(crate) fn hash_of(value: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = Folding::default();
    value.hash(&mut hasher);
    hasher.finish()
}

impl SlotTable {
    fn mask(&self) -> usize {
        self.places.len() - 1
    }

    /// The slots whose hash may be this one; the caller compares keys.
    pub(crate) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> {
        let mask = if self.places.len() == 0 { 0 } else { self.mask() };
        let start = hash as usize & mask;
        (0..self.places.len())
            .map(move |step| self.places[(start + step) & mask])
            .take_while(|slot| *slot != FREE)
    }

    /// The first slot with this hash that is the right one.
    pub(crate) fn find(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.candidates(hash).find(|slot| is(*slot))
    }

    /// Adds a slot. `hash_of` says the hash of any slot that is in the table.
    pub(crate) fn insert(&mut self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> u64) {
        // At most three quarters full: a probe then takes 2.5 steps on average.
        if (self.len + 1) * 4 > self.places.len() * 3 {
            self.rebuild(((self.len + 1) * 2).next_power_of_two().max(PLACES_MIN), &hash_of);
        }
        self.put(hash, slot);
        self.len += 1;
    }

    fn put(&mut self, hash: u64, slot: u32) {
        let mask = self.mask();
        let mut place = hash as usize & mask;
        while self.places[place] != FREE {
            place = (place + 1) & mask;
        }
        self.places[place] = slot;
    }

    fn rebuild(&mut self, places: usize, hash_of: &impl Fn(u32) -> u64) {
        let slots: Vec<u32> = self.places.iter().copied().filter(|slot| *slot != FREE).collect();
        self.places = CowVec::default();
        (0..places).for_each(|_| self.places.push(FREE));
        for slot in slots {
            self.put(hash_of(slot), slot);
        }
    }

    /// Takes a slot out. Returns whether it was there.
    pub(crate) fn remove(&mut self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        if self.places.len() == 0 {
            return false;
        }
        let mask = self.mask();
        let mut hole = hash as usize & mask;
        while self.places[hole] != slot {
            if self.places[hole] == FREE {
                return false;
            }
            hole = (hole + 1) & mask;
        }
        // Whoever stands behind the hole moves up, unless that would put it before its own first place.
        let mut next = (hole + 1) & mask;
        while self.places[next] != FREE {
            let home = hash_of(self.places[next]) as usize & mask;
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.places[hole] = self.places[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.places[hole] = FREE;
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_finds_what_is_there_and_nothing_else(
            steps in proptest::collection::vec((any::<bool>(), 0u32..40), 0..300),
        ) {
            // Few distinct hashes, so that probes run into each other.
            let hash = |slot: u32| u64::from(slot % 7).wrapping_mul(0x1_0000_0001) + 60;
            let (mut table, mut model) = (SlotTable::default(), std::collections::BTreeSet::new());
            for (add, slot) in steps {
                if add {
                    if model.insert(slot) {
                        table.insert(hash(slot), slot, hash);
                    }
                } else {
                    prop_assert_eq!(table.remove(hash(slot), slot, hash), model.remove(&slot));
                }
                for slot in 0..40 {
                    prop_assert_eq!(table.find(hash(slot), |s| s == slot).is_some(), model.contains(&slot));
                }
            }
        }
    }
}
