//! The stamp of a 4 KiB disk block: who wrote it, as which write, and a pattern that shows any damage.
//!
//! Layout, little-endian 64-bit words: magic, seed, sequence number, slot, incarnation, life number, adopted maximum,
//! 504 words of pattern derived from all of those, checksum of everything before it.

use core::fmt;

/// Bytes in a stamped block.
pub const BLOCK_BYTES: usize = 4096;

/// A block of disk.
pub type Block = [u8; BLOCK_BYTES];

const WORD_BYTES: usize = 8;
const WORDS: usize = BLOCK_BYTES / WORD_BYTES;
const HEADER_WORDS: usize = 7;
const CHECKSUM_WORD: usize = WORDS - 1;
/// "DRVPROB1": the digit is the version of this layout.
const MAGIC: u64 = u64::from_le_bytes(*b"DRVPROB1");
/// No probe lives to write more; a larger number on a disk is not from a probe, and nothing computed from it overflows.
const SEQ_MAX: u64 = 1 << 62;
/// Odd, so that all words of a block's pattern differ.
const PATTERN_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// One run of the probe, from its boot to its end; a live migration does not end it.
///
/// It tells two writers of one disk apart. Writers that follow each other have rising numbers, and none writes above the
/// maximum that its successor found. Two incarnations with one number, or a write of an older life above what a newer
/// life adopted, were made by two writers at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// One more than the highest number that the probe found on the disk when it booted.
    pub number: u64,
    /// Random at boot.
    pub incarnation: u64,
    /// The highest sequence number that the probe found on the disk when it booted, 0 for an empty disk.
    pub adopted_max: u64,
}

/// What a block says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The sequence number of the write, from 1.
    pub seq: u64,
    /// The block's number on the disk.
    pub slot: u64,
    /// The life that wrote it.
    pub life: Life,
}

/// Why a block is not a stamp of this probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StampError {
    /// Neither a stamp nor zeroes.
    NotAStamp,
    /// A stamp of a probe with another seed.
    Seed {
        /// The seed in the block.
        found: u64,
    },
    /// Header and checksum disagree.
    Checksum,
    /// The checksum holds, the pattern does not: a stamp of another version of the probe.
    Pattern {
        /// The first wrong byte's offset, rounded down to a word.
        offset: usize,
    },
    /// A whole stamp at a place where it does not belong.
    Misplaced {
        /// The slot that the stamp was made for.
        slot: u64,
        /// Its sequence number.
        seq: u64,
    },
}

impl fmt::Display for StampError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StampError::NotAStamp => write!(f, "neither a stamp nor zeroes"),
            StampError::Seed { found } => write!(f, "stamped with seed {found}"),
            StampError::Checksum => write!(f, "checksum mismatch"),
            StampError::Pattern { offset } => write!(f, "pattern broken at byte {offset}"),
            StampError::Misplaced { slot, seq } => write!(f, "holds sequence {seq} of slot {slot}"),
        }
    }
}

impl core::error::Error for StampError {}

/// The slots of a disk that one seed's probe writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The probe's seed.
    pub seed: u64,
    /// How many, at least 1.
    pub count: u64,
}

impl Slots {
    /// The slot of a sequence number.
    pub fn slot_of(&self, seq: u64) -> u64 {
        seq % self.count
    }

    /// The last sequence number up to `max` that goes to `slot`, or `None` where no number has come to it. Numbers start
    /// at 1, so slot 0 is first written by number `count`.
    pub fn last_in_slot(&self, slot: u64, max: u64) -> Option<u64> {
        let back = (self.slot_of(max) + self.count - slot) % self.count;
        max.checked_sub(back).filter(|&seq| seq > 0)
    }

    /// Reads the block at `slot`: its stamp, or `None` where it has never been written.
    ///
    /// # Errors
    /// The block holds something else than a stamp of this seed and slot.
    pub fn read(&self, slot: u64, block: &Block) -> Result<Option<Stamp>, StampError> {
        let Some(stamp) = Stamp::read(self.seed, block)? else { return Ok(None) };
        let possible = (1..=SEQ_MAX).contains(&stamp.seq);
        if !possible || stamp.slot != slot || self.slot_of(stamp.seq) != slot {
            return Err(StampError::Misplaced { slot: stamp.slot, seq: stamp.seq });
        }
        Ok(Some(stamp))
    }
}

impl Stamp {
    /// Fills a block.
    pub fn write(&self, seed: u64, block: &mut Block) {
        let header = self.header(seed);
        let (words, _) = block.as_chunks_mut::<WORD_BYTES>();
        for (word, value) in words.iter_mut().zip(header) {
            *word = value.to_le_bytes();
        }
        let mut value = pattern_start(&header);
        for word in &mut words[HEADER_WORDS..CHECKSUM_WORD] {
            *word = value.to_le_bytes();
            value = value.wrapping_add(PATTERN_STEP);
        }
        let sum = checksum(&words[..CHECKSUM_WORD]);
        words[CHECKSUM_WORD] = sum.to_le_bytes();
    }

    /// Reads a block of the probe with this seed: its stamp, or `None` where it is all zeroes.
    ///
    /// # Errors
    /// The block holds something else than a whole stamp of this seed.
    pub fn read(seed: u64, block: &Block) -> Result<Option<Stamp>, StampError> {
        let (words, _) = block.as_chunks::<WORD_BYTES>();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        if word(0) != MAGIC {
            let empty = words.iter().all(|word| *word == [0; WORD_BYTES]);
            return if empty { Ok(None) } else { Err(StampError::NotAStamp) };
        }
        if checksum(&words[..CHECKSUM_WORD]) != word(CHECKSUM_WORD) {
            return Err(StampError::Checksum);
        }
        if word(1) != seed {
            return Err(StampError::Seed { found: word(1) });
        }
        let life = Life { number: word(5), incarnation: word(4), adopted_max: word(6) };
        let stamp = Stamp { seq: word(2), slot: word(3), life };
        let mut expect = pattern_start(&stamp.header(seed));
        for (index, word) in words[HEADER_WORDS..CHECKSUM_WORD].iter().enumerate() {
            if u64::from_le_bytes(*word) != expect {
                return Err(StampError::Pattern { offset: (HEADER_WORDS + index) * WORD_BYTES });
            }
            expect = expect.wrapping_add(PATTERN_STEP);
        }
        Ok(Some(stamp))
    }

    fn header(&self, seed: u64) -> [u64; HEADER_WORDS] {
        [MAGIC, seed, self.seq, self.slot, self.life.incarnation, self.life.number, self.life.adopted_max]
    }
}

fn pattern_start(header: &[u64; HEADER_WORDS]) -> u64 {
    header.iter().fold(0, |state, word| crate::mix(state ^ word))
}

/// Four lanes, because one multiply waits for the one before it: a guest checks thousands of blocks a second.
fn checksum(words: &[[u8; WORD_BYTES]]) -> u64 {
    const LANES: usize = 4;
    let mut lanes = [MAGIC; LANES];
    for (index, word) in words.iter().enumerate() {
        let lane = &mut lanes[index % LANES];
        *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(PATTERN_STEP).rotate_left(29);
    }
    lanes.iter().fold(0, |state, lane| crate::mix(state ^ lane))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLOTS: Slots = Slots { seed: 7, count: 16 };
    const LIFE: Life = Life { number: 2, incarnation: 0xabcd, adopted_max: 40 };

    fn stamped(seq: u64) -> Block {
        let mut block = [0; BLOCK_BYTES];
        Stamp { seq, slot: SLOTS.slot_of(seq), life: LIFE }.write(SLOTS.seed, &mut block);
        block
    }

    #[test]
    fn a_written_stamp_is_read_back() {
        let expect = Stamp { seq: 41, slot: 9, life: LIFE };
        assert_eq!(SLOTS.read(9, &stamped(41)), Ok(Some(expect)));
    }

    #[test]
    fn the_layout_stays() {
        let block = stamped(41);
        assert_eq!(&block[..8], b"DRVPROB1");
        assert_eq!(u64::from_le_bytes(block[16..24].try_into().unwrap()), 41);
        // A golden value: disks written by an older probe stay readable.
        assert_eq!(u64::from_le_bytes(block[4088..].try_into().unwrap()), GOLDEN_CHECKSUM);
    }
    const GOLDEN_CHECKSUM: u64 = 2_691_113_921_108_115_129;

    #[test]
    fn zeroes_were_never_written() {
        assert_eq!(SLOTS.read(3, &[0; BLOCK_BYTES]), Ok(None));
    }

    #[test]
    fn junk_is_not_a_stamp() {
        let mut block = [0; BLOCK_BYTES];
        block[4095] = 1;
        assert_eq!(SLOTS.read(0, &block), Err(StampError::NotAStamp));
    }

    #[test]
    fn another_seed_is_named() {
        let other = Slots { seed: 8, ..SLOTS };
        assert_eq!(other.read(9, &stamped(41)), Err(StampError::Seed { found: 7 }));
    }

    #[test]
    fn a_stamp_of_another_slot_is_misplaced() {
        assert_eq!(SLOTS.read(8, &stamped(41)), Err(StampError::Misplaced { slot: 9, seq: 41 }));
    }

    #[test]
    fn a_stamp_of_another_disk_size_is_misplaced() {
        let larger = Slots { count: 17, ..SLOTS };
        assert_eq!(larger.read(9, &stamped(41)), Err(StampError::Misplaced { slot: 9, seq: 41 }));
    }

    #[test]
    fn a_number_beyond_all_probes_is_misplaced() {
        let seq = u64::MAX;
        assert_eq!(SLOTS.read(15, &stamped(seq)), Err(StampError::Misplaced { slot: 15, seq }));
    }

    #[test]
    fn the_last_number_of_a_slot_is_found() {
        let slots = Slots { seed: 0, count: 4 };
        let check =
            |slot, max, expect| assert_eq!(slots.last_in_slot(slot, max), expect, "slot {slot} max {max}");
        check(0, 0, None);
        check(1, 0, None);
        check(1, 1, Some(1));
        check(0, 3, None);
        check(0, 4, Some(4));
        check(3, 9, Some(7));
        check(1, 9, Some(9));
        check(2, 9, Some(6));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(seq in 1..=SEQ_MAX, offset in 0..BLOCK_BYTES, bit in 0..8) {
            let mut block = stamped(seq);
            block[offset] ^= 1u8 << bit;
            prop_assert!(SLOTS.read(SLOTS.slot_of(seq), &block).is_err());
        }

        #[test]
        fn any_torn_write_is_seen(old in 1u64..1000, laps in 1u64..5, sectors in 1usize..8) {
            let new = old + laps * SLOTS.count;
            let mut block = stamped(old);
            block[..sectors * 512].copy_from_slice(&stamped(new)[..sectors * 512]);
            prop_assert_eq!(SLOTS.read(SLOTS.slot_of(old), &block), Err(StampError::Checksum));
        }

        #[test]
        fn last_in_slot_is_the_maximum_by_definition(count in 1u64..9, slot in 0u64..9, max in 0u64..60) {
            let slot = slot % count;
            let slots = Slots { seed: 0, count };
            prop_assert_eq!(slots.last_in_slot(slot, max), (1..=max).filter(|seq| seq % count == slot).max());
        }
    }
}
