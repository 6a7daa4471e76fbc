//! Where a probe goes on after a restart: what the disk holds decides, nothing else is remembered.
//!
//! When a life ends without warning, up to a queue's depth of its writes are in doubt: some reached the disk, perhaps not
//! in order. The next life goes on at the first number that is missing, and writes the ones above it anew, so that an
//! acknowledgement of a number always covers every number below it.

use crate::stamp::{Life, Slots, Stamp, StampError};

/// Reads every slot once, then says where to go on.
#[derive(Debug)]
pub struct Recovery<'a> {
    slots: Slots,
    /// The sequence number in each slot, 0 for none.
    found: &'a mut [u64],
    blocks: u64,
    bad: u64,
    newest: Option<Stamp>,
    last_life: u64,
}

/// What the disk held, and how a new life takes it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The highest sequence number on the disk, 0 for none.
    pub max_seq: u64,
    /// The number to go on with: the lowest that is not on the disk and not yet overwritten by a later lap.
    pub next_seq: u64,
    /// Slots that hold a stamp.
    pub blocks: u64,
    /// Slots that hold neither a stamp nor zeroes.
    pub bad: u64,
    /// The new life's number, for [`Life`].
    pub life_number: u64,
}

impl Recovered {
    /// The new life.
    pub fn life(&self, incarnation: u64) -> Life {
        Life { number: self.life_number, incarnation, adopted_max: self.max_seq }
    }
}

impl<'a> Recovery<'a> {
    /// Starts with nothing read.
    ///
    /// # Panics
    /// `table` has not one entry for each slot.
    pub fn new(slots: Slots, table: &'a mut [u64]) -> Self {
        assert_eq!(table.len() as u64, slots.count, "one entry for each slot");
        table.fill(0);
        Recovery { slots, found: table, blocks: 0, bad: 0, newest: None, last_life: 0 }
    }

    /// Takes what a slot holds, as [`Slots::read`] found it.
    ///
    /// # Panics
    /// `slot` is beyond the last.
    pub fn note(&mut self, slot: u64, content: Result<Option<Stamp>, StampError>) {
        match content {
            Ok(None) => {}
            Ok(Some(stamp)) => {
                self.blocks += 1;
                self.found[slot as usize] = stamp.seq;
                self.last_life = self.last_life.max(stamp.life.number);
                if self.newest.is_none_or(|newest| newest.seq < stamp.seq) {
                    self.newest = Some(stamp);
                }
            }
            Err(_) => self.bad += 1,
        }
    }

    /// Says where to go on.
    pub fn finish(self) -> Recovered {
        let max_seq = self.newest.map_or(0, |newest| newest.seq);
        let oldest = (max_seq + 1).saturating_sub(self.slots.count).max(1);
        let missing = (oldest..=max_seq).find(|&seq| self.found[self.slots.slot_of(seq) as usize] != seq);
        Recovered {
            max_seq,
            next_seq: missing.unwrap_or(max_seq + 1),
            blocks: self.blocks,
            bad: self.bad,
            life_number: self.last_life.saturating_add(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A disk of so many slots after these writes, in this order.
    fn recover(count: u64, writes: &[u64]) -> Recovered {
        let slots = Slots { seed: 1, count };
        let mut disk = vec![Ok(None); count as usize];
        let life = Life { number: 3, incarnation: 1, adopted_max: 0 };
        for &seq in writes {
            let slot = slots.slot_of(seq);
            disk[slot as usize] = Ok(Some(Stamp { seq, slot, life }));
        }
        recover_disk(slots, disk)
    }

    fn recover_disk(slots: Slots, disk: Vec<Result<Option<Stamp>, StampError>>) -> Recovered {
        let mut table = vec![9; disk.len()];
        let mut recovery = Recovery::new(slots, &mut table);
        for (slot, content) in disk.into_iter().enumerate() {
            recovery.note(slot as u64, content);
        }
        recovery.finish()
    }

    fn check(count: u64, writes: &[u64], max_seq: u64, next_seq: u64) {
        let recovered = recover(count, writes);
        assert_eq!((recovered.max_seq, recovered.next_seq), (max_seq, next_seq), "{count} slots, {writes:?}");
    }

    #[test]
    fn an_empty_disk_starts_at_one() {
        let expect = Recovered { max_seq: 0, next_seq: 1, blocks: 0, bad: 0, life_number: 1 };
        assert_eq!(recover(4, &[]), expect);
    }

    #[test]
    fn whole_sequences_go_on_after_the_highest() {
        check(4, &[1], 1, 2);
        check(4, &[1, 2, 3, 4], 4, 5);
        check(4, &[1, 2, 3, 4, 5, 6], 6, 7);
        check(1, &[1, 2, 3], 3, 4);
    }

    #[test]
    fn the_first_missing_number_comes_next() {
        check(4, &[2], 2, 1);
        check(8, &[1, 2, 4, 5], 5, 3);
        // 6 is missing, its slot still holds 2.
        check(4, &[1, 2, 3, 4, 5, 7], 7, 6);
    }

    #[test]
    fn a_damaged_block_is_counted_and_written_anew() {
        let slots = Slots { seed: 1, count: 2 };
        let life = Life { number: 3, incarnation: 1, adopted_max: 0 };
        let disk = vec![Ok(Some(Stamp { seq: 2, slot: 0, life })), Err(StampError::Checksum)];
        let expect = Recovered { max_seq: 2, next_seq: 1, blocks: 1, bad: 1, life_number: 4 };
        assert_eq!(recover_disk(slots, disk), expect);
    }

    #[test]
    fn the_new_life_adopts_what_it_found() {
        let life = recover(4, &[1, 2]).life(0xbeef);
        assert_eq!(life, Life { number: 4, incarnation: 0xbeef, adopted_max: 2 });
    }

    proptest! {
        /// Whatever subset of the writes in doubt reached the disk, nothing below `next_seq` is missing.
        #[test]
        fn every_number_below_the_next_is_on_the_disk(count in 1u64..12, whole in 0u64..40, doubt in prop::collection::vec(any::<bool>(), 0..12)) {
            let mut writes: Vec<u64> = (1..=whole).collect();
            // A writer never has two writes to one slot in flight.
            let in_doubt = doubt.iter().take(count as usize).enumerate();
            writes.extend(in_doubt.filter(|(_, reached)| **reached).map(|(ahead, _)| whole + 1 + ahead as u64));
            let recovered = recover(count, &writes);
            prop_assert!(recovered.next_seq > whole);
            prop_assert!(recovered.next_seq <= recovered.max_seq + 1);
            for seq in whole + 1..recovered.next_seq {
                prop_assert!(writes.contains(&seq));
            }
        }
    }
}
